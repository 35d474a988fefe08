"""Fresh test clips: training clips that no model was trained on may still move to test."""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa

from voxloop.errors import ConflictError
from voxloop.stores import tables
from voxloop.stores.catalog import chunks


def untrained(connection: sa.Connection) -> frozenset[str]:
    """Return training utterances from recordings of which no run, not even a queued one, uses a clip."""
    u = tables.utterance.c
    touched = sa.select(u.recording).where(sa.or_(u.split.in_(("val", "test")), u.id.in_(_trained(connection))))
    statement = sa.select(u.id).where(u.split == "train", u.recording.not_in(touched))
    return frozenset(connection.execute(statement).scalars())


def release(connection: sa.Connection, utterances: Collection[str]) -> None:
    """Clear the training split of utterances, so that they get a new one. Raises ConflictError if a run uses them."""
    u = tables.utterance
    trained = _trained(connection)
    released = 0
    for part in chunks(sorted(utterances)):
        statement = sa.update(u).where(u.c.id.in_(part), u.c.split == "train", u.c.id.not_in(trained))
        released += connection.execute(statement.values(split=None)).rowcount
    if released != len(utterances):
        raise ConflictError(
            f"a training run or another dataset took {len(utterances) - released:,} of the utterances during the "
            "build: build the dataset again"
        )


def _trained(connection: sa.Connection) -> sa.Select[tuple[str]]:
    """Select utterances that runs train on, or use to choose checkpoints."""
    used: set[str] = set()
    for dataset, recipe in connection.execute(sa.select(tables.run.c.dataset, tables.run.c.recipe)):
        used |= {dataset, *(recipe or {}).get("replay_from", ())}
    held = tables.dataset_utterance.c
    return sa.select(held.utterance).where(held.dataset.in_(used), held.split.in_(("train", "val")))
