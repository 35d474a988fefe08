"""A run whose processes are killed again and again ends at the weights that an undisturbed run reaches."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.seeds import seeds
from tests.unit import tiny_whisper
from tests.unit.test_training import frozen, weights
from voxloop.pipeline import open_loop
from voxloop.records import Run
from voxloop.steps import training
from voxloop.steps.training import control, locks, recipes
from voxloop.steps.training.batches import SILENCE, Plan, read_rows
from voxloop.steps.training.files import CONFIG, TRAINING, read_json, whole_checkpoints
from voxloop.workspace import Workspace

KILLS = 10
STEPS = 160
MOST_STEPS = 14  # between two kills
# One batch a step and a line of metrics for each, so that the metrics tell which batches were heard.
SETTINGS = (
    f"max_steps={STEPS}",
    "max_seconds=none",
    "max_epochs=none",
    "audio_context=trimmed",
    "eval_seconds=none",
    "eval_steps=40",
    "batch_seconds=6",
    "log_steps=1",
    "save_seconds=0.1",
    "average=0.9",
    "max_val_clips=3",
    "learning_rate=1e-3",
)
DEADLINE_S = 200
LEASE_S = 2.0  # after which a dead parent is known to be dead


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper.make(tmp_path_factory.mktemp("base") / "model", sharpness=1.0)


def parent(ws: Workspace, run: str) -> subprocess.Popen[bytes]:
    """`voxloop run resume`, as a process of its own."""
    command = [sys.executable, "-c", "from voxloop.cli import main; main()", "-C", str(ws.folder)]
    with (ws.folder / "parent.log").open("ab") as log:
        return subprocess.Popen(
            [*command, "run", "resume", run],
            stdout=log,
            stderr=log,
            env=os.environ | {"VOXLOOP_THREADS": "1", "VOXLOOP_LEASE_S": str(LEASE_S)},
        )


def until(seen: Callable[[], bool], process: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait for something to be seen of a run while `process` attends to it."""
    ends = time.monotonic() + DEADLINE_S
    while not seen():
        assert process.poll() is None, (folder.parents[1] / "parent.log").read_text()[-2000:]
        assert time.monotonic() < ends, (folder / "train.log").read_text()[-2000:]
        time.sleep(0.01)


def step(folder: Path) -> int:
    lines = control.metrics(folder)
    return int(lines[-1]["step"]) if lines else 0


def batches(folder: Path) -> list[tuple[int, int]]:
    """Epoch and batch of each step that counts, in order: where a step was done again, as it was done last."""
    steps: dict[int, tuple[int, int]] = {}
    for line in control.metrics(folder):
        if "loss" in line:
            steps[line["step"]] = (line["epoch"], line["batch"] - 1)
    assert sorted(steps) == list(range(1, STEPS + 1))
    return [steps[step] for step in sorted(steps)]


def clips(folder: Path) -> dict[tuple[int, int], list[str]]:
    """The clips of each batch of the first epochs, strings taken apart."""
    from lhotse import MonoCut

    recipe = recipes.from_dict(read_json(folder / CONFIG)["recipe"])
    plan = Plan(
        read_rows(folder / "data" / "train.jsonl"),
        recipe,
        padded_s=_padded,
        label_length=lambda text, _: len(text) + 3,
        label_limit=96,
    )
    heard = {}
    for epoch in range(4):
        for batch in plan.epoch(epoch):
            parts: list[str] = []
            for cut in batch.cuts:
                tracks: Any = getattr(cut, "tracks", None)
                if tracks is None:
                    parts += [] if cut.id.startswith(SILENCE) else [cut.id]
                else:
                    parts += [track.cut.recording_id for track in tracks if isinstance(track.cut, MonoCut)]
            heard[(epoch, batch.index)] = parts
    return heard


def _padded(seconds: float, at_least_s: float) -> float:
    from voxloop.families.registry import family

    return family("whisper").padded_seconds(seconds, at_least_s)


@pytest.mark.parametrize("seed", seeds(3))
def test_killed_again_and_again_a_run_ends_the_same(tmp_path: Path, base: Path, seed: int) -> None:
    chance = random.Random(seed)
    with open_loop(tmp_path / "workspace", create=True, threads=1, device="cpu", lease_s=LEASE_S) as ws:
        frozen(ws, tmp_path / "speech")
        undisturbed = training.train(ws, base=str(base), recipe="quick", overrides=SETTINGS)
        run = training.submit(ws, base=str(base), recipe="quick", overrides=SETTINGS)
        folder = ws.runs / run.id
        orphan: int | None = None
        dead: set[int] = set()
        for number in range(KILLS):
            who = ("child", "parent", "both")[number % 3]
            process = parent(ws, run.id)
            until(lambda: training.attended(ws, run), process, folder)
            if orphan:
                os.kill(orphan, signal.SIGCONT)
            # The status may be that of the last child still.
            until(lambda: control.last_words(folder).get("pid") not in {None, *dead}, process, folder)
            if number % 5 != 4:  # else while the child loads its libraries
                goal = step(folder) + chance.randint(1, MOST_STEPS)
                until(lambda goal=goal: step(folder) >= goal, process, folder)  # type: ignore[misc]
            child, orphan = int(control.last_words(folder)["pid"]), None
            if who != "child":
                process.kill()
            if who == "parent":
                os.kill(child, signal.SIGSTOP)  # or it would be done before the next parent has begun
                orphan = child
            else:
                os.kill(child, signal.SIGKILL)
                dead.add(child)
                while locks.held(folder / TRAINING):  # dying takes a moment
                    time.sleep(0.01)
            process.wait(60)
            with ws.read() as reader:
                left = reader.get(Run, run.id).status
            while training.attended(ws, run):
                time.sleep(0.05)
            now = training.find(ws, run.id)
            assert (left, now.status) == {
                "child": ("failed", "failed"),
                "parent": ("running", "interrupted"),
                "both": ("running", "interrupted"),
            }[who]
            assert who != "child" or "SIGKILL" in str(now.error)
            # Half of a checkpoint is never taken for one, and there are never more than are kept.
            (folder / "checkpoint-99999").mkdir(exist_ok=True)
            assert len(whole_checkpoints(folder)) <= int(run.recipe["keep_checkpoints"]) + 1
        process = parent(ws, run.id)
        assert process.wait(DEADLINE_S) == 0, (ws.folder / "parent.log").read_text()[-2000:]
        ended = training.find(ws, run.id)
        metrics = training.metrics(ws, run.id)
    assert ended.status == "completed"
    assert ended.model is not None
    whole = ws.runs / undisturbed.id
    for name in ("final", "best"):
        expected = weights(whole / name)
        for key, weight in weights(folder / name).items():
            torch.testing.assert_close(weight, expected[key], atol=1e-5, rtol=1e-4)
    assert batches(folder) == batches(whole)
    assert control.metrics(folder) == metrics
    heard = clips(folder)
    all_clips = sorted(row.id for row in read_rows(folder / "data" / "train.jsonl"))
    for epoch in range(3):
        trained = [clip for place in batches(folder) if place[0] == epoch for clip in heard[place]]
        assert sorted(trained) == all_clips, epoch
    assert not [path for path in folder.glob("checkpoint-*") if path.name != "checkpoint-99999"]
