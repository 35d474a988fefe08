"""evaluate, model."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from voxloop.cli.screen import By, Json, opened, percent, print_json, progress, short, table

if TYPE_CHECKING:
    from voxloop.comparison import Comparison
    from voxloop.records import Evaluation

model = typer.Typer(no_args_is_help=True, help="Models: list, show, compare, promote, rollback, history, export.")


class SplitName(StrEnum):
    train = "train"
    val = "val"
    test = "test"


def register(app: typer.Typer) -> None:
    app.command()(evaluate)
    app.add_typer(model, name="model")


def evaluate(
    ctx: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="champion, a model's id, starter, a folder or a Hub id.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="A dataset's name or id; the newest, where none is given.")
    ] = None,
    split: Annotated[SplitName, typer.Option(help="Which split.")] = SplitName.test,
    against: Annotated[str | None, typer.Option(help="Compare with this model.")] = None,
    as_json: Json = False,
) -> None:
    """Measure a model on frozen references it has not learnt from."""
    from voxloop.comparison import compare
    from voxloop.evaluation import evaluate as measure

    with opened(ctx) as ws:
        with progress("evaluate", "s") as told:
            found = measure(ws, name, dataset=dataset, split=split.value, progress=told)
            other = measure(ws, against, dataset=dataset, split=split.value, progress=told) if against else None
        comparison = compare(ws, found, other) if other else None
    if as_json:
        print_json({"evaluation": found, "against": other, "comparison": comparison} if other else found)
        return
    print_evaluations([("model", found)] + ([("against", other)] if other else []))
    if comparison:
        print_comparison(comparison)


def print_evaluations(rows: list[tuple[str, Evaluation]]) -> None:
    """Scores of evaluations side by side."""

    def interval(scores: dict[str, Any]) -> str:
        return f"{100 * scores['wer_low']:.1f} to {100 * scores['wer_high']:.1f}"

    table(
        ["", "model", "WER", "95 % interval", "CER", "sub", "del", "ins", "words", "utterances"],
        [
            [
                name,
                short(e.model),
                percent(e.scores["wer"]),
                interval(e.scores),
                percent(e.scores["cer"]),
                e.scores["substitutions"],
                e.scores["deletions"],
                e.scores["insertions"],
                e.scores["words"],
                e.scores["utterances"],
            ]
            for name, e in rows
        ],
    )


def print_comparison(found: Comparison) -> None:
    """A verdict with its reasons."""
    typer.echo(f"verdict: {found.verdict}")
    for reason in found.reasons:
        typer.echo(f"  {reason}")


@model.command("list")
def model_list(ctx: typer.Context, as_json: Json = False) -> None:
    """All models with where they came from, and which is champion."""
    import sqlalchemy as sa

    from voxloop.records import Evaluation, Model
    from voxloop.stores import catalog

    with opened(ctx) as ws, ws.read() as reader:
        models = reader.all(Model)
        names: dict[str, list[str]] = {}
        for alias, id in reader.connection.execute(sa.select(catalog.alias.c.name, catalog.alias.c.model)):
            names.setdefault(id, []).append(alias)
        origins = {m.id: m.where for m in models if m.run is None}  # what has a name is shown by it
        measured = {e.model: e for e in reader.all(Evaluation, catalog.evaluation.c.split == "test")}
    if as_json:
        print_json([{"model": m, "aliases": names.get(m.id, []), "evaluation": measured.get(m.id)} for m in models])
        return
    for marked in models:
        if marked.forgotten:
            typer.echo(f"{short(marked.id)} learnt from speech that was forgotten since: it cannot unlearn it")
    table(
        ["model", "alias", "kind", "base", "run", "test WER", "utterances"],
        [
            [
                short(m.id),
                ", ".join(sorted(names.get(m.id, []))),
                m.kind,
                origins.get(m.base, short(m.base)),
                m.run,
                percent(measured[m.id].scores["wer"]) if m.id in measured else None,
                measured[m.id].scores["utterances"] if m.id in measured else None,
            ]
            for m in models
        ],
        empty="no model yet: `voxloop train` makes one",
    )
    if len({(e.dataset, e.normaliser) for e in measured.values()}) > 1:
        typer.echo(
            "measured on different datasets or by different normalisers: `voxloop model compare` holds two together"
        )


@model.command("show")
def model_show(ctx: typer.Context, name: str, as_json: Json = False) -> None:
    """One model: its files, its run, what was measured, what was decided."""
    from voxloop.promotion import history
    from voxloop.records import Evaluation
    from voxloop.stores import catalog
    from voxloop.transcripts import base_model, model_folder

    with opened(ctx) as ws:
        found = base_model(ws, name)
        with ws.read() as reader:
            evaluations = reader.all(Evaluation, catalog.evaluation.c.model == found.id)
        moves = [move for move in history(ws) if found.id in (move.model, move.previous)]
        folder = model_folder(ws, found)
    if as_json:
        print_json({"model": found, "folder": folder, "evaluations": evaluations, "promotions": moves})
        return
    for label, text in (
        ("model", found.id),
        ("family", f"{found.family}, {found.kind}"),
        ("base", found.base),
        ("run", found.run or "–"),
        ("folder", folder),
    ):
        typer.echo(f"{label:<9}{text}")
    if evaluations:
        print_evaluations([(f"{short(e.dataset)} {e.split}", e) for e in evaluations])
    for move in moves:
        typer.echo(
            f"{move.alias}: {short(move.previous or 'none')} -> {short(move.model)} ({move.verdict}, by {move.by})"
        )


@model.command("compare")
def model_compare(
    ctx: typer.Context,
    challenger: str,
    champion: str,
    dataset: Annotated[
        str | None, typer.Option(help="A dataset's name or id; the newest, where none is given.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Two models on the same frozen test references, with the verdict; nothing moves."""
    evaluate(ctx, challenger, dataset=dataset, split=SplitName.test, against=champion, as_json=as_json)


