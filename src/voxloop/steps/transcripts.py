"""Transcribe: choose the model, store its hypotheses, and make clean texts of them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import sqlalchemy as sa

from voxloop.errors import UsageError
from voxloop.families.contract import Hypothesis
from voxloop.families.decoding import AudioContext, Decoding, Guards, PersonalVocabulary
from voxloop.models import base_model, engine, loaded
from voxloop.records import LEFT_OUT, SAMPLE_RATE, Guard, Model, Recording, Transcript, Utterance, Word, seconds
from voxloop.speech import subtitles
from voxloop.speech import text as _text
from voxloop.speech.languages import language_code
from voxloop.steps import hearing, vocabulary
from voxloop.steps import utterances as _utterances
from voxloop.stores import tables
from voxloop.stores.catalog import chunks
from voxloop.stores.jobs import News

if TYPE_CHECKING:
    from voxloop.stores.catalog import Reader
    from voxloop.workspace import Transaction, Workspace

BLOCK_S = 600.0  # seconds of audio sorted by length at a time, as much as one claim holds
RESTORED = 16  # recordings cleaned per commit, which takes milliseconds
COMMITTED = 2  # batches transcribed per commit: the most that a kill loses


# In the pipeline -----------------------------------------------------------------------------------------------------


def decoding(
    ws: Workspace, language: str | None = None, audio_context: AudioContext = "auto", *, model: Model | None = None
) -> Decoding:
    """Return the workspace's decoding options for a model (None: the default model)."""
    settings = ws.settings
    guards = Guards(
        max_compression=settings.guard_compression,
        min_logprob=settings.guard_logprob,
        max_no_speech=settings.guard_no_speech,
    )
    return Decoding(
        language=language or settings.language or None,
        audio_context=cast(AudioContext, settings.audio_context) if audio_context == "auto" else audio_context,
        engine=engine(ws, model),
        batch_seconds=settings.batch_seconds,
        guards=guards if settings.guards else None,
        beams=settings.beams,
        prompt=settings.prompt,
        vocabulary=_vocabulary(ws),
    )


def _vocabulary(ws: Workspace) -> PersonalVocabulary | None:
    """Return the terms to prefer, and how; None if there are none, or biasing is off."""
    bonus, prompt = ws.settings.vocabulary_bonus, ws.settings.vocabulary_prompt
    terms = vocabulary.entries(ws) if bonus or prompt else ()
    return PersonalVocabulary(terms=terms, bonus=bonus, prompt=prompt) if terms else None


def transcribe(ws: Workspace, recordings: str | Sequence[str]) -> list[Transcript]:
    """Transcribe the utterances that the current model has not transcribed yet. Return the new transcripts.

    Utterances of all recordings are decoded together, batched by length, and written as they are finished. A
    recording is done when its last utterance is, so a kill loses only the current batches. Hypotheses of earlier
    models stay, and references do not change.
    """
    ids = list(dict.fromkeys([recordings] if isinstance(recordings, str) else recordings))
    model = base_model(ws)
    with ws.read() as reader:
        waiting = _unheard(reader, ids, model)
        spoken = _seconds_spoken(reader, ids)

    def complete(ended: Sequence[str], found: Sequence[Transcript]) -> None:
        with ws.completion(*ended) as tx:
            heard_in(tx, found)
            news = [News(id, f"{id}:{model.id}", {"model": model.id}, spoken[id]) for id in ended]
            tx.emit_all("transcription.completed", news)

    made: list[Transcript] = []
    left = Counter(utterance.recording for utterance in waiting)
    if heard_before := [id for id in ids if not left[id]]:
        complete(heard_before, [])
    for language, group in _by_language(waiting):
        for part in _parts(group, ws.settings.batch_seconds):
            asked = decoding(ws, language, model=model)
            with loaded(ws, model) as recogniser:
                heard = hearing.hear(ws, recogniser, part, asked, word_times=ws.settings.word_times, told=ws.told)
            found: dict[str, list[Transcript]] = {}
            for utterance, one in zip(part, heard, strict=True):
                found.setdefault(utterance.recording, []).append(_hypothesis(utterance, model, one.hypothesis))
            for id, transcripts in found.items():
                left[id] -= len(transcripts)
                made += transcripts
            if more := [one for id, transcripts in found.items() if left[id] for one in transcripts]:
                with ws.transaction() as tx:
                    heard_in(tx, more)
            if ended := [id for id in found if not left[id]]:
                complete(ended, [one for id in ended for one in found[id]])
    return made


