"""Backup and restore: the catalog as it was at one moment, and every blob that it names.

The catalog is copied first, with SQLite's online backup, and then the blobs that
the copy names: these never change, so copying them later is right while work goes
on. The manifest is written last and names the catalog's copy; until then an
earlier backup in the same folder stays valid.

    DIR/backup.json            what belongs to it, with sizes and hashes
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
from voxloop.stores.blobs import sha256_file
from voxloop.stores.catalog import Reader

if TYPE_CHECKING:
    from voxloop.workspace import Workspace

MANIFEST = "backup.json"
FORMAT = 1
ATTEMPTS = 3  # copies of the catalog, where blobs that one names were removed meanwhile
RUN_FILES = ("*.json", "*.jsonl", "*.log", "best/**/*", "final/**/*")  # neither copies of audio nor checkpoints


@dataclass(frozen=True, kw_only=True, slots=True)
class Backup:
    """What was backed up."""

    folder: str
    files: int  # that belong to it
    copied: int  # of them, the others were there already
    copied_bytes: int
    removed: int  # files of an earlier backup that nothing names any more
    missing: tuple[str, ...]  # blobs that the catalog names and the workspace lacks
    elapsed: float  # seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Restoration:
    """What was restored."""

    folder: str
    files: int
    bytes: int
    made: float  # when the backup was made, seconds since the epoch
    missing: tuple[str, ...]  # blobs that were missing when it was made
    elapsed: float


def backup(ws: Workspace, folder: Path, *, progress: Progress | None = None) -> Backup:
    """Copy the workspace into `folder`, while others work on it; what is there from an earlier backup stays.

    Files that the catalog does not name any more are removed from the folder, so
    that what was forgotten goes from there too. Left out: the runs' copies of audio
    and their checkpoints, exports, caches. Raises UsageError where the folder
    holds anything else, or where the stores are not the embedded ones.
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
            # Forgotten since the catalog was copied: such a catalog must not be kept. Or really lost: then it stays so.
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
            f"the catalog is {ws.catalog.engine.url!r}: this backs up the embedded one (SQLite) only; "
            "use pg_dump for the catalog, then copy the blobs"
        )
    if not ws.blobs.url.startswith("file:"):
        raise UsageError(
            f"the blobs are in {ws.blobs.url}: this backs up blobs in a folder only; "
            "use the object store's own versioning or replication, after a dump of the catalog"
        )


