"""What decoding libraries write to the terminal themselves, kept for the file that they were reading.

libmpg123 (inside libsndfile) and FFmpeg's libraries print warnings to the process's standard error, without saying
which file they are about: https://github.com/bastibe/python-soundfile/issues/416. While a file is read here, that
stream leads into a temporary file; Python's own messages go to the terminal as before.
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
MOST = 3  # messages kept of a file; a damaged one has thousands
MOST_BYTES = 1 << 16  # read of what was printed
LONGEST = 200  # characters of a message

# "[src/libmpg123/layer3.c:INT123_do_layer3():1804] error: ..." and "[mp3 @ 0x55d0c8a0] ...": where in the library.
_WHERE = re.compile(r"^(\[[^\]]*(?:\.c\b|@ ?0x)[^\]]*\]\s*)+")
_one_reader = threading.Lock()  # the stream belongs to the process, not to a thread


@contextmanager
def caught() -> Iterator[list[str]]:
    """A list that holds, after the block, what libraries printed during it: each message once, a few at most.

    Another thread that decodes meanwhile is not waited for: what is printed for its file is kept with this one's.
    Without a standard error nothing is caught.
    """
    messages: list[str] = []
    if not _one_reader.acquire(blocking=False):
        yield messages
        return
    try:
        try:
            terminal = os.dup(STDERR)
        except OSError:  # closed by whoever started this process
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
    """A file without a name, one for the process: making it takes longer than decoding a short file."""
    handle, name = tempfile.mkstemp(prefix="voxloop-")
    os.unlink(name)  # noqa: PTH108
    fcntl.fcntl(handle, fcntl.F_SETFL, fcntl.fcntl(handle, fcntl.F_GETFL) | os.O_APPEND)
    return handle


@contextmanager
def _python_writes_to(terminal: int) -> Iterator[None]:
    """Python's standard error on another descriptor, so that progress bars of other threads are not caught."""
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
    # Offsets make lines of one kind differ: one of each kind is enough.
    kinds = {re.sub(r"0x[0-9a-f]+|\d+", "#", line): line for line in reversed([one for one in lines if one])}
    found = [f"{line[:LONGEST]}" for line in reversed(kinds.values())]
    return found if len(found) <= MOST else [*found[:MOST], f"and {len(found) - MOST} other decoder messages"]


def as_notes(messages: list[str], path: Path | None = None) -> list[str]:
    """Messages as sentences about their file."""
    about = f"{path}: " if path else ""
    return [f"{about}the decoder says: {one}" for one in messages]
