"""Two processes that train one run together, as torchrun starts them: each hears half of every step."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.unit import tiny_whisper
from tests.unit.test_training import lay_out, metrics, weights
from voxloop.steps.training import trainer
from voxloop.steps.training.checkpoints import newest_checkpoint
from voxloop.steps.training.files import read_json
from voxloop.steps.training.state import StopFlag, TrainingConfig

PAIR = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
LIMIT_S = 240


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper.make(tmp_path_factory.mktemp("base") / "model", sharpness=1.0, width=48)


def start(folder: Path, *program: str) -> subprocess.Popen[bytes]:
    """The run of a folder on two CPU processes that talk over loopback."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with (folder / "train.log").open("ab") as log:
        command = [*PAIR, *(program or ("-m", "voxloop.steps.training.child")), str(folder)]
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def ended(process: subprocess.Popen[bytes], folder: Path) -> str:
    """What the run's status is, now that both processes have ended well."""
    try:
        assert process.wait(LIMIT_S) == 0, (folder / "train.log").read_text()[-3000:]
    finally:
        process.terminate()  # a launcher that still lives ends its processes, too
    return str(read_json(folder / "status.json")["status"])


@pytest.mark.parametrize(
    "extra",
    [
        ("average=0.9", "ctc_weight=0.3", "layer_decay=0.8"),
        ("freeze_encoder=true", "encoder_copies=2", "method=lora", "lora_dropout=0"),
    ],
)
def test_two_processes_learn_what_one_learns_with_twice_the_accumulation(
    base: Path, tmp_path: Path, extra: tuple[str, ...]
) -> None:
    steps = ("max_steps=12", "eval_steps=6", "batch_seconds=6", *extra)
    alone = lay_out(tmp_path / "alone", base, *steps, "accumulation=2")
    trainer.run(alone, StopFlag())
    both = lay_out(tmp_path / "both", base, *steps, data=alone / "data")
    assert ended(start(both), both) == "completed"
    for name, weight in weights(alone / "final").items():
        torch.testing.assert_close(weights(both / "final")[name], weight, atol=2e-5, rtol=1e-3)
    one, two = metrics(alone), metrics(both)
    assert [line["step"] for line in two] == [line["step"] for line in one]  # written by one of them
    for mine, theirs in zip(one, two, strict=True):
        assert (mine["epoch"], mine["batch"]) == (theirs["epoch"], theirs["batch"])
        for name in {"loss", "val_wer", "learning_rate"} & mine.keys():
            assert theirs[name] == pytest.approx(mine[name], rel=1e-3)


def test_what_the_clock_and_signals_decide_is_decided_once(base: Path, tmp_path: Path) -> None:
    """Evaluated and saved by the clock, stopped by a signal to one of them: if each decided alone, they would hang."""
    steps = ("max_steps=40", "eval_seconds=0.3", "save_seconds=0.2", "batch_seconds=6", "log_steps=1", "average=0.9")
    whole = lay_out(tmp_path / "whole", base, *steps)
    assert ended(start(whole), whole) == "completed"
    halved = lay_out(tmp_path / "halved", base, *steps, data=whole / "data")
    process = start(halved)
    until = time.monotonic() + LIMIT_S
    while not (halved / "metrics.jsonl").exists() or metrics(halved)[-1]["step"] < 5:
        assert process.poll() is None, (halved / "train.log").read_text()[-3000:]
        assert time.monotonic() < until
        time.sleep(0.01)
    os.kill(read_json(halved / "status.json")["pid"], signal.SIGTERM)
    assert ended(process, halved) == "stopped"
    assert newest_checkpoint(halved) is not None
    assert ended(start(halved), halved) == "completed"
    for name, weight in weights(whole / "final").items():
        torch.testing.assert_close(weights(halved / "final")[name], weight, atol=1e-5, rtol=1e-4)


SHORT_OF_MEMORY = """
import os, sys
from voxloop.families.whisper import Whisper
from voxloop.steps.training import child

real = Whisper.loss

def tight(self, trainable, model, inputs, **options):
    if os.environ["RANK"] == "1" and inputs["labels"].shape[0] * inputs["input_features"].shape[-1] > 900:
        raise MemoryError
    return real(self, trainable, model, inputs, **options)

Whisper.loss = tight
sys.exit(child.main(sys.argv[1:]))
"""


def test_where_one_runs_out_of_memory_both_go_on_with_smaller_batches(base: Path, tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "run", base, "max_steps=3", "batch_seconds=16")
    program = tmp_path / "short_of_memory.py"
    program.write_text(SHORT_OF_MEMORY)
    assert ended(start(folder, str(program)), folder) == "completed"
    assert any("batches are now 8 s, with 2 per step" in note for note in read_json(folder / "status.json")["notes"])
    kept = TrainingConfig.load(folder).recipe
    assert (kept["batch_seconds"], kept["accumulation"]) == (8, 2)
