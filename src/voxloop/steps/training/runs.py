"""The life cycle of a run: queue, training, end, and the requests pause, stop, resume and retry.

    queued ──► running ──► completed | failed
      queued | running              ──► paused        pause, Ctrl-C: a checkpoint is kept
      queued | running              ──► stopped       stop: the best so far becomes a model, or is discarded
      running                       ──► interrupted   its processes died without a final status
      paused | interrupted | failed ──► queued        resume: continues from the newest checkpoint
      paused | interrupted | failed ──► stopped       stop

A run waiting to be trained has an open job of the step `train`: its place in the queue. The process that follows a run
(`voxloop train`, `voxloop run resume`, a worker) attends to it and renews the lease of that job; only the lease shows,
on every machine, whether a run is attended. The run's state, metrics and log are in the catalog (`telemetry.py`), and
the checkpoint to continue from elsewhere is in the blob store (`moving.py`). Requests (`pause`, `stop`) are written to
the run's row and carried out by the attending process, or else by the one that makes the request.

Locks guard only what is local: one device, and one child and one attending process per folder. The child holds
`training.lock` and its device's lock. It survives its parent, and a process that resumes the run in that folder follows
it to its end; if none does for some minutes, it saves a checkpoint and ends.
"""

from __future__ import annotations

import os
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
from voxloop.steps.training.files import ATTENDED, BEST, CONFIG, LOG, METRICS, read_json, remove
from voxloop.steps.training.submit import enqueue, lay_out, submit, submit_again
from voxloop.stores import tables
from voxloop.stores.blobs import sha256_file

if TYPE_CHECKING:
    from voxloop.stores.catalog import Reader
    from voxloop.workspace import Transaction, Workspace

STEP = "train"
LOOK_S = 1.0  # the run's row is read and written at most this often
TURN_S = 0.5  # between two checks of the queue
OBEY_S = 60.0  # how long `pause` and `stop` wait for the attending process
LET_GO_S = control.STOP_S + 5.0  # by then a process that lost its lease has stopped its child and left the folder
LEARNT = ("checkpoint-*", "best", "best.*", "blended", "blended.*", "final", "final.*", "intermediate", moving.LEAVING)

GOES_ON: tuple[RunStatus, ...] = ("paused", "interrupted", "failed")  # what can be resumed
ENDED: tuple[RunStatus, ...] = ("completed", "stopped", "failed", "paused", "interrupted")

OnMetrics = Callable[[dict[str, Any]], None]
"""Called with each line of metrics."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QueuePosition:
    """What a queued run is waiting for."""

    ahead: int  # runs ahead of it in this workspace's queue
    device: str
    holder: dict[str, Any]  # the device's user: run, workspace, pid; empty if it is free


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

    `dataset` is an id or a name (default: the newest), `base` any name that
    `models.base_model` accepts, `recipe` a name (default: chosen by model size and
    training speech), and `overrides` are `key=value` settings of the recipe. Waits
    while another run uses the device. Otherwise as `see_through`.
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


# Requests ----------------------------------------------------------------------------------------------------------


def find(ws: Workspace, id: str) -> Run:
    """The run with this id and its actual status."""
    with ws.read() as reader:
        run = reader.get(Run, id)
    return _as_it_stands(ws, run)


def reconcile(ws: Workspace) -> None:
    """Mark running runs whose leases have expired as `interrupted`."""
    with ws.read() as reader:
        running = reader.all(Run, tables.run.c.status == "running")
    for run in running:
        _as_it_stands(ws, run)


def pause(ws: Workspace, id: str) -> Run:
    """Save a checkpoint and free the device; `resume` continues from it."""
    return _ask(ws, find(ws, id), "pause", allowed=("queued", "running"))


def stop(ws: Workspace, id: str, *, discard: bool = False) -> Run:
    """End the run for good. Its best weights so far become a model, or are removed with `discard`."""
    return _ask(ws, find(ws, id), "discard" if discard else "stop", allowed=("queued", "running", *GOES_ON))


def resume(ws: Workspace, id: str, *, by: str | None = None) -> Run:
    """Queue the run again, to continue from its newest checkpoint or to follow its process if it is alive."""
    run = find(ws, id)
    if run.status not in GOES_ON and (run.status != "queued" or attended(ws, run)):
        raise UsageError(
            _cannot(run, "resume", "a run that is paused, interrupted or failed")
            + (
                f". If its process has died, wait until its lease expires ({ws.settings.lease_s:g} s)"
                if run.status == "running"
                else ""
            )
        )
    return _requeue(ws, run, by=by)


def retry(ws: Workspace, id: str, overrides: Sequence[str] = (), *, by: str | None = None) -> Run:
    """Queue a new run with the settings of an ended one, optionally changing some."""
    run = find(ws, id)
    if run.status not in ENDED:
        raise UsageError(_cannot(run, "retry", "a run that has ended"))
    return submit_again(ws, run, overrides, by=by)


def _cannot(run: Run, verb: str, needed: str) -> str:
    can = {
        "queued": "take it out of the queue with `voxloop run pause` or `stop`",
        "running": "end it first with `voxloop run pause` or `stop`",
        "completed": "train again with `voxloop run retry`",
        "stopped": "train again with `voxloop run retry`",
    }.get(run.status, "use `voxloop run resume`, `stop` or `retry`")
    return f"run {run.id} is {run.status}, but {verb} needs {needed}: {can}"


def _ask(ws: Workspace, run: Run, wish: RunWish, *, allowed: Sequence[str]) -> Run:
    if run.status not in allowed:
        raise UsageError(_cannot(run, wish, f"a run that is {', '.join(allowed[:-1])} or {allowed[-1]}"))
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


def _requeue(ws: Workspace, run: Run, *, wanted: RunWish | None = None, by: str | None = None) -> Run:
    """Give the run a new place in the queue; a holder of the old one can no longer write."""
    with ws.transaction() as tx:
        ws.jobs.withdraw(tx, STEP, run.id)
        tx.change(Run, run.id, status="queued", error=None, finished=None, wanted=wanted)
        enqueue(tx, run.id, by=by)
        return tx.get(Run, run.id)


def attended(ws: Workspace, run: Run) -> bool:
    """Whether a process attends to this run or waits for its turn, and so holds the lease of its job."""
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
            f"its process ended at step {step} without a message (killed, or the machine went down); "
            f"continue from the newest checkpoint with `voxloop run resume {run.id}`"
        )
        tx.change(Run, run.id, status="interrupted", error=why)
        tx.emit("training.interrupted", run.id, key=f"{run.id}:{tx.now()}", payload={"step": step})
        return tx.get(Run, run.id)


# Its turn -------------------------------------------------------------------------------------------------------------


def work(ws: Workspace, runs: Sequence[str]) -> None:
    """The step `train` of a worker that holds the runs' jobs."""
    for id in runs:
        _attend(ws, id, worker=True)


