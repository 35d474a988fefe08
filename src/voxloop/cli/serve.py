"""serve."""

from __future__ import annotations

from typing import Annotated

import typer

from voxloop.cli.screen import opened
from voxloop.errors import UsageError, install_command


def register(app: typer.Typer) -> None:
    app.command()(serve)


def serve(
    ctx: typer.Context,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="Port to listen on; 0 for a free one.", min=0)] = 8321,
) -> None:
    """Serve the champion to other programs, by OpenAI's API, until Ctrl-C."""
    try:
        import uvicorn

        from voxloop.web.access import admin_token
        from voxloop.web.app import application
    except ModuleNotFoundError as error:
        raise UsageError(
            f"the server needs {error.name}, which is not installed: install it with `{install_command('serve')}`"
        ) from error
    with opened(ctx, create=True) as ws:
        config = uvicorn.Config(
            application(ws, token=admin_token(ws)),
            host=host,
            port=port,
            log_level="warning",
            ws_per_message_deflate=False,
        )
        uvicorn.Server(config).run()
