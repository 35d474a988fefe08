"""Texts are found by any part of them, in any script, and the index holds what the catalog holds and nothing else."""

from __future__ import annotations

import unicodedata

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from voxloop.records import Recording, Transcript, Utterance, utterance_id
from voxloop.steps import review
from voxloop.steps.review import Filters
from voxloop.stores import search, tables
from voxloop.stores.catalog import Catalog
from voxloop.workspace import Workspace

TEXTS = (
    "Open the window, please",
    "the WINDOW is open",
    "mở CỬA sổ ra",
    "Mở cửa",
    "請打開窗戶",
    "窗",
    "窓を開けてください",
    "ОТКРОЙ окно",
    "Straße",
    'she said "no"',
    "50 % AND 5_0",
    "a",
    "",
    "ends in ab",
    "win\ndow",
)
PARTS = (
    *("window", "WINDOW", "the w", "n", "en", "xyz", "cửa", "Cửa S", "ử", "窗", "窗戶", "開け", "окно", "ткрой", "O"),
    *(
        "straß",
        '"no',
        '"',
        "%",
        "5_",
        "% AND 5",
        "ab",
        "b",
        "a",
        "\n",
        "win\n",
        " ",
        "so much that it is in no text",
        "\0",
    ),
)


def add(ws: Workspace, texts: tuple[str, ...]) -> list[str]:
    """An utterance for each text; their ids."""
    recording = Recording(id="sha256-aa", source="/a.wav", name="a.wav", samples=16_000 * len(texts))
    ids = []
    with ws.transaction() as tx:
        tx.add(recording)
        for number, text in enumerate(texts):
            start, end = 16_000 * number, 16_000 * (number + 1)
            utterance = Utterance(
                id=utterance_id(recording.id, start, end), recording=recording.id, start=start, end=end
            )
            said = Transcript(id=f"h{number:02}", utterance=utterance.id, kind="hypothesis", text=text, by="m")
            tx.add(utterance, said)
            ids.append(utterance.id)
    return ids


def found(ws: Workspace, part: str) -> set[str]:
    return {item.text for item in review.page(ws, where=Filters(contains=part), limit=100).items}


