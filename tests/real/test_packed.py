"""Clips that share a window are heard as right as each alone, and their words lie within them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from voxloop.families.decoding import Decoding, Guards
from voxloop.families.registry import family
from voxloop.speech import text


def test_clips_that_share_a_window(folder: Path, clips: list[np.ndarray], tmp_path: Path) -> None:
    family("whisper").convert(folder, tmp_path / "int8", "int8")
    recogniser = family("whisper").load_converted(tmp_path / "int8", threads=1)
    encoded: list[int] = []
    encode = recogniser._encode
    recogniser._encode = lambda given, context: encoded.append(len(given)) or encode(given, context)

    asked = {"language": "en", "guards": Guards()}
    together = recogniser.transcribe(clips, Decoding(**asked, audio_context="packed"), word_times=True)
    windows = sum(encoded)
    assert windows < len(clips)
    encoded.clear()
    alone = recogniser.transcribe(clips, Decoding(**asked, audio_context="full"), word_times=True)
    assert sum(encoded) == len(clips)

    # As many words are wrong by the other's text as a few that are on the brink anyway.
    sides = [[text.normalise(one.text, "en") for one in found] for found in (alone, together)]
    assert text.total(text.word_errors_each(*sides)).rate < 0.3
    assert all(one.text for one in together)
    for one, clip, other in zip(together, clips, alone, strict=True):
        assert len(one.words) == len(one.text.split())
        assert all(0 <= word.start <= word.end <= len(clip) / 16_000 for word in one.words)
        if one.text == other.text:
            moved = [abs(mine.start - its.start) for mine, its in zip(one.words, other.words, strict=True)]
            assert np.median(moved) < 0.1


def test_without_a_known_language_each_is_heard_alone(folder: Path, clips: list[np.ndarray], tmp_path: Path) -> None:
    if folder.name.startswith("tiny.en"):
        return
    family("whisper").convert(folder, tmp_path / "int8", "int8")
    recogniser = family("whisper").load_converted(tmp_path / "int8", threads=1)
    some = clips[:3]
    assert recogniser.transcribe(some, Decoding(audio_context="packed")) == recogniser.transcribe(
        some, Decoding(audio_context="full")
    )
