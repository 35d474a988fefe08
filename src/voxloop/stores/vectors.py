"""Vectors of utterances, searched by likeness; rebuilt from the audio at any time.

Embedded, they are rows of the catalog and a NumPy matrix in memory: an exact
scan of 100,000 256-d vectors takes about 20 ms, which needs no index.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import sqlalchemy as sa

from voxloop.errors import UsageError
from voxloop.stores import tables
from voxloop.stores.catalog import Catalog, Writer, insert_new

Matrix = np.ndarray[tuple[int, int], np.dtype[np.float32]]
Vector = np.ndarray[tuple[int], np.dtype[np.float32]]

vector = tables.vector
_AT_ONCE = 500  # ids asked for at once: SQLite takes a bounded number of parameters


class Vectors(Protocol):
    """Unit vectors by utterance id, kept apart by `space` (what made them)."""

    def upsert(self, tx: Writer, space: str, ids: Sequence[str], matrix: Matrix) -> None:
        """Keep rows of (B, D) under their ids, replacing what was there."""
        ...

    def delete(self, tx: Writer, ids: Sequence[str]) -> int:
        """Forget ids in every space; the number of vectors removed."""
        ...

    def search(self, space: str, query: Vector, *, limit: int = 10) -> list[tuple[str, float]]:
        """The nearest ids with their cosine similarity, nearest first; query (D,)."""
        ...

    def read(self, space: str, ids: Sequence[str]) -> tuple[list[str], Matrix]:
        """Those of `ids` that have a vector, with their vectors in the same order, (B, D); (0, 0) where none has."""
        ...

    def count(self, space: str) -> int: ...


class CatalogVectors:
    """Vectors as rows of the catalog, scanned in memory."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def upsert(self, tx: Writer, space: str, ids: Sequence[str], matrix: Matrix) -> None:
        if matrix.ndim != 2 or len(ids) != len(matrix):
            raise UsageError(f"vectors: {len(ids)} ids with a matrix of shape {matrix.shape}; needed is (ids, width)")
        tx.connection.execute(sa.delete(vector).where(vector.c.space == space, vector.c.id.in_(ids)))
        rows = [
            {"id": id, "space": space, "values": np.ascontiguousarray(row, dtype="<f4").tobytes()}
            for id, row in zip(ids, matrix, strict=True)
        ]
        insert_new(tx.connection, vector, rows)

    def delete(self, tx: Writer, ids: Sequence[str]) -> int:
        return int(tx.connection.execute(sa.delete(vector).where(vector.c.id.in_(ids))).rowcount)

    def search(self, space: str, query: Vector, *, limit: int = 10) -> list[tuple[str, float]]:
        with self._catalog.read() as reader:
            rows = reader.connection.execute(
                sa.select(vector.c.id, vector.c["values"]).where(vector.c.space == space)
            ).all()
        if not rows:
            return []
        matrix = np.frombuffer(b"".join(row[1] for row in rows), dtype="<f4").reshape(len(rows), -1)
        if matrix.shape[1] != len(query):
            raise UsageError(f"vectors of {space!r} have width {matrix.shape[1]}; the query has {len(query)}")
        similarity = matrix @ np.asarray(query, dtype=np.float32)
        best = np.argsort(-similarity, kind="stable")[:limit]
        return [(rows[i][0], float(similarity[i])) for i in best]

    def read(self, space: str, ids: Sequence[str]) -> tuple[list[str], Matrix]:
        values: dict[str, bytes] = {}
        with self._catalog.read() as reader:
            for begin in range(0, len(ids), _AT_ONCE):
                wanted = vector.c.id.in_(ids[begin : begin + _AT_ONCE])
                rows = reader.connection.execute(
                    sa.select(vector.c.id, vector.c["values"]).where(vector.c.space == space, wanted)
                )
                values.update((row[0], row[1]) for row in rows)
        found = [id for id in ids if id in values]
        if not found:
            return [], np.zeros((0, 0), dtype=np.float32)
        matrix = np.frombuffer(b"".join(values[id] for id in found), dtype="<f4").reshape(len(found), -1)
        return found, matrix.astype(np.float32, copy=False)

    def count(self, space: str) -> int:
        with self._catalog.read() as reader:
            statement = sa.select(sa.func.count()).select_from(vector).where(vector.c.space == space)
            return int(reader.connection.execute(statement).scalar_one())
