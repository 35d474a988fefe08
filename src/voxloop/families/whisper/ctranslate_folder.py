"""A CTranslate2 folder as a base model: the form that faster-whisper keeps Whisper in, read back exactly.

`model.bin` holds the weights under CTranslate2's own names (python/ctranslate2/specs/model_spec.py, `_serialize`):

    u32 version, text spec name, u32 revision, u32 count,
    count × (text name, u8 rank, rank × u32 dimension, u8 type, u32 bytes, the data),
    u32 count, count × (text alias, text name);  a text is u16 length, then its bytes and a zero

It is read as numbers and never unpickled. Half precision is what OpenAI published, so a folder in float16, bfloat16 or
float32 gives the network that it was made of, bit for bit; one in int8 or int16 has lost something and is refused.

Letters in shapes: `F` mel channels, `D` width, `V` vocabulary.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxloop.errors import ModelError, first_line
from voxloop.families.whisper.features import CONTEXT_KEY

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor

WEIGHTS = "model.bin"
SPEC = "WhisperSpec"
OLDEST = 4  # format version: before it, a variable had no type of its own
GELU = 3  # CTranslate2's number of Whisper's activation
MULTILINGUAL = 51_865  # tokens of a vocabulary that has languages (openai/whisper, model.py: is_multilingual)
POSITIONS = 448  # that Whisper's tokenizer allows a text
# The type of a variable, by CTranslate2's number: its name as a compute type, and the bytes of an element.
TYPES = {0: ("float32", 4), 1: ("int8", 1), 2: ("int16", 2), 3: ("int32", 4), 4: ("float16", 2), 5: ("bfloat16", 2)}
EXACT = ("float32", "float16", "bfloat16")
WEIGHT = "decoder/embeddings/weight"  # the largest one, whose type is called the folder's


@dataclass(frozen=True, slots=True)
class Variable:
    """A tensor in `model.bin`."""

    shape: tuple[int, ...]
    type: str
    data: memoryview


def recognised(folder: str | Path) -> bool:
    """Whether a folder holds a Whisper model in CTranslate2's form. Reads a few bytes."""
    file = Path(folder) / WEIGHTS
    try:
        with file.open("rb") as opened:
            head = opened.read(6 + len(SPEC))
    except OSError:
        return False
    return head[6:] == SPEC.encode() and not any(Path(folder).glob("*.safetensors"))


def check(folder: str | Path) -> None:
    """Raises ModelError, with the remedy, where `read` would for the weights' type or a missing tokenizer."""
    stored = compute_type(folder)
    if stored not in EXACT:
        raise ModelError(
            f"the weights in {folder} are rounded to {stored}, but a base model needs float16 or float32: convert the "
            "original again with --quantization float16, or name its transformers folder or Hub id"
        )
    if not Path(folder, "tokenizer.json").is_file():
        raise ModelError(f"{folder} has no tokenizer.json: copy it from the model that was converted")


def compute_type(folder: str | Path) -> str:
    """The type that the weights are stored in, as CTranslate2 names it."""
    return _variables(Path(folder))[WEIGHT].type


def shapes(folder: str | Path) -> dict[str, tuple[int, ...]]:
    """Shapes of all weights, under transformers' names. Reads headers only."""
    return {name: tuple(shape) for name, shape in _renamed_shapes(_variables(Path(folder)))}


def read(
    folder: str | Path, dtype: torch.dtype | None = None
) -> tuple[WhisperForConditionalGeneration, WhisperProcessor]:
    """The stock transformers model and processor of a folder; `dtype` None: as it is stored.

    Raises ModelError for weights that are rounded, damaged or none of Whisper's, and for a missing tokenizer.
    """
    import torch
    from transformers import WhisperForConditionalGeneration

    folder = Path(folder)
    check(folder)
    config, generation, processor = described(folder)
    variables = _variables(folder)
    stored: torch.dtype = getattr(torch, variables[WEIGHT].type)
    config.dtype = stored
    state = _renamed(variables, dtype or stored)
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    with torch.device("meta"):  # the weights come from the file: none are made up first
        model = WhisperForConditionalGeneration(config)
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise ModelError(f"the weights in {folder} are not a complete Whisper model: {error}") from error
    model.tie_weights()
    model.generation_config = generation
    return model.eval(), processor


