"""The orchestrator: starts an automatic run when there is enough new speech or it is time, and sees it to its verdict.

    new usable hours >= train_hours ─┐
    train_cron, with anything new  ──┼──► `cycles.start` ──► freeze ──► train ──► evaluate ──► promote
    a person (`start_now`)         ──┘

Any number of orchestrators may run: the catalog decides which one acts. Between starts it asks for the second decoding
of confident machine text, tries failed training again, and lets a run go on once the references it asked for are there.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from voxloop.automation import schedule
from voxloop.automation.schedule import Clock
from voxloop.errors import ConflictError, UsageError, VoxloopError, counted
from voxloop.records import Run
from voxloop.steps import cycles, training
from voxloop.steps.cycles import Cycle, Reason
from voxloop.steps.datasets import usable
from voxloop.steps.datasets.usable import UsableHours
from voxloop.steps.review import requests
from voxloop.stores import tables
from voxloop.stores.catalog import insert_new
from voxloop.workspace import Workspace

log = logging.getLogger(__name__)

TICK_S = 2.0
PAUSED = "automatic runs paused"  # in `upkeep`
WAITS = ("segment", "transcribe", "restore", "align", "sample", "agree")  # steps whose audio may still become usable

upkeep = tables.upkeep


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What the orchestrator would do now, and why it does not do more."""

    starts: bool  # whether a run would start now
    why: tuple[str, ...]  # a sentence each
    hours: UsableHours
    train_hours: float  # that start a run; 0: the hours start none
    waiting_hours: float  # of audio on its way through the pipeline
    next_tick: float | None  # seconds since the epoch
    paused: bool
    cycle: Cycle | None  # the newest automatic run
    reviews: int  # utterances that an automatic run waits for

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def plan(ws: Workspace, clock: Clock = time.time) -> Plan:
    """Say what would happen now, and why not more. Changes nothing."""
    settings = ws.settings
    with ws.read() as reader:
        hours = usable.hours(reader)
        newest = cycles.newest(reader)
        busy = cycles.newest(reader, *cycles.BUSY)
        other = _other_run(ws, reader, busy)
        reviews = requests.outstanding(reader)
        waiting_s = sum(ws.jobs.waiting_audio(reader, WAITS).values())
    paused = is_paused(ws)
    next_tick = schedule.upcoming(ws, clock)
    due = next_tick is not None and next_tick <= clock()
    why = [_hours_told(hours, settings.train_hours)]
    enough = 0 < settings.train_hours <= hours.new
    starts = (enough or (due and hours.new > 0)) and not paused and busy is None and other is None
    if busy is not None:
        why.append(f"Automatic run {busy.id} is {busy.state}{f': {busy.message}' if busy.message else ''}.")
    elif other is not None:
        why.append(f"Run {other.id} is {other.status}, and one run at a time uses the device.")
    if newest is not None and newest.state == "waiting":
        why.append(f"Automatic run {newest.id} {newest.message}.")
    if paused:
        why.append("Automatic runs are paused: `voxloop automation resume` ends that.")
    if settings.usable_machine_share and hours.candidate:
        why.append(f"{hours.candidate:.2f} h of machine text wait for their second decoding.")
    if hours.unsure:
        why.append(f"{hours.unsure:.2f} h of machine text are not usable, as two decodings differ: review them.")
    if next_tick is not None and not starts:
        told = time.strftime("%Y-%m-%d %H:%M", time.localtime(next_tick))
        why.append(f"The clock starts a run at {told} if there is anything new.")
    return Plan(
        starts=starts,
        why=tuple(why),
        hours=hours,
        train_hours=settings.train_hours,
        waiting_hours=waiting_s / 3600,
        next_tick=next_tick,
        paused=paused,
        cycle=newest,
        reviews=reviews,
    )


def _hours_told(hours: UsableHours, threshold: float) -> str:
    kinds = f"{hours.new_reference:.2f} h reviewed, {hours.new_machine:.2f} h of confident machine text"
    if not threshold:
        return f"There are {hours.new:.2f} h of new usable speech ({kinds}); the hours start no run (train_hours = 0)."
    return f"{hours.new:.2f} h of {threshold:.3g} h of new usable speech are there ({kinds})."


def start_now(ws: Workspace, *, by: str) -> Cycle:
    """Start an automatic run because a person asks for it. Raises ConflictError or UsageError, as `cycles.start`."""
    return cycles.start(ws, reason="request", by=by)


