"""Ask for a training as people do: batches in clips, minutes, a share for validation, and a dataset that may be new."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import sqlalchemy as sa

from voxloop import models
from voxloop.errors import SettingError, UsageError
from voxloop.families.contract import require
from voxloop.families.registry import family, family_of
from voxloop.records import Dataset, seconds
from voxloop.steps import datasets
from voxloop.steps.training import disk, packing, recipes
from voxloop.steps.training.recipes import Recipe
from voxloop.steps.training.submit import queue
from voxloop.stores import tables

if TYPE_CHECKING:
    from voxloop.records import Run
    from voxloop.workspace import Workspace

WINDOW_S = 30.0  # what a clip takes in a batch where it is padded to the model's window
MARGIN_S = 0.64  # with the context `trimmed`: the padding after each clip
USUAL_CLIP_S = 5.0  # where no clip is known yet
MOST_VALIDATION = 0.5  # more would leave less to learn from than to choose on


@dataclass(frozen=True, kw_only=True)
class TrainingRequest:
    """What somebody asks to be trained. Whatever is None is chosen as `voxloop train` chooses it."""

    dataset: str | None = None
    """Name or id of a dataset. None: freeze what is reviewed now; if nothing has changed, that is the newest one."""
    base: str | None = None
    """Model to fine-tune, as `models.base_model` takes it. None: the champion, or else the setting `base_model`."""
    method: str | None = None
    """full or lora."""
    recipe: str | None = None
    """Name of a recipe."""
    batch_clips: int | None = None
    """Clips per batch."""
    minutes: float | None = None
    """Longest training time."""
    validation_share: float | None = None
    """Share of a new dataset for validation, from 0 to 0.5."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the recipe by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingProposal:
    """The recipe that a request would be trained with, and what a form needs to show it."""

    recipe: Recipe
    dataset: Dataset | None  # None: a new one
    train_s: float  # training speech in seconds; estimated before the dataset is frozen
    clip_s: float  # seconds that a clip takes in a batch, on average
    fixed: str | None  # what splits that were decided before forbid

    @property
    def batch_clips(self) -> int:
        """Clips per batch, on average."""
        return max(1, round(self.recipe.batch_seconds / self.clip_s))


def propose(ws: Workspace, request: TrainingRequest, folder: Path) -> TrainingProposal:
    """The recipe for a request, whose base model lies in `folder`. Nothing is written."""
    dataset = datasets.find(ws, request.dataset) if request.dataset else None
    clips, speech_s = _train_split(ws, dataset)
    length = {} if request.minutes is None else {"max_seconds": 60 * request.minutes}
    recipe = recipes.override(_chosen(request, folder, speech_s), as_overrides({**request.settings, **length}))
    clip_s = _clip_s(recipe, folder, speech_s / clips if clips else USUAL_CLIP_S)
    if request.batch_clips is not None:
        if request.batch_clips < 1:
            raise SettingError(f"a batch of {request.batch_clips} clips: give 1 or more")
        recipe = replace(recipe, batch_seconds=round(request.batch_clips * clip_s, 2))
    return TrainingProposal(
        recipe=recipe,
        dataset=dataset,
        train_s=speech_s,
        clip_s=clip_s,
        fixed=_fixed(ws, dataset),
    )


def start(ws: Workspace, request: TrainingRequest, *, by: str) -> Run:
    """Freeze a dataset if one is asked for, and queue a run for a worker to train.

    Raises UsageError if there is nothing to train on, SettingError for a wrong setting.
    """
    if request.dataset is not None and request.validation_share is not None:
        raise UsageError(
            f"dataset {request.dataset} is frozen, with its splits: leave the share for validation out, or leave the "
            "dataset out to freeze a new one"
        )
    model = models.base_model(ws, request.base)
    folder = Path(models.model_folder(ws, model))
    propose(ws, request, folder)  # before anything is frozen: a wrong setting is told of first
    frozen = datasets.find(ws, request.dataset) if request.dataset is not None else _frozen(ws, request)
    made = propose(ws, replace(request, dataset=frozen.id), folder)
    return queue(ws, frozen, model, made.recipe, by=by)


def _frozen(ws: Workspace, request: TrainingRequest) -> Dataset:
    share = request.validation_share
    if share is None:
        return datasets.build(ws)
    if not 0 <= share <= MOST_VALIDATION:
        raise SettingError(f"the validation share is {share:g}: give a number from 0 to {MOST_VALIDATION:g}")
    test = _usual(ws)[2]
    if share + test >= 1:
        raise SettingError(f"validation ({share:.0%}) and test ({test:.0%}) would leave nothing to train on")
    return datasets.build(ws, ratios=(1 - share - test, share, test))


