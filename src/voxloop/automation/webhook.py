"""The webhook: chosen events are posted to one's own system, signed, in order, until they are accepted.

The body is a CloudEvent in JSON (https://github.com/cloudevents/spec, 1.0). The headers follow Standard Webhooks
(https://www.standardwebhooks.com): `webhook-id`, `webhook-timestamp` and `webhook-signature`, an HMAC-SHA256 of
`ID.TIMESTAMP.BODY` under the secret. An event may arrive twice, and then has the same id.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

import sqlalchemy as sa
import urllib3

from voxloop.errors import SettingError, VoxloopError
from voxloop.records import Event
from voxloop.settings import WEBHOOK_SECRET_VARIABLE
from voxloop.stores import tables
from voxloop.stores.catalog import insert_new, to_event
from voxloop.workspace import Workspace

log = logging.getLogger(__name__)

NAME = "webhook"  # in `upkeep`: until when a process sends, and the last event that needs no second look
TURN_S = 30.0  # for which a process sends before another may
TIMEOUT_S = 10.0
RETRY_S = (5.0, 600.0)  # before an event that was not accepted is sent again: the first time, and at most
GIVEN_UP_S = 3 * 86_400.0  # after which an event is dropped
LATE_S = 60.0  # PostgreSQL commits out of order: an event may appear after one with a higher number

upkeep = tables.upkeep


def secret() -> bytes:
    """The key of the signatures. Raises SettingError if it is not in the environment."""
    found = os.environ.get(WEBHOOK_SECRET_VARIABLE, "")
    if not found:
        raise SettingError(f"webhook_url is set, but {WEBHOOK_SECRET_VARIABLE} is not: put a secret into it")
    try:
        return (
            base64.b64decode(found.removeprefix("whsec_"), validate=True)
            if found.startswith("whsec_")
            else found.encode()
        )
    except ValueError as error:
        raise SettingError(f"{WEBHOOK_SECRET_VARIABLE} begins with whsec_, but the rest is not base64") from error


def signature(key: bytes, id: str, timestamp: int, body: bytes) -> str:
    """The header `webhook-signature` of a message."""
    digest = hmac.new(key, f"{id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def body_of(event: Event) -> bytes:
    """An event as a CloudEvent."""
    made = datetime.fromtimestamp(event.created, UTC).isoformat().replace("+00:00", "Z")
    values = {
        "specversion": "1.0",
        "id": event.id,
        "source": "/voxloop",
        "type": event.type,
        "subject": event.subject,
        "time": made,
        "datacontenttype": "application/json",
        "data": event.payload,
    }
    return json.dumps(values, ensure_ascii=False).encode()


class Webhook:
    """Sends the chosen events of one workspace."""

    def __init__(self, ws: Workspace, *, told: Callable[[str], None] = log.info) -> None:
        self._ws = ws
        self._told = told
        self._key = secret()
        self._begin()
        self._http = urllib3.PoolManager(retries=False, timeout=TIMEOUT_S)
        self._turn = 0.0  # the value by which this process knows that it is the one that sends
        self._sent: set[str] = set()
        self._retry_s = RETRY_S[0]
        self._next = 0.0  # monotonic

    def run(self, stop: threading.Event) -> None:
        """Send until `stop` is set."""
        self._told(f"sends {', '.join(self._ws.settings.webhook_events)}")
        while not stop.is_set():
            try:
                self.send()
            except VoxloopError as error:
                self._told(f"cannot go on: {error}")
            stop.wait(max(self._ws.settings.poll_s, 0.5))

    def send(self) -> int:
        """Send what is due. Return the number of events that were accepted."""
        if time.monotonic() < self._next:
            return 0
        waiting = self._waiting()
        if not waiting or not self._mine():
            return 0
        sent = 0
        for event in waiting:
            why = self._post(event)
            if why is None:
                self._sent.add(event.id)
                sent += 1
                self._retry_s = RETRY_S[0]
                continue
            if time.time() - event.created > GIVEN_UP_S:
                self._told(f"gives up {event.id}: {why}")
                self._sent.add(event.id)
                continue
            self._told(f"{event.type} was not accepted ({why}); it is sent again in {self._retry_s:.0f} s")
            self._next = time.monotonic() + self._retry_s
            self._retry_s = min(2 * self._retry_s, RETRY_S[1])
            break
        self._remember()
        return sent

    def _begin(self) -> None:
        """Note where the webhook begins: what happened before there was one is not sent."""
        with self._ws.catalog.write() as tx:
            insert_new(tx.connection, upkeep, [{"name": NAME, "until": float(tx.newest_event())}])

    def _mine(self) -> bool:
        """Take or keep the turn to send; another process has it for `TURN_S` after its last look."""
        with self._ws.catalog.write() as tx:
            now = tx.now()
            free = sa.or_(upkeep.c.done == self._turn, upkeep.c.done < now)
            mine = sa.update(upkeep).where(upkeep.c.name == NAME, free).values(done=now + TURN_S)
            if not tx.connection.execute(mine).rowcount:
                return False
            self._turn = now + TURN_S
            return True

    def _waiting(self) -> list[Event]:
        event = tables.event.c
        with self._ws.read() as reader:
            until = reader.connection.execute(sa.select(upkeep.c.until).where(upkeep.c.name == NAME)).scalar_one()
            rows = reader.connection.execute(
                sa.select(tables.event)
                .where(event.seq > until, event.type.in_(self._ws.settings.webhook_events))
                .order_by(event.seq)
            ).all()
        return [to_event(row) for row in rows if row.id not in self._sent]

    def _remember(self) -> None:
        """Note up to which event all were sent, so that none is sent again after a restart."""
        event = tables.event.c
        waiting = self._waiting()
        with self._ws.catalog.write() as tx:
            settled = sa.select(sa.func.max(event.seq)).where(event.created < tx.now() - LATE_S)
            newest = tx.connection.execute(settled).scalar() or 0
            until = min([newest, *(one.seq - 1 for one in waiting)])
            tx.connection.execute(
                sa.update(upkeep).where(upkeep.c.name == NAME, upkeep.c.until < until).values(until=float(until))
            )

    def _post(self, event: Event) -> str | None:
        """Post one event. Return why it was not accepted; None if it was."""
        body, timestamp = body_of(event), int(time.time())
        headers = {
            "content-type": "application/cloudevents+json",
            "webhook-id": event.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(self._key, event.id, timestamp, body),
        }
        try:
            answer = self._http.request(
                "POST", self._ws.settings.webhook_url, body=body, headers=headers, redirect=False
            )
        except urllib3.exceptions.HTTPError as error:
            return f"{type(error).__name__}: {self._ws.settings.webhook_url} cannot be reached"
        return None if 200 <= answer.status < 300 else f"status {answer.status}"
