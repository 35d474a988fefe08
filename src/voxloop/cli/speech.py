"""ingest, transcribe, retranscribe."""

from __future__ import annotations

import os
import shutil
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voxloop.cli.screen import Json, counted, lasting, opened, print_json, progress, short, table, tell_speechless
from voxloop.errors import UsageError

if TYPE_CHECKING:
    from voxloop.steps.recordings import IngestReport


SILENT_FILES = "listen to them; if somebody speaks, try a lower `vad_threshold` (voxloop.toml) or set --language"


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
    packed = "packed"
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
    # An unreadable path is refused like any other file; click would abort the whole command.
    paths: Annotated[list[Path], typer.Argument(help="Audio files or folders.", metavar="PATH...", readable=False)],
    metadata: Annotated[
        Path | None,
        typer.Option(
            help="Manifest with transcripts and metadata (JSONL, CSV, NeMo, Lhotse, Kaldi or Common Voice).",
            show_default="the manifest found in each folder, if any",
        ),
    ] = None,
    speaker: Annotated[
        str | None, typer.Option(help="Speaker, for files whose metadata names none.", show_default="unknown")
    ] = None,
    language: Annotated[
        str | None,
        typer.Option(
            help="Language, such as en or English, for files whose metadata names none.", show_default="detected"
        ),
    ] = None,
    session: Annotated[str | None, typer.Option(help="Name of the recording session.", show_default="none")] = None,
    consent: Annotated[
        str | None, typer.Option(help="What the speaker consented to; stored with the recording.", show_default="none")
    ] = None,
    channels: Annotated[
        Channels | None,
        typer.Option(
            help="How to read files with several channels: mix them, or split them into one recording per channel.",
            show_default="the channels setting",
        ),
    ] = None,
    track: Annotated[
        int | None,
        typer.Option(
            help="Audio track to read from files with several tracks, counted from 0.",
            min=0,
            show_default="the file's default track",
        ),
    ] = None,
    processes: Annotated[
        int | None, typer.Option(help="Number of decoding processes.", min=1, show_default="one per core")
    ] = None,
    as_json: Json = False,
) -> None:
    """Add audio files to the workspace: decode, measure and store each one. Lists refused files with the reason."""
    from voxloop.settings import CONFIG_NAME, workspace_folder
    from voxloop.speech.languages import language_code
    from voxloop.steps.recordings import ingest as take
    from voxloop.steps.utterances import speechless

    language = language_code(language)
    # A mistyped path must not create a workspace. (A broken link is reported as a file.)
    if not (workspace_folder(ctx.obj) / CONFIG_NAME).exists() and not any(map(os.path.lexists, paths)):
        raise UsageError(f"no such file or folder: {', '.join(map(str, paths[:3]))}; give audio files or folders")
    with opened(ctx, create=True) as ws, progress("ingest", "files") as show:
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
            progress=lambda p: show(p.done, p.total),
        )
        silent = [one.name for one in speechless(ws, report.known)]  # the worker detects speech in new files
    if as_json:
        print_json({**report.as_dict(), "speechless": silent})
    else:
        _print_ingest(report)
        tell_speechless(silent)
    if report.refused and not report.taken and not report.known:
        raise typer.Exit(1)


def _print_ingest(report: IngestReport) -> None:
    rows: list[list[object]] = [
        ["added", len(report.taken), f"{lasting(report.seconds_of_audio)} of audio"],
        ["known", len(report.known), ""],
        *(["refused", count, reason] for reason, count in report.reasons.items()),
    ]
    table(["", "files", ""], rows)
    if report.refused:
        shown = report.refused[:20]
        table(["refused", "reason", "details"], [[refusal.path, refusal.reason, refusal.message] for refusal in shown])
        if len(report.refused) > len(shown):
            typer.echo(f"... and {len(report.refused) - len(shown):,} more; --json lists all")
    for note in report.notes[:10]:
        typer.echo(f"note: {note}")
    if len(report.notes) > 10:
        typer.echo(f"... and {counted(len(report.notes) - 10, 'more note')}; --json lists all")
    typer.echo(
        f"{len(report.taken):,} added, {len(report.known):,} known, {len(report.refused):,} refused "
        f"in {lasting(report.elapsed)}"
    )
    if report.taken:
        typer.echo("next: voxloop worker --until-idle")


