"""Forget: what was taken in of a speaker or as a recording goes again, everywhere that this workspace reaches.

    plan ──► redacted manifests as new blobs ──► one transaction: rows gone, marks and the audit entry set,
         what is still to be deleted written down ──► blobs and run folders ──► the catalog's free pages

Killed anywhere, the next `forget`, `verify --repair` or `forget --resume` goes on
from what was written down. A dataset's id is the hash of its first manifest and
stays, for lineage; the manifest itself goes and what is left of it stands under a
new key. A model cannot unlearn: it is named and marked.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa
from ulid import ULID

from voxloop.errors import BlobError, ConflictError, UnknownRecord, UsageError, nearest
from voxloop.maintenance.removal.finishing import finish, redacted, redaction, resume
from voxloop.records import SAMPLE_RATE, Dataset, Evaluation, Model, Progress, Recording, Run, Transcript, Utterance
from voxloop.steps import datasets, training
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

FORGOTTEN = "(forgotten)"  # stands where a name or an id was
ATTEMPTS = 5  # plans made anew because the catalog changed between plan and transaction
CLIP_ID = 24  # digits of a recording's id in the name of a clip's file
ID = re.compile(r"sha256-[0-9A-Za-z]+")

Kind = Literal["speaker", "recording"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Marked:
    """A dataset or a model that used what was forgotten."""

    id: str
    name: str  # a dataset's name; for a model the run that made it
    utterances: int  # frozen in it, or that it was trained or chosen on; 0: a model made from such a model


@dataclass(frozen=True, kw_only=True, slots=True)
class Removal:
    """What was forgotten, in numbers; with `dry_run`, what would be."""

    id: str | None  # of the audit entry; None for a dry run
    kind: Kind
    recordings: int
    seconds_of_audio: float
    utterances: int
    transcripts: int
    vectors: int
    evaluations: int  # whose texts were rewritten or removed
    datasets: tuple[Marked, ...]
    models: tuple[Marked, ...]
    blobs: int  # deleted
    notes: tuple[str, ...]  # what stays, and what cannot be reached
    dry_run: bool = False
    finished: bool = False  # False: something is still to be deleted; `voxloop forget --resume` goes on


@dataclass(frozen=True, kw_only=True)
class _Scope:
    """Whose and what; equal scopes of two moments mean that nothing changed between them."""

    speaker: str | None
    recordings: frozenset[str]
    utterances: frozenset[str]
    frozen: frozenset[tuple[str, str | None]]  # every dataset with its manifest, every evaluation with its blob

    def holds(self, id: str) -> bool:
        """Whether a recording's or an utterance's id is of what is forgotten."""
        return id.partition(":")[0] in self.recordings


@dataclass(kw_only=True)
class _Plan:
    """What follows from a scope."""

    datasets: dict[str, dict[str, Any]] = field(default_factory=dict)  # id -> new values of its row
    evaluations: dict[str, dict[str, Any] | None] = field(default_factory=dict)  # None: nothing is left of it
    blobs: dict[str, bytes] = field(default_factory=dict)  # redacted, by their new keys
    pending: set[str] = field(default_factory=set)  # keys to delete
    marked_datasets: list[Marked] = field(default_factory=list)
    marked_models: list[Marked] = field(default_factory=list)


class _Changed(Exception):
    """The catalog is not any more what the plan was made for."""


def forget(
    ws: Workspace,
    *,
    speaker: str | None = None,
    recording: str | None = None,
    by: str = "cli",
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Removal:
    """Remove a speaker's recordings, or one recording, with all that was made of them.

    A recording in which a speaker is one of several goes whole: a piece cannot be cut
    out of audio that is named by its content. Taken in again later it is new, since
    remembering its hash would be remembering it. `by` stands in the audit entry.
    Raises UnknownRecord where there is no such speaker or recording, ConflictError
    while a training on it runs.
    """
    if (speaker is None) == (recording is None):
        raise UsageError("give a speaker or a recording, one of them")
    if not dry_run:
        resume(ws)
    for _ in range(ATTEMPTS):
        with ws.read() as reader:
            scope = _scope(ws, reader, speaker, recording)
        plan = _plan(ws, scope)
        if dry_run:
            with ws.read() as reader:
                return _report(ws, reader, scope, plan, id=None)
        _refuse_live_runs(ws, {marked.id for marked in plan.marked_datasets})
        for key, data in plan.blobs.items():
            ws.blobs.put(key, data)
        try:
            report = _commit(ws, scope, plan, speaker, recording, by)
        except _Changed:
            continue
        return _finished(ws, report, progress)
    raise ConflictError(
        f"the workspace changed {ATTEMPTS} times while this was prepared: stop its workers and try again"
    )


def _finished(ws: Workspace, report: Removal, progress: Progress | None) -> Removal:
    done = finish(ws, report.id or "", progress)
    values = {name: getattr(report, name) for name in Removal.__dataclass_fields__}
    if not done:
        held = "others hold the catalog, so what its file keeps of deleted rows could not be overwritten yet"
        values["notes"] = (f"{held}: run `voxloop forget --resume` when they are done", *report.notes)
    return Removal(**values | {"finished": done})


# What belongs to it --------------------------------------------------------------------------------------------------


def _scope(ws: Workspace, reader: Reader, speaker: str | None, recording: str | None) -> _Scope:
    r, u = tables.recording.c, tables.utterance.c
    name = unicodedata.normalize("NFC", speaker).strip() if speaker is not None else None
    if name is not None:
        found = set(reader.connection.execute(sa.select(r.id).where(r.speaker == name)).scalars())
        found |= set(reader.connection.execute(sa.select(u.recording).where(u.speaker == name)).scalars())
        # Spans with their speakers, not yet utterances.
        given = reader.connection.execute(sa.select(r.id, r.segments).where(r.segments.is_not(None))).all()
        found |= {id for id, spans in given if any(span.get("speaker") == name for span in spans or ())}
        if not found:
            names = reader.connection.execute(
                sa.select(r.speaker).where(r.speaker.is_not(None)).union(sa.select(u.speaker))
            )
            known = [other for other in names.scalars() if other]
            hint = nearest(name, known) if known else "; no recording here names a speaker"
            raise UnknownRecord(f"no recording is of a speaker {name!r}{hint}")
    else:
        found = {reader.get(Recording, recording or "").id}
    utterances: set[str] = set()
    for chunk in chunks(sorted(found)):
        utterances |= set(reader.connection.execute(sa.select(u.id).where(u.recording.in_(chunk))).scalars())
    d, e = tables.dataset.c, tables.evaluation.c
    frozen = {tuple(row) for row in reader.connection.execute(sa.select(d.id, d.manifest))}
    frozen |= {tuple(row) for row in reader.connection.execute(sa.select(e.id, e.hypotheses))}
    return _Scope(
        speaker=name,
        recordings=frozenset(found),
        utterances=frozenset(utterances),
        frozen=frozenset((id, key) for id, key in frozen),
    )


def _plan(ws: Workspace, scope: _Scope) -> _Plan:
    """Read every manifest and every evaluation, since they and not the catalog's copies of them are the truth."""
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


