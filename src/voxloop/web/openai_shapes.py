"""Parts of OpenAI's answers about audio, made of what was heard."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from voxloop.families.decoding import compression
from voxloop.speech.languages import language_name

if TYPE_CHECKING:
    from voxloop.records import Word
    from voxloop.web.openai_audio import Said

POSITIONS_PER_S = 50  # of Whisper's encoder: what a second of audio counts as in usage


def verbose(number: int, one: Said) -> dict[str, Any]:
    """A segment of `verbose_json`."""
    segment = one.segment
    return {
        "id": number,
        "seek": int(segment.start * 100),
        "start": round(segment.start, 3),
        "end": round(segment.end, 3),
        "text": segment.text,
        "tokens": [token.id for token in one.tokens],
        "temperature": segment.temperature,
        "avg_logprob": segment.mean_logprob if segment.mean_logprob is not None else 0.0,
        "compression_ratio": round(compression(segment.text), 3),
        "no_speech_prob": segment.no_speech if segment.no_speech is not None else 0.0,
    }


def diarized(number: int, one: Said) -> dict[str, Any]:
    """A segment of `diarized_json`, which is an event of its stream as well."""
    return {
        "type": "transcript.text.segment",
        "id": f"seg_{number:03}",
        "speaker": one.speaker or "A",
        "start": round(one.segment.start, 3),
        "end": round(one.segment.end, 3),
        "text": one.segment.text,
    }


def logprobs(said: Sequence[Said]) -> list[dict[str, Any]]:
    """Log-probabilities, token by token."""
    return [
        {"token": token.text.decode(errors="replace"), "bytes": list(token.text), "logprob": token.logprob}
        for one in said
        for token in one.tokens
    ]


def word_logprobs(words: Sequence[Word]) -> list[dict[str, Any]]:
    """Log-probabilities, word by word: each is the mean of its tokens' probabilities."""
    return [
        {"token": one.text, "bytes": list(one.text.encode()), "logprob": round(math.log(max(one.probability, 1e-9)), 6)}
        for one in words
    ]


def token_usage(duration: float, said: Sequence[Said]) -> dict[str, Any]:
    """Usage of a stream: positions of the encoder, and tokens written."""
    heard, written = math.ceil(POSITIONS_PER_S * duration), sum(len(one.tokens) for one in said)
    return {
        "type": "tokens",
        "input_tokens": heard,
        "output_tokens": written,
        "total_tokens": heard + written,
        "input_token_details": {"audio_tokens": heard, "text_tokens": 0},
    }


def languages(said: Sequence[Said]) -> list[dict[str, str]]:
    """The languages that were spoken, in the order in which they came."""
    found = dict.fromkeys(one.segment.language for one in said if one.segment.language)
    return [{"code": code} for code in found if code]


def named_language(said: Sequence[Said]) -> str:
    """The first language that was spoken by its English name, as `verbose_json` has it."""
    codes = languages(said)
    return language_name(codes[0]["code"]).lower() if codes else ""
