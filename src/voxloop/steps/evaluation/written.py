"""Capitals and punctuation: of the words that were heard right, how many are written as in the reference."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from voxloop.speech import text


@dataclass(frozen=True, kw_only=True, slots=True)
class Style:
    """What the references of a test set have, and so can be asked of a model."""

    capitals: bool
    punctuation: bool

    def __bool__(self) -> bool:
        return self.capitals or self.punctuation


def style(references: list[str]) -> Style:
    """What references are written with: marks at the ends of words, and capitals beside small letters."""
    words = [word for one in references for word in one.split()]
    small = any(word != word.upper() for word in words)
    return Style(
        capitals=small and any(word != word.lower() for word in words),
        punctuation=any(_bare(word) not in ("", word) for word in words),
    )


def written(reference: str, hypothesis: str, language: str | None, asked: Style) -> dict[int, bool]:
    """For each word of the reference, by its place, that was heard right: whether it is written as there."""
    said, heard = _words(reference, language), _words(hypothesis, language)
    pairs = text.align(" ".join(_bare(word).lower() for word in said), " ".join(_bare(word).lower() for word in heard))
    found: dict[int, bool] = {}
    left = right = 0
    for pair in pairs:
        if pair.operation == "equal":
            found[left] = _seen(said[left], asked) == _seen(heard[right], asked)
        left += pair.reference is not None
        right += pair.hypothesis is not None
    return found


def _words(written_text: str, language: str | None) -> list[str]:
    """Words with the marks at them; a mark that stands alone, as French has it, belongs to the word before."""
    found: list[str] = []
    for word in text.clean(written_text, language).split():
        if _bare(word):
            found.append(word)
        elif found:
            found[-1] += word
    return found


def _bare(word: str) -> str:
    """A word without the marks around it."""
    start, end = 0, len(word)
    while start < end and _mark(word[start]):
        start += 1
    while end > start and _mark(word[end - 1]):
        end -= 1
    return word[start:end]


def _mark(character: str) -> bool:
    return unicodedata.category(character)[0] in "PS"


def _seen(word: str, asked: Style) -> str:
    word = word if asked.punctuation else _bare(word)
    return word if asked.capitals else word.lower()
