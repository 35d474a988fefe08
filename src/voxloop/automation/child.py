"""A worker of `voxloop up`: `python -m voxloop.automation.child WORKSPACE STEP…`, until it is asked to end."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from voxloop.automation.worker import work
from voxloop.pipeline import LONG, open_loop
from voxloop.settings import THREADS_WAIT

NICE = 10  # of the worker that trains and evaluates: whoever speaks meanwhile comes first


def main() -> None:
    folder, *steps = sys.argv[1:]
    for name, value in THREADS_WAIT.items():
        os.environ.setdefault(name, value)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    if set(steps) <= set(LONG):
        os.nice(NICE)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    ends_with_parent(sys.stdin, stop.set)
    with open_loop(Path(folder)) as ws:
        work(ws, steps, stop=stop)


def ends_with_parent(pipe: IO[Any], end: Callable[[], None]) -> None:
    """Call `end` when the other end of a pipe closes, which the kernel does when its process is gone."""

    def wait() -> None:
        with contextlib.suppress(OSError, ValueError):
            while os.read(pipe.fileno(), 1):
                pass
        end()

    threading.Thread(target=wait, name="voxloop-parent", daemon=True).start()


if __name__ == "__main__":
    main()
