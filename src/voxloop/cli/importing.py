"""import s2s."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from voxloop.cli.screen import Json, counted, lasting, opened, print_json, progress

importing = typer.Typer(no_args_is_help=True, help="Import speech with its texts from other programs.")

SHOWN = 20  # broken rows printed; --json prints all


def register(app: typer.Typer) -> None:
    app.add_typer(importing, name="import")


@importing.callback()
def _group() -> None:
    """Keep `s2s` a command of its own, although there is no other yet."""


@importing.command("s2s")
def import_s2s(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="SQLite database with the table s2s_training_data.")],
    speaker: Annotated[str | None, typer.Option(help="Who speaks in it.", show_default="unknown")] = None,
    language: Annotated[
        str | None, typer.Option(help="Language of its texts, such as en or English.", show_default="detected")
    ] = None,
    as_json: Json = False,
) -> None:
    """Import an s2s training database: reviewed texts as references, the others to be reviewed."""
    from voxloop.steps.s2s import import_s2s as read

    with opened(ctx, create=True) as ws, progress("import", "rows") as show:
        done = read(ws, file, speaker=speaker, language=language, progress=show)
    if as_json:
        print_json(done)
    else:
        typer.echo(
            f"{done.new:,} added ({lasting(done.seconds_of_audio)} of audio, {done.reviewed:,} reviewed), "
            f"{done.known:,} known ({done.corrected:,} reviewed since)"
        )
        for row in done.broken[:SHOWN]:
            typer.echo(f"row {row.row}: {row.message}", err=True)
        if len(done.broken) > SHOWN:
            typer.echo(f"... and {counted(len(done.broken) - SHOWN, 'more row')}; --json lists all", err=True)
        if done.new:
            typer.echo("next: voxloop worker --until-idle")
    if done.broken and not done.new and not done.known:
        raise typer.Exit(1)
