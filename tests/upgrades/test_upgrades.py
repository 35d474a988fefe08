"""Catalogs of earlier releases open, are brought up to date, and hold what they held.

`0001.sql` is the dump (`sqlite3.Connection.iterdump`) of a catalog that the code at
schema 0001 wrote: ten clips of demo/speech taken in, eight with their texts; the
worker run until idle; one text saved and one utterance rejected in review; a dataset
frozen; the starter trained for 6 s; the new model promoted by force.

`0004.sql` is that of the code at schema 0004: nine clips and a file that is no audio
taken in, six clips with their texts, one of these for a span; the worker run until
idle; a text saved, an utterance rejected, one skipped and then taken, a save undone;
a dataset frozen; the starter trained for 6 s; the new model promoted by force; the
speaker of the span forgotten.
"""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from voxloop.maintenance import integrity, removal
from voxloop.pipeline import open_loop
from voxloop.records import Dataset, Evaluation, Model, Promotion, Recording, Run, Transcript, Utterance
from voxloop.settings import CONFIG_NAME
from voxloop.steps import review
from voxloop.stores import tables
from voxloop.workspace import Workspace

HERE = Path(__file__).parent
DUMPS = sorted(HERE.glob("*.sql"))
READY, FROZEN = "dataset.ready", "dataset.frozen"  # what tells of a built dataset, before and since
RENAMED = {"run_at": "not_before"}  # columns that have another name since


def opened(dump: Path, folder: Path) -> Workspace:
    folder.mkdir()
    (folder / CONFIG_NAME).touch()
    connection = sqlite3.connect(folder / "catalog.db")
    connection.executescript(dump.read_text())
    connection.close()
    return open_loop(folder)


