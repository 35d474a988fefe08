"""Which model a name means, where its files are, and models in memory that many threads use."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit import hub_server, tiny_whisper
from voxloop import models
from voxloop.errors import ModelError, UnknownRecord
from voxloop.families.decoding import Decoding
from voxloop.pipeline import open_loop
from voxloop.records import Model
from voxloop.stores.blobs import sha256_file
from voxloop.workspace import Workspace

NAME = "someone/tiny"

RESOLVE = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from voxloop import models
from voxloop.errors import ModelError
from voxloop.pipeline import open_loop

with open_loop(Path(sys.argv[1]), create=True) as ws:
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda name: models.base_model(ws, name), sys.argv[2:] * 4))
        print(json.dumps([[model.id, model.where, models.model_folder(ws, model)] for model in found]))
    except ModelError as error:
        print(json.dumps(str(error)))
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper.make(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def hub() -> Iterator[hub_server.HubServer]:
    with hub_server.serving() as server:
        yield server


class Elsewhere:
    """A workspace, and processes that ask for models in it, with the Hub's cache in a folder of their own."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        self.cache = folder / "hf"

    def ask(self, *names: str, offline: bool = False) -> Any:
        """What four threads find, each for all names: (id, where, folder) each; or an error's message."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        environment |= {"HF_ENDPOINT": self.url, "HF_HOME": str(self.cache), "HF_HUB_DISABLE_XET": "1"}
        environment |= {"HF_HUB_OFFLINE": "1"} if offline else {}
        command = [sys.executable, "-c", RESOLVE, str(self.folder / "workspace"), *names]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


class TestOfTheHub:
    def test_a_name_is_resolved_once(self, hub: hub_server.HubServer, tiny: Path, tmp_path: Path) -> None:
        files = hub_server.contents(tiny)
        commit = hub.push(NAME, files | {"pytorch_model.bin": b"pickled", "model.fp32-1.safetensors": b"too large"})
        there = Elsewhere(tmp_path, hub.url)
        first = there.ask(NAME)
        with open_loop(tmp_path / "local", create=True) as ws:
            expected = models.base_model(ws, str(tiny)).id
        assert {tuple(one[:2]) for one in first} == {(expected, f"{NAME}@{commit}")}
        fetched = [asked for asked in hub.requests if "/resolve/" in asked and asked.startswith("GET")]
        assert sorted(asked.rpartition("/")[2] for asked in fetched) == sorted(files)  # each once

        hub.requests.clear()
        assert there.ask(NAME) == first
        hub.push(NAME, files | {"config.json": files["config.json"] + b"\n"})  # the repository goes on
        assert there.ask(NAME) == first
        assert hub.requests == []
        hub.url = "http://127.0.0.1:1"
        assert there.ask(NAME, offline=True) == first

    def test_files_that_are_gone_or_damaged_are_fetched_again(
        self, hub: hub_server.HubServer, tiny: Path, tmp_path: Path
    ) -> None:
        files = hub_server.contents(tiny)
        commit = hub.push(NAME, files)
        there = Elsewhere(tmp_path, hub.url)
        first = there.ask(NAME)
        hub.push(NAME, files | {"config.json": files["config.json"] + b"\n"})
        (weights,) = there.cache.rglob("model.safetensors")
        whole = weights.read_bytes()

        weights.resolve().write_bytes(whole[:-1] + b"!")
        assert there.ask(NAME) == first
        assert weights.read_bytes() == whole

        for gone in (weights.resolve(), weights):
            gone.unlink()
        hub.requests.clear()
        assert there.ask(NAME) == first
        assert [asked for asked in hub.requests if asked.startswith("GET") and "/resolve/" in asked] == [
            f"GET /{NAME}/resolve/{commit}/model.safetensors"
        ]

        shutil.rmtree(there.cache)
        message = there.ask(NAME, offline=True)
        assert "could not be downloaded from the Hugging Face Hub" in message
        assert "Check the name and the network" in message
        assert there.ask(NAME) == first

    def test_other_files_under_the_same_revision_are_refused(
        self, hub: hub_server.HubServer, tiny: Path, tmp_path: Path
    ) -> None:
        files = hub_server.contents(tiny)
        commit = hub.push(NAME, files)
        there = Elsewhere(tmp_path, hub.url)
        ((id, *_), *_) = there.ask(NAME)
        shutil.rmtree(there.cache)
        hub.commits[NAME][commit] = files | {"model.safetensors": files["model.safetensors"][:-1] + b"!"}
        message = there.ask(NAME)
        assert message.startswith(f"model {id} was changed on the Hugging Face Hub ({NAME}@{commit}): ")
        assert "model.safetensors has hash sha256-" in message

    def test_a_revision_can_be_named(self, hub: hub_server.HubServer, tiny: Path, tmp_path: Path) -> None:
        files = hub_server.contents(tiny)
        old = hub.push(NAME, files)
        new = hub.push(NAME, files | {"config.json": files["config.json"] + b"\n"})
        found = Elsewhere(tmp_path, hub.url).ask(NAME, f"{NAME}@{old}")
        assert {where for _, where, _ in found} == {f"{NAME}@{old}", f"{NAME}@{new}"}
        assert len({id for id, *_ in found}) == 2

    def test_the_same_files_under_two_names_are_one_model(
        self, hub: hub_server.HubServer, tiny: Path, tmp_path: Path
    ) -> None:
        for name in (NAME, "another/copy"):
            hub.push(name, hub_server.contents(tiny))
        there = Elsewhere(tmp_path, hub.url)
        found = there.ask(NAME, "another/copy")
        assert len({id for id, *_ in found}) == 1
        revisions = Counter(asked for asked in hub.requests if "/revision/" in asked)
        assert sorted(revisions.values()) == [1, 1]
        assert there.ask("another/copy", offline=True)[0][0] == found[0][0]

    def test_what_the_hub_has_not_is_said(self, hub: hub_server.HubServer, tmp_path: Path) -> None:
        message = Elsewhere(tmp_path, hub.url).ask("nobody/nothing")
        assert message.startswith("model 'nobody/nothing' is not a local folder and could not be downloaded")


class Reads:
    """Counts files that are read to be hashed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.of: Counter[str] = Counter()

        def counting(path: Path) -> str:
            self.of[path.name] += 1
            return sha256_file(path)

        monkeypatch.setattr(models, "sha256_file", counting)


