"""What reviewers deleted is erased: in the workspace, in its backup, and never before the undo time is over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.web.filled import fill, heard, recorded, voice
from voxloop.errors import ConflictError, UnknownRecord
from voxloop.maintenance.backups import backup, restore
from voxloop.maintenance.pruning import prune
from voxloop.maintenance.removal import erase_deleted
from voxloop.pipeline import open_loop
from voxloop.steps import review
from voxloop.steps.recordings import read_audio
from voxloop.workspace import Workspace


def at_once(ws: Workspace) -> Workspace:
    """The workspace without an undo time."""
    return replace(ws, settings=replace(ws.settings, review_undo_s=0.0))


def test_pruning_erases_what_was_deleted(workspace: Workspace) -> None:
    utterance, *_ = fill(workspace)
    review.delete(workspace, utterance.id, by="ann")
    assert prune(workspace).erased == 0
    assert review.undo(workspace, utterance.id, by="ann").kind == "undo"
    assert prune(at_once(workspace)).erased == 0  # it was brought back
    review.delete(workspace, utterance.id, by="ann")
    assert prune(at_once(workspace)).erased == 1
    with pytest.raises(UnknownRecord):
        review.show(workspace, utterance.id)


def test_a_deleted_utterance_takes_no_decision_and_no_reservation(workspace: Workspace) -> None:
    utterance, *others = fill(workspace)
    review.delete(workspace, utterance.id, by="ann")
    for decide in (
        lambda: review.save(workspace, utterance.id, "x", by="bob"),
        lambda: review.confirm(workspace, utterance.id, by="bob"),
        lambda: review.reject(workspace, utterance.id, reason="x", by="bob"),
        lambda: review.delete(workspace, utterance.id, by="bob"),
        lambda: review.take(workspace, utterance.id, by="bob"),
    ):
        with pytest.raises(ConflictError, match="was deleted"):
            decide()
    turn = review.next(workspace, by="bob")
    assert turn is not None
    assert turn.item.utterance.id == others[0].id
    assert review.stats(workspace).utterances == len(others)


def test_a_backup_into_the_same_folder_forgets_too(workspace: Workspace, tmp_path: Path) -> None:
    waveform = voice(4.0, 130)
    long = recorded(workspace, waveform, "long.wav", None, None)
    heard(workspace, long, 0, 32_000, "stays")
    gone = heard(workspace, long, 32_000, 64_000, "goes")
    backup(workspace, tmp_path / "copy")
    review.delete(workspace, gone.id, by="ann")
    erase_deleted(at_once(workspace))
    backup(workspace, tmp_path / "copy")
    restore(tmp_path / "copy", tmp_path / "again")
    with open_loop(tmp_path / "again") as ws:
        left = read_audio(ws, long.id)
        assert not left[32_000:].any()
        assert np.abs(left[:32_000] - waveform[:32_000]).max() < 1e-4
