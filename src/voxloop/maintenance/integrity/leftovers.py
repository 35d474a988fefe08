"""Checks of everything beside the records: the database, jobs, vectors, unreferenced blobs and leftover files."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from voxloop.errors import ModelError, UnknownRecord, counted
from voxloop.maintenance import removal
from voxloop.maintenance.integrity.check import Check
from voxloop.models import embedding_model
from voxloop.records import Dataset, Evaluation, Model, Recording, Run
from voxloop.speech import audio
from voxloop.speech.quality import measure
from voxloop.steps import datasets, training
from voxloop.steps.recordings import audio_key
from voxloop.stores import tables
from voxloop.stores.blobs import sha256_bytes
from voxloop.stores.catalog import insert_new
from voxloop.stores.jobs import waiting_row

if TYPE_CHECKING:
    from voxloop.stores.catalog import Reader
    from voxloop.workspace import Workspace

REMOVABLE = ("datasets/", "evaluations/", "models/", "runs/")  # blobs that can be recreated


# The catalog itself --------------------------------------------------------------------------------------------------


def check_removals(check: Check) -> None:
    for id in removal.unfinished(check.ws):
        check.tick("removals")
        check.report(
            "removal-unfinished",
            id,
            "some of the forgotten data is not deleted yet",
            "or `voxloop forget --resume` finishes the removal.",
            lambda: removal.resume(check.ws) > 0,
        )


def check_database(check: Check) -> None:
    if check.ws.catalog.engine.dialect.name != "sqlite":
        return
    with check.ws.read() as reader:
        said = reader.connection.exec_driver_sql("pragma integrity_check(20)").scalars().all()
        broken = reader.connection.exec_driver_sql("pragma foreign_key_check").all()
    check.checked["databases"] += 1
    for line in said:
        if line != "ok":
            check.report("catalog-damaged", "catalog.db", str(line), "Restore a backup with `voxloop restore`.")
    for row in broken[:20]:
        message = f"row {row[1]} of {row[0]} refers to a missing {row[2]}"
        check.report("row-without-its-owner", f"{row[0]}:{row[1]}", message, "Restore a backup with `voxloop restore`.")


# Jobs and vectors ----------------------------------------------------------------------------------------------------


def check_jobs(check: Check) -> None:
    e, j = tables.event.c, tables.job.c
    jobs = check.ws.jobs
    missing: list[dict[str, Any]] = []
    with check.ws.read() as reader:
        now = reader.now()
        pruned = jobs.pruned(reader)
        for type, steps in jobs.listeners.items():
            for step in (step for step in steps if step not in jobs.coalesced):
                wanted = sa.literal(f"{step}:") + e.id
                rows = reader.connection.execute(
                    sa.select(e.id, e.subject)
                    .join(tables.job, j.id == wanted, isouter=True)
                    .where(e.type == type, e.created >= pruned.get(step, 0.0), j.id.is_(None))
                )
                missing += [waiting_row(step, row.id, row.subject, now) for row in rows]
        check.checked["events"] += int(
            reader.connection.execute(sa.select(sa.func.count()).select_from(tables.event)).scalar_one()
        )
        lone = (
            reader.connection.execute(
                sa.select(j.id).join(tables.event, e.id == j.event, isouter=True).where(e.id.is_(None))
            )
            .scalars()
            .all()
        )

    def emit() -> bool:
        with check.ws.transaction() as tx:
            insert_new(tx.connection, tables.job, missing)
            tx.woken.update(row["step"] for row in missing)
        return True

    def remove() -> bool:
        with check.ws.transaction() as tx:
            for id in lone:
                tx.connection.execute(sa.delete(tables.job).where(j.id == id))
        return True

    if missing:
        message = f"{counted(len(missing), 'job is', 'jobs are')} missing for events that should have started a step"
        check.report("job-missing", missing[0]["id"], message, "queues them. Then run `voxloop worker`.", emit)
    if lone:
        message = f"{counted(len(lone), 'job has', 'jobs have')} no event"
        check.report("job-without-event", lone[0], message, "removes them.", remove)


def check_vectors(check: Check) -> None:
    vectors, u = check.ws.vectors, tables.utterance.c
    current = _space(check)
    with check.ws.read() as reader:
        owners = {row.id: row.recording for row in reader.connection.execute(sa.select(u.id, u.recording))}
        indexed = _indexed(check.ws, reader)
    held: set[str] = set()
    for space in vectors.spaces():
        of_space = set(vectors.ids(space))
        check.checked["vectors"] += len(of_space)
        held |= of_space
    lone = sorted(held - owners.keys())
    with check.ws.read() as reader:  # utterances added since are not orphans
        there = reader.numbers(lone)
    lone = [id for id in lone if id not in there]
    made = set(vectors.ids(current)) if current else set()
    lacking = sorted({recording for id, recording in owners.items() if id not in made} & indexed)

    def remove() -> bool:
        vectors.delete(lone)
        return True

    def index() -> bool:
        with check.ws.transaction() as tx:
            return tx.redo("index", lacking) > 0

    if lone:
        message = f"{counted(len(lone), 'vector has', 'vectors have')} no utterance"
        check.report("vector-orphan", lone[0], message, "removes them.", remove)
    if lacking and current:
        count = counted(len(lacking), "indexed recording has", "indexed recordings have")
        message = f"{count} utterances without a vector of {current}"
        check.report(
            "vector-missing", lacking[0], message, "queues them for indexing. Then run `voxloop worker`.", index
        )


def _indexed(ws: Workspace, reader: Reader) -> set[str]:
    """Recordings whose vectors were made: an event asked for them, and no job is waiting or has failed."""
    e, j = tables.event.c, tables.job.c
    types = [type for type, steps in ws.jobs.listeners.items() if "index" in steps]
    asked = set(reader.connection.execute(sa.select(e.subject).where(e.type.in_(types))).scalars())
    undone = sa.select(j.subject).where(j.step == "index", j.state != "done")
    return asked - set(reader.connection.execute(undone).scalars())


def _space(check: Check) -> str | None:
    """The current space of vectors; None if its model is unavailable."""
    try:
        return embedding_model(check.ws).id
    except (ModelError, UnknownRecord) as error:
        check.report(
            "embedding-model", check.ws.settings.embedding_model, str(error), "Set `embedding_model` to another model."
        )
        return None


# Unreferenced blobs and files ----------------------------------------------------------------------------------------


def named_blobs(reader: Reader) -> Iterator[str]:
    """Every blob key that the catalog refers to."""
    for id in reader.connection.execute(sa.select(tables.recording.c.id)).scalars():
        yield audio_key(id)
    for dataset in reader.iterate(Dataset):
        key = dataset.manifest or f"datasets/{dataset.id}.jsonl"
        yield key
        yield datasets.excluded_key(key)
    for evaluation in reader.iterate(Evaluation):
        yield evaluation.hypotheses
    for model in reader.iterate(Model, tables.model.c.run.is_not(None)):
        for name in model.files:
            yield f"{model.where}/{name}"
    for _, key, _ in training.named_blobs(reader):
        yield key


def check_orphans(check: Check) -> None:
    old = time.time() - check.min_age_s
    entries = [entry for entry in check.ws.blobs.entries("") if entry.modified < old]
    with check.ws.read() as reader:
        named = set(named_blobs(reader))
        running = {id for id, held in check.ws.jobs.held(reader, "train").items() if held}
        rows = reader.connection.execute(sa.select(tables.removal.c.pending)).scalars()
        pending = {key for row in rows if row for key in row.get("blobs", ())}
    check.checked["blobs"] += len(entries)
    for entry in entries:
        key = entry.key
        if key in named or key in pending or any(run in key for run in running):
            continue
        if key.startswith("audio/"):
            check.report(
                "audio-orphan",
                key,
                "no recording refers to this audio: an ingest was interrupted, or the catalog is older than the audio",
                "makes it a recording without name, text or speaker. To restore these, ingest the file again.",
                partial(_take_back, check.ws, key),
            )
        elif key.startswith(REMOVABLE):
            check.report(
                "blob-orphan",
                key,
                "no catalog row refers to this blob: the process that wrote it was killed",
                "removes it.",
                partial(_remove_blob, check.ws, key),
            )


def _remove_blob(ws: Workspace, key: str) -> bool:
    ws.blobs.delete(key)
    return True


def _take_back(ws: Workspace, key: str) -> bool:
    """Register audio whose row is lost. Audio that does not match its name is removed."""
    id = key.removeprefix("audio/").removesuffix(".wav")
    data = ws.blobs.get(key)
    pcm = data[audio.WAV_HEADER_BYTES :]
    if sha256_bytes(pcm) != id:
        ws.blobs.delete(key)
        return True
    measured = measure(audio.from_pcm16(pcm)) if pcm else None
    recording = Recording(
        id=id, source=key, name=Path(key).name, samples=len(pcm) // audio.SAMPLE_BYTES, quality=measured
    )
    with ws.transaction() as tx:
        if tx.add(recording):
            tx.emit("recording.ingested", id, payload={"source": key})
    return True


def check_runs(check: Check) -> None:
    """Check for dead runs marked as running, and for copies of forgotten speech in run folders."""
    with check.ws.read() as reader:
        runs = reader.all(Run)
        recordings = set(reader.connection.execute(sa.select(tables.recording.c.id)).scalars())
        now = reader.now()
    old = now - check.min_age_s
    for run in runs:
        check.checked["runs"] += 1
        if run.status == "running" and run.created < old and not training.attended(check.ws, run):
            check.report(
                "run-dead",
                run.id,
                "it is marked as running, but its processes are gone and its lease has expired",
                "marks it as interrupted. `voxloop run resume` continues from its newest checkpoint.",
                partial(_interrupted, check.ws, run),
            )
    for manifest in sorted(check.ws.runs.glob("*/data/*.jsonl")):
        _, gone = removal.redacted(manifest.read_bytes(), lambda id: id.partition(":")[0] not in recordings, "id")
        if gone:
            check.report(
                "run-data-forgotten",
                str(manifest.relative_to(check.ws.folder)),
                f"{counted(len(gone), 'row belongs', 'rows belong')} to recordings that were forgotten or lost",
                "removes them and their audio.",
                lambda: removal.clean_run_data(check.ws, lambda id: id.partition(":")[0] not in recordings) > 0,
            )


def _interrupted(ws: Workspace, run: Run) -> bool:
    return training.find(ws, run.id).status != "running"


def check_leftovers(check: Check) -> None:
    """Check for files and folders of killed processes: half-written files and spooled audio."""
    ws, old = check.ws, time.time() - check.min_age_s
    found = [*ws.folder.glob("spool/*"), *ws.folder.glob("cache/**/*.partial"), *ws.runs.glob("**/*.partial")]
    # obstore first writes a file under its name with # and a number appended, then renames it.
    found += [path for path in ws.folder.glob("blobs/**/*#*") if re.search(r"#\d+$", path.name)]
    live = {run.name for run in ws.runs.glob("*") if removal.alive(run)}
    for path in found:
        inside = path.relative_to(ws.folder)
        if not path.exists() or path.stat().st_mtime > old or live & set(inside.parts):
            continue
        check.report(
            "leftover",
            str(inside),
            "left by a killed process",
            "removes it.",
            partial(_sweep, path),
        )


def _sweep(path: Path) -> bool:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return True
