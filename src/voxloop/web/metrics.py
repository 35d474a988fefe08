"""What is counted and timed of the server: a line of log for each request, and /metrics for Prometheus."""

from __future__ import annotations

import math
import secrets
import time
from typing import TYPE_CHECKING

import structlog
from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.datastructures import MutableHeaders

from voxloop.automation.figures import figures
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
JOBS = Gauge("voxloop_jobs", "Jobs that are not done, by step and state.", ["step", "state"], registry=registry)
OLDEST = Gauge("voxloop_job_oldest_seconds", "How long the oldest job has been ready.", ["step"], registry=registry)
JOBS_DONE = Gauge("voxloop_jobs_done_recently", "Jobs done in the last ten minutes.", ["step"], registry=registry)
JOB_SECONDS = Gauge(
    "voxloop_job_seconds",
    "Mean seconds from event to end of the jobs done in the last ten minutes.",
    ["step"],
    registry=registry,
)
HOURS = Gauge("voxloop_usable_hours", "Hours of speech, by how far they are usable.", ["kind"], registry=registry)
REVIEWS = Gauge("voxloop_reviews_requested", "Utterances whose review an automatic run waits for.", registry=registry)
CHAMPION_WER = Gauge("voxloop_champion_wer", "Word error rate of the champion on test references.", registry=registry)
CYCLE = Gauge("voxloop_automatic_run", "1 for the state of the newest automatic run.", ["state"], registry=registry)
RUN = Gauge("voxloop_run", "The newest metrics of the run that is training.", ["metric"], registry=registry)
RUN_METRICS = ("step", "epoch", "loss", "val_wer", "learning_rate", "samples_per_second", "elapsed_s", "memory_mb")
PART = Gauge(
    "voxloop_part_up", "Whether a part of the loop in this process group is doing well.", ["part"], registry=registry
)


@router.get("/metrics", dependencies=[needs("metrics")])
def metrics(request: Request) -> Response:
    """What Prometheus reads."""
    served: Served = request.app.state.served
    for urgency, waiting_s in served.batches.waiting_s().items():
        WAITING.labels(urgency).set(waiting_s)
    MODEL.clear()
    MODEL.labels(served.models.current.id).set(1)
    _tell_loop(served)
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def _tell_loop(served: Served) -> None:
    """Set the gauges about the loop, which the catalog knows for all processes together."""
    found = figures(served.ws)
    for gauge in (JOBS, OLDEST, JOBS_DONE, JOB_SECONDS, HOURS, CYCLE, RUN, PART):
        gauge.clear()
    for step, states in found.jobs.items():
        for state, count in states.items():
            JOBS.labels(step, state).set(count)
    for step, age_s in found.oldest_s.items():
        OLDEST.labels(step).set(age_s)
    for step, (count, mean_s) in found.recent.items():
        JOBS_DONE.labels(step).set(count)
        JOB_SECONDS.labels(step).set(mean_s)
    for kind, hours in found.hours.as_dict().items():
        HOURS.labels(kind).set(hours)
    REVIEWS.set(found.reviews)
    CHAMPION_WER.set(math.nan if found.champion_wer is None else found.champion_wer)
    if found.cycle:
        CYCLE.labels(found.cycle.state).set(1)
    if found.run and found.run.status == "running":
        for name in RUN_METRICS:
            value = found.run.progress.get(name)
            if isinstance(value, int | float):
                RUN.labels(name).set(value)
    for part in served.parts():
        PART.labels(part.name).set(part.ok)


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