def _other_run(ws: Workspace, reader: Any, busy: Cycle | None) -> Run | None:
    """A run that a person started and that has not ended."""
    runs = reader.all(Run, tables.run.c.status.in_(("queued", "running")))
    return next((run for run in runs if busy is None or run.id != busy.id), None)


# The switch ----------------------------------------------------------------------------------------------------------


def is_paused(ws: Workspace) -> bool:
    """Whether no automatic run starts. One that has begun goes on."""
    with ws.read() as reader:
        return reader.connection.execute(sa.select(upkeep.c.name).where(upkeep.c.name == PAUSED)).first() is not None


def pause(ws: Workspace, *, by: str) -> bool:
    """Start no automatic run until `resume`. Return False if they were paused already."""
    with ws.transaction() as tx:
        now = tx.now()
        if not insert_new(tx.connection, upkeep, [{"name": PAUSED, "done": now}]):
            return False
        tx.emit("automation.paused", "automation", key=f"{now}", payload={"by": by})
        return True


def resume(ws: Workspace, *, by: str) -> bool:
    """Start automatic runs again. Return False if they were not paused."""
    with ws.transaction() as tx:
        if not tx.connection.execute(sa.delete(upkeep).where(upkeep.c.name == PAUSED)).rowcount:
            return False
        tx.emit("automation.resumed", "automation", key=f"{tx.now()}", payload={"by": by})
        return True


# The loop ------------------------------------------------------------------------------------------------------------


def orchestrate(
    ws: Workspace,
    *,
    stop: threading.Event,
    clock: Clock = time.time,
    told: Callable[[str], None] = log.info,
) -> None:
    """Act on what has happened, every few seconds, until `stop` is set. Errors are told once and tried again."""
    said: str | None = None
    while not stop.is_set():
        try:
            usable.catch_up(ws)
            line = tick(ws, clock)
        except VoxloopError as error:
            line = f"cannot go on: {error}"
            log.warning("the orchestrator %s", line, extra={"action": "orchestrator_failed"})
        if line != said:
            said = line
            told(line)
        stop.wait(TICK_S)


def tick(ws: Workspace, clock: Clock = time.time) -> str:
    """Do what is due now, and say in a line how things stand. Doing it again changes nothing."""
    training.reconcile(ws)
    cycle = cycles.advance(ws)
    if ws.settings.usable_machine_share:
        usable.ask_for_agreement(ws)
    if not is_paused(ws) and (cycle is None or cycle.state == "waiting"):
        cycle = _start_if_due(ws, clock) or cycle
    return _line(ws, cycle)


def _start_if_due(ws: Workspace, clock: Clock) -> Cycle | None:
    with ws.read() as reader:
        new_hours = usable.hours(reader).new
        other = _other_run(ws, reader, cycles.newest(reader, *cycles.BUSY))
    threshold = ws.settings.train_hours
    if 0 < threshold <= new_hours and other is None:
        return _start(ws, "hours")
    if not schedule.claim(ws, clock):
        return None
    if new_hours and other is None:
        return _start(ws, "cron")
    why = f"run {other.id} is {other.status}" if other else "there is no new usable speech"
    with ws.transaction() as tx:
        tx.emit("training.skipped", "automation", key=f"{tx.now()}", payload={"reason": "cron", "message": why})
    log.info("no run starts: %s", why, extra={"action": "run_skipped"})
    return None


def _start(ws: Workspace, reason: Reason) -> Cycle | None:
    try:
        return cycles.start(ws, reason=reason, by="orchestrator")
    except (ConflictError, UsageError) as error:  # another orchestrator was faster
        log.info("no run starts: %s", error, extra={"action": "run_skipped"})
        return None


def _line(ws: Workspace, cycle: Cycle | None) -> str:
    """How things stand, in a line that changes only when something does."""
    if is_paused(ws):
        return "paused" + (f"; run {cycle.id} is {cycle.state}" if cycle else "")
    if cycle is not None and cycle.state == "waiting":
        return f"run {cycle.id} {cycle.message}"
    if cycle is not None:
        return f"run {cycle.id} is {cycle.state}" + (f": {cycle.message}" if cycle.message else "")
    with ws.read() as reader:
        hours = usable.hours(reader)
        requested = requests.outstanding(reader)
    more = f"; {counted(requested, 'review')} asked for" if requested else ""
    return f"{hours.new:.2f} h of {ws.settings.train_hours:.3g} h of new usable speech{more}"
