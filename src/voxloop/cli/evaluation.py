"""The command `evaluate`, and how evaluations and comparisons are printed."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from voxloop.cli.screen import Json, counted, lasting, opened, percent, print_json, progress, short, table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from voxloop.records import Evaluation
    from voxloop.speech.text import Changes
    from voxloop.steps.evaluation import Scored
    from voxloop.steps.evaluation.forecast import Forecast
    from voxloop.steps.evaluation.words import Change
    from voxloop.steps.gate.comparison import Comparison
    from voxloop.workspace import Workspace

CHANGES_SHOWN = 5  # utterances better and worse in the terminal; --json has all
BAR = 40  # characters of the longest bar

DatasetName = Annotated[str | None, typer.Option(help="Name or id of the dataset.", show_default="the newest")]
ReportFile = Annotated[
    Path | None,
    typer.Option("--report", metavar="FILE", help="Write a report with charts and audio to this HTML file."),
]
WithAudio = Annotated[
    bool, typer.Option("--audio/--no-audio", help="Include audio clips in the report; they are people's voices.")
]


class SplitName(StrEnum):
    train = "train"
    val = "val"
    test = "test"


def register(app: typer.Typer) -> None:
    app.command()(evaluate)


def evaluate(
    ctx: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="Model to measure: champion, a model's name or id, starter, a folder or a Hub id.",
            show_default="the champion, else the setting base_model",
        ),
    ] = None,
    dataset: DatasetName = None,
    split: Annotated[
        SplitName | None, typer.Option(help="Split to measure on.", show_default="test, or val with --forecast")
    ] = None,
    against: Annotated[str | None, typer.Option(metavar="MODEL", help="Compare with this model.")] = None,
    report: ReportFile = None,
    audio: WithAudio = True,
    forecast: Annotated[
        bool,
        typer.Option(
            "--forecast", help="Forecast the gain from more speech by training briefly on parts of the dataset."
        ),
    ] = False,
    recipe: Annotated[
        str | None, typer.Option(help="With --forecast: name of the recipe.", show_default="chosen as in `train`")
    ] = None,
    set: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="With --forecast: override one setting of the recipe; repeatable."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="With --forecast: training runs per part of the dataset.")] = 3,
    steps: Annotated[int, typer.Option(help="With --forecast: optimiser steps per training run.", min=1)] = 120,
    as_json: Json = False,
) -> None:
    """Measure a model's word error rate on frozen references it was not trained on."""
    from voxloop.errors import UsageError
    from voxloop.steps.evaluation import evaluate as measure

    if report:
        from voxloop.steps.report import check_place

        check_place(report)
    if forecast:
        if against:
            raise UsageError(
                "--forecast measures a single model and cannot be combined with --against: give one of the two"
            )
        _forecast(
            ctx, name, dataset, split.value if split else "val", recipe, set or [], seeds, steps, report, audio, as_json
        )
        return
    chosen = split.value if split else "test"
    with opened(ctx) as ws:
        with progress("evaluate", "s") as told:
            found = measure(ws, name, dataset=dataset, split=chosen, progress=told)  # type: ignore[arg-type]
            other = measure(ws, against, dataset=dataset, split=chosen, progress=told) if against else None  # type: ignore[arg-type]
        if other:
            _compared(ws, found, other, report, audio, as_json)
            return
        from voxloop.steps.evaluation import with_texts

        shown = with_texts(ws, found)
        if as_json:
            print_json(shown)
        else:
            print_evaluations([("model", shown)])
            print_scores(shown)
        if report:
            write_report(ws, found, None, report, audio, quiet=as_json)


def _compared(
    ws: Workspace, found: Evaluation, other: Evaluation, report: Path | None, audio: bool, as_json: bool
) -> None:
    """Print two evaluations side by side, with the verdict, the slices and the utterances that changed."""
    from voxloop.steps.gate.comparison import side_by_side

    both = side_by_side(ws, found, other)
    if as_json:
        print_json(both)
    else:
        better, worse = both.better, both.worse
        print_evaluations([("model", found), ("against", other)])
        typer.echo("")
        typer.echo(f"Utterances: {len(better):,} better, {len(worse):,} worse, {both.same:,} unchanged.")
        print_comparison(both.comparison)
        if both.slices:
            typer.echo("")
            table(
                ["slice", "", "utterances", "WER before", "after", "change, points"],
                [
                    [
                        one.by,
                        one.name,
                        one.utterances,
                        percent(one.wer_before),
                        percent(one.wer_after),
                        f"{100 * one.difference:+.1f} ({100 * one.low:+.1f} to {100 * one.high:+.1f})",
                    ]
                    for one in both.slices
                ],
            )
        language = found.decoding.get("language")
        _print_changes("better", better, language, ws.settings.normaliser)
        _print_changes("worse", worse, language, ws.settings.normaliser)
        if both.comparison.verdict == "promote":
            typer.echo(f"next: voxloop model promote {short(found.model)}")
        else:
            print_next(ws, both.comparison.next_step, found.model)
    if report:
        write_report(ws, found, other, report, audio, quiet=as_json)


