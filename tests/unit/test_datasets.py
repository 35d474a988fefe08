"""Datasets are immutable, split for ever without overlap, and say what they left out."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.speech import add_utterance
from voxloop.errors import UnknownRecord, UsageError
from voxloop.records import SPLITS, Quality, Run, Split, Transcript, Utterance
from voxloop.steps import datasets, review
from voxloop.steps.datasets import freezing
from voxloop.steps.datasets.filters import Candidate
from voxloop.workspace import Workspace

RATIOS = (0.6, 0.2, 0.2)


def utterance(recording: str, part: int = 0, **values: object) -> Utterance:
    id = f"{recording}:{part}-{part + 1}"
    return Utterance(id=id, recording=recording, start=part, end=part + 1, **values)  # type: ignore[arg-type]


speech = st.lists(
    st.tuples(
        st.sampled_from([None, "ann", "bo", "cy", "di", "eve"]),
        st.integers(0, 30),
        st.sampled_from([None, "train", "val", "test"]),
    ),
    max_size=60,
)


@given(speech, st.sampled_from([RATIOS, (0.92, 0.04, 0.04), (0.5, 0.0, 0.5), (1.0, 0.0, 0.0)]))
@settings(deadline=None, max_examples=200)
def test_every_utterance_has_one_split_and_keeps_it(
    rows: list[tuple[str | None, int, str | None]], ratios: tuple[float, float, float]
) -> None:
    before: dict[str, str | None] = {}
    utterances = []
    for part, (speaker, recording, split) in enumerate(rows):
        # One recording has one split, as only this module writes it.
        split = before.setdefault(f"r{recording}", split)
        utterances.append(utterance(f"r{recording}", part, speaker=speaker, split=split))
    assigned = datasets.assign_splits(utterances, ratios, sessions={})
    for u in utterances:
        if u.split:
            assert assigned[u.id] == u.split
        elif u.id not in assigned:  # only where the recording's speakers hang together with settled ones
            assert before[u.recording] is None
            assert any(before.values())
    again = datasets.assign_splits([replace(u, split=assigned.get(u.id)) for u in utterances], RATIOS, sessions={})
    assert again | assigned == again


@given(speech, st.sampled_from([RATIOS, (0.5, 0.0, 0.5), (1.0, 0.0, 0.0)]), st.booleans(), st.sampled_from([2, 25, 99]))
@settings(deadline=None, max_examples=200)
def test_what_is_placed_together_is_placed_as_one_by_one(
    rows: list[tuple[str | None, int, Split | None]],
    ratios: tuple[float, float, float],
    in_sessions: bool,
    several: int,
) -> None:
    """A build places the utterances of a recording and speaker together; also where older versions tore recordings."""
    sessions: dict[str, str | None] = {f"r{n}": f"day {n % 4}" for n in range(31)} if in_sessions else {}
    utterances = [
        utterance(f"r{recording}", part, speaker=speaker, split=split)
        for part, (speaker, recording, split) in enumerate(rows)
    ]
    texts = {one.id: f"text {number % several}" for number, one in enumerate(utterances)}
    said = [(one.recording, one.speaker, texts[one.id]) for one in utterances]
    singly = datasets.assign_splits(utterances, ratios, sessions=sessions, said=lambda: said)
    candidates = [
        Candidate(
            utterance=one.id,
            recording=one.recording,
            start=one.start,
            end=one.end,
            speaker=one.speaker,
            language=None,
            split=one.split,
            transcript="t",
            kind="reference",
            text=texts[one.id],
            reviewed=True,
            rate=10.0,
        )
        for one in utterances
    ]
    belonging = freezing._Belonging(candidates, ratios, sessions)
    assert {one.utterance: belonging.of(one) for one in candidates if belonging.of(one)} == singly
    assert dict(belonging.new(candidates)) == {
        one.id: singly[one.id] for one in utterances if one.id in singly and not one.split
    }


@given(st.integers(3, 60), st.integers(0, 1000))
@settings(deadline=None)
def test_no_split_is_empty_where_there_are_three_recordings(count: int, seed: int) -> None:
    assigned = datasets.assign_splits([utterance(f"r{seed}-{i}") for i in range(count)], RATIOS, sessions={})
    assert set(assigned.values()) == set(SPLITS)


def test_with_many_speakers_no_speaker_is_in_two_splits() -> None:
    utterances = [utterance(f"r{i}", speaker=f"s{i % 80}") for i in range(800)]
    assigned = datasets.assign_splits(utterances, RATIOS, sessions={})
    splits_of: dict[str | None, set[str]] = {}
    for u in utterances:
        splits_of.setdefault(u.speaker, set()).add(assigned[u.id])
    assert {len(splits) for splits in splits_of.values()} == {1}
    shares = Counter(assigned.values())
    assert shares["train"] > shares["val"] > 40


def check_no_leaks(utterances: list[Utterance], assigned: dict[str, Split]) -> None:
    for key in ("recording", "speaker"):
        splits: dict[str, set[str]] = {}
        for one in utterances:
            if one.id in assigned and getattr(one, key):
                splits.setdefault(getattr(one, key), set()).add(assigned[one.id])
        assert all(len(found) == 1 for found in splits.values()), (key, splits)


meetings = st.lists(st.tuples(st.integers(0, 12), st.sets(st.integers(0, 25), min_size=1, max_size=3)), max_size=25)


@given(meetings, meetings)
@settings(deadline=None, max_examples=150)
def test_no_recording_and_no_speaker_is_in_two_splits(
    first: list[tuple[int, set[int]]], second: list[tuple[int, set[int]]]
) -> None:
    """Whoever meets whom, and whoever joins them later, where there are speakers for every split."""
    utterances = [utterance(f"base{i}", speaker=f"base{i}") for i in range(60)]
    splits: dict[str, Split] = {}
    for round, met in enumerate((first, second)):
        for number, (recording, people) in enumerate(met):
            for person in sorted(people):
                part = 100 * number + person
                utterances.append(utterance(f"r{round}-{recording}", part, speaker=f"s{person}"))
        known = {one.id: replace(one, split=splits.get(one.id)) for one in utterances}
        utterances = list(known.values())
        assigned = datasets.assign_splits(utterances, RATIOS, sessions={})
        check_no_leaks(utterances, assigned)
        assert all(assigned[id] == split for id, split in splits.items())
        if round == 0:
            assert set(assigned) == set(known)
        assert datasets.assign_splits(utterances[::-1], RATIOS, sessions={}) == assigned
        splits = assigned


def test_a_meeting_of_speakers_of_two_splits_is_left_out(workspace: Workspace) -> None:
    for i in range(30):
        add_utterance(workspace, f"alone{i}", reference="yes", speaker=f"s{i}")
    first = {row.speaker: row.split for row in datasets.rows(workspace, datasets.build(workspace, ratios=RATIOS).id)}
    train, test = (next(who for who, split in first.items() if split == name) for name in ("train", "test"))
    (one, other, third) = add_utterance(workspace, "meeting", reference="hello", parts=3)
    with workspace.transaction() as tx:
        tx.change(Utterance, one, speaker=train)
        tx.change(Utterance, other, speaker=test)
    made = datasets.build(workspace, ratios=RATIOS)
    assert made.excluded == {"its recording joins speakers of different splits": 3}
    assert {e.utterance for e in datasets.exclusions(workspace, made.id)} == {one, other, third}
    # The same rows as before are the same dataset; what was left out is told as it is now.
    assert {row.speaker: row.split for row in datasets.rows(workspace, made.id)} == first


def test_parts_that_an_older_version_put_into_two_splits_do_not_leak(workspace: Workspace) -> None:
    add_utterance(workspace, "other", reference="yes", speaker="bob")
    ids = add_utterance(workspace, "meeting", reference="hello", parts=4)
    with workspace.transaction() as tx:
        for id, split in zip(ids, ("train", "test", "train", None), strict=True):
            tx.change(Utterance, id, split=split)
    made = datasets.build(workspace, ratios=RATIOS)
    meeting = {row.utterance: row.split for row in datasets.rows(workspace, made.id) if row.utterance in ids}
    assert meeting == {ids[1]: "test", ids[3]: "test"}
    assert made.excluded == {"other parts of its recording are in test": 2}
    with workspace.read() as reader:
        assert [reader.get(Utterance, id).split for id in ids] == ["train", "test", "train", "test"]


@given(st.lists(st.integers(0, 39), max_size=80).map(lambda again: [*range(40), *again]), st.integers(0, 10**6))
@settings(deadline=None, max_examples=60)
def test_the_same_sentence_by_one_speaker_is_in_one_split(spoken: list[int], seed: int) -> None:
    """Read twice, or kept as a lossy copy; also where copies come later."""
    utterances = [utterance(f"r{seed}-{n}", speaker="ann") for n in range(len(spoken))]
    said = [(one.recording, one.speaker, f"Sentence {text}.") for one, text in zip(utterances, spoken, strict=True)]
    assigned = datasets.assign_splits(utterances, RATIOS, sessions={}, said=lambda: said)
    assert set(assigned.values()) == set(SPLITS)
    splits: dict[str, set[Split]] = {}
    for one, (_, _, text) in zip(utterances, said, strict=True):
        splits.setdefault(text, set()).add(assigned[one.id])
    assert all(len(found) == 1 for found in splits.values())
    settled = [replace(one, split=assigned[one.id]) for one in utterances]
    copies = [utterance(f"copy{seed}-{n}", speaker="ann") for n in range(len(spoken))]
    said += [(one.recording, one.speaker, f"sentence  {text}") for one, text in zip(copies, spoken, strict=True)]
    later = datasets.assign_splits([*settled, *copies], RATIOS, sessions={}, said=lambda: said)
    assert [later[one.id] for one in copies] == [assigned[one.id] for one in utterances]


def test_a_few_commands_said_many_times_are_shared_out_by_recording(workspace: Workspace) -> None:
    for i in range(80):
        add_utterance(workspace, f"r{i}", reference=f"Command {i % 8}!", speaker="ann")
    made = datasets.build(workspace)
    assert made.clips == {"train": 50, "val": 10, "test": 20}
    found = datasets.advise(workspace)
    assert found.heard == {"val": 10, "test": 20}
    (told,) = found.warnings
    assert told.kind == "heard texts"
    assert told.message.startswith("20 of 20 clips in test repeat a sentence from train")


@pytest.mark.parametrize(("sentences", "across"), [(50, True), (12, False)])
def test_sentences_that_several_speakers_read(sentences: int, across: bool) -> None:
    """Test says what nobody says in training or, where the sentences are few, what that speaker does not."""
    utterances = [utterance(f"r{i}", speaker=f"s{i % 4}") for i in range(4 * sentences)]
    said = [(one.recording, one.speaker, f"text {n // 4}") for n, one in enumerate(utterances)]
    copies = [utterance(f"copy{i}", speaker="s1") for i in range(4)]
    said += [(one.recording, one.speaker, f"Text {n}!") for n, one in enumerate(copies)]
    assigned = datasets.assign_splits([*utterances, *copies], RATIOS, sessions={}, said=lambda: said)
    splits: dict[str, set[Split]] = {}
    for one, (_, speaker, text) in zip([*utterances, *copies], said, strict=True):
        key = datasets.sentence(text)
        splits.setdefault(key if across else f"{speaker} {key}", set()).add(assigned[one.id])
    assert all(len(found) == 1 for found in splits.values())


@given(st.integers(1, 20_000))
def test_the_usual_shares_are_enough_for_a_verdict_where_the_clips_are(clips: int) -> None:
    train, val, test = (share * clips for share in datasets.usual_ratios(clips, 20))
    assert train + val + test == pytest.approx(clips)
    assert round(test, 6) >= 20 or clips < 50
    assert train >= max(val, test)
    assert val <= test


@pytest.mark.parametrize(
    ("clips", "shares"), [(50, (24, 6, 20)), (200, (136, 24, 40)), (1000, (850, 50, 100)), (5000, (4600, 200, 200))]
)
def test_one_speakers_clips_are_shared_out_exactly(clips: int, shares: tuple[int, int, int]) -> None:
    utterances = [utterance(f"r{i}", speaker="ann") for i in range(clips)]
    assigned = datasets.assign_splits(utterances, datasets.usual_ratios(clips, 20), sessions={})
    assert Counter(assigned.values()) == dict(zip(SPLITS, shares, strict=True))


def test_what_cannot_be_tested_on_yet_leaves_some_for_later(workspace: Workspace) -> None:
    for i in range(400):
        add_utterance(workspace, f"m{i}", heard=f"maybe {i}", confidence=0.95)
    made = datasets.build(workspace, machine_text=0.9)
    assert 360 <= made.clips["train"] < 390
    assert made.excluded.keys() == {"machine text may not be in val", "machine text may not be in test"}


def test_fresh_test_speech_is_what_no_model_was_trained_on(workspace: Workspace) -> None:
    ids = [add_utterance(workspace, f"a{i}", reference=f"text {i}", speaker="ann")[0] for i in range(60)]
    datasets.build(workspace, ratios=(1, 0, 0))
    asked = datasets.build(workspace, ratios=RATIOS)
    assert asked.clips == {"train": 60, "val": 0, "test": 0}
    told = {one.kind: one for one in datasets.advise(workspace).warnings}
    assert told.keys() == {"shares", "small test", "no validation"}
    assert told["shares"].message.startswith("Requested 60/20/20 % train/val/test, got 100/0/0 %")
    assert "--fresh-test`, which draws from 60 clips" in told["small test"].remedy
    fresh = datasets.build(workspace, fresh_test=True)
    assert fresh.clips == {"train": 33, "val": 7, "test": 20}
    tested = {row.utterance for row in datasets.rows(workspace, fresh.id, "test")}
    # What a run trains on, also one that waits, is never tested on; nor is what lies in the same recording.
    with workspace.transaction() as tx:
        tx.add(Run(id="r1", dataset=fresh.id, base="starter", family="whisper", method="lora", recipe={}))
    for i in range(30):
        add_utterance(workspace, f"b{i}", reference=f"more {i}", speaker="ann")
    add_utterance(workspace, "a0-copy", reference="Text 0.", speaker="ann")
    second = datasets.build(workspace, ratios=(1, 0, 0))
    third = datasets.build(workspace, ratios=(0, 0, 1), fresh_test=True)
    before = {row.utterance: row.split for row in datasets.rows(workspace, fresh.id)}
    after = {row.utterance: row.split for row in datasets.rows(workspace, third.id)}
    assert {id: after[id] for id in ids} == before
    assert third.clips == {
        "train": 33 + (before[ids[0]] == "train"),
        "val": 7 + (before[ids[0]] == "val"),
        "test": 50 + (before[ids[0]] == "test"),
    }
    assert tested < {id for id, split in after.items() if split == "test"}
    # Nor is what is test now trained on from a dataset that was frozen before.
    assert second.clips["train"] > 60


def test_one_speaker_falls_back_to_sessions_then_to_recordings() -> None:
    utterances = [utterance(f"r{i}", speaker="ann") for i in range(100)]
    sessions: dict[str, str | None] = {f"r{i}": f"day {i % 20}" for i in range(100)}
    assigned = datasets.assign_splits(utterances, RATIOS, sessions=sessions)
    by_session: dict[str | None, set[str]] = {}
    for u in utterances:
        by_session.setdefault(sessions[u.recording], set()).add(assigned[u.id])
    assert {len(splits) for splits in by_session.values()} == {1}
    assigned = datasets.assign_splits(utterances, RATIOS, sessions={})
    assert set(assigned.values()) == set(SPLITS)


def test_parts_of_one_recording_stay_together(workspace: Workspace) -> None:
    for i in range(12):
        add_utterance(workspace, f"r{i}", reference="five words", speaker="ann", parts=4)
    made = datasets.build(workspace, ratios=RATIOS)
    splits_of: dict[str, set[str]] = {}
    for row in datasets.rows(workspace, made.id):
        splits_of.setdefault(row.recording, set()).add(row.split)
    assert {len(splits) for splits in splits_of.values()} == {1}


def test_what_was_test_stays_test(workspace: Workspace) -> None:
    for i in range(30):
        add_utterance(workspace, f"a{i}", reference="yes")
    first = datasets.build(workspace, ratios=RATIOS)
    before = {row.utterance: row.split for row in datasets.rows(workspace, first.id)}
    for i in range(30):
        add_utterance(workspace, f"b{i}", reference="no")
    second = datasets.build(workspace, ratios=(0.2, 0.2, 0.6))
    after = {row.utterance: row.split for row in datasets.rows(workspace, second.id)}
    assert {id: after[id] for id in before} == before
    assert second.parent == first.id
    assert datasets.find(workspace).id == second.id
    assert datasets.find(workspace, first.id[7:20]).id == first.id


def test_freezing_the_same_content_gives_the_same_dataset(workspace: Workspace) -> None:
    for i in range(10):
        add_utterance(workspace, f"r{i}", reference="yes")
    first, second = datasets.build(workspace, ratios=RATIOS), datasets.build(workspace, ratios=RATIOS)
    assert first == second
    review.save(workspace, "sha256-r3:0-16000", "really yes", by="ann")
    third = datasets.build(workspace, ratios=RATIOS)
    assert third.id != first.id
    assert {row.text for row in datasets.rows(workspace, first.id)} == {"yes"}


def test_machine_text_trains_only_when_asked_and_never_tests(workspace: Workspace) -> None:
    for i in range(40):
        add_utterance(workspace, f"m{i}", heard="maybe", confidence=0.95 if i % 2 else 0.5)
        add_utterance(workspace, f"p{i}", reference="surely", heard="maybe")
    without = datasets.build(workspace, ratios=RATIOS)
    assert {row.kind for row in datasets.rows(workspace, without.id)} == {"reference"}
    assert without.excluded == {"machine text only, not reviewed": 40}
    with_machine = datasets.build(workspace, ratios=RATIOS, machine_text=0.9)
    kinds = {row.split: set() for row in datasets.rows(workspace, with_machine.id)}
    for row in datasets.rows(workspace, with_machine.id):
        kinds[row.split].add(row.kind)
    assert kinds == {"train": {"reference", "clean"}, "val": {"reference"}, "test": {"reference"}}
    assert with_machine.excluded["machine text below confidence 0.9"] == 20


def test_what_is_left_out_is_counted_and_listed(workspace: Workspace) -> None:
    add_utterance(workspace, "good", reference="yes")
    add_utterance(workspace, "good2", reference="yes")
    add_utterance(workspace, "good3", reference="yes")
    add_utterance(workspace, "short", reference="yes", duration=0.1)
    add_utterance(workspace, "fast", reference="a" * 100, by="metadata")
    add_utterance(workspace, "silent")
    add_utterance(workspace, "blank", reference=" ")
    hiss = Quality(level_dbfs=-20, peak_dbfs=-3, snr_db=1.5, clipping=0, silence=0, bandwidth_hz=4000)
    add_utterance(workspace, "noisy", reference="yes", quality=hiss, by="metadata")
    add_utterance(workspace, "no pause in it", reference="yes", quality=hiss, by="metadata", duration=0.6)
    (bad,) = add_utterance(workspace, "bad", reference="yes")
    review.reject(workspace, bad, reason="two people talk", by="ann")
    made = datasets.build(workspace)
    assert made.excluded == {
        "shorter than 0.25 s (--min-seconds)": 1,
        "more than 40 characters a second (--max-characters-per-second)": 1,
        "SNR below 5 dB (--min-snr-db)": 1,
        "empty text": 1,
        "not transcribed yet": 1,
        "rejected by a reviewer": 1,
    }
    listed = datasets.exclusions(workspace, made.id)
    assert len(listed) == 6
    assert {e.utterance for e in listed if e.reason == "rejected by a reviewer"} == {bad}
    (noisy,) = datasets.exclusions(workspace, made.id, reason="snr")
    assert (noisy.detail, noisy.reviewed) == ("1.5 dB", False)
    (short,) = datasets.exclusions(workspace, made.id, reason="--min-seconds")
    assert (short.detail, short.reviewed) == ("0.10 s", True)
    all_of_them = datasets.Filters(min_seconds=0, min_snr_db=0, max_characters_per_second=1000)
    assert set(datasets.build(workspace, filters=all_of_them).excluded) == {
        "empty text",
        "not transcribed yet",
        "rejected by a reviewer",
    }


def test_a_text_far_from_the_usual_speed_is_left_out_unless_a_person_wrote_it(workspace: Workspace) -> None:
    for i in range(40):
        words = "many words are here " * 2 + "more " * (i % 5)
        add_utterance(workspace, f"r{i}", reference=words, duration=3, language="en", by="metadata")
    (lost,) = add_utterance(workspace, "lost", reference="no", duration=8, language="en", by="metadata")
    (kept,) = add_utterance(workspace, "kept", reference="no", duration=8, language="en", by="ann")
    add_utterance(workspace, "few", reference="no", duration=8, language="de", by="metadata")  # alone in its language
    made = datasets.build(workspace, ratios=RATIOS)
    (outlier,) = datasets.exclusions(workspace, made.id)
    assert outlier.utterance == lost
    assert outlier.reason == "text far too long or too short for its audio (--keep-outliers)"
    assert outlier.detail.startswith("0.2 characters per second of speech; usual for this language: ")
    assert kept in {row.utterance for row in datasets.rows(workspace, made.id)}
    everything = datasets.build(workspace, ratios=RATIOS, filters=datasets.Filters(keep_outliers=True))
    assert everything.excluded == {}


def test_a_text_that_a_good_recogniser_misheard_is_the_one_to_learn_from(workspace: Workspace) -> None:
    for i in range(25):
        text = f"the number of the house is {i} now"
        add_utterance(workspace, f"r{i}", reference=text, heard=text, language="en", duration=2, by="metadata")
    wrong = {"reference": "good morning everybody", "heard": "the price of tea in China", "language": "en"}
    add_utterance(workspace, "misheard", **wrong, duration=2, by="metadata")  # type: ignore[arg-type]
    assert datasets.build(workspace, ratios=RATIOS).excluded == {}


def test_a_doubtful_text_goes_to_review_and_enters_once_a_person_confirmed_it(workspace: Workspace) -> None:
    for i in range(20):
        add_utterance(workspace, f"r{i}", reference=f"a few words {i}", heard="few", speaker="ann", by="metadata")
    (slow,) = add_utterance(workspace, "slow", reference="no", heard="no no", speaker="ann", duration=9, by="metadata")
    (fast,) = add_utterance(workspace, "fast", reference="x" * 90, heard="yes", confidence=0.99, by="metadata")
    add_utterance(workspace, "waiting", heard="maybe", confidence=0.1)
    made = datasets.build(workspace, ratios=RATIOS)
    left_out = {one.utterance: one for one in datasets.exclusions(workspace, made.id)}
    assert "usual for this speaker: " in left_out[slow].detail
    assert left_out[fast].reason == "more than 40 characters a second (--max-characters-per-second)"
    listed = review.page(workspace, where=review.Filters(warning="doubtful text")).items
    assert {item.utterance.id for item in listed} == {slow, fast}
    assert {warning.detail for item in listed for warning in item.warnings if warning.kind == "doubtful text"} == {
        left_out[slow].detail,
        left_out[fast].detail,
    }
    review.prioritise(workspace)
    assert {item.utterance.id for item in review.page(workspace, limit=2).items} == {slow, fast}
    assert review.bulk_accept(workspace, above=0.5, by="bob").accepted == 0  # the machine's text is not taken unseen
    (advice,) = [one for one in datasets.advise(workspace).warnings if one.kind == "doubtful"]
    assert advice.message.startswith("Excluded 2 clips whose text")
    review.save(workspace, slow, "no", by="bob")
    again = datasets.build(workspace, ratios=RATIOS)
    assert slow in {row.utterance for row in datasets.rows(workspace, again.id)}
    assert [
        item.utterance.id for item in review.page(workspace, where=review.Filters(warning="doubtful text")).items
    ] == [fast]


def test_a_slow_speaker_is_compared_with_herself(workspace: Workspace) -> None:
    for i in range(60):
        words = "quick and fluent speech of many words " + "more " * (i % 3)
        add_utterance(workspace, f"fast{i}", reference=words, speaker="bob", duration=2, language="en", by="metadata")
    for i in range(12):
        add_utterance(
            workspace,
            f"slow{i}",
            reference="water " + "now " * (i % 2),
            speaker="eve",
            duration=6,
            language="en",
            by="metadata",
        )
    assert datasets.build(workspace, ratios=RATIOS).excluded == {}


@pytest.mark.parametrize(("seconds", "bound"), [((0.3, 0.4, 0.5), 0.1), ((1.0, 1.2, 1.6), 0.3), ((3.0, 4.0, 9.0), 0.5)])
def test_the_shortest_clip_is_derived_from_the_others(
    workspace: Workspace, seconds: tuple[float, ...], bound: float
) -> None:
    for i in range(30):
        add_utterance(workspace, f"r{i}", reference=f"word {i}", duration=seconds[i % 3], by="metadata")
    add_utterance(workspace, "short", reference="a", duration=0.05)
    made = datasets.build(workspace)
    assert made.excluded == {f"shorter than {bound:g} s (--min-seconds)": 1}
    assert made.filters["min_seconds"] == bound
    assert made.filters["derived"] == ["ratios", "min_seconds"]
    told = datasets.build(workspace, filters=datasets.Filters(min_seconds=0.0), ratios=RATIOS)
    assert told.excluded == {}
    assert told.filters["derived"] == []
    assert datasets.Filters.of(replace(workspace.settings, min_clip_s=0.7)).min_seconds == 0.7


def test_what_is_tested_on_is_not_taken_out_by_a_later_suspicion(workspace: Workspace) -> None:
    (tested,) = add_utterance(workspace, "tested", reference="no", duration=8, language="en", by="metadata")
    datasets.build(workspace, ratios=(0, 0, 1))
    for i in range(40):
        words = "many words are here " * 2 + "more " * (i % 5)
        add_utterance(workspace, f"r{i}", reference=words, duration=3, language="en", by="metadata")
    made = datasets.build(workspace, ratios=RATIOS)
    assert tested in {row.utterance for row in datasets.rows(workspace, made.id, "test")}


def test_a_text_longer_than_a_model_can_write_is_left_out(workspace: Workspace) -> None:
    add_utterance(workspace, "good", reference="yes")
    # The starter writes a letter it has no longer token for as a token; 28 s at 20 letters a second.
    add_utterance(workspace, "long", reference="xqz " * 140, duration=28)
    made = datasets.build(workspace, ratios=(0, 0, 1))
    (found,) = datasets.exclusions(workspace, made.id)
    assert found.reason == "text longer than 448 tokens (--max-label-tokens)"
    assert int(found.detail.split()[0]) > 448
    assert not datasets.build(workspace, filters=datasets.Filters(max_label_tokens=1000)).excluded


def test_aligned_text_trains_but_is_not_tested_on_until_a_person_accepts_it(workspace: Workspace) -> None:
    for i in range(40):
        add_utterance(workspace, f"plain{i}", reference="yes")
        (id,) = add_utterance(workspace, f"long{i}", heard="maybe")
        aligned = Transcript(id=f"aligned-{i}", utterance=id, kind="reference", text="maybe", by="metadata")
        with workspace.transaction() as tx:
            tx.add(aligned)
            tx.change(Utterance, id, status="reviewed")
    made = datasets.build(workspace, ratios=RATIOS)
    aligned_in = Counter(r.split for r in datasets.rows(workspace, made.id) if r.transcript.startswith("aligned-"))
    assert set(aligned_in) == {"train"}
    left_out = datasets.exclusions(workspace, made.id, reason="aligned text may not be in test")
    assert len(left_out) + aligned_in["train"] + len(datasets.exclusions(workspace, made.id, reason="in val")) == 40
    review.accept(workspace, left_out[0].utterance, by="ann")
    again = {row.utterance: row for row in datasets.rows(workspace, datasets.build(workspace, ratios=RATIOS).id)}
    assert again[left_out[0].utterance].split == "test"


def test_a_corrected_test_reference_makes_a_new_version_and_leaves_the_old(workspace: Workspace) -> None:
    for i in range(20):
        add_utterance(workspace, f"r{i}", reference="yes")
    first = datasets.build(workspace, ratios=RATIOS)
    before = datasets.rows(workspace, first.id)
    tested = next(row for row in before if row.split == "test")
    review.save(workspace, tested.utterance, "yes indeed", by="ann")
    second = datasets.build(workspace, ratios=RATIOS)
    assert datasets.rows(workspace, first.id) == before
    assert second.parent == first.id
    after = {row.utterance: row for row in datasets.rows(workspace, second.id)}
    assert (after[tested.utterance].split, after[tested.utterance].text) == ("test", "yes indeed")


def test_a_larger_limit_only_adds(workspace: Workspace) -> None:
    for i in range(60):
        add_utterance(workspace, f"r{i}", reference="yes")

    def training(limit: int) -> set[str]:
        made = datasets.build(workspace, ratios=RATIOS, train_limit=limit)
        return {row.utterance for row in datasets.rows(workspace, made.id, "train")}

    assert len(training(5)) == 5
    assert training(5) < training(12)


def test_nothing_to_freeze_says_what_to_do(workspace: Workspace) -> None:
    with pytest.raises(UsageError, match="no utterances yet"):
        datasets.build(workspace)
    add_utterance(workspace, "m", heard="maybe")
    with pytest.raises(UsageError, match="1 machine text only"):
        datasets.build(workspace)
    with pytest.raises(UnknownRecord, match="dataset build"):
        datasets.find(workspace)


def test_new_clips_go_to_test_until_it_has_what_the_last_verdict_asked_for(workspace: Workspace) -> None:
    for number in range(50):
        add_utterance(workspace, f"clip {number}", reference=f"sentence number {number}", speaker="ann", by="bob")
    assert len(datasets.rows(workspace, datasets.build(workspace).id, "test")) == 20
    with workspace.transaction() as tx:
        tx.emit("model.compared", "a model", payload={"needed_utterances": 56})
    for number in range(50, 113):
        add_utterance(workspace, f"clip {number}", reference=f"sentence number {number}", speaker="ann", by="bob")
    assert len(datasets.rows(workspace, datasets.build(workspace).id, "test")) == 45  # two fifths
