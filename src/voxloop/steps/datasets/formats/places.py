"""Where exports are written and read: a folder or a blob URL, with a mark that says whether all of it is there."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from voxloop.errors import ExportError, UsageError
from voxloop.stores.blobs import Blobs

ABOUT = "dataset.json"  # written last: an export without it is not complete
UNFINISHED = "export-unfinished.json"  # written first, removed last
VERSION = 1

# What a killed write leaves beside its target: obstore writes there, then renames.
_STAGED = re.compile(r"#\d+$")


@contextmanager
def opened(place: str | Path, *, create: bool) -> Iterator[Blobs]:
    """The folder, or the object store under a file://, s3://, gs:// or az:// URL.

    Raises BlobError or UsageError, and ExportError for what meets a full disk within the block, before it is put there.
    """
    url = str(place)
    if "://" not in url:
        folder = Path(place).absolute()
        if not create and not folder.is_dir():
            raise UsageError(f"there is no folder {folder}: needed is what `voxloop dataset export` has written")
        url = folder.as_uri()
    with tempfile.TemporaryDirectory(prefix="voxloop-exchange-") as cache:
        try:
            yield Blobs(url, cache=Path(cache))
        except OSError as error:
            if not create:
                raise
            why = error.strerror or error
            raise ExportError(f"the export to {url} was cut off ({why}): make room, and run it again") from error


def begin(place: Blobs, what: dict[str, Any]) -> set[str]:
    """Mark the place as one that `what` is being written to; the keys that an earlier attempt has written.

    Raises UsageError where something else lies there.
    """
    sweep(place)
    present = set(place.list(""))
    if not present or UNFINISHED in present:
        if not place.put(UNFINISHED, _json(what)):
            check_same(place, UNFINISHED, what)
        return present
    other = next(iter(sorted(present)))
    raise UsageError(f"{place.url} holds other files ({other}): name an empty folder or prefix")


def check_same(place: Blobs, key: str, what: dict[str, Any]) -> None:
    """Raises UsageError where a mark is of another export."""
    found = {"file_names": True, **json.loads(place.get(key))}  # older exports do not say
    differing = [name for name, value in what.items() if found.get(name) != value]
    if differing:
        told = ", ".join(f"{name} {found.get(name)!r} instead of {what[name]!r}" for name in differing)
        raise UsageError(f"{place.url} holds another export ({told}): name an empty folder or prefix")


def end(place: Blobs, about: dict[str, Any]) -> None:
    """Say that all of it is there."""
    sweep(place)
    place.put(ABOUT, _json(about))
    place.delete(UNFINISHED)


def sweep(place: Blobs) -> None:
    """Remove what killed writes left; only a folder keeps such files."""
    root = place.root
    if root is None:
        return
    for path in root.rglob("*#*"):
        if _STAGED.search(path.name):
            path.unlink(missing_ok=True)


def about(place: Blobs) -> dict[str, Any]:
    """What a finished export says of itself. Raises UsageError where there is none."""
    if not place.exists(ABOUT):
        if place.exists(UNFINISHED):
            raise UsageError(f"the export to {place.url} did not come to its end: run it again, it goes on")
        raise UsageError(f"{place.url} holds no {ABOUT}: needed is what `voxloop dataset export` has written")
    try:
        found: dict[str, Any] = json.loads(place.get(ABOUT))
        known = found["version"] == VERSION and isinstance(found["dataset"]["name"], str)
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{place.url}/{ABOUT} cannot be read: {error}") from error
    if not known:
        raise UsageError(f"{place.url} was written by a newer version of Voxloop ({found['version']}): install that")
    return found


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()
