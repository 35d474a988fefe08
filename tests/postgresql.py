"""A real PostgreSQL server on loopback, and databases on it that cost little."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

USER = "voxloop"
PASSWORD = "no/secret here"  # with characters that a URL has to escape
PROGRAMS = Path("/usr/lib/postgresql")  # where Debian keeps them, by version: they are not on the path
START_S = 60.0


class Server:
    """A running server. Databases are made from a template, which takes a tenth of a second where nothing is synced."""

    def __init__(self, port: int) -> None:
        self._url = sa.URL.create("postgresql+psycopg", USER, PASSWORD, "127.0.0.1", port, "postgres")
        self._engine = sa.create_engine(self._url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)

    def create(self, template: str = "template0", **options: str) -> str:
        """Create a database; its URL."""
        name = f"v{uuid4().hex}"
        more = " ".join(f"{key} {value}" for key, value in options.items())
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" {more}')
        return self.url(name)

    def url(self, database: str, user: str = USER) -> str:
        return self._url.set(database=database, username=user).render_as_string(hide_password=False)

    def drop(self, url: str) -> None:
        self.execute(f'DROP DATABASE IF EXISTS "{name_of(url)}" WITH (FORCE)')

    def execute(self, statement: str) -> Any:
        with self._engine.connect() as connection:
            result = connection.exec_driver_sql(statement)
            return result.all() if result.returns_rows else None


def name_of(url: str) -> str:
    """The database in a URL."""
    return str(sa.make_url(url).database)


@contextmanager
def started(port: int, **more: str) -> Iterator[Server]:
    """A server in a folder of its own. Skips where PostgreSQL is not installed; in CI that is a failure.

    Without `more` options it writes nothing to the disk that a crash of the machine would leave there.
    """
    bin = _programs()
    # It refuses to run as root, and another user cannot reach into pytest's folders.
    as_user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="voxloop-postgresql-"))
    try:
        secret = folder / "password"
        secret.write_text(PASSWORD)
        if as_user:
            owner = pwd.getpwnam("postgres")
            for path in (folder, secret):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        init = [bin / "initdb", "-D", folder / "data", "-U", USER, "--auth=scram-sha-256", f"--pwfile={secret}"]
        # A linguistic order, so that nothing rests on the order of bytes unawares.
        init += ["--encoding=UTF8", "--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en-US", "--no-sync"]
        subprocess.run(init, check=True, capture_output=True, cwd=folder, **as_user)
        options: dict[str, object] = {
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": "",
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "autovacuum": "off",
            "shared_buffers": "64MB",
        } | more
        command = [bin / "postgres", "-D", folder / "data", *(f"--{name}={value}" for name, value in options.items())]
        with (
            (folder / "log").open("wb") as log,
            subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True, **as_user) as process,
        ):
            try:
                server = Server(port)
                _wait(server, process, folder / "log")
                yield server
            finally:
                if process.poll() is None:
                    # A fast shutdown; on SIGTERM it would wait for connections that a failed test left open.
                    process.send_signal(signal.SIGINT)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_S
    while True:
        try:
            server.execute("SELECT 1")
            return
        except sa.exc.OperationalError as error:
            if process.poll() is not None or time.monotonic() > until:
                raise AssertionError(f"PostgreSQL does not answer: {log.read_text()[-2000:]}") from error
            time.sleep(0.05)


def _programs() -> Path:
    """The folder of the server's programs."""
    found = sorted(PROGRAMS.glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("postgres")
    if found:
        return found[-1].parent
    if on_path:
        return Path(on_path).parent
    missing = "no PostgreSQL server is installed (Debian's package `postgresql`; .ci/run installs it)"
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(missing, pytrace=False)
    pytest.skip(missing)
