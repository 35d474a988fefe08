"""Personal vocabulary: names and jargon that speakers in this workspace use, with the spelling to write.

Transcription, evaluation and comparison all prefer these terms (`transcripts.decoding`). A changed list changes the
decoding, so models are evaluated again.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from voxloop.errors import UsageError
from voxloop.families.decoding import Term
from voxloop.speech.languages import language_code
from voxloop.stores import tables
from voxloop.stores.catalog import insert_new

if TYPE_CHECKING:
    from voxloop.workspace import Workspace

LONGEST = 100  # characters of a term


def add(ws: Workspace, terms: Iterable[str], *, language: str = "") -> int:
    """Add terms for one language, or for any language if `language` is empty. Return the number of new terms.

    Raises UsageError if a term is empty, is longer than 100 characters or has more than one line.
    """
    code = language_code(language) or ""
    chosen = list(dict.fromkeys(_checked(term) for term in terms))
    with ws.transaction() as tx:
        now = tx.now()
        rows = [{"term": term, "language": code, "created": now} for term in chosen]
        return insert_new(tx.connection, tables.vocabulary, rows)


def remove(ws: Workspace, terms: Iterable[str], *, language: str | None = None) -> int:
    """Remove terms from one language, or from all if `language` is None. Return the number of entries removed.

    Raises UsageError, and removes nothing, if a term is not in the vocabulary.
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
                raise UsageError(
                    f"{term!r} is not in the vocabulary{f' for {code}' if code else ''}: `voxloop vocabulary list` "
                    "shows its terms"
                )
            removed += count
    return removed


def entries(ws: Workspace, language: str | None = None) -> tuple[Term, ...]:
    """Return the vocabulary, newest first: all of it, or the terms that apply in a language."""
    entry = tables.vocabulary.c
    query = sa.select(entry.term, entry.language).order_by(entry.created.desc(), entry.term, entry.language)
    if language is not None:
        query = query.where(entry.language.in_(("", language_code(language) or "")))
    with ws.read() as reader:
        return tuple(Term(term, code) for term, code in reader.connection.execute(query))


def read_terms(file: Path) -> list[str]:
    """Read the terms in a UTF-8 text file, one per line; skip empty lines and lines that begin with #.

    Raises UsageError if the file cannot be read.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {file} as UTF-8 text: {error}") from error
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _checked(term: str) -> str:
    tidy = unicodedata.normalize("NFC", " ".join(term.split()))
    if not tidy:
        raise UsageError("a vocabulary term is empty: give a word or a phrase")
    if len(tidy) > LONGEST or any(unicodedata.category(one) == "Cc" for one in tidy):
        raise UsageError(f"{tidy[:LONGEST]!r} is not a term: give a word or a phrase of at most {LONGEST} characters")
    return tidy
