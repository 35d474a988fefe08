"""serve, and token add, list, link, revoke."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from voxloop.cli.screen import Json, opened, print_json, table, when
from voxloop.errors import UsageError, install_command

if TYPE_CHECKING:
    from voxloop.automation.supervising import PartState
    from voxloop.settings import Settings
    from voxloop.web.access import Admission
    from voxloop.workspace import Workspace

DRAIN_S = 10.0  # how long a stopping server waits for the texts of live sessions

token = typer.Typer(no_args_is_help=True, help="Tokens for people and programs that use the server.")

TokenScope = Annotated[
    list[str],
    typer.Option(
        "--scope",
        metavar="SCOPE",
        help="What the token allows: listen (transcribe), review (correct texts), metrics, admin (everything); "
        "repeatable.",
    ),
]


def register(app: typer.Typer) -> None:
    app.command()(serve)
    app.add_typer(token, name="token")


Host = Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Address to listen on.")]
Port = Annotated[int, typer.Option("--port", help="Port to listen on; 0 for a free one.", min=0, max=65535)]
TlsCert = Annotated[
    Path | None, typer.Option("--tls-cert", help="Certificate (PEM), to be reached by https and wss.", exists=True)
]
TlsKey = Annotated[Path | None, typer.Option("--tls-key", help="Private key of the certificate (PEM).", exists=True)]
WyomingPort = Annotated[
    int | None,
    typer.Option(
        "--wyoming-port",
        help="Port for Wyoming's protocol as well, which Home Assistant speaks (usually 10300).",
        min=1,
        max=65535,
    ),
]
WyomingHost = Annotated[
    str,
    typer.Option("--wyoming-host", metavar="ADDRESS", help="Address of that port; the protocol asks for no token."),
]
NoAuth = Annotated[bool, typer.Option("--no-auth", help="Ask for no token; only on an address of this machine alone.")]


def serve(
    ctx: typer.Context,
    host: Host = "127.0.0.1",
    port: Port = 8321,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    wyoming_port: WyomingPort = None,
    wyoming_host: WyomingHost = "127.0.0.1",
    no_auth: NoAuth = False,
) -> None:
    """Serve the champion to other programs by OpenAI's API, until Ctrl-C. It follows promotions while it runs."""
    door = Door(host, port, tls_cert, tls_key, wyoming_port, wyoming_host, no_auth)
    with ExitStack() as stack:
        sockets = door.open(stack)
        ws = stack.enter_context(opened(ctx, create=True))
        from voxloop.automation.relaying import relaying

        with relaying(ws):
            if not door.serve(ws, sockets):
                raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class Door:
    """How a server is reached."""

    host: str
    port: int
    tls_cert: Path | None
    tls_key: Path | None
    wyoming_port: int | None
    wyoming_host: str
    no_auth: bool

    def open(self, stack: ExitStack) -> list[socket.socket]:
        """Bind the server's sockets. Raises UsageError if something is missing or an address is taken."""
        try:
            import uvicorn  # noqa: F401 - told of before anything is opened

            from voxloop.web.access import is_loopback

            if self.wyoming_port is not None:
                import wyoming  # noqa: F401
        except ModuleNotFoundError as error:
            raise UsageError(
                f"the server needs {error.name}, which is not installed: install it with `{install_command('serve')}`"
            ) from error
        if self.no_auth and not is_loopback(self.host):
            raise UsageError(
                f"--no-auth on {self.host} would let everybody in who reaches this machine: leave it out, or listen "
                "on 127.0.0.1"
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise UsageError("give both --tls-cert and --tls-key, or neither")
        sockets = [stack.enter_context(_listening(self.host, self.port))]
        if self.wyoming_port is not None:
            other = _listening(self.wyoming_host, self.wyoming_port, option="--wyoming-port")
            sockets.append(stack.enter_context(other))
        return sockets

    def url(self, ws: Workspace, listening: socket.socket) -> str:
        """Where the server is reached."""
        shown = f"[{self.host}]" if ":" in self.host else self.host
        scheme = "https" if self.tls_cert else "http"
        return f"{scheme}://{shown}:{listening.getsockname()[1]}{ws.settings.serve_prefix}"

    def serve(
        self,
        ws: Workspace,
        sockets: Sequence[socket.socket],
        *,
        parts: Callable[[], Sequence[PartState]] = tuple,
        ending: Callable[[], None] = lambda: None,
    ) -> bool:
        """Serve until a signal ends it; `ending` is called when it does. Return whether the server came up."""
        import threading

        import uvicorn

        from voxloop.serving import tokens
        from voxloop.web.access import is_loopback
        from voxloop.web.app import application
        from voxloop.web.logs import configure

        configure()
        ended = threading.Event()

        class Server(uvicorn.Server):
            def handle_exit(self, sig: int, frame: FrameType | None) -> None:
                ended.set()  # streams without an end would hold the server up
                ending()
                super().handle_exit(sig, frame)

            async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
                """Hear live sessions out before uvicorn cuts their connections."""
                if self.started:
                    await app.state.served.sessions.end(DRAIN_S)
                await super().shutdown(sockets)

        admission = _admission(ws.settings, self.host, None if self.no_auth else tokens.administrators(ws))
        url = self.url(ws, sockets[0])
        second = sockets[1] if len(sockets) > 1 else None
        app = application(ws, admission, second, parts=parts, ending=ended)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            root_path=ws.settings.serve_prefix,
            ssl_certfile=self.tls_cert,
            ssl_keyfile=self.tls_key,
            ws_per_message_deflate=False,
            timeout_graceful_shutdown=30,
        )
        typer.echo(f"{url}/v1 (OpenAI's API); Ctrl-C ends", err=True)
        if self.wyoming_port is not None:
            typer.echo(f"tcp://{self.wyoming_host}:{self.wyoming_port} (Wyoming)", err=True)
            if not is_loopback(self.wyoming_host):
                typer.echo(
                    f"warning: Wyoming has no passwords: everybody who reaches {self.wyoming_host}:"
                    f"{self.wyoming_port} is heard",
                    err=True,
                )
        if self.no_auth:
            typer.echo("warning: no token is asked for: every program on this machine can use the server", err=True)
        else:
            typer.echo(f"token:      {tokens.VARIABLE if _from_environment() else tokens.token_file(ws)}", err=True)
            typer.echo(f"in a browser, once and within 15 minutes: {url}/login?code={tokens.link(ws)}", err=True)
        server = Server(config)
        app.state.ending = ended.is_set
        server.run(sockets=[sockets[0]])
        return server.started


