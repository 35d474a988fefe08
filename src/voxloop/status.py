"""What is where, waiting, running and failed, and what to do next: one screen."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, get_args

import sqlalchemy as sa

from voxloop.models import CHAMPION
from voxloop.records import Dataset, Model, Run, Transcript, Utterance, UtteranceStatus
from voxloop.steps import training
from voxloop.steps.utterances import speechless_in
from voxloop.stores import tables
from voxloop.stores.catalog import Reader
from voxloop.workspace import Workspace

SAMPLE = 50  # utterances looked at to guess which status is the most frequent


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadJob:
    """A job whose attempts are spent."""

    id: str
    step: str
    subject: str
    error: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """The state of a workspace, counted."""

    workspace: str
    recordings: int
    hours: float
    refused: dict[str, int]  # files by reason
    speechless: tuple[str, ...]  # names of the recordings in which no speech was found
    utterances: dict[str, int]  # by status
    references: int
    jobs: dict[str, dict[str, int]]  # by step and state; without those that are done
    dead: tuple[DeadJob, ...]
    datasets: int
    newest_dataset: Dataset | None
    runs: dict[str, int]  # by status
    newest_run: Run | None
    models: int  # that came from runs
    champion: str | None
    base_model: str
    next_steps: tuple[str, ...]  # commands, most useful first


def status(ws: Workspace) -> Status:
    """Count everything, from indexes alone: tens of milliseconds at a million utterances."""
    training.reconcile(ws)
    with ws.read() as reader:
        recordings, samples = reader.connection.execute(
            sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(tables.recording.c.samples), 0))
        ).one()
        champion = reader.connection.execute(
            sa.select(tables.alias.c.model).where(tables.alias.c.name == CHAMPION)
        ).scalar()
        datasets = reader.all(Dataset, order=tables.dataset.c.created.desc(), limit=1)
        runs = reader.all(Run, order=tables.run.c.created.desc(), limit=1)
        unfinished = reader.all(Run, tables.run.c.status.in_(("paused", "interrupted")), limit=3)
        counted: dict[str, Any] = {
            "recordings": recordings,
            "refused": _grouped(reader, tables.refusal.c.reason),
            "speechless": tuple(one.name for one in speechless_in(reader)),
            "utterances": _by_status(reader),
            "references": reader.count(Transcript, tables.transcript.c.kind == "reference"),
            "jobs": ws.jobs.counts(reader, done=False),
            "datasets": reader.count(Dataset),
            "runs": _grouped(reader, tables.run.c.status),
            "models": reader.count(Model, tables.model.c.run.is_not(None)),
        }
        dead = tuple(
            DeadJob(id=job.id, step=job.step, subject=job.subject, error=job.error or "")
            for job in ws.jobs.dead(reader)
        )
    newest_dataset = datasets[0] if datasets else None
    newest_run = runs[0] if runs else None
    return Status(
        workspace=str(ws.folder),
        hours=int(samples) / 16_000 / 3600,
        dead=dead,
        newest_dataset=newest_dataset,
        newest_run=newest_run,
        champion=champion,
        base_model=ws.settings.base_model,
        next_steps=_next_steps(counted, dead, newest_dataset, newest_run, unfinished, champion),
        **counted,
    )


def _by_status(reader: Reader) -> dict[str, int]:
    """Utterances by status.

    Counting all rows takes a tenth of the time of counting those of a value. So the
    most frequent status is what the others leave of all. Which one that is, is
    guessed from the first ids, which are hashes and so a sample; the counts are exact whatever the guess.
    """
    status, id = tables.utterance.c.status, tables.utterance.c.id
    sample = Counter(reader.connection.execute(sa.select(status).order_by(id).limit(SAMPLE)).scalars())
    if not sample:
        return {}
    most = sample.most_common(1)[0][0]
    counts = {one: reader.count(Utterance, status == one) for one in get_args(UtteranceStatus) if one != most}
    counts[most] = reader.count(Utterance) - sum(counts.values())
    return {name: count for name, count in sorted(counts.items()) if count}


def _grouped(reader: Reader, column: sa.Column[Any]) -> dict[str, int]:
    rows = reader.connection.execute(sa.select(column, sa.func.count()).group_by(column).order_by(column))
    return {row[0]: row[1] for row in rows}


def _next_steps(
    counted: dict[str, Any],
    dead: tuple[DeadJob, ...],
    dataset: Dataset | None,
    run: Run | None,
    unfinished: list[Run],
    champion: str | None,
) -> tuple[str, ...]:
    """The commands that bring this workspace on, the most useful first."""
    steps = []
    open_jobs = sum(states.get("ready", 0) + states.get("leased", 0) for states in counted["jobs"].values())
    if dead:
        steps.append(f"voxloop worker --retry-dead --until-idle    try the {len(dead)} failed jobs again")
    if not counted["recordings"]:
        steps.append("voxloop ingest FOLDER    take in audio (a folder, or files)")
    elif open_jobs:
        steps.append(f"voxloop worker --until-idle    do the {open_jobs} waiting jobs")
    elif counted["utterances"].get("transcribed", 0):
        steps.append("voxloop review list    correct what the model is least sure of")
    if counted["references"] and dataset is None:
        steps.append("voxloop dataset build    freeze the corrected utterances")
    if dataset is not None and (run is None or run.dataset != dataset.id):
        steps.append("voxloop train    fine-tune on the newest dataset")
    for waits in unfinished:
        steps.append(f"voxloop run resume {waits.id}    go on with the run that is {waits.status}")
    if run is not None and run.status == "completed" and run.model and run.model != champion and not run.no_better:
        steps.append(f"voxloop model promote {run.model[7:19]}    make it champion, if it is really better")
    if run is not None and run.status == "failed":
        steps.append(f"voxloop run show {run.id}    see why the last run failed")
    return tuple(steps)
