"""Models and datasets have names that commands take in place of ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.unit import frozen_speech, tiny_whisper
from voxloop.cli import app
from voxloop.cli.screen import short
from voxloop.errors import ConflictError, UnknownRecord, UsageError
from voxloop.maintenance.naming import rename_dataset, rename_model
from voxloop.models import NAME, base_model
from voxloop.pipeline import EVENTS, open_loop
from voxloop.records import Event, Run
from voxloop.steps import datasets
from voxloop.stores import tables
from voxloop.stores.catalog import to_event
from voxloop.workspace import Workspace


def told(ws: Workspace, type: str) -> list[Event]:
    assert type in EVENTS
    with ws.read() as reader:
        rows = reader.connection.execute(sa.select(tables.event).where(tables.event.c.type == type))
        return [to_event(row) for row in rows]


def test_a_named_model_is_meant_by_its_name(workspace: Workspace, tmp_path: Path) -> None:
    one, other = frozen_speech.models(tmp_path)
    first, second = base_model(workspace, str(one)), base_model(workspace, str(other))
    assert rename_model(workspace, str(one), "kitchen-1", by="ann").name == "kitchen-1"
    assert base_model(workspace, "kitchen-1").id == first.id
    rename_model(workspace, "kitchen-1", "kitchen-1")  # as it is: nothing is told
    with pytest.raises(ConflictError, match="already called 'kitchen-1': rename that model first"):
        rename_model(workspace, second.id, "kitchen-1")
    rename_model(workspace, "kitchen-1", "Küche.2")
    rename_model(workspace, second.id, "kitchen-1")
    assert base_model(workspace, "kitchen-1").id == second.id
    assert [event.payload["name"] for event in told(workspace, "model.renamed")] == [
        "kitchen-1",
        "Küche.2",
        "kitchen-1",
    ]
    listed = CliRunner().invoke(app, ["-C", str(workspace.folder), "model", "list"]).output
    assert "kitchen-1" in listed
    assert short(second.id) not in listed


@pytest.mark.parametrize(
    "name", ["", "../x", "a/b", "-x", "a b", "champion", "previous", "starter", "tiny.en", "x" * 65]
)
def test_a_name_that_means_something_else_is_refused(workspace: Workspace, name: str) -> None:
    base_model(workspace, "starter")
    with pytest.raises(UsageError):
        rename_model(workspace, "starter", name)


def test_no_name_is_a_part_of_another_models_id(workspace: Workspace, tmp_path: Path) -> None:
    other = base_model(workspace, str(tiny_whisper.make(tmp_path / "m")))
    with pytest.raises(UsageError, match="part of another model's id"):
        rename_model(workspace, "starter", short(other.id))
    with pytest.raises(UnknownRecord):
        rename_model(workspace, "nobody", "name")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=70))
def test_what_a_name_may_be_is_safe_in_paths_and_tables(name: str) -> None:
    if NAME.fullmatch(name):
        assert not set(name) & set("/\\|`<>[]\n\r\t '\"*$;&")
        assert not name.startswith(("-", "."))
        assert Path(name).name == name


def test_a_dataset_built_under_another_name_takes_it(tmp_path: Path) -> None:
    with open_loop(tmp_path / "w", create=True, min_snr_db=-99.0) as ws:
        frozen = frozen_speech.freeze(ws, tmp_path / "speech", clips=4)
        assert rename_dataset(ws, "frozen", "first").id == frozen.id
    run = ["-C", str(tmp_path / "w"), "dataset", "build", "--ratios", "0/0/1"]
    with_settings = {"VOXLOOP_MIN_SNR_DB": "-99"}
    again = CliRunner().invoke(app, run, env=with_settings)
    assert again.exit_code == 0, again.output
    assert again.output.startswith(f"Dataset first ({short(frozen.id)})")  # nobody asked for another name
    named = CliRunner().invoke(app, [*run, "--name", "second"], env=with_settings)
    assert "Dataset first already holds exactly these clips and transcripts. It is now called second" in named.output
    with open_loop(tmp_path / "w") as ws:
        assert datasets.find(ws, "second").id == frozen.id
        assert len(datasets.all_datasets(ws)) == 1
        assert [event.payload["before"] for event in told(ws, "dataset.renamed")] == ["frozen", "first"]


def test_listings_fit_80_columns_also_piped(workspace: Workspace, tmp_path: Path) -> None:
    base = base_model(workspace, str(tiny_whisper.make(tmp_path / "m")))
    run = Run(
        id="01JDZ3K5T2ABCDEFGHJKMNPQRS",
        dataset="sha256-" + "a" * 64,
        base=base.id,
        family="whisper",
        method="lora",
        recipe={},
        status="completed",
        model=base.id,
        retry_of="01JDZ3K5T2ABCDEFGHJKMNPQRR",
        progress={"step": 1200, "val_wer": 0.123, "base_val_wer": 0.4},
    )
    with workspace.transaction() as tx:
        tx.add(run)
    rename_model(workspace, base.id, "a-name-of-some-length")
    for command in (["model", "list"], ["run", "list"], ["dataset", "list"]):
        shown = CliRunner().invoke(app, ["-C", str(workspace.folder), *command])
        assert shown.exit_code == 0
        assert max(map(len, shown.output.rstrip().splitlines())) <= 80, shown.output
    shown = CliRunner().invoke(app, ["-C", str(workspace.folder), "run", "show", short(run.id), "--json"])
    assert json.loads(shown.output)["id"] == run.id
