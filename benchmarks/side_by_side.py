"""Two ways of doing the same, timed in turn: the ratio of each round counts, since a shared machine's rates drift."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("torch", "transformers", "lhotse", "ctranslate2", "faster-whisper")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One comparison. Rates are medians; the ratio is ours to the peer's, by round."""

    name: str
    ours: float
    peer: float
    unit: str
    ratio_median: float
    ratio_min: float
    ratio_max: float
    quality_ours: str
    quality_peer: str


def compare(
    name: str,
    *,
    ours: Callable[[], float],
    peer: Callable[[], float],
    unit: str,
    rounds: int,
    quality_ours: str,
    quality_peer: str,
) -> Row:
    """Run both `rounds` times in turn; each call does its work and returns how many units it did."""
    rates: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(rounds):
        for who, work in (("ours", ours), ("peer", peer)):
            began = time.perf_counter()
            units = work()
            rates[who].append(units / (time.perf_counter() - began))
    return paired(name, **rates, unit=unit, quality_ours=quality_ours, quality_peer=quality_peer)


def paired(
    name: str,
    ours: Sequence[float],
    peer: Sequence[float],
    *,
    unit: str,
    quality_ours: str = "",
    quality_peer: str = "",
) -> Row:
    """The row of what both sides measured, round by round."""
    ratios = [a / b if b else math.inf for a, b in zip(ours, peer, strict=True)]
    return Row(
        name=name,
        ours=statistics.median(ours),
        peer=statistics.median(peer),
        unit=unit,
        ratio_median=statistics.median(ratios),
        ratio_min=min(ratios),
        ratio_max=max(ratios),
        quality_ours=quality_ours,
        quality_peer=quality_peer,
    )


def machine() -> str:
    """Date, machine, its load and versions, as they stand beside every result."""
    packages = ", ".join(
        f"{name} {version(name)}" for name in PACKAGES if importlib.util.find_spec(name.replace("-", "_"))
    )
    cores = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end"
    python = f"Python {platform.python_version()}"
    return f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {cores}, {python}, {packages}"


def table(title: str, rows: list[Row]) -> str:
    """A Markdown section with a table of rows."""
    return f"## {title}\n\n{machine()}\n\n{rows_table(rows)}\n"


def rows_table(rows: list[Row]) -> str:
    """A Markdown table of rows."""
    lines = ["| | ours | peer | unit | ratio (from to) | ours | peer |", "|---|---|---|---|---|---|---|"]
    lines += [
        f"| {r.name} | {r.ours:.2f} | {r.peer:.2f} | {r.unit} | {_ratio(r.ratio_median)} ({_ratio(r.ratio_min)} to "
        f"{_ratio(r.ratio_max)}) | {r.quality_ours} | {r.quality_peer} |"
        for r in rows
    ]
    return "\n".join(lines)


def _ratio(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio >= 1 else f"{ratio:.2f}"


def write(path: Path, rows: list[Row]) -> Path:
    """The rows as JSON, with the machine they were measured on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows]}, indent=2) + "\n")
    return path
