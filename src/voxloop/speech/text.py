"""Text: normalise, compare and clean it. Pure functions.

The normaliser follows Whisper's authors (arXiv:2212.04356, appendix C) through
the `whisper-normalizer` package, which carries their code and spelling map. It
is versioned, because an error rate means nothing without its normaliser.
The rules for a language are a setting, and changed rules are another version.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, Literal, cast, get_args, get_type_hints

from voxloop.errors import SettingError, nearest

NORMALISERS: dict[str, str] = {
    "whisper-english/1": "Whisper's English normaliser (spelling, contractions, numbers); digits compared one by one",
    "whisper-basic/1": "Whisper's basic normaliser: lower case, no punctuation; keeps diacritics and vowel signs",
    "whisper-characters/1": "like whisper-basic/1, but each character is a word: for scripts without spaces",
    "none/1": "Unicode NFC and single spaces, nothing else",
}

# "Languages that do not use spaces between words", arXiv:2212.04356, appendix C; Cantonese is spoken by large-v3.
CHARACTER_LANGUAGES = frozenset({"zh", "yue", "ja", "th", "lo", "my"})

Operation = Literal["equal", "substitute", "delete", "insert"]
Changes = Mapping[str, Mapping[str, str]]
"""The `normaliser` setting: rules that differ from the default, by language."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """How texts of one language are normalised before they are compared."""

    base: Literal["whisper-english", "whisper-basic", "none"] = "whisper-basic"
    numbers: Literal["digits", "whole", "as-written"] = "as-written"
    """`digits`: each digit is a word. `whole`: as in Whisper's normaliser, which writes "one two three" as 123
    (English only). `as-written`: "three" and "3" differ."""
    case: Literal["lower", "keep"] = "lower"
    punctuation: Literal["remove", "keep"] = "remove"
    diacritics: Literal["keep", "remove"] = "keep"
    words: Literal["spaces", "characters"] = "spaces"
    """How words are separated: by spaces, or each character is a word."""


VALUES: dict[str, tuple[str, ...]] = {name: get_args(hint) for name, hint in get_type_hints(Rules).items()}
BASES = {
    "whisper-english": Rules(base="whisper-english", numbers="digits", diacritics="remove"),
    "whisper-basic": Rules(),
    "none": Rules(base="none", case="keep", punctuation="keep"),
}
# The values that each base allows besides its own.
CHOICES: dict[str, dict[str, tuple[str, ...]]] = {
    "whisper-english": {"numbers": ("digits", "whole", "as-written")},
    "whisper-basic": {
        "numbers": ("digits", "as-written"),
        "case": ("lower", "keep"),
        "punctuation": ("remove", "keep"),
        "diacritics": ("keep", "remove"),
        "words": ("spaces", "characters"),
    },
    "none": {"words": ("spaces", "characters")},
}


def rules(language: str | None, changes: Changes | None = None) -> Rules:
    """Return the rules for a language (ISO 639-1; None: unknown). Raises SettingError for invalid changes."""
    changed = dict((changes or {}).get(language or "", {}))
    own = "whisper-english" if language == "en" else "whisper-basic"
    base = changed.pop("base", own)
    if base not in BASES:
        raise SettingError(f"normaliser.{language}: there is no base {base!r}{nearest(base, BASES)}")
    found = BASES[base]
    if language in CHARACTER_LANGUAGES:
        found = replace(found, words="characters")
    for name, value in changed.items():
        if name not in VALUES:
            raise SettingError(f"normaliser.{language}: there is no rule {name!r}{nearest(name, VALUES)}")
        if value not in VALUES[name]:
            known = " or ".join(VALUES[name])
            raise SettingError(f"normaliser.{language}: {name} is {value!r}; set it to {known}")
        if value != getattr(found, name) and value not in CHOICES[base].get(name, ()):
            able = [other for other, choices in CHOICES.items() if value in choices.get(name, ())]
            remedy = f'; set base = "{able[0]}"' if able else ""
            raise SettingError(f"normaliser.{language}: base {base} does not support {name} = {value!r}{remedy}")
    return replace(found, **cast("dict[str, Any]", changed))


def check_changes(changes: Changes) -> None:
    """Raise SettingError if the `normaliser` setting is invalid."""
    for language, changed in changes.items():
        if not re.fullmatch("[a-z]{2,3}", language):
            raise SettingError(f"normaliser.{language}: {language!r} is not a language code; use one such as en or vi")
        if not isinstance(changed, Mapping):
            raise SettingError(
                f"normaliser.{language} is {changed!r}, not a table of rules: write [normaliser.{language}] and below "
                'it a line such as numbers = "as-written"'
            )
        rules(language, changes)


def normaliser_version(language: str | None, changes: Changes | None = None) -> str:
    """Return the version of the normaliser for a language: one of NORMALISERS, plus any changed rules.

    Changed rules name their language (`vi:whisper-basic/1,case=keep`), so that
    different rules for the languages of a test set never share a name.
    """
    default, now = rules(language), rules(language, changes)
    if now == default:
        plain = now.base == "whisper-basic" and now.words == "characters"
        return "whisper-characters/1" if plain else f"{now.base}/1"
    base = BASES[now.base]
    changed = [f.name for f in fields(Rules) if getattr(now, f.name) != getattr(base, f.name)]
    return ",".join([f"{language}:{now.base}/1", *(f"{name}={getattr(now, name)}" for name in changed)])


def normalise(text: str, language: str | None = None, changes: Changes | None = None) -> str:
    """Normalise a text for comparison: remove all that is not an error; separate words with single spaces.

    Whisper's English normaliser writes "one two three" as the single word "123",
    so one wrong digit would make a whole string wrong, and a string of ten digits
    would weigh as much as "hello". Here each digit is a word: "one two three",
    "123" and "1 2 3" all become `1 2 3`, and "twenty three" and "23" become `2 3`. The
    price: "twelve" and "one two" count as equal, as they do for Whisper's authors.

    In scripts without spaces between words (CHARACTER_LANGUAGES), each character
    is a word, as is standard for these languages.
    """
    wanted = rules(language, changes)
    text = unicodedata.normalize("NFC", text)
    if wanted.base == "whisper-english":
        text = _english(text, wanted)
    elif wanted.base == "whisper-basic":
        text = _basic(text, wanted)
    if wanted.words == "characters":
        import regex

        text = " ".join(regex.findall(r"\X", text))
    return " ".join(text.split())


def letters(normalised: str, language: str | None, changes: Changes | None = None) -> str:
    """Return the text for the character error rate, without spaces that the normaliser put between characters."""
    return normalised.replace(" ", "") if rules(language, changes).words == "characters" else normalised


def as_written(text: str, language: str | None, changes: Changes | None = None) -> str:
    """Return the text with case and punctuation, for the orthographic error rate."""
    cleaned = clean(text, language)
    return " ".join(cleaned.replace(" ", "")) if rules(language, changes).words == "characters" else cleaned


def _english(text: str, wanted: Rules) -> str:
    if wanted.numbers == "digits":
        # The library drops leading zeros of a written number, but keeps them in "oh one two".
        text = re.sub(r"(?<![\w.,])0\d+(?!\w)", lambda match: " ".join(match[0]), text)
    text = _english_normaliser(wanted.numbers != "as-written")(text)
    if wanted.numbers == "digits":
        text = re.sub(r"(?<=\d)(?=\.?\d)", " ", text)
        # The library turns a lone 1 into "one", even the first of "1 2 3"; digits should look alike everywhere.
        text = re.sub(r"\bone\b", "1", text)
    return text


@cache
def _english_normaliser(numbers: bool) -> Callable[[str], str]:
    """Create the library's normaliser; imports it on first use."""
    from whisper_normalizer.english import EnglishTextNormalizer

    made: Any = EnglishTextNormalizer()
    if not numbers:
        made.standardize_numbers = str
    return lambda text: str(made(text))


