"""When each token was said: the decoder's cross-attention, warped onto the text.

The method of openai/whisper, whisper/timing.py: of the heads that follow the sound,
the attention of each token is normalised over the tokens, smoothed by a median filter,
averaged, and the cheapest path through them is found by dynamic time warping (T. Giorgino,
"Computing and Visualizing Dynamic Time Warping Alignments in R: The dtw Package",
doi:10.18637/jss.v031.i07). One pass over the finished text gives it, so decoding itself is
not slowed down.

Letters in shapes: `B` batch, `H` heads, `U` tokens, `E` encoder positions of 20 ms, `D` width.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutput

from voxloop.families.whisper.features import POSITION_SAMPLES
from voxloop.records import SAMPLE_RATE

if TYPE_CHECKING:
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

Matrix = np.ndarray[tuple[int, int], np.dtype[np.float32]]  # (U, E)


def alignment_heads(config: WhisperConfig, generation: GenerationConfig) -> dict[int, list[int]]:
    """Layer -> heads whose attention follows the sound: by the generation config, else the last half of the layers.

    That is also what Whisper's authors take for models of which nothing is known (whisper/model.py).
    """
    given = getattr(generation, "alignment_heads", None)
    found: dict[int, list[int]] = defaultdict(list)
    if given:
        for layer, head in given:
            found[layer].append(head)
        return dict(found)
    layers = config.decoder_layers
    return {layer: list(range(config.decoder_attention_heads)) for layer in range(layers // 2, layers)}


def word_times(
    model: WhisperForConditionalGeneration,
    states: torch.Tensor,
    mask: torch.Tensor | None,
    prompts: torch.Tensor,
    texts: Sequence[Sequence[int]],
    samples: Sequence[int],
) -> list[list[float]]:
    """When each token of each text begins, and last when the text ends: U + 1 seconds from the clip's beginning.

    `states` (B, E, D) and `mask` are the encoder's, `prompts` (B, P) what stood before the texts, whose tokens
    have no end token; `samples` are the clips' lengths without padding. Rising, and inside the clip.
    """
    positions = [max(1, -(-count // POSITION_SAMPLES)) for count in samples]
    attention = _attention(model, states, mask, prompts, texts, positions)
    return [
        [min(position * POSITION_SAMPLES, count) / SAMPLE_RATE for position in found]
        for found, count in zip(first_positions([-one for one in attention]), samples, strict=True)
    ]


def _attention(
    model: WhisperForConditionalGeneration,
    states: torch.Tensor,
    mask: torch.Tensor | None,
    prompts: torch.Tensor,
    texts: Sequence[Sequence[int]],
    positions: Sequence[int],
) -> list[Matrix]:
    """The heads' mean attention (U + 1, E) of every place that a token of the text, or its end, is written from."""
    before = prompts.shape[1]
    end = model.config.eos_token_id
    room = model.config.max_target_positions
    # The end is read as well where there is room, as it was for the authors' own normalisation.
    lengths = [min(before + len(text) + 1, room) for text in texts]
    given = torch.full((len(texts), max(lengths)), end, device=states.device)
    given[:, :before] = prompts
    for row, text in zip(given, texts, strict=True):
        row[before : before + len(text)] = torch.tensor(text, device=states.device)
    sums = [torch.zeros(length, count, device=states.device) for length, count in zip(lengths, positions, strict=True)]
    width = model.config.median_filter_width
    heads = alignment_heads(model.config, model.generation_config)

    def listen(attention: Any, layer: int, hidden: torch.Tensor, encoded: torch.Tensor) -> None:
        if layer not in heads:  # other heads were named when its hook was set
            return
        chosen = torch.tensor(heads[layer], device=hidden.device)
        shape = (len(texts), -1, attention.num_heads, attention.head_dim)
        queries = (attention.q_proj(hidden) * attention.scaling).view(shape).index_select(2, chosen).float()
        keys = attention.k_proj(encoded).view(shape).index_select(2, chosen).float()
        for index, total in enumerate(sums):
            tokens, places = total.shape
            scores = torch.einsum("uhd,ehd->hue", queries[index, :tokens], keys[index, :places])
            weights = scores.softmax(dim=-1)
            std, mean = torch.std_mean(weights, dim=-2, keepdim=True, correction=0)
            total += median_filter((weights - mean) / std.clamp_min(1e-12), width).sum(dim=0)

    with _listening(model, listen):
        model.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=mask,
            decoder_input_ids=given,
            use_cache=False,
        )
    count = sum(map(len, heads.values()))
    return [
        (total[before - 1 : before + len(text)] / count).cpu().numpy() for total, text in zip(sums, texts, strict=True)
    ]


