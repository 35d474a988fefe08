"""One run in one training process: the training loop, from data to log, with set-up and finish.

The run's folder holds the settings (`training_config.json`) and receives all results: `metrics.jsonl`,
`checkpoint-N`, `best/`, `final/`, `intermediate/`, `trainer_state.json`, `train_results.json`, `eval_results.json`.

`torchrun` or `accelerate launch` can start several processes: each gets its share of every step, and only the main one
watches the clock, evaluates, writes and logs.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import set_seed

from voxloop.errors import TrainingError
from voxloop.records import MAX_UTTERANCE_S
from voxloop.steps.training import ctc, recipes
from voxloop.steps.training.checkpoints import load_checkpoint, newest_checkpoint, save_checkpoint
from voxloop.steps.training.files import BEST, is_writer, write_json
from voxloop.steps.training.journal import Journal
from voxloop.steps.training.session import Session
from voxloop.steps.training.state import (
    LoopState,
    Score,
    StopFlag,
    TrainingConfig,
    blend_is_done,
    kept_best,
    mend_folder,
)

if TYPE_CHECKING:
    from voxloop.steps.training.recipes import Recipe

log = logging.getLogger(__name__)

WORDS_TO_TELL = 200  # of val: with fewer, a tenth fewer errors is often chance
CLIPS_TO_LEARN = 50  # number from which most voices improve (docs/log.md)


def train(session: Session, optimizer: Any, journal: Journal) -> bool:
    """Train until the recipe, the clock or a signal ends it. True if a signal did, and the run will resume later."""
    accelerator, recipe, model, progress = session.accelerator, session.recipe, session.model, session.progress
    learning = [weight for group in optimizer.param_groups for weight in group["params"]]
    batches, pace = session.batches(), Pace(session)
    while True:
        # Schedule: the main process's clock counts.
        (rate,) = session.agreed(session.rate(journal.step))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["initial_lr"]

        # Data: the batches of this step, and the tokens that all processes learn from in it.
        began = time.monotonic()
        window = [next(batches) for _ in range(recipe.accumulation)]
        journal.waited_s += time.monotonic() - began
        inputs = [session.on_device(batch) for batch in window]
        tokens = accelerator.reduce(
            sum((batch["labels"] != session.trainable.label_pad).sum() for batch in inputs), "sum"
        )

        # Forward, loss, backward
        model.train()
        loss = gradients(session, inputs, tokens)
        sum_gradients(session, learning)

        # Clip, step
        norm = accelerator.clip_grad_norm_([weight for _, weight in session.trained()], recipe.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        if session.average:
            session.average.update()
        journal.heard(loss, sum(batch["place"][2] for batch in window))
        epoch, index, _ = window[-1]["place"]
        # The last process has the last batch of a step.
        where = session.agreed(epoch, index + 1, process=accelerator.num_processes - 1)
        progress.epoch, progress.batch = int(where[0]), int(where[1])

        # Log, evaluate, save
        todo = pace.after(journal.step)
        if todo.log:
            journal.training(optimizer.param_groups[0]["lr"], norm)
        if todo.evaluate and accelerator.is_main_process:
            evaluate(session, journal)
            pace.evaluated_s = session.elapsed_s
        if todo.save:
            began = session.elapsed_s
            save_checkpoint(session, optimizer, journal)
            if not session.val and recipe.keep_checkpoints_after and accelerator.is_main_process:
                session.keep(Score(step=journal.step, wer=0.0, cer=0.0))  # nothing tells them apart but their age
            journal.busy_s += session.elapsed_s - began
        if todo.end:
            return todo.stopped


def gradients(session: Session, inputs: Sequence[dict[str, Any]], tokens: torch.Tensor) -> torch.Tensor:
    """Accumulate a step's gradients batch by batch; the loss is per token over all processes' `tokens`.

    So neither accumulation nor the number of processes changes the result. Raises OutOfMemory on all processes.
    """
    accelerator, recipe = session.accelerator, session.recipe
    total = torch.zeros((), device=accelerator.device)
    failed: Exception | None = None
    try:
        for batch in inputs:
            heard = [batch.pop(name) for name in ctc.INPUTS if name in batch]
            with accelerator.autocast():
                loss, outputs = session.family.loss(
                    session.trainable, session.model, batch, smoothing=recipe.label_smoothing
                )
            if session.ctc:
                loss = loss + session.ctc.loss(outputs.encoder_last_hidden_state, *heard)
            loss = loss / tokens
            accelerator.backward(loss)
            total += loss.detach()
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        failed = error
    anywhere = failed is not None
    if accelerator.num_processes > 1:  # which would wait for one that fails alone
        anywhere = accelerator.reduce(total.new_tensor(float(anywhere)), "sum").item() > 0
    if anywhere:
        raise OutOfMemory from failed
    return total


def sum_gradients(session: Session, learning: Sequence[torch.nn.Parameter]) -> None:
    """The sum of all processes' gradients, in each.

    Not by DistributedDataParallel: it sends a gradient off as soon as autograd has it, and the embedding of tokens,
    whose rows are added to the output layer's gradient in place, has its own later than that.
    """
    if session.accelerator.num_processes > 1:
        for weight in learning:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            torch.distributed.all_reduce(weight.grad)


def evaluate(session: Session, journal: Journal) -> None:
    """Evaluate on val, save the model if it is the best so far, and log the score."""
    began = session.elapsed_s
    score = session.measure(journal.step)
    session.judge(score)
    if session.recipe.keep_checkpoints_after:
        session.keep(score)
    journal.evaluation(score)
    journal.busy_s += session.elapsed_s - began


@dataclass(frozen=True, slots=True)
class Todo:
    """The tasks after a step."""

    log: bool
    evaluate: bool
    save: bool
    end: bool
    stopped: bool  # by a signal, to go on later


class Pace:
    """Decides the tasks after each step, on the main process for all."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.evaluated_s = session.elapsed_s
        self.saved_s = session.elapsed_s
        self.evaluated_epoch = session.progress.epoch

    def after(self, step: int) -> Todo:
        session, recipe, now = self.session, self.session.recipe, self.session.elapsed_s
        stopped = session.stop.set
        over = session.done(step) >= 1.0 or step >= session.steps or session.stop.conclude
        bored = recipe.patience is not None and session.progress.stale >= recipe.patience
        todo = Todo(
            log=step == 1 or step % recipe.log_steps == 0 or over,
            evaluate=bool(session.val) and not stopped and (over or self._due(step, now)),
            save=stopped or (not over and now - self.saved_s >= recipe.save_seconds),
            end=over or stopped or bored,
            stopped=stopped,
        )
        todo = Todo(*map(bool, session.agreed(todo.log, todo.evaluate, todo.save, todo.end, todo.stopped)))
        if todo.evaluate:
            self.evaluated_epoch = session.progress.epoch
        if todo.save:
            self.saved_s = now
        return todo

    def _due(self, step: int, now: float) -> bool:
        recipe = self.session.recipe
        if recipe.eval_steps is not None:
            return step % recipe.eval_steps == 0
        if recipe.eval_seconds is not None:
            # Evaluation may take a fifth of the time at most, however slow it is.
            return now - self.evaluated_s >= max(recipe.eval_seconds, 4 * self.session.eval_s)
        return self.session.progress.epoch > self.evaluated_epoch


