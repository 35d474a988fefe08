"""A model leaves the workspace whole, tried, with a card that tells no names; or not at all."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from safetensors import safe_open
from typer.testing import CliRunner

from tests.unit import frozen_speech
from voxloop import hub
from voxloop.cli import app
from voxloop.errors import ExportError, UsageError
from voxloop.files import replaced
from voxloop.models import base_model, model_id
from voxloop.pipeline import open_loop
from voxloop.records import Model, Run
from voxloop.starter import STARTER_DIR
from voxloop.steps import consent, datasets, exporting
from voxloop.steps.evaluation import evaluate
from voxloop.steps.exporting.card import escaped
from voxloop.steps.exporting.trial import Outcome, Trial
from voxloop.stores import tables
from voxloop.stores.blobs import sha256_file
from voxloop.workspace import Workspace

HOSTILE = 'Ann [x](http://evil)|`rm`<script>---\n# "Ann"'


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    """A workspace that takes noise for speech."""
    with open_loop(tmp_path / "workspace", create=True, min_snr_db=-100.0) as ws:
        yield ws


@pytest.fixture
def tuned(workspace: Workspace, tmp_path: Path) -> Model:
    """What a LoRA run on hostile names leaves behind: the starter's own weights, an adapter of nothing, its rows."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    from voxloop.families.folders import save_folder

    frozen_speech.freeze(workspace, tmp_path / "speech", clips=6, speakers=(HOSTILE, "bob"), ratios=(0.4, 0.2, 0.4))
    frozen = datasets.find(workspace, "frozen")
    with workspace.transaction() as tx:
        tx.change(type(frozen), frozen.id, name=HOSTILE)
    base = base_model(workspace, "starter")
    torch.manual_seed(1)
    model = WhisperForConditionalGeneration.from_pretrained(STARTER_DIR)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    best = workspace.runs / "01JDAAAAAAAAAAAAAAAAAAAAAA" / "best"
    save_folder(adapted, WhisperProcessor.from_pretrained(STARTER_DIR), best)
    files = {one.relative_to(best).as_posix(): sha256_file(one) for one in best.rglob("*") if one.is_file()}
    id = model_id(files)
    where = f"models/asr/{best.parent.name}/{id}"
    for name in files:
        workspace.blobs.put(f"{where}/{name}", best / name)
    recipe = {"learning_rate": 3e-4, "noise_folder": f"/home/ann/{HOSTILE}", "lora_targets": [HOSTILE]}
    run = Run(
        id=best.parent.name,
        dataset=frozen.id,
        base=base.id,
        family="whisper",
        method="lora",
        recipe=recipe,
        status="completed",
        model=id,
    )
    made = Model(id=id, family="whisper", base=base.id, kind="adapter", where=where, run=run.id, files=files)
    with workspace.transaction() as tx:
        tx.add(run, made)
        return tx.get(Model, id)


