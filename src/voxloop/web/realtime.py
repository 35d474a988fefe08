"""/v1/realtime: live transcription over a WebSocket, in the shape of OpenAI's Realtime API; and client secrets for it.

Events have the shapes of OpenAI's API reference (transcription sessions). Deltas are never taken back. Beyond that
reference: a binary message is audio like an `input_audio_buffer.append`; `audio/pcm` may have another `rate` than
24,000; a completed event names its `model`; and a session that includes `voxloop.unstable` is told what was heard and
may still change, as `voxloop.input_audio_transcription.unstable`.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from anyio import to_thread
from fastapi import APIRouter, Request, WebSocket
from starlette.websockets import WebSocketDisconnect, WebSocketState
from ulid import ULID

from voxloop.errors import UsageError, VoxloopError, first_line
from voxloop.serving import tokens
from voxloop.serving.batches import QueueFull, Urgency
from voxloop.serving.capture import Captured
from voxloop.serving.live import Committed, Completed, Delta, Event, Failed, Started, Stopped, Tail
from voxloop.serving.streams import Stream
from voxloop.web.access import Listener, client_of
from voxloop.web.client_secrets import USUAL_S
from voxloop.web.live_session import LIVE_ALIASES, LiveSession
from voxloop.web.metrics import AUDIO, UTTERANCES
from voxloop.web.openai_shapes import word_logprobs
from voxloop.web.problems import Problem, answer, problem_body, status_of

if TYPE_CHECKING:
    from voxloop.serving.capture import Wish
    from voxloop.serving.tokens import Client
    from voxloop.web.app import Served

router = APIRouter(prefix="/v1/realtime")

TRANSCRIPTION = "conversation.item.input_audio_transcription"
MOST_APPENDED = 15 << 20  # bytes of audio in one message, as OpenAI has it
MOST_MISTAKES = 100  # of a client, until its session ends
MOST_UNREAD = 4096  # events that a client has not taken
LOOK_S = 1.0  # how often a session looks whether it may go on
LAST_WORDS_S, PAUSE_S = 2.0, 0.2  # how long a stopping server still listens, and what it takes for the end of speech
GOING_AWAY, POLICY, TRY_LATER = 1001, 1008, 1013  # close codes (RFC 6455, 7.4.1, and IANA's registry)


@router.post("/client_secrets")
async def client_secrets(request: Request, client: Listener) -> dict[str, Any]:
    """A key that opens live sessions for a while, with the session's first configuration."""
    served: Served = request.app.state.served
    try:
        body = await request.json() if await request.body() else {}
    except ValueError as error:
        raise Problem(400, f"the body is not valid JSON: {error}", code="invalid_json") from error
    body = body if isinstance(body, dict) else {}
    session = LiveSession().updated(body.get("session") or {})
    asked = await to_thread.run_sync(session.asked, served.models)
    after = body.get("expires_after")
    seconds = after.get("seconds", USUAL_S) if isinstance(after, dict) else USUAL_S
    if isinstance(seconds, bool) or not isinstance(seconds, int):
        raise Problem(400, "expires_after.seconds is not a number", code="invalid_type", param="expires_after.seconds")
    value, made = served.client_secrets.make(client, session.config, seconds)
    shown = session.shown(f"sess_{ULID()}", asked) | {"expires_at": int(made.expires)}
    return {"value": value, "expires_at": int(made.expires), "session": shown}


@router.websocket("")
async def realtime(socket: WebSocket) -> None:
    """A live transcription session, until either side ends it."""
    served: Served = socket.app.state.served
    client = client_of(socket)
    if client is None or not client.may("listen"):
        await socket.send_denial_response(answer(403, "this needs a token of scope listen"))
        return
    await socket.accept(subprotocol="realtime" if "realtime" in socket.scope["subprotocols"] else None)
    conversation = Conversation(socket, served, client)
    try:
        with served.sessions.one_more(client):
            served.batches.admit(Urgency.LIVE_FINAL)
            await conversation.run()
    except VoxloopError as error:
        await conversation.end(TRY_LATER if status_of(error) == 429 else POLICY, error)


