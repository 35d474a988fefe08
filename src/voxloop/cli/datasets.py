"""dataset build, list, show, exclusions, export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from voxloop.cli.screen import Json, opened, print_json, short, table

if TYPE_CHECKING:
    from voxloop.records import Dataset
    from voxloop.workspace import Workspace

dataset = typer.Typer(no_args_is_help=True, help="Frozen datasets: build, list, show, what was left out, export.")

Name = Annotated[str | None, typer.Argument(help="A name or an id; the newest, where none is given.")]


def register(app: typer.Typer) -> None:
    app.add_typer(dataset, name="dataset")


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
    min_seconds: Annotated[float | None, typer.Option(help="Shorter clips stay out. [default: 0.5]")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="Longer clips stay out. [default: 30]")] = None,
    min_snr_db: Annotated[float | None, typer.Option(help="Noisier clips stay out. [default: 5]")] = None,
    max_characters_per_second: Annotated[
        float | None, typer.Option(help="Texts longer for their audio stay out. [default: 40]")
    ] = None,
    max_label_tokens: Annotated[
        int | None, typer.Option(help="Texts longer than a model can write stay out. [default: 448]")
    ] = None,
    keep_outliers: Annotated[
        bool, typer.Option("--keep-outliers", help="Keep texts far too long or short beside the others.")
    ] = False,
    keep_mismatched: Annotated[
        bool, typer.Option("--keep-mismatched", help="Keep given texts that a reliable model heard quite differently.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Freeze what has been corrected so far, split by speaker into train, val and test."""
    from dataclasses import replace

    from voxloop.datasets import Filters, build
    from voxloop.settings import parse_ratios

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
            languages=language,
            train_limit=train_limit,
            filters=replace(Filters.of(ws.settings), **changed),
        )
        reviewed = _reviewed(ws, made)
    print_json(made) if as_json else _print_dataset(made, reviewed)


def _reviewed(ws: Workspace, made: Dataset) -> int:
    """How many utterances were left out although a person had written or accepted their text."""
    from voxloop.datasets import exclusions

    return sum(one.reviewed for one in exclusions(ws, made.id))


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
    if made.excluded:
        typer.echo(f"which: `voxloop dataset exclusions {short(made.id)}`")
    if reviewed:
        typer.echo(f"although a person had written or accepted the text: {reviewed} (`--reviewed` lists them)")


@dataset.command("exclusions")
def dataset_exclusions(
    ctx: typer.Context,
    name: Name = None,
    reason: Annotated[str | None, typer.Option(help="Only reasons that hold this text.")] = None,
    reviewed: Annotated[
        bool, typer.Option("--reviewed", help="Only those whose text a person had written or accepted.")
    ] = False,
    as_json: Json = False,
) -> None:
    """What was left out of a dataset, each with its reason; an option named in a reason changes its bound."""
    from voxloop.datasets import exclusions, find

    with opened(ctx) as ws:
        found = exclusions(ws, find(ws, name).id, reason=reason)
    listed = [one for one in found if one.reviewed or not reviewed]
    if as_json:
        print_json(listed)
        return
    table(
        ["utterance", "reason", "measured", "reviewed"],
        [[one.utterance, one.reason, one.detail, "yes" if one.reviewed else ""] for one in listed],
        empty="nothing was left out" + (" for this reason" if reason or reviewed else ""),
    )


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
    name: Name = None,
    as_json: Json = False,
) -> None:
    """One dataset: its splits, and what was left out and why."""
    from voxloop.datasets import find

    with opened(ctx) as ws:
        found = find(ws, name)
        reviewed = _reviewed(ws, found)
    print_json(found) if as_json else _print_dataset(found, reviewed)


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
