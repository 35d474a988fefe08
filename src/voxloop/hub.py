"""The Hugging Face Hub: model repositories as local folders, and what its cache holds. Its errors are translated here.

A name is `OWNER/NAME`, or `OWNER/NAME@REVISION` for a branch, a tag or a commit.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from voxloop.errors import ModelError, first_line

# model.bin is CTranslate2's form; pickled weights (pytorch_model.bin) are never fetched.
WANTED = ("*.json", "*.txt", "*.safetensors", "*.model", "model.bin")
UNWANTED = ("*.fp32*", "flax*", "tf*")

# faster-whisper's names of its models, and the repositories it takes them from (faster_whisper/utils.py).
FASTER_WHISPER = {
    size: f"Systran/faster-whisper-{size}"
    for size in (
        *("tiny", "tiny.en", "base", "base.en", "small", "small.en", "medium", "medium.en"),
        *("large-v1", "large-v2", "large-v3"),
    )
} | {
    "large": "Systran/faster-whisper-large-v3",
    "large-v3-turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
    "turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
    "distil-small.en": "Systran/faster-distil-whisper-small.en",
    "distil-medium.en": "Systran/faster-distil-whisper-medium.en",
    "distil-large-v2": "Systran/faster-distil-whisper-large-v2",
    "distil-large-v3": "Systran/faster-distil-whisper-large-v3",
    "distil-large-v3.5": "distil-whisper/distil-large-v3.5-ct2",
}
# The repositories that these were converted from, where that is known: OpenAI's, or distil-whisper's.
ORIGINALS = {
    repository: repository.replace("Systran/faster-distil-whisper", "distil-whisper/distil")
    .replace("Systran/faster-whisper", "openai/whisper")
    .replace("mobiuslabsgmbh/faster-whisper", "openai/whisper")
    .removesuffix("-ct2")
    for repository in FASTER_WHISPER.values()
}
PREFIX = "models--"


def repository(name: str) -> str:
    """The repository that a name is of, without the revision."""
    return name.partition("@")[0]


def original(repository: str) -> str | None:
    """The repository in transformers' form of the same weights: itself, where it is no converted one.

    None for a converted one whose original is not known.
    """
    if repository in ORIGINALS:
        return ORIGINALS[repository]
    found = snapshot(repository)
    return None if found and (found / "model.bin").is_file() and not any(found.glob("*.safetensors")) else repository


def download(name: str, *, again: bool = False) -> tuple[Path, str]:
    """The local copy of a repository and its commit; what the Hub's cache holds already is not fetched.

    `again` fetches every file, also those that are there. Raises ModelError.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.errors import LocalEntryNotFoundError as NotHere

    try:
        folder = _snapshot(name, force_download=again)
    except (HfHubHTTPError, NotHere, HFValidationError, OSError) as error:
        raise ModelError(
            f"model {name!r} is not a folder here, and the Hugging Face Hub did not give it "
            f"({type(error).__name__}: {first_line(error)}): check the name and the network, "
            "or give a local folder, or use `starter`"
        ) from error
    return folder, folder.name


def cached(name: str) -> Path | None:
    """The local copy of a repository, found without the network; None where there is none, or only a part of it."""
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return _snapshot(name, local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def wanted(files: Iterable[str]) -> list[str]:
    """Those of a local copy's files that `download` fetches: other programs put theirs into the same folder."""

    def matches(file: str, patterns: Iterable[str]) -> bool:
        return any(fnmatch.fnmatch(file, pattern) for pattern in patterns)

    return [file for file in files if matches(file, WANTED) and not matches(file, UNWANTED)]


def _snapshot(name: str, **how: Any) -> Path:
    from huggingface_hub import snapshot_download

    owner_and_name, _, revision = name.partition("@")
    return Path(
        snapshot_download(
            owner_and_name,
            revision=revision or None,
            allow_patterns=list(WANTED),
            ignore_patterns=list(UNWANTED),
            **how,
        )
    )


# The cache, which programs that use the Hub share: `models--OWNER--NAME/refs/main` names a revision, and
# `snapshots/REVISION/` holds its files --------------------------------------------------------------------------------


def place() -> Path:
    """The cache's folder, as `HF_HUB_CACHE` and `HF_HOME` set it."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def snapshot(repository: str) -> Path | None:
    """The newest files of a repository `OWNER/NAME` in the cache; None where there are none."""
    folder = place() / (PREFIX + repository.replace("/", "--"))
    try:
        revision = (folder / "refs" / "main").read_text().strip()
    except OSError:
        return None
    found = folder / "snapshots" / revision
    return found if found.is_dir() else None


def converted(repository: str) -> Path | None:
    """The same of a repository in CTranslate2's form, where all that it needs is there."""
    found = snapshot(repository)
    needed = ("model.bin", "config.json", "tokenizer.json")
    return found if found and all((found / name).is_file() for name in needed) else None


def repositories() -> Iterator[tuple[str, Path]]:
    """Every model repository in the cache, with its newest files, by name."""
    for folder in sorted(place().glob(f"{PREFIX}*--*")):
        name = folder.name.removeprefix(PREFIX).replace("--", "/", 1)
        found = snapshot(name)
        if found:
            yield name, found
