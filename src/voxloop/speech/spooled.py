"""A file's sound as it would be stored, in a temporary file: memory does not grow with its length."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from voxloop.records import seconds
from voxloop.speech import decoder_messages
from voxloop.speech.audio import SAMPLE_BYTES, Source, Waveform, from_pcm16, stream, to_pcm16


class Sound:
    """The sound of an audio file at 16 kHz, decoded once. Close it, or use it as a context.

    `notes` say what was not as it should be in the file. Raises AudioError as `audio.stream` does.
    """

    def __init__(self, file: Path, **bounds: Any) -> None:
        """Decode `file`; `bounds` are those of `audio.stream`: seconds and bytes at most, a channel, a track."""
        source = Source()
        self._pcm = tempfile.TemporaryFile(prefix="voxloop-")  # noqa: SIM115 - it lives as long as this
        try:
            with decoder_messages.caught() as messages:
                for block in stream(file, source=source, **bounds):
                    self._pcm.write(to_pcm16(block))
        except BaseException:
            self._pcm.close()
            raise
        self.samples: int = self._pcm.tell() // SAMPLE_BYTES
        self.notes: tuple[str, ...] = (*source.notes, *decoder_messages.as_notes(messages))

    @property
    def duration(self) -> float:
        """Seconds."""
        return seconds(self.samples)

    def read(self, start: int, end: int) -> Waveform:
        """Samples `start` to `end` as (S,)."""
        self._pcm.seek(start * SAMPLE_BYTES)
        return from_pcm16(self._pcm.read((end - start) * SAMPLE_BYTES))

    def close(self) -> None:
        self._pcm.close()

    def __enter__(self) -> Sound:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
