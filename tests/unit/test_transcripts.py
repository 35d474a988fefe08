"""The step: what is kept of a text, what a kill loses, what a new champion changes; and files of any length."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import sqlalchemy as sa
from typer.testing import CliRunner

from tests.unit import tiny_whisper
from voxloop import models
from voxloop.automation.worker import work
from voxloop.cli import app
from voxloop.pipeline import LISTENERS, open_loop
from voxloop.records import Model, Transcript, Utterance
from voxloop.speech.audio import decode
from voxloop.steps import transcripts
from voxloop.steps.recordings import ingest
from voxloop.steps.review.warnings import warnings_of
from voxloop.steps.utterances import segment
from voxloop.stores import tables
from voxloop.workspace import Workspace

RATE = 16_000


@pytest.fixture(scope="module")
def challenger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper.make(tmp_path_factory.mktemp("challenger"), multilingual=True)


def take(ws: Workspace, folder: Path, demo_speech: Path, count: int = 3) -> list[str]:
    """Clips of the demo's speech as recordings cut into utterances."""
    files = sorted(demo_speech.glob("*.ogg"))[:count]
    folder.mkdir()
    for file in files:
        (folder / file.name).write_bytes(file.read_bytes())
    ids = ingest(ws, folder, processes=1, language="en").taken
    segment(ws, ids)
    return list(ids)


def texts(ws: Workspace, kind: str) -> list[Transcript]:
    with ws.read() as reader:
        return reader.all(Transcript, tables.transcript.c.kind == kind)


def crown(ws: Workspace, folder: Path) -> Model:
    """Make the model in a folder champion, by hand."""
    model = models.base_model(ws, str(folder))
    with ws.transaction() as tx:
        tx.connection.execute(tables.alias.delete())
        tx.connection.execute(tables.alias.insert().values(name="champion", model=model.id, promotion="p"))
    return model


def test_what_is_known_of_a_text_is_kept(workspace: Workspace, tmp_path: Path, demo_speech: Path) -> None:
    ids = take(workspace, tmp_path / "speech", demo_speech)
    made = transcripts.transcribe(workspace, ids)
    transcripts.restore(workspace, ids)
    kept = {one.id: one for one in texts(workspace, "hypothesis")}
    assert len(made) == len(kept) >= 3
    for one in made:
        assert replace(kept[one.id], created=0.0) == one
        assert (one.language, one.language_probability, one.temperature) == ("en", None, one.temperature)
        assert one.no_speech is not None
        assert [word.text for word in one.words] == one.text.split()
    for clean in texts(workspace, "clean"):
        hypothesis = kept[clean.id.replace("clean", "hypothesis")]
        assert (clean.words, clean.guards, clean.no_speech) == (
            hypothesis.words,
            hypothesis.guards,
            hypothesis.no_speech,
        )


def test_word_times_and_guards_are_off_by_a_setting(tmp_path: Path, demo_speech: Path) -> None:
    with open_loop(tmp_path / "w", create=True, word_times=False, guards=False) as ws:
        made = transcripts.transcribe(ws, take(ws, tmp_path / "speech", demo_speech, 1))
        assert made[0].words == ()
        assert transcripts.decoding(ws).guards is None


