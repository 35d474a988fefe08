"""Forget a speaker or a recording everywhere that this workspace reaches.

    plan ──► write redacted manifests as new blobs ──► one transaction: delete rows, set marks, write the audit entry
         with what is still to be deleted ──► delete blobs and run data ──► overwrite the catalog's free pages

After a crash, the next `forget`, `verify --repair` or `forget --resume` continues from the
audit entry. A dataset's id is the hash of its first manifest and stays, for lineage; the
manifest itself is deleted, and the rest of it is stored under a new key. A model cannot
unlearn, so it is listed and marked.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa
from ulid import ULID

from voxloop.errors import BlobError, ConflictError, UnknownRecord, UsageError, counted, nearest
from voxloop.maintenance.removal.finishing import finish, redacted, redaction, resume
from voxloop.records import SAMPLE_RATE, Dataset, Evaluation, Model, Progress, Recording, Run, Transcript, Utterance
from voxloop.steps import consent, datasets, training
from voxloop.steps.evaluation import Scored, scores_of
from voxloop.steps.recordings import audio_key
from voxloop.steps.training import locks
from voxloop.steps.training.files import ATTENDED, TRAINING
from voxloop.stores import tables
from voxloop.stores.blobs import sha256_bytes
from voxloop.stores.catalog import chunks, insert_new

if TYPE_CHECKING:
    from voxloop.stores.catalog import Reader, Writer
    from voxloop.workspace import Transaction, Workspace

FORGOTTEN = "(forgotten)"  # replaces a name or an id
ATTEMPTS = 5  # plans to try if the catalog changes between plan and transaction
CLIP_ID = 24  # digits of a recording's id in a clip's file name
ID = re.compile(r"sha256-[0-9A-Za-z]+")

Kind = Literal["speaker", "recording", "utterance"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Marked:
    """A dataset or model that used the forgotten speech."""

    id: str
    name: str  # the dataset's name, or the run that made the model
    utterances: int  # in the dataset, or used to train or select the model; 0: trained from such a model


@dataclass(frozen=True, kw_only=True, slots=True)
class Removal:
    """How much was forgotten, or with `dry_run` would be."""

    id: str | None  # of the audit entry; None in a dry run
    kind: Kind
    recordings: int
    seconds_of_audio: float
    utterances: int
    transcripts: int
    vectors: int
    evaluations: int  # rewritten or removed
    datasets: tuple[Marked, ...]
    models: tuple[Marked, ...]
    blobs: int  # deleted
    notes: tuple[str, ...]  # what stays and what is out of reach
    dry_run: bool = False
    finished: bool = False  # False: finish it with `voxloop forget --resume`


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What is to be forgotten. If two scopes are equal, nothing changed between them."""

    speaker: str | None
    recordings: frozenset[str]
    utterances: frozenset[str]
    frozen: frozenset[tuple[str, str | None]]  # every dataset with its manifest, every evaluation with its blob

    @property
    def kind(self) -> Kind:
        """What the removal is called."""
        if self.speaker is not None:
            return "speaker"
        return "recording" if all(id.partition(":")[0] in self.recordings for id in self.utterances) else "utterance"

    def holds(self, id: str) -> bool:
        """Whether the recording or utterance with this id is to be forgotten."""
        return id in self.utterances or id.partition(":")[0] in self.recordings


@dataclass(kw_only=True)
class _Plan:
    """The changes that a scope requires."""

    datasets: dict[str, dict[str, Any]] = field(default_factory=dict)  # id -> new values of its row
    evaluations: dict[str, dict[str, Any] | None] = field(default_factory=dict)  # None: the evaluation is removed
    blobs: dict[str, bytes] = field(default_factory=dict)  # redacted, by their new keys
    pending: set[str] = field(default_factory=set)  # blob keys to delete
    marked_datasets: list[Marked] = field(default_factory=list)
    marked_models: list[Marked] = field(default_factory=list)


