"""The second half of forgetting and deleting: remove what a removal recorded, and copies in run folders.

Everything here can safely run twice, so after a crash it simply runs again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from voxloop.records import SPLITS, Dataset, Evaluation, Model, Progress, Recording
from voxloop.speech import audio
from voxloop.steps import datasets, training
from voxloop.steps.recordings import audio_key
from voxloop.stores import tables
from voxloop.stores.blobs import sha256_bytes

if TYPE_CHECKING:
    from voxloop.stores.catalog import Reader
    from voxloop.workspace import Workspace

BLOBS_AT_ONCE = 64  # deleted while the catalog is locked, so that nobody can ingest one again meanwhile


def redacted(data: bytes, gone: Callable[[str], bool], key: str = "recording") -> tuple[bytes, list[dict[str, Any]]]:
    """Remove JSON lines whose id under `key` is gone. Return the other lines unchanged, and the removed rows."""
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
    """A dataset without some of its rows: the changes to its catalog row, and its new blobs."""

    values: dict[str, Any]  # new column values; empty if nothing is removed
    blobs: dict[str, bytes]  # to write, by key
    replaced: tuple[str, ...]  # keys to delete
    removed: list[dict[str, Any]]  # rows of the manifest


def redaction(ws: Workspace, dataset: Dataset, gone: Callable[[str], bool]) -> Redaction:
    """Compute a dataset without the utterances that are gone. Writes nothing."""
    key = dataset.manifest or f"datasets/{dataset.id}.jsonl"
    excluded_key = datasets.excluded_key(key)
    manifest = excluded = b""
    removed: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    # A missing blob contains nothing to remove; `verify` reports it.
    if ws.blobs.exists(key):
        manifest, removed = redacted(ws.blobs.get(key), gone, "utterance")
    if ws.blobs.exists(excluded_key):
        excluded, left_out = redacted(ws.blobs.get(excluded_key), gone, "utterance")
    if not removed and not left_out:
        return Redaction(values={}, blobs={}, replaced=(), removed=[])
    # Named after the content of both files, so that a second redaction never reuses the first one's key.
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
    """Remove the utterances that are gone from a dataset and mark it. Return False if it contains none."""
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
    """The ids of unfinished removals."""
    removal = tables.removal.c
    with ws.read() as reader:
        rows = reader.connection.execute(sa.select(removal.id).where(removal.pending.is_not(None)))
        return list(rows.scalars())


def resume(ws: Workspace, *, progress: Progress | None = None) -> int:
    """Finish interrupted removals. Return how many are finished now."""
    return sum(finish(ws, id, progress) for id in unfinished(ws))


def finish(ws: Workspace, id: str, progress: Progress | None) -> bool:
    """Delete what a removal's transaction recorded, then every trace of it in the catalog's file."""
    removal = tables.removal
    with ws.read() as reader:
        statement = sa.select(removal.c.pending).where(removal.c.id == id)
        pending: dict[str, Any] | None = reader.connection.execute(statement).scalar()
    if pending is None:
        return True
    keys: list[str] = pending.get("blobs", [])
    for start in range(0, len(keys), BLOBS_AT_ONCE):
        # The catalog is locked, so that nobody can refer to these blobs again while they are deleted.
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
        back = reader.numbers(utterances)  # the same audio was ingested again meanwhile
    ws.vectors.delete([id for id in utterances if id not in back])
    for recording, spans in pending.get("silenced", {}).items():
        silence(ws, recording, [(start, end) for start, end in spans])
    recordings, erased = set(pending.get("recordings", ())), set(utterances) - set(back)
    clean_run_data(ws, lambda id: id in erased or id.partition(":")[0] in recordings, names=recordings)
    with ws.catalog.write() as tx:
        # The keys contain hashes of the audio, so they must not outlive it.
        tx.connection.execute(sa.update(removal).where(removal.c.id == id).values(pending={"traces": True}))
    if not ws.catalog.compact():
        return False
    return _finished(ws, id)


def silence(ws: Workspace, recording: str, spans: Iterable[tuple[int, int]]) -> None:
    """Overwrite stretches of a recording's audio with digital silence. Safe to repeat after a crash at any point."""
    key, spare = audio_key(recording), f"erasing/{recording}.wav"
    with ws.read() as reader:
        found = reader.find(Recording, recording)
    if found is None or not (ws.blobs.exists(key) or ws.blobs.exists(spare)):
        ws.blobs.delete(spare)
        return
    # Blobs are never overwritten, so the new audio waits under another key while the old one is deleted.
    if not ws.blobs.exists(spare):
        wav = bytearray(ws.blobs.get(key))
        for start, end in spans:
            first, last = (audio.WAV_HEADER_BYTES + audio.SAMPLE_BYTES * place for place in (start, end))
            wav[first:last] = bytes(last - first)
        ws.blobs.put(spare, bytes(wav))
    wav = bytearray(ws.blobs.get(spare))
    with ws.catalog.write() as tx:
        tx.change(Recording, recording, remains=audio.pcm_id(bytes(wav[audio.WAV_HEADER_BYTES :])))
    ws.blobs.delete(key)
    ws.blobs.put(key, bytes(wav))
    ws.blobs.delete(spare)


def _finished(ws: Workspace, id: str) -> bool:
    removal = tables.removal
    with ws.catalog.write() as tx:
        done = {"pending": None, "finished": tx.now()}
        tx.connection.execute(sa.update(removal).where(removal.c.id == id).values(done))
    return True


def named(reader: Reader, key: str) -> bool:
    """Whether the catalog refers to this blob, for instance because the same audio was ingested again."""
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
    """Remove utterances that are gone from every run's copy of its data. Return the number of rows removed.

    For the recordings in `names`, audio files that no manifest lists are found by file name and deleted too.
    """
    taken = 0
    for manifest in sorted(ws.runs.glob("*/data/*.jsonl")):
        kept, removed = redacted(manifest.read_bytes(), gone, "id")
        if not removed:
            continue
        for row in removed:
            (manifest.parent / str(row["audio_path"])).unlink(missing_ok=True)
        partial = manifest.with_name(f"{manifest.name}.partial")
        partial.write_bytes(kept)
        training.unlearn(ws, manifest.parent.parent.name)
        partial.replace(manifest)  # last, so that after a crash all of this runs again
        taken += len(removed)
    heads = {name.removeprefix("sha256-")[:24] for name in names}
    if heads:
        for audio in ws.runs.glob("*/data/audio/*"):
            if audio.name.partition("-")[0] in heads:
                audio.unlink(missing_ok=True)
    return taken
