"""What is exchanged with other programs: a row for each reference, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass

from voxloop.records import UtteranceStatus


@dataclass(frozen=True, kw_only=True, slots=True)
class ReviewRow:
    """One line of a JSONL or CSV file: an utterance with a reference, or without where there is none yet."""

    utterance: str
    text: str  # the reference; empty where nobody has written one
    machine_text: str = ""
    confidence: float | None = None  # of the machine's text
    audio: str = ""  # path or URL
    status: UtteranceStatus = "new"
    by: str | None = None  # who wrote the text
    created: float | None = None  # when, seconds since the epoch
    reference: str | None = None  # the text's id: a changed text under its id is known to be a correction of it
    earlier: str = ""  # ids of the references before it, between spaces: it was written knowing them
    seconds: float | None = None  # spent on it
    reason: str | None = None  # why it was rejected
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
    """A text (or, without one, a rejection) from elsewhere; None is what was not told."""

    utterance: str
    text: str = ""
    by: str | None = None
    created: float | None = None
    reference: str | None = None  # the text's id, as it was exported
    knows: tuple[str, ...] = ()  # ids of references that its author had seen
    seconds: float | None = None
    rejected: str | None = None  # the reason
