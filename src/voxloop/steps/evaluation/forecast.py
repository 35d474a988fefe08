"""Forecast how much more speech lowers the error: short training runs on growing parts of a dataset, and a curve.

Each training run is a separate process in `runs/forecast-<id>/<clips>-<seed>/` and leaves a `result.json`; a repeated
forecast trains only what is missing. The models are neither registered nor kept: they only serve the measurement.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxloop import models
from voxloop.errors import TrainingError, UsageError
from voxloop.families.registry import family
from voxloop.records import Dataset, Model, Run, Split
from voxloop.steps import datasets, hearing, transcripts
from voxloop.steps.evaluation.curves import FALLS, MIN_RUNS, Curve, Trial, extrapolate
from voxloop.steps.evaluation.measuring import as_heard, in_blocks, normalisers
from voxloop.steps.evaluation.scores import score
from voxloop.steps.training import control, device_lock, disk, locks, recipes, suited
from voxloop.steps.training.files import CONFIG, LOG, STATUS, read_json, write_json
from voxloop.steps.training.recipes import Recipe

if TYPE_CHECKING:
    from voxloop.families.decoding import Decoding
    from voxloop.steps.datasets import DatasetRow
    from voxloop.workspace import Workspace

SHARES = (0.125, 0.25, 0.5, 1.0)
SEEDS = 3
STEPS = 120  # optimiser steps of each training run
TIMES = (2, 4)  # multiples of today's speech to forecast; beyond that it is a guess
MIN_CLIPS = 16  # in the train split: fewer cannot be divided
FEW_WORDS = 300  # with fewer, the interval is wide whatever is trained
RESULT = "result.json"
FORECAST = "forecast.json"
TURN_S = 0.5  # between two checks whether the device is free
START_S = 6.0  # time a training process needs to start and load

Told = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a forecast will train and measure, before it starts."""

    dataset: Dataset
    base: Model
    recipe: Recipe
    clips: tuple[int, ...]  # of each share, smallest first
    seeds: tuple[int, ...]
    split: Split  # measured on
    rows: tuple[DatasetRow, ...]  # of that split
    decoding: Decoding
    folder: Path
    done: int  # training runs already done
    seconds_each: float | None  # of one training run, if known from earlier ones

    @property
    def runs(self) -> int:
        return len(self.clips) * len(self.seeds)


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """The expected gain from more speech, and the evidence."""

    dataset: str
    base: str
    recipe: str
    steps: int
    split: Split
    utterances: int  # measured on
    words: int
    seconds: float  # of speech in the largest share
    seeds: int
    curve: Curve
    sentences: tuple[str, ...]  # conclusions in words

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan(
    ws: Workspace,
    base: str | None = None,
    *,
    dataset: str | None = None,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    shares: Sequence[float] = SHARES,
    seeds: int = SEEDS,
    steps: int = STEPS,
    split: Split = "val",
) -> Plan:
    """Plan a forecast. Raises UsageError if there is too little speech to divide or to measure on.

    It measures on val, because the test set loses value each time it decides something.
    No training run sees val here, so nothing is selected on the speech it is measured on.
    """
    if split == "train":
        raise UsageError("a forecast cannot be measured on the speech that it trains on: choose --split val")
    frozen = datasets.find(ws, dataset)
    model = models.base_model(ws, base)
    rows = datasets.rows(ws, frozen.id, split)
    clips = sorted({round(frozen.clips.get("train", 0) * share) for share in shares})
    if not all(0 < share <= 1 for share in shares) or len(clips) < 3:
        raise UsageError(
            f"shares {', '.join(f'{s:g}' for s in shares)}: give three different shares above 0 and at most 1"
        )
    if frozen.clips.get("train", 0) < MIN_CLIPS or clips[0] < 1:
        raise UsageError(
            f"dataset {frozen.name} has {frozen.clips.get('train', 0)} training clips, but a forecast needs at least "
            f"{MIN_CLIPS}: review more utterances and build a new dataset"
        )
    if not rows:
        raise UsageError(
            f"the {split} split of dataset {frozen.name} is empty, so there is nothing to measure on: build a dataset "
            "with a larger share for it (`voxloop dataset build --ratios 0.7/0.15/0.15`)"
        )
    if seeds < MIN_RUNS:
        raise UsageError(
            f"--seeds is {seeds}, but at least {MIN_RUNS} are needed to separate the effect of speech from chance"
        )
    folder = Path(models.model_folder(ws, model))
    chosen = suited(frozen, folder, recipe)
    # Training ends after a number of steps, the same for every share and machine.
    chosen = replace(recipes.override(chosen, overrides), max_steps=steps, max_seconds=None, max_epochs=None, seed=1)
    # These models are only measured, so they are not converted for an engine.
    decoding = as_heard(ws, rows, replace(transcripts.decoding(ws, model=model), engine="torch"))
    asked = [
        frozen.id,
        model.id,
        chosen.as_dict(),
        split,
        decoding.as_dict(),
        normalisers(rows, decoding, ws.settings.normaliser),
    ]
    id = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
    made = Plan(
        dataset=frozen,
        base=model,
        recipe=chosen,
        clips=tuple(clips),
        seeds=tuple(range(1, seeds + 1)),
        split=split,
        rows=tuple(rows),
        decoding=decoding,
        folder=ws.runs / f"forecast-{id}",
        done=0,
        seconds_each=None,
    )
    kept = [found for clips_, seed in _pairs(made) if (found := _kept(made, clips_, seed))]
    return replace(made, done=len(kept), seconds_each=_pace(ws, made, kept))


