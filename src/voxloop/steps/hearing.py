"""Run a model on utterances: prepare the audio, transcribe it, join the results. Pipeline and evaluation share this.

An utterance that the detector cut out of a recording gets margins. An utterance that is a whole recording is treated
as `transcribe` treats a file: the detector finds the speech in it, and the model receives only that.
An evaluation therefore also counts what the detector misses. `S` in shapes: samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from voxloop.families.contract import Hypothesis
from voxloop.records import Word, seconds
from voxloop.speech import voice
from voxloop.speech.audio import at_speed
from voxloop.steps.utterances import (
    MARGIN,
    Placed,
    Span,
    heard_spans,
    joining,
    levelled,
    read_span,
    spans_of,
    with_margins,
)

if TYPE_CHECKING:
    from voxloop.families.contract import Recogniser
    from voxloop.families.decoding import Decoding
    from voxloop.settings import Settings
    from voxloop.speech.audio import Waveform
    from voxloop.workspace import Workspace

VERSION = "served/1"  # increase with every change to how speech is cut or passed to a model


@dataclass(frozen=True, kw_only=True, slots=True)
class Heard:
    """A model's result for an utterance or a file."""

    hypothesis: Hypothesis  # word times are relative to the start of the utterance, and within it
    speech: Span | None  # span of speech in samples from that start; None: the detector found none


@dataclass(frozen=True, slots=True)
class _Piece:
    """Audio that the model receives as one waveform."""

    owner: int  # index of its utterance or file
    waveform: Waveform
    offset: int  # samples from the owner's start to the piece's start; negative if a margin precedes it


def hear(
    ws: Workspace,
    recogniser: Recogniser,
    placed: Sequence[Placed],
    decoding: Decoding,
    *,
    word_times: bool = False,
    told: Callable[[float], None] | None = None,
    speed: float = 1.0,
) -> list[Heard]:
    """Transcribe utterances (or rows of a dataset), in the given order. Raises UnknownRecord.

    `told` is called with the seconds of audio of every finished batch. The model receives the audio at `speed` times
    its own, which also raises the pitch; word times are those of that audio.
    """
    pieces: list[_Piece] = []
    speech: list[Span | None] = []
    found = heard_spans(ws, placed)
    sound = [read_span(ws, one.recording, *span) for one, (span, _) in zip(placed, found, strict=True)]
    whole = [index for index, (_, is_whole) in enumerate(found) if is_whole]
    spans = dict(zip(whole, cut([sound[index] for index in whole], recogniser, decoding, ws.settings), strict=True))
    for index, (one, (span, _), waveform) in enumerate(zip(placed, found, sound, strict=True)):
        if index in spans:
            pieces += _pieces(index, waveform, spans[index])
            speech.append(_extent(spans[index]))
        else:
            pieces.append(_Piece(index, waveform, span[0] - one.start))
            speech.append((0, one.end - one.start))
    lengths = [one.end - one.start for one in placed]
    if speed != 1.0:
        pieces = [replace(piece, waveform=at_speed(piece.waveform, speed)) for piece in pieces]
    return _transcribed(recogniser, pieces, speech, lengths, decoding, word_times, told)


def hear_files(
    recogniser: Recogniser,
    waveforms: Sequence[Waveform],
    decoding: Decoding,
    settings: Settings,
    *,
    spans: Sequence[Sequence[Span]] | None = None,
    word_times: bool = False,
) -> list[Heard]:
    """Transcribe whole recordings (S,) that are in memory, as `transcribe` does with files.

    `spans` is the result of `cut`, if it is known.
    """
    if spans is None:
        spans = cut(waveforms, recogniser, decoding, settings)
    pieces = [
        piece
        for index, (waveform, mine) in enumerate(zip(waveforms, spans, strict=True))
        for piece in _pieces(index, waveform, mine)
    ]
    lengths = [len(waveform) for waveform in waveforms]
    return _transcribed(recogniser, pieces, [_extent(mine) for mine in spans], lengths, decoding, word_times)


