"""dataset build, list, show, exclusions, diff, export, import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from voxloop.cli.screen import Json, opened, percent, print_json, progress, short, table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from voxloop.records import Dataset
    from voxloop.steps.datasets import Summary

dataset = typer.Typer(no_args_is_help=True, help="Frozen datasets: build, list, show, compare, export, import.")

MOST_SHOWN = 20  # rows of a table; --json has all

Name = Annotated[str | None, typer.Argument(help="A dataset's name or id.", show_default="the newest")]


def register(app: typer.Typer) -> None:
    app.add_typer(dataset, name="dataset")


@dataset.command("build")
def dataset_build(
    ctx: typer.Context,
    name: Annotated[
        str, typer.Option(help="Name of the dataset; building it again makes its next version.")
    ] = "default",
    ratios: Annotated[
        str | None,
        typer.Option(help="Shares of train/val/test, such as 0.8/0.1/0.1.", show_default="the setting ratios"),
    ] = None,
    machine_text: Annotated[
        float | None,
        typer.Option(help="Also train on machine text of at least this confidence, from 0 to 1.", min=0, max=1),
    ] = None,
    speaker: Annotated[list[str] | None, typer.Option(help="Only this speaker; repeatable.")] = None,
    language: Annotated[list[str] | None, typer.Option(help="Only this language (ISO 639-1); repeatable.")] = None,
    train_limit: Annotated[int | None, typer.Option(help="Number of training clips at most.", min=1)] = None,
    min_seconds: Annotated[
        float | None,
        typer.Option(help="Leave out clips shorter than this, in seconds.", show_default="the setting min_clip_s"),
    ] = None,
    max_seconds: Annotated[
        float | None,
        typer.Option(help="Leave out clips longer than this, in seconds.", show_default="the setting max_clip_s"),
    ] = None,
    min_snr_db: Annotated[
        float | None,
        typer.Option(help="Leave out clips with a lower SNR than this, in dB.", show_default="the setting min_snr_db"),
    ] = None,
    max_characters_per_second: Annotated[
        float | None,
        typer.Option(help="Leave out texts with more characters per second of audio than this.", show_default="40"),
    ] = None,
    max_label_tokens: Annotated[
        int | None,
        typer.Option(
            help="Leave out texts of more tokens than this, which a model cannot write.",
            show_default="the base model's limit",
        ),
    ] = None,
    keep_outliers: Annotated[
        bool,
        typer.Option("--keep-outliers", help="Keep texts that are far too long or too short compared with the others."),
    ] = False,
    keep_mismatched: Annotated[
        bool, typer.Option("--keep-mismatched", help="Keep given texts that a reliable model heard quite differently.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Freeze what has been reviewed so far, split by speaker into train, val and test."""
    from dataclasses import replace

    from voxloop.settings import parse_ratios
    from voxloop.speech.languages import language_code
    from voxloop.steps.datasets import Filters, build, exclusions

    given: dict[str, float | int | None] = {
        "min_seconds": min_seconds,
        "max_seconds": max_seconds,
        "min_snr_db": min_snr_db,
        "max_characters_per_second": max_characters_per_second,
        "max_label_tokens": max_label_tokens,
        "keep_outliers": keep_outliers,
        "keep_mismatched": keep_mismatched,
    }
    with opened(ctx) as ws:
        changed: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        made = build(
            ws,
            name=name,
            ratios=parse_ratios(ratios) if ratios else None,
            machine_text=machine_text,
            speakers=speaker,
            languages=[str(language_code(one)) for one in language] if language else None,
            train_limit=train_limit,
            filters=replace(Filters.of(ws.settings), **changed),
        )
        reviewed = len(exclusions(ws, made.id, reviewed=True))
    if as_json:
        print_json(made)
        return
    if made.name != name:
        typer.echo(f"the same clips and texts are frozen already, under the name {made.name}:")
    _print_dataset(made, reviewed)