def _parts(utterances: Sequence[Utterance], batch_s: float) -> Iterator[list[Utterance]]:
    """Sort utterances by length within `BLOCK_S`, and yield parts of a few batches."""
    for block in blocks(utterances, [utterance.samples for utterance in utterances]):
        by_length = sorted(block, key=lambda utterance: -utterance.samples)
        yield from blocks(by_length, [utterance.samples for utterance in by_length], COMMITTED * batch_s)


def heard_in(tx: Transaction, transcripts: Sequence[Transcript]) -> None:
    """Write hypotheses, and move their utterances on in the review."""
    _heard(tx, transcripts)
    tx.add(*transcripts)


def _seconds_spoken(reader: Reader, recordings: Sequence[str]) -> dict[str, float]:
    """Return the seconds of audio in the utterances of each recording."""
    table = tables.utterance
    found = dict.fromkeys(recordings, 0.0)
    for part in chunks(recordings):
        samples = sa.func.sum(table.c.end - table.c.start)
        query = sa.select(table.c.recording, samples).where(table.c.recording.in_(part)).group_by(table.c.recording)
        found.update((id, seconds(int(total))) for id, total in reader.connection.execute(query))
    return found


def _unheard(reader: Reader, recordings: Sequence[str], model: Model) -> list[Utterance]:
    """Return the utterances that a model has not transcribed yet, recording by recording, in order."""
    table = tables.transcript
    found: list[Utterance] = []
    for part in chunks(recordings):
        those = tables.utterance.c.recording.in_(part)
        heard = (
            sa.select(table.c.utterance)
            .join(tables.utterance)
            .where(those, table.c.kind == "hypothesis", table.c.by == model.id)
        )
        known = set(reader.connection.execute(heard).scalars())
        utterances = reader.all(Utterance, those, order=tables.utterance.c.start)
        place = {id: number for number, id in enumerate(part)}
        utterances.sort(key=lambda one: place[one.recording])
        found += [utterance for utterance in utterances if utterance.id not in known]
    return found


def _hypothesis(utterance: Utterance, model: Model, heard: Hypothesis) -> Transcript:
    return Transcript(
        id=hypothesis_id(utterance.id, model.id),
        utterance=utterance.id,
        kind="hypothesis",
        text=heard.text,
        by=model.id,
        confidence=heard.confidence,
        words=heard.words,
        language=heard.language,
        language_probability=heard.language_probability,
        no_speech=heard.no_speech,
        guards=heard.guards,
        temperature=heard.temperature,
    )


