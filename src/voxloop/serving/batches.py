"""Batches across clients: which clips are decoded together, and whose turn it is.

The unit of work is a clip of at most 30 s, never a file, so that a short request never waits for a long one to end.
Clips of one model, one way of decoding and like length are decoded together. Who comes next is decided by urgency
first; among clips of equal urgency the client that was given the fewest seconds of audio so far comes first.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, cast

from voxloop.errors import VoxloopError
from voxloop.records import SAMPLE_RATE
from voxloop.serving.adapters import OneAdapter

if TYPE_CHECKING:
    from voxloop.families.contract import Decoding, Hypothesis, Recogniser, Waveform
    from voxloop.records import Model

log = logging.getLogger(__name__)

QUANTUM_S = 0.25  # what a batch may take at most where clips are fed at their own length; a clip is never cut
FILE_SHARE = 0.2  # of the time, what parts of files are given also while more urgent clips wait
FIRST_RATE = 0.3  # seconds of work for a second of audio, until the first batches have shown what it is
RATE_MEMORY = 0.8  # how much of the estimate stays when a batch has ended
MOST_WAIT_S = 120.0  # clients are asked to come back after so many seconds at most


class Urgency(IntEnum):
    """Lower is sooner."""

    LIVE_FINAL = 0
    """The last word on an utterance that somebody has just finished speaking."""
    LIVE = 1
    """What is heard so far of an utterance."""
    REQUEST = 2
    """A request of at most 30 s, which somebody waits for."""
    FILE = 3
    """A part of a longer file."""
    BULK = 4
    """The pipeline's own work, when nobody waits."""


