"""The catalog, a workspace's source of truth: records in transactions, on SQLite (embedded) or PostgreSQL (scaled out).

Steps read and write through a `Transaction`, which handles records instead of rows. Reads see one snapshot.

SQLite runs in WAL mode. A write transaction begins with IMMEDIATE, so that two processes wait for each other instead
of failing half-way (https://sqlite.org/lang_transaction.html). On PostgreSQL, reads are REPEATABLE READ and writes are
READ COMMITTED: a record found in a write is locked until the transaction ends
(https://www.postgresql.org/docs/current/transaction-iso.html), so that decisions based on it stay valid.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from voxloop.errors import CatalogAway, UnknownRecord, WorkspaceError, install_command
from voxloop.records import (
    Dataset,
    Encoding,
    Evaluation,
    Event,
    GivenSegment,
    Model,
    Promotion,
    Quality,
    Recording,
    Run,
    Transcript,
    Utterance,
    Word,
)
from voxloop.stores import search
from voxloop.stores.tables import (
    MACHINE_TEXTS,
    dataset,
    evaluation,
    event,
    machine_confidence,
    metadata,
    model,
    now_s,
    promotion,
    recording,
    run,
    transcript,
    utterance,
)

MANY = 500  # keys per statement, below every database's limit
NUMBER_DIGITS = 10  # of an utterance's number; longer digit strings can only be the start of a hash

Record = Recording | Utterance | Transcript | Dataset | Run | Model | Evaluation | Promotion
R = TypeVar("R", Recording, Utterance, Transcript, Dataset, Run, Model, Evaluation, Promotion)

T = TypeVar("T")

TABLES: dict[type[Any], sa.Table] = {
    Recording: recording,
    Utterance: utterance,
    Transcript: transcript,
    Dataset: dataset,
    Run: run,
    Model: model,
    Evaluation: evaluation,
    Promotion: promotion,
}
FIELDS = {kind: tuple(field.name for field in fields(kind)) for kind in TABLES}


def to_row(record: Record) -> dict[str, Any]:
    """A record as column values: like `dataclasses.asdict`, but without copying JSON values."""
    row: dict[str, Any] = _plain(record)
    return row


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return value


def to_record(kind: type[R], row: sa.Row[Any] | sa.RowMapping) -> R:
    """Convert a row of `kind`'s table to a record."""
    mapping = row if isinstance(row, sa.RowMapping) else row._mapping
    return _record(kind, [mapping[name] for name in FIELDS[kind]])


def _record(kind: type[R], row: Iterable[Any]) -> R:
    """Make a record from its field values, given in order."""
    values = dict(zip(FIELDS[kind], row, strict=True))
    if values.get("quality") is not None:
        values["quality"] = Quality(**values["quality"])
    if values.get("encoding") is not None:
        values["encoding"] = Encoding(**values["encoding"])
    if kind is Recording:
        values["segments"] = tuple(GivenSegment(**segment) for segment in values["segments"] or ())
    if kind is Transcript:
        values["words"] = tuple(Word(**word) for word in values["words"] or ())
        values["guards"] = tuple(values["guards"] or ())
    return kind(**values)


def to_event(row: sa.Row[Any]) -> Event:
    """Convert a row of the event table to an event."""
    return Event(id=row.id, type=row.type, subject=row.subject, payload=row.payload, seq=row.seq, created=row.created)


def chunks(ids: Iterable[T]) -> Iterator[list[T]]:
    """Split keys into groups small enough for one statement, without duplicates."""
    unique = list(dict.fromkeys(ids))
    for start in range(0, len(unique), MANY):
        yield unique[start : start + MANY]


def insert_new(connection: sa.Connection, table: sa.Table, rows: Sequence[dict[str, Any]]) -> int:
    """Insert the rows whose primary or unique key does not exist yet. Return their number. All rows have the same keys.

    The statement is prepared once and executed row by row. SQLite copies every page that a multi-row statement touches
    so that it can roll it back (https://sqlite.org/tempfiles.html, 2.3), which with random keys doubles the writes.
    """
    if not rows:
        return 0
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    if connection.dialect.name == "postgresql":
        # In a fixed order, so that two transactions inserting the same rows never deadlock.
        keys = [column.name for column in table.primary_key if column.name in rows[0]]
        rows = sorted(rows, key=lambda row: [str(row[key]) for key in keys])
    statement = insert(table).on_conflict_do_nothing().execution_options(preserve_rowcount=True)
    return int(connection.execute(statement, list(rows)).rowcount)


