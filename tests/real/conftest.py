"""Real checkpoints, and speech for them to hear: people's where it lies beside the repository, else synthetic."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from benchmarks import checkpoints

from tests.conftest import ROOT, SHARED_DATA
from voxloop.speech.audio import decode

CACHE = checkpoints.cache()  # before a fixture takes the variable that names it out of the environment
THREADS = 1


def checkpoint(name: str) -> Path:
    """The folder of a checkpoint; where it cannot be had, the test is skipped, and fails in CI."""
    try:
        return checkpoints.fetch(name, CACHE)
    except checkpoints.Unavailable as error:
        if os.environ.get("CI", "").lower() in ("1", "true"):
            raise
        pytest.skip(f"{error}; with a network, `python -m benchmarks.checkpoints` fetches it")


@pytest.fixture(scope="session", params=["tiny.en", "base"])
def folder(request: pytest.FixtureRequest) -> Path:
    """A CTranslate2 folder with Whisper's weights in half precision: English-only, then multilingual."""
    return checkpoint(request.param)


@pytest.fixture(scope="session")
def tiny_en() -> Path:
    return checkpoint("tiny.en")


@pytest.fixture(scope="session")
def recordings() -> list[Path]:
    """Ten files of speech in English, by several speakers."""
    sets = [(SHARED_DATA / name, count) for name, count in (("kathleen_en", 4), ("prompts_en", 3), ("torgo_en", 3))]
    if not SHARED_DATA.is_dir():
        sets = [(ROOT / "demo" / "speech", 10)]
    found = []
    for folder, count in sets:
        rows = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
        found += [folder / json.loads(row)["file"] for row in rows[:: len(rows) // count][:count]]
    return found


@pytest.fixture(scope="session")
def clips(recordings: list[Path]) -> list[np.ndarray]:
    """The same at 16 kHz."""
    return [decode(file) for file in recordings]
