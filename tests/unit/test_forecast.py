"""A forecast's plan, what it keeps, and what it does not do twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.unit import frozen_speech, tiny_whisper
from voxloop.cli import app
from voxloop.errors import UsageError
from voxloop.pipeline import open_loop
from voxloop.records import Evaluation, Model, Run
from voxloop.steps import datasets
from voxloop.steps.evaluation import forecast
from voxloop.steps.training.files import write_json
from voxloop.workspace import Workspace

PLAN = {"dataset": "frozen", "recipe": "quick", "overrides": ("batch_seconds=4",), "steps": 2, "seeds": 2}


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    base = tiny_whisper.make(tmp_path / "base")
    made = open_loop(
        tmp_path / "workspace", create=True, base_model=str(base), threads=1, device="cpu", min_snr_db=-99.0
    )
    frozen_speech.freeze(made, tmp_path / "speech", clips=40, ratios=(0.7, 0.3, 0.0))
    return made


def keep(ws: Workspace, plan: forecast.Plan, clips: int, seed: int) -> None:
    """A result as a training leaves it: half of the words wrong on 3 clips, fewer on more."""
    folder = plan.folder / f"{clips}-{seed}"
    folder.mkdir(parents=True)
    errors = {row.utterance: (number * 7 + seed) % 3 * (clips < 10) for number, row in enumerate(plan.rows)}
    wer = sum(errors.values()) / (5 * len(errors))
    write_json(folder / forecast.RESULT, {"clips": clips, "seed": seed, "errors": errors, "wer": wer, "took_s": 10.0})


def test_a_plan_says_what_it_costs_before_it_begins(ws: Workspace) -> None:
    plan = forecast.plan(ws, **PLAN)
    most = datasets.find(ws).clips["train"]
    assert plan.clips == tuple(round(most * share) for share in forecast.SHARES)
    assert (plan.runs, plan.done, plan.seconds_each) == (8, 0, None)
    assert (plan.recipe.max_steps, plan.recipe.max_seconds, plan.recipe.max_epochs) == (2, None, None)
    assert {row.split for row in plan.rows} == {"val"}  # the frozen test stays unused
    keep(ws, plan, plan.clips[0], 1)
    again = forecast.plan(ws, **PLAN)
    assert (again.done, again.seconds_each, again.folder) == (1, 10.0, plan.folder)
    assert forecast.plan(ws, **PLAN | {"steps": 3}).folder != plan.folder
    assert forecast.plan(ws, **PLAN | {"seeds": 5}).done == 1  # more seeds go on from what is there


def test_shares_are_nested_and_each_seed_draws_its_own(ws: Workspace) -> None:
    plan = forecast.plan(ws, **PLAN)
    forecast._lay_out(ws, plan)

    def ids(clips: int, seed: int) -> set[str]:
        lines = (plan.folder / "data" / f"train-{clips}-{seed}.jsonl").read_text().splitlines()
        assert len(lines) == clips
        return {json.loads(line)["id"] for line in lines}

    for seed in plan.seeds:
        for fewer, more in zip(plan.clips, plan.clips[1:], strict=False):
            assert ids(fewer, seed) < ids(more, seed)
    assert ids(plan.clips[1], 1) != ids(plan.clips[1], 2)
    assert ids(plan.clips[-1], 1) == ids(plan.clips[-1], 2)


def test_only_what_is_missing_is_trained_and_only_results_stay(ws: Workspace) -> None:
    plan = forecast.plan(ws, **PLAN)
    last = (plan.clips[-1], 2)
    for clips in plan.clips:
        for seed in plan.seeds:
            if (clips, seed) != last:
                keep(ws, plan, clips, seed)
    lines: list[str] = []
    found = forecast.forecast(ws, forecast.plan(ws, **PLAN), told=lines.append)
    assert ["(already done)" in line for line in lines if "seed 1" in line] == [True] * 4
    assert len(lines) == 8
    assert "(kept)" not in lines[-1]
    assert [at.clips for at in found.curve.measured] == list(plan.clips)
    assert [at.clips for at in found.curve.forecast] == [2 * plan.clips[-1], 4 * plan.clips[-1]]
    trained = plan.folder / f"{last[0]}-{last[1]}"
    assert {path.name for path in trained.iterdir() if path.is_dir()} == set()
    assert not (plan.folder / "data").exists()
    with ws.read() as reader:  # nothing that could be promoted, and no use of a test set
        assert reader.all(Run) == reader.all(Evaluation) == []
        assert all(model.run is None for model in reader.all(Model))
    kept = forecast.newest(ws, found.dataset)
    assert kept is not None
    assert kept["sentences"] == list(found.sentences)
    assert forecast.newest(ws, "sha256-of-another") is None

    told: list[str] = []
    assert forecast.forecast(ws, forecast.plan(ws, **PLAN), told=told.append) == found
    assert all("(already done)" in line for line in told)
    arguments = ["evaluate", "--forecast", "--recipe", "quick", "--set", "batch_seconds=4", "--steps", "2"]
    workspace, base = str(ws.folder), ws.settings.base_model
    shown = CliRunner().invoke(app, ["-C", workspace, *arguments[:1], base, *arguments[1:], "--seeds", "2"])
    assert shown.exit_code == 0, shown.output
    assert "8 already done" in shown.output
    assert found.sentences[0] in shown.output.replace("\n", " ")


def test_what_cannot_be_forecast_is_refused_with_the_remedy(ws: Workspace, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--seeds is 1, but at least 2 are needed"):
        forecast.plan(ws, **PLAN | {"seeds": 1})
    with pytest.raises(UsageError, match="three different shares"):
        forecast.plan(ws, **PLAN, shares=(0.5, 1.0))
    with pytest.raises(UsageError, match="above 0 and at most 1"):
        forecast.plan(ws, **PLAN, shares=(0.5, 1.0, 2.0))
    with pytest.raises(UsageError, match="test split of dataset frozen is empty"):
        forecast.plan(ws, **PLAN, split="test")
    with pytest.raises(UsageError, match="choose --split val"):
        forecast.plan(ws, **PLAN, split="train")
    wrong = CliRunner().invoke(app, ["-C", str(ws.folder), "evaluate", "--forecast", "--against", "starter"])
    assert wrong.exit_code == 2
    few = open_loop(tmp_path / "few", create=True, base_model=ws.settings.base_model, min_snr_db=-99.0)
    frozen_speech.freeze(few, tmp_path / "little", clips=12, ratios=(0.7, 0.3, 0.0))
    with pytest.raises(UsageError, match=r"dataset frozen has \d+ training clips, but a forecast needs at least 16"):
        forecast.plan(few, **PLAN)
