"""The special tokens of a Whisper model: what stands before a text and behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from voxloop.errors import ModelError, nearest

if TYPE_CHECKING:
    from transformers import GenerationConfig, WhisperConfig, WhisperProcessor


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The special tokens of one model: what it is told before the text."""

    start: int
    end: int
    no_timestamps: int
    transcribe: int
    languages: dict[str, int]  # ISO 639-1 code -> token; empty for English-only models
    no_speech: int | None  # None where the tokenizer has no such token

    def prompt(self, language: str | None, task: int | None = None) -> list[int]:
        """The tokens before the text; None: transcribe. Raises ModelError for a language that the model lacks."""
        if not self.languages:
            return [self.start, self.no_timestamps]
        return [self.start, self.language(language or "en"), task or self.transcribe, self.no_timestamps]

    def language(self, code: str) -> int:
        if code not in self.languages:
            raise ModelError(f"the model has no language {code!r}{nearest(code, self.languages)}")
        return self.languages[code]


def vocabulary(config: WhisperConfig, generation: GenerationConfig, processor: WhisperProcessor) -> Vocabulary:
    """The special tokens, from the generation config or, where that is bare, from the tokenizer."""
    tokenizer = processor.tokenizer

    def token(text: str) -> int:
        found: int = tokenizer.convert_tokens_to_ids(text)
        return found

    # 51,865 tokens and more are multilingual vocabularies (openai/whisper, model.py: is_multilingual).
    multilingual = getattr(generation, "is_multilingual", None)
    if multilingual is None:
        multilingual = config.vocab_size >= 51_865
    languages: dict[str, int] = {}
    if multilingual:
        by_token = getattr(generation, "lang_to_id", None) or {
            added: id for added, id in tokenizer.get_added_vocab().items() if 2 <= len(added.strip("<|>")) <= 3
        }
        languages = {added.strip("<|>"): id for added, id in by_token.items()}
    no_timestamps = getattr(generation, "no_timestamps_token_id", None)
    added = tokenizer.get_added_vocab()
    # `<|nocaptions|>` is what the token is called in vocabularies before large-v3.
    no_speech = next((added[name] for name in ("<|nospeech|>", "<|nocaptions|>") if name in added), None)
    return Vocabulary(
        start=config.decoder_start_token_id,
        end=config.eos_token_id,
        no_timestamps=token("<|notimestamps|>") if no_timestamps is None else no_timestamps,
        transcribe=token("<|transcribe|>"),
        languages=languages,
        no_speech=no_speech,
    )
