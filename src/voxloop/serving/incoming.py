"""Audio as live clients send it: raw PCM or G.711, piece by piece, turned into 16 kHz mono.

The rate is converted by soxr's streaming resampler, so that pieces of any length join without a seam.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import soxr

from voxloop.errors import UsageError
from voxloop.records import SAMPLE_RATE
from voxloop.speech.audio import FULL_SCALE, Waveform

Codec = Literal["pcm", "pcmu", "pcma"]
MIN_RATE, MAX_RATE, MAX_CHANNELS = 8_000, 96_000, 8
CODECS = {"pcm": "pcm_s16le", "pcmu": "g711_ulaw", "pcma": "g711_alaw"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """How a client's bytes are to be read. Raises UsageError for what cannot be."""

    codec: Codec = "pcm"
    rate: int = 24_000
    """Hz."""
    channels: int = 1
    """Interleaved; their mean is heard."""

    def __post_init__(self) -> None:
        if not MIN_RATE <= self.rate <= MAX_RATE:
            raise UsageError(f"the sample rate is {self.rate} Hz: it must be from {MIN_RATE} to {MAX_RATE}")
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise UsageError(f"there are {self.channels} channels: there must be from 1 to {MAX_CHANNELS}")

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of every channel."""
        return self.channels * (2 if self.codec == "pcm" else 1)

    @property
    def name(self) -> str:
        """The codec as recordings name it."""
        return CODECS[self.codec]


class Incoming:
    """A client's bytes as 16 kHz mono, in pieces of any length."""

    def __init__(self, format: Format) -> None:
        self.format = format
        self._resampler = self._new()

    def hear(self, data: bytes) -> Waveform:
        """Return what is ready of the audio so far as (S,). Raises UsageError for a part of a sample."""
        if len(data) % self.format.frame_bytes:
            raise UsageError(
                f"{len(data)} bytes of audio were sent: {self.format.codec} with {self.format.channels} channel(s) "
                f"needs a multiple of {self.format.frame_bytes}"
            )
        mono = self._read(data)
        if self._resampler is None:
            return mono
        ready: Waveform = self._resampler.resample_chunk(mono)
        return ready

    def end(self) -> Waveform:
        """Return what the filter still holds, and begin anew."""
        if self._resampler is None:
            return np.zeros(0, np.float32)
        rest: Waveform = self._resampler.resample_chunk(np.zeros(0, np.float32), last=True)
        self._resampler = self._new()
        return rest

    def _new(self) -> Any:
        rate = self.format.rate
        return None if rate == SAMPLE_RATE else soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")

    def _read(self, data: bytes) -> Waveform:
        if self.format.codec == "pcm":
            values = np.frombuffer(data, "<i2").astype(np.float32)
        else:
            values = G711[self.format.codec][np.frombuffer(data, np.uint8)]
        values /= FULL_SCALE
        if self.format.channels > 1:
            values = values.reshape(-1, self.format.channels).mean(axis=1, dtype=np.float32)
        return values


def _mu_law() -> Waveform:
    """The values of mu-law's 256 codes in 16 bits (ITU-T G.711, table 2a)."""
    code = ~np.arange(256, dtype=np.int32) & 0xFF
    size = ((((code & 0x0F) << 3) + 0x84) << ((code & 0x70) >> 4)) - 0x84
    return np.where(code & 0x80, -size, size).astype(np.float32)


def _a_law() -> Waveform:
    """The values of A-law's 256 codes in 16 bits (ITU-T G.711, table 1a)."""
    code = np.arange(256, dtype=np.int32) ^ 0x55
    step, segment = (code & 0x0F) << 4, (code & 0x70) >> 4
    size = np.where(segment == 0, step + 8, (step + 0x108) << np.maximum(segment - 1, 0))
    return np.where(code & 0x80, size, -size).astype(np.float32)


G711 = {"pcmu": _mu_law(), "pcma": _a_law()}
