"""Delete: a model, a run or a dataset goes that nothing needs, with its evaluations, blobs and folders.

    what needs it ──► one transaction: rows gone, the event told, what is still to be deleted written down
        ──► blobs and folders

Killed anywhere, the next deletion, `verify --repair` or `forget --resume` goes on from what was written down.
Promotions and events that name it stay: history is never rewritten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa
from ulid import ULID

from voxloop import models
from voxloop.errors import ConflictError, VoxloopError
from voxloop.maintenance.removal.finishing import finish, resume
from voxloop.maintenance.removal.forgetting import alive, heard_by
from voxloop.records import Dataset, Evaluation, Model, Run
from voxloop.steps import datasets, training
from voxloop.stores import tables

if TYPE_CHECKING:
    from voxloop.stores.catalog import Reader
    from voxloop.workspace import Transaction, Workspace

Deletable = Literal["model", "run", "dataset"]
UNFINISHED = ("queued", "running", "paused", "interrupted")  # a run that goes on, or can


@dataclass(frozen=True, kw_only=True, slots=True)
class Deleted:
    """What was deleted."""

    kind: Deletable
    id: str
    name: str | None
    evaluations: int  # that went with it
    blobs: int


def delete_model(ws: Workspace, name: str, *, by: str = "cli") -> Deleted:
    """Delete a model with its evaluations, files and converted forms; a base's own files elsewhere stay.

    Raises ConflictError where an alias, a model made from it, an unfinished run or a setting needs it.
    """
    resume(ws)
    found = models.base_model(ws, name)
    set_for = _settings_that_name(ws, found.id)
    with ws.completion() as tx:
        tx.hold(Run, Evaluation)
        model = tx.get(Model, found.id)
        _refuse(f"model {_short(model.id)}", [*set_for, *_needs_model(tx, model)])
        keys, count = _drop_evaluations(tx, tables.evaluation.c.model == model.id)
        keys += [f"{model.where}/{file}" for file in model.files] if model.run is not None else []
        forms = [one.folder for one in models.conversions(ws) if one.model == model.id]
        folders = [str(path.relative_to(ws.folder)) for path in (*forms, ws.folder / models.RESTORED / model.id)]
        tx.connection.execute(sa.delete(tables.model).where(tables.model.c.id == model.id))
        if model.run is not None:  # else `verify` and `run show` would send people to what is gone
            tx.connection.execute(sa.update(tables.run).where(tables.run.c.model == model.id).values(model=None))
        removal = _write_down(tx, "model", model.id, keys, folders, by)
        tx.emit("model.deleted", model.id, key=removal, payload={"by": by, "name": model.name})
    finish(ws, removal, None)
    return Deleted(kind="model", id=model.id, name=model.name, evaluations=count, blobs=len(keys))


def delete_run(ws: Workspace, name: str, *, by: str = "cli") -> Deleted:
    """Delete a run with its log, metrics and folder. Raises ConflictError where it can go on, or its model is kept."""
    resume(ws)
    found = training.find(ws, name)
    attended = training.attended(ws, found) or alive(ws.runs / found.id)
    with ws.completion() as tx:
        run = tx.get(Run, found.id)
        _refuse(f"run {_short(run.id)}", list(_needs_run(tx, run, attended)))
        # Prefixed by its id, whichever of them a row names.
        keys = sorted(ws.blobs.list(f"runs/{run.id}/"))
        tx.connection.execute(sa.delete(tables.job).where(tables.job.c.subject == run.id))
        for table in (tables.run_metric, tables.run_log, tables.run_folder):
            tx.connection.execute(sa.delete(table).where(table.c.run == run.id))
        tx.connection.execute(sa.delete(tables.run).where(tables.run.c.id == run.id))
        removal = _write_down(tx, "run", run.id, keys, [f"runs/{run.id}"], by)
        tx.emit("run.deleted", run.id, key=removal, payload={"by": by, "name": None})
    finish(ws, removal, None)
    return Deleted(kind="run", id=run.id, name=None, evaluations=0, blobs=len(keys))


def delete_dataset(ws: Workspace, name: str, *, by: str = "cli") -> Deleted:
    """Delete a dataset with the evaluations on it. Its recordings and texts stay, and keep their splits.

    Raises ConflictError where a run learnt from it, or the model that holds an alias was promoted on it.
    """
    resume(ws)
    found = datasets.find(ws, name)
    with ws.completion() as tx:
        tx.hold(Run, Evaluation)
        dataset = tx.get(Dataset, found.id)
        _refuse(f"dataset {dataset.name} {_short(dataset.id)}", list(_needs_dataset(tx, dataset)))
        keys, count = _drop_evaluations(tx, tables.evaluation.c.dataset == dataset.id)
        manifest = dataset.manifest or f"datasets/{dataset.id}.jsonl"
        # Its lists, and pictures or shards that were made of it.
        keys += sorted({manifest, datasets.excluded_key(manifest), *ws.blobs.list(f"datasets/{dataset.id}")})
        rows = tables.dataset_utterance
        tx.connection.execute(sa.delete(rows).where(rows.c.dataset == dataset.id))
        # What came after it comes after the one before it now.
        d = tables.dataset
        tx.connection.execute(sa.update(d).where(d.c.parent == dataset.id).values(parent=dataset.parent))
        tx.connection.execute(sa.delete(d).where(d.c.id == dataset.id))
        removal = _write_down(tx, "dataset", dataset.id, keys, [], by)
        tx.emit("dataset.deleted", dataset.id, key=removal, payload={"by": by, "name": dataset.name})
    finish(ws, removal, None)
    return Deleted(kind="dataset", id=dataset.id, name=dataset.name, evaluations=count, blobs=len(keys))


# What needs it -------------------------------------------------------------------------------------------------------


def _refuse(what: str, reasons: list[str]) -> None:
    if reasons:
        raise ConflictError(f"{what} is needed and was not deleted: {'; '.join(reasons)}")


def _settings_that_name(ws: Workspace, id: str) -> list[str]:
    named: list[tuple[str, Callable[[], Model]]] = [
        ("base_model", lambda: models.base_model(ws, ws.settings.base_model)),
        ("embedding_model", lambda: models.embedding_model(ws)),
    ]
    found = []
    for setting, resolved in named:
        try:
            if resolved().id == id:
                found.append(f"the setting `{setting}` names it")
        except VoxloopError:
            continue  # what it names is not to be had: so it is not this one
    return found


def _needs_model(reader: Reader, model: Model) -> Iterator[str]:
    a = tables.alias.c
    for alias in reader.connection.execute(sa.select(a.name).where(a.model == model.id)).scalars():
        yield f"it is {alias} (`voxloop model promote` another first)"
    made = [one for one in reader.all(Model, tables.model.c.base == model.id) if one.id != model.id]
    runs = reader.all(Run, tables.run.c.base == model.id)
    trained = {run.id for run in runs}
    made += [one for one in reader.all(Model, tables.model.c.run.in_(trained)) if one not in made]
    if made:
        yield f"{_listed([one.name or _short(one.id) for one in made])} made from it (delete these first)"
    going = [run for run in runs if run.status in UNFINISHED]
    if going:
        yield f"{_listed([_short(run.id) for run in going], 'run')} going on from it (`voxloop run stop`)"


def _needs_run(reader: Reader, run: Run, attended: bool) -> Iterator[str]:
    if attended or run.status in ("queued", "running"):
        yield f"it is {run.status} (`voxloop run stop` it first)"
    kept = reader.all(Model, tables.model.c.run == run.id)
    if kept:
        yield f"{_listed([one.name or _short(one.id) for one in kept])} kept from it (`voxloop model delete` first)"


def _needs_dataset(reader: Reader, dataset: Dataset) -> Iterator[str]:
    runs = [run for run in reader.all(Run) if dataset.id in heard_by(run)]
    if runs:
        yield f"{_listed([_short(run.id) for run in runs], 'run')} on it (`voxloop run delete` first)"
    for alias, evidence in reader.connection.execute(
        sa.select(tables.alias.c.name, tables.promotion.c.evidence).join(
            tables.promotion, tables.promotion.c.id == tables.alias.c.promotion
        )
    ):
        if dataset.id == (evidence or {}).get("dataset"):
            yield f"the {alias} was promoted on it"


def _listed(names: list[str], what: str = "model") -> str:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{what} {shown} is" if len(names) == 1 else f"{what}s {shown} are"


# The transaction -----------------------------------------------------------------------------------------------------


def _drop_evaluations(tx: Transaction, which: sa.ColumnElement[bool]) -> tuple[list[str], int]:
    """Delete evaluations; keys of what was heard in them, and their number."""
    found = tx.all(Evaluation, which)
    tx.connection.execute(sa.delete(tables.evaluation).where(which))
    return [one.hypotheses for one in found], len(found)


def _write_down(tx: Transaction, kind: Deletable, id: str, keys: list[str], folders: list[str], by: str) -> str:
    """The audit entry with what is still to be deleted; its id."""
    removal = str(ULID())
    row: dict[str, Any] = {"id": removal, "created": tx.now(), "kind": kind, "by": by, "counts": {"deleted": id}}
    pending = {"blobs": keys, "folders": folders}
    tx.connection.execute(sa.insert(tables.removal).values(**row, datasets=[], models=[], pending=pending))
    return removal


def _short(id: str) -> str:
    return id.removeprefix("sha256-")[:12] if id.startswith("sha256-") else id[-8:]
