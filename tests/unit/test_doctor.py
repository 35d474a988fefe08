"""`voxloop doctor` examines every configured part, and says of a broken one what to do."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from tests.postgresql import PASSWORD
from tests.servers import READER, free_ports
from voxloop import doctor
from voxloop.cli import app
from voxloop.doctor import Finding, examine

PARTS = ["workspace", "catalog", "blobs", "vectors", "bus"]


def workspace(folder: Path, **settings: Any) -> Path:
    folder.mkdir(exist_ok=True)
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    (folder / "voxloop.toml").write_text("\n".join(lines) + "\n")
    return folder


def findings(folder: Path) -> dict[str, Finding]:
    return {finding.part: finding for finding in examine(folder)}


def broken(folder: Path) -> dict[str, str]:
    found = findings(folder)
    return {part: one.found for part, one in found.items() if not one.sound}


def test_embedded_stores_are_sound(tmp_path: Path) -> None:
    found = findings(workspace(tmp_path / "w"))
    assert list(found) == PARTS
    assert [part for part, one in found.items() if not one.sound] == []
    assert "written, read, listed and deleted" in found["blobs"].found
    assert list((tmp_path / "w" / "blobs").rglob("*.*")) == []


def test_servers_are_sound(tmp_path: Path, postgresql: str, s3: str, nats: str) -> None:
    found = findings(workspace(tmp_path / "w", catalog=postgresql, blobs=s3, bus=nats))
    assert [one for one in found.values() if not one.sound] == []
    assert "answers in" in found["catalog"].found
    assert PASSWORD not in found["catalog"].found
    assert s3 in found["blobs"].found
    assert "0 events in the stream" in found["bus"].found


def test_one_broken_part_hides_no_other(
    tmp_path: Path, postgresql: str, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "PATIENCE_S", 0.5)
    monkeypatch.setenv("AWS_ENDPOINT", f"http://127.0.0.1:{free_ports(1)[0]}")
    catalog = sa.make_url(postgresql).set(port=free_ports(1)[0]).render_as_string(hide_password=False)
    closed = free_ports(1)[0]
    folder = workspace(
        tmp_path / "w",
        catalog=catalog,
        blobs=s3,
        bus=f"nats://127.0.0.1:{closed}",
        vectors=f"qdrant+http://127.0.0.1:{closed}",
    )
    found = broken(folder)
    assert list(found) == ["catalog", "blobs", "vectors", "bus"]
    assert "cannot be reached" in found["catalog"]
    assert PASSWORD not in found["catalog"]
    assert f"to {s3} failed" in found["blobs"]
    assert "Check that the server runs" in found["vectors"]
    assert "cannot be used" in found["bus"]
    assert "Check that the server runs" in found["bus"]


def test_a_wrong_password_is_said(tmp_path: Path, postgresql: str) -> None:
    wrong = sa.make_url(postgresql).set(password="wrong").render_as_string(hide_password=False)
    assert "refuses this user" in broken(workspace(tmp_path / "w", catalog=wrong))["catalog"]


@pytest.mark.parametrize(
    ("keys", "said"), [(("voxloop", "another"), "SignatureDoesNotMatch|403"), (READER, "AccessDenied|403")]
)
def test_a_key_that_may_not_write_is_said(
    keys: tuple[str, str], said: str, tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys[1])
    found = broken(workspace(tmp_path / "w", blobs=s3))
    assert list(found) == ["blobs"]
    assert any(word in found["blobs"] for word in said.split("|"))


@pytest.mark.parametrize(
    ("settings", "part", "package", "extra"),
    [
        ({"bus": "nats://127.0.0.1:4222"}, "bus", "nats", "nats"),
        ({"vectors": "qdrant+http://127.0.0.1:6333"}, "vectors", "qdrant_client", "qdrant"),
        ({"catalog": "postgresql+psycopg://me@127.0.0.1/x"}, "catalog", "psycopg", "postgres"),
    ],
)
def test_a_missing_package_is_said(
    settings: dict[str, str], part: str, package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    found = broken(workspace(tmp_path / "w", **settings))[part]
    assert "pip install" in found
    assert f"[{extra}]" in found


@pytest.mark.parametrize(
    ("settings", "said"), [({"bus": "kafka://x"}, "bus is 'kafka://x'"), ({"vectors": "faiss"}, "vectors is 'faiss'")]
)
def test_an_unknown_store_is_said(settings: dict[str, str], said: str, tmp_path: Path) -> None:
    assert said in " ".join(broken(workspace(tmp_path / "w", **settings)).values())


def test_a_folder_that_is_no_workspace_is_said(tmp_path: Path) -> None:
    (finding,) = examine(tmp_path)
    assert not finding.sound
    assert "init" in finding.found


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LOW_DISK", 1e18)
    assert "Free some space" in broken(workspace(tmp_path / "w"))["workspace"]


def test_the_command_ends_with_1_when_something_is_broken(tmp_path: Path) -> None:
    folder = workspace(tmp_path / "w", bus=f"nats://127.0.0.1:{free_ports(1)[0]}")
    result = CliRunner().invoke(app, ["-C", str(folder), "doctor"])
    assert result.exit_code == 1
    assert "BROKEN: the bus" in result.output
    assert "written, read" in result.output
    assert CliRunner().invoke(app, ["-C", str(workspace(tmp_path / "v")), "doctor"]).exit_code == 0
