"""The training process: `python -m voxloop.steps.training.child RUN_DIR`.

It reads only `training_config.json` in that folder, and reports its status in
`status.json`: running -> completed | stopped | failed. SIGTERM and SIGINT end it at
the next step, with a checkpoint to resume from; SIGUSR1 ends it as if that step were
the last: it evaluates and keeps the best weights.

`torchrun --nproc-per-node N -m voxloop.steps.training.child RUN_DIR` or `accelerate launch` starts several processes
that train together; the first one reports and receives signals.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import shutil
import signal
import sys
import threading
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxloop.errors import VoxloopError
from voxloop.steps.training import locks
from voxloop.steps.training.files import ATTENDED, LOOP_STATE, STATUS, is_writer, write_json

if TYPE_CHECKING:
    from voxloop.steps.training.state import StopFlag
    from voxloop.steps.training.trainer import TrainingOutcome

ALONE_S = 300.0  # without anybody who attends to the run
NO_ROOM_BYTES = 64 << 10  # with less than that, whatever went wrong was the disk

log = logging.getLogger("voxloop.steps.training")


def main(arguments: list[str]) -> int:
    """Train in the folder given; 0 completed or stopped, 1 failed, 2 wrong usage."""
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        sys.stderr.write("usage: python -m voxloop.steps.training.child RUN_DIR\n")
        return 2
    folder = Path(arguments[0]).absolute()
    level = logging.INFO if is_writer() else logging.ERROR
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    for chatty in ("httpx", "accelerate", "transformers", "lhotse"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # Heard from the first moment on: importing the libraries takes seconds.
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, lambda received, _: asked.append(received))
    status: dict[str, Any] = {"status": "running", "pid": os.getpid(), "started": time.time()}

    def tell(values: dict[str, Any]) -> None:
        if is_writer():
            write_json(folder / STATUS, values)

    tell(status)
    try:
        outcome = _train(folder, asked)
    except Exception as error:  # noqa: BLE001 - the process's last word: told to the parent and kept in the log
        reason = _reason(error, folder)
        if is_writer() and _disk_full(error, folder):
            _drop_halves(folder)
        with contextlib.suppress(OSError):  # no room for the log either
            traceback.print_exc()
        tell(status | _usage() | {"status": "failed", **reason})
        return 1
    tell(status | _usage() | _result(outcome))
    return 0


def _train(folder: Path, asked: list[int]) -> TrainingOutcome:
    import torch

    from voxloop.steps.training import state, trainer

    config = state.TrainingConfig.load(folder)
    if config.threads:
        torch.set_num_threads(config.threads)
    stop = state.StopFlag()

    def end(number: int, _: object = None) -> None:
        if number == signal.SIGUSR1:
            stop.conclude = True
        else:
            stop.set = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, end)
    for early in asked:
        end(early)
    if is_writer():
        threading.Thread(target=_end_when_alone, args=(folder, stop), name="attended", daemon=True).start()
    return trainer.run(folder, stop)


def _end_when_alone(folder: Path, stop: StopFlag, *, patience_s: float = ALONE_S) -> None:
    """Have the run end at its next step once nobody has attended to it for a while: it may have gone on elsewhere.

    Without such a lock there is nobody to wait for: the process was started by itself.
    """
    seen = time.monotonic()
    while (folder / ATTENDED).exists() and time.monotonic() - seen < patience_s:
        time.sleep(patience_s / 60)
        if locks.held(folder / ATTENDED):
            seen = time.monotonic()
    if (folder / ATTENDED).exists():
        log.warning("no process attends to this run any more: saving a checkpoint and ending")
        stop.set = True


def _result(outcome: TrainingOutcome) -> dict[str, Any]:
    return {
        "status": outcome.status,
        "steps": outcome.steps,
        "base": asdict(outcome.base) if outcome.base else None,
        "best": asdict(outcome.best) if outcome.best else None,
        "notes": list(outcome.notes),
    }


def _usage() -> dict[str, Any]:
    """Peak memory in MB, of the process and of the GPU."""
    usage: dict[str, Any] = {
        "finished": time.time(),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        usage["peak_gpu_memory_mb"] = torch.cuda.max_memory_allocated() >> 20
    return usage


def _reason(error: BaseException, folder: Path) -> dict[str, Any]:
    """The error in one line, and the remedy."""
    if isinstance(error, VoxloopError):
        return {"error": str(error), "remedy": None}
    line = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    if _disk_full(error, folder):
        why = f"the disk of {folder} is full ({line})"
        return {"error": why, "remedy": "free some space, then continue with `voxloop run resume`"}
    return {
        "error": line,
        "remedy": "this is an unexpected error: see the log for its place, and try again with `voxloop run resume`",
    }


def _drop_halves(folder: Path) -> None:
    """Remove unfinished files, to make room for the error message."""
    halves = [path for path in folder.glob("checkpoint-*") if not (path / LOOP_STATE).exists()]
    for path in [*halves, *folder.glob("*.partial")]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _disk_full(error: BaseException, folder: Path) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    # As safetensors and torch.save say it; others that save say nothing of the disk, so that it is looked at.
    known = ("No space left", "PytorchStreamWriter failed", "unexpected pos")
    return any(text in str(error) for text in known) or shutil.disk_usage(folder).free < NO_ROOM_BYTES


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
