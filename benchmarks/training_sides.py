"""The two sides of the training benchmark: each a process of its own, stopped (SIGSTOP) while it is the other's turn.

Ours is what `voxloop train` starts: the child process of a run's folder, on Voxloop's batches.

The peer is the well-known recipe for fine-tuning Whisper (https://huggingface.co/blog/fine-tune-whisper): transformers'
Seq2SeqTrainer, WhisperFeatureExtractor's padding to 30 s, computed beforehand, and a collator that pads the labels. It
is `python -m benchmarks.training_sides FOLDER`, as the folder's `peer.json` says.

Both begin with the same weights, hear the same clips, 8 to a step, and learn by the same optimiser, rate and loss.
Letters in shapes: `B` batch, `F` mel channels, `T` mel frames, `U` label tokens.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from voxloop.speech.audio import to_pcm16, wav_bytes
from voxloop.starter import STARTER_DIR
from voxloop.steps.training import control
from voxloop.steps.training.files import METRICS, append_line, read_json, write_json
from voxloop.steps.training.recipes import Recipe

BATCH = 8
RATE = 16_000
CLIPS = 24  # three batches: few enough that all lie in one bucket, so that a batch of ours has 8 clips as well
SPREAD = 0.05  # clips are up to this share shorter or longer, so that batches have padding and masks
TOKENS_PER_S = 3.5  # of English in Whisper's vocabulary
PEER = "peer.json"
POLL_S = 0.005
START_S = 300.0  # for importing, loading and the first steps

# Everything that changes what is heard is off, so that both sides hear the same; the rate stays as it is.
PLAIN = Recipe(
    name="benchmark",
    audio_context="trimmed",
    learning_rate=1e-4,
    final_share=0.0,
    warmup_steps=0,
    max_steps=1_000_000,
    speed=0.0,
    volume_db=0.0,
    noise_share=0.0,
    mask_bands=0,
    mask_frames=0,
    join_share=0.0,
    replay_share=0.0,
    eval_seconds=None,
    save_seconds=1e9,
    log_steps=1,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A Whisper of random weights: speed does not depend on their values."""

    width: int
    encoder_layers: int
    decoder_layers: int
    heads: int
    mels: int
    vocabulary: int


SHAPES = {
    "whisper-tiny": Shape(width=384, encoder_layers=4, decoder_layers=4, heads=6, mels=80, vocabulary=51_865),
    "whisper-large-v3-turbo": Shape(
        width=1280, encoder_layers=32, decoder_layers=4, heads=20, mels=128, vocabulary=51_866
    ),
    "smallest": Shape(width=32, encoder_layers=2, decoder_layers=2, heads=2, mels=80, vocabulary=300),  # for tests
}


def write_model(folder: Path, shape: Shape) -> None:
    """A Whisper folder of that shape, with the starter's tokenizer."""
    import torch
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperProcessor

    tokenizer: Any = WhisperProcessor.from_pretrained(STARTER_DIR).tokenizer
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=shape.vocabulary,
        num_mel_bins=shape.mels,
        d_model=shape.width,
        encoder_layers=shape.encoder_layers,
        decoder_layers=shape.decoder_layers,
        encoder_attention_heads=shape.heads,
        decoder_attention_heads=shape.heads,
        encoder_ffn_dim=4 * shape.width,
        decoder_ffn_dim=4 * shape.width,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.convert_tokens_to_ids("<|startoftranscript|>"),
    )
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    WhisperProcessor(WhisperFeatureExtractor(feature_size=shape.mels), tokenizer).save_pretrained(folder)


def write_noise(folder: Path, seconds: float) -> Path:
    """A manifest of clips of about so many seconds, each with as many tokens as speech of its length has."""
    rng = np.random.default_rng(0)
    sounds, texts = [], []
    for length_s in np.linspace(1 - SPREAD, 1 + SPREAD, CLIPS) * seconds:
        sounds.append((0.1 * rng.standard_normal(round(length_s * RATE))).astype(np.float32))
        # The starter's tokens are letters; beside them a label has a token for the task and one for the end.
        texts.append("".join(rng.choice(list("abcdefghij"), 2 + round(TOKENS_PER_S * length_s))))
    return write_manifest(folder, sounds, texts)


def write_manifest(folder: Path, sounds: Sequence[Any], texts: Sequence[str]) -> Path:
    """Clips and texts as a dataset's train split."""
    folder.mkdir(parents=True)
    lines = []
    for number, (sound, text) in enumerate(zip(sounds, texts, strict=True)):
        (folder / f"{number:04}.wav").write_bytes(wav_bytes(to_pcm16(sound)))
        row = {"id": f"{number:04}", "audio_path": f"{number:04}.wav", "text": text, "duration": len(sound) / RATE}
        lines.append(json.dumps(row | {"speaker": "s", "language": "en"}))
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "train.jsonl"


