"""The life of a run: its turn, its end, and what people ask of it meanwhile.

    queued ──► running ──► completed | failed
      queued | running              ──► paused        pause, Ctrl-C: a checkpoint is kept
      queued | running              ──► stopped       stop: the best so far becomes a model; or it is discarded
      running                       ──► interrupted   its processes died without a word
      paused | interrupted | failed ──► queued        resume: goes on from the newest checkpoint
      paused | interrupted | failed ──► stopped       stop

A run that is to be trained has an open job of the step `train`: its place in the queue. Whoever sees a run through
(`voxloop train`, `voxloop run resume`, a worker) attends to it, and renews the lease of that job: the lease alone says,
on every machine, whether anybody does. The run's state, metrics and log are in the catalog (`telemetry.py`), and what
it would go on from elsewhere is in the blob store (`moving.py`). What people ask for (`pause`, `stop`) is written to
the run's row, and whoever attends to the run does it; where nobody does, the one who asks.

Locks are for what is truly local: one device, one child and one attendant in a folder. The child holds `training.lock`
and its device's lock. It lives on when its parent dies, and whoever resumes the run in that folder follows it to its
end; where nobody does for some minutes, it ends with a checkpoint.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxloop import models
from voxloop.errors import ConflictError, LeaseLost, TrainingError, UsageError
from voxloop.records import Model, Run, RunStatus, RunWish
from voxloop.steps.training import control, locks, moving, telemetry
from voxloop.steps.training.control import Child
from voxloop.steps.training.files import ATTENDED, BEST, CONFIG, LOG, METRICS, read_json
from voxloop.steps.training.submit import enqueue, lay_out, submit, submit_again
from voxloop.stores import tables
from voxloop.stores.blobs import sha256_file

if TYPE_CHECKING:
    from voxloop.stores.catalog import Reader
    from voxloop.workspace import Transaction, Workspace

STEP = "train"
LOOK_S = 1.0  # the run's row is read and written at most this often
TURN_S = 0.5  # between two looks at whether it is this run's turn
OBEY_S = 60.0  # how long `pause` and `stop` wait until whoever attends to the run has done it
LET_GO_S = control.STOP_S + 5.0  # who lost the lease has stopped its child, and left the folder, by then
LEARNT = ("checkpoint-*", "best", "best.*", "blended", "blended.*", "final", "final.*", "intermediate", moving.LEAVING)

GOES_ON: tuple[RunStatus, ...] = ("paused", "interrupted", "failed")  # what can be resumed
ENDED: tuple[RunStatus, ...] = ("completed", "stopped", "failed", "paused", "interrupted")

OnMetrics = Callable[[dict[str, Any]], None]
"""Told each line of metrics."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QueuePosition:
    """What a queued run waits for."""

    ahead: int  # runs before it in this workspace's queue
    device: str
    holder: dict[str, Any]  # who has the device: run, workspace, pid; empty where it is free


def train(
    ws: Workspace,
    *,
    dataset: str | None = None,
    base: str | None = None,
    method: str | None = None,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    max_seconds: float | None = None,
    progress: OnMetrics | None = None,
    waiting: Callable[[QueuePosition], None] | None = None,
) -> Run:
    """Fine-tune a base model on a dataset's train split, and register the best model found.

    `dataset` is an id or a name (the newest one by default), `base` whatever
    `models.base_model` knows, `recipe` a name (chosen by data and model by
    default), `overrides` are `key=value` settings of it. Waits while another run
    has the device. Else as `see_through`.
    """
    run = submit(
        ws,
        dataset=dataset,
        base=base,
        method=method,
        recipe=recipe,
        overrides=overrides,
        max_seconds=max_seconds,
    )
    return see_through(ws, run.id, progress=progress, waiting=waiting)


# What people ask for --------------------------------------------------------------------------------------------------


def find(ws: Workspace, id: str) -> Run:
    """The run with this id, as it really stands."""
    with ws.read() as reader:
        run = reader.get(Run, id)
    return _as_it_stands(ws, run)


