"""Build the starter anew: `python -m voxloop.starter.build --data ../shared/data --leave-out theo --out DIR`.

Cross-entropy with label smoothing on the decoder plus CTC on the encoder (whose head is discarded), AdamW with a cosine
schedule, and an exponential average of the weights. Without real speech it trains only on synthetic voices and says so.
"""

import argparse
import copy
import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from voxloop.starter import corpus, measure, network, synthesis
from voxloop.starter.corpus import Clip
from voxloop.starter.examples import Batch, Batches, Mixer, Stage

ALPHABET: Final = " abcdefghijklmnopqrstuvwxyz'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Every number of the recipe; saved with the metrics."""

    seed: int = 1
    steps: int = 5_200
    """Optimiser steps of the first round, unless its minutes end first."""
    minutes: float = 50.0
    learning_rate: float = 1.5e-3
    polish_steps: int = 2_400
    """The second round: every example at an uneven pace, the decoder's loss alone."""
    polish_minutes: float = 20.0
    polish_rate: float = 6e-4
    width: int = 128
    heads: int = 4
    encoder_layers: int = 4
    decoder_layers: int = 2
    dropout: float = 0.0
    """While training; the shipped configuration says 0."""
    warmup: int = 200
    weight_decay: float = 0.01
    label_smoothing: float = 0.05
    ctc_weight: float = 0.5
    """After the easy part, where it is 1: the encoder has to learn first that time goes one way."""
    frame_budget: int = 2_200
    """Mel frames in a batch (22 s): small, because on a processor many small steps teach more than few large ones."""
    easy_share: float = 0.16
    """The first part of the training hears single digits and short words alone, in small batches."""
    clean_share: float = 0.08
    """Until here nothing is disturbed; the disturbances then grow to their full strength."""
    full_strength_from: float = 0.55
    uneven_share: float = 0.5
    """Of the examples after the easy part, at full strength: an uneven pace. Without it a slow speaker's digits are
    counted twice."""
    easy_frame_budget: int = 1_600
    margin_from: float = 0.6
    """Until this part of the training the silence behind clips is shorter than the 0.64 s of use: less to compute."""
    largest_batch: int = 48
    window_every: int = 40
    """Every so many steps a batch padded to 30 s, as stock Whisper pads."""
    window_batch: int = 2
    window_from: float = 0.3
    average: float = 0.998
    """Decay of the weights' running average."""
    synthetic_clips: int = 8_000


def say(line: str) -> None:
    """Print a line of progress immediately."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One pass of the learning rate from its peak to almost 0."""

    steps: int
    minutes: float
    """The rate falls with whichever of the two is further on."""
    learning_rate: float
    polish: bool
    """Uneven pace, decoder loss alone."""


def train(
    clips: list[Clip],
    recipe: Recipe,
    *,
    device: str,
    start: Any = None,
    log: Callable[[str], object] = say,
) -> tuple[Any, dict[str, float]]:
    """Return the trained model and its metrics; a `start` (a model of the first round) only gets the last round."""
    torch.manual_seed(recipe.seed)
    rounds = [
        Round(steps=recipe.steps, minutes=recipe.minutes, learning_rate=recipe.learning_rate, polish=False),
        Round(steps=recipe.polish_steps, minutes=recipe.polish_minutes, learning_rate=recipe.polish_rate, polish=True),
    ]
    model = start or network.new_model(
        width=recipe.width,
        heads=recipe.heads,
        encoder_layers=recipe.encoder_layers,
        decoder_layers=recipe.decoder_layers,
        dropout=recipe.dropout,
    )
    model = model.to(device)
    mixer = Mixer(clips, seed=recipe.seed)
    began = time.monotonic()
    spent: dict[str, float] = {}
    for part in rounds[1:] if start else rounds:
        if part.minutes <= 0:
            continue
        spent["polish_steps" if part.polish else "steps"] = _learn(model, mixer, recipe, part, device, log)
    return model, spent | {"train_s": round(time.monotonic() - began, 1)}


