"""Personal vocabulary: how many of its words are heard, what it costs the others, and what is heard that nobody said.

Recorded sentences with rare words that a stock model mishears; lists of 10, 100 and 500 entries are these words and,
behind them, names that nobody says (names.txt). What was heard is kept in OUT/vocabulary.jsonl, a row for each model,
engine, way of decoding and file: a run that was stopped goes on from there.

    python -m benchmarks vocabulary --models base --engines ctranslate2-int8 --sizes 10,500
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.checkpoints import CHECKPOINTS, fetch
from benchmarks.side_by_side import machine

# By set: words of its texts that base or tiny.en writes otherwise somewhere, and names that they know.
SAID = {
    "kathleen_en": "Jeanne Raoul Pierre Howison Depew Philip Eileen Belize Chauncey Gregson",
    "kerstin_de": "Kurfürstendamm Godula-Schichten Minsk Kyang-yang Adrian Kittner Pöstlingberg Camerarius Kopenhagen "
    "Aalborg Karup Aarhus Falkenhain Nicäa Konstantinopel Sochumi Fitzsimons Eckhard Flöha Rogier Lubitsch Clauß",
}
NAMES = Path(__file__).with_name("names.txt")
WAYS = ("none", "prompt", "bias", "both")
OTHERS = 40  # clips of each set without any of its words
RESAMPLES = 2000  # of the clips, for intervals


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What was heard in one file in one way."""

    model: str
    engine: str
    beams: int
    way: str
    bonus: float
    size: int  # entries of the list
    set: str
    file: str
    said: int  # words of the list, as often as they are in the reference
    heard: int  # of them
    false: int  # words of the list that were heard and not said
    errors: int  # word errors
    words: int
    text: str


Key = tuple[str, str, int, str, float, int, str, str]


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks vocabulary", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the folder of recorded speech")
    parser.add_argument("--models", default="base", help=f"of {', '.join(CHECKPOINTS)}")
    parser.add_argument("--engines", default="ctranslate2-int8", help="torch, or ctranslate2-TYPE")
    parser.add_argument("--sets", default=",".join(SAID), help=f"of {', '.join(SAID)}")
    parser.add_argument("--sizes", default="10,100,500", help="entries of the lists")
    parser.add_argument("--ways", default=",".join(WAYS), help=f"of {', '.join(WAYS)}")
    parser.add_argument("--beams", default="1", help="1, 5 or both: 1,5")
    parser.add_argument("--bonus", default="2.0", help="one or more, for `bias` and `both`")
    parser.add_argument("--others", type=int, default=OTHERS, help="clips of a set without any of its words, at most")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    given = parser.parse_args(arguments)
    kept = Kept(given.out / "vocabulary.jsonl")
    for model in given.models.split(","):
        for engine in given.engines.split(","):
            for name in given.sets.split(","):
                if model.endswith(".en") and not name.endswith("_en"):
                    continue
                wanted = [
                    (model, engine, int(beams), way, bonus, size, name)
                    for beams in given.beams.split(",")
                    for way, bonus, size in _wanted(given.ways, given.bonus, given.sizes)
                ]
                _hear(kept, wanted, _clips(given.data / name, name, given.others), given.threads)
    print(machine())
    print(table(kept.rows))


def _wanted(ways: str, bonuses: str, sizes: str) -> Iterator[tuple[str, float, int]]:
    for way in ways.split(","):
        if way == "none":
            yield way, 0.0, 0
            continue
        for size in sizes.split(","):
            for bonus in bonuses.split(",") if way in ("bias", "both") else ("0",):
                yield way, float(bonus), int(size)


