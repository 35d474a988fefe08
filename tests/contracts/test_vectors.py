"""The contract of vectors: the nearest are found, spaces stay apart, replacing replaces."""

from __future__ import annotations

import numpy as np
import pytest

from voxloop.errors import UsageError
from voxloop.stores.catalog import Catalog
from voxloop.stores.vectors import Matrix, Vectors


def unit(rows: int, width: int, seed: int = 0) -> Matrix:
    matrix = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


def test_the_nearest_come_first(vectors: Vectors, catalog: Catalog) -> None:
    matrix = unit(50, 16)
    ids = [f"u{i}" for i in range(50)]
    with catalog.write() as tx:
        vectors.upsert(tx, "s", ids, matrix)
    found = vectors.search("s", matrix[7], limit=5)
    expected = np.argsort(-(matrix @ matrix[7]))[:5]
    assert [id for id, _ in found] == [f"u{i}" for i in expected]
    assert found[0] == ("u7", pytest.approx(1.0, abs=1e-5))


def test_spaces_stay_apart(vectors: Vectors, catalog: Catalog) -> None:
    with catalog.write() as tx:
        vectors.upsert(tx, "a", ["u1"], unit(1, 8))
        vectors.upsert(tx, "b", ["u2"], unit(1, 4))
    assert vectors.count("a") == 1
    assert [id for id, _ in vectors.search("b", unit(1, 4)[0])] == ["u2"]
    assert vectors.search("none", unit(1, 4)[0]) == []


def test_replacing_replaces_and_deleting_deletes(vectors: Vectors, catalog: Catalog) -> None:
    with catalog.write() as tx:
        vectors.upsert(tx, "a", ["u1", "u2"], unit(2, 8))
    with catalog.write() as tx:
        vectors.upsert(tx, "a", ["u1"], unit(1, 8, seed=3))
    assert vectors.count("a") == 2
    assert vectors.search("a", unit(1, 8, seed=3)[0], limit=1)[0][0] == "u1"
    with catalog.write() as tx:
        assert vectors.delete(tx, ["u1", "u9"]) == 1
    assert vectors.count("a") == 1


def test_wrong_shapes_are_refused(vectors: Vectors, catalog: Catalog) -> None:
    with pytest.raises(UsageError, match="shape"), catalog.write() as tx:
        vectors.upsert(tx, "a", ["u1"], unit(2, 8))
    with catalog.write() as tx:
        vectors.upsert(tx, "a", ["u1"], unit(1, 8))
    with pytest.raises(UsageError, match="width 8"):
        vectors.search("a", unit(1, 4)[0])
