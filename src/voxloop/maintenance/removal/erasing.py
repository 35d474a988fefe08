"""Erase what reviewers deleted, when it can no longer be undone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import sqlalchemy as sa

from voxloop.maintenance.removal.forgetting import Removal, Scope, forget_scope, frozen_now
from voxloop.records import Utterance
from voxloop.stores import tables
from voxloop.stores.catalog import chunks

if TYPE_CHECKING:
    from voxloop.stores.catalog import Reader
    from voxloop.workspace import Workspace


def erase_deleted(ws: Workspace) -> Removal | None:
    """Erase the utterances whose deletion can no longer be undone; None if there are none.

    A recording of which nothing else is left goes as a whole. Otherwise its stretch of audio is
    silenced, and given texts that cover the stretch are removed: the recording keeps its id, and
    `remains` holds the hash of the audio that is left.
    """
    with ws.read() as reader:
        due = _due(reader, ws.settings.review_undo_s)
    if not due:
        return None
    by = ", ".join(sorted(set(due.values())))
    return forget_scope(ws, lambda reader: _stretches(reader, due.keys()), by=by)


def _due(reader: Reader, undo_s: float) -> dict[str, str]:
    """The deleted utterances whose undo time has passed, each with who deleted it."""
    u, d = tables.utterance.c, tables.review_decision.c
    rows = reader.connection.execute(
        sa.select(d.utterance, d.by, d.created)
        .join(tables.utterance, u.id == d.utterance)
        .where(u.status == "deleted", d.kind == "delete")
        .order_by(d.seq)
    ).all()
    last = {row.utterance: row for row in rows}
    now = reader.now()
    return {id: row.by for id, row in last.items() if row.created <= now - undo_s}


def _stretches(reader: Reader, ids: Iterable[str]) -> Scope:
    """Deleted utterances, with the recordings of which nothing else is left."""
    u = tables.utterance.c
    gone = {id for id, one in reader.find_all(Utterance, ids).items() if one.status == "deleted"}
    recordings = {id.partition(":")[0] for id in gone}
    for chunk in chunks(sorted(recordings)):
        rows = reader.connection.execute(sa.select(u.id, u.recording).where(u.recording.in_(chunk)))
        recordings -= {row.recording for row in rows if row.id not in gone}
    return Scope(speaker=None, recordings=frozenset(recordings), utterances=frozenset(gone), frozen=frozen_now(reader))
