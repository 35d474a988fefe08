"""Run the benchmarks named, or all that compare speeds: tables, build/bench/NAME.json, and sections of RESULTS.md.

Each has options of its own: `python -m benchmarks training --help`. `serving` needs real checkpoints, `hearing`,
`learning`, `streaming`, `voices` and `vocabulary` recorded speech, `handing-out` servers: these are not among all.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import (
    claims,
    growth,
    handing_out,
    hearing,
    ingest,
    learning,
    serving,
    starter_voices,
    streaming,
    training,
    transcription,
    vocabulary,
)

COMPARED: dict[str, Callable[[Sequence[str]], None]] = {
    "training": training.main,
    "transcription": transcription.main,
    "ingest": ingest.main,
    "growth": growth.main,
    "claims": claims.main,
}


def main() -> None:
    recorded = {
        "serving": serving.main,
        "handing-out": handing_out.main,
        "hearing": hearing.main,
        "learning": learning.main,
        "streaming": streaming.main,
        "voices": starter_voices.main,
        "vocabulary": vocabulary.main,
    }
    own = {**COMPARED, **recorded}.get(*sys.argv[1:2] or [""])
    if own is not None:
        own(sys.argv[2:])
        return
    names = ", ".join(COMPARED)
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {names}; all where none is named")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    given = parser.parse_args()
    for name in given.names or COMPARED:
        if name not in COMPARED:
            parser.error(f"there is no benchmark {name!r}; known: {names}")
        COMPARED[name](["--rounds", str(given.rounds), "--out", str(given.out)])


if __name__ == "__main__":
    main()
