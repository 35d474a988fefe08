"""Word error rates of a starter on single digits and digit strings of one speaker, or on any clips."""

import random
from collections.abc import Sequence
from typing import Any

import jiwer
import numpy as np

from voxloop.starter import network
from voxloop.starter.corpus import Clip
from voxloop.starter.examples import Example, LogMel, with_margin
from voxloop.starter.synthesis import SAMPLE_RATE


def singles(clips: Sequence[Clip]) -> list[Example]:
    return [Example(clip.wave, clip.text) for clip in clips]


def strings(clips: Sequence[Clip], *, count: int, seed: int) -> list[Example]:
    """`count` strings of three to five of the clips, joined with pauses of 50 to 300 ms."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        parts = [rng.choice(clips) for _ in range(rng.randint(3, 5))]
        waves = []
        for part in parts:
            waves += [part.wave, np.zeros(round(rng.uniform(0.05, 0.3) * SAMPLE_RATE), np.float32)]
        made.append(Example(np.concatenate(waves[:-1]), " ".join(part.text for part in parts)))
    return made


def transcribe(model: Any, examples: Sequence[Example], *, batch: int = 32) -> list[str]:
    """Greedy transcripts in the order of the examples; similar lengths are decoded together."""
    model.eval()
    mel = LogMel()
    order = sorted(range(len(examples)), key=lambda index: len(examples[index].wave))
    found = [""] * len(examples)
    device = next(model.parameters()).device
    for start in range(0, len(order), batch):
        group = order[start : start + batch]
        features, frames = mel([with_margin(examples[index].wave) for index in group])
        for index, text in zip(group, network.greedy(model, features.to(device), frames), strict=True):
            found[index] = text
    return found


def word_error_rate(model: Any, examples: Sequence[Example]) -> float:
    """Edits per reference word; examples without words are left out."""
    spoken = [example for example in examples if example.text]
    return float(jiwer.wer([example.text for example in spoken], transcribe(model, spoken)))
