"""Automatic runs from start to verdict: once each, through failures, and with the reviews that they need."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.unit import frozen_speech
from tests.unit.speech import add_utterance
from voxloop import models
from voxloop.automation import orchestrator
from voxloop.automation.worker import work
from voxloop.errors import ConflictError, UsageError, WorkspaceError
from voxloop.pipeline import open_loop
from voxloop.records import Dataset, Model, Run
from voxloop.steps import cycles, datasets, evaluation, review, training
from voxloop.steps.cycles import Cycle
from voxloop.steps.datasets import usable
from voxloop.steps.gate import promotion
from voxloop.stores import tables
from voxloop.workspace import Workspace

SPEECH_S = 24.0  # of `speech`


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Workspace]:
    """A workspace with tiny models, whose clips of a second of noise each have references."""
    old, _ = frozen_speech.models(tmp_path / "models")
    settings = {
        "threads": 1,
        "device": "cpu",
        "min_snr_db": -99.0,
        "base_model": str(old),
        "guards": False,
        "train_hours": SPEECH_S / 3600,
        "train_cron": "",
        "usable_machine_share": 0.0,
        "train_retry_s": 60.0,
    }
    with open_loop(tmp_path / "workspace", create=True, **settings) as ws:
        yield ws


def speech(ws: Workspace, folder: Path, clips: int = 24) -> None:
    frozen_speech.freeze(ws, folder, clips=clips, ratios=(0.0, 0.0, 1.0))
    with ws.transaction() as tx:  # the automatic run freezes its own
        for table in (tables.dataset_utterance, tables.dataset):
            tx.connection.execute(sa.delete(table))
        tx.connection.execute(sa.update(tables.utterance).values(split=None))
    work(ws, ["sample"], until_idle=True)


def trained(ws: Workspace, cycle: Cycle, *, status: str = "completed", error: str | None = None) -> Model:
    """As the step `train` ends: with a model that is the base under another id."""
    new = models.base_model(ws, str(Path(ws.settings.base_model).with_name("challenger")))
    with ws.transaction() as tx:
        ws.jobs.withdraw(tx, "train", cycle.id)
        model = new.id if status == "completed" else None
        tx.change(Run, cycle.id, status=status, model=model, error=error, finished=tx.now())
        tx.change(Model, new.id, run=cycle.id, base=tx.get(Run, cycle.id).base)
    return new


def now(ws: Workspace) -> Cycle:
    with ws.read() as reader:
        found = cycles.newest(reader)
    assert found is not None
    return found


def events(ws: Workspace, *types: str) -> list[tuple[str, dict[str, Any]]]:
    event = tables.event.c
    with ws.read() as reader:
        rows = reader.connection.execute(
            sa.select(event.type, event.payload).where(event.type.in_(types)).order_by(event.seq)
        ).all()
    return [(row.type, row.payload) for row in rows]


def test_a_run_starts_at_the_threshold_and_only_once(loop: Workspace, tmp_path: Path) -> None:
    assert not orchestrator.plan(loop).starts
    assert "0.00 h of 0.00667 h of new usable speech are there" in orchestrator.plan(loop).why[0]
    with pytest.raises(UsageError, match="no speech is usable for training yet"):
        orchestrator.start_now(loop, by="ann")
    speech(loop, tmp_path / "speech")
    assert orchestrator.plan(loop).starts
    orchestrator.tick(loop)
    cycle = now(loop)
    assert (cycle.state, cycle.reason, cycle.hours) == ("asked", "hours", pytest.approx(SPEECH_S / 3600))
    with pytest.raises(ConflictError, match=f"automatic run {cycle.id} is asked"):
        orchestrator.start_now(loop, by="ann")
    work(loop, ["freeze"], until_idle=True)
    cycle = now(loop)
    assert cycle.state == "training"
    with loop.read() as reader:
        run = reader.get(Run, cycle.id)
        assert usable.hours(reader).new == 0
    assert run.status == "queued"
    assert run.dataset == cycle.dataset
    told = events(loop, "training.asked", "dataset.frozen", "training.queued", "dataset.ready")
    # The dataset that `speech` froze came before it.
    assert [type for type, _ in told[1:]] == ["training.asked", "dataset.frozen", "training.queued", "dataset.ready"]
    assert told[-1][1]["hours"] == pytest.approx(SPEECH_S / 3600, abs=1e-3)
    orchestrator.tick(loop)
    assert now(loop).id == cycle.id


def test_a_freeze_that_is_repeated_queues_one_run(
    loop: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the run was queued, before the step was done."""
    speech(loop, tmp_path / "speech")
    orchestrator.tick(loop)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(usable, "take", killed)
        with pytest.raises(KeyboardInterrupt):
            work(loop, ["freeze"], until_idle=True)
    assert now(loop).state == "asked"
    work(loop, ["freeze"], until_idle=True)
    assert now(loop).state == "training"
    with loop.read() as reader:
        assert reader.count(Run) == 1
        assert loop.jobs.counts(reader)["train"] == {"ready": 1}


