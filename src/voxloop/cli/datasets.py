"""dataset build, list, show, exclusions, diff, export, import, rename, delete."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from voxloop.cli.screen import (
    By,
    Json,
    NewName,
    Yes,
    confirm,
    counted,
    opened,
    percent,
    print_json,
    progress,
    short,
    table,
    told_of_deletion,
    when,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from voxloop.records import Dataset
    from voxloop.steps.datasets import Advice, Summary

dataset = typer.Typer(
    no_args_is_help=True, help="Build, list, show, compare, export, import, rename and delete frozen datasets."
)

MOST_SHOWN = 20  # rows of a table; --json has all

Name = Annotated[str | None, typer.Argument(help="Dataset name or id.", show_default="the newest dataset")]


def register(app: typer.Typer) -> None:
    app.add_typer(dataset, name="dataset")


@dataset.command("build")
def dataset_build(
    ctx: typer.Context,
    name: Annotated[
        str | None,
        typer.Option(help="Dataset name; building it again creates its next version.", show_default="default"),
    ] = None,
    ratios: Annotated[
        str | None,
        typer.Option(
            help="Train/val/test shares that add up to 1, such as 0.8/0.1/0.1.",
            show_default="the ratios setting, or derived from the number of clips",
        ),
    ] = None,
    machine_text: Annotated[
        float | None,
        typer.Option(
            help="Also train on machine transcripts of at least this confidence, from 0 to 1.",
            min=0,
            max=1,
            show_default="reviewed transcripts only",
        ),
    ] = None,
    speaker: Annotated[
        list[str] | None, typer.Option(help="Only clips of this speaker; repeatable.", show_default="all")
    ] = None,
    language: Annotated[
        list[str] | None,
        typer.Option(help="Only clips in this language, such as en or English; repeatable.", show_default="all"),
    ] = None,
    train_limit: Annotated[
        int | None, typer.Option(help="Maximum number of training clips.", min=1, show_default="no limit")
    ] = None,
    fresh_test: Annotated[
        bool,
        typer.Option(
            "--fresh-test",
            help="Draw new test and validation clips from training clips that no model was trained on.",
        ),
    ] = False,
    restore_style: Annotated[
        bool,
        typer.Option(
            "--restore-style",
            help="For languages whose transcripts have neither capitals nor punctuation, copy both from the "
            "recogniser's output where the words match.",
        ),
    ] = False,
    min_seconds: Annotated[
        float | None,
        typer.Option(
            help="Exclude clips shorter than this, in seconds.",
            show_default="the min_clip_s setting, or derived from the clips",
        ),
    ] = None,
    max_seconds: Annotated[
        float | None,
        typer.Option(help="Exclude clips longer than this, in seconds.", show_default="the max_clip_s setting"),
    ] = None,
    min_snr_db: Annotated[
        float | None,
        typer.Option(help="Exclude clips with an SNR below this, in dB.", show_default="the min_snr_db setting"),
    ] = None,
    max_characters_per_second: Annotated[
        float | None,
        typer.Option(
            help="Exclude transcripts with more characters per second than this, unless a person confirmed them.",
            show_default="40",
        ),
    ] = None,
    max_label_tokens: Annotated[
        int | None,
        typer.Option(
            help="Exclude transcripts with more tokens than this.",
            show_default="the base model's limit",
        ),
    ] = None,
    keep_outliers: Annotated[
        bool,
        typer.Option(
            "--keep-outliers",
            help="Keep transcripts that are far too long or too short for their audio, compared with the speaker's "
            "other clips.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Freeze the reviewed utterances as a dataset with train, val and test splits."""
    from dataclasses import replace

    from voxloop.maintenance.naming import rename_dataset
    from voxloop.records import plain
    from voxloop.settings import parse_ratios
    from voxloop.speech.languages import language_code
    from voxloop.steps.datasets import Filters, advise, build, exclusions

    given: dict[str, float | int | None] = {
        "min_seconds": min_seconds,
        "max_seconds": max_seconds,
        "min_snr_db": min_snr_db,
        "max_characters_per_second": max_characters_per_second,
        "max_label_tokens": max_label_tokens,
        "keep_outliers": keep_outliers,
    }
    with opened(ctx) as ws:
        changed: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        made = build(
            ws,
            name=name or "default",
            ratios=parse_ratios(ratios) if ratios else None,
            machine_text=machine_text,
            speakers=speaker,
            languages=[str(language_code(one)) for one in language] if language else None,
            train_limit=train_limit,
            filters=replace(Filters.of(ws.settings), **changed),
            fresh_test=fresh_test,
            restore_style=restore_style,
        )
        before = made.name
        if name and made.name != name:  # the same content was frozen before, under another name
            made = rename_dataset(ws, made.id, name)
        reviewed = len(exclusions(ws, made.id, reviewed=True))
        advice = advise(ws, made.id)
    if as_json:
        print_json({**plain(made), "advice": advice})
        return
    if name and before != name:
        typer.echo(f"Dataset {before} already holds exactly these clips and transcripts. It is now called {name}:")
    _print_dataset(made, reviewed)
    _print_advice(made, advice)


