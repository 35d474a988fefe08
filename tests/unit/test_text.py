"""Text: the normaliser's choices, error counts against an independent oracle, clean text."""

from __future__ import annotations

import subprocess
import sys
import unicodedata

import kaldialign
import pytest
from hypothesis import given
from hypothesis import strategies as st
from num2words import num2words
from whisper_normalizer.basic import BasicTextNormalizer

from voxloop.errors import SettingError
from voxloop.speech.text import (
    CHARACTER_LANGUAGES,
    NORMALISERS,
    ErrorCounts,
    align,
    as_written,
    character_errors,
    check_changes,
    clean,
    differences,
    letters,
    normalise,
    normaliser_version,
    total,
    word_errors,
    word_errors_each,
)

WORDS = st.lists(st.sampled_from(["a", "b", "c", "dd", "ee"]), max_size=8).map(" ".join)


# Normalising


@pytest.mark.parametrize(
    ("left", "right", "normalised"),
    [
        ("one two three", "1 2 3", "1 2 3"),
        ("One, two, three.", "123", "1 2 3"),
        ("twenty three", "23", "2 3"),
        ("twenty-three", "Twenty Three.", "2 3"),
        ("oh one two", "012", "0 1 2"),
        ("double oh seven", "007", "0 0 7"),
        ("zero", "0", "0"),
        ("one", "1", "1"),
        ("twenty dollars", "$20", "$2 0"),
        ("three point one four", "3.14", "3 .1 4"),
        ("ten oh five", "10:05", "1 0 0 5"),
        ("nineteen eighty four", "1984", "1 9 8 4"),
        ("colour of the centre", "Color of the center!", "color of the center"),
        ("I can't, um, go", "i can not go", "i can not go"),
    ],
)
def test_english_texts_that_are_the_same_speech_compare_equal(left: str, right: str, normalised: str) -> None:
    assert normalise(left, "en") == normalised
    assert normalise(right, "en") == normalised


@given(st.lists(st.integers(0, 9), min_size=1, max_size=10))
def test_one_wrong_digit_is_one_wrong_word(digits: list[int]) -> None:
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    spoken = normalise(" ".join(names[digit] for digit in digits), "en")
    assert spoken == " ".join(map(str, digits))
    heard = [names[(digit + (place == 0)) % 10] for place, digit in enumerate(digits)]
    counts = word_errors(spoken, normalise(" ".join(heard), "en"))
    assert (counts.errors, counts.units) == (1, len(digits))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8))
def test_digits_compare_equal_written_together_or_apart(digits: list[int]) -> None:
    together, apart = "".join(map(str, digits)), " ".join(map(str, digits))
    assert normalise(together, "en") == normalise(apart, "en") == apart


@given(st.integers(0, 999))
def test_numbers_said_as_numbers_equal_their_figures(number: int) -> None:
    assert normalise(num2words(number), "en") == normalise(str(number), "en")


@pytest.mark.parametrize(
    "sentence",
    ["Hello, world!", "I'd have gone; wouldn't you?", "Mr. Smith's [laughs] dog (a poodle) barked.", "Café — naïve…"],
)
def test_english_without_numbers_is_as_transformers_has_it(sentence: str) -> None:
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    assert normalise(sentence, "en") == EnglishTextNormalizer({})(sentence).strip()


@pytest.mark.parametrize(
    ("given_text", "language", "normalised"),
    [
        ("Tiếng Việt, rất ĐẸP!", "vi", "tiếng việt rất đẹp"),
        ("Straße, Füße.", "de", "straße füße"),
        ("हिन्दी में, ठीक।", "hi", "हिन्दी में ठीक"),
        ("你好，世界。", "zh", "你 好 世 界"),
        ("ภาษาไทย ก็", "th", "ภ า ษ า ไ ท ย ก็"),
        ("한국어, 좋아요", "ko", "한국어 좋아요"),
        ("Anything - at all", None, "anything at all"),
    ],
)
def test_marks_and_diacritics_stay_where_they_carry_meaning(given_text: str, language: str, normalised: str) -> None:
    assert normalise(given_text, language) == normalised
    assert normalise(unicodedata.normalize("NFD", given_text), language) == normalised


def test_tones_are_told_apart() -> None:
    assert normalise("ma", "vi") != normalise("má", "vi") != normalise("mạ", "vi")


@given(st.text(max_size=40), st.sampled_from(["en", "vi", "zh", None]))
def test_normalising_takes_any_text_and_leaves_single_spaces(anything: str, language: str | None) -> None:
    normalised = normalise(anything, language)
    assert normalised == " ".join(normalised.split())
    assert normalised == normalise(unicodedata.normalize("NFD", anything), language)


@pytest.mark.parametrize("language", ["en", "vi", "zh", "ja", None])
def test_every_language_names_a_documented_normaliser(language: str | None) -> None:
    assert normaliser_version(language) in NORMALISERS