def transcribe(
    ctx: typer.Context,
    files: Annotated[
        list[Path],
        typer.Argument(help="Audio files, folders, or - for standard input.", metavar="FILE|DIR|-...", readable=False),
    ],
    format: Annotated[
        Format,
        typer.Option(
            "--format",
            "-f",
            help="Output format. text: one line per file. txt: one line per segment. all: every format but text; "
            "needs --output.",
        ),
    ] = Format.text,
    model: Annotated[
        str | None,
        typer.Option(
            help="Model: champion, starter, a model's name or id, a folder or a Hub id.", show_default="champion"
        ),
    ] = None,
    language: Annotated[
        str | None,
        typer.Option(help="Spoken language, such as en or English.", show_default="detected, if the model can"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder to write one file per input to.", show_default="print to the screen"
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", "--force", help="Replace existing output files.")] = False,
    track: Annotated[
        int | None,
        typer.Option(
            help="Audio track to read from files with several tracks, counted from 0.",
            min=0,
            show_default="the file's default track",
        ),
    ] = None,
    max_line_width: Annotated[int, typer.Option(help="Maximum number of characters in a subtitle line.", min=1)] = 42,
    max_line_count: Annotated[int, typer.Option(help="Maximum number of lines in a subtitle.", min=1)] = 2,
    max_words_per_line: Annotated[
        int | None,
        typer.Option(help="Maximum number of words in a subtitle line.", min=1, show_default="as many as fit"),
    ] = None,
    engine: Annotated[Engine | None, typer.Option(help="Inference engine.", show_default="the engine setting")] = None,
    audio_context: Annotated[
        Context,
        typer.Option(
            help="Length of the encoder's input. auto: the audio_context setting, by default the length the model was "
            "tuned on. adaptive: about twice the clip's length, and 30 s where the text is doubtful. packed: short "
            "clips share a window of 30 s (ctranslate2, known language). trimmed: the clip's length, safe only for "
            "models tuned on it. full: 30 s."
        ),
    ] = Context.auto,
    beams: Annotated[
        int | None,
        typer.Option(help="Beam size; 1 decodes greedily.", min=1, show_default="the beams setting"),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="Initial prompt: text that the model takes as preceding speech and follows in spelling and style.",
            show_default="the prompt setting",
        ),
    ] = None,
) -> None:
    """Transcribe files without adding them to the workspace. All formats except text and txt use word timestamps."""
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
        raise UsageError("--format all writes several files per input: name a folder with --output")
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
            typer.echo("note: `voxloop ingest` reads a .txt file next to its audio as a human transcript", err=True)
        # Transcribing a file needs no workspace: without one, the base model is used.
        if ctx.obj is None and not (workspace_folder() / CONFIG_NAME).exists():
            ctx.obj = Path(temporary)
        with opened(ctx, create=ctx.obj == Path(temporary), **asked) as ws:
            for index, source in enumerate(sources):
                file = source.path
                try:
                    with progress(file.name, "s") as show:
                        found = transcribe_file(
                            ws,
                            file,
                            model=model,
                            language=language,
                            audio_context=audio_context.value,
                            word_times=not {"text", "txt"}.issuperset(formats),
                            track=track,
                            progress=show,
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
        list[str] | None,
        typer.Argument(help="Only these recordings.", show_default="all recordings", metavar="[ID]..."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Queue utterances that only earlier models transcribed for the current model; keeps all transcripts."""
    from voxloop.steps.transcripts import retranscribe as ask

    with opened(ctx) as ws:
        asked = ask(ws, recordings or ())
    if as_json:
        print_json(asked)
        return
    if not asked.recordings:
        typer.echo(f"nothing to do: model {short(asked.model)} has transcribed every utterance that other models have")
        return
    typer.echo(
        f"queued {counted(asked.utterances, 'utterance')} ({lasting(3600 * asked.hours)}) of "
        f"{counted(len(asked.recordings), 'recording')} for model {short(asked.model)}"
        + (f"; {counted(asked.waiting, 'recording')} already in the queue" if asked.waiting else "")
    )
    typer.echo("next: voxloop worker --until-idle")
