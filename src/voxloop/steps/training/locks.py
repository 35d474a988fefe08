"""File locks that the kernel releases when the last process holding them ends, however it ends (flock(2)).

A lock belongs to the open file, and a child process that inherits the file holds it too: a device stays locked as long
as the process that trains on it is alive, even if its parent has died.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

RETRY_S = 0.02


class Lock:
    """A lock that is held; the holder can leave a note for other processes."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def write(self, note: dict[str, Any]) -> None:
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, json.dumps(note).encode(), 0)

    def release(self) -> None:
        """Release the lock. Processes that inherited it keep it."""
        os.close(self.descriptor)

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()


def take(path: Path, *, patience_s: float = 0.2) -> Lock | None:
    """Lock the file; None if another process holds it. Checks by `held` are shorter than the patience."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    until = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                os.close(descriptor)
                return None
            time.sleep(RETRY_S)
        else:
            return Lock(descriptor)


def held(path: Path) -> bool:
    """Whether a living process holds the lock."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def note(path: Path) -> dict[str, Any]:
    """The note of the last holder; empty if there is none."""
    try:
        values: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return values
