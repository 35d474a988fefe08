"""Val during training is heard as `evaluate` hears it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit import tiny_whisper
from tests.unit.test_hearing import RATE, pause, take
from voxloop import models
from voxloop.families.contract import Hypothesis
from voxloop.families.decoding import Decoding, Guards
from voxloop.pipeline import open_loop
from voxloop.speech.audio import decode
from voxloop.steps import datasets, review, training, transcripts
from voxloop.steps.evaluation import evaluate
from voxloop.steps.training import recipes
from voxloop.steps.training.files import read_json
from voxloop.steps.training.session import Session
from voxloop.steps.training.state import LoopState, StopFlag, TrainingConfig
from voxloop.steps.training.submit import lay_out
from voxloop.steps.training.validation import Clip, Validation, as_served


@pytest.mark.parametrize("base", ["starter", "tiny"])
def test_an_untouched_model_has_the_score_of_an_evaluation(base: str, demo_speech: Path, tmp_path: Path) -> None:
    """Both for whole clips with silence around the speech, and for utterances that the detector cut."""
    spoken = [decode(path) for path in sorted(demo_speech.glob("*.ogg"))[:12]]
    name = base if base == "starter" else str(tiny_whisper.make(tmp_path / "base", width=48))
    settings: dict[str, Any] = {"base_model": name, "threads": 1, "device": "cpu", "min_snr_db": -99.0}
    with open_loop(tmp_path / "workspace", create=True, engine="torch", **settings) as ws:
        for number, clip in enumerate(spoken[:6]):
            padded = np.concatenate([pause(1.5 + number / 2), clip, pause(1.0)])
            take(ws, tmp_path / f"{number}.wav", padded, text=f"boil the kettle {number}")
        talk = np.concatenate([part for clip in spoken[6:] for part in (clip, pause(1.2))])
        for number, utterance in enumerate(take(ws, tmp_path / "talk.wav", talk)):
            review.save(ws, utterance.id, f"boil the kettle {number}", by="ann")
        datasets.build(ws, ratios=(0.4, 0.6, 0.0))
        expected = evaluate(ws, split="val").scores
        model = models.base_model(ws)
        run = training.submit(ws, base=name, recipe="quick", overrides=["max_steps=1"])
        folder = lay_out(ws, run, {})
    config = TrainingConfig.load(folder)
    session = Session(folder, config, recipes.from_dict(config.recipe), StopFlag(), LoopState())
    assert {row.whole for row in session.val} == {True, False}
    score = session.measure(0, context=session.trainable.base_context, served=True)
    found = (score.wer if score.clips_wer is None else score.clips_wer, score.cer)
    assert found == pytest.approx((expected["wer"], expected["cer"]))
    assert score.served
    assert model.id == run.base


class Listener:
    """A recogniser that notes how it is asked to decode, and may be in doubt about what it hears."""

    def __init__(self, *, fired: tuple[Any, ...] = ()) -> None:
        self.fired = fired
        self.asked: list[Decoding] = []
        self.given: list[int] = []

    def context(self, asked: str, untuned: str = "full") -> str:
        return untuned if asked == "auto" else asked

    def transcribe(self, waveforms: Any, decoding: Decoding, **_: Any) -> list[Hypothesis]:
        self.asked.append(decoding)
        self.given += map(len, waveforms)
        return [Hypothesis(text="one", confidence=0.5, guards=self.fired) for _ in waveforms]


TOLD = {"vad_threshold": 0.5, "vad_min_silence_ms": 300, "vad_pad_ms": 100}


def test_in_passing_speech_is_heard_at_less_than_30_s_and_once(demo_speech: Path) -> None:
    said = decode(next(iter(sorted(demo_speech.glob("*.ogg")))))
    clips = [
        Clip(np.concatenate([pause(3.0), said]), "one", "en", whole=True),
        Clip(said, "one two", None),
    ]
    told = TOLD | {"decoding": Decoding(guards=Guards(), beams=2, language="de").as_dict()}
    validation = Validation(clips, told, {}, short_context=True)
    listener: Any = Listener()
    served = validation.errors(listener, None, served=True)
    assert (served.words.errors, served.words.units, served.served) == (1, 3, True)
    assert {(one.audio_context, one.beams, one.guards) for one in listener.asked} == {("auto", 2, Guards())}
    assert [one.language for one in listener.asked] == ["de", "en"]  # as the settings say where a clip does not
    assert listener.given[0] == len(said)
    assert listener.given[1] < len(said) + 2 * RATE  # the silence went to no model
    listener = Listener()
    assert not validation.errors(listener, None, served=False).served  # at 30 s, other texts may come
    quick = {(one.audio_context, one.beams, one.guards) for one in listener.asked}
    assert quick == {("adaptive", 1, Guards(temperatures=()))}


@pytest.mark.parametrize("served", ["full", "packed"])
def test_no_clip_takes_30_s_in_passing(served: Any) -> None:
    told = TOLD | {"decoding": Decoding(guards=Guards(), audio_context=served).as_dict()}
    listener: Any = Listener()
    Validation([Clip(pause(1.0), "one", "en")], told, {}, short_context=True).errors(listener, None, served=False)
    assert [one.audio_context for one in listener.asked] == ["adaptive"]
    Validation([Clip(pause(1.0), "one", "en")], told, {}, short_context=False).errors(listener, None, served=False)
    assert listener.asked[-1].audio_context == served


@pytest.mark.parametrize(
    ("fired", "same"), [((), True), (("no speech",), True), (("repetition",), False), (("low probability",), False)]
)
def test_what_no_guard_doubts_is_as_served(fired: tuple[Any, ...], same: bool) -> None:
    told = TOLD | {"decoding": Decoding(guards=Guards(), audio_context="trimmed").as_dict()}
    validation = Validation([Clip(pause(1.0), "one", "en")], told, {}, short_context=True)
    assert validation.errors(Listener(fired=fired), None, served=False).served is same  # type: ignore[arg-type]


def test_a_run_remembers_how_its_workspace_heard(tmp_path: Path, demo_speech: Path) -> None:
    with open_loop(tmp_path / "workspace", create=True, vad_threshold=0.4, guard_logprob=-0.7, beams=3) as ws:
        told = as_served(ws, transcripts.decoding(ws))
        for number, path in enumerate(sorted(demo_speech.glob("*.ogg"))[:4]):
            take(ws, tmp_path / f"{number}.wav", decode(path), text=f"boil {number}")
        datasets.build(ws, ratios=(0.5, 0.5, 0.0))
        run = training.submit(ws, recipe="quick", overrides=["max_steps=1"])
        folder = lay_out(ws, run, {})
        elsewhere = {"hearing": told | {"vad_threshold": 0.9}}
    assert read_json(folder / "training_config.json")["hearing"] == json.loads(json.dumps(told))
    assert told["vad_threshold"] == 0.4
    validation = Validation([], told, {}, short_context=True)
    assert validation.decoding.guards == Guards(min_logprob=-0.7)
    assert (validation.decoding.beams, validation.settings.vad_threshold) == (3, 0.4)
    with open_loop(tmp_path / "workspace") as ws:
        (folder / "training_config.json").unlink()
        lay_out(ws, run, elsewhere)  # on another machine, whose settings differ
    assert read_json(folder / "training_config.json")["hearing"]["vad_threshold"] == 0.9
