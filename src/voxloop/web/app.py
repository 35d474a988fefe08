"""The web application: what it holds while it runs, and its routes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

from voxloop import __version__
from voxloop.serving.batches import Batches
from voxloop.serving.models import ServedModels
from voxloop.web import openai_audio, problems
from voxloop.web.access import Access

if TYPE_CHECKING:
    from voxloop.workspace import Workspace


@dataclass(eq=False, slots=True)
class Served:
    """What the routes share while the application runs: `request.app.state.served`."""

    ws: Workspace
    models: ServedModels
    batches: Batches


def application(ws: Workspace, *, token: str | None) -> FastAPI:
    """The application over an open workspace; `token` None asks for none. It loads its model when it starts."""

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        models = ServedModels(ws)
        batches = Batches(models.using)
        app.state.served = Served(ws, models, batches)
        yield
        batches.close()
        models.close()

    app = FastAPI(title="Voxloop", version=__version__, lifespan=running, openapi_url="/openapi.json", docs_url=None)
    app.add_middleware(Access, token=token)
    problems.register(app)
    app.include_router(openai_audio.router)

    @app.get("/health")
    def health() -> dict[str, Any]:
        """Whether the server answers requests; more is told to those with a token."""
        return {"status": "ready"}

    return app
