"""What goes out comes back the same, and what comes in overwrites nobody."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.seeds import seeds
from tests.unit.speech import add_utterance
from voxloop.errors import ExportError, UsageError
from voxloop.pipeline import open_loop
from voxloop.records import Recording, Transcript, Utterance
from voxloop.speech.audio import decode
from voxloop.steps import recordings, review, utterances
from voxloop.steps.review import labelstudio
from voxloop.workspace import Workspace

SUFFIXES = (".jsonl", ".csv", ".json")


def references(ws: Workspace) -> dict[str, list[tuple[str, str, str, float]]]:
    """Every reference that counts or counted, by utterance, oldest first."""
    with ws.read() as reader:
        found: dict[str, list[tuple[str, str, str, float]]] = {u.id: [] for u in reader.all(Utterance)}
        for one in reader.all(Transcript):
            if one.kind == "reference":
                found[one.utterance].append((one.id, one.text, one.by, one.created))
    return found


def standing(ws: Workspace) -> dict[str, tuple[str, str]]:
    """Status and text that counts, by utterance."""
    with ws.read() as reader:
        ids = [utterance.id for utterance in reader.all(Utterance)]
    items = [review.show(ws, id) for id in ids]
    return {item.utterance.id: (item.utterance.status, item.reference.text if item.reference else "") for item in items}


def speech(ws: Workspace, count: int = 6) -> list[str]:
    return [add_utterance(ws, f"{number:064x}", heard=f"heard {number}")[0] for number in range(count)]


texts = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\x00"), max_size=40).filter(str.strip)
names = st.sampled_from(["ann", "bo", "Ngân, PhD", 'Zoë "Z"', "x@y.example"])
decisions = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from(["save", "accept", "reject", "undo"]), names, texts), max_size=14
)


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(
    max_examples=4,
    phases=[Phase.explicit, Phase.generate],
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(decided=decisions, all_versions=st.booleans())
def test_a_round_trip_is_exact(
    suffix: str, decided: list[tuple[int, str, str, str]], all_versions: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("trip")
    with open_loop(folder / "a", create=True) as a, open_loop(folder / "b", create=True) as b:
        ids = speech(a)
        speech(b)
        for number, kind, by, text in decided:
            seen = review.show(a, ids[number]).version
            if kind == "save":
                review.save(a, ids[number], text, by=by, seen=seen)
            elif kind == "accept":
                review.accept(a, ids[number], by=by, seen=seen)
            elif kind == "reject":
                review.reject(a, ids[number], reason=text, by=by, seen=seen)
            elif made := [d for d in review.history(a, ids[number]) if d.kind != "undo"]:
                undone = {d.undoes for d in review.history(a, ids[number])}
                left = [d for d in made if d.seq not in undone]
                if left:
                    review.undo(a, ids[number], by=by, decision=left[-1].seq)
        file = folder / f"reviews{suffix}"
        out = review.export(a, file, audio_url="", all_versions=all_versions)
        dry = review.import_reviews(b, file, by="importer", dry_run=True)
        assert references(b) == {id: [] for id in ids}
        back = review.import_reviews(b, file, by="importer")
        assert (dry.new, dry.same, dry.conflicting) == (back.new, back.same, back.conflicting)
        assert (back.conflicting, back.unknown, back.refused) == (0, 0, 0)
        assert standing(b) == standing(a)
        if all_versions:
            assert references(b) == references(a)
        else:
            assert references(b) == {
                id: [max(found, key=lambda one: (one[3], one[0]))] if found else []
                for id, found in references(a).items()
            }
        assert sum(map(len, references(b).values())) == out.references
        # Again, or back to where it came from: nothing changes.
        before = references(a)
        for ws in (a, b):
            again = review.import_reviews(ws, file, by="importer")
            assert (again.new, again.conflicting) == (0, 0)
        assert references(a) == before
        if all_versions:  # else the ids of earlier texts, which did not travel, stay behind
            again_file = folder / f"again{suffix}"
            review.export(b, again_file, audio_url="", all_versions=True)
            assert again_file.read_text().replace("importer", "") == file.read_text()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_import_says_what_was_new_same_conflicting_and_unknown(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"reviews{suffix}"
    with open_loop(tmp_path / "a", create=True) as a, open_loop(tmp_path / "b", create=True) as b:
        ids = speech(a)
        speech(b, 5)
        for id in ids[:4]:
            review.save(a, id, f"text of {id[-12]}", by="ann")
        review.reject(a, ids[4], reason="two people", by="ann")
        (lone,) = add_utterance(a, "f" * 64, reference="not there")
        review.export(a, file, audio_url="https://speech.example/")
        review.save(b, ids[1], f"text of {ids[1][-12]}", by="bo")  # the same words by another
        review.save(b, ids[2], "something else", by="bo")
        done = review.import_reviews(b, file, by="me")
        assert (done.new, done.same, done.conflicting, done.unknown, done.refused, done.without) == (3, 1, 1, 1, 0, 1)
        assert {(n.outcome, n.utterance) for n in done.notices} == {("conflicting", ids[2]), ("unknown", lone)}
        assert review.show(b, ids[2]).text == "something else"
        assert review.show(b, ids[4]).utterance.status == "rejected"
        assert [d.reason for d in review.history(b, ids[4])] == ["two people"]
        forced = review.import_reviews(b, file, by="me", overwrite=True)
        assert (forced.new, forced.same) == (1, 4)
        assert review.show(b, ids[2]).text == f"text of {ids[2][-12]}"
        review.undo(b, ids[2], by="ann")  # the import is ann's decision
        assert review.show(b, ids[2]).text == "something else"


def test_two_workspaces_that_exchange_in_turns_never_conflict(tmp_path: Path) -> None:
    file = tmp_path / "reviews.jsonl"
    with open_loop(tmp_path / "a", create=True) as a, open_loop(tmp_path / "b", create=True) as b:
        (id,) = speech(a, 1)
        speech(b, 1)
        for number in range(3):
            for here, there, by in ((a, b, "ann"), (b, a, "bo")):
                review.save(here, id, f"{by} {number}", by=by, seen=review.show(here, id).version)
                review.export(here, file)
                assert review.import_reviews(there, file, by="me").new == 1
        assert references(a) == references(b)
        # Both change it at once: the second import is a conflict.
        review.save(a, id, "left", by="ann", seen=review.show(a, id).version)
        review.save(b, id, "right", by="bo", seen=review.show(b, id).version)
        review.export(a, file)
        assert review.import_reviews(b, file, by="me").conflicting == 1
        review.reject(b, id, reason="noise", by="bo")
        assert review.import_reviews(b, file, by="me").conflicting == 1


def test_a_history_goes_on_from_what_is_here(tmp_path: Path) -> None:
    last, whole = tmp_path / "last.jsonl", tmp_path / "whole.jsonl"
    with open_loop(tmp_path / "a", create=True) as a, open_loop(tmp_path / "b", create=True) as b:
        (id,) = speech(a, 1)
        speech(b, 1)
        for text in ("one", "two"):
            review.save(a, id, text, by="ann")
        review.export(a, last)
        review.import_reviews(b, last, by="me")
        for text in ("three", "four"):
            review.save(a, id, text, by="ann")
        review.export(a, whole, all_versions=True)
        assert review.import_reviews(b, whole, by="me").new == 1
        assert references(b)[id] == references(a)[id][1:]  # never one before what is here
        assert review.import_reviews(b, last, by="me").same == 1  # what is behind changes nothing
        assert review.show(b, id).text == "four"


def test_a_table_from_a_spreadsheet_is_taken(workspace: Workspace, tmp_path: Path) -> None:
    ids = speech(workspace)
    saved = review.save(workspace, ids[0], "helo", by="ann")
    file = tmp_path / "reviews.csv"
    review.export(workspace, file)
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    rows[[row["utterance"] for row in rows].index(ids[0])]["text"] = "hello"
    with file.open("w", newline="", encoding="utf-8-sig") as opened:
        writer = csv.DictWriter(opened, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert review.import_reviews(workspace, file, by="bo").new == 1
    reference = review.show(workspace, ids[0]).reference
    assert reference
    assert (reference.text, reference.by) == ("hello", "bo")
    assert references(workspace)[ids[0]][0][0] == saved.id
    assert review.import_reviews(workspace, file, by="bo").same == 1
    plain = tmp_path / "plain.csv"
    plain.write_text(f"utterance,text\n{ids[1]},good  morning\n{ids[2]},\n,lost\n{ids[3][7:]},short id\n")
    done = review.import_reviews(workspace, plain, by="cy")
    assert (done.new, done.without, done.refused) == (2, 1, 1)
    assert "line 4" in done.notices[0].message
    found = review.show(workspace, ids[1]).reference
    assert found
    assert (found.text, found.by) == ("good morning", "cy")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "text\nhello\n", "utterance"),
        ("a.csv", b"\xff\xfe", "cannot be read"),
        ("a.json", "{", "cannot be read"),
        ("a.txt", "", "format does not follow"),
        ("missing.jsonl", None, "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(
    workspace: Workspace, tmp_path: Path, name: str, content: str | bytes | None, said: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=said):
        review.import_reviews(workspace, tmp_path / name, by="ann")


def test_damaged_rows_are_refused_one_by_one(workspace: Workspace, tmp_path: Path) -> None:
    ids = speech(workspace)
    rows: list[Any] = [
        {"utterance": ids[0], "text": "good"},
        {"utterance": ids[1], "text": 5},
        {"utterance": ids[1], "text": "x", "created": float("nan")},
        {"utterance": ids[1], "text": "x", "created": "yesterday"},
        {"utterance": ids[1], "text": "\ud800"},
        {"utterance": ids[1], "text": "a\x00b"},
        {"text": "no utterance"},
        [],
        None,
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n{broken\n\n")
    done = review.import_reviews(workspace, file, by="ann")
    assert (done.new, done.refused) == (1, 9)
    assert [notice.message.split(":")[0] for notice in done.notices] == [f"line {n}" for n in range(2, 11)]


def test_an_export_that_fails_leaves_the_last_one(workspace: Workspace, tmp_path: Path) -> None:
    speech(workspace)
    file = tmp_path / "reviews.jsonl"
    review.export(workspace, file)
    before = file.read_bytes()

    def stop(done: float, total: float | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        review.export(workspace, file, progress=stop)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["reviews.jsonl"]
    with pytest.raises(ExportError, match="cannot be written"):
        review.export(workspace, file / "below.jsonl")


# Label Studio --------------------------------------------------------------------------------------------------------


def test_a_task_is_as_label_studio_documents_it(workspace: Workspace, tmp_path: Path) -> None:
    """https://labelstud.io/guide/tasks, /guide/predictions, /guide/task_format and /templates/transcribe_audio."""
    (id, other) = speech(workspace, 2)
    saved = review.save(workspace, id, "hello", by="ann")
    file = tmp_path / "tasks.json"
    review.export(workspace, file, audio_url="/data/local-files/?d=clips/")
    tasks = {task["data"]["utterance"]: task for task in json.loads(file.read_text())}
    task = tasks[id]
    assert set(task) == {"data", "annotations", "predictions"}
    assert task["data"]["audio"] == f"/data/local-files/?d=clips/{id.replace(':', '_')}.wav"
    (prediction,) = task["predictions"]
    assert (prediction["model_version"], prediction["score"]) == ("model", 0.9)
    (annotation,) = task["annotations"]
    assert "completed_by" not in annotation  # Label Studio refuses whom it does not know
    for made, text in ((prediction, "heard 0"), (annotation, "hello")):
        (result,) = made["result"]
        assert result["type"] == "textarea"
        assert (result["from_name"], result["to_name"]) == ("transcription", "audio")
        assert result["value"] == {"text": [text]}
    assert labelstudio.parse_time(annotation["created_at"]) == pytest.approx(saved.created, abs=1e-6)
    assert tasks[other]["annotations"] == []
    ids = [made["result"][0]["id"] for task in tasks.values() for made in task["predictions"] + task["annotations"]]
    assert len(ids) == len(set(ids))
    config = file.with_suffix(".xml").read_text()
    assert '<TextArea name="transcription" toName="audio"' in config
    assert '<Audio name="audio" value="$audio"' in config


