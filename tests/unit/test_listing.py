"""Pages in every filter are what plain Python picks and sorts, and they and the counts come from indexes."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import sqlalchemy as sa

from tests.conftest import CATALOGS, name_catalog
from voxloop.pipeline import open_loop
from voxloop.records import Recording, Transcript, Utterance, utterance_id
from voxloop.status import status
from voxloop.steps import review
from voxloop.steps.review import Filters, items
from voxloop.stores import search, tables
from voxloop.workspace import Workspace

RECORDINGS = 40
SAMPLES = 16_000
STATUSES = ("new", "transcribed", "reviewed", "rejected")


@dataclass
class Known:
    """What the oracle knows of an utterance."""

    utterance: Utterance
    ingested: float
    confidence: float | None
    text: str


@pytest.fixture(scope="module", params=CATALOGS)
def filled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Workspace, list[Known]]]:
    """A workspace on each database with 120 utterances of all kinds, and what is in it."""
    chance = random.Random(3)
    known: list[Known] = []
    folder = tmp_path_factory.mktemp("listing") / "w"
    if request.param == "postgresql":
        server = request.getfixturevalue("postgresql_server")
        name_catalog(folder, server.create(request.getfixturevalue("postgresql_template")))
    with open_loop(folder, create=True) as ws:
        for number in range(RECORDINGS):
            created = 1000.0 + chance.randrange(20)
            recording = Recording(
                id=f"sha256-{chance.randbytes(32).hex()}",
                source=f"/{number}.wav",
                name=f"{number}.wav",
                samples=3 * SAMPLES,
                created=created,
            )
            with ws.transaction() as tx:
                tx.add(recording)
                for place in range(3):
                    known.append(_add(tx, recording, place, chance))
        yield ws, known


def _add(tx: object, recording: Recording, place: int, chance: random.Random) -> Known:
    start, end = place * SAMPLES, (place + 1) * SAMPLES
    utterance = Utterance(
        id=utterance_id(recording.id, start, end),
        recording=recording.id,
        start=start,
        end=end,
        speaker=chance.choice(("ann", "bo", None)),
        language=chance.choice(("en", "vi", None)),
        status=chance.choices(STATUSES, weights=(1, 6, 3, 1))[0],  # type: ignore[arg-type]
        priority=chance.randrange(6) / 5,  # many are equal
    )
    confidence = chance.choice((None, 0.1, 0.5, 0.9))
    text = chance.choice(("open the window", "Close it", "again and again"))
    heard = Transcript(
        id=f"h:{utterance.id}", utterance=utterance.id, kind="hypothesis", text=text, by="m", confidence=confidence
    )
    tx.add(utterance, replace(heard, created=5.0))  # type: ignore[attr-defined]
    return Known(utterance, recording.created, confidence, text)


FILTERS = [
    Filters(status=status, speaker=speaker, language=language, since=since, until=until, **more)  # type: ignore[arg-type]
    for (status, speaker, language), (since, until), more in itertools.product(
        ((None, None, None), ("transcribed", None, None), (None, "ann", None), ("reviewed", "bo", "vi")),
        ((None, None), (1004.0, None), (None, 1004.0), (1003.0, 1011.0), (1011.0, 1003.0)),
        (
            {},
            {"max_confidence": 0.5},
            {"min_confidence": 0.5},
            {"min_confidence": 0.2, "max_confidence": 0.6, "contains": "again"},
            {"contains": "WINDOW"},
            {"warned": True},
            {"warning": "low confidence"},
        ),
    )
]


@pytest.mark.parametrize("few", [0, 30, 1000])
def test_pages_are_those_of_plain_python(
    filled: tuple[Workspace, list[Known]], few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways of finding utterances, by what few have and in the order of the listing: `FEW` decides which."""
    monkeypatch.setattr(items, "FEW", few)
    monkeypatch.setattr(search, "STEPS", few)
    ws, known = filled
    order = sorted(known, key=lambda one: (-one.utterance.priority, one.utterance.id))
    for where in FILTERS:
        expected = [one.utterance.id for one in order if _fits(ws, one, where)]
        found: list[str] = []
        after = None
        while True:
            page = review.page(ws, where=where, limit=7, after=after)
            found += [item.utterance.id for item in page.items]
            after = page.after
            if after is None:
                break
        assert found == expected, where


def _fits(ws: Workspace, one: Known, where: Filters) -> bool:
    u = one.utterance
    wanted = (where.status, u.status), (where.speaker, u.speaker), (where.language, u.language)
    return (
        all(want is None or want == has for want, has in wanted)
        and (where.since is None or one.ingested >= where.since)
        and (where.until is None or one.ingested < where.until)
        and (where.min_confidence is None or (one.confidence is not None and one.confidence >= where.min_confidence))
        and (where.max_confidence is None or (one.confidence is not None and one.confidence <= where.max_confidence))
        and (where.contains is None or where.contains.lower() in one.text.lower())
        and (where.warned is None or where.warned == bool(review.show(ws, u.id).warnings))
        and (where.warning is None or where.warning in {one.kind for one in review.show(ws, u.id).warnings})
    )


def test_counts_are_those_of_the_rows(filled: tuple[Workspace, list[Known]]) -> None:
    ws, known = filled
    found = status(ws)
    assert found.utterances == dict(sorted(Counter(one.utterance.status for one in known).items()))
    assert (found.recordings, found.hours) == (RECORDINGS, RECORDINGS * 3 / 3600)


