"""What a run hears beside its dataset: speech that its base model learnt before, and noises of the user's own."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from voxloop import models
from voxloop.errors import AudioError, SettingError
from voxloop.families.contract import require
from voxloop.families.registry import family
from voxloop.records import SAMPLE_RATE, Dataset, Model, Run
from voxloop.speech import audio
from voxloop.steps import datasets
from voxloop.steps.recordings.sources import AUDIO_SUFFIXES
from voxloop.steps.training import packing
from voxloop.steps.training.recipes import Recipe
from voxloop.stores import tables

if TYPE_CHECKING:
    from voxloop.steps.datasets import DatasetRow
    from voxloop.workspace import Workspace

log = logging.getLogger(__name__)

EPOCHS_APART = 10  # epochs that hear different clips again, where there are so many; more are not written out
NOISE_S = 60.0  # of each file: its beginning
NOISES_S = 1800.0  # of all files: they are held in memory, 115 MB


def resolved(ws: Workspace, recipe: Recipe, dataset: Dataset, base: Model) -> Recipe:
    """The recipe with how clips are fed, the ids of the datasets that are heard again, the layers that get adapters.

    So that the run's record is complete.

    Raises UnknownRecord for a dataset, and SettingError for a folder of noises, that is not there; UsageError where
    the recipe asks for what the base model's family lacks.
    """
    kind = family(base.family)
    if recipe.audio_context == "auto":
        folder = models.model_folder(ws, base) if "short context" in kind.capabilities else base.where
        recipe = replace(recipe, audio_context=packing.usual_context(kind, folder))
    if recipe.audio_context != "full":
        require(kind, "short context")
    if recipe.ctc_weight or recipe.encoder_copies:
        require(kind, "encoder states")
    if recipe.noise_folder is not None and not Path(recipe.noise_folder).expanduser().is_dir():
        raise SettingError(f"noise_folder is {recipe.noise_folder!r}: there is no such folder")
    if recipe.method == "lora" and not recipe.lora_targets:
        recipe = replace(recipe, lora_targets=kind.lora_targets)
    if not recipe.replay_share:
        return replace(recipe, replay_from=())
    named = [datasets.find(ws, name).id for name in recipe.replay_from] or learnt(ws, base)
    return replace(recipe, replay_from=tuple(id for id in dict.fromkeys(named) if id != dataset.id))


def learnt(ws: Workspace, base: Model) -> list[str]:
    """Datasets that a model and the models before it were trained on, the latest first."""
    found: list[str] = []
    seen: set[str] = set()
    with ws.read() as reader:
        model: Model | None = base
        while model is not None and model.id not in seen:
            seen.add(model.id)
            run = reader.find(Run, model.run) if model.run else None
            if run is not None:
                found += [run.dataset, *run.recipe.get("replay_from", ())]
            model = reader.find(Model, model.base)
        return [id for id in dict.fromkeys(found) if reader.find(Dataset, id)]


def write_material(ws: Workspace, recipe: Recipe, dataset: Dataset, folder: Path) -> dict[str, str]:
    """Lay out what the recipe hears beside the dataset; what `TrainingConfig` says of it."""
    said = {}
    again = replay_rows(ws, recipe, dataset)
    if again:
        said["replay"] = str(datasets.write_rows(ws, again, folder / "data" / "replay.jsonl").relative_to(folder))
    if recipe.noise_folder is not None and recipe.noise_folder_share:
        said["noise"] = str(_write_noises(Path(recipe.noise_folder).expanduser(), folder / "noise").relative_to(folder))
    return said


def replay_rows(ws: Workspace, recipe: Recipe, dataset: Dataset) -> list[DatasetRow]:
    """Training rows of the recipe's earlier datasets, of which every epoch hears a share.

    Never what is in `dataset` already, what any dataset validates or tests with, or what lies in the same recording.
    """
    share = recipe.replay_share
    if not share or not recipe.replay_from:
        return []
    own = datasets.rows(ws, dataset.id)
    known = {row.utterance for row in own}
    kept_apart = {row.recording for row in own if row.split != "train"}
    found: dict[str, DatasetRow] = {}
    for id in recipe.replay_from:
        for row in datasets.rows(ws, id, "train"):
            if row.utterance not in known and row.recording not in kept_apart:
                found.setdefault(row.utterance, row)
    d, u = tables.dataset_utterance.c, tables.utterance.c
    with ws.read() as reader:
        measured = set(reader.connection.execute(sa.select(d.utterance).where(d.split != "train")).scalars())
        measured |= set(reader.connection.execute(sa.select(u.id).where(u.split.in_(("val", "test")))).scalars())
    rows = [row for row in found.values() if row.utterance not in measured]
    rows.sort(key=lambda row: datasets.position(f"replay {row.utterance}"))
    an_epoch = round(sum(row.split == "train" for row in own) * share / (1 - share))
    return rows[: EPOCHS_APART * an_epoch]


def _write_noises(source: Path, target: Path) -> Path:
    """Write the noises below a folder as 16 kHz mono WAV. Raises SettingError where there is none."""
    target.mkdir(parents=True, exist_ok=True)
    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    left_s = NOISES_S
    written = 0
    for path in files:
        if left_s <= 0:
            log.warning("noises beyond %.0f minutes are not used: %s and those behind it", NOISES_S / 60, path)
            break
        try:
            noise = audio.decode(path)[: round(min(NOISE_S, left_s) * SAMPLE_RATE)]
        except AudioError as error:
            raise SettingError(f"noise_folder: {error}; take the file out of {source}, or repair it") from error
        if noise.any():
            _write_wav(target / f"{written:05}.wav", noise)
            left_s -= len(noise) / SAMPLE_RATE
            written += 1
    if not written:
        raise SettingError(f"noise_folder {source} holds no noise: needed are audio files that are not silent")
    return target


def _write_wav(path: Path, clip: Any) -> None:
    if not path.exists():
        partial = path.with_suffix(".partial")
        partial.write_bytes(audio.wav_bytes(audio.to_pcm16(clip)))
        partial.replace(path)
