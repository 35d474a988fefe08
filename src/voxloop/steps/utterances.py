"""Segment recordings into Utterances: spans of at most 30 s, each transcribed as one text.

A short recording with a given text is one utterance. All other recordings are cut at
pauses (`voice.py` detects the speech). `S` in shapes: samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import sqlalchemy as sa

from voxloop.records import (
    LEFT_OUT,
    MAX_UTTERANCE_S,
    MAX_UTTERANCE_SAMPLES,
    SAMPLE_RATE,
    GivenSegment,
    Recording,
    Transcript,
    Utterance,
    seconds,
    utterance_id,
)
from voxloop.speech import voice
from voxloop.speech.quality import measure
from voxloop.steps.recordings import read_audio
from voxloop.stores import tables
from voxloop.stores.catalog import chunks
from voxloop.stores.jobs import News

if TYPE_CHECKING:
    from voxloop.settings import Settings
    from voxloop.speech.audio import Waveform
    from voxloop.stores.catalog import Reader
    from voxloop.workspace import Workspace

MIN_SPEECH = SAMPLE_RATE // 10  # samples: Silero's 250 ms would lose a short word said alone
SHORT = 8 * SAMPLE_RATE  # samples: a recording up to this length is one phrase

# Silero misses quiet speech: at -20 dB it lost 88 of 432 clips, but only 2 after amplifying them.
LEVEL = 0.5  # peak to which quieter recordings are amplified before detection
MOST_GAIN = 10 ** (40 / 20)
# The detector cuts tightly, and Whisper loses words at the very start of a clip, so spans get margins.
MARGIN = int(0.4 * SAMPLE_RATE)  # maximum samples on either side

Span = tuple[int, int]
"""Samples from a start to an end (exclusive)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Joining:
    """Which pieces of speech are joined into one span."""

    gap: int
    """Samples: pieces with a shorter pause between them are joined."""
    longest: int
    """Maximum samples of joined pieces."""


PHRASES = Joining(gap=int(0.8 * SAMPLE_RATE), longest=15 * SAMPLE_RATE)
# For a model with a fixed 30 s input: a single phrase would take just as long.
WINDOWS = Joining(gap=2 * SAMPLE_RATE, longest=MAX_UTTERANCE_SAMPLES)


def joining(context: str) -> Joining:
    """Return how to join a file's speech for a model with this audio context."""
    return PHRASES if context == "trimmed" else WINDOWS


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cut:
    """The segmentation of a recording, or additions to an earlier one."""

    recording: Recording
    utterances: tuple[Utterance, ...]
    references: tuple[Transcript, ...] = ()
    replaced: tuple[str, ...] = ()  # utterances that given segments replace
    notes: tuple[str, ...] = ()
    detector: str | None = None  # the voice activity detector, if one was used


def segment(ws: Workspace, recording_ids: str | Sequence[str]) -> list[Utterance]:
    """Cut recordings into utterances. Return all of them, new and old, in the order of the recordings.

    Given segments of at most 30 s become utterances, and their texts become references; so
    does a recording of at most 30 s with a text. Longer ones are cut at pauses, and their text
    waits: `alignment.align` assigns it to the utterances once they are transcribed. A recording
    that was cut before does not change, except for a text or segments that it has received since.
    Each recording is written as soon as it is cut. Raises UnknownRecord.
    """
    ids = [recording_ids] if isinstance(recording_ids, str) else list(recording_ids)
    with ws.read() as reader:
        recordings = [reader.get(Recording, id) for id in dict.fromkeys(ids)]
        cut = {recording.id: _cut_before(reader, recording.id) for recording in recordings}
        event = tables.event.c.id  # id of the first segmentation's event; later ones have other ids
        first = {f"recording.segmented:{recording.id}": recording.id for recording in recordings}
        made = {first[id] for id in reader.connection.execute(sa.select(event).where(event.in_(first))).scalars()}
    fresh = [recording for recording in recordings if not cut[recording.id] and recording.id not in made]
    heard = [recording for recording in fresh if not recording.segments and not _is_whole(recording)]
    found: dict[str, list[Utterance]] = {}
    for recording in recordings:
        if recording in heard:
            continue
        cuts: list[_Cut] = []
        if recording.segments:
            cuts = _given(ws, recording, cut[recording.id], first=recording in fresh)
        elif _is_whole(recording) and not cut[recording.id]:
            cuts = [_whole(recording)]
        elif _is_whole(recording):
            cuts = _late_text(ws, recording, cut[recording.id])
        found[recording.id] = _complete(ws, recording, cuts, first=recording in fresh)
    for recording, spans in _recorded_spans(ws, heard):
        found[recording.id] = _complete(ws, recording, [_spanned(ws, recording, spans)], first=True)
    return [utterance for recording in recordings for utterance in found[recording.id]]


