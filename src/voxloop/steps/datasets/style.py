"""How texts are written, with or without case and punctuation, and both taken over from what a recogniser wrote."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher

from voxloop.speech.text import CHARACTER_LANGUAGES
from voxloop.steps.datasets.splits import sentence

PLAIN = 0.05  # share of texts with case (or punctuation) up to which the others' lack of it is the style


@dataclass(frozen=True, kw_only=True, slots=True)
class Style:
    """How the texts of one language are written."""

    clips: int
    cased: float | None  # share of the texts that have both capitals and small letters; None: no case in the script
    punctuated: float  # share of the texts that have punctuation between or after words

    @property
    def plain(self) -> bool:
        """Whether they have neither case nor punctuation."""
        return (self.cased is None or self.cased <= PLAIN) and self.punctuated <= PLAIN


class Styles:
    """Counts texts by language as they go by."""

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
        """The style of each language, the one with most texts first."""
        return {
            language: Style(clips=clips, cased=cased / with_case if with_case else None, punctuated=marked / clips)
            for language, (clips, with_case, cased, marked) in sorted(
                self._counts.items(), key=lambda item: (-item[1][0], item[0] or "")
            )
        }


def styles_of(texts: Iterable[tuple[str, str | None]]) -> dict[str | None, Style]:
    """The style of texts, given with their languages."""
    counted = Styles()
    for text, language in texts:
        counted.add(text, language)
    return counted.found()


def _has_punctuation(word: str) -> bool:
    """Whether punctuation stands at an end of a word; apostrophes and hyphens inside are spelling."""
    return any(
        unicodedata.category(end) in ("Po", "Pd", "Ps", "Pe", "Pi", "Pf") and end not in "'’-"
        for end in (word[0], word[-1])
    )


def restored(text: str, heard: str, language: str | None) -> str:
    """A text with the case and the punctuation of `heard`, word by word, where the words agree.

    Words that differ stay as they are. Empty where no word agrees, and for languages
    that are written without spaces.
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
