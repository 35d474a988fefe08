"""Freezing: what the workspace holds now becomes a dataset that never changes.

Utterances are read once, one after the other, and what is kept of each is its row;
so a million of them need no more memory than their rows.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import cache
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from voxloop import transcripts as _transcripts
from voxloop.datasets.filters import Candidate, Choice, Filters, Judge, may_enter
from voxloop.datasets.rows import DatasetRow, Exclusion, excluded_key, exclusion_line, row_line
from voxloop.datasets.splits import Ratios, assign_splits, position, strictest
from voxloop.errors import ModelError, UnknownRecord, UsageError
from voxloop.records import SPLITS, Dataset, Quality, Split, Transcript, Utterance
from voxloop.stores import catalog as tables
from voxloop.stores.blobs import sha256_file

if TYPE_CHECKING:
    from voxloop.stores.catalog import Reader
    from voxloop.workspace import Workspace

ROWS_AT_ONCE = 1000  # read from the catalog, and written to it


def build(
    ws: Workspace,
    *,
    name: str = "default",
    ratios: Ratios | None = None,
    machine_text: float | None = None,
    speakers: Sequence[str] | None = None,
    languages: Sequence[str] | None = None,
    train_limit: int | None = None,
    filters: Filters | None = None,
) -> Dataset:
    """Freeze what the workspace holds now as a dataset.

    References come first. Machine text enters only the training split, only when
    `machine_text` is given, and only above that confidence; validation and test
    hold references alone, and none that were aligned automatically. `train_limit`
    keeps at most so many training clips; `filters` are by default those of the settings.
    Freezing the same content again gives the same dataset. Raises UsageError
    where nothing could be frozen.
    """
    ratios = ratios or ws.settings.ratios
    choice = Choice(machine_text=machine_text, speakers=tuple(speakers or ()), languages=tuple(languages or ()))
    judge = Judge(filters or Filters.of(ws.settings), choice, _label_tokens(ws))
    exclusions: list[Exclusion] = []
    with ws.read() as reader:
        statement = sa.select(tables.recording.c.id, tables.recording.c.session)
        where = tables.recording.c.session.is_not(None)
        sessions: dict[str, str | None] = {
            row.id: row.session for row in reader.connection.execute(statement.where(where))
        }
        candidates = list(_candidates(reader, judge, exclusions))
    candidates = _unsuspected(judge, candidates, exclusions)
    splits = assign_splits([candidate.utterance for candidate in candidates], ratios, sessions=sessions)
    rows = _limit(_without_leaks(_rows(candidates, splits, exclusions), exclusions), train_limit, exclusions)
    if not rows:
        raise UsageError(_nothing(exclusions))
    return freeze(
        ws,
        name,
        rows,
        exclusions,
        new_splits={one.utterance.id: splits[one.utterance.id] for one in candidates if _newly(one, splits)},
        filters={
            "ratios": list(ratios),
            "machine_text": machine_text,
            "speakers": list(speakers) if speakers else None,
            "languages": list(languages) if languages else None,
            "train_limit": train_limit,
            **asdict(judge.filters),
        },
    )


def _newly(candidate: Candidate, splits: dict[str, Split]) -> bool:
    return candidate.utterance.split is None and candidate.utterance.id in splits


def _label_tokens(ws: Workspace) -> Callable[[str], int | None]:
    """Counts with the tokenizer of the model that a run would start from, where it lies on this machine."""

    @cache
    def tokenizer() -> Any:
        from tokenizers import Tokenizer

        try:
            file = Path(_transcripts.model_folder(ws, _transcripts.base_model(ws)), "tokenizer.json")
        except (ModelError, UnknownRecord):
            return None  # training counts with its own model, and says what it leaves out
        return Tokenizer.from_file(str(file)) if file.is_file() else None

    def tokens(text: str) -> int | None:
        found = tokenizer()
        return None if found is None else len(found.encode(text, add_special_tokens=False).ids)

    return tokens


def _candidates(reader: Reader, judge: Judge, exclusions: list[Exclusion]) -> Iterator[Candidate]:
    """What may enter judged by itself; the rest goes to `exclusions`."""
    shared: dict[str | None, str | None] = {}  # names that stand in many rows are kept once
    for utterance, transcripts in _utterances(reader, shared):
        found = judge.judge(utterance, transcripts)
        if isinstance(found, Candidate):
            yield found
        else:
            reason, detail, reviewed = found
            exclusions.append(Exclusion(utterance=utterance.id, reason=reason, detail=detail, reviewed=reviewed))


def _utterances(reader: Reader, shared: dict[str | None, str | None]) -> Iterator[tuple[Utterance, list[Transcript]]]:
    """Every utterance with its transcripts, without their words; in the order of the ids."""
    u, t = tables.utterance.c, tables.transcript.c
    statement = (
        sa.select(
            *(u.id, u.recording, u.start, u.end, u.speaker, u.language, u.split, u.status, u.quality),
            *(t.id.label("transcript"), t.kind, t.text, t.by, t.confidence, t.created),
        )
        .select_from(tables.utterance.outerjoin(tables.transcript))
        .order_by(u.id, t.created, t.id)
        .execution_options(yield_per=ROWS_AT_ONCE)
    )
    for _, group in groupby(reader.connection.execute(statement), lambda row: row.id):
        rows = list(group)
        first = rows[0]
        recording, speaker, language = (
            shared.setdefault(name, name) for name in (first.recording, first.speaker, first.language)
        )
        utterance = Utterance(
            id=first.id,
            recording=str(recording),
            start=first.start,
            end=first.end,
            speaker=speaker,
            language=language,
            split=first.split,
            status=first.status,
            quality=Quality(**first.quality) if first.quality else None,
        )
        yield (
            utterance,
            [
                Transcript(
                    id=row.transcript,
                    utterance=first.id,
                    kind=row.kind,
                    text=row.text,
                    by=row.by,
                    confidence=row.confidence,
                    created=row.created,
                )
                for row in rows
                if row.transcript is not None
            ],
        )


def _unsuspected(judge: Judge, candidates: Sequence[Candidate], exclusions: list[Exclusion]) -> list[Candidate]:
    suspicion = judge.suspicions(candidates)
    kept = []
    for candidate in candidates:
        reason, detail = suspicion(candidate)
        if reason:
            exclusions.append(_exclusion(candidate, reason, detail))
        else:
            kept.append(candidate)
    return kept


def _exclusion(candidate: Candidate, reason: str, detail: str = "") -> Exclusion:
    return Exclusion(utterance=candidate.utterance.id, reason=reason, detail=detail, reviewed=candidate.reviewed)


def _rows(
    candidates: Iterable[Candidate], splits: dict[str, Split], exclusions: list[Exclusion]
) -> Iterator[tuple[DatasetRow, Candidate]]:
    for candidate in candidates:
        utterance, transcript = candidate.utterance, candidate.transcript
        split = splits.get(utterance.id)
        if split is None:
            exclusions.append(_exclusion(candidate, "its recording joins speakers of different splits"))
            continue
        why = may_enter(split, transcript)
        if why:
            exclusions.append(_exclusion(candidate, why))
            continue
        yield (
            DatasetRow(
                utterance=utterance.id,
                recording=utterance.recording,
                start=utterance.start,
                end=utterance.end,
                split=split,
                text=transcript.text,
                kind=transcript.kind,
                transcript=transcript.id,
                speaker=utterance.speaker,
                language=utterance.language,
            ),
            candidate,
        )


Entering = list[tuple[DatasetRow, Candidate]]
"""Rows, each with the candidate that it was made of."""


def _without_leaks(entering: Iterable[tuple[DatasetRow, Candidate]], exclusions: list[Exclusion]) -> Entering:
    """Where an older version put parts of one recording into several splits, the strictest keeps it."""
    rows = list(entering)
    splits: dict[str, set[Split]] = {}
    for row, _ in rows:
        splits.setdefault(row.recording, set()).add(row.split)
    kept = []
    for row, candidate in rows:
        split = strictest(splits[row.recording])
        if row.split == split:
            kept.append((row, candidate))
        else:
            exclusions.append(_exclusion(candidate, f"other parts of its recording are in {split}"))
    return kept


def _limit(rows: Entering, train_limit: int | None, exclusions: list[Exclusion]) -> list[DatasetRow]:
    """At most `train_limit` training rows, chosen by hash so that a larger limit only adds."""
    if train_limit is None:
        return [row for row, _ in rows]
    train = [one for one in rows if one[0].split == "train"]
    train.sort(key=lambda one: position(f"limit {one[0].utterance}"))
    over = {row.utterance for row, _ in train[train_limit:]}
    reason = f"over the limit of {train_limit} training clips"
    exclusions += [_exclusion(candidate, reason) for row, candidate in rows if row.utterance in over]
    return [row for row, _ in rows if row.utterance not in over]


def freeze(
    ws: Workspace,
    name: str,
    rows: list[DatasetRow],
    exclusions: Sequence[Exclusion],
    *,
    new_splits: dict[str, Split],
    filters: dict[str, Any],
    excluded: dict[str, int] | None = None,
) -> Dataset:
    """Write rows as a dataset. `new_splits` are of utterances that had none; `excluded` counts, where no list is."""
    rows.sort(key=lambda row: row.utterance)
    with tempfile.TemporaryDirectory(prefix="voxloop-freeze-") as folder:
        manifest, left_out = Path(folder, "manifest"), Path(folder, "excluded")
        with manifest.open("wb") as file:
            file.writelines(map(row_line, rows))
        with left_out.open("wb") as file:
            file.writelines(map(exclusion_line, exclusions))
        id = sha256_file(manifest)
        key = f"datasets/{id}.jsonl"
        ws.blobs.put(key, manifest)
        if not ws.blobs.put(excluded_key(key), left_out) and excluded is None:
            # The same rows, found anew among others: what was left out is told as it is now.
            ws.blobs.delete(excluded_key(key))
            ws.blobs.put(excluded_key(key), left_out)
    with ws.read() as reader:
        parents = reader.all(Dataset, tables.dataset.c.name == name)
    parent = next((dataset.id for dataset in reversed(parents) if dataset.id != id), None)
    dataset = Dataset(
        id=id,
        name=name,
        filters=filters,
        clips={split: sum(row.split == split for row in rows) for split in SPLITS},
        hours={split: sum(row.duration for row in rows if row.split == split) / 3600 for split in SPLITS},
        excluded=dict(Counter(exclusion.reason for exclusion in exclusions)) if excluded is None else excluded,
        parent=parent,
    )
    with ws.completion() as tx:
        if not tx.add(dataset):
            if tx.get(Dataset, id).forgotten:
                # What had been forgotten was taken in anew: the dataset is whole again.
                whole = {"manifest": None, "forgotten": 0, "clips": dataset.clips, "hours": dataset.hours}
                tx.change(Dataset, id, **whole)
            if excluded is None:
                tx.change(Dataset, id, excluded=dataset.excluded, filters=filters)
        keep_splits(tx.connection, new_splits)
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = [
                {"dataset": id, "utterance": row.utterance, "transcript": row.transcript, "split": row.split}
                for row in rows[start : start + ROWS_AT_ONCE]
            ]
            tables.insert_new(tx.connection, tables.dataset_utterance, part)
        tx.emit("dataset.ready", id, payload={"name": name, "clips": dataset.clips})
        return tx.get(Dataset, id)


def keep_splits(connection: sa.Connection, splits: dict[str, Split]) -> None:
    """Write down where each utterance belongs; one that has a split is never moved, whoever wrote it first."""
    statement = (
        sa.update(tables.utterance)
        .where(tables.utterance.c.id == sa.bindparam("utterance_id"), tables.utterance.c.split.is_(None))
        .values(split=sa.bindparam("new_split"))
    )
    listed = iter(splits.items())
    while part := [{"utterance_id": id, "new_split": split} for id, split in islice(listed, ROWS_AT_ONCE)]:
        connection.execute(statement, part)


def _nothing(exclusions: Sequence[Exclusion]) -> str:
    if not exclusions:
        return "there are no utterances yet: `voxloop ingest` takes audio in, `voxloop worker --until-idle` segments it"
    reasons = "; ".join(f"{count} {reason}" for reason, count in Counter(e.reason for e in exclusions).most_common())
    return (
        f"none of {len(exclusions)} utterances can enter a dataset ({reasons}): correct some with "
        "`voxloop review save`, or take confident machine text with --machine-text 0.9"
    )
