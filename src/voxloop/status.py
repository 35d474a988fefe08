"""The workspace's contents, its jobs and the next step, on one screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import sqlalchemy as sa

from voxloop.errors import counted
from voxloop.models import CHAMPION
from voxloop.records import Dataset, Model, Run, Transcript, Utterance, UtteranceStatus
from voxloop.steps import cycles, training
from voxloop.steps.cycles import Cycle
from voxloop.steps.datasets import usable
from voxloop.steps.datasets.splits import clips_for_test
from voxloop.steps.gate.comparison import Comparison
from voxloop.steps.gate.promotion import comparisons
from voxloop.steps.review import requests
from voxloop.steps.utterances import speechless_in
from voxloop.stores import tables
from voxloop.stores.catalog import Reader
from voxloop.workspace import Workspace

SAMPLE = 50  # utterances read to guess the most frequent status


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadJob:
    """A job that failed on every attempt."""

    id: str
    step: str
    subject: str
    error: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """The counts that describe a workspace."""

    workspace: str
    recordings: int
    hours: float
    refused: dict[str, int]  # number of files by reason
    speechless: tuple[str, ...]  # names of the recordings in which no speech was found
    utterances: dict[str, int]  # by status
    references: int
    jobs: dict[str, dict[str, int]]  # by step and state, except done jobs
    dead: tuple[DeadJob, ...]
    datasets: int
    newest_dataset: Dataset | None
    runs: dict[str, int]  # by status
    newest_run: Run | None
    models: int  # made by training runs
    champion: str | None
    base_model: str
    cycle: Cycle | None  # the newest automatic run
    new_hours: float  # of usable speech that was there for no automatic run yet
    reviews: int  # utterances whose review an automatic run waits for
    next_steps: tuple[str, ...]  # "command    purpose", most useful first


def status(ws: Workspace) -> Status:
    """Count everything from indexes alone, which takes tens of milliseconds with a million utterances."""
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
        counts: dict[str, Any] = {
            "recordings": recordings,
            "refused": _grouped(reader, tables.refusal.c.reason),
            "speechless": tuple(one.name for one in speechless_in(reader)),
            "utterances": _by_status(reader),
            "references": reader.count(Transcript, tables.transcript.c.kind == "reference"),
            "jobs": ws.jobs.counts(reader, done=False),
            "datasets": reader.count(Dataset),
            "runs": _grouped(reader, tables.run.c.status),
            "models": reader.count(Model, tables.model.c.run.is_not(None)),
            "cycle": cycles.newest(reader),
            "new_hours": usable.hours(reader).new,
            "reviews": requests.outstanding(reader),
        }
        dead = tuple(
            DeadJob(id=job.id, step=job.step, subject=job.subject, error=job.error or "")
            for job in ws.jobs.dead(reader)
        )
    newest = runs[0].model if runs else None
    judged = comparisons(ws, newest) if newest else []
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
        next_steps=_next_steps(counts, dead, newest_dataset, newest_run, unfinished, champion, judged),
        **counts,
    )


def _by_status(reader: Reader) -> dict[str, int]:
    """The number of utterances by status.

    Counting all rows takes a tenth of the time of counting the rows with one value, so the
    count of the most frequent status is the total minus the other counts. The most frequent
    status is guessed from the first ids, which are hashes and thus a random sample. The
    counts are exact whatever the guess.
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
    counts: dict[str, Any],
    dead: tuple[DeadJob, ...],
    dataset: Dataset | None,
    run: Run | None,
    unfinished: list[Run],
    champion: str | None,
    judged: Sequence[Comparison],
) -> tuple[str, ...]:
    """The commands to run next, most useful first."""
    steps = []
    open_jobs = sum(states.get("ready", 0) + states.get("leased", 0) for states in counts["jobs"].values())
    if dead:
        failed = sum(states.get("dead", 0) for states in counts["jobs"].values())
        steps.append(f"voxloop worker --retry-dead --until-idle    retry {counted(failed, 'failed job')}")
    if counts["reviews"]:
        asked = counted(counts["reviews"], "utterance")
        steps.append(f"voxloop review --requested    review {asked} that an automatic run waits for")
    if not counts["recordings"]:
        steps.append("voxloop ingest FOLDER    add audio (a folder or files)")
    elif open_jobs:
        steps.append(f"voxloop worker --until-idle    finish {counted(open_jobs, 'open job')}")
    elif counts["utterances"].get("transcribed", 0):
        steps.append("voxloop review    correct the least certain transcripts")
    if counts["references"] and dataset is None:
        steps.append("voxloop dataset build    make a dataset of the reviewed utterances")
    if dataset is not None and (run is None or run.dataset != dataset.id):
        steps.append("voxloop train    fine-tune on the newest dataset")
    for waits in unfinished:
        steps.append(f"voxloop run resume {waits.id[-8:]}    continue the {waits.status} run")
    if run is not None and run.status == "completed" and run.model and run.model != champion and not run.no_better:
        if not judged:
            steps.append(f"voxloop model promote {run.model[7:19]}    make it the champion if it is better")
        elif judged[-1].needed_utterances:
            needed, there = judged[-1].needed_utterances, judged[-1].utterances
            steps.append(
                f"voxloop review    about {clips_for_test(needed - there)} more clips, then build again: the "
                f"newest model needs {needed} test clips for a verdict, and there are {there}"
            )
        else:
            steps.append("voxloop ingest FOLDER    more speech: the newest model is not shown to be better")
    if run is not None and run.status == "failed":
        steps.append(f"voxloop run show {run.id[-8:]}    see why the last run failed")
    return tuple(steps)
