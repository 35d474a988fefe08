"""Who may ask: a token with every request, also on loopback, and only hosts and origins that are meant."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.datastructures import Headers

from voxloop.web.problems import answer

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from voxloop.workspace import Workspace

VARIABLE = "VOXLOOP_TOKEN"
OPEN = ("/health",)  # paths that need no token


def token_file(ws: Workspace) -> Path:
    """Where the token lies that was made at first start; it is in no backup and in no setting."""
    return ws.folder / "secrets" / "token"


def admin_token(ws: Workspace) -> str:
    """The administrator's token: from the environment, or made once and kept readable to its owner alone."""
    if os.environ.get(VARIABLE):
        return os.environ[VARIABLE]
    file = token_file(ws)
    if not file.exists():
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = file.with_suffix(f".{secrets.token_hex(4)}")
        partial.touch(mode=0o600)
        partial.write_text(secrets.token_urlsafe(32))
        partial.replace(file)
    return file.read_text().strip()


class Access:
    """Pure ASGI, so that sockets and streams pass through it, and a client that is gone is still noticed."""

    def __init__(self, app: ASGIApp, *, token: str | None) -> None:
        self.app = app
        self.token = token  # None: no token is asked for

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.token is not None and scope["path"] not in OPEN:
            given = Headers(scope=scope).get("authorization", "").removeprefix("Bearer ").strip()
            if not secrets.compare_digest(given.encode(), self.token.encode()):
                said = answer(401, "a valid token is needed: Authorization: Bearer TOKEN", code="invalid_api_key")
                await said(scope, receive, send)
                return
        await self.app(scope, receive, send)