def _basic(text: str, wanted: Rules) -> str:
    """Whisper's BasicTextNormalizer from the library's parts: the class always removes case and punctuation."""
    from whisper_normalizer.basic import remove_symbols, remove_symbols_and_diacritics

    lower = wanted.case == "lower"
    text = text.lower() if lower else text
    text = re.sub(r"[<\[][^>\]]*[>\]]", "", text)  # text in brackets was not spoken
    text = re.sub(r"\(([^)]+?)\)", "", text)
    if wanted.diacritics == "remove":
        marks = {c for c in unicodedata.normalize("NFKD", text) if unicodedata.category(c)[0] in "SP"}
        kept = "".join(marks) if wanted.punctuation == "keep" else ""
        text = unicodedata.normalize("NFC", remove_symbols_and_diacritics(text, keep=kept))
    elif wanted.punctuation == "remove":
        # Without preserve_marks, the vowel signs of Hindi or Thai become spaces and split words.
        text = remove_symbols(text, preserve_marks=True)
    else:
        text = unicodedata.normalize("NFKC", text)
    text = text.lower() if lower else text
    return re.sub(r"(?<=\d)(?=\d)", " ", text) if wanted.numbers == "digits" else text


# Errors --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorCounts:
    """Edits that turn references into hypotheses; counts, not a rate, so that they add up over texts."""

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    units: int = 0  # words (or characters) of the references

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors per unit of the reference; above 1 if there are many insertions. Without units, the error count."""
        return self.errors / max(self.units, 1)

    def __add__(self, other: ErrorCounts) -> ErrorCounts:
        return ErrorCounts(
            substitutions=self.substitutions + other.substitutions,
            deletions=self.deletions + other.deletions,
            insertions=self.insertions + other.insertions,
            units=self.units + other.units,
        )


def total(counts: Iterable[ErrorCounts]) -> ErrorCounts:
    """Return the sum of counts; all zeros for none."""
    return sum(counts, ErrorCounts())


def word_errors(reference: str, hypothesis: str) -> ErrorCounts:
    """Count word errors, split at spaces. Normalise both texts first, except for orthographic errors."""
    return word_errors_each([reference], [hypothesis])[0]


def character_errors(reference: str, hypothesis: str) -> ErrorCounts:
    """Count character errors; spaces between words are characters too, as in jiwer and NIST's tools."""
    return character_errors_each([reference], [hypothesis])[0]