def device_free(ws: Workspace) -> bool:
    """Whether no run uses this machine's device."""
    return not locks.held(device_lock(ws)[1])


def see_through(
    ws: Workspace, id: str, *, progress: OnMetrics | None = None, waiting: Callable[[QueuePosition], None] | None = None
) -> Run:
    """Wait for a queued run's turn, train, and register the result.

    `progress` is called with each line of metrics, `waiting` with the position in
    the queue whenever it changes. Raises TrainingError if the run fails, with the
    reason and the path of the log. Ctrl-C pauses the run.
    """
    claim = ws.jobs.claim([STEP], subject=id)
    if claim is None:
        raise ConflictError(f"another process is already attending to run {id}; see `voxloop run show {id}`")
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
        raise ConflictError(
            f"another process on this machine, which lost its lease, still uses the folder of run {id}: try again later"
        )
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
            if ws.before_run and not (folder / CONFIG).exists():
                ws.before_run(ws)
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
        child.stop()  # the run continues elsewhere
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
    """Publishes a run's state: its row and events, its metrics and log, its checkpoint."""

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
    """Wait for this run's turn and return the device's lock; None if the run is asked to end first."""
    device, path = device_lock(ws)
    told: QueuePosition | None = None
    while True:
        if _wish(ws, run) or _worker_ends(ws):
            return None
        with ws.read() as reader:
            queue = ws.jobs.held(reader, STEP)
        order = list(queue)
        before = order[: order.index(run.id)] if run.id in order else []
        # Skip runs whose process died and runs that wait for a worker.
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
    """Pass on metrics, update the catalog and carry out requests; return the last request."""
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
    """Register the result of a run whose child has ended."""
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
    raise TrainingError(f"{ending.error}; see the log {ws.runs / run.id / LOG}")


def _without_training(ws: Workspace, run: Run, wish: RunWish | None) -> Run:
    """Carry out a request on a run that has no process."""
    state = dict(run.progress)
    if wish == "discard":
        return _discard(ws, run, state)
    if wish == "stop":
        if (ws.runs / run.id / BEST).exists() and read_json(ws.runs / run.id / BEST)["step"]:
            return _register(ws, run, state, status="stopped")
        remove(ws.runs / run.id, "checkpoint-*")
        return _end(ws, run, "stopped", "no model was better than the base yet, so none was kept", state)
    if wish == "pause":
        return _end(ws, run, "paused", state=state)
    with ws.transaction() as tx:  # the worker ends
        tx.change(Run, run.id, status="queued")
        return tx.get(Run, run.id)


def _register(ws: Workspace, run: Run, state: dict[str, Any], *, status: RunStatus = "completed") -> Run:
    """Store the best model's files in the blob store and register it; repeating it changes nothing.

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
    remove(ws.runs / run.id, "checkpoint-*")  # it will not go on
    return ended


def _without_model(ws: Workspace, run: Run, state: dict[str, Any], *, status: RunStatus) -> Run:
    """End a run that found no gain over its base, without a model. Its notes say what would help."""
    with ws.completion() as tx:
        values = {"status": status, "progress": state, "recipe": run.recipe, "error": None, "wanted": None}
        tx.change(Run, run.id, finished=tx.now(), **values)
        tx.emit("training.completed", run.id, payload={"model": None})
        ended = tx.get(Run, run.id)
    remove(ws.runs / run.id, "checkpoint-*")  # it will not go on
    return ended


def _discard(ws: Workspace, run: Run, state: dict[str, Any]) -> Run:
    ended = _end(ws, run, "stopped", "discarded", state)
    for pattern in LEARNT:
        remove(ws.runs / run.id, pattern)
    return ended


def begin_anew(tx: Transaction, run: Run) -> list[str]:
    """Make an unfinished run start over from its base, because speech it was trained on was removed.

    Keys of its blobs, which nothing names any more. What it learnt goes from the
    folders of other machines when they attend to it next.
    """
    telemetry.forget_metrics(tx, run.id)
    tx.change(Run, run.id, progress={})
    return moving.leave_home(tx, run.id)


def unlearn(ws: Workspace, id: str) -> None:
    """Remove an unfinished run's weights, so that it starts over from its base with the remaining data."""
    with ws.read() as reader:
        run = reader.find(Run, id)
    if run is None or _as_it_stands(ws, run).status not in ("queued", *GOES_ON):
        return
    with ws.transaction() as tx:
        keys = begin_anew(tx, run)
    for key in keys:
        ws.blobs.delete(key)
    for pattern in (*LEARNT, METRICS):
        remove(ws.runs / run.id, pattern)


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
