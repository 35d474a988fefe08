"""Audio inside a page: MP3, which every browser plays, as data URIs up to a limit."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

from voxloop.errors import VoxloopError
from voxloop.records import SAMPLE_RATE
from voxloop.steps.utterances import read_span

if TYPE_CHECKING:
    from voxloop.workspace import Workspace

MAX_BYTES = 6 << 20  # of all audio in a page; a second takes about 4 kB in base64


class Sounds:
    """Gives out each utterance's audio once, until the limit is reached."""

    def __init__(self, ws: Workspace, *, wanted: bool = True, max_bytes: int = MAX_BYTES) -> None:
        self._ws = ws
        self._wanted = wanted
        self._left = max_bytes
        self.given: set[str] = set()
        self.left_out = 0  # because of the limit
        self.missing = 0  # no longer in the workspace

    def uri(self, utterance: str) -> str | None:
        """A data URI; None if there is no room, no audio, none is wanted, or it was given before."""
        if not self._wanted or utterance in self.given:
            return None
        if self._left <= 0:
            self.left_out += 1
            return None
        recording, _, span = utterance.rpartition(":")
        start, _, end = span.partition("-")
        try:
            coded = base64.b64encode(_mp3(self._ws, recording, int(start), int(end))).decode()
        except (VoxloopError, ValueError):
            self.missing += 1
            return None
        if len(coded) > self._left:
            self.left_out += 1
            return None
        self._left -= len(coded)
        self.given.add(utterance)
        return f"data:audio/mpeg;base64,{coded}"


def _mp3(ws: Workspace, recording: str, start: int, end: int) -> bytes:
    import soundfile

    coded = io.BytesIO()
    soundfile.write(coded, read_span(ws, recording, start, end), SAMPLE_RATE, format="MP3")
    return coded.getvalue()
