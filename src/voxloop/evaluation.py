"""How well a model hears frozen speech.

A model decodes the references of a dataset's split once; every text heard is
kept, and the scores are counted from what was kept.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from voxloop import datasets, significance, text, transcripts
from voxloop.errors import UsageError
from voxloop.families.contract import Decoding
from voxloop.records import MAX_UTTERANCE_S, SAMPLE_RATE, Evaluation, Split
from voxloop.utterances import read_span

if TYPE_CHECKING:
    from voxloop.datasets import DatasetRow
    from voxloop.families.contract import Recogniser, Waveform
    from voxloop.records import Model
    from voxloop.workspace import Transaction, Workspace

BLOCK_S = 600.0  # seconds of audio read and decoded at a time
SHORT_S, LONG_S = 2.0, 10.0  # bounds of the length slices

PROBE_S = (2.0, 10.0)  # lengths of silence and of noise that a model is made to hear
NOISE_RMS = 1e-3  # -60 dBFS: the hiss of a quiet room
JOINED_INPUTS = 8  # test clips joined up to 30 s, at most so many
JOINED_MIN_S = 10.0  # less than this joined says nothing about long speech
JOINED_GAP_S = 0.2

Progress = Callable[[float, float], None]
"""Told seconds of audio decoded, and seconds in all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """One test utterance with what one model heard; texts as they are, counts after normalising."""

    utterance: str
    recording: str
    speaker: str | None
    language: str | None
    duration: float  # seconds
    reference: str
    hypothesis: str
    confidence: float | None
    words: int  # of the normalised reference
    errors: int
    substitutions: int
    deletions: int
    insertions: int
    characters: int
    character_errors: int
    orthographic_words: int
    orthographic_errors: int


# Measuring one model -------------------------------------------------------------------------------------------------


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

    `model` is anything that `transcripts.base_model` takes (None: the champion, or
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
    record = transcripts.base_model(ws, model)
    frozen = datasets.find(ws, dataset)
    rows = datasets.rows(ws, frozen.id, split)
    _check_rows(rows, frozen.name, split)
    decoding = decoding or transcripts.decoding(ws)
    normaliser = normalisers(rows, decoding, ws.settings.normaliser)
    id = evaluation_id(record.id, frozen.id, split, decoding, normaliser)
    with ws.read() as reader:
        evaluation = reader.find(Evaluation, id)
    if evaluation is None:
        evaluation = _measure(ws, record, rows, decoding, progress, id=id, dataset=frozen.id, normaliser=normaliser)
    with writing() as tx:
        tx.add(evaluation)
        summary = {name: evaluation.scores[name] for name in ("wer", "cer", "words", "utterances")}
        tx.emit("model.evaluated", record.id, key=id, payload={"evaluation": id, "dataset": frozen.id, **summary})
        return tx.get(Evaluation, id)


def evaluation_id(model: str, dataset: str, split: Split, decoding: Decoding, normaliser: str) -> str:
    """All that an evaluation depends on, as one id: the same question is asked once."""
    identity = json.dumps([model, dataset, split, decoding.as_dict(), normaliser], sort_keys=True)
    return f"sha256-{hashlib.sha256(identity.encode()).hexdigest()}"


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
    recogniser = transcripts.recogniser(ws, model)
    key = f"evaluations/{id}.jsonl"
    took_s: float | None = None  # not known where the decoding was another process's
    if not ws.blobs.exists(key):
        scored, took_s = _decode(ws, recogniser, rows, decoding, progress)
        lines = (json.dumps(asdict(row), ensure_ascii=False, sort_keys=True, allow_nan=False) for row in scored)
        ws.blobs.put(key, "".join(f"{line}\n" for line in lines).encode())
    # Scores are of what was kept, also where another process or one that died before its commit kept it first.
    scores = scores_of(_read(ws, key))
    scores |= {"decode_seconds": took_s, "real_time_factor": took_s / scores["seconds"] if took_s else None}
    scores |= _probes(ws, recogniser, rows, decoding)
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
) -> tuple[list[Scored], float]:
    """What the model hears in every row, in their order, and the seconds that decoding took."""
    scored: dict[str, Scored] = {}
    done_s = took_s = 0.0
    all_s = sum(row.duration for row in rows)
    for language, block in _blocks(rows, decoding):
        waveforms = [_waveform(ws, row) for row in block]
        began = time.perf_counter()
        heard = recogniser.transcribe(waveforms, replace(decoding, language=language))
        took_s += time.perf_counter() - began
        found = [(hypothesis.text, hypothesis.confidence) for hypothesis in heard]
        scored |= {row.utterance: row for row in score(block, found, language, ws.settings.normaliser)}
        done_s += sum(row.duration for row in block)
        if progress:
            progress(done_s, all_s)
    return [scored[row.utterance] for row in rows], took_s


