"""Datasets are immutable, split for ever without overlap, and say what they left out."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.speech import add_utterance
from voxloop import datasets, recordings, review
from voxloop.errors import UnknownRecord, UsageError
from voxloop.records import SPLITS, Utterance
from voxloop.worker import work
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
    assert set(assigned) == {u.id for u in utterances}
    for u in utterances:
        if u.split:
            assert assigned[u.id] == u.split
    again = datasets.assign_splits([replace(u, split=assigned[u.id]) for u in utterances], RATIOS, sessions={})
    assert again == assigned


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
    add_utterance(workspace, "fast", reference="a" * 100)
    add_utterance(workspace, "silent")
    (bad,) = add_utterance(workspace, "bad", reference="yes")
    review.reject(workspace, bad, reason="two people talk", by="ann")
    made = datasets.build(workspace)
    assert made.excluded == {
        "shorter than 0.2 s": 1,
        "more than 40 characters a second": 1,
        "not transcribed yet": 1,
        "rejected by a reviewer": 1,
    }
    listed = datasets.exclusions(workspace, made.id)
    assert {e.utterance for e in listed if e.reason == "rejected by a reviewer"} == {bad}


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


def test_an_export_holds_the_rows_beside_their_audio(workspace: Workspace, tmp_path: Path) -> None:
    source = tmp_path / "speech"
    source.mkdir()
    chance = np.random.default_rng(0)
    lines = []
    for i in range(6):
        samples = np.arange(8000 + 100 * i)
        loudness = np.where(samples % 4000 < 2000, 0.2, 0.002)  # with quiet pauses, as speech has
        soundfile.write(source / f"{i}.wav", loudness * chance.standard_normal(len(samples)), 16_000, subtype="PCM_16")
        lines.append(json.dumps({"file": f"{i}.wav", "text": f"tëxt {i}", "speaker": "ann", "language": "en"}))
    (source / "metadata.jsonl").write_text("\n".join(lines))
    recordings.ingest(workspace, source, processes=1)
    work(workspace, ["segment"], until_idle=True)
    made = datasets.build(workspace, ratios=RATIOS)
    datasets.export(workspace, made.id, tmp_path / "out")
    found = {}
    for split in SPLITS:
        manifest = tmp_path / "out" / f"{split}.jsonl"
        rows = [json.loads(line) for line in manifest.read_text().splitlines()]
        cuts = list(datasets.cuts(manifest))
        assert [cut.supervisions[0].text for cut in cuts] == [row["text"] for row in rows]
        for row, cut in zip(rows, cuts, strict=True):
            original, rate = soundfile.read(source / f"{row['text'][-1]}.wav", dtype="int16")
            written, written_rate = soundfile.read(tmp_path / "out" / row["audio_path"], dtype="int16")
            assert (rate, written_rate) == (16_000, 16_000)
            np.testing.assert_array_equal(original, written)
            assert row["duration"] == len(written) / 16_000
            np.testing.assert_allclose(cut.load_audio()[0] * 32768, written, atol=1)
            found[row["text"]] = row
    assert len(found) == 6
    assert {row["speaker"] for row in found.values()} == {"ann"}
