"""The cost of a Whisper model from its shape alone: weights, multiplications, training memory.

Letters: `D` width, `E` encoder positions (1,500 in 30 s), `F` mel channels, `V` vocabulary.
"""

from __future__ import annotations

import json
from pathlib import Path

from voxloop.errors import ModelError, first_line
from voxloop.families.contract import Cost
from voxloop.families.whisper import ctranslate_folder
from voxloop.families.whisper.features import FULL_FRAMES

POSITIONS = FULL_FRAMES // 2
KEPT = 24  # floats that training keeps for each position and layer, by D: inputs of projections, norms and the GELU


def cost(folder: str | Path) -> Cost:
    """The cost of a model folder in transformers' form or CTranslate2's. Raises ModelError."""
    if ctranslate_folder.recognised(folder):
        shapes = ctranslate_folder.shapes(folder)
        vocabulary, width = shapes["model.decoder.embed_tokens.weight"]
        return _of(
            width=width,
            encoder_layers=_layers(shapes, "encoder"),
            decoder_layers=_layers(shapes, "decoder"),
            encoder_ffn=shapes["model.encoder.layers.0.fc1.weight"][0],
            decoder_ffn=shapes["model.decoder.layers.0.fc1.weight"][0],
            vocabulary=vocabulary,
            mels=shapes["model.encoder.conv1.weight"][1],
            texts=shapes["model.decoder.embed_positions.weight"][0],
        )
    try:
        told = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
        return _of(
            width=told["d_model"],
            encoder_layers=told["encoder_layers"],
            decoder_layers=told["decoder_layers"],
            encoder_ffn=told["encoder_ffn_dim"],
            decoder_ffn=told["decoder_ffn_dim"],
            vocabulary=told["vocab_size"],
            mels=told.get("num_mel_bins", 80),
            texts=told.get("max_target_positions", 448),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder} has no readable config.json of a Whisper model: {first_line(error)}") from error


def _layers(shapes: dict[str, tuple[int, ...]], half: str) -> int:
    return sum(name.startswith(f"model.{half}.layers.") and name.endswith(".fc1.weight") for name in shapes)


def _of(
    *,
    width: int,
    encoder_layers: int,
    decoder_layers: int,
    encoder_ffn: int,
    decoder_ffn: int,
    vocabulary: int,
    mels: int,
    texts: int,
) -> Cost:
    norm = 2 * width
    attention = 4 * width * width + 3 * width  # keys have no bias
    encoder_block = attention + 2 * width * encoder_ffn + width + encoder_ffn + 2 * norm
    decoder_block = 2 * attention + 2 * width * decoder_ffn + width + decoder_ffn + 3 * norm
    convolutions = 3 * width * (mels + width) + 2 * width
    encoder = encoder_layers * encoder_block + convolutions + POSITIONS * width + norm
    decoder = decoder_layers * decoder_block + vocabulary * width + texts * width + norm
    per_position = encoder_layers * (encoder_block + 2 * POSITIONS * width) + 2 * mels * 3 * width + 3 * width * width
    across = decoder_layers * 2 * width * width  # keys and values of the states, once for all tokens
    return Cost(
        parameters=encoder + decoder,
        multilingual=vocabulary >= ctranslate_folder.MULTILINGUAL,
        window_operations=2 * POSITIONS * (per_position + across),
        token_weights=decoder - texts * width - across,
        token_states=2 * POSITIONS * width * decoder_layers,
        window_floats=POSITIONS * width * (KEPT * encoder_layers + 2 * decoder_layers + 8),
    )
