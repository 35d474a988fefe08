"""The Whisper network at any length, and how it is loaded.

In transformers 5 the encoder refuses everything but 3,000 frames and the decoder
passes no mask to its cross-attention. The classes here take both, as ordinary
arguments; without a mask, at 3,000 frames, they compute what the stock ones do.

Letters in shapes: `B` batch, `F` mel channels, `T` mel frames, `E` encoder positions (T / 2), `U` label tokens.
"""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput
from transformers.models.whisper.modeling_whisper import WhisperDecoderLayer, WhisperEncoder, WhisperModel

from voxloop.families.folders import open_folder
from voxloop.families.whisper import ctranslate_folder
from voxloop.families.whisper.output import cross_entropy

NO_LABEL = -100  # what labels are padded with


def position_mask(attention_mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask of mel frames (B, T) as an additive mask (B, 1, 1, E) of encoder positions.

    Position e is computed from frames 2e - 1 to 2e + 1 (the second convolution has stride 2).
    """
    outside = attention_mask[:, ::2] == 0
    mask = torch.zeros(outside.shape, dtype=dtype, device=outside.device)
    return mask.masked_fill(outside, torch.finfo(dtype).min)[:, None, None, :]


class CastingLayerNorm(nn.LayerNorm):
    """Layer norm whose result has the autocast type, so that it is cast once and not by each projection behind it."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        kind, normed = input.device.type, super().forward(input)
        return normed.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else normed


class TokenEmbedding(nn.Embedding):
    """The lookup of tokens, whose few rows are added to the weight's gradient in place.

    The weight is the output layer's as well, whose gradient is dense and, in a small model, the largest tensor of a
    step; autograd adds the two, even where one is sparse, in a third tensor of that size. The rows go into
    `weight.grad` alone: `torch.autograd.grad` does not return them.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not (self.weight.requires_grad and torch.is_grad_enabled()):
            return super().forward(input)
        found = functional.embedding(input, self.weight.detach()).requires_grad_()
        found.register_hook(lambda gradient: self._add(input, gradient))  # type: ignore[no-untyped-call]
        return found

    @torch.no_grad()
    def _add(self, tokens: torch.Tensor, gradient: torch.Tensor) -> None:
        if self.weight.grad is None:
            self.weight.grad = torch.zeros_like(self.weight)
        learnt = tokens != self.padding_idx
        self.weight.grad.index_add_(0, tokens[learnt], gradient[learnt].to(self.weight.dtype))


class LengthAwareEncoder(WhisperEncoder):  # type: ignore[misc]
    """The encoder at any even number of frames up to 3,000, with padding masked."""

    def forward(
        self, input_features: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutput:
        if attention_mask is None and input_features.shape[-1] == 2 * self.config.max_source_positions:
            return super().forward(input_features, **kwargs)
        states = functional.gelu(self.conv1(input_features))
        states = functional.gelu(self.conv2(states)).permute(0, 2, 1)
        states = states + self.embed_positions.weight[: states.shape[1]]
        states = functional.dropout(states, p=self.dropout, training=self.training)
        mask = None if attention_mask is None else position_mask(attention_mask, states.dtype)
        for layer in self.layers:
            if self.training and self.layerdrop > 0.0 and torch.rand([]) < self.layerdrop:
                continue
            states = layer(states, mask)
        return BaseModelOutput(last_hidden_state=self.layer_norm(states))


class LengthAwareDecoderLayer(WhisperDecoderLayer):  # type: ignore[misc]
    """A decoder layer that takes the cross-attention mask, for which the stock decoder passes None."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        cross_attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        mask = encoder_attention_mask if cross_attention_mask is None else cross_attention_mask
        return super().forward(hidden_states, attention_mask, encoder_hidden_states, mask, **kwargs)  # type: ignore[no-any-return]


class LengthAwareModel(WhisperModel):  # type: ignore[misc]
    """Encoder and decoder that share the mask of the audio: `attention_mask` (B, T) counts mel frames.

    The mask is an ordinary argument, so generation repeats it for beams like any other.
    """

    def forward(
        self,
        input_features: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_outputs: Any = None,
        **kwargs: Any,
    ) -> Any:
        if encoder_outputs is None:
            features = self._mask_input_features(input_features, attention_mask=attention_mask)
            encoder_outputs = self.encoder(features, attention_mask=attention_mask)
        elif isinstance(encoder_outputs, torch.Tensor):
            encoder_outputs = BaseModelOutput(last_hidden_state=encoder_outputs)
        if attention_mask is not None:
            kwargs["cross_attention_mask"] = position_mask(attention_mask, encoder_outputs[0].dtype)
        return super().forward(encoder_outputs=encoder_outputs, **kwargs)


class LengthAwareWhisper(WhisperForConditionalGeneration):  # type: ignore[misc]
    """The whole network. With `answers` (B, U), the labels, it returns their summed loss and no logits."""

    @wraps(WhisperForConditionalGeneration.forward)  # generation looks at the names of the arguments
    def forward(self, *args: Any, answers: torch.Tensor | None = None, smoothing: float = 0.0, **kwargs: Any) -> Any:
        if answers is None:
            return super().forward(*args, **kwargs)
        outputs = self.model(*args, **kwargs)
        real = answers != NO_LABEL  # the output layer, most of the work on short clips, skips padding
        loss = cross_entropy(outputs.last_hidden_state[real], self.proj_out.weight, answers[real], smoothing)
        return Seq2SeqLMOutput(loss=loss, encoder_last_hidden_state=outputs.encoder_last_hidden_state)


# What is saved names the class that opens it.
LengthAwareWhisper.__name__ = WhisperForConditionalGeneration.__name__
LengthAwareWhisper.__module__ = WhisperForConditionalGeneration.__module__


def length_aware(model: WhisperForConditionalGeneration) -> WhisperForConditionalGeneration:
    """Teach a stock model to take clips of any length, in place.

    Only the classes of its parts change: weights, names and what is saved stay those of plain Whisper.
    """
    model.__class__ = LengthAwareWhisper
    model.model.__class__ = LengthAwareModel
    model.model.encoder.__class__ = LengthAwareEncoder
    for layer in model.model.decoder.layers:
        layer.__class__ = LengthAwareDecoderLayer
    for part in model.modules():
        if type(part) is nn.LayerNorm:
            part.__class__ = CastingLayerNorm
    model.model.decoder.embed_tokens.__class__ = TokenEmbedding
    return model


# Loading -------------------------------------------------------------------------------------------------------------


def load(folder: str | Path, dtype: torch.dtype) -> tuple[WhisperForConditionalGeneration, WhisperProcessor]:
    """Model and processor of a folder, transformers' or CTranslate2's, or of a Hub id. Raises ModelError."""
    if ctranslate_folder.recognised(folder):
        model, processor = ctranslate_folder.read(folder, dtype)
        return length_aware(model), processor
    model, processor = open_folder(
        folder,
        "whisper",
        WhisperForConditionalGeneration,
        WhisperProcessor,
        dtype,
        example="openai/whisper-small, or `starter`",
    )
    return length_aware(model), processor