def _complete(ws: Workspace, recording: Recording, cuts: Sequence[_Cut], *, first: bool) -> list[Utterance]:
    """Write a recording's segmentation and its events. Return all its utterances, new and old."""
    with ws.completion(recording.id) as tx:
        tx.add(*(utterance for one in cuts for utterance in one.utterances))
        tx.add(*(reference for one in cuts for reference in one.references))
        tx.change(Utterance, [id for one in cuts for id in one.replaced], status="rejected")
        tx.change(Utterance, [one.utterance for cut in cuts for one in cut.references], status="reviewed")
        news = [_news(one, again=not first) for one in cuts]
        if first and not cuts:
            # Emit an event even if nothing changed: the next step waits for it.
            news = [News(recording.id, None, {"utterances": 0})]
        tx.emit_all("recording.segmented", news)
        if first and not any(one.utterances for one in cuts):
            tx.emit("recording.speechless", recording.id)
        return _cut_before(tx, recording.id)


@dataclass(frozen=True, kw_only=True, slots=True)
class Speechless:
    """A recording in which no speech was found."""

    recording: str
    name: str  # of the file that it came from


def speechless(ws: Workspace, recordings: Sequence[str] | None = None, *, since: float = 0.0) -> list[Speechless]:
    """Return the recordings (of those given, or all) in which no speech was found, sorted by name.

    `since`: only recordings segmented at that time or later, in seconds since the epoch by the catalog's clock.
    """
    with ws.read() as reader:
        return speechless_in(reader, recordings, since=since)


def speechless_in(reader: Reader, recordings: Sequence[str] | None = None, *, since: float = 0.0) -> list[Speechless]:
    """Do the same as `speechless`, with an open reader."""
    event, recording, utterance = tables.event.c, tables.recording.c, tables.utterance.c
    query = (
        sa.select(recording.id, recording.name)
        .join_from(tables.event, tables.recording, event.subject == recording.id)
        .where(event.type == "recording.speechless", event.created >= since)
        # Recordings that received a text or segments later have utterances.
        .where(~sa.exists().where(utterance.recording == recording.id))
        .order_by(recording.name, recording.id)
    )
    parts = [query] if recordings is None else [query.where(recording.id.in_(part)) for part in chunks(recordings)]
    found = [Speechless(recording=id, name=name) for part in parts for id, name in reader.connection.execute(part)]
    return sorted(found, key=lambda one: (one.name, one.recording))


def _cut_before(reader: Reader, recording: str) -> list[Utterance]:
    return reader.all(Utterance, tables.utterance.c.recording == recording, order=tables.utterance.c.start)


def _news(cut: _Cut, *, again: bool) -> News:
    speech_s = seconds(sum(u.samples for u in cut.utterances))
    payload: dict[str, Any] = {"utterances": len(cut.utterances), "speech_seconds": round(speech_s, 3)}
    if cut.detector:
        payload["detector"] = cut.detector
    if cut.notes:
        payload["note"] = "; ".join(cut.notes)
    if not again:
        return News(cut.recording.id, None, payload, speech_s)
    made = [*(u.id for u in cut.utterances), *(t.id for t in cut.references), *cut.replaced, *cut.notes]
    key = f"{cut.recording.id}:{hashlib.sha256(' '.join(made).encode()).hexdigest()[:16]}"
    return News(cut.recording.id, key, payload, speech_s)


