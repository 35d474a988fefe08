"""dataset build, list, show, exclusions, diff, export, import, rename, delete."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from voxloop.cli.screen import (
    By,
    Json,
    Yes,
    confirm,
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
    no_args_is_help=True, help="Frozen datasets: build, list, show, compare, export, import, rename, delete."
)

MOST_SHOWN = 20  # rows of a table; --json has all

Name = Annotated[str | None, typer.Argument(help="A dataset's name or id.", show_default="the newest")]


def register(app: typer.Typer) -> None:
    app.add_typer(dataset, name="dataset")


@dataset.command("build")
def dataset_build(
    ctx: typer.Context,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the dataset; building it again makes its next version.", show_default="default"),
    ] = None,
    ratios: Annotated[
        str | None,
        typer.Option(
            help="Shares of train/val/test, such as 0.8/0.1/0.1.",
            show_default="the setting ratios, else by the number of clips",
        ),
    ] = None,
    machine_text: Annotated[
        float | None,
        typer.Option(help="Also train on machine text of at least this confidence, from 0 to 1.", min=0, max=1),
    ] = None,
    speaker: Annotated[list[str] | None, typer.Option(help="Only this speaker; repeatable.")] = None,
    language: Annotated[list[str] | None, typer.Option(help="Only this language (ISO 639-1); repeatable.")] = None,
    train_limit: Annotated[int | None, typer.Option(help="Take at most this many training clips.", min=1)] = None,
    fresh_test: Annotated[
        bool,
        typer.Option(
            "--fresh-test",
            help="Draw new test and validation speech from training clips that no model has been trained on.",
        ),
    ] = False,
    restore_style: Annotated[
        bool,
        typer.Option(
            "--restore-style",
            help="Where a language's texts have neither capitals nor punctuation, take both from the recogniser's "
            "text, for the words that agree.",
        ),
    ] = False,
    min_seconds: Annotated[
        float | None,
        typer.Option(
            help="Leave out clips shorter than this, in seconds.",
            show_default="the setting min_clip_s, else derived from the clips",
        ),
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
        typer.Option(
            help="Leave out texts with more characters per second than this, unless a person confirmed them.",
            show_default="40",
        ),
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
        typer.Option(
            "--keep-outliers",
            help="Keep texts that are far too long or too short for their audio, compared with the speaker's others.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Freeze what has been reviewed so far, split by speaker into train, val and test."""
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
        if name and made.name != name:  # the same content, frozen before under another name
            made = rename_dataset(ws, made.id, name)
        reviewed = len(exclusions(ws, made.id, reviewed=True))
        advice = advise(ws, made.id)
    if as_json:
        print_json({**plain(made), "advice": advice})
        return
    if name and before != name:
        typer.echo(f"The same clips and texts were frozen before, as {before}. That dataset is now called {name}:")
    _print_dataset(made, reviewed)
    _print_advice(made, advice)


def _print_dataset(made: Dataset, reviewed: int) -> None:
    typer.echo(
        f"Dataset {made.name} ({short(made.id)})" + (f", successor of {short(made.parent)}" if made.parent else "")
    )
    table(
        ["split", "clips", "minutes"],
        [[split, made.clips[split], round(made.hours[split] * 60, 2)] for split in made.clips],
    )
    if made.forgotten:
        typer.echo(f"{made.forgotten} of its clips were forgotten since it was frozen.")
    for reason, count in sorted(made.excluded.items(), key=lambda item: -item[1]):
        typer.echo(f"Left out: {count} {reason}")
    if reviewed:
        typer.echo(f"  {reviewed} of them with a text that a person wrote or accepted (--reviewed lists these)")
    if any(made.excluded.values()):
        typer.echo(f"List them: voxloop dataset exclusions {short(made.id)}")


def _print_advice(made: Dataset, advice: Advice) -> None:
    """How the texts are written, what was derived, and what the dataset lacks."""
    if "min_seconds" in made.filters.get("derived", ()):
        typer.echo(
            f"Shortest clip taken: {made.filters['min_seconds']:g} s, by the length of the others "
            "(--min-seconds sets it)"
        )
    for language, style in advice.styles.items():
        cased = "no case in this script" if style.cased is None else f"{style.cased:.0%} with capitals"
        told = f"Texts in {language}: {cased}, {style.punctuated:.0%} with punctuation"
        if style.plain and not advice.restored:
            told += " (--restore-style takes them from the recogniser's text)"
        typer.echo(told)
    if advice.restored:
        typer.echo(
            f"{advice.restored} texts got capitals and punctuation from the recogniser; references are unchanged."
        )
    for warning in advice.warnings:
        typer.echo(f"Warning: {warning.message}" + (f"\n  What helps: {warning.remedy}." if warning.remedy else ""))


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
    """List the utterances that were left out of a dataset, with the reasons.

    The option named in a reason changes the bound. `voxloop review show NUMBER` shows an utterance.
    """
    from voxloop.steps.datasets import exclusions, find, origins

    with opened(ctx) as ws:
        frozen = find(ws, name)
        found = exclusions(ws, frozen.id, reason=reason, reviewed=reviewed)
        where = origins(ws, [one.utterance for one in found])
    if as_json:
        print_json(found)
        return
    empty = "Nothing was left out" + (" for this reason." if reason or reviewed else ".")
    if any(frozen.excluded.values()) and "imported" in frozen.filters:
        empty = "This dataset was imported: the list of what was left out is where it was built."
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
        empty="No dataset yet: `voxloop dataset build` freezes one.",
    )


