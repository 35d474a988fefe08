"""CSV and TSV read strictly: a line is read right, or refused with the reason; never a text cut at a comma.

Python's `csv` drops cells beyond the header, and lets a quote that is never closed swallow the lines behind it. People
write both by hand (https://github.com/rhasspy/piper/issues/147, https://github.com/pytorch/audio/issues/4161).
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterable, Iterator

DELIMITERS = (",", "\t", ";", "|")  # looked for in the header, in this order
LONGEST = 1 << 30  # characters of a cell
MOST_LINES = 1_000  # that a quoted cell may go on for

Rows = Iterator[tuple[int, dict[str, str] | str]]
"""The number of each line, and its cells by column or what is wrong with it."""


def header(line: str, *, tabs: bool = False) -> tuple[list[str], str]:
    """The names of the columns, in lower case without spaces, and the delimiter between them."""
    found = "\t" if tabs else next((one for one in DELIMITERS if one in line), ",")
    cells = next(csv.reader([line], delimiter=found, skipinitialspace=True), [])
    return [cell.strip().lower() for cell in cells], found


def rows(lines: Iterable[str], *, tabs: bool = False) -> Rows:
    """The lines behind the header.

    `tabs`: Common Voice's way, parted by tabs and without quoting, so that a quotation mark is part of the sentence.
    Else quoted as RFC 4180 says, parted by what the header is parted by. A blank line is passed over.
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
            waiting.extendleft(reversed(taken[1:]))  # the lines behind it are read by themselves
        else:
            number += len(taken) - 1
        yield place, found


def _open(lines: list[str], delimiter: str) -> bool:
    """Whether a cell whose quote is not closed goes on behind these lines."""
    inside, begins = False, True
    text = "".join(lines)
    for index, letter in enumerate(text):
        if letter == '"' and (inside or begins):
            inside = not inside
            begins = not inside and text[index + 1 : index + 2] == '"'  # doubled: it closes and opens again
        elif not inside:
            begins = letter in (delimiter, "\n", "\r") or (begins and letter == " ")
    return inside


def _cells(lines: list[str], columns: list[str], delimiter: str, *, tabs: bool) -> dict[str, str] | str:
    def read(text: list[str], *, strict: bool = True) -> list[str]:
        if tabs:
            return next(csv.reader(text, delimiter=delimiter, quoting=csv.QUOTE_NONE), [])
        return next(csv.reader(text, delimiter=delimiter, skipinitialspace=True, strict=strict), [])

    # A line that could stand by itself is no part of the text before it.
    alone = [read([one], strict=False) for one in lines[1:] if one.count('"') % 2 == 0]
    if len(columns) > 1 and any(len(cells) == len(columns) for cells in alone):
        return "a quotation mark is opened and not closed in its line: close it, or write it twice where it is meant"
    try:
        cells = read(lines)
    except csv.Error as error:
        return f"the quotation marks do not fit ({error}): a cell with one in it is quoted, and has it twice"
    while len(cells) > len(columns) and not cells[-1].strip():
        cells.pop()
    if len(cells) != len(columns):
        if len(cells) < len(columns):
            hint = "is there a line break in a text?"
        elif tabs:
            hint = "is there a tab in a text?"
        else:
            hint = f"a text with {delimiter!r} in it must stand in quotation marks"
        return f"the line has {len(cells)} cells and the header {len(columns)}: {hint}"
    return {column: cell for column, cell in zip(columns, cells, strict=True) if column}
