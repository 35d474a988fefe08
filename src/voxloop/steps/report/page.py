"""An evaluation as one HTML page: charts, confusions, the worst utterances with audio. No network, no script.

page.py       the page's contents             charts.py   SVG
page.html.j2  its template                    sound.py    audio as data URIs
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from voxloop import __version__, models
from voxloop.errors import UsageError, VoxloopError
from voxloop.families.decoding import Decoding
from voxloop.files import replaced
from voxloop.records import Dataset, Evaluation, Model, Progress, Run
from voxloop.steps import evaluation, training
from voxloop.steps.evaluation import Scored, forecast, scored_rows
from voxloop.steps.evaluation.words import Confusions, changes, confusions, differences, worst
from voxloop.steps.gate.comparison import Comparison, compare, points
from voxloop.steps.report.charts import Line, Point, bar, plot
from voxloop.steps.report.sound import Sounds
from voxloop.stores import tables

if TYPE_CHECKING:
    from markupsafe import Markup

    from voxloop.workspace import Workspace

WORST_SHOWN = 20
CHANGES_SHOWN = 10
SLICES_SHOWN = 12  # the largest of each kind; the command lists all


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """A report written to disk."""

    file: Path
    size: int  # bytes
    notes: tuple[str, ...]  # what was left out, and why


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """One model of the page; the evaluated one comes first."""

    color: int
    role: str  # its relation to the first: model, champion, base, other
    name: str  # display name
    model: Model
    evaluation: Evaluation
    rows: tuple[Scored, ...]

    @property
    def scores(self) -> dict[str, Any]:
        return self.evaluation.scores


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One line of a bar chart: model, value as text, and the bar."""

    subject: Subject
    text: str
    drawn: Markup


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceBars:
    """One slice with a bar for each model."""

    name: str
    utterances: int
    words: int
    bars: tuple[Bar, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Learnt:
    """A run's training curves."""

    subject: Subject
    run: Run
    dataset: Dataset | None
    wer: Markup | None
    loss: Markup | None


def write(
    ws: Workspace,
    found: Evaluation,
    file: Path,
    *,
    against: Evaluation | None = None,
    audio: bool = True,
    progress: Progress | None = None,
) -> Written:
    """Write the report of an evaluation, compared with `against` or by default with the champion and the model's base.

    The champion and the base are evaluated if necessary. `audio` includes the audio
    of the utterances shown, up to `sound.MAX_BYTES`. An existing file is replaced.
    Raises UsageError if the file cannot be written.
    """
    check_place(file)
    notes: list[str] = []
    subjects = _subjects(ws, found, against, progress, notes)
    # The same division for all models, so that adjacent bars show the same utterances.
    heard = evaluation.texts_heard(ws, *(one.model.id for one in subjects))
    if heard is not None:
        subjects = [replace(one, evaluation=evaluation.with_texts(ws, one.evaluation, heard)) for one in subjects]
    sounds = Sounds(ws, wanted=audio)
    page = _render(ws, subjects, sounds)
    if sounds.left_out:
        notes.append(f"left out the audio of {counted(sounds.left_out, 'utterance')} to limit the size of the page")
    if sounds.missing:
        notes.append(f"the audio of {counted(sounds.missing, 'utterance')} is no longer in the workspace")
    try:
        with replaced(file) as partial:
            partial.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"the report cannot be written to {file}: {error}") from error
    return Written(file=file, size=file.stat().st_size, notes=tuple(notes))


def check_place(file: Path) -> None:
    """Check, before measuring anything, that the file can be written. Raises UsageError."""
    if file.is_dir():
        raise UsageError(f"{file} is a folder: name a file, such as {file / 'report.html'}")
    if not file.absolute().parent.is_dir():
        raise UsageError(f"the folder {file.parent} does not exist: create it, or name a file elsewhere")


# Contents -------------------------------------------------------------------------------------------------------------


