"""Freezing: what the workspace holds now becomes a dataset that never changes.

Utterances are read once, one after the other. What may enter waits on the disk while
all are judged by each other and the splits are found, so that memory grows with the
recordings, not with the utterances and their texts.
"""

from __future__ import annotations

import json
import pickle
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from itertools import compress, count, groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import sqlalchemy as sa

from voxloop import models
from voxloop.errors import ModelError, UnknownRecord, UsageError
from voxloop.families.contract import Labels
from voxloop.families.registry import family
from voxloop.records import SPLITS, Dataset, Quality, Split, Transcript, Utterance
from voxloop.steps.datasets.filters import Candidate, Choice, Filters, Judge, may_enter
from voxloop.steps.datasets.fresh import release, untrained
from voxloop.steps.datasets.rows import DatasetRow, Exclusion, excluded_key, exclusion_line, row_line
from voxloop.steps.datasets.splits import Ratios, assign_splits, position, strictest, usual_ratios
from voxloop.stores import tables
from voxloop.stores.blobs import sha256_file
from voxloop.stores.catalog import insert_new

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
    fresh_test: bool = False,
    restore_style: bool = False,
) -> Dataset:
    """Freeze what the workspace holds now as a dataset.

    References come first. Machine text enters only the training split, only when
    `machine_text` is given, and only above that confidence; validation and test
    hold references alone, and none that were aligned automatically. `train_limit`
    keeps at most so many training clips; `filters` are by default those of the settings.
    `ratios` are by default those of the settings or, where these have none, chosen by the
    number of clips. Doubtful texts stay out and go to review.

    `fresh_test` shares out anew what is in the training split and no model has been
    trained on; what was validation or test stays so. `restore_style` gives texts of
    train and val, in languages whose references have neither case nor punctuation, those of
    what was heard, where the words agree; the references stay as they are.

    Freezing the same content again gives the same dataset. Raises UsageError
    where nothing could be frozen. `advise` says what is wanting in what was made.
    """
    asked = ratios or ws.settings.ratios
    choice = Choice(machine_text=machine_text, speakers=tuple(speakers or ()), languages=tuple(languages or ()))
    filters, labels = filters or Filters.of(ws.settings), _labels(ws)
    if filters.max_label_tokens is None and labels:
        filters = replace(filters, max_label_tokens=labels.limit)
    judge = Judge(filters, choice, labels, restore_style=restore_style)
    with (
        tempfile.TemporaryDirectory(prefix="voxloop-build-") as folder,
        closing(LeftOut(Path(folder, "excluded"))) as left_out,
    ):
        candidates = _Candidates(Path(folder, "candidates"))
        with ws.read() as reader:
            released = untrained(reader.connection) if fresh_test else frozenset()
            candidates.fill(_judged(reader, judge, left_out, released))
            sessions = _sessions(reader)
        candidates.sift(judge.too_short(), left_out)
        doubtful = candidates.sift(judge.doubts(), left_out)
        testable = sum(not may_enter("test", one) for one in candidates)
        ratios = asked or usual_ratios(testable, ws.settings.promote_min_utterances)
        belonging = _Belonging(candidates, ratios, sessions, afresh=fresh_test)
        unsuspected = bytes(candidates.chosen)
        candidates.sift(belonging.cannot_enter, left_out)
        if belonging.torn:
            candidates.sift(belonging.leaks, left_out)
        if train_limit is not None:
            candidates.sift(_over(candidates, belonging, train_limit), left_out)
        if not any(candidates.chosen):
            raise UsageError(_nothing(left_out.reasons))
        if released:
            entering = candidates.of(unsuspected)
            released = frozenset(one.utterance for one in entering if one.utterance in released and belonging.of(one))
        plain = {lang for lang, style in judge.styles.found().items() if style.plain} if restore_style else set()
        return freeze(
            ws,
            name,
            (belonging.row(candidate, styled=candidate.language in plain) for candidate in candidates),
            left_out,
            new_splits=belonging.new(candidates.of(unsuspected)),
            doubtful=doubtful,
            released=released,
            filters={
                "ratios": [round(share, 4) for share in ratios],
                "derived": [
                    *([] if asked else ["ratios"]),
                    *([] if judge.filters.min_seconds is not None else ["min_seconds"]),
                ],
                "machine_text": machine_text,
                "speakers": list(speakers) if speakers else None,
                "languages": list(languages) if languages else None,
                "train_limit": train_limit,
                "fresh_test": fresh_test,
                "restore_style": restore_style,
                **asdict(judge.filters),
                "min_seconds": judge.shortest_s(),
            },
        )


