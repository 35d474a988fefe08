"""A whole file as a client sends it: decoded within limits, cut at pauses, heard part by part among other clients."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from voxloop.records import MAX_UTTERANCE_SAMPLES
from voxloop.serving.batches import Clip, Heard, Urgency
from voxloop.steps import transcripts, utterances

if TYPE_CHECKING:
    from voxloop.families.contract import Context, Decoding
    from voxloop.records import Model
    from voxloop.serving.batches import Batches
    from voxloop.speech.spooled import Sound
    from voxloop.steps.transcripts import Segment
    from voxloop.steps.utterances import Span
    from voxloop.workspace import Workspace

AHEAD = 8  # parts of one file that wait at a time: memory does not grow with its length


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A stretch of speech in a file, and what of it a model is given."""

    sound: Sound
    span: Span
    given: Span  # with its margins

    def segment(self, heard: Heard) -> Segment:
        """What was heard in it, with times from the file's beginning."""
        return transcripts.segment_of(self.span, self.given[0], heard.hypothesis)


def parts(ws: Workspace, sound: Sound, context: Context) -> list[Part]:
    """The speech of a file in parts of at most 30 s, as `transcribe_file` finds them.

    `context` is how the model feeds clips: it decides how pieces of speech are joined.
    """
    spans = utterances.spans_in(sound.read, sound.samples, ws.settings, utterances.joining(context))
    given = utterances.with_margins(spans, sound.samples)
    return [Part(sound=sound, span=span, given=wider) for span, wider in zip(spans, given, strict=True)]


def urgency_of(sound: Sound) -> Urgency:
    """How urgent a file's parts are: what fits into one clip is a request, anything longer a file."""
    return Urgency.REQUEST if sound.samples <= MAX_UTTERANCE_SAMPLES else Urgency.FILE


async def hear(
    batches: Batches,
    parts: Sequence[Part],
    decoding: Decoding,
    *,
    model: Model,
    client: str,
    urgency: Urgency,
    word_times: bool = False,
) -> AsyncGenerator[tuple[Part, Heard], None]:
    """What is heard in each part, in order, as it comes. Leaving early takes what still waits out of the queue."""
    waiting: deque[tuple[Part, asyncio.Future[Heard]]] = deque()
    left = deque(parts)
    try:
        while left or waiting:
            while left and len(waiting) < AHEAD:
                part = left.popleft()
                clip = Clip(
                    waveform=part.sound.read(*part.given),
                    model=model,
                    decoding=decoding,
                    word_times=word_times,
                    client=client,
                    urgency=urgency,
                )
                waiting.append((part, asyncio.wrap_future(batches.submit(clip))))
            part, heard = waiting.popleft()
            yield part, await heard
    finally:
        for _, heard in waiting:
            heard.cancel()
