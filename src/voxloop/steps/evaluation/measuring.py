"""Measuring one model: decode a frozen split once, keep what was heard, and count from what was kept."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from voxloop import models
from voxloop.errors import UsageError
from voxloop.families.contract import Decoding
from voxloop.families.registry import family
from voxloop.records import Evaluation, Progress, Recording, Split, Transcript, Utterance
from voxloop.speech import text
from voxloop.steps import datasets, transcripts
from voxloop.steps.evaluation.probes import probe
from voxloop.steps.evaluation.scores import Scored, score, scores_of
from voxloop.steps.evaluation.word_times import word_times
from voxloop.steps.utterances import read_span
from voxloop.stores import tables

if TYPE_CHECKING:
    from voxloop.families.contract import Recogniser
    from voxloop.records import Model, Word
    from voxloop.steps.datasets import DatasetRow
    from voxloop.stores.catalog import Reader
    from voxloop.workspace import Transaction, Workspace

BLOCK_S = 600.0  # seconds of audio read and decoded at a time


def evaluate(
    ws: Workspace,
    model: str | None = None,
    *,
    dataset: str | None = None,
    split: Split = "test",
    decoding: Decoding | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a model on the frozen references of a dataset's split; what was measured before is returned.

    `model` is anything that `models.base_model` takes (None: the champion, or
    the base model before there is one), `dataset` a name or id (None: the newest).
    A language in `decoding` counts where an utterance names none. Raises UsageError
    where the split is empty or holds anything but references.
    """
    return measure(ws, model, dataset=dataset, split=split, decoding=decoding, progress=progress, writing=ws.completion)


def measure(
    ws: Workspace,
    model: str | None,
    *,
    dataset: str | None,
    split: Split,
    decoding: Decoding | None,
    progress: Progress | None,
    writing: Callable[[], AbstractContextManager[Transaction]],
) -> Evaluation:
    """As `evaluate`, within another step: `writing` says which kind of write carries the result."""
    record = models.base_model(ws, model)
    frozen = datasets.find(ws, dataset)
    rows = datasets.rows(ws, frozen.id, split)
    _check_rows(rows, frozen.name, split)
    decoding = decoding or transcripts.decoding(ws, model=record)
    normaliser = normalisers(rows, decoding, ws.settings.normaliser)
    id = evaluation_id(record.id, frozen.id, split, decoding, normaliser)
    evaluation = find_evaluation(ws, record.id, frozen.id, split, decoding, normaliser)
    if evaluation is None:
        evaluation = _measure(ws, record, rows, decoding, progress, id=id, dataset=frozen.id, normaliser=normaliser)
    with writing() as tx:
        tx.add(evaluation)
        summary = {name: evaluation.scores[name] for name in ("wer", "cer", "words", "utterances")}
        known = {"evaluation": evaluation.id, "dataset": frozen.id}
        tx.emit("model.evaluated", record.id, key=evaluation.id, payload=known | summary)
        return tx.get(Evaluation, evaluation.id)


def evaluation_id(model: str, dataset: str, split: Split, decoding: Decoding, normaliser: str) -> str:
    """All that decides what a model heard, and how it was counted, as one id: the same question is asked once."""
    identity = json.dumps([model, dataset, split, decoding.identity(), normaliser], sort_keys=True)
    return f"sha256-{hashlib.sha256(identity.encode()).hexdigest()}"


def find_evaluation(
    ws: Workspace, model: str, dataset: str, split: Split, decoding: Decoding, normaliser: str
) -> Evaluation | None:
    """The evaluation of these that is kept, also under an id that an earlier formula made; None: there is none.

    Ids were once made of every field of `Decoding`, how much is decoded at once among them. What such an evaluation
    stored of its decoding still tells whether it asked the same.
    """
    asked = tables.evaluation.c
    same = (asked.model == model, asked.dataset == dataset, asked.split == split, asked.normaliser == normaliser)
    with ws.read() as reader:
        found = reader.find(Evaluation, evaluation_id(model, dataset, split, decoding, normaliser))
        if found is not None:
            return found
        earlier = reader.all(Evaluation, *same)
    wanted = decoding.identity()
    return next((one for one in earlier if Decoding.from_dict(one.decoding).identity() == wanted), None)


def normalisers(rows: Sequence[DatasetRow], decoding: Decoding, changes: text.Changes | None = None) -> str:
    """The versions of the normalisers that the rows' languages ask for, joined by `+`."""
    return "+".join(sorted({text.normaliser_version(_language(row, decoding), changes) for row in rows}))


def _check_rows(rows: Sequence[DatasetRow], name: str, split: Split) -> None:
    if not rows:
        raise UsageError(
            f"the {split} split of dataset {name} is empty: review more utterances and freeze a new dataset, "
            "or give that split a larger share (`voxloop dataset build --ratios 0.8/0.1/0.1`)"
        )
    machine = sum(row.kind != "reference" for row in rows)
    if machine:
        raise UsageError(
            f"{machine} of {len(rows)} texts in the {split} split of dataset {name} are a machine's: only a person's "
            "references are measured against; correct them with `voxloop review save` and freeze a new dataset"
        )


