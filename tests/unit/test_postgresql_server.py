"""Tests on PostgreSQL are left out where it is not installed, but never in CI."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import postgresql


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_a_missing_server_is_told(
    ci: str, outcome: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "PROGRAMS", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="no PostgreSQL server is installed"), postgresql.started(1):
        pass