def insert_keys(
    connection: sa.Connection, table: sa.Table, rows: Sequence[dict[str, Any]], key: sa.Column[Any]
) -> list[Any]:
    """Like `insert_new`, for rows with a unique `key`. Return the keys of the inserted rows."""
    if connection.dialect.name == "postgresql":  # others may insert at the same time
        statement = postgresql.insert(table).on_conflict_do_nothing().returning(key)
        return list(connection.execute(statement, list(rows)).scalars()) if rows else []
    keys = list(dict.fromkeys(row[key.name] for row in rows))
    there: set[Any] = set()
    for part in chunks(keys):
        there.update(connection.execute(sa.select(key).where(key.in_(part))).scalars())
    insert_new(connection, table, [row for row in rows if row[key.name] not in there])
    return [one for one in keys if one not in there]


def _records(kind: type[R], where: Sequence[sa.ColumnElement[bool]], order: Any, limit: int | None) -> sa.Select[Any]:
    """Select the rows of records, with their fields in order."""
    table = TABLES[kind]
    default = (table.c.created, table.c.id) if "created" in table.c else (table.c.id,)
    by = default if order is None else order if isinstance(order, tuple) else (order,)
    return sa.select(*(table.c[name] for name in FIELDS[kind])).where(*where).limit(limit).order_by(*by)


class Reader:
    """Reads records over one connection."""

    def __init__(self, connection: sa.Connection) -> None:
        self.connection = connection

    def find(self, kind: type[R], id: str) -> R | None:
        """The record with this id, or None."""
        row = self.connection.execute(self._by_id(kind, id)).first()
        return None if row is None else to_record(kind, row)

    def find_all(self, kind: type[R], ids: Iterable[str]) -> dict[str, R]:
        """The existing records with these ids, by id, in as few statements as possible."""
        table = TABLES[kind]
        return {one.id: one for part in chunks(ids) for one in self.all(kind, table.c.id.in_(part))}

    def _by_id(self, kind: type[R], id: str) -> sa.Select[Any]:
        table = TABLES[kind]
        return sa.select(table).where(table.c.id == id)

    def get(self, kind: type[R], id: str) -> R:
        """The record with this id or unique short id; an utterance also by its number. Raises UnknownRecord."""
        found = self.find(kind, id)
        if found is None and kind is Utterance and id.isdecimal() and len(id) <= NUMBER_DIGITS:
            numbered = self.numbered(int(id))
            found = None if numbered is None else self.find(kind, numbered)
        if found is not None:
            return found
        table = TABLES[kind]
        # People use short ids: the start of a hash, with or without its algorithm, or the end of a ULID.
        head, colon, span = id.partition(":")
        pattern = sa.or_(
            table.c.id.startswith(head, autoescape=True),
            table.c.id.startswith(f"sha256-{head}", autoescape=True),
            table.c.id.endswith(id, autoescape=True),
        )
        if colon:  # an utterance: a short recording id and a span
            pattern = sa.and_(pattern, table.c.id.endswith(f":{span}", autoescape=True))
        rows = self.connection.execute(sa.select(table.c.id).where(pattern).limit(2)).all() if id else []
        if len(rows) == 1 and (found := self.find(kind, rows[0].id)) is not None:
            return found
        name = kind.__name__.lower()
        if rows:
            raise UnknownRecord(f"the {name} id {id!r} is not unique. Give more of it.")
        raise UnknownRecord(f"no {name} {id!r} in this workspace. See `voxloop {_LISTING[kind]}`.")

    def numbered(self, number: int) -> str | None:
        """The id of the utterance with this number; None if there is none."""
        found: str | None = self.connection.execute(
            sa.select(utterance.c.id).where(utterance.c.number == number)
        ).scalar()
        return found

    def numbers(self, ids: Sequence[str]) -> dict[str, int]:
        """The numbers of utterances, by id."""
        found: dict[str, int] = {}
        for part in chunks(ids):
            rows = self.connection.execute(
                sa.select(utterance.c.id, utterance.c.number).where(utterance.c.id.in_(part))
            )
            found.update((row.id, row.number) for row in rows)
        return found

    def all(
        self, kind: type[R], *where: sa.ColumnElement[bool], order: Any = None, limit: int | None = None
    ) -> list[R]:
        """The records that match the conditions, oldest first unless `order` is given."""
        return [_record(kind, row) for row in self.connection.execute(_records(kind, where, order, limit)).all()]

    def iterate(
        self, kind: type[R], *where: sa.ColumnElement[bool], order: Any = None, limit: int | None = None
    ) -> Iterator[R]:
        """Like `all`, streaming."""
        statement = _records(kind, where, order, limit).execution_options(yield_per=MANY)
        for row in self.connection.execute(statement):
            yield _record(kind, row)

    def count(self, kind: type[R], *where: sa.ColumnElement[bool]) -> int:
        statement = sa.select(sa.func.count()).select_from(TABLES[kind]).where(*where)
        return int(self.connection.execute(statement).scalar_one())

    def newest_event(self) -> int:
        """The number of the newest event; 0 if there is none."""
        return int(self.connection.execute(sa.select(sa.func.coalesce(sa.func.max(event.c.seq), 0))).scalar_one())

    def now(self) -> float:
        """The database's time, in seconds since the epoch."""
        return float(self.connection.execute(sa.select(now_s())).scalar_one())


