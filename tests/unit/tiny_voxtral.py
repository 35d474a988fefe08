"""A tiny random Voxtral made on the spot, with a tokenizer of single bytes."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    VoxtralConfig,
    VoxtralForConditionalGeneration,
    VoxtralProcessor,
    WhisperFeatureExtractor,
)

SPECIAL = 40  # ranks of special tokens; a byte is its value and this
# Where the published models have them (mistral_common, base.py; transformers, processing_voxtral.py: 24).
NAMED = {
    0: "<unk>",
    1: "<s>",
    2: "</s>",
    3: "[INST]",
    4: "[/INST]",
    5: "[AVAILABLE_TOOLS]",
    6: "[/AVAILABLE_TOOLS]",
    7: "[TOOL_RESULTS]",
    8: "[/TOOL_RESULTS]",
    9: "[TOOL_CALLS]",
    10: "[IMG]",
    11: "<pad>",
    12: "[IMG_BREAK]",
    13: "[IMG_END]",
    14: "[PREFIX]",
    15: "[MIDDLE]",
    16: "[SUFFIX]",
    17: "[SYSTEM_PROMPT]",
    18: "[/SYSTEM_PROMPT]",
    19: "[TOOL_CONTENT]",
    24: "[AUDIO]",
    25: "[BEGIN_AUDIO]",
    34: "[TRANSCRIBE]",
}
PATTERN = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def write_tokenizer(folder: Path) -> Path:
    """Write `tekken.json` (version 7, with the audio tokens that the bundled ones lack); its path."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = [
        {"rank": byte, "token_bytes": base64.b64encode(bytes([byte])).decode(), "token_str": None}
        for byte in range(256)
    ]
    special = [
        {"rank": rank, "token_str": NAMED.get(rank, f"<SPECIAL_{rank}>"), "is_control": True} for rank in range(SPECIAL)
    ]
    spectrogram = {"num_mel_bins": 128, "hop_length": 160, "window_size": 400}
    audio = {"sampling_rate": 16_000, "frame_rate": 12.5, "chunk_length_s": 30, "audio_encoding_config": spectrogram}
    config = {
        "pattern": PATTERN,
        "num_vocab_tokens": 256,
        "default_vocab_size": 256 + SPECIAL,
        "default_num_special_tokens": SPECIAL,
        "version": "v7",
    }
    file = folder / "tekken.json"
    file.write_text(json.dumps({"config": config, "vocab": vocabulary, "special_tokens": special, "audio": audio}))
    return file


def make(folder: Path, *, seed: int = 0, width: int = 32, sharpness: float = 4.0) -> Path:
    """Write a random model; `sharpness` scales its matrices so that greedy paths are not flat."""
    write_tokenizer(folder)
    config = VoxtralConfig(
        audio_config={
            "hidden_size": width,
            "intermediate_size": 4 * width,  # four positions of the encoder are one audio token
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_mel_bins": 128,
            "max_source_positions": 1500,
        },
        text_config={
            "vocab_size": 256 + SPECIAL,
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": width // 2,
            "max_position_embeddings": 1024,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 11,
        },
        audio_token_id=24,
    )
    torch.manual_seed(seed)
    model = VoxtralForConditionalGeneration(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(sharpness)
    model.generation_config.update(bos_token_id=1, eos_token_id=2, pad_token_id=11)
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    VoxtralProcessor(WhisperFeatureExtractor(feature_size=128), tokenizer).save_pretrained(folder)
    return folder
