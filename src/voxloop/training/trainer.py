"""One run in one process: transformers' Seq2SeqTrainer on Voxloop's batches, clock and measure.

A folder tells what to do (`training_config.json`) and takes everything that comes
of it: `metrics.jsonl`, `checkpoint-N`, `best/`, `final/`, `train_results.json`,
`eval_results.json`, `status.json`. What is best is decided by the word error rate
of generated text on val, through the code that serves, never by loss.
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import PrinterCallback, Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback

from voxloop import text as _text
from voxloop.errors import SettingError, TrainingError
from voxloop.families.contract import Decoding, Family, Trainable, family
from voxloop.training import recipes
from voxloop.training.batches import Collator, Plan, Row, Speech, loader, read_rows
from voxloop.training.files import CONFIG, LOOP_STATE, METRICS, append_line, read_json, write_json
from voxloop.training.recipes import Recipe

log = logging.getLogger(__name__)

AVERAGE = "average.safetensors"  # in a checkpoint: the running average of the weights
ENDLESS = 10_000_000  # steps: where only the clock ends a run
SPARE_S = 0.5  # kept back of the time budget for what was not measured


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
    recipe: dict[str, Any]
    """`Recipe.as_dict()`."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto: the first GPU, or the CPU where there is none."""
    threads: int = 0
    """CPU threads; 0: all cores."""

    def save(self, folder: Path) -> None:
        write_json(folder / CONFIG, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> TrainingConfig:
        return cls(**read_json(folder / CONFIG))


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Errors on val. Fewer word errors are better, then fewer character errors."""

    step: int
    wer: float
    cer: float

    def at_least_as_good_as(self, other: Score) -> bool:
        return (self.wer, self.cer) <= (other.wer, other.cer)


@dataclass(kw_only=True)
class Progress:
    """What a checkpoint carries beside weights, optimiser and generators: the rest of where a run stood."""

    epoch: int = 0
    batch: int = 0  # of the epoch, the next to hear
    batch_seconds: float = 0.0  # the budget that `batch` counts in
    elapsed_s: float = 0.0
    stale: int = 0  # evaluations since the last better one
    base: Score | None = None
    best: Score | None = None
    notes: list[str] = field(default_factory=list)


class StopFlag:
    """Set by a signal; the run ends at the next step, with a checkpoint."""

    def __init__(self) -> None:
        self.set = False


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

    def save(self, path: Path) -> None:
        from safetensors.torch import save_file

        weights = {str(index): kept.contiguous() for index, kept in enumerate(self.kept)}
        save_file(weights | {"updates": torch.tensor(self.updates)}, path)

    def load(self, path: Path) -> None:
        from safetensors.torch import load_file

        saved = load_file(path)
        self.updates = int(saved["updates"])
        for index, kept in enumerate(self.kept):
            kept.copy_(saved[str(index)])

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
        self, folder: Path, config: TrainingConfig, recipe: Recipe, stop: StopFlag, progress: Progress
    ) -> None:
        self.folder = folder
        self.config = config
        self.recipe = recipe
        self.stop = stop
        self.family: Family = family(config.family)
        self.trainable: Trainable = self.family.open_for_training(config.base, audio_context=recipe.audio_context)
        self.started = time.monotonic()
        self.progress = progress
        self.before_s = progress.elapsed_s
        self.train_speech = Speech(read_rows(folder / config.train))
        self.val = _val_rows(folder / config.val, recipe)
        self.val_speech = Speech(self.val)
        self.plan = Plan(
            self._learnable(self.train_speech.rows),
            recipe,
            padded_s=self.family.padded_seconds if recipe.audio_context == "trimmed" else lambda _: 30.0,
            label_length=lambda text, language: self.family.label_length(self.trainable, text, language),
            label_limit=self.family.label_limit(self.trainable),
        )
        self.model: Any = self.trainable.model
        _prepare_weights(self.trainable, recipe)
        if recipe.method == "lora":
            self.model = _with_adapters(self.trainable, recipe)
        self.average = Average(self.model, recipe.average) if recipe.average else None
        self.eval_s = 0.0  # the last evaluation
        self.save_s = 0.0  # the last saved model
        self.steps = self._steps()

    def _learnable(self, rows: Sequence[Row]) -> list[Row]:
        limit = self.family.label_limit(self.trainable)
        kept = [r for r in rows if self.family.label_length(self.trainable, r.text, r.language) <= limit]
        if len(kept) < len(rows):
            self.note(f"{len(rows) - len(kept)} clips left out: their texts have more than {limit} tokens")
        return kept

    def _steps(self) -> int:
        recipe = self.recipe
        steps = recipe.max_steps or ENDLESS
        if recipe.max_epochs is not None:
            batches = recipe.max_epochs * self.plan.batches_in_epoch()
            steps = min(steps, max(1, math.ceil(batches / recipe.accumulation)))
        return steps

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
            usable = max(1.0, self.recipe.max_seconds - self.reserve_s)
            share = max(share, self.elapsed_s / usable)
        return min(1.0, share)

    @property
    def reserve_s(self) -> float:
        """Time for the last evaluation and for two saved models."""
        return self.eval_s + 2 * self.save_s + SPARE_S

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

    def measure(self, step: int, *, context: str = "auto") -> Score:
        """Word and character error rates of generated text on val, as served."""
        began = time.monotonic()
        language = self.val[0].language if len({row.language for row in self.val}) == 1 else None
        decoding = Decoding(language=language, audio_context=context)  # type: ignore[arg-type]
        with self.averaged():
            recogniser = self.family.recogniser(self.trainable, self.model)
            heard = recogniser.transcribe([self.val_speech.waveform(row.id) for row in self.val], decoding)
        references = [_text.normalise(row.text, row.language) for row in self.val]
        hypotheses = [_text.normalise(h.text, row.language) for h, row in zip(heard, self.val, strict=True)]
        words = _text.total(_text.word_errors_each(references, hypotheses))
        characters = _text.total(_text.character_errors_each(references, hypotheses))
        self.eval_s = time.monotonic() - began
        return Score(step=step, wer=words.rate, cer=characters.rate)

    def judge(self, score: Score) -> None:
        """Keep the model where it is at least as good as the best so far: of equals, the one trained longer."""
        progress = self.progress
        better = progress.best is None or score.wer < progress.best.wer
        progress.stale = 0 if better else progress.stale + 1
        if progress.best is None or score.at_least_as_good_as(progress.best):
            progress.best = score
            self.save("best")

    def save(self, name: str) -> None:
        """Write a complete model folder; the earlier one stays until the new one is whole."""
        began = time.monotonic()
        partial = self.folder / f"{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        with self.averaged():
            self.family.save(self.trainable, self.model, partial)
        shutil.rmtree(self.folder / name, ignore_errors=True)
        partial.rename(self.folder / name)
        self.save_s = time.monotonic() - began


def _val_rows(manifest: Path, recipe: Recipe) -> list[Row]:
    """The clips of val that are measured on: the same ones every time."""
    rows = sorted(read_rows(manifest), key=lambda row: row.id) if manifest.exists() else []
    step = max(1, math.ceil(len(rows) / recipe.max_val_clips))
    return rows[::step]


def _prepare_weights(trainable: Trainable, recipe: Recipe) -> None:
    model = trainable.model
    if recipe.freeze_encoder:
        model.freeze_encoder()
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.config.use_cache = False


def _with_adapters(trainable: Trainable, recipe: Recipe) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=list(recipe.lora_targets),
        bias="none",
    )
    try:
        model = get_peft_model(trainable.model, config)
    except ValueError as error:
        raise SettingError(f"lora_targets {', '.join(recipe.lora_targets)}: {error}") from error
    if recipe.gradient_checkpointing:
        trainable.model.enable_input_require_grads()
    return model


# The trainer ---------------------------------------------------------------------------------------------------------


class Pace(TrainerCallback):  # type: ignore[misc]
    """Decides after each step whether to log, to evaluate, to save and to stop."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.evaluated_s = session.elapsed_s
        self.saved_s = session.elapsed_s
        self.evaluated_epoch = session.progress.epoch

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        session, recipe = self.session, self.session.recipe
        now = session.elapsed_s
        step = state.global_step
        if session.average:
            session.average.update()
        over = session.done(step) >= 1.0 or step >= session.steps
        control.should_log = step == 1 or step % recipe.log_steps == 0 or over
        control.should_evaluate = bool(session.val) and (over or self._due(step, now))
        if session.stop.set:
            control.should_evaluate = False
        if control.should_evaluate:
            self.evaluated_epoch = session.progress.epoch
        patience = recipe.patience
        control.should_training_stop = (
            over or session.stop.set or (patience is not None and session.progress.stale >= patience)
        )
        control.should_save = session.stop.set or (not over and now - self.saved_s >= recipe.save_seconds)
        if control.should_save:
            self.saved_s = now
        return control

    def _due(self, step: int, now: float) -> bool:
        recipe = self.session.recipe
        if recipe.eval_steps is not None:
            return step % recipe.eval_steps == 0
        if recipe.eval_seconds is not None:
            # Evaluation may take a fifth of the time at most, however slow it is.
            return now - self.evaluated_s >= max(recipe.eval_seconds, 4 * self.session.eval_s)
        return self.session.progress.epoch > self.evaluated_epoch


class SpeechTrainer(Seq2SeqTrainer):  # type: ignore[misc]
    """Seq2SeqTrainer with Voxloop's batches, clock, measure and metrics."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.clips = 0
        self.busy_s = 0.0  # evaluating or saving since the last line of metrics
        self.logged_s = session.elapsed_s
        recipe, cuda = session.recipe, _on_gpu(session.config.device)
        if recipe.precision != "fp32" and not cuda:
            raise SettingError(f"precision is {recipe.precision} and the device is the CPU: set precision=fp32")
        args = Seq2SeqTrainingArguments(
            output_dir=str(session.folder),
            use_cpu=not cuda,
            max_steps=session.steps,
            gradient_accumulation_steps=recipe.accumulation,
            per_device_train_batch_size=1,
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            adam_beta1=recipe.beta1,
            adam_beta2=recipe.beta2,
            max_grad_norm=recipe.clip_norm,
            optim="adamw_torch_fused",
            bf16=recipe.precision == "bf16",
            fp16=recipe.precision == "fp16",
            seed=recipe.seed,
            save_total_limit=recipe.keep_checkpoints,
            save_strategy="no",
            logging_strategy="no",
            eval_strategy="no",
            logging_nan_inf_filter=False,
            ignore_data_skip=True,  # the plan begins where the checkpoint says
            remove_unused_columns=False,
            disable_tqdm=True,
            report_to=[],
        )
        self.pace = Pace(session)
        super().__init__(
            model=session.model, args=args, callbacks=[self.pace], compute_loss_func=_loss(recipe.label_smoothing)
        )
        self.model_accepts_loss_kwargs = False  # the loss is ours; the model need not know how many tokens there are
        self.remove_callback(PrinterCallback)

    def get_train_dataloader(self) -> Any:
        session, progress = self.session, self.session.progress
        same = progress.batch_seconds in (0.0, session.recipe.batch_seconds)
        progress.batch_seconds = session.recipe.batch_seconds
        collator = Collator(session.train_speech, session.recipe, session.family, session.trainable)
        return loader(
            session.plan,
            collator,
            epoch=progress.epoch,
            # Batches of another size are other batches: the epoch is begun anew.
            index=progress.batch if same else 0,
            workers=session.recipe.workers,
        )

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        made: Any = getattr(self, "lr_scheduler", None)
        if made is None:
            made = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, lambda step: self.session.rate(step))
            self.lr_scheduler = made
            self._created_lr_scheduler = True
        return made

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        epoch, index, clips = inputs.pop("place")
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        self.session.progress.epoch, self.session.progress.batch = epoch, index + 1
        self.clips += clips
        return loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        began = self.session.elapsed_s
        score = self.session.measure(self.state.global_step)
        self.session.judge(score)
        self.pace.evaluated_s = self.session.elapsed_s
        self.busy_s += self.session.elapsed_s - began
        metrics = {"val_wer": score.wer, "val_cer": score.cer}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _determine_best_metric(self, metrics: Any, trial: Any) -> bool:
        return False  # `Session.judge` decides

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        began = self.session.elapsed_s
        super()._save_checkpoint(model, trial)
        folder = self.session.folder / f"checkpoint-{self.state.global_step}"
        if self.session.average:
            self.session.average.save(folder / AVERAGE)
        self.session.progress.elapsed_s = self.session.elapsed_s
        # Written last: a checkpoint without it was cut off by a kill and is not used.
        write_json(folder / LOOP_STATE, asdict(self.session.progress))
        self.busy_s += self.session.elapsed_s - began

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        session = self.session
        if "train_runtime" in logs:
            return
        if not math.isfinite(logs.get("loss", 0.0)):
            raise TrainingError(
                f"the loss became {logs['loss']} at step {self.state.global_step}: "
                f"the learning rate {session.recipe.learning_rate:g} is too high; set learning_rate lower"
            )
        now = session.elapsed_s
        done = session.done(self.state.global_step)
        line: dict[str, Any] = {
            "step": self.state.global_step,
            "epoch": session.progress.epoch,
            "loss": logs.get("loss"),
            "val_wer": logs.get("val_wer"),
            "val_cer": logs.get("val_cer"),
            "learning_rate": logs.get("learning_rate"),
            "samples_per_second": None,
            "elapsed_s": round(now, 3),
            "eta_s": round(now * (1 - done) / done, 1) if done else None,
            "time": time.time(),
        }
        if "loss" in logs:
            spent = now - self.logged_s - self.busy_s
            line["samples_per_second"] = round(self.clips / spent, 2) if spent > 0 else None
            self.clips, self.busy_s, self.logged_s = 0, 0.0, now
        append_line(session.folder / METRICS, {k: v for k, v in line.items() if v is not None})
        self.state.log_history.append(line)
        log.info(_sentence(line))
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)


def _on_gpu(device: str) -> bool:
    """Whether the run is on a GPU. Raises SettingError where one is asked for and there is none."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise SettingError(f"device is {device} and no GPU can be used here: set device=cpu")
    return device != "cpu" and torch.cuda.is_available()


def _sentence(line: dict[str, Any]) -> str:
    parts = [f"step {line['step']}, epoch {line['epoch']}"]
    parts += [f"loss {line['loss']:.4f}"] if line["loss"] is not None else []
    parts += [f"val WER {line['val_wer']:.2%}, CER {line['val_cer']:.2%}"] if line["val_wer"] is not None else []
    parts += [f"{line['samples_per_second']:.1f} clips/s"] if line["samples_per_second"] is not None else []
    return f"{', '.join(parts)}, {line['elapsed_s']:.1f} s"


def _loss(smoothing: float) -> Any:
    """Cross-entropy over the tokens of all batches of a step, so that accumulation changes nothing."""

    def compute(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None) -> torch.Tensor:
        logits = outputs.logits
        total = functional.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), label_smoothing=smoothing, reduction="sum"
        )
        tokens = (labels != -100).sum() if num_items_in_batch is None else num_items_in_batch
        return total / tokens

    return compute