_LISTING: dict[type[Any], str] = {
    Recording: "status",
    Utterance: "review list",
    Transcript: "review list",
    Dataset: "dataset list",
    Run: "run list",
    Model: "model list",
    Evaluation: "model list",
    Promotion: "model list",
}


class Writer(Reader):
    """Reads and writes records in one transaction. Records returned by `find` and `get` are locked until it ends."""

    def _by_id(self, kind: type[R], id: str) -> sa.Select[Any]:
        # FOR NO KEY UPDATE lets others still add rows that refer to it. SQLite locks the whole database anyway.
        return super()._by_id(kind, id).with_for_update(key_share=True)

    def lock(self, name: str) -> None:
        """Wait until no other transaction holds the lock with this name, and hold it until this one ends."""
        if self.connection.dialect.name == "postgresql":  # SQLite has one writer
            self.connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(name, 0))))

    def hold(self, *kinds: type[Record]) -> None:
        """Prevent others from writing records of these kinds until the transaction ends."""
        if self.connection.dialect.name == "postgresql":
            names = ", ".join(f'"{TABLES[kind].name}"' for kind in kinds)
            self.connection.exec_driver_sql(f"LOCK TABLE {names} IN SHARE ROW EXCLUSIVE MODE")

    def add(self, *records: Record) -> int:
        """Insert records that do not exist yet; a `created` of 0 becomes the current time. Return how many were new."""
        now: float | None = None
        inserted = 0
        for kind, group in groupby(records, type):  # keeps the order, since an utterance needs its recording
            rows = [to_row(record) for record in group]
            for row in rows:
                if row.get("created") == 0.0:
                    now = self.now() if now is None else now
                    row["created"] = now
            if kind is Utterance:
                self._date(rows)
            inserted += insert_new(self.connection, TABLES[kind], rows)
            if kind is Transcript:
                self._rate({row["utterance"] for row in rows if row["kind"] in MACHINE_TEXTS})
        return inserted

    def _date(self, utterances: Sequence[dict[str, Any]]) -> None:
        """Set `ingested` in utterance rows to the time when their recordings were ingested."""
        created: dict[str, float] = {}
        for part in chunks({row["recording"] for row in utterances}):
            wanted = sa.select(recording.c.id, recording.c.created).where(recording.c.id.in_(part))
            found = self.connection.execute(wanted)
            created.update((row.id, row.created) for row in found)
        for row in utterances:
            row["ingested"] = created.get(row["recording"], 0.0)  # without its recording, the insert fails

    def _rate(self, utterances: Iterable[str]) -> None:
        """Update the utterances' confidence to that of their current machine text."""
        if rated := [{"rated": id} for id in sorted(utterances)]:
            self.connection.execute(RATE, rated)

    def change(self, kind: type[Record], ids: str | Iterable[str], **values: Any) -> int:
        """Set columns of the records with these ids. Return the number changed."""
        table = TABLES[kind]
        changed = 0
        for part in chunks([ids] if isinstance(ids, str) else ids):
            changed += self.connection.execute(sa.update(table).where(table.c.id.in_(part)).values(**values)).rowcount
        return changed


