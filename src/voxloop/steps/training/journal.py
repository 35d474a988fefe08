"""Output of a training run: `metrics.jsonl`, the log, trackers, and `trainer_state.json`."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerState

from voxloop.errors import TrainingError
from voxloop.steps.training.files import METRICS, append_line
from voxloop.steps.training.trackers import Trackers

if TYPE_CHECKING:
    from pathlib import Path

    from voxloop.steps.training.session import Session
    from voxloop.steps.training.state import Score

log = logging.getLogger(__name__)

TRAINER_STATE = "trainer_state.json"  # as transformers' Trainer writes it, for whatever reads those


class Journal:
    """The lines of one attempt. Every process counts; the main one writes."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.state = TrainerState(max_steps=session.steps, num_train_epochs=math.ceil(session.recipe.max_epochs or 0))
        main = session.accelerator.is_main_process
        self.trackers = Trackers(session.config.trackers if main else (), session.folder, session.config.recipe)
        # Since the last line with a loss:
        self.steps, self.clips = 0, 0
        self.loss = torch.zeros((), device=session.accelerator.device)
        self.busy_s = 0.0  # evaluating and saving
        self.waited_s = 0.0  # for data
        self.logged_s = session.elapsed_s
        # Of this attempt:
        self.all_steps, self.all_loss = 0, 0.0

    @property
    def step(self) -> int:
        """Optimiser steps so far."""
        step: int = self.state.global_step
        return step

    def heard(self, loss: torch.Tensor, clips: int) -> None:
        """Count a step: this process's part of its loss by token, and its clips."""
        self.state.global_step += 1
        self.steps += 1
        self.loss += loss
        self.clips += clips

    def training(self, rate: float, norm: torch.Tensor) -> None:
        """Log the mean loss since the last such line. Raises TrainingError if it is not finite."""
        session, now = self.session, self.session.elapsed_s
        heard = torch.stack([self.loss.double(), torch.tensor(self.clips, device=self.loss.device).double()])
        total, clips = session.accelerator.reduce(heard, "sum").tolist()
        loss, spent = total / self.steps, now - self.logged_s - self.busy_s
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss became {loss} at step {self.step}, because the learning rate "
                f"{session.recipe.learning_rate:g} is too high: set a lower learning_rate"
            )
        self.all_steps, self.all_loss = self.all_steps + self.steps, self.all_loss + total
        speed = {
            "samples_per_second": round(clips / spent, 2),
            "wait_share": round(min(1.0, self.waited_s / spent), 4),
        }
        self._line(loss=loss, learning_rate=rate, **(speed if spent > 0 else {}))
        self._history(loss=loss, learning_rate=rate, grad_norm=float(norm))
        self.steps, self.clips, self.busy_s, self.waited_s, self.logged_s = 0, 0, 0.0, 0.0, now
        self.loss.zero_()

    def evaluation(self, score: Score) -> None:
        """Log an evaluation on val; `wer` is the deciding number."""
        known = _measured(score)
        self._line(**{f"val_{name}": value for name, value in known.items()})
        self._history(**{f"eval_{name}": value for name, value in known.items()})

    def served(self, score: Score) -> None:
        """Log the val score, as served, of the base (step 0) or of the model that is kept."""
        self._line(served_step=score.step, **{f"served_{name}": value for name, value in _measured(score).items()})

    def blend(self, score: Score) -> None:
        """Log the val score of a blend of base and trained weights."""
        self._line(blend=score.blend, **{f"blend_{name}": value for name, value in _measured(score).items()})

    def save(self, folder: Path) -> None:
        """Write the state as transformers does."""
        best = self.session.progress.best
        if best is not None:
            self.state.best_metric, self.state.best_global_step = best.wer, best.step
            self.state.best_model_checkpoint = str(self.session.folder / "best")
        self.state.save_to_json(str(folder / TRAINER_STATE))

    def end(self) -> None:
        """Leave the state in the run's folder, where it stays, and close the trackers."""
        self.save(self.session.folder)
        self.trackers.finish()

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote."""
        self.state = TrainerState.load_from_json(str(folder / TRAINER_STATE))
        self.state.max_steps = self.session.steps

    def _line(self, **values: float) -> None:
        session, now = self.session, self.session.elapsed_s
        done = session.done(self.step)
        place = {"step": self.step, "epoch": session.progress.epoch, "batch": session.progress.batch}
        clock = {"elapsed_s": round(now, 3)} | ({"eta_s": round(now * (1 - done) / done, 1)} if done else {})
        line: dict[str, Any] = place | values | clock | {"time": time.time()}
        if session.accelerator.is_main_process:
            append_line(session.folder / METRICS, line)
            log.info(_sentence(line))
            self.trackers.log({"epoch": line["epoch"], **values, "elapsed_s": line["elapsed_s"]}, self.step)

    def _history(self, **values: float) -> None:
        self.state.epoch = round(self.session.epochs, 4)
        self.state.log_history.append({"epoch": self.state.epoch, "step": self.step, **values})


def _measured(score: Score) -> dict[str, float]:
    names = ("wer", "cer", "loss", "clips_wer", "strings_wer")
    return {name: value for name in names if (value := getattr(score, name)) is not None}


def _sentence(line: dict[str, Any]) -> str:
    parts = [f"step {line['step']}, epoch {line['epoch']}"]
    parts += [f"loss {line['loss']:.4f}"] if "loss" in line else []
    blend = f"blend {line.get('blend', 1.0):g}: "
    for kind, said in (("val", ""), ("blend", blend), ("served", "as served: ")):
        if f"{kind}_wer" in line:
            parts += [f"{said}val WER {line[f'{kind}_wer']:.2%}, CER {line[f'{kind}_cer']:.2%}"]
            parts += [f"clips {line[f'{kind}_clips_wer']:.2%}"] if f"{kind}_clips_wer" in line else []
            parts += [f"strings {line[f'{kind}_strings_wer']:.2%}"] if f"{kind}_strings_wer" in line else []
            parts += [f"loss {line[f'{kind}_loss']:.4f}"]
    parts += [f"{line['samples_per_second']:.1f} clips/s"] if "samples_per_second" in line else []
    return f"{', '.join(parts)}, {line['elapsed_s']:.1f} s"
