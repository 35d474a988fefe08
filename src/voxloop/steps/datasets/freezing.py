"""Freeze the current contents of the workspace as a dataset that never changes.

Utterances are read once, in sequence. Candidates wait on disk while they are compared
with each other and assigned to splits, so memory grows with the number of recordings,
not with the utterances and their texts.
"""

from __future__ import annotations

import json
import math
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
from voxloop.records import LEFT_OUT, SPLITS, Dataset, Quality, Split, Transcript, Utterance
from voxloop.steps import consent
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

ROWS_AT_ONCE = 1000  # read from the catalog, or written to it, at a time


def build(
    ws: Workspace,
    *,
    name: str = "default",
    ratios: Ratios | None = None,
    machine_text: float | None = None,
    machine_share: float | None = None,
    speakers: Sequence[str] | None = None,
    languages: Sequence[str] | None = None,
    train_limit: int | None = None,
    filters: Filters | None = None,
    fresh_test: bool = False,
    restore_style: bool = False,
) -> Dataset:
    """Freeze the current contents of the workspace as a dataset.

    References take precedence. Machine text enters only the training split, and only if
    `machine_text` is given and its confidence is at least that; validation and test
    contain only references, and none that were aligned automatically. With `machine_share`,
    the training split instead takes the machine text that `usable` confirmed, the most confident
    first, up to that share of the hours of usable speech. `train_limit` is the maximum
    number of training clips; `filters` default to the settings.
    `ratios` default to the settings or, if unset, are chosen by the number of clips and by what the gate's newest
    verdict asked for.
    Doubtful texts are excluded and go to review.

    `fresh_test` assigns new splits to training clips that no model was trained on;
    validation and test clips keep their split. In languages whose references have neither
    case nor punctuation, `restore_style` copies both from the hypothesis into the texts of
    train and val, where the words match; the references do not change.

    Freezing the same content again returns the same dataset. Raises UsageError
    if nothing can be frozen. `advise` reports what the dataset lacks.
    """
    asked = ratios or ws.settings.ratios
    choice = Choice(
        machine_text=machine_text,
        confirmed=machine_share is not None,
        speakers=tuple(speakers or ()),
        languages=tuple(languages or ()),
    )
    filters, labels = filters or Filters.of(ws.settings), _labels(ws)
    if filters.max_label_tokens is None and labels:
        filters = replace(filters, max_label_tokens=labels.limit)
    with ws.read() as reader:
        withdrawn = consent.withdrawn(reader, "train")
        wanting = _wanting(reader)
    judge = Judge(filters, choice, labels, withdrawn=withdrawn, restore_style=restore_style)
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
        ratios = asked or usual_ratios(testable, max(ws.settings.promote_min_utterances, wanting))
        belonging = _Belonging(candidates, ratios, sessions, afresh=fresh_test)
        unsuspected = bytes(candidates.chosen)
        if machine_share is not None:
            candidates.sift(_over_share(candidates, belonging, machine_share), left_out)
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
                **({} if machine_share is None else {"machine_share": machine_share}),
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
    """The excluded utterances: written to a file line by line, and counted by reason."""

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
        """Close and return the file, which has one `Exclusion` per line."""
        self._file.close()
        return self.path


