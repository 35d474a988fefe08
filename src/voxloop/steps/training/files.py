"""The files of a run's folder: their names, and writing them so that readers never see partial content."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

CONFIG = "training_config.json"
METRICS = "metrics.jsonl"
STATUS = "status.json"
LOG = "train.log"
TRAINING = "training.lock"  # held by the child as long as it lives
ATTENDED = "attended.lock"  # held by whoever sees the run through in this folder
HOME = "home"  # a name that no other folder has: which of a run's folders this is
BEST = "best.json"  # the score of the model in best/
LOOP_STATE = "loop_state.json"  # in a checkpoint: written last


def is_writer() -> bool:
    """Whether this process writes the run's files: if several train together, only the first does."""
    return os.environ.get("RANK", "0") == "0"  # as torchrun and `accelerate launch` set it


def whole_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run's folder, oldest first."""
    found = [path.parent for path in folder.glob(f"checkpoint-*/{LOOP_STATE}")]
    return sorted(found, key=lambda checkpoint: int(checkpoint.name.partition("-")[2]))


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Replace a file in one move."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(values, file, ensure_ascii=False, indent=2)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def sync(folder: Path) -> None:
    """Flush everything below a folder to disk, so that it survives a power failure."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_json(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def append_line(path: Path, values: dict[str, Any]) -> None:
    """Add a line in one write."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n")


def remove(folder: Path, pattern: str) -> None:
    """Remove the files and folders in a run's folder that match a pattern."""
    for path in folder.glob(pattern):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
