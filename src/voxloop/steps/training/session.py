"""One attempt at a run: its settings, the model, the speech, the clock, and which weights are best.

What is best is decided by the word error rate of generated text on val, through
the code that serves, never by loss.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast, send_to_device

from voxloop.errors import SettingError
from voxloop.families.contract import Context, Decoding, Family, Part, Trainable, require, words_alone
from voxloop.families.registry import family
from voxloop.speech import text as _text
from voxloop.steps.training.batches import ClipRow, Collator, Plan, Speech, loader, read_noises, read_rows, spoken
from voxloop.steps.training.ctc import Head
from voxloop.steps.training.ctc import classes as ctc_classes
from voxloop.steps.training.encoded import EncodedBatches
from voxloop.steps.training.files import BEST, CONFIG, LOOP_STATE, read_json, sync, write_json
from voxloop.steps.training.packing import usual_context
from voxloop.steps.training.recipes import SMALL_MODEL, Precision, Recipe

if TYPE_CHECKING:
    from voxloop.families.contract import Recogniser, Waveform

log = logging.getLogger(__name__)

BLENDED = "blended"  # folder of the best blend, while others are tried
INTERMEDIATE = "intermediate"  # folder of the models that stay beside the best and the last one
ENDLESS = 10_000_000  # steps: where only the clock ends a run
LISTENED = 8  # clips in which the base model hears which language it is
MOST_STRINGS = 20  # of val's clips, which are heard joined as well
BLENDS = (0.5, 0.75, 0.25)  # shares of the way from the base to the trained weights that are tried, while time is left
UNCHANGED: dict[str, Any] = {  # settings with which clips are heard as they are, each once
    "speed": 0.0,
    "cut_share": 0.0,
    "volume_db": 0.0,
    "noise_share": 0.0,
    "noise_folder_share": 0.0,
    "telephone_share": 0.0,
    "mask_bands": 0,
    "mask_frames": 0,
    "join_share": 0.0,
    "silence_share": 0.0,
    "full_length_share": 0.0,
    "replay_share": 0.0,
    "alone_share": 0.0,
    "time_stamp_share": 0.0,
    "encoder_copies": 0,
}
FEW_WORDS = 500  # of val: with fewer, a word more or less right is luck, and the loss has a say in when to stop
LOWER = 0.003  # share by which a loss is lower for a reason
SPARE_S = 0.5  # kept back of the time budget for what was not measured
MOST_WORKERS = 4  # where the recipe names no number
OTHERS_WAIT = timedelta(hours=6)  # of several processes, while the main one evaluates


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What a run's folder says: complete, so that the child needs nothing else."""

    run: str
    """The run's id."""
    family: str
    """Name of the model family."""
    base: str
    """Folder or Hub id of the model to begin with."""
    train: str
    """Manifest to learn from; relative to the run's folder."""
    val: str
    """Manifest to measure on."""
    replay: str = ""
    """Manifest of earlier speech of which every epoch hears a share; empty: none."""
    noise: str = ""
    """Folder of noises, 16 kHz mono WAV; empty: none."""
    recipe: dict[str, Any]
    """`Recipe.as_dict()`."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto: the first GPU, or the CPU where there is none."""
    threads: int = 0
    """CPU threads; 0: all cores."""
    trackers: tuple[str, ...] = ()
    """The setting `trackers`."""
    normaliser: dict[str, dict[str, str]] = field(default_factory=dict)
    """The setting `normaliser` when the run began: what it measures is comparable from first to last."""

    def save(self, folder: Path) -> None:
        write_json(folder / CONFIG, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> TrainingConfig:
        return cls(**read_json(folder / CONFIG))


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Errors on val. Fewer word errors are better, then fewer character errors, then a lower loss.

    Where training joins clips, strings of val's own clips count as much as the clips: by single words alone, of a
    few of which one more or less right is luck, a model is chosen that has forgotten longer speech.
    """

    step: int
    wer: float
    """What decides, and what is shown: the word error rate of val's clips, or the mean of that and that of strings."""
    cer: float
    clips_wer: float | None = None  # None: nothing was joined
    strings_wer: float | None = None
    loss: float | None = None
    """Cross-entropy by token of val's own texts; None in what earlier versions wrote."""
    blend: float = 1.0
    """How far from the base model's weights (0) to the trained ones (1) the measured ones lie."""

    @classmethod
    def of(cls, values: dict[str, Any]) -> Score:
        """The score that `asdict` made a dictionary of, also in an earlier version, where `wer` was that of clips."""
        if values.get("strings_wer") is not None and values.get("clips_wer") is None:
            values = values | {"clips_wer": values["wer"], "wer": (values["wer"] + values["strings_wer"]) / 2}
        return cls(**values)

    @property
    def _key(self) -> tuple[float, float, float]:
        return self.wer, self.cer, math.inf if self.loss is None else self.loss

    def better_than(self, other: Score) -> bool:
        return self._key < other._key

    def at_least_as_good_as(self, other: Score) -> bool:
        return self._key <= other._key


@dataclass(kw_only=True)
class LoopState:
    """What a checkpoint carries beside weights, optimiser and generators: the rest of where a run stood."""

    epoch: int = 0
    batch: int = 0  # of the epoch, the next to hear
    batch_seconds: float = 0.0  # the budget that `batch` counts in
    elapsed_s: float = 0.0
    stale: int = 0  # evaluations since the last better one
    lowest_loss: float | None = None  # on val, of the trained weights
    base: Score | None = None
    best: Score | None = None
    trained: Score | None = None  # the best that training came to, better than the base or not
    intermediate: list[Score] = field(default_factory=list)  # of the models in intermediate/
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, checkpoint: Path | None) -> LoopState:
        """Where a checkpoint stood, or the beginning."""
        if checkpoint is None:
            return cls()
        values = read_json(checkpoint / LOOP_STATE)
        for name in ("base", "best", "trained"):
            values[name] = Score.of(values[name]) if values.get(name) else None
        values["intermediate"] = [Score.of(score) for score in values.get("intermediate", ())]
        return cls(**values)