class QueueFull(VoxloopError):
    """More waits than can be done in time; come back after `retry_after_s` seconds."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"too much is waiting: try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Heard:
    """What a model heard in a clip, and which model it was."""

    hypothesis: Hypothesis
    model: str  # id


@dataclass(eq=False, kw_only=True, slots=True)
class Clip:
    """One clip of at most 30 s, until it is heard. Cancelling `future` takes it out of the queue."""

    waveform: Waveform
    model: Model
    decoding: Decoding
    word_times: bool = False
    client: str = ""
    urgency: Urgency = Urgency.REQUEST
    future: Future[Heard] = field(default_factory=Future)

    @property
    def seconds(self) -> float:
        return len(self.waveform) / SAMPLE_RATE

    @property
    def kind(self) -> tuple[object, ...]:
        """Clips that differ in this are not decoded together, unless their models are adapters of one base."""
        return (self.model.id, self.decoding, self.word_times)


Using = Callable[["Model"], AbstractContextManager[tuple["Model", "Recogniser"]]]
"""Holds a model in memory for as long as a batch needs it."""
Mixing = Callable[["Model"], "tuple[str, ...] | None"]
"""What adapters of one base that may share a batch have in common; None for a model that is heard by itself."""


class Batches:
    """One thread that decodes what clients submit, until it is closed. Safe to be used from many threads."""

    def __init__(
        self, using: Using, *, mixing: Mixing | None = None, max_wait_s: float = 30.0, quantum_s: float = QUANTUM_S
    ) -> None:
        self._using = using
        self._mixing = mixing
        self._max_wait_s = max_wait_s
        self._quantum_s = quantum_s
        self._waiting: dict[Urgency, dict[str, deque[Clip]]] = {urgency: {} for urgency in Urgency}
        self._given_s: dict[str, float] = defaultdict(float)  # seconds of audio done for each client that waits
        self._spent_s = dict.fromkeys(Urgency, 0.0)
        self._rate = FIRST_RATE
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="voxloop-batches", daemon=True)
        self._thread.start()

    def admit(self, urgency: Urgency) -> None:
        """Raise QueueFull where what comes now would have to wait too long. Asked once for a request or a file."""
        with self._changed:
            wait_s = self._wait_s(urgency)
        if wait_s > self._max_wait_s:
            raise QueueFull(min(math.ceil(wait_s), int(MOST_WAIT_S)))

    def submit(self, clip: Clip) -> Future[Heard]:
        """Queue a clip; its future has the text."""
        with self._changed:
            if self._closing:
                raise VoxloopError("the server is ending: nothing more is taken")
            of_class = self._waiting[clip.urgency]
            if clip.client not in of_class:
                of_class[clip.client] = deque()
                # Whoever comes anew starts with those who wait, not with a credit from when nothing was asked.
                others = [self._given_s[client] for client in of_class if client != clip.client]
                self._given_s[clip.client] = max(self._given_s[clip.client], min(others, default=0.0))
            of_class[clip.client].append(clip)
            self._changed.notify()
        return clip.future

    def close(self, *, drain: bool = True) -> None:
        """End the thread: after all that waits, or with the batch in hand."""
        with self._changed:
            self._closing = True
            if not drain:
                for clients in self._waiting.values():
                    for clips in clients.values():
                        for clip in clips:
                            clip.future.cancel()
                    clients.clear()
            self._changed.notify()
        self._thread.join()

    def waiting_s(self) -> dict[str, float]:
        """Seconds of audio that wait, by urgency."""
        with self._changed:
            return {urgency.name.lower(): self._queued_s(urgency) for urgency in Urgency}

    def _queued_s(self, urgency: Urgency) -> float:
        clips = (clip for clips in self._waiting[urgency].values() for clip in clips)
        return sum(clip.seconds for clip in clips if not clip.future.cancelled())

    def _wait_s(self, urgency: Urgency) -> float:
        """How long a clip of this urgency would wait by what has been measured."""
        return self._rate * sum(self._queued_s(other) for other in Urgency if other <= urgency)

    # The thread ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                batch = self._next()
                while not batch:
                    if self._closing:
                        return
                    self._changed.wait()
                    batch = self._next()
            self._decode(batch)

    def _decode(self, batch: Sequence[Clip]) -> None:
        first = batch[0]
        began = time.perf_counter()
        try:
            with ExitStack() as held:
                speakers = {id: held.enter_context(self._using(model))[1] for id, model in _models(batch).items()}
                recogniser, waveforms = speakers[first.model.id], [clip.waveform for clip in batch]
                if isinstance(recogniser, OneAdapter):
                    own = [cast("OneAdapter", speakers[clip.model.id]) for clip in batch]
                    heard = recogniser.transcribe_with(own, waveforms, first.decoding, word_times=first.word_times)
                else:
                    heard = recogniser.transcribe(waveforms, first.decoding, word_times=first.word_times)
        except Exception as error:  # noqa: BLE001 - it belongs to the clients whose clips these are
            for clip in batch:
                clip.future.set_exception(error)
            return
        for clip, hypothesis in zip(batch, heard, strict=True):
            clip.future.set_result(Heard(hypothesis=hypothesis, model=clip.model.id))
        took_s, audio_s = time.perf_counter() - began, sum(clip.seconds for clip in batch)
        with self._changed:
            self._spent_s[first.urgency] += took_s
            if audio_s:
                self._rate = RATE_MEMORY * self._rate + (1 - RATE_MEMORY) * took_s / audio_s

    def _next(self) -> list[Clip]:
        """The clips to decode now, taken out of the queue: the first by its turn, then others like it."""
        urgency = self._class()
        if urgency is None:
            return []
        batch: list[Clip] = []
        room_s = self._quantum_s / max(self._rate, 1e-6)
        while (clip := self._turn(urgency, like=batch[0] if batch else None, room_s=room_s)) is not None:
            batch.append(clip)
            room_s -= clip.seconds
        return batch

    def _class(self) -> Urgency | None:
        """The most urgent class that waits; parts of files are given their share before it."""
        waiting = [urgency for urgency in Urgency if self._drop_cancelled(urgency)]
        if not waiting:
            return None
        spent = sum(self._spent_s.values())
        if Urgency.FILE in waiting and self._spent_s[Urgency.FILE] < FILE_SHARE * spent:
            return Urgency.FILE
        return waiting[0]

    def _kind(self, clip: Clip) -> tuple[object, ...]:
        shared = self._mixing(clip.model) if self._mixing else None
        return (shared, clip.decoding, clip.word_times) if shared else clip.kind

    def _drop_cancelled(self, urgency: Urgency) -> bool:
        """Forget clips that nobody waits for any more; whether any are left."""
        clients = self._waiting[urgency]
        for client in list(clients):
            while clients[client] and clients[client][0].future.cancelled():
                clients[client].popleft()
            if not clients[client]:
                del clients[client]
        return bool(clients)

    def _turn(self, urgency: Urgency, *, like: Clip | None, room_s: float) -> Clip | None:
        """The next clip of a class, from the client that was given least; behind a first one only such as fit to it."""
        clients = self._waiting[urgency]
        for client in sorted(clients, key=lambda client: self._given_s[client]):
            clip = clients[client][0]
            if like is not None and (self._kind(clip) != self._kind(like) or clip.seconds > room_s):
                continue
            clients[client].popleft()
            if not clients[client]:
                del clients[client]
            if clip.future.set_running_or_notify_cancel():
                self._given_s[client] += clip.seconds
                return clip
            return self._turn(urgency, like=like, room_s=room_s)
        return None


def _models(batch: Sequence[Clip]) -> dict[str, Model]:
    return {clip.model.id: clip.model for clip in batch}