def test_counts_do_not_depend_on_the_guess(
    filled: tuple[Workspace, list[Known]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ws, known = filled
    first = sorted(known, key=lambda one: one.utterance.id)
    rare = next(number for number, one in enumerate(first) if one.utterance.status == "rejected")
    for sample in (1, rare + 1, 1000):
        monkeypatch.setattr("voxloop.status.SAMPLE", sample)
        assert status(ws).utterances == Counter(one.utterance.status for one in known)


@pytest.mark.parametrize("filled", ["sqlite"], indirect=True)
def test_a_page_is_read_off_an_index(filled: tuple[Workspace, list[Known]], monkeypatch: pytest.MonkeyPatch) -> None:
    """No filter of columns sorts the table or looks at each of its rows; dates are judged on the index."""
    ws, _ = filled
    ways = {
        Filters(): "SCAN utterance USING INDEX ix_utterance_listed",
        Filters(status="transcribed"): "ix_utterance_status_listed (status=?)",
        Filters(speaker="ann"): "ix_utterance_speaker_listed (speaker=?)",
        Filters(language="vi"): "ix_utterance_language_listed (language=?)",
        Filters(since=1004.0): "SCAN utterance USING INDEX ix_utterance_listed",
        Filters(since=1004.0, status="transcribed"): "ix_utterance_status_listed (status=?)",
        Filters(min_confidence=0.9): "SCAN utterance USING INDEX ix_utterance_listed",
        Filters(max_confidence=0.1, speaker="ann"): "ix_utterance_speaker_listed (speaker=?)",
    }
    monkeypatch.setattr(items, "FEW", 0)
    for where, index in ways.items():
        plan = _plan(ws, where)
        assert any(index in line for line in plan), plan
        assert not any("TEMP B-TREE" in line for line in plan), plan
    monkeypatch.setattr(items, "FEW", 1000)
    for where in (Filters(since=1004.0), Filters(since=1004.0, until=1009.0, status="transcribed", language="vi")):
        plan = _plan(ws, where)
        assert any("COVERING INDEX ix_utterance_ingested_listed (ingested>?" in line for line in plan), plan
    for where in (Filters(min_confidence=0.9), Filters(min_confidence=0.4, max_confidence=0.6, speaker="ann")):
        plan = _plan(ws, where)
        assert any("COVERING INDEX ix_utterance_confidence_listed (confidence>?" in line for line in plan), plan
    plan = _plan(ws, Filters(contains="window", status="transcribed"))
    assert any("SEARCH utterance USING INDEX sqlite_autoindex_utterance_1 (id=?)" in line for line in plan), plan
    assert any("VIRTUAL TABLE INDEX" in line for line in plan), plan


def _plan(ws: Workspace, where: Filters) -> list[str]:
    """How SQLite finds the utterances of a page: the plan of the statement that puts them in order."""
    said: list[tuple[str, object]] = []

    def note(_c: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
        said.append((statement, parameters))

    sa.event.listen(ws.catalog.engine, "before_cursor_execute", note)
    try:
        review.page(ws, where=where, limit=5)
    finally:
        sa.event.remove(ws.catalog.engine, "before_cursor_execute", note)
    statement, parameters = next(
        one for one in said if "FROM utterance" in one[0] and "ORDER BY utterance.pri" in one[0]
    )
    with ws.read() as reader:
        rows = reader.connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()  # type: ignore[arg-type]
    return [row[3] for row in rows]


def test_an_utterance_knows_when_its_recording_came_in(filled: tuple[Workspace, list[Known]]) -> None:
    ws, known = filled
    with ws.read() as reader:
        table = tables.utterance
        rows = reader.connection.execute(sa.select(table.c.id, table.c.ingested)).all()
    assert {row.id: row.ingested for row in rows} == {one.utterance.id: one.ingested for one in known}


def test_an_utterance_knows_how_sure_the_machine_is_of_its_newest_text(each_workspace: Workspace) -> None:
    recording = Recording(id="sha256-aa", source="/a.wav", name="a.wav", samples=SAMPLES)
    id = utterance_id(recording.id, 0, SAMPLES)
    heard = Transcript(id="h", utterance=id, kind="hypothesis", text="a", by="m", confidence=0.25, created=1.0)
    with each_workspace.transaction() as tx:
        tx.add(recording, Utterance(id=id, recording=recording.id, start=0, end=SAMPLES))
    for said, confidence in (
        (heard, 0.25),
        (replace(heard, id="h2", confidence=0.5, created=3.0), 0.5),
        (replace(heard, id="h1", confidence=0.75, created=2.0), 0.5),  # older than the last
        (replace(heard, id="r", kind="reference", confidence=0.9, created=4.0), 0.5),
        (replace(heard, id="c", kind="clean", confidence=0.3, created=1.0), 0.3),
        (replace(heard, id="h3", confidence=0.8, created=5.0), 0.3),
        (replace(heard, id="c2", kind="clean", confidence=None, created=6.0), None),
    ):
        with each_workspace.transaction() as tx:
            tx.add(said)
            statement = sa.select(tables.utterance.c.confidence, tables.machine_confidence())
            assert tx.connection.execute(statement).one() == (confidence, confidence), said.id


def test_dates_find_turns_to_hand_out(filled: tuple[Workspace, list[Known]]) -> None:
    """Runs last: handing out puts the utterances in another order."""
    ws, known = filled
    where = Filters(since=1004.0, until=1012.0, speaker="ann", status="transcribed")
    turn = review.next(ws, by="cleo", where=where)
    assert turn is not None
    assert turn.item.utterance.id == review.page(ws, where=where).items[0].utterance.id
    assert turn.item.utterance.id in {one.utterance.id for one in known if _fits(ws, one, where)}