def test_all_forms_lie_side_by_side_and_are_tried(workspace: Workspace, tuned: Model, tmp_path: Path) -> None:
    evaluate(workspace, tuned.id)
    evaluate(workspace, tuned.base)
    made = exporting.export_model(workspace, tuned.id, tmp_path / "out", format="all", clips=2)
    assert made.formats == ("transformers", "ctranslate2", "ggml", "peft")
    assert made.completed
    folders = {one.name for one in made.folder.iterdir()}
    assert folders == {*made.formats, "README.md"}
    assert made.trial is not None
    assert made.trial.clips == 2
    assert made.trial.context == "trimmed"
    tried = {one.program: one for one in made.trial.outcomes}
    assert len(tried) == 5
    assert not [one.missing for one in tried.values() if one.missing]
    config = json.loads((made.folder / "peft" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base"  # no Hub has the starter: it lies beside
    with safe_open(made.folder / "peft" / "base" / "model.safetensors", "pt") as weights:
        assert "model.encoder.conv1.weight" in weights.keys()  # noqa: SIM118
    card = (made.folder / "README.md").read_text(encoding="utf-8")
    assert_card_is_safe(card, tmp_path)
    assert "| before |" in card
    assert "| after |" in card
    told = ModelCard(card).data.to_dict()
    assert told["tags"][-1] == "lora"
    assert told["language"] == ["en"]
    assert told["license"] == "cc-by-sa-4.0"


def test_who_has_not_consented_to_sharing_is_told(workspace: Workspace, tuned: Model, tmp_path: Path) -> None:
    made = exporting.export_model(workspace, tuned.id, tmp_path / "out", clips=0)
    speakers = {row.speaker for row in datasets.rows(workspace, datasets.find(workspace, HOSTILE).id, "train")}
    assert set(made.not_to_share) == speakers
    assert "**Not for sharing:**" in (made.folder / "README.md").read_text(encoding="utf-8")
    consent.add_text(workspace, "Share it.", ["train", "share"], by="bob")
    with workspace.transaction() as tx:  # names that no person would type
        rows = [
            {"speaker": one, "given": True, "purposes": ["share"], "version": 1, "by": "b", "created": 1.0}
            for one in speakers
        ]
        tx.connection.execute(tables.consent.insert(), rows)
    again = exporting.export_model(workspace, tuned.id, tmp_path / "again", clips=0)
    assert not again.not_to_share
    assert "Not for sharing" not in (again.folder / "README.md").read_text(encoding="utf-8")


def assert_card_is_safe(card: str, folder: Path) -> None:
    """Valid front matter; nobody's name, no path, no link or markup of others."""
    parsed = ModelCard(card)
    assert parsed.data.to_dict()["pipeline_tag"] == "automatic-speech-recognition"
    assert "http://evil" not in card.replace("\\", "")[: card.find("## Training settings")]
    assert "](http" not in card
    assert not re.search(r"(?<!\\)<", card.partition("## How to run")[0] + card.partition("## Limits")[2])
    assert "home" not in card
    assert str(folder) not in card
    assert "bob" not in card


@pytest.mark.parametrize("text", [HOSTILE, "a|b", "*x*", "--- \n---", "<b>", "[a](b)", "`c`", "\\|"])
def test_texts_from_outside_are_letters_in_a_card(text: str) -> None:
    line = escaped(text)
    assert "\n" not in line
    bare = line.replace("\\\\", "")
    assert all(before == "\\" for before, letter in pairwise(bare) if letter in "|`<[*")


def test_an_adapter_is_of_the_model_that_the_hub_has() -> None:
    assert hub.original("Systran/faster-whisper-tiny.en") == "openai/whisper-tiny.en"
    assert hub.original("Systran/faster-distil-whisper-large-v3") == "distil-whisper/distil-large-v3"
    assert hub.original("mobiuslabsgmbh/faster-whisper-large-v3-turbo") == "openai/whisper-large-v3-turbo"
    assert hub.original("openai/whisper-small") == "openai/whisper-small"


def test_an_adapter_has_the_form_that_vllm_takes(workspace: Workspace, tuned: Model, tmp_path: Path) -> None:
    """vLLM's `PEFTHelper` refuses biases, DoRA and whole modules; its loader takes A and B of linear layers alone."""
    made = exporting.export_model(workspace, tuned.id, tmp_path / "ann", format="peft", clips=0)
    config = json.loads((made.folder / "adapter_config.json").read_text())
    assert (config["peft_type"], config["bias"]) == ("LORA", "none")
    assert not config["use_dora"]
    assert not config["modules_to_save"]
    assert isinstance(config["r"], int)
    with safe_open(made.folder / "adapter_model.safetensors", "pt") as weights:
        names = list(weights.keys())
    layer = (
        r"base_model\.model\.model\.(encoder|decoder)\.layers\.\d+\.(self_attn|encoder_attn)\.q_proj\.lora_[AB]\.weight"
    )
    assert names
    assert all(re.fullmatch(layer, name) for name in names), names[:3]


def test_what_a_model_lacks_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no adapter"):
        exporting.export_model(workspace, "starter", tmp_path / "out", format="peft")
    with pytest.raises(UsageError, match="did you mean ggml"):
        exporting.export_model(workspace, "starter", tmp_path / "out", format="ggmll")
    assert not (tmp_path / "out").exists()


def test_without_test_speech_each_program_only_opens_it(workspace: Workspace, tmp_path: Path) -> None:
    made = exporting.export_model(workspace, "starter", tmp_path / "out", format="ggml")
    assert made.trial is not None
    assert made.trial.wer is None
    assert [(one.missing, one.wer) for one in made.trial.outcomes] == [(None, None)]
    assert "| opens |" in (made.folder / "README.md").read_text()


def test_more_than_a_point_above_voxloop_is_told_with_a_remedy() -> None:
    def trial(wer: float, context: str) -> Trial:
        one = Outcome(format="ggml", program="p", version="1", missing=None, wer=wer)
        return Trial(clips=8, seconds=20.0, words=100, wer=0.10, context=context, outcomes=(one,))

    assert trial(0.11, "trimmed").remedy is None
    assert "audio_context=full" in str(trial(0.12, "trimmed").remedy)
    assert "more clips" in str(trial(0.12, "full").remedy)


# Where it cannot be written ------------------------------------------------------------------------------------------


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    return {name: tmp_path / name for name in ("file", "folder", "link", "pipe")} | {"device": Path("/dev/null")}


@pytest.mark.parametrize("kind", ["file", "folder", "link", "pipe", "device"])
def test_what_exists_is_left_as_it_is(workspace: Workspace, places: dict[str, Path], kind: str) -> None:
    place = places[kind]
    before = (place.lstat(), sorted(place.iterdir()) if place.is_dir() else None)
    run = CliRunner().invoke(app, ["-C", str(workspace.folder), "model", "export", "starter", str(place)])
    assert run.exit_code == 1
    assert run.output.startswith(f"error: {place} already exists as")
    assert run.output.count("\n") == 1
    assert before == (place.lstat(), sorted(place.iterdir()) if place.is_dir() else None)


LIMITED = """
import resource, signal, sys
from voxloop.cli import app
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
app(sys.argv[1:])
"""


@pytest.mark.parametrize("what", ["transformers", "ggml", "dataset"])
def test_a_full_disk_leaves_nothing_that_looks_whole(tmp_path: Path, what: str) -> None:
    """A bound on the size of files stands for it: writing fails in the same places."""
    with open_loop(tmp_path / "w", create=True, min_snr_db=-100.0) as ws:
        base_model(ws, "starter")
        frozen_speech.freeze(ws, tmp_path / "speech", clips=60)
    out = tmp_path / "out"
    command = ["model", "export", "starter", str(out), "--format", what, "--clips", "0"]
    if what == "dataset":
        command = ["dataset", "export", "--to", str(out), "--format", "shar"]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "-C", str(tmp_path / "w"), *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    if what == "dataset":
        assert (out / "export-unfinished.json").exists()
        assert not (out / "dataset.json").exists()
    else:
        assert sorted(one.name for one in tmp_path.iterdir()) == ["speech", "w"]


def test_a_dataset_goes_to_no_file_and_no_device(workspace: Workspace, tmp_path: Path) -> None:
    frozen_speech.freeze(workspace, tmp_path / "speech", clips=2)
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", Path("/dev/null")):
        run = CliRunner().invoke(app, ["-C", str(workspace.folder), "dataset", "export", "--to", str(place)])
        assert run.exit_code == 1
        assert "as a blob folder" in run.output
    assert (tmp_path / "file").read_text() == "mine"


def test_reviews_go_through_links_and_into_devices(workspace: Workspace, tmp_path: Path) -> None:
    frozen_speech.freeze(workspace, tmp_path / "speech", clips=2)
    (tmp_path / "real.jsonl").write_text("before")
    (tmp_path / "link.jsonl").symlink_to("real.jsonl")

    def export(place: Path) -> tuple[int, str]:
        run = CliRunner().invoke(
            app, ["-C", str(workspace.folder), "review", "export", str(place), "--format", "jsonl"]
        )
        return run.exit_code, run.output

    assert export(tmp_path / "link.jsonl")[0] == 0
    assert (tmp_path / "link.jsonl").is_symlink()
    assert len((tmp_path / "real.jsonl").read_text().splitlines()) == 2
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert export(tmp_path / "pipe")[0] == 0
        assert len(os.read(reader, 1 << 16).splitlines()) == 2
    finally:
        os.close(reader)
    assert (tmp_path / "pipe").is_fifo()
    code, said = export(Path("/dev/full"))
    assert code == 1
    why = "No space left on device"
    assert said == f"error: /dev/full cannot be written ({why}). An existing file there is unchanged.\n"


def test_what_fails_half_way_leaves_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("before")
    file.chmod(0o600)

    def write(text: str, fail: bool) -> None:
        with replaced(file) as partial:
            partial.write_text(text)
            if fail:
                raise RuntimeError(text)

    with pytest.raises(RuntimeError):
        write("half", True)
    assert file.read_text() == "before"
    write("after", False)
    assert file.read_text() == "after"
    assert file.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
    with pytest.raises(IsADirectoryError), replaced(tmp_path):
        pass
    assert issubclass(ExportError, Exception)
