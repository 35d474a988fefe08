"""Measuring one model: decode a frozen split once, keep what was heard, and count from what was kept.

Sound goes to the model as it does when recordings and files are transcribed (`steps/hearing.py`).
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
from voxloop.families.contract import Decoding
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
TIMED = 60  # clips, spread over the test, whose words are placed in time though their references have no times
DETECTED = 30  # clips, spread likewise, whose language is detected


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
    """How a model is read on each engine that the setting `serving_engines` declares, in that order.

    An engine that the model's family lacks is `torch` here, as it would be in serving.
    """
    asked = ws.settings.serving_engines or (ws.settings.engine,)
    found = []
    for name in asked:
        lacking = name.startswith("ctranslate2") and "ctranslate2" not in family(model.family).capabilities
        engine = models.engine(ws, model, asked="torch" if lacking and ws.settings.serving_engines else name)
        found.append(replace(transcripts.decoding(ws, model=model), engine=engine))
    return found


def as_heard(ws: Workspace, rows: Sequence[DatasetRow], decoding: Decoding) -> Decoding:
    """A decoding that also says which sound of these rows the model is given, as the pipeline would give it today."""
    return replace(decoding, hearing=hearing.identity(ws, rows))


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
            scored, took_s = _decode(ws, recogniser, rows, decoding, progress, can=family(model.family).capabilities)
            lines = (json.dumps(asdict(row), ensure_ascii=False, sort_keys=True, allow_nan=False) for row in scored)
            ws.blobs.put(key, "".join(f"{line}\n" for line in lines).encode())
        # Scores are of what was kept, also where another process or one that died before its commit kept it first.
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
    """What the model hears in every row, in their order, and the seconds that decoding took.

    Where the model `can`, word times are asked of rows whose references have some and of `TIMED` rows besides, and
    the language of `DETECTED` rows.
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
            detects = bool(detected)  # none of an English-only model, which is not asked again
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
    """At most so many utterances, spread over the rows."""
    return {rows[place * len(rows) // count].utterance for place in range(count)}


def _heard(
    ws: Workspace, recogniser: Recogniser, rows: Sequence[DatasetRow], asked: Decoding, timed: Sequence[bool]
) -> list[Heard]:
    """What is heard in rows, with word times where they are wanted; these change no text."""
    found: dict[str, Heard] = {}
    for wanted in (False, True):
        part = [row for row, one in zip(rows, timed, strict=True) if one is wanted]
        if part:
            heard = hearing.hear(ws, recogniser, part, asked, word_times=wanted)
            found |= {row.utterance: one for row, one in zip(part, heard, strict=True)}
    return [found[row.utterance] for row in rows]


def _detected(ws: Workspace, recogniser: Recogniser, rows: Sequence[DatasetRow], asked: Decoding) -> dict[str, str]:
    """The language that the model takes each row for where it is not told; nothing where it only knows one.

    Of the text it writes a single token.
    """
    untold = replace(asked, language=None, max_new_tokens=1, beams=1, guards=None)
    heard = hearing.hear(ws, recogniser, rows, untold)
    return {
        row.utterance: one.hypothesis.language
        for row, one in zip(rows, heard, strict=True)
        if one.hypothesis.language and one.hypothesis.language_probability is not None
    }


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