def _print_changes(how: str, found: Sequence[Change], language: str | None, rules: Changes) -> None:
    if not found:
        return
    shown = min(CHANGES_SHOWN, len(found))
    typer.echo(
        f"\n{counted(len(found), 'utterance')} {how}"
        + (f", the {shown} most changed" if shown < len(found) else "")
        + ":"
    )
    for one in found[:shown]:
        typer.echo(f"  reference: {one.before.reference}")
        typer.echo(f"  before:    {marked(one.before, language, rules)}")
        typer.echo(f"  after:     {marked(one.after, language, rules)}\n")


def marked(row: Scored, language: str | None, rules: Changes) -> str:
    """The hypothesis, with missing words as [-…-] and wrong words as {+…+}, coloured on a terminal."""
    from voxloop.steps.evaluation.words import differences

    parts = []
    for pair in differences(row, language, rules):
        if pair.operation == "equal":
            parts.append(pair.reference or "")
            continue
        if pair.reference is not None:
            parts.append(typer.style(f"[-{pair.reference}-]", fg="red"))
        if pair.hypothesis is not None:
            parts.append(typer.style(f"{{+{pair.hypothesis}+}}", fg="yellow"))
    return " ".join(parts) or "(empty)"


def print_evaluations(rows: list[tuple[str, Evaluation]]) -> None:
    """Print the scores of evaluations side by side."""

    def new_texts(scores: dict[str, Any]) -> str:
        part = [one for one in scores["slices"] if (one["by"], one["name"]) == ("texts", "new")]
        return f"{percent(part[0]['wer'])} in {counted(part[0]['utterances'], 'utterance')}" if part else "–"

    listed: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("WER", lambda s: percent(s["wer"])),
        ("95 % interval", lambda s: f"{100 * s['wer_low']:.1f} to {100 * s['wer_high']:.1f}"),
        ("new texts", new_texts),
        ("CER", lambda s: percent(s["cer"])),
        ("as written", lambda s: percent(s.get("orthographic_wer"))),
        ("sub, del, ins", lambda s: f"{s['substitutions']}, {s['deletions']}, {s['insertions']}"),
        ("measured on", lambda s: f"{counted(s['words'], 'word')} in {counted(s['utterances'], 'utterance')}"),
    ]
    table(
        ["", *(f"{name} {short(e.model)}" for name, e in rows)],
        [[name, *(said(e.scores) for _, e in rows)] for name, said in listed],
    )


def print_scores(found: Evaluation) -> None:
    """Print an evaluation's further scores: engine, sounds without speech, word times, written form, slices."""
    scores = found.scores
    typer.echo(
        f"engine: {found.decoding.get('engine', 'torch')}"
        + (", with the same voice detection as for files" if found.decoding.get("hearing") else "")
    )
    for name, label in (("silence", "silence and faint sounds"), ("noise", "noise and music")):
        if name in scores:
            probes = scores[name]
            reached = f" ({probes['reached']} passed the voice detector)" if "reached" in probes else ""
            typer.echo(
                f"words in {label} (ideally 0): {probes['words']} in {counted(probes['inputs'], 'sound')}{reached}"
            )
    if scores.get("joined"):
        typer.echo(f"clips joined up to 30 s: WER {percent(scores['joined']['wer'])}")
    if scores.get("language"):
        known = scores["language"]
        typer.echo(f"language detected correctly: {known['right']} of {counted(known['utterances'], 'clip')}")
    if scores.get("word_times"):
        times = scores["word_times"]
        typer.echo(
            f"mean error of word times: {1000 * times['start_error_s']:.0f} ms at the start, "
            f"{1000 * times['end_error_s']:.0f} ms at the end ({counted(times['words'], 'word')})"
        )
    if scores.get("edges"):
        typer.echo(
            f"first and last words: on average {1000 * scores['edges']['error_s']:.0f} ms from where speech starts and "
            f"ends ({counted(scores['edges']['utterances'], 'clip')})"
        )
    if scores.get("written") and scores["written"]["words"]:
        style = scores["written"]
        kinds = " and ".join(kind for kind in ("capitals", "punctuation") if style[kind])
        typer.echo(
            f"{kinds}: {percent(style['right'] / style['words'])} of {counted(style['words'], 'correct word')} "
            "written as in the reference"
        )
    if scores.get("unlabelled"):
        clips = scores["unlabelled"]
        typer.echo(
            f"clips without a reference: of {clips['clips']:,}, {clips['empty']} have an empty text, {clips['loops']} "
            f"a looping one, {clips['too_long']} one too long for the audio"
        )
    if scores["slices"]:
        typer.echo("")
        table(
            ["slice", "", "WER", "95 % interval", "words", "utterances"],
            [
                [
                    one["by"],
                    one["name"],
                    percent(one["wer"]),
                    f"{100 * one['wer_low']:.1f} to {100 * one['wer_high']:.1f}" if "wer_low" in one else None,
                    one["words"],
                    one["utterances"],
                ]
                for one in scores["slices"]
            ],
        )