def test_a_better_model_is_promoted(loop: Workspace, tmp_path: Path) -> None:
    speech(loop, tmp_path / "speech", clips=30)
    loop = replace(loop, settings=replace(loop.settings, ratios=(0.1, 0.0, 0.9)))
    orchestrator.tick(loop)
    work(loop, ["freeze"], until_idle=True)
    new = trained(loop, now(loop))
    with loop.read() as reader:
        frozen = reader.get(Dataset, now(loop).dataset or "")
    old = models.base_model(loop, loop.settings.base_model)
    frozen_speech.remember(loop, old, frozen, frozen_speech.wrong_in(0.9))
    frozen_speech.remember(loop, new, frozen, frozen_speech.wrong_in(0.0))
    orchestrator.tick(loop)
    assert now(loop).state == "evaluating"
    work(loop, ["evaluate"], until_idle=True)
    assert now(loop).state == "promoting"
    work(loop, ["promote"], until_idle=True)
    cycle = now(loop)
    assert (cycle.state, cycle.verdict) == ("done", "promote"), cycle.message
    champion = promotion.champion(loop)
    assert champion is not None
    assert champion.id == new.id
    assert promotion.history(loop)[0].by == cycles.BY
    order = ["training.asked", "evaluation.asked", "model.evaluated", "promotion.asked", "model.promoted"]
    told = [type for type, _ in events(loop, *order, "training.concluded")]
    assert list(dict.fromkeys(told)) == [*order, "training.concluded"]
    orchestrator.tick(loop)
    assert now(loop).id == cycle.id  # nothing is new


def test_too_few_references_are_asked_for_and_the_run_goes_on_by_itself(loop: Workspace, tmp_path: Path) -> None:
    speech(loop, tmp_path / "speech", clips=12)
    heard = [
        id
        for number in range(30)
        for id in add_utterance(loop, f"new{number:02}", heard=f"text {number}", confidence=0.5, speaker="eve")
    ]
    orchestrator.start_now(loop, by="ann")
    work(loop, ["freeze"], until_idle=True)
    trained(loop, now(loop))
    orchestrator.tick(loop)
    work(loop, ["evaluate"], until_idle=True)
    cycle = now(loop)
    assert cycle.state == "waiting"
    assert cycle.needed == loop.settings.promote_min_utterances
    ((_, payload),) = events(loop, "review.asked")
    asked = review.page(loop, where=review.Filters(requested=True)).items
    assert len(asked) == payload["utterances"] == payload["needed"] - payload["there"]
    assert {item.utterance.id for item in asked} <= set(heard)
    first = review.next(loop, by="ann")
    assert first is not None
    assert first.item.utterance.id in {item.utterance.id for item in asked}
    review.prioritise(loop)
    assert review.page(loop, limit=1).items[0].utterance.id in {item.utterance.id for item in asked}
    planned = orchestrator.plan(loop)
    assert planned.reviews == len(asked)
    assert any("waits for the review of" in sentence for sentence in planned.why)
    for item in asked[:-1]:
        review.save(loop, item.utterance.id, "what is said", by="ann")
    orchestrator.tick(loop)
    assert now(loop).state == "waiting"
    review.reject(loop, asked[-1].utterance.id, reason="noise", by="ann")
    orchestrator.tick(loop)
    assert now(loop).state == "evaluating"
    assert review.page(loop, where=review.Filters(requested=True)).items == ()


