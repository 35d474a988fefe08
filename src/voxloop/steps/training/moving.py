"""Moving runs between machines: which of a run's folders is the newest, and its checkpoint in the blob store.

    runs/<run>/checkpoints/sha256-…      files of the newest checkpoint and of the best model so far, by content
    run_folder (catalog)                 the manifest: their names, hashes and sizes; and the run's home

The home is the folder that the run was last trained in. Whoever attends to a run in another folder makes that folder
the home first: what is left there of an earlier stay is removed, checkpoint and best model are fetched and verified,
metrics and log are written from the catalog, and the speech is written again from the dataset. The manifest is a row
rather than a blob, so that it is replaced in one transaction with the run's progress, which is refused once the lease
is lost; and so that what names a blob is known without reading blobs.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import shutil
import socket
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from voxloop.errors import BlobError, TrainingError
from voxloop.steps.training import control, telemetry
from voxloop.steps.training.files import (
    ATTENDED,
    BEST,
    CONFIG,
    HOME,
    LOOP_STATE,
    TRAINING,
    read_json,
    sync,
    whole_checkpoints,
)
from voxloop.stores import tables
from voxloop.stores.blobs import CHUNK, sha256_file
from voxloop.stores.catalog import insert_new

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet

    from voxloop.records import Run
    from voxloop.stores.catalog import Reader, Writer
    from voxloop.workspace import Workspace

log = logging.getLogger(__name__)

LEAVING = "leaving"  # links to the files that are being copied: the training process may delete its own meanwhile
SAME_EVERYWHERE = ("recipe", "normaliser", "hearing")  # of training_config.json; the rest depends on the machine
KEPT_LOCKS = (ATTENDED, TRAINING)

run_folder = tables.run_folder


@dataclass(frozen=True, kw_only=True, slots=True)
class CopiedCheckpoint:
    """The part of a run's folder that is in the blob store."""

    step: int | None  # of the checkpoint; None: the best model alone
    files: dict[str, dict[str, Any]]  # name in the folder -> sha256, size
    config: dict[str, Any]


def prefix(run: str) -> str:
    """The key prefix of a run's blobs."""
    return f"runs/{run}/"


def blob_key(run: str, sha256: str) -> str:
    return f"{prefix(run)}checkpoints/{sha256}"


def copies_checkpoints(ws: Workspace) -> bool:
    """Whether checkpoints are copied to the blob store (setting `checkpoints_to_blobs`)."""
    choice = ws.settings.checkpoints_to_blobs
    if choice == "auto":
        return ws.blobs.root is None or ws.catalog.engine.dialect.name != "sqlite"
    return choice == "on"


# Home -------------------------------------------------------------------------------------------------------------


def at_home(ws: Workspace, run: str) -> bool:
    """Whether the run was last trained in this machine's folder; also true if it has no folder yet."""
    with ws.read() as reader:
        row = _row(reader, run)
    return row is None or row.home == _name(ws.runs / run)


def place(ws: Workspace, run: str) -> str:
    """The location of a run's folder: a path on this machine, or `host:path` on another."""
    with ws.read() as reader:
        row = _row(reader, run)
    folder = ws.runs / run
    if row is None or not row.home or row.home == _name(folder):
        return str(folder)
    return str(row.home).rpartition("#")[0]


def move_in(ws: Workspace, run: Run) -> dict[str, Any]:
    """Make this machine's folder the run's home, and return its initial settings if it began elsewhere.

    Raises TrainingError if a file of its checkpoint is missing or does not match its hash.
    """
    folder = ws.runs / run.id
    with ws.read() as reader:
        row = _row(reader, run.id)
    if row is not None and row.home == _name(folder):
        return dict(row.config)
    if row is not None:
        left_behind = control.find(folder)
        if left_behind:
            left_behind.kill()  # it trains on what the run has left behind
        began = _settle(ws, run.id, row, folder)
    name = f"{socket.gethostname()}:{folder}#{secrets.token_hex(4)}"
    with (folder / HOME).open("w") as file:
        file.write(name)
    sync(folder)
    # Last: a kill before is followed by all of this again.
    with ws.transaction() as tx:
        _write(tx, run.id, home=name)
    return {} if row is None else began


def _settle(ws: Workspace, run: str, row: sa.Row[Any], folder: Path) -> dict[str, Any]:
    """Fill a folder in which the run was not last trained; return the run's initial settings."""
    began = dict(row.config)
    if row.files or not row.home:
        _clear(folder)
        _fetch(ws, run, row.files, folder)
    else:
        # Nothing was copied, so that an earlier stay here, or a restored backup, is the best there is.
        if (folder / CONFIG).exists():
            began = _same_everywhere(read_json(folder / CONFIG))
            (folder / CONFIG).unlink()  # so that its speech is laid out again
        if not whole_checkpoints(folder):
            log.warning("run %s has no checkpoint in the blob store, so it starts over on this machine", run)
    telemetry.lay_out(ws, run)
    return began


