"""Automatic runs: freeze, train, evaluate and promote as jobs, from the start of a run to the gate's verdict.

    asked ──► training ──► evaluating ──► promoting ──► done
                               ▲    │          │
                               │    ▼          ▼
                               └── waiting (for references)         any ──► failed

`start` asks for a run. The step `freeze` builds its dataset and queues its training, which `steps.training` does; the
steps `evaluate` and `promote` judge its model. `advance` moves a run on where no job of its own does: when its training
has ended, failed or succeeded, and when the references that it waits for are there. Every change of a state is made in
one transaction with its events, so that a kill at any point loses nothing and repeats nothing.

A person's command line (`voxloop train`, `evaluate`, `model promote`) does not come through here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa
from ulid import ULID

from voxloop.errors import ConflictError, UsageError, counted, first_line
from voxloop.records import Run
from voxloop.steps import datasets, evaluation, training
from voxloop.steps.datasets import usable
from voxloop.steps.gate import promotion
from voxloop.steps.review import requests
from voxloop.stores import tables

if TYPE_CHECKING:
    from voxloop.stores.catalog import Reader
    from voxloop.workspace import Transaction, Workspace

State = Literal["asked", "training", "evaluating", "promoting", "waiting", "done", "failed"]
BUSY: tuple[State, ...] = ("asked", "training", "evaluating", "promoting")  # one at a time
OPEN: tuple[State, ...] = (*BUSY, "waiting")
Reason = Literal["hours", "cron", "request"]

STEPS = ("freeze", "evaluate", "promote")
DATASET = "auto"  # name of the datasets of automatic runs
BY = "loop"  # the author of their promotions
MOST_ROUNDS = 3  # a run asks for reviews at most so often,
MOST_ASKED = 200  # and for at most so many utterances at a time: with more, it is not worth a person's time

table = tables.cycle


@dataclass(frozen=True, kw_only=True, slots=True)
class Cycle:
    """An automatic run. Its id is also that of its training run."""

    id: str
    created: float
    reason: Reason  # hours: enough new speech; cron: the clock; request: a person
    by: str
    state: State
    hours: float  # of new usable speech when it started
    dataset: str | None
    model: str | None
    verdict: str | None  # promote, reject, insufficient evidence, no better
    message: str | None  # what it waits for, why it failed, or what the gate said
    retries: int
    rounds: int  # how often it asked for reviews
    needed: int | None  # test references that it waits for
    not_before: float | None  # when its training is tried again
    finished: float | None


_COLUMNS = [table.c[one.name] for one in fields(Cycle)]


def newest(reader: Reader, *states: State) -> Cycle | None:
    """The newest automatic run, of those in the given states if there are any; None if there is none."""
    where = [table.c.state.in_(states)] if states else []
    row = reader.connection.execute(sa.select(*_COLUMNS).where(*where).order_by(table.c.id.desc()).limit(1)).first()
    return Cycle(**row._mapping) if row else None


def find(reader: Reader, id: str) -> Cycle | None:
    """The automatic run with this id."""
    row = reader.connection.execute(sa.select(*_COLUMNS).where(table.c.id == id)).first()
    return Cycle(**row._mapping) if row else None


def start(ws: Workspace, *, reason: Reason, by: str) -> Cycle:
    """Ask for an automatic run. Raises ConflictError if one is going on, UsageError if no speech is usable.

    A run that still waits for references gives way: the new one takes those along.
    """
    with ws.transaction() as tx:
        tx.lock("cycle")
        busy = newest(tx, *BUSY)
        if busy:
            raise ConflictError(f"automatic run {busy.id} is {busy.state}: wait for its end (`voxloop plan`)")
        found = usable.hours(tx)
        if not found.reference + found.machine:
            raise UsageError(
                "no speech is usable for training yet: ingest some, and wait until it is transcribed and checked, "
                "or review it (`voxloop review`)"
            )
        waiting = newest(tx, "waiting")
        id = str(ULID())
        if waiting:
            _end(tx, waiting, "done", message=f"gave way to run {id} before there were enough references for a verdict")
        row = {"id": id, "created": tx.now(), "reason": reason, "by": by, "state": "asked", "hours": found.new}
        tx.connection.execute(sa.insert(table).values(row))
        tx.emit("training.asked", id, payload={"reason": reason, "by": by, "new_hours": round(found.new, 4)})
        made = find(tx, id)
    if made is None:  # it was inserted above
        raise ConflictError(f"automatic run {id} is gone")
    return made


def change(tx: Transaction, cycle: Cycle, **values: Any) -> bool:
    """Change a run that is still in the state it was read in. Return False if it is not."""
    still = sa.and_(table.c.id == cycle.id, table.c.state == cycle.state)
    return bool(tx.connection.execute(sa.update(table).where(still).values(**values)).rowcount)


def _end(tx: Transaction, cycle: Cycle, state: State, *, message: str, verdict: str | None = None) -> bool:
    if not change(tx, cycle, state=state, message=message, verdict=verdict, finished=tx.now(), needed=None):
        return False
    requests.withdraw(tx, cycle.id)
    payload = {"message": message, "verdict": verdict, "model": cycle.model}
    if state == "failed":
        tx.emit("training.given_up", cycle.id, payload={"message": message})
    else:
        tx.emit("training.concluded", cycle.id, payload=payload)
    return True


def fail(tx: Transaction, cycle: Cycle, message: str) -> bool:
    """Give a run up. Return False if its state has changed meanwhile."""
    return _end(tx, cycle, "failed", message=message)


# The steps -----------------------------------------------------------------------------------------------------------


def freeze(ws: Workspace, ids: Sequence[str]) -> None:
    """Build the dataset of automatic runs, and queue their training."""
    for id in ids:
        cycle = _expected(ws, id, "asked")
        if cycle is None:
            continue
        with ws.read() as reader:
            until = reader.now()
        try:
            dataset = build(ws)
            settings = ws.settings
            run = training.submit(
                ws.part(), dataset=dataset, recipe=settings.train_recipe or None, overrides=settings.train_set, id=id
            )
        except UsageError as error:  # nothing to train on: trying again would not help
            with ws.completion(id) as tx:
                fail(tx, cycle, str(error))
            continue
        with ws.completion(id) as tx:
            usable.take(tx, id, until)
            change(tx, cycle, state="training", dataset=run.dataset)
            if cycle.hours >= ws.settings.train_hours > 0:
                tx.emit("dataset.ready", run.dataset, key=id, payload={"hours": round(cycle.hours, 4), "cycle": id})


def build(ws: Workspace) -> str:
    """Freeze all usable speech. Return the dataset's id."""
    share = ws.settings.usable_machine_share
    return datasets.build(ws.part(), name=DATASET, machine_share=share).id