class _Changed(Exception):
    """The catalog has changed since the plan was made."""


def forget(
    ws: Workspace,
    *,
    speaker: str | None = None,
    recording: str | Sequence[str] | None = None,
    by: str = "cli",
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Removal:
    """Remove a speaker's recordings and consent, or the recordings named, with everything made from them.

    A recording with several speakers is removed as a whole, since a piece cannot be cut out
    of audio that is named after its content. Audio ingested again later counts as new, since
    recognising it would require remembering its hash. `by` is stored in the audit entry.
    Raises UnknownRecord if there is no such speaker or recording, ConflictError while a run
    is training on it.
    """
    if (speaker is None) == (recording is None):
        raise UsageError("Give either --speaker or --recording.")
    return forget_scope(
        ws, lambda reader: _scope(reader, speaker, recording), by=by, dry_run=dry_run, progress=progress
    )


def forget_scope(
    ws: Workspace, find: Callable[[Reader], Scope], *, by: str, dry_run: bool = False, progress: Progress | None = None
) -> Removal:
    """Remove what `find` finds, with everything made from it; it is asked again in the transaction."""
    if not dry_run:
        resume(ws)
    for _ in range(ATTEMPTS):
        with ws.read() as reader:
            scope = find(reader)
        plan = _plan(ws, scope)
        if dry_run:
            with ws.read() as reader:
                return _report(ws, reader, scope, plan, id=None)
        _refuse_live_runs(ws, {marked.id for marked in plan.marked_datasets})
        for key, data in plan.blobs.items():
            ws.blobs.put(key, data)
        try:
            report = _commit(ws, scope, plan, find, by)
        except _Changed:
            continue
        return _finished(ws, report, progress)
    raise ConflictError(f"the workspace changed during each of {ATTEMPTS} attempts. Stop its workers and try again.")


def _finished(ws: Workspace, report: Removal, progress: Progress | None) -> Removal:
    done = finish(ws, report.id or "", progress)
    values = {name: getattr(report, name) for name in Removal.__dataclass_fields__}
    if not done:
        held = "other processes use the catalog, so traces of deleted rows in its file could not be overwritten yet"
        values["notes"] = (f"{held}; run `voxloop forget --resume` when they are done", *report.notes)
    return Removal(**values | {"finished": done})


# What belongs to it --------------------------------------------------------------------------------------------------


def _scope(reader: Reader, speaker: str | None, recording: str | Sequence[str] | None) -> Scope:
    r, u = tables.recording.c, tables.utterance.c
    name = unicodedata.normalize("NFC", speaker).strip() if speaker is not None else None
    if name is not None:
        found = set(reader.connection.execute(sa.select(r.id).where(r.speaker == name)).scalars())
        found |= set(reader.connection.execute(sa.select(u.recording).where(u.speaker == name)).scalars())
        # Given segments with speakers that are not utterances yet.
        given = reader.connection.execute(sa.select(r.id, r.segments).where(r.segments.is_not(None))).all()
        found |= {id for id, spans in given if any(span.get("speaker") == name for span in spans or ())}
        if not found:
            names = reader.connection.execute(
                sa.select(r.speaker).where(r.speaker.is_not(None)).union(sa.select(u.speaker))
            )
            known = [other for other in names.scalars() if other]
            hint = nearest(name, known) if known else "; no recording in this workspace names a speaker"
            raise UnknownRecord(f"no recording has a speaker {name!r}{hint}")
    else:
        named = [recording] if isinstance(recording, str) else recording or ()
        found = {reader.get(Recording, one).id for one in named}
    utterances: set[str] = set()
    for chunk in chunks(sorted(found)):
        utterances |= set(reader.connection.execute(sa.select(u.id).where(u.recording.in_(chunk))).scalars())
    return Scope(speaker=name, recordings=frozenset(found), utterances=frozenset(utterances), frozen=frozen_now(reader))


def frozen_now(reader: Reader) -> frozenset[tuple[str, str | None]]:
    """Every dataset with its manifest and every evaluation with its blob, for a scope."""
    d, e = tables.dataset.c, tables.evaluation.c
    found = {tuple(row) for row in reader.connection.execute(sa.select(d.id, d.manifest))}
    found |= {tuple(row) for row in reader.connection.execute(sa.select(e.id, e.hypotheses))}
    return frozenset((id, key) for id, key in found)


def _plan(ws: Workspace, scope: Scope) -> _Plan:
    """Plan the changes from the manifests and evaluations themselves, since the catalog holds only copies of them."""
    plan = _Plan()
    with ws.read() as reader:
        frozen, evaluations = reader.all(Dataset), reader.all(Evaluation)
        runs, models = reader.all(Run), reader.all(Model)
    learnt: dict[str, int] = {}  # rows of train and val by dataset
    for dataset in frozen:
        learnt[dataset.id] = _redact_dataset(ws, dataset, scope, plan)
    for evaluation in evaluations:
        _redact_evaluation(ws, evaluation, scope, plan)
    plan.marked_models += _models_that_learnt(runs, models, learnt)
    _find_blobs(ws, scope, plan, frozen, evaluations)
    return plan


def _redact_dataset(ws: Workspace, dataset: Dataset, scope: Scope, plan: _Plan) -> int:
    """Plan a dataset's new manifest. Return the number of removed train and val rows."""
    left = redaction(ws, dataset, scope.holds)
    plan.blobs |= left.blobs
    plan.pending |= set(left.replaced)
    values = dict(left.values)
    filters = scrubbed(dataset.filters, scope)
    name = _without_name(dataset, scope)
    if filters != dataset.filters:
        values["filters"] = filters
    if name != dataset.name:
        values["name"] = name
    if values:
        plan.datasets[dataset.id] = values
        plan.marked_datasets.append(Marked(id=dataset.id, name=name, utterances=len(left.removed)))
    return sum(row.get("split") != "test" for row in left.removed)


def _redact_evaluation(ws: Workspace, evaluation: Evaluation, scope: Scope, plan: _Plan) -> None:
    try:
        left, removed = redacted(ws.blobs.get(evaluation.hypotheses), scope.holds, "utterance")
    except BlobError:
        return  # already missing; `verify` reports it
    if not removed:
        return
    plan.pending.add(evaluation.hypotheses)
    rows = [Scored(**json.loads(line)) for line in left.splitlines()]
    if not rows:
        plan.evaluations[evaluation.id] = None
        return
    key = f"evaluations/{evaluation.id}.redacted-{sha256_bytes(left)}.jsonl"
    plan.blobs[key] = left
    scores = evaluation.scores | scores_of(rows)
    if "joined" in scores:  # texts of clips joined across recordings
        scores["joined"] = {name: value for name, value in scores["joined"].items() if name != "texts"}
    scores["forgotten"] = scores.get("forgotten", 0) + len(removed)
    plan.evaluations[evaluation.id] = {"hypotheses": key, "scores": scores}


def _models_that_learnt(runs: Sequence[Run], models: Sequence[Model], learnt: Mapping[str, int]) -> list[Marked]:
    """Models trained or selected on removed rows, and models trained from them."""
    by_run = {run.id: run for run in runs}
    found: dict[str, Marked] = {}
    before = -1
    while len(found) > before:  # repeat for models trained from those just found
        before = len(found)
        for model in models:
            run = by_run.get(model.run or "")
            heard = heard_by(run) if run else set()
            rows = sum(learnt.get(dataset, 0) for dataset in heard)
            if rows or model.base in found or (run and run.base in found):
                found.setdefault(model.id, Marked(id=model.id, name=model.run or model.where, utterances=rows))
    return list(found.values())


def _find_blobs(
    ws: Workspace, scope: Scope, plan: _Plan, frozen: Sequence[Dataset], evaluations: Sequence[Evaluation]
) -> None:
    """Find blobs named after a forgotten id, and unreferenced manifests that contain one (from a crashed build)."""
    manifests = {dataset.manifest or f"datasets/{dataset.id}.jsonl" for dataset in frozen}
    named = manifests | {datasets.excluded_key(key) for key in manifests} | {e.hypotheses for e in evaluations}
    went = {marked.id for marked in plan.marked_datasets if plan.datasets[marked.id].get("manifest")}
    plan.pending |= {audio_key(id) for id in scope.recordings}
    for key in ws.blobs.list(""):
        ids = set(ID.findall(key))
        derived = bool(ids & went) and not key.startswith("datasets/")  # shards and charts of a dataset
        if key not in plan.blobs and (ids & scope.recordings or derived):
            plan.pending.add(key)
        elif key.startswith(("datasets/", "evaluations/")) and key not in named and key not in plan.blobs:
            text = ws.blobs.get(key).decode("utf-8", "replace")
            if any(id in scope.recordings for id in ID.findall(text)) or any(id in text for id in scope.utterances):
                plan.pending.add(key)


# Names -----------------------------------------------------------------------------------------------------------


def scrubbed(value: Any, scope: Scope, names: Mapping[str, str] | None = None) -> Any:
    """A JSON value without the speaker's name and the forgotten ids; `names` maps old dataset names to new ones.

    The name is replaced only where this program writes it: under `speaker` and `speakers`,
    in a score's slice, and after the word "speaker". Elsewhere, a name such as "test" may
    mean something else.
    """
    if isinstance(value, dict):
        who = scope.speaker
        cleaned = {key: scrubbed(item, scope, names) for key, item in value.items()}
        if who is not None:
            if value.get("speaker") == who:
                cleaned["speaker"] = FORGOTTEN
            if isinstance(value.get("speakers"), list):
                cleaned["speakers"] = [FORGOTTEN if one == who else one for one in value["speakers"]]
            if value.get("by") == "speaker" and value.get("name") == who:
                cleaned["name"] = FORGOTTEN
        if names and value.get("name") in names:
            cleaned["name"] = names[value["name"]]
        return cleaned
    if isinstance(value, list):
        return [scrubbed(item, scope, names) for item in value]
    if isinstance(value, str):
        if scope.holds(value):
            return FORGOTTEN
        if scope.speaker and "speaker " in value:
            return re.sub(rf"\bspeaker {re.escape(scope.speaker)}(?!\w)", f"speaker {FORGOTTEN}", value)
    return value


def _bears(text: str, name: str) -> bool:
    """Whether a path, title or sentence contains the name as a separate word."""
    return re.search(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", text, re.IGNORECASE) is not None


def _without_name(dataset: Dataset, scope: Scope) -> str:
    if scope.speaker and _bears(dataset.name, scope.speaker):
        return f"dataset-{dataset.id.removeprefix('sha256-')[:12]}"
    return dataset.name


# The transaction -----------------------------------------------------------------------------------------------------


def _refuse_live_runs(ws: Workspace, dataset_ids: set[str]) -> None:
    with ws.read() as reader:
        running = reader.all(Run, tables.run.c.status.in_(("queued", "running")))
    for run in running:
        live = training.attended(ws, run) or alive(ws.runs / run.id)
        if live and dataset_ids & heard_by(run):
            raise ConflictError(
                f"run {run.id} is training on this data. Stop it with `voxloop run stop {run.id}`, then forget again."
            )


def heard_by(run: Run) -> set[str]:
    """The datasets that a run trains on."""
    return {run.dataset, *run.recipe.get("replay_from", ())}


def alive(run_folder: Path) -> bool:
    """Whether a process on this machine is training in this folder or supervising such a process."""
    return any(locks.held(run_folder / name) for name in (TRAINING, ATTENDED))


def _commit(ws: Workspace, scope: Scope, plan: _Plan, find: Callable[[Reader], Scope], by: str) -> Removal:
    with ws.completion() as tx:
        # Nothing that refers to the data may be added meanwhile.
        tx.hold(Recording, Utterance, Transcript, Dataset, Evaluation)
        if find(tx) != scope:
            raise _Changed
        id = str(ULID())
        report = _report(ws, tx, scope, plan, id=id)
        renamed = _change_records(tx, plan)
        _clean_events(tx, scope, renamed)
        silenced = _remove_given(tx, scope)
        _delete_rows(tx, scope)
        counts = {
            name: value
            for name, value in asdict(report).items()
            if name in ("recordings", "seconds_of_audio", "utterances", "transcripts", "vectors", "evaluations")
        }
        marks = {
            "datasets": [marked.id for marked in report.datasets],
            "models": [marked.id for marked in report.models],
        }
        learnt = _clean_runs(tx, scope, plan)
        pending = {
            "blobs": sorted({*plan.pending, *learnt}),
            "recordings": sorted(scope.recordings),
            "vectors": sorted(
                scope.utterances
            ),  # deleted after the commit; a step working on them checks again after its own
            "silenced": silenced,
        }
        row = {"id": id, "created": tx.now(), "kind": report.kind, "by": by, "counts": counts, **marks}
        tx.connection.execute(sa.insert(tables.removal).values(**row, pending=pending))
        tx.emit(f"{report.kind}.forgotten", id, payload={"by": by, **counts, **marks})
    return report


def _change_records(tx: Writer, plan: _Plan) -> dict[str, str]:
    """Update datasets and evaluations and mark models. Return the changed dataset names."""
    renamed = {}
    for id, values in plan.datasets.items():
        if "name" in values:
            renamed[tx.get(Dataset, id).name] = values["name"]
        tx.change(Dataset, id, **values)
    for id, change in plan.evaluations.items():
        if change is None:
            tx.connection.execute(sa.delete(tables.evaluation).where(tables.evaluation.c.id == id))
        else:
            tx.change(Evaluation, id, **change)
    for marked in plan.marked_models:
        # A model trained from such a model is marked as well.
        tx.change(Model, marked.id, forgotten=tables.model.c.forgotten + max(marked.utterances, 1))
    return renamed


def _clean_runs(tx: Transaction, scope: Scope, plan: _Plan) -> list[str]:
    """Restart unfinished runs on the data and remove its ids from logs. Return the keys of the runs' blobs."""
    went = {id for id, values in plan.datasets.items() if "manifest" in values}
    # Logs contain no texts, but an error about a clip may name its recording.
    gone = [id.removeprefix("sha256-")[:CLIP_ID].encode() for id in sorted(scope.recordings)]
    keys: list[str] = []
    for run in tx.all(Run):
        if not went & heard_by(run):
            continue
        if run.status not in ("completed", "stopped"):
            keys += training.begin_anew(tx, run)
        log = tables.run_log
        for piece in tx.connection.execute(sa.select(log).where(log.c.run == run.id)).all():
            data = re.sub(b"|".join(gone), b"-" * CLIP_ID, piece.data)
            if data != piece.data:
                where = (log.c.run == run.id, log.c.start == piece.start)
                tx.connection.execute(sa.update(log).where(*where).values(data=data))
    return keys


def _clean_events(tx: Transaction, scope: Scope, renamed: Mapping[str, str]) -> None:
    """Delete events about the data with their jobs, and replace names in other events, scores and evidence."""
    sources: set[str] = set()
    for chunk in chunks(sorted(scope.recordings)):
        r = tables.recording.c
        sources |= set(tx.connection.execute(sa.select(r.source).where(r.id.in_(chunk))).scalars())
        for table in tables.metadata.sorted_tables:
            if {"recording", "path"} <= set(table.c.keys()):  # other files with the same audio
                paths = sa.select(table.c.path).where(table.c.recording.in_(chunk))
                sources |= set(tx.connection.execute(paths).scalars())

    def is_about(path: str, message: str) -> bool:
        """Whether a refused file's path is one of the recordings' or contains the speaker's name."""
        return path in sources or bool(scope.speaker and _bears(f"{path} {message}", scope.speaker))

    e = tables.event
    gone: list[str] = []
    for row in tx.connection.execute(sa.select(e.c.id, e.c.type, e.c.subject, e.c.payload)).all():
        rejected = row.type == "recording.rejected" and is_about(row.subject, str(row.payload.get("message", "")))
        if scope.holds(row.subject) or rejected:
            gone.append(row.id)
            continue
        payload = scrubbed(row.payload, scope, renamed)
        if payload != row.payload:
            tx.connection.execute(sa.update(e).where(e.c.id == row.id).values(payload=payload))
    for chunk in chunks(sorted(gone)):
        tx.connection.execute(sa.delete(tables.job).where(tables.job.c.event.in_(chunk)))
        tx.connection.execute(sa.delete(e).where(e.c.id.in_(chunk)))
    refusal = tables.refusal
    for refused in tx.connection.execute(sa.select(refusal)).all():
        if is_about(refused.path, refused.message):
            tx.connection.execute(sa.delete(refusal).where(refusal.c.path == refused.path))
    for table, column in ((tables.evaluation, "scores"), (tables.promotion, "evidence")):
        for id, values in tx.connection.execute(sa.select(table.c.id, table.c[column])).all():
            cleaned = scrubbed(values, scope, renamed)
            if cleaned != values:
                tx.connection.execute(sa.update(table).where(table.c.id == id).values({column: cleaned}))


def _remove_given(tx: Writer, scope: Scope) -> dict[str, list[list[int]]]:
    """Remove given texts that cover an erased stretch of a recording that stays. Return the stretches, in samples."""
    stretches: dict[str, list[list[int]]] = {}
    for id in sorted(scope.utterances):
        recording, _, span = id.partition(":")
        if recording not in scope.recordings:
            stretches.setdefault(recording, []).append([int(end) for end in span.split("-")])
    for id, spans in stretches.items():
        recording_ = tx.get(Recording, id)
        kept = [
            asdict(one)
            for one in recording_.segments
            if not any(one.start < end and start < one.end for start, end in spans)
        ]
        tx.change(Recording, id, text=None, segments=kept)
    return stretches


def _delete_rows(tx: Writer, scope: Scope) -> None:
    """Delete all rows that refer to an utterance or recording, in dependency order. Also covers future tables."""
    # Other programs know utterances by number, so a number must never be given to another utterance.
    upkeep, highest = tables.upkeep.c, sa.select(sa.func.max(tables.utterance.c.number)).scalar_subquery()
    insert_new(tx.connection, tables.upkeep, [{"name": tables.NUMBERED}])
    mark = sa.update(tables.upkeep).where(upkeep.name == tables.NUMBERED, upkeep.until < highest)
    tx.connection.execute(mark.values(until=highest))
    for subjects in (scope.recordings, scope.utterances):
        for chunk in chunks(sorted(subjects)):
            tx.connection.execute(sa.delete(tables.job).where(tables.job.c.subject.in_(chunk)))
    for table in reversed(tables.metadata.sorted_tables):
        own = "id" if table is tables.utterance else "utterance"
        for column, ids in ((own, scope.utterances), ("recording", scope.recordings)):
            if column in table.c:
                for chunk in chunks(sorted(ids)):
                    tx.connection.execute(sa.delete(table).where(table.c[column].in_(chunk)))
    for chunk in chunks(sorted(scope.recordings)):
        tx.connection.execute(sa.delete(tables.recording).where(tables.recording.c.id.in_(chunk)))
    if scope.speaker is not None:
        tx.connection.execute(sa.delete(tables.consent).where(tables.consent.c.speaker == scope.speaker))


# What was found ------------------------------------------------------------------------------------------------------


def _report(ws: Workspace, reader: Reader, scope: Scope, plan: _Plan, *, id: str | None) -> Removal:
    r, t = tables.recording.c, tables.transcript.c

    def count(column: sa.Column[Any], ids: Iterable[str], what: Any = None) -> int:
        what = sa.func.count() if what is None else what
        parts = (sa.select(what).where(column.in_(part)) for part in chunks(sorted(ids)))
        return int(sum(reader.connection.execute(one).scalar() or 0 for one in parts))

    return Removal(
        id=id,
        kind=scope.kind,
        recordings=len(scope.recordings),
        seconds_of_audio=count(r.id, scope.recordings, sa.func.sum(r.samples)) / SAMPLE_RATE,
        utterances=len(scope.utterances),
        transcripts=count(t.utterance, scope.utterances),
        vectors=sum(ws.vectors.count(space, sorted(scope.utterances)) for space in ws.vectors.spaces()),
        evaluations=len(plan.evaluations),
        datasets=tuple(plan.marked_datasets),
        models=tuple(plan.marked_models),
        blobs=len(plan.pending),
        notes=tuple(_notes(reader, scope, plan)),
        dry_run=id is None,
    )


def _notes(reader: Reader, scope: Scope, plan: _Plan) -> Iterator[str]:
    """Notes on what else is removed, what stays, and what this program cannot reach."""
    who = scope.speaker
    if who is not None:
        r, u = tables.recording.c, tables.utterance.c
        shared: set[str] = set()
        for chunk in chunks(sorted(scope.recordings)):
            others = sa.select(u.recording).where(u.recording.in_(chunk), u.speaker.is_not(None), u.speaker != who)
            shared |= set(reader.connection.execute(others).scalars())
            mixed = sa.select(r.id).where(r.id.in_(chunk), r.speaker.is_not(None), r.speaker != who)
            shared |= set(reader.connection.execute(mixed).scalars())
        if shared:
            yield (
                f"{counted(len(shared), 'recording also contains', 'recordings also contain')} other speakers; "
                "the whole recordings and their texts are removed"
            )
        rows = reader.connection.execute(sa.select(r.id, r.source))
        elsewhere = sum(row.id not in scope.recordings and _bears(row.source, who) for row in rows)
        if elsewhere:
            yield (
                f"the file path of {counted(elsewhere, 'recording')} by other or unnamed speakers contains this name; "
                "check whether to forget them too"
            )
        judged = reader.connection.execute(
            sa.select(sa.func.count()).select_from(tables.transcript).where(tables.transcript.c.by == who)
        ).scalar_one()
        if judged:
            yield (
                f"{who!r} is also the author of {counted(judged, 'text')} of other people's speech; "
                "reviewers' names are not removed"
            )
        said = consent.of(reader, who)
        if said.history:
            permits = ", ".join(said.permits) or "nothing"
            yield f"what the speaker consented to (now: {permits}) is removed as well, a withdrawal included"
        aliases = reader.connection.execute(sa.select(tables.alias.c.name)).scalars()
        if any(_bears(alias, who) for alias in aliases):
            yield "a model alias contains the name; it stays because it may be in use"
    if plan.marked_models:
        yield (
            "a model cannot unlearn, so the models listed above are only marked; to be rid of what they learnt, train "
            "again from an unmarked base (`voxloop train --base starter`), promote that model, and delete "
            "the marked ones"
        )
    yield (
        "not deleted: the original files, exports, published datasets and models, old object versions in a bucket, and "
        "backups (to clear a backup, back up again into the same folder)"
    )
    yield "if the same audio is ingested again, it counts as new, because nothing is kept to recognise it"
