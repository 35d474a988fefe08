"""Voice activity detection: the speech probability of every 32 ms, and the spans of speech derived from it.

The model is Silero's (https://github.com/snakers4/silero-vad, MIT), with the weights of its package. The package
processes a stream, one frame per call, in PyTorch. A complete recording can be processed faster: compute the spectra
and convolutions of many frames at once, since frames do not depend on each other, then run the LSTM over all of them.
NumPy does that as fast as PyTorch, whose import takes longer than transcribing a short file. The probabilities equal
those of Silero's own loop within 1e-4, from the first frame to the last, however long the recording is.

Letters in shapes: `B` recordings in a batch, `T` frames, `P` places in a frame, `S` samples, `D` width.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from voxloop.records import MAX_UTTERANCE_SAMPLES, SAMPLE_RATE
from voxloop.speech import silero

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

    from voxloop.speech.audio import Waveform

FRAME = 512  # samples: the input of Silero's model, 32 ms at 16 kHz
BEFORE = 64  # samples of context before a frame
READ_FRAMES = 4096  # frames held in memory at a time: 131 s
AT_ONCE = 256  # frames whose spectra and convolutions are computed together: their results fit the caches
TOGETHER = 16  # short recordings processed as a batch
SHORT = 60 * SAMPLE_RATE  # samples: recordings up to this length are batched
FFT, HOP, AFTER = (
    256,
    128,
    64,
)  # samples: the window of a spectrum, its step, and the reflection padding at a frame's end
PAUSE = int(0.098 * SAMPLE_RATE)  # samples: speech of 30 s may be cut at a longer pause
FADE = 0.995  # of a stream's peak from one frame to the next: half of it is forgotten in 4.4 s
DROP = 0.15  # speech ends where its probability falls this far below the threshold

Array = np.ndarray[Any, np.dtype[np.float32]]
Frames = np.ndarray[tuple[int, int], np.dtype[np.float32]]


def detector() -> str:
    """Return the detector's name and version, stored with each segmentation: another one may cut elsewhere."""
    return f"silero-vad {version('silero-vad')}, one pass, levelled"


def chances(read: Callable[[int, int], Waveform], samples: int) -> list[float]:
    """Return the speech probability of every 512 samples; `read` returns the audio from a start to an end."""
    found: list[float] = []
    state = None
    for first in range(0, samples, READ_FRAMES * FRAME):
        last = min(first + READ_FRAMES * FRAME, samples)
        held = read(max(0, first - BEFORE), last)
        rows, state = _voice().hear(_frames(held, before=min(first, BEFORE))[None], state)
        found += rows[0].tolist()
    return found


def chances_of(waveforms: Sequence[Waveform]) -> list[list[float]]:
    """Do the same for several short (S,), in one batch padded to the longest."""
    framed = [_frames(waveform) for waveform in waveforms]
    batch = np.zeros((len(framed), max(map(len, framed), default=0), BEFORE + FRAME), np.float32)
    for row, frames in zip(batch, framed, strict=True):
        row[: len(frames)] = frames
    if not batch.size:
        return [[] for _ in framed]
    rows, _ = _voice().hear(batch, None)
    return [row[: len(frames)].tolist() for row, frames in zip(rows, framed, strict=True)]


class Stream:
    """Speech probabilities of audio that arrives piece by piece, such as a microphone's.

    The values are those of `chances` for the same samples. A `level` amplifies quiet audio, as a whole recording is
    amplified before detection: to this peak, by at most `most_gain`, judged by the loudest of the last seconds.
    """

    def __init__(self, *, level: float = 0.0, most_gain: float = 1.0) -> None:
        self._level, self._most_gain = level, most_gain
        self._held = np.zeros(0, np.float32)  # the context of the next frame, then what does not fill a frame yet
        self._context = 0  # samples of context among them
        self._state: tuple[Array, Array] | None = None
        self._peak = 0.0

    def hear(self, waveform: Waveform) -> list[float]:
        """Return the probabilities of the frames that (S,) completes; what is left over waits for the next piece."""
        self._held = np.concatenate([self._held, waveform])
        count = (len(self._held) - self._context) // FRAME
        if not count:
            return []
        whole = self._context + count * FRAME
        frames = _frames(self._held[:whole], before=self._context)
        self._held = self._held[whole - BEFORE :]
        self._context = BEFORE
        if self._level:
            frames = self._levelled(frames)
        rows, self._state = _voice().hear(frames[None], self._state)
        found: list[float] = rows[0].tolist()
        return found

    def _levelled(self, frames: Frames) -> Frames:
        peaks = np.abs(frames).max(axis=1)
        gains = np.ones(len(frames), np.float32)
        for index, peak in enumerate(peaks):
            self._peak = max(float(peak), self._peak * FADE)
            if 0.0 < self._peak < self._level:
                gains[index] = min(self._level / self._peak, self._most_gain)
        return frames * gains[:, None]


