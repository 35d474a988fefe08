"""The local cache of the Hugging Face Hub: which repositories it holds whole, found without the network.

Programs that use the Hub share it, so the models that faster-whisper, transformers and others downloaded lie there:
`models--OWNER--NAME/refs/main` names a revision, and `snapshots/REVISION/` holds its files.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

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
PREFIX = "models--"


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
