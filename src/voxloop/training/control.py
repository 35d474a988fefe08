"""The parent's side of a run: start the child, follow it, stop it. Everything it knows it reads from the folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxloop.errors import TrainingError
from voxloop.training.files import LOG, METRICS, STATUS, read_json

POLL_S = 0.2
STOP_S = 30.0  # a step, a checkpoint: time to end in an orderly way before SIGKILL


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How a child ended, as its folder says."""

    status: str  # completed, stopped or failed
    error: str | None
    values: dict[str, Any]  # the whole of status.json


def start(folder: Path, *, device: str, threads: int) -> subprocess.Popen[bytes]:
    """Start the child in a session of its own, so that the terminal's Ctrl-C reaches the parent alone."""
    (folder / STATUS).unlink(missing_ok=True)
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads or os.cpu_count() or 1),
        # Threads that wait must not spin: beside any other busy process, spinning made a step 29 times slower.
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "warning",
    }
    if device != "cpu":
        # transformers would spread over every GPU that it sees.
        environment.setdefault("CUDA_VISIBLE_DEVICES", device.partition(":")[2] or "0")
    with (folder / LOG).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "voxloop.training.child", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
        )


def follow(process: subprocess.Popen[bytes], folder: Path) -> Iterator[dict[str, Any]]:
    """Lines of metrics as they come, until the child has ended. An empty dictionary says that it still lives."""
    path = folder / METRICS
    place = path.stat().st_size if path.exists() else 0
    while True:
        ended = process.poll() is not None
        lines, place = _new_lines(path, place)
        yield from lines
        if ended:
            return
        yield {}
        time.sleep(POLL_S)


def _new_lines(path: Path, place: int) -> tuple[list[dict[str, Any]], int]:
    """Whole lines after byte `place`, and where they end."""
    if not path.exists():
        return [], place
    with path.open("rb") as file:
        file.seek(place)
        text = file.read()
    whole = text[: text.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()], place + len(whole)


def ending(process: subprocess.Popen[bytes], folder: Path) -> Ending:
    """How the child ended. A child that died without a word has failed."""
    try:
        values = read_json(folder / STATUS)
    except FileNotFoundError:
        values = {"status": "running"}
    status = values["status"]
    if status == "running":
        return Ending(status="failed", error=_sudden(process.returncode, folder), values=values)
    error = values.get("error")
    if error and values.get("remedy"):
        error = f"{error}; {values['remedy']}"
    return Ending(status=status, error=error, values=values)


def _sudden(code: int | None, folder: Path) -> str:
    if code == -signal.SIGKILL:
        return "the training process was killed (SIGKILL): often memory ran out; set batch_seconds lower and retry"
    if code is not None and code < 0:
        return f"the training process died of {signal.Signals(-code).name}; a retry goes on from the last checkpoint"
    tail = (folder / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    return f"the training process ended with status {code} before it began: {' '.join(tail)[:200]}"


def stop(process: subprocess.Popen[bytes], *, patience_s: float = STOP_S) -> None:
    """Ask the child to end with a checkpoint; kill it where it does not within `patience_s`."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired as error:
            raise TrainingError(f"the training process {process.pid} does not end, not even by SIGKILL") from error
