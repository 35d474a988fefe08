"""What nothing needs can be deleted, wholly; what something needs is kept, with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from tests.unit import kept
from voxloop.cli import app
from voxloop.errors import ConflictError, UnknownRecord
from voxloop.maintenance import removal
from voxloop.maintenance.integrity import verify
from voxloop.models import CONVERSIONS, base_model
from voxloop.pipeline import open_loop
from voxloop.records import Dataset, Evaluation, Model, Run
from voxloop.steps import datasets
from voxloop.stores import tables
from voxloop.stores.blobs import Blobs
from voxloop.workspace import Workspace


@pytest.fixture
def ws(tmp_path: Path) -> Iterator[Workspace]:
    """A champion from run1, a model from run2 made from it, an evaluation on the dataset that run1 learnt from."""
    with open_loop(tmp_path / "w", create=True) as opened:
        kept.fill(opened, tmp_path / "speech")
        yield opened


def of_run(ws: Workspace, run: str) -> Model:
    with ws.read() as reader:
        return reader.all(Model, tables.model.c.run == run)[0]


def unalias(ws: Workspace) -> None:
    with ws.transaction() as tx:
        tx.connection.execute(sa.delete(tables.alias))


def blobs(ws: Workspace, part: str) -> list[str]:
    return [key for key in ws.blobs.list("") if part in key]


def test_what_is_needed_is_kept_with_the_reason(ws: Workspace) -> None:
    champion, child = of_run(ws, "run1"), of_run(ws, "run2")
    frozen = datasets.find(ws, "frozen")
    refused: list[tuple[str, object]] = [
        ("it is champion", lambda: removal.delete_model(ws, "champion")),
        (f"{child.id[7:19]} is made from it", lambda: removal.delete_model(ws, champion.id)),
        ("`base_model` names it", lambda: removal.delete_model(ws, "starter")),
        ("kept from it", lambda: removal.delete_run(ws, "run1")),
        ("run run1 is on it", lambda: removal.delete_dataset(ws, frozen.id)),
    ]
    for reason, delete in refused:
        with pytest.raises(ConflictError, match=reason):
            delete()  # type: ignore[operator]
    with pytest.raises(UnknownRecord):
        removal.delete_model(ws, "nobody")
    with ws.read() as reader:
        assert reader.count(Model) >= 3
        assert reader.count(Run) == 2
        assert reader.count(Dataset) == 2


def test_from_the_last_to_the_first_everything_goes(ws: Workspace) -> None:
    champion, child = of_run(ws, "run1"), of_run(ws, "run2")
    frozen = datasets.find(ws, "frozen")
    form = ws.folder / CONVERSIONS / f"{child.id}-int8"
    form.mkdir(parents=True)
    before = {found.kind for found in verify(ws, min_age_s=0).findings}
    gone = removal.delete_model(ws, child.id, by="ann")
    assert (gone.kind, gone.blobs, gone.evaluations) == ("model", 1, 0)
    assert not form.exists()
    assert not blobs(ws, child.id)
    with ws.read() as reader:
        assert reader.get(Run, "run2").model is None
    removal.delete_run(ws, "run2")
    unalias(ws)
    gone = removal.delete_model(ws, champion.id)
    assert gone.evaluations == 1
    assert not blobs(ws, "models/asr/run1")
    assert not blobs(ws, "evaluations/")
    removal.delete_run(ws, "run1")
    assert not (ws.runs / "run1").exists()
    removal.delete_dataset(ws, "frozen")
    assert not blobs(ws, frozen.id)
    with ws.read() as reader:
        assert reader.count(Evaluation) == 0
        assert reader.count(Run) == 0
        types = [
            row.type for row in reader.connection.execute(sa.select(tables.event.c.type).order_by(tables.event.c.seq))
        ]
        # Splits stay what they were: what was test must not be learnt from one day.
        assert not reader.connection.execute(
            sa.select(tables.utterance.c.id).where(tables.utterance.c.split.is_(None))
        ).first()
    assert [one for one in types if one.endswith(".deleted")] == [
        "model.deleted", "run.deleted", "model.deleted", "run.deleted", "dataset.deleted",
    ]  # fmt: skip
    after = verify(ws, min_age_s=0).findings
    assert {found.kind for found in after} <= before, after
    assert not removal.unfinished(ws)


def test_versions_of_a_dataset_stay_a_chain(ws: Workspace) -> None:
    first = datasets.find(ws, "frozen")
    second = datasets.find(ws, f"{kept.WHO}-only")
    with ws.transaction() as tx:
        tx.change(Dataset, first.id, parent=second.id)
    removal.delete_dataset(ws, second.id)
    with ws.read() as reader:
        assert reader.get(Dataset, first.id).parent is None


def test_a_run_that_can_go_on_keeps_its_base(ws: Workspace) -> None:
    unalias(ws)
    removal.delete_model(ws, of_run(ws, "run2").id)
    with ws.transaction() as tx:
        tx.change(Run, "run2", status="paused")
    with pytest.raises(ConflictError, match="going on from it"):
        removal.delete_model(ws, of_run(ws, "run1").id)
    with ws.transaction() as tx:
        tx.change(Run, "run2", status="queued")
    with pytest.raises(ConflictError, match="it is "):
        removal.delete_run(ws, "run2")


def test_a_killed_deletion_is_finished_by_the_next(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    child = of_run(ws, "run2")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Blobs, "delete", killed)
        removal.delete_model(ws, child.id)
    with ws.read() as reader:
        assert reader.find(Model, child.id) is None
    assert blobs(ws, child.id)  # nobody names it any more, and what is to go is written down
    assert len(removal.unfinished(ws)) == 1
    removal.delete_run(ws, "run2")
    assert not blobs(ws, child.id)
    assert not removal.unfinished(ws)


def test_a_model_registered_anew_meanwhile_keeps_its_files(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    child = of_run(ws, "run2")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Blobs, "delete", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        removal.delete_model(ws, child.id)
    with ws.transaction() as tx:
        tx.add(child)
    removal.resume(ws)
    assert blobs(ws, child.id)


def test_deleting_is_asked_for_twice(ws: Workspace) -> None:
    child = of_run(ws, "run2")
    command = ["-C", str(ws.folder), "model", "delete", child.id[7:19]]
    asked = CliRunner().invoke(app, command)
    assert asked.exit_code == 2
    assert "--yes" in asked.output
    assert base_model(ws, child.id).id == child.id
    done = CliRunner().invoke(app, [*command, "--yes"])
    assert done.exit_code == 0, done.output
    assert done.output.startswith(f"deleted model {child.id[7:19]}")