# Ours ----------------------------------------------------------------------------------------------------------------


def batch_seconds(manifest: Path) -> float:
    """The budget that holds 8 of the longest clips."""
    from voxloop.families.registry import family
    from voxloop.steps.training.batches import read_rows

    return BATCH * family("whisper").padded_seconds(max(row.duration for row in read_rows(manifest)))


def lay_out(folder: Path, base: Path, manifest: Path, recipe: Recipe, *, device: str, threads: int) -> None:
    """A run's folder as `voxloop train` makes it."""
    from voxloop.steps.training.state import TrainingConfig

    folder.mkdir(parents=True)
    TrainingConfig(
        run=folder.name,
        family="whisper",
        base=str(base),
        train=str(manifest),
        val=str(folder / "none.jsonl"),
        recipe=recipe.as_dict(),
        device=device,
        threads=threads,
    ).save(folder)


# The peer ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerConfig:
    """What the peer's folder says; the rest is the tutorial's."""

    base: str
    train: str
    recipe: dict[str, Any]
    """Ours: steps, rate, optimiser, method and seed are taken from it."""
    device: str
    threads: int
    save: bool = False
    """Write the model in the end."""


class PaddingCollator:
    """The tutorial's DataCollatorSpeechSeq2SeqWithPadding."""

    def __init__(self, processor: Any, decoder_start_token_id: int) -> None:
        self.processor = processor
        self.decoder_start_token_id = decoder_start_token_id

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """input_features (B, F, T) and labels (B, U), -100 where there is padding."""
        sounds = [{"input_features": feature["input_features"]} for feature in features]
        batch: dict[str, Any] = self.processor.feature_extractor.pad(sounds, return_tensors="pt")
        texts = self.processor.tokenizer.pad(
            [{"input_ids": feature["labels"]} for feature in features], return_tensors="pt"
        )
        labels = texts["input_ids"].masked_fill(texts.attention_mask.ne(1), -100)
        if (labels[:, 0] == self.decoder_start_token_id).all():
            labels = labels[:, 1:]  # the model puts it in front again
        batch["labels"] = labels
        return batch


def prepare(processor: Any, manifest: Path) -> list[dict[str, Any]]:
    """The tutorial's prepare_dataset: every clip's features at 30 s and its label, beforehand."""
    from voxloop.steps.training.batches import read_rows, read_wav

    return [
        {
            "input_features": processor.feature_extractor(read_wav(row.path), sampling_rate=RATE).input_features[0],
            "labels": processor.tokenizer(row.text).input_ids,
        }
        for row in read_rows(manifest)
    ]


