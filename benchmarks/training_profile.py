"""Where the time of a training step goes, what it computes, and how fast this machine multiplies matrices at best.

    python -m benchmarks.training_profile RUN_DIR        prints both as JSON

Steps of Voxloop's own trainer, timed between marks: hooks of modules and of tensors, so that the backward pass is told
apart too. FLOPs are counted by torch in one more step, with attention as plain matrix products, since the counter does
not know the CPU's fused kernel. Letters: `B` batch, `E` encoder positions, `U` label tokens.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from benchmarks.training_sides import BATCH, PLAIN, SHAPES, Shape, batch_seconds, lay_out, write_model, write_noise
from voxloop.steps.training import control
from voxloop.steps.training.recipes import Precision

SECONDS: Final = 4.0
WARM: Final = 3
TIMED: Final = 10
REPEATS: Final = 15
OTHER: Final = "the rest"
ORDER: Final = (
    "data",
    "encoder, forward",
    "decoder, forward",
    "output layer and loss, with their gradients",
    "scaling of those gradients",
    "decoder, backward",
    "embedding, backward",
    "encoder, backward",
    "clipping of gradients",
    "optimiser",
    OTHER,
)


def forward_flops(shape: Shape, *, batch: int, positions: int, tokens: int) -> float:
    """Multiplications and additions in the matrix products of a forward pass, each counted as one."""
    d, hidden = shape.width, 4 * shape.width
    layer = 4 * d * d + 2 * d * hidden  # projections of attention, and the two layers behind it
    convolutions = 2 * positions * 3 * shape.mels * d + positions * 3 * d * d
    encoder = shape.encoder_layers * (positions * layer + 2 * positions**2 * d)
    crossing = 2 * tokens * d * d + 2 * positions * d * d + 2 * tokens * positions * d
    decoder = shape.decoder_layers * (tokens * layer + 2 * tokens**2 * d + crossing)
    return 2.0 * batch * (convolutions + encoder + decoder + tokens * d * shape.vocabulary)


class Clock:
    """Adds up time and FLOPs since the last mark under the mark's name."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.flops: dict[str, float] = {}
        self.counter: Any = None
        self.last = time.perf_counter()
        self.counted = 0.0
        self.current: dict[str, float] = {}

    def mark(self, name: str) -> None:
        now = time.perf_counter()
        self.current[name] = self.current.get(name, 0.0) + now - self.last
        if self.counter is not None:
            total = float(self.counter.get_total_flops())
            self.flops[name] = self.flops.get(name, 0.0) + total - self.counted
            self.counted = total
        self.last = time.perf_counter()

    def end_step(self) -> None:
        self.mark(OTHER)
        self.steps.append(self.current)
        self.current = {}
        self.last = time.perf_counter()


def run(folder: Path) -> dict[str, Any]:
    """Train as the run's folder says, and say where the time of a step went."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from voxloop.steps.training import recipes, trainer
    from voxloop.steps.training.journal import Journal
    from voxloop.steps.training.session import Session
    from voxloop.steps.training.state import LoopState, StopFlag, TrainingConfig

    config = TrainingConfig.load(folder)
    torch.set_num_threads(config.threads)
    session = Session(folder, config, recipes.from_dict(config.recipe), StopFlag(), LoopState())
    optimizer, journal = trainer.adamw(session), Journal(session)
    clock, counting = Clock(), ExitStack()
    shapes: dict[str, int] = {}

    def end_step(loss: Any, clips: int) -> None:
        Journal.heard(journal, loss, clips)
        clock.end_step()
        if journal.step == WARM + TIMED:
            counting.enter_context(sdpa_kernel(SDPBackend.MATH))
            known = {torch.ops.aten.addmm_: _in_place_flops}
            clock.counter = counting.enter_context(FlopCounterMode(display=False, custom_mapping=known))
        elif journal.step > WARM + TIMED:
            clock.counter = None
            counting.close()

    def after(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def marked(*args: Any, **kwargs: Any) -> Any:
            found = call(*args, **kwargs)
            clock.mark(name)
            return found

        return marked

    def before(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def marked(*args: Any, **kwargs: Any) -> Any:
            clock.mark(name)
            return call(*args, **kwargs)

        return marked

    def hook(module: Any, name: str, when_its_gradient_is_there: str) -> None:
        def done(_: Any, __: Any, output: Any) -> None:
            states = output if torch.is_tensor(output) else output.last_hidden_state
            shapes.setdefault(name, states.shape[0] * states.shape[1])
            if states.requires_grad:
                states.register_hook(lambda _: clock.mark(when_its_gradient_is_there))
            if name != "embedding":
                clock.mark(f"{name}, forward")

        if name != "embedding":
            module.register_forward_pre_hook(lambda *_: clock.mark(OTHER))
        module.register_forward_hook(done)

    whisper = session.trainable.model
    hook(whisper.model.encoder, "encoder", "embedding, backward")
    hook(whisper.model.decoder, "decoder", "scaling of those gradients")
    hook(whisper.model.decoder.embed_tokens, "embedding", "decoder, backward")
    session.on_device = after("data", session.on_device)
    session.accelerator.backward = before(ORDER[3], after("encoder, backward", session.accelerator.backward))
    optimizer.optimizer.register_step_pre_hook(lambda *_: clock.mark("clipping of gradients"))
    optimizer.optimizer.register_step_post_hook(lambda *_: clock.mark("optimiser"))
    journal.heard = end_step
    kind = torch.bfloat16 if session.precision == "bf16" else torch.float32
    ceilings = matmuls(shapes, whisper.config, kind)
    trainer.train(session, optimizer, journal)
    again = matmuls(shapes, whisper.config, kind)
    ceilings = {name: max(rate, ceilings.get(name, 0.0)) for name, rate in again.items()}
    timed = clock.steps[WARM : WARM + TIMED]
    return {
        "ms": {name: 1e3 * statistics.median(step.get(name, 0.0) for step in timed) for name in ORDER},
        "step_ms": 1e3 * statistics.median(sum(step.values()) for step in timed),
        "gflop": {name: clock.flops.get(name, 0.0) / 1e9 for name in ORDER},
        "ceilings": ceilings,
        "positions": shapes["encoder"],
        "tokens": shapes["decoder"],
    }


def _in_place_flops(out: Any, left: Any, right: Any, **_: Any) -> int:
    """Of a product that is added to `out`, which torch's counter does not know; its arguments are shapes."""
    return int(2 * left[0] * left[1] * right[1])


