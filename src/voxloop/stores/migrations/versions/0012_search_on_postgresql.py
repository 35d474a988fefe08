"""an index of all texts in PostgreSQL, by their trigrams and whatever their case"""

import sys

import sqlalchemy as sa
from alembic import op

from voxloop.errors import WorkspaceError

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

EXTENSION = "CREATE EXTENSION IF NOT EXISTS pg_trgm"
INDEX = "CREATE INDEX ix_transcript_text_trigrams ON transcript USING gin (voxloop_casefold(text) gin_trgm_ops)"


def casefold() -> str:
    """A function that does to a text what Python's `str.casefold` does.

    PostgreSQL has its own from version 18 on. Lower case is that of Unicode (ICU), whatever the database's locale.
    Texts with letters that fold otherwise, such as ß to ss, have these replaced one after the other, which takes
    fifty times as long.
    """
    single: dict[str, str] = {}
    several: dict[str, str] = {}
    otherwise = "Σ"  # ς at the end of a word
    for char in map(chr, range(128, sys.maxunicode + 1)):
        lower, folded = char.lower(), char.casefold()
        if lower != folded:
            otherwise += char
            (single if len(folded) == 1 else several)[lower] = folded
    lowered = folding = 'lower(text COLLATE "und-x-icu") COLLATE "C"'
    for char, folded in several.items():
        folding = f"replace({folding}, '{char}', '{folded}')"
    folding = f"translate({folding}, '{''.join(single)}', '{''.join(single.values())}')"
    return f"""
CREATE OR REPLACE FUNCTION voxloop_casefold(text text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
SELECT CASE
    WHEN octet_length(text) = length(text) THEN lower(text COLLATE "C")
    WHEN text COLLATE "C" !~ '[{otherwise}]' THEN {lowered}
    ELSE {folding}
END
$$"""


def upgrade() -> None:
    connection = op.get_bind()
    if connection.dialect.name != "postgresql":
        return
    _check(connection)
    try:
        with connection.begin_nested():
            op.execute(EXTENSION)
    except sa.exc.DatabaseError as error:
        said = " ".join(str(error.orig).split())
        raise WorkspaceError(
            f"cannot add PostgreSQL's extension pg_trgm, needed for searching texts, to the database ({said}). "
            "Have its owner or an administrator run `CREATE EXTENSION pg_trgm`, then try again."
        ) from error
    connection.exec_driver_sql(casefold())
    op.execute(INDEX)


def _check(connection: sa.Connection) -> None:
    encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
    if encoding != "UTF8":
        raise WorkspaceError(
            f"the database's encoding is {encoding}. Create one in UTF8: `createdb -E UTF8 -T template0 NAME`."
        )
    if not connection.exec_driver_sql("SELECT 1 FROM pg_collation WHERE collname = 'und-x-icu'").scalar():
        raise WorkspaceError(
            "this PostgreSQL was built without ICU. Use one that was built with ICU, for Unicode letters."
        )


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":  # the extension may be in use elsewhere
        op.execute("DROP INDEX ix_transcript_text_trigrams")
        op.execute("DROP FUNCTION voxloop_casefold(text)")
