"""Move a workspace between embedded stores and servers: copy catalog, blobs and vectors, check the copies, switch over.

Blobs go first, several at a time; each is read back and its hash compared. Then the catalog, in one transaction on
either side: nobody can write to the old one meanwhile, and the new one is complete or empty. Then the vectors, and at
last `voxloop.toml` names the new stores. Until then the workspace is as it was, and running the command again goes on
where it ended: `moving.jsonl` in the workspace lists the blobs that are done. The old stores stay as they are.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import sqlalchemy as sa

from voxloop import settings as _settings
from voxloop.errors import BlobError, UsageError, WorkspaceError, counted
from voxloop.files import replaced
from voxloop.maintenance.integrity.leftovers import named_blobs
from voxloop.records import Progress
from voxloop.steps.recordings import audio_key
from voxloop.stores import tables
from voxloop.stores.blobs import COPIED, Blobs
from voxloop.stores.catalog import MANY, Catalog, Reader, Writer
from voxloop.workspace import open_blobs, open_bus, open_catalog, open_vectors

if TYPE_CHECKING:
    from voxloop.workspace import Workspace

EMBEDDED = {"catalog": "", "blobs": "", "vectors": "", "bus": "local"}  # the settings of the embedded stores
JOURNAL = "moving.jsonl"
AT_ONCE = 8  # blobs copied at the same time
IN_MEMORY = 8 << 20  # bytes of a blob that is copied without a file

COPIED_TABLES = tuple(table for table in tables.metadata.sorted_tables if table is not tables.vector)
LEFT_OUT = (tables.transcript.c.number,)  # SQLite's index of texts numbers them anew


@dataclass(frozen=True, kw_only=True, slots=True)
class Moved:
    """The result of a move."""

    stores: dict[str, str]  # the settings that changed; passwords are masked
    rows: int
    blobs: int
    copied: int  # blobs copied this time; the rest were there already
    vectors: int
    missing: tuple[str, ...]  # blobs that the catalog refers to but the old store lacks
    by_hand: tuple[str, ...]  # environment variables that still have to be set, so that the new stores are used


def move(ws: Workspace, stores: Mapping[str, str], *, progress: Progress | None = None) -> Moved:
    """Move the workspace to other stores, given by setting: `catalog`, `blobs`, `vectors`, `bus`.

    Can be interrupted and repeated. Raises UsageError while workers hold jobs or if the new catalog has other content,
    WorkspaceError if a copy is not what was copied.
    """
    changed = {name: url for name, url in stores.items() if url != getattr(ws.settings, name)}
    if unknown := set(changed) - set(EMBEDDED):
        raise UsageError(f"{', '.join(sorted(unknown))} cannot be moved; these can: {', '.join(EMBEDDED)}.")
    if not changed:
        raise UsageError("the workspace uses these stores already.")
    settings = replace(ws.settings, **cast("dict[str, Any]", changed))
    _check_idle(ws)
    if "bus" in changed:
        bus = open_bus(settings)
        try:
            bus.check()
        finally:
            bus.close()
    blobs = open_blobs(ws.folder, settings) if "blobs" in changed else None
    catalog = open_catalog(ws.folder, settings) if "catalog" in changed else ws.catalog
    try:
        with _Journal(ws.folder / JOURNAL, {name: _masked(url) for name, url in changed.items()}) as journal:
            copying = _Blobs(ws, blobs, journal, progress)
            with ws.read() as reader:
                copying.copy(reader)
            rows = 0
            if catalog is not ws.catalog:
                catalog.migrate()
                rows = _copy_catalog(ws, catalog, copying, progress)
            elif blobs is not None:
                with ws.read() as reader:  # what came in meanwhile
                    copying.copy(reader)
            moving_vectors = "vectors" in changed or (not settings.vectors and catalog is not ws.catalog)
            vectors = _copy_vectors(ws, settings, catalog, progress) if moving_vectors else 0
    finally:
        if catalog is not ws.catalog:
            catalog.close()
    by_hand = _switch(ws.folder / _settings.CONFIG_NAME, changed)
    (ws.folder / JOURNAL).unlink(missing_ok=True)
    return Moved(
        stores={name: _masked(url) or "embedded" for name, url in changed.items()},
        rows=rows,
        blobs=len(copying.done),
        copied=copying.copied,
        vectors=vectors,
        missing=tuple(sorted(copying.missing)),
        by_hand=by_hand,
    )


def _check_idle(ws: Workspace) -> None:
    job = tables.job
    with ws.read() as reader:
        now = reader.now()
        held = sa.select(sa.func.count()).where(job.c.state == tables.LEASED, job.c.lease_until > now)
        running = int(reader.connection.execute(held).scalar_one())
    if running:
        raise UsageError(
            f"{counted(running, 'job is', 'jobs are')} running. Stop every worker and server of this workspace first: "
            "what they wrote after the copy would be lost."
        )


def _masked(url: str) -> str:
    """A store's URL without its password."""
    return repr(sa.make_url(url)) if "://" in url and "@" in url else url


