"""Every command of docs/datasets.md is run, in order, on a small workspace."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.unit.test_dataset_formats import record
from voxloop.cli import app
from voxloop.pipeline import open_loop

PAGE = Path(__file__).parents[2] / "docs" / "datasets.md"
SOURCE = Path(__file__).parents[2] / "src" / "voxloop"


def test_every_command_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VOXLOOP_WORKSPACE", str(tmp_path / "workspace"))
    with open_loop(tmp_path / "workspace", create=True) as ws:
        # The first command takes the recordings of 0.8 s, the later one those of 0.06 s, too.
        record(ws, [(f"go {i}", "ann", "en", 1) for i in range(15)], samples=12_800)
        record(ws, [("a", "bob", "de", 1) for _ in range(5)], seed=1, samples=960)
    told = {}
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.S)
    for command in (line for block in blocks for line in block.splitlines()):
        program, *arguments = shlex.split(command)
        assert program == "voxloop"
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, f"{command}: {result.output} {result.exception}"
        told[command] = result.stdout
    assert (
        "Left out: 5 shorter than 0.2 s (--min-seconds)"
        in told["voxloop dataset build --name spoken --ratios 0.6/0.2/0.2"]
    )
    assert "added: 5" in told["voxloop dataset diff spoken"]
    assert (tmp_path / "spoken.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert " clips in " in told["voxloop dataset export spoken --to out/jsonl"]
    assert len([line for line in told["voxloop dataset list"].splitlines() if "spoken" in line]) == 2


def test_every_option_that_a_reason_names_is_explained() -> None:
    named = set(re.findall(r"\((--[a-z-]+)\)", (SOURCE / "steps" / "datasets" / "filters.py").read_text()))
    assert len(named) == 6
    assert not [option for option in named if f"`{option}`" not in PAGE.read_text()]