def test_a_waiting_run_gives_way_to_the_next(loop: Workspace, tmp_path: Path) -> None:
    speech(loop, tmp_path / "speech", clips=12)
    add_utterance(loop, "new", heard="a text", speaker="eve")
    first = orchestrator.start_now(loop, by="ann")
    work(loop, ["freeze"], until_idle=True)
    trained(loop, first)
    orchestrator.tick(loop)
    work(loop, ["evaluate"], until_idle=True)
    assert now(loop).state == "waiting"
    second = orchestrator.start_now(loop, by="ann")
    with loop.read() as reader:
        before = cycles.find(reader, first.id)
    assert before is not None
    assert (before.state, second.state) == ("done", "asked")
    assert f"gave way to run {second.id}" in (before.message or "")
    assert review.page(loop, where=review.Filters(requested=True)).items == ()


def test_a_failed_run_is_tried_again_later_and_given_up_in_the_end(loop: Workspace, tmp_path: Path) -> None:
    loop = replace(loop, settings=replace(loop.settings, train_retries=2))
    speech(loop, tmp_path / "speech")
    orchestrator.tick(loop)
    work(loop, ["freeze"], until_idle=True)
    for retry in range(2):
        trained(loop, now(loop), status="failed", error="the disk is full\nand more")
        orchestrator.tick(loop)
        cycle = now(loop)
        assert (cycle.state, cycle.retries) == ("training", retry)
        assert f"tried again in {60 * 4**retry} s" in (cycle.message or "")
        orchestrator.tick(loop)
        assert training.find(loop, cycle.id).status == "failed"
        with loop.transaction() as tx:
            tx.connection.execute(sa.update(tables.cycle).values(not_before=tx.now() - 1))
        orchestrator.tick(loop)
        assert training.find(loop, cycle.id).status == "queued"
        assert now(loop).retries == retry + 1
    trained(loop, now(loop), status="failed", error="the disk is full")
    assert "is failed: training failed 3 times" in orchestrator.tick(loop)
    cycle = now(loop)
    assert (cycle.state, cycle.message) == ("failed", "training failed 3 times, the last time: the disk is full")
    assert events(loop, "training.given_up") == [("training.given_up", {"message": cycle.message})]
    assert "of new usable speech" in orchestrator.tick(loop)
    assert not orchestrator.plan(loop).starts  # it had its chance; `automation start` gives it another


