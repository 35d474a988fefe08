"""The parent's side of a run: start or find the training process, follow it, and ask it to end.

All state is read from the folder, so it does not matter which process started the child.
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
STOP_S = 30.0  # time for a step and a checkpoint before SIGKILL
PAUSE = signal.SIGTERM  # write a checkpoint and end
CONCLUDE = signal.SIGUSR1  # evaluate a last time, keep the best, end


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How a child ended, read from its folder."""

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
        """The exit status, negative for a signal; None if it is running or was started by another process."""
        return self.process.returncode if self.process else None

    def tell(self, number: signal.Signals) -> bool:
        """Send a signal; False if the process cannot receive one yet."""
        try:
            pid = read_json(self.folder / STATUS)["pid"]
        except (OSError, ValueError, KeyError):
            return False
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return True

    def kill(self) -> None:
        """Kill it and its children. Raises TrainingError if it survives SIGKILL."""
        until = time.monotonic() + STOP_S
        while self.alive:
            try:
                pid = self.process.pid if self.process else read_json(self.folder / STATUS)["pid"]
                os.killpg(pid, signal.SIGKILL)
            except (OSError, ValueError, KeyError):
                pass  # about to begin, or about to end
            time.sleep(0.05)
            if time.monotonic() > until:
                raise TrainingError(
                    f"the training process of {self.folder} survived SIGKILL: end it by hand, then resume the run"
                )

    def stop(self, *, patience_s: float = STOP_S) -> None:
        """Ask it to save a checkpoint and end; kill it after `patience_s`."""
        until = time.monotonic() + patience_s
        told = False
        while self.alive and time.monotonic() < until:
            told = told or self.tell(PAUSE)
            time.sleep(0.05)
        self.kill()


def find(folder: Path) -> Child | None:
    """The running child of this folder; None if there is none."""
    return Child(folder) if locks.held(folder / TRAINING) else None


def start(folder: Path, *, device: str, threads: int, device_lock: locks.Lock | None = None) -> Child:
    """Start the child in its own session, so that Ctrl-C in the terminal reaches only the parent.

    It inherits the locks of its folder, which shows that it is running, and of its device.
    """
    mine = locks.take(folder / TRAINING)
    if mine is None:
        raise TrainingError(f"another process is training in {folder}: wait until it ends")
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
    """The child's environment variables."""
    found = os.environ | {
        "OMP_NUM_THREADS": str(threads or os.cpu_count() or 1),
        **THREADS_WAIT,
        # Keep a step's memory for the next one. By default glibc returns every large tensor to the system, which zeroes
        # its pages again before the next step: a fifth of the time (docs/log.md).
        "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
        "MALLOC_TRIM_THRESHOLD_": str(1 << 33),
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "warning",
    }
    if device != "cpu":
        # transformers would use every visible GPU.
        found.setdefault("CUDA_VISIBLE_DEVICES", device.partition(":")[2] or "0")
    return found


def follow(child: Child, *, poll_s: float = POLL_S) -> Iterator[dict[str, Any]]:
    """Yield lines of metrics until the child ends; an empty dictionary means that it is still running."""
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
    """Complete lines after byte `place`, and where they end. Lines cut off by a kill or full disk are skipped."""
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
    """All lines of metrics in a folder; for steps repeated after a kill, only the later lines."""
    return without_repeated_steps(_new_lines(folder / METRICS, 0)[0])


def without_repeated_steps(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """For steps repeated after a kill, keep only the later lines."""
    kept: list[dict[str, Any]] = []
    for line in lines:
        while kept and kept[-1].get("step", 0) > line.get("step", 0):
            kept.pop()
        kept.append(line)
    return kept


def ending(child: Child) -> Ending:
    """How the child ended. A child that left no final status has failed."""
    values = last_words(child.folder)
    status = values["status"]
    if status == "running":
        return Ending(status="failed", error=_sudden(child.code, child.folder), values=values)
    error = values.get("error")
    if error and values.get("remedy"):
        error = f"{error}; {values['remedy']}"
    return Ending(status=status, error=error, values=values)


def last_words(folder: Path) -> dict[str, Any]:
    """The child's status.json; `running` if it does not exist yet."""
    try:
        return read_json(folder / STATUS)
    except (FileNotFoundError, ValueError):
        return {"status": "running"}


def _sudden(code: int | None, folder: Path) -> str:
    goes_on = f"continue from the last checkpoint with `voxloop run resume {folder.name}`"
    if code == -signal.SIGKILL:
        smaller = read_json(folder / CONFIG)["recipe"]["batch_seconds"] / 2
        return (
            "the training process was killed (SIGKILL), probably because memory ran out. Train with less memory "
            f"(`voxloop run retry {folder.name} --set batch_seconds={smaller:g}`), or {goes_on}"
        )
    if code is not None and code < 0:
        return f"the training process was ended by {signal.Signals(-code).name}; {goes_on}"
    if code is None:
        return f"the training process ended without a message (probably killed because memory ran out); {goes_on}"
    tail = (folder / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    return f"the training process failed to start (exit status {code}): {' '.join(tail)[:200]}"
