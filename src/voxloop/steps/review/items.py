"""What there is to review: utterances with their texts, filtered and in pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
# Up to so many utterances between dates, or of a confidence, sorting them is quicker than meeting them in order.
FEW = 5000


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """An utterance with its texts, as a reviewer sees it."""

    utterance: Utterance
    reference: Transcript | None
    hypothesis: Transcript | None  # the clean text where there is one
    versions: tuple[Transcript, ...]  # every text, oldest first, also withdrawn ones
    warnings: tuple[ReviewWarning, ...]
    file: str = ""  # the name of the recording's file
    number: int = 0  # the utterance's, which every command takes in the place of its id

    @property
    def text(self) -> str:
        """The text that counts now."""
        shown = self.reference or self.hypothesis
        return shown.text if shown else ""

    @property
    def version(self) -> str:
        """What to give as `seen` when deciding: the id of the reference shown, empty where there is none."""
        return self.reference.id if self.reference else ""

    @property
    def cursor(self) -> str:
        """Where this item stands in the listing: `page(after=…)` goes on behind it."""
        return f"{self.utterance.priority!r}@{self.utterance.id}"

    def as_dict(self) -> dict[str, Any]:
        """The fields, the text that counts, and what to give back when deciding or going on."""
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
    """Which utterances are meant; what is None does not narrow."""

    status: UtteranceStatus | None = None
    speaker: str | None = None
    language: str | None = None
    min_confidence: float | None = None  # of the machine's text, 0 to 1
    max_confidence: float | None = None
    since: float | None = None  # taken in at this time or later, seconds since the epoch
    until: float | None = None  # taken in before this time
    contains: str | None = None  # in the text that counts, whatever its case
    warning: WarningKind | None = None  # has this warning
    warned: bool | None = None  # True: has any warning; False: has none

    def __post_init__(self) -> None:
        object.__setattr__(self, "language", language_code(self.language))
        if self.warning is not None and self.warning not in WARNINGS:
            raise UsageError(f"there is no warning {self.warning!r}{nearest(self.warning, WARNINGS)}")
        for name in ("min_confidence", "max_confidence"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UsageError(f"{name} is {value}: a confidence is from 0 to 1")

    def check_waiting(self) -> None:
        """Raise UsageError where a status is asked for that nothing waiting for review has."""
        if self.status not in (None, "transcribed"):
            raise UsageError(f"status is {self.status}: only utterances that are `transcribed` wait for review")

    @property
    def sifts(self) -> bool:
        """Whether some of what the database finds has to be sifted by `matches`."""
        return bool(self.contains or self.warning) or self.warned is not None


EVERYTHING = Filters()


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """Some items of a listing."""

    items: tuple[Item, ...]
    after: str | None  # gives the next page; None: there is no more


def page(ws: Workspace, *, where: Filters = EVERYTHING, limit: int = 50, after: str | None = None) -> Page:
    """Utterances to review by priority, highest first; `after` is the cursor of the last page."""
    found: list[Item] = []
    with ws.read() as reader:
        for item in walk(reader, where, after=after, batch=limit + 1):
            if len(found) == limit:
                return Page(items=tuple(found), after=found[-1].cursor)
            found.append(item)
    return Page(items=tuple(found), after=None)


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
    """Items that match, by priority; read in batches, each from where the last one ended.

    `batch` is how many are wanted at once. `also` are further conditions on the utterance table.
    """
    table = tables.utterance
    place = _place(after) if after else None
    few, others = _few(reader, where)
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


def _next_limit(batch: int, seen: int, matched: int) -> int:
    """Utterances to read so that about as many match as are wanted still: each costs as much as one shown."""
    wanted = batch - matched % batch
    return min(BATCH, int(1.1 * wanted * seen / matched) + 4) if matched else BATCH


def _few(reader: Reader, where: Filters) -> tuple[list[sa.ColumnElement[bool]], list[sa.ColumnElement[bool]]]:
    """Conditions with an index of their own that so few utterances fulfil that these are sorted, and the other ones.

    None where too many do: they are found on a way through all in the order of the listing.
    """
    table = tables.utterance
    if where.contains:
        keys = search.few(reader.connection, where.contains)
        if keys is not None:
            text = tables.transcript.alias()
            said = search.among(text, keys), search.holds(text.c.text, where.contains)
            found = table.c.id.in_(sa.select(text.c.utterance).where(*said))
            return [found], _conditions(replace(where, contains=None), indexed=False)
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
    """The next ids of those that fulfil conditions, in the order of the listing.

    Without statistics SQLite prefers any index of an equality or of the order to that
    of what few utterances fulfil. So the columns of all other conditions stand in
    expressions here, for which there is no index.
    """
    table = tables.utterance
    priority = table.c.priority + 0.0
    behind = []
    if place is not None:
        behind = [sa.or_(priority < place[0], sa.and_(priority == place[0], table.c.id.concat("") > place[1]))]
    statement = sa.select(table.c.id).where(*conditions, *behind)
    return list(reader.connection.execute(statement.order_by(priority.desc(), table.c.id).limit(limit)).scalars())


def _behind(place: tuple[float, str] | None) -> list[list[sa.ColumnElement[bool]]]:
    """What comes after a place, in parts that an index finds each: the rest of its priority, then the lower ones."""
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
        raise UsageError(f"after is {cursor!r}: needed is the cursor that the last page gave") from error


def conditions_of(where: Filters) -> list[sa.ColumnElement[bool]]:
    """What the database judges of the filters on a way in the order of the listing; `matches` judges the rest."""
    return _conditions(where)


def _conditions(where: Filters, *, indexed: bool = True) -> list[sa.ColumnElement[bool]]:
    """As `conditions_of`; unless `indexed` in a form that no index is used for."""
    table = tables.utterance
    found: list[sa.ColumnElement[bool]] = []
    for name in ("status", "speaker", "language"):
        value = getattr(where, name)
        if value is not None:
            found.append((table.c[name] if indexed else table.c[name].concat("")) == value)
    # In expressions, so that no index of theirs is preferred to the order's.
    found += _between(table.c.ingested + 0.0, where.since, None, where.until)
    found += _between(table.c.confidence + 0.0, where.min_confidence, where.max_confidence, None)
    if where.warning == "low confidence":
        found.append(table.c.confidence + 0.0 < LOW_CONFIDENCE)
    if where.contains:
        text = tables.transcript.alias()
        found.append(sa.exists().where(text.c.utterance == table.c.id, search.holds(text.c.text, where.contains)))
    return found


def matches(item: Item, where: Filters) -> bool:
    """Whether an item that the database found matches all of the filters."""
    if where.contains and where.contains.casefold() not in item.text.casefold():
        return False
    if where.warned is not None and where.warned != bool(item.warnings):
        return False
    return where.warning is None or any(warning.kind == where.warning for warning in item.warnings)


def items_of(reader: Reader, utterances: Sequence[Utterance]) -> list[Item]:
    """Items of at most BATCH utterances, in their order."""
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
