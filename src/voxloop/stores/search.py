"""Texts by what is in them: the indexes of all transcripts that the catalogs keep.

SQLite's is an FTS5 table of trigrams (https://sqlite.org/fts5.html#the_trigram_tokenizer): it knows which texts have
three characters in a row, in any script and whatever their case, but not where, and it holds no text. Triggers write
it with each row. What it finds is therefore a little more than what is looked for, and the texts are looked at again.
Two line ends after each text let it find one or two characters, which are the beginning of some trigram then.

PostgreSQL's is a GIN index of pg_trgm (https://www.postgresql.org/docs/current/pgtrgm.html) over the texts without
their case. It knows three letters or digits in a row; fewer are looked for in one text after the other.
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
TRIGRAMS = "transcript_trigram"  # what is in the index, a row for each trigram and text

# Texts that were deleted stay in the index's older parts until all are merged.
FORGET = f"INSERT INTO {INDEX}({INDEX}) VALUES ('optimize')"

LENGTH = 3  # characters of a trigram
TRIGRAM = re.compile(r"[^\W_]{3}")  # what PostgreSQL's index knows of a part
TOGETHER = 4  # trigrams that are looked for together: more cost more and find hardly less
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
    """Whether a text holds a part that has no case any more: of the text, the part, and the part as a pattern."""

    type = sa.Boolean()
    inherit_cache = True


class _HoldsAscii(_Holds):
    """As `_Holds`, for a part in ASCII."""

    inherit_cache = True


def holds(text: sa.ColumnElement[str], part: str) -> sa.ColumnElement[bool]:
    """Whether a text may hold `part`, whatever the case of both."""
    folded = part.casefold()
    kind = _HoldsAscii if part.isascii() else _Holds
    return kind(text, sa.literal(folded), sa.literal(_pattern(folded)))


def _pattern(folded: str) -> str:
    """A pattern of LIKE for texts with this part. No text in PostgreSQL holds a NUL, nor may a pattern."""
    escaped = re.sub(r"([\\%_])", r"\\\1", folded).replace("\0", "_")
    return f"%{escaped}%"


@compiles(_Holds, "sqlite")
def _holds_sqlite(element: Any, compiler: Any, **more: Any) -> str:
    text, part, _ = (compiler.process(one, **more) for one in element.clauses)
    return f"(instr(casefold({text}), {part}) > 0)"  # a function of ours: SQLite's lower() knows ASCII alone


@compiles(_HoldsAscii, "sqlite")
def _holds_ascii_sqlite(element: Any, compiler: Any, **more: Any) -> str:
    text, part, _ = (compiler.process(one, **more) for one in element.clauses)
    return f"(instr(lower({text}), {part}) > 0)"


@compiles(_Holds, "postgresql")
def _holds_postgresql(element: Any, compiler: Any, **more: Any) -> str:
    text, _, pattern = element.clauses
    return f"(voxloop_casefold({compiler.process(text, **more)}) LIKE {compiler.process(pattern, **more)})"


def few(connection: sa.Connection, part: str) -> list[int] | list[str] | None:
    """The keys of the transcripts that may hold `part`, where these are so few that looking them up is the best way.

    None where there are more, and where no index knows. What a key is depends on the database: `among` takes it.
    """
    if not part or "\0" in part:
        return None
    if connection.dialect.name == "postgresql":
        return _few_postgresql(connection, part)
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


def _few_postgresql(connection: sa.Connection, part: str) -> list[str] | None:
    if not TRIGRAM.search(part):
        return None
    # As last counted by VACUUM or ANALYZE; -1: never, and then a table is small or will be counted soon.
    texts = connection.exec_driver_sql("SELECT reltuples FROM pg_class WHERE oid = 'transcript'::regclass").scalar_one()
    limit = isqrt(STEPS * max(int(texts), FIRST))
    table = transcript.c
    ids = connection.execute(sa.select(table.id).where(holds(table.text, part)).limit(limit + 1)).scalars().all()
    return list(ids) if len(ids) <= limit else None


def among(text: sa.FromClause, keys: list[int] | list[str]) -> sa.ColumnElement[bool]:
    """Whether a transcript is one of those with these keys (`few`), which may be many."""
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
