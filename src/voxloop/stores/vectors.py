"""Vectors of utterances for similarity search. They can be rebuilt from the audio at any time.

The embedded store keeps them as rows of the catalog and scans a NumPy matrix in memory: an exact
scan of 100,000 256-dimensional vectors takes about 20 ms, so no index is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import sqlalchemy as sa

from voxloop.errors import UsageError
from voxloop.stores import tables
from voxloop.stores.catalog import MANY, Catalog, insert_new

Matrix = np.ndarray[tuple[int, int], np.dtype[np.float32]]
Vector = np.ndarray[tuple[int], np.dtype[np.float32]]

vector = tables.vector


class Vectors(Protocol):
    """Unit vectors by utterance id, in separate spaces (one per model). All vectors of a space have the same width.

    Vectors are derived data and can be rewritten at any time, so no call is part of a catalog transaction: write them
    before the commit that refers to them, and delete them after the commit that removes their utterances. `verify`
    repairs what a crash between the two leaves behind.
    """

    def upsert(self, space: str, ids: Sequence[str], matrix: Matrix) -> None:
        """Store the rows of a (B, D) matrix by id, replacing existing ones. Raises UsageError for a wrong width."""
        ...

    def delete(self, ids: Sequence[str]) -> int:
        """Delete the vectors of these ids in every space. Return the number deleted."""
        ...

    def search(self, space: str, query: Vector, *, limit: int = 10) -> list[tuple[str, float]]:
        """The most similar ids with their cosine similarity, most similar first; query (D,)."""
        ...

    def read(self, space: str, ids: Sequence[str]) -> tuple[list[str], Matrix]:
        """The ids among `ids` that have a vector, and their vectors in the same order, (B, D); (0, 0) if none has."""
        ...

    def count(self, space: str, ids: Sequence[str] | None = None) -> int:
        """The number of vectors in a space, of all or of some ids."""
        ...

    def spaces(self) -> list[str]:
        """The spaces that contain vectors."""
        ...

    def ids(self, space: str) -> Iterator[str]:
        """Every id that has a vector, each once, in no order."""
        ...

    def check(self) -> str:
        """Where the vectors are and how many, in words. Raises VectorError if they cannot be read."""
        ...

    def close(self) -> None:
        """Disconnect."""
        ...


class CatalogVectors:
    """Vectors as rows of the catalog, scanned in memory. Each write is its own transaction; do not nest it."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._widths: dict[str, int] = {}  # of spaces written to, so that each width is looked up once

    def upsert(self, space: str, ids: Sequence[str], matrix: Matrix) -> None:
        check_shape(ids, matrix)
        rows = {
            id: {"id": id, "space": space, "values": np.ascontiguousarray(row, dtype="<f4").tobytes()}
            for id, row in zip(ids, matrix, strict=True)
        }
        if not rows:
            return
        with self._catalog.write() as tx:
            if space not in self._widths:
                one = sa.select(sa.func.length(vector.c["values"])).where(vector.c.space == space).limit(1)
                self._widths[space] = (tx.connection.execute(one).scalar() or 4 * matrix.shape[1]) // 4
            if matrix.shape[1] != self._widths[space]:
                raise UsageError(f"vectors of {space!r} have width {self._widths[space]}; these have {matrix.shape[1]}")
            for part in batched(sorted(rows), MANY):
                tx.connection.execute(sa.delete(vector).where(vector.c.space == space, vector.c.id.in_(part)))
                insert_new(tx.connection, vector, [rows[id] for id in part])

    def delete(self, ids: Sequence[str]) -> int:
        gone = 0
        if ids:
            with self._catalog.write() as tx:
                for part in batched(ids, MANY):
                    gone += tx.connection.execute(sa.delete(vector).where(vector.c.id.in_(part))).rowcount
        return gone

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
            for part in batched(ids, MANY):
                rows = reader.connection.execute(
                    sa.select(vector.c.id, vector.c["values"]).where(vector.c.space == space, vector.c.id.in_(part))
                )
                values.update((row[0], row[1]) for row in rows)
        found = [id for id in ids if id in values]
        if not found:
            return [], np.zeros((0, 0), dtype=np.float32)
        matrix = np.frombuffer(b"".join(values[id] for id in found), dtype="<f4").reshape(len(found), -1)
        return found, matrix.astype(np.float32, copy=False)

    def count(self, space: str, ids: Sequence[str] | None = None) -> int:
        of_space = sa.select(sa.func.count()).select_from(vector).where(vector.c.space == space)
        parts = [of_space] if ids is None else [of_space.where(vector.c.id.in_(part)) for part in batched(ids, MANY)]
        with self._catalog.read() as reader:
            return sum(int(reader.connection.execute(part).scalar_one()) for part in parts)

    def spaces(self) -> list[str]:
        with self._catalog.read() as reader:
            return list(reader.connection.execute(sa.select(vector.c.space).distinct()).scalars())

    def ids(self, space: str) -> Iterator[str]:
        with self._catalog.read() as reader:
            yield from reader.connection.execute(sa.select(vector.c.id).where(vector.c.space == space)).scalars()

    def check(self) -> str:
        with self._catalog.read() as reader:
            count = reader.connection.execute(sa.select(sa.func.count()).select_from(vector)).scalar_one()
        return f"in the catalog, {count:,}"

    def close(self) -> None:
        """The catalog is closed by itself."""


def check_shape(ids: Sequence[str], matrix: Matrix) -> None:
    """Raises UsageError unless the matrix has one row per id."""
    if matrix.ndim != 2 or len(ids) != len(matrix):
        raise UsageError(f"got {len(ids)} ids and a matrix of shape {matrix.shape}. Give one row per id.")


def batched(ids: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """Like `itertools.batched`, which Python 3.11 lacks."""
    for start in range(0, len(ids), size):
        yield ids[start : start + size]
