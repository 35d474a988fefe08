"""Long work that people start on a page, in child processes: evaluations, promotions, forecasts, and training.

`Tasks` runs one evaluation, promotion or forecast at a time. The child (`python -m voxloop.web.tasks FOLDER`) reads the
request on its standard input, calls the step that the command line calls, and writes lines of JSON: progress, then the
outcome or the error. Whatever it finds is stored in the catalog by the step itself; a task is only how far it is. When
the server ends, so does the task; what it has stored is used when it is started again.

`TrainingWorker` starts `voxloop worker train` where runs wait and no worker takes them. When the server ends, that
worker saves a checkpoint and puts the run back into the queue, from where the next server takes it up.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, cast, get_args

from voxloop.errors import ConflictError, VoxloopError
from voxloop.records import plain
from voxloop.settings import THREADS_WAIT

if TYPE_CHECKING:
    from voxloop.workspace import Workspace

TaskKind = Literal["evaluate", "promote", "forecast"]
KINDS: tuple[TaskKind, ...] = get_args(TaskKind)
TaskStatus = Literal["running", "done", "failed", "cancelled"]

NICENESS = 10  # of children: people who use the server meanwhile come first
GRACE_S = 2.0  # for workers elsewhere to take a run before this server does
LOOK_S = 10.0  # between two looks at runs that wait although a worker is at work
QUICK_S = 20.0  # a worker that fails sooner than this is not started a third time
STEP = "train"
MARK = "training-by-server"  # a file in the folder `locks`: the server's worker was at work
END_S = 10.0  # for a child to end once it is asked to

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """An evaluation, a promotion or a forecast that somebody started."""

    id: int
    kind: TaskKind
    model: str | None
    by: str
    started: float  # seconds since the epoch
    finished: float | None = None
    status: TaskStatus = "running"
    done: float = 0.0  # seconds of audio
    total: float | None = None  # None: unknown
    said: str | None = None  # the newest line of a forecast
    outcome: dict[str, Any] | None = None
    error: str | None = None


class Tasks:
    """At most one task at a time; the last one is remembered until the next."""

    def __init__(self, ws: Workspace) -> None:
        self._ws = ws
        self._lock = threading.Lock()
        self._task: Task | None = None
        self._process: subprocess.Popen[str] | None = None
        self._follower: threading.Thread | None = None

    @property
    def newest(self) -> Task | None:
        """The task that runs, or else the last one."""
        return self._task

    def start(self, kind: TaskKind, *, by: str, model: str | None = None, **arguments: Any) -> Task:
        """Start a task. Raises ConflictError while another runs."""
        with self._lock:
            if self._task and self._task.status == "running":
                raise ConflictError(
                    f"{self._task.by} is running another task ({self._task.kind}): wait until it ends, or cancel it"
                )
            request = {"kind": kind, "model": model, "by": by} | arguments
            self._process = subprocess.Popen(
                [sys.executable, "-m", "voxloop.web.tasks", str(self._ws.folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                start_new_session=True,
                env=os.environ | THREADS_WAIT,
            )
            _yield_to_others(self._process.pid)
            number = self._task.id + 1 if self._task else 1
            self._task = Task(id=number, kind=kind, model=model, by=by, started=time.time())
            self._follower = threading.Thread(
                target=self._follow, args=(self._process, json.dumps(request)), name="task", daemon=True
            )
            self._follower.start()
            return self._task

    def cancel(self) -> Task:
        """End the task that runs. Raises ConflictError if there is none."""
        with self._lock:
            if self._task is None or self._task.status != "running" or self._process is None:
                raise ConflictError("no task is running")
            self._task = replace(self._task, status="cancelled", finished=time.time())
            self._process.terminate()
            return self._task

    def close(self) -> None:
        """End whatever runs."""
        process, follower = self._process, self._follower
        if process is None or follower is None:
            return
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
        follower.join(END_S)

    def _follow(self, process: subprocess.Popen[str], request: str) -> None:
        to, said = cast("IO[str]", process.stdin), cast("IO[str]", process.stdout)
        with suppress(OSError), to:  # where it ended at once, its status says so below
            to.write(request)
        with said:
            for line in said:
                with suppress(ValueError):  # cut off by a kill
                    self._change(json.loads(line))
        code = process.wait()
        with self._lock:
            if self._task and self._task.status == "running":
                error = (
                    self._task.error or f"the process ended without an outcome (status {code}): see the server's log"
                )
                self._task = replace(self._task, status="failed", finished=time.time(), error=error)

    def _change(self, told: dict[str, Any]) -> None:
        with self._lock:
            if self._task is None or self._task.status != "running":
                return
            if "outcome" in told:
                told |= {"status": "done", "finished": time.time()}
            self._task = replace(self._task, **told)


def _yield_to_others(pid: int) -> None:
    """Lower a child's priority; its own children inherit that."""
    try:
        os.setpriority(os.PRIO_PROCESS, pid, NICENESS)
    except OSError as error:
        log.info("a child keeps its priority: %s", error)


