"""ingest, transcribe, review, dataset."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voxloop.cli.screen import By, Json, opened, print_json, progress, short, table

if TYPE_CHECKING:
    from voxloop.recordings import IngestReport
    from voxloop.records import Dataset
    from voxloop.review import Item

review = typer.Typer(no_args_is_help=True, help="People's corrections: list, show, save, accept, reject.")
dataset = typer.Typer(no_args_is_help=True, help="Frozen datasets: build, list, show, export.")


class Format(StrEnum):
    text = "text"
    json = "json"
    srt = "srt"
    vtt = "vtt"


class Status(StrEnum):
    new = "new"
    transcribed = "transcribed"
    reviewed = "reviewed"
    rejected = "rejected"


def register(app: typer.Typer) -> None:
    app.command()(ingest)
    app.command()(transcribe)
    app.add_typer(review, name="review")
    app.add_typer(dataset, name="dataset")


def ingest(
    ctx: typer.Context,
    paths: Annotated[list[Path], typer.Argument(help="Files and folders of audio.", metavar="PATH...")],
    metadata: Annotated[
        Path | None,
        typer.Option(
            help="JSONL with file, text, speaker, language; a folder's own metadata.jsonl is found by itself."
        ),
    ] = None,
    speaker: Annotated[str | None, typer.Option(help="Who speaks, where the metadata does not say.")] = None,
    language: Annotated[
        str | None, typer.Option(help="Language, where the metadata does not say (en, vi, ...).")
    ] = None,
    session: Annotated[str | None, typer.Option(help="Name of the recording session.")] = None,
    consent: Annotated[str | None, typer.Option(help="What the speaker agreed to; kept with the recording.")] = None,
    processes: Annotated[
        int | None, typer.Option(help="Processes that decode; as many as there are cores, where not given.", min=1)
    ] = None,
    as_json: Json = False,
) -> None:
    """Take audio in: decoded, measured, stored once. What cannot be taken is named with its reason."""
    from voxloop.recordings import ingest as take

    with opened(ctx, create=True) as ws, progress("ingest", "files") as told:
        report = take(
            ws,
            paths,
            metadata=metadata,
            speaker=speaker,
            language=language,
            session=session,
            consent=consent,
            processes=processes,
            progress=lambda p: told(p.done, p.total),
        )
    if as_json:
        print_json(
            {
                "taken": len(report.taken),
                "known": len(report.known),
                "refused": len(report.refused),
                "hours": report.seconds_of_audio / 3600,
                "elapsed_s": report.elapsed,
                "recordings": report.taken,
                "refusals": report.refused,
                "notes": report.notes,
            }
        )
    else:
        _print_ingest(report)
    if report.refused and not report.taken and not report.known:
        raise typer.Exit(1)


def _print_ingest(report: IngestReport) -> None:
    typer.echo(
        f"{len(report.taken)} taken ({report.seconds_of_audio / 60:.1f} min), {len(report.known)} known, "
        f"{len(report.refused)} refused, in {report.elapsed:.1f} s"
    )
    if report.refused:
        shown = report.refused[:20]
        table(["refused", "reason", "why"], [[refusal.path, refusal.reason, refusal.message] for refusal in shown])
        if len(report.refused) > len(shown):
            typer.echo(f"... and {len(report.refused) - len(shown)} more; --json lists all")
    for note in report.notes[:10]:
        typer.echo(f"note: {note}")
    if report.taken:
        typer.echo("next: voxloop worker --until-idle")


def transcribe(
    ctx: typer.Context,
    files: Annotated[list[Path], typer.Argument(help="Audio files.", metavar="FILE...")],
    format: Annotated[Format, typer.Option("--format", "-f", help="How the text is written.")] = Format.text,
    model: Annotated[str | None, typer.Option(help="champion, a model's id, starter, a folder or a Hub id.")] = None,
    language: Annotated[str | None, typer.Option(help="Language spoken; detected where the model can.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A folder for one file each, instead of the screen.")
    ] = None,
) -> None:
    """The text of audio files, which are not taken into the workspace."""
    import tempfile

    from voxloop.errors import AudioError
    from voxloop.settings import CONFIG_NAME, workspace_folder
    from voxloop.transcripts import formatted, transcribe_file

    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        # Text for a file needs no workspace: without one the base model speaks.
        if ctx.obj is None and not (workspace_folder() / CONFIG_NAME).exists():
            ctx.obj = Path(temporary)
        with opened(ctx, create=ctx.obj == Path(temporary)) as ws:
            for file in files:
                try:
                    with progress(file.name, "s") as told:
                        found = transcribe_file(ws, file, model=model, language=language, progress=told)
                except AudioError as error:
                    typer.echo(f"error: {error}", err=True)
                    failed += 1
                    continue
                text = formatted(found, format.value)
                if output:
                    output.mkdir(parents=True, exist_ok=True)
                    suffix = ".txt" if format is Format.text else f".{format.value}"
                    (output / (file.stem + suffix)).write_text(text + "\n")
                elif len(files) > 1 and format is Format.text:
                    typer.echo(f"{file}\t{text}")
                else:
                    typer.echo(text)
    if failed:
        raise typer.Exit(1)


# Review --------------------------------------------------------------------------------------------------------------


@review.command("list")
def review_list(
    ctx: typer.Context,
    status: Annotated[Status | None, typer.Option(help="Only utterances of this status.")] = None,
    speaker: Annotated[str | None, typer.Option(help="Only this speaker's.")] = None,
    limit: Annotated[int, typer.Option(help="How many at most.", min=1)] = 20,
    as_json: Json = False,
) -> None:
    """Utterances, the least certain first."""
    from voxloop.review import items

    with opened(ctx) as ws:
        found = items(ws, status=status.value if status else None, speaker=speaker, limit=limit)
    if as_json:
        print_json([_item_json(item) for item in found])
        return
    table(
        ["utterance", "s", "speaker", "status", "confidence", "text"],
        [
            [
                _short_utterance(item.utterance.id),
                round(item.utterance.duration, 1),
                item.utterance.speaker,
                item.utterance.status,
                item.hypothesis.confidence if item.hypothesis else None,
                item.text,
            ]
            for item in found
        ],
        empty="no such utterances: `voxloop status` says what there is",
    )


def _short_utterance(id: str) -> str:
    recording, _, span = id.partition(":")
    return f"{short(recording)}:{span}"


def _item_json(item: Item) -> dict[str, object]:
    return {
        "utterance": item.utterance,
        "text": item.text,
        "reference": item.reference,
        "hypothesis": item.hypothesis,
        "versions": item.versions,
    }


@review.command("show")
def review_show(ctx: typer.Context, utterance: str, as_json: Json = False) -> None:
    """One utterance with every version of its text."""
    from voxloop.review import show

    with opened(ctx) as ws:
        item = show(ws, utterance)
    if as_json:
        print_json(_item_json(item))
        return
    found = item.utterance
    typer.echo(
        f"{found.id}\n{found.duration:.2f} s, speaker {found.speaker or 'unknown'}, {found.status}, split {found.split or 'not decided'}"
    )
    if found.quality:
        snr = "unknown" if found.quality.snr_db is None else f"{found.quality.snr_db:.0f} dB"
        typer.echo(f"level {found.quality.level_dbfs:.0f} dBFS, SNR {snr}, clipping {found.quality.clipping:.1%}")
    table(["kind", "by", "confidence", "text"], [[t.kind, short(t.by), t.confidence, t.text] for t in item.versions])


@review.command("save")
def review_save(ctx: typer.Context, utterance: str, text: str, by: By = "cli") -> None:
    """Keep a corrected text as the reference."""
    from voxloop.review import save

    with opened(ctx) as ws:
        saved = save(ws, utterance, text, by=by)
    typer.echo(f"saved: {saved.text}")


@review.command("accept")
def review_accept(ctx: typer.Context, utterance: str, by: By = "cli") -> None:
    """Take the machine's text as right."""
    from voxloop.review import accept

    with opened(ctx) as ws:
        saved = accept(ws, utterance, by=by)
    typer.echo(f"accepted: {saved.text}")