def _language(row: DatasetRow, decoding: Decoding) -> str | None:
    return row.language or decoding.language


def _measure(
    ws: Workspace,
    model: Model,
    rows: Sequence[DatasetRow],
    decoding: Decoding,
    progress: Progress | None,
    *,
    id: str,
    dataset: str,
    normaliser: str,
) -> Evaluation:
    key = f"evaluations/{id}.jsonl"
    took_s: float | None = None  # not known where the decoding was another process's
    with models.loaded(ws, model, decoding.engine) as recogniser:
        if not ws.blobs.exists(key):
            timed = "word times" in family(model.family).capabilities
            scored, took_s = _decode(ws, recogniser, rows, decoding, progress, timed=timed)
            lines = (json.dumps(asdict(row), ensure_ascii=False, sort_keys=True, allow_nan=False) for row in scored)
            ws.blobs.put(key, "".join(f"{line}\n" for line in lines).encode())
        # Scores are of what was kept, also where another process or one that died before its commit kept it first.
        scores = scores_of(_read(ws, key))
        scores |= {"decode_seconds": took_s, "real_time_factor": took_s / scores["seconds"] if took_s else None}
        scores |= probe(ws, recogniser, rows, decoding)
    return Evaluation(
        id=id,
        model=model.id,
        dataset=dataset,
        split=rows[0].split,
        decoding=decoding.as_dict(),
        normaliser=normaliser,
        scores=scores,
        hypotheses=key,
    )


def _decode(
    ws: Workspace,
    recogniser: Recogniser,
    rows: Sequence[DatasetRow],
    decoding: Decoding,
    progress: Progress | None,
    *,
    timed: bool,
) -> tuple[list[Scored], float]:
    """What the model hears in every row, in their order, and the seconds that decoding took.

    Word times are measured where the model is `timed`, in blocks whose references have some.
    """
    scored: dict[str, Scored] = {}
    done_s = took_s = 0.0
    all_s = sum(row.duration for row in rows)
    changes = ws.settings.normaliser
    for language, block in in_blocks(rows, decoding):
        waveforms = [read_span(ws, row.recording, row.start, row.end) for row in block]
        with ws.read() as reader:
            around = _around(reader, block)
        ask = timed and any(spoken for *_, spoken in around)
        began = time.perf_counter()
        heard = recogniser.transcribe(waveforms, replace(decoding, language=language), word_times=ask)
        took_s += time.perf_counter() - began
        found = [(hypothesis.text, hypothesis.confidence) for hypothesis in heard]
        ones = score(block, found, language, changes)
        for row, one, hypothesis, (session, snr_db, spoken) in zip(block, ones, heard, around, strict=True):
            times = word_times(spoken, hypothesis.words, language, changes)
            scored[row.utterance] = replace(one, session=session, snr_db=snr_db, **times)
        done_s += sum(row.duration for row in block)
        if progress:
            progress(done_s, all_s)
    return [scored[row.utterance] for row in rows], took_s


def _around(reader: Reader, rows: Sequence[DatasetRow]) -> list[tuple[str | None, float | None, tuple[Word, ...]]]:
    """What the dataset does not say of its rows: session, signal-to-noise ratio, the reference's word times."""
    recordings = reader.find_all(Recording, [row.recording for row in rows])
    utterances = reader.find_all(Utterance, [row.utterance for row in rows])
    texts = reader.find_all(Transcript, [row.transcript for row in rows])
    found = []
    for row in rows:
        recording, utterance = recordings.get(row.recording), utterances.get(row.utterance)
        transcript = texts.get(row.transcript)
        quality = (utterance and utterance.quality) or (recording and recording.quality)
        # Undone since or not: the reference of this dataset is the text that it froze.
        words = transcript.words if transcript and transcript.text == row.text else ()
        found.append((recording.session if recording else None, quality.snr_db if quality else None, words))
    return found


def in_blocks(rows: Sequence[DatasetRow], decoding: Decoding) -> Iterator[tuple[str | None, list[DatasetRow]]]:
    """Rows of one language and of like length, at most ten minutes together."""
    by_language: dict[str | None, list[DatasetRow]] = {}
    for row in sorted(rows, key=lambda row: row.duration):
        by_language.setdefault(_language(row, decoding), []).append(row)
    for language, group in by_language.items():
        block: list[DatasetRow] = []
        for row in group:
            block.append(row)
            if sum(row.duration for row in block) >= BLOCK_S:
                yield language, block
                block = []
        if block:
            yield language, block


def scored_rows(ws: Workspace, evaluation: Evaluation) -> list[Scored]:
    """Every utterance of an evaluation with what was heard, in the order of the dataset."""
    return _read(ws, evaluation.hypotheses)


def _read(ws: Workspace, key: str) -> list[Scored]:
    return [Scored(**json.loads(line)) for line in ws.blobs.get(key).splitlines()]
