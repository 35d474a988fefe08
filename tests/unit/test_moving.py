"""A workspace moves between embedded stores and servers, whole, and goes on when it was interrupted."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from qdrant_client import QdrantClient
from typer.testing import CliRunner

from tests.postgresql import PASSWORD
from tests.unit import kept
from voxloop.cli import app
from voxloop.errors import BlobError, UsageError
from voxloop.maintenance import moving
from voxloop.maintenance.integrity import verify
from voxloop.maintenance.moving import move
from voxloop.models import embedding_model
from voxloop.pipeline import open_loop
from voxloop.stores import search, tables
from voxloop.stores.blobs import Blobs
from voxloop.stores.events import trail
from voxloop.stores.qdrant import QdrantVectors
from voxloop.workspace import Workspace


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kept.template(tmp_path_factory.mktemp("template"))


@pytest.fixture
def folder(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path / "workspace")
    return tmp_path / "workspace"


@pytest.fixture
def ws(folder: Path) -> Iterator[Workspace]:
    with open_loop(folder) as opened:
        yield opened


def content(ws: Workspace) -> dict[str, str]:
    """A hash of each table."""
    with ws.read() as reader:
        return {table.name: moving._fingerprint(reader, table) for table in moving.COPIED_TABLES}


def texts(ws: Workspace) -> list[Any]:
    with ws.read() as reader:
        columns = (tables.transcript.c.id, tables.transcript.c.text, tables.transcript.c.words)
        return [tuple(row) for row in reader.connection.execute(sa.select(*columns).order_by(columns[0]))]


def emitted(ws: Workspace, subject: str) -> int:
    """The number that the next event gets."""
    with ws.transaction() as tx:
        tx.emit("utterance.reviewed", subject)
    return list(trail(ws.catalog))[-1].seq


def test_there_and_back(ws: Workspace, folder: Path, tmp_path: Path, new_postgresql: str, s3: str) -> None:
    before, spoken, space = content(ws), texts(ws), embedding_model(ws).id
    ids = sorted(ws.vectors.ids(space))
    vectors = ws.vectors.read(space, ids)[1]
    highest = max(event.seq for event in trail(ws.catalog))
    told: list[tuple[float, float | None]] = []
    done = move(ws, {"catalog": new_postgresql, "blobs": s3}, progress=lambda *at: told.append(at))
    assert done.blobs == done.copied > 20
    assert done.rows > 100
    assert done.vectors == len(ids)
    assert done.missing == ()
    assert told
    assert PASSWORD not in str(done)
    assert PASSWORD not in (folder / "voxloop.toml").read_text()
    assert done.by_hand == (f"VOXLOOP_CATALOG={sa.make_url(new_postgresql)!r}",)
    ws.close()
    shutil.rmtree(folder / "blobs")  # what is left is what was moved
    for file in folder.glob("catalog.db*"):
        file.unlink()

    with open_loop(folder, catalog=new_postgresql) as scaled:
        assert scaled.blobs.url == s3
        assert content(scaled) == before
        assert texts(scaled) == spoken
        np.testing.assert_array_equal(scaled.vectors.read(space, ids)[1], vectors)
        assert verify(scaled).findings == ()
        assert emitted(scaled, "afterwards") > highest
        with scaled.transaction() as tx:
            first = sa.select(sa.func.max(tables.utterance.c.number))
            last = tx.connection.execute(first).scalar_one()
            assert tx.connection.execute(sa.select(tables.next_number())).scalar_one() == last + 1
        after = content(scaled)
        back = move(scaled, {"catalog": "", "blobs": ""})
        assert (back.blobs, back.copied) == (done.blobs, done.blobs)
    settings = tomllib.loads((folder / "voxloop.toml").read_text())
    assert (settings["catalog"], settings["blobs"]) == ("", "")
    with open_loop(folder) as again:
        assert again.catalog.engine.dialect.name == "sqlite"
        found = content(again)
        assert {name for name in found if found[name] != after[name]} <= {"upkeep"}
        assert verify(again).findings == ()
        with again.transaction() as tx:  # a number that was given away on PostgreSQL is not given again
            assert tx.connection.execute(sa.select(sa.func.max(tables.upkeep.c.until))).scalar_one() >= last + 1
        with again.read() as reader:
            assert search.few(reader.connection, kept.WORDS[0])  # the index of texts was made anew


def test_an_interrupted_move_goes_on(
    ws: Workspace, folder: Path, tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, written = Blobs.put, []

    def dying(self: Blobs, key: str, data: bytes | Path) -> bool:
        if len(written) >= 10:
            raise BlobError("the network is gone")
        written.append(key)
        return put(self, key, data)

    with monkeypatch.context() as patch, pytest.raises(BlobError, match="network"):
        patch.setattr(Blobs, "put", dying)
        patch.setattr(moving, "AT_ONCE", 1)
        move(ws, {"blobs": s3})
    assert f'blobs = "{s3}"' not in (folder / "voxloop.toml").read_text()
    journal = folder / "moving.jsonl"
    assert len(journal.read_text().splitlines()) == 11
    journal.write_text(journal.read_text() + '["audio/cut of')  # by a kill
    read: list[str] = []
    parts = Blobs.parts
    monkeypatch.setattr(
        Blobs, "parts", lambda self, key, *more, **by: read.append(key) or parts(self, key, *more, **by)
    )
    done = move(ws, {"blobs": s3})
    assert done.blobs - done.copied == 10
    assert not set(read) & set(written)  # what was checked is not read again
    assert not journal.exists()
    with open_loop(folder) as moved:
        assert moved.blobs.url == s3
        assert verify(moved).findings == ()


def test_other_content_under_a_key_is_found(ws: Workspace, tmp_path: Path) -> None:
    target = (tmp_path / "elsewhere").as_uri()
    key = next(ws.blobs.list("audio"))
    Blobs(target, cache=tmp_path / "cache").put(key, b"something else")
    with pytest.raises(BlobError, match="is not what was copied"):
        move(ws, {"blobs": target})
    with open_loop(ws.folder) as still:
        assert still.blobs.root == ws.folder / "blobs"


def test_a_catalog_with_other_content_is_refused(ws: Workspace, tmp_path: Path, postgresql: str) -> None:
    with open_loop(tmp_path / "other", create=True, catalog=postgresql) as other:
        emitted(other, "mine")
    with pytest.raises(UsageError, match="holds other content"):
        move(ws, {"catalog": postgresql})


def test_a_move_that_died_before_the_settings_finds_its_copy(ws: Workspace, new_postgresql: str) -> None:
    first = move(ws, {"catalog": new_postgresql})
    again = move(ws, {"catalog": new_postgresql})  # the settings of this open workspace still name the old one
    assert again.rows == first.rows > 0


def test_running_jobs_are_not_left_behind(ws: Workspace, tmp_path: Path) -> None:
    emitted(ws, "u")
    assert ws.jobs.claim(["rank"])
    with pytest.raises(UsageError, match="1 job is running"):
        move(ws, {"blobs": (tmp_path / "elsewhere").as_uri()})


def test_vectors_move_to_qdrant(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into the in-memory engine of its client."""
    target = QdrantVectors(QdrantClient(":memory:"))
    monkeypatch.setattr(moving, "open_vectors", lambda *_: target)
    monkeypatch.setattr(target, "close", lambda: None)
    done = move(ws, {"vectors": "qdrant+http://127.0.0.1:6333"})
    space = embedding_model(ws).id
    ids = sorted(ws.vectors.ids(space))
    assert done.vectors == len(ids) > 0
    np.testing.assert_array_equal(target.read(space, ids)[1], ws.vectors.read(space, ids)[1])
    settings = tomllib.loads((ws.folder / "voxloop.toml").read_text())
    assert settings["vectors"] == "qdrant+http://127.0.0.1:6333"


def test_missing_blobs_are_listed(ws: Workspace, tmp_path: Path) -> None:
    key = next(ws.blobs.list("audio"))
    ws.blobs.delete(key)
    assert move(ws, {"blobs": (tmp_path / "elsewhere").as_uri()}).missing == (key,)


def test_the_command(folder: Path, tmp_path: Path, s3: str) -> None:
    result = CliRunner().invoke(app, ["-C", str(folder), "move", "--blobs", s3])
    assert result.exit_code == 0, result.output
    assert f"blobs    {s3}" in result.output
    assert CliRunner().invoke(app, ["-C", str(folder), "verify"]).exit_code == 0
    again = CliRunner().invoke(app, ["-C", str(folder), "move", "--blobs", s3])
    assert again.exit_code == 2
    assert "already" in again.output
    back = CliRunner().invoke(app, ["-C", str(folder), "move", "--blobs", "embedded"])
    assert back.exit_code == 0, back.output
