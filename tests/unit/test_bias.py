"""Biased decoding, on a model that is a table: what it writes next depends on the last token alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from voxloop.families.whisper.bias import Preference, Reading, log_softmax, trie

WORDS = (b"<end>", b" the", b" big", b" new", b" z", b"big", b"niew", b" sleeps", b" ann", b"a", b".")
END, THE, BIG, NEW, Z, BIGNIEW, NIEW, SLEEPS, ANN, A, DOT = range(len(WORDS))
START = len(WORDS)  # the row of what is written first

# Logits by the token before: "the big new sleeps." is likeliest; "z", "big", "niew" is 3 + 0 + 0 behind.
LOGITS = np.full((len(WORDS) + 1, len(WORDS)), -20.0, dtype=np.float32)
for before, likely in {
    START: {THE: 0},
    THE: {BIG: 0, Z: -3, ANN: -4},
    BIG: {NEW: 0},
    NEW: {SLEEPS: 0},
    Z: {BIGNIEW: 0},
    BIGNIEW: {NIEW: 0},
    NIEW: {SLEEPS: 0},
    ANN: {A: 0},
    A: {SLEEPS: 0},
    SLEEPS: {DOT: 0},
    DOT: {END: 0},
    END: {END: 0},
}.items():
    for token, logit in likely.items():
        LOGITS[before, token] = logit
LOGPROBS = log_softmax(LOGITS)
ZBIGNIEW = [Z, BIGNIEW, NIEW]


class Model:
    """Reads as an engine does, and counts what it reads."""

    def __init__(self) -> None:
        self.read_texts = 0

    def __call__(self, rows: Sequence[int], texts: Sequence[list[int]], more: Sequence[int]) -> list[Reading]:
        self.read_texts += len(texts)
        found = []
        for text, further in zip(texts, more, strict=True):
            tokens = list(text)
            while len(tokens) < len(text) + further and tokens[-1:] != [END]:
                tokens.append(int(LOGPROBS[tokens[-1] if tokens else START].argmax()))
            places = np.stack([LOGPROBS[token] for token in [START, *tokens[:-1]]])
            found.append(Reading(tokens, places[len(text) :] if further == 1 else places))
        return found


def preferred(*terms: list[int], bonus: float, limit: float = 8.0, room: int = 12, spaced: bool = True) -> str:
    model = Model()
    (plain,) = model([0], [[]], [12])
    chooser = Preference(trie(terms, bonus, limit), END, WORDS.__getitem__, spaced=spaced)
    (found,) = chooser.prefer([plain], [room], model)
    return b"".join(WORDS[token] for token in (found or plain).tokens[:-1]).decode().strip()


@pytest.mark.parametrize(
    ("bonus", "limit", "heard"),
    [(0.9, 8.0, "the big new sleeps."), (1.1, 8.0, "the zbigniew sleeps."), (1.1, 2.5, "the big new sleeps.")],
)
def test_a_term_is_written_where_its_bonus_outweighs_what_it_is_behind(bonus: float, limit: float, heard: str) -> None:
    assert preferred(ZBIGNIEW, bonus=bonus, limit=limit) == heard


def test_the_beginning_of_a_term_earns_nothing() -> None:
    # " ann" would be 4 behind and win by its bonus, but the word goes on: it is another one.
    assert preferred([ANN], bonus=5.0) == "the big new sleeps."
    assert preferred([ANN, A], bonus=2.5) == "the anna sleeps."
    # Where no spaces are written, words end anywhere.
    assert preferred([ANN], bonus=5.0, spaced=False) == "the anna sleeps."


def test_of_several_terms_the_likeliest_is_written_and_one_that_stands_already_stays() -> None:
    assert preferred(ZBIGNIEW, [ANN, A], bonus=2.5) == "the zbigniew sleeps."
    assert preferred(ZBIGNIEW, [BIG, NEW], bonus=2.0) == "the big new sleeps."  # 6 - 3 is less than 4 - 0


def test_no_text_grows_beyond_its_limit() -> None:
    assert preferred(ZBIGNIEW, bonus=2.0, room=3) == "the big new sleeps."


def test_what_is_out_of_reach_is_not_read() -> None:
    model = Model()
    (plain,) = model([0], [[]], [12])
    before = model.read_texts
    chooser = Preference(trie([ZBIGNIEW], 0.2, 8.0), END, WORDS.__getitem__, spaced=True)
    assert chooser.prefer([plain], [12], model) == [None]
    assert model.read_texts == before


def test_the_worth_of_a_text_is_its_log_probability_and_the_bonuses_in_it() -> None:
    chooser = Preference(trie([ZBIGNIEW], 1.5, 4.0), END, WORDS.__getitem__, spaced=True)
    (reading,) = Model()([0], [[THE, *ZBIGNIEW, SLEEPS, DOT, END]], [0])
    assert chooser.worth(reading) == pytest.approx(LOGPROBS[THE, Z] + LOGPROBS[THE, BIG] * 0 + 4.0, abs=1e-3)
