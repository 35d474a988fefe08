"""What people ask of runs, whose turn it is, and what is found of runs whose processes died."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.conftest import mount
from tests.unit import tiny_whisper
from tests.unit.test_training import frozen, lay_out, write_data
from voxloop.automation.worker import work
from voxloop.cli import app
from voxloop.cli.runs import curve
from voxloop.errors import SettingError, TrainingError, UsageError
from voxloop.records import Model, Run
from voxloop.steps import training
from voxloop.steps.training import child, control, disk, locks, recipes, runs, trainer
from voxloop.steps.training.files import ATTENDED, CONFIG, LOG, METRICS, append_line, read_json
from voxloop.steps.training.state import StopFlag
from voxloop.stores import tables
from voxloop.workspace import Workspace

ENDLESS = ("max_steps=100000", "max_seconds=none", "max_epochs=none", "average=0", "batch_seconds=12")
QUICK = (*ENDLESS[1:], "max_steps=3", "eval_steps=2")
WAIT_S = 120


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper.make(tmp_path_factory.mktemp("base") / "model", sharpness=1.0)


@pytest.fixture
def ws(workspace: Workspace, tmp_path: Path) -> Workspace:
    frozen(workspace, tmp_path / "speech", clips=24)
    return workspace


class Terminal(threading.Thread):
    """Somebody else who sees a run through."""

    def __init__(self, ws: Workspace, run: Run) -> None:
        super().__init__(daemon=True)
        self.ws, self.run_ = ws, run
        self.told: list[dict[str, Any]] = []
        self.turns: list[training.QueuePosition] = []
        self.changed = threading.Condition()
        self.ended: Run | None = None
        self.start()

    def run(self) -> None:
        self.ended = training.see_through(
            self.ws, self.run_.id, progress=self._add(self.told), waiting=self._add(self.turns)
        )

    def _add(self, to: list[Any]) -> Callable[[Any], None]:
        def add(value: Any) -> None:
            with self.changed:
                to.append(value)
                self.changed.notify_all()

        return add

    def until(self, seen: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(seen, WAIT_S)

    def end(self) -> Run:
        self.join(WAIT_S)
        assert self.ended is not None
        return self.ended


def submitted(ws: Workspace, base: Path, *overrides: str) -> Run:
    return training.submit(ws, base=str(base), recipe="quick", overrides=overrides or ENDLESS)


def wait_until(seen: Callable[[], bool]) -> None:
    ends = time.monotonic() + WAIT_S
    while not seen():
        assert time.monotonic() < ends
        time.sleep(0.05)


def device(ws: Workspace) -> locks.Lock:
    """The device's lock, as a run of another workspace holds it."""
    lock = locks.take(runs.device_lock(ws)[1])
    assert lock is not None
    lock.write({"run": "other", "workspace": "/elsewhere", "pid": 1})
    return lock


def test_a_run_is_paused_goes_on_and_is_stopped_with_what_it_learnt(ws: Workspace, base: Path) -> None:
    run = submitted(ws, base, *ENDLESS, "learning_rate=2e-3", "eval_steps=60")
    first = Terminal(ws, run)
    first.until(lambda: any(line["step"] >= 60 and "val_wer" in line for line in first.told))
    paused = training.pause(ws, run.id)
    assert first.end().status == paused.status == "paused"
    assert paused.finished is None
    assert paused.wanted is None
    newest = trainer.newest_checkpoint(ws.runs / run.id)
    assert newest is not None
    assert paused.progress["step"] <= int(newest.name.partition("-")[2])
    assert training.device_free(ws)

    second = Terminal(ws, training.resume(ws, run.id))
    second.until(lambda: bool(second.told))
    assert second.told[0]["step"] >= 60
    with pytest.raises(UsageError, match="is running, but retry needs a run that has ended"):
        training.retry(ws, run.id)
    stopped = training.stop(ws, run.id)
    assert second.end().status == stopped.status == "stopped"
    assert stopped.model is not None
    with ws.read() as reader:
        assert reader.get(Model, stopped.model).run == run.id
    assert not list((ws.runs / run.id).glob("checkpoint-*"))
    with pytest.raises(UsageError, match="is stopped, but resume needs"):
        training.resume(ws, run.id)