def _chosen(request: TrainingRequest, folder: Path, train_s: float) -> Recipe:
    """The recipe by its name, or the one for this model, this much speech and this method."""
    published = _published(folder)
    if request.recipe is not None:
        recipe = recipes.named(request.recipe, published=published)
    else:
        recipe = recipes.choose(train_seconds=train_s, parameters=_parameters(folder), published=published)
    if request.method is None or request.method == recipe.method:
        return recipe
    if request.method not in ("full", "lora"):
        raise SettingError(f"method is {request.method!r}: choose full or lora")
    if request.recipe is None:
        # Adapters need other rates than all weights, so the recipe follows the method.
        name = "careful" if request.method == "lora" else "full" if train_s >= recipes.MUCH_SPEECH_S else "quick"
        recipe = replace(recipes.named(name, published=published), why=f"the method {request.method} was asked for")
    return replace(recipe, method=cast("recipes.Method", request.method))


def _published(folder: Path) -> bool:
    return family(family_of(folder)).published(folder)


def _parameters(folder: Path) -> int:
    """Number of parameters; of a CTranslate2 folder from its shape."""
    kind = family(family_of(folder))
    counted = disk.parameters(folder)
    if counted or "cost estimate" not in kind.capabilities:
        return counted
    return require(kind, "cost estimate").cost(folder).parameters


def as_overrides(settings: Mapping[str, Any]) -> list[str]:
    """Settings as `key=value`, the form that `--set` takes."""

    def written(value: Any) -> str:
        if value is None or value in ([], ()):
            return "none"
        if isinstance(value, list | tuple):
            return ",".join(map(str, value))
        return str(value).lower() if isinstance(value, bool) else str(value)

    return [f"{name}={written(value)}" for name, value in settings.items()]


def _clip_s(recipe: Recipe, folder: Path, mean_s: float) -> float:
    """Seconds that a clip of this mean length takes in a batch, with its padding."""
    context = recipe.audio_context
    if context == "auto":
        context = packing.usual_context(family(family_of(folder)), folder)
    if context == "full":
        return WINDOW_S
    if context == "floor":
        return max(recipe.context_floor_s, 2 * mean_s)
    return mean_s + MARGIN_S if context == "trimmed" else mean_s


def _train_split(ws: Workspace, dataset: Dataset | None) -> tuple[int, float]:
    """Clips and seconds of training speech: of the dataset, or about those of one that would be frozen now."""
    if dataset is not None:
        return dataset.clips.get("train", 0), 3600 * dataset.hours.get("train", 0.0)
    clips, speech_s = _references(ws)
    share = _usual(ws)[0]
    return math.ceil(share * clips), share * speech_s


def _usual(ws: Workspace) -> tuple[float, float, float]:
    """The shares of train, val and test that a new dataset would have, about."""
    return ws.settings.ratios or datasets.usual_ratios(_references(ws)[0], ws.settings.promote_min_utterances)


def _references(ws: Workspace) -> tuple[int, float]:
    """The number and seconds of reviewed utterances."""
    u = tables.utterance.c
    reviewed = sa.select(sa.func.count(), sa.func.sum(u.end - u.start)).where(u.status == "reviewed")
    with ws.read() as reader:
        count, samples = reader.connection.execute(reviewed).one()
    return int(count), seconds(int(samples or 0))


def _fixed(ws: Workspace, dataset: Dataset | None) -> str | None:
    """What splits that were decided before forbid, in words."""
    if dataset is not None:
        clips = ", ".join(f"{count:,} {split}" for split, count in dataset.clips.items())
        return f"This dataset is frozen: {clips} clips. For another share of validation, build a new dataset."
    u = tables.utterance.c
    decided = sa.select(u.split, sa.func.count()).where(u.split.is_not(None)).group_by(u.split)
    with ws.read() as reader:
        found: dict[str, int] = dict(reader.connection.execute(decided).tuples().all())
    if not found:
        return None
    listed = ", ".join(f"{found[split]:,} {split}" for split in ("train", "val", "test") if split in found)
    return (
        f"Clips of earlier datasets keep their split ({listed}), so that nothing a model has trained on ever tests it. "
        "The share counts for clips that are new."
    )
