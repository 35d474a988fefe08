"""Decode real speech with two real Whisper models, and keep the errors of every clip for `benchmarks.gate`.

    python -m benchmarks.gate_decode DATA [--out FOLDER]

`tiny.en` and `base` in int8 by CTranslate2: greedily, and `base` twice more at temperature 0.4 with other seeds. The
two sampled decodings are exchangeable, so neither is truly better: a real null. What is kept is not decoded again.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import fetch
from benchmarks.gate import scored
from voxloop.speech import text

SETS = {"torgo_en": 200, "kathleen_en": 120, "prompts_en": 180}  # clips at most
TEMPERATURE = 0.4
MOST_S = 29.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate_decode", description=__doc__)
    parser.add_argument("data", type=Path, help="folder that holds " + ", ".join(SETS))
    parser.add_argument("--out", type=Path, default=Path("build/gate"))
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for name, most in SETS.items():
        lines = [json.loads(line) for line in (given.data / name / "metadata.jsonl").read_text().splitlines()]
        lines = [line for line in lines if line["text"].strip() and line.get("duration", 1.0) < MOST_S][:most]
        for model in ("tiny.en", "base"):
            heard = given.out / f"{name}-{model}.texts.jsonl"
            if not heard.exists():
                found = _decode(given.data / name, lines, model, given.threads)
                heard.write_text("".join(f"{json.dumps(one, ensure_ascii=False)}\n" for one in found))
            _count(heard, lines, name, model, given.out)


def _decode(folder: Path, lines: list[dict[str, Any]], model: str, threads: int) -> list[dict[str, str]]:
    """What a model hears in each clip: by the way of decoding."""
    import ctranslate2
    from faster_whisper import WhisperModel, decode_audio
    from faster_whisper.tokenizer import Tokenizer

    loaded = WhisperModel(str(fetch(model)), device="cpu", compute_type="int8", cpu_threads=threads)
    many = loaded.model.is_multilingual
    tokenizer = Tokenizer(loaded.hf_tokenizer, many, task="transcribe", language="en")
    prompt = [*tokenizer.sot_sequence, tokenizer.no_timestamps]
    found = []
    for number, line in enumerate(lines):
        audio = decode_audio(str(folder / line["file"]))
        features = loaded.feature_extractor(audio, padding=1, chunk_length=30)[..., :3000]
        if features.shape[-1] < 3000:
            import numpy as np

            features = np.pad(features, [(0, 0), (0, 3000 - features.shape[-1])])
        states = loaded.encode(features)
        ways: dict[str, dict[str, Any]] = {"greedy": {}}
        if many:
            ways |= {f"sampled{seed}": {"seed": seed} for seed in (1, 2)}
        heard = {}
        for way, options in ways.items():
            sampling = {}
            if options:
                ctranslate2.set_random_seed(1_000_003 * options["seed"] + number)
                sampling = {"sampling_topk": 0, "sampling_temperature": TEMPERATURE}
            made = loaded.model.generate(
                states, [prompt], beam_size=1, max_length=len(prompt) + 100, suppress_blank=True, **sampling
            )
            heard[way] = tokenizer.decode([one for one in made[0].sequences_ids[0] if one < tokenizer.eot]).strip()
        found.append(heard)
        if number % 50 == 49:
            print(folder.name, model, number + 1, flush=True)
    return found


def _count(heard: Path, lines: list[dict[str, Any]], name: str, model: str, out: Path) -> None:
    found = [json.loads(line) for line in heard.read_text().splitlines()]
    for way in found[0]:
        left = [text.normalise(line["text"], "en") for line in lines]
        right = [text.normalise(one[way], "en") for one in found]
        counts = text.word_errors_each(left, right)
        rows = [
            scored(n, line["speaker"], f"r{n}", one.units, one.errors, line.get("duration", 3.0))
            for n, (line, one) in enumerate(zip(lines, counts, strict=True))
        ]
        label = model if way == "greedy" else f"{model}-{way}"
        whole = {"wer": sum(one.errors for one in counts) / sum(one.units for one in counts)}
        (out / f"{name}-{label}.jsonl").write_text(
            "".join(f"{json.dumps(line)}\n" for line in ({"scores": whole}, *map(asdict, rows)))
        )
        print(f"{name}, {label}: {whole['wer']:.1%} of {sum(one.units for one in counts)} words, {len(rows)} clips")


if __name__ == "__main__":
    main()