class StopFlag:
    """Set by a signal: the run ends at the next step, with a checkpoint, or (`conclude`) as if it were the last."""

    set = False
    conclude = False


class Average:
    """A running average of the trained weights, which is steadier than the last ones (Polyak and Juditsky 1992)."""

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights: list[torch.Tensor] = [weight for weight in model.parameters() if weight.requires_grad]
        self.kept = [weight.detach().clone() for weight in self.weights]
        self.updates = 0

    def update(self) -> None:
        self.updates += 1
        # Early on the average covers few steps, so that the weights it began with do not linger.
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        with torch.no_grad():
            torch._foreach_lerp_(self.kept, self.weights, 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "kept": self.kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        for kept, saved in zip(self.kept, state["kept"], strict=True):
            kept.copy_(saved)

    def swap(self) -> None:
        """Exchange the average and the model's weights."""
        with torch.no_grad():
            for weight, kept in zip(self.weights, self.kept, strict=True):
                held = weight.detach().clone()
                weight.copy_(kept)
                kept.copy_(held)


class Session:
    """One attempt at a run: the model, the speech and the clock."""

    def __init__(
        self, folder: Path, config: TrainingConfig, recipe: Recipe, stop: StopFlag, progress: LoopState
    ) -> None:
        self.folder = folder
        self.config = config
        self.stop = stop
        self.family: Family = family(config.family)
        if recipe.audio_context == "auto":
            recipe = replace(recipe, audio_context=usual_context(self.family, config.base))
        self.recipe = recipe
        self.trainable: Trainable = self.family.open_for_training(config.base, audio_context=self.context)
        self.on_gpu = _on_gpu(config.device)
        self.precision = _precision(recipe.precision, self.on_gpu, self.trainable.model)
        AcceleratorState._reset_state()  # or the number format of an earlier run of this process would stay
        self.accelerator = Accelerator(
            cpu=not self.on_gpu,
            mixed_precision="no" if self.precision == "fp32" else self.precision,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=OTHERS_WAIT)],
        )
        self.started = time.monotonic()
        self.progress = progress
        self.before_s = progress.elapsed_s
        rows = read_rows(folder / config.train)
        earlier = read_rows(folder / config.replay) if config.replay and recipe.replay_share else []
        self.train_speech = Speech([*rows, *earlier])
        self.noises = read_noises(folder / config.noise) if config.noise and recipe.noise_folder_share else []
        self._say_language()
        self._say_precision()
        self.val = _val_rows(folder / config.val, recipe)
        self.val_speech = Speech(self.val)
        self.plan = self._plan(self._learnable(rows), recipe, self._learnable(earlier))
        joined = recipe.join_share and recipe.audio_context != "packed"
        self.val_strings = self._strings() if self.val and joined else []
        self.val_words = sum(len(row.text.split()) for row in self.val)
        if self.plan.earlier:
            self.note(f"every epoch hears {len(self.plan.again(0))} clips again that earlier models learnt")
        self.model: Any = self.trainable.model
        _prepare_weights(self.family, self.trainable, recipe)
        if recipe.method == "lora":
            self.model = _with_adapters(self.family, self.trainable, recipe)
        self.model.to(self.accelerator.device)
        self.average = Average(self.model, recipe.average) if recipe.average else None
        self.ctc_classes = self._ctc_classes() if recipe.ctc_weight else None
        self.ctc = (
            Head(
                require(self.family, "encoder states").encoder_width(self.trainable),
                len(self.ctc_classes),
                recipe.ctc_weight,
            )
            if self.ctc_classes is not None
            else None
        )
        if self.ctc:
            self.ctc.linear.to(self.accelerator.device)
        self.encoded = EncodedBatches(folder) if recipe.encoder_copies else None
        if self.encoded:
            log.info("the encoder computes until every batch of %d epochs was heard once", recipe.encoder_copies)
        self.eval_s = 0.0  # the last evaluation
        self.save_s = 0.0  # the last saved model
        self.batches_in_epoch = self.plan.batches_in_epoch()
        self.steps = self._steps()

    @property
    def context(self) -> Context:
        """How the tuned model is to be fed."""
        return "trimmed" if self.recipe.audio_context == "trimmed" else "full"

    def _plan(self, rows: Sequence[ClipRow], recipe: Recipe, earlier: Sequence[ClipRow] = ()) -> Plan:
        return Plan(
            rows,
            recipe,
            earlier=earlier,
            padded_s=self.family.padded_seconds,
            time_stamps=self.trainable.time_stamps,
            label_length=lambda text, language: self.family.label_length(self.trainable, text, language),
            label_limit=self.family.label_limit(self.trainable),
        )

    def _say_language(self) -> None:
        """Where clips have no language, the prompt names the one that the base model hears in most of them."""
        unnamed = [row for row in self.train_speech.rows if row.language is None][:LISTENED]
        if not unnamed:
            return
        recogniser = self.family.recogniser(self.trainable, self.trainable.model)
        decoding = Decoding(max_new_tokens=1, audio_context=self.trainable.base_context)
        heard = recogniser.transcribe([self.train_speech.waveform(row.id) for row in unnamed], decoding)
        languages = Counter(hypothesis.language for hypothesis in heard if hypothesis.language)
        if languages:
            self.trainable.language = languages.most_common(1)[0][0]

    def _say_precision(self) -> None:
        fast = bf16_in_hardware(on_gpu=self.on_gpu)
        if self.recipe.precision == "auto" and self.precision == "bf16":
            self.note("computed in bf16, which this device multiplies faster than fp32 (precision=auto)")
        elif self.precision == "bf16" and not fast:
            self.note("precision is bf16, which this device does not speed up: mostly slower than precision=fp32")

    def _learnable(self, rows: Sequence[ClipRow]) -> list[ClipRow]:
        limit = self.family.label_limit(self.trainable)
        kept = [r for r in rows if self.family.label_length(self.trainable, r.text, r.language) <= limit]
        if len(kept) < len(rows):
            self.note(f"{len(rows) - len(kept)} clips left out: their texts have more than {limit} tokens")
        return kept

    def _ctc_classes(self) -> dict[int, int]:
        texts = [row.text for row in (*self.plan.rows, *self.plan.earlier)]
        return ctc_classes(texts, lambda text: self.family.text_tokens(self.trainable, text))

    def _steps(self) -> int:
        recipe = self.recipe
        steps = recipe.max_steps or ENDLESS
        if recipe.max_epochs is not None:
            of_a_step = recipe.accumulation * self.accelerator.num_processes
            steps = min(steps, max(1, math.ceil(recipe.max_epochs * self.batches_in_epoch / of_a_step)))
        return steps

    def trained(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """The weights of the model that learn, by name."""
        for name, weight in self.model.named_parameters():
            if weight.requires_grad:
                yield name, weight

    def batches(self) -> Iterator[dict[str, Any]]:
        """Batches for ever, from where the run stands; of several processes, each has its own."""
        recipe, progress = self.recipe, self.progress
        same = progress.batch_seconds in (0.0, recipe.batch_seconds)
        progress.batch_seconds = recipe.batch_seconds
        collator = Collator(
            self.train_speech,
            recipe,
            self.family,
            self.trainable,
            ctc_classes=self.ctc_classes,
            noises=self.noises,
        )
        # On a CPU, processes that prepare batches would take from the training what they give.
        workers = min(MOST_WORKERS, (os.cpu_count() or 1) // 2) if self.on_gpu else 0
        return iter(
            loader(
                self.plan,
                collator,
                epoch=progress.epoch,
                # Batches of another size are other batches: the epoch is begun anew.
                index=progress.batch if same else 0,
                workers=workers if recipe.workers is None else recipe.workers,
                process=self.accelerator.process_index,
                processes=self.accelerator.num_processes,
            )
        )

    def on_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch's tensors where the model is; where the encoder's outputs are kept, with those for the sound."""
        tensors = {name: value for name, value in batch.items() if name not in ("place", "drawn")}
        if self.encoded is None:
            return send_to_device(tensors, self.accelerator.device)  # type: ignore[no-any-return]
        if not tensors:  # heard before: the loader brings nothing but its place
            return send_to_device(self.encoded.read(batch["drawn"]), self.accelerator.device)  # type: ignore[no-any-return]
        with self.accelerator.autocast():
            kind = require(self.family, "encoder states")
            tensors = kind.encode(self.trainable, send_to_device(tensors, self.accelerator.device))
        self.encoded.write(batch["drawn"], tensors)
        return tensors

    def agreed(self, *values: float, process: int = 0) -> list[float]:
        """The values that one process has, on all of them: each has a clock of its own, and one must decide."""
        if self.accelerator.num_processes == 1:
            return list(values)
        told = torch.tensor(values, dtype=torch.float64, device=self.accelerator.device)
        found: list[float] = broadcast(told, from_process=process).tolist()
        return found

    @property
    def epochs(self) -> float:
        """Passes over the training speech so far."""
        return self.progress.epoch + min(1.0, self.progress.batch / self.batches_in_epoch)

    @property
    def elapsed_s(self) -> float:
        return self.before_s + time.monotonic() - self.started

    def note(self, text: str) -> None:
        """Something worth telling the user at the end."""
        log.warning(text)
        if text not in self.progress.notes:
            self.progress.notes.append(text)

    def done(self, step: int) -> float:
        """Share of the run that is over, by steps or by the clock, whichever is further."""
        share = step / self.steps
        if self.recipe.max_seconds is not None:
            # Where evaluating takes long, half of the time is for training all the same: fewer blends are tried then.
            usable = max(1.0, self.recipe.max_seconds - self.reserve_s, self.recipe.max_seconds / 2)
            share = max(share, self.elapsed_s / usable)
        return min(1.0, share)

    @property
    def reserve_s(self) -> float:
        """Time for the last evaluation, for those of blends, and for the saved models."""
        blends = len(BLENDS) if self.recipe.blend and self.val else 0
        return (1 + blends) * self.eval_s + (2 + bool(blends)) * self.save_s + SPARE_S

    def rate(self, step: int) -> float:
        """The learning rate as a share of its highest: a rise, then half a cosine (arXiv:1608.03983)."""
        recipe = self.recipe
        rise = min(1.0, (step + 1) / recipe.warmup_steps) if recipe.warmup_steps else 1.0
        fall = 0.5 * (1 + math.cos(math.pi * self.done(step)))
        return rise * (recipe.final_share + (1 - recipe.final_share) * fall)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights in the model's place, where there are any."""
        if self.average is None or not self.average.updates:
            yield
            return
        self.average.swap()
        try:
            yield
        finally:
            self.average.swap()

    def _strings(self) -> list[tuple[Waveform, str, str | None]]:
        """Strings of val's clips as training makes them, the same ones every time and for every seed."""
        recipe = replace(self.recipe, join_share=1.0, replay_share=0.0, silence_share=0.0, seed=1)
        cuts = [cut for cut in self._plan(self.val, recipe).examples(0) if hasattr(cut, "tracks")][:MOST_STRINGS]
        heard = [spoken(cut, self.val_speech) for cut in cuts]
        return [(clip, words_alone(text), language) for clip, text, language in heard]

    def measure(self, step: int, *, context: Literal["auto", "trimmed", "full"] = "auto", blend: float = 1.0) -> Score:
        """Word and character error rates of generated text on val, as served, and the loss of its own texts."""
        began = time.monotonic()
        clips = [(self.val_speech.waveform(row.id), row.text, row.language) for row in self.val]
        with self.averaged():
            recogniser = self.family.recogniser(self.trainable, self.model)
            words, characters = self._errors(recogniser, clips, context)
            strings = self._errors(recogniser, self.val_strings, context)[0].rate if self.val_strings else None
            loss = self._val_loss()
        self.eval_s = time.monotonic() - began
        return Score(
            step=step,
            wer=words.rate if strings is None else (words.rate + strings) / 2,
            cer=characters.rate,
            clips_wer=None if strings is None else words.rate,
            strings_wer=strings,
            loss=loss,
            blend=blend,
        )

    def _val_loss(self) -> float:
        """Cross-entropy by token of val's texts, its clips unchanged and fed as training feeds them."""
        plan, collator = self._quiet
        total, tokens = torch.zeros((), device=self.accelerator.device), 0
        self.model.eval()
        with torch.no_grad(), self.accelerator.autocast():
            for batch in plan.epoch(0):
                inputs = collator(batch)
                del inputs["place"], inputs["drawn"]
                tokens += int((inputs["labels"] != self.trainable.label_pad).sum())
                found = self.family.loss(
                    self.trainable, self.model, send_to_device(inputs, self.accelerator.device), smoothing=0.0
                )
                total += found[0]
        return round(float(total) / max(1, tokens), 6)

    @cached_property
    def _quiet(self) -> tuple[Plan, Collator]:
        """Val's clips as training hears them, but for what it changes at random."""
        recipe = replace(self.recipe, **UNCHANGED, seed=1)
        plan = self._plan(self._learnable(self.val), recipe)
        return plan, Collator(self.val_speech, recipe, self.family, self.trainable)

    def _errors(
        self,
        recogniser: Recogniser,
        clips: Sequence[tuple[Waveform, str, str | None]],
        context: Literal["auto", "trimmed", "full"],
    ) -> tuple[_text.ErrorCounts, _text.ErrorCounts]:
        """Words and characters of clips with their texts and languages."""
        words: list[_text.ErrorCounts] = []
        characters: list[_text.ErrorCounts] = []
        changes = self.config.normaliser
        for language in sorted({language for _, _, language in clips}, key=str):
            mine = [(clip, text) for clip, text, spoken_in in clips if spoken_in == language]
            decoding = Decoding(language=language, audio_context=context)
            heard = recogniser.transcribe([clip for clip, _ in mine], decoding)
            left = [_text.normalise(text, language, changes) for _, text in mine]
            right = [_text.normalise(hypothesis.text, language, changes) for hypothesis in heard]
            words += _text.word_errors_each(left, right)
            characters += _text.character_errors_each(
                [_text.letters(one, language, changes) for one in left],
                [_text.letters(one, language, changes) for one in right],
            )
        return _text.total(words), _text.total(characters)

    def judge(self, score: Score) -> None:
        """Keep the model where it is the best so far."""
        progress = self.progress
        lowest = math.inf if progress.lowest_loss is None else (1 - LOWER) * progress.lowest_loss
        lower = score.loss is not None and score.loss < lowest
        if lower:
            progress.lowest_loss = score.loss
        better = progress.best is None or score.wer < progress.best.wer or (lower and self.val_words < FEW_WORDS)
        progress.stale = 0 if better else progress.stale + 1
        if progress.trained is None or score.better_than(progress.trained):
            progress.trained = score
        if progress.best is None or score.better_than(progress.best):
            progress.best = score
            # After a kill, the model on the disk may be of a later step than the checkpoint, and better.
            kept = kept_best(self.folder)
            if kept is None or score.at_least_as_good_as(kept):
                self.save("best")
                write_json(self.folder / BEST, asdict(score))

    def blend(self, step: int, scored: Callable[[Score], None]) -> Score | None:
        """Move the trained weights back towards the base's, as far as that is best on val: the score of what is kept.

        Weight-space interpolation (arXiv:2109.01903); of adapters it is the scale. What is moved are the best weights
        so far, or the last ones, of that `step`, where none were better than the base. `scored` is told of each that
        is tried. None: the base is best.
        """
        self.average = None  # what was saved is averaged already
        best = kept_best(self.folder)
        place, step = (self.folder / "best", best.step) if best else (self.folder / "final", step)
        trained = self._saved_weights(place)
        base = self._base_weights(trained)
        for share in BLENDS:
            if self.recipe.max_seconds is not None and self.elapsed_s + self.eval_s > self.recipe.max_seconds:
                break
            self._set_weights({name: torch.lerp(base[name], trained[name], share) for name in trained})
            score = self.measure(step, blend=share)
            scored(score)
            if score.better_than(best or self.progress.base or score):
                best = score
                self.save(BLENDED)
        if best is not None and best.blend != 1.0:
            # From here on a run that is killed has nothing left to learn: see `blend_is_done`.
            write_json(self.folder / BEST, asdict(best))
            replace_folder(self.folder / BLENDED, self.folder / "best")
        return best

    def _saved_weights(self, folder: Path) -> dict[str, torch.Tensor]:
        """The trained weights of a model that this run saved, by their names here."""
        if self.recipe.method == "lora":
            from peft import load_peft_weights

            found = load_peft_weights(str(folder / "adapter"), device=str(self.accelerator.device))
            return {name: found[name.replace(".default.", ".")] for name, _ in self.trained()}
        return self._weights_of(folder)

    def _base_weights(self, trained: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The base model's weights; of adapters, those that change nothing."""
        if self.recipe.method == "lora":
            return {name: torch.zeros_like(w) if ".lora_B." in name else w for name, w in trained.items()}
        return self._weights_of(self.config.base)

    def _weights_of(self, folder: str | Path) -> dict[str, torch.Tensor]:
        opened = dict(self.family.open_for_training(folder, audio_context=self.context).model.named_parameters())
        return {name: opened[name].detach().to(self.accelerator.device) for name, _ in self.trained()}

    @torch.no_grad()
    def _set_weights(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, weight in self.trained():
            weight.copy_(values[name])

    def keep(self, score: Score) -> None:
        """Keep the model as one of the intermediate ones, where it is one of the best; of equals, of the newest."""
        place, progress = self.folder / INTERMEDIATE, self.progress
        known = [one for one in progress.intermediate if (place / f"step-{one.step}").is_dir()]
        ranked = sorted([*known, score], key=lambda one: (one.wer, one.cer, -one.step))
        progress.intermediate = ranked[: self.recipe.keep_checkpoints_after]
        if score in progress.intermediate:
            place.mkdir(exist_ok=True)
            self.save(f"{INTERMEDIATE}/step-{score.step}")
        names = {f"step-{one.step}" for one in progress.intermediate}
        for path in place.glob("*"):
            if path.name not in names:
                shutil.rmtree(path)

    def save(self, name: str) -> None:
        """Write a complete model folder; the earlier one stays until the new one is whole."""
        began = time.monotonic()
        partial = self.folder / f"{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        with self.averaged():
            self.family.save(self.trainable, self.model, partial)
        sync(partial)
        replace_folder(partial, self.folder / name)
        self.save_s = time.monotonic() - began


def blend_is_done(folder: Path) -> bool:
    """Whether a run was killed after the last decision, which weights are kept; what was left to be moved is moved."""
    kept = kept_best(folder)
    if kept is None or kept.blend == 1.0:
        shutil.rmtree(folder / BLENDED, ignore_errors=True)
        return False
    if (folder / BLENDED).is_dir():
        replace_folder(folder / BLENDED, folder / "best")
    return True


def kept_best(folder: Path) -> Score | None:
    """The score of the model in `best/`; None where there is none."""
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


def _val_rows(manifest: Path, recipe: Recipe) -> list[ClipRow]:
    """The clips of val that are measured on: the same ones every time."""
    rows = sorted(read_rows(manifest), key=lambda row: row.id) if manifest.exists() else []
    step = max(1, math.ceil(len(rows) / recipe.max_val_clips))
    return rows[::step]


def _on_gpu(device: str) -> bool:
    """Whether the run is on a GPU. Raises SettingError where one is asked for and there is none."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise SettingError(f"device is {device} and no GPU can be used here: set device=cpu")
    return device != "cpu" and torch.cuda.is_available()


def bf16_in_hardware(*, on_gpu: bool) -> bool:
    """Whether the device multiplies bf16 matrices faster than fp32 ones."""
    if on_gpu:
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Without AMX a CPU gains nothing or loses, even where it knows bf16: torch has no public question for it.
    return bool(torch.cpu._is_amx_tile_supported())


def _precision(asked: Precision, on_gpu: bool, model: torch.nn.Module) -> Precision:
    """What `auto` is here. Raises SettingError for what the device cannot do."""
    if asked == "fp16" and not on_gpu:
        raise SettingError(
            "precision is fp16 and the device is the CPU, where small gradients vanish in it: set precision=fp32"
        )
    if asked != "auto":
        return asked
    # The casts of a small model take longer than its products in fp32.
    large = sum(weight.numel() for weight in model.parameters()) >= SMALL_MODEL
    return "bf16" if large and bf16_in_hardware(on_gpu=on_gpu) else "fp32"


def _frozen(recipe: Recipe) -> list[Part]:
    parts: dict[Part, bool] = {"encoder": recipe.freeze_encoder, "embeddings": recipe.freeze_embeddings}
    return [part for part, frozen in parts.items() if frozen]


def _prepare_weights(family: Family, trainable: Trainable, recipe: Recipe) -> None:
    family.freeze(trainable, _frozen(recipe))
    if recipe.gradient_checkpointing:
        trainable.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def _with_adapters(family: Family, trainable: Trainable, recipe: Recipe) -> Any:
    from peft import LoraConfig, get_peft_model

    targets = recipe.lora_targets or family.lora_targets
    config = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=list(targets),
        exclude_modules=family.without_adapters(_frozen(recipe)),
        bias="none",
    )
    try:
        model = get_peft_model(trainable.model, config)
    except ValueError as error:
        raise SettingError(f"lora_targets {', '.join(targets)}: {error}") from error
    if recipe.gradient_checkpointing:
        trainable.model.enable_input_require_grads()
    return model