def stretches(
    probabilities: Sequence[float], samples: int, *, threshold: float, shortest: int, pause: int, padding: int
) -> list[tuple[int, int]]:
    """Return the (start, end) of each span of speech, in order; all lengths are in samples.

    `probabilities` has one value per 512 samples. This is Silero's rule (utils_vad.get_speech_timestamps_from_probs).
    Speech begins at the threshold and ends with a pause of `pause`; spans no longer than `shortest` are dropped; at
    30 s speech is cut at its longest pause so far or, without one, there. `padding` is added on both sides, but at most
    half of the gap.
    """
    longest = MAX_UTTERANCE_SAMPLES - FRAME - 2 * padding
    floor = max(threshold - DROP, 0.01)
    found: list[tuple[int, int]] = []
    start: int | None = None
    quiet = 0  # start of the current pause; 0: none
    pauses: list[tuple[int, int]] = []  # in the current speech: length and start
    for index, chance in enumerate(probabilities):
        now = index * FRAME
        if chance >= threshold and quiet:
            if now - quiet > PAUSE:
                pauses.append((now - quiet, quiet))
            quiet = 0
        if start is None:
            if chance >= threshold:
                start = now
            continue
        if now - start > longest:
            length, end = max(pauses, key=lambda one: one[0], default=(0, now))
            found.append((start, end))
            start, quiet = (end + length if pauses else None), 0
            pauses = []
            if start is None:
                continue
        if chance < floor:
            quiet = quiet or now
            if now - quiet >= pause:
                if quiet - start > shortest:
                    found.append((start, quiet))
                start, quiet, pauses = None, 0, []
    if start is not None and samples - start > shortest:
        found.append((start, samples))
    return _padded(found, samples, padding)


def _padded(spans: Sequence[tuple[int, int]], samples: int, padding: int) -> list[tuple[int, int]]:
    edges = [list(span) for span in spans]
    for index, span in enumerate(edges):
        if index == 0:
            span[0] = max(0, span[0] - padding)
        if index == len(edges) - 1:
            span[1] = min(samples, span[1] + padding)
            continue
        gap = edges[index + 1][0] - span[1]
        added = gap // 2 if gap < 2 * padding else padding
        span[1] = min(samples, span[1] + added) if gap >= 2 * padding else span[1] + added
        edges[index + 1][0] = max(0, edges[index + 1][0] - added)
    return [(start, end) for start, end in edges]


