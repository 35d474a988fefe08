"""One attempt at a run: its settings, the model, the speech, the clock, and the selection of the best weights.

The best weights are those with the lowest word error rate of generated text on
val, which is heard by the same code as in serving (`validation`).
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
from dataclasses import asdict, replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast, send_to_device

from voxloop.errors import SettingError
from voxloop.families.contract import Family, Part, Trainable, require, words_alone
from voxloop.families.decoding import Context, Decoding
from voxloop.families.registry import family
from voxloop.steps.training.batches import ClipRow, Collator, Plan, Speech, loader, read_noises, read_rows, spoken
from voxloop.steps.training.ctc import Head
from voxloop.steps.training.ctc import classes as ctc_classes
from voxloop.steps.training.encoded import EncodedBatches
from voxloop.steps.training.files import BEST, sync, write_json
from voxloop.steps.training.packing import usual_context
from voxloop.steps.training.recipes import SMALL_MODEL, Precision, Recipe
from voxloop.steps.training.state import (
    BLENDED,
    LoopState,
    Score,
    StopFlag,
    TrainingConfig,
    kept_best,
    replace_folder,
)
from voxloop.steps.training.validation import Clip, Validation, val_rows

log = logging.getLogger(__name__)

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
    """One attempt at a run: the model, the data and the clock."""

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
        self.val = val_rows(folder / config.val, recipe.max_val_clips)
        self.val_speech = Speech(self.val)
        self.plan = self._plan(self._learnable(rows), recipe, self._learnable(earlier))
        joined = recipe.join_share and recipe.audio_context != "packed"
        self.val_strings = self._strings() if self.val and joined else []
        self.validation = Validation(
            [Clip(self.val_speech.waveform(row.id), row.text, row.language, row.whole) for row in self.val],
            config.hearing,
            config.normaliser,
            short_context="short context" in self.family.capabilities,
        )
        self.val_words = sum(len(row.text.split()) for row in self.val)
        if self.plan.earlier:
            source = "earlier models' training data"
            source += " and other speakers, with the base's own texts" if recipe.rehearse else ""
            self.note(f"every epoch replays {len(self.plan.again(0))} clips from {source}")
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
            log.info("caching the encoder's outputs for %d epochs", recipe.encoder_copies)
        self.eval_s = 0.0  # the last evaluation in passing
        self.served_s = 0.0  # the last one as served; 0 where it gives the same texts
        self.save_s = 0.0  # the last saved model
        self.batches_in_epoch = self.plan.batches_in_epoch()
        self.steps = self._steps()

    @property
    def context(self) -> Context:
        """The audio context of the trained model."""
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
        """If clips have no language, use the one that the base model detects most often."""
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
            self.note("trained in bf16, which this device multiplies faster than fp32 (precision=auto)")
        elif self.precision == "bf16" and not fast:
            self.note("precision is bf16, which is not faster on this device: precision=fp32 is usually faster here")

    def _learnable(self, rows: Sequence[ClipRow]) -> list[ClipRow]:
        limit = self.family.label_limit(self.trainable)
        kept = [r for r in rows if self.family.label_length(self.trainable, r.text, r.language) <= limit]
        if len(kept) < len(rows):
            self.note(f"left out {len(rows) - len(kept)} clips whose texts have more than {limit} tokens")
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
        """The trainable weights of the model, by name."""
        for name, weight in self.model.named_parameters():
            if weight.requires_grad:
                yield name, weight

    def batches(self) -> Iterator[dict[str, Any]]:
        """An endless stream of batches from the run's position; each process has its own."""
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
                # With another batch size the batches differ, so the epoch starts over.
                index=progress.batch if same else 0,
                workers=workers if recipe.workers is None else recipe.workers,
                process=self.accelerator.process_index,
                processes=self.accelerator.num_processes,
            )
        )

    def on_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch's tensors on the model's device; with a cached encoder, with its outputs instead of the audio."""
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
        """Broadcast one process's values to all, because their clocks differ and one must decide."""
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
        """Record something that the user should see at the end."""
        log.warning(text)
        if text not in self.progress.notes:
            self.progress.notes.append(text)

    def done(self, step: int) -> float:
        """The completed share of the run, by steps or time, whichever is larger."""
        share = step / self.steps
        if self.recipe.max_seconds is not None:
            # Where evaluating takes long, half of the time is for training all the same: fewer blends are tried then.
            usable = max(1.0, self.recipe.max_seconds - self.reserve_s, self.recipe.max_seconds / 2)
            share = max(share, self.elapsed_s / usable)
        return min(1.0, share)

    @property
    def reserve_s(self) -> float:
        """Time reserved for the last evaluation, the blends and saving."""
        blends = len(BLENDS) if self.recipe.blend and self.val else 0
        return self.served_s + (1 + blends) * self.eval_s + (2 + bool(blends)) * self.save_s + SPARE_S

    def rate(self, step: int) -> float:
        """The learning rate as a share of its peak: warm-up, then half a cosine (arXiv:1608.03983)."""
        recipe = self.recipe
        rise = min(1.0, (step + 1) / recipe.warmup_steps) if recipe.warmup_steps else 1.0
        fall = 0.5 * (1 + math.cos(math.pi * self.done(step)))
        return rise * (recipe.final_share + (1 - recipe.final_share) * fall)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Use the averaged weights, if any, for a block."""
        if self.average is None or not self.average.updates:
            yield
            return
        self.average.swap()
        try:
            yield
        finally:
            self.average.swap()

    def _strings(self) -> list[Clip]:
        """Strings of val's clips as training makes them, the same ones every time and for every seed."""
        recipe = replace(self.recipe, join_share=1.0, replay_share=0.0, silence_share=0.0, seed=1)
        cuts = [cut for cut in self._plan(self.val, recipe).examples(0) if hasattr(cut, "tracks")][:MOST_STRINGS]
        heard = [spoken(cut, self.val_speech) for cut in cuts]
        return [Clip(waveform, words_alone(text), language) for waveform, text, language in heard]

    def measure(
        self, step: int, *, context: Literal["trimmed", "full"] | None = None, blend: float = 1.0, served: bool = False
    ) -> Score:
        """Error rates of generated text on val, as `served` or in passing, with the loss and the merit."""
        began = time.monotonic()
        with self.averaged():
            recogniser = self.family.recogniser(self.trainable, self.model)
            clips = self.validation.errors(recogniser, context, served=served)
            strings = (
                self.validation.errors(recogniser, context, served=served, clips=self.val_strings)
                if self.val_strings
                else None
            )
            loss = self._val_loss()
        took_s = time.monotonic() - began
        if served:
            self.served_s = took_s
        else:
            self.eval_s = took_s
        wer = clips.words.rate
        score = Score(
            step=step,
            wer=wer if strings is None else (wer + strings.words.rate) / 2,
            cer=clips.characters.rate,
            clips_wer=None if strings is None else wer,
            strings_wer=None if strings is None else strings.words.rate,
            loss=loss,
            blend=blend,
            served=clips.served and (strings is None or strings.served),
        )
        base = self.progress.base if served else self.progress.untrained
        return score.against(base or score, self.val_words)

    def measure_kept(self, score: Score) -> Score:
        """The score as served of the model in `best/`, whose weights the model has from here on."""
        if score.served:
            return score
        self.average = None  # what was saved is averaged already
        self._set_weights(self._saved_weights(self.folder / "best"))
        return self.measure(score.step, blend=score.blend, served=True)

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

    def judge(self, score: Score) -> None:
        """Save the model if it is the best so far."""
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
        """Interpolate between the base's weights and the trained ones as is best on val, and return the best score.

        Weight-space interpolation (arXiv:2109.01903); for adapters it changes their scale. The trained weights are the
        best so far or, if none beat the base, the last ones, of that `step`. `scored` is called with each score. None:
        the base is best.
        """
        self.average = None  # what was saved is averaged already
        best = kept_best(self.folder)
        place, step = (self.folder / "best", best.step) if best else (self.folder / "final", step)
        trained = self._saved_weights(place)
        base = self._base_weights(trained)
        for share in BLENDS:
            left_s = math.inf if self.recipe.max_seconds is None else self.recipe.max_seconds - self.elapsed_s
            if left_s < self.eval_s + self.served_s:
                break
            with torch.no_grad():
                for name, weight in self.trained():  # one by one: another copy of all is much memory
                    weight.copy_(torch.lerp(base[name], trained[name], share))
            score = self.measure(step, blend=share)
            scored(score)
            if score.better_than(best or self.progress.best or score):
                best = score
                self.save(BLENDED)
        if best is not None and best.blend != 1.0:
            # From here on a run that is killed has nothing left to learn: see `blend_is_done`.
            write_json(self.folder / BEST, asdict(best))
            replace_folder(self.folder / BLENDED, self.folder / "best")
        return best

    def _saved_weights(self, folder: Path) -> dict[str, torch.Tensor]:
        """The trained weights of a model saved by this run, by parameter name."""
        if self.recipe.method == "lora":
            from peft import load_peft_weights

            found = load_peft_weights(str(folder / "adapter"), device=str(self.accelerator.device))
            return {name: found[name.replace(".default.", ".")] for name, _ in self.trained()}
        return self._weights_of(folder)

    def _base_weights(self, trained: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The base model's weights; for adapters, weights that change nothing."""
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
        """Save the model as an intermediate one if it is among the best; the newer one wins a tie."""
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
        """Write a complete model folder; the previous one is kept until the new one is complete."""
        began = time.monotonic()
        partial = self.folder / f"{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        with self.averaged():
            self.family.save(self.trainable, self.model, partial)
        sync(partial)
        replace_folder(partial, self.folder / name)
        self.save_s = time.monotonic() - began


def _on_gpu(device: str) -> bool:
    """Whether the run uses a GPU. Raises SettingError if one is requested and none is available."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise SettingError(f"device is {device}, but no GPU can be used here: set device=cpu")
    return device != "cpu" and torch.cuda.is_available()


def bf16_in_hardware(*, on_gpu: bool) -> bool:
    """Whether the device multiplies bf16 matrices faster than fp32 ones."""
    if on_gpu:
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Without AMX a CPU gains nothing or loses, even where it knows bf16: torch has no public question for it.
    return bool(torch.cpu._is_amx_tile_supported())


def _precision(asked: Precision, on_gpu: bool, model: torch.nn.Module) -> Precision:
    """Resolve `auto`. Raises SettingError for a format that the device does not support."""
    if asked == "fp16" and not on_gpu:
        raise SettingError("precision is fp16, which loses small gradients on a CPU: set precision=fp32")
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
