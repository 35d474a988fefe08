"""Blending with the base, what is thrown away, and when a run stops early."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.unit import tiny_whisper
from tests.unit.test_training import lay_out, metrics, weights
from voxloop.steps.training import recipes, trainer
from voxloop.steps.training.files import BEST, read_json
from voxloop.steps.training.session import BLENDS, Session
from voxloop.steps.training.state import LoopState, Score, StopFlag, TrainingConfig

BLENDED = ("blend=true", "max_steps=6", "eval_steps=6", "learning_rate=1e-2")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper.make(tmp_path_factory.mktemp("base") / "model", sharpness=1.0, width=48)


def rates(
    monkeypatch: pytest.MonkeyPatch, *, base: float, trained: float, blends: dict[float, float], worse_served: float = 0
) -> None:
    """Have val find these error rates, so that what is decided by them can be told."""

    def measure(
        self: Session, step: int, *, context: str | None = None, blend: float = 1.0, served: bool = False
    ) -> Score:
        wer = base if step == 0 else blends.get(blend, trained)
        if served and step:
            wer += worse_served
        return Score(step=step, wer=wer, cer=wer, loss=wer, blend=blend, served=served)

    monkeypatch.setattr(Session, "measure", measure)


def test_the_best_blend_is_kept_and_told(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates(monkeypatch, base=0.5, trained=0.4, blends={0.25: 0.45, 0.5: 0.3, 0.75: 0.35})
    folder = lay_out(tmp_path / "run", base, *BLENDED)
    outcome = trainer.run(folder, StopFlag())
    assert outcome.best == Score(step=6, wer=0.3, cer=0.3, loss=0.3, blend=0.5, served=True)
    assert any("kept a blend of base and trained weights, 50 % trained" in note for note in outcome.notes)
    first, last, kept = weights(base), weights(folder / "final"), weights(folder / "best")
    moved = [name for name in last if not torch.equal(first[name], last[name])]
    assert moved
    for name in last:
        torch.testing.assert_close(kept[name], torch.lerp(first[name], last[name], 0.5))
    told = [(line["blend"], line["blend_wer"]) for line in metrics(folder) if "blend" in line]
    assert sorted(told) == [(0.25, 0.45), (0.5, 0.3), (0.75, 0.35)]
    assert read_json(folder / "eval_results.json")["best"]["blend"] == 0.5


def test_adapters_are_blended_by_their_scale(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates(monkeypatch, base=0.5, trained=0.4, blends={0.25: 0.2})
    folder = lay_out(tmp_path / "run", base, *BLENDED, "method=lora", "lora_rank=4")
    outcome = trainer.run(folder, StopFlag())
    assert outcome.best is not None
    assert outcome.best.blend == 0.25
    first, last, kept = weights(base), weights(folder / "final"), weights(folder / "best")
    for name in last:
        torch.testing.assert_close(kept[name], torch.lerp(first[name], last[name], 0.25), atol=1e-6, rtol=1e-4)
    whole, part = (load_file(folder / name / "adapter" / "adapter_model.safetensors") for name in ("final", "best"))
    for name, weight in whole.items():
        torch.testing.assert_close(part[name], 0.25 * weight if "lora_B" in name else weight)


def test_the_base_is_kept_where_every_blend_is_worse(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates(monkeypatch, base=0.3, trained=0.4, blends=dict.fromkeys(BLENDS, 0.35))
    outcome = trainer.run(lay_out(tmp_path / "run", base, *BLENDED), StopFlag())
    assert outcome.best == outcome.base
    (note,) = [note for note in outcome.notes if "did not improve" in note]
    assert "WER 30.0 % (loss 0.300) before, WER 40.0 % (loss 0.400) after" in note
    assert "What would help: a larger val split" in note
    assert all(torch.equal(weight, weights(base)[name]) for name, weight in weights(tmp_path / "run" / "best").items())


def test_a_blend_of_weights_that_are_worse_than_the_base_may_be_better(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates(monkeypatch, base=0.3, trained=0.4, blends={0.25: 0.25, 0.5: 0.3, 0.75: 0.4})
    folder = lay_out(tmp_path / "run", base, *BLENDED)
    outcome = trainer.run(folder, StopFlag())
    assert outcome.best == Score(step=6, wer=0.25, cer=0.25, loss=0.25, blend=0.25, served=True)
    first, last, kept = weights(base), weights(folder / "final"), weights(folder / "best")
    assert all(torch.allclose(kept[name], torch.lerp(first[name], last[name], 0.25)) for name in last)


def test_the_base_is_kept_where_the_best_is_worse_as_served(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates(monkeypatch, base=0.3, trained=0.4, blends={0.25: 0.25}, worse_served=0.1)
    outcome = trainer.run(lay_out(tmp_path / "run", base, *BLENDED), StopFlag())
    assert outcome.best == outcome.base
    (note,) = [note for note in outcome.notes if "did not improve" in note]
    assert "WER 30.0 % (loss 0.300) before, WER 35.0 % (loss 0.350) after" in note
    assert all(torch.equal(weight, weights(base)[name]) for name, weight in weights(tmp_path / "run" / "best").items())
    told = [(line["served_step"], line["served_wer"]) for line in metrics(tmp_path / "run") if "served_wer" in line]
    assert told == [(0, 0.3), (6, pytest.approx(0.35))]


def test_trained_weights_are_kept_on_request(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates(monkeypatch, base=0.3, trained=0.4, blends=dict.fromkeys(BLENDS, 0.35))
    folder = lay_out(tmp_path / "run", base, *BLENDED, "keep_no_better=true")
    trainer.run(folder, StopFlag())
    best, final = weights(folder / "best"), weights(folder / "final")
    assert all(torch.equal(best[name], final[name]) for name in final)


def test_a_run_that_is_killed_once_the_blend_is_decided_ends_with_it(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates(monkeypatch, base=0.5, trained=0.4, blends={0.5: 0.3})
    folder = lay_out(tmp_path / "run", base, *BLENDED, "save_seconds=0.001")
    first = trainer.run(folder, StopFlag())
    kept = weights(folder / "best")
    (folder / "best").rename(folder / "blended")  # as it lies between the decision and the last move
    (folder / "final").rename(folder / "best")
    again = trainer.run(folder, StopFlag())
    assert again.best == first.best
    assert all(torch.equal(weights(folder / "best")[name], kept[name]) for name in kept)


def test_measured_blends_are_those_that_are_saved(base: Path, tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "run", base, "blend=true", "max_steps=40", "eval_steps=20")
    outcome = trainer.run(folder, StopFlag())
    assert outcome.best is not None
    assert outcome.base is not None
    tried = [line["blend_wer"] for line in metrics(folder) if "blend" in line]
    assert len(tried) == len(BLENDS)
    assert outcome.best.wer <= min([outcome.base.wer, *tried])
    config = TrainingConfig.load(folder)
    asked = replace(config, base=str(folder / "best"))
    session = Session(folder, asked, recipes.from_dict(config.recipe), StopFlag(), LoopState())
    assert session.measure(0).wer == pytest.approx(outcome.best.wer)


class TestStopping:
    @pytest.fixture
    def session(self, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
        folder = lay_out(tmp_path / "run", base, "max_steps=2")
        config = TrainingConfig.load(folder)
        made = Session(folder, config, recipes.from_dict(config.recipe), StopFlag(), LoopState())
        monkeypatch.setattr(made, "save", lambda _: None)
        made.progress.base = made.progress.best = Score(step=0, wer=0.5, cer=0.5, loss=2.0)
        return made

    def test_on_few_words_a_lower_loss_goes_on(self, session: Session) -> None:
        for step, (loss, stale) in enumerate([(1.5, 0), (1.2, 0), (1.2, 1), (1.3, 2), (1.1, 0)], start=1):
            session.judge(Score(step=step, wer=0.5, cer=0.5, loss=loss))
            assert session.progress.stale == stale

    def test_on_many_words_only_the_error_rate_does(self, session: Session) -> None:
        session.val_words = 5000
        session.judge(Score(step=1, wer=0.4, cer=0.4, loss=1.5))
        session.judge(Score(step=2, wer=0.4, cer=0.4, loss=1.0))
        assert session.progress.stale == 1

    def test_of_equal_error_rates_the_lower_loss_is_kept(self, session: Session) -> None:
        for step, loss in enumerate([1.5, 1.2, 1.4], start=1):
            session.judge(Score(step=step, wer=0.4, cer=0.4, loss=loss))
        assert session.progress.best is not None
        assert session.progress.best.step == 2
        assert read_json(session.folder / BEST)["step"] == 2


def test_the_number_that_decides_is_the_number_that_is_told(base: Path, tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "run", base, "max_steps=4", "eval_steps=2", "join_share=0.5")
    outcome = trainer.run(folder, StopFlag())
    lines: list[dict[str, Any]] = [line for line in metrics(folder) if "val_wer" in line]
    for line in lines:
        assert line["val_wer"] == pytest.approx((line["val_clips_wer"] + line["val_strings_wer"]) / 2)
        assert line["val_loss"] > 0
    assert outcome.best is not None
    best = next(line for line in lines if line["step"] == outcome.best.step)
    assert best["val_wer"] == outcome.best.wer == min(line["val_wer"] for line in lines)
    assert json.loads((folder / "eval_results.json").read_text())["best"]["wer"] == outcome.best.wer


class TestMerit:
    BASE = Score(step=0, wer=0.75, cer=0.5, loss=4.0)

    def scored(self, wer: float, loss: float, words: int) -> Score:
        return Score(step=1, wer=wer, cer=wer, loss=loss).against(self.BASE, words)

    def test_the_base_has_the_merit_one(self) -> None:
        assert self.BASE.against(self.BASE, 20).merit == pytest.approx(1.0)
        assert Score(step=0, wer=0.0, cer=0.0, loss=1.0).against(replace(self.BASE, wer=0.0), 20).merit is not None

    def test_on_few_words_the_loss_decides(self) -> None:
        # Of 20 words, 12 and 13 wrong: a voice's first minutes, with the loss still falling.
        assert self.scored(0.65, 2.8, 20).better_than(self.scored(0.60, 3.7, 20))

    def test_on_many_words_their_errors_decide(self) -> None:
        assert self.scored(0.60, 3.7, 5000).better_than(self.scored(0.65, 2.8, 5000))

    @pytest.mark.parametrize("words", [20, 5000])
    def test_more_errors_than_the_base_are_never_better_than_it(self, words: int) -> None:
        worse = self.scored(0.80, 1.0, words)
        assert not worse.better_than(self.BASE.against(self.BASE, words))
        assert self.scored(0.75, 3.9, words).better_than(worse)

    def test_runs_of_earlier_versions_are_compared_by_their_errors(self) -> None:
        old = Score(step=1, wer=0.5, cer=0.5, loss=9.0)
        assert old.better_than(self.scored(0.6, 1.0, 20))
        assert not self.scored(0.6, 1.0, 20).better_than(old)
