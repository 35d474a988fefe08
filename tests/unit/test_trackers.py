"""What trackers are told of a run: read back from what they wrote. Those that are not installed here are left out."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit import tiny_whisper
from tests.unit.test_training import lay_out, metrics
from voxloop.errors import SettingError, UsageError
from voxloop.settings import Settings, resolve
from voxloop.steps.training import trackers, trainer
from voxloop.steps.training.state import StopFlag, TrainingConfig


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper.make(tmp_path_factory.mktemp("base") / "model", sharpness=1.0)


def tracked(folder: Path, base: Path, *names: str) -> dict[int, float]:
    """Train with trackers; the loss of each step that was told."""
    folder.parent.mkdir(parents=True)
    lay_out(folder, base, "max_steps=4", "eval_steps=2", "join_share=0")
    replace(TrainingConfig.load(folder), trackers=names).save(folder)
    assert trainer.run(folder, StopFlag()).status == "completed"
    return {line["step"]: line["loss"] for line in metrics(folder) if "loss" in line}


def test_tensorboard_has_the_curves(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "runs" / "one"
    losses = tracked(folder, base, "tensorboard")
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert {"loss", "learning_rate", "val_wer"} <= set(events.Tags()["scalars"])
    assert {event.step: event.value for event in events.Scalars("loss")} == pytest.approx(losses)
    assert [event.step for event in events.Scalars("val_wer")] == [0, 2, 4]


def test_trackio_has_the_run_in_a_local_database(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    losses = tracked(tmp_path / "runs" / "one", base, "trackio")
    assert SQLiteStorage.get_runs("voxloop") == ["one"]
    rows = SQLiteStorage.get_logs("voxloop", "one")
    assert {row["step"]: row["loss"] for row in rows if "loss" in row} == pytest.approx(losses)


def test_wandb_works_offline(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    folder = tmp_path / "runs" / "one"
    tracked(folder, base, "wandb")
    assert list(folder.glob("wandb/offline-run-*-one/run-one.wandb"))


def test_a_tracker_that_fails_is_a_warning(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorboard")
    from accelerate.tracking import TensorBoardTracker

    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(TensorBoardTracker, "log", full)
    with caplog.at_level(logging.WARNING):
        assert tracked(tmp_path / "runs" / "one", base, "tensorboard", "nonesuch")
    assert caplog.text.count("tracker tensorboard failed and was disabled (OSError: no space left)") == 1
    assert "tracker nonesuch failed and was disabled" in caplog.text


def test_a_tracker_that_is_not_there_is_refused_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingError, match=r"did you mean.*tensorboard"):
        trackers.check(["tensorbord"])
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install .*\[trackio\]"):
        trackers.check(["trackio"])


def test_trackers_are_a_list_in_the_file_and_names_in_the_environment(tmp_path: Path) -> None:
    assert Settings().trackers == ()
    (tmp_path / "voxloop.toml").write_text('trackers = ["tensorboard", "trackio"]')
    assert resolve(tmp_path, environ={}).trackers == ("tensorboard", "trackio")
    assert resolve(tmp_path, environ={"VOXLOOP_TRACKERS": "wandb, trackio"}).trackers == ("wandb", "trackio")
