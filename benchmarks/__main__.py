"""Run the benchmarks named, or all that compare speeds; print their tables and write build/bench/NAME.json.

`learning` needs speech and starters, and has options of its own: `python -m benchmarks learning --help`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from benchmarks import learning
from benchmarks.side_by_side import Row, table, write

NAMES = ("training", "transcription", "ingest", "growth")


def main() -> None:
    if sys.argv[1:2] == ["learning"]:
        learning.main(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all where none is named")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    given = parser.parse_args()
    for name in given.names or NAMES:
        if name not in NAMES:
            parser.error(f"there is no benchmark {name!r}; known: {', '.join(NAMES)}")
        rows: list[Row] = importlib.import_module(f"benchmarks.{name}").measure(given.rounds)
        print(table(name, rows))
        print(write(given.out / f"{name}.json", rows))


if __name__ == "__main__":
    main()
