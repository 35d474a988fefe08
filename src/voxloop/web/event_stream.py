"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html): a stream that a page follows."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from anyio import to_thread
from fastapi import Request
from fastapi.responses import StreamingResponse

MEDIA_TYPE = "text/event-stream"
HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}
RETRY_MS = 1000  # until a browser connects again
BEAT_S = 15.0  # between two lines in a stream that has nothing to say: proxies close what is silent


@dataclass(frozen=True, kw_only=True, slots=True)
class Sent:
    """One event; a browser that connects again tells the last `id` that it got."""

    event: str
    data: Any  # as JSON, or a text
    id: str | None = None

    def __str__(self) -> str:
        said = self.data if isinstance(self.data, str) else json.dumps(self.data, ensure_ascii=False)
        lines = [f"event: {self.event}", *(f"data: {line}" for line in said.split("\n"))]
        return "\n".join([*lines, *([f"id: {self.id}"] if self.id is not None else [])]) + "\n\n"


def followed(request: Request, news: Callable[[], Iterable[Sent] | None], *, every_s: float) -> StreamingResponse:
    """A stream of what `news` returns, asked every so often in a thread, until it returns None.

    It ends as well when the client goes away or the server is about to end.
    """

    def ending() -> bool:
        return bool(request.app.state.ending())

    async def told() -> AsyncIterator[str]:
        yield f"retry: {RETRY_MS}\n\n"
        beat = time.monotonic()
        while not ending():
            found = await to_thread.run_sync(news)
            if found is None:
                return
            for one in found:
                yield str(one)
                beat = time.monotonic()
            if time.monotonic() - beat > BEAT_S:
                yield ":\n\n"
                beat = time.monotonic()
            until = time.monotonic() + every_s
            while time.monotonic() < until and not ending():
                await asyncio.sleep(min(every_s, 0.2))

    return StreamingResponse(told(), media_type=MEDIA_TYPE, headers=HEADERS)
