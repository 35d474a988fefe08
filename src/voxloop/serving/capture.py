"""Capture: keep what the server heard as recordings to review. No answer ever waits for it.

Off unless the setting `capture` says otherwise, and then by request or session: `capture` and `store` say whether,
`speaker` whose speech it is, `consent` the version of the text that the speaker agreed to. What is offered is measured
at once, and written by a thread. Where more waits than `capture_queue_minutes`, it is dropped, and counted.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxloop.errors import UsageError
from voxloop.records import SAMPLE_RATE, Encoding
from voxloop.serving.tokens import ADMINISTRATOR
from voxloop.steps import captures, consent
from voxloop.steps.recordings.conversion import of_waveform

if TYPE_CHECKING:
    from voxloop.serving.incoming import Format
    from voxloop.serving.live import Completed
    from voxloop.serving.tokens import Client
    from voxloop.speech.audio import Waveform
    from voxloop.steps.recordings.conversion import Converted
    from voxloop.steps.transcripts import Segment
    from voxloop.workspace import Workspace

log = logging.getLogger(__name__)

CLOSING_S = 20.0  # how long the end of the server waits for what is still to be written
NO = ("false", "0", "no", "off")
YES = ("true", "1", "yes", "on")


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """That something is to be kept, and as whose."""

    client: Client
    speaker: str | None = None
    session: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Captured:
    """What was sent, and what was heard in it."""

    waveform: Waveform  # (S,) at 16 kHz
    name: str  # as the client calls it
    wish: Wish
    model: str | None = None  # id of the model that heard it; None: nothing was heard
    segments: tuple[Segment, ...] = ()  # in seconds from the beginning of the waveform
    encoding: Encoding | None = None  # in which it was sent
    language: str | None = None

    @classmethod
    def of_live(cls, done: Completed, wish: Wish, format: Format, language: str | None) -> Captured:
        """An utterance of a live session, which was sent in this format."""
        return cls(
            waveform=done.waveform,
            name=f"{done.item}.wav",
            wish=wish,
            model=done.model,
            segments=done.segments,
            encoding=Encoding(codec=format.name, rate=format.rate, channels=format.channels),
            language=language,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Offered:
    """What the client is told."""

    recording: str | None  # id; None: it is not kept
    reason: str | None = None  # why it is not kept
    warnings: tuple[str, ...] = ()  # about the quality of the audio, a sentence each

    def as_dict(self) -> dict[str, Any]:
        """The field `capture` of an answer."""
        told = {"recording": self.recording, "warnings": list(self.warnings)}
        return told | ({"reason": self.reason} if self.reason else {})

    @property
    def headers(self) -> dict[str, str]:
        """The same in the headers of an answer."""
        told = {"x-voxloop-recording": self.recording} if self.recording else {}
        return told | ({"x-voxloop-warnings": " | ".join(self.warnings)} if self.warnings else {})


class Capture:
    """The queue of one server, and the thread that empties it."""

    def __init__(self, ws: Workspace, *, kept: Callable[[], object], dropped: Callable[[str], object]) -> None:
        """`kept` and `dropped`, which is told the reason, count."""
        self._ws = ws
        self._told_kept, self._told_dropped = kept, dropped
        self._limit = round(60 * ws.settings.capture_queue_minutes * SAMPLE_RATE)  # samples
        self._waiting: deque[tuple[Captured, Converted]] = deque()
        self._samples = 0  # waiting, and being written
        self._closed = False
        self._changed = threading.Condition()
        self._writer = threading.Thread(target=self._write_all, name="capture", daemon=True)
        self._writer.start()

    def wish(self, fields: Mapping[str, Any], client: Client) -> Wish | None:
        """How a request or session with these fields is to be kept; None: it is not.

        A field `consent` with the version of a text notes that the speaker agreed to it. Asks the catalog, so it
        belongs into a thread. Raises UsageError and UnknownRecord for a speaker or consent that cannot be.
        """
        asked = _flag(fields, "capture")
        if _flag(fields, "store") is False or asked is False or (not asked and self._ws.settings.capture != "all"):
            return None
        given = str(fields.get("speaker") or "") or (client.name if client.name != ADMINISTRATOR else "")
        speaker = consent.speaker_name(given) if given else None
        version = str(fields.get("consent") or "")
        if version:
            if not version.isdecimal() or len(version) > 9:
                raise UsageError(f"consent is {version[:40]!r}: it must be the version of a consent text, a number")
            if speaker is None:
                raise UsageError("consent needs a speaker: send the field `speaker` as well")
            consent.give(self._ws, speaker, version=int(version), by=client.name)
        if speaker is not None:
            with self._ws.read() as reader:
                if "train" not in consent.of(reader, speaker).permits:
                    self._told_dropped("consent withdrawn")
                    return None
        session = "".join(char for char in str(fields.get("session") or "") if char.isprintable())
        return Wish(client=client, speaker=speaker, session=session or None)

    def fits(self, samples: int) -> bool:
        """Whether something so long could be kept at all."""
        return samples <= self._limit

    def drop(self, reason: str) -> Offered:
        """Count something that is not kept."""
        self._told_dropped(reason)
        return Offered(recording=None, reason=reason)

    def offer(self, captured: Captured) -> Offered:
        """Measure what was heard, and keep it as soon as there is time. Waits for nothing; never raises."""
        samples = len(captured.waveform)
        if not samples:
            return self.drop("empty")
        if not self._reserve(samples):
            return self.drop("queue full")
        converted = of_waveform(captured.waveform, captured.encoding)
        with self._changed:
            self._waiting.append((captured, converted))
            self._changed.notify_all()
        warnings = captures.warnings_of(converted.quality, samples)
        return Offered(recording=converted.id, warnings=tuple(warnings))

    def _reserve(self, samples: int) -> bool:
        with self._changed:
            if self._closed or self._samples + samples > self._limit:
                return False
            self._samples += samples
            return True

    def flush(self, timeout_s: float = CLOSING_S) -> bool:
        """Wait until all that was offered is written. Return whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._samples, timeout_s)

    def close(self) -> None:
        """Write what waits, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._writer.join(CLOSING_S)
        if left := len(self._waiting):
            log.warning("%d captures were not written in time", left, extra={"action": "captures_lost"})

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or (self._closed and not self._samples))
                if not self._waiting:
                    return
                captured, converted = self._waiting.popleft()
            try:
                self._write(captured, converted)
            except Exception as error:
                self._told_dropped("failed")
                log.warning("a capture could not be kept: %s", error, extra={"action": "capture_failed"}, exc_info=True)
            finally:
                with self._changed:
                    self._samples -= converted.samples
                    self._changed.notify_all()

    def _write(self, captured: Captured, converted: Converted) -> None:
        wish = captured.wish
        captures.keep(
            self._ws,
            converted,
            place=Path("capture") / captures.file_name(captured.name),
            speaker=wish.speaker,
            language=captured.language,
            session=wish.session,
            model=captured.model,
            segments=captured.segments,
            source=captures.Source(client=wish.client.name, token=wish.client.token),
        )
        self._told_kept()


def _flag(fields: Mapping[str, Any], name: str) -> bool | None:
    """A field that is true or false; None where it was not sent. Raises UsageError."""
    given = fields.get(name)
    if given is None or given == "":
        return None
    said = str(given).strip().lower()
    if said in YES or said in NO:
        return said in YES
    raise UsageError(f"{name} is {said[:40]!r}: it must be true or false")
