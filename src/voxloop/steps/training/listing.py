"""Runs as people follow them: newest first, with their place in the queue and how far they are."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from voxloop.records import Run
from voxloop.steps.training import control, runs
from voxloop.steps.training.files import STATUS, read_json
from voxloop.stores import tables

if TYPE_CHECKING:
    from voxloop.workspace import Workspace

ACTIVE = ("running", "queued")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStanding:
    """A run and whether anybody attends to it now."""

    run: Run
    attended: bool  # a process trains it or waits for its turn
    ahead: int | None  # runs before it in the queue; None: it is not queued

    @property
    def share(self) -> float | None:
        """How much of its time has passed, from 0 to 1; None before the first steps."""
        elapsed_s, left_s = self.run.progress.get("elapsed_s"), self.run.progress.get("eta_s")
        if self.run.status == "completed":
            return 1.0
        return elapsed_s / (elapsed_s + left_s) if elapsed_s and left_s is not None else None

    @property
    def can(self) -> tuple[str, ...]:
        """The requests that it takes now."""
        if self.run.status == "running" or (self.run.status == "queued" and self.attended):
            return ("pause", "stop")
        if self.run.status == "queued":
            return ("resume", "pause", "stop")
        if self.run.status in runs.GOES_ON:
            return ("resume", "stop", "retry")
        return ("retry",)

    def as_dict(self) -> dict[str, Any]:
        """The run's fields, and what follows from them."""
        record = {one.name: getattr(self.run, one.name) for one in fields(self.run)}
        return record | {
            "attended": self.attended,
            "ahead": self.ahead,
            "share": self.share,
            "can": self.can,
            "no_better": self.run.no_better,
        }


def listed(ws: Workspace, *, limit: int | None = None) -> list[RunStanding]:
    """All runs, newest first, with their actual status."""
    runs.reconcile(ws)
    with ws.read() as reader:
        found = reader.all(Run, order=(tables.run.c.created.desc(), tables.run.c.id.desc()), limit=limit)
        held = ws.jobs.held(reader, runs.STEP)
    return [_standing(one, held) for one in found]


def standing(ws: Workspace, id: str) -> RunStanding:
    """One run. Raises UnknownRecord."""
    run = runs.find(ws, id)
    with ws.read() as reader:
        held = ws.jobs.held(reader, runs.STEP)
    return _standing(run, held)


def current(found: list[RunStanding]) -> RunStanding | None:
    """The run to look at: one that is trained, else the first in the queue, else the newest."""
    running = [one for one in found if one.run.status == "running"]
    queued = sorted((one for one in found if one.run.status == "queued"), key=lambda one: one.ahead or 0)
    return next(iter([*running, *queued, *found]), None)


def process(ws: Workspace, id: str) -> int | None:
    """The id of the training process of a run on this machine; None if there is none."""
    folder = ws.runs / id
    child = control.find(folder) if folder.is_dir() else None
    try:
        return int(read_json(folder / STATUS)["pid"]) if child else None
    except (OSError, ValueError, KeyError):
        return None  # about to begin


def _standing(run: Run, held: dict[str, bool]) -> RunStanding:
    queue = list(held)
    waits = run.status == "queued" and run.id in queue
    return RunStanding(run=run, attended=held.get(run.id, False), ahead=queue.index(run.id) if waits else None)
