"""The API of training: who may, what is refused and why, status and logs as they are followed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import sqlalchemy as sa

from tests.web.conftest import Running, served
from tests.web.test_entries import Api, person
from tests.web.trained import copied, spoken
from voxloop.records import Run
from voxloop.serving import tokens
from voxloop.steps import training
from voxloop.steps.training import recipes, telemetry
from voxloop.steps.training.files import LOG, METRICS, append_line
from voxloop.stores import tables
from voxloop.web.tasks import TrainingWorker
from voxloop.web.training import Asked
from voxloop.workspace import Workspace


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a workspace with fifty clips and their texts."""
    with spoken(tmp_path_factory.mktemp("clips")) as ws:
        return ws.folder


@contextmanager
def _administered(clips: Path, folder: Path) -> Iterator[Api]:
    with copied(clips, folder) as ws, served(ws) as running:
        running.app.state.served.trainer.close()
        yield _asking(running)


@pytest.fixture
def api(clips: Path, tmp_path: Path) -> Iterator[Api]:
    """The administrator, over fifty clips with their texts; no worker is started for what is queued."""
    with _administered(clips, tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def steady(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """The same for tests that change nothing."""
    with _administered(clips, tmp_path_factory.mktemp("steady")) as made:
        yield made


def _asking(running: Running) -> Api:
    made = Api(running)
    made.server = running  # type: ignore[attr-defined]
    return made


def of(api: Api) -> Running:
    found: Running = api.server  # type: ignore[attr-defined]
    return found


def lines(said: httpx.Response, count: int) -> list[dict[str, str]]:
    """The first events of a stream, each with its fields."""
    found: list[dict[str, str]] = []
    event: dict[str, str] = {}
    for line in said.iter_lines():
        if line:
            name, _, value = line.partition(": ")
            event[name] = f"{event[name]}\n{value}" if name in event else value
        elif "event" in event:
            found.append(event)
            event = {}
            if len(found) == count:
                break
        else:
            event = {}
    return found


def followed(api: Api, path: str, count: int, **headers: str) -> list[dict[str, str]]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with api.client.stream("GET", f"/api/{path}", headers=named) as said:
        assert said.status_code == 200, said.read()
        assert said.headers["content-type"].startswith("text/event-stream")
        return lines(said, count)


def written(ws: Workspace, *, log: bytes = b"", metrics: list[dict[str, Any]] | None = None, status: str) -> str:
    """A run with a log and metrics in the catalog, as its process wrote them."""
    run = Run(
        id="01RUN", dataset="d", base="b", family="whisper", method="full", recipe={"name": "quick"}, status="paused"
    )
    folder = ws.runs / run.id
    folder.mkdir(parents=True, exist_ok=True)
    with ws.transaction() as tx:
        if tx.find(Run, run.id) is None:
            tx.add(run)
        tx.change(Run, run.id, status=status)
    with (folder / LOG).open("ab") as file:
        file.write(log)
    for line in metrics or ():
        append_line(folder / METRICS, line)
    copier = telemetry.TelemetryCopier(ws, run.id)
    while entries := copier.gained(to_the_end=True):
        with ws.transaction() as tx:
            copier.write(tx, entries)
        copier.until = entries.until
    return run.id


# Asking for a training -----------------------------------------------------------------------------------------------


def test_a_training_by_the_names_of_the_specification(api: Api) -> None:
    body = {"base_model": "starter", "learning_rate": 2e-5, "batch_size": 16, "epochs": 20, "validation_split": 0.2}
    run = api("POST", "train", 202, json=body | {"gradient_accumulation_steps": 2, "early_stopping_patience": 3})
    assert (run["status"], run["ahead"], run["attended"]) == ("queued", 0, False)
    recipe = run["recipe"]
    assert (recipe["learning_rate"], recipe["max_epochs"], recipe["accumulation"]) == (2e-5, 20, 2)
    assert recipe["patience"] == 3
    options = api("GET", "train/options", params={"dataset": run["dataset"]})
    assert recipe["batch_seconds"] == pytest.approx(16 * options["clip_s"], rel=0.01)
    clips = options["datasets"][0]["clips"]
    assert clips["val"] / sum(clips.values()) == pytest.approx(0.2, abs=0.05)
    assert options["fixed"].startswith("This dataset is frozen")
    assert "keep their split" in api("GET", "train/options")["fixed"]
    ws = of(api).ws
    with ws.read() as reader:
        event = tables.event.c
        asked = sa.select(event.payload).where(event.type == "training.queued")
        assert reader.connection.execute(asked).scalar_one() == {"by": "admin"}
    # The same function as the command line's: what was queued there is seen here.
    assert training.find(ws, run["id"]).recipe == recipe


def test_nothing_named_trains_on_all_that_is_reviewed(api: Api) -> None:
    first = api("POST", "train", 202)
    again = api("POST", "train", 202, json={})
    assert first["dataset"] == again["dataset"]  # nothing was reviewed between them
    assert again["ahead"] == 1
    proposed = api("GET", "train/options")["recipe"]
    assert first["recipe"]["name"] == proposed["name"] == "quick"
    assert first["recipe"]["why"] == proposed["why"]
    assert len(api("GET", "datasets")["datasets"]) == 1


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"base": "/etc"}, "none of this machine's bases"),
        ({"base": "openai/whisper-small"}, "voxloop train --base openai/whisper-small"),
        ({"settings": {"noise_folder": "/etc"}}, "command line alone"),
        ({"settings": {"lerning_rate": 1}}, "did you mean learning_rate"),
        ({"settings": {"speed": 3}}, "from 0 to 0.5"),
        ({"settings": {"name": "mine"}}, "no setting 'name'"),
        ({"learning_rate": -1}, "learning_rate"),
        ({"learning_rat": 1}, "learning_rat"),
        ({"recipe": "quik"}, "did you mean quick"),
        ({"epochs": 0}, "epochs"),
        ({"validation_split": 0.9}, "validation_split"),
        ({"settings": {"max_seconds": None, "max_epochs": None}}, "has no limit"),
        ({"dataset": "../../etc"}, "../../etc"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_remedy(steady: Api, body: dict[str, Any], told: str) -> None:
    said = steady.client.post("/api/train", json=body)
    assert said.status_code in (400, 404), said.text
    assert told in said.text
    assert training.listed(of(steady).ws) == []
    assert steady("GET", "datasets")["datasets"] == []  # nothing was frozen before the mistake was told


def test_a_frozen_dataset_keeps_its_splits(api: Api) -> None:
    dataset = api("POST", "train", 202)["dataset"]
    refused = api("POST", "train", 400, json={"dataset": dataset, "validation_split": 0.2})
    assert "is frozen, with its splits" in refused["error"]["message"]


def test_every_setting_is_offered_with_its_meaning_and_limits(steady: Api) -> None:
    options = steady("GET", "train/options", params={"base": "starter", "method": "lora"})
    settings = {one["setting"]: one for one in options["recipe"]["settings"]}
    assert sorted(name for names in options["sections"].values() for name in names) == sorted(settings)
    assert (options["recipe"]["name"], settings["method"]["value"]) == ("careful", "lora")
    assert settings["speed"]["bounds"] == {"least": 0, "most": 0.5, "above": False, "below": False}
    assert settings["precision"]["choices"] == ["auto", "fp32", "bf16", "fp16"]
    assert settings["max_seconds"]["optional"]
    assert not settings["speed"]["optional"]
    assert {one["kind"] for one in settings.values()} == {
        "choice",
        "yes or no",
        "whole number",
        "number",
        "text",
        "list",
    }
    assert set(recipes.BOUNDS) <= set(settings)
    starter = next(one for one in options["bases"] if one["name"] == "starter")
    assert starter["lora"]["memory_bytes"] > 0
    assert options["data"]["reviewed"] == 50
    assert options["estimate"]["memory_bytes"] == starter["lora"]["memory_bytes"]


def test_the_description_of_the_api_has_examples(steady: Api) -> None:
    told = steady.client.get("/openapi.json").json()
    asked = told["components"]["schemas"]["Asked"]
    assert {"base_model": "starter"}.items() <= asked["examples"][1].items()
    assert {"/api/train", "/api/train/status", "/api/train/logs"} <= set(told["paths"])
    for example in asked["examples"]:
        Asked.model_validate(example)


# Who may -------------------------------------------------------------------------------------------------------------


def test_reviewers_look_and_administrators_change(api: Api) -> None:
    run = api("POST", "train", 202)["id"]
    reviewer = person(of(api), "rae")
    for path in ("train/status", "train/options", f"train/runs/{run}", "models", "lineage", "usage", "speakers"):
        reviewer("GET", path)
    for path in (
        "train",
        f"train/runs/{run}/pause",
        f"train/runs/{run}/stop",
        "models/rollback",
        "forecast",
        "jobs/retry",
    ):
        reviewer("POST", path, 403)
    reviewer("DELETE", f"train/runs/{run}", 403)
    listener = Api(of(api), tokens.add(of(api).ws, "lee", ["listen"]).secret)
    listener("GET", "train/status", 403)
    assert httpx.get(f"{of(api).url}/api/train/status", trust_env=False).status_code == 401
    assert httpx.get(f"{of(api).url}/training", trust_env=False).status_code == 200  # it holds no data


def test_another_site_starts_no_training(api: Api) -> None:
    server = of(api)
    code = tokens.add(server.ws, "eve", ["admin"]).code
    with httpx.Client(base_url=server.url, trust_env=False) as browser:
        browser.get("/login", params={"code": code})
        assert browser.post("/api/train", headers={"origin": "https://evil.example"}).status_code == 403
        assert browser.post("/api/train", headers={"sec-fetch-site": "cross-site"}).status_code == 403
        assert browser.post("/api/train").status_code == 403  # nothing says that it comes from a page of this server
        assert browser.post("/api/train", headers={"origin": server.url}).status_code == 202


# Requests ------------------------------------------------------------------------------------------------------------


def test_runs_are_paused_resumed_stopped_and_repeated(api: Api) -> None:
    id = api("POST", "train", 202)["id"]
    assert api("POST", f"train/runs/{id}/pause")["status"] == "paused"
    assert "is paused" in api("POST", f"train/runs/{id}/pause", 400)["error"]["message"]
    resumed = api("POST", f"train/runs/{id}/resume")
    assert (resumed["status"], resumed["can"]) == ("queued", ["resume", "pause", "stop"])
    stopped = api("POST", f"train/runs/{id}/stop", json={"discard": True})
    assert (stopped["status"], stopped["error"]) == ("stopped", "discarded")
    again = api("POST", f"train/runs/{id}/retry", 202, json={"settings": {"max_steps": 5}})
    assert (again["retry_of"], again["recipe"]["max_steps"]) == (id, 5)
    api("POST", f"train/runs/{again['id']}/stop")
    assert api("DELETE", f"train/runs/{again['id']}")["kind"] == "run"
    api("GET", f"train/runs/{again['id']}", 404)
    assert [one["id"] for one in api("GET", "train/status")["runs"]] == [id]


# Status and logs -----------------------------------------------------------------------------------------------------


def test_the_status_is_sent_again_only_when_it_has_changed(api: Api) -> None:
    assert api("GET", "train/status")["status"] == "none"
    id = api("POST", "train", 202)["id"]
    first = api.client.get("/api/train/status")
    told = first.json()
    assert (told["status"], told["run"]["id"], told["queue"]) == ("queued", id, [id])
    assert told["usage"]["machine"]["cores"] >= 1
    same = {"if-none-match": first.headers["etag"]}
    assert api.client.get("/api/train/status", headers=same).status_code == 304
    api("POST", f"train/runs/{id}/pause")
    assert api.client.get("/api/train/status", headers=same).status_code == 200


def test_metrics_are_followed_and_go_on_behind_the_last_that_was_seen(api: Api) -> None:
    ws = of(api).ws
    written(ws, metrics=[{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5, "val_wer": 0.5}], status="paused")
    status, metrics = followed(api, "train/events", 2)
    assert json.loads(status["data"])["run"]["id"] == "01RUN"
    assert [line["step"] for line in json.loads(metrics["data"])["lines"]] == [1, 2]
    assert json.loads(metrics["data"])["anew"]
    written(ws, metrics=[{"step": 3, "loss": 1.0}], status="paused")
    _, metrics = followed(api, "train/events", 2, last_event_id=metrics["id"])
    told = json.loads(metrics["data"])
    assert ([line["step"] for line in told["lines"]], told["anew"]) == ([3], False)
    api("GET", "train/events?run=nothing", 404)


def test_the_log_is_followed_line_by_line(api: Api) -> None:
    ws = of(api).ws
    api("GET", "train/logs", 404)
    written(ws, log="first\nsécond\n".encode(), status="paused")
    assert api.client.get("/api/train/logs").text == "first\nsécond\n"
    assert api.client.get("/api/train/logs", params={"tail": 1}).text == "sécond\n"
    written(ws, log=b"third\nfourth\nunfinished", status="paused")
    events = followed(api, "train/logs?follow=true", 6)
    assert [one["data"] for one in events[:5]] == ["first", "sécond", "third", "fourth", "unfinished"]
    assert (events[5]["event"], json.loads(events[5]["data"])) == ("end", {"status": "paused"})
    # Continued in the middle of what was copied at once.
    later = followed(api, "train/logs", 3, last_event_id=events[2]["id"], accept="text/event-stream")
    assert [one["data"] for one in later] == ["fourth", "unfinished", '{"status": "paused"}']
    assert [one["data"] for one in followed(api, "train/logs?follow=true&tail=2", 2)] == ["fourth", "unfinished"]


def test_a_stream_ends_with_the_server(server: Running) -> None:
    with _asking(server).client.stream("GET", "/api/train/events") as said:
        read = said.iter_lines()
        next(read)
        began = time.monotonic()
        server.app.state.ending = lambda: True
        assert not [line for line in read if line.startswith("event: metrics")]
    assert time.monotonic() - began < 10


# Tasks and the worker ------------------------------------------------------------------------------------------------


def test_one_task_at_a_time(api: Api) -> None:
    api("POST", "train", 202)
    starter = api("GET", "lineage")["models"][0]["model"]["id"]
    task = api("POST", f"models/{starter}/evaluate", 202)
    assert (task["kind"], task["status"], task["by"]) == ("evaluate", "running", "admin")
    assert "running another task" in api("POST", f"models/{starter}/promote", 409)["error"]["message"]
    assert api("POST", "tasks/cancel")["status"] == "cancelled"
    api("POST", "tasks/cancel", 409)
    assert api("GET", "train/status")["task"]["status"] == "cancelled"
    api("POST", "models/nothing/evaluate", 404)
    assert "nothing" in api("POST", "forecast", 404, json={"dataset": "nothing"})["error"]["message"]


def test_a_worker_that_cannot_start_says_why(clips: Path, tmp_path: Path) -> None:
    with copied(clips, tmp_path) as ws:
        training.start(ws, training.TrainingRequest(), by="ann")
        (ws.folder / "voxloop.toml").write_text("threads = 'many'\n")
        worker = TrainingWorker(ws, grace_s=0.01, look_s=0.1)
        worker.wake()
        until = time.monotonic() + 60
        while worker.error is None and time.monotonic() < until:
            time.sleep(0.05)
        worker.close()
        assert worker.error is not None
        assert "threads" in worker.error