def adamw(session: Session) -> Any:
    """AdamW with a parameter group per depth: the further a layer is from the output, the lower its rate."""
    recipe = session.recipe
    groups: dict[tuple[int, bool], list[torch.nn.Parameter]] = {(0, True): [], (0, False): []}
    for name, weight in session.trained():
        depth = 0 if recipe.layer_decay == 1 else session.family.layers_above(session.trainable, name)
        groups.setdefault((depth, weight.ndim > 1), []).append(weight)  # neither biases nor norms decay
    if session.ctc:
        groups[0, True] += session.ctc.linear.parameters()
    made = torch.optim.AdamW(
        # The first group is that of the top layers: its rate is the one that is logged.
        [
            {
                "params": weights,
                "weight_decay": recipe.weight_decay if decays else 0.0,
                "initial_lr": recipe.learning_rate * recipe.layer_decay**depth,
            }
            for (depth, decays), weights in sorted(groups.items(), key=lambda group: (group[0][0], not group[0][1]))
        ],
        lr=recipe.learning_rate,
        betas=(recipe.beta1, recipe.beta2),
        fused=True,
    )
    return session.accelerator.prepare(made)


# A run ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingOutcome:
    """How a run ended."""

    status: str  # completed or stopped
    steps: int
    best: Score | None
    base: Score | None
    notes: tuple[str, ...]


