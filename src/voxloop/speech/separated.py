"""Strict CSV and TSV: a line is read correctly or refused with a reason; a text is never cut at a comma.

Python's `csv` drops cells beyond the header, and lets an unclosed quotation mark swallow the following lines. Both
occur in files written by hand (https://github.com/rhasspy/piper/issues/147,
https://github.com/pytorch/audio/issues/4161).
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterable, Iterator

DELIMITERS = (",", "\t", ";", "|")  # searched for in the header, in this order
LONGEST = 1 << 30  # characters in a cell
MOST_LINES = 1_000  # in a quoted cell

Rows = Iterator[tuple[int, dict[str, str] | str]]
"""The number of each line with its cells by column, or with its problem."""


def header(line: str, *, tabs: bool = False) -> tuple[list[str], str]:
    """Return the column names, lower-cased and stripped, and the delimiter."""
    found = "\t" if tabs else next((one for one in DELIMITERS if one in line), ",")
    cells = next(csv.reader([line], delimiter=found, skipinitialspace=True), [])
    return [cell.strip().lower() for cell in cells], found


def rows(lines: Iterable[str], *, tabs: bool = False) -> Rows:
    """Yield the lines after the header, without blank ones.

    `tabs`: Common Voice's format, tab-separated and without quoting, so a quotation mark is part of the sentence.
    Otherwise quoted as in RFC 4180, with the delimiter found in the header.
    """
    csv.field_size_limit(LONGEST)
    waiting = deque[str]()
    source = iter(lines)
    number = 0

    def following() -> str | None:
        return waiting.popleft() if waiting else next(source, None)

    first = following()
    while first is not None and not first.strip():
        number += 1
        first = following()
    if first is None:
        return
    columns, delimiter = header(first, tabs=tabs)
    number += 1
    while (line := following()) is not None:
        number += 1
        if not line.strip():
            continue
        place, taken = number, [line]
        if not tabs and line.count('"') % 2:
            while _open(taken, delimiter) and len(taken) < MOST_LINES and (more := following()) is not None:
                taken.append(more)
        found = _cells(taken, columns, delimiter, tabs=tabs)
        if isinstance(found, str):
            waiting.extendleft(reversed(taken[1:]))  # read the following lines on their own
        else:
            number += len(taken) - 1
        yield place, found


def _open(lines: list[str], delimiter: str) -> bool:
    """Whether a quoted cell is still open after these lines."""
    inside, begins = False, True
    text = "".join(lines)
    for index, letter in enumerate(text):
        if letter == '"' and (inside or begins):
            inside = not inside
            begins = not inside and text[index + 1 : index + 2] == '"'  # doubled: it closes and reopens
        elif not inside:
            begins = letter in (delimiter, "\n", "\r") or (begins and letter == " ")
    return inside


def _cells(lines: list[str], columns: list[str], delimiter: str, *, tabs: bool) -> dict[str, str] | str:
    def read(text: list[str], *, strict: bool = True) -> list[str]:
        if tabs:
            return next(csv.reader(text, delimiter=delimiter, quoting=csv.QUOTE_NONE), [])
        return next(csv.reader(text, delimiter=delimiter, skipinitialspace=True, strict=strict), [])

    # A line that is complete on its own is not part of the preceding text.
    alone = [read([one], strict=False) for one in lines[1:] if one.count('"') % 2 == 0]
    if len(columns) > 1 and any(len(cells) == len(columns) for cells in alone):
        return "a quotation mark is never closed: close it, or double it if it belongs to the text"
    try:
        cells = read(lines)
    except csv.Error as error:
        return f"the quotation marks do not match ({error}): put the cell in quotation marks and double those inside it"
    while len(cells) > len(columns) and not cells[-1].strip():
        cells.pop()
    if len(cells) != len(columns):
        if len(cells) < len(columns):
            hint = "does a text contain a line break?"
        elif tabs:
            hint = "does a text contain a tab?"
        else:
            hint = f"put texts that contain {delimiter!r} in quotation marks"
        return f"the line has {len(cells)} cells, but the header has {len(columns)}: {hint}"
    return {column: cell for column, cell in zip(columns, cells, strict=True) if column}
