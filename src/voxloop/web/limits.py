"""How much audio a client may send in a minute, how many requests it may make, and how many sessions it may have."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter

from voxloop.serving.tokens import Client
from voxloop.web.metrics import LIVE
from voxloop.web.problems import Problem


class RequestLimit:
    """Requests by each client within the last minute, as the setting `serve_requests_per_minute` bounds them."""

    def __init__(self, per_minute: int) -> None:
        self._item = RateLimitItemPerMinute(per_minute) if per_minute > 0 else None
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    async def charge(self, client: Client, requests: int) -> None:
        """Count requests. Raises Problem 429 where there were too many."""
        if self._item is not None and not await self._limiter.hit(self._item, client.name, cost=requests):
            raise Problem(
                429,
                f"more requests than this token may make: {self._item.amount} in a minute",
                code="rate_limit_exceeded",
                retry_after_s=5,
            )


class AudioLimit:
    """Seconds of audio by each client within the last minute, as the setting `serve_audio_per_minute` bounds them."""

    def __init__(self, per_minute: float) -> None:
        self._item = RateLimitItemPerMinute(max(1, round(60 * per_minute))) if per_minute > 0 else None
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    async def charge(self, client: Client, seconds: float) -> None:
        """Count audio that a client sent. Raises Problem 429 where it is more than a minute's worth."""
        if self._item is None:
            return
        # One file may be longer than a minute's worth: it takes the whole window.
        cost = min(max(1, math.ceil(seconds)), self._item.amount)
        if not await self._limiter.hit(self._item, client.name, cost=cost):
            raise Problem(
                429,
                f"more audio than this token may send: {self._item.amount} s in a minute",
                code="rate_limit_exceeded",
                retry_after_s=60,
            )


class Sessions:
    """How many live sessions each client has open, as the setting `serve_sessions` bounds them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: dict[str, int] = {}
        self.ending = asyncio.Event()  # the server stops: what is being said is still heard

    async def end(self, timeout_s: float) -> None:
        """Ask all sessions to end, and wait until they have."""
        self.ending.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._open:
                    await asyncio.sleep(0.02)

    @contextmanager
    def one_more(self, client: Client) -> Iterator[None]:
        """Count a session until the block ends. Raises Problem 429 where the client has too many."""
        count = self._open.get(client.name, 0)
        if count >= self._most:
            raise Problem(
                429,
                f"{client.name} has {count} live sessions open, and the setting serve_sessions allows {self._most}",
                code="session_limit_exceeded",
            )
        self._open[client.name] = count + 1
        LIVE.inc()
        try:
            yield
        finally:
            LIVE.dec()
            self._open[client.name] -= 1
            if not self._open[client.name]:
                del self._open[client.name]
