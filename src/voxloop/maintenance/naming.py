"""Give models and datasets names. Their ids do not change."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import sqlalchemy as sa

from voxloop import hub, models
from voxloop.errors import ConflictError, UnknownRecord, UsageError
from voxloop.records import Dataset, Model
from voxloop.steps import datasets
from voxloop.stores import tables

if TYPE_CHECKING:
    from voxloop.stores.catalog import Reader
    from voxloop.workspace import Workspace

NAME = re.compile(r"[^\W_][\w.-]{0,63}")  # not a path, not an option, and nothing that a shell would split
RESERVED = (models.CHAMPION, models.STARTER, models.BASE, "previous")


def rename_model(ws: Workspace, model: str, name: str, *, by: str = "cli") -> Model:
    """Name a model; every command then accepts the name, and its previous name becomes free.

    `model` is anything that `models.base_model` accepts. Raises UsageError if the name already has another meaning.
    """
    found = models.base_model(ws, model)
    _check(name)
    with ws.completion() as tx:
        held = tx.get(Model, found.id)
        if held.name == name:
            return held
        _check_free(tx, name, found.id)
        tx.change(Model, found.id, name=name)
        tx.emit("model.renamed", found.id, key=f"{found.id}:{name}:{tx.now()}", payload={"name": name, "by": by})
        return tx.get(Model, found.id)


def rename_dataset(ws: Workspace, dataset: str | None, name: str, *, by: str = "cli") -> Dataset:
    """Rename a dataset; if several share the name `dataset`, the newest is renamed. Raises UsageError."""
    found = datasets.find(ws, dataset)
    _check(name)
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


def _check(name: str) -> None:
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is not a valid name: use up to 64 letters, digits, dots, hyphens and underscores, "
            "starting with a letter or a digit"
        )


def _check_free(reader: Reader, name: str, id: str) -> None:
    """Raise UsageError or ConflictError if the name already means another model."""
    alias = reader.connection.execute(sa.select(tables.alias.c.model).where(tables.alias.c.name == name)).scalar()
    if alias or name in RESERVED or name in hub.FASTER_WHISPER:
        raise UsageError(f"{name!r} already has a meaning wherever a model is named: choose another name")
    other = reader.all(Model, tables.model.c.name == name)
    if other:
        raise ConflictError(
            f"model {other[0].id.removeprefix('sha256-')[:12]} is already called {name!r}: rename that model first"
        )
    try:
        taken = reader.get(Model, name).id
    except UnknownRecord:
        return
    if taken != id:
        raise UsageError(f"{name!r} is part of another model's id: choose another name")
