"""Evaluate one model: decode a frozen split once, store the hypotheses, and compute scores from them.

The model gets its audio as in transcription, through the voice detector (`steps/hearing.py`).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from voxloop import models
from voxloop.errors import UsageError
from voxloop.families.decoding import Decoding
from voxloop.families.registry import family
from voxloop.records import Evaluation, Progress, Recording, Split, Transcript, Utterance
from voxloop.speech import text
from voxloop.steps import datasets, hearing, transcripts
from voxloop.steps.evaluation.probes import probe
from voxloop.steps.evaluation.scores import Scored, score, scores_of
from voxloop.steps.evaluation.unlabelled import unlabelled
from voxloop.steps.evaluation.word_times import edge_error_s, word_times
from voxloop.stores import tables

if TYPE_CHECKING:
    from voxloop.families.contract import Capability, Recogniser
    from voxloop.records import Model, Word
    from voxloop.steps.datasets import DatasetRow
    from voxloop.steps.hearing import Heard
    from voxloop.stores.catalog import Reader
    from voxloop.workspace import Transaction, Workspace

BLOCK_S = 600.0  # seconds of audio read and decoded at a time
TIMED = 60  # clips, spread over the test set, that get word times though their references have none
DETECTED = 30  # clips, spread the same way, whose language is detected


def evaluate(
    ws: Workspace,
    model: str | None = None,
    *,
    dataset: str | None = None,
    split: Split = "test",
    decoding: Decoding | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a model on the frozen references of a dataset's split; a stored evaluation is returned as is.

    `model` is any name that `models.base_model` accepts (None: the champion, or the
    base model before there is one), `dataset` a name or id (None: the newest). A
    language in `decoding` applies to utterances without one. Raises UsageError if
    the split is empty or contains texts that are not references.
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
    """As `evaluate`, within another step: `writing` opens the transaction that stores the result."""
    record = models.base_model(ws, model)
    frozen = datasets.find(ws, dataset)
    rows = datasets.rows(ws, frozen.id, split)
    _check_rows(rows, frozen.name, split)
    decoding = as_heard(ws, rows, decoding or transcripts.decoding(ws, model=record))
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


def as_served(ws: Workspace, model: Model) -> list[Decoding]:
    """The decoding of a model on each engine of the setting `serving_engines`, in that order.

    If the model's family does not support an engine, `torch` takes its place, as in serving.
    """
    asked = ws.settings.serving_engines or (ws.settings.engine,)
    found = []
    for name in asked:
        lacking = name.startswith("ctranslate2") and "ctranslate2" not in family(model.family).capabilities
        engine = models.engine(ws, model, asked="torch" if lacking and ws.settings.serving_engines else name)
        found.append(replace(transcripts.decoding(ws, model=model), engine=engine))
    return found


def as_heard(ws: Workspace, rows: Sequence[DatasetRow], decoding: Decoding) -> Decoding:
    """The decoding with the identity of the voice detection that the pipeline would apply to these rows today."""
    return replace(decoding, hearing=hearing.identity(ws, rows))


def evaluation_id(model: str, dataset: str, split: Split, decoding: Decoding, normaliser: str) -> str:
    """A hash of everything that determines an evaluation, so that the same one is computed only once."""
    identity = json.dumps([model, dataset, split, decoding.identity(), normaliser], sort_keys=True)
    return f"sha256-{hashlib.sha256(identity.encode()).hexdigest()}"


def find_evaluation(
    ws: Workspace, model: str, dataset: str, split: Split, decoding: Decoding, normaliser: str
) -> Evaluation | None:
    """The stored evaluation for these arguments, even under an id of an earlier version; None if there is none.

    Ids once covered every field of `Decoding`, batch sizes included. The decoding stored with such an evaluation
    still shows whether it matches.
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
    """The normaliser versions for the languages of the rows, joined by `+`."""
    return "+".join(sorted({text.normaliser_version(_language(row, decoding), changes) for row in rows}))