def test_what_is_discarded_leaves_the_log_alone(ws: Workspace, base: Path) -> None:
    run = submitted(ws, base)
    terminal = Terminal(ws, run)
    terminal.until(lambda: bool(terminal.told))
    assert training.stop(ws, run.id, discard=True).status == "stopped"
    ended = terminal.end()
    assert (ended.status, ended.model) == ("stopped", None)
    left = {path.name for path in (ws.runs / run.id).iterdir()}
    assert {"train.log", "metrics.jsonl"} <= left
    assert not any(name.startswith(("checkpoint", "best", "final")) for name in left)


def test_a_queued_run_is_done_by_a_worker(ws: Workspace, base: Path) -> None:
    run = submitted(ws, base, *QUICK)
    assert work(ws, ["train"], until_idle=True) == 1
    done = training.find(ws, run.id)
    assert done.status == "completed"
    again = training.retry(ws, run.id, ["learning_rate=1e-3"])
    assert (again.status, again.retry_of, again.recipe["learning_rate"]) == ("queued", run.id, 1e-3)
    assert again.recipe["max_steps"] == done.recipe["max_steps"]
    with pytest.raises(SettingError, match="did you mean"):
        training.retry(ws, run.id, ["learning_rat=1e-3"])


def test_a_worker_that_is_told_to_end_gives_the_run_back(ws: Workspace, base: Path) -> None:
    run = submitted(ws, base)
    stop = threading.Event()
    worker = threading.Thread(target=work, args=(ws, ["train"]), kwargs={"stop": stop}, daemon=True)
    worker.start()
    folder = ws.runs / run.id
    until = threading.Event()
    while not control.metrics(folder):
        until.wait(0.1)
    stop.set()
    worker.join(WAIT_S)
    assert training.find(ws, run.id).status == "queued"
    assert trainer.newest_checkpoint(folder) is not None
    assert not training.attended(ws, run)
    with ws.read() as reader:
        assert ws.jobs.held(reader, "train") == {run.id: False}


def test_whom_a_run_waits_for_is_told_and_waiting_can_be_paused(ws: Workspace, base: Path) -> None:
    with device(ws):
        assert not training.device_free(ws)
        run = submitted(ws, base)
        terminal = Terminal(ws, run)
        terminal.until(lambda: bool(terminal.turns))
        assert terminal.turns == [
            training.QueuePosition(ahead=0, device="cpu", holder={"run": "other", "workspace": "/elsewhere", "pid": 1})
        ]
        second = submitted(ws, base)
        behind = Terminal(ws, second)
        behind.until(lambda: bool(behind.turns))
        assert behind.turns[0].ahead == 1
        assert training.pause(ws, run.id).status == "paused"
        behind.until(lambda: len(behind.turns) > 1)  # the place of the first is free
        assert behind.turns[1].ahead == 0
        assert training.stop(ws, second.id).status == "stopped"
    assert terminal.end().status == "paused"
    assert behind.end().model is None


def test_places_of_the_dead_and_of_those_that_wait_for_a_worker_are_free(ws: Workspace, base: Path) -> None:
    dead, later = submitted(ws, base), submitted(ws, base)
    claim = ws.jobs.claim(["train"], subject=dead.id)
    assert claim is not None
    with device(ws) as lock:
        terminal = Terminal(ws, later)
        terminal.until(lambda: bool(terminal.turns))
        assert terminal.turns[0].ahead == 1
        # Its lease runs out.
        with ws.transaction() as tx:
            tx.connection.execute(tables.job.update().where(tables.job.c.token == claim.token).values(lease_until=1.0))
        terminal.until(lambda: len(terminal.turns) > 1)
        assert terminal.turns[1].ahead == 0
        training.stop(ws, later.id, discard=True)
        terminal.end()
        assert lock


