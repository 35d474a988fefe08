"""The contract of the bus: a wait ends, and ends sooner when woken."""

from __future__ import annotations

import threading
import time

from voxloop.stores.bus import Bus


def test_a_wait_ends_by_itself(bus: Bus) -> None:
    began = time.monotonic()
    bus.wait(["segment"], 0.05)
    assert time.monotonic() - began >= 0.04


def test_waking_ends_a_wait(bus: Bus) -> None:
    ended = threading.Event()

    def wait() -> None:
        bus.wait(["segment"], 60.0)
        ended.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    bus.wake(["index", "segment"])
    assert ended.wait(10)


def test_a_wake_before_the_wait_is_not_lost(bus: Bus) -> None:
    bus.wake({"segment"})
    began = time.monotonic()
    bus.wait(["index", "segment"], 60.0)
    assert time.monotonic() - began < 10


def test_other_steps_do_not_end_a_wait(bus: Bus) -> None:
    bus.wake(["index"])
    began = time.monotonic()
    bus.wait(["segment"], 0.05)
    assert time.monotonic() - began >= 0.04
    bus.wait(["index"], 60.0)  # what it was told meanwhile is still known
    assert time.monotonic() - began < 10