@given(st.text(max_size=60), st.sampled_from(["vi", "zh", "th", None]))
def test_other_languages_are_as_the_library_has_them(anything: str, language: str | None) -> None:
    made = BasicTextNormalizer(preserve_marks=True, split_letters=language in CHARACTER_LANGUAGES)
    assert normalise(anything, language) == " ".join(made(unicodedata.normalize("NFC", anything)).split())


@given(st.text(max_size=60))
def test_without_diacritics_is_as_the_library_has_it(anything: str) -> None:
    made = BasicTextNormalizer(remove_diacritics=True)(unicodedata.normalize("NFC", anything))
    expected = " ".join(unicodedata.normalize("NFC", made).split())
    assert normalise(anything, "vi", {"vi": {"diacritics": "remove"}}) == expected


# Rules that a user changes


@pytest.mark.parametrize(
    ("language", "changed", "given_text", "normalised", "version"),
    [
        ("en", {"numbers": "whole"}, "One two three, 10:05", "123 10 5", "en:whisper-english/1,numbers=whole"),
        (
            "en",
            {"numbers": "as-written"},
            "Colour three, 3!",
            "color three 3",
            "en:whisper-english/1,numbers=as-written",
        ),
        ("en", {"base": "whisper-basic"}, "Colour three, 3!", "colour three 3", "en:whisper-basic/1"),
        ("vi", {"case": "keep"}, "Rất ĐẸP!", "Rất ĐẸP", "vi:whisper-basic/1,case=keep"),
        ("vi", {"diacritics": "remove"}, "Rất ĐẸP!", "rat dep", "vi:whisper-basic/1,diacritics=remove"),
        ("ko", {"diacritics": "remove"}, "한국어, 좋아요", "한국어 좋아요", "ko:whisper-basic/1,diacritics=remove"),
        ("de", {"punctuation": "keep"}, "Ja, gut! [lacht]", "ja, gut!", "de:whisper-basic/1,punctuation=keep"),
        (
            "fr",
            {"diacritics": "remove", "punctuation": "keep"},
            "Ça va, très !",
            "ca va, tres !",
            "fr:whisper-basic/1,punctuation=keep,diacritics=remove",
        ),
        ("vi", {"numbers": "digits"}, "số 123", "số 1 2 3", "vi:whisper-basic/1,numbers=digits"),
        ("th", {"words": "spaces"}, "ภาษา ไทย", "ภาษา ไทย", "th:whisper-basic/1"),
        ("km", {"words": "characters"}, "ខ្មែរ។", "ខ្មែ រ", "km:whisper-basic/1,words=characters"),
        ("en", {"base": "none"}, " Um,  it's 3! ", "Um, it's 3!", "en:none/1"),
        ("zh", {"base": "none"}, "你好， A", "你 好 ， A", "zh:none/1,words=characters"),
        ("vi", {"case": "lower", "base": "whisper-basic"}, "Một", "một", "whisper-basic/1"),
        ("zh", {"words": "characters"}, "你好", "你 好", "whisper-characters/1"),
    ],
)
def test_changed_rules_are_another_version(
    language: str, changed: dict[str, str], given_text: str, normalised: str, version: str
) -> None:
    changes = {language: changed}
    assert normalise(given_text, language, changes) == normalised
    assert normaliser_version(language, changes) == version
    assert version.removeprefix(f"{language}:").partition(",")[0] in NORMALISERS
    assert normalise(given_text, "es", changes) == normalise(given_text, "es")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"english": {}}, "'english' is not a language code; use one such as en"),
        ({"vi": "keep"}, r"'keep', not a table of rules: write \[normaliser.vi\]"),
        ({"vi": {"caes": "keep"}}, "did you mean case"),
        ({"vi": {"case": "upper"}}, "case is 'upper'; set it to lower or keep"),
        ({"vi": {"case": True}}, "case is True; set it to lower or keep"),
        ({"vi": {"base": "whisper"}}, "did you mean"),
        ({"vi": {"numbers": "whole"}}, 'set base = "whisper-english"'),
        ({"en": {"case": "keep"}}, "base whisper-english does not support case = 'keep'; set base = \"whisper-basic\""),
        ({"en": {"base": "none", "diacritics": "remove"}}, "base none does not support diacritics"),
    ],
)
def test_rules_that_cannot_be_are_named(changes: dict[str, dict[str, str]], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        check_changes(changes)


@given(st.text(max_size=40), st.sampled_from(["keep", "lower"]), st.sampled_from(["keep", "remove"]))
def test_changed_rules_take_any_text(anything: str, case: str, other: str) -> None:
    changes = {"vi": {"case": case, "punctuation": other, "diacritics": other, "numbers": "digits"}}
    normalised = normalise(anything, "vi", changes)
    assert normalised == " ".join(normalised.split())
    assert unicodedata.is_normalized("NFC", normalise(anything, "vi", changes)) or other == "keep"
    assert normalised == normalise(unicodedata.normalize("NFD", anything), "vi", changes)


def test_letters_and_written_words_follow_what_a_word_is() -> None:
    assert letters("你 好", "zh") == "你好"
    assert letters("你 好", "zh", {"zh": {"words": "spaces"}}) == "你 好"
    assert as_written("你好 。", "zh") == "你 好 。"
    assert as_written("Oui !", "fr") == "Oui !"


def test_normalising_loads_no_torch() -> None:
    code = (
        "import sys; from voxloop.speech.text import normalise; normalise('a b', 'en'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# Errors


@given(WORDS, WORDS)
def test_word_errors_are_those_of_kaldialign(reference: str, hypothesis: str) -> None:
    counts = word_errors(reference, hypothesis)
    oracle = kaldialign.edit_distance(reference.split(), hypothesis.split())
    assert (counts.errors, counts.units) == (oracle["total"], oracle["ref_len"])
    assert counts.insertions - counts.deletions == len(hypothesis.split()) - len(reference.split())


@given(WORDS, WORDS)
def test_character_errors_are_those_of_kaldialign(reference: str, hypothesis: str) -> None:
    counts = character_errors(reference, hypothesis)
    oracle = kaldialign.edit_distance(reference, hypothesis)
    assert (counts.errors, counts.units) == (oracle["total"], oracle["ref_len"])


@given(st.lists(st.tuples(WORDS, WORDS), max_size=6))
def test_many_texts_are_counted_as_one_by_one(pairs: list[tuple[str, str]]) -> None:
    each = word_errors_each([left for left, _ in pairs], [right for _, right in pairs])
    assert each == [word_errors(left, right) for left, right in pairs]
    assert total(each).errors == sum(counts.errors for counts in each)


def test_what_is_heard_in_an_empty_reference_counts_as_inserted() -> None:
    assert word_errors("", "you you you") == ErrorCounts(insertions=3)
    assert word_errors("", "you you you").rate == 3.0
    assert word_errors("", "").rate == 0.0
    assert total([word_errors("a b", "a b"), word_errors("", "c")]).rate == 0.5


@given(WORDS, WORDS)
def test_an_alignment_holds_both_texts_and_its_errors(reference: str, hypothesis: str) -> None:
    pairs = align(reference, hypothesis)
    assert [p.reference for p in pairs if p.reference is not None] == reference.split()
    assert [p.hypothesis for p in pairs if p.hypothesis is not None] == hypothesis.split()
    assert sum(p.operation != "equal" for p in pairs) == word_errors(reference, hypothesis).errors
    for p in pairs:
        assert (p.operation == "equal") == (p.reference == p.hypothesis)
        assert (p.operation == "insert") == (p.reference is None)
        assert (p.operation == "delete") == (p.hypothesis is None)


def test_differences_are_what_an_evaluation_counts() -> None:
    found = differences("Twenty three, please!", "23 pleas", "en")
    assert [(p.operation, p.reference, p.hypothesis) for p in found.pieces] == [
        ("equal", "2", "2"),
        ("equal", "3", "3"),
        ("substitute", "please", "pleas"),
    ]
    assert (found.words, found.characters) == (
        word_errors("2 3 please", "2 3 pleas"),
        ErrorCounts(deletions=1, units=10),
    )
    assert found.normaliser == "whisper-english/1"
    spelled = differences("Twenty three, please!", "23 please", "en", written=True)
    assert (spelled.words.errors, spelled.words.units, spelled.normaliser) == (3, 3, "as written")
    assert differences("你好。", "你们好", "zh").words == ErrorCounts(insertions=1, units=2)
    assert differences("Ja", "ja", "de", {"de": {"case": "keep"}}).words.errors == 1


# Clean text


@pytest.mark.parametrize(
    ("heard", "language", "cleaned"),
    [
        ("  Hello ,\n world !  ", "en", "Hello, world!"),
        ("about .5 percent", "en", "about .5 percent"),
        ('he said ( loudly ) " no " .', "en", 'he said ( loudly ) " no ".'),
        ("Ça va ?", "fr", "Ça va ?"),
        ("Oui .", "fr", "Oui."),
        ("你好 ，世界", "zh", "你好 ，世界"),
        ("e\u0301te\u0301\x00", "fr", "été"),
        ("", None, ""),
    ],
)
def test_clean_text_mends_spaces_and_nothing_else(heard: str, language: str | None, cleaned: str) -> None:
    assert clean(heard, language) == cleaned


@given(st.text(max_size=40))
def test_cleaning_twice_changes_nothing_more(anything: str) -> None:
    assert clean(clean(anything)) == clean(anything)
