"""The pages: static files without a build step, under a policy that allows no inline script and no other machine."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from voxloop.web.access import SECURITY_HEADERS

if TYPE_CHECKING:
    import os

    from starlette.types import Scope

STATIC = Path(__file__).parent / "static"
STYLE = "style-src 'self'"

router = APIRouter(include_in_schema=False)


@router.get("/")
def start() -> RedirectResponse:
    """Lead to the review."""
    return RedirectResponse("review")


@router.get("/review")
def review_page() -> Response:
    """Listen to utterances and correct their texts."""
    return _page("review")


@router.get("/record")
def record_page() -> Response:
    """Read phrases aloud."""
    return _page("record")


@router.get("/listen")
def listen_page() -> Response:
    """Transcribe what the microphone hears."""
    return _page("listen")


def _page(name: str) -> Response:
    """A page. It holds no data: its scripts ask the API, which wants a signed-in browser."""
    nonce = secrets.token_urlsafe(16)
    page = (STATIC / f"{name}.html").read_text(encoding="utf-8").replace("{{nonce}}", nonce)
    # The waveform's library styles its own shadow tree, which the nonce allows.
    policy = SECURITY_HEADERS["content-security-policy"].replace(STYLE, f"{STYLE} 'nonce-{nonce}'")
    return HTMLResponse(page, headers={"content-security-policy": policy, "cache-control": "no-store"})


class Assets(StaticFiles):
    """Static files that browsers ask about again, so that scripts of two versions never mix."""

    def file_response(
        self,
        full_path: str | os.PathLike[str],
        stat_result: os.stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["cache-control"] = "no-cache"
        return response