def _print_dataset(made: Dataset, reviewed: int) -> None:
    typer.echo(f"dataset {made.name} {short(made.id)}" + (f", after {short(made.parent)}" if made.parent else ""))
    table(
        ["split", "clips", "minutes"],
        [[split, made.clips[split], round(made.hours[split] * 60, 2)] for split in made.clips],
    )
    if made.forgotten:
        typer.echo(f"forgotten: {made.forgotten} utterances were removed since it was frozen")
    for reason, count in sorted(made.excluded.items(), key=lambda item: -item[1]):
        typer.echo(f"left out: {count} {reason}")
    if any(made.excluded.values()):
        typer.echo(f"which: `voxloop dataset exclusions {short(made.id)}`")
    if reviewed:
        typer.echo(f"although a person had written or accepted the text: {reviewed} (`--reviewed` lists them)")


@dataset.command("exclusions")
def dataset_exclusions(
    ctx: typer.Context,
    name: Name = None,
    reason: Annotated[str | None, typer.Option(help="Only reasons that contain this text.")] = None,
    reviewed: Annotated[
        bool, typer.Option("--reviewed", help="Only utterances whose text a person had written or accepted.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List what was left out of a dataset, with reasons; the option named in a reason changes its bound."""
    from voxloop.steps.datasets import exclusions, find

    with opened(ctx) as ws:
        frozen = find(ws, name)
        found = exclusions(ws, frozen.id, reason=reason, reviewed=reviewed)
    if as_json:
        print_json(found)
        return
    empty = "nothing was left out" + (" for this reason" if reason or reviewed else "")
    if any(frozen.excluded.values()) and "imported" in frozen.filters:
        empty = "it was imported: what was left out is listed where it was frozen"
    table(
        ["utterance", "reason", "measured", "reviewed"],
        [[one.utterance, one.reason, one.detail, "yes" if one.reviewed else ""] for one in found],
        empty=empty,
    )


@dataset.command("list")
def dataset_list(ctx: typer.Context, as_json: Json = False) -> None:
    """List all datasets, oldest first."""
    from voxloop.steps.datasets import all_datasets

    with opened(ctx) as ws:
        found = all_datasets(ws)
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
    name: Name = None,
    plot: Annotated[Path | None, typer.Option(help="Draw a chart to this file: .png, .svg or .pdf.")] = None,
    as_json: Json = False,
) -> None:
    """Show a dataset: splits, speakers, languages, lengths, vocabulary, and what was left out and why."""
    from voxloop.steps.datasets import details

    with opened(ctx) as ws:
        found = details(ws, name)
    if plot:
        from voxloop.steps.datasets.picture import draw

        draw(found.summary, found.dataset, plot)
    if as_json:
        print_json(found)
        return
    _print_dataset(found.dataset, found.reviewed)
    _print_summary(found.summary)
    typer.echo("source files: " + "; ".join(f"{count} clips {name}" for name, count in found.encodings.items()))
    if plot:
        typer.echo(f"\npicture: {plot}")


def _print_summary(summary: Summary) -> None:
    from voxloop.records import SPLITS

    typer.echo("")
    table(
        ["split", "speakers", "recordings", "words", "vocabulary", "not in train"],
        [
            [
                split,
                one.speakers,
                one.recordings,
                one.words,
                one.vocabulary,
                percent(one.unseen / one.words if one.words else None),
            ]
            for split, one in summary.splits.items()
        ],
    )
    for title, hours in (("speaker", summary.speakers), ("language", summary.languages)):
        typer.echo("")
        listed = [
            [name, *(round(each[split] * 60, 2) for split in SPLITS), round(sum(each.values()) * 60, 2)]
            for name, each in hours.items()
        ]
        table([title, *(f"{split} min" for split in SPLITS), "all min"], listed[:MOST_SHOWN])
        if len(listed) > MOST_SHOWN:
            typer.echo(f"and {len(listed) - MOST_SHOWN} others; --json lists all")
    typer.echo("")
    lengths = [sum(one.lengths[bin] for one in summary.splits.values()) for bin in range(len(summary.lengths_s))]
    table(["seconds", "clips", ""], list(_histogram(summary.lengths_s, lengths)))
    typer.echo("")
    typer.echo(
        f"{summary.words} words, {summary.vocabulary} different, {summary.once} of them said once; most often: "
        + ", ".join(f"{word} {count}" for word, count in summary.frequent)
    )


def _histogram(edges: tuple[float, ...], counts: list[int]) -> Iterator[list[Any]]:
    """Bars as long as the counts, without the empty bins at both ends."""
    filled = [index for index, count in enumerate(counts) if count]
    for index in range(filled[0], filled[-1] + 1) if filled else ():
        upper = f" to {edges[index + 1]:g}" if index + 1 < len(edges) else " or more"
        bar = "█" * round(40 * counts[index] / max(counts)) or ("▏" if counts[index] else "")
        yield [f"{edges[index]:g}{upper}", counts[index], bar]


@dataset.command("diff")
def dataset_diff(
    ctx: typer.Context,
    before: Annotated[str, typer.Argument(help="A dataset's name or id.")],
    after: Annotated[
        str | None, typer.Argument(help="A dataset's name or id; without it, BEFORE is compared with its parent.")
    ] = None,
    change: Annotated[
        str | None, typer.Option(help="List only one kind of change: added, removed, text or moved.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare two datasets: what was added, removed, given another text, moved to another split."""
    from voxloop.steps.datasets import diff

    with opened(ctx) as ws:
        found = diff(ws, before, after, change=change)
    if as_json:
        print_json(found)
        return
    typer.echo(f"from {short(found.before)} to {short(found.after)}")
    for name, count in found.counts.items():
        by_split = {"added": found.added, "removed": found.removed}.get(name, {})
        told = ", ".join(f"{count} {split}" for split, count in by_split.items())
        typer.echo(f"{_CHANGED[name]}: {count}" + (f" ({told})" if told else ""))
    listed = found.differences
    shown = listed if change else listed[:MOST_SHOWN]
    if shown:
        typer.echo("")
        table(["change", "utterance", "before", "after"], [[d.change, d.utterance, d.before, d.after] for d in shown])
    if len(shown) < len(listed):
        typer.echo(f"and {len(listed) - len(shown)} more: --change added lists all of a kind, --json everything")


_CHANGED = {"added": "added", "removed": "removed", "text": "another text", "moved": "another split"}


@dataset.command("export")
def dataset_export(
    ctx: typer.Context,
    to: Annotated[str, typer.Option(help="Where to write: a folder, or a file://, s3://, gs:// or az:// URL.")],
    name: Name = None,
    format: Annotated[
        str, typer.Option(help="Format to write: jsonl (with WAV files), parquet, or shar (Lhotse).")
    ] = "jsonl",
    items: Annotated[int, typer.Option(help="Clips in each Parquet file or shard.", min=1)] = 1000,
    as_json: Json = False,
) -> None:
    """Export a dataset for other programs; run again after an interruption, it continues."""
    from voxloop.steps.datasets import export_dataset, find

    with opened(ctx) as ws, progress("export", "clips") as tell:
        made = export_dataset(ws, find(ws, name).id, to, format=format, items=items, progress=tell)
    if as_json:
        print_json(made)
        return
    typer.echo(f"{made.place}: {made.clips} clips in {made.files} files" + (", there already" if made.known else ""))


@dataset.command("import")
def dataset_import(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(help="Folder or URL of a finished export.")],
    name: Annotated[str | None, typer.Option(help="Name for the dataset here.", show_default="its own")] = None,
    as_json: Json = False,
) -> None:
    """Import an exported dataset: its clips, texts and splits, frozen as they were."""
    from voxloop.steps.datasets import import_dataset

    with opened(ctx) as ws, progress("import", "clips") as tell:
        made = import_dataset(ws, source, name=name, progress=tell)
    if as_json:
        print_json(made)
        return
    _print_dataset(made, 0)
    origin = made.filters.get("imported")
    if origin and origin != made.id:
        typer.echo(f"it was {short(origin)} where it came from: parts of recordings became recordings of their own")