@review.command("reject")
def review_reject(
    ctx: typer.Context,
    utterance: str,
    reason: Annotated[str, typer.Option(help="Why it may not be used.")],
    by: By = "cli",
) -> None:
    """Leave an utterance out of every dataset to come."""
    from voxloop.review import reject

    with opened(ctx) as ws:
        found = reject(ws, utterance, reason=reason, by=by)
    typer.echo(f"rejected: {found.id}")


# Datasets ------------------------------------------------------------------------------------------------------------


@dataset.command("build")
def dataset_build(
    ctx: typer.Context,
    name: Annotated[str, typer.Option(help="Name; building again makes its next version.")] = "default",
    ratios: Annotated[str | None, typer.Option(help="Shares of train/val/test, such as 0.8/0.1/0.1.")] = None,
    machine_text: Annotated[
        float | None, typer.Option(help="Train on machine text of at least this confidence, too.", min=0, max=1)
    ] = None,
    speaker: Annotated[list[str] | None, typer.Option(help="Only this speaker (may be given again).")] = None,
    language: Annotated[list[str] | None, typer.Option(help="Only this language (may be given again).")] = None,
    train_limit: Annotated[int | None, typer.Option(help="Training clips at most.", min=1)] = None,
    as_json: Json = False,
) -> None:
    """Freeze what has been corrected so far, split by speaker into train, val and test."""
    from voxloop.datasets import build
    from voxloop.settings import parse_ratios

    with opened(ctx) as ws:
        made = build(
            ws,
            name=name,
            ratios=parse_ratios(ratios) if ratios else None,
            machine_text=machine_text,
            speakers=speaker,
            languages=language,
            train_limit=train_limit,
        )
    print_json(made) if as_json else _print_dataset(made)


