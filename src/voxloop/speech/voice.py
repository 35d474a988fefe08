"""Voice activity: how likely it is, in every 32 ms, that somebody speaks, and where speech begins and ends by that.

The model is Silero's (https://github.com/snakers4/silero-vad, MIT), with the weights of its package. It is made to hear
a stream, one frame a call, by PyTorch. A recording that is there already is heard faster: the spectra and convolutions
of many frames at once, as no frame's depend on another's, then the LSTM over all of them. NumPy does that as fast as
PyTorch, whose import takes longer than a short file's text. The probabilities are those of Silero's own loop from the
first frame to the last, to 1e-4, however long the recording is.

Letters in shapes: `B` recordings side by side, `T` frames, `P` places in a frame, `S` samples, `D` width.
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

FRAME = 512  # samples: what Silero's model hears at once, 32 ms at 16 kHz
BEFORE = 64  # samples before a frame, which it hears as well
READ_FRAMES = 4096  # of a recording held at a time: 131 s
AT_ONCE = 256  # frames whose spectra and convolutions are computed together: what these make of them fits the caches
TOGETHER = 16  # short recordings heard side by side
SHORT = 60 * SAMPLE_RATE  # samples: up to this length a recording is heard beside others
FFT, HOP, AFTER = (
    256,
    128,
    64,
)  # samples: the window of a spectrum, its step, and what a frame is mirrored by at its end
PAUSE = int(0.098 * SAMPLE_RATE)  # samples: a longer pause may be the place where speech of 30 s is cut
DROP = 0.15  # speech ends where its probability falls this far below the threshold

Array = np.ndarray[Any, np.dtype[np.float32]]
Frames = np.ndarray[tuple[int, int], np.dtype[np.float32]]


def detector() -> str:
    """What finds the speech, as the record of a segmentation names it: another one may cut elsewhere."""
    return f"silero-vad {version('silero-vad')}, one pass, levelled"


def chances(read: Callable[[int, int], Waveform], samples: int) -> list[float]:
    """Speech probability of every 512 samples of audio of any length, which `read` gives from a start to an end."""
    found: list[float] = []
    state = None
    for first in range(0, samples, READ_FRAMES * FRAME):
        last = min(first + READ_FRAMES * FRAME, samples)
        held = read(max(0, first - BEFORE), last)
        rows, state = _voice().hear(_frames(held, before=min(first, BEFORE))[None], state)
        found += rows[0].tolist()
    return found


def chances_of(waveforms: Sequence[Waveform]) -> list[list[float]]:
    """The same of several short (S,), in one pass over all of them filled to the longest."""
    framed = [_frames(waveform) for waveform in waveforms]
    batch = np.zeros((len(framed), max(map(len, framed), default=0), BEFORE + FRAME), np.float32)
    for row, frames in zip(batch, framed, strict=True):
        row[: len(frames)] = frames
    if not batch.size:
        return [[] for _ in framed]
    rows, _ = _voice().hear(batch, None)
    return [row[: len(frames)].tolist() for row, frames in zip(rows, framed, strict=True)]


def stretches(
    probabilities: Sequence[float], samples: int, *, threshold: float, shortest: int, pause: int, padding: int
) -> list[tuple[int, int]]:
    """Where speech is, by the probability of every 512 of `samples`: starts and ends, in order, all counted in samples.

    This is Silero's rule (utils_vad.get_speech_timestamps_from_probs). Speech begins at the threshold and ends with a
    pause of `pause`; what is no longer than `shortest` is left out; at 30 s it is cut at its longest pause so far, or
    there. `padding` is added on either side, half of the gap at most where there is less.
    """
    longest = MAX_UTTERANCE_SAMPLES - FRAME - 2 * padding
    floor = max(threshold - DROP, 0.01)
    found: list[tuple[int, int]] = []
    start: int | None = None
    quiet = 0  # where the pause began that lasts until now; 0: there is none
    pauses: list[tuple[int, int]] = []  # within this speech: length and beginning
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
    """(S,) as rows of 512 samples, each behind the 64 before it: silence ahead of the first and behind the last.

    The first `before` samples are of the frame ahead of the first one here.
    """
    count = -(-(len(waveform) - before) // FRAME)
    padded = np.zeros(BEFORE + count * FRAME, np.float32)
    padded[BEFORE - before :][: len(waveform)] = waveform
    if not count:
        return padded[:0].reshape(0, BEFORE + FRAME)
    return np.lib.stride_tricks.sliding_window_view(padded, BEFORE + FRAME)[::FRAME]


@lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    """The OpenBLAS that NumPy multiplies with, where it does."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(internal_api="openblas")


# OpenBLAS counts its threads once for the process: what one caller limits, another would find limited.
_LIMITING = threading.Lock()


class _Voice:
    """Silero's network for 16 kHz: what sees single frames, and what goes through time. It keeps no state."""

    def __init__(self) -> None:
        found = silero.weights()
        self.window = found["stft.forward_basis_buffer"][0, 0]  # its cosine of frequency zero
        # A convolution over P places is a product with what lies under its kernel, (P, 3 * D).
        self.convolutions = []
        for index, stride in enumerate((1, 2, 2, 1)):
            kernel, bias = (found[f"encoder.{index}.reparam_conv.{name}"] for name in ("weight", "bias"))
            self.convolutions.append((kernel.transpose(2, 1, 0).reshape(-1, len(bias)), stride, bias))
        # The gates in PyTorch's order are input, forget, cell, output. A sigmoid is half a hyperbolic tangent of half
        # its argument, so that one call computes all four.
        size = found["decoder.rnn.weight_hh"].shape[1]
        halves = np.repeat(np.array([0.5, 0.5, 1.0, 0.5], np.float32), size)
        self.inward = np.ascontiguousarray((found["decoder.rnn.weight_ih"] * halves[:, None]).T)
        self.onward = np.ascontiguousarray((found["decoder.rnn.weight_hh"] * halves[:, None]).T)
        self.bias = (found["decoder.rnn.bias_ih"] + found["decoder.rnn.bias_hh"]) * halves
        self.last, self.last_bias = found["decoder.decoder.2.weight"][0, :, 0], found["decoder.decoder.2.bias"][0]

    def hear(self, frames: Array, state: tuple[Array, Array] | None) -> tuple[Array, tuple[Array, Array]]:
        """Probabilities (B, T) of frames (B, T, 576) that follow on a state, and the state behind them."""
        rows, count, _ = frames.shape
        # Two threads would wait for each other at every step of the LSTM, and take longer than one.
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
        """The LSTM's outputs (T, B, D) for what its gates are given (T, B, 4 * D), and the state behind them."""
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
        """What the LSTM is given (T, D) of frames (T, 576)."""
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
