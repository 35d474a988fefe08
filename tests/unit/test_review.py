"""Corrections are kept whole, and nobody overwrites what they have not seen."""

from __future__ import annotations

import pytest

from tests.unit.speech import add_utterance
from voxloop import review
from voxloop.errors import ConflictError, UnknownRecord, UsageError
from voxloop.workspace import Workspace


def test_a_saved_text_is_the_reference_and_every_version_stays(workspace: Workspace) -> None:
    (id,) = add_utterance(workspace, "r", heard="hallo word")
    assert review.show(workspace, id).text == "hallo word"
    review.save(workspace, id, "  hello   word ", by="ann")
    review.save(workspace, id, "hello world", by="bo")
    item = review.show(workspace, id)
    assert item.text == "hello world"
    assert item.utterance.status == "reviewed"
    assert {(t.kind, t.text, t.by) for t in item.versions} == {
        ("hypothesis", "hallo word", "model"),
        ("clean", "hallo word", "model"),
        ("reference", "hello word", "ann"),
        ("reference", "hello world", "bo"),
    }


def test_saving_over_what_was_not_seen_is_a_conflict(workspace: Workspace) -> None:
    (id,) = add_utterance(workspace, "r", heard="hallo")
    review.save(workspace, id, "hello", by="ann", seen="")
    with pytest.raises(ConflictError, match="'ann' saved 'hello'"):
        review.save(workspace, id, "hullo", by="bo", seen="")
    assert review.show(workspace, id).text == "hello"
    seen = review.show(workspace, id).reference
    assert seen
    review.save(workspace, id, "hullo", by="bo", seen=seen.id)
    assert review.show(workspace, id).text == "hullo"


def test_saving_the_same_again_adds_nothing(workspace: Workspace) -> None:
    (id,) = add_utterance(workspace, "r", heard="hallo")
    assert review.save(workspace, id, "hello", by="ann") == review.save(workspace, id, "hello", by="ann")


def test_accepting_takes_the_machines_text(workspace: Workspace) -> None:
    (id,) = add_utterance(workspace, "r", heard="hello")
    assert review.accept(workspace, id, by="ann").kind == "reference"
    (unheard,) = add_utterance(workspace, "q")
    with pytest.raises(UsageError, match="no machine text"):
        review.accept(workspace, unheard, by="ann")


def test_what_is_rejected_can_be_taken_back(workspace: Workspace) -> None:
    (id,) = add_utterance(workspace, "r", heard="hello")
    assert review.reject(workspace, id, reason="noise", by="ann").status == "rejected"
    review.save(workspace, id, "hello", by="ann")
    assert review.show(workspace, id).utterance.status == "reviewed"


def test_an_empty_text_is_refused(workspace: Workspace) -> None:
    (id,) = add_utterance(workspace, "r", heard="hello")
    with pytest.raises(UsageError, match="reject"):
        review.save(workspace, id, "   ", by="ann")
    with pytest.raises(UnknownRecord):
        review.show(workspace, "nothing")


def test_the_list_filters(workspace: Workspace) -> None:
    add_utterance(workspace, "a", heard="x", speaker="ann")
    add_utterance(workspace, "b", heard="x", speaker="bo")
    add_utterance(workspace, "c", reference="x", speaker="bo")
    assert len(review.items(workspace)) == 3
    assert len(review.items(workspace, status="transcribed")) == 2
    assert len(review.items(workspace, speaker="bo", status="reviewed")) == 1
    assert len(review.items(workspace, limit=1)) == 1
