"""Detect case and punctuation in texts, and copy both from a recogniser's output."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher

from voxloop.speech.text import CHARACTER_LANGUAGES
from voxloop.steps.datasets.splits import sentence

PLAIN = 0.05  # maximum share of texts with case (or punctuation) for the style to count as plain


@dataclass(frozen=True, kw_only=True, slots=True)
class Style:
    """The style of the texts in one language."""

    clips: int
    cased: float | None  # share of texts with both upper and lower case; None: the script has no case
    punctuated: float  # share of texts with punctuation between or after words

    @property
    def plain(self) -> bool:
        """Whether the texts have neither case nor punctuation."""
        return (self.cased is None or self.cased <= PLAIN) and self.punctuated <= PLAIN


class Styles:
    """Counts the styles of texts by language."""

    def __init__(self) -> None:
        self._counts: dict[str | None, list[int]] = {}  # clips, with letters that have case, cased, punctuated

    def add(self, text: str, language: str | None) -> None:
        """Count one text."""
        counts = self._counts.setdefault(language, [0, 0, 0, 0])
        capitals, small = text != text.lower(), text != text.upper()
        counts[0] += 1
        counts[1] += capitals or small
        counts[2] += capitals and small
        counts[3] += any(_has_punctuation(word) for word in text.split())

    def found(self) -> dict[str | None, Style]:
        """Return the style of each language, most texts first."""
        return {
            language: Style(clips=clips, cased=cased / with_case if with_case else None, punctuated=marked / clips)
            for language, (clips, with_case, cased, marked) in sorted(
                self._counts.items(), key=lambda item: (-item[1][0], item[0] or "")
            )
        }


def styles_of(texts: Iterable[tuple[str, str | None]]) -> dict[str | None, Style]:
    """Return the style of (text, language) pairs by language."""
    counted = Styles()
    for text, language in texts:
        counted.add(text, language)
    return counted.found()


def _has_punctuation(word: str) -> bool:
    """Whether a word begins or ends with punctuation; apostrophes and hyphens are spelling."""
    return any(
        unicodedata.category(end) in ("Po", "Pd", "Ps", "Pe", "Pi", "Pf") and end not in "'’-"
        for end in (word[0], word[-1])
    )


def restored(text: str, heard: str, language: str | None) -> str:
    """Return a text with the case and punctuation of `heard`, word by word, where the words match.

    Words that differ do not change. Returns an empty text if no word matches, and for
    languages written without spaces.
    """
    if language in CHARACTER_LANGUAGES:
        return ""
    said, written = text.split(), heard.split()
    blocks = SequenceMatcher(None, [sentence(w) for w in said], [sentence(w) for w in written], autojunk=False)
    agreed = False
    for block in blocks.get_matching_blocks():
        for offset in range(block.size):
            word = written[block.b + offset]
            if sentence(word):
                said[block.a + offset] = word
                agreed = True
    return " ".join(said) if agreed else ""