def reconcile(ws: Workspace) -> None:
    """Mark the runs `interrupted` that are said to run and whose leases have run out."""
    with ws.read() as reader:
        running = reader.all(Run, tables.run.c.status == "running")
    for run in running:
        _as_it_stands(ws, run)


def pause(ws: Workspace, id: str) -> Run:
    """Have the run write a checkpoint and free its device; `resume` goes on from there."""
    return _ask(ws, find(ws, id), "pause", allowed=("queued", "running"))


def stop(ws: Workspace, id: str, *, discard: bool = False) -> Run:
    """End the run for good. The best weights so far become a model; with `discard` everything learnt is removed."""
    return _ask(ws, find(ws, id), "discard" if discard else "stop", allowed=("queued", "running", *GOES_ON))


def resume(ws: Workspace, id: str) -> Run:
    """Queue the run again, to go on from its newest checkpoint; or to follow its process, where that still lives."""
    run = find(ws, id)
    if run.status not in GOES_ON and (run.status != "queued" or attended(ws, run)):
        raise UsageError(
            _cannot(run, "resume", "one that is paused, interrupted or failed")
            + (
                f". If its process died, wait until its lease has run out ({ws.settings.lease_s:g} s)"
                if run.status == "running"
                else ""
            )
        )
    return _requeue(ws, run)


def retry(ws: Workspace, id: str, overrides: Sequence[str] = ()) -> Run:
    """Queue a new run with this one's settings, some of them changed."""
    run = find(ws, id)
    if run.status not in ENDED:
        raise UsageError(_cannot(run, "retry", "one that has ended"))
    return submit_again(ws, run, overrides)


def _cannot(run: Run, verb: str, needed: str) -> str:
    can = {
        "queued": "`voxloop run pause` and `stop` take it out of the queue",
        "running": "`voxloop run pause` and `stop` can be asked of it",
        "completed": "`voxloop run retry` trains again with other settings",
        "stopped": "`voxloop run retry` trains again with other settings",
    }.get(run.status, "`voxloop run resume`, `stop` and `retry` can be asked of it")
    return f"run {run.id} is {run.status}, and {verb} needs {needed}: {can}"


def _ask(ws: Workspace, run: Run, wish: RunWish, *, allowed: Sequence[str]) -> Run:
    if run.status not in allowed:
        raise UsageError(_cannot(run, wish, f"one that is {', '.join(allowed)}"))
    with ws.transaction() as tx:
        tx.change(Run, run.id, wanted=wish)
    until = time.monotonic() + OBEY_S
    while time.monotonic() < until:
        if not attended(ws, run):
            with ws.read() as reader:
                now = reader.get(Run, run.id)
            return see_through(ws, _requeue(ws, now, wanted=wish).id) if now.wanted else now
        time.sleep(control.POLL_S)
    with ws.read() as reader:
        return reader.get(Run, run.id)


def _requeue(ws: Workspace, run: Run, *, wanted: RunWish | None = None) -> Run:
    """A new place in the queue. Whoever held the old one can write nothing any more."""
    with ws.transaction() as tx:
        ws.jobs.withdraw(tx, STEP, run.id)
        tx.change(Run, run.id, status="queued", error=None, finished=None, wanted=wanted)
        enqueue(tx, run.id)
        return tx.get(Run, run.id)


def attended(ws: Workspace, run: Run) -> bool:
    """Whether somebody sees this run through, or waits for its turn: holds the lease of its job."""
    with ws.read() as reader:
        return _attended(ws, reader, run.id)


def _attended(ws: Workspace, reader: Reader, id: str) -> bool:
    return ws.jobs.held(reader, STEP).get(id, False)


