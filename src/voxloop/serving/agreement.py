"""Which words of a growing hypothesis are decided: text that was told to a client is never taken back.

Local agreement (arXiv:2307.14743, section 3): a word is decided when two consecutive hypotheses agree on it. A word is
decided at once as well where its aligned end lies well before the end of the audio and the model is sure of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import regex
from rapidfuzz.distance import Levenshtein

from voxloop.families.contract import Hypothesis

SETTLED_S = 0.6  # before the end of the audio: later sound changes no word that ends earlier
SURE = 0.9  # probability of such a word
MOVED = 8  # words by which a later hypothesis may have more or fewer of what is decided

# Scripts without spaces between words are decided character by character: Chinese, Japanese, Thai, Lao, Khmer, Burmese.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_UNIT = regex.compile(rf"\s*(?:[{_UNSPACED}]\p{{M}}*|[^\s{_UNSPACED}]+)")
_STARTS_UNSPACED = regex.compile(rf"[{_UNSPACED}]")


def units(text: str) -> list[str]:
    """Split a text into words, each with the space before it: joined they are the text."""
    return _UNIT.findall(text.strip())  # type: ignore[no-any-return]


def joined(before: str, after: str) -> str:
    """Join two texts as their script does: with a space, or without."""
    spaced = before and after and not _STARTS_UNSPACED.match(after)
    return f"{before} {after}" if spaced else before + after


class Agreement:
    """The decided words of one stretch of speech, and what is decided next."""

    def __init__(self) -> None:
        self.decided: list[str] = []
        self._tail: list[str] = []  # of the last hypothesis, after the decided words

    def take(self, hypothesis: Hypothesis, seconds: float, *, pause: bool) -> tuple[list[str], list[str]]:
        """Return the words that this hypothesis for so many seconds of audio decides, and those that may still change.

        Its last word may be cut off, so that it is not decided, unless the audio ends with a `pause`.
        """
        words = units(hypothesis.text)
        place = self._after_decided(words)
        tail = words[place:]
        agreed = _common(self._tail, tail if pause else tail[:-1])
        settled = _settled(hypothesis, words, seconds) - place
        new = tail[: max(agreed, settled)]
        self.decided += new
        self._tail = tail[len(new) :]
        return new, self._tail

    def end(self, text: str) -> tuple[list[str], bool]:
        """Return the rest of the final text, and whether it contradicts words that were decided."""
        words = units(text)
        place = self._after_decided(words)
        rest = words[place:]
        contradicted = [_bare(word) for word in words[:place]] != [_bare(word) for word in self.decided]
        self.decided += rest
        self._tail = []
        return rest, contradicted

    def _after_decided(self, words: Sequence[str]) -> int:
        """Where the decided words end in a hypothesis: where the letters before it differ least from theirs."""
        decided, count = "".join(map(_bare, self.decided)), len(self.decided)
        places = range(max(0, count - MOVED), min(len(words), count + MOVED) + 1)
        before = {place: "".join(map(_bare, words[:place])) for place in places}
        return min(
            before,
            key=lambda place: (Levenshtein.distance(decided, before[place]), abs(place - count)),
            default=len(words),
        )


def _bare(word: str) -> str:
    """A word without case and punctuation, which change while a sentence grows."""
    return str(regex.sub(r"[\s\p{P}]+", "", word).casefold()) or word.strip()


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """Number of words with which both begin."""
    count = 0
    for mine, yours in zip(one, other, strict=False):
        if mine.strip() != yours.strip():
            break
        count += 1
    return count


def _settled(hypothesis: Hypothesis, words: Sequence[str], seconds: float) -> int:
    """Number of first words that end early enough, and of which the model is sure."""
    if len(hypothesis.words) != len(words):
        return 0
    count = 0
    for word in hypothesis.words:
        if word.end > seconds - SETTLED_S or word.probability < SURE:
            break
        count += 1
    return count
