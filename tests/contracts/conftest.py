"""Every backend of a store is one parameter of its contract suite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from qdrant_client import QdrantClient

from tests.conftest import CATALOGS
from voxloop.stores.blobs import Blobs
from voxloop.stores.bus import Bus, LocalBus
from voxloop.stores.catalog import Catalog
from voxloop.stores.jobs import Jobs
from voxloop.stores.nats_bus import NatsBus
from voxloop.stores.qdrant import QdrantVectors
from voxloop.stores.vectors import CatalogVectors, Vectors

BLOB_STORES = ["file", "s3"]
VECTOR_STORES = [*CATALOGS, "qdrant"]
BUSES = ["local", "nats"]

LISTENERS = {"recording.ingested": ("segment",), "recording.segmented": ("transcribe", "index")}


@contextmanager
def open_catalog(request: pytest.FixtureRequest, kind: str, folder: Path) -> Iterator[Catalog]:
    opened = Catalog(
        request.getfixturevalue("postgresql") if kind == "postgresql" else f"sqlite:///{folder}/catalog.db"
    )
    opened.migrate()
    yield opened
    opened.close()


@pytest.fixture(params=CATALOGS)
def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Catalog]:
    with open_catalog(request, request.param, tmp_path) as opened:
        yield opened


@pytest.fixture(params=BLOB_STORES)
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    url = request.getfixturevalue("s3") if request.param == "s3" else (tmp_path / "a folder with ü").as_uri()
    return Blobs(url, cache=tmp_path / "cache")


@pytest.fixture(params=VECTOR_STORES)
def vectors(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Vectors]:
    """In the catalog, or in Qdrant: there its client's in-memory engine, as its server is in no package."""
    if request.param == "qdrant":
        opened = QdrantVectors(QdrantClient(":memory:"))
        yield opened
        opened.close()
    else:
        with open_catalog(request, request.param, tmp_path) as catalog:
            yield CatalogVectors(catalog)


@pytest.fixture(params=BUSES)
def bus(request: pytest.FixtureRequest) -> Iterator[Bus]:
    opened = NatsBus(request.getfixturevalue("nats"), {}) if request.param == "nats" else LocalBus()
    yield opened
    opened.close()


@pytest.fixture
def jobs(catalog: Catalog) -> Jobs:
    return Jobs(catalog, LISTENERS, lease_s=0.3, max_attempts=3)
