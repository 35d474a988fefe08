"""A whole file as a client sends it: decoded within limits, cut at pauses, heard part by part among other clients."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from voxloop.families.contract import Decoding
from voxloop.records import MAX_UTTERANCE_SAMPLES
from voxloop.serving.batches import Clip, Heard, Urgency
from voxloop.speech.audio import from_pcm16, stream, to_pcm16
from voxloop.steps import transcripts, utterances

if TYPE_CHECKING:
    from voxloop.families.contract import Context, Waveform
    from voxloop.serving.batches import Batches
    from voxloop.steps.transcripts import Segment
    from voxloop.steps.utterances import Span
    from voxloop.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of speech in a file, and what will be heard in it."""

    span: Span
    first: int  # the sample that the clip begins with, its margin included
    heard: Future[Heard]

    def segment(self) -> Segment:
        """Waits until it is heard."""
        return transcripts.segment_of(self.span, self.first, self.heard.result().hypothesis)


def decoded(file: Path, *, max_seconds: float, max_bytes: int) -> Waveform:
    """A file's sound (S,) at 16 kHz. Raises AudioError."""
    # As it would be stored, so that a file is heard alike wherever it is handed in.
    return from_pcm16(b"".join(map(to_pcm16, stream(file, max_seconds=max_seconds, max_bytes=max_bytes))))


def parts(
    ws: Workspace,
    batches: Batches,
    waveform: Waveform,
    decoding: Decoding,
    *,
    context: Context,
    client: str,
    model: str | None = None,
    word_times: bool = False,
) -> Iterator[Part]:
    """Submit a file's speech, part by part in order; each is submitted before the first is waited for.

    `context` is how the model feeds clips: it decides how pieces of speech are joined, as in `transcribe_file`.
    """

    def read(start: int, end: int) -> Waveform:
        return waveform[start:end]

    joining = utterances.PHRASES if context == "trimmed" else utterances.WINDOWS
    spans = utterances.spans_in(read, len(waveform), ws.settings, joining)
    urgency = Urgency.REQUEST if len(waveform) <= MAX_UTTERANCE_SAMPLES else Urgency.FILE
    for span, (start, end) in zip(spans, utterances.with_margins(spans, len(waveform)), strict=True):
        clip = Clip(
            waveform=read(start, end),
            model=model,
            decoding=decoding,
            word_times=word_times,
            client=client,
            urgency=urgency,
        )
        yield Part(span, start, batches.submit(clip))
