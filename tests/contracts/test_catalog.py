"""The catalog's contract: records come back as they went in, transactions are whole, migrations equal the schema."""

from __future__ import annotations

import multiprocessing
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote_plus

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.schema import CreateIndex

from tests.conftest import CATALOGS, free_ports, statements
from tests.postgresql import PASSWORD, Server, name_of
from voxloop.errors import UnknownRecord, WorkspaceError
from voxloop.records import Quality, Recording, Transcript, Utterance, Word, utterance_id
from voxloop.stores import tables
from voxloop.stores.catalog import Catalog, insert_keys

QUALITY = Quality(level_dbfs=-20.5, peak_dbfs=-3.0, snr_db=None, clipping=0.0, silence=0.25, bandwidth_hz=3400.0)


def recording(id: str = "sha256-aa", **values: object) -> Recording:
    return Recording(id=id, source="/speech/a.wav", name="a.wav", samples=32_000, **values)  # type: ignore[arg-type]


def test_records_come_back_as_they_went_in(catalog: Catalog) -> None:
    stored = recording(speaker="Ngân", language="vi", text="cà phê", quality=QUALITY, created=12.5)
    utterance = Utterance(
        id=utterance_id(stored.id, 0, 16_000), recording=stored.id, start=0, end=16_000, quality=QUALITY
    )
    words = (
        Word(text="cà", start=0.0, end=0.2, probability=0.5),
        Word(text="phê", start=0.2, end=0.5, probability=0.9),
    )
    transcript = Transcript(
        id="t1",
        utterance=utterance.id,
        kind="hypothesis",
        text="cà phê",
        by="m",
        confidence=0.7,
        words=words,
        created=1.0,
    )
    with catalog.write() as tx:
        assert tx.add(stored, utterance, transcript) == 3
    with catalog.read() as reader:
        assert reader.get(Recording, stored.id) == stored
        assert reader.get(Utterance, utterance.id) == utterance
        assert reader.get(Transcript, "t1") == transcript


def test_adding_again_changes_nothing(catalog: Catalog) -> None:
    with catalog.write() as tx:
        assert tx.add(recording(speaker="a")) == 1
    with catalog.write() as tx:
        assert tx.add(recording(speaker="b")) == 0
    with catalog.read() as reader:
        assert reader.get(Recording, "sha256-aa").speaker == "a"


def test_rows_of_one_key_are_inserted_once(catalog: Catalog) -> None:
    with catalog.write() as tx:
        assert tx.add(recording("sha256-aa")) == 1
        assert tx.add(recording("sha256-bb", speaker="b"), recording("sha256-bb"), recording("sha256-aa")) == 1
        rows = [{"path": path, "created": 1.0, "reason": "empty", "message": ""} for path in ("a", "b", "a")]
        key = tables.refusal.c.path
        assert insert_keys(tx.connection, tables.refusal, rows[:1], key) == ["a"]
        assert insert_keys(tx.connection, tables.refusal, [*rows, {**rows[0], "path": "c"}], key) == ["b", "c"]
        assert insert_keys(tx.connection, tables.refusal, rows, key) == []
    with catalog.read() as reader:
        assert [one.speaker for one in reader.all(Recording, order=tables.recording.c.id)] == [None, "b"]


def test_many_rows_are_no_statement_of_many_rows(catalog: Catalog) -> None:
    """SQLite keeps a copy of all pages that such a statement touches, in a file."""
    many: list[bool] = []

    @sa.event.listens_for(catalog.engine, "before_cursor_execute")
    def sent(_c: object, _d: object, statement: str, _p: object, _x: object, executemany: bool) -> None:
        if statement.startswith("INSERT"):
            many.append(executemany)

    with catalog.write() as tx:
        assert tx.add(*(recording(f"sha256-{n:02x}") for n in range(100))) == 100
        rows = [{"path": str(n), "created": 1.0, "reason": "empty", "message": ""} for n in range(1200)]
        assert len(insert_keys(tx.connection, tables.refusal, rows, tables.refusal.c.path)) == 1200
    assert all(many)
    assert len(many) <= 3  # PostgreSQL returns the keys of at most 1,000 rows at a time


