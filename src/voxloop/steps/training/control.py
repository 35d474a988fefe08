"""The parent's side of a run: start the child, or find it alive; follow it; tell it to end.

Everything it knows it reads from the folder, so that it makes no difference which process started the child.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxloop.errors import TrainingError
from voxloop.settings import THREADS_WAIT
from voxloop.steps.training import locks
from voxloop.steps.training.files import CONFIG, LOG, METRICS, STATUS, TRAINING, read_json

POLL_S = 0.2
STOP_S = 30.0  # a step, a checkpoint: time to end in an orderly way before SIGKILL
PAUSE = signal.SIGTERM  # write a checkpoint and end
CONCLUDE = signal.SIGUSR1  # measure a last time, keep the best, end


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How a child ended, as its folder says."""

    status: str  # completed, stopped or failed
    error: str | None
    values: dict[str, Any]  # the whole of status.json


class Child:
    """The training process of a folder: one started here, or one that outlived the process that started it."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes] | None = None) -> None:
        self.folder = folder
        self.process = process

    @property
    def alive(self) -> bool:
        return self.process.poll() is None if self.process else locks.held(self.folder / TRAINING)

    @property
    def code(self) -> int | None:
        """The exit status, negative for a signal; None where it lives, or somebody else's child it was."""
        return self.process.returncode if self.process else None

    def tell(self, number: signal.Signals) -> bool:
        """Send a signal; False where it is not yet able to hear one."""
        try:
            pid = read_json(self.folder / STATUS)["pid"]
        except (OSError, ValueError, KeyError):
            return False
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return True

    def kill(self) -> None:
        """End it at once, and whatever it started. Raises TrainingError where it does not even die of that."""
        until = time.monotonic() + STOP_S
        while self.alive:
            try:
                pid = self.process.pid if self.process else read_json(self.folder / STATUS)["pid"]
                os.killpg(pid, signal.SIGKILL)
            except (OSError, ValueError, KeyError):
                pass  # about to begin, or about to end
            time.sleep(0.05)
            if time.monotonic() > until:
                raise TrainingError(f"the training process of {self.folder} does not end, not even by SIGKILL")

    def stop(self, *, patience_s: float = STOP_S) -> None:
        """Ask it to end with a checkpoint; kill it where it does not within `patience_s`."""
        until = time.monotonic() + patience_s
        told = False
        while self.alive and time.monotonic() < until:
            told = told or self.tell(PAUSE)
            time.sleep(0.05)
        self.kill()


def find(folder: Path) -> Child | None:
    """The living child of this folder."""
    return Child(folder) if locks.held(folder / TRAINING) else None


def start(folder: Path, *, device: str, threads: int, device_lock: locks.Lock | None = None) -> Child:
    """Start the child in a session of its own, so that the terminal's Ctrl-C reaches the parent alone.

    It inherits the lock of its folder, which says that it lives, and that of its device.
    """
    mine = locks.take(folder / TRAINING)
    if mine is None:
        raise TrainingError(f"another process trains in {folder}")
    (folder / STATUS).unlink(missing_ok=True)
    with mine, (folder / LOG).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "voxloop.steps.training.child", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment(device=device, threads=threads),
            pass_fds=[lock.descriptor for lock in (mine, device_lock) if lock],
        )
    return Child(folder, process)


def environment(*, device: str, threads: int) -> dict[str, str]:
    """What the child finds in its environment."""
    found = os.environ | {
        "OMP_NUM_THREADS": str(threads or os.cpu_count() or 1),
        **THREADS_WAIT,
        # The memory of a step is kept for the next one. By default glibc gives every large tensor back to the system,
        # which zeroes it page by page before the next step has it again: a fifth of the time (docs/log.md).
        "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
        "MALLOC_TRIM_THRESHOLD_": str(1 << 33),
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "warning",
    }
    if device != "cpu":
        # transformers would spread over every GPU that it sees.
        found.setdefault("CUDA_VISIBLE_DEVICES", device.partition(":")[2] or "0")
    return found


def follow(child: Child, *, poll_s: float = POLL_S) -> Iterator[dict[str, Any]]:
    """Lines of metrics as they come, until the child has ended. An empty dictionary says that it still lives."""
    path = child.folder / METRICS
    place = path.stat().st_size if path.exists() else 0
    while True:
        ended = not child.alive
        lines, place = _new_lines(path, place)
        yield from lines
        if ended:
            return
        yield {}
        time.sleep(poll_s)


def _new_lines(path: Path, place: int) -> tuple[list[dict[str, Any]], int]:
    """Whole lines after byte `place`, and where they end. A line that a kill or a full disk cut off is none."""
    if not path.exists():
        return [], place
    with path.open("rb") as file:
        file.seek(place)
        text = file.read()
    whole = text[: text.rfind(b"\n") + 1]
    found = []
    for line in whole.splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found, place + len(whole)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """All lines of metrics in a folder; of steps that were done again after a kill, the later ones."""
    return without_repeated_steps(_new_lines(folder / METRICS, 0)[0])


def without_repeated_steps(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of steps that were done again after a kill, the later lines alone."""
    kept: list[dict[str, Any]] = []
    for line in lines:
        while kept and kept[-1].get("step", 0) > line.get("step", 0):
            kept.pop()
        kept.append(line)
    return kept


def ending(child: Child) -> Ending:
    """How the child ended. A child that died without a word has failed."""
    values = last_words(child.folder)
    status = values["status"]
    if status == "running":
        return Ending(status="failed", error=_sudden(child.code, child.folder), values=values)
    error = values.get("error")
    if error and values.get("remedy"):
        error = f"{error}; {values['remedy']}"
    return Ending(status=status, error=error, values=values)


def last_words(folder: Path) -> dict[str, Any]:
    """The child's status.json; that of a child that has said nothing yet says `running`."""
    try:
        return read_json(folder / STATUS)
    except (FileNotFoundError, ValueError):
        return {"status": "running"}


def _sudden(code: int | None, folder: Path) -> str:
    goes_on = f"`voxloop run resume {folder.name}` goes on from the last checkpoint"
    if code == -signal.SIGKILL:
        smaller = read_json(folder / CONFIG)["recipe"]["batch_seconds"] / 2
        return (
            "the training process was killed (SIGKILL): often memory ran out; "
            f"`voxloop run retry {folder.name} --set batch_seconds={smaller:g}` needs less, {goes_on}"
        )
    if code is not None and code < 0:
        return f"the training process died of {signal.Signals(-code).name}; {goes_on}"
    if code is None:
        return f"the training process died without a word (killed, often because memory ran out); {goes_on}"
    tail = (folder / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    return f"the training process ended with status {code} before it began: {' '.join(tail)[:200]}"
