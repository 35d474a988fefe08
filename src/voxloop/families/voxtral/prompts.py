"""The prompt of Voxtral: the transcription request of its own processor.

    <s>[INST][BEGIN_AUDIO][AUDIO] x 375[/INST]lang:en[TRANSCRIBE]

If the language is unknown, `lang:en` is left out, and the model recognises it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxloop.errors import ModelError, first_line, install_command
from voxloop.records import MAX_UTTERANCE_S, SAMPLE_RATE

if TYPE_CHECKING:
    import torch

    from voxloop.families.contract import Waveform

AUDIO_TOKENS_PER_S = 12.5
AUDIO_TOKENS = round(MAX_UTTERANCE_S * AUDIO_TOKENS_PER_S)  # 375: every clip is padded to 30 s
AROUND_AUDIO = 5  # <s>, [INST], [BEGIN_AUDIO] before it; [/INST], [TRANSCRIBE] behind
MODEL_ID = "voxtral"  # the request has a place for it, and nothing is made of it


def request(processor: Any, waveforms: Sequence[Waveform], languages: Sequence[str | None]) -> dict[str, torch.Tensor]:
    """The prompts (B, U), padded on the left, their attention_mask (B, U), and input_features (B, F, 3000).

    Raises ModelError for a language that is none.
    """
    try:
        made = processor.apply_transcription_request(
            audio=list(waveforms),
            model_id=MODEL_ID,
            language=list(languages),
            sampling_rate=SAMPLE_RATE,
            format=["WAV"] * len(waveforms),
        )
    except ValueError as error:  # pydantic's among them
        raise ModelError(
            f"Voxtral does not accept the language {', '.join(sorted({str(code) for code in languages}))} "
            f"({first_line(error)}): use an ISO 639-1 code such as en, or none"
        ) from error
    return dict(made)


def prompt_length(processor: Any, language: str | None) -> int:
    """Tokens of a prompt, the audio's included."""
    return AUDIO_TOKENS + AROUND_AUDIO + (len(tokens(processor.tokenizer, f"lang:{language}")) if language else 0)


def tokens(tokenizer: Any, text: str) -> list[int]:
    """Tokens of a text alone."""
    found: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return found


def check_processor(name: str | Path, processor: Any) -> None:
    """Raises ModelError where the processor cannot make transcription requests."""
    from transformers.utils import is_mistral_common_available

    if not is_mistral_common_available():
        raise ModelError(f"Voxtral's tokenizer is not installed: install it with `{install_command('voxtral')}`")
    if not hasattr(getattr(processor, "tokenizer", None), "tokenizer"):
        raise ModelError(
            f"{name} has the wrong kind of tokenizer ({type(processor.tokenizer).__name__}): "
            "copy tekken.json and config.json from the model it was trained from"
        )
