"""Segmentation: spans by the VAD on real speech, references from given texts, invariants by property tests."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import sqlalchemy as sa
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from voxloop.errors import UnknownRecord
from voxloop.records import MAX_UTTERANCE_SAMPLES, Transcript, Utterance
from voxloop.settings import Settings
from voxloop.speech.audio import Waveform, decode
from voxloop.speech.quality import measure
from voxloop.speech.voice import FRAME, detector
from voxloop.steps.recordings import ingest, read_audio
from voxloop.steps.utterances import (
    MARGIN,
    heard_spans,
    levelled,
    segment,
    spans_of,
    speech_spans,
    utterance_audio,
    with_margins,
)
from voxloop.stores import tables
from voxloop.workspace import Workspace

RATE = 16_000


def take(ws: Workspace, path: Path, waveform: Waveform, text: str | None = None, **said: Any) -> str:
    """A waveform as a recording of the workspace."""
    soundfile.write(path, waveform, RATE)
    if text is not None:
        path.with_suffix(".txt").write_text(text)
    (id,) = ingest(ws, path, **said).taken
    return id


def pause(seconds: float) -> Waveform:
    return np.random.default_rng(0).normal(0, 1e-4, round(seconds * RATE)).astype(np.float32)


def payload(ws: Workspace, recording: str) -> dict[str, Any]:
    event = tables.event
    with ws.read() as reader:
        where = (event.c.type == "recording.segmented", event.c.subject == recording)
        found: dict[str, Any] = reader.connection.execute(sa.select(event.c.payload).where(*where)).scalar_one()
        return found


@pytest.fixture(scope="module")
def sentences(real_speech: Path) -> list[Waveform]:
    """Six clean read sentences of about 3 s."""
    return [decode(path) for path in sorted((real_speech / "kathleen_en").glob("*.flac"))[:6]]


def check_spans(spans: list[tuple[int, int]], samples: int) -> None:
    end = 0
    for start, stop in spans:
        assert end <= start < stop <= samples
        assert stop - start <= MAX_UTTERANCE_SAMPLES
        end = stop


# Runs of frames that sound alike make realistic patterns likelier than single frames would.
runs = st.lists(st.tuples(st.floats(0, 1), st.integers(1, 400)), max_size=12)


@hypothesis_settings(max_examples=300, deadline=None)
@given(runs, st.integers(1, FRAME), st.integers(0, 2_000), st.integers(0, 1_000))
def test_spans_lie_inside_in_order_disjoint_and_within_30_s(
    pattern: list[tuple[float, int]], last: int, min_silence_ms: int, pad_ms: int
) -> None:
    probabilities = [value for value, length in pattern for _ in range(length)]
    samples = max(0, len(probabilities) - 1) * FRAME + (last if probabilities else 0)
    chosen = Settings(vad_min_silence_ms=min_silence_ms, vad_pad_ms=pad_ms)
    check_spans(spans_of(probabilities, samples, chosen), samples)


def test_an_hour_of_unbroken_speech_is_cut_without_losing_any() -> None:
    frames = 3600 * RATE // FRAME
    samples = frames * FRAME
    spans = spans_of([0.99] * frames, samples, Settings())
    check_spans(spans, samples)
    covered = sum(end - start for start, end in spans)
    assert covered > 0.99 * samples


def test_phrases_are_found_where_they_were_put(sentences: list[Waveform]) -> None:
    parts: list[Waveform] = []
    places: list[tuple[int, int]] = []
    length = 0
    for sentence in sentences:
        parts.append(pause(2.0))
        length += len(parts[-1])
        inner = speech_spans(sentence, Settings())
        places.append((length + inner[0][0], length + inner[-1][1]))
        parts.append(sentence)
        length += len(sentence)
    spans = speech_spans(np.concatenate([*parts, pause(2.0)]), Settings())
    assert len(spans) == len(sentences)
    for (start, end), (put_start, put_end) in zip(spans, places, strict=True):
        assert abs(start - put_start) < 0.3 * RATE
        assert abs(end - put_end) < 0.3 * RATE


def test_phrases_close_together_are_joined_up_to_fifteen_seconds(sentences: list[Waveform]) -> None:
    close = np.concatenate([part for sentence in sentences * 3 for part in (sentence, pause(0.1))])
    spans = speech_spans(close, Settings())
    check_spans(spans, len(close))
    assert len(spans) < 3 * len(sentences)
    assert np.median([end - start for start, end in spans[:-1]]) > 5 * RATE


def test_a_short_recording_is_one_phrase(workspace: Workspace, tmp_path: Path, sentences: list[Waveform]) -> None:
    word = sentences[0][: 2 * RATE]
    id = take(workspace, tmp_path / "a.wav", np.concatenate([pause(1), word, pause(1.2), word, pause(1)]))
    (utterance,) = segment(workspace, id)
    assert utterance.start > RATE // 2
    assert utterance.status == "new"
    assert utterance.quality == measure(utterance_audio(workspace, utterance))


def test_a_given_text_becomes_the_reference(workspace: Workspace, tmp_path: Path, sentences: list[Waveform]) -> None:
    id = take(workspace, tmp_path / "a.wav", sentences[0], "a cry of joy", speaker="kathleen", language="en")
    (utterance,) = segment(workspace, id)
    assert (utterance.start, utterance.end) == (0, len(sentences[0]))
    assert (utterance.status, utterance.speaker, utterance.language) == ("reviewed", "kathleen", "en")
    with workspace.read() as reader:
        (reference,) = reader.all(Transcript)
    assert (reference.kind, reference.by, reference.text) == ("reference", "metadata", "a cry of joy")
    assert reference.utterance == utterance.id
    assert np.array_equal(utterance_audio(workspace, utterance), read_audio(workspace, id))


def test_the_text_of_a_long_recording_is_not_attached(
    workspace: Workspace, tmp_path: Path, sentences: list[Waveform]
) -> None:
    long = np.concatenate([part for sentence in sentences * 3 for part in (sentence, pause(1.5))])
    id = take(workspace, tmp_path / "a.wav", long, "all that was said")
    found = segment(workspace, id)
    assert len(found) > 1
    check_spans([(u.start, u.end) for u in found], len(long))
    with workspace.read() as reader:
        assert reader.all(Transcript) == []
    assert "given text" in payload(workspace, id)["note"]


def test_silence_and_noise_have_no_utterances(workspace: Workspace, tmp_path: Path) -> None:
    silent = take(workspace, tmp_path / "a.wav", np.zeros(3 * RATE, np.float32))
    noise = np.random.default_rng(1).normal(0, 0.05, 3 * RATE).astype(np.float32)
    noisy = take(workspace, tmp_path / "b.wav", noise)
    assert segment(workspace, [silent, noisy]) == []
    for id in (silent, noisy):
        assert payload(workspace, id) == {
            "utterances": 0,
            "speech_seconds": 0.0,
            "detector": detector(),
            "note": "no speech was found",
        }


def test_segmenting_again_changes_nothing(workspace: Workspace, tmp_path: Path, sentences: list[Waveform]) -> None:
    ids = [take(workspace, tmp_path / f"{n}.wav", sentence) for n, sentence in enumerate(sentences[:3])]
    first = segment(workspace, ids)
    assert [u.recording for u in first] == ids
    assert segment(workspace, ids[1]) == [first[1]]
    assert segment(workspace, ids) == first
    with workspace.read() as reader:
        assert reader.count(Utterance) == len(first)


def test_a_long_given_segment_stays_as_it_was_cut(workspace: Workspace, tmp_path: Path, demo_speech: Path) -> None:
    """Whatever finds the speech by then: here other settings, elsewhere a later release of the detector."""
    phrases = [decode(path) for path in sorted(demo_speech.glob("*.ogg"))[:18]]
    audio = np.concatenate([part for phrase in phrases for part in (phrase, pause(1.0))])
    assert len(audio) > 35 * RATE
    soundfile.write(tmp_path / "a.wav", audio, RATE)
    rows = [{"start": 0.0, "end": 32.0, "speaker": "ann"}, {"start": 33.0, "end": 35.0, "speaker": "ben"}]
    lines = [json.dumps({"file": "a.wav", "text": "something"} | row) + "\n" for row in rows]
    (tmp_path / "metadata.jsonl").write_text("".join(lines))
    (id,) = ingest(workspace, tmp_path).taken
    before = segment(workspace, id)
    assert [one.speaker for one in before][-2:] == ["ann", "ben"]
    assert len(before) > 2
    other = replace(workspace, settings=replace(workspace.settings, vad_pad_ms=400))
    assert speech_spans(audio, other.settings) != speech_spans(audio, workspace.settings)
    assert segment(other, id) == before


def test_ids_are_those_of_the_span(workspace: Workspace, tmp_path: Path, sentences: list[Waveform]) -> None:
    id = take(workspace, tmp_path / "a.wav", sentences[0])
    (utterance,) = segment(workspace, id)
    assert utterance.id == f"{id}:{utterance.start}-{utterance.end}"


def test_a_recording_that_is_not_there_is_an_error(workspace: Workspace) -> None:
    with pytest.raises(UnknownRecord):
        segment(workspace, "sha256-0")


@hypothesis_settings(max_examples=300, deadline=None)
@given(runs, st.integers(1, FRAME))
def test_margins_widen_spans_and_share_gaps(pattern: list[tuple[float, int]], last: int) -> None:
    probabilities = [value for value, length in pattern for _ in range(length)]
    samples = max(0, len(probabilities) - 1) * FRAME + (last if probabilities else 0)
    spans = spans_of(probabilities, samples, Settings())
    wider = with_margins(spans, samples)
    check_spans(wider, samples)
    for (start, end), (first, stop) in zip(spans, wider, strict=True):
        assert start - MARGIN <= first <= start
        assert end <= stop <= end + MARGIN


def test_margins_reach_the_edges_and_half_of_a_gap() -> None:
    assert with_margins([(100, 20_000), (21_000, 30_000)], 50_000) == [(0, 20_500), (20_500, 30_000 + MARGIN)]
    assert with_margins([(0, MAX_UTTERANCE_SAMPLES)], 2 * MAX_UTTERANCE_SAMPLES) == [(0, MAX_UTTERANCE_SAMPLES)]


class TestQuietSpeech:
    @pytest.fixture(scope="class")
    def words(self, demo_speech: Path) -> list[Waveform]:
        return [decode(path) for path in sorted(demo_speech.glob("*.ogg"))[:20]]

    def test_is_found_where_it_is_found_when_loud(self, words: list[Waveform]) -> None:
        for word in words:
            ((start, end),) = speech_spans(word, Settings())
            quiet = word * np.float32(10 ** (-42 / 20) / np.abs(word).max())
            ((first, stop),) = speech_spans(quiet, Settings())
            assert abs(first - start) <= 3 * FRAME
            assert abs(stop - end) <= 3 * FRAME

    def test_noise_is_none_however_loud(self) -> None:
        rng = np.random.default_rng(1)
        for level in (1e-4, 1e-3, 1e-2, 0.1):
            assert speech_spans((level * rng.standard_normal(4 * RATE)).astype(np.float32), Settings()) == []

    def test_silence_stays_silence(self) -> None:
        assert not levelled(np.zeros(RATE, np.float32)).any()
        assert speech_spans(np.zeros(RATE, np.float32), Settings()) == []

    def test_where_nothing_is_likely_half_as_likely_counts(self) -> None:
        faint = [0.02] * 30 + [0.35] * 30 + [0.02] * 30
        assert len(spans_of(faint, 90 * FRAME, Settings())) == 1
        assert spans_of([0.2] * 90, 90 * FRAME, Settings()) == []
        sure = [0.02] * 60 + [0.9] * 60 + [0.02] * 200
        assert spans_of([*sure, *faint], 410 * FRAME, Settings()) == spans_of(
            [*sure, *[0.02] * 90], 410 * FRAME, Settings()
        )


class TestSurroundings:
    def test_a_span_is_heard_with_its_margins_and_kept_without(
        self, workspace: Workspace, tmp_path: Path, demo_speech: Path
    ) -> None:
        spoken = [decode(path) for path in sorted(demo_speech.glob("*.ogg"))[:4]]
        parts = [part for word in spoken for part in (word, pause(4.0))]
        id = take(workspace, tmp_path / "talk.wav", np.concatenate([pause(2.0), *parts]))
        utterances = segment(workspace, id)
        assert len(utterances) >= 2
        for utterance, heard in zip(utterances, heard_spans(workspace, utterances), strict=True):
            assert heard == ((utterance.start - MARGIN, utterance.end + MARGIN), False)
            assert len(utterance_audio(workspace, utterance)) == utterance.samples

    def test_a_recording_that_is_one_utterance_is_said_to_be_whole(self, workspace: Workspace, tmp_path: Path) -> None:
        id = take(workspace, tmp_path / "said.wav", pause(2.0), text="nothing")
        assert heard_spans(workspace, segment(workspace, id)) == [((0, 2 * RATE), True)]

    def test_given_segments_are_heard_as_given(self, workspace: Workspace, tmp_path: Path) -> None:
        soundfile.write(tmp_path / "talk.wav", pause(6.0), RATE)
        rows = [{"file": "talk.wav", "start": at, "end": at + 1, "text": "a"} for at in (1.0, 4.0)]
        (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
        ids = ingest(workspace, tmp_path, processes=1).taken
        utterances = segment(workspace, list(ids))
        assert len(utterances) == 2
        assert heard_spans(workspace, utterances) == [((RATE, 2 * RATE), False), ((4 * RATE, 5 * RATE), False)]