def _pairs(plan: Plan) -> list[tuple[int, int]]:
    """Clips and seed of each training run, seed by seed, so that an interrupted forecast covers all shares."""
    return [(clips, seed) for seed in plan.seeds for clips in plan.clips]


def _kept(plan: Plan, clips: int, seed: int) -> dict[str, Any] | None:
    """The result of an earlier training run; None if missing, or if it measured other utterances."""
    try:
        found = read_json(plan.folder / f"{clips}-{seed}" / RESULT)
    except (FileNotFoundError, ValueError):
        return None
    return found if set(found["errors"]) == {row.utterance for row in plan.rows} else None


def _pace(ws: Workspace, plan: Plan, kept: Sequence[dict[str, Any]]) -> float | None:
    """Seconds per training run, from this forecast or from the newest run of the same base."""
    if kept:
        return float(sum(one["took_s"] for one in kept) / len(kept))
    with ws.read() as reader:
        runs = [run for run in reader.all(Run) if run.base == plan.base.id and run.status == "completed"]
    for run in reversed(runs):
        step, elapsed_s = run.progress.get("step"), run.progress.get("elapsed_s")
        if step and elapsed_s:
            return float(START_S + elapsed_s / step * (plan.recipe.max_steps or 0))
    return None


def forecast(ws: Workspace, plan: Plan, *, told: Told | None = None) -> Forecast:
    """Train what is missing of a plan, and fit the curve. After Ctrl-C the same plan continues.

    `told` is called with a line for each training run. Raises TrainingError if one fails.
    """
    say = told or (lambda line: None)
    trials = []
    took: list[float] = []
    disk.check(ws.runs, Path(models.model_folder(ws, plan.base)), plan.recipe)
    _lay_out(ws, plan)
    kept = {pair: _kept(plan, *pair) for pair in _pairs(plan)}
    for number, ((clips, seed), result) in enumerate(kept.items(), 1):
        known = result is not None
        if result is None:
            result = _train(ws, plan, clips, seed, say)
            took.append(result["took_s"])
        left = sum(later is None for later in list(kept.values())[number:])
        pace = sum(took) / len(took) if took else plan.seconds_each
        eta = f", about {left * pace:.0f} s left" if left and pace else ""
        say(
            f"  {number}/{plan.runs}: {clips} clips, seed {seed}: WER {100 * result['wer']:.1f} %"
            f"{' (already done)' * known}{eta}"
        )
        errors = tuple(result["errors"][row.utterance] for row in plan.rows)
        trials.append(Trial(clips=clips, seed=seed, errors=errors))
    found = _fitted(ws, plan, trials)
    write_json(plan.folder / FORECAST, found.as_dict())
    shutil.rmtree(plan.folder / "data", ignore_errors=True)  # do not keep copies of speech longer than needed
    return found


