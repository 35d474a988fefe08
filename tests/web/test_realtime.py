"""/v1/realtime: OpenAI's and LiveKit's clients as they are, and what a session tells a client of its own."""

from __future__ import annotations

import asyncio
import base64
import time
from pathlib import Path

import numpy as np
import openai
import pytest

from tests.web.conftest import Running
from tests.web.live import COMPLETED, DELTA, PCM_16K, UNSTABLE, hiss, live, said, silence
from voxloop.speech.audio import to_pcm16
from voxloop.steps.transcripts import transcribe_file


def test_openais_client_is_served(server: Running, real_speech: Path) -> None:
    import soxr
    from openai.types import realtime as types

    spoken = soxr.resample(np.concatenate([said(real_speech), silence(0.8)]), 16_000, 24_000)
    expected: list[object] = []

    async def session() -> None:
        client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=server.token, max_retries=0)
        async with client.realtime.connect(model="gpt-realtime") as connection:
            first = await connection.recv()
            assert isinstance(first, types.SessionCreatedEvent)
            assert first.session.type == "transcription"
            await connection.session.update(
                session={
                    "type": "transcription",
                    "audio": {
                        "input": {
                            "format": {"type": "audio/pcm", "rate": 24000},
                            "noise_reduction": {"type": "near_field"},
                            "transcription": {"model": "gpt-4o-transcribe", "language": "en"},
                            "turn_detection": {"type": "server_vad", "silence_duration_ms": 400},
                        }
                    },
                    "include": ["item.input_audio_transcription.logprobs"],
                }
            )
            pcm = to_pcm16(spoken)
            for place in range(0, len(pcm), 4800):
                await connection.input_audio_buffer.append(audio=base64.b64encode(pcm[place : place + 4800]).decode())
            async for event in connection:
                expected.append(event)
                if isinstance(event, types.ConversationItemInputAudioTranscriptionCompletedEvent):
                    return

    asyncio.run(session())
    kinds = [event.type for event in expected if event.type != DELTA]  # type: ignore[attr-defined]
    assert kinds == [
        "session.updated",
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        COMPLETED,
    ]
    done = expected[-1]
    assert isinstance(done, types.ConversationItemInputAudioTranscriptionCompletedEvent)
    assert len(done.transcript.split()) >= 3
    assert done.usage.type == "duration"
    assert done.logprobs
    assert [word.token for word in done.logprobs] == done.transcript.split()
    assert server.ws is not None
    # The library builds events without checking them: what was sent has every field in its place and type.
    for event in expected:
        type(event).model_validate(event.model_dump())  # type: ignore[attr-defined]


