"""model list, show, compare, promote, rollback, history, rename, delete, export."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voxloop.cli.evaluation import (
    DatasetName,
    ReportFile,
    SplitName,
    WithAudio,
    evaluate,
    print_comparison,
    print_evaluations,
    print_next,
)
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
    from voxloop.records import Model
    from voxloop.steps.exporting import ExportedModel
    from voxloop.steps.gate.overview import ModelOverview

model = typer.Typer(
    no_args_is_help=True, help="Models: list, show, compare, promote, rollback, history, rename, delete, export."
)


class ModelFormat(StrEnum):
    transformers = "transformers"
    ctranslate2 = "ctranslate2"
    ggml = "ggml"
    peft = "peft"
    all = "all"


def register(app: typer.Typer) -> None:
    app.add_typer(model, name="model")


@model.command("list")
def model_list(ctx: typer.Context, as_json: Json = False) -> None:
    """List all models: what each was made from (base, run, dataset, clips), its test WER, and its aliases."""
    from voxloop.steps.gate.overview import overview

    with opened(ctx) as ws:
        found = overview(ws)
    if as_json:
        print_json(found)
        return
    for one in found:
        if one.model.forgotten:
            typer.echo(f"{short(one.model.id)} was trained on speech that was forgotten since: it cannot unlearn it")
    names = {one.model.id: _called(one.model) for one in found}
    table(
        ["model", "alias", "base", "method", "dataset", "clips", "test WER", "of"],
        [_overview_row(one, names) for one in found],
        empty="no model yet: `voxloop train` makes one",
    )
    if len({(one.evaluation.dataset, one.evaluation.normaliser) for one in found if one.evaluation}) > 1:
        typer.echo(
            "measured on different datasets or by different normalisers: `voxloop model compare` compares two models"
        )


def _overview_row(one: ModelOverview, names: dict[str, str]) -> list[object]:
    model, dataset, scores = one.model, one.dataset, one.evaluation.scores if one.evaluation else None
    return [
        names[model.id],
        ", ".join(sorted(one.aliases)),
        None if model.run is None else names.get(model.base, short(model.base)),
        ("LoRA" if model.kind == "adapter" else model.kind) if model.run else None,
        dataset.name if dataset else None,
        dataset.clips.get("train", 0) if dataset else None,
        percent(scores["wer"]) if scores else None,
        scores["utterances"] if scores else None,
    ]


def _called(model: Model) -> str:
    """What a model is called in a table: its name, what it was registered as, or the head of its id."""
    if model.name or model.run is not None or Path(model.base).is_absolute():
        return model.name or short(model.id)
    return model.base


@model.command("show")
def model_show(ctx: typer.Context, name: str, as_json: Json = False) -> None:
    """Show a model: its files, its run, what was measured and what was decided."""
    from voxloop.steps.gate.overview import details

    with opened(ctx) as ws:
        found = details(ws, name)
    if as_json:
        print_json(found)
        return
    for label, text in (
        ("model", found.model.id),
        *([("name", found.model.name)] if found.model.name else []),
        ("family", f"{found.model.family}, {found.model.kind}"),
        ("base", found.model.base),
        ("run", found.model.run or "–"),
        ("folder", found.folder),
    ):
        typer.echo(f"{label:<9}{text}")
    if found.evaluations:
        print_evaluations([(f"{short(e.dataset)} {e.split}", e) for e in found.evaluations])
    for move in found.promotions:
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
    """Compare two models on the same frozen test references; no alias moves."""
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
        str | None,
        typer.Option(
            help="Name or id of another dataset on which it must not be worse.",
            show_default="the setting promote_general",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Move the alias whatever the verdict.")] = False,
    by: By = "cli",
    as_json: Json = False,
) -> None:
    """Make a model champion if it is really better; exit with status 1 if it is not."""
    from voxloop.steps.gate.promotion import promote

    with opened(ctx) as ws:
        with progress("evaluate", "s") as told:
            outcome = promote(ws, name, dataset=dataset, general=general, by=by, force=force, progress=told)
        if as_json:
            print_json(outcome)
        else:
            if outcome.comparison:
                print_comparison(outcome.comparison)
            # The reasons stand above where there are any.
            typer.echo(outcome.message.partition(": ")[0] if outcome.comparison else outcome.message)
            if outcome.moved:
                typer.echo("next: transcribe as before, this model does it now; `voxloop model rollback` goes back")
            else:
                print_next(ws, outcome.next_step, outcome.model)
    if outcome.verdict and not outcome.moved:
        raise typer.Exit(1)


@model.command("rollback")
def model_rollback(ctx: typer.Context, by: By = "cli", as_json: Json = False) -> None:
    """Make the previous champion the champion again."""
    from voxloop.steps.gate.promotion import rollback

    with opened(ctx) as ws:
        move = rollback(ws, by=by)
    if as_json:
        print_json(move)
        return
    typer.echo(f"champion: {short(move.previous or 'none')} -> {short(move.model)}")


@model.command("history")
def model_history(
    ctx: typer.Context,
    attempts: Annotated[
        bool, typer.Option("--attempts", help="List the attempts that were charged to the gate's ledger instead.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List every move of an alias with its evidence, oldest first."""

    from voxloop.steps.gate.promotion import attempts as tried
    from voxloop.steps.gate.promotion import history

    if attempts:
        with opened(ctx) as ws:
            found = tried(ws)
        if as_json:
            print_json(found)
            return
        table(
            ["when", "model", "against", "dataset", "p", "limit", "outcome"],
            [
                [
                    when(one.created),
                    short(one.model),
                    short(one.champion),
                    short(one.dataset),
                    f"{one.p:.2g}",
                    f"{one.level:.2g}",
                    "promoted" if one.promoted else "not promoted",
                ]
                for one in found
            ],
            empty="no attempt to promote yet: `voxloop model promote MODEL` makes one",
        )
        return
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


