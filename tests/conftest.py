"""Fixtures that start real components, in an environment without the user's settings."""

from __future__ import annotations

import ctypes
import os
import subprocess
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


@pytest.fixture
def ordinary_user() -> Iterator[None]:
    """Permissions hold in this thread, also where root runs the tests: it is without root's capabilities meanwhile."""
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() != 0 or not hasattr(libc, "capset"):
        yield
        return
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    before = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; their upper halves
    assert libc.capget(header, before) == 0
    without = (ctypes.c_uint32 * 6)(*before)
    without[0] &= ~(1 << 1 | 1 << 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, without) == 0
    yield
    assert libc.capset(header, before) == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)):
        pytest.skip("this user may not mount a small disk; the test with files of at most 1 MB is for them")
    yield disk
    assert subprocess.run(["umount", str(disk)], check=False).returncode == 0


def mount(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], check=False, capture_output=True).returncode == 0
