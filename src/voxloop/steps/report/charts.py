"""Charts as inline SVG: drawn in percent of their width, so that text keeps its size on a phone. No scripts.

Built as an XML tree, so that no text of a user's can become markup.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from xml.etree import ElementTree

from markupsafe import Markup

BAR_PX = 20
PLOT_PX = 200  # height of a plot; its labels lie above and below
MARGIN_PX = 24
MOST_POINTS = 150  # of a line: more cannot be seen
TICKS = 4
LARGEST = 1e15  # beyond, a value is no measurement


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One place of a line, with the ends of its interval where it has one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A named line; `color` is the number of its colour in the style sheet."""

    name: str
    points: Sequence[Point]
    color: int = 0
    dashed: bool = False


def bar(value: float, low: float | None, high: float | None, *, top: float, color: int, label: str) -> Markup:
    """A bar from 0 to `value` with its interval as a whisker; `top` is the whole width, `label` says it in words.

    What is longer than the whole width is cut, and what is no finite number is drawn as 0.
    """
    top = top if math.isfinite(top) and top > 0 else 1.0
    low, high = _finite(low), _finite(high)
    svg = _svg(label, BAR_PX)
    _put(svg, "rect", x="0", y="3", width="100%", height=BAR_PX - 6, rx="3", class_="track")
    _put(svg, "rect", x="0", y="3", width=_percent(value / top), height=BAR_PX - 6, rx="3", class_=f"fill c{color}")
    if low is not None and high is not None and high > low:
        middle = BAR_PX / 2
        _put(svg, "line", x1=_percent(low / top), x2=_percent(high / top), y1=middle, y2=middle, class_="whisker")
        for end in (low, high):
            _put(svg, "line", x1=_percent(end / top), x2=_percent(end / top), y1=5, y2=BAR_PX - 5, class_="whisker")
    return _markup(svg)


def plot(
    lines: Sequence[Line],
    *,
    label: str,
    x_name: str,
    y: Callable[[float], str],
    x: Callable[[float], str] | None = None,
) -> Markup:
    """Lines over a grid that begins at 0; `x` and `y` write the numbers of the axes.

    Points that are no finite numbers are left out, as where a loss overflowed. Where all is 0, the axis goes to 1.
    """
    write_x = x or (lambda value: f"{value:g}")
    lines = [replace(one, points=_thinned(_drawable(one.points))) for one in lines]
    points = [point for one in lines for point in one.points]
    svg = _svg(label, PLOT_PX + 2 * MARGIN_PX)
    right = max((point.x for point in points), default=1.0) or 1.0
    ticks = _ticks(max((max(point.y, point.high or 0.0) for point in points), default=1.0))
    top = ticks[-1]

    def across(value: float) -> str:
        return _percent(0.02 + 0.95 * value / right)

    def down(value: float) -> float:
        return MARGIN_PX + PLOT_PX * (1 - min(max(value, 0.0), top) / top)

    for tick in ticks:
        _put(svg, "line", x1="0", x2="100%", y1=down(tick), y2=down(tick), class_="grid")
        _put(svg, "text", x="0", y=down(tick) - 4, class_="tick").text = y(tick)
    across_ticks = [tick for tick in _ticks(right) if tick <= right]
    for tick in across_ticks:
        anchor = "start" if tick == 0 else "middle" if tick < 0.9 * right else "end"
        place: dict[str, str | float] = {
            "x": across(tick),
            "y": MARGIN_PX + PLOT_PX + 16,
            "class_": "tick",
            "text-anchor": anchor,
        }
        _put(svg, "text", **place).text = write_x(tick) + (f" {x_name}" if tick == across_ticks[-1] else "")
    for one in lines:
        kind = f"line c{one.color}" + (" dashed" if one.dashed else "")
        for start, end in zip(one.points, one.points[1:], strict=False):
            ends: dict[str, str | float] = {
                "x1": across(start.x),
                "y1": down(start.y),
                "x2": across(end.x),
                "y2": down(end.y),
            }
            _put(svg, "line", **ends, class_=kind)
        for point in one.points:
            if point.low is not None and point.high is not None:
                middle = across(point.x)
                _put(svg, "line", x1=middle, x2=middle, y1=down(point.low), y2=down(point.high), class_="whisker")
        if len(one.points) <= 40:
            for point in one.points:
                dot = _put(svg, "circle", cx=across(point.x), cy=down(point.y), r=3.5, class_=f"fill c{one.color}")
                ElementTree.SubElement(dot, "title").text = f"{one.name}: {write_x(point.x)} {x_name}, {y(point.y)}"
    return _markup(svg)


def _ticks(most: float) -> list[float]:
    """Round numbers from 0 to at least `most`; to 1 where that is 0."""
    raw = (max(most, 1e-6) if most > 0 else 1.0) / TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= raw * 0.999)
    return [round(number * step, 10) for number in range(max(1, math.ceil(TICKS * raw / step - 1e-9)) + 1)]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _drawable(points: Sequence[Point]) -> list[Point]:
    """Points with finite places, and their intervals where both ends are finite."""
    found = []
    for point in points:
        if not math.isfinite(point.x) or not -LARGEST < point.y < LARGEST:
            continue
        whole = all(end is not None and -LARGEST < end < LARGEST for end in (point.low, point.high))
        found.append(point if whole else replace(point, low=None, high=None))
    return found


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    step = math.ceil(len(points) / MOST_POINTS)
    return points if step <= 1 else [*points[::step], points[-1]]


def _svg(label: str, height: float) -> ElementTree.Element:
    svg = ElementTree.Element("svg", {"width": "100%", "height": f"{height:g}", "role": "img", "aria-label": label})
    ElementTree.SubElement(svg, "title").text = label
    return svg


def _put(parent: ElementTree.Element, tag: str, **attributes: str | float) -> ElementTree.Element:
    written = {
        name.rstrip("_"): value if isinstance(value, str) else f"{value:.1f}" for name, value in attributes.items()
    }
    return ElementTree.SubElement(parent, tag, written)


def _percent(share: float) -> str:
    return f"{100 * min(max(share, 0.0), 1.0):.2f}%" if math.isfinite(share) else "0.00%"


def _markup(svg: ElementTree.Element) -> Markup:
    return Markup(ElementTree.tostring(svg, encoding="unicode"))  # the tree has escaped every text