def test_a_run_whose_lease_has_run_out_is_interrupted(ws: Workspace, base: Path) -> None:
    run = submitted(ws, base)
    ws.jobs.lease_s = 1.0
    claim = ws.jobs.claim(["train"], subject=run.id)
    assert claim is not None
    with ws.transaction() as tx:
        tx.change(Run, run.id, status="running", progress={"step": 7})
    assert training.attended(ws, run)
    assert training.find(ws, run.id).status == "running"
    with pytest.raises(UsageError, match="wait until its lease expires"):
        training.resume(ws, run.id)
    wait_until(lambda: not training.attended(ws, run))
    training.reconcile(ws)
    with ws.read() as reader:
        found = reader.get(Run, run.id)
    assert found.status == "interrupted"
    assert "its process ended at step 7 without a message" in str(found.error)
    assert training.stop(ws, run.id).status == "stopped"


def test_a_lock_goes_with_the_last_process_that_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    mine = locks.take(path)
    assert mine is not None
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[mine.descriptor])
    mine.write({"run": "r"})
    mine.release()
    assert locks.held(path)
    assert locks.take(path, patience_s=0) is None
    assert locks.note(path) == {"run": "r"}
    process.kill()
    process.communicate()
    assert not locks.held(path)
    assert not locks.held(tmp_path / "none.lock")


def test_a_run_that_the_disk_cannot_hold_is_refused(ws: Workspace, base: Path) -> None:
    with pytest.raises(TrainingError, match=r"GB free, but the run needs [\d,]+\.\d GB .* or set method=lora"):
        submitted(ws, base, *QUICK, "keep_checkpoints=1000000000")
    with ws.read() as reader:
        assert reader.count(Run) == 0


def test_a_disk_that_fills_is_said_and_with_room_the_run_goes_on(small_disk: Path, base: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", train=6, val=2)
    folder = lay_out(small_disk / "run", base, "max_steps=30", "eval_steps=15", "save_seconds=0.001", data=data)
    assert mount("-o", "remount,size=2m", str(small_disk))
    first = control.start(folder, device="cpu", threads=1)
    assert list(control.follow(first))
    ending = control.ending(first)
    assert ending.status == "failed"
    assert f"the disk of {folder} is full" in str(ending.error)
    assert "\n" not in str(ending.error)
    assert mount("-o", "remount,size=64m", str(small_disk))
    second = control.start(folder, device="cpu", threads=1)
    assert list(control.follow(second))
    assert control.ending(second).status == "completed"


def test_what_a_run_writes_is_within_what_was_reckoned(ws: Workspace, base: Path) -> None:
    run = training.train(ws, base=str(base), recipe="quick", overrides=[*QUICK, "save_seconds=0.001"])
    size = sum(path.stat().st_size for path in (ws.runs / run.id).rglob("*") if path.is_file())
    assert size < disk.needed_bytes(training.parameters(base), recipes.from_dict(run.recipe))


def test_metrics_are_read_past_cut_lines_and_steps_done_again(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        append_line(tmp_path / METRICS, {"step": step, "loss": 1.0})
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 4, "lo\n')
    append_line(tmp_path / METRICS, {"step": 2, "loss": 0.5})
    assert [(line["step"], line["loss"]) for line in control.metrics(tmp_path)] == [(1, 1.0), (2, 1.0), (2, 0.5)]


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "free some space"),
        (RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"), "free some space"),
        (ValueError("what nobody thought of"), "see the log for its place"),
    ],
)
def test_a_reason_is_a_line_with_a_remedy(error: Exception, remedy: str, tmp_path: Path) -> None:
    told = child._reason(error, tmp_path)
    assert remedy in told["remedy"]
    assert "\n" not in told["error"]


