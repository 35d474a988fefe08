"""One place decides which speech is usable for training; each utterance is told of once, however it got its text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.unit.speech import add_utterance
from voxloop.automation.worker import work
from voxloop.pipeline import open_loop
from voxloop.records import Transcript
from voxloop.steps import datasets, review
from voxloop.steps.datasets import usable
from voxloop.steps.recordings import ingest
from voxloop.stores import tables
from voxloop.workspace import Workspace


def told(ws: Workspace) -> list[str]:
    """The utterances that `dataset.new_sample` told of, and by which text."""
    event = tables.event.c
    with ws.read() as reader:
        rows = reader.connection.execute(
            sa.select(event.subject, event.payload).where(event.type == "dataset.new_sample").order_by(event.seq)
        ).all()
    return [f"{subject.partition(':')[0].removeprefix('sha256-')} {payload['text']}" for subject, payload in rows]


def kinds(ws: Workspace) -> dict[str, str]:
    with ws.read() as reader:
        rows = reader.connection.execute(sa.select(tables.sample.c.utterance, tables.sample.c.kind)).all()
    return {id.partition(":")[0].removeprefix("sha256-"): kind for id, kind in rows}


def look(ws: Workspace, ids: Sequence[str]) -> None:
    usable.sample(ws, ids)


def hours(ws: Workspace) -> usable.UsableHours:
    with ws.read() as reader:
        return usable.hours(reader)


def test_what_is_usable(workspace: Workspace) -> None:
    ids = add_utterance(workspace, "written", heard="open doors", reference="open the door", duration=3.0)
    ids += add_utterance(workspace, "sure", heard="it is late", confidence=0.95, duration=3.0)
    ids += add_utterance(workspace, "unsure", heard="it is late", confidence=0.5, duration=3.0)
    ids += add_utterance(workspace, "short", heard="late", confidence=0.95, duration=0.6)
    ids += add_utterance(workspace, "unheard", duration=3.0)
    ids += add_utterance(workspace, "guarded", heard="late late late", confidence=0.95, duration=3.0)
    with workspace.transaction() as tx:
        values = {"guards": ["repetition"]}
        tx.connection.execute(
            sa.update(tables.transcript).where(tables.transcript.c.utterance == ids[-1]).values(**values)
        )
    look(workspace, ids)
    assert kinds(workspace) == {"written": "reference", "sure": "candidate"}
    assert told(workspace) == ["written reference"]
    found = hours(workspace)
    assert (found.new, found.reference, found.candidate) == pytest.approx((3 / 3600, 3 / 3600, 3 / 3600))
    look(workspace, ids)
    assert told(workspace) == ["written reference"]


def test_a_review_makes_usable_and_undoing_it_takes_that_back(workspace: Workspace) -> None:
    (id,) = add_utterance(workspace, "said", heard="it is late", confidence=0.5, duration=2.0)
    review.save(workspace, id, "it is too late", by="ann")
    work(workspace, ["sample"], until_idle=True)
    assert kinds(workspace) == {"said": "reference"}
    review.save(workspace, id, "it is very late", by="ann")
    work(workspace, ["sample"], until_idle=True)
    review.undo(workspace, id, by="ann")
    review.undo(workspace, id, by="ann")
    work(workspace, ["sample"], until_idle=True)
    assert kinds(workspace) == {}
    review.save(workspace, id, "it is too late", by="ann")
    work(workspace, ["sample"], until_idle=True)
    assert told(workspace) == ["said reference"]  # once, whatever happened since
    review.reject(workspace, id, reason="noise", by="ann")
    work(workspace, ["sample"], until_idle=True)
    assert hours(workspace).new == 0


def test_a_second_decoding_decides_about_machine_text(tmp_path: Path, demo_speech: Path) -> None:
    """Texts that the model writes again stay, one that it never wrote does not."""
    settings = {"usable_confidence": 0.0, "usable_agreement": 0.5, "usable_min_s": 0.1, "min_snr_db": -99.0}
    with open_loop(tmp_path / "w", create=True, **settings) as ws:
        ingest(ws, sorted(demo_speech.glob("*.ogg"))[:24], processes=1)
        work(ws, until_idle=True)
        assert set(kinds(ws).values()) == {"candidate"}
        assert told(ws) == []
        wrong = next(iter(kinds(ws)))
        with ws.transaction() as tx:
            table = tables.transcript
            id = tx.connection.execute(
                sa.select(tables.sample.c.transcript).where(tables.sample.c.recording == f"sha256-{wrong}")
            ).scalar_one()
            tx.connection.execute(sa.update(table).where(table.c.id == id).values(text="nobody ever said any of this"))
        assert usable.ask_for_agreement(ws) == len(kinds(ws)) >= 12
        assert usable.ask_for_agreement(ws) == 0  # they are asked for
        work(ws, ["agree"], until_idle=True)
        found = kinds(ws)
        assert found[wrong] == "unsure"
        agreed = {id for id, kind in found.items() if kind == "machine"}
        assert len(agreed) >= 3
        assert sorted(told(ws)) == sorted(f"{id} machine" for id in agreed)
        assert hours(ws).new == hours(ws).new_machine > 0
        assert usable.ask_for_agreement(ws) == 0


def test_another_text_has_to_be_confirmed_again_but_is_not_new(workspace: Workspace) -> None:
    (id,) = add_utterance(workspace, "said", heard="it is late", confidence=0.9, duration=2.0)
    look(workspace, [id])
    confirm(workspace, [id])
    with workspace.transaction() as tx:
        assert usable.take(tx, "run1", tx.now()) == 1
        first = tx.get(Transcript, f"clean-{id}")
        tx.add(replace(first, id="other", text="it is too late", by="champion", created=tx.now() + 1))
    look(workspace, [id])
    assert kinds(workspace) == {"said": "candidate"}
    confirm(workspace, [id])
    assert hours(workspace).machine > 0
    assert hours(workspace).new == 0  # or every promotion would start the next run
    review.save(workspace, id, "it is so late", by="ann")
    look(workspace, [id])
    assert hours(workspace).new_reference > 0


def confirm(ws: Workspace, ids: Sequence[str]) -> None:
    """As `agree` does when both decodings agree."""
    with ws.transaction() as tx:
        table = tables.sample
        tx.connection.execute(sa.update(table).where(table.c.utterance.in_(ids)).values(kind="machine"))


def test_a_dataset_takes_the_most_confident_machine_text_up_to_its_share(workspace: Workspace) -> None:
    ids = []
    for number in range(40):
        confidence = 0.8 + number / 250
        ids += add_utterance(
            workspace, f"m{number:02}", heard=f"number {number}", confidence=confidence, duration=2.0, speaker="ann"
        )
    unconfirmed = add_utterance(workspace, "never", heard="not heard twice", confidence=0.99, duration=2.0)
    look(workspace, [*ids, *unconfirmed])
    confirm(workspace, ids)
    dataset = datasets.build(workspace, name="auto", machine_share=0.5, ratios=(1.0, 0.0, 0.0))
    rows = datasets.rows(workspace, dataset.id, "train")
    assert len(rows) == 20
    assert {row.recording for row in rows} == {f"sha256-m{number:02}" for number in range(20, 40)}
    assert dataset.excluded == {
        "machine text beyond 50% of the hours (usable_machine_share)": 20,
        "machine text not confirmed by a second decoding": 1,
    }
    more = [
        id
        for number in range(40)
        for id in add_utterance(workspace, f"r{number}", reference=f"said {number}", duration=2.0, speaker="bob")
    ]
    look(workspace, more)
    dataset = datasets.build(workspace, name="auto", machine_share=0.5, ratios=(1.0, 0.0, 0.0))
    assert dataset.clips["train"] == 80  # machine text is half of the hours now
    assert datasets.build(workspace, name="none", machine_share=0.0, ratios=(1.0, 0.0, 0.0)).clips["train"] == 40


def test_earlier_utterances_are_looked_at_once(workspace: Workspace) -> None:
    add_utterance(workspace, "earlier", reference="from before", duration=2.0)
    assert usable.catch_up(workspace) == 1
    assert kinds(workspace) == {"earlier": "reference"}
    assert usable.catch_up(workspace) == 0