def peer_trainer(folder: Path, config: PeerConfig) -> Any:
    """transformers' Seq2SeqTrainer, as the tutorial sets it up, with the optimiser and the rate of `recipe`."""
    from transformers import (
        PrinterCallback,
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
        TrainerCallback,
        WhisperForConditionalGeneration,
        WhisperProcessor,
    )

    recipe = Recipe(**{k: tuple(v) if isinstance(v, list) else v for k, v in config.recipe.items()})
    processor: Any = WhisperProcessor.from_pretrained(config.base)
    model: Any = WhisperForConditionalGeneration.from_pretrained(config.base)
    start = model.config.decoder_start_token_id
    if recipe.method == "lora":
        from peft import LoraConfig, get_peft_model

        adapters = LoraConfig(
            r=recipe.lora_rank,
            lora_alpha=recipe.lora_alpha,
            lora_dropout=recipe.lora_dropout,
            target_modules=list(recipe.lora_targets),
            bias="none",
        )
        model = get_peft_model(model, adapters)
    args = Seq2SeqTrainingArguments(
        output_dir=str(folder),
        use_cpu=config.device == "cpu",
        bf16=recipe.precision == "bf16",
        max_steps=recipe.max_steps,
        per_device_train_batch_size=BATCH,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0,
        weight_decay=recipe.weight_decay,
        adam_beta1=recipe.beta1,
        adam_beta2=recipe.beta2,
        max_grad_norm=recipe.clip_norm,
        optim="adamw_torch_fused",
        seed=recipe.seed,
        save_strategy="no",
        eval_strategy="no",
        logging_steps=1,
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=True,
        report_to=[],
    )

    class Diary(TrainerCallback):  # type: ignore[misc]
        """A line after each step, as a run of ours writes them."""

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            if "loss" in logs:
                append_line(folder / METRICS, {"step": state.global_step, "loss": logs["loss"], "time": time.time()})

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
            control.should_training_stop = control.should_training_stop or asked_to_end
            return control

    asked_to_end: list[int] = []
    signal.signal(control.CONCLUDE, lambda number, _: asked_to_end.append(number))
    trainer = Seq2SeqTrainer(
        model=model,
        args=args,
        train_dataset=prepare(processor, Path(config.train)),
        data_collator=PaddingCollator(processor, start),
        processing_class=processor.feature_extractor,
        callbacks=[Diary()],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def run_peer(folder: Path) -> None:
    import torch

    config = PeerConfig(**read_json(folder / PEER))
    torch.set_num_threads(config.threads)
    trainer = peer_trainer(folder, config)
    trainer.train()
    if config.save:
        trainer.save_model(str(folder / "final"))
    gpu = torch.cuda.max_memory_allocated() >> 20 if torch.cuda.is_available() else None
    write_json(folder / "status.json", {"status": "completed", "peak_gpu_memory_mb": gpu})


# Turns ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Stretch:
    """Some steps of one side."""

    steps: int
    seconds: float
    losses: tuple[float, ...]
    wait_share: float | None  # of the time, spent on waiting for data; None where a side does not say

    @property
    def rate(self) -> float:
        """Clips a second."""
        return self.steps * BATCH / self.seconds


class Side:
    """A training process that makes steps only when it is told to."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self.folder = folder
        self.process = process
        self.seen = 0  # lines of metrics
        self.losses: list[float] = []
        self.peak = 0.0  # MB, when it was told to end

    def go(self, steps: int, *, patience_s: float = START_S) -> Stretch:
        """Let it make so many steps, and stop it again."""
        os.killpg(self.process.pid, signal.SIGCONT)
        began = time.time()
        lines: list[dict[str, Any]] = []
        while len(lines) < steps:
            if self.process.poll() is not None:
                raise SystemExit(f"{self.folder}: the process ended with {self.process.returncode}; its log is there")
            if time.time() - began > patience_s:
                raise SystemExit(f"{self.folder}: {len(lines)} of {steps} steps within {patience_s:g} s")
            time.sleep(POLL_S)
            lines += self._new()
        os.killpg(self.process.pid, signal.SIGSTOP)
        lines = [*lines, *self._new()]  # with quick steps, one may be done before the signal arrives
        losses = tuple(line["loss"] for line in lines)
        self.losses += losses
        # The first line counts the time that the process was stopped for.
        waits = [line["wait_share"] for line in lines[1:] if "wait_share" in line]
        return Stretch(
            steps=len(lines),
            seconds=lines[-1]["time"] - began,
            losses=losses,
            wait_share=sum(waits) / len(waits) if waits else None,
        )

    def _new(self) -> list[dict[str, Any]]:
        lines = [line for line in control.metrics(self.folder) if "loss" in line][self.seen :]
        self.seen += len(lines)
        return lines

    def loss(self, update: int) -> float:
        """Mean loss of an epoch's steps up to that update."""
        epoch = self.losses[max(0, update - CLIPS // BATCH) : update]
        return sum(epoch) / len(epoch)

    def peak_mb(self) -> float:
        """Most memory that the process ever held (Linux: VmHWM)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    def conclude(self) -> dict[str, Any]:
        """Have it end in an orderly way; its last words."""
        self.peak = self.peak_mb()
        os.killpg(self.process.pid, signal.SIGCONT)
        self.process.send_signal(control.CONCLUDE)
        self.process.wait(timeout=START_S)
        return read_json(self.folder / "status.json")

    def wait(self) -> None:
        """Until it has made all its steps. SystemExit where it failed."""
        if self.process.wait() != 0:
            raise SystemExit(f"{self.folder}: the process ended with {self.process.returncode}; its log is there")

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def ours(
    folder: Path,
    base: Path,
    manifest: Path,
    recipe: Recipe,
    *,
    budget_s: float | None = None,
    device: str = "cpu",
    threads: int = 2,
) -> Side:
    """Start a run of Voxloop's; a batch holds `budget_s`, or 8 of the longest clips."""
    recipe = replace(recipe, batch_seconds=budget_s or batch_seconds(manifest))
    lay_out(folder, base, manifest, recipe, device=device, threads=threads)
    child = control.start(folder, device=device, threads=threads)
    assert child.process is not None
    return Side(folder, child.process)


def peer(
    folder: Path,
    base: Path,
    manifest: Path,
    recipe: Recipe,
    *,
    device: str = "cpu",
    threads: int = 2,
    save: bool = False,
) -> Side:
    """Start the well-known recipe."""
    folder.mkdir(parents=True)
    config = PeerConfig(
        base=str(base), train=str(manifest), recipe=recipe.as_dict(), device=device, threads=threads, save=save
    )
    write_json(folder / PEER, asdict(config))
    # How threads wait is left as it is by default: spinning, which is the fastest where nothing else runs.
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    with (folder / "train.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.training_sides", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
        )
    return Side(folder, process)


if __name__ == "__main__":
    run_peer(Path(sys.argv[1]))
