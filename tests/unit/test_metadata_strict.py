"""What people write beside their audio is read right, or the line is refused, or told of."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile

from voxloop.records import Recording
from voxloop.steps.recordings import IngestReport, ingest
from voxloop.workspace import Workspace


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "in"
    made.mkdir()
    return made


def sound(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        chance = np.random.default_rng([number, *name.encode()])
        soundfile.write(folder / name, 0.1 * chance.standard_normal(8000), 16_000, format="WAV")


def taken(ws: Workspace, report: IngestReport) -> dict[str, str | None]:
    with ws.read() as reader:
        return {one.name: one.text for one in reader.all(Recording) if one.id in report.taken}


def test_a_text_with_a_comma_is_refused_and_not_cut(workspace: Workspace, folder: Path) -> None:
    sound(folder, "a.wav", "b.wav")
    (folder / "metadata.csv").write_text('file_name,transcription\na.wav,Call Stella, ask her\nb.wav,"yes, so"\n')
    report = ingest(workspace, folder)
    assert taken(workspace, report) == {"a.wav": None, "b.wav": "yes, so"}
    (refusal,) = report.refused
    assert refusal.path.endswith("metadata.csv:2")


def test_common_voice_with_a_break_and_a_tab_in_sentences(workspace: Workspace, folder: Path) -> None:
    sound(folder, "clips/a.wav", "clips/b.wav", "clips/c.wav")
    rows = "c1\ta.wav\tfirst\nsecond\ten\nc2\tb.wav\twith\ttab\ten\nc3\tc.wav\tfine\ten\n"
    (folder / "validated.tsv").write_text("client_id\tpath\tsentence\tlocale\n" + rows)
    report = ingest(workspace, folder)
    assert taken(workspace, report) == {"c.wav": "fine"}
    assert [refusal.path.rpartition(":")[2] for refusal in report.refused] == ["2", "3", "4"]


def test_numbers_are_texts_as_they_are_written(workspace: Workspace, folder: Path) -> None:
    """https://github.com/huggingface/datasets/issues/4467"""
    sound(folder, "a.wav", "b.wav", "c.wav", "d.wav")
    lines = ['{"file": "a.wav", "text": 7}', '{"file": "b.wav", "text": 3.50}']
    lines += ['{"file": "c.wav", "text": true}', '{"file": "d.wav", "text": ["x"]}']
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    report = ingest(workspace, folder)
    assert taken(workspace, report) == {"a.wav": "7", "b.wav": "3.50", "c.wav": None, "d.wav": None}
    assert len(report.refused) == 2
    assert "the text is true, not a string" in report.refused[0].message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.json", json.dumps([{"file": "a.wav", "text": "eins"}], indent=1)),
        ("train.jsonl", json.dumps({"audio": {"path": "a.wav"}, "sentence": "eins"})),
        ("metadata.csv", "File_Name, Transcription\na.wav, eins\n"),
        ("list.csv", "file;text\na.wav;eins\n"),
        ("metadata.tsv", "file\ttext\na.wav\teins\n"),
        ("a.TXT", "eins"),
        ("a.lab", "eins"),
        ("a.wav.txt", "eins"),
    ],
)
def test_ways_of_writing_a_text(workspace: Workspace, folder: Path, name: str, content: str) -> None:
    sound(folder, "a.wav")
    (folder / name).write_text(content)
    assert taken(workspace, ingest(workspace, folder)) == {"a.wav": "eins"}


def test_subtitles_beside_a_file_are_told_of(workspace: Workspace, folder: Path) -> None:
    sound(folder, "a.wav")
    (folder / "a.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\neins\n")
    report = ingest(workspace, folder)
    assert taken(workspace, report) == {"a.wav": None}
    assert "a.srt" in report.notes[0]


def test_a_first_row_that_is_no_header_is_told_once(workspace: Workspace, folder: Path) -> None:
    sound(folder, "a.wav", "b.wav")
    (folder / "metadata.csv").write_text("a.wav,eins\nb.wav,zwei\n")
    report = ingest(workspace, folder)
    assert [refusal.path.rpartition(":")[2] for refusal in report.refused] == ["1"]
    assert "not a header" in report.refused[0].message


@pytest.mark.parametrize(("form", "other"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_with_accents_together_or_apart(workspace: Workspace, folder: Path, form: str, other: str) -> None:
    sound(folder, unicodedata.normalize(form, "xin chào.wav"))  # type: ignore[arg-type]
    named = unicodedata.normalize(other, "xin chào.wav")  # type: ignore[arg-type]
    (folder / "metadata.jsonl").write_text(json.dumps({"file": named, "text": "chào"}))
    assert list(taken(workspace, ingest(workspace, folder)).values()) == ["chào"]


def test_folders_parted_by_backslashes(workspace: Workspace, folder: Path) -> None:
    sound(folder, "clips/a.wav")
    (folder / "metadata.csv").write_text("file,text\nclips\\a.wav,eins\n")
    assert taken(workspace, ingest(workspace, folder)) == {"a.wav": "eins"}
