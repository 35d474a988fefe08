"""Windows: clips of one speaker, one behind the other, in the 30 s that Whisper is fed.

A published Whisper hears 30 s, whatever is said in them. Clips that lie in one window share the cost of its encoder,
and their bounds, written as time stamps, teach the model's own multi-segment form (arXiv:2212.04356, section 2.3):

    <|0.30|> first text<|2.48|><|2.60|> second text<|4.12|>

So what is tuned this way still decodes 30 s, with and without time stamps, in whatever program reads it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from voxloop.families.contract import Segment
from voxloop.records import MAX_UTTERANCE_S, SAMPLE_RATE
from voxloop.steps.training import augment

if TYPE_CHECKING:
    from pathlib import Path

    from voxloop.families.contract import Family, Waveform
    from voxloop.steps.training.batches import ClipRow, Speech
    from voxloop.steps.training.recipes import AudioContext, Recipe

WINDOW_S = 29.0  # of 30: that nothing is cut off where resampling rounds up
GAPS_S = (0.08, 0.5)  # silence before each clip of a window
LOOKED_AT = 50  # clips that are tried in turn for what is left of a window
SMALL_FLOOR = 2.0  # a clip heard alone is fed at least this many times its length, as untuned Whisper needs


@dataclass(frozen=True, slots=True)
class Window:
    """What is heard at once: which clips, in which order, how far apart, how fast."""

    id: str
    clips: tuple[str, ...]
    gaps: tuple[float, ...]
    """Seconds of silence before each clip."""
    speed: float
    """Of all its clips: how many times as fast they are played."""
    time_stamps: bool
    """Whether the bounds of its clips are learnt as well."""
    duration: float
    """Seconds, as heard."""
    language: str | None


def windows(
    rows: Iterable[ClipRow],
    recipe: Recipe,
    rng: random.Random,
    *,
    name: str,
    time_stamps: bool,
    fits: Callable[[Sequence[str], str | None], bool],
) -> list[Window]:
    """Rows as windows, every row in exactly one: a share alone, the others packed with their speaker's.

    `fits` says whether texts in a language are short enough for one label; `time_stamps` whether the model knows them.
    """
    made: list[Window] = []

    def add(clips: Sequence[ClipRow], gaps: Sequence[float], speed: float) -> None:
        duration = sum(gaps) + sum(row.duration for row in clips) / speed
        stamped = rng.random() < recipe.time_stamp_share and time_stamps
        ids = tuple(row.id for row in clips)
        made.append(Window(f"window-{name}-{len(made)}", ids, tuple(gaps), speed, stamped, duration, clips[0].language))

    waiting: dict[tuple[str | None, str | None], list[ClipRow]] = {}
    for row in rows:
        if rng.random() < recipe.alone_share:
            add([row], [0.0], _speed(recipe, rng, row.duration))
        else:
            waiting.setdefault((row.speaker, row.language), []).append(row)
    for left in waiting.values():
        while left:
            first = left.pop()
            speed = _speed(recipe, rng, first.duration)
            gap = rng.uniform(*GAPS_S)
            clips, gaps, used = [first], [min(gap, max(0.0, WINDOW_S - first.duration / speed))], 0.0
            used = gaps[0] + first.duration / speed
            while left:
                gap = rng.uniform(*GAPS_S)
                found = next(
                    (
                        index
                        for index in range(len(left) - 1, max(-1, len(left) - 1 - LOOKED_AT), -1)
                        if used + gap + left[index].duration / speed <= WINDOW_S
                    ),
                    None,
                )
                if found is None or not fits([*(row.text for row in clips), left[found].text], first.language):
                    break
                row = left.pop(found)
                clips.append(row)
                gaps.append(gap)
                used += gap + row.duration / speed
            add(clips, gaps, speed)
    return made


def _speed(recipe: Recipe, rng: random.Random, seconds: float) -> float:
    """How fast a window is played that begins with a clip of so many seconds, which must not be cut off."""
    return max(rng.uniform(1 - recipe.speed, 1 + recipe.speed), min(1.0, seconds / WINDOW_S))


def heard(window: Window, speech: Speech) -> tuple[Waveform, str | list[Segment], str | None]:
    """Samples (S,), the text or its segments, and the language of a window."""
    pieces: list[Waveform] = []
    segments: list[Segment] = []
    place = 0
    for id, gap in zip(window.clips, window.gaps, strict=True):
        clip = augment.change_speed(speech.waveform(id), window.speed)
        silence = np.zeros(round(gap * SAMPLE_RATE), dtype=np.float32)
        begin = place + len(silence)
        place = begin + len(clip)
        pieces += [silence, clip]
        segments.append(Segment(text=speech.row(id).text, start=begin / SAMPLE_RATE, end=place / SAMPLE_RATE))
    whole: Waveform = np.concatenate(pieces)
    if window.time_stamps:
        return whole, segments, window.language
    return whole, " ".join(segment.text for segment in segments), window.language


def context_s(recipe: Recipe, seconds: float) -> float:
    """Seconds that a clip of so many is fed at least, the rest of them silence; 0: its own length will do."""
    if recipe.audio_context == "trimmed":
        return 0.0
    if recipe.audio_context == "full":
        return MAX_UTTERANCE_S
    return min(MAX_UTTERANCE_S, max(recipe.context_floor_s, SMALL_FLOOR * seconds))


def usual_context(kind: Family, folder: str | Path) -> AudioContext:
    """How clips are fed while a saved model is tuned: as it was tuned before, or packed where it hears 30 s."""
    if "short context" not in kind.capabilities:
        return "full"
    return "trimmed" if kind.tuned_context(folder) == "trimmed" else "packed"
