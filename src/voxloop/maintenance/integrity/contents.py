"""Checks that content matches its name: audio, spans, datasets, models, evaluations, aliases."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from voxloop.errors import AudioError, BlobError, counted
from voxloop.maintenance import removal
from voxloop.maintenance.integrity.check import READ, Check, still
from voxloop.models import model_id
from voxloop.records import MAX_UTTERANCE_SAMPLES, Dataset, Evaluation, Model, Recording, utterance_id
from voxloop.speech import audio
from voxloop.steps import datasets, training
from voxloop.steps.evaluation import Scored
from voxloop.steps.recordings import audio_key
from voxloop.stores import tables
from voxloop.stores.blobs import sha256_bytes, sha256_file
from voxloop.stores.catalog import insert_new

if TYPE_CHECKING:
    from voxloop.workspace import Workspace

LOST = "the audio is missing from the blob store"


# Audio ---------------------------------------------------------------------------------------------------------------


def check_recordings(check: Check) -> None:
    with check.ws.read() as reader:
        recordings = reader.all(Recording)
    for recording in recordings:
        wrong = _audio_fault(check.ws, recording)
        check.tick("recordings")
        if not wrong or not still(check.ws, Recording, recording.id):
            continue
        check.report(
            "audio-missing" if wrong == LOST else "audio-damaged",
            recording.id,
            f"{recording.name}: {wrong}",
            f"restores it from {_sources(check.ws, recording)[0][0]} if that file is unchanged. Otherwise restore a "
            f"backup, or remove the recording with `voxloop forget --recording {recording.id[:19]}`.",
            partial(_take_again, check.ws, recording),
        )


def _audio_fault(ws: Workspace, recording: Recording) -> str | None:
    """What is wrong with a recording's blob, or None. Reads it piece by piece."""
    key = audio_key(recording.id)
    size = audio.WAV_HEADER_BYTES + recording.samples * audio.SAMPLE_BYTES
    digest = hashlib.sha256()
    found = ws.blobs.size(key)
    if found is None:
        return LOST
    if found != size:
        return f"the audio has {found:,} bytes instead of {size:,}"
    try:
        for part in ws.blobs.parts(key, READ, start=audio.WAV_HEADER_BYTES):
            digest.update(part)
        head = ws.blobs.get(key, 0, audio.WAV_HEADER_BYTES)
    except BlobError as error:
        return f"the audio cannot be read to its end: {error}"
    if f"sha256-{digest.hexdigest()}" != (recording.remains or recording.id):
        return "the audio's hash does not match the recording's id: the samples have changed"
    if head != audio.wav_header(recording.samples * audio.SAMPLE_BYTES):
        return "the WAV header has changed"
    return None


def _sources(ws: Workspace, recording: Recording) -> list[tuple[Path, int | None]]:
    """The source files of a recording's audio, each with its channel (None: mixed). There is always at least one."""
    table = tables.source_file
    with ws.read() as reader:
        rows = reader.connection.execute(
            sa.select(table).where(table.c.recording == recording.id).order_by(table.c.path, table.c.channel)
        ).all()
    # Catalogs of earlier versions have no source files, so the recording's own source is added.
    named = (Path(recording.source), None)
    return [*((Path(row.path), int(row.channel) if row.channel.isdigit() else None) for row in rows), named]


def _take_again(ws: Workspace, recording: Recording) -> bool:
    """Restore the audio from a source file that still has the same samples. Return whether there was one."""
    return any(_take_from(ws, recording, path, channel) for path, channel in _sources(ws, recording) if path.is_file())


def _take_from(ws: Workspace, recording: Recording, path: Path, channel: int | None) -> bool:
    bounds = {"max_seconds": ws.settings.max_recording_hours * 3600, "max_bytes": ws.settings.max_file_mb << 20}
    digest = hashlib.sha256()
    spool = ws.folder / "spool"
    spool.mkdir(exist_ok=True)
    # Uses a temporary file, since a recording may last for hours.
    with tempfile.TemporaryDirectory(dir=spool, prefix="verify-") as folder:
        wav = Path(folder) / "again.wav"
        try:
            with wav.open("wb") as file:
                file.write(audio.wav_header(recording.samples * audio.SAMPLE_BYTES))
                for block in audio.stream(path, channel=channel, **bounds):  # type: ignore[arg-type]
                    pcm = audio.to_pcm16(block)
                    digest.update(pcm)
                    file.write(pcm)
        except AudioError:
            return False
        if f"sha256-{digest.hexdigest()}" != recording.id:
            return False
        ws.blobs.delete(audio_key(recording.id))
        return ws.blobs.put(audio_key(recording.id), wav)


