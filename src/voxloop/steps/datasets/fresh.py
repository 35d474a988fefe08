"""Fresh test speech: what lies in the training split and no model has been trained on may still be tested on."""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa

from voxloop.errors import ConflictError
from voxloop.stores import tables
from voxloop.stores.catalog import chunks


def untrained(connection: sa.Connection) -> frozenset[str]:
    """Utterances in the training split of whose recording no run, not even a waiting one, has a clip."""
    u = tables.utterance.c
    touched = sa.select(u.recording).where(sa.or_(u.split.in_(("val", "test")), u.id.in_(_trained(connection))))
    statement = sa.select(u.id).where(u.split == "train", u.recording.not_in(touched))
    return frozenset(connection.execute(statement).scalars())


def release(connection: sa.Connection, utterances: Collection[str]) -> None:
    """Take the training split from utterances, so that they get another. Raises ConflictError where a run has them."""
    u = tables.utterance
    trained = _trained(connection)
    released = 0
    for part in chunks(sorted(utterances)):
        statement = sa.update(u).where(u.c.id.in_(part), u.c.split == "train", u.c.id.not_in(trained))
        released += connection.execute(statement.values(split=None)).rowcount
    if released != len(utterances):
        raise ConflictError(
            f"{len(utterances) - released} utterances went into a training run or another dataset while this one was "
            "built: build it again"
        )


def _trained(connection: sa.Connection) -> sa.Select[tuple[str]]:
    """Utterances that runs train on, or choose their weights by."""
    used: set[str] = set()
    for dataset, recipe in connection.execute(sa.select(tables.run.c.dataset, tables.run.c.recipe)):
        used |= {dataset, *(recipe or {}).get("replay_from", ())}
    held = tables.dataset_utterance.c
    return sa.select(held.utterance).where(held.dataset.in_(used), held.split.in_(("train", "val")))
