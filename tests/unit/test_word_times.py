"""Where a model says words lie in time, beside where they do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxloop.records import Word
from voxloop.steps.evaluation import Scored, scores_of
from voxloop.steps.evaluation.word_times import word_times


def words(*placed: tuple[str, float, float]) -> list[Word]:
    return [Word(text=text, start=start, end=end, probability=1.0) for text, start, end in placed]


def test_only_words_heard_right_are_compared() -> None:
    spoken = words(("The", 0.0, 0.2), ("cat", 0.2, 0.6), ("sat.", 0.7, 1.0))
    heard = words(("the", 0.1, 0.2), ("bat", 0.2, 0.6), ("sat", 0.7, 1.5), ("up", 1.5, 1.6))
    found = word_times(spoken, heard, "en")
    assert found["timed_words"] == 2
    assert found["start_error_s"] == pytest.approx(0.1)
    assert found["end_error_s"] == pytest.approx(0.5)
    assert found["words_in_time"] == 1


def test_a_number_is_one_word_however_it_is_written() -> None:
    found = word_times(words(("twenty-three", 0.0, 0.8)), words(("23", 0.05, 0.8)), "en")
    assert (found["timed_words"], found["words_in_time"]) == (1, 1)
    parted = word_times(words(("twenty-three", 0.0, 0.8)), words(("2", 0.0, 0.4), ("3", 0.4, 0.8)), "en")
    assert parted["timed_words"] == 0  # met by two words, whose times are not its own


@pytest.mark.parametrize(("spoken", "heard"), [([], []), ([], [("a", 0, 1)]), ([("a", 0, 1)], [])])
def test_without_times_on_both_sides_nothing_is_compared(spoken: list, heard: list) -> None:
    assert word_times(words(*spoken), words(*heard), None)["timed_words"] == 0


@given(st.lists(st.sampled_from(["red", "green", "blue"]), min_size=1, max_size=8), st.floats(-0.5, 0.5))
def test_words_moved_together_are_off_by_as_much(texts: list[str], moved: float) -> None:
    spoken = words(*((text, float(n), n + 0.5) for n, text in enumerate(texts)))
    heard = words(*((text, n + moved, n + 0.5 + moved) for n, text in enumerate(texts)))
    found = word_times(spoken, heard, "en")
    assert found["timed_words"] == len(texts)
    assert found["start_error_s"] / len(texts) == pytest.approx(abs(moved))
    assert found["words_in_time"] == (len(texts) if abs(moved) < 0.2 else 0) or abs(abs(moved) - 0.2) < 1e-9


def test_the_score_is_a_mean_over_words() -> None:
    row = Scored(
        utterance="u", recording="r", speaker=None, language="en", duration=1.0, reference="a b", hypothesis="a b",
        confidence=None, words=2, errors=0, substitutions=0, deletions=0, insertions=0, characters=3,
        character_errors=0, orthographic_words=2, orthographic_errors=0, timed_words=2, start_error_s=0.2,
        end_error_s=0.4, words_in_time=1,
    )  # fmt: skip
    assert scores_of([row, row])["word_times"] == {
        "words": 4, "start_error_s": pytest.approx(0.1), "end_error_s": pytest.approx(0.2), "in_time": 0.5,
    }  # fmt: skip
