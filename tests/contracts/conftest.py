"""Every backend of a store is one parameter of its contract suite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import CATALOGS
from voxloop.stores.blobs import Blobs
from voxloop.stores.bus import Bus, LocalBus
from voxloop.stores.catalog import Catalog
from voxloop.stores.jobs import Jobs
from voxloop.stores.vectors import CatalogVectors, Vectors

BLOB_STORES = ["file", "s3"]
VECTOR_STORES = ["catalog"]
BUSES = ["local"]

LISTENERS = {"recording.ingested": ("segment",), "recording.segmented": ("transcribe", "index")}


@pytest.fixture(params=CATALOGS)
def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Catalog]:
    if request.param == "postgresql":
        opened = Catalog(request.getfixturevalue("postgresql"))
    else:
        opened = Catalog(f"sqlite:///{tmp_path / 'catalog.db'}")
    opened.migrate()
    yield opened
    opened.close()


@pytest.fixture(params=BLOB_STORES)
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    url = request.getfixturevalue("s3") if request.param == "s3" else (tmp_path / "a folder with ü").as_uri()
    return Blobs(url, cache=tmp_path / "cache")


@pytest.fixture(params=VECTOR_STORES)
def vectors(request: pytest.FixtureRequest, catalog: Catalog) -> Vectors:
    return CatalogVectors(catalog)


@pytest.fixture(params=BUSES)
def bus(request: pytest.FixtureRequest) -> Bus:
    return LocalBus()


@pytest.fixture
def jobs(catalog: Catalog) -> Jobs:
    return Jobs(catalog, LISTENERS, lease_s=0.3, max_attempts=3)
