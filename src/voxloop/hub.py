"""The Hugging Face Hub: model repositories as local folders. Its errors are translated here.

A name is `OWNER/NAME`, or `OWNER/NAME@REVISION` for a branch, a tag or a commit.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from voxloop.errors import ModelError, first_line

WANTED = ("*.json", "*.txt", "*.safetensors", "*.model")  # never pickled weights
UNWANTED = ("*.fp32*", "flax*", "tf*")


def repository(name: str) -> str:
    """The repository that a name is of, without the revision."""
    return name.partition("@")[0]


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
