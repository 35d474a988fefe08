"""Several clips in one window: how they are shared out, and whose a text is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxloop.families.whisper import packed
from voxloop.families.whisper.ctranslate import Spelling
from voxloop.records import MAX_UTTERANCE_SAMPLES
from voxloop.starter import STARTER_DIR

RATE = 16_000
STAMP = 100_000  # the first time stamp; all of the starter's tokens are below


@pytest.fixture(scope="module")
def spelling() -> Spelling:
    return Spelling(STARTER_DIR / "tokenizer.json")


def sound(seconds: float) -> np.ndarray:
    return np.full(int(seconds * RATE), 0.1, np.float32)


@given(st.lists(st.integers(0, MAX_UTTERANCE_SAMPLES), max_size=30))
def test_every_clip_is_in_one_window_and_whole(lengths: list[int]) -> None:
    clips = [np.broadcast_to(np.float32(1), length) for length in lengths]
    found = packed.windows(clips)
    assert sorted(index for window in found for index in window.clips) == [i for i, n in enumerate(lengths) if n]
    for window in found:
        if len(window.clips) > 1:
            assert len(window.waveform) <= MAX_UTTERANCE_SAMPLES
        # A second of silence lies between any two, and half of it before the first and behind the last.
        assert len(window.waveform) == sum(lengths[index] + packed.GAP for index in window.clips)
        for index, start in zip(window.clips, window.starts, strict=True):
            assert window.waveform[start : start + lengths[index]].all()
            assert not window.waveform[start - packed.GAP // 2 : start].any()


def stamp(seconds: float) -> int:
    return STAMP + round(seconds / packed.STAMP_S)


def test_segments_say_whose_a_text_is(spelling: Spelling) -> None:
    clips = [sound(2), sound(3)]  # heard from 0.5 and from 3.5 s on
    (window,) = packed.windows(clips)
    one, two = (spelling.encode(word, add_special_tokens=False) for word in (" one", " two"))
    tokens = [stamp(0.5), *one, stamp(2.5), stamp(3.5), *two, stamp(6.4)]
    times = [0.5] * (len(tokens) + 1)  # attention alone would give all to the first
    mine = packed.divided(window, [len(clip) for clip in clips], tokens, STAMP, times, spelling, "en")
    assert [[tokens[place] for place in places] for places in mine] == [one, two]


def test_words_of_a_segment_over_two_clips_are_placed_one_by_one(spelling: Spelling) -> None:
    clips = [sound(2), sound(2)]  # heard from 0.5 and from 3.5 s on
    (window,) = packed.windows(clips)
    words = [spelling.encode(f" {word}", add_special_tokens=False) for word in ("one", "two", "three")]
    tokens = [stamp(0.5), *(token for word in words for token in word), stamp(5.5)]
    # The third word seems to begin in the pause, as attention has it; its sound is in the second clip.
    starts = [0.6, 1.4, 2.7]
    times = [0.5, *(start for word, start in zip(words, starts, strict=True) for _ in word), 5.4, 5.4]
    mine = packed.divided(window, [len(clip) for clip in clips], tokens, STAMP, times, spelling, "en")
    assert [[tokens[place] for place in places] for places in mine] == [[*words[0], *words[1]], words[2]]


def test_a_clip_without_text_has_none(spelling: Spelling) -> None:
    clips = [sound(2), sound(2)]
    (window,) = packed.windows(clips)
    assert packed.divided(window, [len(clip) for clip in clips], [], STAMP, [0.0], spelling, "en") == [[], []]
