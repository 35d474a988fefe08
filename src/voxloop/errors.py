"""Every error that Voxloop raises on purpose.

    VoxloopError
    ├── UsageError            the request cannot be carried out
    │   ├── UnknownRecord     no such recording, utterance, dataset, run, model
    │   └── SettingError      a setting has an unknown name or an invalid value
    ├── AudioError            a file's audio cannot be ingested
    ├── WorkspaceError        the workspace is missing, newer than this program, or damaged
    │   ├── CatalogAway       the catalog's server does not answer now
    │   ├── BlobError         the object store failed or lacks a blob
    │   ├── VectorError       the vector store failed
    │   └── BusError          the message bus cannot be used
    ├── LeaseLost             another worker now holds this job
    ├── ConflictError         somebody else changed the record first
    ├── ExportError           an export cannot be written to its destination
    ├── ModelError            a model cannot be loaded or used
    └── TrainingError         a run failed

A message says what was found, what was needed and what to do. Errors of a
library are translated once, where it is called, keeping the cause.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class VoxloopError(Exception):
    """The base class of every error that Voxloop raises on purpose."""


class UsageError(VoxloopError):
    """The request cannot be carried out."""


class UnknownRecord(UsageError):
    """No record has this id."""


class SettingError(UsageError):
    """A setting has an unknown name or an invalid value."""


class AudioError(VoxloopError):
    """A file's audio cannot be ingested; `reason` is a short stable word for counting."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[AudioError], tuple[str, str]]:
        # Exceptions cross process boundaries in the ingest pool.
        return type(self), (self.reason, str(self))


class WorkspaceError(VoxloopError):
    """The workspace is missing, newer than this program, or damaged."""


class CatalogAway(WorkspaceError):
    """The catalog's server does not answer now; it may be starting again."""


class BlobError(WorkspaceError):
    """The object store failed or lacks a blob."""


class VectorError(WorkspaceError):
    """The vector store failed."""


class BusError(WorkspaceError):
    """The message bus cannot be used."""


class LeaseLost(VoxloopError):
    """Another worker now holds this job, so this one must not write anything."""


class ConflictError(VoxloopError):
    """Somebody else changed the record first."""


class ExportError(VoxloopError):
    """An export cannot be written to its destination; nothing there was changed."""


class ModelError(VoxloopError):
    """A model cannot be loaded or used."""


class TrainingError(VoxloopError):
    """A training run failed."""


def nearest(wrong: str, right: Iterable[str]) -> str:
    """ "; did you mean a, b?" for a mistyped name, or the list of known names if none is close."""
    names = sorted(right)
    close = get_close_matches(wrong, names, n=3, cutoff=0.6)
    return f"; did you mean {', '.join(close)}?" if close else f"; known: {', '.join(names)}"


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: 1 job, 2 jobs, 1,000 entries."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def install_command(extra: str) -> str:
    """The command that installs one of Voxloop's extras into this Python, from the source Voxloop came from."""
    # Imported here because nearly every command imports this module and few need them.
    import json
    import shlex
    import sys
    from contextlib import suppress
    from importlib.metadata import PackageNotFoundError, distribution
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    origin = {}
    with suppress(PackageNotFoundError, ValueError):
        # PEP 610: pip records the source of an installation there, unless it was a package index.
        origin = json.loads(distribution("voxloop").read_text("direct_url.json") or "{}")
    url = origin.get("url", "")
    if url.startswith("file:"):
        editable = ["-e"] if origin.get("dir_info", {}).get("editable") else []
        wanted = [*editable, f"{url2pathname(urlsplit(url).path)}[{extra}]"]
    elif url:
        vcs = origin.get("vcs_info", {}).get("vcs")
        wanted = [f"voxloop[{extra}] @ {f'{vcs}+' if vcs else ''}{url}"]
    else:
        wanted = [f"voxloop[{extra}]"]
    return shlex.join([sys.executable, "-m", "pip", "install", *wanted])


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
