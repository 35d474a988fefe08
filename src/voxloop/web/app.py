"""The web application: what it holds while it runs, and its routes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog
from anyio import to_thread
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, Response

from voxloop import __version__
from voxloop.errors import VoxloopError
from voxloop.maintenance import pruning
from voxloop.records import plain
from voxloop.serving import tokens
from voxloop.serving.batches import Batches
from voxloop.serving.capture import Capture
from voxloop.serving.decoding import Decoders
from voxloop.serving.models import ServedModels
from voxloop.web import entries, metrics, openai_audio, pages, problems, pushed_entries, realtime, recording
from voxloop.web.access import COOKIE, Access, Admission, client_of
from voxloop.web.client_secrets import ClientSecrets
from voxloop.web.limits import AudioLimit, RequestLimit, Sessions

if TYPE_CHECKING:
    from voxloop.workspace import Workspace

log = structlog.get_logger("voxloop.web")

SIGNED_IN = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Voxloop</title>
<meta http-equiv="refresh" content="0; url=review">
<p>Signed in to Voxloop on this browser. <a href="review">Review</a></p></html>"""
LINK_USED = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Voxloop</title>
<p>This link was used before, or is older than 15 minutes. Ask for a new one:
<code>voxloop token link</code>.</p></html>"""


@dataclass(eq=False, slots=True)
class Served:
    """What the routes share while the application runs: `request.app.state.served`."""

    ws: Workspace
    models: ServedModels
    batches: Batches
    limit: AudioLimit
    requests: RequestLimit
    admission: Admission
    decoders: Decoders
    sessions: Sessions
    client_secrets: ClientSecrets
    capture: Capture | None = None  # None: the setting `capture` is off


async def _prune(ws: Workspace) -> None:
    """Prune the workspace now and then, so that what was deleted is erased even where no worker runs."""
    while True:
        await asyncio.sleep(pruning.EVERY_S / 4)
        try:
            await to_thread.run_sync(pruning.prune_in_turn, ws)
        except VoxloopError as error:
            log.warning("pruning failed", error=str(error))


def application(ws: Workspace, admission: Admission, wyoming: socket.socket | None = None) -> FastAPI:
    """The application over an open workspace. It loads its model when it starts, and ends when all is answered.

    `wyoming` is a bound socket on which Wyoming's protocol is spoken as well.
    """
    settings = ws.settings
    client_secrets = ClientSecrets()

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        models = await to_thread.run_sync(ServedModels, ws)
        batches = Batches(models.using, mixing=models.mixing, max_wait_s=settings.serve_max_wait_s)
        decoders = Decoders()
        capture = None
        if settings.capture != "off":
            capture = Capture(
                ws, kept=metrics.CAPTURED.inc, dropped=lambda reason: metrics.DROPPED.labels(reason).inc()
            )
        app.state.served = Served(
            ws=ws,
            models=models,
            batches=batches,
            limit=AudioLimit(settings.serve_audio_per_minute),
            requests=RequestLimit(settings.serve_requests_per_minute),
            admission=admission,
            decoders=decoders,
            sessions=Sessions(settings.serve_sessions),
            client_secrets=client_secrets,
            capture=capture,
        )
        pruning_task = asyncio.create_task(_prune(ws))
        other = None
        try:
            if wyoming is not None:
                from voxloop.web.wyoming import WyomingServer

                other = WyomingServer(app.state.served)
                await other.start(wyoming)
            yield
        finally:
            pruning_task.cancel()
            if other is not None:
                await other.close()
            await decoders.close()
            if capture is not None:
                await to_thread.run_sync(capture.close)
            await to_thread.run_sync(batches.close)
            await to_thread.run_sync(models.close)

    app = FastAPI(title="Voxloop", version=__version__, lifespan=running, docs_url=None, redoc_url=None)
    # The outermost last: what is refused is counted and logged as well.
    app.add_middleware(Access, ws=ws, admission=admission, client_secrets=client_secrets)
    app.add_middleware(metrics.Observed)
    problems.register(app)
    app.include_router(openai_audio.router)
    app.include_router(realtime.router)
    app.include_router(metrics.router)
    app.include_router(pushed_entries.router)
    app.include_router(recording.router)
    app.include_router(entries.router)
    app.include_router(pages.router)
    app.mount("/static", pages.Assets(directory=pages.STATIC), name="static")

    @app.get("/login", response_class=HTMLResponse)
    def login(request: Request, code: str = "") -> Response:
        """Sign a browser in by a link that works once."""
        secret = tokens.sign_in(ws, code)
        if secret is None:
            return HTMLResponse(LINK_USED, status_code=403)
        signed_in = HTMLResponse(SIGNED_IN)
        secure = request.url.scheme == "https"
        signed_in.set_cookie(
            COOKIE, secret, max_age=int(tokens.SESSION_S), httponly=True, samesite="strict", secure=secure, path="/"
        )
        return signed_in

    @app.post("/logout", status_code=204)
    def logout(request: Request) -> Response:
        """End this browser's session."""
        if secret := request.cookies.get(COOKIE):
            tokens.sign_out(ws, secret)
        gone = Response(status_code=204)
        gone.delete_cookie(COOKIE, path="/")
        return gone

    @app.get("/health")
    def health(request: Request) -> dict[str, Any]:
        """Whether requests are answered; a token of scope `metrics` is told by what, and what waits."""
        client = client_of(request)
        if client is None or not client.may("metrics"):
            return {"status": "ready"}
        served: Served = app.state.served
        model = served.models.current
        return {
            "status": "ready",
            "version": __version__,
            "model": model.id,
            "refused": plain(served.models.refused),
            "waiting_seconds": served.batches.waiting_s(),
        }

    return app