def check_utterances(check: Check) -> None:
    """Check that spans are inside their recordings, last at most 30 s and match their ids."""
    u, r = tables.utterance.c, tables.recording.c
    with check.ws.read() as reader:
        rows = reader.connection.execute(
            sa.select(u.id, u.recording, u.start, u.end, u.split, r.samples).join(tables.recording, u.recording == r.id)
        ).all()
    splits: dict[str, set[str]] = {}
    for row in rows:
        check.checked["utterances"] += 1
        span = f"samples {row.start} to {row.end}"
        wrong = None
        if not 0 <= row.start < row.end <= row.samples:
            wrong = f"{span} are outside the recording, which has {row.samples} samples"
        elif row.end - row.start > MAX_UTTERANCE_SAMPLES:
            wrong = f"{span} are longer than 30 s"
        elif row.id != utterance_id(row.recording, row.start, row.end):
            wrong = f"the id does not match {span} of {row.recording}"
        if wrong:
            check.report(
                "utterance-span", row.id, wrong, "Reject it with `voxloop review reject`, or restore a backup."
            )
        if row.split:
            splits.setdefault(row.recording, set()).add(row.split)
    for recording, found in splits.items():
        if len(found) > 1:
            message = (
                f"its utterances are in the splits {', '.join(sorted(found))}, so the test may contain training data"
            )
            check.report("split-leak", recording, message, "Reject the utterances in all but one of these splits.")


# Datasets ------------------------------------------------------------------------------------------------------------


def check_datasets(check: Check) -> None:
    u = tables.utterance.c
    with check.ws.read() as reader:
        frozen = reader.all(Dataset)
        splits = {row.id: row.split for row in reader.connection.execute(sa.select(u.id, u.split))}
        texts = set(reader.connection.execute(sa.select(tables.transcript.c.id)).scalars())
    known = {dataset.id for dataset in frozen}
    for dataset in frozen:
        check.tick("datasets")
        rows = _manifest(check, dataset)
        if rows is None:
            continue
        lost = [row for row in rows if row.utterance not in splits]
        if lost:
            check.report(
                "dataset-utterance-missing",
                dataset.id,
                f"{len(lost):,} of {counted(len(rows), 'utterance')} in {dataset.name} are not in the catalog: "
                "they were forgotten or lost",
                "removes them from the manifest and marks the dataset.",
                partial(_redact, check.ws, dataset.id),
            )
        there = [row for row in rows if row.utterance in splits]
        moved = [row for row in there if splits[row.utterance] != row.split]
        if moved:
            count = counted(len(moved), "utterance has", "utterances have")
            message = f"{count} changed split since {dataset.name} was built"
            check.report("split-moved", dataset.id, message, "Restore a backup: test utterances must stay in test.")
        by_recording: dict[str, set[str]] = {}
        for row in rows:
            by_recording.setdefault(row.recording, set()).add(row.split)
        leaks = sum(len(found) > 1 for found in by_recording.values())
        if leaks:
            message = f"{counted(leaks, 'recording is', 'recordings are')} in more than one split of {dataset.name}"
            check.report("split-leak", dataset.id, message, "Build a new dataset without the utterances of one split.")
        unread = [row for row in there if row.transcript not in texts]
        if unread:
            message = f"{counted(len(unread), 'text')} of {dataset.name} cannot be found in the catalog"
            check.report("dataset-text-missing", dataset.id, message, "Restore a backup, or build a new dataset.")
        _dataset_rows(check, dataset, there)
        if dataset.parent and dataset.parent not in known:
            message = f"the parent of {dataset.name}, {dataset.parent}, is missing"
            check.report("dataset-parent-missing", dataset.id, message, "Restore a backup.")


