"""A workspace in which two speakers have left traces everywhere, to forget, verify and back up."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from voxloop.models import embedding_model, model_id
from voxloop.pipeline import open_loop
from voxloop.records import Dataset, Evaluation, Model, Promotion, Recording, Run, Transcript, Utterance
from voxloop.speech.audio import to_pcm16, wav_bytes
from voxloop.steps import datasets, evaluation
from voxloop.steps.evaluation import scores_of
from voxloop.steps.recordings import ingest
from voxloop.steps.utterances import segment
from voxloop.stores import tables
from voxloop.stores.blobs import sha256_bytes
from voxloop.workspace import Workspace

RATE = 16_000
WHO = "Zdeňka"  # is to be forgotten
OTHER = "bob"
WORDS = ("xylophone", "quartzite", "zeppelin", "marzipan")  # of WHO alone


def fill(ws: Workspace, folder: Path, *, clips: int = 16) -> Dataset:
    """Recordings, texts, vectors, a dataset, a run with its copies, a model, an evaluation, a promotion, refusals."""
    take(ws, folder, clips=clips)
    with ws.read() as reader:
        utterances = reader.all(Utterance)
    heard = [
        Transcript(
            id=f"h-{number}",
            utterance=utterance.id,
            kind="hypothesis",
            text=f"{WORDS[0] if utterance.speaker == WHO else 'other'} heard",
            by="model",
            confidence=0.5,
        )
        for number, utterance in enumerate(utterances)
    ]
    space = embedding_model(ws).id
    with ws.transaction() as tx:
        tx.add(*heard)
        ids = [utterance.id for utterance in utterances]
        tx.emit("utterance.reviewed", ids[0], key="x", payload={"by": "ann"})
    ws.vectors.upsert(space, ids, np.eye(len(ids), 8, dtype=np.float32))
    frozen = datasets.build(ws, name="frozen", ratios=(0.5, 0.2, 0.3))
    datasets.build(ws, name=f"{WHO}-only", ratios=(0.5, 0.2, 0.3), speakers=[WHO])
    learn(ws, frozen)
    return frozen


def template(folder: Path) -> Path:
    """A filled workspace to copy, beside the files that it was made from; its folder."""
    with open_loop(folder / "workspace", create=True) as ws:
        fill(ws, folder / "speech")
        ws.catalog.compact()  # all of it in one file
    return folder / "workspace"


def take(ws: Workspace, folder: Path, *, clips: int) -> None:
    """Clips of a second of noise each, by both speakers in turn, and a file that is refused."""
    folder.mkdir()
    rng = np.random.default_rng(7)
    lines = []
    for number in range(clips):
        name = f"{number:03}-{WHO if number % 2 == 0 else OTHER}.wav"
        loudness = np.where(np.arange(RATE) < RATE // 2, 0.001, 0.1)  # a pause, so that there is a ratio to noise
        (folder / name).write_bytes(wav_bytes(to_pcm16((loudness * rng.standard_normal(RATE)).astype(np.float32))))
        text = f"{WORDS[number // 2 % len(WORDS)]} number {number}" if number % 2 == 0 else f"plain number {number}"
        speaker = WHO if number % 2 == 0 else OTHER
        lines.append(
            {"file_name": name, "text": text, "speaker": speaker, "language": "en", "consent": f"by {speaker}"}
        )
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    ingest(ws, folder, processes=1)
    bad = folder.with_name(f"{folder.name}-refused")
    bad.mkdir()
    for who in (WHO, OTHER):
        (bad / f"{who}.wav").write_bytes(b"no audio")
    ingest(ws, bad, processes=1)
    with ws.read() as reader:
        recordings = [recording.id for recording in reader.all(Recording)]
    segment(ws, recordings)


def learn(ws: Workspace, frozen: Dataset) -> None:
    """A completed run on a dataset, its model as champion, one made from that, and what the model heard."""
    folder = ws.runs / "run1"
    for split in ("train", "val"):
        datasets.write_split(ws, frozen.id, split, folder / "data")  # type: ignore[arg-type]
    (folder / "best").mkdir()
    (folder / "best" / "model.safetensors").write_bytes(b"weights")
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    (folder / "status.json").write_text('{"status": "completed", "pid": 1}')
    files = {"model.safetensors": sha256_bytes(b"weights")}
    ws.blobs.put("models/asr/run1/model.safetensors", b"weights")
    whole = {"family": "whisper", "kind": "full"}
    model = Model(id=model_id(files), base="starter", where="models/asr/run1", run="run1", files=files, **whole)  # type: ignore[arg-type]
    files = {"model.safetensors": sha256_bytes(b"more weights")}
    place = f"models/asr/run2/{model_id(files)}"  # the older one lies where earlier versions put it
    ws.blobs.put(f"{place}/model.safetensors", b"more weights")
    child = Model(id=model_id(files), base=model.id, where=place, run="run2", files=files, **whole)  # type: ignore[arg-type]
    runs = [
        Run(id="run1", dataset=frozen.id, base="starter", family="whisper", method="full", recipe={},
            status="completed", model=model.id),
        Run(id="run2", dataset="sha256-another", base=model.id, family="whisper", method="full", recipe={},
            status="completed", model=child.id),
    ]  # fmt: skip
    rows = datasets.rows(ws, frozen.id, "test")
    scored = evaluation.score(rows, [(row.text, 0.5) for row in rows], "en")
    ws.blobs.put(
        "evaluations/sha256-e1.jsonl",
        b"".join((json.dumps(asdict(row), ensure_ascii=False) + "\n").encode() for row in scored),
    )
    joined = {"inputs": 1, "words": 3, "errors": 0, "wer": 0.0, "texts": [" ".join(row.text for row in rows)]}
    measured = Evaluation(
        id="sha256-e1",
        model=model.id,
        dataset=frozen.id,
        split="test",
        decoding={},
        normaliser="1",
        scores=scores_of(scored) | {"joined": joined},
        hypotheses="evaluations/sha256-e1.jsonl",
    )
    evidence = {"guards": [{"name": "slices", "finding": f"clearly worse for speaker {WHO} (1.0 % to 9.0 %)"}]}
    moved = Promotion(
        id="p1", alias="champion", model=model.id, previous=None, verdict="by hand", evidence=evidence, by="x"
    )
    with ws.transaction() as tx:
        tx.add(*runs, model, child, measured, moved)
        tx.connection.execute(tables.alias.insert().values(name="champion", model=model.id, promotion="p1"))
        tx.emit("model.compared", model.id, payload=evidence)


def traces(folder: Path, needles: list[str]) -> list[tuple[str, str]]:
    """Where any of the needles stands, in a file's bytes or name, below a folder."""
    found = []
    for path in sorted(folder.rglob("*")):
        data = path.read_bytes() if path.is_file() else b""
        for needle in needles:
            forms = {needle.encode(), json.dumps(needle)[1:-1].encode()}
            if any(form in data for form in forms) or needle in path.name:
                found.append((needle, path.relative_to(folder).as_posix()))
    return found
