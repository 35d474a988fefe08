"""Augmentation of training clips. Pure functions of their random generator.

Letters in shapes: `B` batch, `S` samples, `F` mel channels, `T` mel frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from voxloop.records import SAMPLE_RATE

if TYPE_CHECKING:
    import torch

    from voxloop.families.contract import Waveform
    from voxloop.steps.training.recipes import Recipe

NOISE_RANGE_DB = 30.0  # between the strongest and the weakest noise
TELEPHONE_RATE = 8_000
TELEPHONE_LOW_HZ = (200.0, 300.0)  # nothing passes below the first, all from the second on
TELEPHONE_HIGH_HZ = (3_400.0, 3_700.0)
MU = 255  # of mu-law
HISS_DBFS = (-80.0, -35.0)  # of a clip without speech: from a studio to a noisy room
CUT_AT_MOST = 0.25  # of a clip, off either end
CUT_CHANCE = 0.5  # of either end of a clip that is cut
MASK_AT_MOST = 0.2  # of a clip's frames, in one stretch: 120 ms are half of a short word
MASK_CHANCE = 0.5  # of each band and stretch of SpecAugment: half of the clips of a batch keep it


def waveform(clip: Waveform, recipe: Recipe, rng: np.random.Generator, noises: Sequence[Waveform] = ()) -> Waveform:
    """A clip (S,) cut, at another speed, with noise, over the telephone, at another volume, as the recipe says.

    `noises` are those of the recipe's folder. Everything but the cut and the speed keeps the clip's length.
    """
    if recipe.cut_share and rng.random() < recipe.cut_share:
        clip = cut_ends(clip, recipe.cut_s, rng)
    if recipe.speed:
        clip = change_speed(clip, rng.uniform(1 - recipe.speed, 1 + recipe.speed))
    if noises and recipe.noise_folder_share and rng.random() < recipe.noise_folder_share:
        snr_db = recipe.noise_snr_db + rng.uniform(0, NOISE_RANGE_DB)
        clip = add_noise(clip, stretch(noises[int(rng.integers(len(noises)))], len(clip), rng), snr_db)
    if recipe.noise_share and rng.random() < recipe.noise_share:
        snr_db = recipe.noise_snr_db + rng.uniform(0, NOISE_RANGE_DB)
        power = float(np.mean(np.square(clip))) if len(clip) else 0.0
        deviation = np.sqrt(power * 10 ** (-snr_db / 10))
        clip = clip + (deviation * rng.standard_normal(len(clip))).astype(np.float32)
    if recipe.telephone_share and rng.random() < recipe.telephone_share:
        clip = telephone(clip)
    if recipe.volume_db:
        clip = clip * np.float32(10 ** (rng.uniform(-recipe.volume_db, recipe.volume_db) / 20))
    return np.clip(clip, -1.0, 1.0).astype(np.float32)


def hiss(samples: int, rng: np.random.Generator) -> Waveform:
    """Noise (S,) of a room in which nobody speaks: between white and pink, so loud as rooms are."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    spectrum *= np.maximum(np.arange(len(spectrum)), 1) ** -rng.uniform(0.0, 0.5)  # power as f^-1 is pink
    noise = np.fft.irfft(spectrum, samples)
    level = 10 ** (rng.uniform(*HISS_DBFS) / 20)
    return np.asarray(noise * level / np.sqrt(np.mean(np.square(noise))), dtype=np.float32)


def cut_ends(clip: Waveform, longest_s: float, rng: np.random.Generator) -> Waveform:
    """The clip without up to so many seconds of its beginning or its end, of each a quarter of the clip at most."""
    longest = min(longest_s * SAMPLE_RATE, CUT_AT_MOST * len(clip))
    start, end = (int(longest * rng.random()) if rng.random() < CUT_CHANCE else 0 for _ in range(2))
    return clip[start : len(clip) - end]


