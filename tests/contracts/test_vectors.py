"""The contract of vectors: the nearest are found, spaces stay apart, replacing replaces."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from qdrant_client import models

from tests.servers import free_ports
from voxloop.errors import UsageError, VectorError
from voxloop.stores.qdrant import QdrantVectors
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


# Qdrant alone: its server is in no package, so its requests are held against the classes that its client generates from
# Qdrant's OpenAPI document -------------------------------------------------------------------------------------------

REQUESTS: dict[tuple[str, str], Any] = {
    ("PUT", r"/collections/[^/]+"): models.CreateCollection,
    ("PUT", r"/collections/[^/]+/points"): models.PointsList,
    ("POST", r"/collections/[^/]+/points"): models.PointRequest,
    ("POST", r"/collections/[^/]+/points/query"): models.QueryRequest,
    ("POST", r"/collections/[^/]+/points/count"): models.CountRequest,
    ("POST", r"/collections/[^/]+/points/scroll"): models.ScrollRequest,
    ("POST", r"/collections/[^/]+/points/delete"): models.PointIdsList,
    ("GET", r"/collections/[^/]+/exists"): None,
    ("GET", r"/collections/[^/]+"): None,
    ("GET", r"/collections"): None,
}
NAME = f"voxloop-team-{b'a model'.hex()}"


def answer(method: str, path: str) -> Any:
    """What a server with one collection of two vectors answers, as far as the client looks."""
    if path.endswith("/exists"):
        return {"exists": True}
    if path == "/collections":
        return {"collections": [{"name": NAME}, {"name": "of others"}]}
    if path.endswith("/count"):
        return {"count": 2}
    if path.endswith("/scroll"):
        return {"points": [{"id": 1, "payload": {"id": "u1"}}], "next_page_offset": None}
    if path.endswith("/query"):
        return {"points": [{"id": 1, "version": 0, "score": 0.5, "payload": {"id": "u1"}}]}
    if method == "POST" and path.endswith("/points"):
        return [{"id": 1, "payload": {"id": "u1"}, "vector": [0.6, 0.8]}]
    if method == "GET":
        optimisers = {"deleted_threshold": 0.2, "vacuum_min_vector_number": 1, "default_segment_number": 0}
        config = {
            "params": {"vectors": {"size": 2, "distance": "Dot"}},
            "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10_000},
            "optimizer_config": optimisers | {"flush_interval_sec": 5},
        }
        return {
            "status": "green", "optimizer_status": "ok", "segments_count": 1, "config": config, "payload_schema": {}
        }  # fmt: skip
    return {"operation_id": 1, "status": "completed"}


@pytest.fixture
def asked() -> Iterator[tuple[str, list[tuple[str, str, Any, str | None]]]]:
    """The URL of a server that writes down what it is asked; method, path, body and key of each request."""
    requests: list[tuple[str, str, Any, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def reply(self) -> None:
            path = self.path.partition("?")[0]
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            requests.append((self.command, path, json.loads(body or b"null"), self.headers.get("api-key")))
            said = json.dumps({"result": answer(self.command, path), "status": "ok", "time": 0.0}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        do_GET = do_POST = do_PUT = reply

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/team", requests
    server.shutdown()
    thread.join()
    server.server_close()


def test_requests_are_those_of_qdrants_openapi(asked: tuple[str, list[tuple[str, str, Any, str | None]]]) -> None:
    url, requests = asked
    first = QdrantVectors.open(url, key="secret")
    first._create("a model", 2)
    first.close()
    vectors = QdrantVectors.open(url, key="secret")
    vectors.upsert("a model", ["u1", "u2"], np.asarray([[0.6, 0.8], [1.0, 0.0]], dtype=np.float32))
    assert vectors.spaces() == ["a model"]
    assert vectors.search("a model", np.asarray([0.6, 0.8], dtype=np.float32)) == [("u1", 0.5)]
    assert vectors.read("a model", ["u1", "u9"])[0] == ["u1"]
    assert list(vectors.ids("a model")) == ["u1"]
    assert vectors.count("a model", ["u1"]) == 2
    assert vectors.delete(["u1"]) == 2
    assert vectors.check().endswith(", 2")
    vectors.close()
    met = set()
    for method, path, body, key in requests:
        (shape,) = [shape for shape in REQUESTS if shape[0] == method and re.fullmatch(shape[1], path)]
        met.add(shape)
        assert key == "secret"
        if (kind := REQUESTS[shape]) is not None:
            assert kind.model_validate(body).model_dump(exclude_none=True).keys() == body.keys()
    assert met == REQUESTS.keys()


def test_a_qdrant_that_is_away_is_said() -> None:
    vectors = QdrantVectors.open(f"http://127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(VectorError, match=r"failed.*Check that the server runs"):
        vectors.check()
    with pytest.raises(VectorError, match="failed"):
        vectors.upsert("a", ["u1"], unit(1, 4))
    vectors.close()


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "http://", "http://me:hidden@127.0.0.1"])
def test_a_url_that_is_none_of_qdrants_is_refused(url: str) -> None:
    with pytest.raises(VectorError, match="QDRANT_API_KEY") as caught:
        QdrantVectors.open(url)
    assert "hidden" not in str(caught.value)