class _Candidates:
    """Candidates on disk, read several times; which ones are still chosen is kept in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.chosen = bytearray()

    def fill(self, found: Iterable[Candidate]) -> None:
        with self._path.open("wb") as file:
            for candidate in found:
                pickle.dump(tuple(candidate), file, pickle.HIGHEST_PROTOCOL)
                self.chosen.append(1)

    def __iter__(self) -> Iterator[Candidate]:
        """Iterate over the chosen candidates, in the order of their ids."""
        return self.of(self.chosen)

    def of(self, chosen: Sequence[int]) -> Iterator[Candidate]:
        """Yield the candidates marked with a 1."""
        with self._path.open("rb") as file:
            for one in chosen:
                values = pickle.load(file)  # written above, by this process
                if one:
                    yield Candidate._make(values)

    def sift(self, why: Callable[[Candidate], tuple[str, str]], left_out: LeftOut) -> dict[str, str]:
        """Exclude candidates for which there is a reason. Return the details by utterance."""
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
    """Utterances of one recording and speaker with the same split, or none: they are assigned together."""

    recording: str
    speaker: str | None
    split: Split | None

    @property
    def id(self) -> _Part:
        """Its key: the part itself, which takes no extra memory."""
        return self


class _Belonging:
    """Each candidate's split, and which candidates may not enter theirs."""

    def __init__(
        self,
        candidates: Iterable[Candidate],
        ratios: Ratios,
        sessions: Mapping[str, str | None],
        *,
        afresh: bool = False,
    ) -> None:
        clips: Counter[_Part] = Counter()  # clips that may enter test
        names: dict[str | None, str | None] = {}  # one string per speaker, who may have many recordings
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
        self._strictest: dict[str, Split] = {}  # strictest split of each recording's clips
        self.torn = False  # whether parts of one recording are in several splits

    def of(self, candidate: Candidate) -> Split | None:
        """Return a candidate's split; None if its recording joins speakers of different splits."""
        return self._split.get(_Part(candidate.recording, candidate.speaker, candidate.split))

    def cannot_enter(self, candidate: Candidate) -> tuple[str, str]:
        """Return (reason, detail) if the candidate may not enter its split; else empty."""
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
        """Keep a recording in its strictest split if an older version put its parts into several."""
        split = self._strictest[candidate.recording]
        return ("", "") if self.of(candidate) == split else (f"other parts of its recording are in {split}", "")

    def new(self, candidates: Iterable[Candidate]) -> Iterator[tuple[str, Split]]:
        """Yield utterances that had no split, with their new split."""
        for candidate in candidates:
            split = None if candidate.split else self.of(candidate)
            if split:
                yield candidate.utterance, split

    def row(self, candidate: Candidate, *, styled: bool = False) -> DatasetRow:
        """Return a candidate's row; `styled`: with restored case and punctuation, except in test."""
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
    """Keep at most `train_limit` training clips, chosen by hash so that a larger limit only adds clips."""

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


def _over_share(
    candidates: Iterable[Candidate], belonging: _Belonging, share: float
) -> Callable[[Candidate], tuple[str, str]]:
    """Keep the most confident machine text in train, up to a share of all candidates' seconds."""

    def trains(one: Candidate) -> bool:
        return one.kind != "reference" and belonging.of(one) == "train"

    total_s = machine_s = 0.0
    sure = array("d")
    lengths_s = array("d")
    for one in candidates:
        total_s += one.seconds
        if trains(one):
            sure.append(one.confidence)
            lengths_s.append(one.seconds)
    least = -1.0  # confidence of the least certain text that is kept
    for place in sorted(range(len(sure)), key=lambda place: -sure[place]):
        machine_s += lengths_s[place]
        if machine_s > share * total_s:
            least = math.nextafter(sure[place], math.inf)
            break
    reason = f"machine text beyond {share:.0%} of the hours (usable_machine_share)"

    def why(one: Candidate) -> tuple[str, str]:
        return (reason, f"confidence {one.confidence:.3f}") if trains(one) and one.confidence < least else ("", "")

    return why


def _sessions(reader: Reader) -> dict[str, str | None]:
    table = tables.recording.c
    statement = sa.select(table.id, table.session).where(table.session.is_not(None))
    return {row.id: row.session for row in reader.connection.execute(statement)}


def _wanting(reader: Reader) -> int:
    """The number of test clips that the gate's newest verdict asked for; 0 if it asked for none."""
    e = tables.event.c
    newest = sa.select(e.payload).where(e.type == "model.compared").order_by(e.seq.desc()).limit(1)
    verdict = reader.connection.execute(newest).scalar()
    return int((verdict or {}).get("needed_utterances") or 0)


