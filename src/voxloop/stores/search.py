"""Texts by what is in them: the index of all transcripts that an SQLite catalog keeps.

The index is an FTS5 table of trigrams (https://sqlite.org/fts5.html#the_trigram_tokenizer): it knows which texts have
three characters in a row, in any script and whatever their case, but not where, and it holds no text. Triggers write
it with each row. What it finds is therefore a little more than what is looked for, and the texts are looked at again.

Two line ends after each text let it find one or two characters, which are the beginning of some trigram then.
"""

from __future__ import annotations

import json
from math import isqrt
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

INDEX = "transcript_text"  # rowid: transcript.number
TRIGRAMS = "transcript_trigram"  # what is in the index, a row for each trigram and text

# Texts that were deleted stay in the index's older parts until all are merged.
FORGET = f"INSERT INTO {INDEX}({INDEX}) VALUES ('optimize')"

LENGTH = 3  # characters of a trigram
TOGETHER = 6  # trigrams that are looked for together: more cost more and find hardly less
ASKED = 100  # trigrams of a long text whose frequency is asked for

# Looking up each of n texts costs n, walking through a listing until 50 with the part are met 50 * texts / n of about
# four times as much: the same at the root of so many times the number of texts.
STEPS = 200
FIRST = 500  # texts that tell how many there are about
SURELY = 4  # times the limit that they have to tell of

SAMPLE = 50  # the number of the text with a trigram that tells its frequency: rare ones come late

_index = sa.table(INDEX, sa.column("rowid", sa.Integer), sa.column(INDEX, sa.Text))
_trigrams = sa.table(TRIGRAMS, sa.column("term", sa.Text), sa.column("doc", sa.Integer))


class _Holds(FunctionElement[bool]):
    """Whether a text holds a part that has no case any more; PostgreSQL says of all letters but ASCII that it may."""

    type = sa.Boolean()
    inherit_cache = True


def holds(text: sa.ColumnElement[str], part: str) -> sa.ColumnElement[bool]:
    """Whether a text may hold `part`, whatever the case of both, looked at one by one."""
    if part.isascii():
        return sa.func.lower(text).contains(part.lower(), autoescape=True)
    return _Holds(text, sa.literal(part.casefold()))


@compiles(_Holds, "sqlite")
def _holds_sqlite(element: Any, compiler: Any, **more: Any) -> str:
    text, part = (compiler.process(one, **more) for one in element.clauses)
    return f"(instr(casefold({text}), {part}) > 0)"  # a function of ours: SQLite's lower() knows ASCII alone


@compiles(_Holds, "postgresql")
def _holds_postgresql(element: Any, compiler: Any, **_: Any) -> str:
    return "true"


def few(connection: sa.Connection, part: str) -> list[int] | None:
    """The numbers of the transcripts that may hold `part`, where these are so few that looking them up is the best way.

    None where there are more, and where the catalog has no index (PostgreSQL).
    """
    if connection.dialect.name != "sqlite" or not part or "\0" in part:
        return None
    folded = part.casefold()
    # SQLite folds letter by letter: a part with ß is looked for as it is and with ss.
    spelt = [folded] if len(folded) == len(part) else [part.lower(), folded]
    found = sa.union_all(*(_holding(connection, one) for one in spelt))
    last = connection.exec_driver_sql("SELECT max(number) FROM transcript").scalar() or 0
    limit = isqrt(STEPS * last)
    first = connection.execute(found.limit(FIRST)).scalars().all()
    if len(first) < FIRST <= limit:
        return list(first)
    if len(first) == FIRST and last * FIRST > SURELY * limit * max(first):
        return None
    numbers = list(connection.execute(found.limit(limit + 1)).scalars())
    return numbers if len(numbers) <= limit else None


def among(column: sa.ColumnElement[int], numbers: list[int]) -> sa.ColumnElement[bool]:
    """Whether a column is one of many numbers, in SQLite."""
    return column.in_(sa.select(sa.func.json_each(json.dumps(numbers)).table_valued("value").c.value))


def _holding(connection: sa.Connection, part: str) -> sa.Select[Any]:
    if len(part) < LENGTH:
        term = _trigrams.c.term
        return sa.select(_trigrams.c.doc).where(term >= part, term < part + "\U0010ffff")
    return sa.select(_index.c.rowid).where(_index.c[INDEX].op("MATCH", is_comparison=True)(_rarest(connection, part)))


def _rarest(connection: sa.Connection, part: str) -> str:
    """A query for the trigrams of a part that fewest texts have."""
    trigrams = dict.fromkeys(part[start : start + LENGTH] for start in range(len(part) - LENGTH + 1))
    quoted = ['"' + trigram.replace('"', '""') + '"' for trigram in trigrams][:ASKED]
    if len(quoted) > TOGETHER:
        rows = connection.exec_driver_sql(
            f"SELECT value, (SELECT rowid FROM {INDEX} WHERE {INDEX} MATCH value LIMIT 1 OFFSET {SAMPLE - 1}) AS place"
            " FROM json_each(?) ORDER BY place IS NOT NULL, place DESC",
            (json.dumps(quoted),),
        )
        quoted = [row.value for row in rows][:TOGETHER]
    return " AND ".join(quoted)
