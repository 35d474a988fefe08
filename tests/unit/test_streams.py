"""Streams that are closed, full or of another locale: one line at most, the right status, and no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.test_recordings import make
from voxloop.pipeline import open_loop

VOXLOOP = f'"{sys.executable}" -c "from voxloop.cli import main; main()"'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streams") / "workspace"
    with open_loop(folder, create=True):
        return folder


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        capture_output=True,
        env=os.environ | environment,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize("command", ["status", "recordings list --json", "--help"])
@pytest.mark.parametrize(
    ("streams", "status", "lines"),
    [(">/dev/full", 1, 1), (">&-", 0, 0), ("2>&-", 0, 0), ("2>/dev/full", 0, 0), ("<&-", 0, 0)],
)
def test_a_stream_that_is_full_or_closed(folder: Path, command: str, streams: str, status: int, lines: int) -> None:
    done = shell(f"{VOXLOOP} -C {folder} {command} {streams}")
    assert done.returncode == status, done.stderr
    assert len(done.stderr.splitlines()) == lines, done.stderr
    assert b"Traceback" not in done.stderr


def test_a_reader_that_goes_away(folder: Path) -> None:
    done = shell(f"{VOXLOOP} -C {folder} --help | true")
    assert done.stderr == b""


def test_a_closed_standard_error_is_no_place_for_the_database(folder: Path, tmp_path: Path) -> None:
    make(tmp_path / "a.wav")
    done = shell(f"{VOXLOOP} -C {folder} ingest {tmp_path / 'a.wav'} 2>&-")
    assert (done.returncode, b"1 taken" in done.stdout) == (0, True)


def test_another_locale_takes_the_same_names(tmp_path: Path) -> None:
    make(tmp_path / "in" / "ü.wav")
    (tmp_path / "in" / "metadata.jsonl").write_text('{"file": "ü.wav", "text": "grüß dich"}\n', encoding="utf-8")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = shell(f"{VOXLOOP} -C {tmp_path / 'ws'} ingest {tmp_path / 'in'}", **ascii_only)
    assert (done.returncode, b"1 taken" in done.stdout) == (0, True), done.stderr
    done = shell(f"{VOXLOOP} -C {tmp_path / 'ws'} recordings show ü.wav", **ascii_only)
    assert "grüß dich" in done.stdout.decode()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    done = shell(f"{VOXLOOP} -C {tmp_path / 'ws'} init")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)


def test_a_mistyped_path_makes_no_workspace(tmp_path: Path) -> None:
    done = shell(f"{VOXLOOP} -C {tmp_path / 'ws'} ingest {tmp_path / 'nofile.wav'}")
    assert done.returncode == 2
    assert not (tmp_path / "ws").exists()


def test_players(tmp_path: Path) -> None:
    """The first that is there plays; one that fails is passed over; without any the message says what to install."""
    make(tmp_path / "a.wav")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "aplay").write_text("#!/bin/sh\necho no card >&2; exit 1\n")
    (tools / "ffplay").write_text(f'#!/bin/sh\nfor last; do :; done; cp "$last" {tmp_path}/heard.wav\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    run = f"{VOXLOOP} -C {tmp_path / 'ws'}"
    shell(f"{run} ingest {tmp_path / 'a.wav'}")
    done = shell(f"{run} recordings play a.wav --start 0.1 --end 0.3", PATH=f"{tools}:/bin")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "heard.wav").stat().st_size == 44 + 2 * 3_200
    (tools / "ffplay").unlink()
    done = shell(f"{run} recordings play a.wav", PATH=f"{tools}:/bin")
    assert (done.returncode, b"aplay (no card)" in done.stderr) == (1, True), done.stderr


def test_an_export_is_written_through_a_link_and_to_a_pipe(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "real.jsonl")
    os.mkfifo(tmp_path / "pipe")
    shell(f"{VOXLOOP} -C {folder} review export {tmp_path / 'link.jsonl'}")
    assert (tmp_path / "link.jsonl").is_symlink()
    assert (tmp_path / "real.jsonl").is_file()
    export = f"{VOXLOOP} -C {folder} review export {tmp_path / 'pipe'} --format csv"
    done = shell(f"timeout 60 cat {tmp_path / 'pipe'} & {export} >/dev/null; wait")
    assert done.stdout.startswith(b"utterance,text")
    assert (tmp_path / "pipe").is_fifo()