def _same_everywhere(config: dict[str, Any]) -> dict[str, Any]:
    return {name: config[name] for name in SAME_EVERYWHERE if name in config}


def leave_home(tx: Writer, run: str) -> list[str]:
    """Make the run start over on any machine; return the keys of its blobs, which are no longer used."""
    row = _row(tx, run)
    _write(tx, run, home="", step=None, files={}, config={})
    return [] if row is None else sorted({blob_key(run, file["sha256"]) for file in row.files.values()})


def _row(reader: Reader, run: str) -> sa.Row[Any] | None:
    return reader.connection.execute(sa.select(run_folder).where(run_folder.c.run == run)).first()


def _write(tx: Writer, run: str, **values: Any) -> None:
    new: dict[str, Any] = {"run": run, "home": "", "step": None, "files": {}, "config": {}}
    insert_new(tx.connection, run_folder, [new | {"changed": tx.now()}])
    tx.connection.execute(sa.update(run_folder).where(run_folder.c.run == run).values(**values, changed=tx.now()))


def _name(folder: Path) -> str | None:
    with contextlib.suppress(OSError):
        return (folder / HOME).read_text()
    return None


def _clear(folder: Path) -> None:
    """Empty a folder from an earlier stay, except for audio (named by its content) and locks."""
    for path in folder.iterdir():
        if path.name == "data":
            for manifest in path.glob("*.jsonl"):
                manifest.unlink()
        elif path.is_dir():
            shutil.rmtree(path)
        elif path.name not in KEPT_LOCKS:
            path.unlink()


def _fetch(ws: Workspace, run: str, files: dict[str, dict[str, Any]], folder: Path) -> None:
    """Write a manifest's files, each verified by its hash."""
    for name, file in sorted(files.items()):
        inside = PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts:
            raise TrainingError(
                f"the checkpoint manifest of run {run} names {name!r}, which is outside the run's folder"
            )
        target = folder / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        try:
            with target.open("wb") as out:
                for part in ws.blobs.parts(blob_key(run, file["sha256"]), CHUNK):
                    digest.update(part)
                    out.write(part)
        except BlobError as error:
            raise TrainingError(_cannot_be_had(run, name, str(error))) from error
        if f"sha256-{digest.hexdigest()}" != file["sha256"]:
            raise TrainingError(_cannot_be_had(run, name, "its content does not match its hash"))
    for part_of in {name.partition("/")[0] for name in files if "/" in name}:
        sync(folder / part_of)


def _cannot_be_had(run: str, name: str, why: str) -> str:
    return (
        f"run {run} cannot resume, because the file {name} of its checkpoint is unusable ({why}); "
        f"train again with `voxloop run retry {run}`"
    )


# Its blobs --------------------------------------------------------------------------------------------------------


class CheckpointCopier:
    """Copies a run's checkpoint and best model to the blob store in a background thread."""

    def __init__(self, ws: Workspace, run: str) -> None:
        self._ws = ws
        self._run = run
        self._folder = ws.runs / run
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"copy-{run}")
        self._copying: Future[CopiedCheckpoint | None] | None = None
        self._end = threading.Event()
        self._seen: Any = None  # the state of the folder that was copied last
        self._failed = False  # the last copy

    def look(self) -> CopiedCheckpoint | None:
        """What has been copied since the last look, to be named before the next one; else begin where there is news.

        One at a time: what the last copy superseded is deleted before another might find it there and need it.
        """
        if self._copying is not None:
            if not self._copying.done():
                return None
            copied, self._copying = self._result(self._copying), None
            return copied
        state = _state(self._folder)
        if state != self._seen and any(state) and _link(self._folder):
            self._seen = state
            self._copying = self._thread.submit(self._copy)
        return None

    def wait(self) -> CopiedCheckpoint | None:
        """As `look`, once the training process has ended, and waiting for the copy; None where there is no more."""
        if self._copying is None:
            if self._failed:
                self._seen, self._failed = None, False  # once more
            self.look()
        if self._copying is None:
            return None
        self._copying.exception()
        return self.look()

    def close(self) -> None:
        """Give up what is being copied."""
        self._end.set()
        self._thread.shutdown()
        shutil.rmtree(self._folder / LEAVING, ignore_errors=True)

    def _result(self, copying: Future[CopiedCheckpoint | None]) -> CopiedCheckpoint | None:
        try:
            copied = copying.result()
            self._failed = False
            return copied
        except (BlobError, OSError) as error:
            self._failed = True
            # The run goes on: the copy is for when this machine fails, and the next checkpoint is another chance.
            log.warning("a checkpoint of run %s was not copied to the blob store: %s", self._run, error)
            return None

    def _copy(self) -> CopiedCheckpoint | None:
        leaving = self._folder / LEAVING
        files = {}
        step = None
        for path in sorted(leaving.rglob("*")):
            if self._end.is_set():
                return None
            if not path.is_file():
                continue
            name = path.relative_to(leaving).as_posix()
            sha256 = sha256_file(path)
            self._ws.blobs.put(blob_key(self._run, sha256), path)
            files[name] = {"sha256": sha256, "size": path.stat().st_size}
            if name.startswith("checkpoint-"):
                step = int(name.partition("/")[0].partition("-")[2])
        config = read_json(self._folder / CONFIG)
        shutil.rmtree(leaving)
        return CopiedCheckpoint(step=step, files=files, config=_same_everywhere(config))


