"""whisper.cpp's model file (`ggml-model.bin`), written from a saved Whisper folder.

The layout is that of ggml-org/whisper.cpp, models/convert-h5-to-ggml.py and src/whisper.cpp, `whisper_model_load`;
all numbers are little-endian:

    u32 magic, 11 × i32 shape,
    i32 F, i32 201, F × 201 × f32 mel filters,
    i32 count, count × (i32 length, bytes) text tokens,
    to the file's end: i32 rank, i32 length of name, i32 type, rank × i32 dimension (the last one first), name, data

whisper.cpp knows special tokens by their places in OpenAI's vocabularies, not by their names. A smaller vocabulary is
spread out to those places; what lies between is never written (`vocabulary.never_written`).

Letters in shapes: `F` mel channels, `D` width, `V` vocabulary.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from voxloop.errors import ModelError
from voxloop.families.whisper.features import mel_filters
from voxloop.families.whisper.portable import NO_TIME_STAMPS, never_written, special_tokens
from voxloop.starter.spelling import byte_symbols

if TYPE_CHECKING:
    import torch

MAGIC = 0x67676D6C  # "ggml"
F32, F16 = 0, 1
FILE = "ggml-model.bin"
# src/whisper.cpp, `whisper_vocab`: where an English-only vocabulary has its special tokens. A multilingual one has
# them one place later and its languages in between, which a real one brings along.
ENGLISH_SIZE = 51_864
ENGLISH = {
    "<|endoftext|>": 50_256,
    "<|startoftranscript|>": 50_257,
    "<|translate|>": 50_357,
    "<|transcribe|>": 50_358,
    "<|startoflm|>": 50_359,
    "<|startofprev|>": 50_360,
    "<|nospeech|>": 50_361,
    "<|nocaptions|>": 50_361,
    NO_TIME_STAMPS: 50_362,
}
TIME_STAMPS = 50_363  # of the first of 1,501

_PARTS = {
    "self_attn.q_proj": "attn.query",
    "self_attn.k_proj": "attn.key",
    "self_attn.v_proj": "attn.value",
    "self_attn.out_proj": "attn.out",
    "self_attn_layer_norm": "attn_ln",
    "encoder_attn.q_proj": "cross_attn.query",
    "encoder_attn.k_proj": "cross_attn.key",
    "encoder_attn.v_proj": "cross_attn.value",
    "encoder_attn.out_proj": "cross_attn.out",
    "encoder_attn_layer_norm": "cross_attn_ln",
    "final_layer_norm": "mlp_ln",
    "fc1": "mlp.0",
    "fc2": "mlp.2",
}
_OUTSIDE = {
    "encoder.layer_norm.weight": "encoder.ln_post.weight",
    "encoder.layer_norm.bias": "encoder.ln_post.bias",
    "encoder.embed_positions.weight": "encoder.positional_embedding",
    "decoder.layer_norm.weight": "decoder.ln.weight",
    "decoder.layer_norm.bias": "decoder.ln.bias",
    "decoder.embed_positions.weight": "decoder.positional_embedding",
    "decoder.embed_tokens.weight": "decoder.token_embedding.weight",
}
_POSITIONS = ("encoder.positional_embedding", "decoder.positional_embedding")  # kept in float32, as OpenAI's are


def write(folder: Path, file: Path) -> None:
    """Write a saved Whisper folder as whisper.cpp's model file, matrices in float16.

    The folder's vocabulary must have time stamp tokens (`portable.complete`). Raises ModelError for a vocabulary
    that whisper.cpp has no form for, OSError where the file cannot be written.
    """
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    model = WhisperForConditionalGeneration.from_pretrained(folder, use_safetensors=True)
    processor = WhisperProcessor.from_pretrained(folder)
    config, tokenizer = model.config, processor.tokenizer
    embedding = model.model.decoder.embed_tokens.weight.detach().float()
    places = _places(tokenizer, config.vocab_size)
    size = config.vocab_size
    if places is not None:
        size = ENGLISH_SIZE
        spread = never_written(model.model.decoder.layer_norm).repeat(size, 1)
        for place, token in places.items():
            spread[place] = embedding[token]
        embedding = spread
    with file.open("wb") as out:
        out.write(
            struct.pack(
                "<I11i",
                *(MAGIC, size, config.max_source_positions, config.d_model, config.encoder_attention_heads),
                *(config.encoder_layers, config.max_target_positions, config.d_model, config.decoder_attention_heads),
                *(config.decoder_layers, config.num_mel_bins, F16),
            )
        )
        filters = mel_filters(processor).numpy().astype("<f4")
        out.write(struct.pack("<2i", *filters.shape))
        out.write(filters.tobytes())
        _write_vocabulary(out, tokenizer, until=ENGLISH["<|endoftext|>"] if places else None)
        for name, tensor in model.state_dict().items():
            if name != "proj_out.weight":  # the embedding once more
                mine = _name(name.removeprefix("model."))
                _write_tensor(out, mine, embedding if mine == "decoder.token_embedding.weight" else tensor)


def _places(tokenizer: Any, size: int) -> dict[int, int] | None:
    """Where whisper.cpp looks for each token: its place there -> its id here; None: everything is in its place.

    Raises ModelError where there is no such place.
    """
    special = special_tokens(tokenizer)
    end = special["<|endoftext|>"]
    if size >= ENGLISH_SIZE and end in (ENGLISH["<|endoftext|>"], ENGLISH["<|endoftext|>"] + 1):
        return None
    if end > ENGLISH["<|endoftext|>"]:
        raise ModelError(
            f"the vocabulary has {end:,} text tokens, and whisper.cpp takes at most {ENGLISH['<|endoftext|>']:,}: "
            "export it for transformers or CTranslate2"
        )
    places = {token: token for token in range(end)}
    places |= {ENGLISH[name]: token for name, token in special.items() if name in ENGLISH}
    first = special[NO_TIME_STAMPS] + 1
    return places | {TIME_STAMPS + index: first + index for index in range(ENGLISH_SIZE - TIME_STAMPS)}


def _write_vocabulary(out: IO[bytes], tokenizer: Any, until: int | None) -> None:
    """Write the text tokens as the bytes they stand for, those that there are not up to `until` as no bytes.

    whisper.cpp names the special tokens itself.
    """
    bytes_of = {symbol: value for value, symbol in enumerate(byte_symbols())}
    end = special_tokens(tokenizer)["<|endoftext|>"]
    out.write(struct.pack("<i", until or end))
    for text in tokenizer.convert_ids_to_tokens(list(range(end))):
        spelled = bytes(bytes_of[symbol] for symbol in text)
        out.write(struct.pack("<i", len(spelled)) + spelled)
    out.write(struct.pack("<i", 0) * ((until or end) - end))


def _name(name: str) -> str:
    """whisper.cpp's name of a weight, of transformers' without `model.`."""
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    half, _, rest = name.partition(".layers.")
    if not rest:
        return name
    layer, _, inner = rest.partition(".")
    part, _, kind = inner.rpartition(".")
    return f"{half}.blocks.{layer}.{_PARTS[part]}.{kind}"


def _write_tensor(out: IO[bytes], name: str, tensor: torch.Tensor) -> None:
    values = tensor.detach().float().numpy()
    if name in ("encoder.conv1.bias", "encoder.conv2.bias"):
        values = values.reshape(-1, 1)  # added to (D, T)
    half = values.ndim > 1 and name not in _POSITIONS and not name.endswith(".bias")
    spelled = name.encode()
    out.write(struct.pack("<3i", values.ndim, len(spelled), F16 if half else F32))
    out.write(struct.pack(f"<{values.ndim}i", *reversed(values.shape)))
    out.write(spelled)
    out.write(np.ascontiguousarray(values, dtype="<f2" if half else "<f4").tobytes())
