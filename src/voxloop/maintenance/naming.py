"""Names: what people call models and datasets. Ids stay what they are."""

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

NAME = re.compile(r"[^\W_][\w.-]{0,63}")  # no path, no option, nothing that a shell or a table would take apart
RESERVED = (models.CHAMPION, models.STARTER, models.BASE, "previous")


def rename_model(ws: Workspace, model: str, name: str, *, by: str = "cli") -> Model:
    """Give a model a name, by which every command takes it; a name that it had before is free again.

    `model` is what `models.base_model` takes. Raises UsageError for a name that means something else.
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
    """Give a dataset another name; of several that bear one name, it means the newest. Raises UsageError."""
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
            f"{name!r} cannot be a name: give up to 64 letters, digits, dots, hyphens and underscores, "
            "a letter or a digit first"
        )


def _check_free(reader: Reader, name: str, id: str) -> None:
    """Raises UsageError or ConflictError where a name means another model already."""
    alias = reader.connection.execute(sa.select(tables.alias.c.model).where(tables.alias.c.name == name)).scalar()
    if alias or name in RESERVED or name in hub.FASTER_WHISPER:
        raise UsageError(f"{name!r} means something else wherever a model is named: give another name")
    other = reader.all(Model, tables.model.c.name == name)
    if other:
        raise ConflictError(
            f"the model {other[0].id.removeprefix('sha256-')[:12]} is called {name!r}: rename that one first"
        )
    try:
        taken = reader.get(Model, name).id
    except UnknownRecord:
        return
    if taken != id:
        raise UsageError(f"{name!r} is a part of the id of another model: give another name")
