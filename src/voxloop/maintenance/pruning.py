"""Prune: remove records of finished work and copies that are no longer needed.

Removed are:

- done jobs, `keep_jobs_days` after they ended. Their events stay, so that emitting one again creates no new job;
- the `training.progress` events of a finished run, except the newest;
- converted models, unless an alias points to the model, it is the newest trained model, or the conversion is among the
  `FORMS_KEPT` most recently used. Conversions are made again when needed;
- captured recordings that nobody reviewed within `capture_keep_days`, as `forget` removes them;
- deleted utterances, `review_undo_s` after they were deleted, with their audio and texts;
- the copy of the data in the folder of a completed or stopped run, which will not continue; a retry makes its own.
"""

from __future__ import annotations

import logging
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from voxloop.errors import ConflictError
from voxloop.maintenance import removal
from voxloop.models import conversions
from voxloop.records import Model, Run
from voxloop.steps import captures
from voxloop.stores import tables
from voxloop.stores.catalog import insert_new

if TYPE_CHECKING:
    from voxloop.workspace import Workspace

log = logging.getLogger(__name__)

EVERY_S = 3600.0  # between two prunings of a workspace, by whichever process
AT_ONCE = 5_000  # jobs removed per transaction, so that others do not wait long
FORMS_KEPT = 3
SETTLED_S = 3600.0  # after this time, a finished run's own processes no longer use its folder

TURN = "prune"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pruned:
    """The number of things removed."""

    jobs: int
    events: int
    conversions: int
    run_folders: int  # whose copied data was removed
    captures: int
    erased: int  # deleted utterances whose undo time has passed


def prune_in_turn(ws: Workspace) -> Pruned | None:
    """Prune, unless this or another process did so within the hour; then return None."""
    upkeep = tables.upkeep
    with ws.read() as reader:
        done = reader.connection.execute(sa.select(upkeep.c.done).where(upkeep.c.name == TURN)).scalar()
        if done is not None and done > reader.now() - EVERY_S:
            return None
    with ws.catalog.write() as tx:
        now = tx.now()
        insert_new(tx.connection, upkeep, [{"name": TURN}])
        due = sa.and_(upkeep.c.name == TURN, upkeep.c.done <= now - EVERY_S)
        if not tx.connection.execute(sa.update(upkeep).where(due).values(done=now)).rowcount:
            return None
    return prune(ws)


def prune(ws: Workspace) -> Pruned:
    """Remove what is no longer needed. Can be interrupted and repeated."""
    return Pruned(
        jobs=_jobs(ws),
        events=_progress(ws),
        conversions=_conversions(ws),
        run_folders=_copied_data(ws),
        captures=_captures(ws),
        erased=_deleted(ws),
    )


def _captures(ws: Workspace) -> int:
    try:
        return captures.expired(ws, lambda ids: removal.forget(ws, recording=ids, by="expiry"))
    except ConflictError as error:  # a run is training on one of them: the next turn tries again
        log.warning("captured recordings stay for now: %s", error, extra={"action": "expiry_put_off"})
        return 0


def _deleted(ws: Workspace) -> int:
    try:
        erased = removal.erase_deleted(ws)
    except ConflictError as error:  # a run is training on them: next time
        log.info("deleted utterances are not erased yet: %s", error, extra={"action": "erasing_postponed"})
        return 0
    return erased.utterances if erased else 0


def _jobs(ws: Workspace) -> int:
    removed = 0
    while part := ws.jobs.prune(ws.settings.keep_jobs_days * 86_400, AT_ONCE):
        removed += part
    return removed


def _progress(ws: Workspace) -> int:
    event, newer = tables.event, tables.event.alias()
    run = tables.run.c
    ended = sa.select(run.id).where(run.status.in_(("completed", "stopped", "failed")))
    kind = "training.progress"
    last = (
        sa.select(sa.func.max(newer.c.seq))
        .where(newer.c.type == kind, newer.c.subject.in_(ended))
        .group_by(newer.c.subject)
    )
    old = sa.and_(event.c.type == kind, event.c.subject.in_(ended), event.c.seq.not_in(last))
    with ws.read() as reader:
        if reader.connection.execute(sa.select(event.c.seq).where(old).limit(1)).first() is None:
            return 0
    with ws.catalog.write() as tx:
        return int(tx.connection.execute(sa.delete(event).where(old)).rowcount)


def _conversions(ws: Workspace) -> int:
    with ws.read() as reader:
        needed = set(reader.connection.execute(sa.select(tables.alias.c.model)).scalars())
        trained = reader.all(Model, tables.model.c.run.is_not(None), order=tables.model.c.created.desc(), limit=1)
        needed |= {model.id for model in trained}
    unneeded = [form for form in conversions(ws)[FORMS_KEPT:] if form.model not in needed]
    for form in unneeded:
        shutil.rmtree(form.folder, ignore_errors=True)
    return len(unneeded)


def _copied_data(ws: Workspace) -> int:
    with ws.read() as reader:
        runs = reader.all(Run, tables.run.c.status.in_(("completed", "stopped")))
    found = 0
    for run in runs:
        folder = ws.runs / run.id
        data = folder / "data"
        settled = run.finished is not None and run.finished < time.time() - SETTLED_S
        if settled and data.exists() and not removal.alive(folder):
            shutil.rmtree(data, ignore_errors=True)
            found += 1
    return found