def test_a_kill_loses_the_batch_in_hand_and_not_the_claim(
    workspace: Workspace, tmp_path: Path, demo_speech: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = take(workspace, tmp_path / "speech", demo_speech)
    monkeypatch.setattr(transcripts, "blocks", lambda items, samples, limit_s=0.0: ([item] for item in items))
    heard: list[int] = []
    inner = models.loaded

    def dying(ws: Workspace, model: Model) -> object:
        if len(heard) == 2:
            raise KeyboardInterrupt
        heard.append(1)
        return inner(ws, model)

    monkeypatch.setattr(transcripts, "loaded", dying)
    claim = workspace.jobs.claim(["transcribe"], limit=64)
    assert claim is not None
    assert len(claim.subjects) == len(ids)
    with pytest.raises(KeyboardInterrupt):
        transcripts.transcribe(workspace.under(claim), claim.subjects)
    assert len(texts(workspace, "hypothesis")) == 2
    with workspace.read() as reader:
        done = sa.select(tables.job.c.subject).where(tables.job.c.step == "transcribe", tables.job.c.state == "done")
        finished = set(reader.connection.execute(done).scalars())
        assert finished == {text.utterance.partition(":")[0] for text in texts(workspace, "hypothesis")}
        assert workspace.jobs.counts(reader)["restore"] == {"ready": 2}
    monkeypatch.setattr(transcripts, "loaded", inner)
    workspace.jobs.release(claim)
    work(workspace, ["transcribe"], until_idle=True)
    assert len(texts(workspace, "hypothesis")) == len(ids)
    assert transcripts.transcribe(workspace, ids) == []


def test_a_new_champion_hears_it_again_beside_what_was(
    workspace: Workspace, tmp_path: Path, demo_speech: Path, challenger: Path
) -> None:
    ids = take(workspace, tmp_path / "speech", demo_speech)
    work(workspace, until_idle=True)
    before = texts(workspace, "hypothesis")
    with workspace.transaction() as tx:
        reviewed = before[0].utterance
        reference = Transcript(id="r", utterance=reviewed, kind="reference", text="by a person", by="ann")
        tx.add(reference)
        tx.change(Utterance, reviewed, status="reviewed", priority=0.123)
    assert transcripts.retranscribe(workspace).recordings == ()
    model = crown(workspace, challenger)
    asked = transcripts.retranscribe(workspace)
    assert (asked.model, set(asked.recordings), asked.utterances) == (model.id, set(ids), len(before))
    assert transcripts.retranscribe(workspace, ids[:1]).waiting == 1  # asked for already
    work(workspace, until_idle=True)
    after = texts(workspace, "hypothesis")
    assert {one.id for one in before} < {one.id for one in after}
    assert [one for one in after if one.by != model.id] == before
    assert sorted(one.utterance for one in after if one.by == model.id) == sorted(one.utterance for one in before)
    newest = transcripts.latest([one for one in texts(workspace, "clean") if one.utterance == reviewed], "clean")
    assert newest is not None
    assert newest.by == model.id
    assert [one.text for one in texts(workspace, "reference")] == ["by a person"]
    with workspace.read() as reader:
        utterance = reader.get(Utterance, reviewed)
    assert (utterance.status, utterance.priority) == ("reviewed", 0.123)
    assert transcripts.retranscribe(workspace).recordings == ()


def test_asking_wakes_the_transcriber() -> None:
    assert LISTENERS["transcription.asked"] == ("transcribe",)


def test_what_fired_is_a_warning_of_review() -> None:
    utterance = Utterance(id="u", recording="r", start=0, end=3 * RATE)
    heard = Transcript(id="h", utterance="u", kind="hypothesis", text="a text of some length", by="m", confidence=0.9)

    def kinds(**values: object) -> dict[str, str]:
        return {one.kind: one.detail for one in warnings_of(utterance, [replace(heard, **values)])}  # type: ignore[arg-type]

    assert kinds() == {}
    assert "temperature 0.4" in kinds(guards=("repetition",), temperature=0.4)["second try"]
    assert "cut off" in kinds(guards=("cut off",))
    assert kinds(text="", guards=("no speech",), no_speech=0.83)["no text"].endswith("(probability 0.83)")
    assert kinds(text="", guards=("silence",))["no text"] == "the clip is silent"


def long_file(path: Path, demo_speech: Path, pause_s: float = 5.0) -> list[tuple[float, float]]:
    """A minute of clips with pauses; where each lies, in seconds."""
    places = []
    pieces: list[np.ndarray] = []
    at = 0
    for file in sorted(demo_speech.glob("*.ogg"))[:8]:
        gap = (1e-4 * np.random.default_rng(0).standard_normal(int(pause_s * RATE))).astype(np.float32)
        clip = decode(file)
        places.append(((at + len(gap)) / RATE, (at + len(gap) + len(clip)) / RATE))
        pieces += [gap, clip]
        at += len(gap) + len(clip)
    soundfile.write(path, np.concatenate(pieces), RATE)
    return places


def test_a_file_is_heard_in_its_segments(workspace: Workspace, tmp_path: Path, demo_speech: Path) -> None:
    places = long_file(tmp_path / "long.wav", demo_speech)
    told: list[tuple[float, float]] = []
    found = transcripts.transcribe_file(
        workspace, tmp_path / "long.wav", word_times=True, progress=lambda done, of: told.append((done, of))
    )
    assert told[0] == (0.0, found.duration)
    assert told[-1] == (found.duration, found.duration)
    assert told == sorted(told)
    assert len(told) > 2
    assert len(found.segments) == len(places)  # nothing is lost, and the pauses are no speech
    for one, (start, end) in zip(found.segments, places, strict=True):
        assert one.start == pytest.approx(start, abs=0.4)
        assert one.end == pytest.approx(end, abs=0.5)
        for word in one.words:
            assert one.start <= word.start <= word.end <= one.end + 1e-3
    with workspace.read() as reader:
        assert reader.count(Utterance) == 0


def test_a_model_that_is_fed_30_s_hears_phrases_together(
    workspace: Workspace, tmp_path: Path, demo_speech: Path
) -> None:
    places = long_file(tmp_path / "long.wav", demo_speech, pause_s=1.5)
    phrases = transcripts.transcribe_file(workspace, tmp_path / "long.wav").segments
    windows = transcripts.transcribe_file(workspace, tmp_path / "long.wav", audio_context="full").segments
    assert len(phrases) == len(places)
    assert len(windows) < len(phrases)
    assert max(one.end - one.start for one in windows) <= 30.0
    for phrase in phrases:
        assert any(one.start <= phrase.start and phrase.end <= one.end for one in windows)


def test_formats_of_the_command_line(tmp_path: Path, demo_speech: Path) -> None:
    file = str(sorted(demo_speech.glob("*.ogg"))[0])
    outputs = {}
    for format in transcripts.FORMATS:
        result = CliRunner().invoke(app, ["-C", str(tmp_path / "w"), "init"])
        result = CliRunner().invoke(app, ["-C", str(tmp_path / "w"), "transcribe", file, "--format", format])
        assert result.exit_code == 0, result.output
        outputs[format] = result.stdout
    told = json.loads(outputs["json"])
    assert told["text"] == outputs["text"].strip()
    (one,) = told["segments"]
    assert one["words"][0].keys() == {"text", "start", "end", "probability"}
    assert one.keys() >= {"confidence", "no_speech", "language", "guards", "temperature"}
    assert outputs["vtt"].startswith("WEBVTT\n\n00:00:00.")
    assert outputs["srt"].startswith("1\n00:00:00,")


def test_retranscribe_on_the_command_line(tmp_path: Path, demo_speech: Path, challenger: Path) -> None:
    folder = tmp_path / "w"
    with open_loop(folder, create=True) as ws:
        take(ws, tmp_path / "speech", demo_speech, 2)
        work(ws, until_idle=True)
        crown(ws, challenger)
    result = CliRunner().invoke(app, ["-C", str(folder), "retranscribe"])
    assert "2 utterances" in result.output
    assert "voxloop worker" in result.output
    told = json.loads(CliRunner().invoke(app, ["-C", str(folder), "retranscribe", "--json"]).output)
    assert told["waiting"] == 2
    assert CliRunner().invoke(app, ["-C", str(folder), "retranscribe", "nothing"]).exit_code == 2


class TestMargins:
    """What lies around a span is heard as well; what is kept of it is about the span."""

    @pytest.fixture
    def talk(self, tmp_path: Path, demo_speech: Path) -> Path:
        hush = np.random.default_rng(0).normal(0, 1e-4, 3 * RATE).astype(np.float32)
        words = [decode(path) for path in sorted(demo_speech.glob("*.ogg"))[:3]]
        soundfile.write(tmp_path / "talk.wav", np.concatenate([hush, *(p for w in words for p in (w, hush))]), RATE)
        return tmp_path / "talk.wav"

    def test_words_lie_within_their_utterance(self, workspace: Workspace, talk: Path) -> None:
        ids = list(ingest(workspace, talk, language="en").taken)
        utterances = {utterance.id: utterance for utterance in segment(workspace, ids)}
        transcripts.transcribe(workspace, ids)
        heard = texts(workspace, "hypothesis")
        words = [(word, utterances[text.utterance].samples / RATE) for text in heard for word in text.words]
        assert len(heard) == len(utterances) >= 2
        assert words
        assert all(0.0 <= word.start <= word.end <= length for word, length in words)

    def test_a_file_says_when_in_the_file(self, workspace: Workspace, talk: Path) -> None:
        ids = list(ingest(workspace, talk, language="en").taken)
        spans = [(utterance.start / RATE, utterance.end / RATE) for utterance in segment(workspace, ids)]
        segments = transcripts.transcribe_file(workspace, talk, language="en", word_times=True).segments
        assert len(segments) == len(spans)
        for one, (start, end) in zip(segments, spans, strict=True):
            assert start - 0.4 <= one.start <= start
            assert end <= one.end <= end + 0.4
            assert all(one.start <= word.start <= word.end <= one.end for word in one.words)

    def test_quiet_speech_is_heard(self, workspace: Workspace, tmp_path: Path, talk: Path) -> None:
        loud, rate = soundfile.read(talk, dtype="float32")
        soundfile.write(tmp_path / "quiet.wav", loud * np.float32(10 ** (-34 / 20)), rate, subtype="FLOAT")
        found = [transcripts.transcribe_file(workspace, file, language="en") for file in (talk, tmp_path / "quiet.wav")]
        assert len(found[0].segments) == len(found[1].segments) > 0
        assert found[1].text
