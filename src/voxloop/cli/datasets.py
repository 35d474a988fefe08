"""dataset build, list, show, export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voxloop.cli.screen import Json, opened, print_json, short, table

if TYPE_CHECKING:
    from voxloop.records import Dataset

dataset = typer.Typer(no_args_is_help=True, help="Frozen datasets: build, list, show, export.")


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
    if made.forgotten:
        typer.echo(f"forgotten: {made.forgotten} utterances were removed since it was frozen")
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
