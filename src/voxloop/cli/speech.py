"""ingest, transcribe, retranscribe."""

from __future__ import annotations

import os
import shutil
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voxloop.cli.screen import Json, opened, print_json, progress, short, table, tell_speechless
from voxloop.errors import UsageError

if TYPE_CHECKING:
    from voxloop.steps.recordings import IngestReport


SILENT_FILES = "listen to them; where somebody speaks, try a lower `vad_threshold` (voxloop.toml) or --language"


class Channels(StrEnum):
    MIX = "mix"
    SPLIT = "split"


class Engine(StrEnum):
    torch = "torch"
    ctranslate2 = "ctranslate2"
    auto = "auto"


class Context(StrEnum):
    auto = "auto"
    adaptive = "adaptive"
    trimmed = "trimmed"
    full = "full"


class Format(StrEnum):
    text = "text"
    txt = "txt"
    json = "json"
    srt = "srt"
    vtt = "vtt"
    tsv = "tsv"
    all = "all"


def register(app: typer.Typer) -> None:
    app.command()(ingest)
    app.command()(transcribe)
    app.command()(retranscribe)


def ingest(
    ctx: typer.Context,
    # One path that may not be read is refused as any file is; click would end the whole command.
    paths: Annotated[list[Path], typer.Argument(help="Files and folders of audio.", metavar="PATH...", readable=False)],
    metadata: Annotated[
        Path | None,
        typer.Option(
            help="A manifest (JSONL, CSV, NeMo, Lhotse, Kaldi, Common Voice); one inside a folder is found by itself."
        ),
    ] = None,
    speaker: Annotated[str | None, typer.Option(help="Who speaks, where the metadata does not say.")] = None,
    language: Annotated[
        str | None, typer.Option(help="Language, such as en or English, where the metadata does not say.")
    ] = None,
    session: Annotated[str | None, typer.Option(help="Name of the recording session.")] = None,
    consent: Annotated[str | None, typer.Option(help="What the speaker agreed to; kept with the recording.")] = None,
    channels: Annotated[
        Channels | None,
        typer.Option(
            help="Files of several channels: mix them, or split them into a recording each.",
            show_default="the setting channels",
        ),
    ] = None,
    track: Annotated[
        int | None,
        typer.Option(
            help="Audio track to take from files that have several, counted from 0.",
            min=0,
            show_default="the file's default track",
        ),
    ] = None,
    processes: Annotated[
        int | None, typer.Option(help="Processes that decode.", min=1, show_default="one for each core")
    ] = None,
    as_json: Json = False,
) -> None:
    """Ingest audio: decode it, measure it, store it once. What is refused is listed with its reason."""
    from voxloop.settings import CONFIG_NAME, workspace_folder
    from voxloop.speech.languages import language_code
    from voxloop.steps.recordings import ingest as take
    from voxloop.steps.utterances import speechless

    language = language_code(language)
    # A mistyped path makes no workspace. (A link that leads nowhere is told of as a file.)
    if not (workspace_folder(ctx.obj) / CONFIG_NAME).exists() and not any(map(os.path.lexists, paths)):
        raise UsageError(f"there is nothing at {', '.join(map(str, paths[:3]))}: give audio files or folders of them")
    with opened(ctx, create=True) as ws, progress("ingest", "files") as told:
        report = take(
            ws,
            paths,
            metadata=metadata,
            speaker=speaker,
            language=language,
            session=session,
            consent=consent,
            channels=channels.value if channels else None,
            track=track,
            processes=processes,
            progress=lambda p: told(p.done, p.total),
        )
        silent = [one.name for one in speechless(ws, report.known)]  # new files are listened to by the worker
    if as_json:
        print_json({**report.as_dict(), "speechless": silent})
    else:
        _print_ingest(report)
        tell_speechless(silent)
    if report.refused and not report.taken and not report.known:
        raise typer.Exit(1)


def _print_ingest(report: IngestReport) -> None:
    rows: list[list[object]] = [
        ["taken", len(report.taken), f"{report.seconds_of_audio / 60:.1f} min of audio"],
        ["known", len(report.known), ""],
        *(["refused", count, reason] for reason, count in report.reasons.items()),
    ]
    table(["", "files", ""], rows)
    if report.refused:
        shown = report.refused[:20]
        table(["refused", "reason", "why"], [[refusal.path, refusal.reason, refusal.message] for refusal in shown])
        if len(report.refused) > len(shown):
            typer.echo(f"... and {len(report.refused) - len(shown)} more; --json lists all")
    for note in report.notes[:10]:
        typer.echo(f"note: {note}")
    if len(report.notes) > 10:
        typer.echo(f"... and {len(report.notes) - 10} more notes; --json lists all")
    typer.echo(
        f"{len(report.taken)} taken, {len(report.known)} known, {len(report.refused)} refused in {report.elapsed:.1f} s"
    )
    if report.taken:
        typer.echo("next: voxloop worker --until-idle")