RATE = (
    sa.update(utterance)
    .where(utterance.c.id == sa.bindparam("rated"), utterance.c.confidence.is_distinct_from(machine_confidence()))
    .values(confidence=machine_confidence())
)


AWAY = (
    "connection failed",
    "failed to resolve host",
    "connection is bad",
    "connection is lost",
    "connection timeout",
    "server closed the connection",
    "terminating",
)

# Parts of SQLite's and PostgreSQL's messages about an unusable database, and what to do (53100 is disk_full).
FAULTS = (
    (
        ("disk is full", "No space left"),
        "cannot be written because its disk is full ({}). Free some space and run the command again.",
    ),
    (
        ("readonly database", "unable to open database"),
        "cannot be opened for writing ({}). Check the permissions of the file, its folder and the files next to it.",
    ),
    (("not a database", "malformed"), "is damaged ({}). Keep the file, and restore a backup with `voxloop restore`."),
    (
        ("authentication failed", "no password supplied", "pg_hba.conf", 'role "', "permission denied"),
        "refuses this user ({}). Check the user and password in the setting `catalog` and the role's permissions.",
    ),
    (
        AWAY,
        "cannot be reached ({}). Check that the server is running, and the host, port and database in the setting "
        "`catalog`.",
    ),
    (("deadlock detected",), "rolled back a change because of a deadlock ({}). Run the command again."),
)


class Catalog:
    """The open catalog. Each transaction takes a connection from a pool."""

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)
        self._read = self.engine.execution_options(write=False)
        if self.engine.dialect.name == "sqlite":
            sa.event.listen(self.engine, "connect", _on_connect)
            sa.event.listen(self.engine, "begin", _on_begin)
        else:
            self._read = self._read.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    @contextmanager
    def read(self) -> Iterator[Reader]:
        """A read-only snapshot as of the first read in the block."""
        with self._told(), self._read.connect() as connection:
            yield Reader(connection)

    @contextmanager
    def write(self) -> Iterator[Writer]:
        """A transaction: committed when the block ends, rolled back if it raises."""
        with self._told(), self.engine.begin() as connection:
            yield Writer(connection)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Translate errors of the database itself into clear messages."""
        try:
            yield
        except sa.exc.DatabaseError as error:
            said = str(error.orig)
            signs, remedy = next((one for one in FAULTS if any(sign in said for sign in one[0])), ((), ""))
            if not remedy:
                raise
            kind = CatalogAway if signs is AWAY else WorkspaceError
            raise kind(f"the catalog {self.engine.url!r} {remedy.format(_line(error.orig))}") from error

    def migrate(self) -> None:
        """Upgrade the schema to this program's version. Raises WorkspaceError if the catalog is newer."""
        if self._is_current():
            return
        from alembic import command
        from alembic.config import Config
        from alembic.util import CommandError

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        # A second process waits, then finds the work done. On SQLite it waits for the IMMEDIATE transaction.
        with self._told(), self.engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATING)))
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, "head")
            except CommandError as error:
                raise WorkspaceError(
                    f"the catalog was written by a newer version of Voxloop, whose schema this version does not know "
                    f"({error}). Install the newer version."
                ) from error

    def _is_current(self) -> bool:
        """Whether the schema is this version's, found without Alembic, whose import takes longer than most commands."""
        newest = max(path.name for path in (MIGRATIONS / "versions").glob("[0-9]*.py")).partition("_")[0]
        with self._told():
            try:
                with self._read.connect() as connection:
                    return bool(connection.scalar(sa.text("SELECT version_num FROM alembic_version")) == newest)
            except (sa.exc.OperationalError, sa.exc.ProgrammingError):  # a new catalog, or one that says why below
                return False

    def compact(self) -> bool:
        """Overwrite the traces of deleted rows in the database files. Return False if others are using the catalog.

        SQLite keeps deleted content in free pages and the write-ahead log until both are
        rewritten (https://sqlite.org/lang_vacuum.html), and in the text index until its parts
        are merged. PostgreSQL keeps it until the table is rewritten
        (https://www.postgresql.org/docs/current/sql-vacuum.html); its log, replicas and backups
        are out of reach.
        """
        if self.engine.dialect.name == "postgresql":
            return self._rewrite()
        raw = self.engine.raw_connection()
        try:
            cursor = raw.cursor()
            try:
                cursor.execute(search.FORGET)
                cursor.execute("VACUUM")
                busy = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                    return False
                raise WorkspaceError(
                    f"the catalog cannot be compacted: {error}. Free some disk space and try again."
                ) from error
            return not busy
        finally:
            raw.close()

    def _rewrite(self) -> bool:
        """Rewrite every PostgreSQL table. Return False if others keep one locked for more than a moment."""
        with self._told(), self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql(f"SET lock_timeout = {REWRITE_WAIT_MS}")
            try:
                for table in metadata.sorted_tables:
                    connection.exec_driver_sql(f'VACUUM (FULL, ANALYZE) "{table.name}"')
            except sa.exc.OperationalError as error:
                if "lock timeout" in str(error.orig):
                    return False
                raise
            finally:
                connection.exec_driver_sql("RESET lock_timeout")
        return True

    def copy(self, target: Path) -> None:
        """Copy a snapshot of the catalog to a new SQLite file while others keep using it.

        Uses SQLite's online backup (https://sqlite.org/backup.html), in one step. Raises
        WorkspaceError if the catalog is not SQLite.
        """
        if self.engine.dialect.name != "sqlite":
            raise WorkspaceError(f"the catalog {self.engine.url!r} is not SQLite. Back it up with pg_dump.")
        raw = self.engine.raw_connection()
        copied = sqlite3.connect(target)
        try:
            cast("sqlite3.Connection", raw.driver_connection).backup(copied)
            copied.execute("PRAGMA journal_mode=DELETE")  # a single file, without a log next to it
        finally:
            copied.close()
            raw.close()

    def close(self) -> None:
        self.engine.dispose()