def cut(
    waveforms: Sequence[Waveform], recogniser: Recogniser, decoding: Decoding, settings: Settings
) -> list[list[Span]]:
    """Find the spans of speech in whole recordings (S,), joined to suit the recogniser."""
    joined = joining(recogniser.context(decoding.audio_context, decoding.untuned))
    order = sorted(range(len(waveforms)), key=lambda index: len(waveforms[index]))
    spans: dict[int, list[Span]] = {}
    for first in range(0, len(order), voice.TOGETHER):
        group = order[first : first + voice.TOGETHER]
        chances = voice.chances_of([levelled(waveforms[index]) for index in group])
        for index, mine in zip(group, chances, strict=True):
            spans[index] = spans_of(mine, len(waveforms[index]), settings, joined)
    return [spans[index] for index in range(len(waveforms))]


def identity(ws: Workspace, placed: Sequence[Placed]) -> str:
    """Describe everything that determines a model's input for these utterances: equal texts mean equal audio.

    It includes the spans, since an utterance's margins end at its neighbours, which may change.
    """
    settings = ws.settings
    spans = [
        f"{one.recording}:{start}-{end}{' cut' if whole else ''}"
        for one, ((start, end), whole) in zip(placed, heard_spans(ws, placed), strict=True)
    ]
    digest = hashlib.sha256("\n".join(spans).encode()).hexdigest()[:12]
    return (
        f"{VERSION}; {voice.detector()}, threshold {settings.vad_threshold:g}, pause {settings.vad_min_silence_ms} ms, "
        f"padding {settings.vad_pad_ms} ms; margins {1000 * seconds(MARGIN):.0f} ms; spans {digest}"
    )


def _pieces(owner: int, waveform: Waveform, spans: Sequence[Span]) -> list[_Piece]:
    return [_Piece(owner, waveform[start:end], start) for start, end in with_margins(spans, len(waveform))]


def _extent(spans: Sequence[Span]) -> Span | None:
    return (spans[0][0], spans[-1][1]) if spans else None


def _transcribed(
    recogniser: Recogniser,
    pieces: Sequence[_Piece],
    speech: Sequence[Span | None],
    lengths: Sequence[int],
    decoding: Decoding,
    word_times: bool,
    told: Callable[[float], None] | None = None,
) -> list[Heard]:
    waveforms = [piece.waveform for piece in pieces]
    heard = recogniser.transcribe(waveforms, decoding, word_times=word_times, heard=told)
    parts: list[list[tuple[_Piece, Hypothesis]]] = [[] for _ in lengths]
    for piece, hypothesis in zip(pieces, heard, strict=True):
        parts[piece.owner].append((piece, hypothesis))
    return [
        Heard(hypothesis=_joined(mine, samples, decoding), speech=extent)
        for mine, samples, extent in zip(parts, lengths, speech, strict=True)
    ]


def _joined(parts: Sequence[tuple[_Piece, Hypothesis]], samples: int, decoding: Decoding) -> Hypothesis:
    """Join the hypotheses of an utterance's pieces, which are in order, into one.

    Numbers are means weighted by audio length; the language is that of the longest piece.
    """
    if not parts:  # the detector found no speech, so no model ran
        return Hypothesis(text="", confidence=None, language=decoding.language, guards=("no speech",))
    last = seconds(samples)
    words = tuple(
        replace(word, start=min(max(word.start, 0.0), last), end=min(max(word.end, 0.0), last))
        for piece, one in parts
        for word in moved(one.words, seconds(piece.offset))
    )
    if len(parts) == 1:
        return replace(parts[0][1], words=words)
    _, longest = max(parts, key=lambda part: len(part[0].waveform))

    def mean(name: str) -> float | None:
        known = [(getattr(one, name), len(piece.waveform)) for piece, one in parts if getattr(one, name) is not None]
        total = sum(length for _, length in known)
        return round(sum(value * length for value, length in known) / total, 6) if total else None

    return replace(
        longest,
        text=" ".join(one.text for _, one in parts if one.text),
        words=words,
        confidence=mean("confidence"),
        mean_logprob=mean("mean_logprob"),
        no_speech=mean("no_speech"),
        guards=tuple(dict.fromkeys(guard for _, one in parts for guard in one.guards)),
        temperature=max(one.temperature for _, one in parts),
    )


def moved(words: Sequence[Word], by: float) -> tuple[Word, ...]:
    """Shift words by so many seconds."""
    return tuple(replace(word, start=round(word.start + by, 3), end=round(word.end + by, 3)) for word in words)