def annotated(task: dict[str, Any], text: str | list[str], **values: Any) -> dict[str, Any]:
    """A task as Label Studio gives it back, with one more annotation."""
    result = [
        {
            "id": "Dx_aB91ISN",
            "from_name": "transcription",
            "to_name": "audio",
            "type": "textarea",
            "origin": "manual",
            "value": {"text": text},
        }
    ]
    made = {
        "id": 1001,
        "result": result,
        "was_cancelled": False,
        "ground_truth": False,
        "created_at": "2026-03-09T22:16:08.728353Z",
        "updated_at": "2026-03-09T22:20:00.000000Z",
        "lead_time": 4.288,
        "completed_by": {"id": 10, "email": "zoe@example.org", "first_name": "", "last_name": ""},
        **values,
    }
    return {**task, "id": 7, "project": 83, "annotations": [*task.get("annotations", []), made]}


def test_an_annotation_made_in_label_studio_keeps_author_and_time(workspace: Workspace, tmp_path: Path) -> None:
    ids = speech(workspace)
    kept = review.save(workspace, ids[0], "hello", by="ann")
    file = tmp_path / "tasks.json"
    review.export(workspace, file, audio_url="")
    tasks = sorted(json.loads(file.read_text()), key=lambda task: task["data"]["utterance"])
    # Label Studio makes imported annotations its importing user's: ours is still known by its text.
    tasks[0]["annotations"][0] |= {"completed_by": 1, "created_at": "2026-11-21T00:00:00Z", "id": 3}
    tasks[1] = annotated(tasks[1], ["good morning"])
    tasks[2] = annotated(tasks[2], "good evening", completed_by=4, created_username=" Bo Ek bo@example.org, 4")
    tasks[3] = annotated(tasks[3], ["a"], completed_by=5, updated_at=None)
    tasks[4] = annotated(tasks[4], ["never mind"], was_cancelled=True)
    clip = {"audio": f"/data/upload/1/1a2b3c4d-{ids[5].replace(':', '_')}.wav"}
    tasks[5] = annotated({"data": clip}, ["from the clip's name"], completed_by="cy")
    file.write_text(json.dumps(tasks))
    done = review.import_reviews(workspace, file, by="me")
    assert (done.new, done.same, done.without, done.refused) == (4, 1, 1, 0)
    assert review.show(workspace, ids[0]).reference == kept
    found = [review.show(workspace, id).reference for id in ids]
    assert [(one.text, one.by) for one in found if one] == [
        ("hello", "ann"),
        ("good morning", "zoe@example.org"),
        ("good evening", "bo@example.org"),
        ("a", "label-studio:5"),
        ("from the clip's name", "cy"),
    ]
    assert found[1]
    assert found[1].created == 1773094800.0  # 2026-03-09T22:20:00Z, when the text was last changed
    assert found[3]
    assert found[3].created == 1773094568.728353
    assert [d.seconds for d in review.history(workspace, ids[1])] == [4.288]
    again = review.import_reviews(workspace, file, by="me")
    assert (again.new, again.same) == (0, 5)
    # The annotator corrects it, and it comes in once more: no conflict, as it is the same hand's.
    tasks[1]["annotations"][-1]["updated_at"] = "2026-03-10T00:00:00Z"
    tasks[1]["annotations"][-1]["result"][0]["value"]["text"] = ["good morrow"]
    file.write_text(json.dumps(tasks))
    assert review.import_reviews(workspace, file, by="me").new == 1
    assert review.show(workspace, ids[1]).text == "good morrow"


