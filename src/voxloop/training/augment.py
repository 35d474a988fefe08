"""Augmentation: what is done to a clip before it is learnt from. Pure functions of their generator.

Letters in shapes: `B` batch, `S` samples, `F` mel channels, `T` mel frames.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from voxloop.records import SAMPLE_RATE

if TYPE_CHECKING:
    import torch

    from voxloop.families.contract import Waveform
    from voxloop.training.recipes import Recipe

NOISE_RANGE_DB = 30.0  # between the strongest and the weakest noise
MASK_CHANCE = 0.5  # of each band and stretch of SpecAugment: half of the clips of a batch keep it


def waveform(clip: Waveform, recipe: Recipe, rng: np.random.Generator) -> Waveform:
    """A clip (S,) played at another speed and volume, with noise, as the recipe says."""
    if recipe.speed:
        clip = change_speed(clip, rng.uniform(1 - recipe.speed, 1 + recipe.speed))
    if recipe.noise_share and rng.random() < recipe.noise_share:
        snr_db = recipe.noise_snr_db + rng.uniform(0, NOISE_RANGE_DB)
        power = float(np.mean(np.square(clip))) if len(clip) else 0.0
        deviation = np.sqrt(power * 10 ** (-snr_db / 10))
        clip = clip + (deviation * rng.standard_normal(len(clip))).astype(np.float32)
    if recipe.volume_db:
        clip = clip * np.float32(10 ** (rng.uniform(-recipe.volume_db, recipe.volume_db) / 20))
    return np.clip(clip, -1.0, 1.0).astype(np.float32)


def change_speed(clip: Waveform, factor: float) -> Waveform:
    """The clip played `factor` times as fast, pitch included."""
    import soxr

    if abs(factor - 1) < 1e-3:
        return clip
    return np.asarray(soxr.resample(clip, SAMPLE_RATE * factor, SAMPLE_RATE, quality="LQ"), dtype=np.float32)


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
                width = int(rng.integers(1, min(recipe.mask_frames, own) + 1))
                start = int(rng.integers(0, own - width + 1))
                hidden[row, :, start : start + width] = True
    return torch.where(hidden & inside[:, None], mean, features)
