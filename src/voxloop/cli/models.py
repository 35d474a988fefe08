"""The commands under `voxloop model`."""

from __future__ import annotations

import time
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
    from voxloop.records import Model
    from voxloop.steps import adapting
    from voxloop.steps.exporting import ExportedModel
    from voxloop.steps.gate.overview import ModelOverview

ADAPTING_EVERY_S = 10.0  # between two lines of progress

model = typer.Typer(
    no_args_is_help=True,
    help="Manage models: adapt, list, show, compare, promote, rollback, history, rename, delete, export.",
)


class ModelFormat(StrEnum):
    transformers = "transformers"
    ctranslate2 = "ctranslate2"
    ggml = "ggml"
    peft = "peft"
    all = "all"


def register(app: typer.Typer) -> None:
    app.add_typer(model, name="model")


@model.command("adapt")
def model_adapt(
    ctx: typer.Context,
    base: Annotated[
        str | None, typer.Argument(metavar="[BASE]", help="A published model. [default: the base model]")
    ] = None,
    sources: Annotated[
        list[Path] | None,
        typer.Option("--audio", metavar="PATH", help="Audio files and folders; repeat for more. No texts are needed."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the new base. [default: BASE-short]")] = None,
    language: Annotated[str | None, typer.Option(help="Language of files that do not name one (ISO 639-1).")] = None,
    minutes: Annotated[float, typer.Option(min=0.0, help="Longest training, in minutes, earlier calls included.")] = 20,
    keep: Annotated[bool, typer.Option("--keep", help="Register the model whatever the test says.")] = False,
    as_json: Json = False,
) -> None:
    """Make a base hear clips at their own length as well as at 30 s, from any audio.

    Run the command again with the same name to go on after an interruption, or with more --minutes.
    """
    from voxloop.errors import UsageError
    from voxloop.steps import adapting

    if not sources:
        raise UsageError("name audio files or folders with --audio")
    told = 0.0

    def say(line: adapting.AdaptProgress) -> None:
        nonlocal told
        if time.monotonic() - told < ADAPTING_EVERY_S and line.done < line.total:
            return
        told = time.monotonic()
        typer.echo(f"  {_adapting_text(line)}", err=True)

    with opened(ctx) as ws:
        found = adapting.adapt(
            ws, base, sources, name=name, language=language, minutes=minutes, keep=keep, progress=say
        )
    if as_json:
        print_json(found)
        return
    measure = "word error rate" if found.references else "difference from the base's own texts"
    typer.echo(f"learnt from {found.clips} clips ({found.seconds / 60:.1f} min), {found.steps} steps")
    typer.echo(f"{measure} in {counted(found.files, 'file')} ({counted(found.words, 'word')}):")
    for one in found.measured:
        where = "at the clip's own length" if one.context == "trimmed" else "at 30 s"
        typer.echo(
            f"  {where}: {percent(one.after)}, base at 30 s {percent(one.before)} (difference {100 * one.low:+.1f} to "
            f"{100 * one.high:+.1f} points, at most {100 * one.margin:+.1f}: {'yes' if one.accepted else 'no'})"
        )
    if not found.accepted:
        typer.echo(
            "the test does not show that it is no worse. What would help: more minutes, more audio, or more files with "
            "texts for the test"
        )
    if found.model:
        typer.echo(f"registered as {found.name}: name it with `voxloop train --base {found.name}` or in `base_model`")
    else:
        typer.echo(f"not registered; the adapted model lies in {found.folder}")


def _adapting_text(line: adapting.AdaptProgress) -> str:
    if line.phase != "training":
        return f"{line.phase}: {line.done:.0f} of {line.total:.0f}"
    return (
        f"training: step {line.step}, states {line.states:.3f}, cross-entropy {line.entropy:.3f}, "
        f"{line.done / 60:.1f} of {line.total / 60:.1f} min"
    )


@model.command("list")
def model_list(ctx: typer.Context, as_json: Json = False) -> None:
    """List all models with alias, base, training method, dataset, number of training clips and test WER."""
    from voxloop.steps.gate.overview import overview

    with opened(ctx) as ws:
        found = overview(ws)
    if as_json:
        print_json(found)
        return
    for one in found:
        if one.model.forgotten:
            typer.echo(
                f"{short(one.model.id)} was trained on speech that has since been forgotten; a model cannot unlearn it"
            )
    names = {one.model.id: _called(one.model) for one in found}
    table(
        ["model", "alias", "base", "method", "dataset", "clips", "test WER", "of"],
        [_overview_row(one, names) for one in found],
        empty="no models yet: train one with `voxloop train`",
    )
    if len({(one.evaluation.dataset, one.evaluation.normaliser) for one in found if one.evaluation}) > 1:
        typer.echo(
            "these WERs come from different datasets or different normalisers; "
            "compare two models with `voxloop model compare`"
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
    """A model's label in a table: its name, the name it was registered under, or its short id."""
    if model.name or model.run is not None or Path(model.base).is_absolute():
        return model.name or short(model.id)
    return model.base


@model.command("show")
def model_show(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="MODEL", help="A model's name, alias or id.")],
    as_json: Json = False,
) -> None:
    """Show a model: its base, run and folder, its evaluations and its promotions."""
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
    challenger: Annotated[str, typer.Argument(metavar="CHALLENGER", help="The new model, named as in `evaluate`.")],
    champion: Annotated[str, typer.Argument(metavar="CHAMPION", help="The model to compare it with.")],
    dataset: DatasetName = None,
    report: ReportFile = None,
    audio: WithAudio = True,
    as_json: Json = False,
) -> None:
    """Compare two models on the same frozen test references, without promoting either."""
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
    name: Annotated[str, typer.Argument(metavar="MODEL", help="The challenger's name or id.")],
    dataset: DatasetName = None,
    general: Annotated[
        str | None,
        typer.Option(
            help="Name or id of a second dataset on which the model must not be worse.",
            show_default="the setting promote_general",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Promote the model whatever the verdict.")] = False,
    by: By = "cli",
    as_json: Json = False,
) -> None:
    """Make a model the champion if it is significantly better; otherwise exit with status 1."""
    from voxloop.steps.gate.promotion import promote

    with opened(ctx) as ws:
        with progress("evaluate", "s") as told:
            outcome = promote(ws, name, dataset=dataset, general=general, by=by, force=force, progress=told)
        if as_json:
            print_json(outcome)
        else:
            if outcome.comparison:
                print_comparison(outcome.comparison)
            # The comparison above has already printed the reasons.
            typer.echo(outcome.message.partition(": ")[0] if outcome.comparison else outcome.message)
            if outcome.moved:
                typer.echo(
                    "next: `voxloop transcribe` and the workers now use this model; undo with `voxloop model rollback`"
                )
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
        bool, typer.Option("--attempts", help="List the attempts charged to the gate's ledger instead.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List every promotion and rollback with its evidence, oldest first."""
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
            empty="no attempts yet: make one with `voxloop model promote MODEL`",
        )
        return
    with opened(ctx) as ws:
        moves = history(ws)
    if as_json:
        print_json(moves)
        return
    table(
        ["when", "alias", "from", "to", "how", "by", "WER", "clips"],
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
                move.evidence.get("utterances"),
            ]
            for move in moves
        ],
        if_different=("alias",),
        empty="no champion yet: promote a model with `voxloop model promote MODEL`",
    )


