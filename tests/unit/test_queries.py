"""Steps ask for sets of rows: the number of statements does not grow with the number of recordings or utterances."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.conftest import statements
from voxloop.models import base_model
from voxloop.records import Quality, Recording, Transcript, Utterance, Word, utterance_id
from voxloop.steps import transcripts
from voxloop.steps.datasets import DatasetRow
from voxloop.steps.evaluation import measuring
from voxloop.stores import tables
from voxloop.workspace import Workspace

SAMPLES = 16_000
QUALITY = Quality(level_dbfs=-20.0, peak_dbfs=-3.0, snr_db=12.0, clipping=0.0, silence=0.1, bandwidth_hz=4000.0)


def heard(ws: Workspace, first: int, count: int) -> list[str]:
    """Recordings of three utterances each, of which two models have heard the first two; their ids."""
    ids = [f"sha256-{number:04x}" for number in range(first, first + count)]
    model = base_model(ws).id
    with ws.transaction() as tx:
        for id in ids:
            tx.add(Recording(id=id, source="/a.wav", name="a.wav", samples=3 * SAMPLES, session="s", quality=QUALITY))
            for place in range(3):
                start, end = place * SAMPLES, (place + 1) * SAMPLES
                utterance = Utterance(id=utterance_id(id, start, end), recording=id, start=start, end=end)
                tx.add(utterance)
                for by, created in (("old", 1.0), (model, 2.0)) if place < 2 else ():
                    tx.add(
                        Transcript(
                            id=f"hypothesis-{by[:8]}-{utterance.id}",
                            utterance=utterance.id,
                            kind="hypothesis",
                            text=f"said by {by[:8]}",
                            by=by,
                            confidence=0.5,
                            words=(Word(text="said", start=0.0, end=0.5, probability=0.5),),
                            created=created,
                        )
                    )
    return ids


@pytest.fixture
def few(each_workspace: Workspace) -> list[str]:
    return heard(each_workspace, 0, 2)


@pytest.fixture
def many(each_workspace: Workspace) -> list[str]:
    return heard(each_workspace, 1000, 40)


def reads(said: list[str], *names: str) -> int:
    return sum(one.startswith("SELECT") and any(f"FROM {name}" in one for name in names) for one in said)


def test_restoring(each_workspace: Workspace, few: list[str], many: list[str]) -> None:
    counts = []
    for ids in (few, many):
        with statements(each_workspace.catalog) as said:
            made = transcripts.restore(each_workspace, ids)
        assert len(made) == 2 * len(ids)
        assert {one.text for one in made} == {f"said by {base_model(each_workspace).id[:8]}"}
        counts.append(reads(said, "utterance", "transcript"))
    # Three for each part of recordings that are completed together.
    assert counts == [3, 3 * -(-40 // transcripts.RESTORED)]


def test_finding_what_a_model_has_not_heard(each_workspace: Workspace, few: list[str], many: list[str]) -> None:
    model = base_model(each_workspace)
    for ids in (few, many[::-1]):
        with each_workspace.read() as reader, statements(each_workspace.catalog) as said:
            found = transcripts._unheard(reader, ids, model)
        assert [one.id for one in found] == [utterance_id(id, 2 * SAMPLES, 3 * SAMPLES) for id in ids]
        assert len(said) == 2


def test_writing_what_was_heard(each_workspace: Workspace, many: list[str]) -> None:
    utterance = tables.utterance.c
    with each_workspace.transaction() as tx:
        tx.change(Utterance, [utterance_id(many[0], 0, SAMPLES)], status="reviewed", priority=0.25)
    with each_workspace.read() as reader:
        texts = reader.all(Transcript, tables.transcript.c.by == "old")
    with each_workspace.transaction() as tx, statements(each_workspace.catalog) as said:
        transcripts._heard(tx, texts)
    assert len(said) == 1
    with each_workspace.read() as reader:
        of_one = reader.all(Utterance, utterance.recording == many[0], order=utterance.start)
        rest = reader.all(Utterance, utterance.recording == many[1], order=utterance.start)
    assert [(one.status, one.priority) for one in of_one] == [("reviewed", 0.25), ("transcribed", 0.5), ("new", 0.0)]
    assert [one.status for one in rest] == ["transcribed", "transcribed", "new"]


def test_what_a_dataset_does_not_say_of_its_rows(each_workspace: Workspace, few: list[str], many: list[str]) -> None:
    ws = each_workspace
    for ids in (few, many):
        with ws.read() as reader:
            texts = reader.all(Transcript, tables.transcript.c.by == "old")
        rows = [
            DatasetRow(
                utterance=one.utterance,
                recording=one.utterance.partition(":")[0],
                start=0,
                end=SAMPLES,
                split="test",
                transcript=one.id,
                text=one.text,
                kind="reference",
                speaker=None,
                language="en",
            )
            for one in texts
            if one.utterance.partition(":")[0] in ids
        ]
        rows[0] = replace(rows[0], text="the dataset froze another one")
        with ws.read() as reader, statements(ws.catalog) as said:
            found = measuring._around(reader, rows)
        assert len(said) == 3
        assert [(session, snr_db) for session, snr_db, _ in found] == [("s", 12.0)] * 2 * len(ids)
        assert [len(words) for *_, words in found] == [0] + [1] * (2 * len(ids) - 1)
