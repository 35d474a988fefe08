"""The peers of the transcription benchmarks: the model that all sides run, and how faster-whisper is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

RATE = 16_000
THREADS = 2
TOKENS = 20  # that each side writes of a clip of the tiny shape
LONGEST = 100  # tokens that each side may write of the starter's strings; its positions end at 224
TEXT_TOKENS = 50_257  # of Whisper's multilingual vocabulary, before the special tokens
UNHEARD = "theo"  # the speaker that the shipped starter was made without

Sound = np.ndarray[tuple[int], np.dtype[np.float32]]


def tiny_shape(folder: Path) -> Path:
    """Whisper-tiny's shape and vocabulary with random weights; of its tokens only text may be written, without end."""
    import torch
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizer,
    )

    names = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|translate|>", "<|transcribe|>"]
    names += ["<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    vocabulary = {f"t{index}": index for index in range(TEXT_TOKENS)}
    special = {name: TEXT_TOKENS + index for index, name in enumerate(names)}
    tokenizer = WhisperTokenizer(vocab=vocabulary | special, merges=[], pad_token=names[0], unk_token=names[0])
    tokenizer.add_special_tokens({"additional_special_tokens": names[1:]})
    WhisperProcessor(WhisperFeatureExtractor(feature_size=80), tokenizer).save_pretrained(folder)
    end, size = special[names[0]], 51_865
    torch.manual_seed(0)
    shape: dict[str, int] = {f"{half}_layers": 4 for half in ("encoder", "decoder")}
    shape |= {f"{half}_attention_heads": 6 for half in ("encoder", "decoder")}
    shape |= {f"{half}_ffn_dim": 1536 for half in ("encoder", "decoder")}
    ids = {"pad_token_id": end, "bos_token_id": end, "eos_token_id": end, "decoder_start_token_id": special[names[1]]}
    model = WhisperForConditionalGeneration(WhisperConfig(vocab_size=size, d_model=384, **shape, **ids))
    model.generation_config = GenerationConfig(
        **ids,
        is_multilingual=False,  # so that every side's prompt has two tokens
        no_timestamps_token_id=special["<|notimestamps|>"],
        prev_sot_token_id=special["<|startofprev|>"],
        suppress_tokens=list(range(TEXT_TOKENS, size)),
        begin_suppress_tokens=[],
        max_length=448,
        return_timestamps=False,
    )
    model.save_pretrained(folder)
    return folder


def whisper_model(fast: Path) -> Any:
    from faster_whisper import WhisperModel

    return WhisperModel(str(fast), device="cpu", compute_type="int8", cpu_threads=THREADS)


def faster_options(*, forced: bool) -> dict[str, Any]:
    """Greedy, without time stamps and fall-backs, as our side is asked here."""
    options: dict[str, Any] = {
        "language": "en",
        "beam_size": 1,
        "best_of": 1,
        "temperature": 0.0,
        "without_timestamps": True,
        "condition_on_previous_text": False,
        "compression_ratio_threshold": None,
        "log_prob_threshold": None,
        "no_speech_threshold": None,
        "suppress_blank": False,
    }
    if forced:
        # CTranslate2 writes half of max_length, and faster-whisper adds the prompt of 2 to what it is given.
        return options | {
            "max_new_tokens": 2 * TOKENS - 2,
            "suppress_tokens": list(range(TEXT_TOKENS, 51_865)),
        }
    return options | {"max_new_tokens": 2 * LONGEST - 2, "suppress_tokens": []}