def _earlier(ws: Workspace, folder: Path) -> dict[str, Any]:
    """The files of an earlier backup in this folder."""
    if folder == ws.folder or ws.folder in folder.parents:
        raise UsageError(f"{folder} is inside the workspace: a backup belongs elsewhere, best on another disk")
    if folder.is_file():
        raise UsageError(f"{folder} is a file: name a folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return {}
    if (folder / MANIFEST).exists():
        files: dict[str, Any] = _manifest(folder)["files"]
        return files
    if any(not _is_ours(path.name) for path in folder.iterdir()):
        raise UsageError(f"{folder} holds files and no backup: name an empty folder, or one with an earlier backup")
    return {}  # a first backup that was cut off


def _is_ours(name: str) -> bool:
    known = ("blobs", "runs", CONFIG_NAME, f"{MANIFEST}.partial", "catalog.db.partial", "catalog.db.partial-journal")
    return name in known or re.fullmatch(r"catalog-[0-9a-f]{16}\.db", name) is not None


def _copy_catalog(ws: Workspace, folder: Path) -> Path:
    """The catalog at this moment, in a file named by its content."""
    for old in folder.glob("catalog.db.partial*"):
        old.unlink()
    partial = folder / "catalog.db.partial"
    ws.catalog.copy(partial)
    target = folder / f"catalog-{sha256_file(partial)[7:23]}.db"
    partial.replace(target)
    return target


def _blob_files(catalog: Path) -> Iterator[tuple[str, str]]:
    """Every blob that a catalog's copy names: its key and its place in the backup."""
    # Opened for reading alone: as a workspace's catalog it would be written to, and have another hash.
    engine = sa.create_engine("sqlite://", creator=lambda: sqlite3.connect(f"{catalog.as_uri()}?mode=ro", uri=True))
    try:
        with engine.connect() as connection:
            for key in sorted(set(named_blobs(Reader(connection)))):
                if not key.startswith("runs/"):  # checkpoints: a run that goes on replaces them while they are copied
                    yield key, f"blobs/{key}"
    finally:
        engine.dispose()


def _run_files(ws: Workspace) -> Iterator[tuple[Path, str]]:
    for run in sorted(ws.runs.glob("*")):
        found = {path for pattern in RUN_FILES for path in run.glob(pattern) if path.is_file()}
        for path in sorted(found):
            yield path, f"runs/{path.relative_to(ws.runs).as_posix()}"


class _Copying:
    """Copies files, skipping those that an earlier backup has, and keeps what belongs to this one."""

    def __init__(
        self, ws: Workspace, folder: Path, before: dict[str, Any], total: int, progress: Progress | None
    ) -> None:
        self._ws = ws
        self._folder = folder
        self._before = before
        self._total = total
        self._progress = progress
        self.files: dict[str, dict[str, Any]] = {}
        self.copied = 0
        self.copied_bytes = 0

    def keep(self, name: str) -> None:
        """Take up a file that lies there."""
        path = self._folder / name
        self.files[name] = {"size": path.stat().st_size, "sha256": sha256_file(path)}
        if name not in self._before:
            self.copied += 1
            self.copied_bytes += path.stat().st_size

    def copy_all(self, wanted: list[tuple[Any, str]]) -> list[str]:
        """Copy blobs and files of runs; the blobs that are not there."""
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
                continue  # a run that goes on replaced it just now
            if self._progress:
                self._progress(len(self.files), self._total)
        return missing

    def _copy_blob(self, key: str, name: str) -> None:
        path = self._ws.blobs.path(key)
        known = self._before.get(name)
        target = self._folder / name
        # A blob never changes under its key, so one of the same size need not be read again.
        if known and target.is_file() and target.stat().st_size == known["size"] == path.stat().st_size:
            self.files[name] = known
            return
        try:
            self.copy(path, name)
        except FileNotFoundError as error:
            raise BlobError(f"blob {key} was removed while it was copied") from error

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
        """Copy one file, hashing it on the way; seen under its name only when it is whole."""
        target = self._folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        size, digest = _copied(source, target)
        self.files[name] = {"size": size, "sha256": digest}
        self.copied += 1
        self.copied_bytes += size


def _copied(source: Path, target: Path) -> tuple[int, str]:
    """Copy a file; its size and hash."""
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
    """Remove what does not belong to the backup any more: what was forgotten, and what was cut off."""
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
    """A backup's manifest. Raises UsageError where there is none, WorkspaceError where it cannot be used."""
    path = folder / MANIFEST
    if not path.is_file():
        raise UsageError(f"{folder} holds no whole backup (there is no {MANIFEST}): make one with `voxloop backup`")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found, files = manifest["format"], manifest["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise WorkspaceError(f"{path} cannot be read ({error!r}): use another backup") from error
    if found != FORMAT:
        raise WorkspaceError(f"{path} has format {found}, this version of Voxloop knows {FORMAT}: install a newer one")
    for name in files:
        inside = PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts:
            raise WorkspaceError(f"{path} names the file {name!r}, which lies outside the backup: do not trust it")
    return manifest


def restore(source: Path, folder: Path, *, progress: Progress | None = None) -> Restoration:
    """Make the workspace `folder` from the backup in `source`, every file checked against its hash.

    The workspace is seen under its name only when all of it is there. Raises
    UsageError where `folder` holds anything, WorkspaceError where a file of the
    backup is missing or damaged.
    """
    began = time.monotonic()
    source, folder = source.absolute(), folder.absolute()
    manifest = _manifest(source)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not empty: name a new folder with -C; nothing is ever restored over a workspace")
    partial = folder.with_name(f"{folder.name}.restoring")
    if partial.exists():
        raise UsageError(f"{partial} is there, from a restore that was cut off: remove it first")
    total_bytes = 0
    for done, (name, expected) in enumerate(manifest["files"].items(), 1):
        target = partial / ("catalog.db" if name == manifest["catalog"] else name)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            size, digest = _copied(source / name, target)
        except FileNotFoundError as error:
            raise WorkspaceError(f"the backup {source} lacks {name}: use another backup ({partial} is left)") from error
        if digest != expected["sha256"]:
            raise WorkspaceError(
                f"{source / name} is damaged: found {digest}, needed {expected['sha256']}; use another backup "
                f"({partial} is left)"
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