def _as_it_stands(ws: Workspace, run: Run) -> Run:
    if run.status != "running" or attended(ws, run):
        return run
    with ws.transaction() as tx:
        now = tx.get(Run, run.id)
        if now.status != "running" or _attended(ws, tx, run.id):
            return now
        step = now.progress.get("step", 0)
        why = (
            f"nobody attends to it any more, at step {step} (its process was killed, or the machine went down); "
            f"`voxloop run resume {run.id}` goes on from the newest checkpoint"
        )
        tx.change(Run, run.id, status="interrupted", error=why)
        tx.emit("training.interrupted", run.id, key=f"{run.id}:{tx.now()}", payload={"step": step})
        return tx.get(Run, run.id)


# Its turn -------------------------------------------------------------------------------------------------------------


def work(ws: Workspace, runs: Sequence[str]) -> None:
    """The step `train` of a worker, which holds the runs' jobs."""
    for id in runs:
        _attend(ws, id, worker=True)


def device_free(ws: Workspace) -> bool:
    """Whether no run is on this machine's device."""
    return not locks.held(device_lock(ws)[1])


def see_through(
    ws: Workspace, id: str, *, progress: OnMetrics | None = None, waiting: Callable[[QueuePosition], None] | None = None
) -> Run:
    """Wait for a queued run's turn, train, and take over what came of it.

    `progress` is told each line of metrics, `waiting` what it waits for, whenever
    that changes. Raises TrainingError where the run fails, with the reason and the
    log's path. After Ctrl-C the run is paused.
    """
    claim = ws.jobs.claim([STEP], subject=id)
    if claim is None:
        raise ConflictError(f"run {id} was taken by another process; `voxloop run show {id}` tells how it stands")
    with ws.jobs.renewing(claim):
        return _attend(ws.under(claim), id, progress=progress, waiting=waiting)


def _attend(
    ws: Workspace,
    id: str,
    *,
    progress: OnMetrics | None = None,
    waiting: Callable[[QueuePosition], None] | None = None,
    worker: bool = False,
) -> Run:
    with ws.read() as reader:
        run = reader.get(Run, id)
    if run.status in ("completed", "stopped", "paused"):
        with ws.completion() as tx:  # a job that was left over
            return tx.get(Run, id)
    lock = locks.take(ws.runs / id / ATTENDED, patience_s=LET_GO_S)
    if lock is None:
        raise ConflictError(f"another process of this machine, which lost its lease, is still in run {id}'s folder")
    with lock:
        try:
            ended = _train(ws, run, progress, waiting)
            if ended.status in ("completed", "stopped"):
                moving.remove_blobs(ws, id)
            return ended
        except KeyboardInterrupt:
            if worker:
                with ws.transaction() as tx:  # the worker gives the job back, and another may go on
                    tx.change(Run, id, status="queued")
            else:
                _end(ws, run, "paused")
            raise
        except LeaseLost:
            raise
        except Exception as error:
            _end(ws, run, "failed", str(error))
            raise


def _train(ws: Workspace, run: Run, progress: OnMetrics | None, waiting: Callable[[QueuePosition], None] | None) -> Run:
    folder = ws.runs / run.id
    wish = _wish(ws, run)
    if wish in ("pause", "discard") and not moving.at_home(ws, run.id):
        return _without_training(ws, run, wish)  # nothing need be fetched for that
    began = moving.move_in(ws, run)
    child = control.find(folder)
    if child is None:
        if (folder / CONFIG).exists() and control.last_words(folder)["status"] == "completed":
            # Its end was not taken over: whoever attended died at the same time.
            return _take_over(ws, run, Child(folder), dict(run.progress), _wish(ws, run))
        device = _turn(ws, run, waiting)
        if device is None:
            return _without_training(ws, run, _wish(ws, run))
        with device:
            lay_out(ws, run, began)
            child = control.start(folder, device=ws.settings.device, threads=ws.settings.threads, device_lock=device)
    with ws.transaction() as tx:
        tx.change(Run, run.id, status="running", error=None, finished=None)
        tx.emit("training.started", run.id, payload={"dataset": run.dataset, "base": run.base})
    state = dict(run.progress)
    told = _Telling(ws, run)
    try:
        wish = _follow(ws, run, child, state, progress, told)
    except LeaseLost:
        told.close()
        child.stop()  # the run goes on elsewhere
        raise
    except BaseException:
        # Ctrl-C, a broken terminal, a lost database: the child must not go on alone.
        try:
            child.stop()
        except KeyboardInterrupt:  # in a hurry: the newest checkpoint will do
            child.kill()
        told.rest(state | (control.metrics(folder) or [{}])[-1])
        raise
    over = wish == "discard" or control.last_words(folder)["status"] == "completed"
    told.rest(state, checkpoint=not over)
    return _take_over(ws, run, child, state, wish)


