"""The ledger of attempts to promote: the p-value each must reach so that few promotions are false over time.

LORD++ (Ramdas, Yang, Wainwright & Jordan, arXiv:1710.00499) keeps the expected share of false promotions at or below
`error`. Each attempt spends its level from a wealth that starts at `FIRST * error`; the first promotion earns the rest
of `error`, each later one `error`. So the levels of all attempts never add up to more than `error` times the number of
promotions (at least one), whatever the p-values are. Until the first promotion this is Bonferroni's bound, which holds
even though attempts on one test set depend on each other.

Each earned sum is spent in shares that shrink with every attempt. Once half of the test speech is new, the rest of the
sum is spent from the largest share again; nothing is added, so the bound still holds.

Attempts are events of the catalog (`model.tried`), committed together with their verdict.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from voxloop.records import Split
from voxloop.stores import tables

if TYPE_CHECKING:
    from voxloop.steps.evaluation import Scored
    from voxloop.stores.catalog import Reader
    from voxloop.workspace import Transaction

# Chosen for the number of true gains found in simulated years and in a person's first dozen attempts (docs/gate.md).
FIRST = 0.8  # share of `error` that may be spent before the first promotion
HEAD = 0.5  # share of a sum that the first attempt after earning it may spend
DECAY = 0.4  # exponent: (1 - HEAD) j^-DECAY of the sum is left after j attempts
FRESH = 0.5  # share of test utterances that must be new for the shares to start over

EVENT = "model.tried"


def share(attempt: int) -> float:
    """The share of a sum's remainder that the `attempt`-th attempt (from 1) since earning it may spend."""
    return HEAD if attempt == 1 else float(1 - (1 - 1 / attempt) ** DECAY)


@dataclass(frozen=True, slots=True)
class Pot:
    """An earned sum: what is left of it, and the number of the next attempt."""

    left: float
    attempt: int = 1

    @property
    def offer(self) -> float:
        return self.left * share(self.attempt)


@dataclass(frozen=True, kw_only=True, slots=True)
class Wealth:
    """What attempts may spend. Immutable: `tried` and `freshened` return the new wealth."""

    error: float
    pots: tuple[Pot, ...]
    promotions: int = 0

    @classmethod
    def start(cls, error: float) -> Wealth:
        """The wealth before the first attempt; `error` is the allowed share of false promotions."""
        return cls(error=error, pots=(Pot(FIRST * error),))

    @property
    def level(self) -> float:
        """The p-value that the next attempt must not exceed."""
        return sum(pot.offer for pot in self.pots)

    def freshened(self) -> Wealth:
        """The wealth once at least half of the test speech is new."""
        return replace(self, pots=tuple(Pot(pot.left) for pot in self.pots))

    def tried(self, *, promoted: bool) -> Wealth:
        """The wealth after an attempt at `level`."""
        pots = tuple(Pot(pot.left - pot.offer, pot.attempt + 1) for pot in self.pots)
        if promoted:
            pots += (Pot(self.error * (1.0 if self.promotions else 1 - FIRST)),)
        return replace(self, pots=pots, promotions=self.promotions + promoted)


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One attempt to promote, as stored in the ledger."""

    key: str  # the same models on the same test share a key and are charged once
    model: str
    champion: str
    dataset: str
    p: float
    level: float
    promoted: bool
    fresh: bool  # at least half of the test speech was new, so the shares started over
    created: float = 0.0  # seconds since the epoch


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The largest p-values that attempts may have: this one and the next ones."""

    now: float
    again: float  # the next attempt, on about the same test speech
    fresh: float  # the next attempt, once half of the test speech is new


@dataclass(frozen=True, kw_only=True, slots=True)
class Charge:
    """The price of an attempt: its limits, and whether the ledger already holds it."""

    key: str
    limits: Limits
    fresh: bool
    known: bool


def attempts(reader: Reader) -> list[Attempt]:
    """All attempts, oldest first."""
    e = tables.event.c
    rows = reader.connection.execute(sa.select(e.payload, e.subject, e.created).where(e.type == EVENT).order_by(e.seq))
    return [Attempt(**row.payload, model=row.subject, created=row.created) for row in rows]


def replay(error: float, ledger: Iterable[Attempt]) -> Wealth:
    """The wealth after these attempts."""
    wealth = Wealth.start(error)
    for attempt in ledger:
        wealth = (wealth.freshened() if attempt.fresh else wealth).tried(promoted=attempt.promoted)
    return wealth


def key(challenger: str, champion: str, before: Sequence[Scored], after: Sequence[Scored]) -> str:
    """The identity of an attempt: a hash of the models, the test utterances and the errors in each."""
    heard = [[row.utterance, row.words, row.errors, new.errors] for row, new in zip(before, after, strict=True)]
    identity = json.dumps([challenger, champion, heard])
    return f"sha256-{hashlib.sha256(identity.encode()).hexdigest()}"


def charge(reader: Reader, error: float, *, key: str, dataset: str, split: Split) -> Charge:
    """The price of an attempt now. A repeated attempt keeps its earlier level and costs nothing."""
    ledger = attempts(reader)
    wealth = replay(error, ledger)
    began = next((one.dataset for one in reversed(ledger) if one.fresh), None)
    fresh = began is None or _new(reader, dataset, began, split) >= FRESH
    known = next((one for one in ledger if one.key == key), None)
    before = wealth.freshened() if fresh else wealth
    after = wealth if known else before.tried(promoted=False)
    limits = Limits(now=known.level if known else before.level, again=after.level, fresh=after.freshened().level)
    return Charge(key=key, limits=limits, fresh=fresh, known=known is not None)


def _new(reader: Reader, dataset: str, earlier: str, split: Split) -> float:
    """The share of a dataset's split that is not in the same split of an earlier dataset."""
    held = tables.dataset_utterance
    old = sa.select(held.c.utterance).where(held.c.dataset == earlier, held.c.split == split)
    mine = sa.and_(held.c.dataset == dataset, held.c.split == split)
    counted = sa.select(sa.func.count(), sa.func.count().filter(held.c.utterance.in_(old))).where(mine)
    whole, known = reader.connection.execute(counted).one()
    return 1 - known / whole if whole else 1.0


def lock(tx: Transaction) -> None:
    """Block other attempts until this transaction ends."""
    tx.lock("gate ledger")


def enter(
    tx: Transaction, charged: Charge, *, model: str, champion: str, dataset: str, p: float, promoted: bool
) -> None:
    """Record an attempt; a known one changes nothing. The caller has held `lock` since `charge`."""
    payload: dict[str, Any] = {
        "key": charged.key,
        "champion": champion,
        "dataset": dataset,
        "p": p,
        "level": charged.limits.now,
        "promoted": promoted,
        "fresh": charged.fresh,
    }
    tx.emit(EVENT, model, key=charged.key, payload=payload)
