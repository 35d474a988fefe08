"""Seeds for tests that leave something to chance: one in every run, many others in `.ci/long`."""

from __future__ import annotations

import os
from typing import Any

import pytest

ROUNDS = int(os.environ.get("LONG_ROUNDS", "20"))
FIRST = int(os.environ.get("LONG_SEED", "1000"))


def seeds(usual: Any) -> list[Any]:
    """Parameters of a test: its usual seed, and LONG_ROUNDS further ones from LONG_SEED on, marked `long`."""
    return [usual, *(pytest.param(FIRST + number, marks=pytest.mark.long) for number in range(ROUNDS))]