def utterance_audio(ws: Workspace, utterance: Utterance) -> Waveform:
    """Read an utterance's audio, (S,) float32 at 16 kHz."""
    return read_span(ws, utterance.recording, utterance.start, utterance.end)


def read_span(ws: Workspace, recording_id: str, start: int, end: int) -> Waveform:
    """Read samples `start` to `end` (exclusive) of a recording, (S,) float32 at 16 kHz."""
    return read_audio(ws, recording_id, start, end)


class Placed(Protocol):
    """A span of a recording: an utterance, or a row of a dataset."""

    @property
    def recording(self) -> str: ...

    @property
    def start(self) -> int: ...

    @property
    def end(self) -> int: ...


def heard_spans(ws: Workspace, placed: Sequence[Placed]) -> list[tuple[Span, bool]]:
    """Return the span that a model receives for each utterance, and whether the utterance is the whole recording.

    Utterances that the detector cut get margins. Segments that came with a recording get none, since another speaker
    may talk around them. Raises UnknownRecord.
    """
    table = tables.utterance
    ids = list(dict.fromkeys(one.recording for one in placed))
    beside: dict[str, list[Span]] = {id: [] for id in ids}
    recordings: dict[str, Recording] = {}
    with ws.read() as reader:
        for part in chunks(ids):
            recordings |= {id: reader.get(Recording, id) for id in part}
            query = sa.select(table.c.recording, table.c.start, table.c.end)
            query = query.where(table.c.recording.in_(part), table.c.status != "rejected").order_by(table.c.start)
            for recording, start, end in reader.connection.execute(query):
                beside[recording].append((start, end))
    wider: dict[tuple[str, int, int], Span] = {}
    for id, spans in beside.items():
        if not recordings[id].segments:
            found = with_margins(spans, recordings[id].samples)
            wider |= {(id, *span): wide for span, wide in zip(spans, found, strict=True)}
    return [
        (
            wider.get((one.recording, one.start, one.end), (one.start, one.end)),
            (one.start, one.end) == (0, recordings[one.recording].samples),
        )
        for one in placed
    ]


def speech_spans(waveform: Waveform, settings: Settings) -> list[Span]:
    """Return the spans of speech in (S,) at 16 kHz: sorted, disjoint, at most 30 s each."""
    return spans_in(lambda start, end: waveform[start:end], len(waveform), settings)


def spans_in(
    read: Callable[[int, int], Waveform], samples: int, settings: Settings, joining: Joining | None = None
) -> list[Span]:
    """Do the same as `speech_spans`, for audio of any length that `read` returns from a start to an end."""
    return spans_of(voice.chances(lambda start, end: levelled(read(start, end)), samples), samples, settings, joining)


def levelled(waveform: Waveform) -> Waveform:
    """Amplify quiet audio (S,) for the detector: to a peak of -6 dBFS, by at most 40 dB."""
    import numpy as np

    peak = float(np.abs(waveform).max(initial=0.0))
    return waveform * np.float32(min(LEVEL / peak, MOST_GAIN)) if 0.0 < peak < LEVEL else waveform


