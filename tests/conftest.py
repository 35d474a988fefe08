"""Fixtures that start real components, in an environment without the user's settings."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import hypothesis
import pytest
import sqlalchemy as sa

from tests import postgresql as _postgresql
from tests.servers import NatsServer, free_ports, nats_started, s3_environment, s3_started, wait_for_s3
from voxloop import settings as _settings
from voxloop.pipeline import open_loop
from voxloop.stores.catalog import Catalog
from voxloop.workspace import Workspace

ROOT = Path(__file__).parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"
# What new workspaces keep their catalog in: TEST_CATALOG=postgresql runs any test on PostgreSQL. Those that
# look into SQLite's files fail then.
CATALOG = os.environ.get("TEST_CATALOG", "sqlite")
CATALOGS = ("sqlite", "postgresql")

hypothesis.settings.register_profile("long", max_examples=5000, deadline=None)  # for `.ci/long`


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("VOXLOOP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def _catalogs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Where it is asked for, the settings of every workspace that this process makes name a database of its own."""
    if CATALOG != "postgresql":
        yield
        return
    server, template = (request.getfixturevalue(name) for name in ("postgresql_server", "postgresql_template"))
    urls: list[str] = []
    settings = _settings.template()

    def with_catalog() -> str:
        urls.append(server.create(template))
        return f"{settings}\ncatalog = {json.dumps(urls[-1])}\n"

    monkeypatch.setattr(_settings, "template", with_catalog)
    yield
    for url in urls:
        server.drop(url)


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    """A new workspace with the embedded stores."""
    with open_loop(tmp_path / "workspace", create=True) as ws:
        yield ws


@pytest.fixture(params=CATALOGS)
def each_workspace(request: pytest.FixtureRequest) -> Workspace:
    """A new workspace on each database."""
    return request.getfixturevalue(f"{request.param}_workspace")


@pytest.fixture
def sqlite_workspace(tmp_path: Path) -> Iterator[Workspace]:
    """A new workspace, for what only SQLite does."""
    name_catalog(tmp_path / "workspace", "")
    with open_loop(tmp_path / "workspace") as ws:
        yield ws


@pytest.fixture
def postgresql_workspace(tmp_path: Path, postgresql: str) -> Iterator[Workspace]:
    """A new workspace whose catalog is on PostgreSQL."""
    name_catalog(tmp_path / "on postgresql", postgresql)
    with open_loop(tmp_path / "on postgresql") as ws:
        yield ws


@contextmanager
def statements(catalog: Catalog) -> Iterator[list[str]]:
    """The statements that ask or change something meanwhile; one that is sent for many rows counts once."""
    said: list[str] = []

    def note(_c: object, _cursor: object, statement: str, *_: object) -> None:
        if not statement.startswith("BEGIN"):  # which only SQLite is told this way
            said.append(statement)

    sa.event.listen(catalog.engine, "before_cursor_execute", note)
    try:
        yield said
    finally:
        sa.event.remove(catalog.engine, "before_cursor_execute", note)


def name_catalog(folder: Path, url: str) -> None:
    """Make a workspace whose settings name this catalog."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "voxloop.toml").write_text(f"catalog = {json.dumps(url)}\n")


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[_postgresql.Server]:
    """A real PostgreSQL server on loopback."""
    with _postgresql.started(free_ports(1)[0]) as server:
        yield server


@pytest.fixture(scope="session")
def postgresql_template(postgresql_server: _postgresql.Server) -> str:
    """The name of a database that has the catalog's schema and that nobody is connected to."""
    url = postgresql_server.create()
    catalog = Catalog(url)
    catalog.migrate()
    catalog.close()
    return _postgresql.name_of(url)


@pytest.fixture
def postgresql(postgresql_server: _postgresql.Server, postgresql_template: str) -> Iterator[str]:
    """The URL of an empty catalog on PostgreSQL."""
    url = postgresql_server.create(postgresql_template)
    yield url
    postgresql_server.drop(url)


@pytest.fixture
def new_postgresql(postgresql_server: _postgresql.Server) -> Iterator[str]:
    """The URL of a database on PostgreSQL without any schema."""
    url = postgresql_server.create()
    yield url
    postgresql_server.drop(url)


@pytest.fixture(scope="session")
def real_speech() -> Path:
    """The folder of real recorded speech, where it lies beside the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the recorded speech is not beside this checkout")
    return SHARED_DATA


@pytest.fixture(scope="session")
def demo_speech() -> Path:
    """The demo's own synthetic speech, which is part of the repository."""
    return ROOT / "demo" / "speech"


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A real S3 server (SeaweedFS) on loopback, with a bucket `voxloop`; the environment that leads to it."""
    folder, port = tmp_path_factory.mktemp("s3"), free_ports(1)[0]
    with s3_started(folder, port) as server:
        leads = s3_environment(port)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in leads.items():
                patch.setenv(name, value)
            wait_for_s3(server, folder)
        yield leads


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A real NATS server with JetStream on loopback. Tests keep apart by the name in the bus's URL."""
    with nats_started(tmp_path_factory.mktemp("nats"), free_ports(1)[0]) as server:
        yield server


@pytest.fixture
def nats(nats_server: NatsServer) -> str:
    """The URL of a bus that nobody uses yet."""
    return f"{nats_server.url}/t{uuid4().hex[:12]}"


@pytest.fixture
def s3(s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The URL of an empty place on the S3 server, which this test's environment leads to."""
    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)
    return f"s3://voxloop/{request.node.name.translate(str.maketrans('[]', '--'))}-{time.monotonic_ns()}"


@pytest.fixture
def ordinary_user() -> Iterator[None]:
    """Permissions hold in this thread, also where root runs the tests: it is without root's capabilities meanwhile."""
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() != 0 or not hasattr(libc, "capset"):
        yield
        return
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    before = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; their upper halves
    assert libc.capget(header, before) == 0
    without = (ctypes.c_uint32 * 6)(*before)
    without[0] &= ~(1 << 1 | 1 << 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, without) == 0
    yield
    assert libc.capset(header, before) == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)):
        pytest.skip("this user may not mount a small disk; the test with files of at most 1 MB is for them")
    yield disk
    assert subprocess.run(["umount", str(disk)], check=False).returncode == 0


def mount(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], check=False, capture_output=True).returncode == 0
