"""The figures of the whole loop for monitoring: queues, hours, the champion's error rate, the current run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from voxloop.automation.orchestrator import is_paused
from voxloop.models import CHAMPION
from voxloop.records import Evaluation, Run
from voxloop.steps import cycles
from voxloop.steps.cycles import Cycle
from voxloop.steps.datasets import usable
from voxloop.steps.datasets.usable import UsableHours
from voxloop.steps.gate.promotion import champion
from voxloop.steps.review import requests
from voxloop.stores import tables
from voxloop.workspace import Workspace

RECENT_S = 600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopFigures:
    """How the loop is doing."""

    jobs: dict[str, dict[str, int]]  # by step and state, except done jobs
    oldest_s: dict[str, float]  # by step: how long the oldest job has been ready
    recent: dict[str, tuple[int, float]]  # by step: jobs done in the last `RECENT_S`, mean seconds from event to end
    hours: UsableHours
    reviews: int  # utterances that an automatic run waits for
    cycle: Cycle | None
    paused: bool
    champion: str | None
    champion_wer: float | None  # of its newest evaluation on a test split
    run: Run | None  # that is queued or running

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def figures(ws: Workspace) -> LoopFigures:
    """Collect the figures, from indexes alone."""
    reigning = champion(ws, CHAMPION)
    evaluation, run = tables.evaluation.c, tables.run.c
    with ws.read() as reader:
        measured = (
            reader.all(
                Evaluation,
                evaluation.model == reigning.id,
                evaluation.split == "test",
                order=evaluation.created.desc(),
                limit=1,
            )
            if reigning
            else []
        )
        runs = reader.all(Run, run.status.in_(("running", "queued")), order=run.status.desc(), limit=1)
        return LoopFigures(
            jobs=ws.jobs.counts(reader, done=False),
            oldest_s=ws.jobs.oldest(reader),
            recent=ws.jobs.recent(reader, RECENT_S),
            hours=usable.hours(reader),
            reviews=requests.outstanding(reader),
            cycle=cycles.newest(reader),
            paused=is_paused(ws),
            champion=reigning.id if reigning else None,
            champion_wer=measured[0].scores["wer"] if measured else None,
            run=runs[0] if runs else None,
        )
