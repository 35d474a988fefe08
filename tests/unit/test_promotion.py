"""Aliases move only on evidence, in one transaction, and back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from tests.unit import frozen_speech
from voxloop import models, status
from voxloop.cli import app
from voxloop.errors import ConflictError, UnknownRecord, UsageError
from voxloop.pipeline import open_loop
from voxloop.records import Evaluation, Model, Recording, Run
from voxloop.steps import transcripts
from voxloop.steps.gate import promotion
from voxloop.steps.gate.comparison import NO_BETTER
from voxloop.steps.gate.promotion import (
    PromotionOutcome,
    attempts,
    champion,
    comparisons,
    history,
    promote,
    rollback,
)
from voxloop.stores import tables
from voxloop.workspace import Workspace


class Pair:
    """A workspace whose base model errs in three of four clips, and a challenger that errs in `after`.

    Without `guards`, as most tests have it, silence and noise are decoded once. Else what these models babble
    is decoded again at five temperatures to the last token that fits, most of the time that a promotion takes.
    """

    def __init__(self, folder: Path, *, after: float = 0.0, clips: int = 24, guards: bool = False) -> None:
        old, new = frozen_speech.models(folder)
        settings = {"threads": 1, "device": "cpu", "min_snr_db": -99.0, "base_model": str(old), "guards": guards}
        self.ws: Workspace = open_loop(folder / "workspace", create=True, **settings)
        self.frozen = frozen_speech.freeze(self.ws, folder / "speech", clips=clips)
        self.old, self.new = (self.register(folder) for folder in (old, new))
        frozen_speech.remember(self.ws, self.old, self.frozen, frozen_speech.wrong_in(0.75))
        frozen_speech.remember(self.ws, self.new, self.frozen, frozen_speech.wrong_in(after))

    def register(self, folder: Path) -> Model:
        """A folder's model as the catalog holds it."""
        id = models.base_model(self.ws, str(folder)).id
        with self.ws.read() as reader:
            return reader.get(Model, id)

    def promote(self, model: Model | None = None, *, force: bool = False, by: str = "test") -> PromotionOutcome:
        return promote(self.ws, (model or self.new).id, force=force, by=by)

    def aliases(self) -> dict[str, str]:
        with self.ws.read() as reader:
            return {row.name: row.model for row in reader.connection.execute(tables.alias.select())}

    def told(self, type: str) -> int:
        with self.ws.read() as reader:
            return len(reader.connection.execute(tables.event.select().where(tables.event.c.type == type)).all())


def test_a_better_model_becomes_champion_with_its_evidence(tmp_path: Path) -> None:
    pair = Pair(tmp_path, guards=True)
    assert champion(pair.ws) is None
    outcome = pair.promote(by="ann")
    assert outcome.verdict == "promote"
    assert outcome.message.startswith(
        f"model {pair.new.id[7:19]} is now champion: Better: it removes 100.0 % of the errors."
    )
    assert outcome.promotion is not None
    assert champion(pair.ws) == pair.new == models.base_model(pair.ws)
    assert pair.aliases() == {"champion": pair.new.id, "previous": pair.old.id}
    assert history(pair.ws) == [outcome.promotion]
    kept = outcome.promotion
    assert (kept.by, kept.verdict, kept.previous) == ("ann", "promote", pair.old.id)
    assert kept.evidence["wer_before"] == pytest.approx(0.15)
    assert kept.evidence["champion_evaluation"] != kept.evidence["challenger_evaluation"]
    assert {guard["name"] for guard in kept.evidence["guards"]} == {
        "slices",
        "silence",
        "30 s",
        "language",
        "time stamps",
        "written form",
        "unlabelled",
    }
    assert comparisons(pair.ws) == [outcome.comparison]
    assert (pair.told("model.promoted"), pair.told("model.evaluated"), pair.told("model.tried")) == (1, 2, 1)


