"""Corrected metadata of known recordings: taken over, told of, and never over a person's decision."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.unit.test_recordings import make, recordings, write_metadata
from voxloop.errors import UsageError
from voxloop.records import Transcript, Utterance
from voxloop.steps import review
from voxloop.steps.recordings import describing, ingest
from voxloop.steps.recordings.listing import recordings as listed
from voxloop.steps.recordings.listing import show
from voxloop.steps.utterances import segment
from voxloop.stores import tables
from voxloop.workspace import Workspace


def references(ws: Workspace) -> list[str]:
    with ws.read() as reader:
        return [one.text for one in reader.all(Transcript, tables.transcript.c.kind == "reference")]


def utterance(ws: Workspace) -> Utterance:
    with ws.read() as reader:
        (found,) = reader.all(Utterance)
    return found


def corrections(ws: Workspace) -> list[dict[str, object]]:
    with ws.read() as reader:
        event = tables.event.c
        return list(
            reader.connection.execute(sa.select(event.payload).where(event.type == "recording.corrected")).scalars()
        )


def taken(ws: Workspace, tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    make(folder / "a.wav")
    write_metadata(folder, [{"file": "a.wav", "text": "good mourning", "speaker": "an", "language": "de"}])
    segment(ws, ingest(ws, folder).taken)
    return folder


def test_the_same_file_said_otherwise(workspace: Workspace, tmp_path: Path) -> None:
    folder = taken(workspace, tmp_path)
    write_metadata(folder, [{"file": "a.wav", "text": "good morning", "speaker": "ann", "language": "en"}])
    report = ingest(workspace, folder)
    kept = recordings(workspace)["a.wav"]
    assert (kept.text, kept.speaker, kept.language) == ("good morning", "ann", "en")
    assert (utterance(workspace).speaker, utterance(workspace).language) == ("ann", "en")
    assert references(workspace) == ["good morning"]
    assert len(report.notes) == 3
    (told,) = corrections(workspace)
    assert told["fields"] == ["language", "speaker", "text"]
    assert "an" not in str(told["language"])  # names that may be forgotten stay out of the audit trail
    assert ingest(workspace, folder).notes == ()
    assert len(corrections(workspace)) == 1


def test_what_a_person_has_decided_stays(workspace: Workspace, tmp_path: Path) -> None:
    folder = taken(workspace, tmp_path)
    review.save(workspace, utterance(workspace).id, "a person's text", by="eve")
    write_metadata(folder, [{"file": "a.wav", "text": "good morning", "speaker": "an", "language": "en"}])
    (first, second) = ingest(workspace, folder).notes
    assert "reviewed" in first
    assert "'de' was corrected to 'en'" in second
    assert "a person's text" in references(workspace)
    assert recordings(workspace)["a.wav"].text == "good mourning"
    with pytest.raises(UsageError, match="review save"):
        describing.edit(workspace, "a.wav", text="another")


def test_another_file_with_the_same_sound_is_told_of_with_both_texts(workspace: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    make(folder / "a.wav")
    shutil.copy(folder / "a.wav", folder / "b.wav")
    write_metadata(folder, [{"file": "a.wav", "text": "one"}, {"file": "b.wav", "text": "two"}])
    for _ in range(2):  # in one run, and in the next
        (note,) = ingest(workspace, folder).notes
        assert all(part in note for part in ("a.wav", "b.wav", "'one'", "'two'", "not taken over"))
    assert recordings(workspace)["a.wav"].text == "one"


def test_texts_of_segments_are_corrected_where_their_bounds_are_the_same(workspace: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    make(folder / "a.wav", seconds=3)
    spans = [
        {"file": "a.wav", "start": 0, "end": 1, "text": "one"},
        {"file": "a.wav", "start": 1, "end": 2, "text": "to"},
    ]
    write_metadata(folder, spans)
    segment(workspace, ingest(workspace, folder).taken)
    write_metadata(folder, [spans[0], spans[1] | {"text": "two"}])
    ingest(workspace, folder)
    assert sorted(references(workspace)) == ["one", "two"]


def test_editing(workspace: Workspace, tmp_path: Path) -> None:
    taken(workspace, tmp_path)
    done = describing.edit(workspace, "a.wav", language="English", speaker="ann", text="good morning", by="eve")
    assert done.corrected["language"] == ("de", "en")
    assert (utterance(workspace).speaker, utterance(workspace).language) == ("ann", "en")
    assert references(workspace) == ["good morning"]
    assert corrections(workspace)[0]["by"] == "eve"
    assert describing.edit(workspace, "a.wav", speaker="ann").corrected == {}
    describing.edit(workspace, "a.wav", speaker="")
    assert recordings(workspace)["a.wav"].speaker is None
    for wrong in ({}, {"text": " "}, {"language": "klingon"}):
        with pytest.raises(UsageError):
            describing.edit(workspace, "a.wav", **wrong)


def test_listing(workspace: Workspace, tmp_path: Path) -> None:
    taken(workspace, tmp_path)
    make(tmp_path / "other" / "b.wav", seed=1)
    ingest(workspace, tmp_path / "other", speaker="bob", language="en")
    names = lambda **where: [one.recording.name for one in listed(workspace, **where)]  # noqa: E731
    assert names() == ["a.wav", "b.wav"]
    assert names(speaker="bob") == names(language="English") == names(name="B.W") == ["b.wav"]
    assert names(status="reviewed") == ["a.wav"]
    assert [one.status for one in listed(workspace)] == ["1 reviewed", "waiting"]
    assert show(workspace, "b.wav").recording.encoding.codec == "pcm_16"  # type: ignore[union-attr]


def test_a_mended_line_is_no_longer_refused(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    make(folder / "a.wav")
    (folder / "b.wav").write_bytes(b"no audio")
    write_metadata(folder, [{"file": "a.wav", "language": "xx"}, {"file": "b.wav"}, {"file": "gone.wav"}])
    assert len(ingest(workspace, folder).refused) == 3

    def refused() -> list[str]:
        with workspace.read() as reader:
            return [Path(path).name for path in reader.connection.execute(sa.select(tables.refusal.c.path)).scalars()]

    make(folder / "b.wav", seed=1)
    write_metadata(folder, [{"file": "a.wav", "language": "en"}, {"file": "b.wav"}])
    monkeypatch.chdir(tmp_path)
    ingest(workspace, Path("in"))
    assert refused() == ["gone.wav"]
