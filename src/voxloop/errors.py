"""Every error that Voxloop raises on purpose.

    VoxloopError
    ├── UsageError            what was asked for cannot be done as asked
    │   ├── UnknownRecord     no such recording, utterance, dataset, run, model
    │   └── SettingError      a setting has a wrong name or value
    ├── AudioError            a file's audio cannot be taken
    ├── WorkspaceError        the workspace is missing, newer than this program, or damaged
    │   └── BlobError         the object store refused or lacks something
    ├── LeaseLost             another worker holds this job now
    ├── ConflictError         somebody else changed it first
    ├── ExportError           an export cannot be written where it is to go
    ├── ModelError            a model cannot be loaded or used
    └── TrainingError         a run failed

A message says what was found, what was needed and what to do. A library's
errors are translated once, at its seam, with the cause kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class VoxloopError(Exception):
    """The root: catching it catches every error raised on purpose."""


class UsageError(VoxloopError):
    """What was asked for cannot be done as asked."""


class UnknownRecord(UsageError):
    """No record has this id."""


class SettingError(UsageError):
    """A setting has a wrong name or a wrong value."""


class AudioError(VoxloopError):
    """A file's audio cannot be taken; `reason` is a short stable word for counting."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[AudioError], tuple[str, str]]:
        # Exceptions cross process boundaries in the ingest pool.
        return type(self), (self.reason, str(self))


class WorkspaceError(VoxloopError):
    """The workspace is missing, newer than this program, or damaged."""


class BlobError(WorkspaceError):
    """The object store refused or lacks something."""


class LeaseLost(VoxloopError):
    """Another worker holds this job now, so nothing of this one may be written."""


class ConflictError(VoxloopError):
    """Somebody else changed it first."""


class ExportError(VoxloopError):
    """An export cannot be written where it is to go; nothing there was changed."""


class ModelError(VoxloopError):
    """A model cannot be loaded or used."""


class TrainingError(VoxloopError):
    """A run failed."""


def nearest(wrong: str, right: Iterable[str]) -> str:
    """ "; did you mean a, b?" for a mistyped name, or the whole list where nothing is near."""
    names = sorted(right)
    close = get_close_matches(wrong, names, n=3, cutoff=0.6)
    return f"; did you mean {', '.join(close)}?" if close else f"; known: {', '.join(names)}"


def install_command(extra: str) -> str:
    """The command that adds one of Voxloop's extras to this Python, from wherever Voxloop itself was installed."""
    # Imported here, since nearly every command imports this module and hardly one needs them.
    import json
    import shlex
    import sys
    from contextlib import suppress
    from importlib.metadata import PackageNotFoundError, distribution
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    origin = {}
    with suppress(PackageNotFoundError, ValueError):
        # PEP 610: pip notes there what it installed from, unless that was a package index.
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
    """The first line of what an error says, its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
