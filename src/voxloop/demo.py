"""The whole loop, end to end, on one speaker: the script to read first.

Takes a folder of speech with transcripts and runs every step of the loop on it:
ingest, transcribe, freeze, train, evaluate, promote. Then it shows how both models
transcribe clips that neither was trained on.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from voxloop.advice import spelled_out
from voxloop.automation.worker import work
from voxloop.errors import UsageError
from voxloop.pipeline import open_loop
from voxloop.records import Dataset, Evaluation, Utterance
from voxloop.settings import CONFIG_NAME
from voxloop.steps import datasets, evaluation, training
from voxloop.steps.evaluation import evaluate, scored_rows
from voxloop.steps.gate import promotion
from voxloop.steps.gate.comparison import compare, percent
from voxloop.steps.recordings import ingest
from voxloop.workspace import Workspace

MOST_CLIPS = 2000  # ingested at most, so that the demo ends within minutes
VAL_CLIPS = 30
SHOWN = 10  # rows of the last table

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoResult:
    """The result of the demo, also written to `result.json`."""

    wer_before: float
    wer_after: float
    test_utterances: int
    train_clips: int
    train_seconds: float
    total_seconds: float
    verdict: str  # of the gate, or "kept the base" if training found no gain on val
    workspace: str


def run_demo(
    audio: Path,
    *,
    speaker: str | None,
    clips: int,
    train_seconds: float | None,
    out: Path,
    say: Say,
    base: str | None = None,
    overrides: Sequence[str] = (),
) -> DemoResult:
    """Run the loop on `audio` in a new workspace below `out`, training on at most `clips` clips.

    `base` is the model to start from (default: the setting `base_model`). Training takes at most `train_seconds`
    (default: that of the recipe `quick`); `overrides` are `key=value` settings of that recipe.
    """
    began = time.monotonic()
    folder = _new_folder(out)
    with open_loop(folder, create=True, min_clip_s=0.1, **({"base_model": base} if base else {})) as ws:
        say(f"workspace: {folder}")
        _take(ws, audio, speaker, say)
        dataset = _freeze(ws, clips, say)

        run = training.submit(ws, dataset=dataset.id, recipe="quick", overrides=overrides, max_seconds=train_seconds)
        most = run.recipe["max_seconds"]
        say(
            f"\n4. Train: fine-tune {ws.settings.base_model}"
            + (f" for at most {most:.0f} s" if most else "")
            + ", in a separate process"
        )
        started = time.monotonic()
        run = training.see_through(ws, run.id, progress=_training_lines(say))
        train_took = time.monotonic() - started
        for note in run.progress.get("notes", ()):
            say(f"   {note}")
        if run.model is None:
            return _kept_base(ws, dataset, train_took, began, folder, out, say)

        say("\n5. Evaluate both models on the same unseen clips, and promote the new one if it is significantly better")
        outcome = promotion.promote(ws, run.model, dataset=dataset.id, by="demo")
        comparison = outcome.comparison
        if comparison is None:  # not tried on the test set; looking at the clips is free
            say(f"   {outcome.message}")
            new, old = (evaluate(ws, model, dataset=dataset.id) for model in (run.model, outcome.reigning))
            comparison = compare(ws, new, old)
        texts = ", nor on their texts" if comparison.rests_on == "new texts" else ""
        say(f"   {comparison.utterances} clips that neither model was trained on{texts}:")
        say(f"   {'':<24}{'before':>10}{'after':>10}")
        say(f"   {'word error rate':<24}{percent(comparison.wer_before):>10}{percent(comparison.wer_after):>10}")
        say(f"   {'character error rate':<24}{percent(comparison.cer_before):>10}{percent(comparison.cer_after):>10}")
        for part in comparison.texts:
            told = "all clips" if part.texts == "all" else f"texts {part.texts}" if part.texts != "new" else "new texts"
            rates = f"{percent(part.wer_before):>10}{percent(part.wer_after):>10}"
            say(f"   {'  ' + told:<24}{rates}  ({part.utterances} clips)")
        verdict = outcome.verdict or comparison.verdict
        say(f"   verdict: {verdict}")
        for reason in comparison.reasons:
            say(f"     {reason}")
        if outcome.next_step:
            say(f"   next: {spelled_out(ws, outcome.next_step, run.model)}")
        _side_by_side(ws, comparison.champion_evaluation, comparison.challenger_evaluation, say)
        result = DemoResult(
            wer_before=comparison.wer_before,
            wer_after=comparison.wer_after,
            test_utterances=comparison.utterances,
            train_clips=dataset.clips["train"],
            train_seconds=round(train_took, 1),
            total_seconds=round(time.monotonic() - began, 1),
            verdict=verdict,
            workspace=str(folder),
        )
    _write_result(out, result)
    _farewell(result, folder, out, say)
    return result


def _kept_base(
    ws: Workspace, dataset: Dataset, train_took: float, began: float, folder: Path, out: Path, say: Say
) -> DemoResult:
    """Report the result of a run that found no gain on val: the base stays."""
    say("\n5. Evaluate the base model, which stays in use")
    measured = evaluation.evaluate(ws, dataset=dataset.id)
    result = DemoResult(
        wer_before=measured.scores["wer"],
        wer_after=measured.scores["wer"],
        test_utterances=dataset.clips["test"],
        train_clips=dataset.clips["train"],
        train_seconds=round(train_took, 1),
        total_seconds=round(time.monotonic() - began, 1),
        verdict="kept the base",
        workspace=str(folder),
    )
    _write_result(out, result)
    _farewell(result, folder, out, say)
    return result


def _new_folder(out: Path) -> Path:
    """An empty folder for the workspace; an earlier demo's workspace is removed, anything else is kept."""
    folder = out / "workspace"
    if folder.exists():
        if not (folder / CONFIG_NAME).exists():
            raise UsageError(f"{folder} already exists and is not a workspace: name another folder with --out")
        shutil.rmtree(folder)
    return folder


