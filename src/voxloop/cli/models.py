"""model."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from voxloop.cli.evaluation import (
    DatasetName,
    ReportFile,
    SplitName,
    WithAudio,
    evaluate,
    print_comparison,
    print_evaluations,
)
from voxloop.cli.screen import By, Json, opened, percent, print_json, progress, short, table, when

model = typer.Typer(no_args_is_help=True, help="Models: list, show, compare, promote, rollback, history, export.")


class ModelFormat(StrEnum):
    transformers = "transformers"
    ctranslate2 = "ctranslate2"


def register(app: typer.Typer) -> None:
    app.add_typer(model, name="model")


@model.command("list")
def model_list(ctx: typer.Context, as_json: Json = False) -> None:
    """All models with what they were made of (base, run, dataset, clips), and which is champion."""
    import sqlalchemy as sa

    from voxloop.records import Dataset, Evaluation, Model, Run
    from voxloop.stores import tables

    with opened(ctx) as ws, ws.read() as reader:
        models = reader.all(Model)
        names: dict[str, list[str]] = {}
        for alias, id in reader.connection.execute(sa.select(tables.alias.c.name, tables.alias.c.model)):
            names.setdefault(id, []).append(alias)
        origins = {m.id: m.where for m in models if m.run is None}  # what has a name is shown by it
        measured = {e.model: e for e in reader.all(Evaluation, tables.evaluation.c.split == "test")}
        runs = {r.id: r for r in reader.all(Run)}
        datasets = {d.id: d for d in reader.all(Dataset)}
    made = {m.id: runs.get(m.run) if m.run else None for m in models}
    learnt = {id: datasets.get(run.dataset) if run else None for id, run in made.items()}
    if as_json:
        print_json(
            [
                {
                    "model": m,
                    "aliases": names.get(m.id, []),
                    "evaluation": measured.get(m.id),
                    "run": made[m.id],
                    "dataset": learnt[m.id],
                }
                for m in models
            ]
        )
        return
    for marked in models:
        if marked.forgotten:
            typer.echo(f"{short(marked.id)} learnt from speech that was forgotten since: it cannot unlearn it")
    table(
        ["model", "alias", "base", "run", "dataset", "learnt from", "test WER", "utterances"],
        [
            [
                origins.get(m.id) if m.where == "starter" else short(m.id),
                ", ".join(sorted(names.get(m.id, []))),
                None if m.run is None else origins.get(m.base, short(m.base)),
                f"{m.run} ({'LoRA' if m.kind == 'adapter' else m.kind})" if m.run else None,
                f"{dataset.name} {short(dataset.id)}" if dataset else None,
                f"{dataset.clips.get('train', 0)} clips, {60 * dataset.hours.get('train', 0):.1f} min"
                if dataset
                else None,
                percent(measured[m.id].scores["wer"]) if m.id in measured else None,
                measured[m.id].scores["utterances"] if m.id in measured else None,
            ]
            for m, dataset in ((m, learnt[m.id]) for m in models)
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
    from voxloop.models import base_model, model_folder
    from voxloop.records import Evaluation
    from voxloop.steps.gate.promotion import history
    from voxloop.stores import tables

    with opened(ctx) as ws:
        found = base_model(ws, name)
        with ws.read() as reader:
            evaluations = reader.all(Evaluation, tables.evaluation.c.model == found.id)
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
    dataset: DatasetName = None,
    report: ReportFile = None,
    audio: WithAudio = True,
    as_json: Json = False,
) -> None:
    """Two models on the same frozen test references: difference, slices, what got better and worse; nothing moves."""
    evaluate(
        ctx,
        challenger,
        dataset=dataset,
        split=SplitName.test,
        against=champion,
        report=report,
        audio=audio,
        as_json=as_json,
    )


@model.command("promote")
def model_promote(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="MODEL")],
    dataset: DatasetName = None,
    general: Annotated[
        str | None, typer.Option(help="A dataset on which it must not be worse, too: a name or id.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Move the alias by hand, whatever the verdict.")] = False,
    by: By = "cli",
    as_json: Json = False,
) -> None:
    """Make a model champion, if it is really better. Exit status 1 where it is not."""
    from voxloop.steps.gate.promotion import promote

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
        # The reasons stand above where there are any.
        typer.echo(outcome.message.partition(": ")[0] if outcome.comparison else outcome.message)
    if outcome.comparison and not outcome.moved:
        raise typer.Exit(1)


@model.command("rollback")
def model_rollback(ctx: typer.Context, by: By = "cli", as_json: Json = False) -> None:
    """Give the champion's place back to the model that held it before."""
    from voxloop.steps.gate.promotion import rollback

    with opened(ctx) as ws:
        move = rollback(ws, by=by)
    if as_json:
        print_json(move)
        return
    typer.echo(f"champion: {short(move.previous or 'none')} -> {short(move.model)}")


@model.command("history")
def model_history(ctx: typer.Context, as_json: Json = False) -> None:
    """Every movement of the champion with what it rested on, oldest first; nothing is ever taken out."""

    from voxloop.steps.gate.promotion import history

    with opened(ctx) as ws:
        moves = history(ws)
    if as_json:
        print_json(moves)
        return
    table(
        ["when", "alias", "from", "to", "how", "by", "WER", "on"],
        [
            [
                when(move.created),
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
    format: Annotated[
        ModelFormat, typer.Option(help="As transformers loads it, or as CTranslate2 and faster-whisper do.")
    ] = ModelFormat.transformers,
    compute_type: Annotated[
        str | None, typer.Option(help="Of ctranslate2: int8, float16, float32, ...; as set, where not given.")
    ] = None,
) -> None:
    """Copy a model's folder: weights, config and tokenizer; for CTranslate2 it is converted first."""
    import shutil

    from voxloop.errors import UsageError
    from voxloop.models import base_model, converted, engine, model_folder

    if folder.exists():
        raise UsageError(f"{folder} exists already: name a folder that does not")
    if compute_type and format is ModelFormat.transformers:
        raise UsageError("--compute-type says what CTranslate2 computes in: add --format ctranslate2")
    for_engine = "ctranslate2" if format is ModelFormat.ctranslate2 else None
    with opened(ctx, engine=for_engine, compute_type=compute_type) as ws:
        found = base_model(ws, name)
        source = (
            Path(model_folder(ws, found))
            if format is ModelFormat.transformers
            else converted(ws, found, engine(ws, found).partition("-")[2])
        )
        shutil.copytree(source, folder)
    typer.echo(folder)