# A run ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a run ended."""

    status: str  # completed or stopped
    steps: int
    best: Score | None
    base: Score | None
    notes: tuple[str, ...]


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; those cut off by a kill are removed."""
    found = []
    for checkpoint in folder.glob("checkpoint-*"):
        if (checkpoint / LOOP_STATE).exists():
            found.append((int(checkpoint.name.partition("-")[2]), checkpoint))
        else:
            shutil.rmtree(checkpoint)
    return max(found)[1] if found else None


def run(folder: Path, stop: StopFlag) -> Outcome:
    """Train as the folder says, going on from its newest checkpoint; halves the batch when memory runs out."""
    config = TrainingConfig.load(folder)
    recipe = recipes.from_dict(config.recipe)
    notes: list[str] = []
    while True:
        try:
            return _attempt(folder, config, recipe, stop, notes)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            recipe = _smaller(recipe, error)
            notes.append(
                f"memory ran out: batches are now {recipe.batch_seconds:g} s, {recipe.accumulation} to a step, "
                "so that a step still hears as much"
            )
            log.warning(notes[-1])
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _out_of_memory(error: BaseException) -> bool:
    known = ("not enough memory", "can't allocate memory", "out of memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in known)


def _smaller(recipe: Recipe, error: BaseException) -> Recipe:
    if recipe.batch_seconds < 2:
        raise TrainingError(
            "memory ran out even with single clips: use method=lora, gradient_checkpointing=true, "
            "or a smaller base model"
        ) from error
    return replace(recipe, batch_seconds=recipe.batch_seconds / 2, accumulation=recipe.accumulation * 2)


def _attempt(folder: Path, config: TrainingConfig, recipe: Recipe, stop: StopFlag, notes: list[str]) -> Outcome:
    checkpoint = newest_checkpoint(folder)
    progress = _progress(checkpoint)
    progress.notes += [note for note in notes if note not in progress.notes]
    torch.manual_seed(recipe.seed)
    session = Session(folder, config, recipe, stop, progress)
    trainer = SpeechTrainer(session)
    if checkpoint is None:
        _measure_base(session, trainer)
    else:
        log.info("going on from %s", checkpoint.name)
        if session.average:
            session.average.load(checkpoint / AVERAGE)
    result = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    stopped = stop.set
    if not stopped:
        _finish(session, trainer)
    write_json(
        folder / "train_results.json",
        {
            "steps": result.global_step,
            "epochs": progress.epoch,
            "loss": result.training_loss,
            "elapsed_s": round(session.elapsed_s, 3),
            "train_clips": len(session.plan.rows),
            "train_seconds": round(session.train_speech.seconds, 3),
            "batch_seconds": recipe.batch_seconds,
            "accumulation": recipe.accumulation,
        },
    )
    return Outcome(
        status="stopped" if stopped else "completed",
        steps=result.global_step,
        best=progress.best,
        base=progress.base,
        notes=tuple(progress.notes),
    )


def _progress(checkpoint: Path | None) -> Progress:
    if checkpoint is None:
        return Progress()
    values = read_json(checkpoint / LOOP_STATE)
    for name in ("base", "best"):
        values[name] = Score(**values[name]) if values[name] else None
    return Progress(**values)


def _measure_base(session: Session, trainer: SpeechTrainer) -> None:
    """Step 0: what the base model does on val, at the length it was tuned for. It is the one to beat."""
    if not session.val:
        session.note("the val split is empty: nothing is measured while training, and the last weights are kept")
        return
    score = session.measure(0, context=session.trainable.extra.get("base_context", "auto"))
    session.progress.base = session.progress.best = score
    trainer.log({"val_wer": score.wer, "val_cer": score.cer})


def _finish(session: Session, trainer: SpeechTrainer) -> None:
    """Write `final/` and, where nothing trained was as good as the base, the base as `best/`."""
    progress = session.progress
    session.save("final")
    if not session.val:
        shutil.rmtree(session.folder / "best", ignore_errors=True)
        shutil.copytree(session.folder / "final", session.folder / "best")
        return
    if progress.best is not None and progress.best.step == 0:
        session.note("training made the model no better on val: `best` is the base model")
        base = session.family.open_for_training(
            session.config.base, audio_context=session.trainable.extra.get("base_context", "full")
        )
        session.family.save(base, base.model, session.folder / "best")
    results = {"base": progress.base, "best": progress.best}
    write_json(session.folder / "eval_results.json", {k: asdict(v) for k, v in results.items() if v is not None})