def test_several_annotators_leave_several_versions(workspace: Workspace, tmp_path: Path) -> None:
    (id,) = speech(workspace, 1)
    task = annotated({"data": {"audio": "x", "utterance": id}}, ["second"], updated_at="2026-03-09T23:00:00Z")
    task = annotated(task, ["first"], completed_by={"email": "bo@example.org"})
    file = tmp_path / "tasks.json"
    file.write_text(json.dumps([task]))
    assert review.import_reviews(workspace, file, by="me").new == 1
    assert [(text, by) for _, text, by, _ in references(workspace)[id]] == [
        ("first", "bo@example.org"),
        ("second", "zoe@example.org"),
    ]
    assert review.show(workspace, id).text == "second"
    assert review.import_reviews(workspace, file, by="me").same == 1


def test_label_studios_short_form_and_damage(workspace: Workspace, tmp_path: Path) -> None:
    ids = speech(workspace, 3)
    minimal = {
        "audio": "x.wav",
        "utterance": ids[0],
        "references": [],
        "id": 1,
        "transcription": "short form",
        "annotator": 2,
        "annotation_id": 9,
        "created_at": "2026-03-09T22:16:08Z",
        "updated_at": "2026-03-09T22:16:08Z",
        "lead_time": 1.5,
    }
    regions = {"data": {"utterance": ids[1]}, "annotations": [{"completed_by": 2, "result": []}]}
    for start, text in ((2.0, "world"), (0.5, "hello")):
        value = {"start": start, "end": start + 1, "text": [text]}
        regions["annotations"][0]["result"].append({"type": "textarea", "value": value})
    damaged: list[Any] = [5, {"annotations": []}, {"data": {"audio": "unknown.wav"}}]
    file = tmp_path / "tasks.json"
    file.write_text(json.dumps([minimal, regions, *damaged]))
    done = review.import_reviews(workspace, file, by="me")
    assert (done.new, done.refused) == (2, 3)
    assert review.show(workspace, ids[0]).text == "short form"
    assert review.show(workspace, ids[1]).text == "hello world"


