"""evaluate, and what model commands print of evaluations."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from voxloop.cli.screen import Json, opened, percent, print_json, progress, short, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from voxloop.records import Evaluation
    from voxloop.speech.text import Changes
    from voxloop.steps.evaluation import Scored
    from voxloop.steps.evaluation.forecast import Forecast
    from voxloop.steps.evaluation.words import Change
    from voxloop.steps.gate.comparison import Comparison
    from voxloop.workspace import Workspace

CHANGES_SHOWN = 5  # utterances better and worse in the terminal; --json has all
BAR = 40  # characters of the longest bar

DatasetName = Annotated[str | None, typer.Option(help="A dataset's name or id.", show_default="the newest")]
ReportFile = Annotated[
    Path | None,
    typer.Option("--report", metavar="FILE", help="Write a report to this HTML file, with charts and audio."),
]
WithAudio = Annotated[
    bool, typer.Option("--audio/--no-audio", help="Include speech to play in the report; it is people's voices.")
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
            metavar="MODEL", help="champion, a model's id, starter, a folder or a Hub id.", show_default="the champion"
        ),
    ] = None,
    dataset: DatasetName = None,
    split: Annotated[
        SplitName | None, typer.Option(help="Split to measure on.", show_default="test; with --forecast val")
    ] = None,
    against: Annotated[str | None, typer.Option(help="Compare with this model, named in the same ways.")] = None,
    report: ReportFile = None,
    audio: WithAudio = True,
    forecast: Annotated[
        bool,
        typer.Option(
            "--forecast", help="Train briefly on shares of the dataset, to forecast what more speech would bring."
        ),
    ] = False,
    recipe: Annotated[
        str | None, typer.Option(help="With --forecast: a recipe's name.", show_default="as `train` chooses")
    ] = None,
    set: Annotated[
        list[str] | None,
        typer.Option("--set", help="With --forecast: one setting of the recipe, as name=value; repeatable."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="With --forecast: trainings of each share.")] = 3,
    steps: Annotated[int, typer.Option(help="With --forecast: steps of each training.", min=1)] = 120,
    as_json: Json = False,
) -> None:
    """Measure a model on frozen references that it was not trained on."""
    from voxloop.errors import UsageError
    from voxloop.steps.evaluation import evaluate as measure

    if report:
        from voxloop.steps.report import check_place

        check_place(report)
    if forecast:
        if against:
            raise UsageError("--forecast trains one model on shares of a dataset: it does not go with --against")
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
    """Two evaluations side by side, with the verdict, the slices and the utterances that changed."""
    from voxloop.steps.gate.comparison import side_by_side

    both = side_by_side(ws, found, other)
    if as_json:
        print_json(both)
    else:
        better, worse = both.better, both.worse
        print_evaluations([("model", found), ("against", other)])
        typer.echo("")
        typer.echo(f"Utterances: {len(better)} better, {len(worse)} worse, {both.same} the same.")
        print_comparison(both.comparison)
        if both.slices:
            typer.echo("")
            table(
                ["slice", "", "utterances", "WER before", "after", "difference, points"],
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
    typer.echo(f"\n{len(found)} {how}" + (f", the {shown} most changed" if shown < len(found) else "") + ":")
    for one in found[:shown]:
        typer.echo(f"  said:   {one.before.reference}")
        typer.echo(f"  before: {marked(one.before, language, rules)}")
        typer.echo(f"  after:  {marked(one.after, language, rules)}\n")


def marked(row: Scored, language: str | None, rules: Changes) -> str:
    """What was heard, with what is missing in [-…-] and what is wrong in {+…+}, in colour on a terminal."""
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
    return " ".join(parts) or "(nothing)"


def print_evaluations(rows: list[tuple[str, Evaluation]]) -> None:
    """Scores of evaluations side by side."""

    def interval(scores: dict[str, Any]) -> str:
        return f"{100 * scores['wer_low']:.1f} to {100 * scores['wer_high']:.1f}"

    def new_texts(scores: dict[str, Any]) -> str:
        part = [one for one in scores["slices"] if (one["by"], one["name"]) == ("texts", "new")]
        return f"{percent(part[0]['wer'])} of {part[0]['utterances']}" if part else "–"

    table(
        [
            "",
            "model",
            "WER",
            "95 % interval",
            "new texts",
            "CER",
            "as written",
            "sub",
            "del",
            "ins",
            "words",
            "utterances",
        ],
        [
            [
                name,
                short(e.model),
                percent(e.scores["wer"]),
                interval(e.scores),
                new_texts(e.scores),
                percent(e.scores["cer"]),
                percent(e.scores.get("orthographic_wer")),
                e.scores["substitutions"],
                e.scores["deletions"],
                e.scores["insertions"],
                e.scores["words"],
                e.scores["utterances"],
            ]
            for name, e in rows
        ],
    )


def print_scores(found: Evaluation) -> None:
    """What one evaluation says beside its rates: how it was heard, sounds without speech, times, style, slices."""
    scores = found.scores
    typer.echo(
        f"heard by {found.decoding.get('engine', 'torch')}"
        + (", as files are" if found.decoding.get("hearing") else "")
    )
    for name, label in (("silence", "silence and faint sounds"), ("noise", "noise and music")):
        if name in scores:
            probes = scores[name]
            reached = f" ({probes['reached']} reached the model)" if "reached" in probes else ""
            words = f"{probes['words']} words heard" if probes["words"] else "nothing heard, as it should be"
            typer.echo(f"{label}: {words} in {probes['inputs']} sounds{reached}")
    if scores.get("joined"):
        typer.echo(f"clips joined up to 30 s: WER {percent(scores['joined']['wer'])}")
    if scores.get("language"):
        known = scores["language"]
        typer.echo(f"language detected rightly: {known['right']} of {known['utterances']} clips")
    if scores.get("word_times"):
        times = scores["word_times"]
        typer.echo(
            f"word times: begun {1000 * times['start_error_s']:.0f} ms off on average, ended "
            f"{1000 * times['end_error_s']:.0f} ms ({times['words']} words)"
        )
    if scores.get("edges"):
        typer.echo(
            f"first and last words: {1000 * scores['edges']['error_s']:.0f} ms from the ends of the speech on average "
            f"({scores['edges']['utterances']} clips)"
        )
    if scores.get("written") and scores["written"]["words"]:
        style = scores["written"]
        kinds = " and ".join(kind for kind in ("capitals", "punctuation") if style[kind])
        typer.echo(
            f"{kinds}: {percent(style['right'] / style['words'])} of {style['words']} words heard right are written as "
            "in the references"
        )
    if scores.get("unlabelled"):
        clips = scores["unlabelled"]
        typer.echo(
            f"clips without a reference: {clips['empty']} of {clips['clips']} came out empty, {clips['loops']} loop, "
            f"{clips['too_long']} are too long for their sound"
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
    """A verdict, its reasons, each a fact with its number, and what each guard found."""
    typer.echo(f"verdict: {found.verdict}")
    for reason in found.reasons:
        typer.echo(f"  {reason}")
    if found.guards:
        typer.echo("what must not get worse:")
    for guard in found.guards:
        typer.echo(f"  {guard.state}: {guard.name}: {guard.finding}")


def print_next(ws: Workspace, step: str | None, model: str) -> None:
    """What to do after a verdict on a model: the last line of what a command prints."""
    from voxloop.advice import spelled_out

    if step:
        typer.echo(f"next: {spelled_out(ws, step, model)}")


def write_report(
    ws: Workspace, found: Evaluation, other: Evaluation | None, file: Path, audio: bool, *, quiet: bool
) -> None:
    """Write the page; where it lies and what was left out is said on the error stream, so that --json stays JSON."""
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
            f"about {left * plan.seconds_each:.0f} s"
            if plan.seconds_each
            else "how long is known after the first; Ctrl-C keeps what is done"
        )
        typer.echo(
            f"{plan.runs} trainings of {steps} steps on {', '.join(map(str, plan.clips))} clips, {seeds} seeds each, "
            f"measured on {len(plan.rows)} {split} utterances"
            + (f"; {plan.done} are kept from before" if plan.done else "")
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
    """The curve as bars, and what it says."""
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
        f"Of models trained {found.steps} steps by the recipe {found.recipe}, {found.seeds} seeds, on "
        f"{found.utterances} {found.split} utterances ({found.words} words); a full training may do better."
    )
