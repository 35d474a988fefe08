"""The ledger of attempts to promote: how small a p-value each must show, so that few promotions are false over time.

LORD++ (Ramdas, Yang, Wainwright & Jordan, arXiv:1710.00499): of all promotions, the expected share that is false stays
at or below `error`. An attempt pays its level from a wealth that begins at `FIRST * error`; the first promotion earns
the rest of `error`, each later one `error`. So the levels of all attempts never sum to more than `error` times the
number of promotions (at least one), whatever the p-values are. While nothing was promoted that is Bonferroni's bound,
which holds however much the attempts depend on each other, as those on one test set do.

Each sum earned is paid out in shares that fall with every attempt. When half of the test speech is new, what is left of
it is paid out from the largest share again: nothing is added, so the bound above holds.

Attempts are events of the catalog (`model.tried`), so they commit together with what they decided.
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

# Chosen by the true gains found in simulated years and in a person's first dozen attempts (docs/gate.md).
FIRST = 0.8  # share of `error` that may be spent before anything is promoted
HEAD = 0.5  # share of a sum that the first attempt after it was earned may spend
DECAY = 0.4  # of what is left after j attempts: (1 - HEAD) j^-DECAY
FRESH = 0.5  # share of a test's utterances that must be new for shares to begin again

EVENT = "model.tried"


def share(attempt: int) -> float:
    """The share of what is left of a sum that the `attempt`-th attempt (from 1) since it was earned may spend."""
    return HEAD if attempt == 1 else float(1 - (1 - 1 / attempt) ** DECAY)


@dataclass(frozen=True, slots=True)
class Pot:
    """A sum that was earned at once: what is left of it, and which attempt comes next."""

    left: float
    attempt: int = 1

    @property
    def offer(self) -> float:
        return self.left * share(self.attempt)


@dataclass(frozen=True, kw_only=True, slots=True)
class Wealth:
    """What attempts may spend. A value: `tried` and `freshened` return the wealth that follows."""

    error: float
    pots: tuple[Pot, ...]
    promotions: int = 0

    @classmethod
    def start(cls, error: float) -> Wealth:
        """The wealth before the first attempt; `error` is the share of promotions that may be false."""
        return cls(error=error, pots=(Pot(FIRST * error),))

    @property
    def level(self) -> float:
        """The p-value that the next attempt must not exceed."""
        return sum(pot.offer for pot in self.pots)

    def freshened(self) -> Wealth:
        """The wealth when the test speech is mostly new."""
        return replace(self, pots=tuple(Pot(pot.left) for pot in self.pots))

    def tried(self, *, promoted: bool) -> Wealth:
        """The wealth after an attempt at `level`."""
        pots = tuple(Pot(pot.left - pot.offer, pot.attempt + 1) for pot in self.pots)
        if promoted:
            pots += (Pot(self.error * (1.0 if self.promotions else 1 - FIRST)),)
        return replace(self, pots=pots, promotions=self.promotions + promoted)


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One attempt to promote, as the ledger keeps it."""

    key: str  # of the same models on the same test: it is charged once
    model: str
    champion: str
    dataset: str
    p: float
    level: float
    promoted: bool
    fresh: bool  # half of the test speech was new since shares began, so they began again
    created: float = 0.0  # seconds since the epoch


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The p-values that attempts must not exceed: this one, and later ones of a model like it."""

    now: float
    again: float  # the next attempt, on about the same test speech
    fresh: float  # the next attempt, on test speech of which half is new


@dataclass(frozen=True, kw_only=True, slots=True)
class Charge:
    """What an attempt costs: its limits, and whether the ledger holds it already."""

    key: str
    limits: Limits
    fresh: bool
    known: bool


def attempts(reader: Reader) -> list[Attempt]:
    """All attempts, in their order."""
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
    """What makes an attempt the same as an earlier one: the models, the test's utterances, the errors in each."""
    heard = [[row.utterance, row.words, row.errors, new.errors] for row, new in zip(before, after, strict=True)]
    identity = json.dumps([challenger, champion, heard])
    return f"sha256-{hashlib.sha256(identity.encode()).hexdigest()}"


def charge(reader: Reader, error: float, *, key: str, dataset: str, split: Split) -> Charge:
    """What an attempt would cost now. An attempt that was made before has the level that it had, and costs nothing."""
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
    """The share of a dataset's split that an earlier dataset's does not hold."""
    held = tables.dataset_utterance
    old = sa.select(held.c.utterance).where(held.c.dataset == earlier, held.c.split == split)
    mine = sa.and_(held.c.dataset == dataset, held.c.split == split)
    counted = sa.select(sa.func.count(), sa.func.count().filter(held.c.utterance.in_(old))).where(mine)
    whole, known = reader.connection.execute(counted).one()
    return 1 - known / whole if whole else 1.0


def lock(tx: Transaction) -> None:
    """Let nobody else make an attempt in this transaction's time."""
    tx.lock("gate ledger")


def enter(
    tx: Transaction, charged: Charge, *, model: str, champion: str, dataset: str, p: float, promoted: bool
) -> None:
    """Write an attempt down; one that is known already changes nothing. The caller holds `lock` since `charge`."""
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