@model.command("rename")
def model_rename(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="MODEL", help="A model's name, alias or id.")],
    new: NewName,
    by: By = "cli",
    as_json: Json = False,
) -> None:
    """Give a model a name that every command accepts in place of its id."""
    from voxloop.maintenance.naming import rename_model

    with opened(ctx) as ws:
        found = rename_model(ws, name, new, by=by)
    if as_json:
        print_json(found)
        return
    typer.echo(f"model {short(found.id)} is now called {found.name}")


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
        confirm(f"Permanently delete model {name}?", yes)
        done = delete_model(ws, name, by=by)
    print_json(done) if as_json else told_of_deletion(done)


@model.command("export")
def model_export(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="MODEL", help="A model's name, alias or id.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to create; it must not exist yet.")],
    format: Annotated[
        ModelFormat,
        typer.Option(
            help="Format to write: transformers, ctranslate2 (faster-whisper), ggml (whisper.cpp), peft (the LoRA "
            "adapter alone), or all of those the model has, each in its own subfolder."
        ),
    ] = ModelFormat.transformers,
    compute_type: Annotated[
        str,
        typer.Option(help="Number format with ctranslate2: float16, bfloat16, float32, int8 or another of its types."),
    ] = "float16",
    clips: Annotated[
        int,
        typer.Option(
            help="Number of test clips to transcribe with the export in each installed program; 0: none.", min=0
        ),
    ] = 8,
    as_json: Json = False,
) -> None:
    """Export a model for other programs with a model card, and test it in those that are installed."""
    from voxloop.steps.exporting import export_model

    with opened(ctx) as ws, progress("try", "formats") as told:
        made = export_model(
            ws, name, folder, format=format.value, compute_type=compute_type, clips=clips, progress=told
        )
    if as_json:
        print_json(made)
        return
    _print_trial(made)
    if made.not_to_share:
        names = [name or "unknown" for name in made.not_to_share[:5]]
        more = f" and {len(made.not_to_share) - 5} more" if len(made.not_to_share) > 5 else ""
        typer.echo(
            f"warning: keep this model to yourself, since it learnt from speakers who have not consented to sharing: "
            f"{', '.join(names)}{more}. Note a consent with `voxloop consent give SPEAKER`.",
            err=True,
        )
    typer.echo(made.folder)


def _print_trial(made: ExportedModel) -> None:
    tried = made.trial
    if tried is None:
        return
    if tried.wer is None:
        typer.echo("the export was not tested: build a dataset with a test split first")
        return
    typer.echo(
        f"tested on {counted(tried.clips, 'test clip')} ({counted(tried.words, 'word')}); "
        f"WER in Voxloop: {percent(tried.wer)}"
    )
    table(
        ["program", "WER", "different texts", ""],
        [
            [one.program, percent(one.wer), None if one.missing else one.different, one.missing or one.version]
            for one in tried.outcomes
        ],
    )
    if tried.remedy:
        worse = ", ".join(one.program for one in tried.worse)
        typer.echo(f"WER is more than 1 point higher than in Voxloop in {worse}: {tried.remedy}")
