"""The starter's tokenizer, its network, and the length-aware forward pass it is trained and measured with.

Shapes: B batch, F mel bands, T mel frames, E = T / 2 encoder positions, L tokens, D width.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from voxloop.starter.spelling import byte_symbols

END: Final = 256
START: Final = 257
PREVIOUS: Final = 261
NO_TIMESTAMPS: Final = 263
SPECIAL: Final = (
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
)
"""Ids 256 to 263, in the order of Whisper's own English vocabulary. There are no time stamps and no languages."""

MAX_TOKENS: Final = 224  # target positions: at most 220 characters


def save_processor(folder: Path) -> None:
    """Write the tokenizer (bytes, no merges: any language's text can be written) and the feature extractor."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {symbol: index for index, symbol in enumerate(byte_symbols())}
    vocabulary |= {token: 256 + index for index, token in enumerate(SPECIAL)}
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[], pad_token=SPECIAL[0], model_max_length=MAX_TOKENS)
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL[1:])})
    WhisperProcessor(WhisperFeatureExtractor(feature_size=80), tokenizer).save_pretrained(folder)
    # Older readers of Whisper vocabularies look for these two.
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")


def new_model(*, width: int, heads: int, encoder_layers: int, decoder_layers: int, dropout: float) -> Any:
    """A freshly initialised WhisperForConditionalGeneration that behaves like an English-only Whisper."""
    config = WhisperConfig(
        vocab_size=256 + len(SPECIAL),
        num_mel_bins=80,
        d_model=width,
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        max_source_positions=1_500,
        max_target_positions=MAX_TOKENS,
        dropout=dropout,
        pad_token_id=END,
        bos_token_id=END,
        eos_token_id=END,
        decoder_start_token_id=START,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    # How it is trained and is to be fed: clips at their own length plus a margin (families/whisper/network.py).
    config.voxloop_audio_context = "trimmed"
    model = WhisperForConditionalGeneration(config)
    _initialise(model, layers=encoder_layers + decoder_layers)
    model.generation_config = GenerationConfig(
        is_multilingual=False,
        decoder_start_token_id=START,
        no_timestamps_token_id=NO_TIMESTAMPS,
        prev_sot_token_id=PREVIOUS,
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=END,
        suppress_tokens=[],
        begin_suppress_tokens=[],
        max_length=MAX_TOKENS,
        return_timestamps=False,
        max_initial_timestamp_index=50,
    )
    mask_cross_attention(model)
    return model


def load_model(folder: Path) -> Any:
    """A saved starter, in float32, with its cross-attention masked."""
    model = WhisperForConditionalGeneration.from_pretrained(folder)
    mask_cross_attention(model)
    return model


@torch.no_grad()
def _initialise(model: Any, *, layers: int) -> None:
    """Random weights scaled by fan-in.

    Whisper's configured spread of 0.02 suits widths of 384 and more: at a tenth of that size the sound reaches the
    encoder thirty times weaker than the position code, and CTC sits on its plateau for thousands of steps.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv1d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.Linear) and not name.endswith("proj_out"):
            spread = module.in_features**-0.5
            # What is added to the residual stream starts small (GPT-2's rule).
            ends_branch = name.endswith(("out_proj", "fc2"))
            nn.init.normal_(module.weight, std=spread / (2 * layers) ** 0.5 if ends_branch else spread)
    nn.init.normal_(model.model.decoder.embed_tokens.weight, std=0.05)


def mask_cross_attention(model: Any) -> None:
    """Let the decoder ignore the padding behind each clip: `model.clip_mask` (B, 1, 1, E), set by `encode`.

    transformers passes no such mask to Whisper's decoder layers.
    """
    model.clip_mask = None

    def insert(_: nn.Module, args: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, named | {"encoder_attention_mask": model.clip_mask}

    for layer in model.model.decoder.layers:
        layer.register_forward_pre_hook(insert, with_kwargs=True)


def encode(model: Any, features: Tensor, frames: Tensor) -> Tensor:
    """Encoder states (B, E, D) of features (B, F, T) of any length, the padding behind each clip masked."""
    encoder = model.model.encoder
    state = functional.gelu(encoder.conv1(features))
    state = functional.gelu(encoder.conv2(state)).permute(0, 2, 1)
    length = state.shape[1]
    state = state + encoder.embed_positions.weight[:length]
    state = functional.dropout(state, p=encoder.dropout, training=encoder.training)
    inside = torch.arange(length, device=state.device)[None] < ((frames + 1) // 2)[:, None].to(state.device)
    model.clip_mask = None if bool(inside.all()) else inside[:, None, None, :]
    for layer in encoder.layers:
        state = layer(state, model.clip_mask)
    return encoder.layer_norm(state)  # type: ignore[no-any-return]


def decode(model: Any, state: Tensor, tokens: Tensor) -> Tensor:
    """Logits (B, L, V) for the tokens (B, L) that follow each position; `encode` comes first."""
    hidden = model.model.decoder(input_ids=tokens, encoder_hidden_states=state, use_cache=False).last_hidden_state
    return model.proj_out(hidden)  # type: ignore[no-any-return]


def token_batch(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Decoder inputs and labels, both (B, L); -100 marks positions outside the loss."""
    # The token of a byte is the byte.
    rows = [[START, NO_TIMESTAMPS, *text.encode()][: MAX_TOKENS - 1] for text in texts]
    longest = max(len(row) for row in rows)
    inputs = torch.full((len(rows), longest), END)
    labels = torch.full((len(rows), longest), -100)
    for index, row in enumerate(rows):
        inputs[index, : len(row)] = torch.tensor(row)
        labels[index, : len(row)] = torch.tensor([*row[1:], END])
    return inputs, labels


@torch.inference_mode()
def greedy(model: Any, features: Tensor, frames: Tensor, *, longest: int = 160) -> list[str]:
    """Greedy transcripts of a batch of trimmed clips."""
    state = encode(model, features, frames)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    tokens = torch.tensor([[START, NO_TIMESTAMPS]], device=state.device).expand(len(features), 2)
    done = torch.zeros(len(features), dtype=torch.bool, device=state.device)
    written = []
    for _ in range(longest):
        output = model.model.decoder(
            input_ids=tokens, encoder_hidden_states=state, past_key_values=cache, use_cache=True
        )
        best = model.proj_out(output.last_hidden_state[:, -1]).argmax(dim=-1).masked_fill(done, END)
        done |= best >= END
        if bool(done.all()):
            break
        written.append(best)
        tokens = best[:, None]
    if not written:
        return [""] * len(features)
    rows = torch.stack(written, dim=1).tolist()
    return [bytes(token for token in row if token < END).decode(errors="replace").strip() for row in rows]