class _Journal:
    """The blobs that are copied and checked, by key, with their hashes: a line each, so that a kill loses few."""

    def __init__(self, path: Path, stores: Mapping[str, str]) -> None:
        self.done: dict[str, str] = {}
        head = json.dumps({"stores": dict(stores)}, sort_keys=True)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        if lines[:1] == [head]:
            for line in lines[1:]:
                try:
                    key, digest = json.loads(line)
                except ValueError:
                    continue  # cut off by a kill
                self.done[key] = digest
            self._file = path.open("a", encoding="utf-8")
            self._file.write("\n")  # after a line that was cut off
        else:
            self._file = path.open("w", encoding="utf-8")
            self._file.write(f"{head}\n")

    def add(self, key: str, digest: str) -> None:
        self.done[key] = digest
        self._file.write(f"{json.dumps([key, digest])}\n")
        self._file.flush()

    def __enter__(self) -> _Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class _Blobs:
    """Copies the blobs that the catalog refers to. Without a target, they stay where they are."""

    def __init__(self, ws: Workspace, target: Blobs | None, journal: _Journal, progress: Progress | None) -> None:
        self._source, self._target = ws.blobs, target
        self._journal = journal
        self._progress = progress
        self.done: set[str] = set()
        self.copied = 0
        self.missing: set[str] = set()

    def copy(self, reader: Reader) -> None:
        """Copy what was not copied yet. Raises WorkspaceError for a copy that differs."""
        if self._target is None:
            return
        erased = sa.select(tables.recording.c.id).where(tables.recording.c.remains.is_not(None))
        changed = {audio_key(id) for id in reader.connection.execute(erased).scalars()}  # under their old keys
        wanted = sorted(set(named_blobs(reader)) - self.done)
        total = len(wanted) + len(self.done)
        self.missing = set()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for key, digest, copied in pool.map(lambda key: self._copy_one(key, anew=key in changed), wanted):
                if digest is None:
                    self.missing.add(key)
                    continue
                if key not in self._journal.done or copied:
                    self._journal.add(key, digest)
                self.copied += copied
                self.done.add(key)
                if self._progress:
                    self._progress(len(self.done), total)

    def _copy_one(self, key: str, *, anew: bool) -> tuple[str, str | None, bool]:
        """A blob's key, its hash (None: it is missing) and whether it was copied now."""
        target = self._target
        assert target is not None  # noqa: S101 - `copy` looked
        known, size = self._journal.done.get(key), self._source.size(key)
        if size is None:
            return key, None, False
        if known and not anew and target.size(key) == size:
            return key, known, False
        digest = _digest(self._source.parts(key, COPIED))
        copied = target.put(key, self._source.get(key) if size <= IN_MEMORY else self._source.path(key))
        if _digest(target.parts(key, COPIED)) == digest:
            return key, digest, copied
        if anew and not copied:  # a stretch of it was erased after the last attempt
            target.delete(key)
            return self._copy_one(key, anew=False)
        raise BlobError(
            f"blob {key} in {target.url} is not what was copied: the store holds other content under this key, or "
            "damaged it. Move to an empty prefix or bucket."
        )


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return f"sha256-{digest.hexdigest()}"


# Catalog ----------------------------------------------------------------------------------------------------------


def _copy_catalog(ws: Workspace, target: Catalog, blobs: _Blobs, progress: Progress | None) -> int:
    """Copy every table, or find that an earlier attempt did. Return the number of rows."""
    with ws.catalog.write() as source, target.write() as tx:
        if source.connection.dialect.name == "postgresql":  # SQLite's write transaction keeps others out by itself
            names = ", ".join(f'"{table.name}"' for table in COPIED_TABLES)
            source.connection.exec_driver_sql(f"LOCK TABLE {names} IN SHARE MODE")
        blobs.copy(source)
        total = sum(_count(source, table) for table in COPIED_TABLES)
        there = {table.name: count for table in COPIED_TABLES if (count := _count(tx, table))}
        if there.keys() == {tables.upkeep.name}:  # what migrations wrote into a new catalog
            tx.connection.execute(sa.delete(tables.upkeep))
            there = {}
        if not there:
            copied = 0
            for table in COPIED_TABLES:
                for rows in _rows(source, table):
                    tx.connection.execute(sa.insert(table), [_bound(table, row) for row in rows])
                    copied += len(rows)
                    if progress:
                        progress(copied, total)
        for table in COPIED_TABLES:
            if _fingerprint(source, table) != _fingerprint(tx, table):
                if there:
                    raise UsageError(
                        f"the catalog {target.engine.url!r} holds other content already: "
                        f"{counted(sum(there.values()), 'row')}, and those of {table.name} differ. Give an empty "
                        "database; where it is the workspace's own catalog.db of earlier, move that file away."
                    )
                raise WorkspaceError(
                    f"the copy of table {table.name} differs from the original. Nothing was changed; please report it."
                )
        _continue_numbers(source, tx)
    return total


def _count(reader: Reader, table: sa.Table) -> int:
    return int(reader.connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())