class LeftOut:
    """What is left out, told to a file line by line, and counted by reason."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reasons: Counter[str] = Counter()
        self._file = path.open("wb")

    def add(self, utterance: str, reason: str, detail: str, *, reviewed: bool) -> None:
        self.reasons[reason] += 1
        self._file.write(
            exclusion_line(Exclusion(utterance=utterance, reason=reason, detail=detail, reviewed=reviewed))
        )

    def close(self) -> Path:
        """The whole file, one `Exclusion` a line."""
        self._file.close()
        return self.path


class _Candidates:
    """Candidates on the disk, gone through several times; which of them are still chosen is kept in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.chosen = bytearray()

    def fill(self, found: Iterable[Candidate]) -> None:
        with self._path.open("wb") as file:
            for candidate in found:
                pickle.dump(tuple(candidate), file, pickle.HIGHEST_PROTOCOL)
                self.chosen.append(1)

    def __iter__(self) -> Iterator[Candidate]:
        """Those that are chosen, in the order of their ids."""
        return self.of(self.chosen)

    def of(self, chosen: Sequence[int]) -> Iterator[Candidate]:
        """Those marked by a 1."""
        with self._path.open("rb") as file:
            for one in chosen:
                values = pickle.load(file)  # written above, by this process
                if one:
                    yield Candidate._make(values)

    def sift(self, why: Callable[[Candidate], tuple[str, str]], left_out: LeftOut) -> dict[str, str]:
        """Leave out those for which there is a reason, with its detail; the details by utterance."""
        found = {}
        before = bytes(self.chosen)
        for number, candidate in zip(compress(count(), before), self.of(before), strict=True):
            reason, detail = why(candidate)
            if reason:
                self.chosen[number] = 0
                left_out.add(candidate.utterance, reason, detail, reviewed=candidate.reviewed)
                if detail:
                    found[candidate.utterance] = detail
        return found


class _Part(NamedTuple):
    """Utterances of one recording and speaker that have the same split, or none: they are placed together."""

    recording: str
    speaker: str | None
    split: Split | None

    @property
    def id(self) -> _Part:
        """What it is told from the others by: all of it, which takes no memory."""
        return self


class _Belonging:
    """Which split each candidate belongs to, and which may not enter it."""

    def __init__(
        self,
        candidates: Iterable[Candidate],
        ratios: Ratios,
        sessions: Mapping[str, str | None],
        *,
        afresh: bool = False,
    ) -> None:
        clips: Counter[_Part] = Counter()  # that may be tested on
        names: dict[str | None, str | None] = {}  # each speaker's once: there are many recordings of one
        for one in candidates:
            part = _Part(one.recording, names.setdefault(one.speaker, one.speaker), one.split)
            clips[part] += not may_enter("test", one)
        self._split = assign_splits(
            list(clips),
            ratios,
            sessions=sessions,
            clips=clips,
            said=lambda: ((one.recording, one.speaker, one.text) for one in candidates),
            afresh=afresh,
        )
        self._strictest: dict[str, Split] = {}  # of what enters of each recording
        self.torn = False  # parts of one recording enter several splits

    def of(self, candidate: Candidate) -> Split | None:
        """None: it joins speakers who are in different splits already."""
        return self._split.get(_Part(candidate.recording, candidate.speaker, candidate.split))

    def cannot_enter(self, candidate: Candidate) -> tuple[str, str]:
        """Why not, if so."""
        split = self.of(candidate)
        if split is None:
            return "its recording joins speakers of different splits", ""
        why = may_enter(split, candidate)
        if not why:
            kept = self._strictest.setdefault(candidate.recording, split)
            if kept != split:
                self.torn = True
                self._strictest[candidate.recording] = strictest({kept, split})
        return why, ""

    def leaks(self, candidate: Candidate) -> tuple[str, str]:
        """Where an older version put parts of one recording into several splits, the strictest keeps it."""
        split = self._strictest[candidate.recording]
        return ("", "") if self.of(candidate) == split else (f"other parts of its recording are in {split}", "")

    def new(self, candidates: Iterable[Candidate]) -> Iterator[tuple[str, Split]]:
        """Utterances that had no split, and where they belong now."""
        for candidate in candidates:
            split = None if candidate.split else self.of(candidate)
            if split:
                yield candidate.utterance, split

    def row(self, candidate: Candidate, *, styled: bool = False) -> DatasetRow:
        """A candidate as it enters; `styled`: with restored case and punctuation, where it is not tested on."""
        split = cast("Split", self.of(candidate))
        styled = styled and split != "test" and candidate.styled not in ("", candidate.text)
        return DatasetRow(
            utterance=candidate.utterance,
            recording=candidate.recording,
            start=candidate.start,
            end=candidate.end,
            split=split,
            text=candidate.styled if styled else candidate.text,
            kind=candidate.kind,
            transcript=candidate.transcript,
            speaker=candidate.speaker,
            language=candidate.language,
            styled=styled,
        )


