"""Files with nothing to hear, and the same sound with two texts: told at ingest, and kept out of what is learnt."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from voxloop.automation.worker import work
from voxloop.records import Recording
from voxloop.steps import datasets
from voxloop.steps.recordings import ingest, read_audio
from voxloop.workspace import Workspace

RATE = 16_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Silence, a constant level, two channels that cancel each other out, and noise, each with a text."""
    folder = tmp_path / "in"
    folder.mkdir()
    noise = 0.1 * np.random.default_rng(0).standard_normal(2 * RATE)
    noise[: RATE // 2] *= 0.01  # a pause, as speech has
    sounds = {
        "zeros": np.zeros(2 * RATE),
        "offset": np.full(2 * RATE, 0.25),
        "inverted": np.stack([noise, -noise], axis=1),
        "noise": 0.5 * noise,
    }
    for name, sound in sounds.items():
        soundfile.write(folder / f"{name}.wav", sound, RATE)
    rows = [{"file": f"{name}.wav", "text": f"the text of {name}", "speaker": "ann"} for name in sounds]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_what_cannot_be_heard_is_told_and_not_learnt(workspace: Workspace, folder: Path) -> None:
    report = ingest(workspace, folder)
    told = sorted(note for note in report.notes if "the audio is digital silence or a constant level" in note)
    assert ["offset.wav" in told[0], "zeros.wav" in told[1], len(told)] == [True, True, 2]
    work(workspace, ["segment"], until_idle=True)
    dataset = datasets.build(workspace)
    texts = {row.text for row in datasets.rows(workspace, dataset.id)}
    assert texts == {"the text of inverted", "the text of noise"}
    assert dataset.excluded["nothing to hear (digital silence, or a constant level)"] == 2


def test_of_channels_that_cancel_each_other_out_one_is_taken(workspace: Workspace, folder: Path) -> None:
    report = ingest(workspace, folder / "inverted.wav")
    assert "cancel each other out" in report.notes[0]
    taken = read_audio(workspace, report.taken[0])
    assert taken[RATE:].std() == pytest.approx(0.1, rel=0.05)


def test_how_a_file_held_its_audio_is_kept(workspace: Workspace, folder: Path) -> None:
    (id,) = ingest(workspace, folder / "inverted.wav").taken
    with workspace.read() as reader:
        encoding = reader.get(Recording, id).encoding
    assert encoding is not None
    assert (encoding.codec, encoding.rate, encoding.channels) == ("pcm_16", RATE, 2)


def test_the_same_sound_with_another_text_is_told_with_both(workspace: Workspace, folder: Path) -> None:
    (folder / "copy.wav").write_bytes((folder / "noise.wav").read_bytes())
    with (folder / "metadata.jsonl").open("a") as lines:
        lines.write(json.dumps({"file": "copy.wav", "text": "something else", "speaker": "ann"}) + "\n")
    (note,) = [note for note in ingest(workspace, folder).notes if "copy.wav" in note]
    assert "the text of noise" in note
    assert "something else" in note
