"""Manifests of every kind become the same recordings; Lhotse's own writers and readers are the oracle."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from voxloop.errors import UsageError
from voxloop.records import Recording, Transcript, Utterance
from voxloop.steps.recordings import ingest
from voxloop.steps.recordings.manifests import Mention, named
from voxloop.steps.recordings.sources import Item, find_items
from voxloop.steps.utterances import segment
from voxloop.workspace import Workspace

RATE = 16_000


def make(path: Path, seconds: float = 1.0, *, seed: int = 0, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).normal(0, 0.05, (round(seconds * RATE), channels))
    soundfile.write(path, noise, RATE, format="FLAC" if path.suffix == ".flac" else "WAV")
    return path


def lines(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def by_name(ws: Workspace) -> dict[str, Recording]:
    with ws.read() as reader:
        return {one.name: one for one in reader.all(Recording)}


def said(ws: Workspace) -> list[tuple[float, float, str, str | None]]:
    """(start, end, text, speaker) of every utterance with a reference, in order."""
    with ws.read() as reader:
        texts = {one.utterance: one.text for one in reader.all(Transcript) if one.kind == "reference"}
        found = [one for one in reader.all(Utterance) if one.id in texts]
    return sorted((one.start / RATE, one.end / RATE, texts[one.id], one.speaker) for one in found)


def expect(folder: Path) -> list[Item]:
    return list(find_items([folder], None, Item(path=Path()), None, []))


SPANS = [(0.0, 1.5, "good morning", "ann"), (1.75, 3.0, "and to you", "bob")]


def test_several_segments_of_one_file_are_utterances_with_their_texts(workspace: Workspace, tmp_path: Path) -> None:
    make(tmp_path / "in" / "a.wav", 4.0)
    rows = [{"file": "a.wav", "start": s, "end": e, "text": t, "speaker": who} for s, e, t, who in SPANS]
    lines(tmp_path / "in" / "metadata.jsonl", rows)
    report = ingest(workspace, tmp_path / "in", language="en")
    assert (len(report.taken), report.refused) == (1, ())
    kept = by_name(workspace)["a.wav"]
    assert (kept.text, kept.speaker, len(kept.segments)) == (None, None, 2)
    utterances = segment(workspace, report.taken)
    assert said(workspace) == SPANS
    assert {(one.status, one.language) for one in utterances} == {("reviewed", "en")}
    assert segment(workspace, report.taken) == utterances


def test_a_span_of_everything_is_the_whole_recording(workspace: Workspace, tmp_path: Path) -> None:
    make(tmp_path / "in" / "a.wav", 2.0)
    row = {"audio_filepath": "a.wav", "offset": 0, "duration": 2.01, "text": "hello", "speaker": "ann"}
    lines(tmp_path / "in" / "train.json", [row])
    ingest(workspace, tmp_path / "in")
    kept = by_name(workspace)["a.wav"]
    assert (kept.text, kept.speaker, kept.segments) == ("hello", "ann", ())


def test_a_duration_alone_is_no_span(workspace: Workspace, tmp_path: Path) -> None:
    make(tmp_path / "in" / "a.wav", 2.0)
    lines(tmp_path / "in" / "m.jsonl", [{"audio_filepath": "a.wav", "duration": 1.2, "text": "hello"}])
    ingest(workspace, tmp_path / "in" / "m.jsonl")
    assert by_name(workspace)["a.wav"].text == "hello"


def test_spans_that_cannot_be_are_refused_by_line(workspace: Workspace, tmp_path: Path) -> None:
    make(tmp_path / "in" / "a.wav", 2.0)
    bad = [(-1, 1), (1, 1), (1, 0.5), ("x", 1), (5, 6), (1, 9), (True, 1), (float("nan"), 1)]
    rows = [{"file": "a.wav", "start": start, "end": end, "text": "t"} for start, end in bad]
    lines(tmp_path / "in" / "metadata.jsonl", [*rows, {"file": "a.wav", "start": 0.5, "end": 2.2, "text": "fine"}])
    report = ingest(workspace, tmp_path / "in")
    assert len(report.taken) == 1
    assert report.reasons == {"bad-metadata": 6, "bad-span": 2}
    assert all(f"metadata.jsonl:{number}" in " ".join(r.path for r in report.refused) for number in range(1, 9))
    (span,) = by_name(workspace)["a.wav"].segments
    assert (span.start, span.end) == (RATE // 2, 2 * RATE)


def test_two_texts_for_one_thing_are_told(workspace: Workspace, tmp_path: Path) -> None:
    for name in "ab":
        make(tmp_path / "in" / f"{name}.wav", 2.0, seed=ord(name))
    rows = [{"file": "a.wav", "text": text} for text in ("one", "one", "two")]
    rows += [{"file": "b.wav", "start": 0, "end": 1, "text": text} for text in ("one", "two")]
    lines(tmp_path / "in" / "metadata.jsonl", rows)
    report = ingest(workspace, tmp_path / "in")
    assert report.reasons == {"contradiction": 2}
    assert sorted(Path(r.path).name for r in report.refused) == ["metadata.jsonl:3", "metadata.jsonl:5"]


def test_a_manifest_below_may_not_reach_out_and_one_at_the_top_may(workspace: Workspace, tmp_path: Path) -> None:
    outside = make(tmp_path / "outside.wav")
    lines(tmp_path / "in" / "deep" / "metadata.jsonl", [{"file": str(outside)}, {"file": "../../outside.wav"}])
    assert ingest(workspace, tmp_path / "in").reasons == {"outside": 2}
    lines(tmp_path / "in" / "metadata.jsonl", [{"file": "../outside.wav"}])
    assert len(ingest(workspace, tmp_path / "in").taken) == 1


def test_a_file_that_is_no_manifest_is_a_usage_error(workspace: Workspace, tmp_path: Path) -> None:
    for name, text in [
        ("a.jsonl", '{"colour": "red"}\n'),
        ("b.csv", "x,y\n1,2\n"),
        ("c.json", "[\n]\n"),
        ("d.tsv", ""),
    ]:
        (tmp_path / name).write_text(text)
        with pytest.raises(UsageError, match="no manifest"):
            ingest(workspace, tmp_path / name)


def test_common_voice(workspace: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "cv" / "vi"
    for number in range(4):
        make(folder / "clips" / f"c{number}.wav", seed=number)
    columns = ["client_id", "path", "sentence", "up_votes", "locale"]
    listed = {"validated.tsv": [0, 1], "train.tsv": [0], "invalidated.tsv": [2], "other.tsv": [3]}
    for name, numbers in listed.items():
        rows = [[f"speaker{n}", f"c{n}.wav", f'"câu số {n}', "2", "vi"] for n in numbers]
        text = "\n".join("\t".join(row) for row in [columns, *rows])
        (folder / name).write_text(text + "\n")
    report = ingest(workspace, tmp_path / "cv")
    assert (len(report.taken), report.refused) == (2, ())
    found = by_name(workspace)
    assert (found["c1.wav"].text, found["c1.wav"].speaker, found["c1.wav"].language) == ('"câu số 1', "speaker1", "vi")
    assert len(ingest(workspace, folder / "other.tsv").taken) == 1


def test_librispeech_as_lhotse_reads_it(workspace: Workspace, tmp_path: Path) -> None:
    from lhotse.recipes.librispeech import prepare_librispeech

    chapter = tmp_path / "LibriSpeech" / "dev-clean-2" / "84" / "121123"
    for number in range(3):
        make(chapter / f"84-121123-{number:04}.flac", seed=number)
    lines(chapter / "84-121123.trans.txt", [f"84-121123-{n:04} GO ON {n}" for n in range(3)] + ["84-121123-0009 GONE"])
    items = [item for item in expect(tmp_path / "LibriSpeech") if item.path.is_file()]
    (chapter / "84-121123.trans.txt").write_text("".join(f"84-121123-{n:04} GO ON {n}\n" for n in range(3)))
    theirs = prepare_librispeech(tmp_path / "LibriSpeech", dataset_parts="dev-clean-2")["dev-clean-2"]["supervisions"]
    assert [(i.path.stem, i.text, i.speaker) for i in items] == [(s.recording_id, s.text, s.speaker) for s in theirs]
    report = ingest(workspace, tmp_path / "LibriSpeech")
    assert len(report.taken) == 3
    assert by_name(workspace)["84-121123-0001.flac"].session == "84-121123"


def kaldi(folder: Path, audio: Path, *, segments: bool = True) -> Path:
    lines(folder / "wav.scp", [f"call1 {audio / 'a.wav'}", f"call2 {audio / 'b.wav'}"])
    if segments:
        lines(folder / "segments", ["u1 call1 0.0 1.5", "u2 call1 1.75 3.0", "u3 call2 0.5 -1"])
    names = ("u1", "u2", "u3") if segments else ("call1", "call2", "call3")
    texts = [f"{name} text of {name}" for name in names[: 3 if segments else 2]]
    lines(folder / "text", texts)
    lines(folder / "utt2spk", [f"{names[0]} ann", f"{names[1]} bob"])
    return folder


def test_kaldi_as_lhotse_reads_it(workspace: Workspace, tmp_path: Path) -> None:
    from lhotse.kaldi import load_kaldi_data_dir

    make(tmp_path / "audio" / "a.wav", 4.0)
    make(tmp_path / "audio" / "b.wav", 2.0, seed=1)
    folder = kaldi(tmp_path / "data", tmp_path / "audio")
    lines(folder / "utt2spk", ["u1 ann", "u2 bob", "u3 cas"])
    report = ingest(workspace, folder)
    assert (len(report.taken), report.refused) == (2, ())
    segment(workspace, report.taken)
    _, theirs, _ = load_kaldi_data_dir(folder, sampling_rate=RATE)
    assert theirs is not None
    assert said(workspace) == sorted((s.start, s.end, s.text, s.speaker) for s in theirs)


def test_what_kaldi_folders_hold_wrong_is_refused_by_line(workspace: Workspace, tmp_path: Path) -> None:
    make(tmp_path / "audio" / "a.wav", 4.0)
    ran = tmp_path / "ran"
    folder = tmp_path / "data"
    lines(folder / "wav.scp", [f"r1 {tmp_path}/audio/a.wav", f"r2 touch {ran} |", "r3", f"r1 {tmp_path}/b.wav"])
    lines(folder / "segments", ["u1 r1 0 1", "u2 r2 0 1", "u3 gone 0 1", "u4 r1 x 1", "u5 r1 2 1", "u6 r1"])
    lines(folder / "text", ["u1 yes", "u9 nobody"])
    report = ingest(workspace, folder)
    assert not ran.exists()
    assert len(report.taken) == 1
    assert sorted(Path(r.path).name for r in report.refused) == [
        "segments:3", "segments:4", "segments:5", "segments:6", "text:2", "wav.scp:2", "wav.scp:3", "wav.scp:4",
    ]  # fmt: skip
    assert any("never run" in r.message for r in report.refused)


def test_kaldi_without_segments_and_with_speakers_that_are_utterances(workspace: Workspace, tmp_path: Path) -> None:
    make(tmp_path / "audio" / "a.wav", 2.0)
    make(tmp_path / "audio" / "b.wav", 2.0, seed=1)
    folder = kaldi(tmp_path / "data", tmp_path / "audio", segments=False)
    lines(folder / "utt2spk", ["call1 ann", "call2 call2"])
    ingest(workspace, folder)
    found = by_name(workspace)
    assert [(found[n].text, found[n].speaker) for n in ("a.wav", "b.wav")] == [
        ("text of call1", "ann"),
        ("text of call2", None),
    ]


@pytest.mark.parametrize("form", ["recordings", "cuts"])
def test_lhotse_manifests(workspace: Workspace, tmp_path: Path, form: str) -> None:
    from lhotse import CutSet, RecordingSet, SupervisionSegment, SupervisionSet
    from lhotse import Recording as LhotseRecording

    audio = make(tmp_path / "audio" / "a.wav", 4.0)
    recordings = RecordingSet.from_recordings([LhotseRecording.from_file(audio, recording_id="r1")])
    supervisions = SupervisionSet.from_segments(
        SupervisionSegment(
            id=f"s{n}", recording_id="r1", start=s, duration=e - s, text=t, speaker=who, language="English"
        )
        for n, (s, e, t, who) in enumerate(SPANS)
    )
    folder = tmp_path / "manifests"
    folder.mkdir()
    if form == "recordings":
        recordings.to_file(folder / "x_recordings_train.jsonl.gz")
        supervisions.to_file(folder / "x_supervisions_train.jsonl.gz")
    else:
        cuts = CutSet.from_manifests(recordings, supervisions).trim_to_supervisions(keep_overlapping=False)
        cuts.to_file(folder / "cuts.jsonl.gz")
    report = ingest(workspace, folder)
    assert (len(report.taken), report.refused) == (1, ())
    utterances = segment(workspace, report.taken)
    assert said(workspace) == SPANS
    assert {one.language for one in utterances} == {"en"}


def test_lhotse_items_that_cannot_be_taken_are_refused_by_line(workspace: Workspace, tmp_path: Path) -> None:
    good = {"id": "r", "sources": [{"type": "file", "channels": [0], "source": str(make(tmp_path / "a.wav"))}]}
    good |= {"sampling_rate": RATE, "num_samples": RATE, "duration": 1.0}
    command = good | {"id": "c", "sources": [{"type": "command", "channels": [0], "source": "touch /tmp/x"}]}
    rows: list[Any] = [good, command, {"sources": []}, "{oops", [1]]
    lines(tmp_path / "m" / "recordings.jsonl", rows)
    lines(tmp_path / "m" / "supervisions.jsonl", [{"id": "s", "recording_id": "gone", "start": 0, "duration": 1}])
    report = ingest(workspace, tmp_path / "m")
    assert len(report.taken) == 1
    names = sorted(Path(r.path).name for r in report.refused)
    assert names == [f"recordings.jsonl:{n}" for n in (2, 3, 4, 5)] + ["supervisions.jsonl:1"]


def test_supervisions_alone_ask_for_their_recordings(workspace: Workspace, tmp_path: Path) -> None:
    row = {"id": "s", "recording_id": "r", "start": 0, "duration": 1}
    with pytest.raises(UsageError, match=r"recordings\.jsonl"):
        ingest(workspace, lines(tmp_path / "supervisions.jsonl", [row]))


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20) | st.sampled_from(["\ud800", "a" * 300])
values = (
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.just(10**400)
    | st.floats()
    | texts
    | st.lists(st.integers(), max_size=2)
)
COLUMNS = ["file", "path", "text", "start", "end", "offset", "duration", "channel", "speaker", "language"]
keys = st.sampled_from(COLUMNS)


@hypothesis_settings(max_examples=150, deadline=None)
@given(st.lists(st.dictionaries(keys, values, max_size=6), max_size=6), st.sampled_from(["jsonl", "csv", "tsv"]))
def test_no_line_breaks_the_reading(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], kind: str
) -> None:
    folder = tmp_path_factory.mktemp("m")
    file = folder / f"metadata.{kind}"
    if kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with file.open("w", newline="", errors="replace") as out:
            quoted = {"quoting": csv.QUOTE_NONE, "escapechar": "\\", "delimiter": "\t"} if kind == "tsv" else {}
            writer = csv.DictWriter(out, COLUMNS, **quoted)
            writer.writeheader()
            writer.writerows(rows)
    for row in named(file).rows():
        assert isinstance(row, Mention)
        assert row.where.startswith(f"{file}:")
        if not row.problem:
            assert row.file
            assert row.start is None or row.start >= 0
            assert row.end is None or (row.start is not None and row.end > row.start)


def test_a_broken_gzip_is_told_and_not_raised(workspace: Workspace, tmp_path: Path) -> None:
    make(tmp_path / "in" / "a.wav")
    whole = gzip.compress(b"".join(json.dumps({"file": "a.wav", "n": n}).encode() + b"\n" for n in range(20_000)))
    (tmp_path / "in" / "m.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    report = ingest(workspace, tmp_path / "in")
    assert (len(report.taken), report.reasons) == (1, {"bad-metadata": 1})


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(keys, values, max_size=6), min_size=1, max_size=6))
def test_no_line_breaks_a_batch(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
    from voxloop.pipeline import open_loop

    folder = tmp_path_factory.mktemp("m")
    make(folder / "in" / "a.wav", 0.3)
    lines(folder / "in" / "metadata.jsonl", [{"file": "a.wav"}, *({**row, "file": "a.wav"} for row in rows), *rows])
    with open_loop(folder / "ws", create=True) as ws:
        assert len(ingest(ws, folder / "in").taken) == 1


def test_a_name_that_is_no_unicode_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    make(tmp_path / "in" / "a.wav")
    (tmp_path / "in" / "a.wav").rename(tmp_path / "in" / "caf\udce9.wav")
    make(tmp_path / "in" / "b.wav", seed=1)
    report = ingest(workspace, tmp_path / "in")
    assert (len(report.taken), report.reasons) == (1, {"bad-name": 1})
    assert "caf\\udce9.wav" in report.refused[0].path
