"""A client of /v1/realtime for a terminal: a microphone, or a file played at its own pace, and the events that answer.

The microphone is read by sounddevice (PortAudio), in a thread of its own; a slow network makes no gap in the audio.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from voxloop.errors import UsageError, VoxloopError, first_line, install_command
from voxloop.records import SAMPLE_RATE
from voxloop.speech.audio import decode, to_pcm16

CHUNK_S = 0.04
END_S = 1.0  # of silence after a file, so that its last utterance ends
ANSWER_S = 60.0  # longest wait for the text of what was said
COMPLETED = "conversation.item.input_audio_transcription.completed"
FAILED = "conversation.item.input_audio_transcription.failed"


class Source:
    """PCM in pieces of 40 ms at `rate`, until it ends."""

    rate = SAMPLE_RATE

    def pieces(self) -> Iterator[bytes]:
        """Yield audio as it is said."""
        raise NotImplementedError


class FileSource(Source):
    """A file, played at its own pace as if somebody spoke it, with a second of silence behind it."""

    def __init__(self, path: Path) -> None:
        self._pcm = to_pcm16(decode(path)) + bytes(2 * int(END_S * SAMPLE_RATE))

    def pieces(self) -> Iterator[bytes]:
        size = 2 * int(CHUNK_S * self.rate)
        began = time.monotonic()
        for place in range(0, len(self._pcm), size):
            time.sleep(max(0.0, began + place / 2 / self.rate - time.monotonic()))
            yield self._pcm[place : place + size]


class Microphone(Source):
    """An input device of this machine, by name or number (None: the default one), until `stop` is set."""

    def __init__(self, device: str | int | None, stop: threading.Event) -> None:
        try:
            import sounddevice
        except (ImportError, OSError) as error:  # OSError: the library is there, PortAudio is not
            raise UsageError(
                f"the microphone cannot be used ({first_line(error)}): install sounddevice with "
                f"`{install_command('listen')}` and PortAudio (Debian, Ubuntu: apt install libportaudio2), "
                "or play a file with --file"
            ) from error
        self._stop = stop
        self._pieces: queue.Queue[bytes] = queue.Queue()
        try:
            known = sounddevice.query_devices(device, "input")
            # What the device records in by itself is taken, where it cannot be asked for 16 kHz.
            self.rate = SAMPLE_RATE
            try:
                sounddevice.check_input_settings(device=device, channels=1, dtype="int16", samplerate=SAMPLE_RATE)
            except sounddevice.PortAudioError:
                self.rate = int(known["default_samplerate"])
            self._input = sounddevice.RawInputStream(
                samplerate=self.rate,
                blocksize=int(CHUNK_S * self.rate),
                device=device,
                channels=1,
                dtype="int16",
                callback=lambda data, *_: self._pieces.put(bytes(data)),
            )
        except (ValueError, sounddevice.PortAudioError) as error:
            raise UsageError(
                f"no microphone can be opened ({first_line(error)}): choose another --device, or play a --file"
            ) from error

    def pieces(self) -> Iterator[bytes]:
        with self._input:
            while not self._stop.is_set():
                try:
                    yield self._pieces.get(timeout=0.2)
                except queue.Empty:
                    continue


def listen(
    source: Source, *, url: str, token: str | None, model: str | None = None, language: str | None = None
) -> Iterator[dict[str, Any]]:
    """Send a source to a server, and yield its events until the source ends and all that was said has its text.

    `url` is the server's, such as http://127.0.0.1:8321. Raises UsageError where it does not answer, and VoxloopError
    for an error that it tells.
    """
    input: dict[str, Any] = {"format": {"type": "audio/pcm", "rate": source.rate}}
    transcription = {name: value for name, value in (("model", model), ("language", language)) if value}
    if transcription:
        input["transcription"] = transcription
    session = {"type": "transcription", "audio": {"input": input}, "include": ["voxloop.unstable"]}
    with ExitStack() as stack:
        socket = stack.enter_context(_connected(url, token))
        socket.send(json.dumps({"type": "session.update", "session": session}))
        ended, closed = threading.Event(), threading.Event()
        sender = threading.Thread(target=_send, args=(source, socket, ended, closed), daemon=True)
        sender.start()
        stack.callback(closed.set)
        open_items: set[str] = set()
        ended_at: float | None = None
        while True:
            if ended.is_set():
                ended_at = ended_at or time.monotonic()
                if (not open_items and time.monotonic() - ended_at > 0.5) or time.monotonic() - ended_at > ANSWER_S:
                    return
            try:
                event = json.loads(socket.recv(timeout=0.1))
            except TimeoutError:
                continue
            except ConnectionClosed as error:
                raise VoxloopError(f"the server ended the session: {first_line(error)}") from error
            if event["type"] == "error":
                raise VoxloopError(f"the server: {event['error']['message']}")
            if event["type"] == "input_audio_buffer.speech_started":
                open_items.add(event["item_id"])
            elif event["type"] in (COMPLETED, FAILED):
                open_items.discard(event["item_id"])
            yield event


def _connected(url: str, token: str | None) -> ClientConnection:
    parts = urlsplit(url)
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme)
    if scheme is None:
        raise UsageError(f"{url} is no server's address: give one such as http://127.0.0.1:8321")
    address = f"{scheme}://{parts.netloc}{parts.path.removesuffix('/').removesuffix('/v1')}/v1/realtime"
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        return connect(f"{address}?intent=transcription", additional_headers=headers, proxy=None, max_size=None)
    except InvalidStatus as error:
        told = error.response.body.decode(errors="replace")
        raise UsageError(f"{url} refuses ({error.response.status_code}): {_message(told)}") from error
    except (OSError, TimeoutError, WebSocketException) as error:
        raise UsageError(
            f"{url} does not answer ({first_line(error)}): start `voxloop serve`, or give --url"
        ) from error


def _message(body: str) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200]


def _send(source: Source, socket: ClientConnection, ended: threading.Event, closed: threading.Event) -> None:
    try:
        for piece in source.pieces():
            if closed.is_set():
                return
            socket.send(piece)
    except ConnectionClosed:
        pass  # the receiver tells of it
    finally:
        ended.set()