def test_livekits_plugin_is_served(server: Running, real_speech: Path) -> None:
    pytest.importorskip("livekit.plugins.openai")
    import aiohttp
    import soxr
    from livekit import rtc
    from livekit.agents import stt
    from livekit.agents.utils import http_context
    from livekit.plugins import openai as plugin

    spoken = to_pcm16(soxr.resample(np.concatenate([said(real_speech), silence(1.0)]), 16_000, 24_000))
    heard: list[stt.SpeechEvent] = []

    async def session() -> None:
        async with aiohttp.ClientSession() as http:
            http_context._ContextVar.set(lambda: http)  # what a LiveKit worker does for its jobs
            recogniser = plugin.STT(
                base_url=f"{server.url}/v1", api_key=server.token, model="gpt-4o-mini-transcribe", use_realtime=True
            )
            async with recogniser.stream() as stream:
                for place in range(0, len(spoken), 2400):
                    part = spoken[place : place + 2400]
                    stream.push_frame(rtc.AudioFrame(part, 24_000, 1, len(part) // 2))
                async for event in stream:
                    heard.append(event)
                    if event.type == stt.SpeechEventType.FINAL_TRANSCRIPT:
                        break
            await recogniser.aclose()

    asyncio.run(session())
    kinds = [event.type for event in heard]
    assert stt.SpeechEventType.START_OF_SPEECH in kinds
    assert stt.SpeechEventType.END_OF_SPEECH in kinds
    assert len(heard[-1].alternatives[0].text.split()) >= 3


def test_words_come_while_they_are_spoken_and_are_never_taken_back(server: Running, real_speech: Path) -> None:
    with live(server) as session:
        session.update(**PCM_16K, include=["voxloop.unstable"])
        session.speak(said(real_speech, 8), silence(0.8), paced=True)
        sent = time.monotonic()
        done = session.next(COMPLETED)
        assert time.monotonic() - sent < 5
    assert done["model"].startswith("sha256-")
    first = next(index for index, event in enumerate(session.events) if event["type"] == DELTA)
    stopped = next(i for i, event in enumerate(session.events) if event["type"].endswith("speech_stopped"))
    assert first < stopped
    assert session.of(UNSTABLE)
    item = done["item_id"]
    assert {event["item_id"] for event in session.of(DELTA)} == {item}
    # The starter may change its mind about a digit; what deltas said of it stays said.
    told, final = session.deltas(item).split(), done["transcript"].split()
    assert told[: len(told) // 3] == final[: len(told) // 3]


def test_what_is_unstable_is_told_only_where_asked_for(server: Running, real_speech: Path) -> None:
    with live(server) as session:
        session.update(**PCM_16K)
        session.speak(said(real_speech, 6), silence(0.8), paced=True)
        session.next(COMPLETED)
    assert session.of(UNSTABLE) == []


def test_a_client_may_end_utterances_itself(server: Running, real_speech: Path, tmp_path: Path) -> None:
    import soundfile

    first, second = said(real_speech, 4), said(real_speech, 5, seed=3)
    with live(server) as session:
        session.update(**PCM_16K, turn_detection=None)
        texts = []
        previous = None
        for waveform in (first, second):
            session.speak(waveform)
            session.send(type="input_audio_buffer.commit")
            committed = session.next("input_audio_buffer.committed")
            assert committed["previous_item_id"] == previous
            previous = committed["item_id"]
            done = session.next(COMPLETED)
            assert done["item_id"] == previous
            texts.append(done["transcript"])
        assert not [event for event in session.events if "speech_" in event["type"]]
    # As a file the same audio gives the same text, where its end leaves the model as much silence.
    soundfile.write(tmp_path / "first.wav", first, 16_000)
    assert texts[0].split()[:3] == transcribe_file(server.ws, tmp_path / "first.wav").text.split()[:3]


def test_clear_forgets_and_nothing_cannot_be_committed(server: Running, real_speech: Path) -> None:
    with live(server) as session:
        session.update(**PCM_16K, turn_detection=None)
        session.speak(said(real_speech, 4))
        session.send(type="input_audio_buffer.clear")
        session.next("input_audio_buffer.cleared")
        session.send(type="input_audio_buffer.commit", event_id="mine")
        error = session.next("error")["error"]
        assert (error["code"], error["event_id"]) == ("input_audio_buffer_commit_empty", "mine")
        session.speak(silence(0.5))
        session.send(type="input_audio_buffer.commit")
        done = session.next(COMPLETED)
        assert (done["transcript"], done["model"]) == ("", None)  # no model is asked about silence


@pytest.mark.parametrize(("kind", "law"), [("audio/pcmu", "mulaw"), ("audio/pcma", "alaw")])
def test_telephone_audio_is_heard(server: Running, real_speech: Path, kind: str, law: str) -> None:
    import av

    spoken = np.concatenate([said(real_speech, 4), silence(0.8)])
    coder = av.CodecContext.create(f"pcm_{law}", "w")
    coder.sample_rate, coder.layout, coder.format = 8_000, "mono", "s16"
    import soxr

    narrow = np.frombuffer(to_pcm16(soxr.resample(spoken, 16_000, 8_000)), "<i2")
    frame = av.AudioFrame.from_ndarray(narrow[None], format="s16", layout="mono")
    frame.sample_rate = 8_000
    coded = b"".join(bytes(packet) for packet in [*coder.encode(frame), *coder.encode(None)])
    with live(server) as session:
        session.update(format={"type": kind})
        assert session.next("session.updated")["session"]["audio"]["input"]["format"] == {"type": kind}
        for place in range(0, len(coded), 320):
            session.append(coded[place : place + 320])
        assert len(session.next(COMPLETED)["transcript"].split()) >= 2


def test_utterances_are_told_in_order_and_long_silence_between_them_is_nothing(
    server: Running, real_speech: Path
) -> None:
    with live(server) as session:
        session.update(**PCM_16K)
        for seed in range(3):
            session.speak(said(real_speech, 3, seed=seed), silence(3.0))
        items = [session.next(COMPLETED)["item_id"] for _ in range(3)]
        starts = session.of("input_audio_buffer.speech_started")
        assert [event["item_id"] for event in starts] == items
        stops = [event["audio_end_ms"] for event in session.of("input_audio_buffer.speech_stopped")]
        assert all(start["audio_start_ms"] < stop for start, stop in zip(starts, stops, strict=True))
        gaps = [after["audio_start_ms"] - stop for after, stop in zip(starts[1:], stops, strict=False)]
        assert all(2_300 <= gap <= 3_300 for gap in gaps)  # 3 s less the margin before speech
        seen: list[str] = []
        for event in session.events:
            if event["type"] in (DELTA, COMPLETED) and event["item_id"] not in seen:
                seen.append(event["item_id"])
        assert seen == items
        session.speak(hiss(np.zeros(16_000 * 5, np.float32)))
        session.send(type="input_audio_buffer.clear")
        session.next("input_audio_buffer.cleared")
        assert len(session.of("input_audio_buffer.speech_started")) == 3


def test_long_speech_is_heard_in_parts(server: Running, real_speech: Path) -> None:
    with live(server) as session:
        session.update(**PCM_16K)
        session.speak(*[said(real_speech, 8, seed=seed) for seed in range(9)], silence(0.8))
        done = session.next(COMPLETED, timeout=120)
    assert 33 < done["usage"]["seconds"] < 60
    assert len(done["transcript"].split()) > 25  # the starter learnt strings of a few digits