_HERE = threading.local()  # `listen`: what is told of the cross-attention in this thread
_LISTENED = "_voxloop_listened"  # mark of an attention whose hook is set


def let_listen(model: WhisperForConditionalGeneration) -> None:
    """Set the hooks that `word_times` listens by, once for a model, before threads share it.

    PyTorch sets a hook and how it is called one after the other: another thread that runs the model between the two
    would call it wrongly. A hook does nothing in threads that do not listen.
    """
    for layer in alignment_heads(model.config, model.generation_config):
        attention: Any = model.model.decoder.layers[layer].encoder_attn
        if not hasattr(attention, _LISTENED):
            attention.register_forward_pre_hook(partial(_tell, layer), with_kwargs=True)
            setattr(attention, _LISTENED, True)


def _tell(layer: int, attention: Any, hidden: tuple[torch.Tensor], given: dict[str, Any]) -> None:
    listen = getattr(_HERE, "listen", None)
    if listen is not None:
        listen(attention, layer, hidden[0], given["key_value_states"])


@contextmanager
def _listening(model: WhisperForConditionalGeneration, listen: Any) -> Iterator[None]:
    """Call `listen` with what the cross-attention of the alignment layers is given in this thread.

    The model's own attention returns no weights unless it is run in its slow form, and then those of all heads.
    """
    let_listen(model)
    _HERE.listen = listen
    try:
        yield
    finally:
        del _HERE.listen


def median_filter(values: torch.Tensor, width: int) -> torch.Tensor:
    """The median of `width` neighbours along the last axis, its ends mirrored; too short an axis stays as it is."""
    beside = width // 2
    if values.shape[-1] <= beside:
        return values
    padded = functional.pad(values, (beside, beside), mode="reflect")
    return padded.unfold(-1, width, 1).median(dim=-1).values


def first_positions(costs: Sequence[Matrix]) -> list[list[int]]:
    """For each matrix (U, E) the first column of each row on its cheapest path from corner to corner.

    All matrices are warped at once, one anti-diagonal after the other: a cell follows from the two before its own.
    """
    rows, columns = max(len(one) for one in costs), max(one.shape[1] for one in costs)
    skewed = np.zeros((rows + columns - 1, len(costs), rows))  # of cell (i, j) at [i + j, :, i]
    for index, one in enumerate(costs):
        row, column = np.indices(one.shape)
        skewed[row + column, index, row] = one
    came = np.empty(skewed.shape, np.int8)  # 0: over the corner, 1: from the row above, 2: from the column before
    older = np.full((len(costs), rows + 1), np.inf)  # costs of the diagonal before the last; column 0 is outside
    last = older.copy()
    older[:, 0] = 0.0
    for diagonal, values in enumerate(skewed):
        corner, above, before = older[:, :-1], last[:, :-1], last[:, 1:]
        step = np.full(values.shape, 2, np.int8)
        step[(above < corner) & (above < before)] = 1
        step[(corner < above) & (corner < before)] = 0
        came[diagonal] = step
        older, last = last, np.full_like(last, np.inf)
        last[:, 1:] = values + np.choose(step, (corner, above, before))
    found = []
    for index, one in enumerate(costs):
        i, j = one.shape[0] - 1, one.shape[1] - 1
        firsts = [0] * len(one)
        while i >= 0 and j >= 0:
            firsts[i] = j
            step_back = int(came[i + j, index, i])
            i -= step_back != 2
            j -= step_back != 1
        found.append(firsts)
    return found