def renamed(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """A row as the migrations leave it."""
    return tuple(one.replace(READY, FROZEN) if isinstance(one, str) else one for one in row)


@pytest.mark.parametrize("dump", DUMPS, ids=lambda dump: dump.stem)
def test_every_row_of_an_earlier_catalog_is_there(dump: Path, tmp_path: Path) -> None:
    old = sqlite3.connect(":memory:")
    old.executescript(dump.read_text())
    names = [row[0] for row in old.execute("select name from sqlite_master where type = 'table'")]
    with opened(dump, tmp_path / "w") as ws, ws.read() as reader:
        for name in set(names) - {"alembic_version"}:
            columns = [row[1] for row in old.execute(f'pragma table_info("{name}")')]
            expected = sorted(old.execute(selected(name, columns)), key=repr)
            found = reader.connection.exec_driver_sql(selected(name, [RENAMED.get(one, one) for one in columns])).all()
            assert sorted(map(tuple, found), key=repr) == sorted(map(renamed, expected), key=repr), name


def selected(table: str, columns: list[str]) -> str:
    named = ", ".join(f'"{column}"' for column in columns)
    return f'select {named} from "{table}"'


@pytest.mark.parametrize("dump", DUMPS, ids=lambda dump: dump.stem)
def test_when_a_job_may_run_and_when_its_lease_ends_are_parted(dump: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.sql"
    when = "WHERE id = (SELECT min(id) FROM job WHERE state = 'done')"
    changed.write_text(
        f"{dump.read_text()}\nUPDATE job SET state = 'leased', token = 't', run_at = 4e9 {when};"
        f"UPDATE job SET state = 'ready', token = NULL, run_at = 5e9 {when};"
    )
    with opened(changed, tmp_path / "w") as ws, ws.read() as reader:
        job = tables.job.c
        rows = reader.connection.execute(sa.select(job).where(job.state != "done")).all()
        found = {row.state: row for row in rows}
        assert (found["leased"].not_before, found["leased"].lease_until) == (found["leased"].created, 4e9)
        assert (found["ready"].not_before, found["ready"].lease_until) == (5e9, None)
        assert {(row.priority, row.cost_s) for row in rows} == {(0, 0.0)}


@pytest.mark.parametrize("dump", DUMPS, ids=lambda dump: dump.stem)
def test_utterances_of_an_earlier_catalog_are_numbered_as_they_came(dump: Path, tmp_path: Path) -> None:
    with opened(dump, tmp_path / "w") as ws:
        with ws.read() as reader:
            table = tables.utterance.c
            rows = reader.connection.execute(sa.select(table.id, table.number).order_by(sa.text("rowid"))).all()
            assert [row.number for row in rows] == sorted({row.number for row in rows if row.number > 0})
        with ws.transaction() as tx:
            last = tx.get(Utterance, rows[-1].id)
            end = last.end + 1
            more = replace(last, id=f"{last.recording}:{last.start}-{end}", end=end)
            tx.add(more)
            assert tx.numbers([more.id]) == {more.id: rows[-1].number + 1}


@pytest.mark.parametrize("dump", DUMPS, ids=lambda dump: dump.stem)
def test_utterances_are_dated_as_their_recordings(dump: Path, tmp_path: Path) -> None:
    with opened(dump, tmp_path / "w") as ws, ws.read() as reader:
        created = {recording.id: recording.created for recording in reader.all(Recording)}
        table = tables.utterance
        rows = reader.connection.execute(sa.select(table.c.recording, table.c.ingested)).all()
        assert len(rows) >= 8
        assert all(row.ingested == created[row.recording] > 0 for row in rows)


@pytest.mark.parametrize("dump", DUMPS, ids=lambda dump: dump.stem)
def test_what_told_of_a_built_dataset_has_its_present_name(dump: Path, tmp_path: Path) -> None:
    with opened(dump, tmp_path / "w") as ws, ws.read() as reader:
        table = tables.event
        rows = reader.connection.execute(sa.select(table.c.id).where(table.c.type == "dataset.frozen")).scalars().all()
        assert rows == [f"dataset.frozen:{dataset.id}" for dataset in reader.all(Dataset)]
        assert not reader.connection.execute(sa.select(table.c.id).where(table.c.type == "dataset.ready")).all()


@pytest.mark.parametrize("dump", DUMPS, ids=lambda dump: dump.stem)
def test_texts_of_an_earlier_catalog_are_found_and_rated(dump: Path, tmp_path: Path) -> None:
    with opened(dump, tmp_path / "w") as ws:
        with ws.read() as reader:
            confidence = sa.select(tables.utterance.c.confidence, tables.machine_confidence())
            rows = reader.connection.execute(confidence).all()
        assert any(row[0] for row in rows)
        assert all(row[0] == row[1] for row in rows)
        for item in review.page(ws).items:
            for part in (item.text, item.text[:2]) if item.text else ():
                assert item in review.page(ws, where=review.Filters(contains=part)).items
        with ws.catalog.write() as tx:
            transcript = tables.transcript
            tx.connection.execute(sa.delete(transcript))
            left = tx.connection.exec_driver_sql("SELECT count(*) FROM transcript_trigram").scalar()
        assert left == 0


def test_the_first_schema_in_records(tmp_path: Path) -> None:
    with opened(HERE / "0001.sql", tmp_path / "w") as ws, ws.read() as reader:
        kinds = (Recording, Utterance, Transcript, Dataset, Run, Model, Evaluation, Promotion)
        assert [reader.count(kind) for kind in kinds] == [10, 10, 29, 1, 1, 2, 2, 1]  # type: ignore[type-var]
        speakers = [recording.speaker for recording in reader.all(Recording)]
        assert (speakers.count("Ngân"), speakers.count("theo"), speakers.count(None)) == (4, 4, 2)
        (dataset,) = reader.all(Dataset)
        assert (dataset.clips, dataset.manifest, dataset.forgotten) == ({"train": 1, "val": 5, "test": 3}, None, 0)
        (run,) = reader.all(Run)
        assert (run.status, run.dataset) == ("completed", dataset.id)
        assert [model.forgotten for model in reader.all(Model)] == [0, 0]
        assert next(t for t in reader.all(Transcript) if t.by == "ann").text == "a person's text"
        assert all(evaluation.scores["utterances"] == 3 for evaluation in reader.all(Evaluation))
        widths = set(reader.connection.execute(sa.select(sa.func.length(tables.vector.c["values"]))).scalars())
        assert len(widths) == 1
        assert ws.jobs.counts(reader) == {step: {"done": 10} for step in ("segment", "transcribe", "restore", "index")}


def test_the_first_schema_in_use(tmp_path: Path) -> None:
    """Nothing but the blobs, which no dump holds, is found missing, and forgetting works on the old rows."""
    with opened(HERE / "0001.sql", tmp_path / "w") as ws:
        found = integrity.verify(ws, min_age_s=0)
        assert {finding.kind for finding in found.findings} == {
            "audio-missing",
            "manifest-missing",
            "model-file",
            "vector-missing",  # those of the dump are of another embedding model than the one set now
            "hypotheses-missing",
            "job-missing",  # steps that are newer than the catalog
        }
        assert removal.forget(ws, speaker="theo").recordings == 4
        with ws.read() as reader:
            assert reader.count(Recording) == 6


def test_the_fourth_schema_in_records(tmp_path: Path) -> None:
    with opened(HERE / "0004.sql", tmp_path / "w") as ws, ws.read() as reader:
        kinds = (Recording, Utterance, Transcript, Dataset, Run, Model, Evaluation, Promotion)
        assert [reader.count(kind) for kind in kinds] == [8, 8, 23, 1, 1, 2, 2, 1]  # type: ignore[type-var]
        (dataset,) = reader.all(Dataset)
        assert (dataset.forgotten, sum(dataset.clips.values())) == (1, 6)
        assert {(finding.seq, finding.kind, finding.by) for finding in decisions(ws)} == {
            (1, "save", "ann"),
            (2, "reject", "bob"),
            (3, "skip", "bob"),
            (4, "save", "bob"),
            (5, "undo", "bob"),
        }


def decisions(ws: Workspace) -> list[review.Decision]:
    with ws.read() as reader:
        utterances = [utterance.id for utterance in reader.all(Utterance)]
    return [decision for id in utterances for decision in review.history(ws, id)]


def test_the_fourth_schema_in_use(tmp_path: Path) -> None:
    with opened(HERE / "0004.sql", tmp_path / "w") as ws:
        found = integrity.verify(ws, min_age_s=0)
        kinds = {"audio-missing", "manifest-missing", "model-file", "hypotheses-missing", "job-missing"}
        assert {finding.kind for finding in found.findings} <= kinds
        (turn,) = review.page(ws, where=review.Filters(status="transcribed")).items
        review.accept(ws, turn.utterance.id, by="cleo")
        assert review.stats(ws).reviewed == 7
        assert review.worst(ws, limit=1)[0].found.words.errors == 5
        assert removal.forget(ws, speaker="Bình").recordings == 3
