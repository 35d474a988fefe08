"""Live speech: audio comes in piece by piece, texts go out while it is spoken.

Voice detection finds utterances. While one is spoken, what was said so far is heard again and again, from its
beginning: words that are decided (`agreement`) are told once and never taken back, the rest is told as a tail that may
change. A model that was tuned on short audio is asked every `TICK_S`; any other takes 30 s of encoding for the shortest
clip, so that it is asked at pauses alone. In a pause the final text is asked for before it is sure that the pause ends
the utterance; if speech goes on, that text was one more look at what was said so far.

An utterance (an item, to OpenAI's clients) is heard by one model, the one that serves when it begins. One that is long,
or holds a long silence, is heard in parts.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from anyio import to_thread
from ulid import ULID

from voxloop import models
from voxloop.errors import UsageError
from voxloop.families.registry import family
from voxloop.records import SAMPLE_RATE
from voxloop.serving.agreement import Agreement, joined
from voxloop.serving.batches import Clip, Heard, Urgency
from voxloop.serving.incoming import Format, Incoming
from voxloop.serving.live import Committed, Completed, Delta, Detection, Event, Failed, Started, Stopped, Tail, Wanted
from voxloop.serving.models import decoding_for
from voxloop.speech import voice
from voxloop.steps.utterances import LEVEL, MARGIN, MOST_GAIN

if TYPE_CHECKING:
    from voxloop.families.contract import Hypothesis, Waveform
    from voxloop.families.decoding import Context, Decoding
    from voxloop.records import Model
    from voxloop.serving.batches import Batches
    from voxloop.serving.models import ServedModels
    from voxloop.workspace import Workspace

TICK_S, TICK_GPU_S = 0.6, 0.3  # between two looks at what is being said
ONSET = 3  # frames of speech, 96 ms, that begin an utterance: a click is shorter
GUESS = int(0.16 * SAMPLE_RATE)  # samples of silence after which the final text is asked for
SLOW_GUESS = int(0.256 * SAMPLE_RATE)  # the same of a model at 30 s: short pauses within speech must not cost that
PART_PAUSE = 2 * SAMPLE_RATE  # samples of silence that end a part where no silence ends the utterance
PART = 20 * SAMPLE_RATE  # samples: a longer part is cut at its quietest place
CUT_FROM, CUT_TO = 10 * SAMPLE_RATE, SAMPLE_RATE // 2  # samples from its beginning and its end where it may be cut
SHORTEST = SAMPLE_RATE // 10  # samples: less than that is nothing to commit
MOST_OPEN = 8  # utterances whose text is still to come: a client that sends faster than this is heard waits


# An utterance --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Opened:
    """The model that hears an utterance, held in memory until it has."""

    model: Model
    decoding: Decoding
    glance: Decoding  # of what is said so far: a doubtful text is not decoded again, for the next look comes soon
    context: Context
    tick: int  # samples
    word_times: bool  # whether the family tells them


@dataclass(eq=False, slots=True)
class _Look:
    """One hearing of a part as far as it has come."""

    waveform: Waveform
    pause: bool
    clip: Clip | None = None  # None: its model is not loaded yet
    task: asyncio.Task[Heard] | None = None

    @property
    def seconds(self) -> float:
        return len(self.waveform) / SAMPLE_RATE

    @property
    def done(self) -> bool:
        return self.task is not None and self.task.done()

    def withdraw(self) -> bool:
        """Take it out of the queue, if it still waits there."""
        if self.task is None or self.task.done() or (self.clip is not None and self.clip.future.running()):
            return False
        return self.task.cancel()


@dataclass(eq=False, slots=True)
class _Part:
    """A stretch of an utterance that a model hears at once."""

    start: int  # sample of the session
    begin: int  # with the margin before it
    quiet: int | None = None  # where the current pause began
    ticked: int = 0  # where the last look ended
    tick: _Look | None = None
    guess: _Look | None = None  # at what may be the final text, until speech goes on
    final: _Look | None = None
    seen: int = 0  # samples of the longest look that was taken
    agreement: Agreement = field(default_factory=Agreement)
    told: bool = False
    result: Heard | None = None


@dataclass(eq=False, slots=True)
class _Item:
    """An utterance from its first sound to its text."""

    id: str
    wanted: Wanted
    opening: asyncio.Task[_Opened]
    using: ExitStack
    parts: list[_Part] = field(default_factory=list)
    tail: str = ""  # as it was told last
    held: list[Event] = field(default_factory=list)  # until the utterance before it has its text
    text: str = ""  # of its finished parts
    told: str = ""
    contradicted: bool = False
    ended: bool = False
    gone: bool = False

    @property
    def opened(self) -> _Opened | None:
        done = self.opening.done() and not self.opening.cancelled() and self.opening.exception() is None
        return self.opening.result() if done else None

    def release(self) -> None:
        """Stop whatever is still asked for it, and let its model go."""
        self.gone = True
        for part in self.parts:
            for look in (part.tick, part.guess, part.final):
                if look is not None and look.task is not None:
                    look.task.cancel()
        # A model that is being loaded has to be let go once it is.
        self.opening.add_done_callback(lambda _: self.using.close())


# A session's audio ---------------------------------------------------------------------------------------------------


class Stream:
    """The audio of one client, and the utterances in it. Belongs to one event loop; `tell` is called there."""

    def __init__(
        self,
        ws: Workspace,
        served: ServedModels,
        batches: Batches,
        *,
        client: str,
        tell: Callable[[Event], None],
        wanted: Wanted | None = None,
        format: Format | None = None,
    ) -> None:
        self.wanted = wanted or Wanted()
        self._ws, self._served, self._batches = ws, served, batches
        self._client, self._tell_client = client, tell
        self._incoming = Incoming(format or Format())
        self._voice = voice.Stream(level=LEVEL, most_gain=MOST_GAIN)
        self._audio = np.zeros(0, np.float32)  # what may still be heard
        self._first = 0  # sample of the session at which it begins
        self._framed = 0  # where voice detection has come to
        self._uncommitted = 0  # samples since the last utterance was committed
        self._onset = 0  # frames of speech in a row
        self._spoken = 0  # where speech ended last
        self._item: _Item | None = None
        self._previous: str | None = None
        self._open: deque[_Item] = deque()  # begun and without their text
        self._room = asyncio.Event()
        self._room.set()

    @property
    def format(self) -> Format:
        return self._incoming.format

    @format.setter
    def format(self, format: Format) -> None:
        if format != self._incoming.format:
            self._take(*self._rest())
            self._incoming = Incoming(format)

    @property
    def speaking(self) -> bool:
        """Whether an utterance has begun that is not committed."""
        return self._item is not None

    @property
    def pending(self) -> int:
        """Number of utterances whose text is still to come."""
        return len(self._open)

    async def hear(self, data: bytes) -> float:
        """Take audio in the client's format; how many seconds it was. Raises UsageError for a part of a sample."""
        await self._room.wait()
        waveform, chances = await to_thread.run_sync(self._listen, data)
        self._take(waveform, chances)
        return len(waveform) / SAMPLE_RATE

    def commit(self) -> None:
        """End the utterance here; without speech, its text is empty. Raises UsageError for less than 100 ms."""
        self._take(*self._rest())
        if self._item is None:
            if self._uncommitted < SHORTEST:
                raise UsageError("there is less than 100 ms of audio to commit: append some first")
            self._item = self._begin_item()
        elif self._item.parts and self._item.parts[-1].final is None:
            self._end_part(self._item, self._item.parts[-1], self._first + len(self._audio))
        self._end_item(self._item)

    def clear(self) -> None:
        """Forget what is not committed."""
        item, self._item = self._item, None
        self._onset = self._uncommitted = 0
        self._incoming.end()
        self._first += len(self._audio)
        self._audio = self._audio[:0]
        if item is not None:
            self._leave(item)

    def close(self) -> None:
        """Stop all hearing: nothing is told any more."""
        for item in self._open:
            item.release()
        self._open.clear()
        self._item = None
        self._room.set()

    # Audio -----------------------------------------------------------------------------------------------------------

    def _listen(self, data: bytes) -> tuple[Waveform, list[float]]:
        waveform = self._incoming.hear(data)
        return waveform, self._voice.hear(waveform)

    def _rest(self) -> tuple[Waveform, list[float]]:
        """What the resampler still holds."""
        rest = self._incoming.end()
        return rest, self._voice.hear(rest)

    def _take(self, waveform: Waveform, chances: Sequence[float]) -> None:
        self._audio = np.concatenate([self._audio, waveform])
        self._uncommitted += len(waveform)
        for chance in chances:
            self._framed += voice.FRAME
            self._step(chance)
        self._forget()

    def _forget(self) -> None:
        """Drop audio that no utterance can begin with any more."""
        if self._item is not None and self._item.parts and self._item.parts[-1].final is None:
            keep = self._item.parts[-1].begin
        else:
            keep = self._framed - self._before - ONSET * voice.FRAME
        if keep - self._first > SAMPLE_RATE:
            self._audio = self._audio[keep - self._first :]
            self._first = keep

    def _read(self, start: int, end: int) -> Waveform:
        return self._audio[max(0, start - self._first) : end - self._first].copy()

    @property
    def _before(self) -> int:
        """Samples before speech that a model is given."""
        asked = self.wanted.detection
        return max(MARGIN, asked.prefix_ms * SAMPLE_RATE // 1000 if asked else 0)

    # Utterances ------------------------------------------------------------------------------------------------------

    def _step(self, chance: float) -> None:
        """Take one more frame: where speech begins, pauses, goes on and ends."""
        threshold = self.wanted.detection.threshold if self.wanted.detection else Detection().threshold
        item = self._item
        part = item.parts[-1] if item and item.parts and item.parts[-1].final is None else None
        speech = chance >= threshold
        if item is None or part is None:
            going_on = speech or (self._onset > 0 and chance >= threshold - voice.DROP)
            self._onset = self._onset + 1 if going_on else 0
            if self._onset >= ONSET:
                self._begin_part(self._framed - self._onset * voice.FRAME)
                self._onset = 0
            return
        if speech:
            self._go_on(part)
        elif chance < threshold - voice.DROP and part.quiet is None:
            part.quiet = self._framed - voice.FRAME
        if part.quiet is None:
            self._tick(item, part)
        else:
            self._pause(item, part, self._framed - part.quiet)
        if part.final is None and self._framed - part.start >= PART:
            cut = self._quietest(part.start + CUT_FROM, self._framed - CUT_TO)
            self._end_part(item, part, cut)
            item.parts.append(_Part(start=cut, begin=cut, ticked=cut))

    def _begin_part(self, start: int) -> None:
        # At most half of the gap to the speech before it, as with the margins of utterances in a file.
        begin = max(start - self._before, (self._spoken + start) // 2, self._first)
        if self._item is None:
            self._item = self._begin_item()
            if self.wanted.detection is not None:
                prefix = self.wanted.detection.prefix_ms * SAMPLE_RATE // 1000
                self._tell_client(Started(item=self._item.id, at_ms=_ms(max(0, start - prefix))))
        self._item.parts.append(_Part(start=start, begin=begin, ticked=start))

    def _begin_item(self) -> _Item:
        using = ExitStack()
        item = _Item(f"item_{ULID()}", self.wanted, asyncio.create_task(self._opened(self.wanted, using)), using)
        item.opening.add_done_callback(lambda task: task.cancelled() or task.exception())  # looks tell of it
        self._open.append(item)
        if len(self._open) >= MOST_OPEN:
            self._room.clear()
        return item

    async def _opened(self, wanted: Wanted, using: ExitStack) -> _Opened:
        self._batches.admit(Urgency.LIVE_FINAL)

        def load() -> _Opened:
            model, recogniser = using.enter_context(self._served.using(wanted.model))
            asked = decoding_for(self._ws, model, wanted.language, wanted.prompt, wanted.keywords)
            gpu = models.device(self._ws, asked.engine).startswith("cuda")
            return _Opened(
                model=model,
                decoding=asked,
                glance=replace(asked, guards=replace(asked.guards, temperatures=()) if asked.guards else None),
                context=recogniser.context(asked.audio_context, asked.untuned),
                tick=int((TICK_GPU_S if gpu else TICK_S) * SAMPLE_RATE),
                word_times="word times" in family(model.family).capabilities,
            )

        return await to_thread.run_sync(load)

    def _go_on(self, part: _Part) -> None:
        """Speech: a pause that was, ended no utterance."""
        part.quiet = None
        if part.guess is not None:
            part.guess.withdraw()
            part.guess = None

    def _tick(self, item: _Item, part: _Part) -> None:
        """Look at what was said so far, where the model is quick and has no earlier look in hand."""
        opened = item.opened
        if opened is None or opened.context == "full" or self._framed - part.ticked < opened.tick:
            return
        if part.tick is None or part.tick.done or part.tick.withdraw():
            part.ticked = self._framed
            part.tick = self._look(item, part, self._read(part.begin, self._framed), Urgency.LIVE, pause=False)

    def _pause(self, item: _Item, part: _Part, quiet: int) -> None:
        """Silence: ask for what may be the final text, and end the utterance when it lasts."""
        silence = item.wanted.detection.silence_ms * SAMPLE_RATE // 1000 if item.wanted.detection else PART_PAUSE
        slow = item.opened is not None and item.opened.context == "full"
        if part.guess is None and quiet >= min(silence, SLOW_GUESS if slow else GUESS):
            part.guess = self._final_look(item, part, self._framed)
        if quiet >= silence:
            self._spoken = self._framed - quiet
            self._end_part(item, part, self._framed)
            if item.wanted.detection is not None:
                self._tell_client(Stopped(item=item.id, at_ms=_ms(self._spoken)))
                self._end_item(item)

    def _end_part(self, item: _Item, part: _Part, end: int) -> None:
        part.final = part.guess or self._final_look(item, part, end)
        if part.tick is not None:
            part.tick.withdraw()
        self._settle(item)

    def _end_item(self, item: _Item) -> None:
        self._tell_client(Committed(item=item.id, previous=self._previous))
        self._previous, self._item = item.id, None
        self._onset = self._uncommitted = 0
        item.ended = True
        self._settle(item)

    def _quietest(self, start: int, end: int) -> int:
        """The middle of the quietest 160 ms in a stretch."""
        power = self._read(start, end) ** 2
        frames = power[: len(power) // voice.FRAME * voice.FRAME].reshape(-1, voice.FRAME).mean(axis=1)
        smooth = np.convolve(frames, np.ones(5), mode="valid")
        return start + (int(smooth.argmin()) * 2 + 5) * voice.FRAME // 2

    # Texts -----------------------------------------------------------------------------------------------------------

    def _final_look(self, item: _Item, part: _Part, end: int) -> _Look:
        """Hear a part to its end. The margin that a model wants after speech is not waited for: it is silence."""
        heard = self._read(part.begin, end)
        if part.quiet is not None:
            heard = np.pad(heard, (0, max(0, MARGIN - (end - part.quiet))))
        return self._look(item, part, heard, Urgency.LIVE_FINAL, pause=True)

    def _look(self, item: _Item, part: _Part, waveform: Waveform, urgency: Urgency, *, pause: bool) -> _Look:
        look = _Look(waveform, pause)

        async def hear() -> Heard:
            opened = await asyncio.shield(item.opening)
            final = urgency is Urgency.LIVE_FINAL
            look.clip = Clip(
                waveform=waveform,
                model=opened.model,
                decoding=opened.decoding if final else opened.glance,
                word_times=opened.word_times and (item.wanted.words or not final),
                client=self._client,
                urgency=urgency,
            )
            return await asyncio.wrap_future(self._batches.submit(look.clip))

        look.task = asyncio.create_task(hear())
        look.task.add_done_callback(lambda _: self._looked(item, part, look))
        return look

    def _looked(self, item: _Item, part: _Part, look: _Look) -> None:
        """A look is over: tell what it decides."""
        task = look.task
        if item.gone or task is None or task.cancelled():
            return
        if (error := task.exception()) is not None:
            self._fail(item, error)
            return
        if look is not part.final and part.result is None and self._next_part(item) is part:
            self._partial(item, part, look, task.result().hypothesis)
        self._settle(item)

    def _partial(self, item: _Item, part: _Part, look: _Look, hypothesis: Hypothesis) -> None:
        if len(look.waveform) < part.seen:
            return  # a later look was quicker
        if hypothesis.guards and not look.pause:
            return  # two looks may agree on a repetition that nobody said
        part.seen = len(look.waveform)
        new, tail = part.agreement.take(hypothesis, look.seconds, pause=look.pause)
        self._tell_words(item, part, new)
        if (text := "".join(tail)) != item.tail:
            item.tail = text
            self._tell(item, Tail(item=item.id, text=text))

    def _tell_words(self, item: _Item, part: _Part, words: Sequence[str]) -> None:
        text = "".join(words)
        if not text:
            return
        if not part.told:
            text = joined(item.told, text.lstrip())[len(item.told) :]
            part.told = True
        item.told += text
        self._tell(item, Delta(item=item.id, text=text))

    def _settle(self, item: _Item) -> None:
        """Take the final texts of parts in their order; with the last one the utterance is complete."""
        while not item.gone and (part := self._next_part(item)) is not None and part.final is not None:
            task = part.final.task
            if task is None or not task.done() or task.cancelled() or task.exception() is not None:
                return  # `_looked` tells of an error
            part.result = task.result()
            text = part.result.hypothesis.text.strip()
            rest, contradicted = part.agreement.end(text)
            self._tell_words(item, part, rest)
            item.text = joined(item.text, text)
            item.contradicted |= contradicted
        if item.ended and not item.gone and self._next_part(item) is None:
            self._complete(item)

    def _next_part(self, item: _Item) -> _Part | None:
        """The first part without its final text."""
        return next((part for part in item.parts if part.result is None), None)

    def _complete(self, item: _Item) -> None:
        results = [part.result for part in item.parts if part.result is not None]
        sounds = [part.final.waveform for part in item.parts if part.final is not None]
        completed = Completed(
            item=item.id,
            text=item.text,
            model=results[0].model if results else None,
            hypotheses=tuple(one.hypothesis for one in results),
            samples=tuple(map(len, sounds)),
            waveform=np.concatenate(sounds) if sounds else np.zeros(0, np.float32),
            contradicted=item.contradicted,
        )
        self._tell(item, completed)
        self._leave(item)

    def _fail(self, item: _Item, error: BaseException) -> None:
        if not item.gone:
            self._tell(item, Failed(item=item.id, error=error))
            if self._item is item:
                self._item = None
            self._leave(item)

    def _tell(self, item: _Item, event: Event) -> None:
        """Tell an utterance's texts after those of the one before it: clients join deltas as they come."""
        if self._open and self._open[0] is item:
            self._tell_client(event)
        else:
            item.held.append(event)

    def _leave(self, item: _Item) -> None:
        """Forget an utterance that is over, and tell what waited behind it."""
        item.release()
        while self._open and self._open[0].gone:
            gone = self._open.popleft()
            for event in gone.held:
                self._tell_client(event)
            gone.held = []
            if self._open:
                waiting, self._open[0].held = self._open[0].held, []
                for event in waiting:
                    self._tell_client(event)
        if len(self._open) < MOST_OPEN:
            self._room.set()


def _ms(sample: int) -> int:
    return sample * 1000 // SAMPLE_RATE
