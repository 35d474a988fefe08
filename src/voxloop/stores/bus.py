"""The bus only wakes workers; the truth of what is to be done is the catalog's job table."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Protocol


class Bus(Protocol):
    """Tells workers which steps may have jobs; at least once, and a false alarm is harmless."""

    def wait(self, steps: Sequence[str], timeout_s: float) -> None:
        """Return when one of `steps` may have a job, also where that was said before the wait, or after `timeout_s`."""
        ...

    def wake(self, steps: Iterable[str]) -> None:
        """Say that these steps may have jobs."""
        ...


class LocalBus:
    """No server: a worker looks at the job table again after each wait. Only its own process can end one sooner."""

    def __init__(self) -> None:
        self._told = threading.Condition()
        self._woken: set[str] = set()

    def wait(self, steps: Sequence[str], timeout_s: float) -> None:
        with self._told:
            self._told.wait_for(lambda: not self._woken.isdisjoint(steps), timeout_s)
            self._woken.difference_update(steps)

    def wake(self, steps: Iterable[str]) -> None:
        with self._told:
            self._woken.update(steps)
            self._told.notify_all()