class _Telling:
    """Has everyone know how a run stands: its row and event, its metrics and log, its checkpoint."""

    def __init__(self, ws: Workspace, run: Run) -> None:
        self._ws = ws
        self._run = run
        self._telemetry = telemetry.TelemetryCopier(ws, run.id)
        self._copier = moving.CheckpointCopier(ws, run.id) if moving.copies_checkpoints(ws) else None
        self._fenced = time.monotonic()

    def tell(self, state: dict[str, Any] | None) -> None:
        """Write what there is to say; `state` is the run's progress where that changed. Raises LeaseLost."""
        entries = self._telemetry.gained()
        copied = self._copier.look() if self._copier else None
        quiet = state is None and entries is None and copied is None
        if quiet and time.monotonic() - self._fenced < self._ws.jobs.lease_s / 3:
            return
        self._write(state, entries, copied)

    def rest(self, state: dict[str, Any], *, checkpoint: bool = True) -> None:
        """Write all there is, once the child has ended."""
        try:
            self._write(state, None, None)
            while self._copier and checkpoint and (copied := self._copier.wait()):
                self._write(None, None, copied)
            while entries := self._telemetry.gained(to_the_end=True):
                self._write(None, entries, None)
        finally:
            self.close()

    def close(self) -> None:
        if self._copier:
            self._copier.close()

    def _write(
        self,
        state: dict[str, Any] | None,
        entries: telemetry.TelemetryRows | None,
        copied: moving.CopiedCheckpoint | None,
    ) -> None:
        id = self._run.id
        with self._ws.transaction() as tx:
            # Somebody may have taken it for interrupted, where this machine slept longer than the lease.
            tx.change(Run, id, status="running", error=None)
            if state is not None:
                tx.change(Run, id, progress=state)
                if "step" in state:
                    tx.emit("training.progress", id, key=f"{id}:{state['step']}", payload=state)
            if entries:
                self._telemetry.write(tx, entries)
            if copied:
                moving.name_checkpoint(tx, id, copied)
        self._fenced = time.monotonic()
        if entries:
            self._telemetry.until = entries.until
        if copied:
            moving.remove_superseded(self._ws, id, copied)


def _turn(ws: Workspace, run: Run, waiting: Callable[[QueuePosition], None] | None) -> locks.Lock | None:
    """The device's lock, once it is this run's turn; None where the run is asked to end before."""
    device, path = device_lock(ws)
    told: QueuePosition | None = None
    while True:
        if _wish(ws, run) or _worker_ends(ws):
            return None
        with ws.read() as reader:
            queue = ws.jobs.held(reader, STEP)
        order = list(queue)
        before = order[: order.index(run.id)] if run.id in order else []
        # Places of the dead, and of those that wait for a worker, are free.
        ahead = [id for id in before if queue[id]]
        if not ahead:
            lock = locks.take(path)
            if lock:
                lock.write({"run": run.id, "workspace": str(ws.folder), "pid": os.getpid()})
                return lock
        turn = QueuePosition(ahead=len(ahead), device=device, holder=locks.note(path) if locks.held(path) else {})
        if waiting and turn != told:
            waiting(turn)
            told = turn
        time.sleep(TURN_S)