class TrainingWorker:
    """Starts a worker for runs that nobody takes; see the module."""

    def __init__(self, ws: Workspace, *, grace_s: float = GRACE_S, look_s: float = LOOK_S) -> None:
        self._ws = ws
        self._grace_s, self._look_s = grace_s, look_s
        self._lock = threading.RLock()
        self._timer: threading.Timer | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None
        self._began = 0.0
        self._failures = 0
        self._closed = False
        self.error: str | None = None  # why it does not start
        self._mark = ws.folder / "locks" / MARK
        if self._mark.exists():  # an earlier server ended while its worker trained
            self.wake()

    @property
    def working(self) -> bool:
        """Whether the worker of this server is at work."""
        process = self._process
        return process is not None and process.poll() is None

    def wake(self) -> None:
        """Look soon whether runs wait for a worker: somebody has queued one."""
        with self._lock:
            self.error, self._failures = None, 0
            self._look_in(self._grace_s)

    def close(self) -> None:
        """Have the worker save a checkpoint and end. This does not wait for it."""
        with self._lock:
            self._closed = True
            if self._timer:
                self._timer.cancel()
            if self._process and self._process.poll() is None:
                self._process.terminate()
                log.info("training saves a checkpoint; it goes on when the server is started again")

    def _look_in(self, seconds: float) -> None:
        if self._closed:
            return
        if self._timer:
            self._timer.cancel()
        self._timer = threading.Timer(seconds, self._look)
        self._timer.daemon = True
        self._timer.start()

    def _look(self) -> None:
        with self._lock:
            if self._closed:
                return
            try:
                with self._ws.read() as reader:
                    held = self._ws.jobs.held(reader, STEP)
            except Exception as error:  # noqa: BLE001 - a timer's thread: the catalog may be away for a while
                log.warning("the queue of runs could not be read: %s", error)
                self._look_in(self._look_s)
                return
            if not self.working:
                self._ended()
                if not held:
                    self._mark.unlink(missing_ok=True)
                    return
                if not any(held.values()) and self.error is None:
                    self._start()
            if held and self.error is None:
                self._look_in(self._look_s)

    def _start(self) -> None:
        self._mark.parent.mkdir(exist_ok=True)
        self._mark.touch()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - read when the worker has ended
        command = "from voxloop.cli import main; main()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", command, "-C", str(self._ws.folder), "worker", STEP, "--until-idle"],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the server's terminal is for the server
        )
        self._began = time.monotonic()
        _yield_to_others(self._process.pid)

    def _ended(self) -> None:
        """Note how the last worker ended, where that was soon and not well."""
        if self._process is None or self._output is None:
            return
        if self._process.returncode and time.monotonic() - self._began < QUICK_S:
            self._failures += 1
            self._output.seek(0)
            lines = self._output.read().decode(errors="replace").strip().splitlines()
            if self._failures > 1:
                self.error = f"the training worker does not start: {lines[-1] if lines else 'without a message'}"
        self._output.close()
        self._process = self._output = None


# The child ------------------------------------------------------------------------------------------------------------


def main() -> int:
    """Carry out the request on standard input in the workspace named on the command line."""
    from voxloop.pipeline import open_loop

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a forecast ends its training process
    asked = json.load(sys.stdin)
    # Whatever libraries print is for the log, not for the server.
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)

    def tell(**values: Any) -> None:
        lines.write(json.dumps(values) + "\n")

    told_at = 0.0

    def progress(done: float, total: float | None) -> None:
        nonlocal told_at
        if time.monotonic() - told_at > 0.2:
            told_at = time.monotonic()
            tell(done=done, total=total)

    try:
        with open_loop(Path(sys.argv[1])) as ws:
            tell(outcome=plain(STEPS[asked["kind"]](ws, asked, progress, lambda line: tell(said=line.strip()))))
    except VoxloopError as error:
        tell(error=str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


Report = Callable[[float, "float | None"], None]
Say = Callable[[str], None]


def _evaluate(ws: Workspace, asked: Mapping[str, Any], progress: Report, say: Say) -> Any:
    from voxloop.steps.evaluation import evaluate, with_texts

    return with_texts(ws, evaluate(ws, asked["model"], dataset=asked.get("dataset"), progress=progress))


def _promote(ws: Workspace, asked: Mapping[str, Any], progress: Report, say: Say) -> Any:
    from voxloop.advice import spelled_out
    from voxloop.steps.gate.promotion import promote

    outcome = promote(
        ws,
        asked["model"],
        dataset=asked.get("dataset"),
        by=asked["by"],
        force=asked.get("force", False),
        progress=progress,
    )
    step = spelled_out(ws, outcome.next_step, outcome.model) if outcome.next_step else None
    return plain(outcome) | {"moved": outcome.moved, "next_step": step}


def _forecast(ws: Workspace, asked: Mapping[str, Any], progress: Report, say: Say) -> Any:
    from voxloop.steps.evaluation import forecast

    plan = forecast.plan(ws, asked["model"], dataset=asked.get("dataset"))
    return forecast.forecast(ws, plan, told=say)


STEPS: Mapping[TaskKind, Callable[[Workspace, Mapping[str, Any], Report, Say], Any]] = {
    "evaluate": _evaluate,
    "promote": _promote,
    "forecast": _forecast,
}

if __name__ == "__main__":
    sys.exit(main())
