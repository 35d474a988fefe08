"""Workers on servers, as processes that are started again when they are killed.

    python -m tests.journey.crew WORKSPACE WORKERS

Loads what is slow to load, then forks the workers. Prints each one's process id.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from tests.journey.chain import preload


def worker(workspace: Path) -> None:
    """What `voxloop worker` does, without its output."""
    from voxloop.automation.relaying import relaying
    from voxloop.automation.worker import work
    from voxloop.pipeline import open_loop

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with open_loop(workspace) as ws, relaying(ws):
        work(ws, stop=stop)


def main() -> None:
    workspace, count = Path(sys.argv[1]), int(sys.argv[2])
    logging.basicConfig(level=logging.INFO)
    preload(workspace)
    crew: set[int] = set()
    ending = False

    def end(*_: int | FrameType | None) -> None:
        nonlocal ending
        ending = True
        for pid in crew:
            os.kill(pid, signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    while crew or not ending:
        while len(crew) < count and not ending:
            pid = os.fork()
            if pid == 0:
                worker(workspace)
                os._exit(0)
            crew.add(pid)
            print(pid, flush=True)
        crew.discard(os.wait()[0])


if __name__ == "__main__":
    main()