def _learn(model: Any, mixer: Mixer, recipe: Recipe, part: Round, device: str, log: Callable[[str], object]) -> int:
    """Train `model` for one round, leave the average of its weights in it, and say how many steps it took."""
    head = nn.Linear(recipe.width, len(ALPHABET) + 1).to(device)
    trained = [weight for weight in (*model.parameters(), *head.parameters()) if weight.requires_grad]
    optimiser = torch.optim.AdamW(
        trained, lr=part.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay, fused=True
    )
    averaged = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    batches = Batches(mixer, stage=_stage(0.0, recipe, part), largest=recipe.largest_batch)
    started = time.monotonic()
    step, done, decoder_mean, encoder_mean = 0, 0.0, 0.0, 0.0
    model.train()
    while done < 1:
        batches.stage = _stage(done, recipe, part)
        windowed = (part.polish or done > recipe.window_from) and step % recipe.window_every == 0
        batch = batches.full_window(count=recipe.window_batch) if windowed else batches.draw()
        falling = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))
        rate = part.learning_rate * min((step + 1) / recipe.warmup, falling)
        for group in optimiser.param_groups:
            group["lr"] = rate
        decoder_loss, encoder_loss = _losses(model, head, batch, recipe, device, with_ctc=not part.polish)
        # The encoder has to learn first that time goes one way; a polished one knows.
        weight = 1.0 if batches.stage.easy else recipe.ctc_weight
        optimiser.zero_grad(set_to_none=True)
        (decoder_loss + weight * encoder_loss).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        step += 1
        keep = min(recipe.average, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, value in model.named_parameters():
                averaged[name].lerp_(value, 1 - keep)
        fresh = 1.0 if step == 1 else 0.02
        decoder_mean += fresh * (decoder_loss.item() - decoder_mean)
        encoder_mean += fresh * (encoder_loss.item() - encoder_mean)
        elapsed = time.monotonic() - started
        done = max(step / part.steps, elapsed / (60 * part.minutes))
        if step % 100 == 0 or done >= 1:
            left_min = elapsed / 60 * (1 - done) / max(done, 1e-9)
            log(
                f"{'polish' if part.polish else 'step'} {step:5d}  decoder {decoder_mean:.3f}  "
                f"encoder {encoder_mean:.3f}  rate {rate:.1e}  "
                f"{elapsed / 60:5.1f} min, about {max(0.0, left_min):.1f} left"
            )
    model.load_state_dict(averaged, strict=False)  # the tied output layer follows the embedding
    model.eval()
    return step


def _stage(done: float, recipe: Recipe, part: Round) -> Stage:
    """The stage to draw from once `done` (0 to 1) of the round is over."""
    if part.polish:
        return Stage(easy=False, strength=1.0, margin_s=(0.62, 0.9), frame_budget=recipe.frame_budget, uneven=1.0)
    strength = min(1.0, max(0.0, (done - recipe.clean_share) / (recipe.full_strength_from - recipe.clean_share)))
    if done < recipe.easy_share:
        margin_s, budget = (0.1, 0.3), recipe.easy_frame_budget
    else:
        margin_s, budget = (0.1, 0.5) if done < recipe.margin_from else (0.62, 0.9), recipe.frame_budget
    return Stage(
        easy=done < recipe.easy_share,
        strength=strength,
        margin_s=margin_s,
        frame_budget=budget,
        uneven=0.0 if done < recipe.easy_share else recipe.uneven_share * strength,
    )


def _losses(
    model: Any, head: nn.Linear, batch: Batch, recipe: Recipe, device: str, *, with_ctc: bool
) -> tuple[Tensor, Tensor]:
    """Cross-entropy per token of the decoder; CTC per character of the encoder."""
    state = network.encode(model, batch.features.to(device), batch.frames)
    inputs, labels = network.token_batch(batch.texts)
    logits = network.decode(model, state, inputs.to(device))
    decoder_loss = functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten().to(device), label_smoothing=recipe.label_smoothing
    )
    if not with_ctc:
        return decoder_loss, torch.zeros((), device=device)
    targets = [[ALPHABET.index(letter) + 1 for letter in text] for text in batch.texts]
    lengths = torch.tensor([len(target) for target in targets])
    encoder_loss = functional.ctc_loss(
        head(state).float().log_softmax(dim=-1).transpose(0, 1),
        torch.tensor([letter for target in targets for letter in target], dtype=torch.long).to(device),
        (batch.frames // 2).to(device),
        lengths.to(device),
        zero_infinity=True,
        reduction="none",
    )
    return decoder_loss, encoder_loss.sum() / max(1, int(lengths.sum()))


def save(model: Any, folder: Path) -> None:
    """The model as half-precision safetensors with its tokenizer; loads to float32 by default."""
    network.save_processor(folder)
    shipped = copy.deepcopy(model).half()
    shipped.config.dropout = 0.0
    shipped.config.dtype = torch.float32  # what from_pretrained turns the stored halves into
    shipped.save_pretrained(folder)
    # save_pretrained writes the stored precision; readers should compute in float32.
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def scores(model: Any, data: Path | None, *, speakers: list[str], seed: int) -> dict[str, dict[str, float]]:
    """Word error rates on each speaker's digits, single and joined, and on synthetic voices nobody trained on."""
    found: dict[str, dict[str, float]] = {}
    clips = corpus.real_speech(data) if data else []
    for speaker in speakers:
        own = [clip for clip in clips if clip.speaker == speaker and clip.kind == "digit"]
        if own:
            found[speaker] = {
                "digits": round(measure.word_error_rate(model, measure.singles(own)), 4),
                "strings": round(measure.word_error_rate(model, measure.strings(own, count=150, seed=seed)), 4),
            }
    unheard = corpus.unheard_synthetic(seed=seed + 1_000)
    found["unheard synthetic voices"] = {
        kind: round(measure.word_error_rate(model, measure.singles([c for c in unheard if c.kind == kind])), 4)
        for kind in ("digit", "digits", "phrase")
    }
    return found


def main() -> None:
    """Parse the command line, build, measure, write."""
    usual = Recipe()
    parser = argparse.ArgumentParser(description="Build the starter model.")
    parser.add_argument("--data", type=Path, help="folder of real speech (digits_en, prompts_en, keywords_en)")
    parser.add_argument("--leave-out", action="append", default=[], metavar="SPEAKER", help="never heard; measured")
    parser.add_argument("--out", type=Path, default=Path("build/starter/model"), help="folder for the model")
    parser.add_argument("--cache", type=Path, default=Path("build/starter"), help="where synthetic speech is kept")
    parser.add_argument("--minutes", type=float, default=usual.minutes, help="of the first round at most")
    parser.add_argument("--polish-minutes", type=float, default=usual.polish_minutes, help="of the second at most")
    parser.add_argument("--steps", type=int, default=usual.steps, help="of the first round at most")
    parser.add_argument("--polish-steps", type=int, default=usual.polish_steps, help="of the second at most")
    parser.add_argument("--polish", type=Path, metavar="MODEL", help="skip the first round: start from its model")
    parser.add_argument("--seed", type=int, default=usual.seed)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="processor threads")
    asked = parser.parse_args()
    recipe = Recipe(
        seed=asked.seed,
        steps=asked.steps,
        minutes=asked.minutes,
        polish_steps=asked.polish_steps,
        polish_minutes=asked.polish_minutes,
    )
    start = network.load_model(asked.polish) if asked.polish else None
    torch.set_num_threads(asked.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    began = time.monotonic()
    clips = corpus.synthetic_speech(asked.cache, count=recipe.synthetic_clips, seed=recipe.seed, workers=asked.threads)
    say(f"{len(clips)} synthetic clips, {_minutes(clips):.0f} minutes")
    real = corpus.real_speech(asked.data, leave_out=asked.leave_out, report=say) if asked.data else []
    if real:
        say(f"{len(real)} real clips, {_minutes(real):.0f} minutes, without {asked.leave_out or 'exception'}")
    else:
        say("no real speech was given: training on synthetic voices alone, which real speakers will notice")
    model, spent = train(clips + real, recipe, device=device, start=start)
    save(model, asked.out)
    model = model.to("cpu")
    result = {
        "recipe": asdict(recipe),
        "leave_out": asked.leave_out,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "real_clips": len(real),
        **spent,
        "word_error_rates": scores(model, asked.data, speakers=asked.leave_out, seed=0),
        "total_s": round(time.monotonic() - began, 1),
    }
    (asked.out / "metrics.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    say(json.dumps(result["word_error_rates"], indent=2))


def _minutes(clips: list[Clip]) -> float:
    return sum(len(clip.samples) for clip in clips) / synthesis.SAMPLE_RATE / 60


if __name__ == "__main__":
    main()