def _redact_dataset(ws: Workspace, dataset: Dataset, scope: _Scope, plan: _Plan) -> int:
    """Plan a dataset's new manifest; the number of rows that a training on it learnt from or chose by."""
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


def _redact_evaluation(ws: Workspace, evaluation: Evaluation, scope: _Scope, plan: _Plan) -> None:
    try:
        left, removed = redacted(ws.blobs.get(evaluation.hypotheses), scope.holds)
    except BlobError:
        return  # lost already: `verify` tells of it
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
    if "joined" in scores:  # what was heard in clips joined across recordings
        scores["joined"] = {name: value for name, value in scores["joined"].items() if name != "texts"}
    scores["forgotten"] = scores.get("forgotten", 0) + len(removed)
    plan.evaluations[evaluation.id] = {"hypotheses": key, "scores": scores}


def _models_that_learnt(runs: Sequence[Run], models: Sequence[Model], learnt: Mapping[str, int]) -> list[Marked]:
    """Models trained or chosen on removed rows, and those made from such models."""
    by_run = {run.id: run for run in runs}
    found: dict[str, Marked] = {}
    before = -1
    while len(found) > before:  # again, for what was made from those found in this round
        before = len(found)
        for model in models:
            run = by_run.get(model.run or "")
            heard = heard_by(run) if run else set()
            rows = sum(learnt.get(dataset, 0) for dataset in heard)
            if rows or model.base in found or (run and run.base in found):
                found.setdefault(model.id, Marked(id=model.id, name=model.run or model.where, utterances=rows))
    return list(found.values())