def print_comparison(found: Comparison) -> None:
    """Print a verdict, its reasons and the finding of each guard."""
    typer.echo(f"verdict: {found.verdict}")
    for reason in found.reasons:
        typer.echo(f"  {reason}")
    if found.guards:
        typer.echo("guards:")
    for guard in found.guards:
        typer.echo(f"  {guard.state}: {guard.name}: {guard.finding}")


def print_next(ws: Workspace, step: str | None, model: str) -> None:
    """Print the next step after a verdict on a model."""
    from voxloop.advice import spelled_out

    if step:
        typer.echo(f"next: {spelled_out(ws, step, model)}")


def write_report(
    ws: Workspace, found: Evaluation, other: Evaluation | None, file: Path, audio: bool, *, quiet: bool
) -> None:
    """Write the report page; print its path, with --json (`quiet`) on the error stream so that stdout stays JSON."""
    from voxloop.steps import report

    with progress("report", "s") as told:
        made = report.write(ws, found, file, against=other, audio=audio, progress=told)
    typer.echo(f"report: {file} ({made.size / 1e6:.1f} MB)" + "".join(f"; {note}" for note in made.notes), err=quiet)


# Forecast ------------------------------------------------------------------------------------------------------------


def _forecast(
    ctx: typer.Context,
    base: str | None,
    dataset: str | None,
    split: str,
    recipe: str | None,
    overrides: list[str],
    seeds: int,
    steps: int,
    report: Path | None,
    audio: bool,
    as_json: bool,
) -> None:
    from voxloop.steps.evaluation import evaluate as measure
    from voxloop.steps.evaluation import forecast

    with opened(ctx) as ws:
        plan = forecast.plan(
            ws,
            base,
            dataset=dataset,
            recipe=recipe,
            overrides=overrides,
            seeds=seeds,
            steps=steps,
            split=split,  # type: ignore[arg-type]
        )
        left = plan.runs - plan.done
        takes = (
            f"about {lasting(left * plan.seconds_each)}"
            if plan.seconds_each
            else "the time needed is known after the first; Ctrl-C keeps finished runs"
        )
        typer.echo(
            f"{counted(plan.runs, 'training run')} of {counted(steps, 'step')} on {', '.join(map(str, plan.clips))} "
            f"clips, {counted(seeds, 'seed')} each, measured on {counted(len(plan.rows), f'{split} utterance')}"
            + (f"; {plan.done} already done" if plan.done else "")
            + (f"; {takes}" if left else ""),
            err=True,
        )
        found = forecast.forecast(ws, plan, told=lambda line: typer.echo(line, err=True))
        if as_json:
            print_json(found)
        else:
            print_forecast(found)
        if report:
            with progress("evaluate", "s") as told:
                evaluation = measure(ws, plan.base.id, dataset=plan.dataset.id, progress=told)
            write_report(ws, evaluation, None, report, audio, quiet=as_json)


def print_forecast(found: Forecast) -> None:
    """Print the forecast's curve as bars, and its conclusions."""
    curve = found.curve
    shown = [("", at) for at in curve.measured] + [("forecast", at) for at in curve.forecast if curve.usable]
    most = max([at.high for _, at in shown] + [1e-9])
    per_clip = found.seconds / curve.measured[-1].clips

    def bar(low: float, value: float, high: float) -> str:
        places = [round(BAR * share / most) for share in (low, value, high)]
        return "█" * places[0] + "▒" * (places[1] - places[0]) + "░" * (places[2] - places[1])

    from voxloop.steps.evaluation.forecast import spoken

    table(
        ["clips", "speech", "WER", "95 % interval", "", ""],
        [
            [
                at.clips,
                spoken(at.clips * per_clip),
                percent(at.wer),
                f"{100 * at.low:.1f} to {100 * at.high:.1f}",
                bar(at.low, at.wer, at.high),
                kind,
            ]
            for kind, at in shown
        ],
    )
    for sentence in found.sentences:
        typer.echo(sentence)
    typer.echo(
        f"Each model was trained for {counted(found.steps, 'step')} with recipe {found.recipe} "
        f"({counted(found.seeds, 'seed')}) and measured on {counted(found.utterances, f'{found.split} utterance')} "
        f"({counted(found.words, 'word')}). A full training run may do better."
    )
