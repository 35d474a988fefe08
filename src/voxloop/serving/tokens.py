"""Who may use the server: the administrator, and people and programs with tokens of their own.

A token is a secret of 256 random bits; the catalog keeps its SHA-256 alone, which a backup may hold. A browser is not
given the token: a link that works once signs it in, with a cookie of its own.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import sqlalchemy as sa
from ulid import ULID

from voxloop.errors import UnknownRecord, UsageError, nearest
from voxloop.settings import TOKEN_VARIABLE
from voxloop.stores import tables
from voxloop.stores.tables import now_s

if TYPE_CHECKING:
    from voxloop.workspace import Workspace

VARIABLE = TOKEN_VARIABLE
ADMINISTRATOR = "admin"
LINK_S = 15 * 60.0  # how long a link can be opened
SESSION_S = 30 * 86400.0  # how long a browser stays signed in

Scope = Literal["listen", "review", "metrics", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

token, session = tables.access_token, tables.access_session


@dataclass(frozen=True, kw_only=True, slots=True)
class Client:
    """Who asks: decisions, captures and limits carry this name."""

    name: str
    scopes: frozenset[str]
    token: str | None = None  # id of the token; None: the administrator's own

    def may(self, scope: Scope) -> bool:
        """Whether this is allowed: `admin` allows everything."""
        return scope in self.scopes or "admin" in self.scopes


ANYBODY = Client(name=ADMINISTRATOR, scopes=frozenset({"admin"}))
"""Whoever asks a server that wants no token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """A token as it is listed."""

    id: str
    name: str
    scopes: tuple[str, ...]
    created: float  # seconds since the epoch
    revoked: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Issued:
    """A new token. The secret and the code are told once and kept nowhere."""

    token: Token
    secret: str
    code: str  # of a link that signs a browser in: /login?code=…


def administrators(ws: Workspace) -> str:
    """The administrator's token: from the environment, or made once and kept readable to its owner alone."""
    if given := os.environ.get(VARIABLE):
        return given
    file = token_file(ws)
    if not file.exists():
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as out:
            out.write(secrets.token_urlsafe(32))
        with suppress(FileExistsError):  # another process was first: its token counts
            file.hardlink_to(partial)
        partial.unlink()
    return file.read_text().strip()


def token_file(ws: Workspace) -> Path:
    """Where the administrator's token lies; no backup copies it."""
    return ws.folder / "secrets" / "token"


def add(ws: Workspace, name: str, scopes: Collection[str] = ("listen",)) -> Issued:
    """Make a token for a person or a program. Raises UsageError for a scope that does not exist or a name in use."""
    name = name.strip()
    if not name or name == ADMINISTRATOR:
        raise UsageError(f"{name!r} cannot be the name of a token: name the person or program that uses it")
    for scope in scopes:
        if scope not in SCOPES:
            raise UsageError(f"there is no scope {scope!r}{nearest(scope, SCOPES)}")
    if not scopes:
        raise UsageError(f"a token needs a scope: one or more of {', '.join(SCOPES)}")
    secret, id = secrets.token_urlsafe(32), str(ULID())
    with ws.transaction() as tx:
        used = sa.select(token.c.id).where(token.c.name == name, token.c.revoked.is_(None))
        if tx.connection.execute(used).first():
            raise UsageError(f"{name} has a token already: revoke it first (`voxloop token revoke {name}`)")
        row = {"id": id, "created": tx.now(), "name": name, "scopes": sorted(set(scopes)), "hash": _hash(secret)}
        tx.connection.execute(sa.insert(token).values(row))
    code = link(ws, id)
    with ws.read() as reader:
        found = reader.connection.execute(sa.select(token).where(token.c.id == id)).one()
    return Issued(token=_token(found), secret=secret, code=code)


def listed(ws: Workspace) -> list[Token]:
    """All tokens, also revoked ones, oldest first."""
    with ws.read() as reader:
        return [_token(row) for row in reader.connection.execute(sa.select(token).order_by(token.c.id))]


