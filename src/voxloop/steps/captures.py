"""Captures: keep what a server heard, or an app sent, as recordings to review, and let them expire.

The audio goes through the code of files: converted, stored under its hash, written with its events. What was heard is
kept as the pipeline keeps its own texts, so that the pipeline goes on from there and hears nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import sqlalchemy as sa
from ulid import ULID

from voxloop.records import (
    MAX_UTTERANCE_SAMPLES,
    SAMPLE_RATE,
    Quality,
    Recording,
    Transcript,
    Utterance,
    seconds,
    utterance_id,
)
from voxloop.speech import voice
from voxloop.steps import consent
from voxloop.steps.recordings.keeping import Read, Tally
from voxloop.steps.recordings.sources import Item
from voxloop.steps.review.decisions import locked, write_reference
from voxloop.steps.transcripts import heard_in, hypothesis_id
from voxloop.steps.utterances import levelled
from voxloop.stores import tables
from voxloop.stores.catalog import insert_new

if TYPE_CHECKING:
    from voxloop.speech.audio import Waveform
    from voxloop.steps.recordings.conversion import Converted
    from voxloop.steps.transcripts import Segment
    from voxloop.workspace import Transaction, Workspace

NAME_LENGTH = 100  # characters kept of a client's file name
LEAST_S = 0.3
LEAST_DBFS = -50.0  # RMS: below it, speech drowns in the noise of a microphone
HEARD_FRAMES = 12  # of 32 ms
EDGE_FRAMES = 3  # of 32 ms at each end, which belong to a pause where nothing is cut off
SURELY_SPEECH = 0.5  # probability
MOST_CLIPPED = 0.001  # share of samples: clean speech has none


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """A text that came with audio: a person's (`reviewed`), or another recogniser's."""

    text: str
    by: str
    reviewed: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Who sent captured audio."""

    client: str
    token: str | None = None
    phrase: str | None = None  # that the speaker read aloud; None: free speech


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """A recording that was kept, or was there already."""

    recording: str
    new: bool


def warnings_of(quality: Quality, samples: int) -> list[str]:
    """What a speaker should know at once, while they can say it again; a sentence each."""
    said = []
    if seconds(samples) < LEAST_S:
        said.append(f"too short: {seconds(samples):.2f} s, at least {LEAST_S:g} s are needed")
    if quality.soundless:
        said.append("nothing to hear: is the microphone on?")
    elif quality.level_dbfs < LEAST_DBFS:
        said.append(f"too quiet: {quality.level_dbfs:.0f} dBFS; speak up, or come closer to the microphone")
    if quality.clipping > MOST_CLIPPED:
        said.append(f"clipped: {100 * quality.clipping:.1f} % of the samples; turn the microphone down")
    return said