REWRITE_WAIT_MS = 5000
MIGRATIONS = Path(__file__).parent / "migrations"
CONNECT_S = 10  # for which a server is waited for that does not answer at all
MIGRATING = 0x766F786C6F6F70  # the advisory lock for migrations: "voxloop" as a number


def _engine(url: str) -> sa.Engine:
    """Create the engine for a catalog URL. Raises WorkspaceError, whose message never contains a password."""
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError as error:
        raise WorkspaceError(
            "the setting `catalog` is not a URL. Give sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE."
        ) from error
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "postgresql+psycopg"):
        raise WorkspaceError(f"the setting `catalog` is {parsed!r}. Give a sqlite:/// or postgresql+psycopg:// URL.")
    options: dict[str, Any] = {}
    if parsed.drivername != "sqlite":
        # A server closes its connections when it restarts, so each is tested before use.
        wait = {} if "connect_timeout" in parsed.query else {"connect_timeout": CONNECT_S}
        options = {"pool_pre_ping": True, "connect_args": wait}
    try:
        return sa.create_engine(parsed, json_serializer=_dumps, json_deserializer=_loads, **options)
    except ModuleNotFoundError as error:
        raise WorkspaceError(
            f"the catalog {parsed!r} needs the PostgreSQL driver. Install it with `{install_command('postgres')}`."
        ) from error


def _line(error: BaseException | None) -> str:
    """A driver's message on one line; libpq puts hints on separate lines."""
    return " ".join(str(error).split())


PRAGMAS = (
    "busy_timeout=60000",  # ms
    "journal_mode=wal",
    "synchronous=normal",
    "foreign_keys=on",
    # Keys are hashes, so each row changes pages all over its indexes. A long log collects many changes before each page
    # is written once, and a large cache keeps the upper levels of the trees in memory.
    "wal_autocheckpoint=16000",  # pages: 64 MB, SQLite's own is 4 MB
    "cache_size=-16000",  # kB, SQLite's own is 2,000
)


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _loads(text: str) -> Any:
    # Most values are empty lists: the words of texts without word times.
    return [] if text == "[]" else None if text == "null" else json.loads(text)


def _on_connect(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # BEGIN is sent explicitly, in _on_begin
    connection.create_function("casefold", 1, str.casefold, deterministic=True)  # SQLite's lower() handles only ASCII
    for pragma in PRAGMAS:
        connection.execute(f"pragma {pragma}")


def _on_begin(connection: sa.Connection) -> None:
    write = connection.get_execution_options().get("write", True)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
