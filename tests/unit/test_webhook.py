"""The webhook: chosen events arrive signed, in order, and again until they are accepted."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from voxloop.automation import webhook
from voxloop.automation.webhook import Webhook
from voxloop.errors import SettingError
from voxloop.settings import WEBHOOK_SECRET_VARIABLE
from voxloop.workspace import Workspace

KEY = b"a key of one's own"


class Receiver:
    """Another system: what it was sent, and what it answers."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.answer = 204
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
                self.send_response(outer.answer)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def subjects(self) -> list[str]:
        return [json.loads(body)["subject"] for _, body in self.got]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture
def hooked(workspace: Workspace, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv(WEBHOOK_SECRET_VARIABLE, f"whsec_{base64.b64encode(KEY).decode()}")
    monkeypatch.setattr(webhook, "RETRY_S", (0.0, 0.0))
    url = f"http://127.0.0.1:{receiver.server.server_address[1]}/hook?from=voxloop"
    return replace(workspace, settings=replace(workspace.settings, webhook_url=url))


def promoted(ws: Workspace, *models: str) -> None:
    with ws.transaction() as tx:
        for model in models:
            tx.emit("model.promoted", model, payload={"alias": "champion"})
            tx.emit("training.progress", model, key=f"progress of {model}")


def test_chosen_events_arrive_signed(hooked: Workspace, receiver: Receiver) -> None:
    promoted(hooked, "before")
    sending = Webhook(hooked)
    assert sending.send() == 0  # that was before there was a webhook
    promoted(hooked, "m1", "m2")
    assert sending.send() == 2
    assert sending.send() == 0
    assert receiver.subjects() == ["m1", "m2"]
    headers, body = receiver.got[0]
    event = json.loads(body)
    assert (event["specversion"], event["type"], event["data"]) == ("1.0", "model.promoted", {"alias": "champion"})
    assert headers["webhook-id"] == event["id"] == "model.promoted:m1"
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"


def test_what_is_not_accepted_is_sent_again_and_keeps_its_place(hooked: Workspace, receiver: Receiver) -> None:
    said: list[str] = []
    sending = Webhook(hooked, told=said.append)
    receiver.answer = 503
    promoted(hooked, "m1", "m2")
    assert sending.send() == 0
    assert "was not accepted (status 503)" in said[-1]
    receiver.answer = 200
    assert sending.send() == 2
    assert receiver.subjects() == ["m1", "m1", "m2"]


def test_an_unreachable_address_loses_nothing_over_a_restart(hooked: Workspace, receiver: Receiver) -> None:
    gone = replace(hooked, settings=replace(hooked.settings, webhook_url="http://127.0.0.1:9/"))
    first = Webhook(gone)
    promoted(hooked, "m1")
    assert first.send() == 0
    second = Webhook(hooked)
    assert second.send() == 0  # it is the first one's turn
    with hooked.catalog.write() as tx:
        tx.connection.exec_driver_sql("UPDATE upkeep SET done = 0 WHERE name = 'webhook'")
    assert second.send() == 1
    assert receiver.subjects() == ["m1"]


def test_a_webhook_needs_a_secret(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingError, match="VOXLOOP_WEBHOOK_SECRET is not"):
        Webhook(workspace)
    monkeypatch.setenv(WEBHOOK_SECRET_VARIABLE, "whsec_no base64!")
    with pytest.raises(SettingError, match="is not base64"):
        Webhook(workspace)
