"""Models of one base, trained with LoRA and named in requests: each text is its own model's, whichever engine runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openai
import pytest
import torch
from peft import LoraConfig, get_peft_model
from ulid import ULID

from tests.unit import frozen_speech
from tests.web.conftest import Running, served
from voxloop import models
from voxloop.errors import ModelError
from voxloop.families.contract import Decoding
from voxloop.families.whisper import WHISPER
from voxloop.pipeline import open_loop
from voxloop.records import Model, Run
from voxloop.serving.adapters import OneAdapter
from voxloop.serving.batches import Batches, Clip
from voxloop.serving.models import ServedModels
from voxloop.speech.audio import decode
from voxloop.starter import STARTER_DIR
from voxloop.steps import datasets
from voxloop.steps.transcripts import transcribe_file
from voxloop.stores.blobs import sha256_file
from voxloop.workspace import Workspace

PEOPLE = ("ann", "bob", "cem")


@pytest.fixture(params=["torch", "ctranslate2"])
def ws(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Workspace]:
    given = {"engine": request.param, "min_snr_db": -100.0, "serve_models": 2, "threads": 1}
    given |= {"guards": False, "serve_max_wait_s": 600.0}
    with open_loop(tmp_path / "served", create=True, **given) as opened:
        yield opened
    models.free()


@pytest.fixture
def base(ws: Workspace, tmp_path: Path) -> Model:
    """The starter in a folder of its own, which may be changed."""
    shutil.copytree(STARTER_DIR, tmp_path / "base")
    config = tmp_path / "base" / "config.json"
    config.write_text(config.read_text() + "\n")  # which makes it another model than the starter
    return models.base_model(ws, str(tmp_path / "base"))


@pytest.fixture
def people(ws: Workspace, base: Model, tmp_path: Path) -> dict[str, Model]:
    """What LoRA runs leave behind for each of three people: adapters strong enough to be heard."""
    frozen_speech.freeze(ws, tmp_path / "speech", clips=4, ratios=(0.5, 0.25, 0.25))
    frozen = datasets.find(ws, "frozen")
    found = {}
    for seed, name in enumerate(PEOPLE):
        torch.manual_seed(seed)
        trainable = WHISPER.open_for_training(base.where, audio_context="trimmed")
        config = LoraConfig(r=2, target_modules=["q_proj", "fc1"], init_lora_weights=False)
        adapted = get_peft_model(trainable.model, config)
        with torch.no_grad():
            for weight_name, weight in adapted.named_parameters():
                if "lora_" in weight_name:
                    weight.mul_(0.2)
        run = Run(
            id=str(ULID()),
            dataset=frozen.id,
            base=base.id,
            family="whisper",
            method="lora",
            recipe={},
            status="completed",
        )
        best = ws.runs / run.id / "best"
        WHISPER.save(trainable, adapted, best)
        files = {one.relative_to(best).as_posix(): sha256_file(one) for one in best.rglob("*") if one.is_file()}
        id = models.model_id(files)
        for file in files:
            ws.blobs.put(f"models/asr/{run.id}/{id}/{file}", best / file)
        made = Model(
            id=id,
            family="whisper",
            base=base.id,
            kind="adapter",
            where=f"models/asr/{run.id}/{id}",
            run=run.id,
            files=files,
            name=name,
        )
        with ws.transaction() as tx:
            tx.add(run, made)
        found[name] = made
    return found


def test_requests_name_whose_voice_it_is(ws: Workspace, people: dict[str, Model], demo_speech: Path) -> None:
    clips = sorted(demo_speech.glob("*.ogg"))[:2]
    known = {(name, clip): transcribe_file(ws, clip, model=name).text for name in people for clip in clips}
    assert len({known[name, clips[0]] for name in people}) > 1
    with served(ws) as running, ThreadPoolExecutor(6) as pool:
        asked = [(name, clip) for clip in clips for name in people]
        answers = list(pool.map(lambda one: _heard(running, *one), asked))
        listed = {one.id for one in _client(running).models.list()}
    for (name, clip), (text, model) in zip(asked, answers, strict=True):
        assert (text, model) == (known[name, clip], people[name].id)
    assert listed >= set(PEOPLE)
    if ws.settings.engine == "ctranslate2":
        assert len(models._LOADED) <= ws.settings.serve_models


def _client(running: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key=running.token, max_retries=0)


def _heard(running: Running, name: str, clip: Path) -> tuple[str, str]:
    raw = _client(running).audio.transcriptions.with_raw_response.create(model=name, file=clip)
    return raw.parse().text, raw.headers["x-voxloop-model"]


@pytest.mark.parametrize("ws", ["torch"], indirect=True)
def test_clips_of_several_adapters_share_a_batch(
    ws: Workspace, people: dict[str, Model], demo_speech: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = decode(sorted(demo_speech.glob("*.ogg"))[0])
    asked = Decoding(language="en")
    batches: list[list[str]] = []
    mixed = OneAdapter.transcribe_with

    def seen(self: OneAdapter, others: list[OneAdapter], *given: object, **named: object) -> object:
        batches.append([one.name for one in others])
        return mixed(self, others, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(OneAdapter, "transcribe_with", seen)
    served_models = ServedModels(ws)
    decoding = Batches(served_models.using, mixing=served_models.mixing, quantum_s=60.0)
    try:
        # The first occupies the thread; the others wait together.
        first = decoding.submit(Clip(waveform=np.tile(sound, 5), model=people["ann"], decoding=asked))
        rest = [decoding.submit(Clip(waveform=sound, model=model, decoding=asked)) for model in people.values()]
        first.result(120)
        found = {model.id: future.result(120) for model, future in zip(people.values(), rest, strict=True)}
        assert {id: one.model for id, one in found.items()} == {id: id for id in found}
        assert max(len(set(names)) for names in batches) == len(people)
        for model in people.values():
            with models.loaded(ws, model) as merged:
                assert found[model.id].hypothesis.text == merged.transcribe([sound], asked)[0].text
        with served_models.using(people["cem"]):
            pass
        held = served_models._adapters._bases[people["ann"].base].users
        assert len(held) == ws.settings.serve_models  # the others were let go
    finally:
        decoding.close()
        served_models.close()


@pytest.mark.parametrize("ws", ["torch"], indirect=True)
def test_an_adapter_of_a_base_that_has_changed_is_refused(
    ws: Workspace, people: dict[str, Model], base: Model, demo_speech: Path
) -> None:
    config = Path(base.where) / "config.json"
    config.write_text(config.read_text() + " \n")
    served_models = ServedModels(ws)
    try:
        with pytest.raises(ModelError, match="have changed"), served_models.using(people["ann"]):
            pass
    finally:
        served_models.close()