def _frames(waveform: Waveform, before: int = 0) -> Frames:
    """Return (S,) as rows of 512 samples, each preceded by 64 samples of context; pad both ends with silence.

    The first `before` samples belong to the preceding frame.
    """
    count = -(-(len(waveform) - before) // FRAME)
    padded = np.zeros(BEFORE + count * FRAME, np.float32)
    padded[BEFORE - before :][: len(waveform)] = waveform
    if not count:
        return padded[:0].reshape(0, BEFORE + FRAME)
    return np.lib.stride_tricks.sliding_window_view(padded, BEFORE + FRAME)[::FRAME]


@lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    """Return the controller of NumPy's OpenBLAS, if NumPy uses it."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(internal_api="openblas")


# OpenBLAS has one thread limit per process: one caller's limit would apply to others too.
_LIMITING = threading.Lock()


class _Voice:
    """Silero's network for 16 kHz: a convolutional encoder per frame and an LSTM over time. It keeps no state."""

    def __init__(self) -> None:
        found = silero.weights()
        self.window = found["stft.forward_basis_buffer"][0, 0]  # the cosine of frequency zero
        # A convolution over P places is a product with the inputs under its kernel, (P, 3 * D).
        self.convolutions = []
        for index, stride in enumerate((1, 2, 2, 1)):
            kernel, bias = (found[f"encoder.{index}.reparam_conv.{name}"] for name in ("weight", "bias"))
            self.convolutions.append((kernel.transpose(2, 1, 0).reshape(-1, len(bias)), stride, bias))
        # PyTorch orders the gates input, forget, cell, output. Since sigmoid(x) = (1 + tanh(x / 2)) / 2, one call of
        # tanh computes all four.
        size = found["decoder.rnn.weight_hh"].shape[1]
        halves = np.repeat(np.array([0.5, 0.5, 1.0, 0.5], np.float32), size)
        self.inward = np.ascontiguousarray((found["decoder.rnn.weight_ih"] * halves[:, None]).T)
        self.onward = np.ascontiguousarray((found["decoder.rnn.weight_hh"] * halves[:, None]).T)
        self.bias = (found["decoder.rnn.bias_ih"] + found["decoder.rnn.bias_hh"]) * halves
        self.last, self.last_bias = found["decoder.decoder.2.weight"][0, :, 0], found["decoder.decoder.2.bias"][0]

    def hear(self, frames: Array, state: tuple[Array, Array] | None) -> tuple[Array, tuple[Array, Array]]:
        """Return probabilities (B, T) of frames (B, T, 576) that follow a state, and the state after them."""
        rows, count, _ = frames.shape
        # Two threads would wait for each other at every LSTM step, and take longer than one.
        with _LIMITING, _blas().limit(limits=1):
            seen = np.empty((count, rows, self.inward.shape[1]), np.float32)
            for row in range(rows):
                for first in range(0, count, AT_ONCE):
                    features = self._see(frames[row, first : first + AT_ONCE])
                    np.matmul(features, self.inward, out=seen[first : first + AT_ONCE, row])
            seen += self.bias
            states, state = self._through_time(seen, state)
            raw = np.maximum(states, 0.0) @ self.last + self.last_bias
        heard: Array = (1.0 / (1.0 + np.exp(-raw))).T
        return heard, state

    def _through_time(self, gates: Array, state: tuple[Array, Array] | None) -> tuple[Array, tuple[Array, Array]]:
        """Return the LSTM's outputs (T, B, D) for gate inputs (T, B, 4 * D), and the state after them."""
        size = self.onward.shape[0]
        outputs = np.empty((*gates.shape[:2], size), np.float32)
        hidden, cell = state or (np.zeros_like(outputs[0]), np.zeros_like(outputs[0]))
        given = np.empty_like(gates[0])
        sigmoids = np.empty_like(given)
        added = np.empty_like(cell)
        cell = cell.copy()
        for inward, output in zip(gates, outputs, strict=True):
            np.matmul(hidden, self.onward, out=given)
            given += inward
            np.tanh(given, out=given)
            np.multiply(given, 0.5, out=sigmoids)
            sigmoids += 0.5
            cell *= sigmoids[:, size : 2 * size]
            np.multiply(sigmoids[:, :size], given[:, 2 * size : 3 * size], out=added)
            cell += added
            np.tanh(cell, out=output)
            output *= sigmoids[:, 3 * size :]
            hidden = output
        return outputs, (hidden.copy(), cell)

    def _see(self, frames: Array) -> Array:
        """Encode frames (T, 576) as the LSTM's inputs (T, D)."""
        waves = np.pad(frames, ((0, 0), (0, AFTER)), mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(waves, FFT, axis=1)[:, ::HOP]
        seen: Array = np.abs(np.fft.rfft(windows * self.window)).astype(np.float32, copy=False)
        for kernel, stride, bias in self.convolutions:
            padded = np.pad(seen, ((0, 0), (1, 1), (0, 0)))
            places = range(0, seen.shape[1], stride)
            under = np.stack([padded[:, place : place + 3].reshape(len(frames), -1) for place in places], axis=1)
            seen = under.reshape(-1, under.shape[-1]) @ kernel
            seen += bias
            np.maximum(seen, 0.0, out=seen)
            seen = seen.reshape(len(frames), len(places), -1)
        return seen[:, 0]


@lru_cache(maxsize=1)
def _voice() -> _Voice:
    return _Voice()