def _waveform(ws: Workspace, row: DatasetRow) -> Waveform:
    return read_span(ws, row.recording, row.start, row.end)


def _blocks(rows: Sequence[DatasetRow], decoding: Decoding) -> Iterator[tuple[str | None, list[DatasetRow]]]:
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


def score(
    rows: Sequence[DatasetRow],
    heard: Sequence[tuple[str, float | None]],
    language: str | None,
    changes: text.Changes | None = None,
) -> list[Scored]:
    """Count the errors in texts heard (with their confidence) against the rows' references.

    `changes` is the setting `normaliser`.
    """
    hypotheses = [hypothesis for hypothesis, _ in heard]
    left = [text.normalise(row.text, language, changes) for row in rows]
    right = [text.normalise(hypothesis, language, changes) for hypothesis in hypotheses]
    words = text.word_errors_each(left, right)
    letters = text.character_errors_each(
        [text.letters(one, language, changes) for one in left], [text.letters(one, language, changes) for one in right]
    )
    spelled = text.word_errors_each(
        [text.as_written(row.text, language, changes) for row in rows],
        [text.as_written(hypothesis, language, changes) for hypothesis in hypotheses],
    )
    return [
        Scored(
            utterance=row.utterance,
            recording=row.recording,
            speaker=row.speaker,
            language=row.language,
            duration=row.duration,
            reference=row.text,
            hypothesis=hypothesis,
            confidence=confidence,
            words=word.units,
            errors=word.errors,
            substitutions=word.substitutions,
            deletions=word.deletions,
            insertions=word.insertions,
            characters=letter.units,
            character_errors=letter.errors,
            orthographic_words=spelling.units,
            orthographic_errors=spelling.errors,
        )
        for row, (hypothesis, confidence), word, letter, spelling in zip(
            rows, heard, words, letters, spelled, strict=True
        )
    ]


def scored_rows(ws: Workspace, evaluation: Evaluation) -> list[Scored]:
    """Every utterance of an evaluation with what was heard, in the order of the dataset."""
    return _read(ws, evaluation.hypotheses)


def _read(ws: Workspace, key: str) -> list[Scored]:
    return [Scored(**json.loads(line)) for line in ws.blobs.get(key).splitlines()]


# Scores --------------------------------------------------------------------------------------------------------------


def scores_of(rows: Sequence[Scored]) -> dict[str, Any]:
    """The numbers of an evaluation, each a sum over utterances."""
    words = sum(row.words for row in rows)
    characters = sum(row.characters for row in rows)
    low, high = significance.interval(
        [row.errors for row in rows], [row.words for row in rows], [row.recording for row in rows]
    )
    return {
        "wer": wer(rows),
        "wer_low": low,
        "wer_high": high,
        "cer": sum(row.character_errors for row in rows) / max(characters, 1),
        "orthographic_wer": sum(row.orthographic_errors for row in rows)
        / max(sum(row.orthographic_words for row in rows), 1),
        "errors": sum(row.errors for row in rows),
        "substitutions": sum(row.substitutions for row in rows),
        "deletions": sum(row.deletions for row in rows),
        "insertions": sum(row.insertions for row in rows),
        "words": words,
        "characters": characters,
        "utterances": len(rows),
        "recordings": len({row.recording for row in rows}),
        "seconds": sum(row.duration for row in rows),
        "slices": [
            {
                "by": by,
                "name": name,
                "wer": wer(part),
                "words": sum(row.words for row in part),
                "utterances": len(part),
            }
            for (by, name), part in slices(rows).items()
        ],
    }