def evaluate(ws: Workspace, ids: Sequence[str]) -> None:
    """Measure the models of automatic runs on test references, or ask for references if there are too few."""
    for id in ids:
        cycle = _expected(ws, id, "evaluating")
        if cycle is None or cycle.model is None:
            continue
        # Texts that were reviewed since the run began are in a new version of its dataset.
        dataset = build(ws) if cycle.rounds else cycle.dataset
        tests = len(datasets.rows(ws, dataset or "", "test"))
        least = ws.settings.promote_min_utterances
        if tests < least:
            _ask(ws, cycle, dataset, needed=least, there=tests)
            continue
        measured = evaluation.evaluate(ws.part(), cycle.model, dataset=dataset)
        with ws.completion(id) as tx:
            if change(tx, cycle, state="promoting", dataset=dataset):
                payload = {"model": cycle.model, "evaluation": measured.id}
                tx.emit("promotion.asked", id, key=f"{id}:{cycle.rounds}", payload=payload)


def promote(ws: Workspace, ids: Sequence[str]) -> None:
    """Put the models of automatic runs to the gate."""
    for id in ids:
        cycle = _expected(ws, id, "promoting")
        if cycle is None or cycle.model is None:
            continue
        outcome = promotion.promote(ws.part(), cycle.model, dataset=cycle.dataset, by=BY)
        champion = promotion.champion(ws)
        comparison = outcome.comparison
        if champion is not None and champion.id == cycle.model:
            verdict, message = "promote", outcome.message
        elif comparison is None:
            verdict, message = "no better", outcome.message
        else:
            verdict, message = comparison.verdict, outcome.message
            needed = comparison.needed_utterances
            if verdict == "insufficient evidence" and needed and needed > comparison.utterances:
                _ask(ws, cycle, cycle.dataset, needed=needed, there=comparison.utterances, message=message)
                continue
        with ws.completion(id) as tx:
            _end(tx, cycle, "done", message=message, verdict=verdict)


def _expected(ws: Workspace, id: str, state: State) -> Cycle | None:
    """The run, if it is in the state that a step expects; otherwise the step's job is left over, and completed."""
    with ws.read() as reader:
        cycle = find(reader, id)
    if cycle is not None and cycle.state == state:
        return cycle
    with ws.completion(id):
        return None


# References that are missing -----------------------------------------------------------------------------------------


def _ask(
    ws: Workspace, cycle: Cycle, dataset: str | None, *, needed: int, there: int, message: str | None = None
) -> None:
    """Ask for the reviews that would settle the verdict, or conclude without one."""
    missing = needed - there
    with ws.completion(cycle.id) as tx:
        chosen = _reviewable(tx, missing) if missing <= MOST_ASKED and cycle.rounds < MOST_ROUNDS else []
        if not chosen:
            told = message or f"the test split has {counted(there, 'reference')}, and a verdict needs {needed}"
            why = (
                f"{told}. That would take {missing:,} more test references, and "
                + (
                    "no utterance is left to review for them"
                    if missing <= MOST_ASKED
                    else "that is too many to ask for"
                )
                + ": ingest speech by other speakers, or review more of it"
            )
            _end(tx, cycle, "done", message=why, verdict="insufficient evidence")
            return
        asked = counted(len(chosen), "utterance")
        why = (
            f"waits for the review of {asked}: the test split has {counted(there, 'reference')}, and a verdict needs "
            f"{needed} (`voxloop review --requested`)"
        )
        values = {"state": "waiting", "needed": needed, "rounds": cycle.rounds + 1, "message": why, "dataset": dataset}
        if change(tx, cycle, **values):
            requests.request(tx, chosen, cycle=cycle.id)
            payload = {"utterances": len(chosen), "needed": needed, "there": there}
            tx.emit("review.asked", cycle.id, key=f"{cycle.id}:{cycle.rounds}", payload=payload)


