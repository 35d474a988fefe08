"""recordings list, show, play, edit."""

from __future__ import annotations

from typing import Annotated

import typer

from voxloop.cli.filters import Status
from voxloop.cli.screen import By, Json, opened, print_json, short, table, when

recordings = typer.Typer(no_args_is_help=True, help="Recordings: list, hear and correct what was taken in.")

Named = Annotated[str, typer.Argument(metavar="RECORDING", help="A recording's id or file name.")]


def register(app: typer.Typer) -> None:
    app.add_typer(recordings, name="recordings")


@recordings.command("list")
def recordings_list(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Option(help="Only file names that contain this; case is ignored.")] = None,
    speaker: Annotated[str | None, typer.Option(help="Only recordings in which this speaker speaks.")] = None,
    language: Annotated[str | None, typer.Option(help="Only this language, such as en or English.")] = None,
    status: Annotated[Status | None, typer.Option(help="Only recordings with an utterance of this status.")] = None,
    limit: Annotated[int, typer.Option(help="Number of recordings at most.", min=1)] = 50,
    as_json: Json = False,
) -> None:
    """List recordings with their speakers, languages, lengths and how far they have come."""
    from voxloop.steps.recordings.listing import recordings as listed

    with opened(ctx) as ws:
        found = listed(
            ws,
            name=name,
            speaker=speaker,
            language=language,
            status=status.value if status else None,
            limit=None if as_json else limit + 1,
        )
    if as_json:
        print_json(found)
        return
    table(
        ["id", "file", "speaker", "language", "seconds", "status", "notes"],
        [
            [
                short(one.recording.id)[:8],
                one.recording.name,
                one.recording.speaker,
                one.recording.language,
                round(one.recording.duration, 1),
                one.status,
                "; ".join(one.notes),
            ]
            for one in found[:limit]
        ],
        empty="no recording matches: `voxloop status` counts what there is",
    )
    if len(found) > limit:
        typer.echo(f"there are more than {limit}: raise --limit, or narrow the list by --name, --speaker, --language")


@recordings.command("show")
def recordings_show(ctx: typer.Context, recording: Named, as_json: Json = False) -> None:
    """Show a recording: where it came from, what is said of it, and what is wrong with it."""
    from voxloop.steps.recordings.listing import encoding_name, show

    with opened(ctx) as ws:
        found = show(ws, recording)
    if as_json:
        print_json(found)
        return
    one = found.recording
    quality = one.quality
    source = one.encoding
    lines = [
        ("file", one.name),
        ("from", one.source),
        ("id", one.id),
        ("ingested", when(one.created)),
        ("length", f"{one.duration:.2f} s"),
        ("source audio", encoding_name(source) if source else None),
        ("speaker", one.speaker),
        ("language", one.language),
        ("session", one.session),
        ("consent", one.consent),
        ("status", found.status),
        ("text", one.text),
        ("segments", str(len(one.segments)) if one.segments else None),
        ("level", f"{quality.level_dbfs:.0f} dBFS, peak {quality.peak_dbfs:.0f} dBFS" if quality else None),
        ("SNR", f"{quality.snr_db:.0f} dB" if quality and quality.snr_db is not None else None),
    ]
    for label, value in lines:
        if value:
            typer.echo(f"{label:<13} {value}")
    for note in found.notes:
        typer.echo(f"note: {note}")


@recordings.command("play")
def recordings_play(
    ctx: typer.Context,
    recording: Named,
    start: Annotated[float, typer.Option(help="Second to begin at.", min=0)] = 0.0,
    end: Annotated[float | None, typer.Option(help="Second to stop at.", min=0, show_default="the end")] = None,
) -> None:
    """Play a recording, or a stretch of it, with a player that this machine has."""
    from voxloop.steps.recordings.listening import play
    from voxloop.steps.recordings.listing import show

    with opened(ctx) as ws:
        found = show(ws, recording).recording
        typer.echo(f"{found.name}, {found.duration:.1f} s", err=True)
        play(ws, found.id, start, end)


@recordings.command("edit")
def recordings_edit(
    ctx: typer.Context,
    recording: Named,
    language: Annotated[str | None, typer.Option(help="Its language, such as en or English; empty: unknown.")] = None,
    speaker: Annotated[str | None, typer.Option(help="Who speaks; empty: unknown.")] = None,
    text: Annotated[str | None, typer.Option(help="What is said in it from beginning to end.")] = None,
    by: By = "cli",
    as_json: Json = False,
) -> None:
    """Correct a recording's language, speaker or text; frozen datasets stay as they are."""
    from voxloop.steps.recordings.describing import edit

    with opened(ctx) as ws:
        done = edit(ws, recording, language=language, speaker=speaker, text=text, by=by)
    if as_json:
        print_json(done.recording)
        return
    for field, (old, new) in done.corrected.items():
        typer.echo(f"{done.recording.name}: {field} is {new or 'unknown'}, was {old or 'unknown'}")
    if not done.corrected:
        typer.echo(f"{done.recording.name}: nothing to change")
