"""The rows exchanged with other programs: one per reference, and the texts that come back."""

from __future__ import annotations

from dataclasses import dataclass

from voxloop.records import UtteranceStatus


@dataclass(frozen=True, kw_only=True, slots=True)
class ReviewRow:
    """One line of a JSONL or CSV file: an utterance with one reference, or with none if there is none yet."""

    utterance: str
    text: str  # the reference; empty if there is none
    machine_text: str = ""
    confidence: float | None = None  # of the machine's text
    audio: str = ""  # path or URL
    status: UtteranceStatus = "new"
    by: str | None = None  # the text's author
    created: float | None = None  # the text's time, seconds since the epoch
    reference: str | None = None  # the text's id; a changed text with a known id counts as a correction
    earlier: str = ""  # ids of the previous references, separated by spaces; the author knew them
    seconds: float | None = None  # time spent on the text
    reason: str | None = None  # why the utterance was rejected
    rejected_by: str | None = None
    recording: str = ""
    start: int = 0  # samples
    end: int = 0
    duration: float = 0.0  # seconds
    speaker: str | None = None
    language: str | None = None
    machine: str | None = None  # id of the model


@dataclass(frozen=True, kw_only=True, slots=True)
class Incoming:
    """A text (or, without a text, a rejection) to import; None means unknown."""

    utterance: str
    text: str = ""
    by: str | None = None
    created: float | None = None
    reference: str | None = None  # the text's id, as exported
    knows: tuple[str, ...] = ()  # ids of the references that its author had seen
    seconds: float | None = None
    rejected: str | None = None  # the reason
