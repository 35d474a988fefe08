"""Run the benchmarks named, or all; print their tables and write build/bench/NAME.json."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from benchmarks.side_by_side import Row, table, write

NAMES = ("training", "transcription")


def main() -> None:
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
