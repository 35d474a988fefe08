"""listen."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from voxloop.cli.screen import opened
from voxloop.errors import UsageError, install_command

if TYPE_CHECKING:
    from collections.abc import Iterator


def register(app: typer.Typer) -> None:
    app.command()(listen)


def listen(
    ctx: typer.Context,
    file: Annotated[
        Path | None, typer.Option(help="Play this file at its own pace as the microphone.", exists=True, dir_okay=False)
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="Input device, by number or part of its name.")
    ] = None,
    url: Annotated[str, typer.Option(metavar="URL", help="Address of the server.")] = "http://127.0.0.1:8321",
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="File with a token; VOXLOOP_TOKEN or the workspace's own if left out.", exists=True, dir_okay=False
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Model or alias to ask for; the champion if left out.")
    ] = None,
    language: Annotated[
        str | None, typer.Option(metavar="LANGUAGE", help="Language spoken, such as en; detected if left out.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the server's events, one JSON object per line.")
    ] = False,
) -> None:
    """Transcribe a microphone live with a running server (`voxloop serve`), until Ctrl-C."""
    try:
        from voxloop.web import listening
    except ModuleNotFoundError as error:
        raise UsageError(
            f"listening needs {error.name}, which is not installed: install it with `{install_command('listen')}`"
        ) from error
    if file is not None and device is not None:
        raise UsageError("give --file or --device, not both")
    token = token_file.read_text().strip() if token_file else _token(ctx)
    stop = threading.Event()
    chosen = int(device) if device is not None and device.isdecimal() else device
    source = listening.FileSource(file) if file else listening.Microphone(chosen, stop)
    events = listening.listen(source, url=url, token=token, model=model, language=language)
    try:
        if as_json:
            for event in events:
                typer.echo(json.dumps(event, ensure_ascii=False))
        else:
            if file is None:
                typer.echo("listening; Ctrl-C ends", err=True)
            _show(events)
    except KeyboardInterrupt:
        stop.set()
        if sys.stdout.isatty():
            typer.echo()


def _token(ctx: typer.Context) -> str | None:
    """The token of the workspace's own server, where it has one."""
    from voxloop.serving import tokens

    if given := os.environ.get(tokens.VARIABLE):
        return given
    with opened(ctx) as ws:
        file = tokens.token_file(ws)
        return file.read_text().strip() if file.exists() else None


def _show(events: Iterator[dict[str, Any]]) -> None:
    """A line for each utterance; on a terminal it grows while it is spoken, with what may still change in grey."""
    grows = sys.stdout.isatty()
    decided = ""
    for event in events:
        kind = event["type"].rpartition(".")[2]
        if kind == "delta":
            decided += event["delta"]
        elif kind == "completed":
            if grows:
                sys.stdout.write("\r\x1b[J")
            if event["transcript"]:
                typer.echo(event["transcript"])
            decided = ""
        elif kind == "failed":
            typer.echo(f"not heard: {event['error']['message']}", err=True)
            decided = ""
        if grows and kind in ("delta", "unstable"):
            tail = event.get("text", "")
            # One line of the terminal alone: a longer one could not be taken back.
            width = max(20, shutil.get_terminal_size().columns - 1)
            shown, grey = decided[-width:], tail[: max(0, width - len(decided))]
            sys.stdout.write(f"\r\x1b[J{shown}\x1b[2m{grey}\x1b[0m")
            sys.stdout.flush()
