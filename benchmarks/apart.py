"""A peer in a process of its own, with its own defaults: how ours has memory and threads managed is not to serve it.

The process is made anew, not forked, and waits without work while it is the other's turn.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any


@contextmanager
def apart(make: Callable[..., Callable[..., Any]], *given: Any) -> Iterator[Callable[..., Any]]:
    """What `make(*given)` makes, called over there; `make` is a function of a module. What is raised there is here."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs, make, given), daemon=True)
    process.start()
    theirs.close()

    def call(*arguments: Any, **named: Any) -> Any:
        ours.send((arguments, named))
        failed, found = ours.recv()
        if failed:
            raise found
        return found

    try:
        yield call
    finally:
        ours.close()  # which ends it
        process.join()


def _serve(pipe: Connection, make: Callable[..., Callable[..., Any]], given: tuple[Any, ...]) -> None:
    work = None
    while True:
        try:
            arguments, named = pipe.recv()
        except EOFError:
            return
        try:
            work = work or make(*given)
            pipe.send((False, work(*arguments, **named)))
        except Exception as error:  # noqa: BLE001 - told to who asked
            pipe.send((True, error))
