"""Vectors: whose they are, who gets one, and what sounds alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit import tiny_whisper
from voxloop import models
from voxloop.errors import SettingError
from voxloop.maintenance import integrity
from voxloop.pipeline import open_loop
from voxloop.records import Recording, Utterance
from voxloop.settings import Settings
from voxloop.steps import similarity
from voxloop.steps.recordings import ingest
from voxloop.steps.utterances import segment
from voxloop.stores import tables
from voxloop.workspace import Workspace


@pytest.fixture
def spoken(workspace: Workspace, demo_speech: Path) -> Workspace:
    for clip in sorted(demo_speech.glob("*.ogg"))[:4]:
        ingest(workspace, clip, processes=1)
    segment(workspace, recordings(workspace))
    return workspace


def recordings(ws: Workspace) -> list[str]:
    with ws.read() as reader:
        return [recording.id for recording in reader.all(Recording)]


def utterances(ws: Workspace) -> list[str]:
    with ws.read() as reader:
        return [utterance.id for utterance in reader.all(Utterance)]


def test_each_utterance_gets_one_vector_and_no_second_one(spoken: Workspace) -> None:
    there = utterances(spoken)
    assert similarity.index(spoken, there[0].partition(":")[0]) == 1
    found = similarity.nearest(spoken, there[0])
    assert found.nearest == ()
    assert found.without_vector == len(there) - 1
    assert similarity.index(spoken, recordings(spoken)) == len(there) - 1
    assert similarity.index(spoken, recordings(spoken)) == 0
    found = similarity.nearest(spoken, there[0])
    assert found.space == models.base_model(spoken, "starter").id
    assert found.without_vector == 0
    assert {id for id, _ in found.nearest} == set(there[1:])
    likeness = [cosine for _, cosine in found.nearest]
    assert likeness == sorted(likeness, reverse=True)
    assert len(similarity.nearest(spoken, there[0], limit=2).nearest) == 2


def test_the_champion_s_states_are_no_vectors(spoken: Workspace, tmp_path: Path) -> None:
    similarity.index(spoken, recordings(spoken))
    better = models.base_model(spoken, str(tiny_whisper.make(tmp_path / "better")))
    with spoken.transaction() as tx:
        tx.connection.execute(tables.alias.insert().values(name="champion", model=better.id, promotion="p"))
    assert models.base_model(spoken) == better
    found = similarity.nearest(spoken, utterances(spoken)[0])
    assert found.space == models.base_model(spoken, "starter").id
    assert found.without_vector == 0


@pytest.mark.parametrize("by", ["base", "folder"])
def test_another_model_s_vectors_are_made_as_recordings_are_indexed_again(
    spoken: Workspace, tmp_path: Path, by: str
) -> None:
    similarity.index(spoken, recordings(spoken))
    with spoken.transaction() as tx:  # as the worker leaves it
        tx.emit("nlp.postprocessed", recordings(spoken)[0], key="x")
        tx.connection.execute(tables.job.update().where(tables.job.c.step == "index").values(state="done"))
    folder = tiny_whisper.make(tmp_path / "model")
    settings = (
        {"embedding_model": "base", "base_model": str(folder)} if by == "base" else {"embedding_model": str(folder)}
    )
    with open_loop(spoken.folder, **settings) as ws:
        there = utterances(ws)
        found = similarity.nearest(ws, there[0])
        assert found.space == models.base_model(ws, str(folder)).id
        assert found.nearest == ()
        assert found.without_vector == len(there)

        verified = integrity.verify(ws, repair=True, min_age_s=-1.0)
        (lacking,) = (finding for finding in verified.findings if finding.kind == "vector-missing")
        assert lacking.repaired
        assert found.space in lacking.message
        claim = ws.jobs.claim(["index"])
        assert claim is not None
        similarity.index(ws.under(claim), claim.subjects)

        assert similarity.index(ws, recordings(ws)) == len(there) - 1
        assert similarity.nearest(ws, there[0]).without_vector == 0
    assert spoken.vectors.count(models.base_model(spoken, "starter").id) == len(there)  # the old ones stay


@pytest.mark.parametrize("name", ["champion", ""])
def test_what_moves_cannot_give_vectors(name: str) -> None:
    with pytest.raises(SettingError, match=r"embedding_model is .*Give a model that does not change"):
        Settings(embedding_model=name)
