"""An exported dataset comes back as it was, whatever killed its writing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from voxloop.errors import BlobError, ConflictError, UsageError
from voxloop.maintenance.integrity import verify
from voxloop.pipeline import open_loop
from voxloop.records import SPLITS, Dataset, Recording, Transcript, Utterance, utterance_id
from voxloop.speech.audio import pcm_id, to_pcm16, wav_bytes
from voxloop.steps import datasets
from voxloop.steps.datasets import DatasetRow
from voxloop.steps.datasets.formats import FORMATS, entries, places
from voxloop.steps.recordings import audio_key, ingest
from voxloop.steps.utterances import read_span, segment
from voxloop.stores.blobs import Blobs
from voxloop.workspace import Workspace

ALL = sorted(FORMATS)
LENGTH = 1600  # samples of a clip

Texts = list[tuple[str, str | None, str | None, int]]
"""Text, speaker, language and number of utterances of each recording."""


def record(ws: Workspace, texts: Texts, *, seed: int = 0, samples: int = LENGTH) -> None:
    """Recordings of noise, cut into as many utterances of so many samples as the last number of each says."""
    chance = np.random.default_rng(seed)
    with ws.transaction() as tx:
        for number, (text, speaker, language, parts) in enumerate(texts):
            pcm = to_pcm16(0.1 * chance.standard_normal(samples * parts).astype(np.float32))
            id = pcm_id(pcm)
            ws.blobs.put(audio_key(id), wav_bytes(pcm))
            named = {"speaker": speaker, "language": language}
            tx.add(
                Recording(id=id, source="x", name="x", samples=samples * parts, session=f"day {number % 3}", **named)
            )
            for part in range(parts):
                span = part * samples, (part + 1) * samples
                utterance = utterance_id(id, *span)
                known = {"id": utterance, "recording": id, "start": span[0], "end": span[1]}
                tx.add(Utterance(**known, status="reviewed", **named))  # type: ignore[arg-type]
                made = Transcript(
                    id=f"t{seed}-{number}-{part}",
                    utterance=utterance,
                    kind="reference",
                    text=f"{text} {part}",
                    by="ann",
                )
                tx.add(made)


def fill(ws: Workspace, texts: Texts) -> Dataset:
    """Recordings as above; all of them frozen."""
    record(ws, texts)
    every = datasets.Filters(min_seconds=0, max_characters_per_second=1e9, keep_outliers=True)
    return datasets.build(ws, ratios=(0.6, 0.2, 0.2), filters=every)


def content(ws: Workspace, dataset: Dataset, *, ids: bool = True) -> list[object]:
    """Rows with their samples; without what changes where parts become recordings."""
    found = []
    for row in datasets.rows(ws, dataset.id):
        pcm = to_pcm16(read_span(ws, row.recording, row.start, row.end))
        known = row if ids else (row.text, row.split, row.kind, row.speaker, row.language, row.transcript)
        found.append((known, pcm))
    return sorted(found, key=repr)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Workspace]:
    with open_loop(tmp_path / "other", create=True) as ws:
        yield ws


words = st.text(
    st.characters(exclude_categories=("Cs", "Cc")) | st.sampled_from("äßЖ日本ấ\u0301\u2028\x85,\"'\\ \t"), min_size=1
).filter(str.strip)
clips = st.lists(
    st.tuples(words, st.sampled_from([None, "ann", "bø"]), st.sampled_from([None, "en", "vi"]), st.integers(1, 2)),
    min_size=1,
    max_size=6,
)


@given(clips, st.sampled_from(ALL), st.integers(1, 4))
@settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_import_of_an_export_is_identity(
    tmp_path_factory: pytest.TempPathFactory,
    texts: Texts,
    format: str,
    items: int,
) -> None:
    folder = tmp_path_factory.mktemp("identity")
    with open_loop(folder / "a", create=True) as ws, open_loop(folder / "b", create=True) as other:
        made = fill(ws, texts)
        datasets.export_dataset(ws, made.id, folder / "out", format=format, items=items)
        before = content(ws, made)
        # Where the recordings are, it is the same dataset, and nothing changes.
        assert datasets.import_dataset(ws, folder / "out") == made
        assert content(ws, made) == before
        there = datasets.import_dataset(other, folder / "out")
        whole = all(parts == 1 for *_, parts in texts)
        assert (there.id == made.id) == whole
        assert (there.name, there.clips, there.hours) == (made.name, made.clips, made.hours)
        assert content(other, there, ids=whole) == content(ws, made, ids=whole)
        assert datasets.import_dataset(other, folder / "out") == there
        # And back again from there.
        datasets.export_dataset(other, there.id, folder / "again", format=format, items=items)
        assert content(other, datasets.import_dataset(other, folder / "again")) == content(other, there)


@pytest.mark.parametrize("format", ALL)
def test_an_object_store_holds_it_as_a_folder_does(
    workspace: Workspace, other: Workspace, tmp_path: Path, s3: str, format: str
) -> None:
    made = fill(workspace, TEXTS[:5])
    datasets.export_dataset(workspace, made.id, tmp_path / "folder", format=format, items=2)
    written = datasets.export_dataset(workspace, made.id, s3, format=format, items=2)
    assert (written.place, written.clips, written.known) == (s3, 5, False)
    held = Blobs(s3, cache=tmp_path / "cache")
    folder = tmp_path / "folder"
    assert {key: held.get(key) for key in held.list("")} == {
        name: (folder / name).read_bytes() for name in names(folder)
    }
    assert datasets.export_dataset(workspace, made.id, s3, format=format, items=2).known
    assert datasets.import_dataset(other, s3).id == made.id
    assert content(other, made) == content(workspace, made)


TEXTS: Texts = [(f"tëxt {i}", "ann", "en", 1) for i in range(12)]


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_jsonl_lies_beside_its_audio(workspace: Workspace, tmp_path: Path) -> None:
    made = fill(workspace, TEXTS)
    told = datasets.export_dataset(workspace, made.id, tmp_path / "out")
    assert (told.clips, told.known) == (12, False)
    rows = {row.utterance: row for row in datasets.rows(workspace, made.id)}
    for split in SPLITS:
        lines = [json.loads(line) for line in (tmp_path / "out" / f"{split}.jsonl").read_text().splitlines()]
        assert len(lines) == made.clips[split]
        for line in lines:
            samples, rate = soundfile.read(tmp_path / "out" / line["audio_path"], dtype="int16")
            assert (rate, len(samples)) == (16_000, LENGTH)
            assert line["text"] == rows[line["id"]].text
            assert line["by"] == "reviewer"  # nobody's name leaves with the data
    again = datasets.export_dataset(workspace, made.id, tmp_path / "out")
    assert again == replace(told, known=True)


def test_an_export_can_be_ingested_as_any_manifest(workspace: Workspace, other: Workspace, tmp_path: Path) -> None:
    made = fill(workspace, TEXTS)
    datasets.export_dataset(workspace, made.id, tmp_path / "out")
    report = ingest(other, tmp_path / "out" / "train.jsonl", processes=1)
    assert (len(report.taken), len(report.refused)) == (made.clips["train"], 0)


def test_parquet_says_that_its_column_is_audio(workspace: Workspace, tmp_path: Path) -> None:
    made = fill(workspace, TEXTS)
    datasets.export_dataset(workspace, made.id, tmp_path / "out", format="parquet", items=5)
    files = [name for name in names(tmp_path / "out") if name.endswith(".parquet")]
    assert {name.partition("-")[0] for name in files} == {"data/train", "data/val", "data/test"}
    table = pyarrow.parquet.read_table(tmp_path / "out" / files[0])
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["audio"] == {"sampling_rate": 16_000, "_type": "Audio"}
    assert list(features) == table.schema.names
    first = table.to_pylist()[0]
    assert first["audio"]["bytes"][:4] == b"RIFF"
    assert pcm_id(first["audio"]["bytes"][44:]) == first["pcm"]


def test_lhotse_reads_the_shards(workspace: Workspace, tmp_path: Path) -> None:
    from lhotse import CutSet

    made = fill(workspace, TEXTS)
    datasets.export_dataset(workspace, made.id, (tmp_path / "out").as_uri(), format="shar", items=3)
    for split in SPLITS:
        rows = {row.utterance: row for row in datasets.rows(workspace, made.id, split)}
        shards = [name for name in names(tmp_path / "out") if name.startswith(f"{split}/cuts")]
        assert len(shards) == -(-len(rows) // 3)
        cuts = list(CutSet.from_shar(in_dir=str(tmp_path / "out" / split)))
        assert {cut.id for cut in cuts} == set(rows)
        for cut in cuts:
            row = rows[cut.id]
            said = cut.supervisions[0]
            assert (said.text, said.speaker, said.language, cut.custom["split"]) == (row.text, "ann", "en", split)
            samples = read_span(workspace, row.recording, row.start, row.end)
            np.testing.assert_array_equal(cut.load_audio()[0], samples)


@pytest.mark.parametrize("format", ALL)
def test_an_export_that_was_changed_is_refused(
    workspace: Workspace, other: Workspace, tmp_path: Path, format: str
) -> None:
    out = tmp_path / "out"
    made = fill(workspace, TEXTS)
    datasets.export_dataset(workspace, made.id, out, format=format)
    audio = next(path for path in sorted(out.rglob("*")) if path.suffix in (".wav", ".parquet", ".tar"))
    data = bytearray(audio.read_bytes())
    place = data.index(b"RIFF") + 300
    data[place] ^= 1
    audio.write_bytes(bytes(data))
    with pytest.raises((UsageError, BlobError, OSError), match=r"changed|CRC|orrupt|page"):
        datasets.import_dataset(other, out)
    with pytest.raises(UsageError, match="no dataset yet"):
        datasets.find(other)


def test_places_that_hold_something_else_are_left_alone(workspace: Workspace, tmp_path: Path) -> None:
    made = fill(workspace, TEXTS[:6])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match=r"other files \(thesis.txt\)"):
        datasets.export_dataset(workspace, made.id, tmp_path / "mine")
    assert names(tmp_path / "mine") == ["thesis.txt"]
    datasets.export_dataset(workspace, made.id, tmp_path / "out")
    with pytest.raises(UsageError, match="another export"):
        datasets.export_dataset(workspace, made.id, tmp_path / "out", format="shar")
    with pytest.raises(UsageError, match="did you mean parquet"):
        datasets.export_dataset(workspace, made.id, tmp_path / "out2", format="parket")
    with pytest.raises(UsageError, match=r"holds no dataset\.json"):
        datasets.import_dataset(workspace, tmp_path / "mine")
    with pytest.raises(UsageError, match="there is no folder"):
        datasets.import_dataset(workspace, tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(BlobError, match="needed is"):
        datasets.import_dataset(workspace, "ftp://somewhere")


def test_what_is_tested_here_is_not_imported_as_training(
    workspace: Workspace, other: Workspace, tmp_path: Path
) -> None:
    made = fill(workspace, TEXTS)
    datasets.export_dataset(workspace, made.id, tmp_path / "out")
    tested = next(row for row in datasets.rows(workspace, made.id) if row.split == "train")
    with other.transaction() as tx:
        tx.add(Recording(id=tested.recording, source="x", name="x", samples=LENGTH))
        tx.add(Utterance(id=tested.utterance, recording=tested.recording, start=0, end=LENGTH, split="test"))
    with pytest.raises(ConflictError, match="1 clips are in another split here"):
        datasets.import_dataset(other, tmp_path / "out")
    with pytest.raises(UsageError, match="no dataset yet"):
        datasets.find(other)


def test_an_imported_dataset_is_whole(workspace: Workspace, other: Workspace, tmp_path: Path) -> None:
    made = fill(workspace, [("a", "ann", "en", 2), ("b", "bob", None, 3), ("c", None, "vi", 1)])
    datasets.export_dataset(workspace, made.id, tmp_path / "out", format="shar")
    there = datasets.import_dataset(other, tmp_path / "out", name="theirs")
    assert there.name == "theirs"
    assert there.filters["imported"] == made.id
    assert verify(other).findings == ()


# Kills ---------------------------------------------------------------------------------------------------------------

KILLED = """
import json, os, sys
from pathlib import Path
from voxloop.steps import datasets
from voxloop.pipeline import open_loop
import voxloop.speech.audio, lhotse.shar.utils, pyarrow.parquet
for line in sys.stdin:  # each export forked before the object store has threads
    folder, dataset, format = json.loads(line)
    child = os.fork()
    if not child:
        with open_loop(Path(folder, "workspace")) as ws:
            datasets.export_dataset(ws, dataset, Path(folder, "out"), format=format, items=2)
        os._exit(0)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


