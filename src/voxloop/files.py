"""Files that the user names: written whole or not at all, through links, and into devices."""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """The path to write what is to become `path`: a file beside it, which takes its place when the block ends.

    Of a link, the file that it leads to is replaced and the link stays. A device or a pipe is written to directly.
    Where the block fails, what was there stays as it was. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    target = Path(os.path.realpath(path))
    try:
        kind = target.stat().st_mode
    except FileNotFoundError:
        kind = stat.S_IFREG
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(f"{path} is a folder")
    if not stat.S_ISREG(kind):
        yield target
        return
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        yield partial
        if target.exists():
            partial.chmod(stat.S_IMODE(kind))  # who may read it stays as it was
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