class Kept:
    """The rows of a file, which grows by one at a time."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.rows = [Row(**json.loads(line)) for line in lines]
        self.known = {_key(row) for row in self.rows}

    def add(self, row: Row) -> None:
        with self.path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")
        self.rows.append(row)
        self.known.add(_key(row))


def _key(row: Row) -> Key:
    return (row.model, row.engine, row.beams, row.way, row.bonus, row.size, row.set, row.file)


def listed(name: str, size: int) -> list[str]:
    """The words that are said in a set, then names that nobody says, up to a number of entries."""
    names = NAMES.read_text(encoding="utf-8").split()
    drawn = [names[index] for index in np.random.default_rng(0).permutation(len(names))]
    return list(dict.fromkeys([*SAID[name].split(), *drawn]))[:size]


def count(text: str, term: str, language: str) -> int:
    """How often a term stands in a text, both made comparable."""
    from voxloop.speech.text import normalise

    return f" {normalise(text, language)} ".replace(" ", "  ").count(
        f" {normalise(term, language).replace(' ', '  ')} "
    )


def _clips(folder: Path, name: str, others: int) -> list[dict[str, Any]]:
    """Every clip that says a word of its set's list, and some that do not."""
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) | {"path": folder / json.loads(line)["file"]} for line in lines]
    said = [row for row in rows if any(count(row["text"], term, row["language"]) for term in SAID[name].split())]
    rest = [row for row in rows if row not in said]
    return said + rest[:: max(1, len(rest) // max(1, others))][:others]


def _hear(kept: Kept, wanted: Sequence[tuple[Any, ...]], clips: Sequence[dict[str, Any]], threads: int) -> None:
    import torch

    from voxloop.families.decoding import Decoding, Guards, PersonalVocabulary, Term
    from voxloop.families.whisper import WHISPER
    from voxloop.speech.audio import decode
    from voxloop.speech.text import normalise, word_errors_each

    missing = [(clip, [one for one in wanted if (*one, clip["file"]) not in kept.known]) for clip in clips]
    if not any(left for _, left in missing):
        return
    model, engine = wanted[0][:2]
    torch.set_num_threads(threads)
    with TemporaryDirectory() as made:
        folder = Path(made) / "model"
        if engine == "torch":
            folder.mkdir()
            WHISPER.restore(fetch(model), folder)
            recogniser: Any = WHISPER.load(folder)
        else:
            WHISPER.convert(fetch(model), folder, engine.partition("-")[2])
            recogniser = WHISPER.load_converted(folder)
        for clip, left in missing:
            waveform, language = decode(clip["path"]), clip["language"]
            if left:
                _encoded_once(recogniser)
            for config in left:
                _, _, beams, way, bonus, size, name = config
                terms = tuple(map(Term, listed(name, size)))
                vocabulary = PersonalVocabulary(terms=terms, bonus=bonus, prompt=way in ("prompt", "both"))
                asked = Decoding(language=language, audio_context="full", beams=beams, guards=Guards())
                asked = replace(asked, vocabulary=vocabulary if terms else None)
                text = recogniser.transcribe([waveform], asked)[0].text
                words = listed(name, size or len(SAID[name].split()))  # without a list: what one would have been for
                counts = [(count(clip["text"], term, language), count(text, term, language)) for term in words]
                (found,) = word_errors_each([normalise(clip["text"], language)], [normalise(text, language)])
                kept.add(
                    Row(
                        **dict(zip(Row.__slots__[:7], config, strict=True)),
                        file=clip["file"],
                        said=sum(said for said, _ in counts),
                        heard=sum(min(pair) for pair in counts),
                        false=sum(max(0, heard - said) for said, heard in counts),
                        errors=found.errors,
                        words=found.units,
                        text=text,
                    )
                )


def _encoded_once(recogniser: Any) -> None:
    """Have a recogniser keep the encoder's states of the clip that comes next: they are the same in all ways."""
    encode, held = type(recogniser)._encode, []

    def once(clips: Any, context: Any) -> Any:
        if not held:
            held.append(encode(recogniser, clips, context))
        return held[0]

    recogniser._encode = once


def table(rows: Sequence[Row]) -> str:
    """A Markdown table: a line for each way, beside the same model and engine without a vocabulary."""
    lines = [
        "| model | engine | beams | set | vocabulary | bonus | entries | words heard | false | "
        "WER with a word, % | WER without, % | change without (95 %) |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        groups.setdefault((row.model, row.engine, row.beams, row.set, row.way, row.bonus, row.size), {})[row.file] = row
    for group in sorted(groups, key=lambda one: (*one[:4], WAYS.index(one[4]), *one[5:])):
        plain = groups.get((*group[:4], "none", 0.0, 0), {})
        # A clip belongs to the list by what is said of the ten words and more, whatever the size of the list.
        shared = [(plain[file], row) for file, row in groups[group].items() if file in plain]
        with_word = [pair for pair in shared if pair[1].said]
        without = [pair for pair in shared if not pair[1].said]
        heard, said, false = (sum(getattr(row, name) for _, row in shared) for name in ("heard", "said", "false"))
        model, engine, beams, name, way, bonus, size = group
        lines.append(
            f"| {model} | {engine} | {beams} | {name} | {way} | {bonus or '–'} | {size or '–'} | {heard} of {said} "
            f"| {false} | {_rate(with_word)} | {_rate(without)} | {_change(without)} |"
        )
    return "\n".join(lines)


def _rate(pairs: Sequence[tuple[Row, Row]]) -> str:
    words = sum(row.words for _, row in pairs)
    return f"{100 * sum(row.errors for _, row in pairs) / words:.1f}" if words else "–"


def _change(pairs: Sequence[tuple[Row, Row]]) -> str:
    """How far the word error rate changed, in points, with the bootstrap's interval over clips."""
    if not pairs:
        return "–"
    counts = np.array([[row.errors - plain.errors, row.words] for plain, row in pairs], dtype=float)
    drawn = np.random.default_rng(0).integers(len(counts), size=(RESAMPLES, len(counts)))
    sums = counts[drawn].sum(axis=1)
    low, high = np.percentile(100 * sums[:, 0] / sums[:, 1], [2.5, 97.5])
    return f"{100 * counts[:, 0].sum() / counts[:, 1].sum():+.2f} ({low:+.2f} to {high:+.2f})"