def device_lock(ws: Workspace) -> tuple[str, Path]:
    """The device that a run would be on, by name, and its lock.

    A GPU has one lock for all workspaces of a user on this machine, since its memory
    is not shared; a CPU is shared by its system, so that each workspace has its own.
    """
    device = ws.settings.device or ("cuda" if Path("/dev/nvidiactl").exists() else "cpu")
    if device == "cpu":
        return device, ws.folder / "locks" / f"{socket.gethostname()}-cpu.lock"
    number = device.partition(":")[2] or "0"
    return device, Path(tempfile.gettempdir()) / f"voxloop-{os.getuid()}" / f"cuda-{number}.lock"


def _wish(ws: Workspace, run: Run) -> RunWish | None:
    with ws.read() as reader:
        return reader.get(Run, run.id).wanted


def _worker_ends(ws: Workspace) -> bool:
    return ws.stop is not None and ws.stop.is_set()


def _follow(
    ws: Workspace, run: Run, child: Child, state: dict[str, Any], progress: OnMetrics | None, telling: _Telling
) -> RunWish | None:
    """Tell of each line of metrics, keep the catalog up to date, do what is asked; the last thing that was asked."""
    looked = 0.0
    changed = False
    wish: RunWish | None = None
    told = False
    for line in control.follow(child):
        if line:
            state |= line
            if "val_wer" in line:
                state["best_val_wer"] = min(line["val_wer"], state.get("best_val_wer", line["val_wer"]))
            changed = True
            if progress:
                progress(line)
        if time.monotonic() - looked < LOOK_S:
            continue
        looked = time.monotonic()
        telling.tell(state if changed else None)
        changed = False
        wanted = _wish(ws, run) or ("pause" if _worker_ends(ws) else None)
        if wanted != wish:
            wish, told = wanted, False
        if wish == "pause":
            child.stop()
        elif wish == "discard":
            child.kill()
        elif wish == "stop" and not told:
            told = child.tell(control.CONCLUDE)
    return wish or _wish(ws, run)


# Its end --------------------------------------------------------------------------------------------------------------


def _take_over(ws: Workspace, run: Run, child: Child, state: dict[str, Any], wish: RunWish | None) -> Run:
    """What became of the run, now that its child has ended."""
    ending = control.ending(child)
    state |= {k: ending.values[k] for k in ("base", "best", "notes", "peak_memory_mb") if ending.values.get(k)}
    # Smaller batches, where memory ran out.
    run = replace(run, recipe=read_json(ws.runs / run.id / CONFIG)["recipe"])
    if wish == "discard":
        return _discard(ws, run, state)
    if ending.status == "completed":
        best = state.get("best")
        if best and best["step"] == 0 and not run.recipe.get("keep_no_better"):
            return _without_model(ws, run, state, status="stopped" if wish == "stop" else "completed")
        return _register(ws, run, state, status="stopped" if wish == "stop" else "completed")
    if wish == "pause" or ending.status == "stopped":
        if _worker_ends(ws):
            with ws.transaction() as tx:  # the worker gives the job back, and another may go on
                tx.change(Run, run.id, status="queued", progress=state, recipe=run.recipe)
                return tx.get(Run, run.id)
        return _end(ws, run, "paused", state=state)
    raise TrainingError(f"{ending.error}; its log is {ws.runs / run.id / LOG}")


def _without_training(ws: Workspace, run: Run, wish: RunWish | None) -> Run:
    """Do what was asked of a run that has no process."""
    state = dict(run.progress)
    if wish == "discard":
        return _discard(ws, run, state)
    if wish == "stop":
        if (ws.runs / run.id / BEST).exists() and read_json(ws.runs / run.id / BEST)["step"]:
            return _register(ws, run, state, status="stopped")
        _remove(ws, run, "checkpoint-*")
        return _end(ws, run, "stopped", "nothing better than the base had been measured", state)
    if wish == "pause":
        return _end(ws, run, "paused", state=state)
    with ws.transaction() as tx:  # the worker ends
        tx.change(Run, run.id, status="queued")
        return tx.get(Run, run.id)


