"""What a browser's fake microphone hears: WAV files that Chromium plays again and again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import soxr

from tests.web.live import hiss
from voxloop.speech.audio import Waveform, decode

RATE = 48_000  # what microphones have


def clip(folder: Path, name: str) -> Waveform:
    """A clip of the demo's speech: (S,) at 16 kHz."""
    return decode(folder / f"{name}.ogg")


def digits(folder: Path, *seeds: int, count: int = 3) -> list[tuple[Waveform, str]]:
    """Digits that a person said, with what they are: real speech, which the starter hears right."""
    rows = [json.loads(line) for line in (folder / "digits_en" / "metadata.jsonl").read_text().splitlines()]
    own = [row for row in rows if row["speaker"] == "theo"]
    found = []
    for seed in seeds:
        chosen = [own[place] for place in np.random.default_rng(seed).integers(0, len(own), count)]
        gap = np.zeros(1600, np.float32)
        pieces = [np.concatenate([decode(folder / "digits_en" / row["file"]), gap]) for row in chosen]
        found.append((np.concatenate(pieces), " ".join(row["text"] for row in chosen)))
    return found


def played(path: Path, *parts: Waveform, pause_s: float = 1.0) -> Path:
    """A file with a pause around each part."""
    pause = np.zeros(int(pause_s * 16_000), np.float32)
    sound = hiss(np.concatenate([pause, *(piece for part in parts for piece in (part, pause))]))
    soundfile.write(path, soxr.resample(sound, 16_000, RATE), RATE, subtype="PCM_16")
    return path


def silent(path: Path) -> Path:
    """Digital silence: a microphone that is switched off."""
    soundfile.write(path, np.zeros(2 * RATE), RATE, subtype="PCM_16")
    return path


def rustling(path: Path) -> Path:
    """Loud enough, and without a word."""
    noise = np.random.default_rng(0).normal(0, 0.03, 2 * RATE)
    soundfile.write(path, noise, RATE, subtype="PCM_16")
    return path


def phrases(count: int) -> Sequence[str]:
    """A list of a workspace's own."""
    return [f"{word} the lantern" for word in ("dim", "light", "fold", "carry", "find", "mend", "hang", "sell")][:count]