def _find_blobs(
    ws: Workspace, scope: _Scope, plan: _Plan, frozen: Sequence[Dataset], evaluations: Sequence[Evaluation]
) -> None:
    """Every blob that bears an id of what goes, and manifests that no row names, as of a build that was killed."""
    manifests = {dataset.manifest or f"datasets/{dataset.id}.jsonl" for dataset in frozen}
    named = manifests | {datasets.excluded_key(key) for key in manifests} | {e.hypotheses for e in evaluations}
    went = {marked.id for marked in plan.marked_datasets if plan.datasets[marked.id].get("manifest")}
    plan.pending |= {audio_key(id) for id in scope.recordings}
    for key in ws.blobs.list(""):
        ids = set(ID.findall(key))
        derived = bool(ids & went) and not key.startswith("datasets/")  # shards and pictures of a dataset
        if key not in plan.blobs and (ids & scope.recordings or derived):
            plan.pending.add(key)
        elif key.startswith(("datasets/", "evaluations/")) and key not in named and key not in plan.blobs:
            data = ws.blobs.get(key)
            if any(id in scope.recordings for id in ID.findall(data.decode("utf-8", "replace"))):
                plan.pending.add(key)


# Names -----------------------------------------------------------------------------------------------------------


def scrubbed(value: Any, scope: _Scope, names: Mapping[str, str] | None = None) -> Any:
    """A JSON value without the speaker's name and the ids of what goes; `names` are datasets' names that changed.

    The name is known where this program writes it: under `speaker` and `speakers`,
    in a score's slice, and after the word speaker. A name such as "test" may stand
    for something else everywhere else.
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
    """Whether a name stands in a path, a title or a sentence as a word of its own."""
    return re.search(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", text, re.IGNORECASE) is not None


def _without_name(dataset: Dataset, scope: _Scope) -> str:
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
                f"run {run.id} is learning from it now: stop that run (`voxloop run stop`), then forget"
            )


def heard_by(run: Run) -> set[str]:
    """Datasets that a run learns from."""
    return {run.dataset, *run.recipe.get("replay_from", ())}


def alive(run_folder: Path) -> bool:
    """Whether a process of this machine trains in this folder, or sees to it that one will."""
    return any(locks.held(run_folder / name) for name in (TRAINING, ATTENDED))


def _commit(ws: Workspace, scope: _Scope, plan: _Plan, speaker: str | None, recording: str | None, by: str) -> Removal:
    with ws.completion() as tx:
        # What refers to it must not come in meanwhile.
        tx.hold(Recording, Utterance, Transcript, Dataset, Evaluation)
        if _scope(ws, tx, speaker, recording) != scope:
            raise _Changed
        id = str(ULID())
        report = _report(ws, tx, scope, plan, id=id)
        renamed = _change_records(tx, plan)
        _clean_events(tx, scope, renamed)
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
            "vectors": sorted(scope.utterances),  # after the commit: a step at work on them looks again after its own
        }
        row = {"id": id, "created": tx.now(), "kind": report.kind, "by": by, "counts": counts, **marks}
        tx.connection.execute(sa.insert(tables.removal).values(**row, pending=pending))
        tx.emit(f"{report.kind}.forgotten", id, payload={"by": by, **counts, **marks})
    return report


def _change_records(tx: Writer, plan: _Plan) -> dict[str, str]:
    """Redacted datasets and evaluations, marked models; the datasets' names that changed."""
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
        # One that was made from such a model has at least a trace of it: marked as well.
        tx.change(Model, marked.id, forgotten=tables.model.c.forgotten + max(marked.utterances, 1))
    return renamed


def _clean_runs(tx: Transaction, scope: _Scope, plan: _Plan) -> list[str]:
    """Have unfinished runs on what goes begin anew, and take its ids out of logs; keys of the runs' blobs."""
    went = {id for id, values in plan.datasets.items() if "manifest" in values}
    # A log tells of no texts; what goes wrong with a clip may name its recording.
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


