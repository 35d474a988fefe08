"""What a live stream is asked for, and what it tells."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from voxloop.records import SAMPLE_RATE
from voxloop.steps.transcripts import segment_of

if TYPE_CHECKING:
    from voxloop.families.contract import Hypothesis, Waveform
    from voxloop.records import Model
    from voxloop.steps.transcripts import Segment


@dataclass(frozen=True, kw_only=True, slots=True)
class Detection:
    """How pauses end utterances."""

    threshold: float = 0.5
    """A frame with a higher speech probability counts as speech."""
    prefix_ms: int = 300
    """Audio before speech that belongs to an utterance; a model is given 400 ms and more."""
    silence_ms: int = 500
    """Shortest pause that ends an utterance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """How speech is to be heard, from the next utterance on."""

    model: Model | None = None
    """None: whichever serves when an utterance begins."""
    language: str | None = None
    prompt: str = ""
    keywords: tuple[str, ...] = ()
    detection: Detection | None = Detection()
    """None: the client says when an utterance ends (`Stream.commit`)."""
    words: bool = False
    """Whether finals have the times and probabilities of words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """Somebody began to speak."""

    item: str
    at_ms: int  # of all audio that was sent, the margin before the speech included


@dataclass(frozen=True, kw_only=True, slots=True)
class Stopped:
    """An utterance ended by a pause."""

    item: str
    at_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Committed:
    """An utterance is whole; its text follows."""

    item: str
    previous: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Delta:
    """Decided words, with the space before them. Never taken back."""

    item: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Tail:
    """What was heard after the decided words; the next tail replaces it."""

    item: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Completed:
    """The text of an utterance."""

    item: str
    text: str
    model: str | None  # id; None: no speech was in it, and no model was asked
    hypotheses: tuple[Hypothesis, ...]  # by part
    samples: tuple[int, ...]  # of each part
    waveform: Waveform  # (S,): all its parts
    contradicted: bool  # whether the text says otherwise than deltas did

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Its parts with their texts, in seconds from the beginning of the waveform."""
        starts = itertools.accumulate(self.samples, initial=0)
        parts = zip(starts, self.samples, self.hypotheses, strict=False)
        return tuple(segment_of((start, start + count), start, heard) for start, count, heard in parts)

    @property
    def seconds(self) -> float:
        return len(self.waveform) / SAMPLE_RATE


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed:
    """An utterance has no text."""

    item: str
    error: BaseException


Event = Started | Stopped | Committed | Delta | Tail | Completed | Failed