def _print_dataset(made: Dataset) -> None:
    typer.echo(f"dataset {made.name} {short(made.id)}" + (f", after {short(made.parent)}" if made.parent else ""))
    table(
        ["split", "clips", "minutes"],
        [[split, made.clips[split], round(made.hours[split] * 60, 2)] for split in made.clips],
    )
    for reason, count in sorted(made.excluded.items(), key=lambda item: -item[1]):
        typer.echo(f"left out: {count} {reason}")


@dataset.command("list")
def dataset_list(ctx: typer.Context, as_json: Json = False) -> None:
    """All datasets, oldest first."""
    from voxloop.records import Dataset

    with opened(ctx) as ws, ws.read() as reader:
        found = reader.all(Dataset)
    if as_json:
        print_json(found)
        return
    table(
        ["dataset", "name", "train", "val", "test", "hours"],
        [[short(d.id), d.name, *(d.clips[s] for s in ("train", "val", "test")), sum(d.hours.values())] for d in found],
        empty="no dataset yet: `voxloop dataset build` freezes one",
    )


@dataset.command("show")
def dataset_show(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Argument(help="A name or an id; the newest, where none is given.")] = None,
    as_json: Json = False,
) -> None:
    """One dataset: its splits, and what was left out and why."""
    from voxloop.datasets import find

    with opened(ctx) as ws:
        found = find(ws, name)
    print_json(found) if as_json else _print_dataset(found)


@dataset.command("export")
def dataset_export(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Where to.")],
    name: Annotated[str | None, typer.Option(help="A name or an id; the newest, where none is given.")] = None,
) -> None:
    """Write train.jsonl, val.jsonl and test.jsonl beside their audio, and Lhotse cuts of the same rows."""
    from voxloop.datasets import export, find

    with opened(ctx) as ws:
        for path in export(ws, find(ws, name).id, folder):
            typer.echo(path)
