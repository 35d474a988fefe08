"""docs/growth.svg and the table of docs/growth.md, between its marks, from what `benchmarks.growth` measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

DRAWN = {  # name of a measure -> (label, share of a second that its unit is, of which panel)
    "page of 50": ("a page", 1, 0),
    "next page": ("the next page", 1, 0),
    "page, of the last hour": ("a page between dates", 1, 0),
    "page, a word of no text": ("a page of a word that no text has", 1, 0),
    "page, a warning": ("a page of those with a warning", 1, 0),
    "counts of the status page": ("all counts of `status`", 1, 0),
    "ingest of a small file": ("ingest of a small file", 1, 0),
    "dataset build": ("dataset build", 1000, 1),
}
PANELS = ("milliseconds", "seconds, gigabytes")


def write(docs: Path, known: Sequence[dict[str, Any]]) -> None:
    """Both, into the folder `docs`."""
    _draw(docs / "growth.svg", known)
    page = docs / "growth.md"
    before, _, rest = page.read_text().partition("<!-- table -->")
    after = rest.partition("<!-- end of table -->")[2]
    page.write_text(f"{before}<!-- table -->\n\n{_table(known)}\n\n<!-- end of table -->{after}")


def _table(known: Sequence[dict[str, Any]]) -> str:
    sizes = [one["size"] for one in known]
    lines = [f"| | {' | '.join(f'{size:,}' for size in sizes)} |", "|---" * (len(sizes) + 1) + "|"]
    for name in known[0]["found"]:
        values = [_shown(name, median(one["found"][name])) if name in one["found"] else "" for one in known]
        lines.append(f"| {name} | {' | '.join(values)} |")
    return "\n".join(lines)


def _shown(name: str, value: float) -> str:
    if name.startswith("memory"):
        return f"{value:.0f} MB"
    return f"{value / 1000:.1f} s" if value >= 1000 else f"{value:.1f} ms"


def _draw(path: Path, known: Sequence[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "growth"  # the same picture gives the same file
    from matplotlib import pyplot

    sizes = [one["size"] for one in known]
    figure, panels = pyplot.subplots(1, len(PANELS), figsize=(11, 4.2), constrained_layout=True)
    for name, (label, unit, panel) in DRAWN.items():
        values = [median(one["found"][name]) / unit for one in known]
        panels[panel].plot(sizes, values, marker="o", label=label)
    memory = "memory of the build"
    told = [one for one in known if memory in one["found"]]
    panels[1].plot(
        [one["size"] for one in told],
        [median(one["found"][memory]) / 1000 for one in told],
        marker="s",
        linestyle="--",
        label="its memory at the peak",
    )
    for axes, unit in zip(panels, PANELS, strict=True):
        axes.set(xscale="log", yscale="log", xlabel="utterances in the catalog", ylabel=unit)
        axes.grid(visible=True, which="both", alpha=0.25)
        axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
