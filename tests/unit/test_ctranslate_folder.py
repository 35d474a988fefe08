"""CTranslate2 folders as bases: read back exactly, or refused with what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import WhisperForConditionalGeneration

from tests.unit import tiny_whisper
from voxloop import models
from voxloop.errors import ModelError, UnknownRecord
from voxloop.families.whisper import WHISPER, ctranslate_folder
from voxloop.families.whisper.features import CONTEXT_KEY
from voxloop.hub import converted, repository
from voxloop.workspace import Workspace


def as_faster_whisper_has_it(source: Path, target: Path, compute_type: str = "float16") -> Path:
    """A converted folder with the files that faster-whisper's repositories hold, and no other."""
    WHISPER.convert(source, target, compute_type)
    for file in target.iterdir():
        if file.name not in ("config.json", "model.bin", "tokenizer.json", "vocabulary.json"):
            file.unlink()
    return target


def in_hub_cache(place: Path, repository: str, folder: Path) -> Path:
    """The folder as the newest snapshot of a repository in the Hub's cache."""
    repository_folder = place / f"models--{repository.replace('/', '--')}"
    snapshot = repository_folder / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    (repository_folder / "refs").mkdir()
    (repository_folder / "refs" / "main").write_text("0123456789abcdef0123456789abcdef01234567")
    return snapshot


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture(scope="module", params=[False, True], ids=["english", "multilingual"])
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A vocabulary of Whisper's size, since that is what tells the multilingual ones.
    size = 51_865 if request.param else 51_864
    return tiny_whisper.make(tmp_path_factory.mktemp("original") / "m", multilingual=request.param, vocabulary=size)


@pytest.mark.parametrize("compute_type", ["float32", "float16", "bfloat16"])
def test_the_network_is_read_back(original: Path, tmp_path: Path, compute_type: str) -> None:
    folder = as_faster_whisper_has_it(original, tmp_path / "ct2", compute_type)
    stored = getattr(torch, compute_type)
    expected = WhisperForConditionalGeneration.from_pretrained(original).state_dict()
    found, processor = ctranslate_folder.read(folder)
    assert ctranslate_folder.compute_type(folder) == compute_type
    for name, weight in found.state_dict().items():
        # What an fp32 model loses, conversion to the stored type took; reading loses nothing more.
        assert torch.equal(weight, expected[name].to(stored)), name
    theirs = WHISPER.load(original).vocabulary
    ours = WHISPER.load(folder).vocabulary
    assert ours == theirs
    before = WhisperForConditionalGeneration.from_pretrained(original)
    for name in ("suppress_tokens", "begin_suppress_tokens", "no_timestamps_token_id", "prev_sot_token_id"):
        assert getattr(found.generation_config, name) == getattr(before.generation_config, name)
    for name in ("d_model", "encoder_layers", "decoder_attention_heads", "decoder_ffn_dim", "max_target_positions"):
        assert getattr(found.config, name) == getattr(before.config, name)
    assert processor.tokenizer.decode(processor.tokenizer("ab c", add_special_tokens=False).input_ids) == "ab c"


def test_training_opens_it(tmp_path: Path) -> None:
    folder = as_faster_whisper_has_it(tiny_whisper.make(tmp_path / "m"), tmp_path / "ct2")
    trainable = WHISPER.open_for_training(folder, audio_context="trimmed")
    assert trainable.base_context == "full"
    assert {parameter.dtype for parameter in trainable.model.parameters()} == {torch.float32}
    assert trainable.model.proj_out.weight is trainable.model.model.decoder.embed_tokens.weight
    WHISPER.save(trainable, trainable.model, tmp_path / "saved")
    assert WHISPER.load(tmp_path / "saved").context("auto") == "trimmed"


def test_a_model_exported_by_voxloop_keeps_its_context(tmp_path: Path) -> None:
    source = tiny_whisper.make(tmp_path / "m")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {CONTEXT_KEY: "trimmed"}))
    WHISPER.convert(source, tmp_path / "ct2", "float32")
    assert WHISPER.load(tmp_path / "ct2").context("auto") == "trimmed"


