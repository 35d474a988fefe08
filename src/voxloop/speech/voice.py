"""Voice activity: how likely it is, in every 32 ms, that somebody speaks.

The model is Silero's (https://github.com/snakers4/silero-vad), with its own weights. It is made to hear a stream, one
frame a call. A recording that is there already is heard faster: the spectra and convolutions of many frames at once,
as no frame's depend on another's, then the LSTM over all of them. The probabilities are those of Silero's own loop
from the first frame to the last, to 1e-4, however long the recording is.

Letters in shapes: `B` recordings side by side, `T` frames, `S` samples, `D` width.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from voxloop.records import SAMPLE_RATE

if TYPE_CHECKING:
    import torch
    from threadpoolctl import ThreadpoolController

    from voxloop.speech.audio import Waveform

FRAME = 512  # samples: what Silero's model hears at once, 32 ms at 16 kHz
BEFORE = 64  # samples before a frame, which it hears as well
READ_FRAMES = 4096  # of a recording held at a time: 131 s
AT_ONCE = 512  # frames whose spectra and convolutions are computed together: what these make of them fits the caches
TOGETHER = 16  # short recordings heard side by side
SHORT = 60 * SAMPLE_RATE  # samples: up to this length a recording is heard beside others

Frames = np.ndarray[tuple[int, int], np.dtype[np.float32]]


_IMPORTING = threading.Lock()


def silero() -> Any:
    """The package silero_vad.

    Importing it calls `torch.set_num_threads(1)`, which would hold for all models of the process, and for good in
    every thread that first computes before it is taken back. So that call is kept from having an effect.
    """
    if "silero_vad" not in sys.modules:
        import torch

        with _IMPORTING:
            importing, set_num_threads = threading.get_ident(), torch.set_num_threads

            def by_others(nthreads: int) -> None:
                if threading.get_ident() != importing:
                    set_num_threads(nthreads)

            torch.set_num_threads = by_others
            try:
                import silero_vad
            finally:
                torch.set_num_threads = set_num_threads
    import silero_vad

    return silero_vad


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
def _openmp() -> ThreadpoolController:
    """The OpenMP that PyTorch computes with.

    It is limited here and not by `torch.set_num_threads`, because OpenMP counts its threads for each calling thread
    apart, while PyTorch also keeps one number for all threads that have not computed yet.
    """
    import torch  # noqa: F401 (the controller finds the libraries that are loaded)
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


class _Voice:
    """Silero's network taken apart into what sees single frames and what goes through time. It keeps no state."""

    def __init__(self) -> None:
        import torch

        network = silero().load_silero_vad()._model  # the one for 16 kHz
        self.spectrum, self.convolutions, self.last_layer = network.stft, network.encoder, network.decoder.decoder
        self.window = self.spectrum.forward_basis_buffer[0, 0].clone()  # its cosine of frequency zero
        cell = network.decoder.rnn
        self.lstm = torch.nn.LSTM(cell.weight_ih.shape[1], cell.weight_hh.shape[1])
        with torch.no_grad():
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                getattr(self.lstm, f"{name}_l0").copy_(getattr(cell, name))

    def hear(self, frames: np.ndarray[Any, np.dtype[np.float32]], state: Any) -> tuple[torch.Tensor, Any]:
        """Probabilities (B, T) of frames (B, T, 576) that follow on a state, and the state behind them."""
        import torch

        rows, count, _ = frames.shape
        # Two threads would wait for each other at every step of the LSTM, and take ten times as long.
        with _openmp().limit(limits=1, user_api="openmp"), torch.inference_mode():
            features = torch.cat(
                [
                    self._see(torch.tensor(frames[row, first : first + AT_ONCE]))
                    for row in range(rows)
                    for first in range(0, count, AT_ONCE)
                ]
            )
            through_time, state = self.lstm(features.view(rows, count, -1).transpose(0, 1), state)
            return self.last_layer(through_time.permute(1, 2, 0))[:, 0], state

    def _see(self, frames: torch.Tensor) -> torch.Tensor:
        """What the LSTM is given (T, D) of frames (T, 576)."""
        import torch

        size, hop = self.spectrum.filter_length, self.spectrum.hop_length
        waves = self.spectrum.padding(frames)
        # A Fourier transform, which Silero writes as a convolution.
        power = torch.stft(waves, size, hop, window=self.window, center=False, return_complex=True).abs()
        seen: torch.Tensor = self.convolutions(power)[:, :, 0]
        return seen


@lru_cache(maxsize=1)
def _voice() -> _Voice:
    return _Voice()
