"""When a stream asks a model, and what it makes of the answers: real voice detection, and a model with set answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.web.live import CHUNK, said, silence
from voxloop import models
from voxloop.families.contract import Hypothesis
from voxloop.families.decoding import Decoding
from voxloop.records import Guard
from voxloop.serving.batches import Batches
from voxloop.serving.incoming import Format
from voxloop.serving.live import Completed, Delta, Detection, Event, Started, Stopped, Tail, Wanted
from voxloop.serving.streams import Stream
from voxloop.speech.audio import Waveform, to_pcm16
from voxloop.workspace import Workspace


@dataclass
class Scripted:
    """Hears two words in every second of any sound, and where guards fire only that one word."""

    kind: str
    guards: tuple[Guard, ...] = ()  # of every look while somebody speaks
    asked: list[tuple[Waveform, Decoding, bool]] = field(default_factory=list)

    def context(self, *_: Any) -> str:
        return self.kind

    def transcribe(
        self, waveforms: Sequence[Waveform], decoding: Decoding, *, word_times: bool = False
    ) -> list[Hypothesis]:
        self.asked += [(one, decoding, word_times) for one in waveforms]
        texts = [" ".join(f"w{n}" for n in range(len(one) * 2 // 16_000)) for one in waveforms]
        if self.guards and word_times:
            return [Hypothesis(text="never " * 9, confidence=1.0, guards=self.guards) for _ in texts]
        return [Hypothesis(text=text, confidence=1.0) for text in texts]


def heard(ws: Workspace, recogniser: Scripted, *waveforms: Waveform, silence_ms: int = 500) -> list[Event]:
    told: list[Event] = []

    class Models:
        @contextmanager
        def using(self, model: object = None) -> Iterator[tuple[Any, Any]]:
            yield models.base_model(ws), recogniser

    async def session() -> None:
        batches = Batches(Models().using)
        stream = Stream(
            ws,
            Models(),  # type: ignore[arg-type]
            batches,
            client="ann",
            tell=told.append,
            wanted=Wanted(detection=Detection(silence_ms=silence_ms)),
            format=Format(rate=16_000),
        )
        pcm = to_pcm16(np.concatenate(waveforms))
        for place in range(0, len(pcm), 2 * CHUNK):
            await stream.hear(pcm[place : place + 2 * CHUNK])
            await asyncio.sleep(0.005)  # as if it were spoken, in an eighth of the time
        while stream.pending:
            await asyncio.sleep(0.005)
        stream.close()
        await asyncio.to_thread(batches.close)

    asyncio.run(session())
    return told


def test_a_model_at_30_s_is_asked_in_pauses_alone(workspace: Workspace, real_speech: Path) -> None:
    recogniser = Scripted("full")
    heard(workspace, recogniser, said(real_speech, 8), silence(1.0))
    assert recogniser.asked
    for waveform, _, _ in recogniser.asked:
        assert np.abs(waveform[-int(0.2 * 16_000) :]).max() < 0.02


def test_a_model_for_short_audio_is_asked_while_somebody_speaks(workspace: Workspace, real_speech: Path) -> None:
    recogniser = Scripted("trimmed")
    told = heard(workspace, recogniser, said(real_speech, 8), silence(1.0))
    glances = [waveform for waveform, _, word_times in recogniser.asked if word_times]
    assert len(glances) >= 3
    grown = np.diff([len(waveform) for waveform in glances]) / 16_000
    assert (grown >= 0.55).all()  # not more often than every 0.6 s
    done = next(event for event in told if isinstance(event, Completed))
    deltas = "".join(event.text for event in told if isinstance(event, Delta))
    assert done.text == deltas == " ".join(f"w{n}" for n in range(len(done.text.split())))
    assert not done.contradicted
    stopped = next(place for place, event in enumerate(told) if isinstance(event, Stopped))
    assert any(isinstance(event, Delta) for event in told[:stopped])
    # What is decoded again at other temperatures is the final text alone.
    for _, decoding, word_times in recogniser.asked:
        assert decoding.guards is not None
        assert bool(decoding.guards.temperatures) is not word_times


def test_a_doubtful_look_is_not_shown(workspace: Workspace, real_speech: Path) -> None:
    recogniser = Scripted("trimmed", guards=("repetition",))
    told = heard(workspace, recogniser, said(real_speech, 4), silence(1.0))
    assert [waveform for waveform, _, word_times in recogniser.asked if word_times]
    assert not [event for event in told if isinstance(event, Tail | Delta) and "never" in event.text]
    assert any(isinstance(event, Completed) and event.text for event in told)


@pytest.mark.parametrize(("pause_s", "count"), [(0.35, 1), (1.2, 2)])
def test_a_pause_ends_an_utterance_when_it_lasts(
    workspace: Workspace, real_speech: Path, pause_s: float, count: int
) -> None:
    recogniser = Scripted("full")
    one, other = said(real_speech, 2), said(real_speech, 2, seed=5)
    told = heard(workspace, recogniser, one, silence(pause_s), other, silence(1.5), silence_ms=900)
    assert len([event for event in told if isinstance(event, Started)]) == count
    finals = [event for event in told if isinstance(event, Completed)]
    assert len(finals) == count
    # Each final is of its whole utterance, and no text was asked for twice without speech between.
    assert sum(event.seconds for event in finals) > (len(one) + len(other)) / 16_000 - 0.5
