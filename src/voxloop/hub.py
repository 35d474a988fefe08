"""The Hugging Face Hub: model repositories as local folders, and its cache. Its errors are translated here.

A name is `OWNER/NAME`, or `OWNER/NAME@REVISION` for a branch, tag or commit.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from voxloop.errors import ModelError, first_line

# model.bin holds CTranslate2 weights. Pickled weights (pytorch_model.bin) are never downloaded.
WANTED = ("*.json", "*.txt", "*.safetensors", "*.model", "model.bin")
UNWANTED = ("*.fp32*", "flax*", "tf*")

# The model names of faster-whisper and their repositories (faster_whisper/utils.py).
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
# The repositories that these models were converted from: OpenAI's or distil-whisper's.
ORIGINALS = {
    repository: repository.replace("Systran/faster-distil-whisper", "distil-whisper/distil")
    .replace("Systran/faster-whisper", "openai/whisper")
    .replace("mobiuslabsgmbh/faster-whisper", "openai/whisper")
    .removesuffix("-ct2")
    for repository in FASTER_WHISPER.values()
}
PREFIX = "models--"


def repository(name: str) -> str:
    """The repository in a name, without the revision."""
    return name.partition("@")[0]


def original(repository: str) -> str | None:
    """The repository with the same weights in transformers format: itself unless it is a converted one.

    None for a converted repository whose original is unknown.
    """
    if repository in ORIGINALS:
        return ORIGINALS[repository]
    found = snapshot(repository)
    return None if found and (found / "model.bin").is_file() and not any(found.glob("*.safetensors")) else repository


def download(name: str, *, again: bool = False) -> tuple[Path, str]:
    """Download a repository, except for files already in the Hub's cache, and return its folder and commit.

    `again` downloads every file, even those in the cache. Raises ModelError.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.errors import LocalEntryNotFoundError as NotHere

    try:
        folder = _snapshot(name, force_download=again)
    except (HfHubHTTPError, NotHere, HFValidationError, OSError) as error:
        raise ModelError(
            f"model {name!r} is not a local folder and could not be downloaded from the Hugging Face Hub "
            f"({type(error).__name__}: {first_line(error)}). Check the name and the network, "
            "or use a local folder or `starter`."
        ) from error
    return folder, folder.name


def cached(name: str) -> Path | None:
    """The cached copy of a repository, found without network access; None if it is missing or incomplete."""
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return _snapshot(name, local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def wanted(files: Iterable[str]) -> list[str]:
    """The files that `download` would fetch, out of a local copy that may also hold other programs' files."""

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


# The cache is shared by all programs that use the Hub: `models--OWNER--NAME/refs/main` holds a revision, and
# `snapshots/REVISION/` its files --------------------------------------------------------------------------------------


def place() -> Path:
    """The cache folder, as set by `HF_HUB_CACHE` and `HF_HOME`."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def snapshot(repository: str) -> Path | None:
    """The folder with the newest cached files of a repository `OWNER/NAME`; None if there are none."""
    folder = place() / (PREFIX + repository.replace("/", "--"))
    try:
        revision = (folder / "refs" / "main").read_text().strip()
    except OSError:
        return None
    found = folder / "snapshots" / revision
    return found if found.is_dir() else None


def converted(repository: str) -> Path | None:
    """Like `snapshot`, for a repository in CTranslate2 format; None unless all required files are present."""
    found = snapshot(repository)
    needed = ("model.bin", "config.json", "tokenizer.json")
    return found if found and all((found / name).is_file() for name in needed) else None


def repositories() -> Iterator[tuple[str, Path]]:
    """Every model repository in the cache with the folder of its newest files, ordered by name."""
    for folder in sorted(place().glob(f"{PREFIX}*--*")):
        name = folder.name.removeprefix(PREFIX).replace("--", "/", 1)
        found = snapshot(name)
        if found:
            yield name, found
