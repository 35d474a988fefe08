"""Text: made comparable, compared, and made clean. Pure functions.

The normaliser follows Whisper's authors (arXiv:2212.04356, appendix C) through
the `whisper-normalizer` package, which carries their code and spelling map, and
is versioned: an error rate means nothing without the normaliser that it was counted with.
What it does for a language is a setting, and a changed setting is another version.
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
    "whisper-basic/1": "Whisper's basic normaliser: lower case, no punctuation; diacritics and vowel signs kept",
    "whisper-characters/1": "as whisper-basic/1, each character a word: for scripts without spaces",
    "none/1": "Unicode NFC and single spaces, nothing else",
}

# "Languages that do not use spaces between words", arXiv:2212.04356, appendix C; Cantonese is spoken by large-v3.
CHARACTER_LANGUAGES = frozenset({"zh", "yue", "ja", "th", "lo", "my"})

Operation = Literal["equal", "substitute", "delete", "insert"]
Changes = Mapping[str, Mapping[str, str]]
"""By language, the rules that are not at their default: the setting `normaliser`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """What is done to texts of one language before they are compared."""

    base: Literal["whisper-english", "whisper-basic", "none"] = "whisper-basic"
    numbers: Literal["digits", "whole", "as-written"] = "as-written"
    """`digits`: each digit is a word. `whole`: as Whisper's authors write them, "one two three" being 123 (English
    only). `as-written`: "three" and "3" differ."""
    case: Literal["lower", "keep"] = "lower"
    punctuation: Literal["remove", "keep"] = "remove"
    diacritics: Literal["keep", "remove"] = "keep"
    words: Literal["spaces", "characters"] = "spaces"
    """What a word is: what stands between spaces, or each character."""


VALUES: dict[str, tuple[str, ...]] = {name: get_args(hint) for name, hint in get_type_hints(Rules).items()}
BASES = {
    "whisper-english": Rules(base="whisper-english", numbers="digits", diacritics="remove"),
    "whisper-basic": Rules(),
    "none": Rules(base="none", case="keep", punctuation="keep"),
}
# What a base can do besides what it does.
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
    """The rules of a language (ISO 639-1; None: not known). Raises SettingError for what cannot be."""
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
            raise SettingError(f"normaliser.{language}: {name} is {value!r}; needed is {known}")
        if value != getattr(found, name) and value not in CHOICES[base].get(name, ()):
            able = [other for other, choices in CHOICES.items() if value in choices.get(name, ())]
            remedy = f'; base = "{able[0]}" does that' if able else ""
            raise SettingError(f"normaliser.{language}: {base} has no {name} = {value!r}{remedy}")
    return replace(found, **cast("dict[str, Any]", changed))


def check_changes(changes: Changes) -> None:
    """Raises SettingError where the setting `normaliser` is wrong."""
    for language, changed in changes.items():
        if not re.fullmatch("[a-z]{2,3}", language):
            raise SettingError(f"normaliser.{language}: needed is a language by its code, such as en or vi")
        if not isinstance(changed, Mapping):
            raise SettingError(
                f"normaliser.{language} is {changed!r}: needed is a table of rules, such as [normaliser.{language}] "
                'with the line numbers = "as-written"'
            )
        rules(language, changes)


def normaliser_version(language: str | None, changes: Changes | None = None) -> str:
    """The name of what `normalise` does for a language: one of NORMALISERS, and the rules that were changed.

    Changed rules carry their language (`vi:whisper-basic/1,case=keep`), so that no
    two sets of rules for the languages of a test have the same name.
    """
    default, now = rules(language), rules(language, changes)
    if now == default:
        plain = now.base == "whisper-basic" and now.words == "characters"
        return "whisper-characters/1" if plain else f"{now.base}/1"
    base = BASES[now.base]
    changed = [f.name for f in fields(Rules) if getattr(now, f.name) != getattr(base, f.name)]
    return ",".join([f"{language}:{now.base}/1", *(f"{name}={getattr(now, name)}" for name in changed)])


