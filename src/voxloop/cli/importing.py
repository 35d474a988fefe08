"""import s2s."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from voxloop.cli.screen import Json, counted, opened, print_json, progress

importing = typer.Typer(no_args_is_help=True, help="Import what other applications collected.")


def register(app: typer.Typer) -> None:
    app.add_typer(importing, name="import")


@importing.command("s2s")
def import_s2s(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="SQLite database with the table s2s_training_data.")],
    speaker: Annotated[str | None, typer.Option(help="Speaker of all rows.", show_default="unknown")] = None,
    language: Annotated[
        str | None, typer.Option(help="Language of all rows, such as en or English.", show_default="unknown")
    ] = None,
    as_json: Json = False,
) -> None:
    """Import the S2S application's recordings, texts, review marks and times; repeating it takes only new rows."""
    from voxloop.speech.languages import language_code
    from voxloop.steps.s2s import import_s2s as run

    with opened(ctx) as ws, progress("import", "rows") as tell:
        done = run(ws, file, speaker=speaker, language=language_code(language), progress=tell)
    if as_json:
        print_json(done)
        return
    for refusal in done.refused:
        typer.echo(f"refused {refusal.message}")
    typer.echo(f"{counted(done.taken, 'new recording')}, {done.known:,} known, {len(done.refused):,} refused")
