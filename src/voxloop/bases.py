"""Bases: which models this machine could start from, and what each would need here in memory and time.

The figures are arithmetic from a model's shape, scaled by how fast this machine multiplies and reads memory just now.
They tell a model that fits from one that does not, and minutes from hours: within a factor of two, not to the second.
"""

from __future__ import annotations

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
from voxloop.starter import STARTER_DIR

if TYPE_CHECKING:
    from voxloop.workspace import Workspace

Form = Literal["starter", "transformers", "ctranslate2"]

WINDOW_S = 30.0  # of audio that Whisper is fed at once
TOKENS_PER_WINDOW = 80  # of speech: 150 words a minute, and the end
PROBE_S = 0.12  # for each of two probes, besides their first round
# Measured with tiny.en and base on two cores with AVX-512 (docs/log.md).
INT8_GAIN = 2.5  # of 8-bit integers over float32
OVERHEAD = 1.2  # of a real model over its multiplications: attention's softmax, norms, features, Python
BACKWARD = {"lora": 3.0, "full": 3.5}  # cost of a training step over that of hearing alone
KEPT = {"lora": 1.75, "full": 1.0}  # of what training keeps for the way back: adapters keep their own inputs
RUNTIME_BYTES = {"int8": 400 << 20, "fp32": 600 << 20, "lora": 700 << 20, "full": 700 << 20}  # program and libraries
HEARD_WINDOWS = 4  # decoded at once within the default `batch_seconds`
TRAINED_WINDOWS = {"lora": 4, "full": 1}  # in a batch of training, at most
ADAPTER_SHARE = 0.03  # of the weights, with the default rank


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """How fast this machine was when it was asked."""

    device: str
    operations_per_s: float  # of float32 matrix products
    bytes_per_s: float  # read from memory by products of a matrix and a vector


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """What one use of a base takes."""

    memory_bytes: int
    seconds: float
    """For a minute of speech where it is transcribed, for a clip of 30 s where it is trained on once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """A model that training and transcription could start from."""

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
    refused: str | None = None  # why it cannot be taken, and the remedy


def here(ws: Workspace) -> tuple[Machine, list[Base]]:
    """The machine and its bases: the starter, the folder that `base_model` names, the Hub's cache; by size."""
    machine = probe(device(ws))
    found = [_base(name, form, folder, machine) for name, form, folder in _places(ws)]
    return machine, sorted(found, key=lambda base: (base.parameters, base.name))


# Whisper's sizes by the repository that has them, with their weights (github.com/openai/whisper, model card).
PUBLISHED = {
    "openai/whisper-tiny": 37_800_000,
    "openai/whisper-base": 72_600_000,
    "openai/whisper-small": 241_700_000,
    "openai/whisper-medium": 763_900_000,
    "openai/whisper-large-v3": 1_543_500_000,
}


def larger(ws: Workspace, folder: Path) -> tuple[str, int] | None:
    """The next larger base that can be tuned with LoRA in this machine's memory: its name and its weights.

    One that is here already comes before one that the Hub has. None where none fits, or
    where the size of the model in `folder` cannot be told.
    """
    try:
        shape = require(family(family_of(folder)), "cost estimate").cost(folder)
    except ModelError:
        return None
    machine, found = here(ws)
    room = _memory(machine.device)
    for base in found:
        fits = base.lora is not None and base.lora.memory_bytes <= room
        if fits and base.parameters > 1.2 * shape.parameters and (base.multilingual or not shape.multilingual):
            return base.name, base.parameters
    for name, parameters in PUBLISHED.items():
        if parameters > 1.2 * shape.parameters:
            return (name, parameters) if RUNTIME_BYTES["lora"] + 10 * parameters <= room else None
    return None


def _memory(where: str) -> int:
    """Bytes of memory that a training may use on a device."""
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
    usual: dict[str, str] = {}
    for name, repository in hub.FASTER_WHISPER.items():
        usual.setdefault(repository, name)
    for repository, folder in hub.repositories():
        if converted_of(folder):
            yield usual.get(repository, repository), "ctranslate2", folder
        elif _is_known(folder):
            yield repository, "transformers", folder


def _is_known(folder: Path) -> bool:
    """Whether a folder holds a model of a family whose cost can be told."""
    try:
        return "cost estimate" in family(family_of(folder)).capabilities
    except ModelError:
        return False


def _base(name: str, form: Form, folder: Path, machine: Machine) -> Base:
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    try:
        shape = require(family(family_of(folder)), "cost estimate").cost(folder)
        if form != "ctranslate2" and not any(folder.glob("*.safetensors")):
            raise ModelError("it has no safetensors weights: pickled ones are refused, since loading them can run code")
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
    """What transcribing needs: weights, the states of the windows at hand, and the scores of each step."""
    size, gain = (1, INT8_GAIN) if kind == "int8" else (4, 1.0)
    window = OVERHEAD * shape.window_operations / machine.operations_per_s / gain
    # Each token reads all weights once for the windows decoded side by side, and each window's states.
    token = (size * shape.token_weights / HEARD_WINDOWS + 4 * shape.token_states) / machine.bytes_per_s
    memory = RUNTIME_BYTES[kind] + size * shape.parameters + HEARD_WINDOWS * 4 * shape.window_floats // 12
    return Need(memory_bytes=memory, seconds=60 / WINDOW_S * (window + TOKENS_PER_WINDOW * OVERHEAD * token))


def _trained(shape: Cost, machine: Machine, kind: Literal["lora", "full"]) -> Need:
    """What training needs: weights, gradients and AdamW's two averages of those trained, and a batch's activations."""
    trained = shape.parameters if kind == "full" else round(ADAPTER_SHARE * shape.parameters)
    forward = shape.window_operations + 2 * TOKENS_PER_WINDOW * shape.token_weights
    memory = RUNTIME_BYTES[kind] + 4 * shape.parameters + 12 * trained
    memory += round(KEPT[kind] * TRAINED_WINDOWS[kind] * 4 * shape.window_floats)
    return Need(memory_bytes=memory, seconds=OVERHEAD * BACKWARD[kind] * forward / machine.operations_per_s)


def probe(where: str) -> Machine:
    """How fast a device multiplies and reads memory, by two short loops: a third of a second."""
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
