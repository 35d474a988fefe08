"""Utterances with their texts, filtered and in pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from voxloop.errors import UsageError, nearest
from voxloop.records import Transcript, Utterance, UtteranceStatus
from voxloop.speech.languages import language_code
from voxloop.steps.review.warnings import LOW_CONFIDENCE, WARNINGS, ReviewWarning, WarningKind, warnings_of
from voxloop.steps.transcripts import latest
from voxloop.stores import search, tables

if TYPE_CHECKING:
    from voxloop.stores.catalog import Reader
    from voxloop.workspace import Workspace

BATCH = 200  # utterances read at once while filtering
# Up to this many matches of a date or confidence range, sorting them is faster than walking the listing in order.
FEW = 5000


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """An utterance with its texts, as a reviewer sees it."""

    utterance: Utterance
    reference: Transcript | None
    hypothesis: Transcript | None  # the clean text if there is one
    versions: tuple[Transcript, ...]  # every text, oldest first, including withdrawn ones
    warnings: tuple[ReviewWarning, ...]
    file: str = ""  # name of the recording's file
    number: int = 0  # the utterance's number, which every command accepts instead of its id

    @property
    def text(self) -> str:
        """The current text."""
        shown = self.reference or self.hypothesis
        return shown.text if shown else ""

    @property
    def version(self) -> str:
        """The value for `seen` when deciding: the id of the reference, empty if there is none."""
        return self.reference.id if self.reference else ""

    @property
    def state(self) -> str:
        """A short hash of everything that a reviewer can see change; `seen` takes it, and HTTP's ETag carries it."""
        found = self.utterance
        texts = [text.id if text else "" for text in (self.reference, self.hypothesis)]
        return sha256(repr([*texts, found.status, found.speaker, found.language]).encode()).hexdigest()[:16]

    @property
    def cursor(self) -> str:
        """This item's position in the listing; `page(after=…)` continues after it."""
        return f"{self.utterance.priority!r}@{self.utterance.id}"

    def as_dict(self) -> dict[str, Any]:
        """The fields, the current text, and the values for `seen` and `after`."""
        return {
            "utterance": self.utterance,
            "number": self.number,
            "file": self.file,
            "text": self.text,
            "reference": self.reference,
            "hypothesis": self.hypothesis,
            "versions": self.versions,
            "warnings": self.warnings,
            "version": self.version,
            "cursor": self.cursor,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Filters:
    """Conditions that select utterances. None means no condition."""

    status: UtteranceStatus | None = None
    speaker: str | None = None
    language: str | None = None
    min_confidence: float | None = None  # of the machine's text, 0 to 1
    max_confidence: float | None = None
    since: float | None = None  # ingested at or after this time, seconds since the epoch
    until: float | None = None  # ingested before this time
    contains: str | None = None  # substring of the current text, ignoring case
    warning: WarningKind | None = None  # has this warning
    warned: bool | None = None  # True: has any warning; False: has none
    trained: bool | None = None  # True: a model was trained on it, here or before the import; False: none was
    session: str | None = None  # of its recording

    def __post_init__(self) -> None:
        object.__setattr__(self, "language", language_code(self.language))
        if self.warning is not None and self.warning not in WARNINGS:
            raise UsageError(f"unknown warning {self.warning!r}{nearest(self.warning, WARNINGS)}")
        for name in ("min_confidence", "max_confidence"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UsageError(f"{name} is {value}. Give a confidence from 0 to 1.")

    def check_waiting(self) -> None:
        """Raise UsageError for a status that no utterance waiting for review can have."""
        if self.status not in (None, "transcribed"):
            raise UsageError(f"status is {self.status}. Only utterances with status `transcribed` wait for review.")

    @property
    def sifts(self) -> bool:
        """Whether the rows that the database finds also have to be filtered with `matches`."""
        return bool(self.contains or self.warning) or self.warned is not None


EVERYTHING = Filters()


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """A page of a listing."""

    items: tuple[Item, ...]
    after: str | None  # cursor for the next page; None: this is the last page


def page(ws: Workspace, *, where: Filters = EVERYTHING, limit: int = 50, after: str | None = None) -> Page:
    """One page of utterances by priority, highest first; `after` is the cursor of the previous page."""
    found: list[Item] = []
    with ws.read() as reader:
        for item in walk(reader, where, after=after, batch=limit + 1):
            if len(found) == limit:
                return Page(items=tuple(found), after=found[-1].cursor)
            found.append(item)
    return Page(items=tuple(found), after=None)


def count(ws: Workspace, where: Filters = EVERYTHING) -> int:
    """How many utterances match."""
    with ws.read() as reader:
        if where.sifts:
            return sum(1 for _ in walk(reader, where))
        return reader.count(Utterance, *conditions_of(where), *_also(where))


def show(ws: Workspace, utterance: str) -> Item:
    """One utterance with all its texts. Raises UnknownRecord."""
    with ws.read() as reader:
        return item_of(reader, reader.get(Utterance, utterance))


def walk(
    reader: Reader,
    where: Filters,
    *,
    after: str | None = None,
    batch: int = BATCH,
    also: Sequence[sa.ColumnElement[bool]] = (),
) -> Iterator[Item]:
    """Iterate over matching items by priority, reading them in batches.

    `batch` is the number of items wanted at once. `also` adds conditions on the utterance table.
    """
    table = tables.utterance
    place = _place(after) if after else None
    few, others = _few(reader, where)
    also = [*also, *_also(where)]
    conditions = [*conditions_of(where), *also]
    batch = min(batch, BATCH)
    limit, seen, matched = batch, 0, 0
    while True:
        found: list[Utterance] = []
        if few:
            ids = _sorted_ids(reader, [*few, *others, *also], place, limit=limit)
            rows = {one.id: one for one in reader.all(Utterance, table.c.id.in_(ids))} if ids else {}
            found = [rows[id] for id in ids]
        else:
            for behind in _behind(place):
                if len(found) < limit:
                    found += reader.all(
                        Utterance,
                        *conditions,
                        *behind,
                        order=(table.c.priority.desc(), table.c.id),
                        limit=limit - len(found),
                    )
        seen += len(found)
        for item in items_of(reader, found):
            if matches(item, where):
                matched += 1
                yield item
        if len(found) < limit:
            return
        place = (found[-1].priority, found[-1].id)
        limit = _next_limit(batch, seen, matched)


def _also(where: Filters) -> list[sa.ColumnElement[bool]]:
    """The conditions that listings have beside `conditions_of`: deleted utterances are only shown on request."""
    table = tables.utterance
    found: list[sa.ColumnElement[bool]] = []
    if where.status != "deleted":
        found.append(table.c.status.concat("") != "deleted")  # an expression, so that no index is preferred for it
    if where.trained is not None:
        found.append(table.c.id.in_(trained()) if where.trained else table.c.id.not_in(trained()))
    return found


def _next_limit(batch: int, seen: int, matched: int) -> int:
    """How many utterances to read so that about as many match as are still wanted."""
    wanted = batch - matched % batch
    return min(BATCH, int(1.1 * wanted * seen / matched) + 4) if matched else BATCH


def _few(reader: Reader, where: Filters) -> tuple[list[sa.ColumnElement[bool]], list[sa.ColumnElement[bool]]]:
    """Indexed conditions with so few matches that sorting these is faster, and the remaining conditions.

    Both are empty if there are too many matches; then the listing is walked in order.
    """
    table = tables.utterance
    if where.contains:
        keys = search.few(reader.connection, where.contains)
        if keys is not None:
            text = tables.transcript.alias()
            said = search.among(text, keys), search.holds(text.c.text, where.contains)
            found = table.c.id.in_(sa.select(text.c.utterance).where(*said))
            return [found], _conditions(replace(where, contains=None), indexed=False)
    if where.session is not None:
        of_session = _of_session(where.session)
        some = sa.select(table.c.id).where(of_session).limit(FEW + 1).subquery()
        if reader.connection.execute(sa.select(sa.func.count()).select_from(some)).scalar_one() <= FEW:
            return [of_session], _conditions(replace(where, session=None), indexed=False)
    for column, least, most, below in (
        (table.c.ingested, where.since, None, where.until),
        (table.c.confidence, where.min_confidence, where.max_confidence, None),
    ):
        conditions = _between(column, least, most, below)
        if conditions:
            some = sa.select(column).where(*conditions).limit(FEW + 1).subquery()
            if reader.connection.execute(sa.select(sa.func.count()).select_from(some)).scalar_one() <= FEW:
                return conditions, _conditions(where, indexed=False)
    return [], []


def _between(
    column: sa.ColumnElement[float], least: float | None, most: float | None, below: float | None
) -> list[sa.ColumnElement[bool]]:
    found = [column >= least] if least is not None else []
    found += [column <= most] if most is not None else []
    return found + ([column < below] if below is not None else [])


def _sorted_ids(
    reader: Reader, conditions: Sequence[sa.ColumnElement[bool]], place: tuple[float, str] | None, *, limit: int
) -> list[str]:
    """The next ids that match the conditions, in the order of the listing.

    Without statistics, SQLite prefers any index for an equality or for the order to the index
    of the selective condition. So the columns of all other conditions are written as
    expressions, which have no index.
    """
    table = tables.utterance
    priority = table.c.priority + 0.0
    behind = []
    if place is not None:
        behind = [sa.or_(priority < place[0], sa.and_(priority == place[0], table.c.id.concat("") > place[1]))]
    statement = sa.select(table.c.id).where(*conditions, *behind)
    return list(reader.connection.execute(statement.order_by(priority.desc(), table.c.id).limit(limit)).scalars())


def _behind(place: tuple[float, str] | None) -> list[list[sa.ColumnElement[bool]]]:
    """Conditions for what follows a place, each answered by an index: the same priority first, then lower ones."""
    table = tables.utterance
    if place is None:
        return [[]]
    priority, id = place
    return [[table.c.priority == priority, table.c.id > id], [table.c.priority < priority]]


def _place(cursor: str) -> tuple[float, str]:
    priority, at, id = cursor.partition("@")
    try:
        return float(priority), id if at else ""
    except ValueError as error:
        raise UsageError(f"after is {cursor!r}. Give the cursor from the previous page.") from error


def conditions_of(where: Filters) -> list[sa.ColumnElement[bool]]:
    """The filters that the database applies while walking the listing; `matches` applies the rest."""
    return _conditions(where)


def _conditions(where: Filters, *, indexed: bool = True) -> list[sa.ColumnElement[bool]]:
    """Like `conditions_of`; unless `indexed`, in a form that uses no index."""
    table = tables.utterance
    found: list[sa.ColumnElement[bool]] = []
    for name in ("status", "speaker", "language"):
        value = getattr(where, name)
        if value is not None:
            found.append((table.c[name] if indexed else table.c[name].concat("")) == value)
    if where.session is not None:
        found.append(_of_session(where.session))
    # Written as expressions, so that their indexes are not preferred to the one for the order.
    found += _between(table.c.ingested + 0.0, where.since, None, where.until)
    found += _between(table.c.confidence + 0.0, where.min_confidence, where.max_confidence, None)
    if where.warning == "low confidence":
        found.append(table.c.confidence + 0.0 < LOW_CONFIDENCE)
    if where.contains:
        text = tables.transcript.alias()
        found.append(sa.exists().where(text.c.utterance == table.c.id, search.holds(text.c.text, where.contains)))
    return found


def _of_session(session: str) -> sa.ColumnElement[bool]:
    recording = tables.recording
    return tables.utterance.c.recording.in_(sa.select(recording.c.id).where(recording.c.session == session))


def trained(among: Sequence[str] | None = None) -> sa.CompoundSelect[Any]:
    """The ids of utterances (None: of all) that a finished run, or another program before the import, trained on."""
    held, run, elsewhere = tables.dataset_utterance, tables.run, tables.trained_elsewhere
    here = (
        sa.select(held.c.utterance)
        .join(run, run.c.dataset == held.c.dataset)
        .where(run.c.status == "completed", held.c.split == "train")
    )
    before = sa.select(elsewhere.c.utterance)
    if among is not None:
        here, before = here.where(held.c.utterance.in_(among)), before.where(elsewhere.c.utterance.in_(among))
    return sa.union(here, before)


def matches(item: Item, where: Filters) -> bool:
    """Whether an item found by the database matches all filters."""
    if where.contains and where.contains.casefold() not in item.text.casefold():
        return False
    if where.warned is not None and where.warned != bool(item.warnings):
        return False
    return where.warning is None or any(warning.kind == where.warning for warning in item.warnings)


def items_of(reader: Reader, utterances: Sequence[Utterance]) -> list[Item]:
    """The items of at most BATCH utterances, in the same order."""
    texts: dict[str, list[Transcript]] = {utterance.id: [] for utterance in utterances}
    for transcript in reader.all(Transcript, tables.transcript.c.utterance.in_(list(texts))) if texts else ():
        texts[transcript.utterance].append(transcript)
    table, recording = tables.utterance, tables.recording
    query = sa.select(table.c.id, table.c.number, recording.c.name).join(recording).where(table.c.id.in_(list(texts)))
    named = {row.id: row for row in reader.connection.execute(query)} if texts else {}
    return [
        Item(
            utterance=utterance,
            reference=latest(texts[utterance.id], "reference"),
            hypothesis=latest(texts[utterance.id], "clean") or latest(texts[utterance.id], "hypothesis"),
            versions=tuple(texts[utterance.id]),
            warnings=warnings_of(utterance, texts[utterance.id]),
            file=named[utterance.id].name,
            number=named[utterance.id].number,
        )
        for utterance in utterances
    ]


def item_of(reader: Reader, utterance: Utterance) -> Item:
    """One utterance with its texts."""
    return items_of(reader, [utterance])[0]