class Conversation:
    """One session: what its client sends, and what it is told."""

    def __init__(self, socket: WebSocket, served: Served, client: Client) -> None:
        self.socket, self.served, self.client = socket, served, client
        self.id = f"sess_{ULID()}"
        self.session = LiveSession(socket.scope["state"].get("live_session"))
        self._events: asyncio.Queue[dict[str, Any]] = asyncio.Queue(MOST_UNREAD)
        self._stream: Stream
        self._heard_at = time.monotonic()  # the client last
        self._mistakes = 0
        self._deaf = False  # the server stops: what comes now is not heard any more
        self._uncharged_s = 0.0
        self._overrun = asyncio.Event()
        self.wish: Wish | None = None
        self._keeping: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve the session. Raises Problem or QueueFull for what ends it."""
        named = self.socket.query_params.get("model", "")
        if named and named not in LIVE_ALIASES and not named.startswith("gpt-"):
            transcription = {"audio": {"input": {"transcription": {"model": named}}}}
            self.session = LiveSession().updated(transcription).updated(self.session.config)
        self.asked = await to_thread.run_sync(self.session.asked, self.served.models)
        self.wish = await self._wished(self.session)
        self._stream = Stream(
            self.served.ws,
            self.served.models,
            self.served.batches,
            client=self.client.name,
            tell=self._told,
            wanted=self.asked.wanted,
            format=self.asked.format,
        )
        self._say({"type": "session.created", "session": self.session.shown(self.id, self.asked)})
        tasks = [asyncio.create_task(work()) for work in (self._receive, self._send, self._watch, self._drain)]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._stream.close()  # takes what waits out of the queue
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, *self._keeping, return_exceptions=True)
        for task in done:
            task.result()

    async def end(self, code: int, error: VoxloopError) -> None:
        """Tell the client why, and close."""
        with suppress(WebSocketDisconnect, RuntimeError):
            if self.socket.application_state is WebSocketState.CONNECTED:
                await self.socket.send_json(_error(error, None))
                await self.socket.close(code, reason=str(error)[:100])

    # What the client sends -------------------------------------------------------------------------------------------

    async def _receive(self) -> None:
        while True:
            message = await self.socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            self._heard_at = time.monotonic()
            event: dict[str, Any] = {}
            try:
                if message.get("bytes") is not None:
                    await self._append(message["bytes"])
                    continue
                event = _parsed(message.get("text") or "")
                await self._take(event)
            except (UsageError, Problem) as error:
                if isinstance(error, Problem) and error.status == 429:
                    raise
                self._mistakes += 1
                self._say(_error(error, event.get("event_id")))
                if self._mistakes >= MOST_MISTAKES:
                    raise Problem(400, f"{MOST_MISTAKES} mistakes in one session", code="too_many_errors") from error

    async def _take(self, event: dict[str, Any]) -> None:
        match event.get("type"):
            case "input_audio_buffer.append":
                await self._append(_audio(event.get("audio")))
            case "input_audio_buffer.commit":
                try:
                    self._stream.commit()
                except UsageError as error:
                    raise Problem(400, str(error), code="input_audio_buffer_commit_empty") from error
            case "input_audio_buffer.clear":
                self._stream.clear()
                self._say({"type": "input_audio_buffer.cleared"})
            case "session.update":
                session = self.session.updated(event.get("session"))
                asked = await to_thread.run_sync(session.asked, self.served.models)
                self.wish = await self._wished(session)
                self.session, self.asked = session, asked
                self._stream.wanted, self._stream.format = asked.wanted, asked.format
                self._say({"type": "session.updated", "session": session.shown(self.id, asked)})
            case kind:
                raise Problem(
                    400,
                    f"a transcription session takes no event {str(kind)[:80]!r}",
                    code="unknown_event",
                    param="type",
                )

    async def _wished(self, session: LiveSession) -> Wish | None:
        """Whether and as whose this session's speech is to be kept for review."""
        capture = self.served.capture
        if capture is None:
            return None
        return await to_thread.run_sync(capture.wish, session.config, self.client)

    async def _append(self, data: bytes) -> None:
        if self._deaf:
            return
        if len(data) > MOST_APPENDED:
            told = f"{len(data)} bytes of audio in one message: send at most {MOST_APPENDED >> 20} MiB"
            raise Problem(413, told, code="audio_too_large", param="audio")
        self._uncharged_s += await self._stream.hear(data)
        if self._uncharged_s >= 1:
            seconds, self._uncharged_s = self._uncharged_s, 0.0
            await self.served.limit.charge(self.client, seconds)

    # What it is told -------------------------------------------------------------------------------------------------

    def _say(self, event: dict[str, Any]) -> None:
        try:
            self._events.put_nowait({"event_id": f"event_{ULID()}"} | event)
        except asyncio.QueueFull:
            self._overrun.set()

    async def _send(self) -> None:
        with suppress(WebSocketDisconnect, RuntimeError):  # the client is gone, or the session was closed
            while True:
                await self.socket.send_text(json.dumps(await self._events.get(), ensure_ascii=False))

    async def _watch(self) -> None:
        """End the session when its token is revoked, nothing is sent for long, or nothing is read."""
        idle_s = self.served.ws.settings.serve_idle_s
        while not self._overrun.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._overrun.wait(), LOOK_S)
            if not await to_thread.run_sync(tokens.still_valid, self.served.ws, self.client):
                await self.end(POLICY, Problem(401, "the token was revoked", code="invalid_api_key"))
                return
            if time.monotonic() - self._heard_at > idle_s and not self._stream.pending:
                await self.socket.close(1000, reason="nothing was sent for long")
                return
        await self.end(TRY_LATER, Problem(429, "too many events were not read", code="events_unread"))

    async def _drain(self) -> None:
        """Where the server stops: end the utterance under way, tell its text, and close."""
        await self.served.sessions.ending.wait()
        until = time.monotonic() + LAST_WORDS_S
        while time.monotonic() < until and time.monotonic() - self._heard_at < PAUSE_S:
            await asyncio.sleep(0.02)
        self._deaf = True
        if self._stream.speaking:
            self._stream.commit()
        while self._stream.pending or self._keeping or not self._events.empty():
            await asyncio.sleep(0.02)
        await self.socket.close(GOING_AWAY, reason="the server stops")

    def _told(self, event: Event) -> None:
        match event:
            case Started():
                started = {"item_id": event.item, "audio_start_ms": event.at_ms}
                self._say({"type": "input_audio_buffer.speech_started"} | started)
            case Stopped():
                stopped = {"item_id": event.item, "audio_end_ms": event.at_ms}
                self._say({"type": "input_audio_buffer.speech_stopped"} | stopped)
            case Committed():
                placed = {"previous_item_id": event.previous}
                self._say({"type": "input_audio_buffer.committed", "item_id": event.item} | placed)
                item = {
                    "id": event.item,
                    "object": "realtime.item",
                    "type": "message",
                    "status": "completed",
                    "role": "user",
                    "content": [{"type": "input_audio", "transcript": None}],
                }
                for kind in ("added", "done"):
                    self._say({"type": f"conversation.item.{kind}", "item": item} | placed)
            case Delta():
                self._say(_of_item(f"{TRANSCRIPTION}.delta", event.item) | {"delta": event.text})
            case Tail() if self.asked.unstable:
                unstable = _of_item("voxloop.input_audio_transcription.unstable", event.item)
                self._say(unstable | {"text": event.text})
            case Completed():
                self._completed(event)
            case Failed():
                code = "queue_full" if isinstance(event.error, QueueFull) else "transcription_failed"
                told = str(event.error) if isinstance(event.error, VoxloopError) else first_line(event.error)
                error = {"type": "server_error", "code": code, "message": told, "param": None}
                self._say(_of_item(f"{TRANSCRIPTION}.failed", event.item) | {"error": error})

    def _completed(self, event: Completed) -> None:
        told = _of_item(f"{TRANSCRIPTION}.completed", event.item) | {
            "transcript": event.text,
            "usage": {"type": "duration", "seconds": round(event.seconds, 3)},
            "model": event.model,
        }
        languages = dict.fromkeys(one.language for one in event.hypotheses if one.language)
        if languages:
            told["languages"] = [{"code": code} for code in languages]
        if self.asked.logprobs:
            told["logprobs"] = word_logprobs([word for one in event.hypotheses for word in one.words])
        self._say(told)
        if self.wish is not None and event.text:
            kept = asyncio.create_task(self._keep(event, self.wish))  # the answer waits for nothing
            self._keeping.add(kept)
            kept.add_done_callback(self._keeping.discard)
        if event.model is not None:
            AUDIO.labels(event.model).inc(event.seconds)
            UTTERANCES.labels("yes" if event.contradicted else "no").inc()

    async def _keep(self, event: Completed, wish: Wish) -> None:
        """Offer an utterance to the capture, and tell the client which recording it becomes."""
        if self.served.capture is None:
            return
        captured = Captured.of_live(event, wish, self.asked.format, self.asked.wanted.language)
        offered = await to_thread.run_sync(self.served.capture.offer, captured)
        self._say(_of_item("voxloop.input_audio.captured", event.item) | {"capture": offered.as_dict()})


def _parsed(text: str) -> dict[str, Any]:
    try:
        event = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Problem(400, f"a message is not valid JSON: {first_line(error)}", code="invalid_json") from error
    if not isinstance(event, dict):
        raise Problem(400, "a message has to be a JSON object", code="invalid_json")
    return event


def _audio(value: Any) -> bytes:
    if not isinstance(value, str):
        raise Problem(400, "audio has to be base64 in a string", code="invalid_type", param="audio")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Problem(400, f"audio is not base64: {error}", code="invalid_value", param="audio") from error


def _of_item(kind: str, item: str) -> dict[str, Any]:
    return {"type": kind, "item_id": item, "content_index": 0}


def _error(error: VoxloopError, event: Any) -> dict[str, Any]:
    code, param = ("queue_full" if isinstance(error, QueueFull) else "invalid_value"), None
    if isinstance(error, Problem):
        code, param = error.code or code, error.param
    body = problem_body(status_of(error), str(error), code=code, param=param)["error"]
    caused = event if isinstance(event, str) else None
    return {"type": "error", "event_id": f"event_{ULID()}", "error": body | {"event_id": caused}}
