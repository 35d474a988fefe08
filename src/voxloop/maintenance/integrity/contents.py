"""What the workspace holds is what its names say: audio, spans, datasets, models, evaluations, aliases."""

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

from voxloop.errors import AudioError, BlobError
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

LOST = "its audio is not among the blobs"


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
            f"takes it from {_sources(check.ws, recording)[0][0]} where that is still the same audio; else restore a "
            "backup, or "
            f"`voxloop forget --recording {recording.id[:19]}`",
            partial(_take_again, check.ws, recording),
        )


def _audio_fault(ws: Workspace, recording: Recording) -> str | None:
    """What is wrong with a recording's blob; read piece by piece, whatever its length."""
    key = audio_key(recording.id)
    size = audio.WAV_HEADER_BYTES + recording.samples * audio.SAMPLE_BYTES
    digest = hashlib.sha256()
    found = ws.blobs.size(key)
    if found is None:
        return LOST
    if found != size:
        return f"its audio has {found} bytes instead of {size}"
    try:
        for part in ws.blobs.parts(key, READ, start=audio.WAV_HEADER_BYTES):
            digest.update(part)
        head = ws.blobs.get(key, 0, audio.WAV_HEADER_BYTES)
    except BlobError as error:
        return f"its audio cannot be read to its end: {error}"
    if f"sha256-{digest.hexdigest()}" != recording.id:
        return "its audio is not what its id says: the samples changed"
    if head != audio.wav_header(recording.samples * audio.SAMPLE_BYTES):
        return "the header of its WAV was changed"
    return None


def _sources(ws: Workspace, recording: Recording) -> list[tuple[Path, int | None]]:
    """The files that held a recording's audio, each with its channel (None: mixed); never none."""
    table = tables.source_file
    with ws.read() as reader:
        rows = reader.connection.execute(
            sa.select(table).where(table.c.recording == recording.id).order_by(table.c.path, table.c.channel)
        ).all()
    # Where it came from as it was named, too: catalogs of earlier versions remember no files.
    named = (Path(recording.source), None)
    return [*((Path(row.path), int(row.channel) if row.channel.isdigit() else None) for row in rows), named]


def _take_again(ws: Workspace, recording: Recording) -> bool:
    """Put the audio back from a file that held it, where one still holds the same samples."""
    return any(_take_from(ws, recording, path, channel) for path, channel in _sources(ws, recording) if path.is_file())


def _take_from(ws: Workspace, recording: Recording, path: Path, channel: int | None) -> bool:
    bounds = {"max_seconds": ws.settings.max_recording_hours * 3600, "max_bytes": ws.settings.max_file_mb << 20}
    digest = hashlib.sha256()
    spool = ws.folder / "spool"
    spool.mkdir(exist_ok=True)
    # Through a file on the disk, since a recording may last for hours.
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
    """Spans lie inside their recordings, are at most 30 s, and are named by what they are."""
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
            wrong = f"{span} do not lie inside the recording's {row.samples}"
        elif row.end - row.start > MAX_UTTERANCE_SAMPLES:
            wrong = f"{span} last longer than 30 s"
        elif row.id != utterance_id(row.recording, row.start, row.end):
            wrong = f"its id does not say {span} of {row.recording}"
        if wrong:
            check.report("utterance-span", row.id, wrong, "reject it: `voxloop review reject`, or restore a backup")
        if row.split:
            splits.setdefault(row.recording, set()).add(row.split)
    for recording, found in splits.items():
        if len(found) > 1:
            message = (
                f"its utterances are in the splits {', '.join(sorted(found))}: what is tested may have been learnt"
            )
            check.report("split-leak", recording, message, "reject the utterances of one of these splits")


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
                f"{len(lost)} of {len(rows)} utterances of {dataset.name} are not in the catalog: forgotten, or lost",
                "takes them out of the manifest and marks the dataset",
                partial(_redact, check.ws, dataset.id),
            )
        there = [row for row in rows if row.utterance in splits]
        moved = [row for row in there if splits[row.utterance] != row.split]
        if moved:
            message = f"{len(moved)} utterances of {dataset.name} are in another split now than when it was frozen"
            check.report("split-moved", dataset.id, message, "restore a backup: what is test must stay test")
        by_recording: dict[str, set[str]] = {}
        for row in rows:
            by_recording.setdefault(row.recording, set()).add(row.split)
        leaks = sum(len(found) > 1 for found in by_recording.values())
        if leaks:
            message = f"{leaks} recordings of {dataset.name} are in more than one split"
            check.report("split-leak", dataset.id, message, "freeze a new dataset without one of the parts")
        unread = [row for row in there if row.transcript not in texts]
        if unread:
            message = f"{len(unread)} texts of {dataset.name} are no transcripts of the catalog"
            check.report("dataset-text-missing", dataset.id, message, "restore a backup, or freeze a new dataset")
        _dataset_rows(check, dataset, there)
        if dataset.parent and dataset.parent not in known:
            message = f"the dataset before {dataset.name}, {dataset.parent}, is not there"
            check.report("dataset-parent-missing", dataset.id, message, "restore a backup")


