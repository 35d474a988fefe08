"""Tiny random Whisper models made on the spot, one English-only and one multilingual, with real tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

LANGUAGES = ("en", "vi", "de")


def byte_symbols() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes (openai/gpt-2, src/encoder.py)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    shifted = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(shifted)) for byte in range(256)]


def make(
    folder: Path,
    *,
    multilingual: bool = False,
    seed: int = 0,
    width: int = 32,
    sharpness: float = 8.0,
    vocabulary: int | None = None,
) -> Path:
    """Write a random model; `sharpness` scales its output so that greedy paths are not flat.

    Of a larger `vocabulary` the tokens behind the named ones stand for nothing and are never the likeliest.
    """
    names = ["<|endoftext|>", "<|startoftranscript|>"]
    names += [f"<|{code}|>" for code in LANGUAGES] if multilingual else []
    names += ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    ids = {name: 256 + index for index, name in enumerate(names)}
    symbols = {symbol: index for index, symbol in enumerate(byte_symbols())}
    tokenizer = WhisperTokenizer(vocab=symbols | ids, merges=[], pad_token=names[0], model_max_length=96)
    tokenizer.add_special_tokens({"additional_special_tokens": names[1:]})
    WhisperProcessor(WhisperFeatureExtractor(feature_size=80), tokenizer).save_pretrained(folder)
    end, start = ids[names[0]], ids[names[1]]
    config = WhisperConfig(
        vocab_size=vocabulary or 256 + len(names),
        num_mel_bins=80,
        d_model=width,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=2 * width,
        decoder_ffn_dim=2 * width,
        max_source_positions=1500,
        max_target_positions=96,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=start,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    torch.manual_seed(seed)
    model = WhisperForConditionalGeneration(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(sharpness)
        model.model.decoder.embed_tokens.weight[256 + len(names) :] = 0.0
    settings: dict[str, Any] = {
        "is_multilingual": multilingual,
        "decoder_start_token_id": start,
        "no_timestamps_token_id": ids["<|notimestamps|>"],
        "prev_sot_token_id": ids["<|startofprev|>"],
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "suppress_tokens": [ids["<|startoftranscript|>"], ids["<|startofprev|>"]],
        "begin_suppress_tokens": [end],
        "max_length": 96,
        "return_timestamps": False,
        "max_initial_timestamp_index": 50,
    }
    if multilingual:
        settings["lang_to_id"] = {f"<|{code}|>": ids[f"<|{code}|>"] for code in LANGUAGES}
        settings["task_to_id"] = {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")}
    model.generation_config = GenerationConfig(**settings)
    model.save_pretrained(folder)
    return folder