def test_a_child_killed_from_outside_is_said_with_what_to_set(ws: Workspace, base: Path) -> None:
    run = submitted(ws, base)
    terminal = Terminal(ws, run)
    errors: list[BaseException] = []
    threading.excepthook, kept = lambda told: errors.append(told.exc_value or SystemExit()), threading.excepthook
    try:
        terminal.until(lambda: bool(terminal.told))
        os.kill(control.last_words(ws.runs / run.id)["pid"], signal.SIGKILL)
        terminal.join(WAIT_S)
    finally:
        threading.excepthook = kept
    failed = training.find(ws, run.id)
    assert failed.status == "failed"
    assert f"voxloop run retry {run.id} --set batch_seconds=6" in str(failed.error)
    assert str(failed.error) in str(errors[0])
    assert read_json(ws.runs / run.id / CONFIG)["recipe"]["batch_seconds"] == 12


def test_a_process_that_nobody_attends_to_any_more_ends(tmp_path: Path) -> None:
    stop = StopFlag()
    child._end_when_alone(tmp_path, stop, patience_s=0.3)  # started by itself
    assert not stop.set
    attending = locks.take(tmp_path / ATTENDED)
    assert attending is not None
    watching = threading.Thread(target=child._end_when_alone, args=(tmp_path, stop), kwargs={"patience_s": 0.3})
    watching.start()
    watching.join(1.0)
    assert watching.is_alive()
    assert not stop.set
    attending.release()
    watching.join(WAIT_S)
    assert stop.set


def test_a_curve_is_drawn() -> None:
    drawn = curve([(0, 1.0), (50, 0.5), (100, 0.0)], as_percent=True, width=21).splitlines()
    assert drawn[0].startswith("100.0 % │•")
    assert drawn[7] == "  0.0 % │" + " " * 20 + "•"
    assert drawn[-1].split() == ["0", "100"]
    assert sum(line.count("•") for line in drawn) == 3


def test_the_commands_tell_how_a_run_stands(ws: Workspace, base: Path) -> None:
    def voxloop(*arguments: str, status: int = 0) -> str:
        done = CliRunner().invoke(app, ["-C", str(ws.folder), *arguments])
        assert done.exit_code == status, done.output
        return done.output

    queued = json.loads(voxloop("train", "--base", str(base), "--set", "max_steps=3", "--no-wait", "--json"))
    id = queued["id"]
    assert queued["status"] == "queued"
    assert "has no log yet" in voxloop("run", "logs", id, status=2)
    folder = ws.runs / id
    folder.mkdir(parents=True)
    (folder / LOG).write_text("the log\n")
    for step, wer in ((0, 0.5), (10, 0.25)):
        append_line(folder / METRICS, {"step": step, "loss": 2.0 - step / 10, "val_wer": wer})
    assert voxloop("run", "pause", id) == f"paused at step 0; continue with `voxloop run resume {id}`\n"
    assert f"voxloop run resume {id[-8:]}  continue the paused run" in voxloop("status")
    assert "is paused, but pause needs a run that is queued or running" in voxloop("run", "pause", id, status=2)
    assert voxloop("run", "logs", id, "--follow") == "the log\n"  # it has ended: nothing to wait for
    shown = voxloop("run", "show", id)
    assert "loss by step\n2.000 │•" in shown
    assert "val WER by step\n50.0 % │•" in shown
    assert [line["step"] for line in json.loads(voxloop("run", "show", id, "--json"))["metrics"]] == [0, 10]
    again = json.loads(voxloop("run", "retry", id, "--set", "max_steps=2", "--no-wait", "--json"))
    assert (again["retry_of"], again["recipe"]["max_steps"]) == (id, 2)
    assert f"a retry of {id}" in voxloop("run", "show", again["id"])
    assert "stopped at step 0: no model was better than the base yet, so none was kept" in voxloop("run", "stop", id)
    assert [run["status"] for run in json.loads(voxloop("run", "list", "--json"))] == ["stopped", "queued"]
