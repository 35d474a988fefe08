"""The second half of forgetting and deleting: what a removal wrote down to be deleted, and copies in run folders.

Everything here may be done twice, so a kill in the middle is followed by doing it again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from voxloop.records import SPLITS, Dataset, Evaluation, Model, Progress, Recording
from voxloop.steps import datasets, training
from voxloop.stores import tables
from voxloop.stores.blobs import sha256_bytes

if TYPE_CHECKING:
    from voxloop.stores.catalog import Reader
    from voxloop.workspace import Workspace

BLOBS_AT_ONCE = 64  # deleted while the catalog is held, so that nobody takes one in anew meanwhile


def redacted(data: bytes, gone: Callable[[str], bool], key: str = "recording") -> tuple[bytes, list[dict[str, Any]]]:
    """JSON lines without those whose `key` is an id that is gone; what is left as it was, and what went."""
    kept, removed = [], []
    for line in data.splitlines(keepends=True):
        row = json.loads(line)
        if gone(str(row.get(key))):
            removed.append(row)
        else:
            kept.append(line)
    return b"".join(kept), removed


@dataclass(frozen=True, kw_only=True, slots=True)
class Redaction:
    """A dataset without some of its rows: what changes in its row, and what its new blobs hold."""

    values: dict[str, Any]  # of the dataset's row; empty where nothing goes
    blobs: dict[str, bytes]  # to be written, by key
    replaced: tuple[str, ...]  # keys to delete
    removed: list[dict[str, Any]]  # rows of the manifest


def redaction(ws: Workspace, dataset: Dataset, gone: Callable[[str], bool]) -> Redaction:
    """What a dataset becomes without the utterances that are gone. Nothing is written."""
    key = dataset.manifest or f"datasets/{dataset.id}.jsonl"
    excluded_key = datasets.excluded_key(key)
    manifest = excluded = b""
    removed: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    # What is lost already holds nothing to remove; `verify` tells of it.
    if ws.blobs.exists(key):
        manifest, removed = redacted(ws.blobs.get(key), gone, "utterance")
    if ws.blobs.exists(excluded_key):
        excluded, left_out = redacted(ws.blobs.get(excluded_key), gone, "utterance")
    if not removed and not left_out:
        return Redaction(values={}, blobs={}, replaced=(), removed=[])
    # Named by the content of both files, so that a second redaction never meets the first one's key.
    name = f"datasets/{dataset.id}.redacted-{sha256_bytes(manifest)}-{sha256_bytes(excluded)[7:15]}.jsonl"
    kept = [datasets.DatasetRow(**json.loads(line)) for line in manifest.splitlines()]
    values = {
        "manifest": name,
        "forgotten": dataset.forgotten + len(removed),
        "clips": {split: sum(row.split == split for row in kept) for split in SPLITS},
        "hours": {split: sum(row.duration for row in kept if row.split == split) / 3600 for split in SPLITS},
    }
    blobs = {name: manifest, datasets.excluded_key(name): excluded}
    return Redaction(values=values, blobs=blobs, replaced=(key, excluded_key), removed=removed)


def redact_dataset(ws: Workspace, dataset: Dataset, gone: Callable[[str], bool]) -> bool:
    """Take the utterances that are gone out of a dataset and mark it; False where there were none in it."""
    left = redaction(ws, dataset, gone)
    if not left.values:
        return False
    for key, data in left.blobs.items():
        ws.blobs.put(key, data)
    with ws.transaction() as tx:
        tx.change(Dataset, dataset.id, **left.values)
    for key in left.replaced:
        ws.blobs.delete(key)
    return True


def unfinished(ws: Workspace) -> list[str]:
    """Ids of removals of which something is still to be deleted."""
    removal = tables.removal.c
    with ws.read() as reader:
        rows = reader.connection.execute(sa.select(removal.id).where(removal.pending.is_not(None)))
        return list(rows.scalars())


def resume(ws: Workspace, *, progress: Progress | None = None) -> int:
    """Finish removals that were cut off; the number of those that are finished now."""
    return sum(finish(ws, id, progress) for id in unfinished(ws))


def finish(ws: Workspace, id: str, progress: Progress | None) -> bool:
    """Delete what a removal's transaction left to be deleted, then every trace of it in the catalog's file."""
    removal = tables.removal
    with ws.read() as reader:
        statement = sa.select(removal.c.pending).where(removal.c.id == id)
        pending: dict[str, Any] | None = reader.connection.execute(statement).scalar()
    if pending is None:
        return True
    keys: list[str] = pending.get("blobs", [])
    for start in range(0, len(keys), BLOBS_AT_ONCE):
        # The catalog is held meanwhile, so that nobody can name again what is deleted here.
        with ws.catalog.write() as tx:
            tx.hold(Recording, Dataset, Evaluation, Model)
            for key in keys[start : start + BLOBS_AT_ONCE]:
                if not named(tx, key):
                    ws.blobs.delete(key)
        if progress:
            progress(min(start + BLOBS_AT_ONCE, len(keys)), len(keys))
    for folder in pending.get("folders", ()):  # of a deleted model or run, in this workspace
        shutil.rmtree(ws.folder / folder, ignore_errors=True)
    if "folders" in pending:
        return _finished(ws, id)  # nothing of it was secret: no traces to overwrite
    utterances: list[str] = pending.get("vectors", [])
    with ws.read() as reader:
        back = reader.numbers(utterances)  # the same audio was taken in again meanwhile
    ws.vectors.delete([id for id in utterances if id not in back])
    recordings = set(pending.get("recordings", ()))
    clean_run_data(ws, lambda recording: recording in recordings, names=recordings)
    with ws.catalog.write() as tx:
        # The list of keys holds hashes of the audio: it must not outlive them.
        tx.connection.execute(sa.update(removal).where(removal.c.id == id).values(pending={"traces": True}))
    if not ws.catalog.compact():
        return False
    return _finished(ws, id)


def _finished(ws: Workspace, id: str) -> bool:
    removal = tables.removal
    with ws.catalog.write() as tx:
        done = {"pending": None, "finished": tx.now()}
        tx.connection.execute(sa.update(removal).where(removal.c.id == id).values(done))
    return True


def named(reader: Reader, key: str) -> bool:
    """Whether the catalog names this blob, as where the same audio was taken in again meanwhile."""
    folder, _, name = key.partition("/")
    id = name.partition(".")[0]
    if folder == "audio":
        return reader.find(Recording, id) is not None
    if folder == "datasets":
        dataset = reader.find(Dataset, id)
        manifest = (dataset.manifest or f"datasets/{id}.jsonl") if dataset else ""
        return bool(dataset) and key in (manifest, datasets.excluded_key(manifest))
    if folder == "evaluations":
        evaluation = reader.find(Evaluation, id)
        return evaluation is not None and evaluation.hypotheses == key
    if folder == "models":
        models = reader.iterate(Model, tables.model.c.run.is_not(None))
        return any(key.startswith(f"{one.where}/") and key.removeprefix(f"{one.where}/") in one.files for one in models)
    return folder == "runs" and training.names_blob(reader, key)


def clean_run_data(ws: Workspace, gone: Callable[[str], bool], *, names: Iterable[str] = ()) -> int:
    """Take rows of recordings that are gone out of every run's copy of its data, with their audio; the rows taken.

    `names` are such recordings whose audio is also looked for by its name, where no manifest lists it.
    """
    taken = 0
    for manifest in sorted(ws.runs.glob("*/data/*.jsonl")):
        kept, removed = redacted(manifest.read_bytes(), lambda id: gone(id.partition(":")[0]), "id")
        if not removed:
            continue
        for row in removed:
            (manifest.parent / str(row["audio_path"])).unlink(missing_ok=True)
        partial = manifest.with_name(f"{manifest.name}.partial")
        partial.write_bytes(kept)
        training.unlearn(ws, manifest.parent.parent.name)
        partial.replace(manifest)  # last: a kill before it is followed by all of this again
        taken += len(removed)
    heads = {name.removeprefix("sha256-")[:24] for name in names}
    if heads:
        for audio in ws.runs.glob("*/data/audio/*"):
            if audio.name.partition("-")[0] in heads:
                audio.unlink(missing_ok=True)
    return taken