def transcribe(
    ctx: typer.Context,
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Audio files, folders of them, or - for standard input.", metavar="FILE|DIR|-...", readable=False
        ),
    ],
    format: Annotated[
        Format,
        typer.Option(
            "--format",
            "-f",
            help="Format. text: one line for each file. txt: one for each segment. all: all of them, with --output.",
        ),
    ] = Format.text,
    model: Annotated[
        str | None,
        typer.Option(help="champion, a model's id, starter, a folder or a Hub id.", show_default="the champion"),
    ] = None,
    language: Annotated[
        str | None,
        typer.Option(help="Language spoken, such as en or English.", show_default="detected where the model can"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder to write one file for each input to, instead of the screen."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", "--force", help="Replace files that are there already.")
    ] = False,
    track: Annotated[
        int | None,
        typer.Option(
            help="Audio track of files that have several, counted from 0.", min=0, show_default="the default track"
        ),
    ] = None,
    max_line_width: Annotated[int, typer.Option(help="Characters in a line of subtitles.", min=1)] = 42,
    max_line_count: Annotated[int, typer.Option(help="Lines in a subtitle.", min=1)] = 2,
    max_words_per_line: Annotated[
        int | None, typer.Option(help="Words in a line of subtitles.", min=1, show_default="as many as fit")
    ] = None,
    engine: Annotated[
        Engine | None, typer.Option(help="What runs the model.", show_default="the setting engine")
    ] = None,
    audio_context: Annotated[
        Context,
        typer.Option(
            help="What the encoder is given. auto: the setting audio_context, by default what the model was tuned on. "
            "adaptive: about twice the clip, and 30 s where the text is doubtful. trimmed: the clip's own length, "
            "safe only for models tuned on it. full: 30 s."
        ),
    ] = Context.auto,
    beams: Annotated[
        int | None,
        typer.Option(help="Texts followed at once; 1 is greedy.", min=1, show_default="the setting beams"),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="Text to take for what was said before: its spelling and style carry over.",
            show_default="the setting prompt",
        ),
    ] = None,
) -> None:
    """Transcribe files without adding them to the workspace; every format but `text` and `txt` has word times."""
    import sys
    import tempfile

    from voxloop.errors import AudioError
    from voxloop.settings import CONFIG_NAME, workspace_folder
    from voxloop.speech.languages import language_code
    from voxloop.speech.subtitles import Layout
    from voxloop.steps import transcript_files
    from voxloop.steps.transcripts import formatted, transcribe_file

    language = language_code(language)
    layout = Layout(width=max_line_width, lines=max_line_count, words=max_words_per_line)
    formats = transcript_files.ALL if format is Format.all else (format.value,)
    if output is None and format is Format.all:
        raise UsageError("--format all writes several files: name their folder with --output")
    failed = 0
    speechless: list[str] = []
    asked = {"engine": engine.value if engine else None, "beams": beams, "prompt": prompt}
    with tempfile.TemporaryDirectory(prefix="voxloop-") as temporary:
        if Path("-") in files:
            spoken = Path(temporary, "stdin")
            with spoken.open("wb") as copy:
                shutil.copyfileobj(sys.stdin.buffer, copy)
            files = [spoken if file == Path("-") else file for file in files]
        sources = transcript_files.audio_files(files)
        plan = transcript_files.planned(sources, output, formats, overwrite=overwrite) if output else []
        if any(transcript_files.beside(source, targets) for source, targets in zip(sources, plan, strict=False)):
            typer.echo("note: `voxloop ingest` takes a .txt beside its audio for a text that a person wrote", err=True)
        # Text for a file needs no workspace: without one the base model speaks.
        if ctx.obj is None and not (workspace_folder() / CONFIG_NAME).exists():
            ctx.obj = Path(temporary)
        with opened(ctx, create=ctx.obj == Path(temporary), **asked) as ws:
            for index, source in enumerate(sources):
                file = source.path
                try:
                    with progress(file.name, "s") as told:
                        found = transcribe_file(
                            ws,
                            file,
                            model=model,
                            language=language,
                            audio_context=audio_context.value,
                            word_times=not {"text", "txt"}.issuperset(formats),
                            track=track,
                            progress=told,
                        )
                except AudioError as error:
                    typer.echo(f"error: {error}", err=True)
                    failed += 1
                    continue
                if found.speechless:
                    speechless.append(str(file))
                for note in found.notes:
                    typer.echo(f"note: {file}: {note}", err=True)
                if plan:
                    for target, one in zip(plan[index], formats, strict=True):
                        transcript_files.write(target, formatted(found, one, layout) + "\n", overwrite=overwrite)
                elif len(sources) > 1 and format is Format.text:
                    typer.echo(f"{file}\t{found.text}")
                else:
                    typer.echo(formatted(found, format.value, layout))
    if speechless:
        tell_speechless(speechless, SILENT_FILES, err=True)
    if failed:
        raise typer.Exit(1)


def retranscribe(
    ctx: typer.Context,
    recordings: Annotated[
        list[str] | None, typer.Argument(help="Only these recordings.", show_default="all", metavar="[ID]...")
    ] = None,
    as_json: Json = False,
) -> None:
    """Queue what earlier models transcribed for the current model; all texts are kept, references untouched."""
    from voxloop.steps.transcripts import retranscribe as ask

    with opened(ctx) as ws:
        asked = ask(ws, recordings or ())
    if as_json:
        print_json(asked)
        return
    if not asked.recordings:
        typer.echo(f"nothing to do: {short(asked.model)} has heard all that other models have")
        return
    typer.echo(
        f"{asked.utterances} utterances ({asked.hours:.2f} h) of {len(asked.recordings)} recordings wait for "
        f"{short(asked.model)}"
        + (f"; {asked.waiting} of the recordings were asked for before" if asked.waiting else "")
    )
    typer.echo("next: voxloop worker --until-idle")