def _print_dataset(made: Dataset, reviewed: int) -> None:
    typer.echo(
        f"Dataset {made.name} ({short(made.id)})" + (f", previous version {short(made.parent)}" if made.parent else "")
    )
    table(
        ["split", "clips", "minutes"],
        [[split, made.clips[split], round(made.hours[split] * 60, 2)] for split in made.clips],
    )
    if made.forgotten:
        typer.echo(f"Forgotten since it was frozen: {counted(made.forgotten, 'clip')}.")
    for reason, count in sorted(made.excluded.items(), key=lambda item: -item[1]):
        typer.echo(f"Excluded: {count:,} {reason}")
    if reviewed:
        typer.echo(f"  {reviewed:,} of them with a transcript that a person wrote or accepted (list: --reviewed)")
    if any(made.excluded.values()):
        typer.echo(f"List: voxloop dataset exclusions {short(made.id)}")


def _print_advice(made: Dataset, advice: Advice) -> None:
    """Print the transcripts' style, the derived bounds and the warnings."""
    if "min_seconds" in made.filters.get("derived", ()):
        typer.echo(
            f"Minimum clip length: {made.filters['min_seconds']:g} s, derived from the clips "
            "(set it with --min-seconds)"
        )
    for language, style in advice.styles.items():
        cased = "no case in this script" if style.cased is None else f"{percent(style.cased)} with capitals"
        told = f"Transcripts in {language}: {cased}, {percent(style.punctuated)} with punctuation"
        if style.plain and not advice.restored:
            told += " (--restore-style copies both from the recogniser's output)"
        typer.echo(told)
    if advice.restored:
        typer.echo(
            f"Copied capitals and punctuation from the recogniser into {counted(advice.restored, 'transcript')}; "
            "references are unchanged."
        )
    for warning in advice.warnings:
        typer.echo(f"Warning: {warning.message}" + (f"\n  What to do: {warning.remedy}." if warning.remedy else ""))


