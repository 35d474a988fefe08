"""The worker: a process that claims jobs, runs their steps and commits the results, until stopped."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from voxloop.errors import CatalogAway, LeaseLost, UsageError, nearest
from voxloop.maintenance import pruning
from voxloop.pipeline import STEPS, share_ahead
from voxloop.stores.jobs import Claim
from voxloop.workspace import Workspace

log = logging.getLogger(__name__)

COUNTED = 10_000  # maximum number of waiting jobs to count, since counting a million after each batch would be slow
SELDOM = 10  # times `poll_s` between two looks of an idle worker that is woken by others
AWAY_S = 2.0  # between two attempts to reach a catalog that does not answer
ADDED_UP_S = 60.0  # minimum interval between sums of the waiting audio if there are too many jobs to count


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkProgress:
    """A worker's progress, reported at the start and end of each batch and during it."""

    step: str  # the batch's step
    jobs: int  # done since the worker started
    audio_s: float  # audio done since the worker started, in seconds of the whole loop
    left_s: float  # audio left for all workers, in the same unit
    waiting: int  # jobs left in this worker's steps, at most `COUNTED`
    error: str | None = None  # the batch's error, if it failed


def work(
    ws: Workspace,
    steps: Sequence[str] = (),
    *,
    until_idle: bool = False,
    stop: threading.Event | None = None,
    progress: Callable[[WorkProgress], None] | None = None,
) -> int:
    """Run the jobs of `steps` (by default, all steps). Return the number done.

    Returns when `stop` is set, or with `until_idle` when no job of these steps is waiting or held
    by any worker, not counting dead jobs. When idle, it prunes the workspace at most once an hour.
    """
    chosen = tuple(steps) or tuple(STEPS)
    for step in chosen:
        if step not in STEPS:
            raise UsageError(f"unknown step {step!r}{nearest(step, STEPS)}")
    stop = stop or threading.Event()
    telling = _Telling(ws, chosen, progress) if progress else None
    done = 0
    pruned = -math.inf
    waited = False
    while not stop.is_set():
        try:
            claim = _claimed(ws, chosen)
            if claim:
                if waited and claim.more:
                    ws.bus.wake([claim.step])
                waited = False
                done += _run(replace(ws, stop=stop), claim, telling)
                continue
            if time.monotonic() - pruned > pruning.EVERY_S:
                pruned = time.monotonic()
                pruning.prune_in_turn(ws)
            with ws.read() as reader:
                if until_idle and not ws.jobs.open(reader, chosen, limit=1):
                    return done
            if ws.bus.listen(chosen):
                continue
        except CatalogAway as error:
            if until_idle:
                raise
            log.warning("waiting for the catalog: %s", error, extra={"action": "catalog_away"})
            stop.wait(AWAY_S)
        else:
            # Wakes get lost seldom; delayed retries and leases that ended are found when the time is up.
            ws.bus.wait(chosen, ws.settings.poll_s * (SELDOM if ws.bus.reaches else 1))
            waited = True
    return done


def _claimed(ws: Workspace, steps: Sequence[str]) -> Claim | None:
    """Claim jobs of the most urgent step that has any and that this machine can take now."""
    # Reads before writing, so that an idle worker does not block the catalog for others.
    with ws.read() as reader:
        ready = ws.jobs.ready(reader, steps)
    for step in ready:  # equally urgent steps in the loop's order, so that batches fill up
        if STEPS[step].free(ws) and (claim := ws.jobs.claim([step], limit=STEPS[step].batch)):
            return claim
    return None


class _Telling:
    """Sums up a worker's finished and remaining work, so that its progress is one line for all steps.

    Audio is weighted by each step's share of the loop's time, so that progress is even.
    """

    def __init__(self, ws: Workspace, steps: Sequence[str], progress: Callable[[WorkProgress], None]) -> None:
        self.ws, self.steps, self.progress = ws, steps, progress
        self.jobs, self.done_s, self.left_s, self.waiting = 0, 0.0, 0.0, 0
        self._claim: Claim | None = None
        self._told_s = 0.0  # of the current batch
        self._looked = -math.inf

    def begin(self, claim: Claim) -> None:
        self._claim, self._told_s = claim, 0.0
        if self._looked == -math.inf:
            self._look()
        self._tell(claim.step)

    def told(self, seconds: float) -> None:
        """Record that the current step has finished this many more seconds."""
        if self._claim is not None:
            self._told_s = min(self._told_s + seconds, self._claim.seconds)
            self._tell(self._claim.step)

    def end(self, claim: Claim, error: str | None) -> None:
        if error is None:
            self.jobs += len(claim.jobs)
            own_s = claim.seconds * STEPS[claim.step].share
            self.done_s += own_s
            self.left_s -= own_s
        self._claim, self._told_s = None, 0.0
        self._look()
        self._tell(claim.step, error)

    def _look(self) -> None:
        if self.waiting >= COUNTED and time.monotonic() - self._looked < ADDED_UP_S:
            return
        self._looked = time.monotonic()
        with self.ws.read() as reader:
            self.waiting = min(COUNTED, self.ws.jobs.open(reader, self.steps, limit=COUNTED))
            audio_s = self.ws.jobs.waiting_audio(reader, self.steps)
        self.left_s = sum(seconds * share_ahead(step) for step, seconds in audio_s.items())

    def _tell(self, step: str, error: str | None = None) -> None:
        told_s = self._told_s * STEPS[step].share
        self.progress(
            WorkProgress(
                step=step,
                jobs=self.jobs,
                audio_s=self.done_s + told_s,
                left_s=max(0.0, self.left_s - told_s),
                waiting=self.waiting,
                error=error,
            )
        )


def _run(ws: Workspace, claim: Claim, telling: _Telling | None) -> int:
    """Run one claim. Return the number of jobs done. A failure is stored with its job, never raised."""
    error: str | None = None
    if telling:
        telling.begin(claim)
        ws = replace(ws, told=telling.told)
    try:
        with ws.jobs.renewing(claim):
            STEPS[claim.step].run(ws.under(claim), claim.subjects)
        # If the step was asked to stop, its unfinished jobs are requeued.
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
            " on the last attempt" if buried else "",
            failure,
            extra={"action": "job_failed", "step": claim.step, "jobs": claim.jobs},
            exc_info=log.isEnabledFor(logging.DEBUG),
        )
    except BaseException:
        ws.jobs.release(claim)
        raise
    if telling:
        telling.end(claim, error)
    return 0 if error else len(claim.jobs)
