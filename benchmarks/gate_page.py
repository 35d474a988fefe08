"""The tables of docs/gate.md, between its marks, and docs/gate.svg, from what `benchmarks.gate` measured.

python -m benchmarks.gate_page docs build/gate/gate-*.json
"""

from __future__ import annotations

import argparse
import html
import json
import math
from pathlib import Path
from typing import Any

WIDTH, ROW, TOP, LABELS, BARS = 1000, 20, 76, 430, 530
COLOURS = ("#1a365d", "#2b6cb0", "#4299e1", "#d69e2e", "#c05621")


def share(value: float) -> str:
    return f"{100 * value:.1f} %"


def tables(found: dict[str, Any]) -> str:
    lines = [
        "| test set, no challenger is better | promoted | 95 % interval | insufficient evidence |",
        "|---|---|---|---|",
    ]
    for row in found["equal"]:
        span = f"{100 * row['low']:.1f} to {share(row['high'])}"
        lines.append(f"| {row['name']} | {share(row['promoted'])} | {span} | {share(row['unsure'])} |")
    for kind in dict.fromkeys(row["kind"] for row in found["power"]):
        cells = {(row["better"], row["clips"]): row["promoted"] for row in found["power"] if row["kind"] == kind}
        sizes = sorted({clips for _, clips in cells})
        lines += ["", f"Promoted, {kind}:", "", f"| errors truly saved | {' | '.join(f'{n} clips' for n in sizes)} |"]
        lines.append("|---" * (len(sizes) + 1) + "|")
        for better in sorted({better for better, _ in cells}):
            values = " | ".join(f"{100 * cells[better, clips]:.0f} %" for clips in sizes)
            lines.append(f"| {100 * better:.0f} % | {values} |")
    lines += [
        "",
        "| 20 challengers on one test set, none better | any promoted | were repeats not counted |",
        "|---|---|---|",
    ]
    for row in found["repeated"]:
        how = "each built on the best on the test so far" if row["climbing"] else "unlike each other"
        shown = [
            f"{share(row[name])} ({100 * row[f'{name} interval'][0]:.1f} to {share(row[f'{name} interval'][1])})"
            for name in ("counted", "not counted")
        ]
        lines.append(f"| {how}, {row['clips']} clips | {' | '.join(shown)} |")
    return "\n".join(lines)


def picture(found: dict[str, Any]) -> str:
    equal = found["equal"]
    bottom = TOP + ROW * len(equal)
    height = bottom + 420
    most = max(0.08, max(row["high"] for row in equal))
    scale = BARS / most
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="system-ui, sans-serif" '
        'font-size="13" role="img" aria-label="How often the gate promotes models that are no better, and that are">',
        "<style>text { fill: #1a202c } .note { fill: #4a5568; font-size: 12px } .end { text-anchor: end } "
        ".mid { text-anchor: middle } .title { font-weight: 600; font-size: 16px }</style>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        '<text class="title" x="20" y="30">Promoted although no better</text>',
        f'<text class="note" x="20" y="50">with 95 % intervals of {found["trials"]:,} test sets each; '
        "at most 5 % is promised</text>",
    ]
    for tick in range(int(100 * most) + 1):
        x = LABELS + scale * tick / 100
        line = 'stroke="#c53030" stroke-width="2"' if tick == 5 else 'stroke="#e2e8f0"'
        parts.append(f'<path d="M{x:.1f} {TOP - 8}V{bottom}" {line}/>')
        parts.append(f'<text class="note mid" x="{x:.1f}" y="{TOP - 12}">{tick} %</text>')
    for number, row in enumerate(equal):
        y = TOP + ROW * (number + 0.5)
        low, at, high = (LABELS + scale * row[name] for name in ("low", "promoted", "high"))
        parts.append(f'<text class="end" x="{LABELS - 10}" y="{y + 4:.1f}">{html.escape(row["name"][:66])}</text>')
        parts.append(f'<path d="M{low:.1f} {y:.1f}H{high:.1f}" stroke="#2b6cb0" stroke-width="3"/>')
        parts.append(f'<circle cx="{at:.1f}" cy="{y:.1f}" r="4.5" fill="#1a365d"/>')
    kinds = list(dict.fromkeys(row["kind"] for row in found["power"]))
    for panel, kind in enumerate(kinds[:2]):
        parts += _power([row for row in found["power"] if row["kind"] == kind], kind, 60 + 490 * panel, bottom + 60)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _power(rows: list[dict[str, Any]], kind: str, left: float, top: float) -> list[str]:
    """How often a model that is truly better is promoted, by test clips; a line for each share of errors saved."""
    wide, high = 340.0, 280.0
    sizes = sorted({row["clips"] for row in rows})
    across = math.log(sizes[-1] / sizes[0])

    def at(clips: int, promoted: float) -> tuple[float, float]:
        return left + wide * math.log(clips / sizes[0]) / across, top + high * (1 - promoted)

    parts = [f'<text class="title" x="{left - 40}" y="{top - 22}">If better, {html.escape(kind)}</text>']
    for tick in range(0, 101, 20):
        y = at(sizes[0], tick / 100)[1]
        parts.append(f'<path d="M{left} {y:.1f}H{left + wide}" stroke="#e2e8f0"/>')
        parts.append(f'<text class="note end" x="{left - 6}" y="{y + 4:.1f}">{tick} %</text>')
    for clips in sizes:
        parts.append(f'<text class="note mid" x="{at(clips, 0)[0]:.1f}" y="{top + high + 18}">{clips}</text>')
    parts.append(f'<text class="note mid" x="{left + wide / 2}" y="{top + high + 38}">test clips</text>')
    label = top - 15.0
    for colour, better in zip(COLOURS, sorted({row["better"] for row in rows}, reverse=True), strict=False):
        points = [at(row["clips"], row["promoted"]) for row in rows if row["better"] == better]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points]
        label = max(points[-1][1], label + 15)
        said = f"{100 * better:.0f} % fewer"
        parts.append(f'<text x="{left + wide + 8}" y="{label + 4:.1f}" style="fill: {colour}">{said}</text>')
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate_page", description=__doc__)
    parser.add_argument("docs", type=Path)
    parser.add_argument("found", type=Path, nargs="+")
    given = parser.parse_args()
    found: dict[str, Any] = {}
    for path in given.found:
        found |= {name: value for name, value in json.loads(path.read_text()).items() if value}
    (given.docs / "gate.svg").write_text(picture(found))
    page = given.docs / "gate.md"
    before, _, rest = page.read_text().partition("<!-- tables -->")
    after = rest.partition("<!-- end of tables -->")[2]
    page.write_text(f"{before}<!-- tables -->\n\n{tables(found)}\n\n<!-- end of tables -->{after}")


if __name__ == "__main__":
    main()