def _over(
    candidates: Iterable[Candidate], belonging: _Belonging, train_limit: int
) -> Callable[[Candidate], tuple[str, str]]:
    """Leaves at most `train_limit` training clips, chosen by hash so that a larger limit only adds."""

    def place(candidate: Candidate) -> float:
        return position(f"limit {candidate.utterance}")

    places = array("d", (place(one) for one in candidates if belonging.of(one) == "train"))
    kept = sorted(places)[:train_limit]
    last = kept[-1] if kept else -1.0
    reason = f"over the limit of {train_limit} training clips"

    def why(candidate: Candidate) -> tuple[str, str]:
        over = belonging.of(candidate) == "train" and place(candidate) > last
        return (reason if over else ""), ""

    return why


def _sessions(reader: Reader) -> dict[str, str | None]:
    table = tables.recording.c
    statement = sa.select(table.id, table.session).where(table.session.is_not(None))
    return {row.id: row.session for row in reader.connection.execute(statement)}


def _labels(ws: Workspace) -> Labels | None:
    """How long texts the model can write that a run would start from, where it lies on this machine."""
    try:
        model = models.base_model(ws)
        return family(model.family).labels(models.model_folder(ws, model, checked=False))
    except (ModelError, UnknownRecord):
        return None  # training counts with its own model, and says what it leaves out


def _judged(reader: Reader, judge: Judge, left_out: LeftOut, released: Container[str] = ()) -> Iterator[Candidate]:
    """What may enter judged by itself, of `released` utterances without their split; the rest goes to `left_out`."""
    for utterance, transcripts in _utterances(reader):
        if utterance.id in released:
            utterance = replace(utterance, split=None)
        found = judge.judge(utterance, transcripts)
        if isinstance(found, Candidate):
            yield found
        else:
            reason, detail, reviewed = found
            left_out.add(utterance.id, reason, detail, reviewed=reviewed)


