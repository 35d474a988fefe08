"""Fixtures that start real components, in an environment without the user's settings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from voxloop.pipeline import open_loop
from voxloop.workspace import Workspace

ROOT = Path(__file__).parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("VOXLOOP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    """A new workspace with the embedded stores."""
    with open_loop(tmp_path / "workspace", create=True) as ws:
        yield ws


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