def _reviewable(reader: Reader, missing: int) -> list[str]:
    """Utterances whose references would enter the test split.

    Those of the test split that have no reference come first, in the order of a hash, so that the test stays a random
    sample; then those of recordings that have no part in train or val.
    """
    u = tables.utterance.c
    waiting = sa.select(u.id).where(u.status == "transcribed")
    placed = tables.utterance.alias()
    elsewhere = sa.select(placed.c.recording).where(placed.c.split.in_(("train", "val")))
    found: list[str] = []
    for part in (waiting.where(u.split == "test"), waiting.where(u.split.is_(None), u.recording.not_in(elsewhere))):
        if len(found) < missing:
            ids = reader.connection.execute(part).scalars().all()
            found += sorted(ids, key=lambda id: datasets.position(f"review {id}"))[: missing - len(found)]
    return found


# Between the steps ---------------------------------------------------------------------------------------------------


def advance(ws: Workspace) -> Cycle | None:
    """Move the newest open run on if what it waits for has happened. Return it as it is now; None: none is open."""
    with ws.read() as reader:
        cycle = newest(reader, *OPEN)
        dead = _dead(reader, cycle) if cycle else None
    if cycle is None:
        return None
    if dead is not None:
        with ws.transaction() as tx:
            fail(tx, cycle, f"its step {dead.step} failed {counted(dead.attempts, 'time')}: {dead.error}")
    elif cycle.state == "training":
        _after_training(ws, cycle)
    elif cycle.state == "waiting":
        _after_reviews(ws, cycle)
    with ws.read() as reader:
        return find(reader, cycle.id)


def _dead(reader: Reader, cycle: Cycle) -> sa.Row[Any] | None:
    """A job of the run that failed for good."""
    job = tables.job.c
    those = sa.select(tables.job).where(job.state == "dead", job.step.in_(STEPS), job.subject == cycle.id)
    return reader.connection.execute(those.limit(1)).first()


def _after_training(ws: Workspace, cycle: Cycle) -> None:
    with ws.read() as reader:
        run = reader.find(Run, cycle.id)
        now = reader.now()
    if run is None:
        with ws.transaction() as tx:
            fail(tx, cycle, "its training run was deleted")
    elif run.status in ("completed", "stopped"):
        with ws.transaction() as tx:
            if run.model:
                if change(tx, cycle, state="evaluating", model=run.model, message=None):
                    tx.emit("evaluation.asked", cycle.id, payload={"model": run.model})
                return
            why = "training found no model better than its base" if run.status == "completed" else "its run was stopped"
            _end(tx, cycle, "done", message=why, verdict="no better" if run.status == "completed" else None)
    elif run.status == "failed":
        _retry(ws, cycle, run, now)
    else:
        paused = run.status == "paused"
        message = f"a person paused it: `voxloop run resume {run.id}` continues it" if paused else None
        if message != cycle.message:
            with ws.transaction() as tx:
                change(tx, cycle, message=message)


def _retry(ws: Workspace, cycle: Cycle, run: Run, now: float) -> None:
    """Try a failed training again, later each time, and give it up after `train_retries`."""
    why = first_line(RuntimeError(run.error or "for an unknown reason"))
    if cycle.retries >= ws.settings.train_retries:
        with ws.transaction() as tx:
            fail(tx, cycle, f"training failed {counted(cycle.retries + 1, 'time')}, the last time: {why}")
        return
    if cycle.not_before is None:
        delay_s = ws.settings.train_retry_s * 4**cycle.retries
        with ws.transaction() as tx:
            message = f"training failed: {why}; it is tried again in {delay_s:.0f} s"
            change(tx, cycle, not_before=tx.now() + delay_s, message=message)
        return
    if now < cycle.not_before:
        return
    training.resume(ws, run.id)
    with ws.transaction() as tx:
        change(tx, cycle, not_before=None, retries=cycle.retries + 1, message=None)


def _after_reviews(ws: Workspace, cycle: Cycle) -> None:
    u = tables.utterance.c
    with ws.read() as reader:
        tested = sa.select(sa.func.count()).where(u.split == "test", u.status == "reviewed")
        enough = int(reader.connection.execute(tested).scalar_one()) >= (cycle.needed or 0)
        if not enough and requests.outstanding(reader):
            return
    with ws.transaction() as tx:
        if change(tx, cycle, state="evaluating", message=None):
            requests.withdraw(tx, cycle.id)
            tx.emit("evaluation.asked", cycle.id, key=f"{cycle.id}:{cycle.rounds}", payload={"model": cycle.model})
