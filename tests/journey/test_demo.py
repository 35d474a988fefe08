"""The main job, as the README promises it, shrunk: a folder of speech in, a promoted and better model out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from voxloop.cli import app
from voxloop.demo import run_demo

pytestmark = pytest.mark.timeout(1200)

# Ended by steps, not by the clock, so that a busy machine changes nothing; about what a minute on two cores brings.
STEPS = ("max_steps=160", "eval_seconds=20")


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


def listing(workspace: str, *arguments: str) -> Any:
    return json.loads(run("-C", workspace, *arguments, "--json"))


def check_result(out: Path, lines: list[str]) -> dict[str, Any]:
    """What result.json promises, and that the screen says the same."""
    result = json.loads((out / "result.json").read_text())
    assert set(result) == {
        "wer_before",
        "wer_after",
        "test_utterances",
        "train_clips",
        "train_seconds",
        "total_seconds",
        "verdict",
        "workspace",
    }
    assert f"{100 * result['wer_before']:.1f} % -> {100 * result['wer_after']:.1f} %" in "\n".join(lines)
    assert any("take the place of reviewed transcripts" in line for line in lines)
    return result


def test_the_demos_own_speech(tmp_path: Path, demo_speech: Path) -> None:
    lines: list[str] = []
    run_demo(demo_speech, speaker=None, clips=40, train_seconds=600, out=tmp_path, say=lines.append, overrides=STEPS)
    result = check_result(tmp_path, lines)
    assert result["train_clips"] == 40
    assert result["test_utterances"] >= 40  # the verdict rests on texts that training has not heard
    assert result["wer_after"] < 0.75 * result["wer_before"]
    assert result["verdict"] == "promote"

    workspace = result["workspace"]
    status = listing(workspace, "status")
    assert status["champion"] == status["newest_run"]["model"]
    assert "index" not in status["jobs"]  # none waits or has failed
    (run_record,) = listing(workspace, "run", "list")
    folder = Path(workspace) / "runs" / run_record["id"]
    for name in ("training_config.json", "metrics.jsonl", "train.log", "train_results.json", "eval_results.json"):
        assert (folder / name).stat().st_size > 0, name
    for name in ("best", "final"):
        assert (folder / name / "model.safetensors").exists(), name
        assert (folder / name / "generation_config.json").exists(), name
    champion = next(m for m in listing(workspace, "model", "list") if "champion" in m["aliases"])
    # On all clips, many of whose texts were heard in training, it errs less than on the new texts of the verdict.
    assert champion["evaluation"]["scores"]["wer"] <= result["wer_after"]

    # Every look at what was measured tells the same.
    for command in (["evaluate"], ["model", "show", "champion"], ["model", "list"]):
        assert f"{100 * champion['evaluation']['scores']['wer']:.1f} %" in run("-C", workspace, *command)
    assert "verdict: promote" in run("-C", workspace, "model", "compare", "champion", "previous")
    assert "already champion" in run("-C", workspace, "model", "promote", "champion")

    # The champion transcribes from now on; a rollback gives its place back.
    clip = next(iter(sorted(demo_speech.glob("*.ogg"))))
    spoken = json.loads(run("-C", workspace, "transcribe", str(clip), "--format", "json"))
    assert spoken["model"] == champion["model"]["id"]
    run("-C", workspace, "model", "rollback")
    spoken = json.loads(run("-C", workspace, "transcribe", str(clip), "--format", "json"))
    assert spoken["model"] != champion["model"]["id"]
    exported = tmp_path / "exported"
    run("-C", workspace, "model", "export", champion["model"]["id"], str(exported))
    from transformers import WhisperForConditionalGeneration

    assert WhisperForConditionalGeneration.from_pretrained(exported).config.model_type == "whisper"


def test_a_real_speaker_the_starter_never_heard(tmp_path: Path, real_speech: Path) -> None:
    lines: list[str] = []
    run_demo(
        real_speech / "digits_en",
        speaker="theo",
        clips=50,
        train_seconds=600,
        out=tmp_path,
        say=lines.append,
        overrides=STEPS,
    )
    result = check_result(tmp_path, lines)
    assert result["train_clips"] == 50
    assert result["test_utterances"] >= 100
    assert result["wer_after"] <= 0.5 * result["wer_before"]
    assert result["wer_after"] <= 0.08
    assert result["verdict"] == "promote"


def test_a_folder_without_speech_says_so(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    result = CliRunner().invoke(app, ["demo", str(empty), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "metadata.jsonl" in result.output
