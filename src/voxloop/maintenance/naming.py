"""Give models and datasets names. Their ids do not change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from voxloop import models
from voxloop.records import Dataset, Model
from voxloop.steps import datasets

if TYPE_CHECKING:
    from voxloop.workspace import Workspace


def rename_model(ws: Workspace, model: str, name: str, *, by: str = "cli") -> Model:
    """Name a model; every command then accepts the name, and its previous name becomes free.

    `model` is anything that `models.base_model` accepts. Raises UsageError if the name already has another meaning.
    """
    found = models.base_model(ws, model)
    models.check_name(name)
    with ws.completion() as tx:
        held = tx.get(Model, found.id)
        if held.name == name:
            return held
        models.check_free(tx, name, found.id)
        tx.change(Model, found.id, name=name)
        tx.emit("model.renamed", found.id, key=f"{found.id}:{name}:{tx.now()}", payload={"name": name, "by": by})
        return tx.get(Model, found.id)


def rename_dataset(ws: Workspace, dataset: str | None, name: str, *, by: str = "cli") -> Dataset:
    """Rename a dataset; if several share the name `dataset`, the newest is renamed. Raises UsageError."""
    found = datasets.find(ws, dataset)
    models.check_name(name)
    with ws.completion() as tx:
        held = tx.get(Dataset, found.id)
        if held.name == name:
            return held
        tx.change(Dataset, found.id, name=name)
        tx.emit(
            "dataset.renamed",
            found.id,
            key=f"{found.id}:{name}:{tx.now()}",
            payload={"name": name, "before": held.name, "by": by},
        )
        return tx.get(Dataset, found.id)