def _check_rows(rows: Sequence[DatasetRow], name: str, split: Split) -> None:
    if not rows:
        raise UsageError(
            f"the {split} split of dataset {name} is empty: review more utterances and build a new dataset, "
            "or give that split a larger share (`voxloop dataset build --ratios 0.8/0.1/0.1`)"
        )
    machine = sum(row.kind != "reference" for row in rows)
    if machine:
        raise UsageError(
            f"{machine} of {len(rows)} texts in the {split} split of dataset {name} were not written by a person: "
            "correct them with `voxloop review save`, then build a new dataset"
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
    took_s: float | None = None  # unknown if another process did the decoding
    with models.loaded(ws, model, decoding.engine) as recogniser:
        if not ws.blobs.exists(key):
            scored, took_s = _decode(ws, recogniser, rows, decoding, progress, can=family(model.family).capabilities)
            lines = (json.dumps(asdict(row), ensure_ascii=False, sort_keys=True, allow_nan=False) for row in scored)
            ws.blobs.put(key, "".join(f"{line}\n" for line in lines).encode())
        # Score what is stored, which another process, or one that died before its commit, may have written.
        scores = scores_of(_read(ws, key))
        scores |= {"decode_seconds": took_s, "real_time_factor": took_s / scores["seconds"] if took_s else None}
        scores |= probe(ws, recogniser, rows, decoding)
        scores["unlabelled"] = unlabelled(ws, recogniser, decoding)
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
    can: Collection[Capability],
) -> tuple[list[Scored], float]:
    """The scored hypotheses of all rows, in order, and the seconds that decoding took.

    If the model `can`, it also gives word times for rows whose references have them and for `TIMED` further rows, and
    detects the language of `DETECTED` rows.
    """
    scored: dict[str, Scored] = {}
    done_s = took_s = 0.0
    all_s = sum(row.duration for row in rows)
    changes = ws.settings.normaliser
    placed, named = _spread(rows, TIMED), _spread(rows, DETECTED)
    detects = "language detection" in can
    for language, block in in_blocks(rows, decoding):
        asked = replace(decoding, language=language)
        with ws.read() as reader:
            around = _around(reader, block)
        timed = [
            "word times" in can and (bool(spoken) or row.utterance in placed)
            for row, (*_, spoken) in zip(block, around, strict=True)
        ]
        began = time.perf_counter()
        heard = _heard(ws, recogniser, block, asked, timed)
        took_s += time.perf_counter() - began
        texts = [(one.hypothesis.text, one.hypothesis.confidence) for one in heard]
        detected: dict[str, str] = {}
        if detects and language and (known := [row for row in block if row.utterance in named and row.language]):
            detected = _detected(ws, recogniser, known, asked)
            detects = bool(detected)  # empty for an English-only model, so do not ask again
        for row, one, found, (session, snr_db, spoken) in zip(
            block, score(block, texts, language, changes), heard, around, strict=True
        ):
            words = found.hypothesis.words
            scored[row.utterance] = replace(
                one,
                session=session,
                snr_db=snr_db,
                detected=detected.get(row.utterance),
                edge_error_s=edge_error_s(words, found.speech),
                **word_times(spoken, words, language, changes),
            )
        done_s += sum(row.duration for row in block)
        if progress:
            progress(done_s, all_s)
    return [scored[row.utterance] for row in rows], took_s


def _spread(rows: Sequence[DatasetRow], count: int) -> set[str]:
    """At most `count` utterances, evenly spread over the rows."""
    return {rows[place * len(rows) // count].utterance for place in range(count)}


def _heard(
    ws: Workspace, recogniser: Recogniser, rows: Sequence[DatasetRow], asked: Decoding, timed: Sequence[bool]
) -> list[Heard]:
    """The hypotheses of rows, with word times where `timed`; word times do not change the text."""
    found: dict[str, Heard] = {}
    for wanted in (False, True):
        part = [row for row, one in zip(rows, timed, strict=True) if one is wanted]
        if part:
            heard = hearing.hear(ws, recogniser, part, asked, word_times=wanted)
            found |= {row.utterance: one for row, one in zip(part, heard, strict=True)}
    return [found[row.utterance] for row in rows]


def _detected(ws: Workspace, recogniser: Recogniser, rows: Sequence[DatasetRow], asked: Decoding) -> dict[str, str]:
    """The language that the model detects in each row; empty if it knows only one.

    It generates a single token of text.
    """
    untold = replace(asked, language=None, max_new_tokens=1, beams=1, guards=None)
    heard = hearing.hear(ws, recogniser, rows, untold)
    return {
        row.utterance: one.hypothesis.language
        for row, one in zip(rows, heard, strict=True)
        if one.hypothesis.language and one.hypothesis.language_probability is not None
    }


def _around(reader: Reader, rows: Sequence[DatasetRow]) -> list[tuple[str | None, float | None, tuple[Word, ...]]]:
    """Session, signal-to-noise ratio and reference word times of rows, which the dataset does not contain."""
    recordings = reader.find_all(Recording, [row.recording for row in rows])
    utterances = reader.find_all(Utterance, [row.utterance for row in rows])
    texts = reader.find_all(Transcript, [row.transcript for row in rows])
    found = []
    for row in rows:
        recording, utterance = recordings.get(row.recording), utterances.get(row.utterance)
        transcript = texts.get(row.transcript)
        quality = (utterance and utterance.quality) or (recording and recording.quality)
        # Even if it was undone since: the dataset's reference is the text that it froze.
        words = transcript.words if transcript and transcript.text == row.text else ()
        found.append((recording.session if recording else None, quality.snr_db if quality else None, words))
    return found


def in_blocks(rows: Sequence[DatasetRow], decoding: Decoding) -> Iterator[tuple[str | None, list[DatasetRow]]]:
    """Rows in blocks of one language and similar length, about ten minutes each."""
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
    """Every utterance of an evaluation with its hypothesis, in the order of the dataset."""
    return _read(ws, evaluation.hypotheses)


def _read(ws: Workspace, key: str) -> list[Scored]:
    return [Scored(**json.loads(line)) for line in ws.blobs.get(key).splitlines()]