def _take(ws: Workspace, audio: Path, speaker: str | None, say: Say) -> None:
    """Ingest audio and run the workers on it."""
    say(f"\n1. Ingest {audio}" + (f", speaker {speaker}" if speaker else ""))
    report = ingest(ws, audio, speakers=[speaker] if speaker else None, limit=MOST_CLIPS)
    say(
        f"   {len(report.taken)} clips ingested ({report.seconds_of_audio / 60:.1f} min of audio), "
        f"{len(report.known)} already known, {len(report.refused)} refused, in {report.elapsed:.1f} s"
    )
    for refusal in report.refused[:5]:
        say(f"   refused: {refusal.path}: {refusal.message}")
    if not report.taken:
        who = f" of speaker {speaker!r}" if speaker else ""
        raise UsageError(f"found no usable clips{who} in {audio}: name a folder of audio with a metadata.jsonl")
    say(f"\n2. Transcribe with {ws.settings.base_model}, as for all new audio")
    started = time.monotonic()
    work(ws, until_idle=True)
    say(f"   segmented, transcribed and indexed in {time.monotonic() - started:.1f} s")


def _freeze(ws: Workspace, clips: int, say: Say) -> Dataset:
    say("\n3. Freeze a dataset. Here the texts of metadata.jsonl take the place of reviewed transcripts;")
    say("   for your own speech, make them with `voxloop review`.")
    with ws.read() as reader:
        count = reader.count(Utterance)
    # A hash assigns the splits, so the training split is offered somewhat more than `clips`.
    train = min(0.6, 1.4 * clips / max(count, 1))
    val = min(0.1, VAL_CLIPS / max(count, 1))
    dataset = datasets.build(ws, ratios=(train, val, 1 - train - val), train_limit=clips)
    say("   " + ", ".join(f"{number} {split}" for split, number in dataset.clips.items()) + " clips")
    for reason, number in dataset.excluded.items():
        say(f"   left out: {number} {reason}")
    return dataset


def _training_lines(say: Say) -> Callable[[dict[str, Any]], None]:
    def told(line: dict[str, Any]) -> None:
        for kind, place in (("val", f"step {line.get('step', 0):>5}"), ("blend", f"blend {line.get('blend', 0):>4g}")):
            if line.get(f"{kind}_wer") is not None:
                say(
                    f"   {place}  val WER {percent(line[f'{kind}_wer']):>7}  loss {line[f'{kind}_loss']:.3f}  "
                    f"{line.get('elapsed_s', 0):>4.0f} s"
                )

    return told


def _side_by_side(ws: Workspace, before: str, after: str, say: Say) -> None:
    """Show how both models transcribe unseen clips, beginning with some that differ."""
    with ws.read() as reader:
        heard_before = scored_rows(ws, reader.get(Evaluation, before))
        heard_after = scored_rows(ws, reader.get(Evaluation, after))
    pairs = sorted(zip(heard_before, heard_after, strict=True), key=lambda pair: datasets.position(pair[0].utterance))
    # In half of the rows the models differ, for better or worse, so that the table shows a difference.
    differing = [pair for pair in pairs if pair[0].errors != pair[1].errors][: SHOWN // 2]
    others = [pair for pair in pairs if pair not in differing][: SHOWN - len(differing)]
    say("\n6. Unseen clips, transcribed by both models")
    say(f"   {'reference':<28}{'before':<28}after")
    for old, new in differing + others:
        say(f"   {_fitted(old.reference)}{_fitted(old.hypothesis)}{_fitted(new.hypothesis).rstrip()}")


def _fitted(text: str, width: int = 28) -> str:
    shown = text or "(empty)"
    return (shown if len(shown) < width - 1 else shown[: width - 3] + "…").ljust(width)


def _write_result(out: Path, result: DemoResult) -> None:
    (out / "result.json").write_text(json.dumps(asdict(result), indent=2) + "\n")


def _farewell(result: DemoResult, folder: Path, out: Path, say: Say) -> None:
    say(
        f"\nWER {percent(result.wer_before)} -> {percent(result.wer_after)} on {result.test_utterances} unseen clips, "
        f"trained on {result.train_clips} clips, {result.total_seconds:.0f} s in total; see {out / 'result.json'}"
    )
    say("\nLook around:         " + f"voxloop -C {folder} status | model list | events")
    say("Your own voice:      voxloop ingest FOLDER --speaker ME; voxloop worker --until-idle; voxloop review list;")
    say('                     voxloop review save UTTERANCE "what was said"; voxloop dataset build; voxloop train')
    say("A real base model:   voxloop demo FOLDER --base base, or train --base base; `voxloop base list` shows others")
