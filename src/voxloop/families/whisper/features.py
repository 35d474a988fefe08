"""Whisper's features: log-mel spectrograms of clips at their own length.

By PyTorch for what trains and runs on it, on any device; by NumPy for the engine that does without.

Letters in shapes: `B` batch, `S` samples, `F` mel channels, `T` mel frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from voxloop.errors import ModelError
from voxloop.records import MAX_UTTERANCE_SAMPLES, SAMPLE_RATE

if TYPE_CHECKING:
    import torch
    from transformers import WhisperProcessor

    from voxloop.families.contract import Waveform

HOP = 160  # samples per mel frame: 10 ms
FFT = 400  # samples per window: 25 ms
FRAMES_STEP = 16  # clips end on a multiple of this many mel frames, which keeps the number of shapes small
FULL_FRAMES = MAX_UTTERANCE_SAMPLES // HOP  # 3,000 mel frames: the 30 s that stock Whisper is fed
# Silence after every clip: 32 encoder positions. With less, Whisper's decoder repeats itself; futo-org/whisper-acft
# issue 5 measured WER 318 without and 19 with a margin, and advises at least 32 positions.
MARGIN_S = 0.64
MARGIN_SAMPLES = round(MARGIN_S * SAMPLE_RATE)
POSITION_SAMPLES = 2 * HOP  # samples per encoder position: 20 ms
CONTEXT_KEY = "voxloop_audio_context"  # in config.json: how the model was tuned; absent means full

# What a model that knows only windows of 30 s needs to hear a shorter clip: twice the clip, and this much at least
# (word errors of other floors: docs/log.md). Windows grow in steps, so that clips of similar length share a batch.
ADAPTIVE_FRAMES = 1000
ADAPTIVE_STEP = 200

Array = np.ndarray[Any, np.dtype[np.float32]]
WINDOW: Array = np.float32(0.5) - np.float32(0.5) * np.cos(2 * np.pi * np.arange(FFT) / FFT).astype(np.float32)  # Hann

AudioContext = Literal["adaptive", "packed", "trimmed", "full"]


def padded_frames(samples: int) -> int:
    """Mel frames of a clip of `samples`, its margin included: a multiple of 16, at most 3,000."""
    step = HOP * FRAMES_STEP
    frames = -(-(samples + MARGIN_SAMPLES) // step) * FRAMES_STEP
    return min(frames, FULL_FRAMES)


def log_mel(
    waveforms: Sequence[Waveform], frames: Sequence[int], filters: torch.Tensor, device: str | torch.device = "cpu"
) -> torch.Tensor:
    """Log-mel features (B, F, T) of waveforms zero-padded to `frames` each; zeros behind a clip's frames.

    `filters` is (F, 201). Each clip's part equals what WhisperFeatureExtractor makes of it with that padding:
    25 ms Hann windows every 10 ms, log10 of the mel power, at most 8 decades below the clip's own maximum.
    """
    import torch

    longest = max(frames)
    stacked = np.zeros((len(waveforms), longest * HOP), dtype=np.float32)
    for row, waveform in zip(stacked, waveforms, strict=True):
        cut = waveform[: len(row)]
        row[: len(cut)] = cut
    samples = torch.from_numpy(stacked).to(device)
    filters = filters.to(device)
    # The reflected edge of a row is that of its own clip as well: both lie in the zeros of the padding.
    spectrum = torch.stft(samples, FFT, HOP, window=torch.hann_window(FFT, device=device), return_complex=True)
    real, imaginary = spectrum[..., :-1].real, spectrum[..., :-1].imag
    power = filters @ real.square().addcmul_(imaginary, imaginary)  # abs() would take the root for its square
    levels = power.clamp_(min=1e-10).log10_()
    inside = frame_mask(torch.tensor(frames, device=levels.device), longest)[:, None]
    peak = levels.masked_fill(~inside, -10.0).amax(dim=(1, 2), keepdim=True)
    features: torch.Tensor = ((torch.maximum(levels, peak - 8.0) + 4.0) / 4.0).masked_fill(~inside, 0.0)
    return features


def log_mel_numpy(clips: Sequence[Waveform], frames: int, filters: Array) -> Array:
    """What `log_mel` makes of clips that are all padded to as many frames: (B, F, T).

    What lies in the silence behind a clip is known without a transform.
    """
    features = np.empty((len(clips), len(filters), frames), np.float32)
    for clip, feature in zip(clips, features, strict=True):
        sounding = min(frames, (len(clip) + FFT // 2) // HOP + 1)
        samples = np.zeros(frames * HOP, np.float32)
        cut = clip[: len(samples)]
        samples[: len(cut)] = cut
        samples = np.pad(samples, FFT // 2, mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(samples, FFT)[::HOP][:sounding]
        spectrum = np.fft.rfft(windows * WINDOW)
        power = filters @ (np.square(spectrum.real) + np.square(spectrum.imag)).T.astype(np.float32, copy=False)
        levels = np.log10(np.maximum(power, 1e-10))
        lowest = levels.max(initial=-10.0) - 8.0
        feature[:, :sounding] = np.maximum(levels, lowest)
        feature[:, sounding:] = max(-10.0, lowest)
        feature += 4.0
        feature /= 4.0
    return features


def frame_mask(frames: torch.Tensor, longest: int) -> torch.Tensor:
    """True where a frame belongs to the clip: (B, T) from lengths (B,)."""
    import torch

    return torch.arange(longest, device=frames.device)[None] < frames[:, None]


def mel_filters(processor: WhisperProcessor) -> torch.Tensor:
    """The processor's mel filters as (F, 201). Raises ModelError where its windows are not Whisper's."""
    import torch

    extractor = processor.feature_extractor
    found = (extractor.sampling_rate, extractor.hop_length, extractor.n_fft)
    if found != (SAMPLE_RATE, HOP, FFT):
        raise ModelError(
            f"the feature extractor has rate, hop and window {found}, but Whisper uses {(SAMPLE_RATE, HOP, FFT)}"
        )
    return torch.tensor(np.asarray(extractor.mel_filters).T, dtype=torch.float32)


def frames_in(samples: int, context: AudioContext) -> int:
    """Mel frames that a clip of `samples` is fed as."""
    if context in ("full", "packed"):
        return FULL_FRAMES
    if context == "trimmed":
        return padded_frames(samples)
    twice = -(-2 * samples // (HOP * ADAPTIVE_STEP)) * ADAPTIVE_STEP
    return min(max(twice, ADAPTIVE_FRAMES), FULL_FRAMES)


def frames_of_at_least(samples: int, seconds: float) -> int:
    """Mel frames of a clip of `samples` with its margin, and with more silence where it is shorter than `seconds`."""
    step = HOP * FRAMES_STEP
    return min(FULL_FRAMES, max(padded_frames(samples), -(-round(seconds * SAMPLE_RATE) // step) * FRAMES_STEP))


def features_of(
    clips: Sequence[Waveform], context: AudioContext, filters: torch.Tensor, device: str | torch.device
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Features (B, F, T) and the mask (B, T) of their frames, None where no clip is padded."""
    import torch

    frames = [frames_in(len(clip), context) for clip in clips]
    features = log_mel(clips, frames, filters, device)
    if min(frames) == max(frames):
        return features, None
    return features, frame_mask(torch.tensor(frames, device=features.device), max(frames)).long()
