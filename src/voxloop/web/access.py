"""Who may ask: a token with every request, also on loopback, and only hosts and origins that are meant.

Pure ASGI, so that sockets and streams pass through and a client that is gone is still noticed.

The host is checked first, for HTTP and sockets alike: a page of another site that had its own name resolve to this
machine (DNS rebinding) bears that name there. A browser's origin has to be the server's own, or one that is allowed by
name. Then a token is asked for: as a bearer token, as the subprotocol in which OpenAI's client for browsers sends it,
or as the cookie that a browser was given by a link that works once. A token is never taken from an address.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Annotated, Any, cast

from anyio import to_thread
from fastapi import Depends
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import Response

from voxloop.serving import tokens
from voxloop.serving.tokens import ANYBODY, Client
from voxloop.web.client_secrets import PREFIX, ClientSecrets
from voxloop.web.problems import TOO_LARGE, Problem, answer

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from voxloop.workspace import Workspace

COOKIE = "voxloop_session"
SUBPROTOCOL = "openai-insecure-api-key."  # how OpenAI's client for browsers sends its key over a socket
OPEN = ("/health", "/login", "/", "/review", "/record", "/listen")  # paths that need no token: the pages hold no data
ASSETS = "/static/"  # neither do their scripts and styles
NO_TOKEN = "a valid token is needed: Authorization: Bearer TOKEN"
SAFE = ("GET", "HEAD", "OPTIONS")
LOOPBACK = ("localhost", "127.0.0.1", "::1")

SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
        "connect-src 'self'; media-src 'self' blob:; worker-src 'self'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "cross-origin-opener-policy": "same-origin",
}
ALLOWED_HEADERS = "authorization, content-type, if-match, x-requested-with"
EXPOSED_HEADERS = "etag, x-request-id, x-voxloop-model, x-voxloop-recording, x-voxloop-warnings, retry-after"


@dataclass(frozen=True, kw_only=True, slots=True)
class Admission:
    """What the server answers to."""

    token: str | None  # the administrator's; None: everybody is taken for the administrator
    hosts: Sequence[str] = LOOPBACK  # names and addresses that requests may be addressed to, without ports
    origins: Sequence[str] = ()  # of other sites whose pages may ask, such as app://obsidian.md
    max_body: int = 512 << 20  # bytes


def client_of(connection: HTTPConnection) -> Client | None:
    """Who asks; None on paths that need no token, where none was given."""
    return cast("Client | None", connection.scope["state"]["client"])


def needs(scope: tokens.Scope) -> Any:
    """A dependency of a route: its client, who has to have a scope."""

    def allowed(connection: HTTPConnection) -> Client:
        client = client_of(connection)
        if client is None:
            raise Problem(401, NO_TOKEN, code="invalid_api_key")
        if not client.may(scope):
            raise Problem(403, f"this needs a token of scope {scope}; yours has {', '.join(sorted(client.scopes))}")
        return client

    return Depends(allowed)


Listener = Annotated[Client, needs("listen")]
Reviewer = Annotated[Client, needs("review")]
Administrator = Annotated[Client, needs("admin")]


class Access:
    """Lets in whom `admission` names, and says who it is: `client_of`."""

    def __init__(
        self, app: ASGIApp, *, ws: Workspace, admission: Admission, client_secrets: ClientSecrets | None = None
    ) -> None:
        self.app = app
        self.ws = ws
        self.admission = admission
        self.client_secrets = client_secrets or ClientSecrets()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        sending = self._with_headers(scope, headers, send)
        refusal = self._foreign(scope, headers)
        if refusal is None and self._preflight(scope, headers):
            await self._answer(Response(status_code=204), scope, receive, sending)
            return
        if refusal is None:
            client, by_cookie = await self._client(scope, headers)
            refusal = self._unknown(scope, headers, client, by_cookie=by_cookie) or self._announced(scope, headers)
        if refusal is not None:
            await self._answer(refusal, scope, receive, sending)
            return
        scope.setdefault("state", {})["client"] = client
        await self.app(scope, self._limited(receive), sending)

    async def _answer(self, response: Response, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()  # websocket.connect
            if "websocket.http.response" in scope.get("extensions", {}):
                await response(scope, receive, send)
                return
            # Closing before accepting is answered with 403.
            await send({"type": "websocket.close", "code": 1008, "reason": "refused"})
            return
        await response(scope, receive, send)

    # Where from ------------------------------------------------------------------------------------------------------

    def _foreign(self, scope: Scope, headers: Headers) -> Response | None:
        host = _host_name(headers.get("host", ""))
        if host not in self.admission.hosts:
            return answer(
                400,
                f"this server does not answer to the host {host!r}: name it in the setting serve_hosts",
                code="host_not_allowed",
            )
        origin = headers.get("origin")
        if origin is not None and scope["type"] == "websocket" and not self._own(scope, headers, origin):
            return answer(
                403, f"pages of {origin} may not ask here: name it in serve_origins", code="origin_not_allowed"
            )
        return None

    def _own(self, scope: Scope, headers: Headers, origin: str) -> bool:
        """Whether a page's origin is the server's own, or one that is allowed by name."""
        scheme = {"ws": "http", "wss": "https"}.get(scope["scheme"], scope["scheme"])
        return origin == f"{scheme}://{headers.get('host', '')}" or origin in self.admission.origins

    def _preflight(self, scope: Scope, headers: Headers) -> bool:
        asks = scope["type"] == "http" and scope["method"] == "OPTIONS" and "access-control-request-method" in headers
        return bool(asks and headers.get("origin") in self.admission.origins)

    # Who -------------------------------------------------------------------------------------------------------------

    async def _client(self, scope: Scope, headers: Headers) -> tuple[Client | None, bool]:
        """Who asks, and whether by a cookie, which browsers send by themselves."""
        if self.admission.token is None:
            return ANYBODY, False
        secret = headers.get("authorization", "").removeprefix("Bearer ").strip()
        if not secret and scope["type"] == "websocket":
            named = [one for one in scope["subprotocols"] if one.startswith(SUBPROTOCOL)]
            secret = named[0].removeprefix(SUBPROTOCOL) if named else ""
        if secret.startswith(PREFIX) and scope["type"] == "websocket":
            found = self.client_secrets.find(secret)
            if found is not None:
                scope.setdefault("state", {})["live_session"] = found.session
                return found.client, False
        if secret:
            return await self._by_secret(secret), False
        cookie = _cookie(headers.get("cookie", ""))
        return (await to_thread.run_sync(tokens.by_session, self.ws, cookie) if cookie else None), True

    async def _by_secret(self, secret: str) -> Client | None:
        if secrets.compare_digest(secret.encode(), (self.admission.token or "").encode()):
            return ANYBODY
        return await to_thread.run_sync(tokens.by_secret, self.ws, secret)

    def _unknown(self, scope: Scope, headers: Headers, client: Client | None, *, by_cookie: bool) -> Response | None:
        if client is None:
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            if path in OPEN or path.startswith(ASSETS):
                return None
            return answer(401, NO_TOKEN, code="invalid_api_key")
        if by_cookie and scope["type"] == "http" and scope["method"] not in SAFE:
            origin, site = headers.get("origin"), headers.get("sec-fetch-site")
            meant = self._own(scope, headers, origin) if origin is not None else site in ("same-origin", "none")
            if not meant:
                return answer(403, "this has to come from a page of this server", code="origin_not_allowed")
        return None

    # What goes through -----------------------------------------------------------------------------------------------

    def _announced(self, scope: Scope, headers: Headers) -> Response | None:
        """A refusal of a body that says itself that it is too large."""
        said, limit = headers.get("content-length", "0"), self.admission.max_body
        if scope["type"] == "http" and said.isdecimal() and int(said) > limit:
            return answer(413, _too_large(limit), code=TOO_LARGE)
        return None

    def _limited(self, receive: Receive) -> Receive:
        """The request's body up to the limit; what is longer is refused before it is kept."""
        limit, got = self.admission.max_body, 0

        async def counted() -> Message:
            nonlocal got
            message = await receive()
            if message["type"] == "http.request":
                got += len(message.get("body", b""))
                if got > limit:
                    raise HTTPException(413, _too_large(limit))  # the one error that a body's parser lets through
            return message

        return counted

    def _with_headers(self, scope: Scope, headers: Headers, send: Send) -> Send:
        origin = headers.get("origin")

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    own.setdefault(name, value)
                if origin is not None and origin in self.admission.origins:
                    own["access-control-allow-origin"] = origin
                    own["access-control-allow-headers"] = ALLOWED_HEADERS
                    own["access-control-allow-methods"] = "GET, POST, PUT, DELETE"
                    own["access-control-expose-headers"] = EXPOSED_HEADERS
                    own.add_vary_header("Origin")
            await send(message)

        return sending


def _too_large(limit: int) -> str:
    return f"the request is larger than {limit >> 20} MiB, which is what the setting serve_max_upload_mb allows"


def _host_name(host: str) -> str:
    """A Host header without its port: `[::1]:8321` is `::1`."""
    name = host.strip().lower()
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    elif name.count(":") == 1:
        name = name.partition(":")[0]
    return name.rstrip(".")


def _cookie(header: str) -> str | None:
    try:
        found = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return None
    return found.value if found else None


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
