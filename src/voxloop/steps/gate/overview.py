"""All models with their lineage, and the details of one: origin, evaluations, aliases, promotions, what it changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from voxloop import models
from voxloop.errors import UnknownRecord
from voxloop.records import Dataset, Evaluation, Model, Promotion, Run
from voxloop.steps import training
from voxloop.steps.evaluation import with_texts
from voxloop.steps.gate.comparison import Comparison, SideBySide, side_by_side
from voxloop.steps.gate.promotion import comparisons, history
from voxloop.stores import tables

if TYPE_CHECKING:
    from voxloop.workspace import Workspace


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOverview:
    """A model in the list of all models."""

    model: Model
    aliases: tuple[str, ...]
    evaluation: Evaluation | None  # the newest on a test split
    run: Run | None  # None: not trained in this workspace
    dataset: Dataset | None  # what the run was trained on


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelDetails:
    """One model with its evaluations and promotions."""

    model: Model
    folder: str  # its files on this machine
    aliases: tuple[str, ...]
    evaluations: tuple[Evaluation, ...]  # with new texts and texts heard in training scored separately
    comparisons: tuple[Comparison, ...]  # that the gate made of it as a challenger, oldest first
    promotions: tuple[Promotion, ...]  # in which it gained or lost an alias, oldest first


@dataclass(frozen=True, kw_only=True, slots=True)
class Lineage:
    """Where everything comes from: models from runs, runs from datasets and models. All oldest first."""

    models: tuple[ModelOverview, ...]
    runs: tuple[Run, ...]
    datasets: tuple[Dataset, ...]


def overview(ws: Workspace) -> list[ModelOverview]:
    """All models, oldest first."""
    with ws.read() as reader:
        found = reader.all(Model)
        aliases: dict[str, list[str]] = {}
        for alias, id in reader.connection.execute(sa.select(tables.alias.c.name, tables.alias.c.model)):
            aliases.setdefault(id, []).append(alias)
        measured = {one.model: one for one in reader.all(Evaluation, tables.evaluation.c.split == "test")}
        runs = {run.id: run for run in reader.all(Run)}
        datasets = {dataset.id: dataset for dataset in reader.all(Dataset)}
    listed = []
    for model in found:
        run = runs.get(model.run) if model.run else None
        listed.append(
            ModelOverview(
                model=model,
                aliases=tuple(aliases.get(model.id, ())),
                evaluation=measured.get(model.id),
                run=run,
                dataset=datasets.get(run.dataset) if run else None,
            )
        )
    return listed


def details(ws: Workspace, name: str) -> ModelDetails:
    """Details of the model called `name`, as in `models.base_model`. Raises ModelError or UnknownRecord."""
    model = models.base_model(ws, name)
    alias = tables.alias.c
    with ws.read() as reader:
        evaluations = reader.all(Evaluation, tables.evaluation.c.model == model.id)
        named = reader.connection.execute(sa.select(alias.name).where(alias.model == model.id)).scalars().all()
    return ModelDetails(
        model=model,
        folder=models.model_folder(ws, model),
        aliases=tuple(named),
        comparisons=tuple(comparisons(ws, model.id)),
        evaluations=tuple(with_texts(ws, one) for one in evaluations),
        promotions=tuple(move for move in history(ws) if model.id in (move.model, move.previous)),
    )


def lineage(ws: Workspace) -> Lineage:
    """All models, runs and datasets of the workspace."""
    training.reconcile(ws)
    with ws.read() as reader:
        runs, datasets = reader.all(Run), reader.all(Dataset)
    return Lineage(models=tuple(overview(ws)), runs=tuple(runs), datasets=tuple(datasets))


def heard_differently(ws: Workspace, name: str) -> SideBySide:
    """What a model hears differently from the one that the gate last compared it with, utterance by utterance.

    Raises UnknownRecord if the gate has not compared it, or if one of the evaluations was deleted since.
    """
    model = models.base_model(ws, name)
    judged = comparisons(ws, model.id)
    if not judged:
        raise UnknownRecord(
            f"model {model.id.removeprefix('sha256-')[:12]} was not compared with another yet: try to promote it"
        )
    newest = judged[-1]
    with ws.read() as reader:
        found = [reader.get(Evaluation, id) for id in (newest.challenger_evaluation, newest.champion_evaluation)]
    return side_by_side(ws, *found)
