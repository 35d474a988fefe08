"""A live client for tests: plain messages over a WebSocket, audio paced or as fast as it is taken."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from websockets.sync.client import ClientConnection, connect

from tests.web.conftest import Running
from voxloop.speech.audio import Waveform, decode, to_pcm16

RATE = 16_000
CHUNK = 640  # samples: 40 ms
DELTA = "conversation.item.input_audio_transcription.delta"
COMPLETED = "conversation.item.input_audio_transcription.completed"
UNSTABLE = "voxloop.input_audio_transcription.unstable"


def said(folder: Path, count: int = 5, *, speaker: str = "theo", seed: int = 0) -> Waveform:
    """Digits that a person said, joined to one utterance with the hiss of a room in it."""
    rows = [json.loads(line) for line in (folder / "digits_en" / "metadata.jsonl").read_text().splitlines()]
    own = [row for row in rows if row["speaker"] == speaker]
    chance = np.random.default_rng(seed)
    digits = [decode(folder / "digits_en" / own[place]["file"]) for place in chance.integers(0, len(own), count)]
    return hiss(np.concatenate([np.concatenate([one, np.zeros(1600, np.float32)]) for one in digits]))


def hiss(waveform: Waveform) -> Waveform:
    noise = np.random.default_rng(1).standard_normal(len(waveform))
    return (waveform + 0.0005 * noise).astype(np.float32)


def silence(seconds: float) -> Waveform:
    return hiss(np.zeros(int(seconds * RATE), np.float32))


class Live:
    """One session."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.events: list[dict[str, Any]] = []

    def send(self, **event: Any) -> None:
        self.socket.send(json.dumps(event))

    def update(self, **input: Any) -> None:
        include = input.pop("include", None)
        self.send(
            type="session.update", session={"type": "transcription", "audio": {"input": input}, "include": include}
        )

    def append(self, data: bytes) -> None:
        self.send(type="input_audio_buffer.append", audio=base64.b64encode(data).decode())

    def speak(self, *waveforms: Waveform, paced: bool = False) -> None:
        """Send audio at 16 kHz."""
        pcm = to_pcm16(np.concatenate(waveforms))
        began = time.monotonic()
        for place in range(0, len(pcm), 2 * CHUNK):
            self.append(pcm[place : place + 2 * CHUNK])
            if paced:
                time.sleep(max(0.0, began + place / 2 / RATE - time.monotonic()))

    def next(self, kind: str, *, timeout: float = 30.0) -> dict[str, Any]:
        """The next event of a kind; those before it are kept as well."""
        end = time.monotonic() + timeout
        while True:
            event = json.loads(self.socket.recv(timeout=max(0.0, end - time.monotonic())))
            self.events.append(event)
            if event["type"] == kind:
                return event  # type: ignore[no-any-return]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]

    def deltas(self, item: str) -> str:
        return "".join(event["delta"] for event in self.of(DELTA) if event["item_id"] == item)


PCM_16K = {"format": {"type": "audio/pcm", "rate": RATE}}


@contextlib.contextmanager
def live(
    server: Running,
    *,
    query: str = "?intent=transcription",
    headers: dict[str, str] | None = None,
    subprotocols: Sequence[str] | None = None,
    origin: str | None = None,
) -> Iterator[Live]:
    own = {"authorization": f"Bearer {server.token}"} if headers is None else headers
    url = f"{server.url.replace('http', 'ws', 1)}/v1/realtime{query}"
    with connect(
        url,
        additional_headers=own,
        subprotocols=list(subprotocols) if subprotocols else None,  # type: ignore[arg-type]
        origin=origin,  # type: ignore[arg-type]
        proxy=None,
        max_size=None,
    ) as socket:
        yield Live(socket)