def _lay_out(ws: Workspace, plan: Plan) -> None:
    """Write the training clips once, and a manifest for each share: nested, in a different order per seed."""
    if all(_kept(plan, *pair) for pair in _pairs(plan)):
        return
    data = plan.folder / "data"
    lines = datasets.write_split(ws, plan.dataset.id, "train", data).read_text(encoding="utf-8").splitlines()
    if len(lines) < plan.clips[-1]:
        raise UsageError(
            f"only {len(lines)} of {plan.clips[-1]} training clips of dataset {plan.dataset.name} are left: "
            "build a new dataset"
        )
    for clips, seed in _pairs(plan):
        placed = {datasets.position(f"forecast {seed} {json.loads(line)['id']}"): line for line in lines}
        chosen = [placed[place] for place in sorted(placed)[:clips]]
        (data / f"train-{clips}-{seed}.jsonl").write_text("".join(f"{line}\n" for line in chosen), encoding="utf-8")


def _train(ws: Workspace, plan: Plan, clips: int, seed: int, say: Told) -> dict[str, Any]:
    """Train on one share in a separate process, measure the model, and keep only the result."""
    folder = plan.folder / f"{clips}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    # A training process that survived its parent is followed to its end.
    child = control.find(folder)
    if child is None and control.last_words(folder)["status"] != "completed":
        child = _start(ws, plan, folder, clips, seed, say)
        began = time.monotonic()
    if child is not None:
        try:
            for _ in control.follow(child):
                pass
        except BaseException:
            child.stop()  # Ctrl-C: stop the child; its checkpoint is resumed later
            raise
        ending = control.ending(child)
        if ending.status != "completed":
            why = ending.error or "the training process was asked to stop"
            raise TrainingError(
                f"training on {clips} clips with seed {seed} ended early: {why}; see the log {folder / LOG}"
            )
    errors, words = _measure(ws, plan, folder / "final")
    result = {
        "clips": clips,
        "seed": seed,
        "errors": errors,
        "wer": sum(errors.values()) / max(words, 1),
        "took_s": round(time.monotonic() - began, 2),
    }
    write_json(folder / RESULT, result)
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    (folder / STATUS).unlink(missing_ok=True)  # its models are gone, so a lost result means training again
    return result


def _start(ws: Workspace, plan: Plan, folder: Path, clips: int, seed: int, say: Told) -> control.Child:
    """Start the training process once the device is free."""
    write_json(
        folder / CONFIG,
        {
            "run": folder.name,
            "family": plan.base.family,
            "base": models.model_folder(ws, plan.base),
            "train": f"../data/train-{clips}-{seed}.jsonl",
            "val": "none",  # no evaluation during training: the last weights count
            "recipe": replace(plan.recipe, seed=seed).as_dict(),
            "device": ws.settings.device or "auto",
            "threads": ws.settings.threads,
            "normaliser": ws.settings.normaliser,
        },
    )
    device, path = device_lock(ws)
    told = False
    while (lock := locks.take(path)) is None:
        if not told:
            say(f"  waiting for {device}, which {locks.note(path).get('run') or 'another training run'} is using")
            told = True
        time.sleep(TURN_S)
    with lock:
        lock.write({"run": f"{plan.folder.name}/{folder.name}", "workspace": str(ws.folder), "pid": os.getpid()})
        return control.start(folder, device=ws.settings.device, threads=ws.settings.threads, device_lock=lock)


def _measure(ws: Workspace, plan: Plan, folder: Path) -> tuple[dict[str, int], int]:
    """Word errors by utterance, and the total number of words."""
    recogniser = family(plan.base.family).load(str(folder), device=models.device(ws))
    errors: dict[str, int] = {}
    words = 0
    for language, block in in_blocks(plan.rows, plan.decoding):
        heard = hearing.hear(ws, recogniser, block, replace(plan.decoding, language=language))
        found = [(one.hypothesis.text, one.hypothesis.confidence) for one in heard]
        for one in score(block, found, language, ws.settings.normaliser):
            errors[one.utterance] = one.errors
            words += one.words
    return errors, words


