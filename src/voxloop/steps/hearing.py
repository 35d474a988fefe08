"""Hear: what a model is given of an utterance, and what it makes of that. The pipeline and evaluation both hear so.

An utterance that the detector cut out of a recording is given with its margins. One that is a whole recording is
treated as `transcribe` treats a file: the detector finds the speech in it, and only that is given to the model.
Hence an evaluation counts what the detector loses, too. `S` in shapes: samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from voxloop.families.contract import Hypothesis
from voxloop.records import Word, seconds
from voxloop.speech import voice
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
    from voxloop.families.contract import Decoding, Recogniser
    from voxloop.settings import Settings
    from voxloop.speech.audio import Waveform
    from voxloop.workspace import Workspace

VERSION = "served/1"  # to be raised with every change of how speech is cut or given to a model


@dataclass(frozen=True, kw_only=True, slots=True)
class Heard:
    """What a model made of an utterance or a file."""

    hypothesis: Hypothesis  # word times from the beginning of the utterance, and within it
    speech: Span | None  # samples from that beginning in which there is speech; None: the detector found none


@dataclass(frozen=True, slots=True)
class _Piece:
    """Sound that goes to the model as one waveform."""

    owner: int  # index of the utterance or file that it is of
    waveform: Waveform
    offset: int  # samples from the owner's beginning to the piece's; below 0 where a margin lies ahead of it


def hear(
    ws: Workspace,
    recogniser: Recogniser,
    placed: Sequence[Placed],
    decoding: Decoding,
    *,
    word_times: bool = False,
    told: Callable[[float], None] | None = None,
) -> list[Heard]:
    """What a model hears in utterances (or rows of a dataset), in the order given. Raises UnknownRecord.

    `told` is told the seconds of audio of every batch that is done.
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
    """What a model hears in whole recordings (S,) that are in memory, as `transcribe` hears them in files.

    `spans` is what `cut` found in them, where that is known.
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
    """The spans of speech in whole recordings (S,), joined as the recogniser is fed."""
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
    """All that decides which sound a model is given of these utterances: the same text means the same sound.

    The spans are part of it, since the margins of an utterance end where its neighbours begin, and those may change.
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
    """One hypothesis of those of an utterance's pieces, which are in order.

    Its numbers are means weighted by the length of the sound, its language that of the longest piece.
    """
    if not parts:  # where the detector hears nothing, no model is asked
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
    """Words so many seconds later, or earlier."""
    return tuple(replace(word, start=round(word.start + by, 3), end=round(word.end + by, 3)) for word in words)
