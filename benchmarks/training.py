"""Training: what `voxloop train` runs, against transformers' Seq2SeqTrainer with 30 s of padding, 8 clips to a step.

    python -m benchmarks training                              every part, one after the other
    python -m benchmarks training --part 4s --rounds 3         one of them; the others stay as they were measured

Each part keeps its rows in build/bench/training/PART.json, and the table is made of all that are there.

- `0.5s`, `4s`, `12s`: whisper-tiny's shape with random weights on clips of that length (`training_sides.py`).
- `wer`: what the starter makes of a speaker's unseen digits and strings of them after the same number of updates, for
  three seeds. It needs recorded digits (`--data`), and is left out where there are none.
- `profile`: where the time of a step goes at 4 s, and what the limit is (`training_profile.py`).
- `gpu`: whisper-large-v3-turbo's shape in bf16, for `--device cuda`. It has not been run on a GPU yet; its code runs on
  a CPU with `--part gpu --shape smallest --device cpu`.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from benchmarks import results, training_profile, training_wer
from benchmarks.side_by_side import Row, machine, paired, rows_table, write
from benchmarks.training_sides import (
    BATCH,
    CLIPS,
    PLAIN,
    SHAPES,
    Side,
    batch_seconds,
    ours,
    peer,
    write_model,
    write_noise,
)
from benchmarks.training_wer import SEEDS
from voxloop.steps.training.recipes import Precision
from voxloop.steps.training.session import bf16_in_hardware

PARTS: Final = ("0.5s", "4s", "12s", "wer", "profile", "gpu")
LENGTHS_S: Final = {"0.5s": 0.5, "4s": 4.0, "12s": 12.0}
THREADS: Final = 2
PEER: Final = "peer"
PEER_BF16: Final = "Seq2SeqTrainer in bf16"
PEER_LORA: Final = "Seq2SeqTrainer with peft's LoRA at 30 s"
LORA: Final[dict[str, Any]] = {"method": "lora", "lora_targets": ("q_proj", "v_proj")}
# Stated for every side, so that a row is the same on every machine; `auto` of a model of this size is bf16 where the
# CPU has AMX.
PEERS: Final[dict[str, dict[str, Any]]] = {
    PEER: {"precision": "fp32"},
    PEER_BF16: {"precision": "bf16"},
    PEER_LORA: LORA | {"precision": "fp32"},
}
PEER_STEPS: Final = 1  # of a round: 30 s of padding for 8 clips take 10 s
EPOCH: Final = CLIPS // BATCH
MEMORY: Final = "MB (less is better)"
COPIES: Final = 4  # epochs of different augmentation whose encoder outputs are kept

NOTES: Final = """Ours is the process that `voxloop train` starts; the peer is transformers' Seq2SeqTrainer with
WhisperFeatureExtractor's padding to 30 s, its features computed beforehand. Both begin with the same random weights
(or the starter, where words are counted), hear the same clips without augmentation, 8 to a step, and learn by the
same loss, fused AdamW and rate, on two threads; a test holds them equal, batch for batch, where ours pads to 30 s as
well. Each is a process of its own that is stopped while it is the other's turn. Losses are those after as many
updates as the peer made, of noise, and say only that both sides learn; error rates are of recorded digits. Clips are
up to 5 % shorter or longer than the row says, so that batches have padding, as buckets of similar length leave it.
Memory is the most that a process held.

The peer computes in fp32, as it does on a CPU when it is not told otherwise, and in bf16 where a row says so. Ours
computes a model of this size in bf16 by itself where the CPU has AMX, as this one; the rows without it are what other
CPUs give. Error rates are the starter's, which is trained in fp32 by itself, since it is too small to gain.

Full fine-tuning at 4 s in fp32 can reach about its target of 7 times: its FLOPs are 7.1 times fewer. Its memory misses
35 %, since libraries, weights, gradients and AdamW's averages alone take 1.0 GB of the 1.2 that this is. What the limit
is, and what was tried, stands in docs/log.md."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one part found."""

    rows: list[Row] = field(default_factory=list)
    text: str = ""
    """Markdown below the table."""
    machine: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """One way of training, as a row of the table."""

    name: str
    settings: dict[str, Any]
    steps: int  # of a round: some seconds
    before: int = EPOCH  # steps that come first and are not timed
    peers: tuple[str, ...] = (PEER,)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", action="append", choices=PARTS, help="only this one; may be given more than once")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--data", type=Path, default=training_wer.DATA, help="folder with digits_en")
    parser.add_argument("--seed", action="append", type=int, help="of the part wer: only this one; others are kept")
    parser.add_argument("--device", default="cpu", help="of the part gpu: cuda, or cpu to try the code")
    parser.add_argument("--shape", choices=SHAPES, default="whisper-large-v3-turbo", help="of the part gpu")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="of the GPU in bf16; an H100 has 989")
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # no stopped process may be left behind
    kept = given.out / "training"
    kept.mkdir(parents=True, exist_ok=True)
    for name in given.part or [part for part in PARTS if part != "gpu" or given.device != "cpu"]:
        found = _measure(name, given)
        if found is not None:
            found = replace(found, machine=machine())
            (kept / f"{name}.json").write_text(json.dumps(asdict(found), indent=2) + "\n", encoding="utf-8")
            print(rows_table(found.rows), found.text, sep="\n")
    parts = {name: _read(kept / f"{name}.json") for name in PARTS if (kept / f"{name}.json").exists()}
    body = section(parts)
    results.put(results.PATH, "training", body)
    print(write(given.out / "training.json", [row for part in parts.values() for row in part.rows]))


