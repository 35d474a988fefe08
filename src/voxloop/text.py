"""Text: made comparable, compared, and made clean. Pure functions.

The normaliser follows Whisper's authors (arXiv:2212.04356, appendix C) through
the `whisper-normalizer` package, which carries their code and spelling map, and
is versioned: an error rate means nothing without the normaliser that it was counted with.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, cast

NORMALISERS: dict[str, str] = {
    "whisper-english/1": "Whisper's English normaliser (spelling, contractions, numbers); digits compared one by one",
    "whisper-basic/1": "Whisper's basic normaliser: lower case, no punctuation; diacritics and vowel signs kept",
    "whisper-characters/1": "as whisper-basic/1, each character a word: for scripts without spaces",
}

# "Languages that do not use spaces between words", arXiv:2212.04356, appendix C; Cantonese is spoken by large-v3.
CHARACTER_LANGUAGES = frozenset({"zh", "yue", "ja", "th", "lo", "my"})

Operation = Literal["equal", "substitute", "delete", "insert"]


def normaliser_version(language: str | None) -> str:
    """The name in NORMALISERS of what `normalise` does for a language (ISO 639-1; None: not known)."""
    if language == "en":
        return "whisper-english/1"
    return "whisper-characters/1" if language in CHARACTER_LANGUAGES else "whisper-basic/1"


def normalise(text: str, language: str | None = None) -> str:
    """Text with everything taken away that does not make it right or wrong; words between single spaces.

    Whisper's English normaliser writes "one two three" as the single word "123",
    so that one wrong digit would make a whole string wrong and a string of ten
    weigh as much as a single "hello". Here each digit is a word: "one two three",
    "123" and "1 2 3" are all `1 2 3`, and "twenty three" and "23" are `2 3`. The
    price: "twelve" and "one two" count as equal, as they do for Whisper's authors.
    """
    text = unicodedata.normalize("NFC", text)
    version = normaliser_version(language)
    if version == "whisper-english/1":
        # A written number loses its leading zeros in the library, where "oh one two" keeps its.
        text = re.sub(r"(?<![\w.,])0\d+(?!\w)", lambda match: " ".join(match[0]), text)
        text = _normaliser(version)(text)
        text = re.sub(r"(?<=\d)(?=\.?\d)", " ", text)
        # The library turns a lone 1 into "one", also the first of "1 2 3"; digits are to look alike everywhere.
        text = re.sub(r"\bone\b", "1", text)
    else:
        text = _normaliser(version)(text)
    return " ".join(text.split())


@cache
def _normaliser(version: str) -> Callable[[str], str]:
    """The library's part of a normaliser; imported when first used."""
    made: Any
    if version == "whisper-english/1":
        from whisper_normalizer.english import EnglishTextNormalizer

        made = EnglishTextNormalizer()
    else:
        from whisper_normalizer.basic import BasicTextNormalizer

        # Without preserve_marks the vowel signs of Hindi or Thai become spaces and tear words apart.
        made = BasicTextNormalizer(preserve_marks=True, split_letters=version == "whisper-characters/1")
    return lambda text: str(made(text))


# Errors --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorCounts:
    """Edits that turn references into hypotheses; not a rate, so that counts of many texts add up."""

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    units: int = 0  # words (or characters) of the references

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors by unit of the reference; above 1 where much is inserted. Without any unit: the errors themselves."""
        return self.errors / max(self.units, 1)

    def __add__(self, other: ErrorCounts) -> ErrorCounts:
        return ErrorCounts(
            substitutions=self.substitutions + other.substitutions,
            deletions=self.deletions + other.deletions,
            insertions=self.insertions + other.insertions,
            units=self.units + other.units,
        )


def total(counts: Iterable[ErrorCounts]) -> ErrorCounts:
    """The sum of counts; of none, all zeros."""
    return sum(counts, ErrorCounts())


def word_errors(reference: str, hypothesis: str) -> ErrorCounts:
    """Word errors of one text, between spaces as given: normalise both first, or not, for orthographic errors."""
    return word_errors_each([reference], [hypothesis])[0]


def character_errors(reference: str, hypothesis: str) -> ErrorCounts:
    """Character errors of one text; the spaces between words are characters too, as in jiwer and NIST's tools."""
    return character_errors_each([reference], [hypothesis])[0]


def word_errors_each(references: Sequence[str], hypotheses: Sequence[str]) -> list[ErrorCounts]:
    """Word errors of each pair of texts; an empty reference has no units, and all that was heard is inserted."""
    import jiwer

    if not references and not hypotheses:
        return []
    output = jiwer.process_words(list(references), list(hypotheses))
    return [_counts(chunks, len(words)) for chunks, words in zip(output.alignments, output.references, strict=True)]


def character_errors_each(references: Sequence[str], hypotheses: Sequence[str]) -> list[ErrorCounts]:
    """Character errors of each pair of texts."""
    import jiwer

    if not references and not hypotheses:
        return []
    output = jiwer.process_characters(list(references), list(hypotheses))
    return [_counts(chunks, len(units)) for chunks, units in zip(output.alignments, output.references, strict=True)]


def _counts(chunks: Sequence[Any], units: int) -> ErrorCounts:
    """Counts of jiwer's alignment chunks of one text."""
    edits = {"substitute": 0, "delete": 0, "insert": 0, "equal": 0}
    for chunk in chunks:
        # A deletion has no hypothesis and an insertion no reference: the longer side is the number of edits.
        edits[chunk.type] += max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
    return ErrorCounts(
        substitutions=edits["substitute"], deletions=edits["delete"], insertions=edits["insert"], units=units
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Aligned:
    """One word of the reference beside one of the hypothesis; None where one side has no counterpart."""

    operation: Operation
    reference: str | None
    hypothesis: str | None


def align(reference: str, hypothesis: str) -> list[Aligned]:
    """The words of both texts side by side, with the fewest edits."""
    import jiwer

    output = jiwer.process_words([reference], [hypothesis])
    spoken, heard = output.references[0], output.hypotheses[0]
    pairs: list[Aligned] = []
    for chunk in output.alignments[0]:
        left = spoken[chunk.ref_start_idx : chunk.ref_end_idx]
        right = heard[chunk.hyp_start_idx : chunk.hyp_end_idx]
        for place in range(max(len(left), len(right))):
            pairs.append(
                Aligned(
                    operation=cast("Operation", chunk.type),
                    reference=left[place] if place < len(left) else None,
                    hypothesis=right[place] if place < len(right) else None,
                )
            )
    return pairs


# Clean text ----------------------------------------------------------------------------------------------------------

# A mark that ends something: what follows is no letter or digit, so " .5" and " :-)x" keep their space.
_SPACE_BEFORE_MARK = re.compile(r"\s+([,.;:!?…،؛؟。、，；：！？]+)(?=$|[\s\"'”’»)\]])")
_SPACE_BEFORE_MARK_FRENCH = re.compile(r"\s+([,.…]+)(?=$|[\s\"'”’»)\]])")


def clean(text: str, language: str | None = None) -> str:
    """A hypothesis as readable text: NFC, no control characters, single spaces, none before punctuation.

    French keeps its spaces before `; : ! ?`, which its typography asks for. Words, case and marks stay as heard.
    """
    text = unicodedata.normalize("NFC", text)
    text = "".join(c if c.isspace() or unicodedata.category(c) != "Cc" else "" for c in text)
    text = " ".join(text.split())
    return (_SPACE_BEFORE_MARK_FRENCH if language == "fr" else _SPACE_BEFORE_MARK).sub(r"\1", text)