def name_checkpoint(tx: Writer, run: str, copied: CopiedCheckpoint) -> None:
    """Register, inside `tx`, the copied checkpoint as the one to resume from elsewhere."""
    _write(tx, run, step=copied.step, files=copied.files, config=copied.config)


def remove_superseded(ws: Workspace, run: str, copied: CopiedCheckpoint) -> None:
    """Delete the blobs of earlier checkpoints, once this one is registered."""
    _delete(ws, run, kept={blob_key(run, file["sha256"]) for file in copied.files.values()})


def give_up_copy(tx: Writer, run: str) -> None:
    """Unregister the checkpoint to resume from elsewhere."""
    _write(tx, run, step=None, files={})


def remove_blobs(ws: Workspace, run: str) -> None:
    """Delete everything stored for resuming a run elsewhere, because it has ended for good."""
    with ws.catalog.write() as tx:
        if _row(tx, run) is not None:
            give_up_copy(tx, run)
    _delete(ws, run, kept=frozenset())
    shutil.rmtree(ws.runs / run / LEAVING, ignore_errors=True)  # of a copy that a kill cut off


def _delete(ws: Workspace, run: str, *, kept: AbstractSet[str]) -> None:
    try:
        for key in list(ws.blobs.list(prefix(run))):
            if key not in kept:
                ws.blobs.delete(key)
    except BlobError as error:
        log.warning("older checkpoints of run %s were not deleted: %s", run, error)  # `verify` finds them


def named_blobs(reader: Reader) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Run, key, hash and size of each blob that a run can resume from."""
    r = tables.run.c
    rows = reader.connection.execute(
        sa.select(run_folder.c.run, run_folder.c.files)
        .join(tables.run, r.id == run_folder.c.run)
        .where(r.status.not_in(("completed", "stopped")))
        .order_by(run_folder.c.run)
    )
    for run, files in rows:
        for file in files.values():
            yield run, blob_key(run, file["sha256"]), file


def names_blob(reader: Reader, key: str) -> bool:
    """Whether a run can resume from this blob."""
    return any(key == named for _, named, _ in named_blobs(reader))


def _state(folder: Path) -> tuple[Any, Any]:
    """What changes with the newest checkpoint, and with the best model."""
    whole = whole_checkpoints(folder)
    return (
        (whole[-1].name, _changed(whole[-1] / LOOP_STATE)) if whole else None,
        _changed(folder / BEST),
    )


def _changed(path: Path) -> int | None:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime_ns
    return None


def _link(folder: Path) -> bool:
    """Link the newest checkpoint and the best model into LEAVING; False where they were replaced meanwhile."""
    leaving = folder / LEAVING
    shutil.rmtree(leaving, ignore_errors=True)
    leaving.mkdir()
    try:
        for checkpoint in whole_checkpoints(folder)[-1:]:
            _link_all(checkpoint, leaving / checkpoint.name)
            # Removed first where a checkpoint goes: while it is there, so is all the rest.
            (checkpoint / LOOP_STATE).stat()
        # As after a kill, the model may be better than the score beside it, never worse.
        if (folder / BEST).exists():
            _link_file(folder / BEST, leaving / BEST)
            best = folder / "best"
            before = best.stat().st_ino
            _link_all(best, leaving / "best")
            if best.stat().st_ino != before:
                return False
    except FileNotFoundError:
        return False
    return True


def _link_all(source: Path, target: Path) -> None:
    target.mkdir()
    for path in sorted(source.rglob("*")):
        if path.is_dir():
            (target / path.relative_to(source)).mkdir()
        else:
            _link_file(path, target / path.relative_to(source))


def _link_file(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # a disk without hard links
        shutil.copy2(source, target)