@dataset.command("show")
def dataset_show(
    ctx: typer.Context,
    name: Name = None,
    plot: Annotated[Path | None, typer.Option(help="Draw a chart to this file: .png, .svg or .pdf.")] = None,
    as_json: Json = False,
) -> None:
    """Show a dataset: splits, speakers, languages, lengths, vocabulary, what it lacks, and what was left out."""
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
    typer.echo("source files: " + "; ".join(f"{count} clips {name}" for name, count in found.encodings.items()))
    if plot:
        typer.echo(f"\nPicture: {plot}")


def _print_summary(summary: Summary) -> None:
    from voxloop.records import SPLITS

    typer.echo("")
    table(
        ["split", "speakers", "recordings", "words", "vocabulary", "not in train", "heard"],
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
        table([title, *(f"{split} min" for split in SPLITS), "all min"], listed[:MOST_SHOWN])
        if len(listed) > MOST_SHOWN:
            typer.echo(f"… and {len(listed) - MOST_SHOWN} more (--json lists all)")
    typer.echo("")
    lengths = [sum(one.lengths[bin] for one in summary.splits.values()) for bin in range(len(summary.lengths_s))]
    table(["seconds", "clips", ""], list(_histogram(summary.lengths_s, lengths)))
    typer.echo("")
    typer.echo(f"{summary.words} words, {summary.vocabulary} different, {summary.once} of them said once.")
    typer.echo("Most frequent: " + ", ".join(f"{word} ({count})" for word, count in summary.frequent))


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
    typer.echo(f"From {short(found.before)} to {short(found.after)}")
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
        typer.echo(f"… and {len(listed) - len(shown)} more (--change KIND lists all of one kind, --json everything)")


_CHANGED = {"added": "added", "removed": "removed", "text": "another text", "moved": "another split"}


@dataset.command("export")
def dataset_export(
    ctx: typer.Context,
    to: Annotated[str, typer.Option(help="Where to write: a folder, or a file://, s3://, gs:// or az:// URL.")],
    name: Name = None,
    format: Annotated[
        str,
        typer.Option(
            help="Format to write: jsonl (with WAV files), audiofolder (for Hugging Face datasets), parquet, or shar "
            "(Lhotse)."
        ),
    ] = "jsonl",
    file_names: Annotated[
        bool,
        typer.Option("--file-names/--no-file-names", help="Name the file that each clip came from."),
    ] = True,
    items: Annotated[int, typer.Option(help="Clips in each Parquet file or shard.", min=1)] = 1000,
    as_json: Json = False,
) -> None:
    """Export a dataset for other programs; run again after an interruption, it continues."""
    from voxloop.steps.datasets import export_dataset, find

    with opened(ctx) as ws, progress("export", "clips") as tell:
        made = export_dataset(
            ws, find(ws, name).id, to, format=format, items=items, file_names=file_names, progress=tell
        )
    if as_json:
        print_json(made)
        return
    typer.echo(
        f"{made.place}: {made.clips} clips in {made.files} files" + (" (was complete already)" if made.known else "")
    )


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
        typer.echo(
            f"Its id was {short(origin)} where it came from: parts of recordings are recordings of their own here."
        )


@dataset.command("rename")
def dataset_rename(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="DATASET", help="A dataset's name or id.")],
    new: Annotated[str, typer.Argument(metavar="NAME", help="Letters, digits, dots, hyphens and underscores.")],
    by: By = "cli",
    as_json: Json = False,
) -> None:
    """Give a dataset another name."""
    from voxloop.maintenance.naming import rename_dataset

    with opened(ctx) as ws:
        found = rename_dataset(ws, name, new, by=by)
    if as_json:
        print_json(found)
        return
    typer.echo(f"{short(found.id)} is called {found.name}")


@dataset.command("delete")
def dataset_delete(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="DATASET", help="A dataset's name or id.")],
    yes: Yes = False,
    by: By = "cli",
    as_json: Json = False,
) -> None:
    """Delete a dataset that no run learnt from, with the evaluations on it; recordings and texts stay."""
    from voxloop.maintenance.removal import delete_dataset

    with opened(ctx) as ws:
        confirm(f"Delete the dataset {name} for good?", yes)
        done = delete_dataset(ws, name, by=by)
    print_json(done) if as_json else told_of_deletion(done)