@pytest.mark.parametrize(("worse", "verdict"), [(0.0, "promote"), (1.0, "reject"), (0.55, "insufficient evidence")])
def test_a_model_must_be_no_worse_on_any_engine_that_serves(tmp_path: Path, worse: float, verdict: str) -> None:
    pair = Pair(tmp_path)
    settings = {"serving_engines": ("torch", "ctranslate2-float32"), "base_model": str(tmp_path / "champion")}
    with open_loop(pair.ws.folder, threads=1, device="cpu", guards=False, **settings) as ws:
        for model, share in ((pair.old, 0.5), (pair.new, worse)):
            frozen_speech.remember(ws, model, pair.frozen, frozen_speech.wrong_in(share), engine="ctranslate2-float32")
        for model, share in ((pair.old, 0.5), (pair.new, 0.0)):
            frozen_speech.remember(ws, model, pair.frozen, frozen_speech.wrong_in(share), engine="torch")
        outcome = promote(ws, pair.new.id)
        assert outcome.verdict == verdict
        assert outcome.comparison is not None
        (guard,) = [one for one in outcome.comparison.guards if one.name == "on ctranslate2-float32"]
        assert guard.passed == outcome.moved
        assert "WER 10.0 % -> " in guard.finding
        assert pair.told("model.evaluated") == 4


