"""`voxloop up`: the parts of the loop as one process group, each started again when it fails.

Watcher and orchestrator are threads of this process, as the server is its main thread; workers are child processes, of
which one takes the steps that last long (`pipeline.LONG`), so that a run at night never stops transcription. A child
ends by itself when this process is gone, also after a kill -9: it holds the other end of a pipe.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from voxloop.automation.bucket_inbox import sources
from voxloop.automation.orchestrator import orchestrate
from voxloop.automation.watching import Troubles, watch
from voxloop.automation.webhook import Webhook, secret
from voxloop.errors import VoxloopError
from voxloop.pipeline import LONG, STEPS
from voxloop.workspace import Workspace

log = logging.getLogger(__name__)

BACK_OFF_S = (1.0, 60.0)  # before a part is started again: the first time, and at most
STEADY_S = 60.0  # a part that ran so long is started again at once
DRAIN_S = 60.0  # for which children may finish what they do
LOOK_S = 0.2


@dataclass(frozen=True, slots=True)
class PartState:
    """How one part of the loop is doing."""

    name: str
    ok: bool
    line: str


class Part:
    """A part: what it is called, and how it is doing, in a line that is told when it changes."""

    def __init__(self, name: str, told: Callable[[str, str], None]) -> None:
        self.name = name
        self._told = told
        self._lock = threading.Lock()
        self._state = PartState(name, ok=True, line="starts")

    @property
    def state(self) -> PartState:
        with self._lock:
            return self._state

    def tell(self, line: str, *, ok: bool = True) -> None:
        """Say how it is doing."""
        with self._lock:
            changed = (self._state.line, self._state.ok) != (line, ok)
            self._state = PartState(self.name, ok=ok, line=line)
        if changed:
            self._told(self.name, line)


class _BackOff:
    """How long to wait before a part that failed is started again."""

    def __init__(self) -> None:
        self._next_s = BACK_OFF_S[0]

    def after(self, ran_s: float) -> float:
        if ran_s >= STEADY_S:
            self._next_s = BACK_OFF_S[0]
        wait_s, self._next_s = self._next_s, min(2 * self._next_s, BACK_OFF_S[1])
        return wait_s


class Group:
    """The running parts. Use as a context manager: the end of the block drains them all."""

    def __init__(
        self, ws: Workspace, *, told: Callable[[str, str], None], workers: int = 1, train: bool = True
    ) -> None:
        self.ws = ws
        self.stop = threading.Event()
        self.parts: list[Part] = []
        self._told = told
        self._threads: list[threading.Thread] = []
        short = [step for step in STEPS if step not in LONG]
        self._children = [(f"worker {number + 1}", short) for number in range(workers)]
        if train:
            self._children.append(("trainer", list(LONG)))

    def add(self, name: str) -> Part:
        """A further part, which the caller runs."""
        part = Part(name, self._told)
        self.parts.append(part)
        return part

    def states(self) -> list[PartState]:
        """How every part is doing."""
        return [part.state for part in self.parts]

    def watch(self) -> None:
        """Run a watcher for each inbox, in a thread of its own."""

        def run(part: Part, index: int) -> None:
            troubles = Troubles(told=lambda message: part.tell(message, ok=not troubles.known))
            source = sources(self.ws, troubles)[index]
            part.tell(f"watches {source.name}")
            watch(self.ws, source, stop=self.stop, processes=1, troubles=troubles, told=part.tell)

        self._thread("watcher", lambda part: run(part, 0))
        if self.ws.settings.inbox_url:
            self._thread("bucket", lambda part: run(part, 1))

    def orchestrate(self) -> None:
        """Run the orchestrator in a thread."""
        self._thread("orchestrator", lambda part: orchestrate(self.ws, stop=self.stop, told=part.tell))

    def notify(self) -> None:
        """Run the webhook in a thread, if one is set. Raises SettingError if its secret is missing."""
        if self.ws.settings.webhook_url:
            secret()
            self._thread("webhook", lambda part: Webhook(self.ws, told=part.tell).run(self.stop))

    def work(self) -> None:
        """Run the workers as child processes."""
        for name, steps in self._children:
            self._thread(name, lambda part, steps=steps: self._child(part, steps))  # type: ignore[misc]

    def _thread(self, name: str, run: Callable[[Part], None]) -> None:
        part = self.add(name)

        def kept() -> None:
            back_off = _BackOff()
            while not self.stop.is_set():
                began = time.monotonic()
                try:
                    run(part)
                    if self.stop.is_set():
                        break
                    why = "ended"
                except VoxloopError as error:
                    why = f"failed: {error}"
                except Exception as error:  # whatever it is, the other parts go on
                    why = f"failed: {error}"
                    log.exception("%s failed", name)
                wait_s = back_off.after(time.monotonic() - began)
                part.tell(f"{why}; starts again in {wait_s:.0f} s", ok=False)
                self.stop.wait(wait_s)
            part.tell("stopped")

        thread = threading.Thread(target=kept, name=f"voxloop-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    # Children --------------------------------------------------------------------------------------------------------

    def _child(self, part: Part, steps: Sequence[str]) -> None:
        """Run a worker as a child process until it ends or the group stops. Raises VoxloopError if it dies."""
        command = [sys.executable, "-m", "voxloop.automation.child", str(self.ws.folder), *steps]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        try:
            part.tell(f"process {child.pid}: {', '.join(steps)}")
            while child.poll() is None and not self.stop.wait(LOOK_S):
                pass
            if child.poll() is None:
                part.tell("finishes what it does")
                child.terminate()
                self._drain(part, child)
            elif not self.stop.is_set():
                raise VoxloopError(f"process {child.pid} ended with {_ended(child.returncode)}")
        finally:
            if child.stdin:
                with contextlib.suppress(OSError):
                    child.stdin.close()

    def _drain(self, part: Part, child: subprocess.Popen[bytes]) -> None:
        try:
            child.wait(DRAIN_S)
        except subprocess.TimeoutExpired:
            part.tell(f"is killed, as it did not end within {DRAIN_S:.0f} s; its jobs are taken over", ok=False)
            child.kill()
            child.wait()

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join(DRAIN_S + 5)


def _ended(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"signal {signal.Signals(-code).name}"
    return f"status {code}"