def with_margins(spans: Sequence[Span], samples: int) -> list[Span]:
    """Add margins to spans for a model: up to half of the gap to the next span.

    The spans are sorted and within `samples`; the results exceed 30 s only if the spans do.
    """
    wider: list[Span] = []
    for index, (start, end) in enumerate(spans):
        before = (start - spans[index - 1][1]) // 2 if index else start
        after = (spans[index + 1][0] - end) // 2 if index + 1 < len(spans) else samples - end
        room = max(0, MAX_UTTERANCE_SAMPLES - (end - start))
        left = min(max(0, before), MARGIN, room // 2)
        wider.append((start - left, end + min(max(0, after), MARGIN, room - left)))
    return wider


def spans_of(
    probabilities: Sequence[float], samples: int, settings: Settings, joining: Joining | None = None
) -> list[Span]:
    """Return spans of speech from the speech probability of every 512 samples.

    Silero's rule finds the speech between pauses of `vad_min_silence_ms`. Pieces close to each
    other are then joined into phrases; in recordings of at most 8 s all pieces are joined.
    """
    joining = joining or PHRASES
    if not probabilities:
        return []
    found = partial(
        voice.stretches,
        probabilities,
        samples,
        shortest=MIN_SPEECH,
        pause=int(settings.vad_min_silence_ms * SAMPLE_RATE / 1000),
        padding=int(settings.vad_pad_ms * SAMPLE_RATE / 1000),
    )
    # If nothing is found, retry with half the threshold: noise stays far below that.
    pieces = found(threshold=settings.vad_threshold) or found(threshold=settings.vad_threshold / 2)
    spans: list[Span] = []
    for first, last in pieces:
        # Padding may overlap the neighbour or, at a hard cut, exceed 30 s.
        start = max(first, spans[-1][1] if spans else 0)
        end = min(last, samples, start + MAX_UTTERANCE_SAMPLES)
        if end <= start:
            continue
        near = spans and start - spans[-1][1] < joining.gap
        if spans and (samples <= SHORT or (near and end - spans[-1][0] <= joining.longest)):
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    return spans


def _is_whole(recording: Recording) -> bool:
    return recording.text is not None and recording.samples <= MAX_UTTERANCE_SAMPLES


def _whole(recording: Recording) -> _Cut:
    """Make a recording with a known text one utterance, with the text as its reference."""
    utterance = Utterance(
        id=utterance_id(recording.id, 0, recording.samples),
        recording=recording.id,
        start=0,
        end=recording.samples,
        speaker=recording.speaker,
        language=recording.language,
        status="reviewed",
        quality=recording.quality,
    )
    return _Cut(recording=recording, utterances=(utterance,), references=(_reference(utterance, recording.text or ""),))


def _reference(utterance: Utterance, text: str) -> Transcript:
    return Transcript(id=f"{utterance.id}:metadata", utterance=utterance.id, kind="reference", text=text, by="metadata")


def _late_text(ws: Workspace, recording: Recording, cut: Sequence[Utterance]) -> list[_Cut]:
    """Make a text that a short recording received after segmentation the reference of its single utterance."""
    open_to = [utterance for utterance in cut if utterance.status not in LEFT_OUT]
    with ws.read() as reader:
        spoken = _with_reference(reader, cut)
    if spoken:
        return []  # it already has a reference: a person's, or this text
    if len(open_to) != 1:
        note = (
            f"kept the new text on the recording only: the recording has {len(open_to)} utterances, and only a single "
            "one can take the text as its reference"
        )
        return [_Cut(recording=recording, utterances=(), notes=(note,))]
    reference = _reference(open_to[0], recording.text or "")
    note = "the new text became the utterance's reference"
    return [_Cut(recording=recording, utterances=(), references=(reference,), notes=(note,))]


def _with_reference(reader: Reader, cut: Sequence[Utterance]) -> set[str]:
    table = tables.transcript
    ids = [utterance.id for utterance in cut]
    query = sa.select(table.c.utterance).where(table.c.utterance.in_(ids), table.c.kind == "reference")
    return set(reader.connection.execute(query).scalars())


def _given(ws: Workspace, recording: Recording, cut: Sequence[Utterance], *, first: bool) -> list[_Cut]:
    """Apply the segments that came with a recording, or that it received after segmentation.

    Segments that overlap a reviewed utterance are skipped; utterances that nobody has
    worked on are replaced.
    """
    there = {utterance.id for utterance in cut}
    with ws.read() as reader:
        spoken = _with_reference(reader, cut)
    worked_on = [u for u in cut if u.id in spoken or u.split is not None]
    utterances: list[Utterance] = []
    references: list[Transcript] = []
    notes: list[str] = []
    without_room = 0
    detector = None
    for given in recording.segments:
        if given.end - given.start > MAX_UTTERANCE_SAMPLES:
            if _cut_within(recording, given, cut):
                continue
            detector = voice.detector()
        for start, end in _pieces(ws, recording, given):
            id = utterance_id(recording.id, start, end)
            if id in there:
                continue
            if any(start < other.end and other.start < end for other in worked_on):
                without_room += 1
                continue
            utterance = Utterance(
                id=id,
                recording=recording.id,
                start=start,
                end=end,
                speaker=given.speaker or recording.speaker,
                language=given.language or recording.language,
                quality=measure(read_span(ws, recording.id, start, end)),
            )
            utterances.append(utterance)
            if given.text and (start, end) == (given.start, given.end):
                references.append(_reference(utterance, given.text))
        if first and given.text and given.end - given.start > MAX_UTTERANCE_SAMPLES:
            place = f"the text of the segment at {seconds(given.start):.1f} s"
            notes.append(f"{place} must be aligned first: {_too_long(given.end - given.start)}")
    replaced = tuple(
        old.id
        for old in cut
        if old.status in ("new", "transcribed")
        and old not in worked_on
        and any(old.start < new.end and new.start < old.end for new in utterances)
    )
    if without_room:
        notes.append(
            f"skipped given segments that overlap reviewed utterances or utterances in a dataset: {without_room}"
        )
    if replaced:
        notes.append(f"utterances replaced by given segments: {len(replaced)}")
    if not first and not utterances:
        return []
    return [
        _Cut(
            recording=recording,
            utterances=tuple(utterances),
            references=tuple(references),
            replaced=replaced,
            notes=tuple(notes),
            detector=detector,
        )
    ]


def _cut_within(recording: Recording, given: GivenSegment, cut: Sequence[Utterance]) -> bool:
    """Whether a long segment was already cut: its utterances stay, even if a newer detector would cut elsewhere."""
    said = (given.speaker or recording.speaker, given.language or recording.language)
    over = [u for u in cut if u.start < given.end and given.start < u.end and u.status != "rejected"]
    return bool(over) and all(
        given.start <= u.start and u.end <= given.end and (u.speaker, u.language) == said for u in over
    )


def _pieces(ws: Workspace, recording: Recording, given: GivenSegment) -> list[Span]:
    """Return a given segment unchanged, or cut at pauses if it is longer than 30 s."""
    samples = given.end - given.start
    if samples <= MAX_UTTERANCE_SAMPLES:
        return [(given.start, given.end)]
    read = partial(read_span, ws, recording.id)
    spans = spans_in(lambda start, end: read(given.start + start, given.start + end), samples, ws.settings)
    return [(given.start + start, given.start + end) for start, end in spans]


def _too_long(samples: int) -> str:
    return f"it lasts {seconds(samples):.1f} s, more than {MAX_UTTERANCE_S:.0f} s"


def _spanned(ws: Workspace, recording: Recording, spans: Sequence[Span]) -> _Cut:
    utterances = tuple(
        Utterance(
            id=utterance_id(recording.id, start, end),
            recording=recording.id,
            start=start,
            end=end,
            speaker=recording.speaker,
            language=recording.language,
            quality=measure(read_span(ws, recording.id, start, end)),
        )
        for start, end in spans
    )
    notes = []
    if not utterances:
        notes.append("no speech was found")
    if recording.text is not None:
        notes.append(f"the text of the recording must be aligned first: {_too_long(recording.samples)}")
    return _Cut(recording=recording, utterances=utterances, notes=tuple(notes), detector=voice.detector())


def _recorded_spans(ws: Workspace, recordings: Sequence[Recording]) -> Iterator[tuple[Recording, list[Span]]]:
    """Yield the spans of each recording as they are found: short recordings first, in batches."""
    short = sorted((r for r in recordings if r.samples <= voice.SHORT), key=lambda r: r.samples)
    for first in range(0, len(short), voice.TOGETHER):
        group = short[first : first + voice.TOGETHER]
        waveforms = [read_audio(ws, recording.id) for recording in group]
        for recording, chances in zip(group, voice.chances_of([levelled(one) for one in waveforms]), strict=True):
            yield recording, spans_of(chances, recording.samples, ws.settings)
    for recording in recordings:
        if recording.samples > voice.SHORT:
            yield recording, spans_in(partial(read_audio, ws, recording.id), recording.samples, ws.settings)
