"""Wyoming's protocol (github.com/OHF-Voice/wyoming), which Home Assistant speaks, on a port of its own.

A client asks `describe`, or for each utterance sends `transcribe`, `audio-start`, `audio-chunk`s and `audio-stop`, and
is told `transcript`. The protocol has no authentication, so that the port is this machine's alone unless told
otherwise. The package's own reader takes events of any size; here they are bounded.
"""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from wyoming.asr import Transcribe, Transcript, TranscriptChunk, TranscriptStart, TranscriptStop
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event, async_write_event
from wyoming.info import AsrModel, AsrProgram, Attribution, Describe, Info
from wyoming.ping import Ping, Pong

from voxloop import __version__
from voxloop.errors import UnknownRecord, UsageError, VoxloopError
from voxloop.serving import live
from voxloop.serving.batches import Urgency
from voxloop.serving.capture import Captured
from voxloop.serving.incoming import Format
from voxloop.serving.live import Completed, Delta, Failed, Wanted
from voxloop.serving.streams import Stream
from voxloop.serving.tokens import Client
from voxloop.speech.languages import LANGUAGES, UnknownLanguage, language_code
from voxloop.web.live_session import LIVE_ALIASES
from voxloop.web.metrics import AUDIO

if TYPE_CHECKING:
    from voxloop.serving.capture import Wish
    from voxloop.web.app import Served

ANY_CLIENT = Client(name="wyoming", scopes=frozenset({"listen"}))
MOST_HEAD = 1 << 16  # bytes of an event's line, and of its data
MOST_PAYLOAD = 1 << 20  # bytes of audio in one event: 33 s at 16 kHz
MOST_S = 300.0  # seconds of audio between audio-start and audio-stop