def wer(rows: Sequence[Scored]) -> float:
    """Word errors by word of the references."""
    return sum(row.errors for row in rows) / max(sum(row.words for row in rows), 1)


def slices(rows: Sequence[Scored]) -> dict[tuple[str, str], list[Scored]]:
    """Rows by speaker, language and length; a slice that holds everything says nothing and is left out."""
    slices: dict[tuple[str, str], list[Scored]] = {}
    for row in rows:
        length = (
            f"below {SHORT_S:g} s"
            if row.duration < SHORT_S
            else f"{SHORT_S:g} to {LONG_S:g} s"
            if row.duration < LONG_S
            else f"{LONG_S:g} s and longer"
        )
        for by, name in (("speaker", row.speaker), ("language", row.language), ("length", length)):
            if name is not None:
                slices.setdefault((by, name), []).append(row)
    return {key: part for key, part in sorted(slices.items()) if key[0] != "length" or len(part) < len(rows)}


# What a test set does not ask: silence, and 30 s ---------------------------------------------------------------------


def _probes(
    ws: Workspace, recogniser: Recogniser, rows: Sequence[DatasetRow], decoding: Decoding
) -> dict[str, dict[str, Any]]:
    """What the model makes of silence and of test clips joined up to 30 s, in the test's main language."""
    languages = Counter(_language(row, decoding) for row in rows)
    language = languages.most_common(1)[0][0]
    asked = replace(decoding, language=language)
    silent = [hypothesis.text for hypothesis in recogniser.transcribe(quiet_inputs(), asked)]
    changes = ws.settings.normaliser
    heard_words = sum(len(text.normalise(heard, language, changes).split()) for heard in silent)
    probes: dict[str, dict[str, Any]] = {"silence": {"inputs": len(silent), "words": heard_words, "texts": silent}}
    joined = list(_joined([row for row in rows if _language(row, decoding) == language]))
    if joined:
        heard = recogniser.transcribe([_join(ws, group) for group in joined], asked)
        counts = text.total(
            text.word_errors_each(
                [text.normalise(" ".join(row.text for row in group), language, changes) for group in joined],
                [text.normalise(hypothesis.text, language, changes) for hypothesis in heard],
            )
        )
        probes["joined"] = {
            "inputs": len(joined),
            "words": counts.units,
            "errors": counts.errors,
            "wer": counts.rate,
            "texts": [hypothesis.text for hypothesis in heard],
        }
    return probes


def quiet_inputs() -> list[Waveform]:
    """Digital silence and faint white noise of 2 s and 10 s, always the same: four waveforms (S,)."""
    import numpy as np

    rng = np.random.default_rng(0)
    inputs = []
    for length_s in PROBE_S:
        samples = int(length_s * SAMPLE_RATE)
        inputs.append(np.zeros(samples, dtype=np.float32))
        inputs.append((NOISE_RMS * rng.standard_normal(samples)).astype(np.float32))
    return inputs


def _joined(rows: Sequence[DatasetRow]) -> Iterator[list[DatasetRow]]:
    """Groups of rows that fill 30 s with a short gap between two, at most JOINED_INPUTS of them."""
    made = 0
    group: list[DatasetRow] = []
    filled_s = 0.0
    for row in rows:
        if group and filled_s + JOINED_GAP_S + row.duration > MAX_UTTERANCE_S:
            yield group
            made += 1
            if made == JOINED_INPUTS:
                return
            group, filled_s = [], 0.0
        filled_s += row.duration + (JOINED_GAP_S if group else 0.0)
        group.append(row)
    if filled_s >= JOINED_MIN_S:
        yield group


def _join(ws: Workspace, rows: Sequence[DatasetRow]) -> Waveform:
    import numpy as np

    gap = np.zeros(int(JOINED_GAP_S * SAMPLE_RATE), dtype=np.float32)
    parts: list[Waveform] = []
    for row in rows:
        parts += [gap, _waveform(ws, row)] if parts else [_waveform(ws, row)]
    return np.concatenate(parts)
