"""Export locations: a folder or a blob URL, with a marker that says whether the export is complete."""

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

ABOUT = "dataset.json"  # written last: an export without it is incomplete
UNFINISHED = "export-unfinished.json"  # written first, removed last
VERSION = 1

# Leftovers of killed writes: obstore writes next to the target, then renames.
_STAGED = re.compile(r"#\d+$")


@contextmanager
def opened(place: str | Path, *, create: bool) -> Iterator[Blobs]:
    """Open a folder, or the object store at a file://, s3://, gs:// or az:// URL.

    Raises BlobError or UsageError, and ExportError if the disk is full while the block prepares files.
    """
    url = str(place)
    if "://" not in url:
        folder = Path(place).absolute()
        if not create and not folder.is_dir():
            raise UsageError(f"there is no folder {folder}: give a folder that `voxloop dataset export` has written")
        url = folder.as_uri()
    with tempfile.TemporaryDirectory(prefix="voxloop-exchange-") as cache:
        try:
            yield Blobs(url, cache=Path(cache))
        except OSError as error:
            if not create:
                raise
            why = error.strerror or error
            raise ExportError(f"the export to {url} was interrupted ({why}): free space and run it again") from error


def begin(place: Blobs, what: dict[str, Any]) -> set[str]:
    """Mark the place as the target of export `what`. Return the keys that an earlier attempt has written.

    Raises UsageError if the place has other contents.
    """
    sweep(place)
    present = set(place.list(""))
    if not present or UNFINISHED in present:
        if not place.put(UNFINISHED, _json(what)):
            check_same(place, UNFINISHED, what)
        return present
    other = next(iter(sorted(present)))
    raise UsageError(f"{place.url} contains other files ({other}): name an empty folder or prefix")


def check_same(place: Blobs, key: str, what: dict[str, Any]) -> None:
    """Raise UsageError if the marker belongs to another export."""
    found = {"file_names": True, **json.loads(place.get(key))}  # missing from older exports
    differing = [name for name, value in what.items() if found.get(name) != value]
    if differing:
        told = ", ".join(f"{name} {found.get(name)!r} instead of {what[name]!r}" for name in differing)
        raise UsageError(f"{place.url} contains another export ({told}): name an empty folder or prefix")


def end(place: Blobs, about: dict[str, Any]) -> None:
    """Mark the export as complete."""
    sweep(place)
    place.put(ABOUT, _json(about))
    place.delete(UNFINISHED)


def sweep(place: Blobs) -> None:
    """Remove leftovers of killed writes; only folders have them."""
    root = place.root
    if root is None:
        return
    for path in root.rglob("*#*"):
        if _STAGED.search(path.name):
            path.unlink(missing_ok=True)


def about(place: Blobs) -> dict[str, Any]:
    """Read the description of a complete export. Raises UsageError if there is none."""
    if not place.exists(ABOUT):
        if place.exists(UNFINISHED):
            raise UsageError(f"the export to {place.url} is incomplete: run the same export again to continue it")
        raise UsageError(f"{place.url} has no {ABOUT}: give a folder or URL that `voxloop dataset export` has written")
    try:
        found: dict[str, Any] = json.loads(place.get(ABOUT))
        known = found["version"] == VERSION and isinstance(found["dataset"]["name"], str)
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"cannot read {place.url}/{ABOUT}: {error}") from error
    if not known:
        raise UsageError(
            f"{place.url} has format version {found['version']}, written by a newer Voxloop: update Voxloop to read it"
        )
    return found


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()