def word_errors_each(references: Sequence[str], hypotheses: Sequence[str]) -> list[ErrorCounts]:
    """Count word errors of each pair; an empty reference has no units, and its whole hypothesis is inserted."""
    import jiwer

    if not references and not hypotheses:
        return []
    output = jiwer.process_words(list(references), list(hypotheses))
    return [_counts(chunks, len(words)) for chunks, words in zip(output.alignments, output.references, strict=True)]


def character_errors_each(references: Sequence[str], hypotheses: Sequence[str]) -> list[ErrorCounts]:
    """Count character errors of each pair."""
    import jiwer

    if not references and not hypotheses:
        return []
    output = jiwer.process_characters(list(references), list(hypotheses))
    return [_counts(chunks, len(units)) for chunks, units in zip(output.alignments, output.references, strict=True)]


def _counts(chunks: Sequence[Any], units: int) -> ErrorCounts:
    """Count the edits in jiwer's alignment chunks of one text."""
    edits = {"substitute": 0, "delete": 0, "insert": 0, "equal": 0}
    for chunk in chunks:
        # A deletion has no hypothesis and an insertion no reference: the longer side is the number of edits.
        edits[chunk.type] += max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
    return ErrorCounts(
        substitutions=edits["substitute"], deletions=edits["delete"], insertions=edits["insert"], units=units
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Aligned:
    """A word of the reference and its counterpart in the hypothesis; None for a missing counterpart."""

    operation: Operation
    reference: str | None
    hypothesis: str | None


def align(reference: str, hypothesis: str) -> list[Aligned]:
    """Align the words of both texts with the fewest edits."""
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Differences:
    """Two aligned texts with their error counts."""

    pieces: tuple[Aligned, ...]
    words: ErrorCounts
    characters: ErrorCounts
    normaliser: str  # version applied to both; "as written" if none


def differences(
    reference: str,
    hypothesis: str,
    language: str | None = None,
    changes: Changes | None = None,
    *,
    written: bool = False,
) -> Differences:
    """Align two texts as an evaluation does; if `written`, case and punctuation count too."""
    if written:
        left, right = as_written(reference, language, changes), as_written(hypothesis, language, changes)
    else:
        left, right = normalise(reference, language, changes), normalise(hypothesis, language, changes)
    return Differences(
        pieces=tuple(align(left, right)),
        words=word_errors(left, right),
        characters=character_errors(letters(left, language, changes), letters(right, language, changes)),
        normaliser="as written" if written else normaliser_version(language, changes),
    )


# Clean text ----------------------------------------------------------------------------------------------------------

# A closing mark: no letter or digit follows, so " .5" and " :-)x" keep their space.
_SPACE_BEFORE_MARK = re.compile(r"\s+([,.;:!?…،؛؟。、，；：！？]+)(?=$|[\s\"'”’»)\]])")
_SPACE_BEFORE_MARK_FRENCH = re.compile(r"\s+([,.…]+)(?=$|[\s\"'”’»)\]])")


def clean(text: str, language: str | None = None) -> str:
    """Make a hypothesis readable: NFC, no control characters, single spaces, none before punctuation.

    French keeps its spaces before `; : ! ?`, as its typography requires. Words, case and marks do not change.
    """
    text = unicodedata.normalize("NFC", text)
    text = "".join(c if c.isspace() or unicodedata.category(c) != "Cc" else "" for c in text)
    text = " ".join(text.split())
    return (_SPACE_BEFORE_MARK_FRENCH if language == "fr" else _SPACE_BEFORE_MARK).sub(r"\1", text)
