"""A process that runs steps as their jobs come: look, claim, work, commit; and lets go on Ctrl-C."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from voxloop.errors import LeaseLost, UsageError, nearest
from voxloop.maintenance import pruning
from voxloop.pipeline import STEPS
from voxloop.stores.jobs import Claim
from voxloop.workspace import Workspace

log = logging.getLogger(__name__)

COUNTED = 10_000  # waiting jobs told of at most: counting a million after each batch would slow the work down


@dataclass(frozen=True, slots=True)
class BatchReport:
    """A batch of jobs that ended."""

    step: str
    jobs: int
    seconds: float
    waiting: int  # jobs of this worker's steps still to do, no more than `COUNTED`
    error: str | None = None


def work(
    ws: Workspace,
    steps: Sequence[str] = (),
    *,
    until_idle: bool = False,
    stop: threading.Event | None = None,
    progress: Callable[[BatchReport], None] | None = None,
) -> int:
    """Run the jobs of `steps` (all, where none is named); the number done.

    With `until_idle` it returns when no job of these steps is waiting or held by
    anybody, buried ones aside; else when `stop` is set. What nothing needs any more is pruned when there is nothing
    to do, at most once an hour.
    """
    chosen = tuple(steps) or tuple(STEPS)
    for step in chosen:
        if step not in STEPS:
            raise UsageError(f"there is no step {step!r}{nearest(step, STEPS)}")
    stop = stop or threading.Event()
    done = 0
    pruned = -math.inf
    while not stop.is_set():
        # Looked at before anything is written: an idle worker leaves the catalog to the others.
        with ws.read() as reader:
            ready = ws.jobs.ready(reader, chosen)
        claim = None
        for step in ready:  # of equally urgent ones in the order of the loop, so that a batch fills before the next
            if STEPS[step].free(ws):
                claim = ws.jobs.claim([step], limit=STEPS[step].batch)
            if claim:
                break
        if claim:
            done += _run(replace(ws, stop=stop), claim, chosen, progress)
            continue
        if time.monotonic() - pruned > pruning.EVERY_S:
            pruned = time.monotonic()
            pruning.prune_in_turn(ws)
        with ws.read() as reader:
            if until_idle and not ws.jobs.open(reader, chosen, limit=1):
                return done
        ws.bus.wait(chosen, ws.settings.poll_s)
    return done


def _run(ws: Workspace, claim: Claim, chosen: Sequence[str], progress: Callable[[BatchReport], None] | None) -> int:
    """Do one claim; the number of jobs done. A failure is kept with its job, never raised."""
    began = time.monotonic()
    error: str | None = None
    try:
        with ws.jobs.renewing(claim):
            STEPS[claim.step].run(ws.under(claim), claim.subjects)
        # What a step asked to end has not finished goes back; what is finished is nobody's any more.
        if ws.stop and ws.stop.is_set():
            ws.jobs.release(claim)
    except LeaseLost as lost:
        error = str(lost)
        log.warning("%s: %s", claim.step, lost, extra={"action": "lease_lost", "step": claim.step})
    except Exception as failure:
        buried = ws.jobs.fail(claim, failure)
        error = f"{type(failure).__name__}: {failure}"
        log.warning(
            "%s of %s failed%s: %s",
            claim.step,
            ", ".join(claim.subjects[:3]),
            " for the last time" if buried else "",
            failure,
            extra={"action": "job_failed", "step": claim.step, "jobs": claim.jobs},
            exc_info=log.isEnabledFor(logging.DEBUG),
        )
    except BaseException:
        ws.jobs.release(claim)
        raise
    if progress:
        with ws.read() as reader:
            waiting = min(COUNTED, ws.jobs.open(reader, chosen, limit=COUNTED))
        progress(BatchReport(claim.step, len(claim.jobs), time.monotonic() - began, waiting, error))
    return 0 if error else len(claim.jobs)
