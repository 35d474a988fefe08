"""What is counted and timed of the server: a line of log for each request, and /metrics for Prometheus."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

import structlog
from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.datastructures import MutableHeaders

from voxloop.web.access import needs

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from voxloop.web.app import Served

log = structlog.get_logger("voxloop.web")
registry = CollectorRegistry()
router = APIRouter()

REQUESTS = Counter(
    "voxloop_http_requests_total", "Requests answered.", ["method", "route", "status"], registry=registry
)
DURATION = Histogram(
    "voxloop_http_request_seconds",
    "From a request to the end of its answer.",
    ["route"],
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
    registry=registry,
)
AUDIO = Counter("voxloop_audio_seconds_total", "Audio transcribed for clients.", ["model"], registry=registry)
CAPTURED = Counter("voxloop_captured_total", "Requests and utterances kept for review.", registry=registry)
DROPPED = Counter(
    "voxloop_captures_dropped_total", "What was to be kept, but was not, by reason.", ["reason"], registry=registry
)
WAITING = Gauge("voxloop_waiting_audio_seconds", "Audio that waits to be transcribed.", ["urgency"], registry=registry)
LIVE = Gauge("voxloop_live_sessions", "Live sessions that are open.", registry=registry)
UTTERANCES = Counter(
    "voxloop_live_utterances_total",
    "Utterances of live sessions, by whether their text says otherwise than the words told before it.",
    ["contradicted"],
    registry=registry,
)
MODEL = Gauge("voxloop_model_info", "1 for the model in use.", ["model"], registry=registry)


@router.get("/metrics", dependencies=[needs("metrics")])
def metrics(request: Request) -> Response:
    """What Prometheus reads."""
    served: Served = request.app.state.served
    for urgency, waiting_s in served.batches.waiting_s().items():
        WAITING.labels(urgency).set(waiting_s)
    MODEL.clear()
    MODEL.labels(served.models.current.id).set(1)
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class Observed:
    """Counts, times and logs every request. No secret is logged: neither headers nor what follows a `?`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0
        id = f"req_{secrets.token_hex(8)}"

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = id
            elif message["type"] == "websocket.accept":
                status = 101
            await send(message)

        try:
            await self.app(scope, receive, sending)
        finally:
            took_s = time.perf_counter() - began
            # What clients made up is no label: there would be no end of them.
            route = getattr(scope.get("route"), "path", "other")
            method = scope.get("method", "WEBSOCKET")
            REQUESTS.labels(method, route, status).inc()
            DURATION.labels(route).observe(took_s)
            client = scope.get("state", {}).get("client")
            log.info(
                "request",
                id=id,
                method=method,
                path=scope["path"],
                status=status,
                ms=round(1000 * took_s, 1),
                client=client.name if client else None,
            )
