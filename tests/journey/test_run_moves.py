"""A run that is paused or killed on one machine goes on on another, and ends at the weights it would have reached.

Two machines are two workspace folders over one catalog and one blob store; nothing else is shared.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit import tiny_whisper
from tests.unit.test_training import frozen, weights
from voxloop.errors import LeaseLost, TrainingError
from voxloop.maintenance import integrity, removal
from voxloop.pipeline import open_loop
from voxloop.records import Model, Run
from voxloop.steps import training
from voxloop.steps.training import control, moving
from voxloop.steps.training.files import BEST, CONFIG, HOME, read_json
from voxloop.steps.training.moving import whole_checkpoints
from voxloop.stores import tables
from voxloop.workspace import Workspace

STEPS = 500  # some seconds: time enough to be paused twice
SETTINGS = (
    f"max_steps={STEPS}",
    "max_seconds=none",
    "max_epochs=none",
    "eval_seconds=none",
    "eval_steps=100",
    "batch_seconds=6",
    "log_steps=1",
    "save_seconds=0.1",
    "average=0.9",
    "max_val_clips=3",
    "learning_rate=1e-3",
)
ENDLESS = ("max_steps=100000", *SETTINGS[1:])
LEASE_S = 2.0
WAIT_S = 120


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper.make(tmp_path_factory.mktemp("base") / "model", sharpness=1.0)


class Machines:
    """Workspace folders over the same stores."""

    def __init__(self, folder: Path, blobs: str) -> None:
        self.folder = folder
        self.stores = {"catalog": f"sqlite:///{folder / 'catalog.db'}", "blobs": blobs, "checkpoints_to_blobs": "on"}
        self.opened = ExitStack()

    def __call__(self, name: str) -> Workspace:
        machine = {"threads": 1, "device": "cpu", "lease_s": LEASE_S}
        return self.opened.enter_context(open_loop(self.folder / name, create=True, **self.stores, **machine))

    def environment(self) -> dict[str, str]:
        stores = {f"VOXLOOP_{name.upper()}": value for name, value in self.stores.items()}
        return os.environ | stores | {"VOXLOOP_THREADS": "1", "VOXLOOP_DEVICE": "cpu", "VOXLOOP_LEASE_S": str(LEASE_S)}


@pytest.fixture(params=["file", "s3"])
def machines(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machines]:
    url = request.getfixturevalue("s3") if request.param == "s3" else (tmp_path / "blobs").as_uri()
    made = Machines(tmp_path, url)
    with made.opened:
        yield made


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Machines]:
    made = Machines(tmp_path, (tmp_path / "blobs").as_uri())
    with made.opened:
        yield made


def until(seen: Callable[[], bool], what: str) -> None:
    ends = time.monotonic() + WAIT_S
    while not seen():
        assert time.monotonic() < ends, what
        time.sleep(0.02)


def attend(ws: Workspace, run: Run) -> threading.Thread:
    """Somebody on this machine who sees the run through."""
    thread = threading.Thread(target=training.see_through, args=(ws, run.id), daemon=True)
    thread.start()
    return thread


def copied_step(ws: Workspace, run: Run) -> int:
    with ws.read() as reader:
        row = reader.connection.execute(tables.run_folder.select().where(tables.run_folder.c.run == run.id)).first()
    return (row.step or 0) if row else 0


def same(one: Path, other: Path) -> None:
    for name in ("final", "best"):
        expected = weights(other / name)
        for key, weight in weights(one / name).items():
            torch.testing.assert_close(weight, expected[key], atol=1e-5, rtol=1e-4)


def test_paused_from_elsewhere_it_goes_on_there_and_comes_back(machines: Machines, tmp_path: Path, base: Path) -> None:
    a, b = machines("a"), machines("b")
    frozen(a, tmp_path / "speech")
    undisturbed = training.train(a, base=str(base), recipe="quick", overrides=SETTINGS)
    run = training.submit(a, base=str(base), recipe="quick", overrides=SETTINGS)
    attending = attend(a, run)
    until(lambda: len(training.metrics(b, run.id)) > 10, "metrics of the other machine")
    assert training.find(b, run.id).status == "running"
    assert training.pause(b, run.id).status == "paused"
    attending.join(WAIT_S)
    assert copied_step(b, run) == training.metrics(b, run.id)[-1]["step"]
    assert not (b.runs / run.id).exists() or not whole_checkpoints(b.runs / run.id)

    attending = attend(b, training.resume(b, run.id))
    paused_at = copied_step(a, run)
    until(lambda: training.metrics(a, run.id)[-1]["step"] > paused_at + 10, "it goes on")
    assert training.place(b, run.id) == str(b.runs / run.id)
    assert training.place(a, run.id).endswith(f":{b.runs / run.id}")
    assert training.pause(a, run.id).status == "paused"
    attending.join(WAIT_S)

    left_behind = control.start(a.runs / run.id, device="cpu", threads=1)  # by somebody who does not know
    ended = training.see_through(a, training.resume(a, run.id).id)
    assert ended.status == "completed"
    assert not left_behind.alive
    same(a.runs / run.id, a.runs / undisturbed.id)
    steps = [line["step"] for line in training.metrics(b, run.id) if "loss" in line]
    assert steps == list(range(1, STEPS + 1))
    text, _ = training.log_after(b, run.id)
    assert text.count(b"resuming from checkpoint-") >= 2
    assert (a.runs / run.id / "train.log").read_bytes().startswith(text)
    assert not list(b.blobs.list("runs/"))  # it will not go on any more


def test_killed_with_its_machine_it_is_interrupted_and_goes_on_elsewhere(
    local: Machines, tmp_path: Path, base: Path
) -> None:
    a, b = local("a"), local("b")
    frozen(a, tmp_path / "speech")
    undisturbed = training.train(a, base=str(base), recipe="quick", overrides=SETTINGS)
    run = training.submit(a, base=str(base), recipe="quick", overrides=SETTINGS)
    command = [sys.executable, "-c", "from voxloop.cli import main; main()", "-C", str(a.folder), "run", "resume"]
    parent = subprocess.Popen([*command, run.id], env=local.environment(), stdout=subprocess.DEVNULL, stderr=2)
    until(lambda: copied_step(b, run) >= 10, "a checkpoint in the blob store")
    child = control.last_words(a.runs / run.id)["pid"]
    parent.kill()
    os.kill(child, signal.SIGKILL)
    parent.wait(WAIT_S)
    assert training.find(b, run.id).status == "running"  # as far as anybody can tell
    until(lambda: training.find(b, run.id).status == "interrupted", "the lease runs out")
    ended = training.see_through(b, training.resume(b, run.id).id)
    assert ended.status == "completed"
    same(b.runs / run.id, a.runs / undisturbed.id)
    heard = {line["step"] for line in training.metrics(a, run.id) if "loss" in line}
    assert heard == set(range(1, STEPS + 1))


def paused(machines: Machines, base: Path, speech: Path) -> tuple[Workspace, Workspace, Run]:
    """A run that was paused on the first of two machines, with checkpoint and best model in the blob store."""
    a, b = machines("a"), machines("b")
    frozen(a, speech)
    run = training.submit(a, base=str(base), recipe="quick", overrides=ENDLESS)
    attending = attend(a, run)
    until(lambda: (a.runs / run.id / BEST).exists() and copied_step(a, run) > 0, "something better than the base")
    training.pause(a, run.id)
    attending.join(WAIT_S)
    return a, b, run


def test_stopped_elsewhere_the_best_so_far_becomes_a_model(local: Machines, tmp_path: Path, base: Path) -> None:
    a, b, run = paused(local, base, tmp_path / "speech")
    files = {key.rpartition("/")[2] for key in b.blobs.list(f"runs/{run.id}/checkpoints/")}
    with b.read() as reader:
        named = {file["sha256"] for _, _, file in training.named_blobs(reader)}
    assert files == named  # those of checkpoints before are gone
    stopped = training.stop(b, run.id)
    assert stopped.status == "stopped"
    with b.read() as reader:
        model = reader.get(Model, str(stopped.model))
    best = a.runs / run.id / "best" / "model.safetensors"
    assert b.blobs.get(f"{model.where}/model.safetensors") == best.read_bytes()


def test_a_damaged_copy_is_refused_found_and_given_up(local: Machines, tmp_path: Path, base: Path) -> None:
    _, b, run = paused(local, base, tmp_path / "speech")
    with b.read() as reader:
        row = reader.connection.execute(tables.run_folder.select()).one()
    name = next(name for name in row.files if name.endswith("model.safetensors"))
    path = b.blobs.path(moving.blob_key(run.id, row.files[name]["sha256"]))
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(
        TrainingError, match=f"{name} of its checkpoint is unusable .its content does not match its hash"
    ):
        training.see_through(b, training.resume(b, run.id).id)
    assert training.find(b, run.id).status == "failed"
    found = [finding for finding in integrity.verify(b, min_age_s=0).findings if finding.kind == "checkpoint-file"]
    assert [finding.subject for finding in found] == [run.id]
    integrity.verify(b, repair=True, min_age_s=0)
    assert not list(b.blobs.list("runs/"))  # named by nothing any more
    assert integrity.verify(b, min_age_s=0).sound


def test_what_was_forgotten_is_unlearnt_on_every_machine(local: Machines, tmp_path: Path, base: Path) -> None:
    a, b, run = paused(local, base, tmp_path / "speech")
    clips = (a.runs / run.id / "data" / "train.jsonl").read_text().splitlines()
    recording = next(iter(clips)).split('"id": "')[1].partition(":")[0]
    with a.transaction() as tx:
        piece = {"run": run.id, "start": 1 << 40, "data": f"clip {recording}:0-5 cannot be read\n".encode()}
        tx.connection.execute(tables.run_log.insert().values(piece))
    removal.forget(b, recording=recording)  # which has no folder of the run
    assert not list(b.blobs.list("runs/"))
    assert training.metrics(b, run.id) == []
    text, _ = training.log_after(b, run.id, 1 << 40)
    assert recording[7:31].encode() not in text
    assert text.startswith(b"clip sha256-" + b"-" * 24)
    assert training.find(a, run.id).progress == {}

    attending = attend(a, training.resume(a, run.id))
    until(lambda: bool(training.metrics(b, run.id)), "it starts over")
    assert training.metrics(b, run.id)[0]["step"] == 0
    assert (a.runs / run.id / "data" / "train.jsonl").read_text().splitlines() == clips[1:]
    training.stop(b, run.id, discard=True)
    attending.join(WAIT_S)


def test_without_copies_it_goes_on_from_what_is_in_its_folder(local: Machines, tmp_path: Path, base: Path) -> None:
    local.stores["checkpoints_to_blobs"] = "off"
    a, b = local("a"), local("b")
    frozen(a, tmp_path / "speech")
    run = training.submit(a, base=str(base), recipe="quick", overrides=ENDLESS)
    attending = attend(a, run)
    until(lambda: len(training.metrics(b, run.id)) > 300, "metrics")
    training.pause(b, run.id)
    attending.join(WAIT_S)
    assert not list(b.blobs.list("runs/"))
    checkpoint = whole_checkpoints(a.runs / run.id)[-1]
    before = training.metrics(a, run.id)[-1]["step"]

    attending = attend(b, training.resume(b, run.id))  # nothing of it is there
    until(lambda: training.metrics(a, run.id)[-1]["step"] < before, "it starts over")
    training.pause(a, run.id)
    attending.join(WAIT_S)
    (a.runs / run.id / "data" / "train.jsonl").unlink()  # as in a folder that a backup brought back
    attending = attend(a, training.resume(a, run.id))
    step = int(checkpoint.name.partition("-")[2])
    until(lambda: training.metrics(b, run.id)[-1]["step"] > step, "it goes on from where this machine was")
    training.stop(a, run.id, discard=True)
    attending.join(WAIT_S)


def test_who_has_lost_the_lease_stops_its_process_and_changes_nothing(
    local: Machines, tmp_path: Path, base: Path
) -> None:
    a, b = local("a"), local("b")
    frozen(a, tmp_path / "speech")
    run = training.submit(a, base=str(base), recipe="quick", overrides=ENDLESS)
    lost: list[Any] = []

    def attend_until_lost() -> None:
        try:
            training.see_through(a, run.id)
        except LeaseLost as error:
            lost.append(error)

    attending = threading.Thread(target=attend_until_lost, daemon=True)
    attending.start()
    until(lambda: copied_step(b, run) > 0, "a checkpoint")
    with b.transaction() as tx:  # as `run resume` elsewhere does once the lease has run out
        b.jobs.withdraw(tx, "train", run.id)
        tx.change(Run, run.id, status="queued")
    attending.join(WAIT_S)
    assert lost
    assert control.find(a.runs / run.id) is None
    assert training.find(b, run.id).status == "queued"


def test_settings_of_the_beginning_hold_on_every_machine(local: Machines, tmp_path: Path, base: Path) -> None:
    a, _, run = paused(local, base, tmp_path / "speech")
    with a.transaction() as tx:  # as after memory ran out
        row = tx.connection.execute(tables.run_folder.select()).one()
        config = row.config | {"recipe": row.config["recipe"] | {"batch_seconds": 3.0}}
        tx.connection.execute(tables.run_folder.update().values(config=config))
    elsewhere = {"normaliser": {"en": {"base": "whisper-basic"}}}
    c = local.opened.enter_context(open_loop(tmp_path / "c", create=True, **local.stores, **elsewhere, device="cpu"))
    attending = attend(c, training.resume(c, run.id))
    until(lambda: (c.runs / run.id / CONFIG).exists(), "its folder")
    laid_out = read_json(c.runs / run.id / CONFIG)
    training.stop(a, run.id, discard=True)
    attending.join(WAIT_S)
    assert laid_out["recipe"]["batch_seconds"] == 3.0
    assert laid_out["normaliser"] == read_json(a.runs / run.id / CONFIG)["normaliser"] == {}
    assert (c.runs / run.id / HOME).read_text() != (a.runs / run.id / HOME).read_text()