def _subjects(
    ws: Workspace, found: Evaluation, against: Evaluation | None, progress: Progress | None, notes: list[str]
) -> list[Subject]:
    with ws.read() as reader:
        model = reader.get(Model, found.model)
        aliases = dict(reader.connection.execute(sa.select(tables.alias.c.name, tables.alias.c.model)).tuples().all())
        base = reader.find(Model, model.base) if model.run else None
    champion = aliases.get(models.CHAMPION)
    others: list[tuple[str, str]] = []  # model, role
    if against is not None:
        others.append((against.model, "champion" if against.model == champion else "other"))
    elif champion:
        others.append((champion, "champion"))
    if base is not None:
        others.append((base.id, "base"))
    subjects: list[Subject] = []
    for id, role in [(found.model, "champion" if found.model == champion else "model"), *others]:
        if id in {subject.model.id for subject in subjects}:
            continue
        try:
            measured = next((one for one in (found, against) if one and one.model == id), None) or evaluation.evaluate(
                ws,
                id,
                dataset=found.dataset,
                split=found.split,
                decoding=Decoding.from_dict(found.decoding),
                progress=progress,
            )
        except VoxloopError as error:
            notes.append(f"the {role} could not be evaluated: {error}")
            continue
        with ws.read() as reader:
            record = reader.get(Model, id)
            bases = {record.base: reader.find(Model, record.base)} if record.run else {}
        subjects.append(
            Subject(
                color=len(subjects),
                role=role,
                name=_name(record, aliases, bases.get(record.base)),
                model=record,
                evaluation=measured,
                rows=tuple(scored_rows(ws, measured)),
            )
        )
    return subjects


def _name(model: Model, aliases: dict[str, str], base: Model | None) -> str:
    """A model's display name: its alias, the name it was given, or else its origin."""
    alias = sorted(name for name, id in aliases.items() if id == model.id)
    if alias:
        return f"{alias[0]} ({model.name or short(model.id)})"
    if model.name:
        return model.name
    if model.run is None:
        return Path(model.base).name
    if base is None or (base.run and not base.name):
        return f"fine-tuned again ({short(model.id)})"
    return f"{base.name or Path(base.base).name}, fine-tuned ({short(model.id)})"


