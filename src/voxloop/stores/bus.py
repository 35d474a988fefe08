"""The bus only wakes workers and publishes events. The catalog's job table is the source of truth for what to do."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Protocol

from voxloop.records import Event


class Bus(Protocol):
    """Notifies workers which steps may have jobs, at least once. False alarms are harmless."""

    @property
    def publishes(self) -> bool:
        """Whether events are published for other programs, so that they have to be relayed from the catalog."""
        ...

    @property
    def reaches(self) -> bool:
        """Whether notifications of other processes arrive now, so that an idle worker need not look so often."""
        ...

    def listen(self, steps: Sequence[str]) -> bool:
        """Be told of jobs of `steps` from now on, until the next notification.

        Return True if this was not so before: jobs may have come since the caller last looked, so that it has to look
        once more before it waits.
        """
        ...

    def wait(self, steps: Sequence[str], timeout_s: float) -> None:
        """Return when one of `steps` may have a job, even if notified before the call, or after `timeout_s`."""
        ...

    def wake(self, steps: Iterable[str]) -> None:
        """Announce that these steps may have jobs. Reaches this process, and where others wait, one of them.

        Never fails: whoever is not reached looks by itself. Who finds more work after a wait than it can take calls
        this, too.
        """
        ...

    def publish(self, events: Sequence[Event]) -> None:
        """Publish events in this order and return when all are stored. Raises BusError; some may be stored then.

        An event that is published again soon is stored once.
        """
        ...

    def check(self) -> str:
        """What was found at the other end, in words. Raises BusError if it cannot be used."""
        ...

    def close(self) -> None:
        """Send what is on its way, and disconnect."""
        ...


class LocalBus:
    """Works without a server: workers poll the job table. Only their own process can wake them early."""

    publishes = False
    reaches = False

    def __init__(self) -> None:
        self._told = threading.Condition()
        self._woken: set[str] = set()

    def listen(self, steps: Sequence[str]) -> bool:
        return False

    def wait(self, steps: Sequence[str], timeout_s: float) -> None:
        with self._told:
            self._told.wait_for(lambda: not self._woken.isdisjoint(steps), timeout_s)
            self._woken.difference_update(steps)

    def wake(self, steps: Iterable[str]) -> None:
        with self._told:
            self._woken.update(steps)
            self._told.notify_all()

    def publish(self, events: Sequence[Event]) -> None:
        """Nobody listens: the events stay in the catalog."""

    def check(self) -> str:
        return "local: workers poll the job table, and events stay in the catalog"

    def close(self) -> None:
        """Nothing is open."""
