"""What takes hours is left out of an ordinary run, and `.ci/long` says what came of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHANCES = """
import pytest
from tests.seeds import seeds

@pytest.mark.parametrize("seed", seeds(1))
def test_chance(seed):
    assert seed != 502
"""


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="the report names a commit: this is no checkout")
def test_long_tests_run_when_asked_for_and_are_reported(tmp_path: Path) -> None:
    (tmp_path / "test_chances.py").write_text(CHANCES)
    results, page = tmp_path / "long.xml", tmp_path / "page.md"
    environment = os.environ | {"LONG_ROUNDS": "4", "LONG_SEED": "500", "LONG_ARGUMENTS": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider"]
    command += [str(tmp_path), f"--junitxml={results}"]

    def run(*more: str) -> int:
        done = subprocess.run([*command, *more], cwd=tmp_path, env=environment, capture_output=True, check=False)
        report = [sys.executable, ROOT / ".ci" / "report_long.py", results, page]
        subprocess.run(report, cwd=ROOT, env=environment, check=True)
        return done.returncode

    assert run() == 0
    assert "| all passed |" in page.read_text()
    assert "`test_chances.test_chance` | 1 | 0 | 0 |" in page.read_text()
    assert run("-m", "long") == 1
    said = page.read_text()
    for line in (
        "| result | 1 failed |",
        "| rounds | 4, from `LONG_SEED=500` |",
        "Failed: `test_chances.test_chance[502]`",
    ):
        assert line in said
    assert "`test_chances.test_chance` | 3 | 1 | 0 |" in said
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, check=True)
    assert commit.stdout.decode().strip() in said