def _utterances(reader: Reader) -> Iterator[tuple[Utterance, list[Transcript]]]:
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
        utterance = Utterance(
            id=first.id,
            recording=first.recording,
            start=first.start,
            end=first.end,
            speaker=first.speaker,
            language=first.language,
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


def freeze(
    ws: Workspace,
    name: str,
    rows: Iterable[DatasetRow],
    left_out: LeftOut | None,
    *,
    new_splits: Iterable[tuple[str, Split]],
    filters: dict[str, Any],
    excluded: dict[str, int] | None = None,
    doubtful: Mapping[str, str] | None = None,
    released: Collection[str] = (),
) -> Dataset:
    """Write rows, which come in the order of their utterances, as a dataset.

    `new_splits` are of utterances that had none, or of those `released` of theirs; `excluded` counts, where there is
    no list. `doubtful` utterances go to review with these reasons. Raises ConflictError where a run has begun to train
    on what was released.
    """
    clips: dict[str, int] = dict.fromkeys(SPLITS, 0)
    durations: dict[str, float] = dict.fromkeys(SPLITS, 0.0)  # seconds
    with tempfile.TemporaryDirectory(prefix="voxloop-freeze-") as folder:
        manifest, nothing = Path(folder, "manifest"), Path(folder, "nothing")
        with manifest.open("wb") as file:
            for row in rows:
                file.write(row_line(row))
                clips[row.split] += 1
                durations[row.split] += row.duration
        nothing.touch()
        listed = left_out.close() if left_out else nothing
        id = sha256_file(manifest)
        key = f"datasets/{id}.jsonl"
        ws.blobs.put(key, manifest)
        if not ws.blobs.put(excluded_key(key), listed) and excluded is None:
            # The same rows, found anew among others: what was left out is told as it is now.
            ws.blobs.delete(excluded_key(key))
            ws.blobs.put(excluded_key(key), listed)
        with ws.read() as reader:
            parents = reader.all(Dataset, tables.dataset.c.name == name)
        parent = next((dataset.id for dataset in reversed(parents) if dataset.id != id), None)
        dataset = Dataset(
            id=id,
            name=name,
            filters=filters,
            clips=clips,
            hours={split: durations[split] / 3600 for split in SPLITS},
            excluded=excluded if excluded is not None else dict(left_out.reasons) if left_out else {},
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
            if released:
                release(tx.connection, released)
            keep_splits(tx.connection, new_splits)
            _keep_rows(tx.connection, id, manifest)
            if doubtful is not None:
                _send_to_review(tx.connection, id, doubtful)
            tx.emit("dataset.frozen", id, payload={"name": name, "clips": dataset.clips})
            return tx.get(Dataset, id)


def _keep_rows(connection: sa.Connection, dataset: str, manifest: Path) -> None:
    """Write down what a dataset holds."""
    with manifest.open("rb") as file:
        while lines := list(islice(file, ROWS_AT_ONCE)):
            part = [
                {"dataset": dataset, **{name: row[name] for name in ("utterance", "transcript", "split")}}
                for row in map(json.loads, lines)
            ]
            insert_new(connection, tables.dataset_utterance, part)


def _send_to_review(connection: sa.Connection, dataset: str, doubtful: Mapping[str, str]) -> None:
    """Have people look at doubtful texts first; what is in the dataset is in no doubt any more."""
    u, held = tables.utterance, tables.dataset_utterance.c
    connection.execute(
        sa.update(u)
        .where(u.c.doubt.is_not(None), u.c.id.in_(sa.select(held.utterance).where(held.dataset == dataset)))
        .values(doubt=None)
    )
    waiting = {"status": "transcribed", "priority": 1.0, "doubt": sa.bindparam("why")}
    statement = sa.update(u).where(u.c.id == sa.bindparam("doubted"), u.c.status != "rejected").values(**waiting)
    if doubtful:
        connection.execute(statement, [{"doubted": id, "why": why} for id, why in sorted(doubtful.items())])


def keep_splits(connection: sa.Connection, splits: Iterable[tuple[str, Split]]) -> None:
    """Write down where each utterance belongs; one that has a split is never moved, whoever wrote it first."""
    statement = (
        sa.update(tables.utterance)
        .where(tables.utterance.c.id == sa.bindparam("utterance_id"), tables.utterance.c.split.is_(None))
        .values(split=sa.bindparam("new_split"))
    )
    listed = iter(splits)
    while part := [{"utterance_id": id, "new_split": split} for id, split in islice(listed, ROWS_AT_ONCE)]:
        connection.execute(statement, part)


def _nothing(reasons: Counter[str]) -> str:
    if not reasons:
        return "there are no utterances yet: `voxloop ingest` takes audio in, `voxloop worker --until-idle` segments it"
    told = "; ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    return (
        f"none of {reasons.total()} utterances can enter a dataset ({told}): correct some with "
        "`voxloop review save`, or take confident machine text with --machine-text 0.9"
    )
