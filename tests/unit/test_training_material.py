"""What a run hears beside its dataset: earlier speech, and the user's own noises."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.unit.speech import add_utterance
from voxloop.errors import SettingError, UnknownRecord
from voxloop.records import Dataset, Model, Run, Utterance
from voxloop.steps import datasets
from voxloop.steps.training import material
from voxloop.steps.training.batches import read_noises
from voxloop.steps.training.recipes import Recipe
from voxloop.workspace import Workspace

RATE = 16_000
PLAIN = Recipe(max_steps=1)


def speech(ws: Workspace, name: str, clips: int = 30) -> Dataset:
    """A dataset of one speaker, with every split."""
    for number in range(clips):
        add_utterance(ws, f"{name}-{number}", reference=f"said {number}", speaker=name)
    return datasets.build(ws, name=name, speakers=[name], ratios=(0.6, 0.2, 0.2))


def trained(ws: Workspace, name: str, dataset: Dataset, base: str, **recipe: object) -> Model:
    """A model that a run on `dataset` made."""
    run = Run(id=f"run-{name}", dataset=dataset.id, base=base, family="whisper", method="full", recipe=dict(recipe))
    model = Model(id=f"sha256-{name}", family="whisper", base=base, kind="full", where=name, run=run.id)
    with ws.transaction() as tx:
        tx.add(run)
        tx.add(model)
    return model


def starter() -> Model:
    return Model(id="sha256-starter", family="whisper", base="starter", kind="full", where="starter")


class TestReplay:
    def test_what_the_bases_learnt_is_heard_again(self, workspace: Workspace) -> None:
        ann, bob, cid = (speech(workspace, name) for name in ("ann", "bob", "cid"))
        first = trained(workspace, "first", ann, "starter")
        second = trained(workspace, "second", bob, first.id)
        found = material.resolved(workspace, PLAIN, cid, second)
        assert found.replay_from == (bob.id, ann.id)
        rows = material.replay_rows(workspace, found, cid)
        assert {row.speaker for row in rows} == {"ann", "bob"}
        assert {row.split for row in rows} == {"train"}
        assert material.resolved(workspace, PLAIN, cid, starter()).replay_from == ()

    def test_datasets_are_named_or_left_out(self, workspace: Workspace) -> None:
        ann, bob = speech(workspace, "ann"), speech(workspace, "bob")
        base = trained(workspace, "first", ann, "starter")
        named = material.resolved(workspace, replace(PLAIN, replay_from=("ann",)), bob, starter())
        assert named.replay_from == (ann.id,)
        assert material.resolved(workspace, replace(PLAIN, replay_share=0.0), bob, base).replay_from == ()
        assert material.resolved(workspace, PLAIN, ann, base).replay_from == ()  # it is what is learnt now
        with pytest.raises(UnknownRecord, match="dave"):
            material.resolved(workspace, replace(PLAIN, replay_from=("dave",)), bob, starter())

    def test_nothing_that_is_measured_on_is_heard(self, workspace: Workspace) -> None:
        ann, bob = speech(workspace, "ann"), speech(workspace, "bob")
        rows = material.replay_rows(workspace, replace(PLAIN, replay_from=(ann.id,)), bob)
        measured = {
            row.utterance for id in (ann.id, bob.id) for row in datasets.rows(workspace, id) if row.split != "train"
        }
        assert rows
        assert measured
        assert not measured & {row.utterance for row in rows}

    def test_what_is_learnt_anyway_is_not_heard_twice(self, workspace: Workspace) -> None:
        ann = speech(workspace, "ann")
        for number in range(10):
            add_utterance(workspace, f"more-{number}", reference="more", speaker="ann")
        grown = datasets.build(workspace, name="ann", speakers=["ann"], ratios=(0.6, 0.2, 0.2))
        assert material.replay_rows(workspace, replace(PLAIN, replay_from=(ann.id,)), grown) == []

    def test_no_more_is_written_than_ten_epochs_hear(self, workspace: Workspace) -> None:
        many, few = speech(workspace, "many", 120), speech(workspace, "few", 8)
        share = 0.2
        rows = material.replay_rows(workspace, replace(PLAIN, replay_from=(many.id,), replay_share=share), few)
        assert len(rows) == 10 * round(few.clips["train"] * share / (1 - share))
        assert rows == material.replay_rows(workspace, replace(PLAIN, replay_from=(many.id,), replay_share=share), few)


class TestRehearsal:
    def test_other_speakers_are_rehearsed_with_texts_that_the_base_is_sure_of(self, workspace: Workspace) -> None:
        ann = speech(workspace, "ann")
        asked = replace(PLAIN, rehearse=True)
        add_utterance(workspace, "own", heard="said", speaker="ann", duration=2.0, confidence=0.95)
        add_utterance(workspace, "sure", heard="go on", speaker="bob", duration=2.0, confidence=0.95)
        add_utterance(workspace, "unsure", heard="go on", speaker="bob", duration=2.0, confidence=0.5)
        add_utterance(workspace, "short", heard="go", speaker="bob", duration=0.5, confidence=0.95)
        add_utterance(workspace, "who", heard="go on", duration=2.0, confidence=0.95)
        (row,) = material.rehearsal_rows(workspace, asked, ann, "model")
        assert material.rehearsal_rows(workspace, asked, ann, "another model") == []
        assert (row.recording, row.text, row.kind, row.split) == ("sha256-sure", "go on", "hypothesis", "train")
        assert material.rehearsal_rows(workspace, replace(asked, replay_share=0.0), ann, "model") == []
        with workspace.transaction() as tx:
            tx.change(Utterance, [row.utterance], split="test")
        assert material.rehearsal_rows(workspace, asked, ann, "model") == []


class TestNoises:
    def test_noises_of_any_format_lie_in_the_runs_folder(self, workspace: Workspace, tmp_path: Path) -> None:
        import soundfile

        source = tmp_path / "noises"
        (source / "kitchen").mkdir(parents=True)
        rng = np.random.default_rng(1)
        soundfile.write(source / "kitchen" / "fan.flac", 0.1 * rng.standard_normal((44_100, 2)), 44_100)
        soundfile.write(source / "street.wav", 0.1 * rng.standard_normal(70 * 8_000), 8_000)
        soundfile.write(source / "nothing.wav", np.zeros(8_000), 8_000)
        (source / "readme.txt").write_text("my noises")
        recipe = replace(PLAIN, noise_folder=str(source))
        ann = speech(workspace, "ann")
        said = material.write_material(workspace, recipe, ann, "base", tmp_path / "run")
        assert said == {"noise": "noise"}
        noises = read_noises(tmp_path / "run" / "noise")
        assert [round(len(noise) / RATE, 1) for noise in noises] == [1.0, 60.0]

    def test_wrong_folders_are_refused(self, workspace: Workspace, tmp_path: Path) -> None:
        ann = speech(workspace, "ann")
        missing = replace(PLAIN, noise_folder=str(tmp_path / "none"))
        with pytest.raises(SettingError, match="which is not a folder"):
            material.resolved(workspace, missing, ann, starter())
        (tmp_path / "empty").mkdir()
        with pytest.raises(SettingError, match="contains no noise"):
            material.write_material(
                workspace, replace(PLAIN, noise_folder=str(tmp_path / "empty")), ann, "base", tmp_path / "r"
            )
        (tmp_path / "empty" / "broken.wav").write_bytes(b"RIFF")
        with pytest.raises(SettingError, match=r"broken\.wav.*remove the file"):
            material.write_material(
                workspace, replace(PLAIN, noise_folder=str(tmp_path / "empty")), ann, "base", tmp_path / "r"
            )
