"""Base models available on this machine, and the memory and time that each needs here.

The figures are computed from a model's shape and this machine's current speed of multiplying and reading memory.
They are right within a factor of two: enough to see whether a model fits, and whether it takes minutes or hours.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from voxloop import hub
from voxloop.errors import ModelError
from voxloop.families.contract import Cost, require
from voxloop.families.registry import converted_of, family, family_of
from voxloop.models import STARTER, device
from voxloop.records import Model
from voxloop.starter import STARTER_DIR
from voxloop.steps.training import recipes
from voxloop.stores import tables

if TYPE_CHECKING:
    from voxloop.workspace import Workspace

Form = Literal["starter", "transformers", "ctranslate2"]

WINDOW_S = 30.0  # seconds of audio in one Whisper input
TOKENS_PER_WINDOW = 80  # at 150 words per minute, with the end token
PROBE_S = 0.12  # duration of each of two probes, without the warm-up round
# Measured with tiny.en and base on two cores with AVX-512 (docs/log.md).
INT8_GAIN = 2.5  # speed of 8-bit integers relative to float32
OVERHEAD = 1.2  # time of a real model relative to its multiplications: softmax, norms, features, Python
BACKWARD = {"lora": 3.0, "full": 3.5}  # time of a training step relative to the forward pass
# Activations kept for the backward pass; adapters also keep their own inputs.
KEPT = {"lora": 2.35, "full": 1.3}
BLENDED = 7  # copies of all weights while blends are tried: the model's, AdamW's, the base's, the trained, loaded files
RUNTIME_BYTES = {
    "int8": 400 << 20,
    "fp32": 600 << 20,
    "lora": 610 << 20,
    "full": 610 << 20,
}  # of the program and its libraries
HEARD_WINDOWS = 4  # decoded at once within the default `batch_seconds`
ADAPTER_SHARE = 0.03  # of the weights, with the default rank


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """The measured speed of this machine."""

    device: str
    operations_per_s: float  # in float32 matrix products
    bytes_per_s: float  # read from memory in matrix-vector products


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """The memory and time that one use of a base needs."""

    memory_bytes: int
    seconds: float
    """To transcribe one minute of speech, or to train on one 30 s clip once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """A model that can serve as a base."""

    name: str  # as `base_model` and `--base` take it
    form: Form
    folder: Path
    disk_bytes: int
    parameters: int = 0
    multilingual: bool = False
    int8: Need | None = None  # transcribed by CTranslate2
    fp32: Need | None = None  # transcribed by PyTorch
    lora: Need | None = None
    full: Need | None = None
    refused: str | None = None  # why it cannot be used, and the remedy


def here(ws: Workspace) -> tuple[Machine, list[Base]]:
    """This machine and its bases, smallest first.

    They are the starter, the folder in `base_model`, adapted bases and those in the Hub's cache.
    """
    machine = probe(device(ws))
    found = [_base(name, form, folder, machine) for name, form, folder in _places(ws)]
    return machine, sorted(found, key=lambda base: (base.parameters, base.name))


# Whisper's repositories and their numbers of parameters (github.com/openai/whisper, model card).
PUBLISHED = {
    "openai/whisper-tiny": 37_800_000,
    "openai/whisper-base": 72_600_000,
    "openai/whisper-small": 241_700_000,
    "openai/whisper-medium": 763_900_000,
    "openai/whisper-large-v3": 1_543_500_000,
}


def training_time(need: Need, *, speech_s: float, epochs: float | None, max_s: float | None) -> float | None:
    """Seconds to train on this much speech for these epochs, or until the limit; None if neither ends it."""
    if epochs is None:
        return max_s
    took = need.seconds * epochs * speech_s / WINDOW_S
    return took if max_s is None else min(took, max_s)


def larger(ws: Workspace, folder: Path) -> tuple[str, int] | None:
    """The name and parameter count of the next larger base that LoRA can train in this machine's memory.

    Local models are preferred to those on the Hub. None if none fits or if the size of the
    model in `folder` is unknown.
    """
    try:
        shape = require(family(family_of(folder)), "cost estimate").cost(folder)
    except ModelError:
        return None
    machine, found = here(ws)
    room = memory(machine.device)
    for base in found:
        fits = base.lora is not None and base.lora.memory_bytes <= room
        if fits and base.parameters > 1.2 * shape.parameters and (base.multilingual or not shape.multilingual):
            return base.name, base.parameters
    for name, parameters in PUBLISHED.items():
        if parameters > 1.2 * shape.parameters:
            return (name, parameters) if RUNTIME_BYTES["lora"] + 10 * parameters <= room else None
    return None


