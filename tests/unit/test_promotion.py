"""Aliases move only on evidence, in one transaction, and back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit import frozen_speech
from voxloop import transcripts
from voxloop.errors import ConflictError, UnknownRecord, UsageError
from voxloop.pipeline import open_loop
from voxloop.promotion import Outcome, champion, comparisons, history, promote, rollback
from voxloop.records import Model
from voxloop.stores import catalog as tables
from voxloop.workspace import Workspace


class Pair:
    """A workspace whose base model errs in three of four clips, and a challenger that errs in `after`."""

    def __init__(self, folder: Path, *, after: float = 0.0, clips: int = 24) -> None:
        old, new = frozen_speech.models(folder)
        self.ws: Workspace = open_loop(
            folder / "workspace", create=True, threads=1, device="cpu", min_snr_db=-99.0, base_model=str(old)
        )
        self.frozen = frozen_speech.freeze(self.ws, folder / "speech", clips=clips)
        self.old, self.new = (self.register(folder) for folder in (old, new))
        frozen_speech.remember(self.ws, self.old, self.frozen, frozen_speech.wrong_in(0.75))
        frozen_speech.remember(self.ws, self.new, self.frozen, frozen_speech.wrong_in(after))

    def register(self, folder: Path) -> Model:
        """A folder's model as the catalog holds it."""
        id = transcripts.base_model(self.ws, str(folder)).id
        with self.ws.read() as reader:
            return reader.get(Model, id)

    def promote(self, model: Model | None = None, *, force: bool = False, by: str = "test") -> Outcome:
        return promote(self.ws, (model or self.new).id, force=force, by=by)

    def aliases(self) -> dict[str, str]:
        with self.ws.read() as reader:
            return {row.name: row.model for row in reader.connection.execute(tables.alias.select())}

    def told(self, type: str) -> int:
        with self.ws.read() as reader:
            return len(reader.connection.execute(tables.event.select().where(tables.event.c.type == type)).all())


def test_a_better_model_becomes_champion_with_its_evidence(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    assert champion(pair.ws) is None
    outcome = pair.promote(by="ann")
    assert outcome.verdict == "promote"
    assert outcome.message.startswith(f"model {pair.new.id[7:19]} is champion now: word error rate fell from 15.0 %")
    assert outcome.promotion is not None
    assert champion(pair.ws) == pair.new == transcripts.base_model(pair.ws)
    assert pair.aliases() == {"champion": pair.new.id, "previous": pair.old.id}
    assert history(pair.ws) == [outcome.promotion]
    kept = outcome.promotion
    assert (kept.by, kept.verdict, kept.previous) == ("ann", "promote", pair.old.id)
    assert kept.evidence["wer_before"] == pytest.approx(0.15)
    assert kept.evidence["champion_evaluation"] != kept.evidence["challenger_evaluation"]
    assert {guard["name"] for guard in kept.evidence["guards"]} == {"slices", "silence", "30 s"}
    assert comparisons(pair.ws) == [outcome.comparison]
    assert (pair.told("model.promoted"), pair.told("model.evaluated")) == (1, 2)


def test_the_reigning_champion_is_left_where_it_is(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.promote()
    again = pair.promote()
    assert not again.moved
    assert again.message.endswith("is champion already; nothing moved")
    assert len(history(pair.ws)) == pair.told("model.promoted") == 1
    assert not pair.promote(force=True).moved


def test_the_base_model_needs_no_promotion_but_can_be_given_the_name(tmp_path: Path) -> None:
    pair = Pair(tmp_path, clips=6)
    outcome = pair.promote(pair.old)
    assert not outcome.moved
    assert "it is the base model" in outcome.message
    assert pair.promote(pair.old, force=True).moved
    assert champion(pair.ws) == pair.old


def test_without_evidence_nothing_moves_and_the_verdict_is_kept(tmp_path: Path) -> None:
    pair = Pair(tmp_path, after=0.75)
    outcome = pair.promote()
    assert (outcome.moved, outcome.verdict) == (False, "reject")
    assert "was not made champion (reject): no better" in outcome.message
    assert champion(pair.ws) is None
    assert history(pair.ws) == []
    assert [found.verdict for found in comparisons(pair.ws, pair.new.id)] == ["reject"]
    assert comparisons(pair.ws, pair.old.id) == []
    pair.promote()
    assert pair.told("model.compared") == 1


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
        assert "no dataset yet" in outcome.promotion.evidence["missing"]
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
    assert transcripts.base_model(pair.ws) == pair.old
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
        with pytest.raises(UsageError, match="needed is a name"):
            promote(pair.ws, pair.new.id, alias=wrong)


def test_an_alias_that_moved_meanwhile_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody promotes by hand between the judgement and the move."""
    from voxloop import promotion

    pair = Pair(tmp_path)
    third = pair.register(frozen_speech.twin(tmp_path / "champion", "third"))
    compare = promotion.compare

    def slowly(*given: object) -> object:
        found = compare(*given)  # type: ignore[arg-type]
        monkeypatch.setattr(promotion, "compare", compare)
        promote(pair.ws, third.id, force=True, by="ann")
        return found

    monkeypatch.setattr(promotion, "compare", slowly)
    with pytest.raises(ConflictError, match=r"moved while this was being judged \(to model .*, by ann\)"):
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
