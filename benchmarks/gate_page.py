"""The tables of docs/gate.md and of RESULTS.md, from what `gate_nights`, `gate_power` and `gate` measured.

python -m benchmarks.gate_page docs build/gate/gate-*.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import results


def share(value: float) -> str:
    return f"{100 * value:.1f} %"


def tables(found: dict[str, Any]) -> str:
    """All tables of the parts that were measured."""
    makers: dict[str, Callable[[Any], list[str]]] = {
        "nights": _nights,
        "grid": _grid,
        "real": _real,
        "lives": _lives,
        "equal": _equal,
    }
    return "\n\n".join("\n".join(make(found[name])) for name, make in makers.items() if found.get(name))


def _nights(found: dict[str, Any]) -> list[str]:
    lines = [
        f"{found['years']} years side by side, {found['count']} nights each where not said otherwise:",
        "",
        "| challengers, test clips | rule | false | true gains promoted, of those offered | errors left |",
        "|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        true = f"{row['true a year']:.1f} of {row['offered']:.1f}" if row["offered"] else "–"
        rule = row["rule"].partition(" ")[0]
        lines.append(
            f"| {row['scenario']} | {rule} | {share(row['fdr'])} ± {100 * 1.96 * row['fdr error']:.1f} | {true} "
            f"| {100 * row['wer']:.0f} % |"
        )
    return lines


def _grid(rows: list[dict[str, Any]]) -> list[str]:
    sizes = sorted({row["clips"] for row in rows})
    lines = [
        "A first attempt, clips of 3 to 15 words: promoted, and rejected; in brackets by the rule before.",
        "",
        f"| WER | errors truly saved | {' | '.join(f'{n} clips' for n in sizes)} | rejected with 50 / 200 clips |",
        "|---" * (len(sizes) + 3) + "|",
    ]
    cells = {(row["wer"], row["gain"], row["clips"]): row for row in rows}
    for wer, gain in dict.fromkeys((row["wer"], row["gain"]) for row in rows):
        each = [cells[wer, gain, clips] for clips in sizes]
        shown = " | ".join(f"{100 * one['promote']:.1f} ({100 * one['old promote']:.1f}) %" for one in each)
        lost = " / ".join(
            f"{100 * cells[wer, gain, clips]['reject']:.1f} ({100 * cells[wer, gain, clips]['old reject']:.0f}) %"
            for clips in (50, 200)
        )
        lines.append(f"| {100 * wer:.0f} % | {100 * gain:.0f} % | {shown} | {lost} |")
    return lines


def _real(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "Test sets drawn from real errors (int8, greedy or sampled at temperature 0.4). Swapped: a coin decides by "
        + "clip which model is called champion; tilted: clips drawn so that both err equally often. "
        + "Promoted, in brackets by the rule before:",
        "",
        "| speech | models | WER of both | 50 clips | 100 clips | 200 clips | rejected, 100 clips |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, kind in dict.fromkeys((row["set"], row["kind"]) for row in rows):
        each = [row for row in rows if (row["set"], row["kind"]) == (name, kind)]
        shown = " | ".join(f"{100 * one['promote']:.1f} ({100 * one['old promote']:.1f}) %" for one in each)
        rates = f"{100 * each[0]['before']:.1f}, {100 * each[0]['after']:.1f} %"
        lost = f"{100 * each[1]['reject']:.1f} ({100 * each[1]['old reject']:.0f}) %"
        lines.append(f"| {name} | {kind} | {rates} | {shown} | {lost} |")
    return lines


def _lives(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "A/B runs: 20 models that are no better, each made of two real samplings clip by clip, tried on one test set:",
        "",
        "| speech | any promoted | were attempts not charged |",
        "|---|---|---|",
    ]
    for row in rows:
        span = f"{100 * row['low']:.1f} to {share(row['high'])}"
        lines.append(f"| {row['set']} | {share(row['any'])} ({span}) | {share(row['unheeded'])} |")
    return lines


def _equal(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| a first attempt, no better | promoted | 95 % interval | insufficient evidence |",
        "|---|---|---|---|",
    ]
    for row in rows:
        span = f"{100 * row['low']:.1f} to {share(row['high'])}"
        lines.append(f"| {row['name']} | {share(row['promoted'])} | {span} | {share(row['unsure'])} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate_page", description=__doc__)
    parser.add_argument("docs", type=Path)
    parser.add_argument("found", type=Path, nargs="+")
    given = parser.parse_args()
    found: dict[str, Any] = {}
    for path in given.found:
        found |= {name: value for name, value in json.loads(path.read_text()).items() if value}
    page = given.docs / "gate.md"
    before, _, rest = page.read_text().partition("<!-- tables -->")
    after = rest.partition("<!-- end of tables -->")[2]
    made = tables(found)
    page.write_text(f"{before}<!-- tables -->\n\n{made}\n\n<!-- end of tables -->{after}")
    commands = "`python -m benchmarks.gate_nights`, `gate_decode`, `gate_power`; what they mean is in docs/gate.md."
    results.put(results.PATH, "gate", f"{commands}\n\n{made}")


if __name__ == "__main__":
    main()