class OutOfMemory(Exception):
    """A step ran out of memory, in this process or another."""


def run(folder: Path, stop: StopFlag) -> TrainingOutcome:
    """Train with the folder's settings, from its newest checkpoint; halve the batch when memory runs out."""
    config = TrainingConfig.load(folder)
    recipe = recipes.from_dict(config.recipe)
    notes: list[str] = []
    while True:
        try:
            return _attempt(folder, config, recipe, stop, notes)
        except (OutOfMemory, MemoryError, RuntimeError) as error:
            # Outside a step, others of several processes would wait for one that begins anew.
            alone = not torch.distributed.is_initialized()
            if not isinstance(error, OutOfMemory) and not (alone and _out_of_memory(error)):
                raise
            recipe = _smaller(recipe, error)
            # Saved: a resumed run begins with what fitted.
            config = replace(config, recipe=recipe.as_dict())
            if is_writer():
                config.save(folder)
            notes.append(
                "memory ran out with a single window, so activations are now recomputed (gradient_checkpointing=true)"
                if recipe.gradient_checkpointing
                else f"memory ran out, so batches are now {recipe.batch_seconds:g} s, with {recipe.accumulation} per "
                "step to keep the audio per step"
            )
            log.warning(notes[-1])
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _out_of_memory(error: BaseException) -> bool:
    known = ("not enough memory", "can't allocate memory", "out of memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in known)


def _smaller(recipe: Recipe, error: BaseException) -> Recipe:
    """The recipe with batches of half the size, or with recomputed activations if a batch is a single window."""
    smallest = 1.0 if recipe.audio_context == "trimmed" else MAX_UTTERANCE_S
    if recipe.batch_seconds / 2 >= smallest:
        return replace(recipe, batch_seconds=recipe.batch_seconds / 2, accumulation=recipe.accumulation * 2)
    if recipe.audio_context != "trimmed" and not recipe.gradient_checkpointing:
        return replace(recipe, gradient_checkpointing=True)
    raise TrainingError(
        "memory ran out even with single clips: use method=lora, gradient_checkpointing=true or a smaller base model"
    ) from error


def _attempt(folder: Path, config: TrainingConfig, recipe: Recipe, stop: StopFlag, notes: list[str]) -> TrainingOutcome:
    checkpoint = newest_checkpoint(folder)
    progress = LoopState.of(checkpoint)
    progress.notes += [note for note in notes if note not in progress.notes]
    torch.manual_seed(recipe.seed)
    session = Session(folder, config, recipe, stop, progress)
    main = session.accelerator.is_main_process
    set_seed(recipe.seed, device_specific=True)  # so that processes drop out different units
    optimizer, journal = adamw(session), Journal(session)
    if main:
        mend_folder(folder / "best")
    if checkpoint is not None:
        log.info("resuming from %s", checkpoint.name)
        load_checkpoint(checkpoint, session, optimizer, journal)
    elif main:
        _measure_base(session, journal)
    over = checkpoint is not None and blend_is_done(folder)
    stopped = False if over else train(session, optimizer, journal)
    if main:
        if not stopped:
            _finish(session, journal)
        journal.end()
        write_json(folder / "train_results.json", _results(session, journal))
    session.accelerator.end_training()
    return TrainingOutcome(
        status="stopped" if stopped else "completed",
        steps=journal.step,
        best=progress.best,
        base=progress.base,
        notes=tuple(progress.notes),
    )


def _results(session: Session, journal: Journal) -> dict[str, Any]:
    return {
        "steps": journal.step,
        "epochs": session.progress.epoch,
        "loss": journal.all_loss / max(1, journal.all_steps),
        "elapsed_s": round(session.elapsed_s, 3),
        "train_clips": len(session.plan.rows),
        "train_seconds": round(session.train_speech.seconds, 3),
        "batch_seconds": session.recipe.batch_seconds,
        "accumulation": session.recipe.accumulation,
    }


def _measure_base(session: Session, journal: Journal) -> None:
    """Step 0: evaluate the base model on val, with the audio context it was trained for, in passing and as served."""
    if not session.val:
        session.note("the val split is empty, so nothing is evaluated during training and the last weights are kept")
        return
    context = session.trainable.base_context
    score = session.progress.best = session.progress.untrained = session.measure(0, context=context)
    session.progress.base = score if score.served else session.measure(0, context=context, served=True)
    journal.evaluation(score)
    journal.served(session.progress.base)


def _finish(session: Session, journal: Journal) -> None:
    """Write `final/`, blend, and write the base as `best/` if no trained weights were better."""
    progress = session.progress
    kept = kept_best(session.folder)
    if kept and kept.blend != 1.0:  # decided before a kill
        progress.best = kept
    else:
        session.save("final")
    if not session.val:
        shutil.rmtree(session.folder / "best", ignore_errors=True)
        shutil.copytree(session.folder / "final", session.folder / "best")
        return
    if kept and progress.best and kept.at_least_as_good_as(progress.best):
        progress.best = kept
    if session.recipe.blend and progress.best is not None and progress.best.blend == 1.0:
        progress.best = session.blend(journal.step, journal.blend) or progress.best
    told = progress.best, progress.trained
    if progress.best is not None and progress.best.step == 0:
        progress.best = progress.base
    elif progress.best is not None and progress.base is not None:
        score = session.measure_kept(progress.best)
        journal.served(score)
        told = progress.base, score
        progress.best = score if score.better_than(progress.base) else progress.base
    if progress.best is not None and progress.best.step == 0:
        session.note(_no_better(session, *told))
        (session.folder / BEST).unlink(missing_ok=True)
        shutil.rmtree(session.folder / "best", ignore_errors=True)
        if session.recipe.keep_no_better:
            shutil.copytree(session.folder / "final", session.folder / "best")
        else:
            base = session.family.open_for_training(session.config.base, audio_context=session.trainable.base_context)
            session.family.save(base, base.model, session.folder / "best")
    elif progress.best is not None and progress.best.blend != 1.0:
        session.note(
            f"kept a blend of base and trained weights, {100 * progress.best.blend:.0f} % trained "
            f"(val WER {100 * progress.best.wer:.1f} %)"
        )
    results = {"base": progress.base, "best": progress.best}
    write_json(session.folder / "eval_results.json", {k: asdict(v) for k, v in results.items() if v is not None})


def _no_better(session: Session, base: Score | None, trained: Score | None) -> str:
    """The note of a run that found no gain: the deciding numbers, and what would help."""
    clips, words = len(session.plan.rows), session.val_words
    said = "training did not improve the model on val"
    if base is not None and trained is not None:
        said += f": {_told(base)} before, {_told(trained)} after, on {words} words in {len(session.val)} clips"
    helps = []
    if words < WORDS_TO_TELL:
        helps.append(
            f"a larger val split, since {words} words cannot show a small gain (`voxloop dataset build --ratios`)"
        )
    if clips < CLIPS_TO_LEARN:
        helps.append(f"more reviewed training speech than {clips} clips")
    return f"{said}. What would help: {', '.join([*helps, 'a larger base model (`voxloop base list`)'])}"


def _told(score: Score) -> str:
    return f"WER {100 * score.wer:.1f} %" + ("" if score.loss is None else f" (loss {score.loss:.3f})")
