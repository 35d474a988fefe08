"""One run in one process: transformers' Seq2SeqTrainer on Voxloop's batches, clock and measure.

A folder tells what to do (`training_config.json`) and takes everything that comes
of it: `metrics.jsonl`, `checkpoint-N`, `best/`, `final/`, `train_results.json`,
`eval_results.json`.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback

from voxloop.errors import TrainingError
from voxloop.families.contract import require
from voxloop.steps.training import ctc, recipes
from voxloop.steps.training.batches import Collator, loader
from voxloop.steps.training.files import BEST, LOOP_STATE, METRICS, append_line, read_json, sync, write_json
from voxloop.steps.training.recipes import Recipe
from voxloop.steps.training.session import Progress, Score, Session, StopFlag, TrainingConfig, kept_best, mend_folder

log = logging.getLogger(__name__)

AVERAGE = "average.safetensors"  # in a checkpoint: the running average of the weights
MOST_WORKERS = 4  # where the recipe names no number
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
CTC_HEAD = "ctc.safetensors"  # in a checkpoint: the head that is thrown away in the end


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
        if session.ctc:
            session.ctc.linear.zero_grad()  # transformers clears the gradients of its model only
        over = session.done(step) >= 1.0 or step >= session.steps or session.stop.conclude
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
        self.waited_s = 0.0  # for data, since then
        self.logged_s = session.elapsed_s
        recipe, cuda = session.recipe, session.on_gpu
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
            bf16=session.precision == "bf16",
            fp16=session.precision == "fp16",
            seed=recipe.seed,
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
        super().__init__(model=session.model, args=args, callbacks=[self.pace], compute_loss_func=_per_token)
        self.model_accepts_loss_kwargs = False  # the loss is ours; the model need not know how many tokens there are
        self.remove_callback(PrinterCallback)
        if session.ctc:
            session.ctc.linear.to(self.args.device)

    def get_train_dataloader(self) -> Any:
        session, progress = self.session, self.session.progress
        same = progress.batch_seconds in (0.0, session.recipe.batch_seconds)
        progress.batch_seconds = session.recipe.batch_seconds
        collator = Collator(
            session.train_speech,
            session.recipe,
            session.family,
            session.trainable,
            ctc_classes=session.ctc_classes,
            noises=session.noises,
        )
        return loader(
            session.plan,
            collator,
            epoch=progress.epoch,
            # Batches of another size are other batches: the epoch is begun anew.
            index=progress.batch if same else 0,
            workers=_workers(session.recipe, on_gpu=self.args.device.type == "cuda"),
        )

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        began = time.monotonic()
        found = super().get_batch_samples(map(self._whole, epoch_iterator), num_batches, device)
        self.waited_s += time.monotonic() - began
        return found

    def _whole(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with its tensors, where the loader brought none since they are kept."""
        encoded = self.session.encoded
        return batch | encoded.read(batch["drawn"]) if encoded and "labels" not in batch else batch

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: transformers' estimate walks through the whole model at every step, and nobody reads it."""
        return 0

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW with a group for each depth: the further a layer lies from the output, the lower its rate."""
        if self.optimizer is None:
            session, trained = self.session, self.model if model is None else model
            recipe = session.recipe
            decayed = set(self.get_decay_parameter_names(trained))
            groups: dict[tuple[int, bool], list[torch.nn.Parameter]] = {(0, True): [], (0, False): []}
            for name, weight in trained.named_parameters():
                if weight.requires_grad:
                    depth = 0 if recipe.layer_decay == 1 else session.family.layers_above(session.trainable, name)
                    groups.setdefault((depth, name in decayed), []).append(weight)
            if session.ctc:
                groups[0, True] += session.ctc.linear.parameters()
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, trained)
            self.optimizer: Any = kind(
                # The first group is that of the top layers: its rate is the one that is logged.
                [
                    {
                        "params": weights,
                        "weight_decay": recipe.weight_decay if decays else 0.0,
                        "lr": recipe.learning_rate * recipe.layer_decay**depth,
                    }
                    for (depth, decays), weights in sorted(
                        groups.items(), key=lambda group: (group[0][0], not group[0][1])
                    )
                ],
                **options,
            )
        return self.optimizer  # type: ignore[no-any-return]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross-entropy, and CTC beside it where the recipe says so, both per token of the step."""
        heard = [inputs.pop(name) for name in ctc.INPUTS if name in inputs]
        labels = inputs["labels"]
        session = self.session
        loss, outputs = session.family.loss(session.trainable, model, inputs, smoothing=session.recipe.label_smoothing)
        if session.ctc:
            loss = loss + session.ctc.loss(outputs.encoder_last_hidden_state, *heard)
        loss = _per_token(loss, labels, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _encoded(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The batch after the encoder."""
        session, kind = self.session, _AUTOCAST.get(self.session.precision)
        with torch.autocast(self.args.device.type, kind, enabled=kind is not None):
            return require(session.family, "encoder states").encode(session.trainable, self._prepare_inputs(inputs))

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        made: Any = getattr(self, "lr_scheduler", None)
        if made is None:
            made = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, lambda step: self.session.rate(step))
            self.lr_scheduler = made
            self._created_lr_scheduler = True
        return made

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        epoch, index, clips = inputs.pop("place")
        drawn = inputs.pop("drawn")
        if self.session.encoded and drawn not in self.session.encoded:
            inputs = self._encoded(inputs)
            self.session.encoded.write(drawn, inputs)
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
        metrics = _metrics(score)
        self.log(dict(metrics))
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _determine_best_metric(self, metrics: Any, trial: Any) -> bool:
        return False  # `Session.judge` decides

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        began = self.session.elapsed_s
        super()._save_checkpoint(model, trial)
        folder = self.session.folder / f"checkpoint-{self.state.global_step}"
        if self.session.average:
            self.session.average.save(folder / AVERAGE)
        if self.session.ctc:
            self.session.ctc.save(folder / CTC_HEAD)
        self.session.progress.elapsed_s = self.session.elapsed_s
        sync(folder)
        # Written last: a checkpoint without it was cut off by a kill and is not used.
        write_json(folder / LOOP_STATE, asdict(self.session.progress))
        # Only now: with the new one whole there is always one to go on from.
        for old in checkpoints(self.session.folder)[: -self.session.recipe.keep_checkpoints]:
            (old / LOOP_STATE).unlink()
            shutil.rmtree(old)
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
            "batch": session.progress.batch,
            "loss": logs.get("loss"),
            "val_wer": logs.get("val_wer"),
            "val_cer": logs.get("val_cer"),
            "val_strings_wer": logs.get("val_strings_wer"),
            "learning_rate": logs.get("learning_rate"),
            "samples_per_second": None,
            "wait_share": None,
            "elapsed_s": round(now, 3),
            "eta_s": round(now * (1 - done) / done, 1) if done else None,
            "time": time.time(),
        }
        if "loss" in logs:
            spent = now - self.logged_s - self.busy_s
            if spent > 0:
                line["samples_per_second"] = round(self.clips / spent, 2)
                line["wait_share"] = round(min(1.0, self.waited_s / spent), 4)
            self.clips, self.busy_s, self.waited_s, self.logged_s = 0, 0.0, 0.0, now
        append_line(session.folder / METRICS, {k: v for k, v in line.items() if v is not None})
        self.state.log_history.append(line)
        log.info(_sentence(line))
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)


def _workers(recipe: Recipe, *, on_gpu: bool) -> int:
    """Processes that prepare batches. On a CPU they would take from the training what they give."""
    if recipe.workers is not None:
        return recipe.workers
    return min(MOST_WORKERS, (os.cpu_count() or 1) // 2) if on_gpu else 0


def _metrics(score: Score) -> dict[str, float]:
    found = {"val_wer": score.wer, "val_cer": score.cer, "val_strings_wer": score.strings_wer}
    return {name: value for name, value in found.items() if value is not None}


def _sentence(line: dict[str, Any]) -> str:
    parts = [f"step {line['step']}, epoch {line['epoch']}"]
    parts += [f"loss {line['loss']:.4f}"] if line["loss"] is not None else []
    parts += [f"val WER {line['val_wer']:.2%}, CER {line['val_cer']:.2%}"] if line["val_wer"] is not None else []
    parts += [f"strings {line['val_strings_wer']:.2%}"] if line["val_strings_wer"] is not None else []
    parts += [f"{line['samples_per_second']:.1f} clips/s"] if line["samples_per_second"] is not None else []
    return f"{', '.join(parts)}, {line['elapsed_s']:.1f} s"


def _per_token(total: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None) -> torch.Tensor:
    """The loss over the tokens of all batches of a step, so that accumulation changes nothing."""
    return total / ((labels != -100).sum() if num_items_in_batch is None else num_items_in_batch)


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
    whole = checkpoints(folder)
    for checkpoint in set(folder.glob("checkpoint-*")) - set(whole):
        shutil.rmtree(checkpoint)
    return whole[-1] if whole else None


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints, oldest first."""
    found = [path.parent for path in folder.glob(f"checkpoint-*/{LOOP_STATE}")]
    return sorted(found, key=lambda checkpoint: int(checkpoint.name.partition("-")[2]))


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
            # Saved: a resumed run begins with what fitted.
            config = replace(config, recipe=recipe.as_dict())
            config.save(folder)
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
    mend_folder(folder / "best")
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
        if session.ctc:
            session.ctc.load(checkpoint / CTC_HEAD)
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
    score = session.measure(0, context=session.trainable.base_context)
    session.progress.base = session.progress.best = score
    trainer.log(_metrics(score))


def _finish(session: Session, trainer: SpeechTrainer) -> None:
    """Write `final/` and, where nothing trained was as good as the base, the base as `best/`."""
    progress = session.progress
    session.save("final")
    if not session.val:
        shutil.rmtree(session.folder / "best", ignore_errors=True)
        shutil.copytree(session.folder / "final", session.folder / "best")
        return
    kept = kept_best(session.folder)
    if kept and progress.best and kept.at_least_as_good_as(progress.best):
        progress.best = kept
    if progress.best is not None and progress.best.step == 0:
        session.note("training made the model no better on val: `best` is the base model")
        base = session.family.open_for_training(session.config.base, audio_context=session.trainable.base_context)
        (session.folder / BEST).unlink(missing_ok=True)
        shutil.rmtree(session.folder / "best", ignore_errors=True)
        session.family.save(base, base.model, session.folder / "best")
    results = {"base": progress.base, "best": progress.best}
    write_json(session.folder / "eval_results.json", {k: asdict(v) for k, v in results.items() if v is not None})
