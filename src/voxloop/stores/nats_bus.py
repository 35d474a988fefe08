"""The bus on NATS: workers are woken by messages, and events are kept in a JetStream stream.

A wake is a plain message on `NAME.wake.STEP`, which reaches one idle worker: each subscribes for one message, in a
queue group, when it found nothing to do. It is not stored: one that is lost costs `poll_s`, since an idle worker looks
into the catalog that often. Jobs themselves are claimed in the catalog (docs/cluster.md has the measurement behind
that). Events go to `NAME.events.TYPE` as CloudEvents
(https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md) and stay in the stream
`NAME-events`.

The driver is asynchronous. Its loop runs in a thread here, and nobody outside sees it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
from collections import Counter
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from voxloop.errors import BusError, install_command
from voxloop.records import Event
from voxloop.stores.bus import LocalBus

log = logging.getLogger(__name__)

T = TypeVar("T")

DEFAULT_NAME = "voxloop"
SCHEMA = "urn:voxloop:event:1"  # of an event's `data`; a change that breaks readers gets the next number
CONTENT_TYPE = "application/cloudevents+json"
PATIENCE_S = 5.0  # for an answer
QUEUE = "workers"
LINGER_S = 2.0  # for which a process that ends waits until its wakes are sent
REPEATED_S = 600.0  # for which the server recognises an event that is published again


class NatsBus(LocalBus):
    """A connection to a NATS server, made when it is first needed and again whenever it is lost.

    `url` is nats://HOST:PORT or tls://HOST:PORT, with /NAME to keep workspaces apart; `secrets` are keyword arguments
    of `nats.connect`, such as `user` and `password`.
    """

    publishes = True

    def __init__(self, url: str, secrets: Mapping[str, str]) -> None:
        super().__init__()
        parsed = urlsplit(url)
        if parsed.username or parsed.password:
            raise BusError(
                f"the bus's URL {parsed.scheme}://…@{parsed.hostname} contains a password. Settings are not secret: "
                "put it into the environment (NATS_USER and NATS_PASSWORD, NATS_TOKEN or NATS_CREDS)."
            )
        self.name = parsed.path.strip("/") or DEFAULT_NAME
        if not parsed.hostname or not re.fullmatch(r"[A-Za-z0-9_-]+", self.name):
            raise BusError(
                f"the setting `bus` is {url!r}. Give nats://HOST:4222/NAME; the name may have letters, digits, - and _."
            )
        self.server = f"{parsed.scheme}://{parsed.netloc}"
        self.stream = f"{self.name}-events"
        self._secrets = dict(secrets)
        self._start = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._client: Any = None
        self._connected = asyncio.Event()
        self._listening: set[str] = set()  # steps of which the next message comes here
        self._waiting: Counter[str] = Counter()  # steps that threads wait for now
        self._ensured = False
        self._sending: set[Future[None]] = set()
        self._fault = ""
        try:
            import nats
        except ModuleNotFoundError as error:
            raise BusError(f"the bus {self.server} needs NATS's client: {install_command('nats')}") from error
        self._nats = nats

    @property
    def reaches(self) -> bool:  # type: ignore[override]
        return self._connected.is_set()

    # Waking ----------------------------------------------------------------------------------------------------------

    def listen(self, steps: Sequence[str]) -> bool:
        try:
            return self._run(self._listen(steps)).result(PATIENCE_S)
        except (OSError, TimeoutError, self._nats.errors.Error):
            return False  # it looks every `poll_s` meanwhile

    async def _listen(self, steps: Sequence[str]) -> bool:
        new = set(steps) - self._listening
        if not new or not self._connected.is_set():
            return False
        for step in new:  # the client subscribes again by itself when it has to connect anew
            one = await self._client.subscribe(f"{self.name}.wake.{step}", queue=QUEUE, cb=self._heard)
            await one.unsubscribe(limit=1)
            self._listening.add(step)
        await self._client.flush(PATIENCE_S)
        return True

    async def _heard(self, message: Any) -> None:
        step = message.subject.rpartition(".")[2]
        self._listening.discard(step)
        LocalBus.wake(self, [step])
        if not self._waiting[step]:  # it found work by itself and is busy: let an idle worker look
            await self._client.publish(message.subject)

    def wait(self, steps: Sequence[str], timeout_s: float) -> None:
        self._waiting.update(steps)
        try:
            super().wait(steps, timeout_s)
        finally:
            self._waiting.subtract(steps)

    def wake(self, steps: Iterable[str]) -> None:
        told = sorted(set(steps))
        super().wake(told)
        sent = self._run(self._call(told))
        self._sending.add(sent)
        sent.add_done_callback(self._sending.discard)

    async def _call(self, steps: Sequence[str]) -> None:
        try:
            await asyncio.wait_for(self._connected.wait(), LINGER_S)
            for step in steps:
                await self._client.publish(f"{self.name}.wake.{step}")
        except (OSError, TimeoutError, self._nats.errors.Error) as error:
            log.info("nobody was woken for %s: %s", ", ".join(steps), error, extra={"action": "wake_lost"})

    # Events ----------------------------------------------------------------------------------------------------------

    def publish(self, events: Sequence[Event]) -> None:
        self._answer(self._publish(events), PATIENCE_S * (len(events) + 3))

    async def _publish(self, events: Sequence[Event]) -> None:
        await asyncio.wait_for(self._connected.wait(), PATIENCE_S)
        stream = self._client.jetstream(timeout=PATIENCE_S)
        if not self._ensured:
            await self._ensure(stream)
            self._ensured = True
        for event in events:  # one after the other: the stream's order is that of the catalog
            # An id may hold anything that a file name may; a header may not.
            headers = {"Nats-Msg-Id": quote(event.id, safe=":/ "), "Content-Type": CONTENT_TYPE}
            body = json.dumps(cloud_event(self.name, event), ensure_ascii=False).encode()
            try:
                await stream.publish(f"{self.name}.events.{event.type}", body, headers=headers)
            except self._nats.js.errors.NoStreamResponseError:
                self._ensured = False  # somebody deleted the stream; the next call makes it again
                raise

    async def _ensure(self, stream: Any) -> None:
        """Create the stream, or bring an existing one up to date. Limits that its operator set stay."""
        subjects = [f"{self.name}.events.>"]
        try:
            config = (await stream.stream_info(self.stream)).config
        except self._nats.js.errors.NotFoundError:
            await stream.add_stream(
                name=self.stream,
                description="what happened in a Voxloop workspace, as CloudEvents",
                subjects=subjects,
                duplicate_window=REPEATED_S,
            )
            return
        if config.subjects != subjects or config.duplicate_window != REPEATED_S:
            config.subjects, config.duplicate_window = subjects, REPEATED_S
            await stream.update_stream(config)

    def check(self) -> str:
        return self._answer(self._check(), 2 * PATIENCE_S)

    async def _check(self) -> str:
        await asyncio.wait_for(self._connected.wait(), PATIENCE_S)
        stream = self._client.jetstream(timeout=PATIENCE_S)
        await self._ensure(stream)
        state = (await stream.stream_info(self.stream)).state
        version = self._client.connected_server_version
        found = f"NATS {version.major}.{version.minor}.{version.patch} at {self.server}"
        return f"{found}, {state.messages:,} events in the stream {self.stream}"

    # The loop --------------------------------------------------------------------------------------------------------

    def _run(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start work on the loop, which is started with the first."""
        with self._start:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="nats", daemon=True)
                self._thread.start()
                asyncio.run_coroutine_threadsafe(self._connect(), self._loop)
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _answer(self, work: Coroutine[Any, Any, T], within_s: float) -> T:
        """The result of work on the loop. Raises BusError."""
        found = self._run(work)
        try:
            return found.result(within_s)
        except (OSError, TimeoutError, self._nats.errors.Error) as error:
            found.cancel()
            said = str(error) or type(error).__name__
            if isinstance(error, self._nats.js.errors.ServiceUnavailableError) or "no responders" in said.lower():
                said = "the server has no JetStream: start it with -js"
            elif not self._connected.is_set():
                said = self._fault or "it does not answer"
            raise BusError(
                f"the bus {self.server} cannot be used: {said}. Check that the server runs, the setting `bus`, and the "
                "credentials in the environment."
            ) from error

    async def _connect(self) -> None:
        async def failed(error: Exception) -> None:
            self._tell(error)

        async def lost() -> None:
            self._connected.clear()

        async def found() -> None:
            self._fault = ""
            self._connected.set()

        client = self._nats.NATS()
        await client.connect(
            self.server,
            name="voxloop",
            no_echo=True,  # its own workers are woken without the server
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.5,
            connect_timeout=PATIENCE_S,
            error_cb=failed,
            disconnected_cb=lost,
            reconnected_cb=found,
            **self._secrets,
        )
        self._client = client
        await found()

    def _tell(self, error: Exception) -> None:
        said = str(error) or type(error).__name__
        if said != self._fault:  # it tries twice a second
            self._fault = said
            log.warning("the bus %s: %s", self.server, said, extra={"action": "bus_failed"})

    def close(self) -> None:
        with self._start:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None:
            return
        for sent in list(self._sending):
            try:
                sent.result(LINGER_S)
            except TimeoutError:
                break
        ended = asyncio.run_coroutine_threadsafe(self._end(), loop)
        try:
            ended.result(LINGER_S)
        except TimeoutError:
            log.info("the connection to %s was left open", self.server, extra={"action": "bus_left"})
        loop.call_soon_threadsafe(loop.stop)
        thread.join(LINGER_S)
        if not loop.is_running():
            loop.close()

    async def _end(self) -> None:
        if self._client is not None:
            await self._client.close()
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)


def cloud_event(name: str, event: Event) -> dict[str, Any]:
    """An event as a CloudEvent in JSON. `sequence` is its number in the catalog, which ascends but may have gaps."""
    return {
        "specversion": "1.0",
        "id": event.id,
        "source": f"/voxloop/{name}",
        "type": event.type,
        "subject": event.subject,
        "time": datetime.fromtimestamp(event.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "dataschema": SCHEMA,
        "sequence": str(event.seq),
        "data": event.payload,
    }