def _manifest(check: Check, dataset: Dataset) -> list[datasets.DatasetRow] | None:
    """The rows of a dataset whose manifest is there and is what its name says."""
    key = dataset.manifest or f"datasets/{dataset.id}.jsonl"
    try:
        data = check.ws.blobs.get(key)
    except BlobError as error:
        if still(check.ws, Dataset, dataset.id) and datasets.manifest_key(check.ws, dataset.id) == key:
            remedy = "restore a backup, or freeze a new dataset"
            check.report("manifest-missing", dataset.id, f"{dataset.name}: {error}", remedy)
        return None
    found = re.search(r"\.redacted-(sha256-[0-9a-f]{64})", key)
    expected = found.group(1) if found else dataset.id
    if sha256_bytes(data) != expected:
        message = f"{dataset.name}: the manifest {key} is not what its name says: it was changed"
        check.report("manifest-damaged", dataset.id, message, "restore a backup; do not train or measure on it")
        return None
    if not check.ws.blobs.exists(datasets.excluded_key(key)):
        message = f"{dataset.name}: the list of what was left out is not among the blobs"
        check.report("exclusions-missing", dataset.id, message, "restore a backup, or freeze a new dataset")
    return [datasets.DatasetRow(**json.loads(line)) for line in data.splitlines()]


def _redact(ws: Workspace, dataset: str) -> bool:
    """Put what is left of a dataset under a new key, as forgetting does."""
    with ws.read() as reader:
        found = reader.get(Dataset, dataset)
        ids = set(reader.connection.execute(sa.select(tables.utterance.c.id)).scalars())
    return removal.redact_dataset(ws, found, lambda utterance: utterance not in ids)


def _dataset_rows(check: Check, dataset: Dataset, rows: Sequence[datasets.DatasetRow]) -> None:
    """The catalog's copy of who is in which dataset says what the manifest says."""
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

    message = f"the catalog's list of {dataset.name} differs from its manifest in {len(found ^ wanted)} rows"
    check.report("dataset-rows", dataset.id, message, "writes the list anew from the manifest", mend)


# Models and evaluations ----------------------------------------------------------------------------------------------


def check_models(check: Check) -> None:
    with check.ws.read() as reader:
        trained = reader.all(Model, tables.model.c.run.is_not(None))
    for model in trained:
        check.tick("models")
        remedy = "restore a backup, or train again; until then roll back to another (`voxloop model rollback`)"
        if model_id(model.files) != model.id:
            check.report("model-id", model.id, "its list of files is not what its id says", remedy)
        for name, expected in model.files.items():
            key = f"{model.where}/{name}"
            wrong = _file_fault(check.ws, key, expected)
            if wrong:
                check.report(
                    "model-file",
                    model.id,
                    f"{name} {wrong}",
                    f"takes it from the run's folder where it is still whole; else {remedy}",
                    partial(_put_back, check.ws, model, name),
                )


def check_checkpoints(check: Check) -> None:
    """What runs go on from on another machine."""
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
                f"{key} {fault}: the run cannot go on from it on another machine",
                "gives the copy up: the run goes on from its own folder, and begins anew elsewhere",
                partial(_without_checkpoint, check.ws, run),
            )


def _without_checkpoint(ws: Workspace, run: str) -> bool:
    with ws.transaction() as tx:
        training.give_up_copy(tx, run)
    return True


def _file_fault(ws: Workspace, key: str, expected: str) -> str | None:
    if not ws.blobs.exists(key):
        return "is not among the blobs"
    return None if blob_hash(ws, key) == expected else "is not what its hash says: it was changed"


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
        again = "measure again: `voxloop evaluate` after `voxloop verify --repair` removed this one"
        for name, id, known in (("model", evaluation.model, models), ("dataset", evaluation.dataset, frozen)):
            if id not in known:
                check.report("evaluation-orphan", evaluation.id, f"its {name} {id} is not there", "restore a backup")
        drop = partial(_drop, check.ws, evaluation)
        try:
            lines = check.ws.blobs.get(evaluation.hypotheses).splitlines()
            rows = [Scored(**json.loads(line)) for line in lines]
        except BlobError as error:
            if still(check.ws, Evaluation, evaluation.id):
                check.report("hypotheses-missing", evaluation.id, str(error), f"removes it; then {again}", drop)
            continue
        except (ValueError, TypeError) as error:
            message = f"what was heard cannot be read from {evaluation.hypotheses}: {error}"
            check.report("hypotheses-damaged", evaluation.id, message, f"removes it; then {again}", drop)
            continue
        if len(rows) != evaluation.scores.get("utterances", len(rows)):
            message = f"{len(rows)} utterances were kept, {evaluation.scores['utterances']} were scored"
            check.report("hypotheses-damaged", evaluation.id, message, f"removes it; then {again}", drop)
        elif any(row.recording not in recordings for row in rows):
            message = "it holds texts of recordings that are not in the catalog: forgotten, or lost"
            check.report("evaluation-forgotten", evaluation.id, message, f"removes it; then {again}", drop)


def _drop(ws: Workspace, evaluation: Evaluation) -> bool:
    """Remove an evaluation with what was heard: asked again, it is made again."""
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
            remedy = "`voxloop model promote` another, or restore a backup"
            check.report("alias", row.name, f"{row.name} names the model {row.model}, which is not there", remedy)
        elif row.by is None:
            check.report("alias", row.name, f"the promotion that moved {row.name} is not there", "restore a backup")
