"""What is known of each model: what it was made from, how well it was measured, and which aliases it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from voxloop import models
from voxloop.records import Dataset, Evaluation, Model, Promotion, Run
from voxloop.steps.evaluation import with_texts
from voxloop.steps.gate.promotion import history
from voxloop.stores import tables

if TYPE_CHECKING:
    from voxloop.workspace import Workspace


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOverview:
    """A model in the listing of all."""

    model: Model
    aliases: tuple[str, ...]
    evaluation: Evaluation | None  # the newest on a test split
    run: Run | None  # None: it did not come from a run of this workspace
    dataset: Dataset | None  # what that run learnt from


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelDetails:
    """One model with everything measured and decided about it."""

    model: Model
    folder: str  # where its files are on this machine
    evaluations: tuple[Evaluation, ...]  # with new texts and texts heard in training apart
    promotions: tuple[Promotion, ...]  # in which it came or went, oldest first


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
    """The model that `name` means, as `models.base_model` reads names. Raises ModelError or UnknownRecord."""
    model = models.base_model(ws, name)
    with ws.read() as reader:
        evaluations = reader.all(Evaluation, tables.evaluation.c.model == model.id)
    return ModelDetails(
        model=model,
        folder=models.model_folder(ws, model),
        evaluations=tuple(with_texts(ws, one) for one in evaluations),
        promotions=tuple(move for move in history(ws) if model.id in (move.model, move.previous)),
    )