def test_clips_are_written_as_they_sound(workspace: Workspace, demo_speech: Path, tmp_path: Path) -> None:
    file = min(demo_speech.rglob("*.ogg"), key=lambda path: path.name)
    recordings.ingest(workspace, [file])
    with workspace.read() as reader:
        (recording,) = reader.all(Recording)
    utterances.segment(workspace, recording.id)
    done = review.export(workspace, tmp_path / "out" / "tasks.json")
    assert done.clips == done.utterances > 0
    for task in json.loads((tmp_path / "out" / "tasks.json").read_text()):
        clip = tmp_path / "out" / task["data"]["audio"]
        with workspace.read() as reader:
            utterance = reader.get(Utterance, task["data"]["utterance"])
        assert np.array_equal(decode(clip), utterances.utterance_audio(workspace, utterance))
    assert review.export(workspace, tmp_path / "out" / "tasks.json").clips == 0


@pytest.mark.parametrize("first", seeds(0))
def test_killed_at_random_points_an_export_is_whole_or_not_there(
    workspace: Workspace, demo_speech: Path, tmp_path: Path, first: int
) -> None:
    recordings.ingest(workspace, sorted(demo_speech.rglob("*.ogg"))[:12])
    with workspace.read() as reader:
        utterances.segment(workspace, [recording.id for recording in reader.all(Recording)])
    whole, killed = tmp_path / "whole" / "tasks.json", tmp_path / "killed" / "tasks.json"
    review.export(workspace, whole)
    code = (
        "import os, random, signal, sys, threading\n"
        "from pathlib import Path\n"
        "from voxloop.steps import review\n"
        "from voxloop.pipeline import open_loop\n"
        "with open_loop(Path(sys.argv[1])) as ws:\n"
        "    kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    threading.Timer(random.Random(sys.argv[3]).uniform(0.0, 0.03), kill).start()\n"
        "    while True:\n"
        "        review.export(ws, Path(sys.argv[2]))\n"
    )
    for seed in range(first, first + 3):
        command = [sys.executable, "-c", code, str(workspace.folder), str(killed), str(seed)]
        assert subprocess.run(command, check=False, timeout=120).returncode == -signal.SIGKILL
        assert not killed.exists() or killed.read_bytes() == whole.read_bytes()
        for clip in killed.parent.glob("tasks-audio/[!.]*.wav"):
            assert clip.read_bytes() == (whole.parent / "tasks-audio" / clip.name).read_bytes()
    review.export(workspace, killed)
    assert killed.read_bytes() == whole.read_bytes()