@dataset.command("exclusions")
def dataset_exclusions(
    ctx: typer.Context,
    name: Name = None,
    reason: Annotated[
        str | None, typer.Option(help="Only reasons that contain this text; case is ignored.", show_default="all")
    ] = None,
    reviewed: Annotated[
        bool, typer.Option("--reviewed", help="Only utterances whose transcript a person wrote or accepted.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the utterances excluded from a dataset, with the reasons.

    Change a bound with the option named in the reason. Show an utterance with `voxloop review show NUMBER`.
    """
    from voxloop.steps.datasets import exclusions, find, origins

    with opened(ctx) as ws:
        frozen = find(ws, name)
        found = exclusions(ws, frozen.id, reason=reason, reviewed=reviewed)
        where = origins(ws, [one.utterance for one in found])
    if as_json:
        print_json(found)
        return
    empty = "No excluded utterance matches." if reason or reviewed else "No utterances were excluded."
    if any(frozen.excluded.values()) and "imported" in frozen.filters:
        empty = "This dataset was imported. Its exclusions are listed only in the workspace that built it."
    table(
        ["number", "file", "from", "reason", "measured", "reviewed"],
        [
            [
                at.number if at else None,
                at.file if at else short(one.utterance),
                f"{at.start_s:.1f} s" if at else None,
                one.reason,
                one.detail,
                "yes" if one.reviewed else "",
            ]
            for one in found
            for at in [where.get(one.utterance)]
        ],
        empty=empty,
    )


@dataset.command("list")
def dataset_list(ctx: typer.Context, as_json: Json = False) -> None:
    """List all datasets, oldest first."""
    from voxloop.records import SPLITS
    from voxloop.steps.datasets import all_datasets

    with opened(ctx) as ws:
        found = all_datasets(ws)
    if as_json:
        print_json(found)
        return
    table(
        ["name", "dataset", "built", "train", "val", "test", "minutes"],
        [
            [d.name, short(d.id), when(d.created)[:16], *(d.clips[s] for s in SPLITS), 60 * sum(d.hours.values())]
            for d in found
        ],
        empty="There are no datasets yet; next: voxloop dataset build",
    )


@dataset.command("show")
def dataset_show(
    ctx: typer.Context,
    name: Name = None,
    plot: Annotated[
        Path | None, typer.Option(help="File to draw a chart to: .png, .svg or .pdf.", show_default="no chart")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show a dataset's splits, speakers, languages, clip lengths, vocabulary, warnings and exclusions."""
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
    _print_advice(found.dataset, found.advice)
    _print_summary(found.summary)
    typer.echo(
        "Source files: " + "; ".join(f"{counted(count, 'clip')} {name}" for name, count in found.encodings.items())
    )
    if plot:
        typer.echo(f"\nChart: {plot}")


def _print_summary(summary: Summary) -> None:
    from voxloop.records import SPLITS

    typer.echo("")
    table(
        ["split", "speakers", "recordings", "words", "vocabulary", "OOV rate", "seen clips"],
        [
            [
                split,
                one.speakers,
                one.recordings,
                one.words,
                one.vocabulary,
                percent(one.unseen / one.words if one.words else None),
                None if split == "train" else one.heard,
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
        table([title, *(f"{split} min" for split in SPLITS), "total min"], listed[:MOST_SHOWN])
        if len(listed) > MOST_SHOWN:
            typer.echo(f"... and {len(listed) - MOST_SHOWN:,} more; --json lists all")
    typer.echo("")
    lengths = [sum(one.lengths[bin] for one in summary.splits.values()) for bin in range(len(summary.lengths_s))]
    table(["seconds", "clips", ""], list(_histogram(summary.lengths_s, lengths)))
    typer.echo("")
    typer.echo(
        f"{counted(summary.words, 'word')}; vocabulary {summary.vocabulary:,}, of which {summary.once:,} occur once."
    )
    typer.echo("Most frequent: " + ", ".join(f"{word} ({count:,})" for word, count in summary.frequent))


def _histogram(edges: tuple[float, ...], counts: list[int]) -> Iterator[list[Any]]:
    """Bars as long as the counts, without the empty bins at both ends."""
    filled = [index for index, count in enumerate(counts) if count]
    for index in range(filled[0], filled[-1] + 1) if filled else ():
        upper = f" to {edges[index + 1]:g}" if index + 1 < len(edges) else " or more"
        bar = "█" * round(36 * counts[index] / max(counts)) or ("▏" if counts[index] else "")
        yield [f"{edges[index]:g}{upper}", counts[index], bar]


@dataset.command("diff")
def dataset_diff(
    ctx: typer.Context,
    before: Annotated[str, typer.Argument(help="Dataset name or id.")],
    after: Annotated[
        str | None,
        typer.Argument(
            help="Dataset name or id to compare with BEFORE.", show_default="compare BEFORE with its previous version"
        ),
    ] = None,
    change: Annotated[
        str | None,
        typer.Option(help="Kind of change to list: added, removed, text or moved.", show_default="all kinds"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare two datasets: clips added, clips removed, transcripts changed, clips moved to another split."""
    from voxloop.steps.datasets import diff

    with opened(ctx) as ws:
        found = diff(ws, before, after, change=change)
    if as_json:
        print_json(found)
        return
    typer.echo(f"From {short(found.before)} to {short(found.after)}")
    for name, count in found.counts.items():
        by_split = {"added": found.added, "removed": found.removed}.get(name, {})
        told = ", ".join(f"{in_split:,} {split}" for split, in_split in by_split.items())
        typer.echo(f"{_CHANGED[name]}: {count:,}" + (f" ({told})" if told else ""))
    listed = found.differences
    shown = listed if change else listed[:MOST_SHOWN]
    if shown:
        typer.echo("")
        table(["change", "utterance", "before", "after"], [[d.change, d.utterance, d.before, d.after] for d in shown])
    if len(shown) < len(listed):
        typer.echo(
            f"... and {len(listed) - len(shown):,} more; --change KIND lists all of one kind, --json lists everything"
        )


_CHANGED = {"added": "added", "removed": "removed", "text": "transcript changed", "moved": "split changed"}


@dataset.command("export")
def dataset_export(
    ctx: typer.Context,
    to: Annotated[str, typer.Option(help="Folder to write to, or a file://, s3://, gs:// or az:// URL.")],
    name: Name = None,
    format: Annotated[
        str,
        typer.Option(
            help="Output format: jsonl (with WAV files), audiofolder (for Hugging Face datasets), parquet, or shar "
            "(Lhotse)."
        ),
    ] = "jsonl",
    file_names: Annotated[
        bool,
        typer.Option("--file-names/--no-file-names", help="Include the source file name of each clip."),
    ] = True,
    items: Annotated[int, typer.Option(help="Number of clips per Parquet file or shard.", min=1)] = 1000,
    publish: Annotated[
        bool,
        typer.Option("--publish", help="Refuse unless every speaker has consented to the publication of audio."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Export a dataset for other programs; an interrupted export continues when run again."""
    from voxloop.steps.datasets import export_dataset, find

    with opened(ctx) as ws, progress("export", "clips") as tell:
        made = export_dataset(
            ws,
            find(ws, name).id,
            to,
            format=format,
            items=items,
            file_names=file_names,
            publish=publish,
            progress=tell,
        )
    if as_json:
        print_json(made)
        return
    typer.echo(
        f"{made.place}: {counted(made.clips, 'clip')} in {counted(made.files, 'file')}"
        + (" (already complete)" if made.known else "")
    )


@dataset.command("import")
def dataset_import(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(help="Folder or URL of a complete export.")],
    name: Annotated[
        str | None, typer.Option(help="Name of the dataset in this workspace.", show_default="its own name")
    ] = None,
    as_json: Json = False,
) -> None:
    """Import an exported dataset with its clips, transcripts and splits."""
    from voxloop.steps.datasets import import_dataset

    with opened(ctx) as ws, progress("import", "clips") as tell:
        made = import_dataset(ws, source, name=name, progress=tell)
    if as_json:
        print_json(made)
        return
    _print_dataset(made, 0)
    origin = made.filters.get("imported")
    if origin and origin != made.id:
        typer.echo(
            f"Its original id was {short(origin)}. The id changed because clips cut from a recording become separate "
            "recordings here."
        )


@dataset.command("rename")
def dataset_rename(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="DATASET", help="Dataset name or id.")],
    new: NewName,
    by: By = "cli",
    as_json: Json = False,
) -> None:
    """Rename a dataset."""
    from voxloop.maintenance.naming import rename_dataset

    with opened(ctx) as ws:
        found = rename_dataset(ws, name, new, by=by)
    if as_json:
        print_json(found)
        return
    typer.echo(f"{short(found.id)} is now called {found.name}")


@dataset.command("delete")
def dataset_delete(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="DATASET", help="Dataset name or id.")],
    yes: Yes = False,
    by: By = "cli",
    as_json: Json = False,
) -> None:
    """Delete a dataset that no run used, with its evaluations; keeps recordings and transcripts."""
    from voxloop.maintenance.removal import delete_dataset

    with opened(ctx) as ws:
        confirm(f"Delete dataset {name} permanently?", yes)
        done = delete_dataset(ws, name, by=by)
    print_json(done) if as_json else told_of_deletion(done)
