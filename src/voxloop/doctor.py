"""Examine a workspace's parts one by one: catalog, blobs, vectors and bus. One that is broken hides no other."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from voxloop import settings as _settings
from voxloop.errors import VoxloopError, WorkspaceError
from voxloop.settings import Settings
from voxloop.stores.blobs import Blobs
from voxloop.stores.catalog import Catalog
from voxloop.workspace import open_blobs, open_bus, open_catalog, open_vectors

PATIENCE_S = 5.0  # for a remote store: somebody is waiting
TESTED = 1 << 10  # bytes of the test blob
LOW_DISK = 2e9  # bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """The state of one part."""

    part: str
    sound: bool
    found: str  # and, where it is not sound, what to do


def examine(folder: Path, *, environ: Mapping[str, str] | None = None) -> Iterator[Finding]:
    """Open, write and read each part of the workspace in `folder` as it is configured, in a few seconds each."""
    folder = folder.absolute()
    try:
        if not (folder / _settings.CONFIG_NAME).exists():
            raise WorkspaceError(f"none at {folder}. Create one with `voxloop -C {folder} init`.")
        settings = _settings.resolve(folder, environ=environ)
    except VoxloopError as error:
        yield Finding(part="workspace", sound=False, found=str(error))
        return
    yield _disk(folder)
    catalog: Catalog | None = None

    def catalog_found() -> str:
        nonlocal catalog
        catalog = open_catalog(folder, settings)
        return _catalog(catalog)

    finding = _tried("catalog", catalog_found)
    yield finding
    yield _tried("blobs", lambda: _blobs(open_blobs(folder, settings, patience_s=PATIENCE_S)))
    if catalog is not None:
        opened = catalog
        if finding.sound or settings.vectors:  # those in a catalog that is broken are not another problem
            yield _tried("vectors", lambda: _vectors(settings, opened, environ))
        opened.close()
    yield _tried("bus", lambda: _bus(settings, environ))


def _tried(part: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(part=part, sound=True, found=look())
    except VoxloopError as error:
        return Finding(part=part, sound=False, found=str(error))


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    found = f"{folder}, {free / 1e9:.1f} GB free"
    if not os.access(folder, os.W_OK):
        found += ". It cannot be written: check its permissions."
    elif free < LOW_DISK:
        found += ". Free some space: a training run needs several GB."
    else:
        return Finding(part="workspace", sound=True, found=found)
    return Finding(part="workspace", sound=False, found=found)


def _catalog(catalog: Catalog) -> str:
    catalog.migrate()
    began = time.perf_counter()
    with catalog.write() as tx:
        there = tx.now()
    took_ms = (time.perf_counter() - began) * 1000
    ahead_s = there - time.time()
    found = f"{catalog.engine.url!r}, answers in {took_ms:.1f} ms"
    # Leases are counted by the database's clock alone, so a difference does no harm there.
    return found + (f"; its clock differs from this machine's by {ahead_s:+.0f} s" if abs(ahead_s) > 2 else "")


def _blobs(blobs: Blobs) -> str:
    key, content = f"doctor/{os.getpid()}-{time.time_ns()}", os.urandom(TESTED)
    began = time.perf_counter()
    blobs.put(key, content)
    try:
        if blobs.get(key, 1, TESTED) != content[1:]:
            raise WorkspaceError(f"{blobs.url} gave back other bytes than were written. Do not use this store.")
        if key not in blobs.list("doctor"):
            raise WorkspaceError(f"{blobs.url} does not list what was written. Allow listing to this key.")
    finally:
        blobs.delete(key)
    took_ms = (time.perf_counter() - began) * 1000
    return f"{blobs.url}, written, read, listed and deleted in {took_ms:.0f} ms"


def _vectors(settings: Settings, catalog: Catalog, environ: Mapping[str, str] | None) -> str:
    vectors = open_vectors(settings, catalog, environ)
    try:
        return vectors.check()
    finally:
        vectors.close()


def _bus(settings: Settings, environ: Mapping[str, str] | None) -> str:
    bus = open_bus(settings, environ)
    try:
        return bus.check()
    finally:
        bus.close()
