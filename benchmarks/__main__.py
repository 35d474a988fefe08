"""Run the benchmarks named, or all that compare speeds: tables, build/bench/NAME.json, and sections of RESULTS.md.

`training`, `transcription` and `learning` have options of their own: `python -m benchmarks training --help`. `learning`
needs speech and starters, and is not among all.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from benchmarks import learning, results, training, transcription
from benchmarks.side_by_side import Row, table, write

NAMES = ("training", "transcription", "ingest", "growth")


def main() -> None:
    own = {"learning": learning.main, "training": training.main, "transcription": transcription.main}.get(
        *sys.argv[1:2] or [""]
    )
    if own is not None:
        own(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all where none is named")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    given = parser.parse_args()
    for name in given.names or NAMES:
        if name not in NAMES:
            parser.error(f"there is no benchmark {name!r}; known: {', '.join(NAMES)}")
        if parted := {"training": training, "transcription": transcription}.get(name):
            parted.main(["--rounds", str(given.rounds), "--out", str(given.out)])
            continue
        module = importlib.import_module(f"benchmarks.{name}")
        rows: list[Row] = module.measure(given.rounds)
        found = f"{table(name, rows)}\n{getattr(module, 'NOTES', '')}"
        print(found)
        results.put(results.PATH, name, found.partition("\n")[2])
        print(write(given.out / f"{name}.json", rows))


if __name__ == "__main__":
    main()
