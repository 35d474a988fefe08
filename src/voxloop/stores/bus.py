"""The bus only wakes workers. The catalog's job table is the source of truth for what to do."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Protocol


class Bus(Protocol):
    """Notifies workers which steps may have jobs, at least once. False alarms are harmless."""

    def wait(self, steps: Sequence[str], timeout_s: float) -> None:
        """Return when one of `steps` may have a job, even if notified before the call, or after `timeout_s`."""
        ...

    def wake(self, steps: Iterable[str]) -> None:
        """Announce that these steps may have jobs."""
        ...


class LocalBus:
    """Works without a server: workers poll the job table. Only their own process can wake them early."""

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
