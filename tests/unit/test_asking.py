"""What people ask of a training, turned into a recipe and, where they want one, a new dataset."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit import tiny_whisper
from tests.unit.speech import add_utterance
from voxloop import bases
from voxloop.errors import SettingError, UsageError
from voxloop.records import Dataset
from voxloop.starter import STARTER_DIR
from voxloop.steps import training
from voxloop.steps.training import TrainingProposal, TrainingRequest
from voxloop.workspace import Workspace


def proposed(ws: Workspace, folder: Path = STARTER_DIR, **asked: object) -> TrainingProposal:
    return training.propose(ws, TrainingRequest(**asked), folder)  # type: ignore[arg-type]


@pytest.fixture
def reviewed(workspace: Workspace) -> Workspace:
    """Fifty reviewed utterances of half a second or so."""
    for n in range(50):
        add_utterance(workspace, f"u{n}", heard="a", reference=f"number {n}", speaker="ann", language="en")
    return workspace


def test_batches_in_clips_follow_how_clips_are_fed(reviewed: Workspace, tmp_path: Path) -> None:
    own = proposed(reviewed, batch_clips=10)  # at the clips' own length, with a margin
    assert own.recipe.batch_seconds == pytest.approx(10 * own.clip_s, abs=0.01)
    assert own.batch_clips == 10
    padded = proposed(reviewed, batch_clips=4, settings={"audio_context": "full"})
    assert (padded.clip_s, padded.recipe.batch_seconds) == (30, 120)
    tiny = tiny_whisper.make(tmp_path / "tiny")
    packed = proposed(reviewed, tiny)
    assert packed.clip_s == pytest.approx(own.clip_s - 0.64, abs=0.01)


def test_the_recipe_follows_the_method_unless_it_is_named(reviewed: Workspace) -> None:
    assert proposed(reviewed).recipe.name == "quick"
    adapted = proposed(reviewed, method="lora").recipe
    assert (adapted.name, adapted.method, adapted.why) == ("careful", "lora", "the method lora was asked for")
    kept = proposed(reviewed, recipe="quick", method="lora").recipe
    assert (kept.name, kept.method, kept.learning_rate) == ("quick", "lora", 6e-4)
    with pytest.raises(SettingError, match="choose full or lora"):
        proposed(reviewed, method="half")


def test_settings_are_taken_in_the_types_of_json(reviewed: Workspace) -> None:
    given = {"freeze_encoder": True, "patience": None, "lora_targets": ["q_proj", "v_proj"], "speed": 0.2}
    recipe = proposed(reviewed, minutes=1.5, settings=given).recipe
    assert (recipe.freeze_encoder, recipe.patience, recipe.lora_targets) == (True, None, ("q_proj", "v_proj"))
    assert (recipe.speed, recipe.max_seconds) == (0.2, 90)
    with pytest.raises(SettingError, match="1 or more"):
        proposed(reviewed, batch_clips=0)


def test_a_new_dataset_is_frozen_once_and_with_the_share_for_validation(reviewed: Workspace) -> None:
    first = training.start(reviewed, TrainingRequest(validation_share=0.3), by="ann")
    with reviewed.read() as reader:
        clips = reader.get(Dataset, first.dataset).clips
    assert clips["val"] == pytest.approx(15, abs=2)
    fixed = proposed(reviewed).fixed
    assert fixed is not None
    assert f"{clips['train']} train" in fixed
    again = training.start(reviewed, TrainingRequest(), by="ann")
    with reviewed.read() as reader:
        assert reader.get(Dataset, again.dataset).clips == clips  # splits that were decided stay
    with pytest.raises(UsageError, match="leave the share for validation out"):
        training.start(reviewed, TrainingRequest(dataset=first.dataset, validation_share=0.1), by="ann")
    with pytest.raises(SettingError, match="give a number from 0"):
        training.start(reviewed, TrainingRequest(validation_share=0.6), by="ann")


def test_time_is_told_from_the_speech_and_the_limits() -> None:
    need = bases.Need(memory_bytes=1, seconds=2.0)
    assert bases.training_time(need, speech_s=300, epochs=3, max_s=None) == 60
    assert bases.training_time(need, speech_s=300, epochs=3, max_s=45) == 45
    assert bases.training_time(need, speech_s=300, epochs=None, max_s=45) == 45
    assert bases.training_time(need, speech_s=300, epochs=None, max_s=None) is None
