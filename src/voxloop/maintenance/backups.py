"""Backup and restore: a snapshot of the catalog and every blob that it refers to.

The catalog is copied first, with SQLite's online backup, followed by the blobs that the
copy refers to. Blobs never change, so copying them while the workspace is in use is safe.
The manifest is written last and names the catalog's copy; until then an earlier backup in
the same folder stays valid.

    DIR/backup.json            the backup's files with sizes and hashes
    DIR/catalog-<hash>.db      the catalog
    DIR/voxloop.toml           the settings
    DIR/blobs/…                audio, manifests, model files, evaluations
    DIR/runs/<id>/…            settings, metrics, log, results, best/ and final/ of each run
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from voxloop import __version__
from voxloop.errors import BlobError, UsageError, WorkspaceError
from voxloop.maintenance.integrity.check import READ
from voxloop.maintenance.integrity.leftovers import named_blobs
from voxloop.records import Progress
from voxloop.settings import CONFIG_NAME
from voxloop.steps.recordings import audio_key
from voxloop.stores import tables
from voxloop.stores.blobs import sha256_file
from voxloop.stores.catalog import Reader

if TYPE_CHECKING:
    from voxloop.workspace import Workspace

MANIFEST = "backup.json"
FORMAT = 1
ATTEMPTS = 3  # copies of the catalog to try if blobs are removed while they are copied
RUN_FILES = ("*.json", "*.jsonl", "*.log", "best/**/*", "final/**/*")  # neither copies of audio nor checkpoints


@dataclass(frozen=True, kw_only=True, slots=True)
class Backup:
    """The result of a backup."""

    folder: str
    files: int  # in the backup
    copied: int  # files copied this time; the rest were already there
    copied_bytes: int
    removed: int  # obsolete files of an earlier backup
    missing: tuple[str, ...]  # blobs that the catalog refers to but the workspace lacks
    elapsed: float  # seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Restoration:
    """The result of a restore."""

    folder: str
    files: int
    bytes: int
    made: float  # when the backup was made, seconds since the epoch
    missing: tuple[str, ...]  # blobs that were missing when it was made
    elapsed: float


def backup(ws: Workspace, folder: Path, *, progress: Progress | None = None) -> Backup:
    """Copy the workspace into `folder`, even while it is in use. Files of an earlier backup there are reused.

    Files that the catalog no longer refers to are removed from the folder, so that forgotten
    speech disappears from the backup too. Checkpoints, the runs' copies of audio, exports and
    caches are not copied. Raises UsageError if the folder holds anything else, or if the stores
    are not the embedded ones.
    """
    began = time.monotonic()
    folder = folder.absolute()
    _check_stores(ws)
    before = _earlier(ws, folder)
    folder.mkdir(parents=True, exist_ok=True)
    missing: list[str] = []
    for attempt in range(1, ATTEMPTS + 1):
        copy = _copy_catalog(ws, folder)
        wanted = [*_blob_files(copy), *_run_files(ws)]
        state = _Copying(ws, folder, before, len(wanted) + 2, progress)
        state.keep(copy.name)
        missing = state.copy_all(wanted)
        if not missing:
            break
        if attempt < ATTEMPTS and copy.name not in before:
            # The blobs were forgotten after the copy was made, so the copy must not be kept; or they are really lost,
            # and the next attempts will find the same.
            copy.unlink()
    state.copy(ws.folder / CONFIG_NAME, CONFIG_NAME)
    manifest = {
        "format": FORMAT,
        "voxloop": __version__,
        "made": time.time(),
        "catalog": copy.name,
        "missing": missing,
        "files": state.files,
    }
    partial = folder / f"{MANIFEST}.partial"
    with partial.open("w", encoding="utf-8") as file:
        json.dump(manifest, file, ensure_ascii=False, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / MANIFEST)
    removed = _prune(folder, state.files)
    return Backup(
        folder=str(folder),
        files=len(state.files),
        copied=state.copied,
        copied_bytes=state.copied_bytes,
        removed=removed,
        missing=tuple(missing),
        elapsed=time.monotonic() - began,
    )


def _check_stores(ws: Workspace) -> None:
    if ws.catalog.engine.dialect.name != "sqlite":
        raise UsageError(
            f"the catalog is {ws.catalog.engine.url!r}, but `voxloop backup` supports only SQLite. "
            "Dump the catalog with pg_dump, then copy the blobs."
        )
    if not ws.blobs.url.startswith("file:"):
        raise UsageError(
            f"the blobs are in {ws.blobs.url}, but `voxloop backup` supports only blobs in a local folder. "
            "Dump the catalog, then use the object store's own versioning or replication."
        )


def _earlier(ws: Workspace, folder: Path) -> dict[str, Any]:
    """The files of an earlier backup in this folder."""
    if folder == ws.folder or ws.folder in folder.parents:
        raise UsageError(f"{folder} is inside the workspace. Choose a folder outside it, preferably on another disk.")
    if folder.is_file():
        raise UsageError(f"{folder} is a file. Choose a folder.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return {}
    if (folder / MANIFEST).exists():
        files: dict[str, Any] = _manifest(folder)["files"]
        return files
    if any(not _is_ours(path.name) for path in folder.iterdir()):
        raise UsageError(
            f"{folder} contains files but no backup. Choose an empty folder, or one with an earlier backup."
        )
    return {}  # an interrupted first backup


def _is_ours(name: str) -> bool:
    known = ("blobs", "runs", CONFIG_NAME, f"{MANIFEST}.partial", "catalog.db.partial", "catalog.db.partial-journal")
    return name in known or re.fullmatch(r"catalog-[0-9a-f]{16}\.db", name) is not None


def _copy_catalog(ws: Workspace, folder: Path) -> Path:
    """Copy the catalog as it is now to a file named after its content."""
    for old in folder.glob("catalog.db.partial*"):
        old.unlink()
    partial = folder / "catalog.db.partial"
    ws.catalog.copy(partial)
    target = folder / f"catalog-{sha256_file(partial)[7:23]}.db"
    partial.replace(target)
    return target


def _blob_files(catalog: Path) -> Iterator[tuple[str, str]]:
    """Every blob that a copy of the catalog refers to: its key and its path in the backup."""
    # Opened read-only: opening it as a workspace's catalog would change the file and its hash.
    engine = sa.create_engine("sqlite://", creator=lambda: sqlite3.connect(f"{catalog.as_uri()}?mode=ro", uri=True))
    try:
        with engine.connect() as connection:
            for key in sorted(set(named_blobs(Reader(connection)))):
                if not key.startswith("runs/"):  # checkpoints: a running run replaces them while they are copied
                    yield key, f"blobs/{key}"
    finally:
        engine.dispose()


def _run_files(ws: Workspace) -> Iterator[tuple[Path, str]]:
    for run in sorted(ws.runs.glob("*")):
        found = {path for pattern in RUN_FILES for path in run.glob(pattern) if path.is_file()}
        for path in sorted(found):
            yield path, f"runs/{path.relative_to(ws.runs).as_posix()}"


class _Copying:
    """Copies files, skips those in an earlier backup, and records the files of this backup."""

    def __init__(
        self, ws: Workspace, folder: Path, before: dict[str, Any], total: int, progress: Progress | None
    ) -> None:
        self._ws = ws
        self._folder = folder
        self._before = before
        self._total = total
        self._progress = progress
        self.files: dict[str, dict[str, Any]] = {}
        with ws.read() as reader:
            remains = sa.select(tables.recording.c.id).where(tables.recording.c.remains.is_not(None))
            self._erased = {audio_key(id) for id in reader.connection.execute(remains).scalars()}
        self.copied = 0
        self.copied_bytes = 0

    def keep(self, name: str) -> None:
        """Record a file that is already in the folder."""
        path = self._folder / name
        self.files[name] = {"size": path.stat().st_size, "sha256": sha256_file(path)}
        if name not in self._before:
            self.copied += 1
            self.copied_bytes += path.stat().st_size

    def copy_all(self, wanted: list[tuple[Any, str]]) -> list[str]:
        """Copy blobs and run files. Return the keys of missing blobs."""
        missing = []
        for source, name in wanted:
            try:
                if isinstance(source, Path):
                    self._copy_run_file(source, name)
                else:
                    self._copy_blob(source, name)
            except BlobError:
                missing.append(source)
            except FileNotFoundError:
                continue  # replaced just now by a running run
            if self._progress:
                self._progress(len(self.files), self._total)
        return missing

    def _copy_blob(self, key: str, name: str) -> None:
        path = self._ws.blobs.path(key)
        known = self._before.get(name)
        target = self._folder / name
        # A blob never changes, so a copy of the same size need not be read again; but a stretch of audio can be erased.
        there = known and target.is_file() and target.stat().st_size == known["size"] == path.stat().st_size
        if known and there and (key not in self._erased or sha256_file(path) == known["sha256"]):
            self.files[name] = known
            return
        try:
            self.copy(path, name)
        except FileNotFoundError as error:
            raise BlobError(f"blob {key} was removed while it was being copied") from error

    def _copy_run_file(self, source: Path, name: str) -> None:
        modified = source.stat().st_mtime_ns
        known = self._before.get(name)
        target = self._folder / name
        same = known and known.get("modified") == modified and source.stat().st_size == known["size"]
        if known and same and target.is_file() and target.stat().st_size == known["size"]:
            self.files[name] = known
            return
        self.copy(source, name)
        self.files[name]["modified"] = modified

    def copy(self, source: Path, name: str) -> None:
        """Copy and hash one file. It appears under its name only when it is complete."""
        target = self._folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        size, digest = _copied(source, target)
        self.files[name] = {"size": size, "sha256": digest}
        self.copied += 1
        self.copied_bytes += size


def _copied(source: Path, target: Path) -> tuple[int, str]:
    """Copy a file. Return its size and hash."""
    digest = hashlib.sha256()
    size = 0
    partial = target.with_name(f"{target.name}.partial")
    with source.open("rb") as reading, partial.open("wb") as writing:
        while chunk := reading.read(READ):
            digest.update(chunk)
            size += writing.write(chunk)
        writing.flush()
        os.fsync(writing.fileno())
    partial.replace(target)
    return size, f"sha256-{digest.hexdigest()}"


def _prune(folder: Path, files: dict[str, Any]) -> int:
    """Remove files that no longer belong to the backup: forgotten data and leftovers of interrupted backups."""
    removed = 0
    for path in [*folder.glob("catalog*"), *folder.glob("blobs/**/*"), *folder.glob("runs/**/*")]:
        if path.is_file() and path.relative_to(folder).as_posix() not in files:
            path.unlink()
            removed += 1
    for path in sorted([*folder.glob("blobs/**/*"), *folder.glob("runs/**/*")], reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    return removed


def _manifest(folder: Path) -> dict[str, Any]:
    """Read a backup's manifest. Raises UsageError if there is none, WorkspaceError if it is unusable."""
    path = folder / MANIFEST
    if not path.is_file():
        raise UsageError(
            f"{folder} contains no complete backup ({MANIFEST} is missing). Make one with `voxloop backup`."
        )
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found, files = manifest["format"], manifest["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise WorkspaceError(f"cannot read {path} ({error!r}). Use another backup.") from error
    if found != FORMAT:
        raise WorkspaceError(
            f"{path} has format {found}, but this version of Voxloop supports only {FORMAT}. Install a newer version."
        )
    for name in files:
        inside = PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts:
            raise WorkspaceError(f"{path} lists {name!r}, which is outside the backup. Do not trust this backup.")
    return manifest


def restore(source: Path, folder: Path, *, progress: Progress | None = None) -> Restoration:
    """Create the workspace `folder` from the backup in `source` and check every file against its hash.

    The workspace appears under its name only when it is complete. Raises UsageError if
    `folder` is not empty, WorkspaceError if a file of the backup is missing or damaged.
    """
    began = time.monotonic()
    source, folder = source.absolute(), folder.absolute()
    manifest = _manifest(source)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not empty, and restore never overwrites a workspace. Pass a new folder with -C.")
    partial = folder.with_name(f"{folder.name}.restoring")
    if partial.exists():
        raise UsageError(f"{partial} is left from an interrupted restore. Remove it first.")
    total_bytes = 0
    for done, (name, expected) in enumerate(manifest["files"].items(), 1):
        target = partial / ("catalog.db" if name == manifest["catalog"] else name)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            size, digest = _copied(source / name, target)
        except FileNotFoundError as error:
            raise WorkspaceError(
                f"the backup {source} lacks {name}. Use another backup, and remove {partial} first."
            ) from error
        if digest != expected["sha256"]:
            raise WorkspaceError(
                f"{source / name} is damaged: its hash is {digest} instead of {expected['sha256']}. "
                f"Use another backup, and remove {partial} first."
            )
        total_bytes += size
        if progress:
            progress(done, len(manifest["files"]))
    partial.rename(folder)
    return Restoration(
        folder=str(folder),
        files=len(manifest["files"]),
        bytes=total_bytes,
        made=manifest["made"],
        missing=tuple(manifest["missing"]),
        elapsed=time.monotonic() - began,
    )