def _rows(reader: Reader, table: sa.Table) -> Iterator[list[dict[str, Any]]]:
    """A table's rows, `MANY` at a time. JSON columns that are NULL, and not JSON's own null, hold `sa.null()`."""
    columns = [column for column in table.columns if all(column is not one for one in LEFT_OUT)]
    json_columns = [column for column in columns if isinstance(column.type, sa.JSON)]
    nulls = [column.is_(sa.null()).label(f"{column.name} is null") for column in json_columns]
    statement = sa.select(*columns, *nulls).order_by(*table.primary_key).execution_options(yield_per=MANY)
    for part in reader.connection.execute(statement).partitions():
        rows = []
        for row in part:
            values = dict(zip((column.name for column in columns), row, strict=False))
            for column, null in zip(json_columns, row[len(columns) :], strict=True):
                if null:
                    values[column.name] = sa.null()
            rows.append(values)
        yield rows


def _bound(table: sa.Table, row: dict[str, Any]) -> dict[str, Any]:
    """A row as parameters. `None` in a JSON column is JSON's null, which a column may keep as NULL otherwise."""
    return {
        name: sa.JSON.NULL if value is None and isinstance(table.c[name].type, sa.JSON) else value
        for name, value in row.items()
    }


def _fingerprint(reader: Reader, table: sa.Table) -> str:
    digest = hashlib.sha256()
    for rows in _rows(reader, table):
        for row in rows:
            digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False, default=_as_text).encode())
    return digest.hexdigest()


def _as_text(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else f"<{type(value).__name__}>"


def _continue_numbers(source: Reader, tx: Writer) -> None:
    """Make the new catalog count on from the old one's numbers, those of deleted rows included."""
    numbered = ((tables.event, "seq"), (tables.review_decision, "seq"), (tables.consent, "seq"))
    highest = _highest_number(source)
    if tx.connection.dialect.name != "postgresql":
        upkeep = tables.upkeep
        row = {"name": tables.NUMBERED, "done": 0.0, "until": float(highest)}
        tx.connection.execute(sa.delete(upkeep).where(upkeep.c.name == tables.NUMBERED))
        tx.connection.execute(sa.insert(upkeep), [row])
        return
    for table, column in numbered:
        last = tx.connection.execute(sa.select(sa.func.max(table.c[column]))).scalar()
        if last is not None:
            sequence = f"pg_get_serial_sequence('{table.name}', '{column}')"
            tx.connection.exec_driver_sql(f"SELECT setval({sequence}, {int(last)})")
    if highest:
        tx.connection.exec_driver_sql(f"SELECT setval('utterance_number', {highest})")


def _highest_number(source: Reader) -> int:
    """The highest number that an utterance ever had."""
    known = [source.connection.execute(sa.select(sa.func.max(tables.utterance.c.number))).scalar() or 0]
    gone = sa.select(tables.upkeep.c.until).where(tables.upkeep.c.name == tables.NUMBERED)
    known.append(int(source.connection.execute(gone).scalar() or 0))
    if source.connection.dialect.name == "postgresql":
        last, called = source.connection.exec_driver_sql("SELECT last_value, is_called FROM utterance_number").one()
        known.append(last if called else last - 1)
    return max(known)


# Vectors and settings ---------------------------------------------------------------------------------------------


def _copy_vectors(ws: Workspace, settings: _settings.Settings, catalog: Catalog, progress: Progress | None) -> int:
    target = open_vectors(settings, catalog)
    try:
        spaces = {space: ws.vectors.count(space) for space in ws.vectors.spaces()}
        copied = 0
        for space in spaces:
            ids = sorted(ws.vectors.ids(space))
            for start in range(0, len(ids), MANY):
                part, matrix = ws.vectors.read(space, ids[start : start + MANY])
                target.upsert(space, part, matrix)
                if not np.array_equal(target.read(space, part)[1], matrix):
                    raise WorkspaceError(f"vectors of {space} came back changed from their new store. Do not use it.")
                copied += len(part)
                if progress:
                    progress(copied, sum(spaces.values()))
        return copied
    finally:
        target.close()


def _switch(config: Path, changed: Mapping[str, str]) -> tuple[str, ...]:
    """Name the new stores in the workspace's settings. Return the variables that the user has to set instead."""
    by_hand = []
    text = config.read_text(encoding="utf-8")
    for name, url in changed.items():
        variable = f"{_settings.PREFIX}{name.upper()}"
        secret = "://" in url and sa.make_url(url).password is not None
        if secret or variable in os.environ:
            by_hand.append(f"{variable}={_masked(url)}")
        line = f"{name} = {json.dumps('' if secret else url, ensure_ascii=False)}"
        line = f"# {line}" if secret else line
        text, found = re.subn(rf"(?m)^#?[ \t]*{name}[ \t]*=.*$", line.replace("\\", r"\\"), text, count=1)
        if not found:
            text = f"{line}\n{text}"  # before the first table
    with replaced(config) as partial:
        partial.write_text(text, encoding="utf-8")
    return tuple(by_hand)