def _manifest(check: Check, dataset: Dataset) -> list[datasets.DatasetRow] | None:
    """The rows of a dataset; None if its manifest is missing or damaged."""
    key = dataset.manifest or f"datasets/{dataset.id}.jsonl"
    try:
        data = check.ws.blobs.get(key)
    except BlobError as error:
        if still(check.ws, Dataset, dataset.id) and datasets.manifest_key(check.ws, dataset.id) == key:
            remedy = "Restore a backup, or build a new dataset."
            check.report("manifest-missing", dataset.id, f"{dataset.name}: {error}", remedy)
        return None
    found = re.search(r"\.redacted-(sha256-[0-9a-f]{64})", key)
    expected = found.group(1) if found else dataset.id
    if sha256_bytes(data) != expected:
        message = f"{dataset.name}: the hash of the manifest {key} does not match its name"
        check.report("manifest-damaged", dataset.id, message, "Restore a backup. Do not train or evaluate on it.")
        return None
    if not check.ws.blobs.exists(datasets.excluded_key(key)):
        message = f"{dataset.name}: the list of excluded utterances is missing from the blob store"
        check.report("exclusions-missing", dataset.id, message, "Restore a backup, or build a new dataset.")
    return [datasets.DatasetRow(**json.loads(line)) for line in data.splitlines()]


def _redact(ws: Workspace, dataset: str) -> bool:
    """Store the remaining rows of a dataset under a new key, as forgetting does."""
    with ws.read() as reader:
        found = reader.get(Dataset, dataset)
        ids = set(reader.connection.execute(sa.select(tables.utterance.c.id)).scalars())
    return removal.redact_dataset(ws, found, lambda utterance: utterance not in ids)


def _dataset_rows(check: Check, dataset: Dataset, rows: Sequence[datasets.DatasetRow]) -> None:
    """Check that the dataset's rows in the catalog match its manifest."""
    table = tables.dataset_utterance
    wanted = {(row.utterance, row.transcript, row.split) for row in rows}
    statement = sa.select(table.c.utterance, table.c.transcript, table.c.split).where(table.c.dataset == dataset.id)
    with check.ws.read() as reader:
        found = {tuple(row) for row in reader.connection.execute(statement)}
    if found == wanted:
        return

    def mend() -> bool:
        with check.ws.transaction() as tx:
            tx.connection.execute(sa.delete(table).where(table.c.dataset == dataset.id))
            columns = ("utterance", "transcript", "split")
            rows = [{"dataset": dataset.id, **dict(zip(columns, row, strict=True))} for row in sorted(wanted)]
            insert_new(tx.connection, table, rows)
        return True

    differing = counted(len(found ^ wanted), "row")
    message = f"the catalog's list of {dataset.name} differs from its manifest in {differing}"
    check.report("dataset-rows", dataset.id, message, "rebuilds the list from the manifest.", mend)


# Models and evaluations ----------------------------------------------------------------------------------------------


def check_models(check: Check) -> None:
    with check.ws.read() as reader:
        trained = reader.all(Model, tables.model.c.run.is_not(None))
    for model in trained:
        check.tick("models")
        remedy = "Restore a backup or train again. Until then, go back to another model with `voxloop model rollback`."
        if model_id(model.files) != model.id:
            check.report("model-id", model.id, "its list of files does not match its id", remedy)
        for name, expected in model.files.items():
            key = f"{model.where}/{name}"
            wrong = _file_fault(check.ws, key, expected)
            if wrong:
                check.report(
                    "model-file",
                    model.id,
                    f"{name} {wrong}",
                    f"restores it from the run's folder if it is intact there. Otherwise: {remedy}",
                    partial(_put_back, check.ws, model, name),
                )


def check_checkpoints(check: Check) -> None:
    """Check the checkpoints from which runs can continue on another machine."""
    with check.ws.read() as reader:
        named = list(training.named_blobs(reader))
    for run, key, file in named:
        check.tick("checkpoints")
        fault = _file_fault(check.ws, key, file["sha256"])
        with check.ws.read() as reader:
            superseded = not training.names_blob(reader, key)  # by a newer one, meanwhile
        if fault and not superseded:
            check.report(
                "checkpoint-file",
                run,
                f"{key} {fault}, so the run cannot continue on another machine",
                "drops this copy. The run continues from its own folder, or starts over elsewhere.",
                partial(_without_checkpoint, check.ws, run),
            )


