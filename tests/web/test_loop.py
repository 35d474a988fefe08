"""The loop over HTTP: start a run, ask how it stands, follow the events, read the metrics."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest

from tests.unit.speech import add_utterance
from tests.web.conftest import TOKEN, Running
from voxloop.automation.supervising import PartState
from voxloop.serving import tokens
from voxloop.steps import review
from voxloop.steps.datasets import usable

BEARER = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def client(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers=BEARER, trust_env=False, timeout=30) as found:
        yield found


def test_a_run_is_started_and_asked_about(server: Running, client: httpx.Client) -> None:
    said = client.post("/v1/train/now")
    assert (said.status_code, said.json()["error"]["code"]) == (409, "nothing_usable")
    usable.sample(server.ws, add_utterance(server.ws, "said", reference="open the door", duration=3.0))
    before = client.get("/v1/train/status").json()
    assert before["hours"]["new"] == pytest.approx(3 / 3600)
    assert (before["starts"], before["cycle"], before["run"]) == (False, None, None)
    said = client.post("/v1/train/now")
    assert said.status_code == 202
    cycle = said.json()
    assert (cycle["state"], cycle["reason"]) == ("asked", "request")
    after = client.get("/v1/train/status").json()
    assert after["cycle"]["id"] == cycle["id"]
    assert any("is asked" in sentence for sentence in after["why"])
    said = client.post("/v1/train/now")
    assert (said.status_code, said.json()["error"]["code"]) == (409, "run_in_progress")


def test_who_may_do_that(server: Running) -> None:
    for scope, allowed in (("review", ()), ("metrics", ("/v1/train/status",))):
        secret = tokens.add(server.ws, f"a {scope} token", [scope]).secret
        with httpx.Client(
            base_url=server.url, trust_env=False, headers={"authorization": f"Bearer {secret}"}
        ) as asking:
            assert asking.post("/v1/train/now").status_code == 403
            assert asking.get("/v1/events").status_code == 403
            assert (asking.get("/v1/train/status").status_code == 200) == ("/v1/train/status" in allowed)
    with httpx.Client(base_url=server.url, trust_env=False) as stranger:
        assert stranger.post("/v1/train/now").status_code == 401
        assert stranger.get("/health").json() == {"status": "ready"}


def followed(server: Running, count: int, do: Any = None, **given: Any) -> list[dict[str, str]]:
    """The first events of a stream, as their fields; `do` is done once the stream is open."""
    found: list[dict[str, str]] = []
    with (
        httpx.Client(base_url=server.url, headers=BEARER, trust_env=False, timeout=30) as asking,
        asking.stream("GET", "/v1/events", **given) as stream,
    ):
        assert stream.headers["content-type"].startswith("text/event-stream")
        event: dict[str, str] = {}
        for line in stream.iter_lines():
            if line.startswith(":"):
                if do:
                    threading.Thread(target=do).start()
                    do = None
            elif line:
                name, _, value = line.partition(": ")
                event[name] = value
            elif event:
                found.append(event)
                event = {}
                if len(found) == count:
                    break
    return found


def test_events_are_followed_from_where_a_client_was(server: Running) -> None:
    ids = add_utterance(server.ws, "said", heard="open doors", duration=2.0, parts=4)

    def saved() -> None:
        for id in ids:
            review.save(server.ws, id, "open the door", by="ann")

    live = followed(server, 4, do=saved, params={"types": "utterance.reviewed"})
    assert [json.loads(one["data"])["subject"] for one in live] == ids
    assert {one["event"] for one in live} == {"utterance.reviewed"}
    numbers = [int(one["id"]) for one in live]
    assert numbers == sorted(numbers)
    again = followed(server, 2, headers={"last-event-id": live[1]["id"]}, params={"types": "utterance.reviewed"})
    assert [one["id"] for one in again] == [one["id"] for one in live[2:]]
    everything = followed(server, 3, params={"since": 0})
    assert [json.loads(one["data"])["seq"] for one in everything] == [1, 2, 3]


def test_a_stream_does_not_keep_the_server_from_ending(server: Running) -> None:
    stream = httpx.Client(base_url=server.url, headers=BEARER, trust_env=False, timeout=30)
    with stream, stream.stream("GET", "/v1/events") as open_stream:
        lines = open_stream.iter_lines()
        assert next(lines).startswith(":")
        server.app.state.served.ending.set()
        assert [line for line in lines if line and not line.startswith(":")] == []


def test_health_and_metrics_tell_of_the_loop(server: Running, client: httpx.Client) -> None:
    usable.sample(server.ws, add_utterance(server.ws, "said", reference="open the door", duration=3.6))
    client.post("/v1/train/now")
    server.app.state.served.parts = lambda: [
        PartState("watcher", ok=True, line="watches"),
        PartState("trainer", ok=False, line="starts again in 1 s"),
    ]
    health = client.get("/health").json()
    assert health["status"] == "degraded"
    assert {part["name"]: part["ok"] for part in health["parts"]} == {"watcher": True, "trainer": False}
    assert health["automation"]["cycle"]["state"] == "asked"
    assert health["jobs"]["freeze"] == {"ready": 1}
    lines = client.get("/metrics").text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if line.startswith("voxloop_"))
    assert float(values['voxloop_jobs{state="ready",step="freeze"}']) == 1
    assert float(values['voxloop_job_oldest_seconds{step="freeze"}']) >= 0
    assert float(values['voxloop_usable_hours{kind="new"}']) == pytest.approx(0.001)
    assert float(values['voxloop_automatic_run{state="asked"}']) == 1
    assert float(values['voxloop_part_up{part="trainer"}']) == 0
    assert values["voxloop_champion_wer"] == "NaN"
    server.app.state.served.parts = tuple
    assert client.get("/health").json()["status"] == "ready"