def _render(ws: Workspace, subjects: Sequence[Subject], sounds: Sounds) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    first = subjects[0]
    language = first.evaluation.decoding.get("language")
    with ws.read() as reader:
        dataset = reader.get(Dataset, first.evaluation.dataset)
        runs = {one.model.id: reader.find(Run, one.model.run) for one in subjects if one.model.run}
        trained_on = {run.dataset: reader.find(Dataset, run.dataset) for run in runs.values() if run}
    comparison: Comparison | None = None
    better: Sequence[Any] = ()
    worse: Sequence[Any] = ()
    if len(subjects) > 1:
        comparison = compare(ws, first.evaluation, subjects[1].evaluation)
        better, worse = changes(subjects[1].rows, first.rows)
    words: Confusions = confusions(first.rows, language, ws.settings.normaliser)
    forecasted = forecast.newest(ws, dataset.id)
    environment = Environment(
        loader=PackageLoader("voxloop.steps", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    environment.filters["rate"] = rate_in_words
    environment.filters["counted"] = counted
    environment.filters["points"] = points
    environment.filters["spoken"] = forecast.spoken
    environment.filters["short"] = short
    return environment.get_template("page.html.j2").render(
        version=__version__,
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        subjects=subjects,
        first=first,
        second=subjects[1] if len(subjects) > 1 else None,
        dataset=dataset,
        comparison=comparison,
        bars=_bars(subjects),
        slices=_slice_bars(subjects),
        learnt=[
            _learnt(ws, one, run, trained_on.get(run.dataset))
            for one in subjects
            if (run := runs.get(one.model.id)) is not None
        ],
        confusions=words,
        worst=worst(first.rows, most=WORST_SHOWN),
        wrong=sum(row.errors > 0 for row in first.rows),
        better=better[:CHANGES_SHOWN],
        worse=worse[:CHANGES_SHOWN],
        better_count=len(better),
        worse_count=len(worse),
        forecast=forecasted,
        forecast_chart=_forecast_chart(forecasted) if forecasted else None,
        differences=lambda row: differences(row, language, ws.settings.normaliser),
        sound=sounds.uri,
        sounds=sounds,
    )


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def counted(count: int, noun: str) -> str:
    """A number with its noun: 1 word, 2 words."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def rate_in_words(scores: dict[str, Any]) -> str:
    """The words after the number of a WER; above 100 % it is not a share of the words."""
    errors = scores["substitutions"] + scores["deletions"] + scores["insertions"]
    if scores["wer"] <= 1:
        return "word error rate (WER)"
    return (
        f"word error rate (WER): more errors ({errors}) than reference words ({scores['words']}), since "
        f"{counted(scores['insertions'], 'word')} were inserted; measured"
    )


def short(id: str) -> str:
    """The short id of a model or dataset."""
    return id.removeprefix("sha256-")[:12]


# Charts --------------------------------------------------------------------------------------------------------------


def _bars(subjects: Sequence[Subject]) -> list[Bar]:
    top = max(one.scores["wer_high"] for one in subjects) or 1.0
    return [_bar(one, one.scores, top=top) for one in subjects]


def _bar(subject: Subject, scores: dict[str, Any], *, top: float) -> Bar:
    low, high = scores.get("wer_low"), scores.get("wer_high")
    text = percent(scores["wer"])
    span = f", 95 % interval {100 * low:.1f} to {100 * high:.1f}" if low is not None and high is not None else ""
    label = f"{subject.name}: word error rate {text}{span}"
    return Bar(
        subject=subject,
        text=text,
        drawn=bar(scores["wer"], low, high, top=top, color=subject.color, label=label),
    )


def _slice_bars(subjects: Sequence[Subject]) -> dict[str, list[SliceBars]]:
    """The largest slices of each kind, on one common scale."""
    found: dict[tuple[str, str], list[tuple[Subject, dict[str, Any]]]] = {}
    for subject in subjects:
        for one in subject.scores["slices"]:
            found.setdefault((one["by"], one["name"]), []).append((subject, one))
    # Intervals may reach far beyond the rates, so the rates set the scale and longer intervals are cut off.
    top = max((1.3 * one["wer"] for pairs in found.values() for _, one in pairs), default=1.0) or 1.0
    kinds: dict[str, list[SliceBars]] = {}
    for (by, name), pairs in sorted(found.items(), key=lambda item: -item[1][0][1]["words"]):
        if len(kinds.setdefault(by, [])) < SLICES_SHOWN:
            size = pairs[0][1]
            kinds[by].append(
                SliceBars(
                    name=name,
                    utterances=size["utterances"],
                    words=size["words"],
                    bars=tuple(_bar(subject, one, top=top) for subject, one in pairs),
                )
            )
    whole = subjects[0].scores["utterances"]
    return {
        by: kinds[by]
        for by in ("texts", "speaker", "language", "length", "SNR", "session")
        # A single slice with all utterances would repeat the numbers above.
        if by in kinds and (len(kinds[by]) > 1 or kinds[by][0].utterances < whole)
    }


def _learnt(ws: Workspace, subject: Subject, run: Run, dataset: Dataset | None) -> Learnt:
    lines = training.metrics(ws, run.id)

    def curve(name: str) -> list[Point]:
        # A loss that overflowed is NaN in the metrics.
        values = [(line.get("step", 0), line.get(name)) for line in lines]
        return [Point(x=step, y=value) for step, value in values if value is not None and math.isfinite(value)]

    wer, loss = curve("val_wer"), curve("loss")
    return Learnt(
        subject=subject,
        run=run,
        dataset=dataset,
        wer=plot(
            [Line(name="WER on val", points=wer, color=subject.color)],
            label=f"Word error rate on the val split by step, from {percent(wer[0].y)} to {percent(wer[-1].y)}",
            x_name="steps",
            y=percent,
        )
        if wer
        else None,
        loss=plot(
            [Line(name="loss", points=loss, color=subject.color)],
            label=f"Training loss by step, from {loss[0].y:.2f} to {loss[-1].y:.2f}",
            x_name="steps",
            y=lambda value: f"{value:g}",
        )
        if loss
        else None,
    )


def _forecast_chart(found: dict[str, Any]) -> Markup:
    curve = found["curve"]

    def line(ats: Sequence[dict[str, Any]]) -> list[Point]:
        return [Point(x=at["clips"], y=at["wer"], low=at["low"], high=at["high"]) for at in ats]

    measured, beyond = line(curve["measured"]), line(curve["forecast"]) if curve["usable"] else []
    lines = [Line(name="measured", points=measured, color=0)]
    if beyond:
        lines.append(Line(name="forecast", points=[measured[-1], *beyond], color=1, dashed=True))
    return plot(
        lines,
        label="Word error rate by number of training clips, measured and forecast",
        x_name="clips",
        y=percent,
    )
