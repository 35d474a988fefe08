"""Words of a text with their times, from those of its tokens; silence at their edges is taken off."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from voxloop.families.contract import Token
from voxloop.families.whisper.features import POSITION_SAMPLES
from voxloop.records import SAMPLE_RATE, Word
from voxloop.speech.text import CHARACTER_LANGUAGES
from voxloop.starter.spelling import byte_symbols

if TYPE_CHECKING:
    from voxloop.families.contract import Waveform

# What is silence at the edge of a word: so far below its loudest 20 ms, or in the lowest part of the clip's own range,
# between its quietest tenth and its loudest twentieth. Chosen on strings of real digits; docs/log.md has the figures.
SILENCE_DB = 35.0
SILENCE_SHARE = 0.2


def words_of(
    tokenizer: Any, tokens: Sequence[int], chances: Sequence[float], times: Sequence[float], language: str | None
) -> tuple[Word, ...]:
    """The words of a text with their times and probabilities, from those of its tokens.

    A word is what stands between spaces, with its marks; in languages that write none, a character. `times` has one
    entry more than there are tokens. A space belongs to no word, so that with a token for every byte a pause does not.
    """
    found = []
    for text, first, last in word_tokens(tokenizer, tokens, language):
        probability = sum(chances[first : last + 1]) / (last + 1 - first)
        found.append(
            Word(
                text=text,
                start=round(times[first], 3),
                end=round(times[last + 1], 3),
                probability=round(probability, 4),
            )
        )
    return tuple(found)


def word_tokens(tokenizer: Any, tokens: Sequence[int], language: str | None) -> list[tuple[str, int, int]]:
    """The words of a text, each with the places of its first and its last token."""
    parts = [spelled(tokenizer, token) for token in tokens]
    ends = np.cumsum([len(part) for part in parts])
    text = b"".join(parts).decode("utf-8", "surrogateescape")  # bytes that are no text keep their place
    found = []
    for start, stop in _spans(text, language):
        first_byte = len(_encoded(text[:start]))
        last_byte = first_byte + len(_encoded(text[start:stop])) - 1
        first, last = (int(np.searchsorted(ends, byte, side="right")) for byte in (first_byte, last_byte))
        found.append((_encoded(text[start:stop]).decode("utf-8", "replace"), first, last))
    return found


def without_silence(words: Sequence[Word], clip: Waveform) -> tuple[Word, ...]:
    """Words that begin and end with sound: attention alone gives a pause to the word before or after it."""
    frames = -(-len(clip) // POSITION_SAMPLES)
    squares = np.square(np.pad(clip, (0, frames * POSITION_SAMPLES - len(clip)))).reshape(frames, POSITION_SAMPLES)
    levels = 10 * np.log10(squares.mean(axis=1) + 1e-10)
    quiet, loud = np.quantile(levels, (0.1, 0.95))
    floor = quiet + SILENCE_SHARE * (loud - quiet)
    found = []
    for word in words:
        first = round(word.start * SAMPLE_RATE) // POSITION_SAMPLES
        inside = levels[first : max(first + 1, -(-round(word.end * SAMPLE_RATE) // POSITION_SAMPLES))]
        if len(inside) > 1:
            heard = np.flatnonzero(inside >= min(inside.max(), max(floor, inside.max() - SILENCE_DB)))
            start, end = ((first + int(place)) * POSITION_SAMPLES / SAMPLE_RATE for place in (heard[0], heard[-1] + 1))
            word = replace(word, start=round(max(start, word.start), 3), end=round(min(end, word.end), 3))
        found.append(word)
    return tuple(found)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


@cache
def _symbols() -> dict[str, int]:
    return {symbol: byte for byte, symbol in enumerate(byte_symbols())}


def tokens_of(tokenizer: Any, tokens: Sequence[int], chances: Sequence[float]) -> tuple[Token, ...]:
    """Tokens of a text with what they spell and their log-probabilities."""
    pairs = zip(tokens, chances, strict=False)
    return tuple(Token(id, spelled(tokenizer, id), round(math.log(max(chance, 1e-30)), 6)) for id, chance in pairs)


def spelled(tokenizer: Any, token: int) -> bytes:
    """What a token spells; nothing for tokens that are no text, such as time stamps."""
    if token in tokenizer.added_tokens_decoder:
        return b""
    symbols = _symbols()
    written = tokenizer.convert_ids_to_tokens(token) or ""
    return bytes(symbols[symbol] for symbol in written if symbol in symbols)


def _spans(text: str, language: str | None) -> Iterator[tuple[int, int]]:
    """Start and end of each word of a text."""
    start: int | None = None
    for place, character in enumerate(text):
        if character.isspace():
            if start is not None:
                yield start, place
            start = None
        elif start is None:
            start = place
        elif language in CHARACTER_LANGUAGES and _begins(text[place - 1], character):
            yield start, place
            start = place
    if start is not None:
        yield start, len(text)


def _begins(before: str, character: str) -> bool:
    """Whether a character begins a word where no spaces are written: marks go with what they stand at."""
    if unicodedata.category(before) in ("Ps", "Pi"):
        return False
    if unicodedata.category(character)[0] == "M" or unicodedata.category(character) in ("Pe", "Pf", "Po", "Pd"):
        return False
    return not (before.isascii() and character.isascii())  # a word or a number in Latin script