class WyomingServer:
    """Answers on a socket that listens, until it is closed."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._server: asyncio.Server | None = None
        self._talks: set[asyncio.Task[None]] = set()

    async def start(self, listening: socket.socket) -> None:
        self._server = await asyncio.start_server(self._serve, sock=listening, limit=MOST_HEAD)

    async def close(self) -> None:
        """Stop listening, and end what is under way."""
        if self._server is not None:
            self._server.close()
        for talk in self._talks:
            talk.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._talks.add(task)
            task.add_done_callback(self._talks.discard)
        talk = _Talk(self._served, writer)
        try:
            with self._served.sessions.one_more(ANY_CLIENT):
                idle_s = self._served.ws.settings.serve_idle_s
                while (event := await asyncio.wait_for(read_event(reader), idle_s)) is not None:
                    await talk.take(event)
        except (UsageError, ValueError, KeyError, TypeError) as error:
            await talk.say(Error(text=f"this cannot be read: {error}", code="invalid-event").event())
        except VoxloopError as error:
            await talk.say(Error(text=str(error), code="refused").event())
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            pass  # the client is gone, or has not said anything for long
        finally:
            talk.close()
            writer.close()


async def read_event(reader: asyncio.StreamReader) -> Event | None:
    """Read one event; None at the end. Raises ValueError for one that is none, or too large."""
    line = await reader.readline()
    if not line:
        return None
    head = json.loads(line)
    if not isinstance(head, dict) or not isinstance(head.get("type"), str):
        raise ValueError("an event has to be a JSON object with a type")
    data = head.get("data") or {}
    if length := _length(head, "data_length", MOST_HEAD):
        data = {**data, **json.loads(await reader.readexactly(length))}
    length = _length(head, "payload_length", MOST_PAYLOAD)
    return Event(type=head["type"], data=data, payload=await reader.readexactly(length) if length else None)


def _length(head: dict[str, Any], name: str, most: int) -> int:
    length = head.get(name) or 0
    if not isinstance(length, int) or not 0 <= length <= most:
        raise ValueError(f"{name} is {str(length)[:20]}: it must be from 0 to {most}")
    return length


class _Talk:
    """One connection."""

    def __init__(self, served: Served, writer: asyncio.StreamWriter) -> None:
        self._served, self._writer = served, writer
        self._asked = Transcribe()
        self._stream: Stream | None = None
        self._told: asyncio.Queue[live.Event] = asyncio.Queue()
        self._seconds = 0.0
        self._wish: Wish | None = None

    async def say(self, event: Event) -> None:
        with suppress(ConnectionError):
            await async_write_event(event, self._writer)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    async def take(self, event: Event) -> None:
        """Answer one event; those of other services are passed over, as the protocol wants."""
        if Describe.is_type(event.type):
            await self.say(self._info().event())
        elif Ping.is_type(event.type):
            await self.say(Pong(text=Ping.from_event(event).text).event())
        elif Transcribe.is_type(event.type):
            self._asked = Transcribe.from_event(event)
        elif AudioStart.is_type(event.type):
            start = AudioStart.from_event(event)
            await asyncio.to_thread(self._begin, start.rate, start.width, start.channels)
        elif AudioChunk.is_type(event.type):
            chunk = AudioChunk.from_event(event)
            if self._stream is None:  # without audio-start, as some satellites do
                await asyncio.to_thread(self._begin, chunk.rate, chunk.width, chunk.channels)
            await self._hear(chunk.audio)
        elif AudioStop.is_type(event.type) and self._stream is not None:
            await self._answer(self._stream)

    def _begin(self, rate: int, width: int, channels: int) -> None:
        self.close()
        if width != 2:
            raise UsageError(f"the samples have {width} bytes: 2 are needed (16-bit PCM)")
        self._served.batches.admit(Urgency.LIVE_FINAL)
        self._told = asyncio.Queue()
        self._seconds = 0.0
        self._stream = Stream(
            self._served.ws,
            self._served.models,
            self._served.batches,
            client=ANY_CLIENT.name,
            tell=self._told.put_nowait,
            wanted=self._wanted(),
            format=Format(rate=rate, channels=channels),
        )
        capture = self._served.capture
        self._wish = capture.wish({}, ANY_CLIENT) if capture else None  # only the setting can ask for it

    def _wanted(self) -> Wanted:
        """The client ends utterances itself. A name or language that is not known is passed over."""
        model = language = None
        with suppress(UnknownRecord):
            name = self._asked.name or ""
            model = None if name in LIVE_ALIASES else self._served.models.find(name)
        with suppress(UnknownLanguage):
            language = language_code(self._asked.language)
        words = [*(self._asked.transcript_names or ()), *(self._asked.transcript_terms or ())]
        return Wanted(model=model, language=language, keywords=tuple(words), detection=None)

    async def _hear(self, audio: bytes) -> None:
        if self._stream is None:
            return
        seconds = await self._stream.hear(audio)
        self._seconds += seconds
        if self._seconds > MOST_S:
            raise UsageError(f"more than {MOST_S:g} s of audio in one utterance")

    async def _answer(self, stream: Stream) -> None:
        await self._served.limit.charge(ANY_CLIENT, self._seconds)
        try:
            stream.commit()
        except UsageError:  # less than 100 ms
            await self.say(Transcript(text="").event())
            return
        started = False
        while True:
            match await self._told.get():
                case Delta(text=text):
                    if not started:
                        await self.say(TranscriptStart().event())
                        started = True
                    await self.say(TranscriptChunk(text=text).event())
                case Completed() as done:
                    language = done.hypotheses[0].language if done.hypotheses else None
                    if done.model is not None:
                        AUDIO.labels(done.model).inc(done.seconds)
                    await self.say(Transcript(text=done.text, language=language).event())
                    if started:
                        await self.say(TranscriptStop().event())
                    await self._keep(stream, done)
                    break
                case Failed(error=error):
                    await self.say(Error(text=str(error), code="failed").event())
                    break
        self.close()

    async def _keep(self, stream: Stream, done: Completed) -> None:
        """Offer an utterance to the capture."""
        if self._served.capture is None or self._wish is None or not done.text:
            return
        captured = Captured.of_live(done, self._wish, stream.format, stream.wanted.language)
        await asyncio.to_thread(self._served.capture.offer, captured)

    def _info(self) -> Info:
        model = self._served.models.current
        attribution = Attribution(name="Voxloop", url="")
        language = self._served.ws.settings.language
        return Info(
            asr=[
                AsrProgram(
                    name="voxloop",
                    attribution=attribution,
                    installed=True,
                    description="The workspace's champion",
                    version=__version__,
                    supports_transcript_streaming=True,
                    models=[
                        AsrModel(
                            name="champion",
                            attribution=attribution,
                            installed=True,
                            description=f"{model.family}, {model.id}",
                            version=None,
                            languages=[language] if language else list(LANGUAGES),
                        )
                    ],
                )
            ]
        )