@pytest.fixture(scope="module")
def forking() -> Iterator[subprocess.Popen[str]]:
    """A process that has imported what is slow to import."""
    command = [sys.executable, "-c", KILLED]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        assert process.stdin
        process.stdin.close()


@pytest.mark.parametrize("format", ALL)
def test_a_killed_export_looks_unfinished_and_is_finished_by_the_next(
    tmp_path: Path, workspace: Workspace, other: Workspace, format: str, forking: subprocess.Popen[str]
) -> None:
    assert forking.stdin
    assert forking.stdout
    made = fill(workspace, [(f"text {i}", "ann", "en", 1) for i in range(60)])
    chance = random.Random(f"kills {format}")
    out, hits, before = tmp_path / "out", 0, 0
    for _ in range(4):
        print(json.dumps([str(tmp_path), made.id, format]), file=forking.stdin, flush=True)
        child = int(forking.stdout.readline())
        # Killed when so many more files are there; each format writes 30 and more.
        wanted = before + chance.randint(1, 8)
        deadline = time.monotonic() + 120
        while len(list(out.rglob("*"))) < wanted and not (out / places.ABOUT).exists():
            assert time.monotonic() < deadline, "the export does not go on"
            time.sleep(0.001)
        with suppress(ProcessLookupError):  # it has ended
            os.kill(child, signal.SIGKILL)
        assert forking.stdout.readline() == "ended\n"
        if not (out / places.ABOUT).exists():
            hits += 1
            with pytest.raises(UsageError, match="did not come to its end"):
                datasets.import_dataset(other, out)
        before = len(list(out.rglob("*")))
    assert hits >= 2
    datasets.export_dataset(workspace, made.id, out, format=format, items=2)
    datasets.export_dataset(workspace, made.id, tmp_path / "undisturbed", format=format, items=2)
    assert names(out) == names(tmp_path / "undisturbed")
    for name in names(out):
        assert (out / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes(), name
    there = datasets.import_dataset(other, out)
    assert there.id == made.id
    assert content(other, there) == content(workspace, made)


# Real speech ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "format"),
    [("digits_en", "shar"), ("prompts_en", "jsonl"), ("kerstin_de", "parquet"), ("keywords_vi", "parquet")],
)
def test_a_real_set_comes_back(
    tmp_path: Path, workspace: Workspace, other: Workspace, real_speech: Path, name: str, format: str
) -> None:
    ingest(workspace, real_speech / name, processes=1, limit=60)
    with workspace.read() as reader:
        ids = [recording.id for recording in reader.all(Recording)]
    segment(workspace, ids)
    made = datasets.build(workspace, name=name, ratios=(0.6, 0.2, 0.2), filters=datasets.Filters(min_seconds=0.1))
    assert sum(made.clips.values()) > 40
    datasets.export_dataset(workspace, made.id, tmp_path / "out", format=format, items=25)
    there = datasets.import_dataset(other, tmp_path / "out")
    assert there.id == made.id
    assert content(other, there) == content(workspace, made)