class TestRefused:
    def test_rounded_weights(self, tmp_path: Path, workspace: Workspace) -> None:
        folder = as_faster_whisper_has_it(tiny_whisper.make(tmp_path / "m"), tmp_path / "ct2", "int8")
        with pytest.raises(ModelError, match=r"are rounded to int8, .* float16 or float32: convert the original again"):
            models.base_model(workspace, str(folder))
        with pytest.raises(ModelError, match="int8"):
            WHISPER.load(folder)

    def test_no_tokenizer(self, tmp_path: Path, workspace: Workspace) -> None:
        folder = as_faster_whisper_has_it(tiny_whisper.make(tmp_path / "m"), tmp_path / "ct2")
        (folder / "tokenizer.json").unlink()
        with pytest.raises(ModelError, match=r"no tokenizer\.json: copy it from the model that was converted"):
            models.base_model(workspace, str(folder))

    def test_a_file_cut_short(self, tmp_path: Path, workspace: Workspace) -> None:
        folder = as_faster_whisper_has_it(tiny_whisper.make(tmp_path / "m"), tmp_path / "ct2")
        whole = (folder / "model.bin").read_bytes()
        for kept in (20, 400, len(whole) // 2, len(whole) - 200):
            (folder / "model.bin").write_bytes(whole[:kept])
            with pytest.raises(ModelError, match="cannot be read as CTranslate2's Whisper weights"):
                models.base_model(workspace, str(folder))

    def test_a_bias_of_keys(self, tmp_path: Path) -> None:
        """Transformers' Whisper has none, so one that is not zero would be lost without a word."""
        source = tiny_whisper.make(tmp_path / "m")
        weights = load_file(source / "model.safetensors")
        weights["model.encoder.layers.0.self_attn.q_proj.bias"].fill_(0.5)  # equal variables are written once
        save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
        folder = as_faster_whisper_has_it(source, tmp_path / "ct2", "float32")
        whole = bytearray((folder / "model.bin").read_bytes())
        name = b"encoder/layer_0/self_attention/linear_0/bias\0"
        data = whole.index(name) + len(name) + 1 + 4 + 1 + 4  # rank, dimension, type, bytes
        whole[data + 4 * 40 : data + 4 * 41] = b"\0\0\x80\x3f"  # 1.0, the ninth of 32 biases of keys
        (folder / "model.bin").write_bytes(whole)
        with pytest.raises(ModelError, match="has a bias for attention keys"):
            ctranslate_folder.read(folder)

    def test_pickled_weights_stay_refused(self, tmp_path: Path, workspace: Workspace) -> None:
        source = tiny_whisper.make(tmp_path / "m")
        (source / "model.safetensors").unlink()
        torch.save({"weight": torch.zeros(1)}, source / "model.bin")
        with pytest.raises(ModelError, match=r"no \.safetensors weights"):
            models.base_model(workspace, str(source))


class TestIdentity:
    def test_covers_weights_and_vocabulary(self, tmp_path: Path, workspace: Workspace) -> None:
        folder = as_faster_whisper_has_it(tiny_whisper.make(tmp_path / "m"), tmp_path / "ct2")
        first = models.base_model(workspace, str(folder))
        assert set(first.files) == {"config.json", "model.bin", "tokenizer.json", "vocabulary.json"}
        other = as_faster_whisper_has_it(tiny_whisper.make(tmp_path / "n", seed=1), tmp_path / "ct2-other")
        assert models.base_model(workspace, str(other)).id != first.id

    def test_both_engines_hear_the_same_with_it(self, tmp_path: Path, workspace: Workspace) -> None:
        folder = as_faster_whisper_has_it(tiny_whisper.make(tmp_path / "m"), tmp_path / "ct2", "float32")
        model = models.base_model(workspace, str(folder))
        clip = [0.1 * torch.randn(16_000, generator=torch.Generator().manual_seed(0)).numpy()]
        with models.loaded(workspace, model, "torch") as recogniser:
            by_torch = recogniser.embed(clip)
        with models.loaded(workspace, model, "ctranslate2-float32") as recogniser:
            by_ctranslate = recogniser.embed(clip)
        assert by_torch == pytest.approx(by_ctranslate, abs=1e-4)
        assert (Path(models.model_folder(workspace, model)) / "model.safetensors").is_file()


class TestHubCache:
    def test_what_faster_whisper_has_goes_by_its_usual_names(
        self, tmp_path: Path, workspace: Workspace, hub: Path
    ) -> None:
        folder = as_faster_whisper_has_it(tiny_whisper.make(tmp_path / "m"), tmp_path / "ct2")
        snapshot = in_hub_cache(hub, "Systran/faster-whisper-tiny.en", folder)
        model = models.base_model(workspace, "tiny.en")
        assert repository(model.where) == model.base == "Systran/faster-whisper-tiny.en"
        assert models.base_model(workspace, "Systran/faster-whisper-tiny.en") == model
        assert converted(repository(model.where)) == snapshot
        with models.loaded(workspace, model, "torch") as recogniser:
            assert recogniser.vocabulary.languages == {}

    def test_a_name_that_is_not_there_says_what_would_be(self, workspace: Workspace, hub: Path) -> None:
        with pytest.raises(ModelError, match=r"'base' is faster-whisper's name for Systran/faster-whisper-base, which"):
            models.base_model(workspace, "base")
        with pytest.raises(UnknownRecord):
            models.base_model(workspace, "bass")

    def test_half_a_download_is_none(self, tmp_path: Path, workspace: Workspace, hub: Path) -> None:
        folder = as_faster_whisper_has_it(tiny_whisper.make(tmp_path / "m"), tmp_path / "ct2")
        (folder / "model.bin").unlink()
        in_hub_cache(hub, "Systran/faster-whisper-base", folder)
        with pytest.raises(ModelError, match="not in"):
            models.base_model(workspace, "base")