def _clean_events(tx: Transaction, scope: _Scope, renamed: Mapping[str, str]) -> None:
    """Events about what goes are deleted with their jobs, names in others replaced; so in scores and evidence."""
    sources: set[str] = set()
    for chunk in chunks(sorted(scope.recordings)):
        r = tables.recording.c
        sources |= set(tx.connection.execute(sa.select(r.source).where(r.id.in_(chunk))).scalars())
        for table in tables.metadata.sorted_tables:
            if {"recording", "path"} <= set(table.c.keys()):  # further files that held the same audio
                paths = sa.select(table.c.path).where(table.c.recording.in_(chunk))
                sources |= set(tx.connection.execute(paths).scalars())

    def is_about(path: str, message: str) -> bool:
        """Of a refused file: its path is a recording's, or the name stands in it."""
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


def _delete_rows(tx: Writer, scope: _Scope) -> None:
    """Rows that name an utterance or a recording, those that point at others first; tables to come are covered."""
    # Other programs know utterances by their numbers: none may come to mean another utterance.
    upkeep, highest = tables.upkeep.c, sa.select(sa.func.max(tables.utterance.c.number)).scalar_subquery()
    insert_new(tx.connection, tables.upkeep, [{"name": tables.NUMBERED}])
    mark = sa.update(tables.upkeep).where(upkeep.name == tables.NUMBERED, upkeep.until < highest)
    tx.connection.execute(mark.values(until=highest))
    for subjects in (scope.recordings, scope.utterances):
        for chunk in chunks(sorted(subjects)):
            tx.connection.execute(sa.delete(tables.job).where(tables.job.c.subject.in_(chunk)))
    for table in reversed(tables.metadata.sorted_tables):
        for column, ids in (("utterance", scope.utterances), ("recording", scope.recordings)):
            if column in table.c:
                for chunk in chunks(sorted(ids)):
                    tx.connection.execute(sa.delete(table).where(table.c[column].in_(chunk)))
    for chunk in chunks(sorted(scope.recordings)):
        tx.connection.execute(sa.delete(tables.recording).where(tables.recording.c.id.in_(chunk)))


# What was found ------------------------------------------------------------------------------------------------------


def _report(ws: Workspace, reader: Reader, scope: _Scope, plan: _Plan, *, id: str | None) -> Removal:
    r, t = tables.recording.c, tables.transcript.c

    def count(column: sa.Column[Any], ids: Iterable[str], what: Any = None) -> int:
        what = sa.func.count() if what is None else what
        parts = (sa.select(what).where(column.in_(part)) for part in chunks(sorted(ids)))
        return int(sum(reader.connection.execute(one).scalar() or 0 for one in parts))

    return Removal(
        id=id,
        kind="speaker" if scope.speaker is not None else "recording",
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


def _notes(reader: Reader, scope: _Scope, plan: _Plan) -> Iterator[str]:
    """What goes beyond what was asked, what stays, and what this program cannot reach."""
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
            yield f"{len(shared)} of these recordings hold other speakers, too: they go whole, with their texts"
        rows = reader.connection.execute(sa.select(r.id, r.source))
        elsewhere = sum(row.id not in scope.recordings and _bears(row.source, who) for row in rows)
        if elsewhere:
            yield f"{elsewhere} recordings of others, or of nobody named, bear the name in their path: look at them"
        judged = reader.connection.execute(
            sa.select(sa.func.count()).select_from(tables.transcript).where(tables.transcript.c.by == who)
        ).scalar_one()
        if judged:
            yield f"{judged} texts say that they are by {who!r}: a reviewer's name stays on texts of others' speech"
        aliases = reader.connection.execute(sa.select(tables.alias.c.name)).scalars()
        if any(_bears(alias, who) for alias in aliases):
            yield "an alias of a model bears the name: it stays, as it may be in use"
    if plan.marked_models:
        yield (
            "a model cannot unlearn: those named are marked; to be free of what they learnt, train anew from a base "
            "that is not marked (`voxloop train --base starter`), promote that and delete the marked ones"
        )
    yield (
        "beyond reach: the original files, exports, published datasets and models, versions that a bucket keeps, and "
        "backups (back up again into the same folder: what is not named any more is removed there)"
    )
    yield "the same audio taken in again is new: nothing is kept by which it could be recognised"
