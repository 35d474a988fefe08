"""A run's settings, scores and position: what its folder and its checkpoints hold beside weights."""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from voxloop.steps.training.files import BEST, CONFIG, LOOP_STATE, read_json, write_json

EVEN_WORDS = 200  # of val: with so many, word errors and loss count alike
BLENDED = "blended"  # folder of the best blend, while others are tried


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The settings in a run's folder: complete, so that the child needs nothing else."""

    run: str
    """The run's id."""
    family: str
    """Name of the model family."""
    base: str
    """Folder or Hub id of the base model."""
    train: str
    """Manifest of the training clips; relative to the run's folder."""
    val: str
    """Manifest of the val clips."""
    replay: str = ""
    """Manifest of earlier training speech to replay; empty: none."""
    noise: str = ""
    """Folder of noises, 16 kHz mono WAV; empty: none."""
    recipe: dict[str, Any]
    """`Recipe.as_dict()`."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto: the first GPU, or the CPU if there is none."""
    threads: int = 0
    """CPU threads; 0: all cores."""
    trackers: tuple[str, ...] = ()
    """The setting `trackers`."""
    normaliser: dict[str, dict[str, str]] = field(default_factory=dict)
    """The setting `normaliser` at the start of the run, so that all its evaluations are comparable."""

    hearing: dict[str, Any] = field(default_factory=dict)
    """How the workspace hears at the start of the run: its decoding and voice detection (`validation.as_served`).
    Empty: val's clips are decoded greedily, as they are."""

    def save(self, folder: Path) -> None:
        write_json(folder / CONFIG, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> TrainingConfig:
        return cls(**read_json(folder / CONFIG))


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Errors on val. A lower `merit` is better; without one, fewer word errors, then characters, then a lower loss.

    If training joins clips, strings of val's clips count as much as the clips themselves: selecting by a few single
    words would be chance, and would favour models that forgot longer speech.
    """

    step: int
    wer: float
    """The deciding number: the word error rate of val's clips, or its mean with that of strings."""
    cer: float
    clips_wer: float | None = None  # None: nothing was joined
    strings_wer: float | None = None
    loss: float | None = None
    """Cross-entropy per token of val's texts; None in scores of earlier versions."""
    blend: float = 1.0
    """Position of the measured weights between the base model's (0) and the trained ones (1)."""
    served: bool = False
    """Whether the texts are those of serving, or of a quicker decoding (`validation`): like goes with like."""
    merit: float | None = None
    """Word errors and loss together, as shares of the base's (`against`): 1 for the base, lower is better."""

    def against(self, base: Score, words: int) -> Score:
        """This score with its merit beside the base model's, measured in the same way on so many words.

        The fewer the words, the more the loss counts: a word more or less right among twenty is luck, while every token
        adds to the loss. More word errors than the base's are never better than the base, however low the loss.
        """
        if self.loss is None or not base.loss:
            return self
        if self.wer > base.wer:
            return replace(self, merit=1.0 + self.wer - base.wer)
        weight = words / (words + EVEN_WORDS)
        wer = self.wer / base.wer if base.wer else 1.0
        return replace(self, merit=weight * wer + (1 - weight) * self.loss / base.loss)

    @classmethod
    def of(cls, values: dict[str, Any]) -> Score:
        """The score that `asdict` made a dictionary of, also in an earlier version, where `wer` was that of clips."""
        if values.get("strings_wer") is not None and values.get("clips_wer") is None:
            values = values | {"clips_wer": values["wer"], "wer": (values["wer"] + values["strings_wer"]) / 2}
        return cls(**values)

    def _key(self, other: Score) -> tuple[float, ...]:
        errors = self.wer, self.cer, math.inf if self.loss is None else self.loss
        return errors if self.merit is None or other.merit is None else (self.merit, *errors)

    def better_than(self, other: Score) -> bool:
        return self._key(other) < other._key(self)

    def at_least_as_good_as(self, other: Score) -> bool:
        return self._key(other) <= other._key(self)


@dataclass(kw_only=True)
class LoopState:
    """The state in a checkpoint beside weights, optimiser and random generators."""

    epoch: int = 0
    batch: int = 0  # of the epoch, the next to hear
    batch_seconds: float = 0.0  # the budget that `batch` counts in
    elapsed_s: float = 0.0
    stale: int = 0  # evaluations since the last better one
    lowest_loss: float | None = None  # on val, of the trained weights
    base: Score | None = None  # as served
    untrained: Score | None = None  # the base as the steps are measured
    best: Score | None = None  # as served only once the run ends
    trained: Score | None = None  # the best that training came to, better than the base or not
    intermediate: list[Score] = field(default_factory=list)  # of the models in intermediate/
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, checkpoint: Path | None) -> LoopState:
        """Where a checkpoint stood, or the beginning."""
        if checkpoint is None:
            return cls()
        values = read_json(checkpoint / LOOP_STATE)
        for name in ("base", "untrained", "best", "trained"):
            values[name] = Score.of(values[name]) if values.get(name) else None
        values["intermediate"] = [Score.of(score) for score in values.get("intermediate", ())]
        return cls(**values)


class StopFlag:
    """Set by a signal: end after the next step, with a checkpoint or (`conclude`) as if it were the last."""

    set = False
    conclude = False


def blend_is_done(folder: Path) -> bool:
    """Whether a run was killed after choosing its final weights; pending moves are completed."""
    kept = kept_best(folder)
    if kept is None or kept.blend == 1.0:
        shutil.rmtree(folder / BLENDED, ignore_errors=True)
        return False
    if (folder / BLENDED).is_dir():
        replace_folder(folder / BLENDED, folder / "best")
    return True


def kept_best(folder: Path) -> Score | None:
    """The score of the model in `best/`; None if there is none."""
    if not (folder / "best").is_dir() or not (folder / BEST).exists():
        return None
    return Score.of(read_json(folder / BEST))


def replace_folder(new: Path, place: Path) -> None:
    """Put a whole folder in the place of another. `mend_folder` does the rest where a kill comes between the moves."""
    old = place.with_name(f"{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def mend_folder(place: Path) -> None:
    """Put the old folder back where a kill came before the new one was in its place."""
    old = place.with_name(f"{place.name}.old")
    if old.exists() and not place.exists():
        old.rename(place)
