"""Corrections are kept whole, nobody overwrites what they have not seen, and no two people do the same work."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from tests.conftest import statements
from tests.unit.speech import add_utterance
from voxloop.automation.worker import work
from voxloop.errors import ConflictError, UnknownRecord, UsageError
from voxloop.models import STARTER, base_model
from voxloop.pipeline import open_loop
from voxloop.records import Quality, Transcript, Utterance, Word
from voxloop.steps import datasets, review
from voxloop.steps.review import Filters, statistics
from voxloop.steps.review.warnings import repetition, warnings_of
from voxloop.stores import tables
from voxloop.workspace import Workspace


def ids(page: review.Page) -> list[str]:
    return [item.utterance.id.partition(":")[0].removeprefix("sha256-") for item in page.items]


def events(ws: Workspace, type: str) -> int:
    with ws.read() as reader:
        table = tables.event
        return int(reader.connection.execute(sa.select(sa.func.count()).where(table.c.type == type)).scalar_one())


# Differences ---------------------------------------------------------------------------------------------------------


def test_a_machines_text_is_held_against_the_reference(workspace: Workspace) -> None:
    (id,) = add_utterance(workspace, "r", heard="turn the light of now", language="en")
    with pytest.raises(UsageError, match=r"has no reference to compare.*--against 1"):
        review.diff(workspace, id)
    review.save(workspace, id, "Turn the lights off.", by="ann")
    found = review.diff(workspace, id).found
    assert (found.words.substitutions, found.words.insertions, found.words.units) == (2, 1, 4)
    assert review.diff(workspace, id, written=True).found.words.errors == 4  # "Turn" and "off." besides
    turned = review.diff(workspace, id, version="reference", against="1")
    assert (turned.reference.kind, turned.hypothesis.by) == (review.show(workspace, id).versions[0].kind, "ann")
    assert turned.found.words.deletions == 1
    for name in ("0", "9", "withdrawn", "nothing"):
        with pytest.raises(UsageError, match=r"has no version .*Its versions: 1 \(.*, 3 \(reference\)"):
            review.diff(workspace, id, version=name)


def test_the_worst_come_first(workspace: Workspace) -> None:
    heard = {"a": "one two three", "b": "one", "c": "one two", "d": "four five six seven", "e": "nothing said"}
    for name, text in heard.items():
        reference = None if name == "e" else "one two three"
        add_utterance(workspace, name, heard=text, reference=reference, language="en", speaker=name)
    found = review.worst(workspace, limit=2)
    assert [(one.utterance.speaker, one.found.words.errors) for one in found] == [("d", 4), ("b", 2)]
    assert [one.utterance.speaker for one in review.worst(workspace, limit=9)] == ["d", "b", "c"]
    assert [one.utterance.speaker for one in review.worst(workspace, limit=9, where=Filters(speaker="c"))] == ["c"]


# Decisions -----------------------------------------------------------------------------------------------------------


def test_a_saved_text_is_the_reference_and_every_version_stays(workspace: Workspace) -> None:
    (id,) = add_utterance(workspace, "r", heard="hallo word")
    assert review.show(workspace, id).text == "hallo word"
    first = review.save(workspace, id, "  hello   word ", by="ann")
    review.save(workspace, id, "hello world", by="bo", seen=first.id)
    item = review.show(workspace, id)
    assert item.text == "hello world"
    assert item.utterance.status == "reviewed"
    assert {(t.kind, t.text, t.by) for t in item.versions} == {
        ("hypothesis", "hallo word", "model"),
        ("clean", "hallo word", "model"),
        ("reference", "hello word", "ann"),
        ("reference", "hello world", "bo"),
    }
    assert [(d.kind, d.by, d.before) for d in review.history(workspace, id)] == [
        ("save", "ann", "transcribed"),
        ("save", "bo", "reviewed"),
    ]
    assert events(workspace, "utterance.reviewed") == events(workspace, "dataset.new_sample") == 2


def test_saving_over_what_was_not_seen_is_a_conflict(workspace: Workspace) -> None:
    (id,) = add_utterance(workspace, "r", heard="hallo")
    review.save(workspace, id, "hello", by="ann", seen="")
    with pytest.raises(ConflictError, match="'ann' saved 'hello'"):
        review.save(workspace, id, "hullo", by="bo", seen="")
    with pytest.raises(ConflictError, match="may not have seen"):
        review.save(workspace, id, "hullo", by="bo")
    with pytest.raises(ConflictError):
        review.reject(workspace, id, reason="noise", by="bo")
    with pytest.raises(ConflictError):
        review.accept(workspace, id, by="bo")
    assert review.show(workspace, id).text == "hello"
    review.save(workspace, id, "hullo", by="bo", seen=review.show(workspace, id).version)
    assert review.show(workspace, id).text == "hullo"


def test_a_text_that_came_with_the_audio_is_nobodys_work(workspace: Workspace) -> None:
    (id,) = add_utterance(workspace, "r", heard="hallo")
    with workspace.transaction() as tx:
        tx.add(Transcript(id="m", utterance=id, kind="reference", text="helo", by="metadata"))
    assert review.save(workspace, id, "hello", by="ann").text == "hello"


def test_saving_the_same_again_adds_nothing(workspace: Workspace) -> None:
    (id,) = add_utterance(workspace, "r", heard="hallo")
    assert review.save(workspace, id, "hello", by="ann") == review.save(workspace, id, "hello", by="ann")
    assert len(review.history(workspace, id)) == 1


def test_two_texts_in_one_tick_of_the_clock_have_an_order(workspace: Workspace) -> None:
    (id,) = add_utterance(workspace, "r", heard="hallo")
    for number in range(20):
        review.save(workspace, id, f"hello {number}", by="ann")
        assert review.show(workspace, id).text == f"hello {number}"


def test_accepting_takes_the_machines_text_that_was_shown(workspace: Workspace) -> None:
    (id,) = add_utterance(workspace, "r", heard="hello")
    turn = review.next(workspace, by="ann")
    assert turn
    with workspace.transaction() as tx:  # another model hears it meanwhile
        tx.add(Transcript(id="later", utterance=id, kind="clean", text="yellow", by="model 2", confidence=0.99))
    assert review.show(workspace, id).text == "yellow"
    assert review.accept(workspace, id, by="ann").text == "hello"
    (unheard,) = add_utterance(workspace, "q")
    with pytest.raises(UsageError, match="no machine text"):
        review.accept(workspace, unheard, by="ann")


def test_what_is_rejected_can_be_taken_back(workspace: Workspace) -> None:
    (id,) = add_utterance(workspace, "r", heard="hello")
    assert review.reject(workspace, id, reason="noise", by="ann").status == "rejected"
    assert [(d.kind, d.reason) for d in review.history(workspace, id)] == [("reject", "noise")]
    review.save(workspace, id, "hello", by="ann")
    assert review.show(workspace, id).utterance.status == "reviewed"
    review.reject(workspace, id, reason="noise", by="ann")
    review.save(workspace, id, "hello", by="ann")  # the same text, yet a decision
    assert review.show(workspace, id).utterance.status == "reviewed"


def test_what_is_no_decision_is_refused(workspace: Workspace) -> None:
    (id,) = add_utterance(workspace, "r", heard="hello")
    with pytest.raises(UsageError, match="reject"):
        review.save(workspace, id, "   ", by="ann")
    with pytest.raises(UsageError, match="reviewer"):
        review.save(workspace, id, "hello", by=" ")
    with pytest.raises(UsageError, match="Unicode"):
        review.save(workspace, id, "\ud800", by="ann")
    with pytest.raises(UsageError, match="reason"):
        review.reject(workspace, id, reason=" ", by="ann")
    with pytest.raises(UsageError, match="has no decision to undo"):
        review.undo(workspace, id, by="ann")
    with pytest.raises(UnknownRecord):
        review.show(workspace, "nothing")
    assert review.history(workspace, id) == []


def test_undo_goes_back_one_decision_at_a_time_and_keeps_them_all(workspace: Workspace) -> None:
    (id,) = add_utterance(workspace, "r", heard="hallo")
    review.save(workspace, id, "hello", by="ann")
    review.save(workspace, id, "hullo", by="ann")
    review.reject(workspace, id, reason="noise", by="ann")
    review.undo(workspace, id, by="ann")
    assert (review.show(workspace, id).utterance.status, review.show(workspace, id).text) == ("reviewed", "hullo")
    review.undo(workspace, id, by="ann")
    assert (review.show(workspace, id).utterance.status, review.show(workspace, id).text) == ("reviewed", "hello")
    review.undo(workspace, id, by="ann")
    item = review.show(workspace, id)
    assert (item.utterance.status, item.text, item.reference) == ("transcribed", "hallo", None)
    assert sorted(t.text for t in item.versions if t.kind == "withdrawn") == ["hello", "hullo"]
    assert [d.kind for d in review.history(workspace, id)] == ["save", "save", "reject", "undo", "undo", "undo"]
    with pytest.raises(UsageError, match="machine text only"):
        datasets.build(workspace)  # a withdrawn text is in no dataset
    review.save(workspace, id, "hello", by="ann")
    review.undo(workspace, id, by="ann")
    assert review.show(workspace, id).utterance.status == "transcribed"


def test_anothers_decision_is_undone_only_by_its_number(workspace: Workspace) -> None:
    (id,) = add_utterance(workspace, "r", heard="hallo")
    review.save(workspace, id, "hello", by="ann")
    with pytest.raises(ConflictError, match="'ann'"):
        review.undo(workspace, id, by="bo")
    (made,) = review.history(workspace, id)
    review.save(workspace, id, "hullo", by="ann")
    with pytest.raises(ConflictError, match="not the last"):
        review.undo(workspace, id, by="bo", decision=made.seq)
    last = review.history(workspace, id)[-1]
    assert review.undo(workspace, id, by="bo", decision=last.seq).undoes == last.seq
    assert review.show(workspace, id).text == "hello"


def test_bulk_accept_takes_what_is_confident_and_leaves_what_is_doubtful(workspace: Workspace) -> None:
    for number in range(10):
        add_utterance(workspace, f"r{number}", heard="hello there", confidence=number / 10)
    add_utterance(workspace, "odd", heard="no no no no no", confidence=0.99)
    add_utterance(workspace, "empty", heard=" ", confidence=0.99)
    add_utterance(workspace, "done", heard="hello", reference="hello", confidence=0.99)
    turn = review.next(workspace, by="bo", where=Filters(min_confidence=0.9, max_confidence=0.9))
    assert turn
    dry = review.bulk_accept(workspace, above=0.7, by="ann", dry_run=True)
    assert (dry.accepted, dry.warned, dry.taken, dry.duration) == (2, 2, 1, 2.0)
    assert review.stats(workspace).reviewed == 1
    done = review.bulk_accept(workspace, above=0.7, by="ann")
    assert replace(done, dry_run=True) == dry
    assert review.bulk_accept(workspace, above=0.7, by="ann").accepted == 0
    assert review.bulk_accept(workspace, above=0.7, by="ann", warned=True).accepted == 1  # an empty text never
    (found,) = review.stats(workspace).reviewers
    assert (found.by, found.bulk_accepted) == ("ann", 3)
    with pytest.raises(UsageError, match="above 0"):
        review.bulk_accept(workspace, above=0, by="ann")


# The listing ---------------------------------------------------------------------------------------------------------


def test_the_list_filters(workspace: Workspace) -> None:
    add_utterance(workspace, "a", heard="Straße x", speaker="ann", confidence=0.2, language="de")
    add_utterance(workspace, "b", heard="x", speaker="bo", confidence=0.8)
    add_utterance(workspace, "c", reference="50% STRASSE", speaker="bo", language="de")
    now = time.time()

    def found(**filters: object) -> list[str]:
        return sorted(ids(review.page(workspace, where=Filters(**filters))))  # type: ignore[arg-type]

    assert found() == ["a", "b", "c"]
    assert found(status="transcribed") == ["a", "b"]
    assert found(speaker="bo", status="reviewed") == ["c"]
    assert found(language="de") == ["a", "c"]
    assert found(min_confidence=0.5) == ["b"]
    assert found(max_confidence=0.5) == ["a"]
    assert found(min_confidence=0.1, max_confidence=0.9) == ["a", "b"]
    assert found(since=now - 60, until=now + 60) == ["a", "b", "c"]
    assert found(since=now + 60) == []
    assert found(until=now - 60) == []
    # SQLite looks for a part in ASCII letter by letter.
    assert found(contains="sTrasse") == (["c"] if workspace.catalog.engine.dialect.name == "sqlite" else ["a", "c"])
    assert found(contains="straße") == ["a", "c"]
    assert found(contains="%") == ["c"]
    assert found(warning="low confidence") == ["a"]
    assert found(warned=False) == ["b", "c"]
    with pytest.raises(UsageError, match="did you mean noisy"):
        Filters(warning="noisey")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="0 to 1"):
        Filters(min_confidence=90)


def test_pages_hold_everything_once(workspace: Workspace) -> None:
    for number in range(23):
        add_utterance(workspace, f"{number:02}", heard="x", confidence=(number % 3) / 10)
    review.prioritise(workspace)
    whole = ids(review.page(workspace, limit=100))
    seen: list[str] = []
    after = None
    while True:
        found = review.page(workspace, limit=4, after=after)
        seen += ids(found)
        after = found.after
        if after is None:
            break
    assert seen == whole
    assert len(set(seen)) == 23
    with pytest.raises(UsageError, match="cursor"):
        review.page(workspace, after="nonsense")


# The queue -----------------------------------------------------------------------------------------------------------


def test_next_gives_the_least_certain_that_nobody_has(workspace: Workspace) -> None:
    for name, confidence in (("a", 0.9), ("b", 0.1), ("c", 0.5)):
        add_utterance(workspace, name, heard="x", confidence=confidence)
    add_utterance(workspace, "new")
    add_utterance(workspace, "done", reference="x")
    review.prioritise(workspace)
    got = [review.next(workspace, by=by) for by in ("ann", "bo", "ann")]
    assert [turn.item.utterance.id for turn in got if turn] == [
        "sha256-b:0-16000",
        "sha256-c:0-16000",
        "sha256-a:0-16000",
    ]
    assert review.next(workspace, by="cy") is None
    assert [turn.item.utterance.id for turn in review.held(workspace, by="bo")] == ["sha256-c:0-16000"]
    assert review.release(workspace, "sha256-c:0-16000", by="bo")
    assert not review.release(workspace, "sha256-b:0-16000", by="bo")
    again = review.next(workspace, by="cy")
    assert again
    assert again.item.utterance.id == "sha256-c:0-16000"
    assert again.until - again.taken == pytest.approx(workspace.settings.review_lease_s, abs=1)


def test_a_turn_runs_out_and_whoever_is_late_is_told(tmp_path: Path) -> None:
    with open_loop(tmp_path / "w", create=True, review_lease_s=0.3) as ws:
        (id,) = add_utterance(ws, "r", heard="hallo")
        assert review.next(ws, by="ann")
        assert review.next(ws, by="bo") is None
        time.sleep(0.4)
        assert review.next(ws, by="bo")
        assert not review.renew(ws, id, by="ann")
        review.save(ws, id, "hello", by="bo")
        with pytest.raises(ConflictError, match="'bo' saved 'hello'"):
            review.save(ws, id, "hullo", by="ann")
        assert review.show(ws, id).text == "hello"


def test_a_turn_can_be_renewed(tmp_path: Path) -> None:
    with open_loop(tmp_path / "w", create=True, review_lease_s=0.5) as ws:
        (id,) = add_utterance(ws, "r", heard="hallo")
        assert review.next(ws, by="ann")
        for _ in range(4):
            time.sleep(0.2)
            assert review.renew(ws, id, by="ann")
        assert review.next(ws, by="bo") is None


def test_who_has_no_turn_may_save_and_the_one_who_has_is_told(workspace: Workspace) -> None:
    (id,) = add_utterance(workspace, "r", heard="hallo")
    assert review.next(workspace, by="ann")
    review.save(workspace, id, "hello", by="bo", seen="")
    assert review.held(workspace) == []
    with pytest.raises(ConflictError, match="'bo'"):
        review.save(workspace, id, "hullo", by="ann")


def test_a_skipped_utterance_comes_back_later(tmp_path: Path) -> None:
    with open_loop(tmp_path / "w", create=True, review_skip_s=0.5) as ws:
        for name, confidence in (("a", 0.1), ("b", 0.5), ("c", 0.9)):
            add_utterance(ws, name, heard="x", confidence=confidence)
        review.prioritise(ws)

        def take() -> str:
            turn = review.next(ws, by="ann")
            assert turn
            return turn.item.utterance.id

        first = take()
        review.skip(ws, first, by="ann")
        assert take() == "sha256-b:0-16000"
        time.sleep(0.6)
        assert take() == first  # its time is up: before c, as it is the less certain
        review.skip(ws, first, by="ann")
        assert take() == "sha256-c:0-16000"
        assert take() == first  # nothing else is left
        review.skip(ws, first, by="ann")
        review.undo(ws, first, by="ann")
        assert [d.kind for d in review.history(ws, first)] == ["skip", "skip", "skip", "undo"]
        assert take() == first


def _take_all(folder: Path, by: str, results: multiprocessing.Queue[list[tuple[str, str]]], ready: Barrier) -> None:
    """Take utterances until there are none; every third is decided, so that leases and saves mix."""
    taken = []
    with open_loop(folder) as ws:
        ready.wait(60)
        while True:
            turn = review.next(ws, by=by)
            if turn is None:
                break
            taken.append((turn.item.utterance.id, by))
            if len(taken) == 1:
                ready.wait(60)  # each has one: SQLite's one writer may leave the other waiting for long
            if len(taken) % 3 == 0:
                review.save(ws, turn.item.utterance.id, f"heard by {by}", by=by)
    results.put(taken)


def test_two_processes_on_one_queue_never_get_the_same_item(tmp_path: Path) -> None:
    with open_loop(tmp_path / "w", create=True) as ws:
        for part in range(4):
            add_utterance(ws, f"r{part}", heard="hello", parts=50)
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[list[tuple[str, str]]] = context.Queue()
    ready = context.Barrier(2)
    processes = [context.Process(target=_take_all, args=(tmp_path / "w", by, results, ready)) for by in ("ann", "bo")]
    for process in processes:
        process.start()
    taken = [pair for _ in processes for pair in results.get(timeout=120)]
    for process in processes:
        process.join(60)
    assert len(taken) == 200
    assert len({id for id, _ in taken}) == 200
    assert {by for _, by in taken} == {"ann", "bo"}  # both had a share


def test_the_order_prefers_what_is_unlike_the_reviewed(workspace: Workspace) -> None:
    """Three sounds; one is reviewed: of equally uncertain utterances those of the other two come first."""
    generator = np.random.default_rng(1)
    sounds = np.eye(3, 8) * 3 + 5  # all far from the origin, as encoder states are
    rows: dict[str, np.ndarray] = {}
    for sound in range(3):
        for number in range(5):
            name = f"{'xyz'[sound]}{number}"
            done = sound == 0 and number < 2
            (id,) = add_utterance(workspace, name, heard="hello", confidence=0.5, reference="hello" if done else None)
            rows[id] = sounds[sound] + generator.normal(0, 0.1, 8)
    add_utterance(workspace, "sure", heard="hello", confidence=0.99)
    matrix = np.array(list(rows.values()), dtype=np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    space = base_model(workspace, STARTER).id
    workspace.vectors.upsert(space, list(rows), matrix)
    ranking = review.prioritise(workspace)
    assert (ranking.waiting, ranking.reviewed, ranking.without_vector) == (14, 2, 1)
    order = ids(review.page(workspace, where=Filters(status="transcribed")))
    assert {name[0] for name in order[:10]} == {"y", "z"}
    assert {name[0] for name in order[10:13]} == {"x"}
    assert order[13] == "sure"
    assert review.prioritise(workspace).moved == 0


def test_the_order_is_found_anew_as_reviews_are_made_but_seldom(workspace: Workspace) -> None:
    for number in range(30):
        add_utterance(workspace, f"{number:02}", heard="hello")
    for _ in range(20):
        accept_next(workspace)
        work(workspace, ["rank"], until_idle=True)
    assert events(workspace, "review.prioritised") == 4  # after 1, 6, 11 and 16
    for number in range(5):  # many that wait are put in order, too
        (id,) = add_utterance(workspace, f"new{number}", heard="hello")
        with workspace.transaction() as tx:
            tx.emit("nlp.postprocessed", id)
        work(workspace, ["rank"], until_idle=True)
    assert events(workspace, "review.prioritised") == 4  # none are known to be few
    for number in range(15):
        add_utterance(workspace, f"more{number}", heard="hello")
    with workspace.transaction() as tx:
        tx.emit("nlp.postprocessed", "many")
    work(workspace, ["rank"], until_idle=True)
    assert events(workspace, "review.prioritised") == 5


def test_the_order_is_found_by_one_job_and_not_on_request(workspace: Workspace) -> None:
    for number in range(12):
        add_utterance(workspace, f"{number:02}", heard="hello")
    for _ in range(10):
        accept_next(workspace)
    assert events(workspace, "review.prioritised") == 0
    with workspace.read() as reader:
        assert workspace.jobs.counts(reader)["rank"] == {"ready": 1}
    assert work(workspace, ["rank"], until_idle=True) == 1
    assert events(workspace, "review.prioritised") == 1


def accept_next(ws: Workspace) -> None:
    turn = review.next(ws, by="ann")
    assert turn
    review.accept(ws, turn.item.utterance.id, by="ann")


# Warnings ------------------------------------------------------------------------------------------------------------

GOOD = Quality(level_dbfs=-25, peak_dbfs=-3, snr_db=30, clipping=0, silence=0.2, bandwidth_hz=7000)


def spoken(
    text: str,
    *,
    seconds: float = 4.0,
    quality: Quality | None = GOOD,
    language: str | None = "en",
    confidence: float = 0.9,
    words: tuple[Word, ...] = (),
    reference: str | None = None,
) -> set[str]:
    utterance = Utterance(id="u", recording="r", start=0, end=int(seconds * 16_000), quality=quality, language=language)
    texts = [
        Transcript(
            id="h", utterance="u", kind="hypothesis", text=text, by="m", confidence=confidence, words=words, created=1
        )
    ]
    if reference is not None:
        texts.append(Transcript(id="r", utterance="u", kind="reference", text=reference, by="ann", created=2))
    return {warning.kind for warning in warnings_of(utterance, texts)}


def test_warnings_say_what_looks_wrong() -> None:
    fine = "the quick brown fox jumps over the lazy dog"
    assert spoken(fine) == set()
    assert spoken("") == {"no text"}
    assert spoken(fine, seconds=1.0) == {"text too long"}
    assert spoken(fine, seconds=30.0) == {"text too short"}
    assert spoken("yes", seconds=1.5) == set()
    assert spoken(fine, seconds=30.0, quality=replace(GOOD, silence=0.9)) == set()  # a long pause is no lost text
    assert spoken("今天天气很好我们去公园玩", language="zh") == set()
    assert spoken("今天天气很好我们去公园玩" * 4, language="zh") >= {"text too long"}
    assert spoken(fine, confidence=0.3) == {"low confidence"}
    assert spoken(fine, words=(Word(text=" fox", start=0, end=1, probability=0.1),)) == {"uncertain words"}
    assert spoken(fine, quality=replace(GOOD, clipping=0.01)) == {"clipped"}
    assert spoken(fine, quality=replace(GOOD, snr_db=3)) == {"noisy"}
    assert spoken(fine, quality=replace(GOOD, level_dbfs=-60)) == {"too quiet"}
    assert spoken(fine, quality=None) == set()
    assert spoken("thank you thank you thank you") == {"repeated words"}


def test_a_persons_text_is_not_blamed_for_the_recognisers_faults() -> None:
    assert spoken("so so so so so", confidence=0.1, reference="the quick brown fox jumps over it") == set()
    assert spoken("fine as it is, really", reference="x" * 200) == {"text too long"}


def test_repetition_is_told_from_speech() -> None:
    assert repetition("no no no") == ""
    assert "no" in repetition("Oh No no no no")
    assert repetition("seven seven seven seven") == ""
    assert repetition("4 4 4 4 4") == ""
    assert "going on and" in repetition("it is going on and going on and going on and then")
    assert "compression ratio" in repetition("abcdefgh" * 40)
    assert repetition("") == ""


# Statistics ----------------------------------------------------------------------------------------------------------


def test_statistics_count_each_reviewers_work(workspace: Workspace) -> None:
    for number in range(6):
        add_utterance(workspace, f"{number}", heard="hello", duration=2.0)
    for by in ("ann", "ann", "bo"):
        turn = review.next(workspace, by=by)
        assert turn
        time.sleep(0.05)
        review.save(workspace, turn.item.utterance.id, "hello there", by=by)
    review.reject(workspace, "sha256-5:0-32000", reason="noise", by="bo")
    review.undo(workspace, "sha256-5:0-32000", by="bo")
    turn = review.next(workspace, by="bo")
    found = review.stats(workspace)
    assert (found.utterances, found.reviewed, found.rejected, found.waiting, found.taken) == (6, 3, 0, 3, 1)
    assert found.share == 0.5
    assert found.reviewed_hours == pytest.approx(6 / 3600)
    ann, bo = found.reviewers
    assert (ann.by, ann.saved, ann.sessions, ann.entries_per_session) == ("ann", 2, 1, 2)
    assert (bo.by, bo.saved, bo.rejected, bo.undone) == ("bo", 1, 1, 1)
    assert ann.seconds
    assert 0.05 <= ann.seconds < 5
    assert ann.total_seconds >= 0.1
    assert bo.seconds  # the rejection had no turn, so it is not timed
    assert (found.sessions, found.entries_per_session) == (2, 2)


def test_a_long_pause_ends_a_session(each_workspace: Workspace) -> None:
    ws = each_workspace
    add_utterance(ws, "0", heard="hello", duration=2.0)
    made = [("ann", "save", time, 2.0) for time in (0.0, 10.0, 1000.0, 4000.0, 4001.0)]
    made += [("ann", "undo", 2500.0, None), ("ann", "bulk accept", 2600.0, None)]  # not by hand: the pause goes on
    made += [("bo", "reject", 5.0, 8.0), ("bo", "accept", 9999.0, None), ("eve", "import", 1.0, None)]
    rows = [
        {"utterance": "sha256-0:0-32000", "by": by, "kind": kind, "created": time, "seconds": spent, "before": "new"}
        for by, kind, time, spent in made
    ]
    with ws.transaction() as tx:
        tx.connection.execute(sa.insert(tables.review_decision), rows)
    found = review.stats(ws)
    ann, bo, eve = found.reviewers
    assert (ann.by, ann.sessions, ann.entries_per_session, ann.seconds, ann.total_seconds) == ("ann", 2, 2.5, 2.0, 10.0)
    assert (bo.sessions, bo.entries_per_session, bo.seconds) == (2, 1.0, 8.0)
    assert (eve.imported, eve.sessions, eve.entries_per_session, eve.seconds) == (1, 0, 0.0, None)
    assert (found.sessions, found.entries_per_session, found.seconds) == (4, 7 / 4, 2.0)


def test_statistics_read_an_index_and_the_newest_times(workspace: Workspace) -> None:
    """The review page asks every 15 s, however many decisions there are."""
    add_utterance(workspace, "0", heard="hello", duration=2.0)
    made = [(f"reviewer {n % 5}", float(n)) for n in range(6000)]
    fixed = {"utterance": "sha256-0:0-32000", "kind": "save", "before": "new"}
    rows = [fixed | {"by": by, "created": time, "seconds": time} for by, time in made]
    with workspace.transaction() as tx:
        tx.connection.execute(sa.insert(tables.review_decision), rows)
    with statements(workspace.catalog) as said:
        found = review.stats(workspace)
    asked = [one for one in said if "review_decision" in one]
    assert len(asked) == 3 + 5  # counts, sessions, everybody's newest times, and those of each
    with workspace.read() as reader:
        for statement in asked:
            values = tuple(statistics.BY_HAND) * statement.count("?")
            plan = reader.connection.exec_driver_sql(
                f"EXPLAIN QUERY PLAN {statement}", values[: statement.count("?")]
            ).all()
            scans = [row.detail for row in plan if "review_decision" in row.detail and "COVERING" not in row.detail]
            assert scans == [] or "LIMIT" in statement, scans
    assert [one.saved for one in found.reviewers] == [1200] * 5
    assert found.seconds == 5999 - (statistics.NEWEST - 1) / 2