def test_a_transaction_that_raises_leaves_nothing(catalog: Catalog) -> None:
    with pytest.raises(RuntimeError, match="in the middle"), catalog.write() as tx:
        tx.add(recording())
        raise RuntimeError("in the middle")
    with catalog.read() as reader:
        assert reader.count(Recording) == 0


def test_short_ids_find_one_record_and_say_when_they_do_not(catalog: Catalog) -> None:
    with catalog.write() as tx:
        tx.add(recording("sha256-aabb"), recording("sha256-aacc"))
    with catalog.read() as reader:
        assert reader.get(Recording, "aab").id == "sha256-aabb"
        with pytest.raises(UnknownRecord, match="not unique"):
            reader.get(Recording, "aa")
        with pytest.raises(UnknownRecord, match="no recording 'zz'"):
            reader.get(Recording, "zz")
        with pytest.raises(UnknownRecord):
            reader.get(Recording, "")
        with pytest.raises(UnknownRecord):
            reader.get(Recording, "%")


def test_writers_wait_for_each_other(catalog: Catalog) -> None:
    """Twenty threads add one to a number: every addition counts."""
    with catalog.write() as tx:
        tx.add(recording())

    def add_one() -> None:
        for _ in range(5):
            with catalog.write() as tx:
                before = tx.get(Recording, "sha256-aa").samples
                time.sleep(0.001)
                tx.change(Recording, "sha256-aa", samples=before + 1)

    threads = [threading.Thread(target=add_one) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with catalog.read() as reader:
        assert reader.get(Recording, "sha256-aa").samples == 32_000 + 100


def test_a_reader_sees_one_moment(catalog: Catalog) -> None:
    with catalog.write() as tx:
        tx.add(recording("sha256-aa"))
    with catalog.read() as reader:
        assert reader.count(Recording) == 1
        with catalog.write() as tx:
            tx.add(recording("sha256-bb"))
        assert reader.count(Recording) == 1
    with catalog.read() as reader:
        assert reader.count(Recording) == 2


def test_the_database_has_the_clock(catalog: Catalog) -> None:
    with catalog.read() as reader:
        assert abs(reader.now() - time.time()) < 5


def test_migrations_equal_the_schema(catalog: Catalog) -> None:
    with catalog.engine.begin() as connection:
        # Alembic cannot read the order of an index's columns back from SQLite: those are compared as SQL.
        sqlite = connection.dialect.name == "sqlite"
        # Nor does the schema know the index of texts, which is another one on each database.
        options = {
            "include_object": lambda item, *_: not (sqlite and isinstance(item, sa.Index) and _listed(item.name)),
            "include_name": lambda name, *_: not str(name).startswith(("transcript_t", "ix_transcript_text")),
        }
        differences = compare_metadata(MigrationContext.configure(connection, opts=options), tables.metadata)
        rows = connection.exec_driver_sql("select name, sql from sqlite_master where type = 'index'") if sqlite else ()
        made = {name: sql for name, sql in rows if _listed(name)}
        meant = {
            str(index.name): str(CreateIndex(index).compile(connection))
            for index in (*tables.utterance.indexes, *tables.job.indexes)
            if sqlite and _listed(index.name)
        }
    assert differences == []
    assert {name: sql.split() for name, sql in made.items()} == {name: sql.split() for name, sql in meant.items()}


def _listed(name: object) -> bool:
    return str(name).endswith("_listed") or str(name).startswith("ix_job_")


def test_migrating_twice_changes_nothing(catalog: Catalog) -> None:
    with catalog.write() as tx:
        tx.add(recording())
    catalog.migrate()
    with catalog.read() as reader:
        assert reader.count(Recording) == 1


def test_a_newer_schema_is_refused(catalog: Catalog) -> None:
    with catalog.engine.begin() as connection:
        connection.execute(sa.text("update alembic_version set version_num = '9999'"))
    with pytest.raises(WorkspaceError, match="newer"):
        catalog.migrate()


def _migrate(url: str) -> None:
    catalog = Catalog(url)
    catalog.migrate()
    catalog.close()


@pytest.fixture(params=CATALOGS)
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a catalog that nobody has opened yet."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("new_postgresql"))
    return f"sqlite:///{tmp_path / 'new.db'}"


def test_processes_that_start_together_migrate_once(new_url: str) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_migrate, args=(new_url,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]


def test_utterances_are_numbered_as_they_come(catalog: Catalog) -> None:
    made = [
        Utterance(id=utterance_id("sha256-aa", start, start + 10), recording="sha256-aa", start=start, end=start + 10)
        for start in (50, 10, 30, 20)
    ]
    with catalog.write() as tx:
        tx.add(recording(), *made[:2])
    with catalog.write() as tx:
        assert tx.add(made[0], *made[2:], made[1]) == 2
    with catalog.read() as reader:
        numbers = reader.numbers([one.id for one in made] + ["none"])
        # Those of a transaction before those of the next.
        assert {numbers[one.id] for one in made[:2]} == {1, 2}
        assert max(numbers[one.id] for one in made[:2]) < min(numbers[one.id] for one in made[2:])
        assert len(set(numbers.values())) == 4
        for one in made:
            assert reader.numbered(numbers[one.id]) == one.id
            assert reader.get(Utterance, str(numbers[one.id])) == one
        assert reader.numbered(1_000_000) is None
        with pytest.raises(UnknownRecord):
            reader.get(Utterance, "1000000")


def test_many_that_add_utterances_get_numbers_of_their_own(catalog: Catalog) -> None:
    with catalog.write() as tx:
        tx.add(recording())

    def add(first: int) -> None:
        for start in range(first, first + 20):
            with catalog.write() as tx:
                tx.add(Utterance(id=utterance_id("sha256-aa", start, 999), recording="sha256-aa", start=start, end=999))

    threads = [threading.Thread(target=add, args=(first,)) for first in range(0, 120, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with catalog.read() as reader:
        ids = [utterance.id for utterance in reader.all(Utterance)]
        assert len(ids) == 120
        assert len(set(reader.numbers(ids).values())) == 120


def test_changing_many_records_is_few_statements(catalog: Catalog) -> None:
    ids = [f"sha256-{n:04x}" for n in range(1200)]
    with catalog.write() as tx:
        tx.add(*map(recording, ids))
    with statements(catalog) as said, catalog.write() as tx:
        assert tx.change(Recording, [*ids, ids[0], "sha256-none"], speaker="ann") == 1200
    assert len(said) == 3
    with statements(catalog) as said, catalog.read() as reader:
        found = reader.find_all(Recording, [*ids[:600], "sha256-none"])
    assert len(said) == 2
    assert list(found) == ids[:600]
    assert {one.speaker for one in found.values()} == {"ann"}


def test_streamed_records_are_those_read_at_once(catalog: Catalog) -> None:
    with catalog.write() as tx:
        tx.add(*(recording(f"sha256-{n:04x}") for n in range(1200)))
    with catalog.read() as reader:
        streamed = reader.iterate(Recording)
        assert next(streamed).id == "sha256-0000"
        assert reader.count(Recording) == 1200  # another statement meanwhile
        assert [one.id for one in streamed] == [one.id for one in reader.all(Recording)][1:]


# PostgreSQL alone ----------------------------------------------------------------------------------------------------


@pytest.fixture
def on_server(postgresql: str) -> Iterator[Catalog]:
    opened = Catalog(postgresql)
    yield opened
    opened.close()


def test_text_is_ordered_by_its_bytes(on_server: Catalog) -> None:
    """In the order of SQLite and Python, not in that of the database's language."""
    names = ["b", "B", "a-1", "a1", "A", "ă", "z", "_", ""]
    with on_server.write() as tx:
        tx.add(*(recording(f"sha256-{n}", speaker=name) for n, name in enumerate(names)))
    with on_server.read() as reader:
        assert [one.speaker for one in reader.all(Recording, order=tables.recording.c.speaker)] == sorted(names)
        linguistic = reader.connection.exec_driver_sql(
            "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public'"
            " AND data_type IN ('text', 'character varying') AND collation_name IS DISTINCT FROM 'C'"
        ).all()
    assert linguistic == []


def test_nothing_is_written_in_a_read(on_server: Catalog) -> None:
    with pytest.raises(sa.exc.DatabaseError, match="read-only"), on_server.read() as reader:
        reader.connection.execute(sa.insert(tables.alias).values(name="a", model="m", promotion="p"))


def test_a_record_that_is_held_can_be_referred_to_but_not_changed(on_server: Catalog) -> None:
    with on_server.write() as tx:
        tx.add(recording())
    with on_server.write() as holder:
        holder.get(Recording, "aa")  # by the beginning of its id
        with on_server.write() as tx:
            tx.connection.exec_driver_sql("SET LOCAL lock_timeout = '2s'")
            tx.add(Utterance(id="u", recording="sha256-aa", start=0, end=9))
        with pytest.raises(sa.exc.OperationalError, match="lock timeout"), on_server.write() as tx:
            tx.connection.exec_driver_sql("SET LOCAL lock_timeout = '50ms'")
            tx.change(Recording, "sha256-aa", speaker="b")


def test_tables_that_are_held_are_written_by_nobody_else(on_server: Catalog) -> None:
    with on_server.write() as holder:
        holder.hold(Recording, Utterance)
        holder.add(recording())
        with on_server.read() as reader:
            assert reader.count(Recording) == 0
        with pytest.raises(sa.exc.OperationalError, match="lock timeout"), on_server.write() as tx:
            tx.connection.exec_driver_sql("SET LOCAL lock_timeout = '50ms'")
            tx.add(recording("sha256-bb"))


def test_a_plain_postgresql_url_takes_the_driver_that_is_installed(postgresql: str) -> None:
    plain = Catalog(postgresql.replace("postgresql+psycopg", "postgresql"))
    with plain.read() as reader:
        assert reader.count(Recording) == 0
    plain.close()


@pytest.mark.parametrize("wrong", ["password", "database", "port", "driver", "url"])
def test_a_password_is_never_shown(wrong: str, postgresql: str) -> None:
    """Neither in the message nor in what caused it, and the message says what to check."""
    url = sa.make_url(postgresql)
    secret = "s3cr3t-%/words"
    url = url.set(password=secret if wrong == "password" else url.password)
    text = {
        "password": url,
        "database": url.set(database="nowhere", password=url.password),
        "port": url.set(port=free_ports(1)[0]),
        "driver": url.set(drivername="mysql+pymysql"),
        "url": None,
    }[wrong]
    given = text.render_as_string(hide_password=False) if text is not None else f"postgresql//me:{secret}@here:x/db"
    with pytest.raises(WorkspaceError) as raised:
        Catalog(given).migrate()
    said, error = "", raised.value
    while error is not None:
        said += "".join(traceback.format_exception_only(error))
        error = error.__cause__ or error.__context__
    for password in (secret, str(url.password), quote_plus(secret), quote_plus(str(url.password))):
        assert password not in said
    assert "catalog" in str(raised.value)
    assert "\n" not in str(raised.value)
    expected = {
        "password": "refuses this user",
        "driver": "Give a sqlite:///",
        "url": "is not a URL. Give sqlite:///FILE",
    }
    assert expected.get(wrong, "cannot be reached") in str(raised.value)


def test_a_role_that_may_not_add_the_extension_is_told_who_can(new_postgresql: str, postgresql_server: Server) -> None:
    database = name_of(new_postgresql)
    role = f"r{database[:20]}"
    postgresql_server.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
    catalog = Catalog(postgresql_server.url(database, user=role))
    try:
        with pytest.raises(WorkspaceError, match=r"refuses this user.*permission denied for schema"):
            catalog.migrate()
        owner = sa.create_engine(new_postgresql)
        with owner.begin() as connection:
            connection.exec_driver_sql(f"GRANT ALL ON SCHEMA public TO {role}")
        with pytest.raises(WorkspaceError, match="CREATE EXTENSION pg_trgm"):
            catalog.migrate()
        with owner.begin() as connection:
            connection.exec_driver_sql("CREATE EXTENSION pg_trgm")
        owner.dispose()
        catalog.migrate()
        with catalog.read() as reader:
            assert reader.count(Recording) == 0
    finally:
        catalog.close()
        postgresql_server.execute(f'DROP DATABASE "{database}" WITH (FORCE)')
        postgresql_server.execute(f"DROP ROLE {role}")


def test_a_database_that_is_not_utf8_is_refused(postgresql_server: Server) -> None:
    url = postgresql_server.create(ENCODING="'LATIN1'", LOCALE_PROVIDER="libc", LOCALE="'C'")
    catalog = Catalog(url)
    with pytest.raises(WorkspaceError, match=r"LATIN1\. Create one in UTF8"):
        catalog.migrate()
    catalog.close()
    postgresql_server.drop(url)
