"""Alignment of long given texts: every word once and in order, references only where it was heard so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from voxloop.pipeline import LISTENERS
from voxloop.records import Recording, Transcript, Utterance, utterance_id
from voxloop.speech.audio import decode
from voxloop.steps.alignment import GOOD, align, parts
from voxloop.steps.recordings import ingest
from voxloop.workspace import Workspace

words = st.lists(st.sampled_from(["one", "two", "three,", "four", "Five", "-", "seven"]), max_size=30)


@hypothesis_settings(max_examples=200, deadline=None)
@given(words, st.lists(words, min_size=1, max_size=6))
def test_the_parts_put_together_are_the_text(text: list[str], heard: list[list[str]]) -> None:
    found = parts(" ".join(text), [" ".join(one) for one in heard], "en")
    assert len(found) == len(heard)
    assert " ".join(one.text for one in found if one.text).split() == text
    assert all(0 <= one.agreement <= 1 for one in found)


@hypothesis_settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["one", "two", "three", "four", "five"]), min_size=1), min_size=1, max_size=6))
def test_what_was_heard_as_it_is_given_falls_where_it_was_heard(spoken: list[list[str]]) -> None:
    heard = [" ".join(one) for one in spoken]
    found = parts(" ".join(heard), heard, "en")
    assert [one.text for one in found] == heard
    assert all(one.agreement == 1 and one.edges for one in found)


def test_case_marks_and_digits_are_kept_in_the_text_and_ignored_in_the_comparison() -> None:
    found = parts("Good morning, all: 4 5 – and Six.", ["good morning all four", "five and six"], "en")
    assert [one.text for one in found] == ["Good morning, all: 4", "5 – and Six."]
    assert [one.agreement for one in found] == [1.0, 1.0]


def test_doubtful_edges_are_no_reference() -> None:
    first, second = parts("a b c d e f g h i j k l", ["a b c d e", "g h i j k l"])
    assert (first.text, second.text) == ("a b c d e f", "g h i j k l")
    assert first.agreement > GOOD
    assert not first.edges
    assert second.edges


def test_a_word_that_agrees_alone_among_others_that_do_not_is_no_reference() -> None:
    found = parts("one two three four", ["one", "two", "nine", "four"], "en")
    assert [one.agreement for one in found] == [1, 1, 0, 1]
    assert [one.edges for one in found] == [True, False, False, False]


def test_another_text_agrees_with_nothing() -> None:
    (found,) = parts("call me Ishmael some years ago", ["one two three four five six"], "en")
    assert found.agreement == 0


def long_recording(ws: Workspace, text: str, heard: list[str]) -> list[str]:
    """A recording of 20 s for each text heard, its utterances transcribed."""
    step = 20 * 16_000
    recording = Recording(
        id="sha256-long", source="long.wav", name="long.wav", samples=step * len(heard), text=text, language="en"
    )
    ids = []
    with ws.transaction() as tx:
        tx.add(recording)
        for number, one in enumerate(heard):
            id = utterance_id(recording.id, number * step, (number + 1) * step)
            tx.add(
                Utterance(
                    id=id, recording=recording.id, start=number * step, end=(number + 1) * step, status="transcribed"
                )
            )
            tx.add(Transcript(id=f"h{number}", utterance=id, kind="hypothesis", text=one, by="m", confidence=0.8))
            ids.append(id)
    return ids


def test_good_parts_are_references_and_poor_ones_suggestions(workspace: Workspace) -> None:
    text = "one two three four five. six seven eight nine ten. red green blue white black"
    ids = long_recording(workspace, text, ["one two three four five", "six seven ate nine again", "something else"])
    made = {one.utterance: one for one in align(workspace, "sha256-long")}
    assert (made[ids[0]].kind, made[ids[0]].text, made[ids[0]].by) == (
        "reference",
        "one two three four five.",
        "metadata",
    )
    assert (made[ids[1]].kind, made[ids[1]].confidence) == ("clean", pytest.approx(0.6))
    assert ids[2] not in made
    with workspace.read() as reader:
        kept = {one.id: one for one in reader.all(Utterance)}
    assert [kept[id].status for id in ids] == ["reviewed", "transcribed", "transcribed"]
    assert kept[ids[1]].priority > 1
    assert [one.id for one in align(workspace, "sha256-long")] == [made[ids[1]].id]
    with workspace.read() as reader:
        assert reader.count(Transcript) == 3 + 2


def test_what_is_not_all_transcribed_waits(workspace: Workspace) -> None:
    long_recording(workspace, "one two", ["one", "two"])
    with workspace.transaction() as tx:
        tx.connection.exec_driver_sql("delete from transcript where id = 'h1'")
    assert align(workspace, ["sha256-long"]) == []


def test_a_short_recording_is_left_alone(workspace: Workspace) -> None:
    long_recording(workspace, "one two", ["one two"])
    assert align(workspace, ["sha256-long"]) == []


def test_the_step_follows_transcription() -> None:
    assert "align" in LISTENERS["transcription.completed"]


def test_references_of_real_speech_are_what_was_said_there(
    workspace: Workspace, tmp_path: Path, real_speech: Path
) -> None:
    """Ingest, segment, transcribe with the starter, align: digits with pauses, so that each place is known."""
    from voxloop.steps.transcripts import transcribe
    from voxloop.steps.utterances import segment

    rows = [json.loads(line) for line in (real_speech / "digits_en" / "metadata.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["speaker"] == "george"]
    chosen = [rows[int(place)] for place in np.random.default_rng(4).choice(len(rows), 40, replace=False)]
    silence = np.random.default_rng(0).normal(0, 1e-4, 20_000).astype(np.float32)
    pieces: list[np.ndarray] = []  # type: ignore[type-arg]
    places: list[tuple[int, int, str]] = []
    length = 0
    for row in chosen:
        digit = decode(real_speech / "digits_en" / row["file"])
        places.append((length, length + len(digit), row["text"]))
        pieces += [digit, silence]
        length += len(digit) + len(silence)
    soundfile.write(tmp_path / "a.wav", np.concatenate(pieces), 16_000)
    (tmp_path / "a.txt").write_text(" ".join(row["text"] for row in chosen))
    (id,) = ingest(workspace, tmp_path / "a.wav", language="en").taken
    utterances = {one.id: one for one in segment(workspace, id)}
    transcribe(workspace, id)
    references = [one for one in align(workspace, id) if one.kind == "reference"]
    assert len(references) >= 3
    for one in references:
        span = utterances[one.utterance]
        said = [text for start, end, text in places if start < span.end and span.start < end]
        assert one.text == " ".join(said)