def test_a_row_is_as_it_was(workspace: Workspace) -> None:
    """The id of a dataset is the hash of these bytes, which must not change from one version to the next."""
    from voxloop.steps.datasets.rows import row_line

    row = DatasetRow(
        utterance="u", recording="r", start=1, end=2, split="test", text="ä", kind="reference", transcript="t",
        speaker=None, language="de",
    )  # fmt: skip
    assert (
        row_line(row)
        == (
            '{"end": 2, "kind": "reference", "language": "de", "recording": "r", "speaker": null, "split": "test", '
            '"start": 1, "text": "ä", "transcript": "t", "utterance": "u"}\n'
        ).encode()
    )


def test_a_row_names_its_file_unless_that_is_left_out(workspace: Workspace, tmp_path: Path) -> None:
    made = fill(workspace, [("one", "ann", "en", 1), ("two", "ann", "en", 2)])
    with workspace.transaction() as tx:
        tx.change(Recording, [row.recording for row in datasets.rows(workspace, made.id)], name="Ann at home 1.m4a")
    for format in ALL:
        for named in (True, False):
            place = tmp_path / f"{format}-{named}"
            datasets.export_dataset(workspace, made.id, place, format=format, file_names=named)
            with places.opened(place, create=False) as opened:
                values = list(FORMATS[format].read_values(opened, places.about(opened)["files"]))
            assert {one["original_file"] for one in values} == {"Ann at home 1.m4a" if named else None}
            assert named or not any(b"Ann at home" in path.read_bytes() for path in place.rglob("*.jsonl"))
        # What was written without names is not gone on with as if it had them.
        with pytest.raises(UsageError, match="holds another export"):
            datasets.export_dataset(workspace, made.id, tmp_path / f"{format}-False", format=format)


