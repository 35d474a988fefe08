"""Write what a long run found: `python .ci/report_long.py RESULTS.xml PAGE.md`; RESULTS is pytest's JUnit file."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree


@dataclass
class Outcome:
    """What became of a test in all of its rounds."""

    passed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    failed: list[str] = field(default_factory=list)  # their parameters


def main() -> None:
    results, page = Path(sys.argv[1]), Path(sys.argv[2])
    suite = next(ElementTree.parse(results).iter("testsuite"))
    tests: dict[str, Outcome] = {}
    for case in suite.iter("testcase"):
        name, _, parameters = (case.get("name") or "").partition("[")
        outcome = tests.setdefault(f"{(case.get('classname') or '').removeprefix('tests.')}.{name}", Outcome())
        outcome.seconds += float(case.get("time") or 0)
        if case.find("failure") is not None or case.find("error") is not None:
            outcome.failed.append(parameters.removesuffix("]"))
        elif case.find("skipped") is not None:
            outcome.skipped += 1
        else:
            outcome.passed += 1
    page.write_text("\n".join(lines(suite, tests)) + "\n")


def lines(suite: ElementTree.Element, tests: dict[str, Outcome]) -> list[str]:
    """The page."""
    failed = sum(len(outcome.failed) for outcome in tests.values())
    commit = git("rev-parse", "--short=12", "HEAD") + (" with changes" if git("status", "--porcelain") else "")
    rows = [
        ("date", f"{(suite.get('timestamp') or '')[:16].replace('T', ' ')}"),
        ("commit", commit),
        ("result", f"{failed} failed" if failed else "all passed"),
        ("time", f"{float(suite.get('time') or 0) / 60:.1f} min"),
        ("rounds", f"{os.environ['LONG_ROUNDS']}, from `LONG_SEED={os.environ['LONG_SEED']}`"),
        ("tests", os.environ["LONG_ARGUMENTS"] or "all that are marked `long`, and all with Hypothesis"),
        ("machine", f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores"),
    ]
    made = ["# The last long run", "", "Written by `.ci/long`, which repeats what is left to chance.", ""]
    made += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), ""]
    made += ["| test | passed | failed | skipped | seconds |", "|---|---|---|---|---|"]
    made += [
        f"| `{name}` | {one.passed} | {len(one.failed)} | {one.skipped} | {one.seconds:.0f} |"
        for name, one in sorted(tests.items())
    ]
    for name, one in sorted(tests.items()):
        made += ["", *(f"Failed: `{name}[{parameters}]`" for parameters in one.failed)] if one.failed else []
    return made


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