@model.command("promote")
def model_promote(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="MODEL")],
    dataset: Annotated[
        str | None, typer.Option(help="A dataset's name or id; the newest, where none is given.")
    ] = None,
    general: Annotated[
        str | None, typer.Option(help="A dataset on which it must not be worse, too: a name or id.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Move the alias by hand, whatever the verdict.")] = False,
    by: By = "cli",
    as_json: Json = False,
) -> None:
    """Make a model champion, if it is really better. Exit status 1 where it is not."""
    from voxloop.promotion import promote

    with opened(ctx) as ws, progress("evaluate", "s") as told:
        outcome = promote(ws, name, dataset=dataset, general=general, by=by, force=force, progress=told)
    if as_json:
        print_json(outcome)
    else:
        if outcome.comparison:
            c = outcome.comparison
            typer.echo(
                f"WER {percent(c.wer_before)} -> {percent(c.wer_after)} on {c.utterances} unseen utterances "
                f"({c.words} words)"
            )
            print_comparison(c)
        typer.echo(outcome.message)
    if outcome.comparison and not outcome.moved:
        raise typer.Exit(1)


@model.command("rollback")
def model_rollback(ctx: typer.Context, by: By = "cli", as_json: Json = False) -> None:
    """Give the champion's place back to the model that held it before."""
    from voxloop.promotion import rollback

    with opened(ctx) as ws:
        move = rollback(ws, by=by)
    if as_json:
        print_json(move)
        return
    typer.echo(f"champion: {short(move.previous or 'none')} -> {short(move.model)}")


@model.command("history")
def model_history(ctx: typer.Context, as_json: Json = False) -> None:
    """Every movement of the champion with what it rested on, oldest first; nothing is ever taken out."""
    import time

    from voxloop.promotion import history

    with opened(ctx) as ws:
        moves = history(ws)
    if as_json:
        print_json(moves)
        return
    table(
        ["when", "alias", "from", "to", "how", "by", "WER", "on"],
        [
            [
                time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(move.created)),
                move.alias,
                short(move.previous) if move.previous else None,
                short(move.model),
                move.verdict,
                move.by,
                f"{percent(move.evidence['wer_before'])} -> {percent(move.evidence['wer_after'])}"
                if "wer_after" in move.evidence
                else move.evidence.get("missing"),
                f"{move.evidence['utterances']} utterances" if "utterances" in move.evidence else None,
            ]
            for move in moves
        ],
        empty="no model is champion yet: `voxloop model promote MODEL` makes one, on evidence",
    )


@model.command("export")
def model_export(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="MODEL")],
    folder: Annotated[Path, typer.Argument(help="Where to; it must not exist yet.")],
) -> None:
    """Copy a model's folder: safetensors, config and tokenizer, as transformers loads it."""
    import shutil

    from voxloop.errors import UsageError
    from voxloop.transcripts import base_model, model_folder

    if folder.exists():
        raise UsageError(f"{folder} exists already: name a folder that does not")
    with opened(ctx) as ws:
        shutil.copytree(model_folder(ws, base_model(ws, name)), folder)
    typer.echo(folder)