class TestFolders:
    def test_a_folder_is_read_again_where_it_changed(
        self, workspace: Workspace, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = shutil.copytree(tiny, tmp_path / "model")
        reads = Reads(monkeypatch)
        first = models.base_model(workspace, str(folder))
        assert set(reads.of.values()) == {1}
        for _ in range(3):
            assert models.base_model(workspace, str(folder)) == first
            assert models.model_folder(workspace, first) == str(folder)
        assert set(reads.of.values()) == {1}

        stat = (folder / "model.safetensors").stat()
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        os.utime(folder / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns))  # of the same size and date
        second = models.base_model(workspace, str(folder))
        assert second.id != first.id
        assert {name: second.files[name] == first.files[name] for name in first.files} == {
            name: name != "model.safetensors" for name in first.files
        }
        assert reads.of["model.safetensors"] == 2
        assert reads.of["config.json"] == 1
        with pytest.raises(ModelError, match=r"have changed: model\.safetensors has hash sha256-.*, not sha256-"):
            models.model_folder(workspace, first)
        assert models.model_folder(workspace, first, checked=False) == str(folder)

    def test_threads_read_a_folder_once(
        self, workspace: Workspace, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = shutil.copytree(tiny, tmp_path / "model")
        reads = Reads(monkeypatch)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: models.base_model(workspace, str(folder)).id, range(8)))
        assert len(set(found)) == 1
        assert set(reads.of.values()) == {1}

    def test_a_folder_that_was_moved_is_the_same_model(self, workspace: Workspace, tiny: Path, tmp_path: Path) -> None:
        old, new = shutil.copytree(tiny, tmp_path / "old"), tmp_path / "new"
        first = models.base_model(workspace, str(old))
        old.rename(new)
        with pytest.raises(ModelError, match=r"in .*old have changed: \S+ is missing"):
            models.model_folder(workspace, first)
        moved = models.base_model(workspace, str(new))
        assert moved.id == first.id
        assert models.model_folder(workspace, moved) == str(new)

    def test_a_folder_without_weights_and_an_unknown_id_are_refused(self, workspace: Workspace, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"contains no \.safetensors weights"):
            models.base_model(workspace, str(tmp_path))
        with pytest.raises(UnknownRecord):
            models.base_model(workspace, "sha256-none")
        with pytest.raises(UnknownRecord, match="no champion yet"):
            models.base_model(workspace, "champion")