def test_an_audiofolder_is_as_the_datasets_library_documents_it(workspace: Workspace, tmp_path: Path) -> None:
    """A metadata.jsonl in the folder of its audio, which `file_name` names; splits by the names of folders."""
    made = fill(workspace, [(f"clip {i}", "ann", "en", 1) for i in range(10)])
    datasets.export_dataset(workspace, made.id, tmp_path / "out", format="audiofolder")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["dataset.json", "test", "train", "val"]
    for split in SPLITS:
        folder = tmp_path / "out" / split
        lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
        assert len(lines) == made.clips[split]
        assert {line["file_name"] for line in lines} == {path.name for path in folder.glob("*.wav")}
        rows = {row.utterance: row for row in datasets.rows(workspace, made.id, split)}
        for line in lines:
            samples, rate = soundfile.read(folder / line["file_name"], dtype="int16")
            assert (line["text"], rate) == (rows[line["id"]].text, 16_000)
            assert samples.tobytes() == to_pcm16(
                read_span(workspace, line["recording"], line["start_sample"], line["end_sample"])
            )


@pytest.mark.parametrize("format", ALL)
def test_an_export_from_before_there_were_file_names_is_imported(
    workspace: Workspace, other: Workspace, tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = fill(workspace, [("one", "ann", "en", 1), ("two", "ann", "en", 1)])
    with monkeypatch.context() as patched:
        for name in ("original_file", "styled"):
            patched.delitem(entries.COLUMNS, name)
        datasets.export_dataset(workspace, made.id, tmp_path / "out", format=format)
    assert datasets.import_dataset(other, tmp_path / "out").id == made.id
    with other.read() as reader:
        assert {recording.name for recording in reader.all(Recording)} == {
            row.utterance for row in datasets.rows(workspace, made.id)
        }


def test_a_run_on_an_older_dataset_leaves_out_what_is_tested_on_since(workspace: Workspace, tmp_path: Path) -> None:
    record(workspace, [(f"text {i}", "ann", "en", 1) for i in range(10)])
    older = datasets.build(workspace, ratios=(1, 0, 0))
    newer = datasets.build(workspace, ratios=(0.5, 0.0, 0.5), fresh_test=True)
    manifest = datasets.write_split(workspace, older.id, "train", tmp_path)
    written = {json.loads(line)["id"] for line in manifest.read_text().splitlines()}
    assert written == {row.utterance for row in datasets.rows(workspace, newer.id, "train")}
    assert len(written) == 5


def test_restored_style_is_marked_and_comes_back(workspace: Workspace, other: Workspace, tmp_path: Path) -> None:
    record(workspace, [(f"good morning number {i}", "ann", "en", 1) for i in range(10)])
    heard = []
    with workspace.read() as reader:
        for number, one in enumerate(reader.all(Transcript)):
            text = one.text.replace("good morning", "Good morning,").replace("number", "numbers") + "."
            heard.append(Transcript(id=f"h{number}", utterance=one.utterance, kind="hypothesis", text=text, by="m"))
    with workspace.transaction() as tx:
        tx.add(*heard)
    plain = datasets.build(workspace, ratios=(0.6, 0.2, 0.2))
    assert datasets.advise(workspace, plain.id).styles["en"].plain
    made = datasets.build(workspace, ratios=(0.6, 0.2, 0.2), restore_style=True)
    for row in datasets.rows(workspace, made.id):
        # The last word is heard with a full stop; "numbers" is not what was said.
        before = next(one.text for one in datasets.rows(workspace, plain.id) if one.utterance == row.utterance)
        expected = before if row.split == "test" else before.replace("good morning", "Good morning,") + "."
        assert (row.text, row.styled) == (expected, row.split != "test")
    with workspace.read() as reader:
        assert {one.text for one in reader.all(Transcript) if one.kind == "reference"} == {
            row.text for row in datasets.rows(workspace, plain.id)
        }
    for format in ALL:
        datasets.export_dataset(workspace, made.id, tmp_path / format, format=format)
        assert datasets.import_dataset(other, tmp_path / format).id == made.id
    assert datasets.advise(workspace, made.id).restored == 8
