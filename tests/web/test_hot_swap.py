"""A promotion reaches the running server: no request fails, no text is of another model than the answer names."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx2 as httpx
import openai
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.web.conftest import Running
from voxloop import models
from voxloop.records import Model, Recording
from voxloop.serving import canary
from voxloop.starter import STARTER_DIR
from voxloop.steps import datasets, evaluation
from voxloop.steps.gate import promotion
from voxloop.steps.recordings import ingest
from voxloop.steps.transcripts import transcribe_file
from voxloop.steps.utterances import segment
from voxloop.stores import events, tables
from voxloop.workspace import Workspace

CLIENTS, SWAPS = 6, 8


def disturbed(ws: Workspace, folder: Path, *, scale: float = 0.05, seed: int = 0) -> Model:
    """The starter with noise on its weights: a model that hears otherwise."""
    shutil.copytree(STARTER_DIR, folder)
    weights = load_file(folder / "model.safetensors")
    torch.manual_seed(seed)
    for name, value in weights.items():
        if value.dtype.is_floating_point:
            weights[name] = value + scale * value.float().std(correction=0).to(value.dtype) * torch.randn_like(value)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return models.base_model(ws, str(folder))


def promoted(ws: Workspace, model: Model) -> None:
    """By hand, since these models are better than none."""
    promotion.promote(ws, model.id, force=True, by="test")


def crowned(ws: Workspace, model: Model) -> None:
    """As another machine would do it, on which the model's files are whole."""
    with ws.transaction() as tx:
        tx.connection.execute(tables.alias.update().where(tables.alias.c.name == "champion").values(model=model.id))


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def serving(server: Running) -> str:
    headers = {"authorization": f"Bearer {server.token}"}
    return str(httpx.get(f"{server.url}/health", headers=headers, trust_env=False).json()["model"])


def told(ws: Workspace, type: str) -> list[str]:
    return [event.subject for event in events.trail(ws.catalog) if event.type == type]


def test_texts_belong_to_the_model_that_is_named(server: Running, demo_speech: Path, tmp_path: Path) -> None:
    clips = sorted(demo_speech.glob("*.ogg"))[:3]
    one, other = (disturbed(server.ws, tmp_path / f"model {seed}", seed=seed) for seed in (1, 2))
    known = {
        (model.id, clip): transcribe_file(server.ws, clip, model=model.id).text
        for model in (models.base_model(server.ws, models.STARTER), one, other)
        for clip in clips
    }
    assert len({known[id, clips[0]] for id, clip in known if clip == clips[0]}) > 1
    wrong: list[object] = []
    answers: list[str] = []
    ending = threading.Event()

    def ask(number: int) -> None:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.token, max_retries=0)
        while not ending.is_set():
            clip = clips[number % len(clips)]
            try:
                raw = client.audio.transcriptions.with_raw_response.create(model="whisper-1", file=clip)
                model = raw.headers["x-voxloop-model"]
                answers.append(model)
                if raw.parse().text != known[model, clip]:
                    wrong.append((model, clip, raw.parse().text))
            except Exception as error:  # noqa: BLE001 - none may come
                wrong.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        promoted(server.ws, one)
        wait_for(lambda: serving(server) == one.id)
        for _ in range(SWAPS // 2):
            promoted(server.ws, other)
            wait_for(lambda: serving(server) == other.id)
            promotion.rollback(server.ws, by="test")
            wait_for(lambda: serving(server) == one.id)
            seen = len(answers)
            wait_for(lambda seen=seen: len(answers) > seen + CLIENTS)
            assert set(answers[seen + CLIENTS :]) == {one.id}  # none that began after the swap had the old one
    finally:
        ending.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert {one.id, other.id} <= set(answers)
    assert told(server.ws, "serving.changed") == [one.id, *[other.id, one.id] * (SWAPS // 2)]


def test_a_damaged_champion_is_not_served(server: Running, demo_speech: Path, tmp_path: Path) -> None:
    good = disturbed(server.ws, tmp_path / "good")
    promoted(server.ws, good)
    wait_for(lambda: serving(server) == good.id)
    other = disturbed(server.ws, tmp_path / "other", seed=3)
    weights = Path(other.where) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    crowned(server.ws, other)
    wait_for(lambda: told(server.ws, "serving.refused") == [other.id])
    assert serving(server) == good.id
    headers = {"authorization": f"Bearer {server.token}"}
    refused = httpx.get(f"{server.url}/health", headers=headers, trust_env=False).json()["refused"]
    assert refused["model"] == other.id
    assert "model.safetensors" in refused["reason"]
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.token, max_retries=0)
    clip = sorted(demo_speech.glob("*.ogg"))[0]
    heard = client.audio.transcriptions.with_raw_response.create(model="whisper-1", file=clip)
    assert heard.headers["x-voxloop-model"] == good.id


def test_a_rollback_lets_a_refused_champion_be_tried_again(server: Running, tmp_path: Path) -> None:
    good, bad = (disturbed(server.ws, tmp_path / name, seed=seed) for name, seed in (("good", 1), ("bad", 2)))
    promoted(server.ws, good)
    wait_for(lambda: serving(server) == good.id)
    weights = Path(bad.where) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    crowned(server.ws, bad)
    wait_for(lambda: told(server.ws, "serving.refused") == [bad.id])
    weights.write_bytes(whole)
    crowned(server.ws, good)
    time.sleep(1.0)
    assert serving(server) == good.id
    crowned(server.ws, bad)
    wait_for(lambda: serving(server) == bad.id)


@pytest.mark.parametrize("fault", ["other texts", "nothing"])
def test_a_model_that_hears_otherwise_than_when_it_was_measured_is_refused(
    server: Running, demo_speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    ingest(server.ws, demo_speech, processes=1, limit=40)
    with server.ws.read() as reader:
        ids = [one.id for one in reader.all(Recording)]
    segment(server.ws, ids)
    frozen = datasets.build(server.ws, ratios=(0.0, 0.0, 1.0))
    model = disturbed(server.ws, tmp_path / "model", seed=4)
    evaluation.evaluate(server.ws, model.id, dataset=frozen.id)
    with models.loaded(server.ws, model) as recogniser:
        assert canary.check(server.ws, model, recogniser) == canary.CLIPS
        if fault == "nothing":
            monkeypatch.setattr(recogniser, "_limit", lambda *_: 1)
        else:
            other = disturbed(server.ws, tmp_path / "other", seed=5, scale=0.3)
            with models.loaded(server.ws, other) as astray:
                monkeypatch.setattr(recogniser, "model", astray.model)
        with pytest.raises(models.ModelError, match="its evaluation heard"):
            canary.check(server.ws, model, recogniser)
