"""Personal vocabulary: names and jargon that are said in this workspace, as they are to be written.

What is transcribed, evaluated and compared prefers them (`transcripts.decoding`); a change of the list is a change of
the decoding, so models are measured anew.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from voxloop.errors import UsageError
from voxloop.families.contract import Term
from voxloop.speech.languages import language_code
from voxloop.stores import tables
from voxloop.stores.catalog import insert_new

if TYPE_CHECKING:
    from voxloop.workspace import Workspace

LONGEST = 100  # characters of a term


def add(ws: Workspace, terms: Iterable[str], *, language: str = "") -> int:
    """Add terms, for one language or (empty) for any; the number that is new.

    Raises UsageError for a term that is empty, longer than 100 characters or more than a line.
    """
    code = language_code(language) or ""
    chosen = list(dict.fromkeys(_checked(term) for term in terms))
    with ws.transaction() as tx:
        now = tx.now()
        rows = [{"term": term, "language": code, "created": now} for term in chosen]
        return insert_new(tx.connection, tables.vocabulary, rows)


def remove(ws: Workspace, terms: Iterable[str], *, language: str | None = None) -> int:
    """Remove terms, of one language or (None) wherever they stand; the number of entries removed.

    Raises UsageError for a term that is not in the vocabulary; then nothing is removed.
    """
    entry = tables.vocabulary.c
    code = None if language is None else language_code(language) or ""
    removed = 0
    with ws.transaction() as tx:
        for term in dict.fromkeys(_checked(term) for term in terms):
            statement = sa.delete(tables.vocabulary).where(entry.term == term)
            if code is not None:
                statement = statement.where(entry.language == code)
            count = tx.connection.execute(statement).rowcount
            if not count:
                raise UsageError(f"{term!r} is not in the vocabulary{f' of {code}' if code else ''}")
            removed += count
    return removed


def entries(ws: Workspace, language: str | None = None) -> tuple[Term, ...]:
    """The vocabulary, the newest first: all of it, or what counts in a language."""
    entry = tables.vocabulary.c
    query = sa.select(entry.term, entry.language).order_by(entry.created.desc(), entry.term, entry.language)
    if language is not None:
        query = query.where(entry.language.in_(("", language_code(language) or "")))
    with ws.read() as reader:
        return tuple(Term(term, code) for term, code in reader.connection.execute(query))


def read_terms(file: Path) -> list[str]:
    """The terms of a text file in UTF-8, one a line; empty lines and those that begin with # are left out.

    Raises UsageError where the file cannot be read.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read as text in UTF-8: {error}") from error
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _checked(term: str) -> str:
    tidy = unicodedata.normalize("NFC", " ".join(term.split()))
    if not tidy:
        raise UsageError("a term of the vocabulary is empty: give a word or a phrase")
    if len(tidy) > LONGEST or any(unicodedata.category(one) == "Cc" for one in tidy):
        raise UsageError(f"{tidy[:LONGEST]!r} is no term: give a word or a phrase of at most {LONGEST} characters")
    return tidy