def _register(ws: Workspace, run: Run, state: dict[str, Any], *, status: RunStatus = "completed") -> Run:
    """Put the best model's files into the blob store and tell of it; doing it again changes nothing.

    They lie under the model's id, which is a hash of them: what a worker puts there that has lost its lease, perhaps
    other weights of the same run, gets in nobody's way.
    """
    best = ws.runs / run.id / "best"
    paths = {path.relative_to(best).as_posix(): path for path in sorted(best.rglob("*")) if path.is_file()}
    files = {name: sha256_file(path) for name, path in paths.items()}
    id = models.model_id(files)
    where = f"models/asr/{run.id}/{id}"
    for name, path in paths.items():
        ws.blobs.put(f"{where}/{name}", path)
    model = Model(
        id=id,
        family=run.family,
        base=run.base,
        kind="adapter" if run.method == "lora" else "full",
        where=where,
        run=run.id,
        files=files,
    )
    with ws.completion() as tx:
        tx.add(model)
        tx.change(
            Run,
            run.id,
            status=status,
            progress=state,
            recipe=run.recipe,
            model=model.id,
            finished=tx.now(),
            error=None,
            wanted=None,
        )
        tx.emit("training.completed", run.id, payload={"model": model.id})
        ended = tx.get(Run, run.id)
    _remove(ws, run, "checkpoint-*")  # it will not go on
    return ended


def _without_model(ws: Workspace, run: Run, state: dict[str, Any], *, status: RunStatus) -> Run:
    """End a run that made its base no better: there is no model to promote. Its notes say what would help."""
    with ws.completion() as tx:
        values = {"status": status, "progress": state, "recipe": run.recipe, "error": None, "wanted": None}
        tx.change(Run, run.id, finished=tx.now(), **values)
        tx.emit("training.completed", run.id, payload={"model": None})
        ended = tx.get(Run, run.id)
    _remove(ws, run, "checkpoint-*")  # it will not go on
    return ended


def _discard(ws: Workspace, run: Run, state: dict[str, Any]) -> Run:
    ended = _end(ws, run, "stopped", "what it learnt was discarded", state)
    for pattern in LEARNT:
        _remove(ws, run, pattern)
    return ended


def begin_anew(tx: Transaction, run: Run) -> list[str]:
    """Have an unfinished run begin anew from its base, since speech that it learnt from is gone.

    Keys of its blobs, which nothing names any more. What it learnt goes from the
    folders of other machines when they attend to it next.
    """
    telemetry.forget_metrics(tx, run.id)
    tx.change(Run, run.id, progress={})
    return moving.leave_home(tx, run.id)


def unlearn(ws: Workspace, id: str) -> None:
    """Remove what an unfinished run learnt, so that it begins anew from its base and from the data that is left."""
    with ws.read() as reader:
        run = reader.find(Run, id)
    if run is None or _as_it_stands(ws, run).status not in ("queued", *GOES_ON):
        return
    with ws.transaction() as tx:
        keys = begin_anew(tx, run)
    for key in keys:
        ws.blobs.delete(key)
    for pattern in (*LEARNT, METRICS):
        _remove(ws, run, pattern)


def _remove(ws: Workspace, run: Run, pattern: str) -> None:
    for path in (ws.runs / run.id).glob(pattern):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _end(
    ws: Workspace, run: Run, status: RunStatus, why: str | None = None, state: dict[str, Any] | None = None
) -> Run:
    """Write down that a run ended without a model."""
    with ws.completion() as tx:
        values: dict[str, Any] = {} if state is None else {"progress": state, "recipe": run.recipe}
        if status != "paused":
            values["finished"] = tx.now()
        tx.change(Run, run.id, status=status, error=why, wanted=None, **values)
        tx.emit(f"training.{status}", run.id, key=f"{run.id}:{tx.now()}", payload={"error": why} if why else {})
        return tx.get(Run, run.id)
