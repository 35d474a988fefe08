"""Audio quality, measured at ingest: level, peak, SNR, clipping, silence and bandwidth.

Letters in shapes: `S` samples.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from voxloop.records import SAMPLE_RATE, Quality
from voxloop.speech.audio import FULL_SCALE, Waveform

FLOOR_DBFS = -120.0  # reported for digital silence, whose level in dB is minus infinity
FRAME = SAMPLE_RATE // 50  # samples: 20 ms, the unit in which silence is judged
SILENCE_DB = 40.0  # below the loudest frame
CLIP_LEVEL = (FULL_SCALE - 2) / FULL_SCALE  # at or next to full scale
FFT = 512  # samples: 32 ms, for the bandwidth
FFT_AT_ONCE = 64  # windows: 128 kB, which fit the processor's cache; more take twice as long
MIN_SNR_FRAMES = 10  # 0.2 s: fewer frames cannot separate speech from noise
QUIET_SHARE = 0.1  # the quietest frames, which hold only noise if the speech has pauses
# The quietest tenth of steady noise lies below its mean. The factor holds for frames with 100 degrees of freedom
# (chi-squared, SciPy: the mean below the 0.1 quantile is 0.767), between white noise and room noise.
QUIET_BIAS = 1 / 0.767
SNR_RANGE_DB = (-20.0, 80.0)


class Meter:
    """Measures audio block by block; it keeps one float per 20 ms."""

    def __init__(self) -> None:
        self._samples = 0
        self._square = 0.0
        self._clipped = 0
        self._peak = 0.0
        self._frames: list[np.ndarray[Any, np.dtype[np.float32]]] = []  # variance in each 20 ms
        self._power = np.zeros(FFT // 2 + 1)
        self._rest = np.zeros(0, np.float32)

    def add(self, block: Waveform) -> None:
        """Add the next (S,) at 16 kHz."""
        if not len(block):
            return
        magnitude = np.abs(block)
        self._samples += len(block)
        self._square += float(np.dot(block, block))
        self._peak = max(self._peak, float(magnitude.max()))
        self._clipped += int(np.count_nonzero(magnitude >= CLIP_LEVEL))
        # Process whole frames of both lengths now, and keep the rest for the next block.
        joined = np.concatenate([self._rest, block]) if len(self._rest) else block
        whole = len(joined) // _STRIDE * _STRIDE
        self._take(joined[:whole])
        self._rest = joined[whole:]

    def _take(self, joined: Waveform) -> None:
        frames = joined[: len(joined) // FRAME * FRAME].reshape(-1, FRAME)
        if len(frames):
            self._frames.append(frames.var(axis=1))  # an offset or rumble below 25 Hz is not speech
        windows = joined[: len(joined) // FFT * FFT].reshape(-1, FFT)
        for start in range(0, len(windows), FFT_AT_ONCE):
            spectrum = np.fft.rfft(windows[start : start + FFT_AT_ONCE] * _WINDOW, axis=1)
            self._power += (spectrum.real**2 + spectrum.imag**2).sum(axis=0)

    def quality(self) -> Quality:
        """Return the measurements over all blocks."""
        if len(self._rest):
            whole = -(-len(self._rest) // FFT) * FFT
            self._take(np.pad(self._rest, (0, whole - len(self._rest))) if not self._frames else self._rest)
            self._rest = np.zeros(0, np.float32)
        samples = max(1, self._samples)
        frames = np.concatenate(self._frames) if self._frames else np.zeros(1, np.float32)
        loudest = float(frames.max())
        quiet = frames < loudest * 10 ** (-SILENCE_DB / 10) if loudest > 0 else np.ones(len(frames), bool)
        return Quality(
            level_dbfs=round(_db(self._square / samples), 2),
            peak_dbfs=round(_db(self._peak**2), 2),
            snr_db=_snr(frames),
            clipping=round(self._clipped / samples, 6),
            silence=round(float(quiet.mean()), 4),
            bandwidth_hz=self._bandwidth(),
        )

    def _bandwidth(self) -> float | None:
        power = self._power.copy()
        power[:2] = 0.0  # ignore a DC offset and its leakage
        total = power.sum()
        if total <= 0:
            return None
        share = np.cumsum(power) / total
        return float(np.searchsorted(share, 0.99) * SAMPLE_RATE / FFT)


_STRIDE = math.lcm(FRAME, FFT)  # samples: 2,560
_WINDOW = np.hanning(FFT).astype(np.float32)


def _db(power: float) -> float:
    return 10 * math.log10(power) if power > 1e-12 else FLOOR_DBFS


def _snr(frames: np.ndarray[Any, np.dtype[np.float32]]) -> float | None:
    """Estimate the signal-to-noise ratio in dB from the powers of 20 ms frames; None if there are too few.

    The quietest frames give the noise, as in NIST's stnr and in minimum
    statistics (R. Martin, IEEE Trans. Speech and Audio Processing 9(5), 2001,
    doi:10.1109/89.928915); the rest of the mean power is speech. In steady noise the
    error is below 3 dB from 0 to 20 dB; a clip cut tightly around a word has no pause and reads too low.
    WADA-SNR (Interspeech 2008) was tried and is 10 dB off on clips below one second.
    """
    audible = frames[frames > 0]  # digital silence is not the noise of the room
    if len(audible) < MIN_SNR_FRAMES:
        return None
    quiet = max(1, round(QUIET_SHARE * len(audible)))
    noise = float(np.partition(audible, quiet - 1)[:quiet].mean(dtype=np.float64)) * QUIET_BIAS
    power = float(audible.mean(dtype=np.float64))
    lowest, highest = SNR_RANGE_DB
    ratio = max(power / noise - 1, 10 ** (lowest / 10))
    return round(min(10 * math.log10(ratio), highest), 1)


def measure(waveform: Waveform) -> Quality:
    """Measure level, peak, SNR, clipping, silence and bandwidth of (S,) at 16 kHz."""
    meter = Meter()
    for start in range(0, len(waveform), 60 * SAMPLE_RATE):
        meter.add(waveform[start : start + 60 * SAMPLE_RATE])
    return meter.quality()