@pytest.mark.parametrize("steps", [0, 1, 200])
def test_a_part_of_a_text_finds_it_whatever_its_case(
    each_workspace: Workspace, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the index, by looking at each text, and by either as it is decided."""
    monkeypatch.setattr(search, "STEPS", steps)
    add(each_workspace, TEXTS)
    for part in PARTS:
        assert found(each_workspace, part) == {text for text in TEXTS if part.casefold() in text.casefold()}, part


def test_rare_trigrams_are_asked_first(sqlite_workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = sqlite_workspace
    monkeypatch.setattr(search, "STEPS", 2)  # 20 of 200
    add(workspace, tuple(f"the window number {number} is open and the door is shut" for number in range(200)))
    part = "number 117 is open and the door is shut"
    with workspace.read() as reader:
        assert len(search.few(reader.connection, part) or ()) == 1
        for first, surely in ((500, 4), (20, 4), (20, 1), (1, 4)):
            monkeypatch.setattr(search, "FIRST", first)
            monkeypatch.setattr(search, "SURELY", surely)
            assert len(search.few(reader.connection, "number 11") or ()) == 11
            assert search.few(reader.connection, "the window") is None
            assert search.few(reader.connection, "wi") is None
    assert found(workspace, part) == {f"the window {part}"}


words = st.text(alphabet="ab cÄß窗\n", max_size=6)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["add", "remove", "change", "vacuum"]), st.integers(0, 5), words), max_size=25)
)
def test_the_index_holds_what_the_catalog_holds(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, int, str]]
) -> None:
    """After texts were added, removed and changed in any order its trigrams are those of the texts."""
    catalog = Catalog(f"sqlite:///{tmp_path_factory.mktemp('search') / 'catalog.db'}")
    catalog.migrate()
    there: dict[str, str] = {}
    t = tables.transcript
    with catalog.write() as tx:
        tx.add(Recording(id="r", source="/a", name="a", samples=9))
        tx.add(Utterance(id="u", recording="r", start=0, end=9))
    for what, number, text in changes:
        id = f"t{number}"
        if what == "vacuum":
            assert catalog.compact()
            continue
        with catalog.write() as tx:
            if what == "add":
                new = tx.add(Transcript(id=id, utterance="u", kind="clean", text=text, by="m"))
                assert new == (id not in there)
                there.setdefault(id, text)
            elif what == "remove":
                tx.connection.execute(sa.delete(t).where(t.c.id == id))
                there.pop(id, None)
            elif tx.change(Transcript, id, text=text):
                there[id] = text
    with catalog.read() as reader:
        rows = reader.connection.execute(
            sa.select(t.c.id, search._trigrams.c.term).join(search._trigrams, search._trigrams.c.doc == t.c.number)
        )
        in_index: dict[str, set[str]] = {}
        for id, term in rows:
            in_index.setdefault(id, set()).add(term)
        total = reader.connection.execute(sa.select(sa.func.count()).select_from(search._trigrams)).scalar_one()
    expected = {
        id: {f"{text}\n\n".replace("Ä", "ä")[n : n + 3] for n in range(len(text))} for id, text in there.items()
    }
    assert in_index == {id: terms for id, terms in expected.items() if terms}
    assert total == sum(map(len, in_index.values()))  # and none of texts that are gone
    catalog.close()


def test_what_is_deleted_leaves_the_file_when_it_is_compacted(sqlite_workspace: Workspace) -> None:
    workspace = sqlite_workspace

    def pages() -> bytes:
        with workspace.read() as reader:
            return b"".join(reader.connection.exec_driver_sql("SELECT block FROM transcript_text_data").scalars())

    add(workspace, ("open the window", "λο"))  # alone with its script, so that its trigram stands there in one piece
    assert "λο".encode() in pages()
    with workspace.catalog.write() as tx:
        tx.connection.execute(sa.delete(tables.transcript).where(tables.transcript.c.text == "λο"))
    assert "λο".encode() in pages()
    assert workspace.catalog.compact()
    assert "λο".encode() not in pages()


def test_triggers_write_the_index(sqlite_workspace: Workspace) -> None:
    """A migration that rewrites the table of transcripts on SQLite drops them without a word: it makes them again."""
    with sqlite_workspace.read() as reader:
        names = reader.connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'trigger'").scalars()
        assert set(names) == {"transcript_text_added", "transcript_text_removed", "transcript_text_changed"}


def test_postgresql_folds_as_python_does(postgresql_workspace: Workspace) -> None:
    """Every character whose case Python folds, alone and at the end of a word."""
    folding = [char for char in map(chr, range(1, 0x110000)) if char.casefold() != char]
    texts = [
        *folding,
        *(f"α{char}" for char in folding),
        "ΟΔΟΣ ΟΔΥΣΣΕΎΣ",
        "CỬA SỔ",
        unicodedata.normalize("NFD", "CỬA SỔ"),
    ]
    with postgresql_workspace.read() as reader:
        rows = reader.connection.exec_driver_sql(
            "SELECT text, voxloop_casefold(text) FROM unnest(%s::text[]) AS text", (texts,)
        ).all()
    assert len(rows) > 2 * 1400
    assert [(text, folded) for text, folded in rows if folded != text.casefold()] == []


def test_postgresql_finds_texts_by_its_index(postgresql_workspace: Workspace) -> None:
    """Parts of three letters in any script come from the index; texts without the part are not looked at."""
    ws = postgresql_workspace
    noise = tuple(f"câu nói số {number} trong {number * 7919 % 1009} câu" for number in range(3000))
    add(ws, (*noise, "mở CỬA sổ ra", "請打開窗戶"))
    with ws.catalog.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE transcript")  # puts what waits into the index, as autovacuum does
    t = tables.transcript.c
    for part, expected in (("cửa sổ", ["mở CỬA sổ ra"]), ("打開窗", ["請打開窗戶"]), ("xyz", [])):
        with ws.read() as reader:
            statement = sa.select(t.text).where(search.holds(t.text, part))
            assert list(reader.connection.execute(statement).scalars()) == expected
            text = statement.compile(reader.connection, compile_kwargs={"literal_binds": True})
            plan = "\n".join(reader.connection.exec_driver_sql(f"EXPLAIN {text}").scalars())
            keys = search.few(reader.connection, part)
        assert "ix_transcript_text_trigrams" in plan, plan
        assert keys is not None
        assert len(keys) == len(expected)
        assert found(ws, part) == set(expected)
    with ws.read() as reader:
        assert search.few(reader.connection, "câu nói") is None  # too many to look them up
        assert search.few(reader.connection, "窗戶") is None  # too short for the index