def test_the_reigning_champion_is_left_where_it_is(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.promote()
    again = pair.promote()
    assert not again.moved
    assert again.message.endswith("is already champion; nothing changed")
    assert len(history(pair.ws)) == pair.told("model.promoted") == 1
    assert not pair.promote(force=True).moved


def test_the_base_model_needs_no_promotion_but_can_be_given_the_name(tmp_path: Path) -> None:
    pair = Pair(tmp_path, clips=6)
    outcome = pair.promote(pair.old)
    assert not outcome.moved
    assert "is a base model" in outcome.message
    assert pair.promote(pair.old, force=True).moved
    assert champion(pair.ws) == pair.old


@pytest.mark.parametrize(("after", "said"), [(0.75, "voxloop ingest FOLDER"), (0.6, "voxloop review")])
def test_the_next_step_after_a_verdict_is_not_to_ask_again(tmp_path: Path, after: float, said: str) -> None:
    pair = Pair(tmp_path, after=after)
    counts = {"recordings": 1, "references": 1, "utterances": {}, "jobs": {}, "reviews": 0}
    run = SimpleNamespace(status="completed", model=pair.new.id, dataset=pair.frozen.id, no_better=False)
    asked = (counts, (), pair.frozen, run, [], None)
    assert [step.partition("    ")[0] for step in status._next_steps(*asked, [])] == [
        f"voxloop model promote {pair.new.id[7:19]}"
    ]
    assert pair.promote().verdict != "promote"
    found = status._next_steps(*asked, comparisons(pair.ws, pair.new.id))
    assert [step.partition("    ")[0] for step in found] == [said]


def test_without_evidence_nothing_moves_and_the_verdict_is_kept(tmp_path: Path) -> None:
    pair = Pair(tmp_path, after=0.75)
    outcome = pair.promote()
    assert (outcome.moved, outcome.verdict) == (False, "reject")
    assert "was not made champion (reject): No better" in outcome.message
    assert champion(pair.ws) is None
    assert history(pair.ws) == []
    assert [found.verdict for found in comparisons(pair.ws, pair.new.id)] == ["reject"]
    assert comparisons(pair.ws, pair.old.id) == []
    pair.promote()
    assert (pair.told("model.compared"), pair.told("model.tried")) == (1, 1)


def test_a_person_may_move_it_by_hand_and_the_evidence_says_so(tmp_path: Path) -> None:
    pair = Pair(tmp_path, after=1.0)
    outcome = pair.promote(force=True, by="ann")
    assert outcome.verdict == "reject"
    assert outcome.promotion is not None
    assert (outcome.promotion.verdict, outcome.promotion.by) == ("by hand", "ann")
    assert outcome.promotion.evidence["verdict"] == "reject"
    assert champion(pair.ws) == pair.new


def test_without_a_dataset_only_a_person_can_promote(tmp_path: Path) -> None:
    old, new = frozen_speech.models(tmp_path)
    with open_loop(tmp_path / "workspace", create=True, base_model=str(old)) as ws:
        with pytest.raises(UnknownRecord, match="dataset build"):
            promote(ws, str(new))
        outcome = promote(ws, str(new), force=True)
        assert outcome.promotion is not None
        assert "there are no datasets yet" in outcome.promotion.evidence["missing"]
        assert "by hand" in outcome.message


def test_rolling_back_returns_the_model_before_and_twice_returns_again(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    with pytest.raises(UnknownRecord, match="no model is champion yet"):
        rollback(pair.ws)
    promoted = pair.promote().promotion
    assert promoted is not None
    back = rollback(pair.ws, by="ann")
    assert (back.model, back.previous, back.verdict, back.by) == (pair.old.id, pair.new.id, "rollback", "ann")
    assert back.evidence == {"of": promoted.id}
    assert pair.aliases() == {"champion": pair.old.id, "previous": pair.new.id}
    assert models.base_model(pair.ws) == pair.old
    assert rollback(pair.ws).model == pair.new.id
    assert pair.aliases() == {"champion": pair.new.id, "previous": pair.old.id}
    assert [entry.verdict for entry in history(pair.ws)] == ["promote", "rollback", "rollback"]
    assert pair.told("model.rolled_back") == 2


def test_a_champion_rolled_back_can_be_promoted_again(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.promote()
    rollback(pair.ws)
    assert pair.promote().moved
    assert champion(pair.ws) == pair.new
    assert len(history(pair.ws, "champion")) == 3


def test_other_aliases_have_their_own_history(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    assert promote(pair.ws, pair.new.id, alias="kitchen").moved
    assert champion(pair.ws) is None
    assert champion(pair.ws, "kitchen") == pair.new
    assert pair.aliases() == {"kitchen": pair.new.id, "kitchen-previous": pair.old.id}
    assert history(pair.ws, "champion") == []
    for wrong in ("previous", "starter", "a/b", ""):
        with pytest.raises(UsageError, match="is not allowed: use letters"):
            promote(pair.ws, pair.new.id, alias=wrong)


def test_an_alias_that_moved_meanwhile_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody promotes by hand between the judgement and the move."""
    pair = Pair(tmp_path)
    third = pair.register(frozen_speech.twin(tmp_path / "champion", "third"))
    find = promotion.find

    def slowly(*given: object, **named: object) -> object:
        found = find(*given, **named)  # type: ignore[arg-type]
        monkeypatch.setattr(promotion, "find", find)
        promote(pair.ws, third.id, force=True, by="ann")
        return found

    monkeypatch.setattr(promotion, "find", slowly)
    with pytest.raises(ConflictError, match=r"changed while this model was being judged \(to model .*, by ann\)"):
        pair.promote()
    assert champion(pair.ws) == third
    assert len(history(pair.ws)) == 1


def test_a_workers_job_is_done_with_the_promotion(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.ws.jobs.listeners = {"test.asked": ("promote",)}
    for asked in ("first", "second"):
        with pair.ws.transaction() as tx:
            tx.emit("test.asked", pair.new.id, key=asked)
    for moved in (True, False):
        claim = pair.ws.jobs.claim(["promote"])
        assert claim is not None
        assert promote(pair.ws.under(claim), pair.new.id).moved == moved
    with pair.ws.read() as reader:
        assert pair.ws.jobs.counts(reader)["promote"] == {"done": 2}


def test_the_command_line_tells_what_moved_and_what_it_rested_on(tmp_path: Path) -> None:
    pair = Pair(tmp_path)

    def said(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["-C", str(pair.ws.folder), "model", *arguments])
        assert result.exit_code == 0, result.output
        return result.output

    assert "no champion yet" in said("history")
    pair.promote(by="ann")
    assert json.loads(said("rollback", "--by", "bob", "--json"))["verdict"] == "rollback"
    shown, listed = said("history"), json.loads(said("history", "--json"))
    for part in ("promote", "rollback", "ann", "bob", "15.0 % ->", "24"):
        assert part in shown
    assert [move["verdict"] for move in listed] == ["promote", "rollback"]
    assert listed[0]["evidence"]["verdict"] == "promote"


# One transaction each -------------------------------------------------------------------------------------------------

KILLED_AT_A_STATEMENT = """
import itertools, os, signal, sys
from pathlib import Path
import sqlalchemy as sa
from voxloop.steps.gate import promotion
from voxloop.pipeline import open_loop

folder, model, statement = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
with open_loop(folder) as ws:
    event, count = ("commit", 1) if statement == "commit" else ("before_cursor_execute", int(statement))
    find = promotion.find

    def compared(*given, **named):
        found = find(*given, **named)
        seen = itertools.count(1)

        @sa.event.listens_for(ws.catalog.engine, event)
        def die(*_):
            if next(seen) == count:
                os.kill(os.getpid(), signal.SIGKILL)

        return found

    promotion.find = compared
    promotion.promote(ws, model)
"""


class Struck(Exception):
    """The fault that is injected."""


def struck(ws: Workspace, act: Callable[[], Any], *, at: int | None) -> int:
    """Do `act` with the catalog failing at the `at`-th change it is told (None: at none); how many it was told."""
    told = 0

    def count(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        nonlocal told
        if statement.split()[0] in ("INSERT", "UPDATE", "DELETE"):
            told += 1
            if told == at:
                raise Struck

    sa.event.listen(ws.catalog.engine, "before_cursor_execute", count)
    try:
        act()
    finally:
        sa.event.remove(ws.catalog.engine, "before_cursor_execute", count)
    return told


def standing(pair: Pair) -> dict[str, Any]:
    """All that a movement changes."""
    tables_of = (tables.alias, tables.promotion, tables.event)
    with pair.ws.read() as reader:
        return {t.name: [tuple(row) for row in reader.connection.execute(t.select())] for t in tables_of}


def test_a_fault_at_any_change_leaves_everything_as_it_was(tmp_path: Path) -> None:
    """Promotion and rollback, each struck at every statement that changes the catalog, then let through."""
    pair = Pair(tmp_path)
    for model in (pair.old, pair.new):  # measured before, so that what is struck is the movement
        promotion.evaluation.evaluate(pair.ws, model.id)
    changed = {"promote": (pair.promote, pair.new), "rollback": (lambda: rollback(pair.ws), pair.old)}
    for act, holder in changed.values():
        before, at = standing(pair), 0
        while True:
            at += 1
            try:
                told = struck(pair.ws, act, at=at)
                break
            except Struck:
                assert standing(pair) == before
        assert told == at - 1 >= 6  # the history, two aliases taken and given, and what was told of it
        assert champion(pair.ws) == holder
        assert standing(pair)["promotion"][-1][2] == "champion"
    assert [move.verdict for move in history(pair.ws)] == ["promote", "rollback"]


@pytest.mark.parametrize("statement", ["2", "6", "commit"])
def test_killed_within_a_promotion_it_has_not_happened_and_can_be_done(tmp_path: Path, statement: str) -> None:
    pair = Pair(tmp_path)
    for model in (pair.old, pair.new):
        promotion.evaluation.evaluate(pair.ws, model.id)
    before = standing(pair)
    command = [sys.executable, "-c", KILLED_AT_A_STATEMENT, str(pair.ws.folder), pair.new.id, statement]
    killed = subprocess.run(
        command,
        env=os.environ | {"VOXLOOP_BASE_MODEL": pair.old.where, "VOXLOOP_GUARDS": "false"},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert standing(pair) == before
    assert pair.promote().moved
    assert (champion(pair.ws), len(history(pair.ws))) == (pair.new, 1)


def test_of_two_promotions_at_once_one_wins_and_the_other_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = Pair(tmp_path)
    third = pair.register(frozen_speech.twin(tmp_path / "champion", "third"))
    frozen_speech.remember(pair.ws, third, pair.frozen, frozen_speech.wrong_in(0.0))
    for model in (pair.old, pair.new, third):
        promotion.evaluation.evaluate(pair.ws, model.id)
    find, judged = promotion.find, threading.Barrier(2, timeout=60)

    def together(*given: Any, **named: Any) -> Any:
        found = find(*given, **named)
        judged.wait()  # both were judged against the same champion before either moves
        return found

    monkeypatch.setattr(promotion, "find", together)
    ended: dict[str, Any] = {}

    def ask(model: Model) -> None:
        try:
            ended[model.id] = promote(pair.ws, model.id, by=f"asks for {model.id[7:12]}")
        except ConflictError as error:
            ended[model.id] = error

    askers = [threading.Thread(target=ask, args=(model,)) for model in (pair.new, third)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    won = [id for id, end in ended.items() if isinstance(end, PromotionOutcome) and end.moved]
    told = [str(end) for end in ended.values() if isinstance(end, ConflictError)]
    assert (len(won), len(told)) == (1, 1)
    assert "changed while this model was being judged" in told[0]
    assert f"by asks for {won[0][7:12]}" in told[0]
    assert [move.model for move in history(pair.ws)] == won
    assert pair.aliases() == {"champion": won[0], "previous": pair.old.id}


def test_an_alias_is_moved_by_one_at_a_time(each_workspace: Workspace) -> None:
    """Two that move it from the same place: the second waits for the first, then sees that it moved."""
    ws = each_workspace
    moved, ended = threading.Event(), dict[str, str]()

    def move(model: str) -> None:
        step = promotion.Promotion(
            id=f"p-{model}", alias="champion", model=model, previous=None, verdict="by hand", evidence={}, by=model
        )
        try:
            with ws.completion() as tx:
                promotion._move(tx, step, expected=None)
                moved.set()
                time.sleep(0.3)  # the other one comes meanwhile
            ended[model] = "moved"
        except ConflictError as error:
            ended[model] = str(error)

    threads = [threading.Thread(target=move, args=(model,)) for model in ("first", "second")]
    threads[0].start()
    assert moved.wait(30)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert ended["first"] == "moved"
    assert "changed while this model was being judged (to model first, by first)" in ended["second"]
    with ws.read() as reader:
        assert [(row.name, row.model) for row in reader.connection.execute(tables.alias.select())] == [
            ("champion", "first")
        ]
    assert [one.model for one in history(ws)] == ["first"]


# What is judged is what is served -------------------------------------------------------------------------------------


def test_the_gate_hears_with_the_very_model_that_transcribes(tmp_path: Path) -> None:
    """Nothing is remembered here: both models decode, and the champion then transcribes the same utterances."""
    old, new = frozen_speech.models(tmp_path)
    with open_loop(
        tmp_path / "workspace", create=True, threads=1, device="cpu", min_snr_db=-99.0, base_model=str(old)
    ) as ws:
        frozen_speech.freeze(ws, tmp_path / "speech", clips=3)
        outcome = promote(ws, str(new), force=True)
        assert outcome.comparison is not None
        with ws.read() as reader:
            judged = reader.get(Evaluation, outcome.comparison.challenger_evaluation)
            ids = [recording.id for recording in reader.all(Recording)]
        served = {transcript.utterance: transcript for transcript in transcripts.transcribe(ws, ids)}
        asked = json.loads(json.dumps(transcripts.decoding(ws).as_dict()))
        assert judged.decoding == asked | {"hearing": judged.decoding["hearing"]}
        rows = promotion.evaluation.scored_rows(ws, judged)
        assert len(rows) == len(served) == 3
        for row in rows:
            assert served[row.utterance].by == outcome.model == judged.model
            assert served[row.utterance].text == row.hypothesis
            assert served[row.utterance].confidence == row.confidence


def test_other_decoding_settings_are_measured_anew(tmp_path: Path) -> None:
    pair = Pair(tmp_path, clips=6)
    first = promotion.evaluation.evaluate(pair.ws, pair.new.id)
    with open_loop(
        pair.ws.folder, base_model=pair.old.where, language="de", threads=1, device="cpu", guards=False
    ) as ws:
        assert promotion.evaluation.evaluate(ws, pair.new.id).id != first.id


# A general set, and repeated use --------------------------------------------------------------------------------------


def test_a_general_set_is_asked_and_may_not_be_the_test_itself(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    general = promotion.datasets.build(pair.ws, name="general", ratios=(0.0, 0.0, 1.0), speakers=["ann"])
    for model, share in ((pair.old, 0.0), (pair.new, 1.0)):
        frozen_speech.remember(pair.ws, model, general, frozen_speech.wrong_in(share))
    with pytest.raises(UsageError, match="both the test set and the general set: name the test dataset"):
        promote(pair.ws, pair.new.id, general="general")
    outcome = promote(pair.ws, pair.new.id, dataset="frozen", general="general")
    assert outcome.comparison is not None
    assert (outcome.verdict, outcome.moved) == ("reject", False)
    assert outcome.comparison.general == general.id
    assert outcome.comparison.reasons[0].startswith("General set general: WER 0.0 % -> 20.0 %, ")
    assert promote(pair.ws, pair.new.id, dataset="frozen").moved  # without it nothing speaks against the model


def test_freezing_again_does_not_make_a_used_test_set_fresh(tmp_path: Path) -> None:
    pair = Pair(tmp_path, after=0.75, clips=48)
    assert pair.promote().verdict == "reject"
    third = pair.register(frozen_speech.twin(tmp_path / "champion", "third"))
    again = promotion.datasets.build(pair.ws, name="frozen", ratios=(0.0, 0.0, 1.0), speakers=["ann"])
    for model, share in ((pair.old, 0.75), (third, 0.0)):
        frozen_speech.remember(pair.ws, model, again, frozen_speech.wrong_in(share))
    found = promote(pair.ws, third.id).comparison
    assert found is not None
    assert (found.dataset, found.verdict) == (again.id, "promote")
    first, second = attempts(pair.ws)
    assert (first.promoted, first.fresh, first.model) == (False, True, pair.new.id)
    assert (second.promoted, second.fresh, second.model) == (True, False, third.id)
    assert second.level == found.level < first.level
    assert second.p == found.chance


def test_a_test_too_small_to_promote_anything_charges_nothing(tmp_path: Path) -> None:
    pair = Pair(tmp_path, clips=12)
    assert pair.promote().verdict == "insufficient evidence"
    assert attempts(pair.ws) == []


# What a challenger is held against ------------------------------------------------------------------------------------


def tuned(pair: Pair, model: Model, base: Model, *, before: float = 0.3, after: float = 0.2, step: int = 5) -> Model:
    """`model` as a run made it from `base`, with these word error rates on val before and after."""
    progress = {"base": {"wer": before, "step": 0}, "best": {"wer": after, "step": step}}
    run = Run(
        id=f"run-{model.id[7:15]}",
        dataset=pair.frozen.id,
        base=base.id,
        family="whisper",
        method="full",
        recipe={},
        status="completed",
        progress=progress,
        model=model.id,
    )
    with pair.ws.catalog.write() as tx:
        tx.add(run)
        # Files stay in their folder: where a model lies is not what is asked here.
        tx.change(Model, model.id, base=base.id, run=run.id)
        return tx.get(Model, model.id)


@pytest.fixture
def in_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of runs are loaded from the folders that they were registered from."""
    monkeypatch.setattr(models, "_from_blobs", lambda ws, model, checked: Path(model.where))


@pytest.mark.usefixtures("in_folders")
def test_before_there_is_a_champion_a_model_is_held_against_the_base_that_it_was_tuned_from(tmp_path: Path) -> None:
    """The setting's base is another model, which hears nothing right: beside it everything would look better."""
    pair = Pair(tmp_path, after=0.0)
    other = pair.register(frozen_speech.twin(tmp_path / "champion", "other"))
    frozen_speech.remember(pair.ws, other, pair.frozen, lambda number, row: "")
    first = tuned(pair, pair.register(frozen_speech.twin(tmp_path / "champion", "first")), pair.old)
    second = tuned(pair, pair.new, first)
    with open_loop(
        pair.ws.folder, base_model=other.where, threads=1, device="cpu", min_snr_db=-99.0, guards=False
    ) as ws:
        assert promotion.untuned(ws, first) == promotion.untuned(ws, second) == pair.old
        assert promotion.untuned(ws, pair.old) == other
        outcome = promote(ws, second.id)
    assert outcome.reigning == pair.old.id
    assert outcome.comparison is not None
    assert (outcome.moved, outcome.comparison.wer_before) == (True, pytest.approx(0.15))
    assert pair.aliases() == {"champion": second.id, "previous": pair.old.id}


def test_a_model_whose_base_is_gone_is_not_held_against_anything_else(tmp_path: Path) -> None:
    pair = Pair(tmp_path, clips=6)
    orphan = tuned(pair, pair.new, pair.old)
    with pair.ws.catalog.write() as tx:
        tx.connection.execute(sa.delete(tables.model).where(tables.model.c.id == pair.old.id))
    with pytest.raises(UnknownRecord, match="no longer in this workspace"):
        promote(pair.ws, orphan.id)


# Val comes first ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "step", "why"),
    [
        (0.35, 5, "it is no better on val (WER 30.0 % -> 35.0 % in training)"),
        (0.3, 0, "training found no gain on val"),
    ],
)
@pytest.mark.usefixtures("in_folders")
def test_a_model_that_is_no_better_on_val_is_not_tried_on_test(
    tmp_path: Path, after: float, step: int, why: str
) -> None:
    pair = Pair(tmp_path)
    challenger = tuned(pair, pair.new, pair.old, after=after, step=step)
    outcome = pair.promote(challenger)
    assert (outcome.moved, outcome.verdict, outcome.comparison) == (False, "insufficient evidence", None)
    assert f"was not tried on the test set: {why}" in outcome.message
    assert outcome.next_step == NO_BETTER
    assert (attempts(pair.ws), pair.told("model.evaluated")) == ([], 0)
    assert pair.promote(challenger, force=True).moved  # by hand all the same


def test_where_the_champion_is_not_its_base_both_are_measured_on_val(tmp_path: Path, monkeypatch: Any) -> None:
    pair = Pair(tmp_path)
    found = iter([{"errors": 3, "wer": 0.03, "utterances": 30}, {"errors": 4, "wer": 0.04, "utterances": 30}] * 2)
    rows = promotion.datasets.rows

    def val_rows(ws: Workspace, id: str, split: str | None = None) -> list[Any]:
        return rows(ws, id, "test") if split == "val" else rows(ws, id, split)  # type: ignore[arg-type]

    def measured(*_: Any, split: str = "test", **__: Any) -> Any:
        assert split == "val"
        return tuple(
            Evaluation(
                id="e",
                model="m",
                dataset="d",
                split="val",
                decoding={},
                normaliser="n",
                scores=next(found),
                hypotheses="",
            )
            for _ in range(2)
        )

    monkeypatch.setattr(promotion.datasets, "rows", val_rows)
    monkeypatch.setattr(promotion, "_measured", measured)
    outcome = pair.promote()
    assert "it is no better on val (WER 3.0 % -> 4.0 %, 30 utterances)" in outcome.message