def restore(folder: str | Path, target: Path) -> None:
    """Write the transformers form of a folder into `target`, in the type that it is stored in. Raises ModelError."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    model, processor = read(folder)
    model.save_pretrained(target)
    processor.save_pretrained(target)


def described(folder: str | Path) -> tuple[WhisperConfig, GenerationConfig, WhisperProcessor]:
    """All of the model but its weights; the shape is read off theirs. Raises ModelError."""
    from transformers import GenerationConfig, WhisperConfig

    folder = Path(folder)
    check(folder)
    variables = _variables(folder)
    told = _json(folder / "config.json")
    processor = _processor(folder, mels=variables["encoder/conv1/weight"].shape[1])
    added = processor.tokenizer.get_added_vocab()
    vocabulary, width = variables[WEIGHT].shape
    try:
        ids = {"bos_token_id": added["<|endoftext|>"], "eos_token_id": added["<|endoftext|>"]}
        ids |= {"pad_token_id": ids["eos_token_id"], "decoder_start_token_id": added["<|startoftranscript|>"]}
        tasks = {task: added[f"<|{task}|>"] for task in ("transcribe", "translate")}
        config = WhisperConfig(
            vocab_size=vocabulary,
            num_mel_bins=variables["encoder/conv1/weight"].shape[1],
            d_model=width,
            **{f"{half}_layers": _layers(variables, half) for half in ("encoder", "decoder")},
            **{f"{half}_attention_heads": _scalar(variables, f"{half}/num_heads") for half in ("encoder", "decoder")},
            **{
                f"{half}_ffn_dim": variables[f"{half}/layer_0/ffn/linear_0/weight"].shape[0]
                for half in ("encoder", "decoder")
            },
            max_source_positions=variables["encoder/position_encodings/encodings"].shape[0],
            max_target_positions=variables["decoder/position_encodings/encodings"].shape[0],
            suppress_tokens=None,
            begin_suppress_tokens=None,
            **ids,
        )
        generation = GenerationConfig(
            alignment_heads=told.get("alignment_heads"),
            suppress_tokens=told.get("suppress_ids") or None,
            begin_suppress_tokens=told.get("suppress_ids_begin") or None,
            is_multilingual=vocabulary >= MULTILINGUAL,
            max_initial_timestamp_index=50,
            max_length=config.max_target_positions,
            no_timestamps_token_id=added["<|notimestamps|>"],
            prev_sot_token_id=added["<|startofprev|>"],
            return_timestamps=False,
            **ids,
        )
    except KeyError as error:
        raise ModelError(f"{folder} is not a complete Whisper model: {error} is missing") from error
    if _scalar(variables, "decoder/activation") != GELU:
        raise ModelError(
            f"{folder} does not use Whisper's GELU activation, so transformers cannot run it: choose another model"
        )
    if generation.is_multilingual:
        names = {id: name for name, id in added.items()}
        codes = told.get("lang_ids") or [id for id, name in names.items() if 2 <= len(name.strip("<|>")) <= 3]
        generation.lang_to_id = {names[id]: id for id in codes if id in names}
        generation.task_to_id = tasks
    context = _json(folder / "voxloop.json").get("config", {}).get(CONTEXT_KEY)  # one of ours, exported
    if context is not None:
        setattr(config, CONTEXT_KEY, context)
    return config, generation, processor


def _processor(folder: Path, *, mels: int) -> WhisperProcessor:
    from tokenizers import Tokenizer
    from transformers import WhisperFeatureExtractor, WhisperProcessor, WhisperTokenizer

    try:
        added = Tokenizer.from_file(str(folder / "tokenizer.json")).get_added_tokens_decoder()
        end, *others = [added[id].content for id in sorted(added)]
        tokenizer = WhisperTokenizer.from_pretrained(
            folder, model_max_length=POSITIONS, pad_token=end, unk_token=end, additional_special_tokens=others
        )
    except Exception as error:  # tokenizers raises plain Exceptions
        raise ModelError(f"{folder / 'tokenizer.json'} cannot be read: {first_line(error)}") from error
    extractor = WhisperFeatureExtractor(feature_size=mels)
    if (folder / "preprocessor_config.json").is_file():
        extractor = WhisperFeatureExtractor.from_pretrained(folder)
    return WhisperProcessor(extractor, tokenizer)


def _json(file: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read: {first_line(error)}") from error
    return found if isinstance(found, dict) else {}


# model.bin -----------------------------------------------------------------------------------------------------------


def _variables(folder: Path) -> dict[str, Variable]:
    """Every variable, under CTranslate2's name; its data stays in the file until it is looked at."""
    file = folder / WEIGHTS
    try:
        with file.open("rb") as opened:
            # Closed with the last view of it.
            held = memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
        return _parsed(held)
    except (OSError, ValueError, struct.error, UnicodeDecodeError) as error:
        raise ModelError(
            f"{file} cannot be read as CTranslate2's Whisper weights ({first_line(error)}): fetch or convert it again"
        ) from error


