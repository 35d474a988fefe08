"""The contract of vectors: the nearest are found, spaces stay apart, replacing replaces."""

from __future__ import annotations

import numpy as np
import pytest

from voxloop.errors import UsageError
from voxloop.stores.vectors import Matrix, Vectors


def unit(rows: int, width: int, seed: int = 0) -> Matrix:
    matrix = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


def test_the_nearest_come_first(vectors: Vectors) -> None:
    matrix = unit(50, 16)
    ids = [f"u{i}" for i in range(50)]
    vectors.upsert("s", ids, matrix)
    found = vectors.search("s", matrix[7], limit=5)
    expected = np.argsort(-(matrix @ matrix[7]))[:5]
    assert [id for id, _ in found] == [f"u{i}" for i in expected]
    assert found[0] == ("u7", pytest.approx(1.0, abs=1e-5))


def test_spaces_stay_apart(vectors: Vectors) -> None:
    assert vectors.spaces() == []
    vectors.upsert("a", ["u1"], unit(1, 8))
    vectors.upsert("b", ["u1", "u2"], unit(2, 4))
    assert sorted(vectors.spaces()) == ["a", "b"]
    assert vectors.count("a") == 1
    assert set(vectors.ids("b")) == {"u1", "u2"}
    assert [id for id, _ in vectors.search("b", unit(2, 4)[1])] == ["u2", "u1"]
    assert vectors.search("none", unit(1, 4)[0]) == []
    assert list(vectors.ids("none")) == []


def test_what_is_read_is_what_was_kept_in_the_order_asked_for(vectors: Vectors) -> None:
    matrix = unit(1200, 8)  # more than one statement asks for
    ids = [f"u{i}" for i in range(1200)]
    vectors.upsert("a", ids, matrix)
    found, read = vectors.read("a", ["none", *reversed(ids)])
    assert found == ids[::-1]
    np.testing.assert_array_equal(read, matrix[::-1])
    assert vectors.count("a", ["none", *ids[:700]]) == 700
    assert vectors.delete(ids) == 1200
    assert vectors.read("a", ids)[0] == []


def test_replacing_replaces_and_deleting_deletes(vectors: Vectors) -> None:
    vectors.upsert("a", ["u1", "u2"], unit(2, 8))
    vectors.upsert("a", ["u1"], unit(1, 8, seed=3))
    vectors.upsert("b", ["u1"], unit(1, 4))
    assert vectors.count("a") == 2
    assert vectors.search("a", unit(1, 8, seed=3)[0], limit=1)[0][0] == "u1"
    assert vectors.delete(["u1", "u9"]) == 2
    assert (vectors.count("a"), vectors.count("b")) == (1, 0)
    assert vectors.delete([]) == 0


def test_wrong_shapes_are_refused(vectors: Vectors) -> None:
    with pytest.raises(UsageError, match="shape"):
        vectors.upsert("a", ["u1"], unit(2, 8))
    vectors.upsert("a", ["u1"], unit(1, 8))
    with pytest.raises(UsageError, match="width 8"):
        vectors.search("a", unit(1, 4)[0])
    with pytest.raises(UsageError, match="width 8"):
        vectors.upsert("a", ["u2"], unit(1, 4))
