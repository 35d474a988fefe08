"""The gate: verdicts, their wording, and the guards."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit import frozen_speech
from voxloop import models
from voxloop.errors import ConflictError, UsageError
from voxloop.pipeline import open_loop
from voxloop.records import Evaluation, Model
from voxloop.settings import Settings
from voxloop.steps.datasets import DatasetRow
from voxloop.steps.evaluation import Scored, evaluate
from voxloop.steps.evaluation.significance import Paired
from voxloop.steps.gate import guards
from voxloop.steps.gate.comparison import Comparison, Guard, compare, judge, verdict_of
from voxloop.workspace import Workspace

Heard = Callable[[int, DatasetRow], str]


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return open_loop(tmp_path / "workspace", create=True, threads=1, device="cpu", min_snr_db=-99.0)


def both(ws: Workspace, folder: Path, before: Heard, after: Heard, *, clips: int = 24) -> tuple[Evaluation, Evaluation]:
    """Challenger and champion, evaluated; they hear what they are told to."""
    old, new = frozen_speech.models(folder)
    frozen = frozen_speech.freeze(ws, folder / "speech", clips=clips)
    frozen_speech.remember(ws, models.base_model(ws, str(old)), frozen, before)
    frozen_speech.remember(ws, models.base_model(ws, str(new)), frozen, after)
    return evaluate(ws, str(new)), evaluate(ws, str(old))


def test_a_better_model_is_promoted_and_the_reasons_hold_the_numbers(ws: Workspace, tmp_path: Path) -> None:
    found = compare(ws, *both(ws, tmp_path, frozen_speech.wrong_in(0.75), frozen_speech.wrong_in(0.0)))
    assert found.verdict == "promote"
    assert (found.wer_before, found.wer_after) == (pytest.approx(0.15), 0.0)
    assert found.difference_low < found.difference < found.difference_high < 0
    assert (found.probability, found.models_measured, found.utterances, found.words) == (1.0, 2, 24, 120)
    assert found.reasons[0] == "word error rate fell from 15.0 % to 0.0 % on 24 test utterances of 24 recordings"
    assert found.reasons[2].endswith("% of cases; at most 2.5 % are accepted")
    assert found.reasons[3] == "shown for the 2 speakers of this test, not for others"
    assert (found.rank, found.accepted, found.counted_by) == (1, pytest.approx(0.025), "recording")
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
    assert found.reasons[0].endswith("but this may be luck")
    assert found.needed_utterances is not None
    assert found.needed_utterances > 24
    assert f"{found.needed_utterances} test utterances ({found.needed_utterances - 24} more)" in found.reasons[1]


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


def test_how_much_was_decoded_at_once_does_not_matter(ws: Workspace, tmp_path: Path) -> None:
    new, old = both(ws, tmp_path, frozen_speech.wrong_in(0.5), frozen_speech.wrong_in(0.0), clips=6)
    changed = replace(new, decoding=new.decoding | {"batch_seconds": 7.0})
    assert compare(ws, changed, old).verdict == compare(ws, new, old).verdict


def test_models_of_one_family_are_compared_on_one_engine_and_others_on_their_own(ws: Workspace, tmp_path: Path) -> None:
    new, old = both(ws, tmp_path, frozen_speech.wrong_in(0.5), frozen_speech.wrong_in(0.0), clips=6)
    faster = replace(old, decoding=old.decoding | {"engine": "ctranslate2-int8"})
    with pytest.raises(UsageError, match="differ in decoding"):
        compare(ws, new, faster)
    with ws.catalog.write() as tx:
        tx.add(Model(id="sha256-other", family="voxtral", base="b", kind="full", where="w"))
    assert compare(ws, replace(new, model="sha256-other"), faster).verdict == compare(ws, new, old).verdict


def test_a_changed_file_is_noticed(ws: Workspace, tmp_path: Path) -> None:
    new, old = both(ws, tmp_path, frozen_speech.wrong_in(0.5), frozen_speech.wrong_in(0.0), clips=6)
    kept = ws.blobs.get(new.hypotheses)
    ws.blobs.delete(new.hypotheses)
    ws.blobs.put(new.hypotheses, kept.replace(b"quick brown", b"quick black"))
    with pytest.raises(ConflictError, match="do not hold the same references"):
        compare(ws, new, old)


# The verdict from the numbers

SURE = Paired(
    difference=-0.1,
    low=-0.15,
    high=-0.05,
    probability=1.0,
    chance=0.001,
    chance_worse=1.0,
    clusters=100,
    differing=40,
    saved=50,
    squares=200,
    unheard=5,
)
GOOD = (Guard(name="slices", passed=True, finding="none"),)
SETTINGS = Settings()


def verdict(
    found: Paired, *, utterances: int = 100, guards: tuple[Guard, ...] = GOOD, needed: int | None = 300
) -> tuple[str, tuple[str, ...]]:
    return verdict_of(
        found,
        rates=(0.2, 0.2 + found.difference),
        utterances=utterances,
        counted=f"{utterances} recordings",
        needed_utterances=needed,
        guards=guards,
        accepted=0.025,
        settings=SETTINGS,
    )


@pytest.mark.parametrize(
    ("found", "expected", "why"),
    [
        (SURE, "promote", "fell from 20.0 % to 10.0 %"),
        (replace(SURE, chance=0.025), "promote", "fell from"),
        (replace(SURE, chance=0.026), "insufficient evidence", "may be luck"),
        (replace(SURE, difference=-0.003), "reject", "better by too little"),
        (replace(SURE, difference=0.0, chance=0.5), "reject", "stayed at 20.0 %"),
        (replace(SURE, difference=0.1, chance_worse=0.5), "reject", "no better"),
        (replace(SURE, difference=0.1, chance_worse=0.05), "reject", "clearly worse"),
    ],
)
def test_verdicts_follow_from_the_numbers(found: Paired, expected: str, why: str) -> None:
    decided, reasons = verdict(found)
    assert decided == expected
    assert why in reasons[0]


def test_luck_is_answered_with_the_number_of_clips_that_would_settle_it() -> None:
    doubtful = replace(SURE, chance=0.2)
    assert "300 test utterances (200 more) would show it" in verdict(doubtful)[1][1]
    assert "even 100 times as many" in verdict(doubtful, needed=None)[1][1]


def test_a_guard_that_cannot_tell_leaves_the_evidence_insufficient() -> None:
    unsure = (Guard(name="general", passed=False, unsure=True, finding="too few to tell"), *GOOD)
    decided, reasons = verdict(SURE, guards=unsure)
    assert (decided, reasons[0]) == ("insufficient evidence", "too few to tell")


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


def evaluation(*, silence: Sequence[int] = (0,) * 20, joined: float | None = None, **scores: Any) -> Evaluation:
    """An evaluation that heard so many words in each of the sounds without speech."""
    counts = {f"sound {number}": count for number, count in enumerate(silence)}
    scores["silence"] = {"inputs": 20, "words": sum(silence), "counts": counts, "texts": []}
    scores["noise"] = {"inputs": 0, "words": 0, "counts": {}, "texts": []}
    if joined is not None:
        scores["joined"] = {"inputs": 3, "words": 100, "errors": round(100 * joined), "wer": joined, "texts": []}
    return Evaluation(
        id="e", model="m", dataset="d", split="test", decoding={}, normaliser="n", scores=scores, hypotheses="h"
    )


@pytest.mark.parametrize(
    ("before", "after", "passed", "said"),
    [
        ([0] * 20, [0] * 20, True, "nothing heard in 20 sounds"),
        ([1, *[0] * 19], [1, 2, *[0] * 18], True, "which may be luck"),  # what once refused a far better model
        ([0] * 20, [*[1] * 6, *[0] * 14], True, "which may be luck (1.6 %)"),
        ([0] * 20, [*[1] * 7, *[0] * 13], False, "chance of luck 0.78 %"),
        ([2] * 10 + [0] * 10, [1] * 20, True, "20 words in 20 of 20"),
    ],
)
def test_silence_may_not_begin_to_speak_luck_aside(
    before: list[int], after: list[int], passed: bool, said: str
) -> None:
    guard = guards.silence_guard(evaluation(silence=after), evaluation(silence=before), more_words=0)
    assert (guard.passed, guard.measured) == (passed, True)
    assert said in guard.finding
    assert guards.silence_guard(evaluation(silence=after), evaluation(silence=before), more_words=20).passed


def test_silence_of_an_earlier_version_is_not_compared() -> None:
    old = evaluation()
    del old.scores["silence"]["counts"]
    guard = guards.silence_guard(evaluation(silence=[3] * 20), old, more_words=0)
    assert (guard.passed, guard.measured, guard.state) == (True, False, "not measured")


def test_a_model_that_is_worse_on_another_engine_is_held_back() -> None:
    rows = [scored(n, "ann", 2) for n in range(40)]

    def heard(worse: int) -> guards.Guard:
        after = [replace(row, errors=3) if n < worse else row for n, row in enumerate(rows)]
        return guards.engine_guard(rows, after, engine="ctranslate2-int8")

    assert (heard(0).state, heard(3).state, heard(20).state) == ("kept", "not sure", "failed")
    assert "on ctranslate2-int8: word error rate 40.0 % before, 50.0 % after" in heard(20).finding


def test_a_language_that_is_found_no_more_is_held_against_a_model() -> None:
    rows = [replace(scored(n, "ann", 0), language="vi", detected="vi") for n in range(40)]

    def lost(count: int) -> guards.Guard:
        return guards.language_guard(rows, [replace(r, detected="en") if n < count else r for n, r in enumerate(rows)])

    assert (lost(0).state, lost(6).state, lost(7).state) == ("kept", "kept", "failed")
    assert "language detected wrongly in 7 of 40 test clips, in 0 before" in lost(7).finding
    deaf = [replace(row, detected=None) for row in rows]
    assert guards.language_guard(rows, deaf).state == "not measured"


def test_words_may_not_drift_in_time() -> None:
    rows = [replace(scored(n, "ann", 0), edge_error_s=0.2) for n in range(40)]

    def moved(count: int, to: float, **values: Any) -> guards.Guard:
        after = [replace(row, edge_error_s=to, **values) if n < count else row for n, row in enumerate(rows)]
        return guards.times_guard(rows, after)

    assert moved(40, 0.25).state == "kept"  # 25 ms at each end: less than the margin
    assert moved(40, 0.5).state == "failed"
    assert "words lie 250 ms from the ends of the speech on average, 100 ms before" in moved(40, 0.5).finding
    assert "which may be luck" in moved(3, 10.0).finding
    timed = [replace(row, timed_words=4, start_error_s=0.2, end_error_s=0.2) for row in rows]
    late = [replace(row, start_error_s=1.0) for row in timed]
    assert "from the references' times" in guards.times_guard(timed, late).finding
    assert guards.times_guard(timed, late).state == "failed"
    bare = [scored(n, "ann", 0) for n in range(4)]
    assert guards.times_guard(bare, bare).state == "not measured"


def test_capitals_and_punctuation_may_not_be_lost() -> None:
    def said(reference: str, hypothesis: str, count: int = 20) -> list[Scored]:
        return [replace(scored(n, "ann", 0), reference=reference, hypothesis=hypothesis) for n in range(count)]

    good = said("Well, Ann came.", "Well, Ann came.")
    lost = guards.written_guard(good, said("Well, Ann came.", "well ann came"))
    assert lost.state == "failed"
    assert "capitals and punctuation: 100.0 % of 60 words" in lost.finding
    # A word that the champion did not hear is no loss, however the challenger writes it.
    assert guards.written_guard(said("Well, Ann came.", "came."), said("Well, Ann came.", "well ann came.")).passed
    # What the references do not have is not asked for.
    assert guards.written_guard(
        said("well, ann came", "Well, Ann came"), said("well, ann came", "well, ann came")
    ).passed
    plain = guards.written_guard(said("well ann came", "Well, Ann came."), said("well ann came", "well ann came"))
    assert plain.state == "not measured"


def test_texts_of_unlabelled_speech_may_not_fall_silent_loop_or_change_their_length() -> None:
    def heard(odd: int, characters: int = 40, clips: int = 40) -> Evaluation:
        each = {
            f"clip {n}": {"seconds": 3.0, "characters": characters + n, "odd": "empty" if n < odd else ""}
            for n in range(clips)
        }
        return evaluation(unlabelled={"each": each})

    def judged(*after: int) -> guards.Guard:
        return guards.unlabelled_guard(heard(*after), heard(1))

    assert (judged(1).state, judged(7).state, judged(8).state) == ("kept", "kept", "failed")
    assert "8 of 40 clips without a reference came out empty, looping or too long for their sound, 1 before" in (
        judged(8).finding
    )
    assert judged(1, 10).state == "not sure"
    assert judged(1, 35).state == "kept"
    assert judged(1, 40, 19).state == "not measured"
    assert guards.unlabelled_guard(evaluation(unlabelled=None), heard(1)).state == "not measured"


@pytest.mark.parametrize(
    ("before", "after", "passed"),
    [(0.2, 0.29, True), (0.2, 0.31, False), (0.9, 1.5, True), (None, None, True)],
)
def test_joined_speech_may_not_become_much_worse(before: float | None, after: float | None, passed: bool) -> None:
    assert guards.joined_guard(evaluation(joined=after), evaluation(joined=before), margin=0.1).passed == passed


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
    assert guards.slice_guard(few, worse, margin=0.01).passed  # nine utterances are too few to judge
    many = [scored(n, "ann", 0, words=200) for n in range(40)] + [scored(n, "bob", 2) for n in range(40, 80)]
    trifle = [replace(row, errors=1) if row.speaker == "ann" else replace(row, errors=0) for row in many]
    assert guards.slice_guard(many, trifle, margin=0.01).passed  # half a point, though every utterance lost
    blow = [replace(row, errors=4) if row.speaker == "ann" else replace(row, errors=0) for row in many]
    assert not guards.slice_guard(many, blow, margin=0.01).passed


def test_many_slices_are_forgiven_what_one_is_not() -> None:
    """Five of five clips worse are luck in one of 32 slices: clear for one slice alone, not for one of thirty."""

    def spoken(speakers: int) -> tuple[list[Scored], list[Scored]]:
        rows = [scored(n, f"s{n // 12}", 1, words=20) for n in range(12 * speakers)]
        return rows, [replace(row, errors=2) if row.speaker == "s0" and n < 6 else row for n, row in enumerate(rows)]

    assert not guards.slice_guard(*spoken(2), margin=0.01).passed
    assert guards.slice_guard(*spoken(30), margin=0.01).passed


def test_clips_of_one_recording_are_not_counted_as_many() -> None:
    """Twelve clips of ann lost, all in one recording: one recording shows nothing."""
    rows = [scored(n, "ann" if n < 12 else "bob", 1, words=20) for n in range(60)]
    worse = [replace(row, errors=3) if row.speaker == "ann" else row for row in rows]
    assert not guards.slice_guard(rows, worse, margin=0.01).passed
    together = [[replace(row, recording=row.speaker or "") for row in part] for part in (rows, worse)]
    assert guards.slice_guard(*together, margin=0.01).passed


def test_many_speakers_are_counted_and_few_are_not() -> None:
    def heard(speakers: int) -> tuple[list[Scored], list[Scored]]:
        rows = [scored(n, f"s{n % speakers}", 2) for n in range(60)]
        return rows, [replace(row, errors=0 if row.speaker != "s0" else 3) for row in rows]

    lenient = Settings(promote_slice_margin=0.5)
    many = judge(*heard(6), rank=1, settings=lenient)
    assert (many.counted_by, many.found.clusters, many.verdict) == ("speaker", 6, "insufficient evidence")
    assert "on 60 test utterances of 6 speakers" in many.reasons[0]
    few = judge(*heard(5), rank=1, settings=lenient)
    assert (few.counted_by, few.verdict) == ("recording", "promote")
    assert few.reasons[-1] == "shown for the 5 speakers of this test, not for others"


def test_every_further_challenger_needs_better_evidence() -> None:
    rows = [scored(n, "ann", 2) for n in range(40)]
    better = [replace(row, errors=1) if n < 9 else row for n, row in enumerate(rows)]
    first, second = (judge(rows, better, rank=rank, settings=SETTINGS) for rank in (1, 2))
    assert (first.verdict, second.verdict) == ("promote", "insufficient evidence")
    assert second.accepted == pytest.approx(0.05 / 6)
    assert "1 other model was measured on this test set before" in second.reasons[-1]
    assert "the luck accepted is 0.83 %, for the first it was 2.5 %" in second.reasons[-1]


@pytest.mark.parametrize(
    ("lost", "words", "passed", "unsure"), [(0, 50, True, False), (1, 20, False, True), (30, 20, False, False)]
)
def test_a_general_set_passes_only_where_a_loss_is_ruled_out(lost: int, words: int, passed: bool, unsure: bool) -> None:
    rows = [scored(n, "ann", 2, words=words) for n in range(30)]
    after = [replace(row, errors=5) if n < lost else row for n, row in enumerate(rows)]
    guard = guards.general_guard(rows, after, name="prompts", margin=0.01)
    assert (guard.passed, guard.unsure) == (passed, unsure)
    assert "1.0 are allowed" in guard.finding


def test_half_an_utterance_is_taken_off_what_was_saved() -> None:
    """Seven clips of 40 better, none worse: luck in one of 128 cases, but not with three errors fewer saved."""
    rows = [scored(n, "ann", 2) for n in range(40)]  # five words each
    better = [replace(row, errors=1) if n < 7 else row for n, row in enumerate(rows)]
    judged = judge(rows, better, rank=1, settings=SETTINGS)
    assert (judged.found.saved, judged.found.unheard) == (7, 3)
    assert judged.found.chance == pytest.approx(8 / 128)  # at most one of seven coins falls otherwise
    assert judged.verdict == "insufficient evidence"
