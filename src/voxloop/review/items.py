"""What there is to review: utterances with their texts, filtered and in pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from voxloop.errors import UsageError, nearest
from voxloop.records import Transcript, Utterance, UtteranceStatus
from voxloop.review.warnings import WARNINGS, ReviewWarning, WarningKind, warnings_of
from voxloop.stores import catalog as tables
from voxloop.transcripts import latest

if TYPE_CHECKING:
    from voxloop.stores.catalog import Reader
    from voxloop.workspace import Workspace

BATCH = 200  # utterances read at once while filtering
FEW = 5000  # utterances between dates up to which sorting them is quicker than meeting them in the listing's order


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """An utterance with its texts, as a reviewer sees it."""

    utterance: Utterance
    reference: Transcript | None
    hypothesis: Transcript | None  # the clean text where there is one
    versions: tuple[Transcript, ...]  # every text, oldest first, also withdrawn ones
    warnings: tuple[ReviewWarning, ...]

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
        if self.warning is not None and self.warning not in WARNINGS:
            raise UsageError(f"there is no warning {self.warning!r}{nearest(self.warning, WARNINGS)}")
        for name in ("min_confidence", "max_confidence"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UsageError(f"{name} is {value}: a confidence is from 0 to 1")

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
        for item in walk(reader, where, after=after, batch=BATCH if where.sifts else limit + 1):
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

    `also` are further conditions on the utterance table.
    """
    table = tables.utterance
    place = _place(after) if after else None
    conditions = [*conditions_of(where), *also]
    few = _are_few(reader, where)
    batch = min(batch, BATCH)
    while True:
        found: list[Utterance] = []
        if few:
            ids = _sorted_ids(reader, where, also, place, limit=batch)
            rows = {one.id: one for one in reader.all(Utterance, table.c.id.in_(ids))} if ids else {}
            found = [rows[id] for id in ids]
        else:
            for behind in _behind(place):
                if len(found) < batch:
                    found += reader.all(
                        Utterance,
                        *conditions,
                        *behind,
                        order=(table.c.priority.desc(), table.c.id),
                        limit=batch - len(found),
                    )
        for item in items_of(reader, found):
            if matches(item, where):
                yield item
        if len(found) < batch:
            return
        place = (found[-1].priority, found[-1].id)


def _dates(where: Filters) -> list[sa.ColumnElement[bool]]:
    column = tables.utterance.c.ingested
    dates = [column >= where.since] if where.since is not None else []
    return dates + ([column < where.until] if where.until is not None else [])


def _are_few(reader: Reader, where: Filters) -> bool:
    """Whether dates leave so few utterances that they are sorted, rather than found on a way through all in order."""
    dates = _dates(where)
    if not dates:
        return False
    some = sa.select(tables.utterance.c.ingested).where(*dates).limit(FEW + 1).subquery()
    return int(reader.connection.execute(sa.select(sa.func.count()).select_from(some)).scalar_one()) <= FEW


def _sorted_ids(
    reader: Reader,
    where: Filters,
    also: Sequence[sa.ColumnElement[bool]],
    place: tuple[float, str] | None,
    *,
    limit: int,
) -> list[str]:
    """The next ids between the dates of a filter that few fall between, in the order of the listing.

    Without statistics SQLite prefers any index of an equality or of the order to that
    of the dates. So the columns of the other conditions stand in expressions here,
    for which there is no index, but which that of the dates holds.
    """
    table = tables.utterance
    priority = table.c.priority + 0.0
    behind = []
    if place is not None:
        behind = [sa.or_(priority < place[0], sa.and_(priority == place[0], table.c.id.concat("") > place[1]))]
    statement = sa.select(table.c.id).where(*_dates(where), *_conditions(where, indexed=False), *also, *behind)
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


def machine_confidence() -> sa.ScalarSelect[float | None]:
    """The confidence of an utterance's newest machine text, for a statement over the utterance table."""
    text = tables.transcript.alias()
    return (
        sa.select(text.c.confidence)
        .where(text.c.utterance == tables.utterance.c.id, text.c.kind.in_(("clean", "hypothesis")))
        .order_by(text.c.kind, text.c.created.desc(), text.c.id.desc())  # clean before hypothesis
        .limit(1)
        .correlate(tables.utterance)
        .scalar_subquery()
    )


def conditions_of(where: Filters) -> list[sa.ColumnElement[bool]]:
    """What the database judges of the filters on a way in the order of the listing; `matches` judges the rest."""
    column = tables.utterance.c.ingested + 0.0  # in an expression, so that no index of it is preferred to the order's
    dates = [column >= where.since] if where.since is not None else []
    dates += [column < where.until] if where.until is not None else []
    return [*_conditions(where), *dates]


def _conditions(where: Filters, *, indexed: bool = True) -> list[sa.ColumnElement[bool]]:
    """As `conditions_of`, without the dates; unless `indexed` in a form that no index is used for."""
    table = tables.utterance
    found: list[sa.ColumnElement[bool]] = []
    for name in ("status", "speaker", "language"):
        value = getattr(where, name)
        if value is not None:
            found.append((table.c[name] if indexed else table.c[name].concat("")) == value)
    if where.min_confidence is not None:
        found.append(machine_confidence() >= where.min_confidence)
    if where.max_confidence is not None:
        found.append(machine_confidence() <= where.max_confidence)
    if where.contains and where.contains.isascii():
        # Beyond ASCII SQLite's lower() leaves letters as they are; a superset is enough here.
        text = tables.transcript.alias()
        holds = sa.func.lower(text.c.text).contains(where.contains.lower(), autoescape=True)
        found.append(sa.exists().where(text.c.utterance == table.c.id, holds))
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
    return [
        Item(
            utterance=utterance,
            reference=latest(texts[utterance.id], "reference"),
            hypothesis=latest(texts[utterance.id], "clean") or latest(texts[utterance.id], "hypothesis"),
            versions=tuple(texts[utterance.id]),
            warnings=warnings_of(utterance, texts[utterance.id]),
        )
        for utterance in utterances
    ]


def item_of(reader: Reader, utterance: Utterance) -> Item:
    """One utterance with its texts."""
    return items_of(reader, [utterance])[0]
