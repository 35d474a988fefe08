"""Hearing: word errors of `voxloop transcribe` and of faster-whisper with the same real model, clip by clip.

Ours as it comes (voice detector, guards, CTranslate2 int8), the peer int8, without its detector and without time
stamps; both greedy, or with as many beams. What was heard is kept in OUT/hearing.jsonl, a row for each model, system
and file: a run that was stopped goes on from there, and a changed system is measured beside the old one under another
`--label`.

    python -m benchmarks hearing --models base --sets kathleen_en,torgo_en --clips 40
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.checkpoints import CHECKPOINTS, fetch
from benchmarks.side_by_side import machine

SETS = ("kathleen_en", "prompts_en", "sentences_mixed", "fosd_vi", "torgo_en")
PEER = "faster-whisper"
BEAMS = ", beam "
RESAMPLES = 2000  # of the clips, for the interval of the difference

Hear = Callable[[Path, str], str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What one system heard in one file, and its word errors."""

    model: str
    set: str
    file: str
    system: str
    text: str
    errors: int
    words: int
    deletions: int


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks hearing", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the folder of recorded speech")
    parser.add_argument("--models", default=",".join(CHECKPOINTS), help=f"of {', '.join(CHECKPOINTS)}")
    parser.add_argument("--sets", default=",".join(SETS), help=f"of {', '.join(SETS)}")
    parser.add_argument("--clips", type=int, default=80, help="of each set, spread over it")
    parser.add_argument("--label", default="voxloop", help="what our rows are called")
    parser.add_argument("--beams", type=int, default=1, help="of both sides; 1: greedy")
    parser.add_argument("--margin-ms", type=int, help="heard around a span at most; as shipped, where not given")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    given = parser.parse_args(arguments)
    if given.margin_ms is not None:
        from voxloop.steps import utterances

        utterances.MARGIN = given.margin_ms * 16
    kept = Kept(given.out / "hearing.jsonl")
    for model in given.models.split(","):
        folder = fetch(model)
        for name in given.sets.split(","):
            clips = _clips(given.data / name, given.clips, english=model.endswith(".en"))
            for system, opened in ((PEER, _peer), (given.label, _ours)):
                named = system + (f"{BEAMS}{given.beams}" if given.beams > 1 else "")
                _hear(kept, clips, model, name, named, partial(opened, folder, given.threads, given.beams))
    print(machine())
    print(table(kept.rows))


class Kept:
    """The rows of a file, which grows by one at a time."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.rows = [Row(**json.loads(line)) for line in lines]
        self._known = {(row.model, row.set, row.file, row.system) for row in self.rows}

    def has(self, model: str, set: str, file: str, system: str) -> bool:
        return (model, set, file, system) in self._known

    def add(self, row: Row) -> None:
        with self.path.open("a", encoding="utf-8") as out:
            out.write(json.dumps({name: getattr(row, name) for name in Row.__slots__}, ensure_ascii=False) + "\n")
        self.rows.append(row)
        self._known.add((row.model, row.set, row.file, row.system))


def _clips(folder: Path, count: int, *, english: bool) -> list[dict[str, Any]]:
    """Rows of a set, spread over it; with an English-only model those in English alone."""
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row.get("text") and (row["language"] == "en" or not english)]
    step = max(1, len(rows) // count)
    return [row | {"path": folder / row["file"]} for row in rows[::step][:count]]


def _hear(
    kept: Kept,
    clips: Sequence[dict[str, Any]],
    model: str,
    name: str,
    system: str,
    opened: Callable[[], Any],
) -> None:
    from voxloop.speech.text import normalise, word_errors_each

    missing = [clip for clip in clips if not kept.has(model, name, clip["file"], system)]
    if not missing:
        return
    with opened() as hear:
        for clip in missing:
            text = hear(clip["path"], clip["language"])
            sides = [[normalise(one, clip["language"])] for one in (clip["text"], text)]
            (found,) = word_errors_each(*sides)
            kept.add(
                Row(
                    model=model,
                    set=name,
                    file=clip["file"],
                    system=system,
                    text=text,
                    errors=found.errors,
                    words=found.units,
                    deletions=found.deletions,
                )
            )


@contextmanager
def _ours(folder: Path, threads: int, beams: int) -> Iterator[Hear]:
    from voxloop.pipeline import open_loop
    from voxloop.steps.transcripts import transcribe_file

    with TemporaryDirectory() as made:
        settings = {"base_model": str(folder), "engine": "ctranslate2", "threads": threads, "beams": beams}
        with open_loop(Path(made) / "workspace", create=True, **settings) as ws:
            yield lambda file, language: transcribe_file(ws, file, language=language).text


@contextmanager
def _peer(folder: Path, threads: int, beams: int) -> Iterator[Hear]:
    from faster_whisper import WhisperModel

    model = WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=threads)

    def hear(file: Path, language: str) -> str:
        found, _ = model.transcribe(str(file), language=language, beam_size=beams, without_timestamps=True)
        return "".join(segment.text for segment in found).strip()

    yield hear


def table(rows: Sequence[Row]) -> str:
    """A Markdown table of word error rates by model and set, each system of ours paired with the peer."""
    lines = ["| model | set | clips | words | peer | ours | | difference (95 %) | deletions peer / ours |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for system in dict.fromkeys(row.system for row in rows if not row.system.startswith(PEER)):
        peer = PEER + "".join(system.partition(BEAMS)[1:])
        for model in dict.fromkeys(row.model for row in rows):
            mine = [row for row in rows if row.model == model]
            names = list(dict.fromkeys(row.set for row in mine))
            for name in [*names, "all"]:
                chosen = [row for row in mine if name in ("all", row.set)]
                theirs = {(row.set, row.file): row for row in chosen if row.system == peer}
                ours = {(row.set, row.file): row for row in chosen if row.system == system}
                shared = [(theirs[key], ours[key]) for key in theirs if key in ours]
                if shared:
                    lines.append(_line(model, name, system, shared))
    return "\n".join(lines)


def _line(model: str, name: str, system: str, pairs: Sequence[tuple[Row, Row]]) -> str:
    counts = np.array([[peer.errors, ours.errors, peer.words] for peer, ours in pairs], dtype=float)
    peer, ours, words = counts.sum(axis=0)
    drawn = np.random.default_rng(0).integers(len(counts), size=(RESAMPLES, len(counts)))
    sums = counts[drawn].sum(axis=1)
    low, high = np.percentile(100 * (sums[:, 1] - sums[:, 0]) / sums[:, 2], [2.5, 97.5])
    deleted = " / ".join(str(sum(pair[side].deletions for pair in pairs)) for side in (0, 1))
    return (
        f"| {model} | {name} | {len(pairs)} | {words:.0f} | {100 * peer / words:.1f} | {100 * ours / words:.1f} "
        f"| {system} | {100 * (ours - peer) / words:+.2f} ({low:+.2f} to {high:+.2f}) | {deleted} |"
    )