def memory(where: str) -> int:
    """Bytes of memory available for training on a device."""
    if where.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(where)[1])
    return int(0.8 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _places(ws: Workspace) -> Iterator[tuple[str, Form, Path]]:
    yield STARTER, "starter", STARTER_DIR
    named = Path(ws.settings.base_model)
    if ws.settings.base_model != STARTER and named.is_dir():
        form: Form = "ctranslate2" if converted_of(named) else "transformers"
        yield ws.settings.base_model, form, named.absolute()
    adapted = (tables.model.c.kind == "adapter", tables.model.c.run.is_(None), tables.model.c.name.is_not(None))
    with ws.read() as reader:
        made = reader.all(Model, *adapted, order=tables.model.c.name)
    for model in made:
        if Path(model.where).is_dir():
            yield model.name or model.id, "transformers", Path(model.where)
    usual: dict[str, str] = {}
    for name, repository in hub.FASTER_WHISPER.items():
        usual.setdefault(repository, name)
    for repository, folder in hub.repositories():
        if converted_of(folder):
            yield usual.get(repository, repository), "ctranslate2", folder
        elif _is_known(folder):
            yield repository, "transformers", folder


def _is_known(folder: Path) -> bool:
    """Whether a folder holds a model whose family can estimate its cost."""
    try:
        return "cost estimate" in family(family_of(folder)).capabilities
    except ModelError:
        return False


def _base(name: str, form: Form, folder: Path, machine: Machine) -> Base:
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    try:
        shape = require(family(family_of(folder)), "cost estimate").cost(folder)
        if form != "ctranslate2" and not any(folder.glob("*.safetensors")):
            raise ModelError("it has no safetensors weights, and pickled weights are refused because they can run code")
    except ModelError as error:
        return Base(name=name, form=form, folder=folder, disk_bytes=size, refused=str(error))
    return Base(
        name=name,
        form=form,
        folder=folder,
        disk_bytes=size,
        parameters=shape.parameters,
        multilingual=shape.multilingual,
        int8=_heard(shape, machine, "int8"),
        fp32=_heard(shape, machine, "fp32"),
        lora=_trained(shape, machine, "lora"),
        full=_trained(shape, machine, "full"),
    )


def _heard(shape: Cost, machine: Machine, kind: Literal["int8", "fp32"]) -> Need:
    """Transcription needs memory for the weights, the windows' states and the scores of each step."""
    size, gain = (1, INT8_GAIN) if kind == "int8" else (4, 1.0)
    window = OVERHEAD * shape.window_operations / machine.operations_per_s / gain
    # Each token reads all weights once for the windows decoded side by side, and each window's states.
    token = (size * shape.token_weights / HEARD_WINDOWS + 4 * shape.token_states) / machine.bytes_per_s
    memory = RUNTIME_BYTES[kind] + size * shape.parameters + HEARD_WINDOWS * 4 * shape.window_floats // 12
    return Need(memory_bytes=memory, seconds=60 / WINDOW_S * (window + TOKENS_PER_WINDOW * OVERHEAD * token))


def _trained(shape: Cost, machine: Machine, kind: Literal["lora", "full"]) -> Need:
    """Training needs memory for weights, gradients, AdamW's two averages and a batch's activations."""
    trained = shape.parameters if kind == "full" else round(ADAPTER_SHARE * shape.parameters)
    forward = shape.window_operations + 2 * TOKENS_PER_WINDOW * shape.token_weights
    held = 4 * shape.parameters + 12 * trained + round(KEPT[kind] * _windows(shape, kind) * 4 * shape.window_floats)
    memory = RUNTIME_BYTES[kind] + max(held, 4 * BLENDED * trained)
    return Need(memory_bytes=memory, seconds=OVERHEAD * BACKWARD[kind] * forward / machine.operations_per_s)


def _windows(shape: Cost, kind: Literal["lora", "full"]) -> int:
    """Windows of 30 s in a batch of the recipe that training takes by default, for little speech."""
    name = "careful" if kind == "lora" else "quick" if shape.parameters < recipes.CPU_MODEL else "full"
    return math.ceil(recipes.named(name, published=True).batch_seconds / WINDOW_S)


def probe(where: str) -> Machine:
    """Measure how fast a device multiplies and reads memory, in about a third of a second."""
    import torch

    place = torch.device(where)
    left, right = torch.randn(1500, 512, device=place), torch.randn(512, 2048, device=place)
    matrix, vector = torch.randn(4096, 4096, device=place), torch.randn(4096, device=place)

    def rate(work: Callable[[], object], each: int) -> float:
        def once() -> None:
            work()
            if place.type == "cuda":
                torch.cuda.synchronize(place)

        once()
        rounds, began = 0, time.perf_counter()
        while time.perf_counter() - began < PROBE_S:
            once()
            rounds += 1
        return each * rounds / (time.perf_counter() - began)

    with torch.inference_mode():
        return Machine(
            device=where,
            operations_per_s=rate(lambda: left @ right, 2 * 1500 * 512 * 2048),
            bytes_per_s=rate(lambda: matrix @ vector, matrix.numel() * 4),
        )
