"""Draw a chart of a dataset: clip lengths, speakers, languages and words, coloured by split."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from voxloop.errors import UsageError, install_command
from voxloop.records import SPLITS, Dataset, Split
from voxloop.steps.datasets.summary import Summary

COLOURS: dict[Split, str] = {"train": "#4c78a8", "val": "#f2a541", "test": "#c44e52"}
GREY = "#5f6b76"
MOST_BARS = 12  # of a panel; the rest is one more bar
LONGEST_LABEL = 22  # characters
MINUTES_BELOW_H = 2.0  # smaller datasets are counted in minutes


def draw(summary: Summary, dataset: Dataset, file: Path) -> None:
    """Write the chart as PNG, SVG or PDF, depending on the file's suffix. Raises UsageError."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(
            f"charts need matplotlib, which is not installed: install it with `{install_command('plot')}`"
        ) from error
    figure = Figure(figsize=(11, 7.6), facecolor="white")
    axes = figure.subplots(2, 2)
    in_minutes = summary.hours < MINUTES_BELOW_H
    unit, factor = ("minutes", 60.0) if in_minutes else ("hours", 1.0)
    _lengths(axes[0][0], summary)
    _shares(axes[0][1], summary.speakers, f"Speakers ({len(summary.speakers)}), {unit}", factor)
    _shares(axes[1][0], summary.languages, f"Languages ({len(summary.languages)}), {unit}", factor)
    _words(axes[1][1], summary)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color("#c3c9cf")
        axis.tick_params(colors=GREY, labelsize=8.5, length=0)
        for label in (*axis.get_xticklabels(), *axis.get_yticklabels()):
            label.set_parse_math(False)  # a word may hold $
    id = dataset.id.removeprefix("sha256-")[:12]
    figure.text(0.03, 0.955, f"{dataset.name}  {id}", fontsize=15, weight="bold", color="#222b33", parse_math=False)
    clips = sum(split.clips for split in summary.splits.values())
    told = f"{clips:,} clips, {summary.hours * factor:,.1f} {unit}, {summary.vocabulary:,} different words"
    tested = summary.splits["test"]
    if tested.words:
        told += f"; {100 * tested.unseen / tested.words:.1f} % of the words in test are not in train"
    figure.text(0.03, 0.92, told, fontsize=10.5, color=GREY)
    _legend(figure, summary, unit, factor)
    figure.subplots_adjust(left=0.11, right=0.975, top=0.83, bottom=0.05, hspace=0.36, wspace=0.36)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")  # scripts that the font lacks
            figure.savefig(file, dpi=140)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot write the chart to {file}: {error}") from error


def _legend(figure: Any, summary: Summary, unit: str, factor: float) -> None:
    from matplotlib.patches import Patch

    labels = [
        f"{split}: {summary.splits[split].clips:,} clips, {summary.splits[split].hours * factor:,.1f} {unit}"
        for split in SPLITS
    ]
    figure.legend(
        handles=[Patch(color=COLOURS[split]) for split in SPLITS],
        labels=labels,
        loc="upper right",
        bbox_to_anchor=(0.975, 0.99),
        frameon=False,
        fontsize=9.5,
        labelcolor=GREY,
    )


def _title(axis: Any, text: str) -> None:
    axis.set_title(text, loc="left", fontsize=11, color="#222b33", pad=10)


def _lengths(axis: Any, summary: Summary) -> None:
    """Clips by length, without the empty bins at both ends."""
    counts = {split: summary.splits[split].lengths for split in SPLITS}
    totals = [sum(each) for each in zip(*counts.values(), strict=True)]
    filled = [index for index, total in enumerate(totals) if total] or [0]
    shown = range(filled[0], filled[-1] + 1)
    bottom = [0] * len(shown)
    for split in SPLITS:
        heights = [counts[split][index] for index in shown]
        axis.bar(range(len(shown)), heights, 0.82, bottom=bottom, color=COLOURS[split])
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axis.set_xticks(range(len(shown)), [_bin(summary.lengths_s, index) for index in shown])
    axis.grid(axis="y", color="#e6e9ec", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.yaxis.get_major_locator().set_params(integer=True)
    _title(axis, "Clips by length, seconds")


def _bin(edges: Sequence[float], index: int) -> str:
    if index + 1 == len(edges):
        return f"{edges[index]:g}+"
    return f"{edges[index]:g}–{edges[index + 1]:g}"


def _shares(axis: Any, hours: dict[str, dict[Split, float]], title: str, factor: float) -> None:
    """Stacked bars of speakers or languages, the largest on top."""
    listed = list(hours.items())
    if len(listed) > MOST_BARS + 1:
        rest = {split: sum(each[split] for _, each in listed[MOST_BARS:]) for split in SPLITS}
        listed = [*listed[:MOST_BARS], (f"{len(listed) - MOST_BARS} others", rest)]
    left = [0.0] * len(listed)
    for split in SPLITS:
        widths = [each[split] * factor for _, each in listed]
        axis.barh(range(len(listed)), widths, _thickness(len(listed)), left=left, color=COLOURS[split])
        left = [start + width for start, width in zip(left, widths, strict=True)]
    _names(axis, [name for name, _ in listed], left, [f"{total:,.1f}" for total in left])
    _title(axis, title)


def _words(axis: Any, summary: Summary) -> None:
    listed = summary.frequent[:MOST_BARS]
    counts = [count for _, count in listed]
    axis.barh(range(len(listed)), counts, _thickness(len(listed)), color="#8fa3b5")
    _names(axis, [word for word, _ in listed], counts, [f"{count:,}" for count in counts])
    _title(axis, "Most frequent words")


def _thickness(bars: int) -> float:
    """Keep a few bars from filling the panel."""
    return min(0.72, 0.12 * bars + 0.1)


def _names(axis: Any, names: Sequence[str], ends: Sequence[float], values: Sequence[str]) -> None:
    """Names to the left, from top to bottom, and values at the ends of the bars."""
    longest = max(ends, default=0.0) or 1.0
    axis.set_yticks(range(len(names)), [_short(name) for name in names])
    axis.set_ylim(max(len(names), 3) - 0.4, -0.6)
    axis.set_xlim(0, longest * 1.12)
    axis.set_xticks([])
    axis.spines["bottom"].set_visible(False)
    for place, (end, value) in enumerate(zip(ends, values, strict=True)):
        axis.text(end + longest * 0.012, place, value, va="center", fontsize=8.5, color=GREY)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_LABEL else name[: LONGEST_LABEL - 1] + "…"