def _read(path: Path) -> Part:
    values = json.loads(path.read_text(encoding="utf-8"))
    return Part(**values | {"rows": [Row(**row) for row in values["rows"]]})


def section(parts: dict[str, Part]) -> str:
    """Markdown: one table of all rows, then what each part says, and where and when it was measured."""
    rows = [row for part in parts.values() for row in part.rows]
    measured: dict[str, list[str]] = {}
    for name, part in parts.items():
        measured.setdefault(part.machine, []).append(name)
    where = [f"{', '.join(names)}: {said}" for said, names in measured.items()]
    texts = [part.text for part in parts.values() if part.text]
    return "\n\n".join([*where, rows_table(rows), NOTES, *texts])


def _measure(name: str, given: argparse.Namespace) -> Part | None:
    with tempfile.TemporaryDirectory(prefix="voxloop-training-") as temporary:
        folder = Path(temporary)
        if name == "wer":
            rows, text = training_wer.measure(
                folder, given.data, given.out / "training" / "wer.jsonl", threads=THREADS, seeds=given.seed or SEEDS
            )
            return Part(rows=rows, text=text) if rows else None
        shape = given.shape if name == "gpu" else "whisper-tiny"
        write_model(folder / "base", SHAPES[shape])
        if name == "profile":
            kinds: list[Precision] = ["fp32", "bf16"] if bf16_in_hardware(on_gpu=False) else ["fp32"]
            return Part(text="\n\n".join(training_profile.measure(folder / kind, THREADS, kind) for kind in kinds))
        if name == "gpu":
            return _on_gpu(folder, given)
        return _lengths(folder, LENGTHS_S[name], given.rounds)


# Rates and memory ----------------------------------------------------------------------------------------------------


def ways(seconds: float) -> list[Way]:
    """The rows of a length; those in bf16 where the CPU multiplies it faster."""
    steps = {0.5: 8, 4.0: 3, 12.0: 2}[seconds]
    made = [Way(name="full fine-tune", settings={"precision": "fp32"}, steps=steps)]
    if seconds > 1:
        made.append(
            Way(
                name=f"encoder frozen, {COPIES} copies of its outputs kept",
                settings={"precision": "fp32", "freeze_encoder": True, "encoder_copies": COPIES},
                steps={4.0: 8, 12.0: 5}[seconds],
                before=COPIES * EPOCH + 1,
            )
        )
    if seconds == 4:
        made.append(Way(name="LoRA", settings=LORA | {"precision": "fp32"}, steps=4, peers=(PEER, PEER_LORA)))
    if not bf16_in_hardware(on_gpu=False):
        return made
    bf16: dict[str, Any] = {"precision": "bf16"}
    made.append(Way(name="full fine-tune in bf16", settings=bf16, steps=2 * steps, peers=(PEER, PEER_BF16)))
    if seconds == 4:
        thrifty = {"gradient_checkpointing": True}
        made.append(
            Way(name="full fine-tune in bf16, activations computed twice", settings=bf16 | thrifty, steps=2 * steps)
        )
        made.append(Way(name="LoRA in bf16", settings=LORA | bf16, steps=8))
    return made