def change_speed(clip: Waveform, factor: float) -> Waveform:
    """The clip played `factor` times as fast, pitch included."""
    import soxr

    if abs(factor - 1) < 1e-3:
        return clip
    return np.asarray(soxr.resample(clip, SAMPLE_RATE * factor, SAMPLE_RATE, quality="LQ"), dtype=np.float32)


def stretch(noise: Waveform, samples: int, rng: np.random.Generator) -> Waveform:
    """A piece of a noise, from anywhere in it; a noise that is too short is heard again and again."""
    start = int(rng.integers(max(1, len(noise) - samples + 1)))
    return np.asarray(np.resize(noise[start:], samples), dtype=np.float32)


def add_noise(clip: Waveform, noise: Waveform, snr_db: float) -> Waveform:
    """The clip with a noise of its length, so loud that the mean powers have the ratio asked for; silence adds none."""
    if not len(clip):
        return clip
    speech_power, noise_power = float(np.mean(np.square(clip))), float(np.mean(np.square(noise)))
    if noise_power == 0.0:
        return clip
    gain = np.sqrt(speech_power / noise_power * 10 ** (-snr_db / 10))
    return np.asarray(clip + np.float32(gain) * noise, dtype=np.float32)


def telephone(clip: Waveform) -> Waveform:
    """The clip as a telephone passes it on: 300 to 3,400 Hz, 8 kHz, 8 bits of mu-law (ITU-T G.711, G.712)."""
    import soxr

    if not len(clip):
        return clip
    frequencies = np.fft.rfftfreq(len(clip), 1 / SAMPLE_RATE)
    gain = np.interp(frequencies, [*TELEPHONE_LOW_HZ, *TELEPHONE_HIGH_HZ], [0, 1, 1, 0])
    band = np.fft.irfft(np.fft.rfft(clip) * gain, len(clip)).astype(np.float32)
    sent = mu_law(soxr.resample(band, SAMPLE_RATE, TELEPHONE_RATE))
    heard = np.asarray(soxr.resample(sent, TELEPHONE_RATE, SAMPLE_RATE), dtype=np.float32)[: len(clip)]
    return np.pad(heard, (0, len(clip) - len(heard)))


def mu_law(clip: Waveform) -> Waveform:
    """The clip after 8 bits of mu-law there and back: quiet sounds are kept as finely, by ratio, as loud ones."""
    level = np.sign(clip) * np.log1p(MU * np.minimum(np.abs(clip), 1.0)) / np.log1p(MU)
    step = np.round(127 * level) / 127
    return np.asarray(np.sign(step) * np.expm1(np.abs(step) * np.log1p(MU)) / MU, dtype=np.float32)


def mask_features(
    features: torch.Tensor, frames: torch.Tensor, recipe: Recipe, rng: np.random.Generator
) -> torch.Tensor:
    """SpecAugment (arXiv:1904.08779) on (B, F, T): two bands and one stretch for each second, set to the clip's mean.

    `frames` (B,) says how much of each row is the clip.
    """
    import torch

    if not recipe.mask_bands and not recipe.mask_frames:
        return features
    batch, bands, length = features.shape
    inside = torch.arange(length)[None] < frames[:, None]
    mean = (features * inside[:, None]).sum(dim=(1, 2), keepdim=True) / (frames[:, None, None] * bands)
    hidden = torch.zeros(batch, bands, length, dtype=torch.bool)
    for row in range(batch):
        own = int(frames[row])
        for _ in range(2 if recipe.mask_bands else 0):
            if rng.random() < MASK_CHANCE:
                width = int(rng.integers(1, min(recipe.mask_bands, bands - 1) + 1))
                start = int(rng.integers(0, bands - width + 1))
                hidden[row, start : start + width] = True
        for _ in range(-(-own // 100) if recipe.mask_frames else 0):
            if rng.random() < MASK_CHANCE:
                width = int(rng.integers(1, max(1, min(recipe.mask_frames, int(MASK_AT_MOST * own))) + 1))
                start = int(rng.integers(0, own - width + 1))
                hidden[row, :, start : start + width] = True
    return torch.where(hidden & inside[:, None], mean, features)
