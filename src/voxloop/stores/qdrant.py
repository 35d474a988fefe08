"""Vectors in a Qdrant server: one collection per space, one point per utterance.

A point's id has to be a number or a UUID (https://qdrant.tech/documentation/concepts/points/), so it is the UUID made
from the utterance's id, which stands in the payload. Vectors are unit vectors, so their dot product is the cosine, and
what is read is what was stored: with the distance `Cosine`, Qdrant would normalise them again. A search is exact in
collections of up to `EXACT` vectors, and goes through Qdrant's index beyond.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid5

import numpy as np

from voxloop.errors import UsageError, VectorError, install_command
from voxloop.stores.vectors import Matrix, Vector, batched, check_shape

log = logging.getLogger(__name__)

PREFIX = "voxloop-"  # of the collections' names
NAMESPACE = UUID("8a2c1a53-6d0c-5d0e-9a46-3a4d0e6f6b52")  # of points' ids
MANY = 500  # points per request
EXACT = 20_000  # vectors of a collection that are all compared
TIMEOUT_S = 30


class QdrantVectors:
    """Vectors in Qdrant, through its own client: a connection, or the client's in-memory engine in tests."""

    def __init__(self, client: Any, *, place: str = "memory", prefix: str = PREFIX) -> None:
        from qdrant_client import models

        self._client = client
        self._models = models
        self._place = place
        self._prefix = prefix
        self._widths: dict[str, int] = {}  # by space, of collections known to exist

    @classmethod
    def open(cls, url: str, *, key: str | None = None) -> QdrantVectors:
        """Vectors on the server at http://HOST:6333 or https://HOST:6333. A path becomes part of collection names."""
        parsed = urlsplit(url)
        if parsed.scheme not in ("http", "https") or not parsed.hostname or parsed.username or parsed.password:
            raise VectorError(
                "the setting `vectors` does not name a Qdrant server. Give qdrant+http://HOST:6333 or "
                "qdrant+https://HOST:6333; a key belongs into the variable QDRANT_API_KEY."
            )
        try:
            from qdrant_client import QdrantClient
        except ModuleNotFoundError as error:
            raise VectorError(f"vectors in Qdrant need its client: {install_command('qdrant')}") from error
        place = f"{parsed.scheme}://{parsed.netloc}"
        name = parsed.path.strip("/").replace("/", "-")
        # Versions are not compared at once: a command that needs no vectors must not wait for the server.
        client = QdrantClient(url=place, api_key=key, timeout=TIMEOUT_S, check_compatibility=False)
        return cls(client, place=place, prefix=f"{PREFIX}{name}-" if name else PREFIX)

    def upsert(self, space: str, ids: Sequence[str], matrix: Matrix) -> None:
        check_shape(ids, matrix)
        if not ids:
            return
        width = int(matrix.shape[1])
        known = self._width(space) or self._create(space, width)
        if width != known:
            raise UsageError(f"vectors of {space!r} have width {known}; these have {width}")
        rows = dict(zip(ids, matrix, strict=True))
        for part in batched(list(rows), MANY):
            points = [
                self._models.PointStruct(
                    id=_point(id), vector=np.asarray(rows[id], dtype=np.float32).tolist(), payload={"id": id}
                )
                for id in part
            ]
            with self._told("storing vectors"):
                self._client.upsert(self._collection(space), points=points, wait=True)

    def delete(self, ids: Sequence[str]) -> int:
        gone = 0
        for space in self.spaces() if ids else ():
            for part in batched(ids, MANY):
                there = self.count(space, part)
                if there:
                    points = self._models.PointIdsList(points=[_point(id) for id in part])
                    with self._told("deleting vectors"):
                        self._client.delete(self._collection(space), points_selector=points, wait=True)
                gone += there
        return gone

    def search(self, space: str, query: Vector, *, limit: int = 10) -> list[tuple[str, float]]:
        width = self._width(space)
        if width is None:
            return []
        if width != len(query):
            raise UsageError(f"vectors of {space!r} have width {width}; the query has {len(query)}")
        asked = self._models.SearchParams(exact=self.count(space) <= EXACT)
        with self._told("searching"):
            found = self._client.query_points(
                self._collection(space),
                query=np.asarray(query, dtype=np.float32).tolist(),
                limit=limit,
                with_payload=True,
                search_params=asked,
            )
        return [(str(point.payload["id"]), float(point.score)) for point in found.points]

    def read(self, space: str, ids: Sequence[str]) -> tuple[list[str], Matrix]:
        values: dict[str, Any] = {}
        if self._width(space) is not None:
            for part in batched(ids, MANY):
                with self._told("reading vectors"):
                    points = self._client.retrieve(
                        self._collection(space), ids=[_point(id) for id in part], with_payload=True, with_vectors=True
                    )
                values.update((point.payload["id"], point.vector) for point in points)
        found = [id for id in ids if id in values]
        if not found:
            return [], np.zeros((0, 0), dtype=np.float32)
        return found, np.asarray([values[id] for id in found], dtype=np.float32)

    def count(self, space: str, ids: Sequence[str] | None = None) -> int:
        if self._width(space) is None:
            return 0
        total = 0
        for part in [None] if ids is None else batched(ids, MANY):
            among = None
            if part is not None:
                points = [_point(id) for id in dict.fromkeys(part)]
                among = self._models.Filter(must=[self._models.HasIdCondition(has_id=points)])
            with self._told("counting vectors"):
                total += int(self._client.count(self._collection(space), count_filter=among, exact=True).count)
        return total

    def spaces(self) -> list[str]:
        with self._told("listing collections"):
            names = [one.name for one in self._client.get_collections().collections]
        spaces = [_space(name.removeprefix(self._prefix)) for name in names if name.startswith(self._prefix)]
        return [space for space in spaces if space is not None and self.count(space)]

    def ids(self, space: str) -> Iterator[str]:
        after: Any = None
        while self._width(space) is not None:
            with self._told("listing vectors"):
                points, after = self._client.scroll(
                    self._collection(space), limit=MANY, offset=after, with_payload=True, with_vectors=False
                )
            yield from (str(point.payload["id"]) for point in points)
            if after is None:
                return

    def check(self) -> str:
        return f"Qdrant at {self._place}, {sum(self.count(space) for space in self.spaces()):,}"

    def close(self) -> None:
        self._client.close()

    def _collection(self, space: str) -> str:
        # Names may have neither / nor : among others, and go into a URL's path.
        return self._prefix + space.encode().hex()

    def _width(self, space: str) -> int | None:
        """The width of a space's vectors; None if it has no collection."""
        if space not in self._widths:
            with self._told("looking for a collection"):
                if not self._client.collection_exists(self._collection(space)):
                    return None
                made = self._client.get_collection(self._collection(space))
            self._widths[space] = int(made.config.params.vectors.size)
        return self._widths[space]

    def _create(self, space: str, width: int) -> int:
        shape = self._models.VectorParams(size=width, distance=self._models.Distance.DOT)
        try:
            with self._told("creating a collection"):
                self._client.create_collection(self._collection(space), vectors_config=shape)
        except VectorError:
            known = self._width(space)  # another worker made it just now
            if known is None:
                raise
            return known
        self._widths[space] = width
        return width

    @contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        """Translate the client's errors."""
        from qdrant_client.http.exceptions import ApiException

        try:
            yield
        except (ApiException, OSError, ValueError) as error:
            self._widths.clear()  # a collection may have been deleted
            said = " ".join(str(error).split()) or type(error).__name__
            raise VectorError(
                f"{doing} in Qdrant at {self._place} failed: {said[:300]}. Check that the server runs, the setting "
                "`vectors`, and the variable QDRANT_API_KEY. Vectors can be made anew: `voxloop verify --repair`."
            ) from error


def _point(id: str) -> str:
    return str(uuid5(NAMESPACE, id))


def _space(name: str) -> str | None:
    """The space of a collection's name; None if it is not one of ours."""
    try:
        return bytes.fromhex(name).decode()
    except ValueError:
        return None
