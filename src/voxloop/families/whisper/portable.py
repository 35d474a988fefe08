"""A Whisper folder with all that other programs take for granted: time stamp tokens, 448 positions, older file names.

faster-whisper, whisper.cpp and transformers ask a model for time stamps unless told otherwise, and rule out every
token but them at the text's beginning. A vocabulary without any, such as the starter's, makes noise there. What such
a model was trained on is kept as it is, and rows are added to its embedding, which is its output layer as well:

- `<|0.00|>` is a copy of `<|notimestamps|>`: a text that begins with it is read as the model learnt to write texts.
- All other time stamps, and the further tokens below, are rows that are never written.
- A decoder of two layers gets a third one that adds nothing: whisper.cpp takes two for a distilled model, which it
  never asks for time stamps, and then places the text 17 minutes before the sound's beginning.
- " -", " '" and " ♪" become tokens of their own. faster-whisper suppresses the first token of each, which in a
  vocabulary of bytes is the space.

Letters in shapes: `D` width, `V` vocabulary.
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxloop.errors import ModelError

if TYPE_CHECKING:
    import torch

NO_TIME_STAMPS = "<|notimestamps|>"
TIME_STAMPS = tuple(f"<|{index * 0.02:.2f}|>" for index in range(1501))  # 0 to 30 s in steps of 20 ms
POSITIONS = 448  # faster-whisper writes up to so many tokens, whatever the model has
LAYERS_OF_DISTILLED = 2
LOGIT = -40.0  # of a token that is never written; e^-40 of the likeliest
# GPT-2 writes bytes as letters: "Ġ" is the space, "â" the first byte of ♪ and its kin.
SUPPRESSED_BY_FASTER_WHISPER = (("Ġ", "-"), ("Ġ", "'"), ("Ġ", "â"))


def special_tokens(tokenizer: Any) -> dict[str, int]:
    """The tokens of a vocabulary that are no text, by name."""
    found: dict[str, int] = tokenizer.get_added_vocab()
    return found


def never_written(norm: torch.nn.LayerNorm) -> torch.Tensor:
    """A row (D,) of the output layer that gives the logit `LOGIT` whatever the decoder's state.

    Behind the last layer norm a state is `gamma * n + beta`, and the elements of n sum to zero. So a row of
    `c / gamma` gives c times the sum of `beta / gamma`: a constant. Raises ModelError where that sum is next to zero.
    """
    gamma, beta = norm.weight.detach().double(), norm.bias.detach().double()
    total = (beta / gamma).sum()
    row = LOGIT / total / gamma
    if not bool(row.isfinite().all()) or float(row.abs().max()) > 1e4:  # float16 ends at 65,504
        raise ModelError("the decoder's last layer norm has no shift that a token could be ruled out by")
    return row.float()


def complete(folder: Path, target: Path) -> bool:
    """Write a saved folder into `target` with what other programs look for; whether its vocabulary was added to.

    Weights and vocabulary of a model that has time stamps are copied as they are. Raises ModelError, OSError.
    """
    from transformers import AutoConfig, WhisperForConditionalGeneration, WhisperProcessor
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    processor = WhisperProcessor.from_pretrained(folder)
    size: int = AutoConfig.from_pretrained(folder).vocab_size
    # Not by their names: old tokenizers of Whisper lack them, while the model has their rows.
    lacking = size <= special_tokens(processor.tokenizer)[NO_TIME_STAMPS] + 1
    if lacking:
        model = WhisperForConditionalGeneration.from_pretrained(folder, use_safetensors=True)
        tokenizer = _with_time_stamps(processor.tokenizer)
        _extend(model, special_tokens(processor.tokenizer)[NO_TIME_STAMPS], size=len(tokenizer))
        model.save_pretrained(target)
        processor = WhisperProcessor(processor.feature_extractor, tokenizer)
        processor.save_pretrained(target)
    else:
        target.mkdir(parents=True, exist_ok=True)
        for file in sorted(folder.iterdir()):
            if file.is_file() and file.suffix in (".safetensors", ".json", ".txt"):
                shutil.copyfile(file, target / file.name)
    _write_older_files(processor, target)
    return lacking


def _with_time_stamps(tokenizer: Any) -> Any:
    """The tokenizer with time stamps right behind `<|notimestamps|>`, where everybody looks for them."""
    from transformers import WhisperTokenizer

    told = json.loads(tokenizer.backend_tokenizer.to_str())
    special = special_tokens(tokenizer)
    if special[NO_TIME_STAMPS] != len(tokenizer) - 1:
        raise ModelError(f"{NO_TIME_STAMPS} is not the last token of the vocabulary: time stamps cannot follow it")
    vocabulary = dict(told["model"]["vocab"])
    vocabulary |= special
    first = len(tokenizer)
    vocabulary |= {name: first + index for index, name in enumerate(TIME_STAMPS)}
    merges = [tuple(one) if isinstance(one, list) else tuple(one.split(" ")) for one in told["model"]["merges"]]
    for pair in SUPPRESSED_BY_FASTER_WHISPER:
        vocabulary.setdefault("".join(pair), len(vocabulary))
        if pair not in merges:
            merges.append(pair)
    made = WhisperTokenizer(vocab=vocabulary, merges=merges, pad_token=tokenizer.pad_token, model_max_length=POSITIONS)
    made.add_special_tokens({"additional_special_tokens": [*list(special)[1:], *TIME_STAMPS]})
    return made


def _extend(model: Any, no_time_stamps: int, size: int) -> None:
    """Add the rows of a vocabulary of so many tokens to the embedding, and positions up to `POSITIONS`."""
    import torch

    decoder, config = model.model.decoder, model.config
    old = decoder.embed_tokens.weight.detach()
    rows = never_written(decoder.layer_norm).to(old).repeat(size - len(old), 1)
    rows[0] = old[no_time_stamps]
    model.resize_token_embeddings(size, mean_resizing=False)
    with torch.no_grad():
        decoder.embed_tokens.weight.copy_(torch.cat([old, rows]))
        places = decoder.embed_positions
        more = max(0, POSITIONS - len(places.weight))
        # Nobody has trained them: the last one stands in for all, which a text hardly ever reaches.
        places.weight = torch.nn.Parameter(torch.cat([places.weight, places.weight[-1:].repeat(more, 1)]))
        places.num_embeddings = len(places.weight)
    model.tie_weights()
    if config.decoder_layers == LAYERS_OF_DISTILLED:
        _add_idle_layer(model)
    config.max_target_positions = len(places.weight)
    model.generation_config.max_length = config.max_target_positions


def _add_idle_layer(model: Any) -> None:
    """Add a decoder layer that changes nothing: what its three branches add to the state is zero."""
    import torch

    layers = model.model.decoder.layers
    idle = copy.deepcopy(layers[-1])
    for part in (idle.self_attn.out_proj, idle.encoder_attn.out_proj, idle.fc2):
        torch.nn.init.zeros_(part.weight)
        torch.nn.init.zeros_(part.bias)
    for attention in (idle.self_attn, idle.encoder_attn):
        attention.layer_idx = len(layers)  # its place in the cache
    layers.append(idle)
    model.config.decoder_layers = len(layers)


def _write_older_files(processor: Any, target: Path) -> None:
    """Vocabulary and features as transformers 4 and whisper.cpp's own converter read them, too."""
    told = json.loads(processor.tokenizer.backend_tokenizer.to_str())["model"]
    vocabulary = dict(told["vocab"])
    merges = [one if isinstance(one, str) else " ".join(one) for one in told["merges"]]
    (target / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (target / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    added = dict(sorted(special_tokens(processor.tokenizer).items(), key=lambda one: one[1]))
    (target / "added_tokens.json").write_text(json.dumps(added, indent=2, ensure_ascii=False), encoding="utf-8")
    processor.feature_extractor.save_pretrained(target)