def _labels(ws: Workspace) -> Labels | None:
    """Return the text length limits of the model that a run would start from, if it is on this machine."""
    try:
        model = models.base_model(ws)
        return family(model.family).labels(models.own_folder(ws, model, checked=False))
    except (ModelError, UnknownRecord):
        return None  # training checks with its own model, and reports what it skips


def _judged(reader: Reader, judge: Judge, left_out: LeftOut, released: Container[str] = ()) -> Iterator[Candidate]:
    """Yield utterances that pass on their own, `released` ones without their split; add the rest to `left_out`."""
    for utterance, transcripts, confirmed in _utterances(reader):
        if utterance.id in released:
            utterance = replace(utterance, split=None)
        found = judge.judge(utterance, transcripts, confirmed)
        if isinstance(found, Candidate):
            yield found
        else:
            reason, detail, reviewed = found
            left_out.add(utterance.id, reason, detail, reviewed=reviewed)


def _utterances(reader: Reader) -> Iterator[tuple[Utterance, list[Transcript], str | None]]:
    """Yield every utterance with its transcripts (without word times) and the id of its confirmed machine text.

    In the order of the ids.
    """
    u, t, s = tables.utterance.c, tables.transcript.c, tables.sample.c
    statement = (
        sa.select(
            *(u.id, u.recording, u.start, u.end, u.speaker, u.language, u.split, u.status, u.quality),
            *(t.id.label("transcript"), t.kind, t.text, t.by, t.confidence, t.created),
            s.transcript.label("confirmed"),
        )
        .select_from(
            tables.utterance.outerjoin(tables.transcript).outerjoin(
                tables.sample, sa.and_(s.utterance == u.id, s.kind == "machine")
            )
        )
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
            first.confirmed,
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
    """Write rows, sorted by utterance, as a dataset.

    `new_splits` are for utterances that had none, or that are `released` from theirs; `excluded` has the counts if
    there is no list. `doubtful` utterances go to review with these reasons. Raises ConflictError if a run has begun to
    train on released utterances.
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
            # The same rows again: update the list of exclusions.
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
                    # Forgotten clips were ingested again: the dataset is complete again.
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
    """Store a dataset's rows in the catalog."""
    with manifest.open("rb") as file:
        while lines := list(islice(file, ROWS_AT_ONCE)):
            part = [
                {"dataset": dataset, **{name: row[name] for name in ("utterance", "transcript", "split")}}
                for row in map(json.loads, lines)
            ]
            insert_new(connection, tables.dataset_utterance, part)


def _send_to_review(connection: sa.Connection, dataset: str, doubtful: Mapping[str, str]) -> None:
    """Move doubtful texts to the front of the review queue; clear the doubt of texts in the dataset."""
    u, held = tables.utterance, tables.dataset_utterance.c
    connection.execute(
        sa.update(u)
        .where(u.c.doubt.is_not(None), u.c.id.in_(sa.select(held.utterance).where(held.dataset == dataset)))
        .values(doubt=None)
    )
    waiting = {"status": "transcribed", "priority": 1.0, "doubt": sa.bindparam("why")}
    statement = (
        sa.update(u)
        .where(u.c.id == sa.bindparam("doubted"), *(u.c.status != out for out in LEFT_OUT))
        .values(**waiting)
    )
    if doubtful:
        connection.execute(statement, [{"doubted": id, "why": why} for id, why in sorted(doubtful.items())])


def keep_splits(connection: sa.Connection, splits: Iterable[tuple[str, Split]]) -> None:
    """Store each utterance's split; an existing split never changes, whoever wrote it first."""
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
        return "there are no utterances yet: run `voxloop ingest PATH`, then `voxloop worker --until-idle`"
    told = "; ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
    total = reasons.total()
    subject = "the only utterance cannot" if total == 1 else f"none of {total:,} utterances can"
    return (
        f"{subject} enter a dataset ({told}): review some with `voxloop review`, or add confident machine text with "
        "--machine-text 0.9"
    )