def cut_off(waveform: Waveform) -> list[str]:
    """Whether speech is under way where (S,) begins or ends: what a speaker should know at once, a sentence each."""
    # The detector needs a moment of sound before it knows speech: the beginning is heard backwards first.
    before = waveform[: HEARD_FRAMES * voice.FRAME][::-1]
    (chances,) = voice.chances_of([levelled(np.concatenate([before, waveform]))])
    chances = chances[len(before) // voice.FRAME :]
    said = []
    if max(chances[:EDGE_FRAMES], default=0.0) >= SURELY_SPEECH:
        said.append("cut at the start: wait a moment after starting to record, then read")
    if max(chances[-EDGE_FRAMES:], default=0.0) >= SURELY_SPEECH:
        said.append("cut at the end: finish the phrase, then stop recording")
    return said


def file_name(name: str) -> str:
    """A client's name of a file that is safe to store and show: its last part, without what is unprintable."""
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return "".join(char for char in last if char.isprintable()).strip(". ")[-NAME_LENGTH:] or "audio"


def keep(
    ws: Workspace,
    audio: Converted,
    *,
    place: Path,
    speaker: str | None = None,
    language: str | None = None,
    session: str | None = None,
    model: str | None = None,
    segments: Sequence[Segment] = (),
    text: Text | None = None,
    source: Source | None = None,
    created: float = 0.0,
    trained: bool = False,
) -> Kept:
    """Store audio as a recording, with what a model heard in it, or with its own text.

    `place` is where it came from, and its name the recording's. `segments` are what `model` heard, in seconds from the
    beginning. A person's `text` for more than 30 s is assigned to utterances
    later; another recogniser's is left out, and the audio transcribed again. With a `source`, it is a capture, which
    expires. Audio that is known keeps what is known of it, and gains only a person's text. What another program has
    `trained` a model on goes to the train split.
    """
    long = audio.samples > MAX_UTTERANCE_SAMPLES
    item = Item(
        path=place,
        speaker=speaker,
        language=language,
        session=session,
        text=text.text if text and text.reviewed and long else None,
    )

    def also(tx: Transaction, new: set[str]) -> None:
        recording = tx.get(Recording, audio.id)
        if recording.id in new:
            if created:
                tx.change(Recording, recording.id, created=created)
            if source:
                _note(tx, recording, source)
        if not long and text and (recording.id in new or text.reviewed):
            _write_text(tx, recording, text, split="train" if trained else None)
        elif recording.id in new and model:
            _write_heard(tx, recording, model, segments)
        if trained:
            note_trained(tx, [recording.id])

    tally = Tally(ws, split=False, told=None)
    tally.commit([Read(item=item, outcome=(audio,))], last=True, also=also)
    return Kept(recording=audio.id, new=bool(tally.taken))


def _note(tx: Transaction, recording: Recording, source: Source) -> None:
    standing = consent.of(tx, recording.speaker) if recording.speaker else None
    row = {
        "recording": recording.id,
        "created": tx.now(),
        "client": source.client,
        "token": source.token,
        "version": standing.version if standing else None,
        "purposes": list(standing.permits if standing else ("train",)),
        "phrase": source.phrase,
    }
    insert_new(tx.connection, tables.capture, [row])
    tx.emit("recording.captured", recording.id, payload={"client": source.client})


def note_trained(tx: Transaction, recordings: Sequence[str]) -> None:
    """Note that another program trained a model on recordings before they came here."""
    utterance = tables.utterance.c
    found = tx.connection.execute(sa.select(utterance.id).where(utterance.recording.in_(recordings))).scalars()
    insert_new(tx.connection, tables.trained_elsewhere, [{"utterance": id} for id in found])


def _write_heard(tx: Transaction, recording: Recording, model: str, segments: Sequence[Segment]) -> None:
    made: list[tuple[Utterance, Transcript]] = []
    free = 0  # utterances do not overlap
    for one in segments:
        start = max(free, round(one.start * SAMPLE_RATE))
        end = min(round(one.end * SAMPLE_RATE), recording.samples, start + MAX_UTTERANCE_SAMPLES)
        if end <= start:
            continue
        free = end
        utterance = _utterance(recording, start, end)
        words = tuple(
            replace(word, start=max(0.0, word.start - seconds(start)), end=word.end - seconds(start))
            for word in one.words
        )
        transcript = Transcript(
            id=hypothesis_id(utterance.id, model),
            utterance=utterance.id,
            kind="hypothesis",
            text=one.text,
            by=model,
            confidence=one.confidence,
            words=words,
            language=one.language,
            language_probability=one.language_probability,
            no_speech=one.no_speech,
            guards=one.guards,
            temperature=one.temperature,
        )
        made.append((utterance, transcript))
    if made:
        tx.add(*(utterance for utterance, _ in made))
        heard_in(tx, [transcript for _, transcript in made])
        _segmented(tx, recording, len(made))


def _write_text(tx: Transaction, recording: Recording, text: Text, *, split: Literal["train"] | None) -> None:
    utterance = replace(_utterance(recording, 0, recording.samples), split=split)
    there = tx.all(Utterance, tables.utterance.c.recording == recording.id)
    if not there:
        tx.add(utterance)
        _segmented(tx, recording, 1)
    elif [one.id for one in there] != [utterance.id]:
        return  # it was cut otherwise, so nobody knows which part of the text belongs where
    if text.reviewed:
        item = locked(tx, utterance.id)
        if item.reference is None:
            write_reference(tx, item, text.text, by=text.by, kind="import")
        return
    id = f"hypothesis-{ULID()}"
    heard_in(tx, [Transcript(id=id, utterance=utterance.id, kind="hypothesis", text=text.text, by=text.by)])


def _utterance(recording: Recording, start: int, end: int) -> Utterance:
    return Utterance(
        id=utterance_id(recording.id, start, end),
        recording=recording.id,
        start=start,
        end=end,
        speaker=recording.speaker,
        language=recording.language,
        quality=recording.quality if end - start == recording.samples else None,
    )


def _segmented(tx: Transaction, recording: Recording, utterances: int) -> None:
    tx.emit(
        "recording.segmented",
        recording.id,
        payload={"utterances": utterances},
        seconds=seconds(recording.samples),
    )


# Expiry --------------------------------------------------------------------------------------------------------------


def expired(ws: Workspace, forget: Callable[[Sequence[str]], object]) -> int:
    """Remove, by `forget`, captures older than `capture_keep_days` that nobody decided on. Return their number."""
    if not ws.settings.capture_keep_days:
        return 0
    capture, utterance, decided = tables.capture.c, tables.utterance.c, tables.review_decision.c
    touched = (
        sa.select(decided.seq)
        .join_from(tables.utterance, tables.review_decision, decided.utterance == utterance.id)
        .where(utterance.recording == capture.recording, decided.kind.not_in(("skip",)))
        .exists()
    )
    with ws.read() as reader:
        old = capture.created < reader.now() - ws.settings.capture_keep_days * 86_400
        found = list(reader.connection.execute(sa.select(capture.recording).where(old, ~touched)).scalars())
    if found:
        forget(found)
        with ws.transaction() as tx:
            tx.emit("capture.expired", str(ULID()), payload={"recordings": len(found)})
    return len(found)
