"""Training material beside the dataset: replayed speech of earlier models, rehearsed speech, and the user's noises."""

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
from voxloop.records import SAMPLE_RATE, Dataset, Model, Run, Transcript, Utterance
from voxloop.speech import audio
from voxloop.steps import datasets
from voxloop.steps.datasets import DatasetRow
from voxloop.steps.recordings.sources import AUDIO_SUFFIXES
from voxloop.steps.training import packing
from voxloop.steps.training.recipes import Recipe
from voxloop.stores import tables

if TYPE_CHECKING:
    from voxloop.workspace import Workspace

log = logging.getLogger(__name__)

SURE = 0.9  # mean probability of its tokens from which a machine's text is rehearsed
SPOKEN_S = 1.0  # seconds of the shortest clip that is rehearsed
EPOCHS_APART = 10  # epochs that hear different clips again, where there are so many; more are not written out
NOISE_S = 60.0  # of each file: its beginning
NOISES_S = 1800.0  # of all files: they are held in memory, 115 MB


def resolved(ws: Workspace, recipe: Recipe, dataset: Dataset, base: Model) -> Recipe:
    """The recipe with its defaults resolved (audio context, replayed datasets, LoRA targets), for the run's record.

    Raises UnknownRecord for a missing dataset, SettingError for a missing noise folder, and UsageError if the base
    model's family lacks a capability that the recipe needs.
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
        raise SettingError(f"noise_folder is {recipe.noise_folder!r}, which is not a folder")
    if recipe.method == "lora" and not recipe.lora_targets:
        recipe = replace(recipe, lora_targets=kind.lora_targets)
    if not recipe.replay_share:
        return replace(recipe, replay_from=())
    named = [datasets.find(ws, name).id for name in recipe.replay_from] or learnt(ws, base)
    return replace(recipe, replay_from=tuple(id for id in dict.fromkeys(named) if id != dataset.id))


def learnt(ws: Workspace, base: Model) -> list[str]:
    """Datasets that a model and the models before it were trained on, newest first."""
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


def write_material(ws: Workspace, recipe: Recipe, dataset: Dataset, base: str, folder: Path) -> dict[str, str]:
    """Write the replay manifest and the noises; return their fields of `TrainingConfig`. `base` is a model's id."""
    said = {}
    again = replay_rows(ws, recipe, dataset)
    if recipe.rehearse:
        again += rehearsal_rows(ws, recipe, dataset, base)[: _most(ws, recipe, dataset) - len(again)]
    if again:
        said["replay"] = str(datasets.write_rows(ws, again, folder / "data" / "replay.jsonl").relative_to(folder))
    if recipe.noise_folder is not None and recipe.noise_folder_share:
        said["noise"] = str(_write_noises(Path(recipe.noise_folder).expanduser(), folder / "noise").relative_to(folder))
    return said


def replay_rows(ws: Workspace, recipe: Recipe, dataset: Dataset) -> list[DatasetRow]:
    """Training rows of the recipe's earlier datasets, of which every epoch replays a share.

    Excludes rows of `dataset`, rows that any dataset uses for val or test, and rows of its val and test recordings.
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
    return rows[: _most(ws, recipe, dataset)]


def _most(ws: Workspace, recipe: Recipe, dataset: Dataset) -> int:
    """The most rows beside the dataset that are written out for a run."""
    clips = len(datasets.rows(ws, dataset.id, "train"))
    return EPOCHS_APART * round(clips * recipe.replay_share / (1 - recipe.replay_share))


def rehearsal_rows(ws: Workspace, recipe: Recipe, dataset: Dataset, base: str) -> list[DatasetRow]:
    """Utterances of other speakers with the base's own texts, where it is sure of them.

    Nobody's val or test speech is among them, and nobody of whom the workspace does not know who speaks.
    """
    if not recipe.replay_share:
        return []
    known = {row.speaker for row in datasets.rows(ws, dataset.id)}
    t, u = tables.transcript.c, tables.utterance.c
    query = (
        sa.select(t.id, t.utterance)
        .join(tables.utterance, t.utterance == u.id)
        .where(t.kind == "hypothesis", t.by == base, t.confidence >= SURE)
        .where(u.status != "rejected", u.speaker.is_not(None))
        .where(sa.or_(u.split.is_(None), u.split == "train"))
    )
    with ws.read() as reader:
        found = dict(reader.connection.execute(query).tuples().all())
        texts = reader.find_all(Transcript, list(found))
        spoken = reader.find_all(Utterance, list(found.values()))
    rows = [
        DatasetRow(
            utterance=one.id,
            recording=one.recording,
            start=one.start,
            end=one.end,
            split="train",
            text=text.text,
            kind="hypothesis",
            transcript=text.id,
            speaker=one.speaker,
            language=one.language or text.language,
        )
        for text, one in ((texts[id], spoken[utterance]) for id, utterance in found.items())
        if one.speaker not in known and text.text and not text.guards and one.duration >= SPOKEN_S
    ]
    return sorted(rows, key=lambda row: datasets.position(f"replay {row.utterance}"))


def _write_noises(source: Path, target: Path) -> Path:
    """Write the noises below a folder as 16 kHz mono WAV. Raises SettingError if there are none."""
    target.mkdir(parents=True, exist_ok=True)
    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    left_s = NOISES_S
    written = 0
    for path in files:
        if left_s <= 0:
            log.warning(
                "only the first %.0f minutes of noise are used; ignoring %s and later files", NOISES_S / 60, path
            )
            break
        try:
            noise = audio.decode(path)[: round(min(NOISE_S, left_s) * SAMPLE_RATE)]
        except AudioError as error:
            raise SettingError(f"noise_folder: {error}; remove the file from {source}, or repair it") from error
        if noise.any():
            _write_wav(target / f"{written:05}.wav", noise)
            left_s -= len(noise) / SAMPLE_RATE
            written += 1
    if not written:
        raise SettingError(f"noise_folder {source} contains no noise: put audio files there that are not silent")
    return target


def _write_wav(path: Path, clip: Any) -> None:
    if not path.exists():
        partial = path.with_suffix(".partial")
        partial.write_bytes(audio.wav_bytes(audio.to_pcm16(clip)))
        partial.replace(path)
