"""consent text, show, give, withdraw."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from voxloop.cli.screen import By, Json, opened, print_json, table, when

consent = typer.Typer(no_args_is_help=True, help="Note what speakers consent to: training, sharing, publication.")

Speaker = Annotated[str, typer.Argument(help="Speaker's name, as in the recordings.")]
Purposes = Annotated[
    list[str] | None,
    typer.Option("--purpose", help="train, share (models) or publish (audio); repeatable.", show_default="all"),
]


def register(app: typer.Typer) -> None:
    app.add_typer(consent, name="consent")


@consent.command("text")
def consent_text(
    ctx: typer.Context,
    file: Annotated[
        Path | None, typer.Argument(help="UTF-8 file with a new text.", show_default="list the texts")
    ] = None,
    purpose: Annotated[
        list[str] | None,
        typer.Option(help="What the text is about: train, share or publish; repeatable.", show_default="train"),
    ] = None,
    by: By = "cli",
    as_json: Json = False,
) -> None:
    """Add the next version of the consent text, or list all versions."""
    from voxloop.errors import UsageError
    from voxloop.steps import consent as steps

    with opened(ctx) as ws:
        if file is not None:
            try:
                text = file.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise UsageError(f"{file} is not UTF-8 text: {error}") from error
            steps.add_text(ws, text, purpose or ["train"], by=by)
        found = steps.texts(ws)[-1:] if file is not None else steps.texts(ws)
    if as_json:
        print_json(found)
        return
    for one in found:
        typer.echo(f"Version {one.version}, {when(one.created)}, for {', '.join(one.purposes)}:\n{one.text}")
    if not found:
        typer.echo("there is no consent text; next: voxloop consent text FILE --purpose train")


@consent.command("show")
def consent_show(
    ctx: typer.Context,
    speaker: Annotated[
        str | None, typer.Argument(help="Speaker's name.", show_default="all speakers with a consent")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what speakers permit, and when and by whom that was noted."""
    from voxloop.steps import consent as steps

    with opened(ctx) as ws:
        if speaker is None:
            found = steps.standings(ws)
        else:
            with ws.read() as reader:
                found = [steps.of(reader, speaker)]
    if as_json:
        print_json(found)
        return
    rows = [
        [
            one.speaker,
            ", ".join(one.permits) or "nothing",
            "given" if word.given else "withdrawn",
            ", ".join(word.purposes),
            word.version,
            when(word.created),
            word.by,
        ]
        for one in found
        for word in one.history
    ]
    empty = "nothing is known of this speaker's consent: only training is permitted" if speaker else "no consent noted"
    table(["speaker", "permits now", "", "purposes", "text", "at", "by"], rows, empty=empty)


@consent.command("give")
def consent_give(
    ctx: typer.Context,
    speaker: Speaker,
    version: Annotated[
        int | None, typer.Option("--text", help="Version of the text agreed to.", show_default="the newest")
    ] = None,
    purpose: Purposes = None,
    by: By = "cli",
    as_json: Json = False,
) -> None:
    """Note that a speaker agreed to a consent text, or to some of its purposes."""
    from voxloop.steps import consent as steps

    with opened(ctx) as ws:
        now = steps.give(ws, speaker, version=version, purposes=purpose or (), by=by)
    if as_json:
        print_json(now)
        return
    typer.echo(f"{now.speaker} permits: {', '.join(now.permits)} (text {now.version})")


@consent.command("withdraw")
def consent_withdraw(
    ctx: typer.Context, speaker: Speaker, purpose: Purposes = None, by: By = "cli", as_json: Json = False
) -> None:
    """Note that a speaker withdrew consent; datasets built from now on leave the speaker out."""
    from voxloop.steps import consent as steps

    with opened(ctx) as ws:
        now = steps.withdraw(ws, speaker, purposes=purpose or (), by=by)
    if as_json:
        print_json(now)
        return
    typer.echo(f"{now.speaker} permits: {', '.join(now.permits) or 'nothing'}")
    typer.echo("Frozen datasets and trained models do not change; `voxloop forget --speaker` removes the recordings.")
