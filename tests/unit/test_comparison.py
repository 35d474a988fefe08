"""The gate: verdicts, their wording, and the guards."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit import frozen_speech
from voxloop import comparison, transcripts
from voxloop.comparison import Comparison, Guard, compare, judge
from voxloop.datasets import DatasetRow
from voxloop.errors import ConflictError, UsageError
from voxloop.evaluation import Scored, evaluate
from voxloop.pipeline import open_loop
from voxloop.records import Evaluation
from voxloop.significance import Paired
from voxloop.workspace import Workspace

Heard = Callable[[int, DatasetRow], str]


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return open_loop(tmp_path / "workspace", create=True, threads=1, device="cpu", min_snr_db=-99.0)


def both(ws: Workspace, folder: Path, before: Heard, after: Heard, *, clips: int = 24) -> tuple[Evaluation, Evaluation]:
    """Challenger and champion, evaluated; they hear what they are told to."""
    old, new = frozen_speech.models(folder)
    frozen = frozen_speech.freeze(ws, folder / "speech", clips=clips)
    frozen_speech.remember(ws, transcripts.base_model(ws, str(old)), frozen, before)
    frozen_speech.remember(ws, transcripts.base_model(ws, str(new)), frozen, after)
    return evaluate(ws, str(new)), evaluate(ws, str(old))


def test_a_better_model_is_promoted_and_the_reasons_hold_the_numbers(ws: Workspace, tmp_path: Path) -> None:
    found = compare(ws, *both(ws, tmp_path, frozen_speech.wrong_in(0.75), frozen_speech.wrong_in(0.0)))
    assert found.verdict == "promote"
    assert (found.wer_before, found.wer_after) == (pytest.approx(0.15), 0.0)
    assert found.difference_low < found.difference < found.difference_high < 0
    assert (found.probability, found.models_measured, found.utterances, found.words) == (1.0, 2, 24, 120)
    assert found.reasons[0] == "word error rate fell from 15.0 % to 0.0 % on 24 test utterances of 24 recordings"
    assert found.reasons[2].startswith("better in 100.0 % of 10,000 resamples")
    assert all(guard.passed for guard in found.guards)
    assert Comparison.from_dict(json.loads(json.dumps(found.as_dict()))) == found


def test_the_same_outputs_are_never_promoted(ws: Workspace, tmp_path: Path) -> None:
    found = compare(ws, *both(ws, tmp_path, frozen_speech.wrong_in(0.5), frozen_speech.wrong_in(0.5)))
    assert found.verdict == "reject"
    assert found.reasons == ("no better: word error rate stayed at 10.0 % on 24 test utterances of 24 recordings",)


def test_a_clearly_worse_model_is_rejected(ws: Workspace, tmp_path: Path) -> None:
    found = compare(ws, *both(ws, tmp_path, frozen_speech.wrong_in(0.0), frozen_speech.wrong_in(0.75)))
    assert found.verdict == "reject"
    assert found.reasons[0].startswith("clearly worse: word error rate rose from 0.0 % to 15.0 %")


def test_a_small_gain_may_be_luck(ws: Workspace, tmp_path: Path) -> None:
    found = compare(ws, *both(ws, tmp_path, frozen_speech.wrong_in(0.5), frozen_speech.wrong_in(0.42)))
    assert found.wer_after < found.wer_before
    assert found.verdict == "insufficient evidence"
    assert "this may be luck: test on more recordings" in found.reasons[0]


def test_a_small_test_is_no_evidence_however_good_the_result(ws: Workspace, tmp_path: Path) -> None:
    pair = both(ws, tmp_path, frozen_speech.wrong_in(1.0), frozen_speech.wrong_in(0.0), clips=12)
    found = compare(ws, *pair)
    assert found.verdict == "insufficient evidence"
    assert found.reasons[0].startswith("only 12 test utterances, 20 are needed")


def test_one_speaker_may_not_pay_for_the_others(ws: Workspace, tmp_path: Path) -> None:
    def for_ann(number: int, row: DatasetRow) -> str:
        return row.text if row.speaker == "ann" else row.text.replace(" ", "x ", 2)

    pair = both(ws, tmp_path, lambda number, row: row.text + " uh oh oh no no no no" * (row.speaker == "ann"), for_ann)
    found = compare(ws, *pair)
    assert found.wer_after < found.wer_before
    assert found.verdict == "reject"
    assert "clearly worse for speaker bob (0.0 % to 40.0 %)" in found.reasons[0]


def test_evaluations_under_other_conditions_do_not_compare(ws: Workspace, tmp_path: Path) -> None:
    new, old = both(ws, tmp_path, frozen_speech.wrong_in(0.5), frozen_speech.wrong_in(0.0), clips=6)
    for change in ({"dataset": "sha256-other"}, {"split": "val"}, {"normaliser": "x/2"}, {"decoding": {"beams": 5}}):
        changed: Any = replace(new, **change)
        with pytest.raises(UsageError, match=f"differ in {next(iter(change))}"):
            compare(ws, changed, old)


def test_a_changed_file_is_noticed(ws: Workspace, tmp_path: Path) -> None:
    new, old = both(ws, tmp_path, frozen_speech.wrong_in(0.5), frozen_speech.wrong_in(0.0), clips=6)
    kept = ws.blobs.get(new.hypotheses)
    ws.blobs.delete(new.hypotheses)
    ws.blobs.put(new.hypotheses, kept.replace(b"quick brown", b"quick black"))
    with pytest.raises(ConflictError, match="do not hold the same references"):
        compare(ws, new, old)


# The verdict from the numbers

SURE = Paired(difference=-0.1, low=-0.15, high=-0.05, probability=1.0, chance=0.001)
GOOD = (Guard(name="slices", passed=True, finding="none"),)


def verdict(found: Paired, *, utterances: int = 100, guards: tuple[Guard, ...] = GOOD) -> tuple[str, tuple[str, ...]]:
    return judge(
        found,
        rates=(0.2, 0.2 + found.difference),
        utterances=utterances,
        recordings=utterances,
        guards=guards,
        confidence=0.95,
        min_utterances=20,
    )


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (SURE, "promote"),
        (replace(SURE, probability=0.95, chance=0.05), "promote"),
        (replace(SURE, probability=0.949), "insufficient evidence"),
        (replace(SURE, chance=0.051), "insufficient evidence"),
        (replace(SURE, difference=0.0, low=-0.1, high=0.1, probability=0.5, chance=0.5), "reject"),
        (replace(SURE, difference=0.1, low=0.05, high=0.15, probability=0.0, chance=1.0), "reject"),
    ],
)
def test_verdicts_follow_from_the_numbers(found: Paired, expected: str) -> None:
    assert verdict(found)[0] == expected


def test_a_failed_guard_rejects_and_says_which() -> None:
    failed = (Guard(name="silence", passed=False, finding="hears words in silence"), *GOOD)
    decided, reasons = verdict(SURE, guards=failed)
    assert decided == "reject"
    assert reasons[0] == "hears words in silence"
    assert reasons[1].startswith("although word error rate fell from 20.0 % to 10.0 %")


def test_too_few_utterances_come_before_everything() -> None:
    assert verdict(SURE, utterances=19)[0] == "insufficient evidence"
    assert verdict(SURE, utterances=20)[0] == "promote"


# Guards


def evaluation(*, silence: int = 0, joined: float | None = None) -> Evaluation:
    scores: dict[str, Any] = {"silence": {"inputs": 4, "words": silence, "texts": ["you"] * silence}}
    if joined is not None:
        scores["joined"] = {"inputs": 3, "words": 100, "errors": round(100 * joined), "wer": joined, "texts": []}
    return Evaluation(
        id="e", model="m", dataset="d", split="test", decoding={}, normaliser="n", scores=scores, hypotheses="h"
    )


@pytest.mark.parametrize(("before", "after", "passed"), [(0, 0, True), (2, 2, True), (3, 1, True), (0, 1, False)])
def test_silence_may_not_begin_to_speak(before: int, after: int, passed: bool) -> None:
    guard = comparison._silence_guard(evaluation(silence=after), evaluation(silence=before))
    assert guard.passed == passed
    assert passed or "'you'" in guard.finding


@pytest.mark.parametrize(
    ("before", "after", "passed"),
    [(0.2, 0.29, True), (0.2, 0.31, False), (0.9, 1.5, True), (None, None, True)],
)
def test_joined_speech_may_not_become_much_worse(before: float | None, after: float | None, passed: bool) -> None:
    assert comparison._joined_guard(evaluation(joined=after), evaluation(joined=before)).passed == passed


def scored(number: int, speaker: str, errors: int, *, words: int = 5) -> Scored:
    return Scored(
        utterance=f"r{number}:0-1",
        recording=f"r{number}",
        speaker=speaker,
        language="en",
        duration=1.0,
        reference="",
        hypothesis="",
        confidence=None,
        words=words,
        errors=errors,
        substitutions=errors,
        deletions=0,
        insertions=0,
        characters=0,
        character_errors=0,
        orthographic_words=0,
        orthographic_errors=0,
    )


def test_small_slices_and_small_losses_are_not_held_against_a_model() -> None:
    few = [scored(n, "ann", 0) for n in range(9)] + [scored(n, "bob", 2) for n in range(9, 40)]
    worse = [replace(row, errors=3) if row.speaker == "ann" else replace(row, errors=0) for row in few]
    assert comparison._slice_guard(few, worse).passed  # nine utterances are too few to judge
    many = [scored(n, "ann", 0, words=200) for n in range(40)] + [scored(n, "bob", 2) for n in range(40, 80)]
    trifle = [replace(row, errors=1) if row.speaker == "ann" else replace(row, errors=0) for row in many]
    assert comparison._slice_guard(many, trifle).passed  # half a point, though every utterance lost
    blow = [replace(row, errors=4) if row.speaker == "ann" else replace(row, errors=0) for row in many]
    assert not comparison._slice_guard(many, blow).passed