def test_a_step_that_dies_ends_the_run(loop: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speech(loop, tmp_path / "speech")
    orchestrator.tick(loop)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no room left")

    monkeypatch.setattr(datasets, "build", broken)
    monkeypatch.setattr(loop.jobs, "max_attempts", 1)
    work(loop, ["freeze"], until_idle=True)
    orchestrator.tick(loop)
    cycle = now(loop)
    assert cycle.state == "failed"
    assert "its step freeze failed 1 time: RuntimeError: no room left" in (cycle.message or "")


def test_a_run_that_a_person_pauses_says_so(loop: Workspace, tmp_path: Path) -> None:
    speech(loop, tmp_path / "speech")
    orchestrator.tick(loop)
    work(loop, ["freeze"], until_idle=True)
    training.pause(loop, now(loop).id)
    assert "a person paused it" in orchestrator.tick(loop)
    training.resume(loop, now(loop).id)
    assert orchestrator.tick(loop) == f"run {now(loop).id} is training"


def test_a_run_without_a_better_model_ends(loop: Workspace, tmp_path: Path) -> None:
    speech(loop, tmp_path / "speech")
    orchestrator.tick(loop)
    work(loop, ["freeze"], until_idle=True)
    trained(loop, now(loop))
    with loop.transaction() as tx:
        tx.change(Run, now(loop).id, model=None)
    orchestrator.tick(loop)
    assert (now(loop).state, now(loop).verdict) == ("done", "no better")


def test_the_pause_switch(loop: Workspace, tmp_path: Path) -> None:
    assert orchestrator.pause(loop, by="ann")
    assert not orchestrator.pause(loop, by="bob")
    speech(loop, tmp_path / "speech")
    assert orchestrator.tick(loop) == "paused"
    planned = orchestrator.plan(loop)
    assert (planned.starts, planned.paused, planned.cycle) == (False, True, None)
    assert orchestrator.resume(loop, by="ann")
    assert not orchestrator.resume(loop, by="ann")
    orchestrator.tick(loop)
    assert now(loop).state == "asked"
    told = [type for type, _ in events(loop, "automation.paused", "automation.resumed")]
    assert told == ["automation.paused", "automation.resumed"]


def test_a_tick_with_nothing_new_starts_nothing_and_says_so(loop: Workspace, tmp_path: Path) -> None:
    loop = replace(loop, settings=replace(loop.settings, train_cron="02:00", time_zone="UTC", train_hours=0.0))
    day = 86_400.0
    today = 20_000 * day + 12 * 3600
    orchestrator.tick(loop, lambda: today)  # the first look begins the schedule
    orchestrator.tick(loop, lambda: today + day)
    assert events(loop, "training.skipped") == [
        ("training.skipped", {"reason": "cron", "message": "there is no new usable speech"})
    ]
    speech(loop, tmp_path / "speech")
    orchestrator.tick(loop, lambda: today + day)
    with loop.read() as reader:
        assert cycles.newest(reader) is None  # the hours start none, and it is not time
    orchestrator.tick(loop, lambda: today + 2 * day)
    assert (now(loop).state, now(loop).reason) == ("asked", "cron")


def test_a_persons_run_comes_first(loop: Workspace, tmp_path: Path) -> None:
    speech(loop, tmp_path / "speech")
    datasets.build(loop, ratios=(1.0, 0.0, 0.0))
    run = training.submit(loop)
    line = orchestrator.tick(loop)
    assert "of new usable speech" in line
    planned = orchestrator.plan(loop)
    assert not planned.starts
    assert f"Run {run.id} is queued, and one run at a time uses the device." in planned.why


def test_a_persons_commands_need_no_automatic_run(loop: Workspace, tmp_path: Path) -> None:
    """Nothing that a person does starts the steps of automatic runs."""
    frozen = frozen_speech.freeze(loop, tmp_path / "speech")
    model = models.base_model(loop, str(Path(loop.settings.base_model).with_name("challenger")))
    frozen_speech.remember(loop, model, frozen, frozen_speech.wrong_in(0.5))
    evaluation.evaluate(loop, model.id, dataset=frozen.id)
    with loop.read() as reader:
        open_steps = {step for step, states in loop.jobs.counts(reader).items() if states.get("ready")}
    assert open_steps.isdisjoint(("freeze", "train", "evaluate", "promote"))


def test_a_backup_comes_before_the_training(loop: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever starts the run; here the process that follows it."""
    speech(loop, tmp_path / "speech")
    datasets.build(loop, ratios=(1.0, 0.0, 0.0))
    begun: list[str] = []

    def refuse(ws: Workspace) -> None:
        begun.append(str(ws.folder))
        raise WorkspaceError("the backup before the run failed: no room")

    guarded = replace(loop, before_run=refuse)
    run = training.submit(guarded)
    with pytest.raises(WorkspaceError, match="the backup before the run failed"):
        training.see_through(guarded, run.id)
    assert begun == [str(loop.folder)]
    assert training.find(loop, run.id).status == "failed"
    assert not (loop.runs / run.id / "training_config.json").exists()