@model.command("rename")
def model_rename(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="MODEL", help="A model's name, alias or id.")],
    new: Annotated[str, typer.Argument(metavar="NAME", help="Letters, digits, dots, hyphens and underscores.")],
    by: By = "cli",
    as_json: Json = False,
) -> None:
    """Give a model a name, which every command takes in place of its id."""
    from voxloop.maintenance.naming import rename_model

    with opened(ctx) as ws:
        found = rename_model(ws, name, new, by=by)
    if as_json:
        print_json(found)
        return
    typer.echo(f"{short(found.id)} is called {found.name}")


@model.command("delete")
def model_delete(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="MODEL", help="A model's name or id.")],
    yes: Yes = False,
    by: By = "cli",
    as_json: Json = False,
) -> None:
    """Delete a model that nothing needs, with its evaluations and files."""
    from voxloop.maintenance.removal import delete_model

    with opened(ctx) as ws:
        confirm(f"Delete the model {name} for good?", yes)
        done = delete_model(ws, name, by=by)
    print_json(done) if as_json else told_of_deletion(done)


@model.command("export")
def model_export(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="MODEL", help="A model's name, alias or id.")],
    folder: Annotated[Path, typer.Argument(help="Folder to write; it must not exist yet.")],
    format: Annotated[
        ModelFormat,
        typer.Option(
            help="Format to write: for transformers, faster-whisper (ctranslate2) or whisper.cpp (ggml), the LoRA "
            "adapter alone (peft), or all that the model has, each in a folder of its own."
        ),
    ] = ModelFormat.transformers,
    compute_type: Annotated[
        str, typer.Option(help="With ctranslate2: float16, int8, float32 or another number format.")
    ] = "float16",
    clips: Annotated[
        int, typer.Option(help="Test clips that each installed program reads from the export; 0: none.", min=0)
    ] = 8,
    as_json: Json = False,
) -> None:
    """Export a model for other programs, try it in those that are installed, and write its model card."""
    from voxloop.steps.exporting import export_model

    with opened(ctx) as ws, progress("try", "formats") as told:
        made = export_model(
            ws, name, folder, format=format.value, compute_type=compute_type, clips=clips, progress=told
        )
    if as_json:
        print_json(made)
        return
    _print_trial(made)
    typer.echo(made.folder)


def _print_trial(made: ExportedModel) -> None:
    tried = made.trial
    if tried is None:
        return
    if tried.wer is None:
        typer.echo(
            "no test references to try it on: build a dataset with a test split to know what other programs hear"
        )
        return
    typer.echo(f"tried on {tried.clips} test clips ({tried.words} words); Voxloop: WER {percent(tried.wer)}")
    table(
        ["program", "WER", "other texts", ""],
        [
            [one.program, percent(one.wer), None if one.missing else one.different, one.missing or one.version]
            for one in tried.outcomes
        ],
    )
    if tried.remedy:
        worse = ", ".join(one.program for one in tried.worse)
        typer.echo(f"more than 1 point above Voxloop in {worse}: {tried.remedy}")
