"""Wyoming's own client against its port."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong

from tests.web.conftest import served
from tests.web.live import said, silence
from voxloop.pipeline import open_loop
from voxloop.records import Recording
from voxloop.records import Transcript as Transcribed
from voxloop.speech.audio import to_pcm16


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    with open_loop(tmp_path / "served", create=True) as ws, socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        with served(ws, listening):
            yield listening.getsockname()[1]


def test_home_assistants_way_of_asking(port: int, real_speech: Path) -> None:
    async def talk() -> tuple[Info, list[str]]:
        texts = []
        async with AsyncTcpClient("127.0.0.1", port) as client:
            await client.write_event(Ping(text="here").event())
            pong = await client.read_event()
            assert pong is not None
            assert Pong.from_event(pong).text == "here"
            await client.write_event(Describe().event())
            described = await client.read_event()
            assert described is not None
            info = Info.from_event(described)
            for seed in range(2):
                await client.write_event(Transcribe(language="en").event())
                await client.write_event(AudioStart(rate=16_000, width=2, channels=1).event())
                pcm = to_pcm16(said(real_speech, 4, seed=seed)) + to_pcm16(silence(0.3))
                for place in range(0, len(pcm), 2048):
                    chunk = AudioChunk(rate=16_000, width=2, channels=1, audio=pcm[place : place + 2048])
                    await client.write_event(chunk.event())
                await client.write_event(AudioStop().event())
                kinds = []
                while True:
                    event = await asyncio.wait_for(client.read_event(), 30)
                    assert event is not None
                    kinds.append(event.type)
                    if Transcript.is_type(event.type):
                        texts.append(Transcript.from_event(event).text)
                    if event.type == "transcript-stop":
                        break
                assert kinds[0] == "transcript-start"
                assert kinds[-2:] == ["transcript", "transcript-stop"]
        return info, texts

    info, texts = asyncio.run(talk())
    (program,) = info.asr
    assert program.installed
    assert "en" in program.models[0].languages
    assert all(len(text.split()) >= 2 for text in texts)
    assert texts[0] != texts[1]


@pytest.mark.parametrize(
    "sent",
    [
        b"not JSON\n",
        b"[]\n",
        b'{"type": 5}\n',
        b'{"type": "audio-chunk", "payload_length": 99999999999}\n',
        b'{"type": "audio-chunk", "payload_length": -5}\n',
        b'{"type": "audio-start", "data": {"rate": 1, "width": 2, "channels": 1}}\n',
        b'{"type": "audio-start", "data": {"rate": 16000, "width": 4, "channels": 1}}\n',
        b'{"type": "audio-start", "data": {"rate": 16000, "width": 2, "channels": 500}}\n',
        b'{"type": "audio-start", "data": {}}\n',
    ],
)
def test_what_cannot_be_read_is_refused(port: int, sent: bytes) -> None:
    for _ in range(2):  # the server goes on
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(sent)
            answered = client.makefile("rb").read()
            assert json.loads(answered.splitlines()[0])["type"] == Error(text="").event().type


def test_a_line_without_end_is_not_kept(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client, pytest.raises(ConnectionError):
        for _ in range(1000):
            client.sendall(b"x" * (1 << 16))


def test_what_is_heard_is_kept_where_the_setting_keeps_everything(tmp_path: Path, real_speech: Path) -> None:
    pcm = to_pcm16(said(real_speech, 4))

    async def talk(port: int) -> str:
        async with AsyncTcpClient("127.0.0.1", port) as client:
            await client.write_event(AudioStart(rate=16_000, width=2, channels=1).event())
            await client.write_event(AudioChunk(rate=16_000, width=2, channels=1, audio=pcm).event())
            await client.write_event(AudioStop().event())
            while True:
                event = await asyncio.wait_for(client.read_event(), 30)
                assert event is not None
                if Transcript.is_type(event.type):
                    return Transcript.from_event(event).text

    with open_loop(tmp_path / "served", create=True, capture="all") as ws:
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            with served(ws, listening):
                text = asyncio.run(talk(listening.getsockname()[1]))
        with ws.read() as reader:
            (recording,) = reader.all(Recording)
            (transcript,) = reader.all(Transcribed)
    assert recording.speaker == "wyoming"
    assert transcript.text == text