def _heard(tx: Transaction, transcripts: Sequence[Transcript]) -> None:
    """Move uncertain utterances to the front of the review; reviewed ones keep their status and place."""
    table = tables.utterance
    statement = (
        sa.update(table)
        .where(table.c.id == sa.bindparam("heard"), sa.or_(table.c.status == "new", table.c.status == "transcribed"))
        .values(
            status="transcribed",
            priority=sa.bindparam("urgency"),
            confidence=sa.bindparam("sure"),  # as adding the text would, but that rewrites all indexes
        )
    )
    rows = [
        {"heard": one.utterance, "urgency": 1.0 - (one.confidence or 0.0), "sure": one.confidence}
        for one in sorted(transcripts, key=lambda one: one.utterance)  # the order in which all transactions lock them
    ]
    if rows:
        tx.connection.execute(statement, rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """The work queued by `retranscribe`."""

    model: str
    recordings: tuple[str, ...]  # with utterances that other models have transcribed, but this one has not
    utterances: int
    hours: float
    waiting: int  # recordings that were already in the queue


def retranscribe(ws: Workspace, recordings: Sequence[str] = ()) -> Asked:
    """Queue utterances that only other models have transcribed, in all recordings or those named.

    The worker transcribes them like new ones. Earlier hypotheses and references stay. Repeating the call has no
    effect. Raises UnknownRecord.
    """
    model = base_model(ws)
    utterance, transcript = tables.utterance, tables.transcript
    hypothesis = sa.exists().where(transcript.c.utterance == utterance.c.id, transcript.c.kind == "hypothesis")
    query = (
        sa.select(utterance.c.recording, sa.func.count(), sa.func.sum(utterance.c.end - utterance.c.start))
        .where(
            utterance.c.status.not_in(LEFT_OUT),
            hypothesis,
            ~hypothesis.where(transcript.c.by == model.id),
        )
        .group_by(utterance.c.recording)
        .order_by(utterance.c.recording)
    )
    with ws.read() as reader:
        named = {reader.get(Recording, id).id for id in recordings}
        found = {
            id: (count, int(samples))
            for id, count, samples in reader.connection.execute(query)
            if id in named or not named
        }
    with ws.completion() as tx:
        news = [
            News(id, f"{id}:{model.id}", {"model": model.id, "utterances": n}, seconds(samples))
            for id, (n, samples) in found.items()
        ]
        new = tx.emit_all("transcription.asked", news)
    return Asked(
        model=model.id,
        recordings=tuple(found),
        utterances=sum(count for count, _ in found.values()),
        hours=seconds(sum(samples for _, samples in found.values())) / 3600,
        waiting=len(found) - new,
    )


def restore(ws: Workspace, recordings: str | Sequence[str]) -> list[Transcript]:
    """Make clean texts from the newest hypotheses; keep both."""
    ids = list(dict.fromkeys([recordings] if isinstance(recordings, str) else recordings))
    made: list[Transcript] = []
    for start in range(0, len(ids), RESTORED):
        part = ids[start : start + RESTORED]
        clean = _restored(ws, part)
        with ws.completion(*part) as tx:
            tx.add(*(transcript for texts, _ in clean.values() for transcript in texts))
            news = [
                News(id, f"{id}:{texts[0].by if texts else 'none'}", None, spoken_s)
                for id, (texts, spoken_s) in clean.items()
            ]
            tx.emit_all("nlp.postprocessed", news)
        made += [transcript for texts, _ in clean.values() for transcript in texts]
    return made


def _restored(ws: Workspace, recordings: Sequence[str]) -> dict[str, tuple[list[Transcript], float]]:
    """Return the clean texts of recordings, and the seconds of audio in the utterances of each."""
    made: dict[str, list[Transcript]] = {id: [] for id in recordings}
    with ws.read() as reader:
        spoken = _seconds_spoken(reader, recordings)
        for utterance, newest in _newest_heard(reader, recordings):
            clean = _text.clean(newest.text, utterance.language or newest.language)
            id = newest.id.replace("hypothesis", "clean", 1)
            made[utterance.recording].append(replace(newest, id=id, kind="clean", text=clean, created=0.0))
    return {id: (texts, spoken[id]) for id, texts in made.items()}


def _newest_heard(reader: Reader, recordings: Sequence[str]) -> Iterator[tuple[Utterance, Transcript]]:
    """Yield the utterances that any model has transcribed, each with its newest hypothesis."""
    for part in chunks(recordings):
        utterances = {one.id: one for one in reader.all(Utterance, tables.utterance.c.recording.in_(part))}
        for group in chunks(utterances):
            texts: dict[str, list[Transcript]] = {}
            heard = tables.transcript.c.utterance.in_(group), tables.transcript.c.kind == "hypothesis"
            for transcript in reader.all(Transcript, *heard):
                texts.setdefault(transcript.utterance, []).append(transcript)
            for id in group:
                if newest := latest(texts.get(id, ()), "hypothesis"):
                    yield utterances[id], newest


def latest(transcripts: Sequence[Transcript], kind: str) -> Transcript | None:
    """Return the newest transcript of one kind, from transcripts of one utterance in any order."""
    of_kind = [transcript for transcript in transcripts if transcript.kind == kind]
    if len(of_kind) < 2:
        return of_kind[0] if of_kind else None
    return max(of_kind, key=lambda t: (t.created, t.id))


def hypothesis_id(utterance: str, model: str) -> str:
    """Return the id of an utterance's hypothesis by a model, so that repeating it creates no second one."""
    return f"hypothesis-{hashlib.sha256(f'{utterance} {model}'.encode()).hexdigest()[:26]}"


def _by_language(utterances: Sequence[Utterance]) -> Iterator[tuple[str | None, list[Utterance]]]:
    groups: dict[str | None, list[Utterance]] = {}
    for utterance in utterances:
        groups.setdefault(utterance.language, []).append(utterance)
    yield from groups.items()


# Files outside the workspace -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A span of a file with its text; times in seconds from the start of the file."""

    start: float
    end: float
    text: str
    confidence: float | None
    words: tuple[Word, ...] = ()
    language: str | None = None
    language_probability: float | None = None
    mean_logprob: float | None = None
    no_speech: float | None = None
    guards: tuple[Guard, ...] = ()
    temperature: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class FileTranscript:
    """The transcript of a file that is not added to the workspace."""

    file: str
    model: str
    duration: float  # seconds
    segments: tuple[Segment, ...]
    notes: tuple[str, ...] = ()  # problems found in the file, a sentence each

    @property
    def speechless(self) -> bool:
        """Whether no speech was found, by the detector or by the model."""
        return not any(segment.text for segment in self.segments)

    @property
    def text(self) -> str:
        return " ".join(segment.text for segment in self.segments if segment.text)


def transcribe_file(
    ws: Workspace,
    file: Path,
    *,
    model: str | None = None,
    language: str | None = None,
    audio_context: AudioContext = "auto",
    word_times: bool = False,
    track: int | None = None,
    progress: Callable[[float, float], None] | None = None,
) -> FileTranscript:
    """Transcribe one audio file.

    `track` is the audio track, counted from 0; None: the file's default one. `progress` is called with the seconds
    done and the total seconds. Raises AudioError, and UsageError for a language that no model supports. The audio is
    kept in a temporary file, so memory does not grow with its length; the model receives the same samples that ingest
    would store.
    """
    from voxloop.speech.spooled import Sound

    language = language_code(language)
    record = base_model(ws, model)
    max_seconds, max_bytes = ws.settings.max_recording_hours * 3600, ws.settings.max_file_mb << 20
    with Sound(file, max_seconds=max_seconds, max_bytes=max_bytes, track=track) as sound, ExitStack() as using:
        samples = sound.samples
        if progress:
            progress(0.0, seconds(samples))
        asked = decoding(ws, language, audio_context, model=record)
        speaker = using.enter_context(loaded(ws, record))
        joining = _utterances.joining(speaker.context(asked.audio_context, asked.untuned))
        spans = _utterances.spans_in(sound.read, samples, ws.settings, joining)
        heard_spans = _utterances.with_margins(spans, samples)
        speech = sum(end - start for start, end in heard_spans)
        done = 0.0

        def told(heard_s: float) -> None:
            nonlocal done
            done += heard_s
            if progress:  # in the file's time, with pauses spread evenly over its speech
                progress(seconds(samples) * min(1.0, done / seconds(speech)), seconds(samples))

        segments: list[Segment] = []
        pairs = list(zip(spans, heard_spans, strict=True))
        for block in blocks(pairs, [end - start for _, (start, end) in pairs]):
            waveforms = [sound.read(start, end) for _, (start, end) in block]
            heard = speaker.transcribe(waveforms, asked, word_times=word_times, heard=told)
            segments += [segment_of(span, wider[0], one) for (span, wider), one in zip(block, heard, strict=True)]
        if progress:
            progress(seconds(samples), seconds(samples))
    return FileTranscript(
        file=str(file),
        model=record.id,
        duration=seconds(samples),
        segments=tuple(segments),
        notes=sound.notes,
    )


T = TypeVar("T")


def blocks(items: Sequence[T], samples: Sequence[int], limit_s: float = BLOCK_S) -> Iterator[list[T]]:
    """Group items up to so much audio, to show progress and bound memory."""
    block: list[T] = []
    held = 0
    for item, length in zip(items, samples, strict=True):
        if block and held + length > limit_s * SAMPLE_RATE:
            yield block
            block, held = [], 0
        block.append(item)
        held += length
    if block:
        yield block


def segment_of(span: _utterances.Span, first: int, heard: Hypothesis) -> Segment:
    """Make a segment of the hypothesis for a span with margins, which starts at sample `first`."""
    words = hearing.moved(heard.words, seconds(first))
    start, end = map(seconds, span)
    return Segment(
        # If the detector cut into a word, the word begins or ends outside the span.
        start=min([start, *(word.start for word in words[:1])]),
        end=max([end, *(word.end for word in words[-1:])]),
        text=heard.text,
        confidence=heard.confidence,
        words=words,
        language=heard.language,
        language_probability=heard.language_probability,
        mean_logprob=heard.mean_logprob,
        no_speech=heard.no_speech,
        guards=heard.guards,
        temperature=heard.temperature,
    )


FORMATS = ("text", "txt", "json", "srt", "vtt", "tsv")


def formatted(transcript: FileTranscript, format: str, layout: subtitles.Layout = subtitles.DEFAULT) -> str:
    """Format a transcript as `text`, `txt`, `json`, `srt` (SubRip), `vtt` (https://www.w3.org/TR/webvtt1/) or `tsv`.

    `txt`, `srt`, `vtt` and `tsv` follow openai/whisper: `txt` has one segment per line, `tsv` times in milliseconds.
    """
    if format == "text":
        return transcript.text
    if format == "txt":
        return "\n".join(segment.text for segment in transcript.segments if segment.text)
    if format == "json":
        return json.dumps(asdict(transcript) | {"text": transcript.text}, ensure_ascii=False)
    if format not in FORMATS:
        raise UsageError(f"there is no format {format!r}: choose one of {', '.join(FORMATS)}")
    cues = subtitles.timed(
        cue for one in transcript.segments for cue in subtitles.cues(one.text, one.start, one.end, one.words, layout)
    )
    return {"srt": subtitles.srt, "vtt": subtitles.vtt, "tsv": subtitles.tsv}[format](cues)