def _without_checkpoint(ws: Workspace, run: str) -> bool:
    with ws.transaction() as tx:
        training.give_up_copy(tx, run)
    return True


def _file_fault(ws: Workspace, key: str, expected: str) -> str | None:
    if not ws.blobs.exists(key):
        return "is missing from the blob store"
    return None if blob_hash(ws, key) == expected else "has changed: its hash does not match"


def blob_hash(ws: Workspace, key: str) -> str:
    """`sha256-<hex>` of a blob, read piece by piece."""
    digest = hashlib.sha256()
    for part in ws.blobs.parts(key, READ):
        digest.update(part)
    return f"sha256-{digest.hexdigest()}"


def _put_back(ws: Workspace, model: Model, name: str) -> bool:
    kept = ws.runs / (model.run or "") / "best" / name
    if not kept.is_file() or sha256_file(kept) != model.files[name]:
        return False
    ws.blobs.delete(f"{model.where}/{name}")
    return ws.blobs.put(f"{model.where}/{name}", kept)


def check_evaluations(check: Check) -> None:
    with check.ws.read() as reader:
        evaluations = reader.all(Evaluation)
        models = set(reader.connection.execute(sa.select(tables.model.c.id)).scalars())
        frozen = set(reader.connection.execute(sa.select(tables.dataset.c.id)).scalars())
        recordings = set(reader.connection.execute(sa.select(tables.recording.c.id)).scalars())
    for evaluation in evaluations:
        check.tick("evaluations")
        drops = "removes the evaluation. Then run `voxloop evaluate` again."
        for name, id, known in (("model", evaluation.model, models), ("dataset", evaluation.dataset, frozen)):
            if id not in known:
                check.report("evaluation-orphan", evaluation.id, f"its {name} {id} is missing", "Restore a backup.")
        drop = partial(_drop, check.ws, evaluation)
        try:
            lines = check.ws.blobs.get(evaluation.hypotheses).splitlines()
            rows = [Scored(**json.loads(line)) for line in lines]
        except BlobError as error:
            if still(check.ws, Evaluation, evaluation.id):
                check.report("hypotheses-missing", evaluation.id, str(error), drops, drop)
            continue
        except (ValueError, TypeError) as error:
            message = f"cannot read the hypotheses in {evaluation.hypotheses}: {error}"
            check.report("hypotheses-damaged", evaluation.id, message, drops, drop)
            continue
        if len(rows) != evaluation.scores.get("utterances", len(rows)):
            message = f"it has {len(rows)} hypotheses but scores of {evaluation.scores['utterances']}"
            check.report("hypotheses-damaged", evaluation.id, message, drops, drop)
        elif any(row.recording not in recordings for row in rows):
            message = "it contains texts of recordings that were forgotten or lost"
            check.report("evaluation-forgotten", evaluation.id, message, drops, drop)


def _drop(ws: Workspace, evaluation: Evaluation) -> bool:
    """Remove an evaluation and its hypotheses; `voxloop evaluate` makes it again."""
    with ws.transaction() as tx:
        tx.connection.execute(sa.delete(tables.evaluation).where(tables.evaluation.c.id == evaluation.id))
    ws.blobs.delete(evaluation.hypotheses)
    return True


def check_aliases(check: Check) -> None:
    with check.ws.read() as reader:
        rows = reader.connection.execute(
            sa.select(tables.alias.c.name, tables.alias.c.model, tables.model.c.id, tables.promotion.c.id.label("by"))
            .join(tables.model, tables.model.c.id == tables.alias.c.model, isouter=True)
            .join(tables.promotion, tables.promotion.c.id == tables.alias.c.promotion, isouter=True)
        ).all()
    for row in rows:
        check.checked["aliases"] += 1
        if row.id is None:
            remedy = "Promote another model with `voxloop model promote`, or restore a backup."
            check.report("alias", row.name, f"{row.name} points to the model {row.model}, which is missing", remedy)
        elif row.by is None:
            check.report("alias", row.name, f"the promotion that set {row.name} is missing", "Restore a backup.")
