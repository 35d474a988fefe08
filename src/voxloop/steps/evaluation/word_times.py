"""How far a model's word times lie from those of a reference, or from where the speech begins and ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from voxloop.records import Word, seconds
from voxloop.speech import text

if TYPE_CHECKING:
    from voxloop.steps.utterances import Span

COLLAR_S = 0.2  # a word is in time where both its ends are this near (WhisperX counts so, arXiv:2303.00747)


def word_times(
    reference: Sequence[Word], hypothesis: Sequence[Word], language: str | None, changes: text.Changes | None = None
) -> dict[str, Any]:
    """Errors of the times of the words that were heard right, as `Scored` keeps them.

    Words are compared after normalising, so that `Twenty-three` meets `23`. A
    word that the normaliser parts is one word still: its times are compared once, where
    all its parts met parts of one word.
    """
    spoken, heard = _parts(reference, language, changes), _parts(hypothesis, language, changes)
    met: dict[int, set[int | None]] = {}  # word of the reference -> words of the hypothesis
    left = right = 0
    pairs = text.align(" ".join(part for part, _ in spoken), " ".join(part for part, _ in heard))
    for pair in pairs:
        if pair.reference is not None:
            equal = pair.operation == "equal"
            met.setdefault(spoken[left][1], set()).add(heard[right][1] if equal else None)
        left += pair.reference is not None
        right += pair.hypothesis is not None
    words = in_time = 0
    start_error_s = end_error_s = 0.0
    for index, others in met.items():
        other = others.pop() if len(others) == 1 else None
        if other is None:
            continue
        starts = abs(hypothesis[other].start - reference[index].start)
        ends = abs(hypothesis[other].end - reference[index].end)
        words += 1
        in_time += max(starts, ends) <= COLLAR_S
        start_error_s += starts
        end_error_s += ends
    return {
        "timed_words": words,
        "start_error_s": start_error_s,
        "end_error_s": end_error_s,
        "words_in_time": in_time,
    }


def edge_error_s(words: Sequence[Word], speech: Span | None) -> float | None:
    """How far the first word's beginning and the last one's end lie from those of the speech, in seconds together.

    The detector says where the speech lies, for every model alike. None where there are no words or no speech.
    """
    if not words or speech is None:
        return None
    start, end = map(seconds, speech)
    return round(abs(words[0].start - start) + abs(words[-1].end - end), 3)


def _parts(words: Sequence[Word], language: str | None, changes: text.Changes | None) -> list[tuple[str, int]]:
    """The normalised parts of words, each with its word's place."""
    normalised = [text.normalise(word.text, language, changes) for word in words]
    return [(part, index) for index, one in enumerate(normalised) for part in one.split()]
