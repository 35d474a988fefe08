"""train, run, evaluate, model."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from voxloop.cli.screen import By, Json, opened, percent, print_json, progress, short, table

if TYPE_CHECKING:
    from collections.abc import Callable

    from voxloop.comparison import Comparison
    from voxloop.records import Evaluation, Run

run = typer.Typer(no_args_is_help=True, help="Training runs: list, show, logs.")
model = typer.Typer(no_args_is_help=True, help="Models: list, show, compare, promote, rollback, history, export.")


class Method(StrEnum):
    lora = "lora"
    full = "full"


class SplitName(StrEnum):
    train = "train"
    val = "val"
    test = "test"


def register(app: typer.Typer) -> None:
    app.command()(train)
    app.add_typer(run, name="run")
    app.command()(evaluate)
    app.add_typer(model, name="model")


def training_lines(say: Callable[[str], None]) -> Callable[[dict[str, Any]], None]:
    """A training's progress as lines: one for each validation."""

    def told(line: dict[str, Any]) -> None:
        if line.get("val_wer") is None:
            return
        left = f", {line['eta_s']:.0f} s left" if line.get("eta_s") is not None else ""
        loss = f", loss {line['loss']:.3f}" if line.get("loss") is not None else ""
        say(
            f"  step {line.get('step', 0):>5}{loss}, val WER {percent(line['val_wer'])}, "
            f"{line.get('elapsed_s', 0):.0f} s{left}"
        )

    return told


def train(
    ctx: typer.Context,
    dataset: Annotated[
        str | None, typer.Option(help="A dataset's name or id; the newest, where none is given.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="champion, a model's id, starter, a folder or a Hub id.")] = None,
    method: Annotated[
        Method | None, typer.Option(help="LoRA, or all weights; the recipe decides, where none is given.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="A recipe's name; chosen by data and model, where none is given.")
    ] = None,
    set: Annotated[
        list[str] | None, typer.Option("--set", help="One setting of the recipe, name=value (may be given again).")
    ] = None,
    max_seconds: Annotated[float | None, typer.Option(help="Seconds of training at most.", min=1)] = None,
    as_json: Json = False,
) -> None:
    """Fine-tune a model on a frozen dataset, in a process of its own."""
    from voxloop.training import train as start

    with opened(ctx) as ws:
        done = start(
            ws,
            dataset=dataset,
            base=base,
            method=method.value if method else None,
            recipe=recipe,
            overrides=set or (),
            max_seconds=max_seconds,
            progress=training_lines(lambda line: typer.echo(line, err=True)),
        )
        _print_run(done, as_json)
        if not as_json and done.model:
            typer.echo(f"next: voxloop model promote {short(done.model)}")


def _print_run(found: Run, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    lines = [
        ("run", found.id),
        ("status", found.status + (f": {found.error}" if found.error else "")),
        ("base", f"{found.base} ({found.family}, {found.method})"),
        ("dataset", short(found.dataset)),
        ("steps", str(found.progress.get("step", 0))),
        ("val WER", percent(found.progress.get("best_val_wer", found.progress.get("val_wer")))),
        ("model", short(found.model) if found.model else "–"),
    ]
    for name, text in lines:
        typer.echo(f"{name:<9}{text}")


@run.command("list")
def run_list(ctx: typer.Context, as_json: Json = False) -> None:
    """All runs, oldest first."""
    from voxloop.records import Run

    with opened(ctx) as ws, ws.read() as reader:
        found = reader.all(Run)
    if as_json:
        print_json(found)
        return
    table(
        ["run", "status", "base", "method", "dataset", "steps", "val WER", "model"],
        [
            [
                r.id,
                r.status,
                short(r.base),
                r.method,
                short(r.dataset),
                r.progress.get("step", 0),
                percent(r.progress.get("best_val_wer", r.progress.get("val_wer"))),
                short(r.model) if r.model else None,
            ]
            for r in found
        ],
        empty="no run yet: `voxloop train` starts one",
    )


@run.command("show")
def run_show(ctx: typer.Context, id: str, as_json: Json = False) -> None:
    """One run: how it went, or why it failed."""
    from voxloop.records import Run

    with opened(ctx) as ws, ws.read() as reader:
        found = reader.get(Run, id)
        _print_run(found, as_json)
        if not as_json:
            typer.echo(f"{'folder':<9}{ws.runs / found.id}")


@run.command("logs")
def run_logs(ctx: typer.Context, id: str) -> None:
    """A run's whole log."""
    from voxloop.errors import UnknownRecord
    from voxloop.records import Run

    with opened(ctx) as ws, ws.read() as reader:
        log = ws.runs / reader.get(Run, id).id / "train.log"
        if not log.exists():
            raise UnknownRecord(f"run {id} has no log on this machine: {log} is not there")
        typer.echo(log.read_text(errors="replace"), nl=False)


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