def revoke(ws: Workspace, name: str) -> Token:
    """End a token, by its name or id, and everything that is signed in with it. Raises UnknownRecord."""
    with ws.transaction() as tx:
        live = token.c.revoked.is_(None)
        query = sa.select(token).where(live, sa.or_(token.c.name == name, token.c.id == name))
        row = tx.connection.execute(query).first()
        if row is None:
            known = tx.connection.execute(sa.select(token.c.name).where(live)).scalars().all()
            hint = nearest(name, known) if known else "; there are none"
            raise UnknownRecord(f"no token is of {name!r}{hint}")
        tx.connection.execute(sa.update(token).where(token.c.id == row.id).values(revoked=now_s()))
        tx.connection.execute(sa.delete(session).where(session.c.token == row.id))
        return _token(tx.connection.execute(sa.select(token).where(token.c.id == row.id)).one())


def by_secret(ws: Workspace, secret: str) -> Client | None:
    """Whose token this is; None: nobody's, or revoked."""
    with ws.read() as reader:
        query = sa.select(token).where(token.c.hash == _hash(secret), token.c.revoked.is_(None))
        row = reader.connection.execute(query).first()
    return _client(row) if row else None


def still_valid(ws: Workspace, client: Client) -> bool:
    """Whether a client's token has not been revoked since it was let in."""
    if client.token is None:
        return True
    with ws.read() as reader:
        query = sa.select(token.c.id).where(token.c.id == client.token, token.c.revoked.is_(None))
        return reader.connection.execute(query).first() is not None


# Browsers ------------------------------------------------------------------------------------------------------------


def link(ws: Workspace, id: str | None = None) -> str:
    """A code that signs a browser in once, with a token (None: as the administrator)."""
    return _session(ws, id, "link", LINK_S)


def sign_in(ws: Workspace, code: str) -> str | None:
    """Take a link's code for a session's secret; None where it was used, has expired, or never was."""
    with ws.transaction() as tx:
        query = sa.delete(session).where(
            session.c.hash == _hash(code), session.c.kind == "link", session.c.expires > now_s()
        )
        row = tx.connection.execute(query.returning(session.c.token)).first()
    return _session(ws, row.token, "session", SESSION_S) if row else None


def sign_out(ws: Workspace, secret: str) -> None:
    """End a browser's session."""
    with ws.transaction() as tx:
        tx.connection.execute(sa.delete(session).where(session.c.hash == _hash(secret)))


def by_session(ws: Workspace, secret: str) -> Client | None:
    """Who is signed in; None: nobody, or no longer."""
    with ws.read() as reader:
        live = session.c.hash == _hash(secret), session.c.kind == "session", session.c.expires > now_s()
        query = sa.select(session.c.hash, token).select_from(session.outerjoin(token)).where(*live)
        row = reader.connection.execute(query).first()
    if row is None or row.revoked is not None:
        return None
    return _client(row) if row.id else ANYBODY


def _session(ws: Workspace, id: str | None, kind: str, lasts_s: float) -> str:
    secret = secrets.token_urlsafe(32)
    with ws.transaction() as tx:
        tx.connection.execute(sa.delete(session).where(session.c.expires < now_s()))
        row = {"hash": _hash(secret), "token": id, "kind": kind, "created": tx.now(), "expires": tx.now() + lasts_s}
        tx.connection.execute(sa.insert(session).values(row))
    return secret


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _token(row: sa.Row[tuple[object, ...]]) -> Token:
    found = row._mapping
    return Token(
        id=found["id"],
        name=found["name"],
        scopes=tuple(found["scopes"]),
        created=found["created"],
        revoked=found["revoked"],
    )


def _client(row: sa.Row[tuple[object, ...]]) -> Client:
    found = row._mapping
    return Client(name=found["name"], scopes=frozenset(found["scopes"]), token=found["id"])