def _from_environment() -> bool:
    import os

    from voxloop.serving.tokens import VARIABLE

    return bool(os.environ.get(VARIABLE))


def _listening(host: str, port: int, option: str = "--port") -> socket.socket:
    """A socket that listens. Raises UsageError where the address is taken or none of this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise UsageError(f"{host}:{port} cannot be listened on ({error.strerror}): choose another {option}") from error
    return listening


def _admission(settings: Settings, host: str, admin: str | None) -> Admission:
    from voxloop.web.access import LOOPBACK, Admission, is_loopback

    own = [] if host in ("0.0.0.0", "::") or is_loopback(host) else [host.lower()]
    return Admission(
        token=admin,
        hosts=(*LOOPBACK, *own, *(name.lower() for name in settings.serve_hosts)),
        origins=settings.serve_origins,
        max_body=settings.serve_max_upload_mb << 20,
    )


@token.command("add")
def token_add(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the person or program; what they decide and say carries it.")],
    scope: TokenScope = ["listen"],  # noqa: B006 - typer copies it
    as_json: Json = False,
) -> None:
    """Make a token for a person or a program. It is shown once."""
    from voxloop.serving import tokens

    with opened(ctx) as ws:
        issued = tokens.add(ws, name, scope)
    if as_json:
        print_json(issued)
        return
    typer.echo(f"token of {issued.token.name} ({', '.join(issued.token.scopes)}), shown only now:")
    typer.echo(issued.secret)
    typer.echo(f"in a browser, once and within 15 minutes: the server's address and /login?code={issued.code}")


@token.command("list")
def token_list(ctx: typer.Context, as_json: Json = False) -> None:
    """List all tokens, without their secrets."""
    from voxloop.serving import tokens

    with opened(ctx) as ws:
        found = tokens.listed(ws)
    if as_json:
        print_json(found)
        return
    table(
        ["name", "scopes", "made", "revoked"],
        [
            [one.name, ", ".join(one.scopes), when(one.created), when(one.revoked) if one.revoked else None]
            for one in found
        ],
        empty="no tokens but the administrator's",
    )


@token.command("link")
def token_link(ctx: typer.Context) -> None:
    """Print a link that signs a browser in as the administrator, once and within 15 minutes."""
    from voxloop.serving import tokens

    with opened(ctx) as ws:
        typer.echo(f"/login?code={tokens.link(ws)}")


@token.command("revoke")
def token_revoke(ctx: typer.Context, name: Annotated[str, typer.Argument(help="A token's name or id.")]) -> None:
    """End a token at once, and every session that was opened with it."""
    from voxloop.serving import tokens

    with opened(ctx) as ws:
        ended = tokens.revoke(ws, name)
    typer.echo(f"revoked: {ended.name}")
