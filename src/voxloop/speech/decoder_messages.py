"""Catch the messages that decoding libraries print, and attach them to the file being read.

libmpg123 (inside libsndfile) and FFmpeg's libraries print warnings to the process's standard error without naming the
file: https://github.com/bastibe/python-soundfile/issues/416. While a file is being read, that stream goes to a
temporary file; Python's own messages still go to the terminal.
"""

from __future__ import annotations

import fcntl
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

STDERR = 2
MOST = 3  # messages kept per file; a damaged one has thousands
MOST_BYTES = 1 << 16  # of printed messages read
LONGEST = 200  # characters of a message

# The place in the library: "[src/libmpg123/layer3.c:INT123_do_layer3():1804] error: ..." and "[mp3 @ 0x55d0c8a0] ...".
_WHERE = re.compile(r"^(\[[^\]]*(?:\.c\b|@ ?0x)[^\]]*\]\s*)+")
_one_reader = threading.Lock()  # the stream belongs to the process, not to a thread


@contextmanager
def caught() -> Iterator[list[str]]:
    """Yield a list that holds, after the block, the messages printed during it: each once, and only a few.

    If another thread decodes at the same time, its messages are mixed with this file's. Without a standard error,
    nothing is caught.
    """
    messages: list[str] = []
    if not _one_reader.acquire(blocking=False):
        yield messages
        return
    try:
        try:
            terminal = os.dup(STDERR)
        except OSError:  # the parent process closed it
            yield messages
            return
        try:
            printed = _printed()
            with _python_writes_to(terminal):
                os.dup2(printed, STDERR)
                try:
                    yield messages
                finally:
                    os.dup2(terminal, STDERR)
                    if os.fstat(printed).st_size:
                        messages += _messages(os.pread(printed, MOST_BYTES, 0))
                        os.truncate(printed, 0)
        finally:
            os.close(terminal)
    finally:
        _one_reader.release()


@cache
def _printed() -> int:
    """Open one unnamed file per process: creating it takes longer than decoding a short file."""
    handle, name = tempfile.mkstemp(prefix="voxloop-")
    os.unlink(name)  # noqa: PTH108
    fcntl.fcntl(handle, fcntl.F_SETFL, fcntl.fcntl(handle, fcntl.F_GETFL) | os.O_APPEND)
    return handle


@contextmanager
def _python_writes_to(terminal: int) -> Iterator[None]:
    """Move Python's standard error to another descriptor, so that progress bars of other threads are not caught."""
    before = sys.stderr
    try:
        redirected = before.fileno() == STDERR
    except (AttributeError, OSError, ValueError):  # none, closed, or not a file
        redirected = False
    if not redirected:
        yield
        return
    before.flush()
    with open(terminal, "w", encoding=before.encoding, errors=before.errors, buffering=1, closefd=False) as stream:
        sys.stderr = stream
        try:
            yield
        finally:
            sys.stderr = before


def _messages(printed: bytes) -> list[str]:
    lines = (_WHERE.sub("", line.strip()) for line in printed.decode("utf-8", "replace").splitlines())
    # Messages of one kind differ only in offsets: keep one of each kind.
    kinds = {re.sub(r"0x[0-9a-f]+|\d+", "#", line): line for line in reversed([one for one in lines if one])}
    found = [f"{line[:LONGEST]}" for line in reversed(kinds.values())]
    return found if len(found) <= MOST else [*found[:MOST], f"and {len(found) - MOST} other decoder messages"]


def as_notes(messages: list[str], path: Path | None = None) -> list[str]:
    """Format messages as notes about their file."""
    about = f"{path}: " if path else ""
    return [f"{about}decoder message: {one}" for one in messages]
