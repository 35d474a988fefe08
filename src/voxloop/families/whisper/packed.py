"""Several clips in one window of 30 s, which costs as much as one clip alone: arXiv:2212.04356, section 2.3.

Whisper pads every clip to 30 s, so short clips are mostly padding. Here they are joined with silence between them and
decoded with time stamps, whose segments say which clip a text belongs to. Where a segment runs over several clips its
words are placed one by one, by the decoder's attention.

Letters in shapes: `S` samples, `U` tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from voxloop.families.contract import Hypothesis
from voxloop.families.decoding import Guards
from voxloop.families.whisper.words import tokens_of, without_silence, word_tokens
from voxloop.records import MAX_UTTERANCE_SAMPLES, SAMPLE_RATE, Word, seconds

if TYPE_CHECKING:
    from voxloop.families.contract import Waveform
    from voxloop.families.decoding import Decoding
    from voxloop.families.whisper.reading import Reader

GAP = SAMPLE_RATE  # samples of silence between two clips
STAMP_S = 0.02  # between two time stamps
MOSTLY = 0.8  # share of a segment within one clip from which all of its text is that clip's


@dataclass(frozen=True, slots=True)
class Window:
    """Clips that share a window."""

    clips: tuple[int, ...]
    """Indices of the clips, in their order in the window."""
    starts: tuple[int, ...]
    """Samples from the window's start to each clip's."""
    waveform: Waveform
    """(S,): the clips with silence between, before and behind them."""


def hear(
    reader: Reader,
    clips: Sequence[Waveform],
    decoding: Decoding,
    timed: bool,
    found: list[Hypothesis],
    budget_s: float,
    heard: Callable[[float], None] | None,
) -> set[int]:
    """Fill `found` from windows that clips share; the clips that are to be heard alone.

    These are all of them where a text cannot be divided: in an unknown language, or with a vocabulary, whose terms
    are looked for in each clip's text; and where anything else than a plain transcript is asked for.
    """
    alone = {index for index, clip in enumerate(clips) if len(clip)}
    known = decoding.language or not reader.vocabulary.languages
    asked_more = decoding.vocabulary or decoding.prompt or decoding.temperature or decoding.task != "transcribe"
    if not (reader._writes_time_stamps and known) or asked_more:
        return alone
    shared = [window for window in windows(clips) if len(window.clips) > 1]

    def decoded(batch: list[int]) -> list[dict[int, Hypothesis]]:
        chosen = [shared[index] for index in batch]
        return _decode(reader, chosen, clips, decoding, timed)

    batches = list(reader._batches([window.waveform for window in shared], "full", budget_s))
    for hypotheses in reader._each(decoded, batches):
        for mine in hypotheses:
            for index, hypothesis in mine.items():
                found[index] = hypothesis
            alone -= mine.keys()
            if heard and mine:
                heard(seconds(sum(len(clips[index]) for index in mine)))
    return alone


def _decode(
    reader: Reader, given: Sequence[Window], clips: Sequence[Waveform], decoding: Decoding, timed: bool
) -> list[dict[int, Hypothesis]]:
    """Texts of the clips in each window, by their indices; without those that should be heard alone."""
    waveforms = [window.waveform for window in given]
    states, mask = reader._encode(waveforms, "full")
    tasks, languages = reader._prompts(states, mask, len(given), decoding, reader.vocabulary.transcribe)
    room = reader.config.max_target_positions - len(tasks[0])
    limits = [min(room, sum(reader._limit(len(clips[index]), 224, 4) for index in one.clips)) for one in given]
    drafts = reader._likeliest(states, mask, [task[:-1] for task in tasks], limits, decoding.beams, False)
    stamp = reader.vocabulary.no_timestamps + 1
    texts = [[token for token in reader._written(draft)[0] if token < stamp] for draft in drafts]
    rows = [index for index, text in enumerate(texts) if text and drafts[index].tokens[-1] == reader.vocabulary.end]
    found: list[dict[int, Hypothesis]] = [{} for _ in given]
    if not rows:
        return found
    starts = reader._token_times(
        states,
        mask,
        rows,
        [tasks[row] for row in rows],
        [texts[row] for row in rows],
        [len(waveforms[row]) for row in rows],
    )
    for row, times in zip(rows, starts, strict=True):
        window, draft, (code, chance) = given[row], drafts[row], languages[row]
        tokens, chances = reader._written(draft)
        # A time stamp begins with the text behind it.
        behind = np.cumsum([0] + [token < stamp for token in tokens])
        began = [times[place] for place in behind]
        mine = [clips[index] for index in window.clips]
        places = divided(window, [len(clip) for clip in mine], tokens, stamp, began, reader.tokenizer, code)
        parts = [
            replace(
                draft,
                tokens=[tokens[place] for place in chosen],
                chances=[chances[place] for place in chosen],
                no_speech=None,  # of the window, which says nothing about one of its clips
            )
            for chosen in places
        ]
        for index, clip, start, chosen, part in zip(
            window.clips, mine, window.starts, places, reader._worded(parts), strict=True
        ):
            limit = reader._limit(len(clip), decoding.max_new_tokens, len(tasks[row]))
            if reader._doubtful(part, limit, decoding.guards) or reader._check(part, decoding.guards or Guards()).fired:
                continue
            offset, last = seconds(start), seconds(len(clip))
            when = [began[place] for place in chosen] + [began[chosen[-1] + 1]]
            when = [min(max(time - offset, 0.0), last) for time in when]
            found[row][index] = Hypothesis(
                text=part.text,
                confidence=part.confidence,
                words=reader._words(part, when, clip, code) if timed else (),
                language=code,
                language_probability=chance,
                mean_logprob=round(part.mean_logprob, 6),
                tokens=tokens_of(reader.tokenizer, part.tokens, part.chances),
            )
    return found


def windows(clips: Sequence[Waveform]) -> list[Window]:
    """Share out the clips that are not empty, similar lengths together, so that each window is as full as it gets.

    A clip for which there is no company has a window of its own.
    """
    order = sorted(
        (index for index, clip in enumerate(clips) if len(clip)), key=lambda index: (len(clips[index]), index)
    )
    groups: list[list[int]] = []
    held = 0
    for index in order:
        more = len(clips[index]) + GAP
        if not groups or held + more > MAX_UTTERANCE_SAMPLES:
            groups.append([])
            held = 0
        groups[-1].append(index)
        held += more
    return [_joined(clips, group) for group in groups]


def _joined(clips: Sequence[Waveform], group: Sequence[int]) -> Window:
    silence = np.zeros(GAP // 2, np.float32)
    lengths = [len(clips[index]) + GAP for index in group]
    starts = np.cumsum([0, *lengths[:-1]]) + GAP // 2
    parts = [part for index in group for part in (silence, clips[index], silence)]
    return Window(tuple(group), tuple(int(start) for start in starts), np.concatenate(parts))


def divided(
    window: Window,
    lengths: Sequence[int],
    tokens: Sequence[int],
    first_stamp: int,
    times: Sequence[float],
    tokenizer: Any,
    language: str | None,
) -> list[list[int]]:
    """Say which tokens (U,) of a window's text belong to each of its clips: their places, in order.

    `lengths` are those of the window's clips in samples; `times` says when each token begins in the window, in
    seconds, time stamps included, and when the last one ends.
    """
    bounds = [
        (seconds(start - GAP // 2), seconds(start + length + GAP // 2))
        for start, length in zip(window.starts, lengths, strict=True)
    ]
    mine: list[list[int]] = [[] for _ in bounds]
    for start, end, places in _segments(tokens, first_stamp, seconds(len(window.waveform))):
        shares = [max(0.0, min(end, last) - max(start, first)) for first, last in bounds]
        likeliest = int(np.argmax(shares))
        if shares[likeliest] >= MOSTLY * (end - start):
            mine[likeliest] += places
            continue
        chosen = [tokens[place] for place in places]
        found = word_tokens(tokenizer, chosen, language)
        began = [times[place] for place in places] + [times[places[-1] + 1]]
        words = [
            Word(text=text, start=began[first], end=max(began[first], began[last + 1]), probability=1.0)
            for text, first, last in found
        ]
        done = 0
        for (_, _, last), word in zip(found, without_silence(words, window.waveform), strict=True):
            middle = min(max((word.start + word.end) / 2, start), end)
            owner = next((index for index, (_, stop) in enumerate(bounds) if middle < stop), len(bounds) - 1)
            mine[owner] += places[done : last + 1]  # with the space before it, where that is a token of its own
            done = max(done, last + 1)
    return mine


def _segments(tokens: Sequence[int], first_stamp: int, last_s: float) -> list[tuple[float, float, list[int]]]:
    """Start and end of each segment in seconds, and the places of its tokens."""
    found: list[tuple[float, float, list[int]]] = []
    start, places = 0.0, []
    for place, token in enumerate(tokens):
        if token < first_stamp:
            places.append(place)
            continue
        stamp = (token - first_stamp) * STAMP_S
        if places:
            found.append((start, max(stamp, start + STAMP_S), places))
        start, places = stamp, []
    if places:
        found.append((start, max(last_s, start + STAMP_S), places))
    return found
