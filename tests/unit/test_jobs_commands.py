"""The commands for jobs: list, show, retry, drop."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from voxloop.cli.app import app
from voxloop.pipeline import open_loop


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["-C", str(folder), "jobs", *arguments])
    return result.exit_code, result.output


def test_failed_jobs_are_listed_shown_retried_and_given_up(tmp_path: Path) -> None:
    folder = tmp_path / "workspace"
    with open_loop(folder, create=True, max_attempts=1) as ws:
        with ws.transaction() as tx:
            for name in ("one", "two", "three"):
                tx.emit("transcription.asked", name)
        claim = ws.jobs.claim(["transcribe"], limit=2)
        assert claim is not None
        ws.jobs.fail(claim, ValueError("no such file"))
    status, listed = run(folder, "list")
    assert status == 0
    assert "no such file" in listed
    rows = json.loads(run(folder, "list", "--json")[1])
    assert sorted(row["state"] for row in rows) == ["failed", "failed", "waiting"]
    assert len(json.loads(run(folder, "list", "--state", "failed", "--limit", "1", "--json")[1])) == 1
    assert json.loads(run(folder, "list", "--step", "segment", "--json")[1]) == []
    first, second = (row["id"] for row in rows if row["state"] == "failed")
    assert "no such file" in run(folder, "show", first)[1]
    assert "1 job queued again" in run(folder, "retry", first)[1]
    assert "given up" in run(folder, "drop", second)[1]
    states = {row["id"]: row["state"] for row in json.loads(run(folder, "list", "--json")[1])}
    assert second not in states
    assert states[first] == "waiting"
    assert json.loads(run(folder, "show", second, "--json")[1])["state"] == "done"
    for wrong in (("show", "nothing"), ("retry", "nothing"), ("drop", first)):
        status, told = run(folder, *wrong)
        assert status != 0
        assert "jobs list" in told