def _parsed(held: memoryview) -> dict[str, Variable]:
    found: dict[str, Variable] = {}
    place = 0

    def number(kind: str) -> int:
        nonlocal place
        (value,) = struct.unpack_from(f"<{kind}", held, place)
        place += struct.calcsize(f"<{kind}")
        return int(value)

    def piece(size: int) -> memoryview:
        nonlocal place
        if size > len(held) - place:
            raise ValueError(f"expected {size:,} bytes at offset {place:,}, found {len(held) - place:,}")
        place += size
        return held[place - size : place]

    def text() -> str:
        return bytes(piece(number("H"))).rstrip(b"\0").decode()

    version = number("I")
    spec = text()
    if spec != SPEC or version < OLDEST:
        raise ValueError(
            f"it contains {spec} in version {version}, but version {OLDEST} or later of {SPEC} is supported"
        )
    number("I")  # the spec's revision
    for _ in range(number("I")):
        name = text()
        shape = tuple(number("I") for _ in range(number("B")))
        kind, size = TYPES.get(number("B"), ("unknown", 0))
        data = piece(number("I"))
        elements = 1
        for dimension in shape:
            elements *= dimension
        if elements * size != len(data):
            raise ValueError(f"{name} has {len(data):,} bytes for {shape} of {kind}")
        found[name] = Variable(shape, kind, data)
    for _ in range(number("I")):  # variables that are equal are written once
        alias, name = text(), text()
        if name not in found:
            raise ValueError(f"{alias} is an alias of {name}, which is missing")
        found[alias] = found[name]
    return found


def _scalar(variables: Mapping[str, Variable], name: str) -> int:
    return int.from_bytes(variables[name].data, "little", signed=True)


def _layers(variables: Mapping[str, Variable], half: str) -> int:
    return len({name.split("/")[1] for name in variables if name.startswith(f"{half}/layer_") and name.count("/") > 2})


# CTranslate2's name of a part, and transformers' own; several where one holds them stacked.
_PARTS = {
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/layer_norm": ("encoder_attn_layer_norm",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "ffn/layer_norm": ("final_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}
_OUTSIDE = {
    "conv1": "conv1",
    "conv2": "conv2",
    "embeddings": "embed_tokens",
    "position_encodings": "embed_positions",
    "layer_norm": "layer_norm",
}
_KINDS = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias", "encodings": "weight"}


def _names(name: str) -> tuple[str, ...]:
    """Transformers' names of a variable's stacked parts; none for what is no weight."""
    half, _, rest = name.partition("/")
    part, _, kind = rest.rpartition("/")
    if not part or kind not in _KINDS:
        return ()
    layer, _, inner = part.partition("/")
    if layer.startswith("layer_") and inner in _PARTS:
        where = f"model.{half}.layers.{layer.removeprefix('layer_')}"
        return tuple(f"{where}.{mine}.{_KINDS[kind]}" for mine in _PARTS[inner])
    return (f"model.{half}.{_OUTSIDE[part]}.{_KINDS[kind]}",) if part in _OUTSIDE else ()


def _renamed_shapes(variables: Mapping[str, Variable]) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, variable in variables.items():
        mine = _names(name)
        for one in mine:
            if not one.endswith(".k_proj.bias"):
                yield one, (variable.shape[0] // len(mine), *variable.shape[1:])


def _renamed(variables: Mapping[str, Variable], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The weights under transformers' names, copied out of the file."""
    import torch

    state: dict[str, torch.Tensor] = {}
    for name, variable in variables.items():
        mine = _names(name)
        if not mine:
            continue
        stored: torch.dtype = getattr(torch, variable.type)
        tensor = torch.frombuffer(bytearray(variable.data), dtype=stored).view(variable.shape).to(dtype)
        for one, part in zip(mine, tensor.chunk(len(mine)), strict=True):
            if one.endswith(".k_proj.bias"):
                # Whisper's keys have no bias; CTranslate2 writes zeros for it.
                if part.any():
                    raise ModelError(f"{name} has a bias for attention keys, which Whisper does not have")
                continue
            state[one] = part.contiguous() if len(mine) == 1 else part.clone()
    return state
