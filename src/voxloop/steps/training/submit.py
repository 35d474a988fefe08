"""Queue a run with its dataset, base model and complete recipe, and lay out its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxloop import models
from voxloop.errors import SettingError, UsageError
from voxloop.families.registry import family, family_of
from voxloop.records import Dataset, Model, Run
from voxloop.steps import datasets, transcripts
from voxloop.steps.training import disk, material, moving, recipes, trackers, validation
from voxloop.steps.training.files import CONFIG, read_json, write_json
from voxloop.steps.training.recipes import Recipe

if TYPE_CHECKING:
    from voxloop.workspace import Transaction, Workspace


def submit(
    ws: Workspace,
    *,
    dataset: str | None = None,
    base: str | None = None,
    method: str | None = None,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    max_seconds: float | None = None,
    id: str | None = None,
) -> Run:
    """Queue a new run; see `runs.train` for the arguments. With an `id` (a ULID), a second call changes nothing."""
    frozen = datasets.find(ws, dataset)
    model = models.base_model(ws, base)
    folder = Path(models.model_folder(ws, model))
    return queue(ws, frozen, model, _recipe(frozen, folder, recipe, method, overrides, max_seconds), id=id)


def suggest(ws: Workspace, *, dataset: str | None = None, base: str | None = None) -> Recipe:
    """The recipe that `train` chooses by default."""
    frozen = datasets.find(ws, dataset)
    folder = Path(models.model_folder(ws, models.base_model(ws, base)))
    return _recipe(frozen, folder, None, None, (), None)


def submit_again(ws: Workspace, run: Run, overrides: Sequence[str] = (), *, by: str | None = None) -> Run:
    """Queue a new run with the settings of an earlier one, some of them changed."""
    with ws.read() as reader:
        frozen, model = reader.get(Dataset, run.dataset), reader.get(Model, run.base)
    changed = recipes.override(recipes.from_dict(run.recipe), overrides)
    return queue(ws, frozen, model, changed, retry_of=run.id, by=by)


def queue(
    ws: Workspace,
    dataset: Dataset,
    model: Model,
    recipe: Recipe,
    *,
    retry_of: str | None = None,
    id: str | None = None,
    by: str | None = None,
) -> Run:
    """Queue a run with this recipe; `by` is stored with the event. A run whose `id` is known stays as it is.

    Raises UsageError if there are no training clips, and if the disk is too small.
    """
    from ulid import ULID

    if not dataset.clips.get("train"):
        raise UsageError(
            f"the train split of dataset {dataset.name!r} is empty ({_counts(dataset)}): "
            "review more utterances, or enlarge the split with `voxloop dataset build --ratios`"
        )
    trackers.check(ws.settings.trackers)
    recipe = material.resolved(ws, recipe, dataset, model)
    check_disk(ws, dataset, model, recipe)
    run = Run(
        id=id or str(ULID()),
        dataset=dataset.id,
        base=model.id,
        family=model.family,
        method=recipe.method,
        recipe=recipe.as_dict(),
        retry_of=retry_of,
    )
    with ws.transaction() as tx:
        if tx.add(run):
            enqueue(tx, run.id, by=by)
        return tx.get(Run, run.id)


def enqueue(tx: Transaction, run: str, *, by: str | None = None) -> None:
    """Create the run's job, which is its place in the queue."""
    tx.emit("training.queued", run, key=f"{run}:{tx.now()}", payload={"by": by} if by else {})


def check_disk(ws: Workspace, dataset: Dataset, model: Model, recipe: Recipe) -> None:
    heard = ("train", "val")
    clips = sum(dataset.clips.get(split, 0) for split in heard)
    speech_s = 3600 * sum(dataset.hours.get(split, 0.0) for split in heard)
    base, copied = Path(models.model_folder(ws, model)), moving.copies_checkpoints(ws)
    disk.check(ws.runs, base, recipe, clips=clips, speech_s=speech_s, copied=copied)


def _counts(dataset: Dataset) -> str:
    return ", ".join(f"{number} {split}" for split, number in dataset.clips.items()) or "empty"


def suited(dataset: Dataset, folder: Path, name: str | None = None) -> Recipe:
    """The recipe called `name` for the model in `folder`, or the default for that model and dataset."""
    published = family(family_of(folder)).published(folder)
    if name is not None:
        return recipes.named(name, published=published)
    return recipes.choose(
        train_seconds=dataset.hours.get("train", 0.0) * 3600,
        parameters=disk.parameters(folder),
        published=published,
    )


def _recipe(
    dataset: Dataset,
    folder: Path,
    name: str | None,
    method: str | None,
    overrides: Sequence[str],
    max_seconds: float | None,
) -> Recipe:
    """The requested recipe, or the default for dataset and model, with all overrides applied."""
    recipe = suited(dataset, folder, name)
    given = list(overrides)
    if method is not None:
        if method not in ("full", "lora"):
            raise SettingError(f"method is {method!r}: choose full or lora")
        given.append(f"method={method}")
    if max_seconds is not None:
        given.append(f"max_seconds={max_seconds}")
    return recipes.override(recipe, given)


def lay_out(ws: Workspace, run: Run, began: Mapping[str, Any]) -> Path:
    """Fill the run's folder with manifests, audio and the complete settings; existing files stay.

    `began` holds the settings of `training_config.json` if the run began on another machine.
    """
    folder = ws.runs / run.id
    with ws.read() as reader:
        model = reader.get(Model, run.base)
    values = {
        # These may have changed since the run was paused.
        "base": models.model_folder(ws, model),
        "device": ws.settings.device or "auto",
        "threads": ws.settings.threads,
        "trackers": list(ws.settings.trackers),
    }
    if (folder / CONFIG).exists():
        write_json(folder / CONFIG, read_json(folder / CONFIG) | values)
        return folder
    with ws.read() as reader:
        dataset = reader.get(Dataset, run.dataset)
    recipe = recipes.from_dict(began.get("recipe", run.recipe))
    check_disk(ws, dataset, model, recipe)
    train = datasets.write_split(ws, run.dataset, "train", folder / "data")
    val = validation.write_val(ws, run.dataset, folder / "data" / "val.jsonl")
    # Written last: a folder that has it is complete.
    write_json(
        folder / CONFIG,
        {
            "run": run.id,
            "family": run.family,
            "train": str(train.relative_to(folder)),
            "val": str(val.relative_to(folder)),
            "recipe": recipe.as_dict(),
            # As at the start of the run, so that its evaluations are comparable.
            "normaliser": began.get("normaliser", ws.settings.normaliser),
            "hearing": began.get("hearing", validation.as_served(ws, transcripts.decoding(ws, model=model))),
        }
        | material.write_material(ws, recipe, dataset, run.base, folder)
        | values,
    )
    return folder