def _fitted(ws: Workspace, plan: Plan, trials: Sequence[Trial]) -> Forecast:
    words = [
        one.words
        for row in plan.rows
        for one in score([row], [("", None)], row.language or plan.decoding.language, ws.settings.normaliser)
    ]
    most = plan.clips[-1]
    curve = extrapolate(trials, words, [row.recording for row in plan.rows], [most * times for times in TIMES])
    seconds = plan.dataset.hours["train"] * 3600 * most / max(plan.dataset.clips["train"], 1)
    return Forecast(
        dataset=plan.dataset.id,
        base=plan.base.id,
        recipe=plan.recipe.name,
        steps=plan.recipe.max_steps or 0,
        split=plan.split,
        utterances=len(plan.rows),
        words=sum(words),
        seconds=seconds,
        seeds=len(plan.seeds),
        curve=curve,
        sentences=sentences(curve, seconds=seconds, words=sum(words)),
    )


def sentences(curve: Curve, *, seconds: float, words: int) -> tuple[str, ...]:
    """The conclusions from a curve in words, or why there are none."""
    today = curve.measured[-1]
    fitted = f"; {100 * curve.today:.1f} % on the fitted curve" if curve.usable else ""
    said = [
        f"Today's {today.clips} clips ({spoken(seconds)}) give {_rate(today.wer)}, "
        f"{_span(today.low, today.high)}{fitted}."
    ]
    if not curve.usable:
        first = curve.measured[0]
        if curve.probability < FALLS:
            said.append(
                f"The gain from more speech cannot be estimated: from {first.clips} to {today.clips} clips, "
                f"{_rate(first.wer)} became {_rate(today.wer)}"
                + (", which may be chance." if today.wer < first.wer else "; these training runs may be too short.")
            )
        elif not curve.follows:
            rates = ", ".join(f"{at.clips} clips {100 * at.wer:.1f} %" for at in curve.measured)
            said.append(
                f"WER falls with more speech, but not along a curve that can be extrapolated ({rates}), so the further "
                "gain cannot be estimated."
            )
        else:
            said.append(
                f"WER falls with more speech, but the estimate is too uncertain: twice the speech may lower it by "
                f"{100 * curve.falls[0].low:.1f} to {100 * curve.falls[0].high:.1f} points."
            )
        more = f"use a larger val split (it has {words} words), " if words < FEW_WORDS else ""
        seeds = "use more seeds (--seeds 6), or " if curve.follows else ""
        said.append(f"For a better estimate, {more}{seeds}train longer (--steps 300).")
        return tuple(said)
    for at, fall in zip(curve.forecast, curve.falls, strict=True):
        times = at.clips // today.clips
        said.append(
            f"{times} times the speech ({at.clips} clips, {spoken(seconds * times)}) would give about "
            f"{_rate(at.wer)}, {_span(at.low, at.high)}: {100 * fall.wer:.1f} points less "
            f"({100 * fall.low:.1f} to {100 * fall.high:.1f})."
        )
    return tuple(said)


def spoken(seconds: float) -> str:
    """A length of speech in words: 45 s, 3.2 min, 1.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _rate(share: float) -> str:
    return f"a WER of {100 * share:.1f} %"


def _span(low: float, high: float) -> str:
    return f"95 % interval {100 * low:.1f} to {100 * high:.1f}"


def newest(ws: Workspace, dataset: str) -> dict[str, Any] | None:
    """The newest stored forecast for a dataset, as written by `Forecast.as_dict`."""
    found = sorted(ws.runs.glob(f"forecast-*/{FORECAST}"), key=lambda path: path.stat().st_mtime)
    for path in reversed(found):
        values = read_json(path)
        if values["dataset"] == dataset:
            return values
    return None