def matmuls(rows: dict[str, int], config: Any, kind: Any) -> dict[str, float]:
    """GFLOP/s of matrix products, the best of some tries: of the model's own sizes, and of large ones."""
    import torch

    sizes = [(2048, 2048, 2048)]
    if rows:
        d, hidden, n, u = config.d_model, config.encoder_ffn_dim, rows["encoder"], rows["decoder"]
        sizes += [(n, d, d), (n, d, hidden), (n, hidden, d), (u, d, config.vocab_size)]
    found = {}
    for n, k, m in sizes:
        left, right = torch.randn(n, k).to(kind), torch.randn(k, m).to(kind)
        times = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            torch.mm(left, right)
            times.append(time.perf_counter() - began)
        found[f"{n} x {k} by {k} x {m}"] = 2e-9 * n * k * m / min(times)
    return found


def measure(folder: Path, threads: int, precision: Precision) -> str:
    """Markdown: the table of a step at 4 s, full fine-tuning of whisper-tiny's shape."""
    write_model(folder / "base", SHAPES["whisper-tiny"])
    manifest = write_noise(folder / "speech", SECONDS)
    recipe = replace(PLAIN, max_steps=WARM + TIMED + 1, batch_seconds=batch_seconds(manifest), precision=precision)
    lay_out(folder / "run", folder / "base", manifest, recipe, device="cpu", threads=threads)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.training_profile", str(folder / "run")],
        stdout=subprocess.PIPE,
        text=True,
        env=control.environment(device="cpu", threads=threads),
        check=True,
    )
    return described(json.loads(done.stdout.splitlines()[-1]), precision)


def described(found: dict[str, Any], precision: Precision) -> str:
    """Markdown of what `run` found."""
    total_gflop, step_ms = sum(found["gflop"].values()), found["step_ms"]
    lines = [
        f"One step of full fine-tuning in {precision} at {SECONDS:g} s, {BATCH} clips, "
        f"{found['positions']} encoder positions and {found['tokens']} tokens: "
        f"{step_ms:.0f} ms, {total_gflop:.0f} GFLOP, {1e3 * total_gflop / step_ms:.0f} GFLOP/s "
        f"(medians of {TIMED} steps).",
        "",
        "| part of the step | ms | share | GFLOP | GFLOP/s |",
        "|---|---|---|---|---|",
    ]
    for name in ORDER:
        ms, gflop = found["ms"][name], found["gflop"][name]
        rate = f"{gflop / ms * 1e3:.0f}" if gflop > 0.01 else ""
        counted = f"{gflop:.1f}" if gflop > 0.01 else ""
        lines.append(f"| {name} | {ms:.0f} | {ms / step_ms:.0%} | {counted} | {rate} |")
    ceilings = ", ".join(f"{name}: {rate:.0f}" for name, rate in found["ceilings"].items())
    return "\n".join(
        [*lines, "", f"Matrix products alone, in the same process, GFLOP/s, the best of many: {ceilings}."]
    )


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]))))
