"""Train one recipe on the same clips with other seeds, and keep what every model heard.

    python -m benchmarks.gate_runs DATA

Models that differ in nothing but the seed are equally good on average, so the gate should promote hardly any of them
over another (A/A runs). What they and the starter heard of several voices is kept as well: `benchmarks.gate` draws test
sets from it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from voxloop.pipeline import open_loop
from voxloop.records import Recording
from voxloop.steps import datasets, evaluation, training
from voxloop.steps.recordings import ingest
from voxloop.steps.utterances import segment
from voxloop.workspace import Workspace

CLIPS = 50  # learnt from
STEPS = 120
HELD_OUT = "theo"  # the starter never heard him


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate_runs", description=__doc__)
    parser.add_argument("data", type=Path, help="folder that holds digits_en and prompts_en")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("build/gate"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    tuned = _train(given.data / "digits_en", given.out, given.seeds)
    for name, speakers in (("digits_en", None), ("prompts_en", None)):
        with _opened(given.out / f"workspace-{name}", given.data / name, speakers) as ws:
            dataset = datasets.build(ws, name="all", ratios=(0.0, 0.0, 1.0))
            for model in ("starter", *tuned[:2]):
                _keep(ws, model, dataset.id, given.out / f"{name}-{Path(model).name}.jsonl")


def _opened(folder: Path, speech: Path, speakers: list[str] | None) -> Workspace:
    ws = open_loop(folder, create=True, threads=1, device="cpu", min_clip_s=0.1, min_snr_db=-99.0)
    ingest(ws, speech, speakers=speakers, processes=1)
    with ws.read() as reader:
        segment(ws, [recording.id for recording in reader.all(Recording)])
    return ws


def _train(speech: Path, out: Path, seeds: int) -> list[str]:
    """Folders of the models, one a seed, each evaluated on the speaker's unseen clips."""
    with _opened(out / "workspace-runs", speech, [HELD_OUT]) as ws:
        dataset = datasets.build(ws, ratios=(0.14, 0.06, 0.8), train_limit=CLIPS)
        _keep(ws, "starter", dataset.id, out / "runs-starter.jsonl")
        folders = []
        for seed in range(1, seeds + 1):
            bounds = [f"max_steps={STEPS}", "max_seconds=none", "eval_steps=40", "eval_seconds=none", f"seed={seed}"]
            run = training.train(ws, dataset=dataset.id, base="starter", recipe="quick", overrides=bounds)
            assert run.model is not None
            _keep(ws, run.model, dataset.id, out / f"runs-seed{seed}.jsonl")
            made = out / f"seed{seed}"
            (ws.runs / run.id / "best").rename(made)
            folders.append(str(made))
    return folders


def _keep(ws: Workspace, model: str, dataset: str, to: Path) -> None:
    found = evaluation.evaluate(ws, model, dataset=dataset)
    rows = evaluation.scored_rows(ws, found)
    scores = {"scores": found.scores}
    to.write_text("".join(f"{json.dumps(line)}\n" for line in (scores, *map(asdict, rows))))
    print(to, f"{found.scores['wer']:.2%} of {found.scores['words']} words, {len(rows)} clips", flush=True)


if __name__ == "__main__":
    main()
