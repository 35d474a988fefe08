"""The loop over HTTP: start an automatic run, see how it is doing, follow the events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse

from voxloop.automation import orchestrator
from voxloop.errors import ConflictError, UsageError
from voxloop.records import Event, Run, plain
from voxloop.stores.events import Follower
from voxloop.web.access import Administrator, needs
from voxloop.web.problems import Problem

if TYPE_CHECKING:
    from voxloop.web.app import Served

router = APIRouter(prefix="/v1")

KEPT_ALIVE_S = 15.0  # between two comments on a stream without events, so that proxies keep it open


@router.post("/train/now", status_code=202)
def train_now(request: Request, client: Administrator) -> dict[str, Any]:
    """Start an automatic run: freeze what is usable, train, evaluate, promote. 409 if one is going on."""
    served: Served = request.app.state.served
    try:
        cycle = orchestrator.start_now(served.ws, by=client.name)
    except ConflictError as error:
        raise Problem(409, str(error), code="run_in_progress") from error
    except UsageError as error:
        raise Problem(409, str(error), code="nothing_usable") from error
    found: dict[str, Any] = plain(cycle)
    return found


@router.get("/train/status", dependencies=[needs("metrics")])
def train_status(request: Request) -> dict[str, Any]:
    """What the orchestrator would do now and why, the newest automatic run, and its training."""
    served: Served = request.app.state.served
    planned = orchestrator.plan(served.ws)
    run = None
    if planned.cycle is not None:
        with served.ws.read() as reader:
            run = reader.find(Run, planned.cycle.id)
    found: dict[str, Any] = plain(planned)
    return found | {"run": plain(run)}


@router.get("/events", dependencies=[needs("admin")])
async def events(
    request: Request,
    since: Annotated[
        int | None, Query(description="Begin after this number; without it, with what happens next.")
    ] = None,
    types: Annotated[str, Query(description="Only events of these types, separated by commas.")] = "",
    last_event_id: Annotated[str | None, Header()] = None,
) -> StreamingResponse:
    """Every event as it happens, as server-sent events; a client that comes back goes on where it was."""
    served: Served = request.app.state.served
    begin = int(last_event_id) if last_event_id and last_event_id.isdecimal() else since
    if begin is None:
        begin = await to_thread.run_sync(_newest, served)
    wanted = frozenset(one.strip() for one in types.split(",") if one.strip())
    stream = _stream(served, begin, wanted)
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(stream, media_type="text/event-stream", headers=headers)


def _newest(served: Served) -> int:
    with served.ws.read() as reader:
        return reader.newest_event()


async def _stream(served: Served, since: int, wanted: frozenset[str]) -> AsyncIterator[str]:
    """The lines of a stream (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""
    follower = Follower(served.ws.catalog, since=since)
    quiet_s = 0.0
    yield ": events of Voxloop\n\n"
    while not served.ending.is_set():
        found = await to_thread.run_sync(follower.read)
        told = [one for one in found if not wanted or one.type in wanted]
        for event in told:
            yield _written(event)
        if not found:
            await asyncio.sleep(served.ws.settings.poll_s)
            quiet_s += served.ws.settings.poll_s
        if told:
            quiet_s = 0.0
        elif quiet_s >= KEPT_ALIVE_S:
            quiet_s = 0.0
            yield ": nothing new\n\n"


def _written(event: Event) -> str:
    return f"id: {event.seq}\nevent: {event.type}\ndata: {json.dumps(plain(event), ensure_ascii=False)}\n\n"
