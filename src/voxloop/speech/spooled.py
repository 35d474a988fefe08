"""A file's sound as it would be stored, in a temporary file: memory does not grow with its length."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from voxloop.records import Encoding, seconds
from voxloop.speech import decoder_messages
from voxloop.speech.audio import SAMPLE_BYTES, Source, Waveform, from_pcm16, stream, to_pcm16


class Sound:
    """The sound of an audio file at 16 kHz, decoded once. Close it, or use it as a context.

    `notes` say what was not as it should be in the file. Raises AudioError as `audio.stream` does.
    """

    def __init__(self, file: Path, **bounds: Any) -> None:
        """Decode `file`; `bounds` are those of `audio.stream`: seconds and bytes at most, a channel, a track."""
        pcm = cast(BinaryIO, tempfile.TemporaryFile(prefix="voxloop-"))  # noqa: SIM115 - it lives as long as this
        try:
            notes, encoding = write(pcm, file, **bounds)
        except BaseException:
            pcm.close()
            raise
        self._hold(pcm, notes, encoding)

    @classmethod
    def written(cls, pcm: BinaryIO, notes: Sequence[str], encoding: Encoding) -> Sound:
        """The sound that another process wrote into a file, which is closed with it."""
        sound = cls.__new__(cls)
        sound._hold(pcm, notes, encoding)
        return sound

    def _hold(self, pcm: BinaryIO, notes: Sequence[str], encoding: Encoding) -> None:
        self._pcm = pcm
        self.samples: int = pcm.seek(0, os.SEEK_END) // SAMPLE_BYTES
        self.notes: tuple[str, ...] = tuple(notes)
        self.encoding = encoding  # of the file

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


def write(pcm: BinaryIO, file: Path, **bounds: Any) -> tuple[list[str], Encoding]:
    """Decode `file` into `pcm` as int16 at 16 kHz. Return its faults and its encoding. Raises AudioError."""
    source = Source()
    with decoder_messages.caught() as messages:
        for block in stream(file, source=source, **bounds):
            pcm.write(to_pcm16(block))
    encoding = Encoding(codec=source.codec, rate=source.rate, channels=source.channels)
    return [*source.notes, *decoder_messages.as_notes(messages)], encoding
