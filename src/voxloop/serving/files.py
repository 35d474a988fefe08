"""A whole file as a client sends it: decoded within limits, cut at pauses, heard part by part among other clients."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from voxloop.records import MAX_UTTERANCE_SAMPLES, SAMPLE_RATE
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunking:
    """How a client wants a file to be cut; None: as the workspace's settings say."""

    threshold: float | None = None
    """Probability, 0 to 1, above which a sound is taken for speech."""
    silence_ms: int | None = None
    """A pause of this length ends a part."""
    padding_ms: int | None = None
    """Sound kept before and after speech."""


def parts(ws: Workspace, sound: Sound, context: Context, chunking: Chunking | None = None) -> list[Part]:
    """The speech of a file in parts of at most 30 s, as `transcribe_file` finds them.

    `context` is how the model feeds clips: it decides how pieces of speech are joined, unless `chunking` does.
    """
    settings, joining = ws.settings, utterances.joining(context)
    if chunking:
        kept = settings
        threshold, silence_ms, padding_ms = chunking.threshold, chunking.silence_ms, chunking.padding_ms
        settings = replace(
            kept,
            vad_threshold=kept.vad_threshold if threshold is None else threshold,
            vad_min_silence_ms=kept.vad_min_silence_ms if silence_ms is None else silence_ms,
            vad_pad_ms=kept.vad_pad_ms if padding_ms is None else padding_ms,
        )
        if chunking.silence_ms is not None:
            joining = replace(joining, gap=chunking.silence_ms * SAMPLE_RATE // 1000)
    spans = utterances.spans_in(sound.read, sound.samples, settings, joining)
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
