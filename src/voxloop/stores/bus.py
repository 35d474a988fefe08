"""The bus only wakes workers; the truth of what is to be done is the catalog's job table."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol


class Bus(Protocol):
    """Tells workers that there may be jobs; at least once, and a false alarm is harmless."""

    def wait(self, steps: Sequence[str], timeout_s: float) -> None:
        """Return when one of `steps` may have a job, or after `timeout_s`."""
        ...

    def wake(self) -> None:
        """Say that there may be jobs, or end a wait of this process."""
        ...


class LocalBus:
    """No server: a worker looks at the job table again after each wait."""

    def __init__(self) -> None:
        self._woken = threading.Event()

    def wait(self, steps: Sequence[str], timeout_s: float) -> None:
        self._woken.wait(timeout_s)
        self._woken.clear()

    def wake(self) -> None:
        self._woken.set()
