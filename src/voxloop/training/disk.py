"""Whether a run's checkpoints and models will fit on the disk, asked before it begins."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from voxloop.errors import TrainingError
from voxloop.training.recipes import Recipe

WEIGHT_BYTES = 4  # weights are kept in fp32
OPTIMISER = 2  # AdamW keeps two numbers for each trained weight
MODELS = 4  # best, the next best while it is written, final, and the copy that is registered
ADAPTER_SHARE = 0.05  # of the weights: more than the adapters of any sensible rank
LOGS_BYTES = 16 << 20


def parameters(folder: Path) -> int:
    """Weights of a model folder, read off the headers of its safetensors files."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as opened:
            # https://github.com/huggingface/safetensors#format: the header's length, then JSON.
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                count = 1
                for size in tensor["shape"]:
                    count *= size
                total += count
    return total


def needed_bytes(weights: int, recipe: Recipe) -> int:
    """The most that a run on so many weights holds at once, its speech aside."""
    trained = weights if recipe.method == "full" else round(ADAPTER_SHARE * weights)
    checkpoint = trained * (1 + OPTIMISER + (1 if recipe.average else 0))
    # One checkpoint more than are kept, while the newest is written.
    return WEIGHT_BYTES * (MODELS * weights + (recipe.keep_checkpoints + 1) * checkpoint) + LOGS_BYTES


def check(place: Path, base: Path, recipe: Recipe, *, speech_bytes: int = 0) -> None:
    """Raises TrainingError where the disk of `place` has too little room for the run."""
    needed = needed_bytes(parameters(base), recipe) + speech_bytes
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        less = "method=lora" if recipe.method == "full" else f"keep_checkpoints={max(1, recipe.keep_checkpoints // 2)}"
        raise TrainingError(
            f"the disk of {place} has {_gb(free)} free and the run needs {_gb(needed)} for checkpoints and models: "
            f"free some space, or set {less}"
        )


def _gb(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"