def of_a_run(ws: Workspace, folder: Path, where: str) -> Model:
    """A model whose files are blobs, as a run registers it."""
    files = {path.name: sha256_file(path) for path in folder.iterdir()}
    for name in files:
        ws.blobs.put(f"{where}/{name}", folder / name)
    model = Model(
        id=models.model_id(files), family="whisper", base="starter", kind="full", where=where, run="r", files=files
    )
    with ws.transaction() as tx:
        tx.add(model)
    return model


class TestBlobs:
    def test_files_are_held_against_the_row(
        self, workspace: Workspace, tiny: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = of_a_run(workspace, tiny, "models/asr/r/m")
        reads = Reads(monkeypatch)
        folder = Path(models.model_folder(workspace, model))
        assert models.model_folder(workspace, model) == str(folder)
        assert set(reads.of.values()) == {1}
        (folder / "model.safetensors").write_bytes(b"other weights")
        with pytest.raises(ModelError, match=r"is damaged: model\.safetensors has .* `voxloop verify --repair`"):
            models.model_folder(workspace, model)
        (folder / "model.safetensors").unlink()
        with pytest.raises(ModelError, match=r"a file of model .* is missing: .*model\.safetensors is not in"):
            models.model_folder(workspace, model)

    def test_a_damaged_copy_is_fetched_again(self, s3: str, tiny: Path, tmp_path: Path) -> None:
        with open_loop(tmp_path / "workspace", create=True, blobs=s3) as ws:
            model = of_a_run(ws, tiny, "models/asr/r/m")
            folder = Path(models.model_folder(ws, model))
            (folder / "model.safetensors").write_bytes(b"cut off")
            assert models.model_folder(ws, model) == str(folder)
            assert sha256_file(folder / "model.safetensors") == model.files["model.safetensors"]
            ws.blobs.delete(f"{model.where}/model.safetensors")
            ws.blobs.put(f"{model.where}/model.safetensors", b"other weights")
            with pytest.raises(ModelError, match=r"is damaged: model\.safetensors has"):
                models.model_folder(ws, model)


# Loading -------------------------------------------------------------------------------------------------------------


class Loads:
    """Counts what is really loaded, and remembers it weakly."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.of: Counter[str] = Counter()
        self.alive: list[weakref.ref[Any]] = []
        really = models._load

        def counting(ws: Workspace, model: Model, on: str, engine_name: str) -> Any:
            self.of[model.id] += 1
            made = really(ws, model, on, engine_name)
            self.alive.append(weakref.ref(made))
            return made

        monkeypatch.setattr(models, "_load", counting)

    def count(self) -> int:
        return sum(one() is not None for one in self.alive)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Workspace]:
    models.free()
    with open_loop(tmp_path / "workspace", create=True, threads=1, device="cpu", engine="torch") as ws:
        yield ws
    models.free()


@pytest.fixture
def several(small: Workspace, tmp_path: Path) -> list[Model]:
    folders = [tiny_whisper.make(tmp_path / f"model-{seed}", seed=seed) for seed in range(3)]
    return [models.base_model(small, name) for name in ("starter", *map(str, folders))]


CLIP = np.random.default_rng(3).standard_normal(8000).astype(np.float32) * 0.1
SHORT = Decoding(language="en", max_new_tokens=4)


def test_threads_that_ask_for_the_same_model_load_it_once(small: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = Loads(monkeypatch)
    starter = models.base_model(small, "starter")
    together = threading.Barrier(8)

    def use(_: int) -> str:
        with models.loaded(small, starter) as recogniser:
            together.wait(60)  # all of them hold it now
            return recogniser.transcribe([CLIP], SHORT)[0].text

    with ThreadPoolExecutor(8) as pool:
        texts = set(pool.map(use, range(8)))
    assert len(texts) == 1
    assert loads.of == {starter.id: 1}
    with models.loaded(small, starter):
        pass
    assert loads.of == {starter.id: 1}  # it stayed
    models.free()
    assert loads.count() == 0


def test_the_number_of_threads_is_set_when_a_model_is_loaded_and_not_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    told: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    models.free()
    with open_loop(tmp_path / "workspace", create=True, threads=2, device="cpu", engine="torch") as ws:
        for _ in range(3):
            with models.loaded(ws, models.base_model(ws)):
                pass
    assert told == [2]
    models.free()


def test_no_model_goes_while_it_is_used(
    small: Workspace, several: list[Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = Loads(monkeypatch)
    alone = {}
    for model in several:
        with models.loaded(small, model) as recogniser:
            alone[model.id] = recogniser.embed([CLIP])
    del recogniser
    users: Counter[str] = Counter()
    most = 0
    counting = threading.Lock()

    def use(seed: int) -> None:
        nonlocal most
        chance = random.Random(seed)
        for _ in range(12):
            model = chance.choice(several)
            with models.loaded(small, model) as recogniser:
                with counting:
                    users[model.id] += 1
                    most = max(most, len([id for id, count in users.items() if count]))
                held = models._LOADED[model.id, "cpu", "torch"]
                assert held.recogniser is recogniser
                assert held.users > 0
                assert np.allclose(recogniser.embed([CLIP]), alone[model.id], atol=1e-5)
                assert models._LOADED[model.id, "cpu", "torch"] is held
                with counting:
                    users[model.id] -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(8)))
    assert most > models.KEPT  # more were in use at once than may stay
    assert sum(held.users for held in models._LOADED.values()) == 0
    assert len(models._LOADED) == loads.count() == models.KEPT
    models.free()
    assert models._LOADED == {}
    assert loads.count() == 0


def test_the_longest_unused_goes_first(small: Workspace, several: list[Model], monkeypatch: pytest.MonkeyPatch) -> None:
    loads = Loads(monkeypatch)
    first, second, third, _ = several
    with models.loaded(small, first):
        for other in (second, third):
            with models.loaded(small, other):
                assert {id for id, *_ in models._LOADED} == {first.id, other.id}  # the first stays: it is in use
        with models.loaded(small, third), models.loaded(small, second):
            assert len(models._LOADED) == 3
        assert {id for id, *_ in models._LOADED} == {first.id, third.id}
    assert loads.of == {first.id: 1, second.id: 2, third.id: 1}
    for used in (first, second):
        with models.loaded(small, used):
            pass
    assert [id for id, *_ in models._LOADED] == [first.id, second.id]


def test_what_cannot_be_loaded_leaves_nothing_behind(small: Workspace, tmp_path: Path) -> None:
    folder = tiny_whisper.make(tmp_path / "model")
    model = models.base_model(small, str(folder))
    (folder / "model.safetensors").rename(tmp_path / "kept")

    def use(_: int) -> None:
        with pytest.raises(ModelError, match="is missing"), models.loaded(small, model):
            raise AssertionError("it was loaded")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(4)))
    assert models._LOADED == {}
    (tmp_path / "kept").rename(folder / "model.safetensors")
    with models.loaded(small, model) as recogniser:
        assert recogniser.embed([CLIP]).shape[0] == 1


def test_an_error_of_its_user_lets_a_model_go(small: Workspace) -> None:
    starter = models.base_model(small, "starter")
    with pytest.raises(KeyError), models.loaded(small, starter):
        raise KeyError
    assert [held.users for held in models._LOADED.values()] == [0]