def normalise(text: str, language: str | None = None, changes: Changes | None = None) -> str:
    """Text with everything taken away that does not make it right or wrong; words between single spaces.

    Whisper's English normaliser writes "one two three" as the single word "123",
    so that one wrong digit would make a whole string wrong and a string of ten
    weigh as much as a single "hello". Here each digit is a word: "one two three",
    "123" and "1 2 3" are all `1 2 3`, and "twenty three" and "23" are `2 3`. The
    price: "twelve" and "one two" count as equal, as they do for Whisper's authors.

    Where the script has no spaces between words (CHARACTER_LANGUAGES), each
    character is a word, as the field counts there.
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
    """What a character error rate counts: where the normaliser parted characters, its spaces are no characters."""
    return normalised.replace(" ", "") if rules(language, changes).words == "characters" else normalised


def as_written(text: str, language: str | None, changes: Changes | None = None) -> str:
    """The words as a reader sees them, with case and punctuation, for the orthographic error rate."""
    cleaned = clean(text, language)
    return " ".join(cleaned.replace(" ", "")) if rules(language, changes).words == "characters" else cleaned


def _english(text: str, wanted: Rules) -> str:
    if wanted.numbers == "digits":
        # A written number loses its leading zeros in the library, where "oh one two" keeps its.
        text = re.sub(r"(?<![\w.,])0\d+(?!\w)", lambda match: " ".join(match[0]), text)
    text = _english_normaliser(wanted.numbers != "as-written")(text)
    if wanted.numbers == "digits":
        text = re.sub(r"(?<=\d)(?=\.?\d)", " ", text)
        # The library turns a lone 1 into "one", also the first of "1 2 3"; digits are to look alike everywhere.
        text = re.sub(r"\bone\b", "1", text)
    return text


@cache
def _english_normaliser(numbers: bool) -> Callable[[str], str]:
    """The library's; imported when first used."""
    from whisper_normalizer.english import EnglishTextNormalizer

    made: Any = EnglishTextNormalizer()
    if not numbers:
        made.standardize_numbers = str
    return lambda text: str(made(text))


def _basic(text: str, wanted: Rules) -> str:
    """Whisper's BasicTextNormalizer in the library's parts, since as a whole it always takes case and punctuation."""
    from whisper_normalizer.basic import remove_symbols, remove_symbols_and_diacritics

    lower = wanted.case == "lower"
    text = text.lower() if lower else text
    text = re.sub(r"[<\[][^>\]]*[>\]]", "", text)  # between brackets stands what was not said
    text = re.sub(r"\(([^)]+?)\)", "", text)
    if wanted.diacritics == "remove":
        marks = {c for c in unicodedata.normalize("NFKD", text) if unicodedata.category(c)[0] in "SP"}
        kept = "".join(marks) if wanted.punctuation == "keep" else ""
        text = unicodedata.normalize("NFC", remove_symbols_and_diacritics(text, keep=kept))
    elif wanted.punctuation == "remove":
        # Without preserve_marks the vowel signs of Hindi or Thai become spaces and tear words apart.
        text = remove_symbols(text, preserve_marks=True)
    else:
        text = unicodedata.normalize("NFKC", text)
    text = text.lower() if lower else text
    return re.sub(r"(?<=\d)(?=\d)", " ", text) if wanted.numbers == "digits" else text


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Differences:
    """Two texts side by side, as a screen draws them."""

    pieces: tuple[Aligned, ...]
    words: ErrorCounts
    characters: ErrorCounts
    normaliser: str  # the version that both went through; "as written" where none


def differences(
    reference: str,
    hypothesis: str,
    language: str | None = None,
    changes: Changes | None = None,
    *,
    written: bool = False,
) -> Differences:
    """Two texts word by word, as an evaluation counts their errors; with `written` case and punctuation count too."""
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
