"""Substring search in transcripts, with an index in the catalog.

On SQLite it is an FTS5 trigram table (https://sqlite.org/fts5.html#the_trigram_tokenizer), updated by triggers. It
knows which texts contain three consecutive characters, in any script and case, but not where, and it stores no text.
So it finds slightly too much, and the texts are checked again. Two newlines after each text make one or two characters
searchable, since they are then always the start of some trigram.

On PostgreSQL it is a pg_trgm GIN index (https://www.postgresql.org/docs/current/pgtrgm.html) over the case-folded
texts. It knows three consecutive letters or digits; shorter strings are searched for text by text.
"""

from __future__ import annotations

import json
import re
from math import isqrt
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from voxloop.stores.tables import transcript

INDEX = "transcript_text"  # rowid: transcript.number
TRIGRAMS = "transcript_trigram"  # the index's content: a row for each trigram and text

# Deleted texts stay in older segments of the index until all are merged.
FORGET = f"INSERT INTO {INDEX}({INDEX}) VALUES ('optimize')"

LENGTH = 3  # characters of a trigram
TRIGRAM = re.compile(r"[^\W_]{3}")  # what PostgreSQL's index can find
TOGETHER = 4  # trigrams searched for together; more cost more and hardly narrow the result
ASKED = 100  # maximum number of trigrams of a search string whose frequency is queried

# Looking up n matching texts costs n. Walking the listing until 50 matches are found takes 50 * texts / n steps that
# cost about four times as much. The two are equal at n = sqrt(200 * texts).
STEPS = 200
FIRST = 500  # matching texts from which the total number is estimated
SURELY = 4  # factor by which that estimate must exceed the limit

SAMPLE = 50  # the position of the 50th text with a trigram estimates its frequency: the later, the rarer

_index = sa.table(INDEX, sa.column("rowid", sa.Integer), sa.column(INDEX, sa.Text))
_trigrams = sa.table(TRIGRAMS, sa.column("term", sa.Text), sa.column("doc", sa.Integer))


class _Holds(FunctionElement[bool]):
    """Whether a text contains a case-folded string; takes the text, the string, and the string as a LIKE pattern."""

    type = sa.Boolean()
    inherit_cache = True


class _HoldsAscii(_Holds):
    """Like `_Holds`, for an ASCII string."""

    inherit_cache = True


def holds(text: sa.ColumnElement[str], part: str) -> sa.ColumnElement[bool]:
    """Whether a text may contain `part`, ignoring case."""
    folded = part.casefold()
    kind = _HoldsAscii if part.isascii() else _Holds
    return kind(text, sa.literal(folded), sa.literal(_pattern(folded)))


def _pattern(folded: str) -> str:
    """The LIKE pattern for texts that contain this string. PostgreSQL allows NUL neither in texts nor in patterns."""
    escaped = re.sub(r"([\\%_])", r"\\\1", folded).replace("\0", "_")
    return f"%{escaped}%"


@compiles(_Holds, "sqlite")
def _holds_sqlite(element: Any, compiler: Any, **more: Any) -> str:
    text, part, _ = (compiler.process(one, **more) for one in element.clauses)
    return f"(instr(casefold({text}), {part}) > 0)"  # our own function, since SQLite's lower() handles only ASCII


@compiles(_HoldsAscii, "sqlite")
def _holds_ascii_sqlite(element: Any, compiler: Any, **more: Any) -> str:
    text, part, _ = (compiler.process(one, **more) for one in element.clauses)
    return f"(instr(lower({text}), {part}) > 0)"


@compiles(_Holds, "postgresql")
def _holds_postgresql(element: Any, compiler: Any, **more: Any) -> str:
    text, _, pattern = element.clauses
    return f"(voxloop_casefold({compiler.process(text, **more)}) LIKE {compiler.process(pattern, **more)})"


def few(connection: sa.Connection, part: str) -> list[int] | list[str] | None:
    """The keys of the transcripts that may contain `part`, if so few that looking them up is fastest.

    None if there are more, or if no index can tell. The type of the keys depends on the database; pass them to `among`.
    """
    if not part or "\0" in part:
        return None
    if connection.dialect.name == "postgresql":
        return _few_postgresql(connection, part)
    folded = part.casefold()
    # SQLite folds letter by letter, so a string with ß is searched for as it is and with ss.
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


def _few_postgresql(connection: sa.Connection, part: str) -> list[str] | None:
    if not TRIGRAM.search(part):
        return None
    # As of the last VACUUM or ANALYZE. -1: never counted, so the table is small or will be counted soon.
    texts = connection.exec_driver_sql("SELECT reltuples FROM pg_class WHERE oid = 'transcript'::regclass").scalar_one()
    limit = isqrt(STEPS * max(int(texts), FIRST))
    table = transcript.c
    ids = connection.execute(sa.select(table.id).where(holds(table.text, part)).limit(limit + 1)).scalars().all()
    return list(ids) if len(ids) <= limit else None


def among(text: sa.FromClause, keys: list[int] | list[str]) -> sa.ColumnElement[bool]:
    """Whether a transcript has one of these keys (from `few`); there may be many."""
    if not keys:
        return sa.false()
    if isinstance(keys[0], int):
        return text.c.number.in_(sa.select(sa.func.json_each(json.dumps(keys)).table_valued("value").c.value))
    return text.c.id == sa.any_(sa.literal(keys, postgresql.ARRAY(sa.String)))


def _holding(connection: sa.Connection, part: str) -> sa.Select[Any]:
    if len(part) < LENGTH:
        term = _trigrams.c.term
        return sa.select(_trigrams.c.doc).where(term >= part, term < part + "\U0010ffff")
    return sa.select(_index.c.rowid).where(_index.c[INDEX].op("MATCH", is_comparison=True)(_rarest(connection, part)))


def _rarest(connection: sa.Connection, part: str) -> str:
    """A query for the rarest trigrams of a string."""
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