def _lengths(folder: Path, seconds: float, rounds: int) -> Part:
    """Rates of every way against the peer, in turn, and the memory of full fine-tuning on both sides."""
    manifest = write_noise(folder / "speech", seconds)
    base = folder / "base"
    made = ways(seconds)
    sides: dict[str, Side] = {}
    rates: dict[str, list[float]] = {}
    waits: dict[str, list[float]] = {}
    lines: list[str] = []
    steps = {way.name: way.steps for way in made}
    try:
        for number, name in enumerate(name for name in PEERS if any(name in way.peers for way in made)):
            recipe = replace(PLAIN, **PEERS[name])
            sides[name] = peer(folder / f"peer-{number}", base, manifest, recipe, threads=THREADS)
            sides[name].go(1)
        for number, way in enumerate(made):
            recipe = replace(PLAIN, **way.settings)
            sides[way.name] = ours(folder / f"ours-{number}", base, manifest, recipe, threads=THREADS)
            sides[way.name].go(1)
            first = sides[way.name].go(way.before - 1)
            if way.settings.get("encoder_copies"):
                lines.append(
                    f"{way.name}: {first.rate:.2f} clips/s in the first {COPIES} epochs, which make the copies."
                )
        for _ in range(rounds):
            for name, side in sides.items():
                side.go(1)  # not timed: memory that lay idle meanwhile has to come back
                stretch = side.go(steps.get(name, PEER_STEPS))
                rates.setdefault(name, []).append(stretch.rate)
                print(f"{name}: {stretch.steps} steps, {stretch.rate:.2f} clips/s", flush=True)
                if stretch.wait_share is not None:
                    waits.setdefault(name, []).append(stretch.wait_share)
        # As many updates as the peer has made by then, for the losses.
        updates = len(sides[PEER].losses)
        for side in sides.values():
            if len(side.losses) < updates:
                side.go(updates - len(side.losses))
        clips = f"{seconds:g} s clips"
        rows = []
        for way in made:
            for other in way.peers:
                rows.append(
                    paired(
                        f"{way.name}, {clips}" + ("" if other == PEER else f", against {other}"),
                        rates[way.name],
                        rates[other],
                        unit="clips/s",
                        quality_ours=f"loss {sides[way.name].loss(updates):.3f}",
                        quality_peer=f"loss {sides[other].loss(updates):.3f}",
                    )
                )
        for way in made:
            memory = [sides[way.name].peak_mb()], [sides[PEER].peak_mb()]
            rows.append(paired(f"{way.name}, {clips}: peak memory", *memory, unit=MEMORY))
        shares = ", ".join(f"{name} {statistics.median(found):.1%}" for name, found in waits.items())
        lines.append(f"{clips}, share of the time that is spent on waiting for data: {shares}.")
        return Part(rows=rows, text="\n".join(f"- {line}" for line in lines))
    finally:
        for side in sides.values():
            side.kill()


# On a GPU ------------------------------------------------------------------------------------------------------------


def _on_gpu(folder: Path, given: argparse.Namespace) -> Part:
    """Rates, memory and model FLOP utilisation of a large model, full and LoRA. Not yet run on a GPU."""
    precision = "fp32" if given.device == "cpu" else "bf16"
    rows, lines = [], []
    for seconds in (4.0, 12.0):
        manifest = write_noise(folder / f"speech-{seconds:g}", seconds)
        for method in ("full", "lora"):
            name = (
                f"{given.shape}, {precision}, {'LoRA' if method == 'lora' else 'full fine-tune'}, {seconds:g} s clips"
            )
            recipe = replace(PLAIN, method=method, precision=precision)
            at, rates, memory = folder / f"{seconds:g}-{method}", {}, {}
            started = {"ours": ours, "peer": peer}
            sides: dict[str, Side] = {}
            try:
                for who, start in started.items():
                    place = at / who
                    sides[who] = start(place, folder / "base", manifest, recipe, device=given.device, threads=THREADS)
                    sides[who].go(EPOCH)
                for _ in range(given.rounds):
                    for who, side in sides.items():
                        rates.setdefault(who, []).append(side.go(2 * EPOCH).rate)
                for who, side in sides.items():
                    memory[who] = float(side.conclude().get("peak_gpu_memory_mb") or side.peak)
            finally:
                for side in sides.values():
                    side.kill()
            losses = {f"quality_{who}": f"loss {side.loss(2 * EPOCH):.3f}" for who, side in sides.items()}
            rows.append(paired(name, **rates, unit="clips/s", **losses))
            rows.append(paired(f"{name}: peak memory", [memory["ours"]], [memory["peer"]], unit=MEMORY))
            used = _utilisation(given, manifest, method, statistics.median(rates["ours"]))
            lines.append(f"- {name}: model FLOP utilisation {used:.1%} of {given.peak_tflops:g} TFLOP/s.")
    return Part(rows=rows, text="\n".join(lines))


def _utilisation(given: argparse.Namespace, manifest: Path, method: str, rate: float) -> float:
    """Share of the GPU's matrix products that the model needs: three forward passes' worth, two with LoRA."""
    tokens = max(len(json.loads(line)["text"]) for line in manifest.read_text().splitlines()) + 2
    positions = round(batch_seconds(manifest) / BATCH * 50)
    flops = training_profile.forward_flops(SHAPES[given.shape], batch=1, positions=positions, tokens=tokens)
    return flops * (2 if method == "lora" else 3) * rate / (given.peak_tflops * 1e12)
