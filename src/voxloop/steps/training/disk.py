"""Whether a run's checkpoints and models will fit on the disk, asked before it begins."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from voxloop.errors import TrainingError
from voxloop.families.contract import require
from voxloop.families.registry import family, family_of
from voxloop.records import MAX_UTTERANCE_S, SAMPLE_RATE
from voxloop.speech.audio import SAMPLE_BYTES
from voxloop.steps.training.recipes import Recipe

WEIGHT_BYTES = 4  # weights are kept in fp32
OPTIMISER = 2  # AdamW keeps two numbers for each trained weight
MODELS = 4  # best, the next best while it is written, final, and the copy that is registered
ADAPTER_SHARE = 0.05  # of the weights: more than the adapters of any sensible rank
PADDING = 1.15  # of a batch, beside a second for the margin and the rounding of each clip
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


def encoded_bytes(base: Path, recipe: Recipe, *, clips: int, seconds: float) -> int:
    """What the kept outputs of an encoder take up that is not trained, for so many clips of so many seconds in all."""
    if not recipe.encoder_copies or not (base / "config.json").exists():  # of the Hub: nothing is known of it yet
        return 0
    kind = require(family(family_of(base)), "encoder states")
    full_s = kind.padded_seconds(0.0, MAX_UTTERANCE_S)
    if recipe.audio_context == "trimmed":
        heard_s = PADDING * (seconds + clips) + recipe.full_length_share * full_s * clips
    elif recipe.audio_context == "full":
        heard_s = full_s * clips
    else:
        alone = recipe.alone_share if recipe.audio_context == "packed" else 1.0
        heard_s = alone * (recipe.context_floor_s * clips + 2 * seconds)
        heard_s += (1 - alone) * PADDING * (seconds + clips) + full_s
    heard_s *= (1 + recipe.silence_share) / (1 - recipe.replay_share)
    return kind.encoder_bytes(base, recipe.encoder_copies * heard_s)


def needed_bytes(weights: int, recipe: Recipe) -> int:
    """The most that a run on so many weights holds at once, its speech aside."""
    trained = weights if recipe.method == "full" else round(ADAPTER_SHARE * weights)
    checkpoint = trained * (1 + OPTIMISER + (1 if recipe.average else 0))
    # One checkpoint more than are kept, while the newest is written.
    models = MODELS + recipe.keep_checkpoints_after
    return WEIGHT_BYTES * (models * weights + (recipe.keep_checkpoints + 1) * checkpoint) + LOGS_BYTES


def check(
    place: Path, base: Path, recipe: Recipe, *, clips: int = 0, speech_s: float = 0.0, copied: bool = False
) -> None:
    """Raises TrainingError where the disk of `place` has too little room for the run and its speech.

    Where its checkpoints are `copied` to the blob store, the one that is on its way stays, whatever is kept.
    """
    recipe = replace(recipe, keep_checkpoints=recipe.keep_checkpoints + copied)
    encoded = encoded_bytes(base, recipe, clips=clips, seconds=speech_s)
    needed = needed_bytes(parameters(base), recipe) + round(speech_s * SAMPLE_RATE * SAMPLE_BYTES) + encoded
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise TrainingError(
            f"the disk of {place} has {_gb(free)} free and the run needs {_gb(needed)} for checkpoints and models: "
            f"free some space, or set {_smaller(recipe, encoded / needed)}"
        )


def _smaller(recipe: Recipe, encoded_share: float) -> str:
    if encoded_share > 0.5:
        return f"encoder_copies={recipe.encoder_copies // 2}"
    return "method=lora" if recipe.method == "full" else f"keep_checkpoints={max(1, recipe.keep_checkpoints // 2)}"


def _gb(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"
