"""One way of hearing: the pipeline, `transcribe` and evaluation give a model the same sound and read the same text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.unit import tiny_whisper
from voxloop.families.contract import Hypothesis
from voxloop.families.decoding import Decoding
from voxloop.pipeline import open_loop
from voxloop.records import Utterance, Word, utterance_id
from voxloop.settings import Settings
from voxloop.speech.audio import Waveform, decode
from voxloop.steps import datasets, hearing, review, transcripts
from voxloop.steps.evaluation import evaluate, scored_rows
from voxloop.steps.evaluation import unlabelled as outside
from voxloop.steps.recordings import ingest
from voxloop.steps.utterances import segment
from voxloop.workspace import Workspace

RATE = 16_000


def pause(seconds: float) -> Waveform:
    return np.random.default_rng(0).normal(0, 1e-4, round(seconds * RATE)).astype(np.float32)


def take(ws: Workspace, path: Path, waveform: Waveform, text: str | None = None) -> list[Utterance]:
    """A waveform as a recording of the workspace, cut."""
    soundfile.write(path, waveform, RATE)
    if text is not None:
        path.with_suffix(".txt").write_text(text)
    return segment(ws, list(ingest(ws, path, language="en", processes=1).taken))


@pytest.fixture(scope="module")
def spoken(demo_speech: Path) -> list[Waveform]:
    return [decode(path) for path in sorted(demo_speech.glob("*.ogg"))[:4]]


class Listener:
    """A recogniser that writes how long each waveform is, in milliseconds, and names the longest language."""

    def __init__(self) -> None:
        self.given: list[int] = []

    def context(self, asked: str, untuned: str = "full") -> str:
        return "trimmed"

    def transcribe(
        self, waveforms: Sequence[Waveform], decoding: Decoding, *, word_times: bool = False, heard: Any = None
    ) -> list[Hypothesis]:
        self.given += map(len, waveforms)
        return [
            Hypothesis(
                text=str(len(waveform) // 16),
                confidence=0.5,
                words=(Word(text="w", start=0.0, end=len(waveform) / RATE, probability=0.5),) if word_times else (),
                guards=("repetition",) if index else (),
                temperature=0.2 * index,
            )
            for index, waveform in enumerate(waveforms)
        ]


def test_a_clip_with_its_text_is_heard_as_the_file_is(
    workspace: Workspace, tmp_path: Path, spoken: list[Waveform]
) -> None:
    """Also where silence lies around the speech, which the detector takes off."""
    for number, word in enumerate(spoken):
        take(workspace, tmp_path / f"{number}.wav", np.concatenate([pause(2.0), word, pause(1.5)]), text="one")
    datasets.build(workspace, ratios=(0.0, 0.0, 1.0))
    rows = scored_rows(workspace, evaluate(workspace))
    files = [transcripts.transcribe_file(workspace, tmp_path / f"{n}.wav", language="en") for n in range(len(spoken))]
    assert sorted(row.hypothesis for row in rows) == sorted(file.text for file in files)
    assert any(row.hypothesis for row in rows)
    assert all(row.edge_error_s is None or row.edge_error_s < 1.0 for row in rows)


def test_an_evaluation_reads_what_the_pipeline_wrote(
    workspace: Workspace, tmp_path: Path, spoken: list[Waveform]
) -> None:
    parts = [part for word in spoken for part in (word, pause(3.0))]
    utterances = take(workspace, tmp_path / "talk.wav", np.concatenate([pause(2.0), *parts]))
    assert len(utterances) > 1
    written = {one.utterance: one for one in transcripts.transcribe(workspace, utterances[0].recording)}
    for utterance in utterances:
        review.save(workspace, utterance.id, "one", by="ann")
    datasets.build(workspace, ratios=(0.0, 0.0, 1.0))
    rows = scored_rows(workspace, evaluate(workspace))
    assert {row.utterance: row.hypothesis for row in rows} == {id: one.text for id, one in written.items()}
    assert all(0 <= word.start <= word.end for one in written.values() for word in one.words)


def test_what_the_detector_does_not_hear_reaches_no_model(workspace: Workspace, tmp_path: Path) -> None:
    listener: Any = Listener()
    whole = take(workspace, tmp_path / "silence.wav", pause(3.0), text="something")
    (heard,) = hearing.hear(workspace, listener, whole, Decoding(language="en"))
    assert (heard.hypothesis.text, heard.hypothesis.guards, heard.hypothesis.language) == ("", ("no speech",), "en")
    assert heard.speech is None
    assert listener.given == []


def test_the_phrases_of_a_file_become_one_text(spoken: list[Waveform]) -> None:
    file = np.concatenate([pause(1.0), spoken[0], pause(9.0), spoken[1], pause(1.0)])
    listener: Any = Listener()
    (heard,) = hearing.hear_files(listener, [file], Decoding(), Settings(), word_times=True)
    assert len(listener.given) == 2
    assert heard.hypothesis.text == " ".join(str(samples // 16) for samples in listener.given)
    first, second = heard.hypothesis.words
    assert first.end < 9.0 < second.start < second.end <= len(file) / RATE
    assert heard.speech is not None
    assert heard.speech[0] > 0.5 * RATE
    assert (heard.hypothesis.guards, heard.hypothesis.temperature) == (("repetition",), 0.2)
    assert heard.hypothesis.confidence == pytest.approx(0.5)


def test_the_order_of_files_is_kept_whatever_their_length(spoken: list[Waveform]) -> None:
    files = [np.concatenate([spoken[0], pause(s)]) for s in (6.0, 0.5, 3.0)]
    listener: Any = Listener()
    together = hearing.hear_files(listener, files, Decoding(), Settings())
    alone = [hearing.hear_files(listener, [file], Decoding(), Settings())[0] for file in files]
    assert [one.speech for one in together] == [one.speech for one in alone]
    assert [one.hypothesis.text for one in together] == [one.hypothesis.text for one in alone]


def test_an_identity_names_the_sound(workspace: Workspace, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "talk.wav", pause(4.0), RATE)
    (recording,) = ingest(workspace, tmp_path / "talk.wav", processes=1).taken
    spans = [(RATE // 2, 3 * RATE // 2), (2 * RATE - 3200, 3 * RATE)]  # 300 ms apart
    near = [
        Utterance(id=utterance_id(recording, *span), recording=recording, start=span[0], end=span[1]) for span in spans
    ]
    with workspace.transaction() as tx:
        tx.add(*near)
    first = hearing.identity(workspace, near[:1])
    assert first == hearing.identity(workspace, near[:1]) != hearing.identity(workspace, near)
    assert hearing.heard_spans(workspace, near[:1]) == [((RATE // 2 - 6400, 3 * RATE // 2 + 2400), False)]
    with workspace.transaction() as tx:
        tx.change(Utterance, [near[1].id], status="rejected")
    assert hearing.heard_spans(workspace, near[:1]) == [((RATE // 2 - 6400, 3 * RATE // 2 + 6400), False)]
    assert hearing.identity(workspace, near[:1]) != first  # its margin reaches further now


class TestUnlabelled:
    def test_clips_are_few_of_each_recording_and_mostly_the_same_after_more_came(
        self, workspace: Workspace, tmp_path: Path, spoken: list[Waveform]
    ) -> None:
        assert outside.unlabelled(workspace, Listener(), Decoding()) is None  # type: ignore[arg-type]
        for number in range(4):
            parts = [part for word in spoken for part in (word * (1 - 0.1 * number), pause(9.0))]
            take(workspace, tmp_path / f"{number}.wav", np.concatenate(parts * 2))
        listener: Any = Listener()
        found = outside.unlabelled(workspace, listener, Decoding())
        assert found is not None
        assert found["clips"] == len(listener.given) == 4 * outside.EACH
        assert found == outside.unlabelled(workspace, listener, Decoding())
        assert "sha256-" not in str(found)  # no clip is named, and no text kept
        take(workspace, tmp_path / "more.wav", np.concatenate([spoken[2] * 0.9, pause(9.0), spoken[3] * 0.9]))
        again = outside.unlabelled(workspace, listener, Decoding())
        assert again is not None
        assert found["each"].keys() < again["each"].keys()

    def test_a_clip_with_a_reference_is_out_of_it(
        self, workspace: Workspace, tmp_path: Path, spoken: list[Waveform]
    ) -> None:
        take(workspace, tmp_path / "said.wav", spoken[0], text="one")
        assert outside.unlabelled(workspace, Listener(), Decoding()) is None  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("said", "odd"),
        [("", "empty"), ("one two three", ""), ("and so on " * 20, "loop"), ("abcdefghijk" * 9, "loop")],
    )
    def test_what_is_odd(self, said: str, odd: str) -> None:
        assert outside.oddity(said, 3.0, 2.4) == odd

    def test_more_than_anybody_can_say_is_odd(self) -> None:
        said = "".join(map(chr, range(0x4E00, 0x4E00 + 130)))
        assert (outside.oddity(said, 3.0, 10.0), outside.oddity(said, 4.0, 10.0)) == ("too long", "")


@pytest.mark.parametrize("multilingual", [False, True])
def test_an_evaluation_asks_for_language_times_and_style(
    multilingual: bool, tmp_path: Path, spoken: list[Waveform]
) -> None:
    base = tiny_whisper.make(tmp_path / "base", multilingual=multilingual)
    asked = {"base_model": str(base), "guards": False, "threads": 1, "device": "cpu", "min_snr_db": -99.0}
    with open_loop(tmp_path / "workspace", create=True, **asked) as ws:
        for number, word in enumerate(spoken):
            take(ws, tmp_path / f"{number}.wav", word, text="One, two.")
        take(ws, tmp_path / "unlabelled.wav", np.concatenate([spoken[0] * 0.8, pause(1.0)]))
        datasets.build(ws, ratios=(0.0, 0.0, 1.0))
        found = evaluate(ws)
        scores, rows = found.scores, scored_rows(ws, found)
    assert scores["unlabelled"]["clips"] == 1
    assert (scores["written"]["capitals"], scores["written"]["punctuation"]) == (True, True)
    assert scores["edges"]["utterances"] == sum(row.edge_error_s is not None for row in rows) > 0
    if multilingual:
        assert scores["language"]["utterances"] == len(spoken)
        assert {row.detected for row in rows} <= set(tiny_whisper.LANGUAGES)
    else:
        assert scores["language"] is None
