"""recordings list, show, play, edit."""

from __future__ import annotations

from typing import Annotated

import typer

from voxloop.cli.filters import Status
from voxloop.cli.screen import By, Json, lasting, opened, print_json, short, table, when

recordings = typer.Typer(no_args_is_help=True, help="List, show, play and correct ingested recordings.")

Named = Annotated[str, typer.Argument(metavar="RECORDING", help="Recording id or file name.")]


def register(app: typer.Typer) -> None:
    app.add_typer(recordings, name="recordings")


@recordings.command("list")
def recordings_list(
    ctx: typer.Context,
    name: Annotated[
        str | None, typer.Option(help="Only file names that contain this text; case is ignored.", show_default="all")
    ] = None,
    speaker: Annotated[str | None, typer.Option(help="Only recordings with this speaker.", show_default="all")] = None,
    language: Annotated[
        str | None, typer.Option(help="Only recordings in this language, such as en or English.", show_default="all")
    ] = None,
    status: Annotated[
        Status | None, typer.Option(help="Only recordings that have utterances with this status.", show_default="all")
    ] = None,
    limit: Annotated[int, typer.Option(help="Maximum number of recordings to list.", min=1)] = 50,
    as_json: Json = False,
) -> None:
    """List recordings with speaker, language, length and review status."""
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
        empty="no recording matches; `voxloop status` shows the workspace's contents",
    )
    if len(found) > limit:
        typer.echo(f"more than {limit:,} recordings match: raise --limit, or filter by --name, --speaker or --language")


@recordings.command("show")
def recordings_show(ctx: typer.Context, recording: Named, as_json: Json = False) -> None:
    """Show a recording's source, metadata, audio quality and problems."""
    from voxloop.records import plain
    from voxloop.steps import consent
    from voxloop.steps.recordings.listing import encoding_name, show

    with opened(ctx) as ws:
        found = show(ws, recording)
        with ws.read() as reader:
            standing = consent.of(reader, found.recording.speaker) if found.recording.speaker else None
    if as_json:
        print_json({**plain(found), "speaker_consent": standing})
        return
    one = found.recording
    quality = one.quality
    source = one.encoding
    lines = [
        ("file", one.name),
        ("path", one.source),
        ("id", one.id),
        ("ingested", when(one.created)),
        ("length", f"{one.duration:.2f} s"),
        ("source audio", encoding_name(source) if source else None),
        ("speaker", one.speaker),
        ("language", one.language),
        ("session", one.session),
        ("consent", one.consent),
        ("permits", (", ".join(standing.permits) or "nothing") if standing and standing.history else None),
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
    start: Annotated[float, typer.Option(help="Start time, in seconds.", min=0, show_default="0")] = 0.0,
    end: Annotated[
        float | None, typer.Option(help="End time, in seconds.", min=0, show_default="the end of the recording")
    ] = None,
) -> None:
    """Play a recording, or a part of it, with an audio player installed on this machine."""
    from voxloop.steps.recordings.listening import play
    from voxloop.steps.recordings.listing import show

    with opened(ctx) as ws:
        found = show(ws, recording).recording
        typer.echo(f"{found.name}, {lasting(found.duration)}", err=True)
        play(ws, found.id, start, end)


@recordings.command("edit")
def recordings_edit(
    ctx: typer.Context,
    recording: Named,
    language: Annotated[
        str | None, typer.Option(help="Language, such as en or English; empty means unknown.", show_default="no change")
    ] = None,
    speaker: Annotated[str | None, typer.Option(help="Speaker; empty means unknown.", show_default="no change")] = None,
    text: Annotated[
        str | None, typer.Option(help="Transcript of the whole recording.", show_default="no change")
    ] = None,
    by: By = "cli",
    as_json: Json = False,
) -> None:
    """Correct a recording's language, speaker or transcript; frozen datasets do not change."""
    from voxloop.steps.recordings.describing import edit

    with opened(ctx) as ws:
        done = edit(ws, recording, language=language, speaker=speaker, text=text, by=by)
    if as_json:
        print_json(done.recording)
        return
    for field, (old, new) in done.corrected.items():
        typer.echo(f"{done.recording.name}: changed {field} from {old or 'unknown'} to {new or 'unknown'}")
    if not done.corrected:
        typer.echo(f"{done.recording.name}: no change")
