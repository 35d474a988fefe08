"""Events and the jobs they cause: emit, claim, renew, finish, fail, sweep.

An outbox with leased jobs (https://microservices.io/patterns/data/transactional-outbox.html).
`emit` writes the event and one job for each step that listens, inside the
transaction of the change it tells of. A worker claims jobs with a lease and a
token, works outside any transaction, and commits its result, the next events
and `done` in one transaction fenced by the token: a zombie or a kill -9 changes nothing.
"""

from __future__ import annotations

import secrets
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from voxloop.errors import LeaseLost, UnknownRecord
from voxloop.stores import tables
from voxloop.stores.catalog import Catalog, Reader, Writer, insert_keys, insert_new
from voxloop.stores.tables import now_s

Listeners = Mapping[str, Sequence[str]]
"""Event type -> names of the steps that it wakes."""

job = tables.job


@dataclass(frozen=True, slots=True)
class Claim:
    """Jobs of one step held by this worker until the lease runs out."""

    step: str
    token: str
    jobs: tuple[str, ...]
    subjects: tuple[str, ...]  # of the jobs, in the same order


@dataclass(frozen=True, slots=True)
class News:
    """What one event of many tells of; `key` is its natural id, by default the subject."""

    subject: str
    key: str | None = None
    payload: dict[str, Any] | None = None


class Jobs:
    """The job table of one catalog."""

    def __init__(self, catalog: Catalog, listeners: Listeners, *, lease_s: float, max_attempts: int) -> None:
        self.catalog = catalog
        self.listeners = listeners
        self.lease_s = lease_s
        self.max_attempts = max_attempts

    def emit(
        self, tx: Writer, type: str, subject: str, *, key: str | None = None, payload: dict[str, Any] | None = None
    ) -> bool:
        """Tell of an event inside `tx`. `key` is its natural id, by default the subject; True where it is new."""
        return bool(self.emit_all(tx, type, [News(subject, key, payload)]))

    def emit_all(self, tx: Writer, type: str, news: Sequence[News]) -> int:
        """As `emit`, for many subjects at once; the number that was new."""
        if not news:
            return 0
        now = tx.now()
        subjects = {f"{type}:{one.key or one.subject}": one for one in news}
        new = insert_keys(
            tx.connection,
            tables.event,
            [
                {
                    "id": id,
                    "created": now,
                    "type": type,
                    "subject": one.subject,
                    "payload": one.payload or {},
                    "published": False,
                }
                for id, one in subjects.items()
            ],
            tables.event.c.id,
        )
        insert_new(
            tx.connection,
            job,
            [
                {
                    "id": f"{step}:{id}",
                    "created": now,
                    "step": step,
                    "event": id,
                    "subject": subjects[id].subject,
                    "state": "ready",
                    "run_at": now,
                    "attempts": 0,
                }
                for id in new
                for step in self.listeners.get(type, ())
            ],
        )
        return len(new)

    def claim(self, steps: Sequence[str], *, limit: int = 1, subject: str | None = None) -> Claim | None:
        """Lease the oldest waiting jobs of one of `steps` (of one subject), at most `limit`; None where nothing waits.

        A job that was tried before is claimed alone, so that one that cannot be
        done does not spend the attempts of its neighbours.
        """
        free = sa.and_(job.c.state.in_(("ready", "leased")), job.c.run_at <= now_s(), job.c.step.in_(steps))
        if subject is not None:
            free = sa.and_(free, job.c.subject == subject)
        token = secrets.token_hex(8)
        with self.catalog.write() as tx:
            first = tx.connection.execute(
                sa.select(job).where(free).order_by(job.c.run_at, job.c.id).limit(1).with_for_update(skip_locked=True)
            ).first()
            if first is None:
                return None
            rows = [first]
            if first.attempts == 0 and limit > 1:
                rows = list(
                    tx.connection.execute(
                        sa.select(job)
                        .where(free, job.c.step == first.step, job.c.attempts == 0)
                        .order_by(job.c.run_at, job.c.id)
                        .limit(limit)
                        .with_for_update(skip_locked=True)
                    )
                )
            if first.attempts >= self.max_attempts:
                # Its last worker died without a word: the attempts are spent.
                self._bury(tx, first.id, first.error or "the worker died or lost its lease on every attempt")
                return None
            ids = [row.id for row in rows]
            tx.connection.execute(
                sa.update(job)
                .where(job.c.id.in_(ids))
                .values(state="leased", token=token, run_at=now_s() + self.lease_s, attempts=job.c.attempts + 1)
            )
        return Claim(first.step, token, tuple(ids), tuple(row.subject for row in rows))

    def renew(self, claim: Claim) -> bool:
        """Prolong the lease; False where it was lost."""
        with self.catalog.write() as tx:
            held = tx.connection.execute(
                sa.update(job).where(self._held(claim)).values(run_at=now_s() + self.lease_s)
            ).rowcount
        return held == len(claim.jobs)

    @contextmanager
    def renewing(self, claim: Claim) -> Iterator[None]:
        """Prolong the lease while the block runs."""
        ended = threading.Event()

        def renew() -> None:
            while not ended.wait(self.lease_s / 3):
                if not self.renew(claim):
                    return  # lost: the step's own commit will be refused

        thread = threading.Thread(target=renew, name=f"lease-{claim.token}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def fence(self, tx: Writer, claim: Claim) -> None:
        """Make sure, inside `tx`, that the claim still holds. Raises LeaseLost."""
        held = tx.connection.execute(
            sa.update(job).where(self._held(claim)).values(run_at=now_s() + self.lease_s)
        ).rowcount
        if held != len(claim.jobs):
            raise LeaseLost(f"{held} of {len(claim.jobs)} {claim.step} jobs are still held: another worker took over")

    def finish(self, tx: Writer, claim: Claim) -> None:
        """Mark the claim's jobs done inside `tx`. Raises LeaseLost where another worker holds one."""
        done = tx.connection.execute(
            sa.update(job).where(self._held(claim)).values(state="done", finished=now_s(), error=None)
        ).rowcount
        if done != len(claim.jobs):
            raise LeaseLost(f"{done} of {len(claim.jobs)} {claim.step} jobs are still held: another worker took over")

    def fail(self, claim: Claim, error: BaseException) -> bool:
        """Give failed jobs back to be tried again, or bury them after the last attempt; True where buried."""
        text = "".join(traceback.format_exception_only(error)).strip()
        buried = False
        with self.catalog.write() as tx:
            rows = tx.connection.execute(sa.select(job).where(self._held(claim))).all()
            for row in rows:
                if row.attempts >= self.max_attempts and len(claim.jobs) == 1:
                    self._bury(tx, row.id, text)
                    buried = True
                else:
                    # Doubling waits, so that a store that is away for a moment does not use up the attempts.
                    delay = 0.0 if len(claim.jobs) > 1 else min(0.5 * 2**row.attempts, 60.0)
                    tx.connection.execute(
                        sa.update(job)
                        .where(job.c.id == row.id)
                        .values(state="ready", token=None, run_at=now_s() + delay, error=text)
                    )
        return buried

    def release(self, claim: Claim) -> None:
        """Give jobs back untried, as on Ctrl-C."""
        with self.catalog.write() as tx:
            tx.connection.execute(
                sa.update(job)
                .where(self._held(claim))
                .values(state="ready", token=None, run_at=now_s(), attempts=job.c.attempts - 1)
            )

    def withdraw(self, tx: Writer, step: str, subject: str) -> int:
        """End a subject's open and dead jobs of a step inside `tx`, whoever holds them; the number ended."""
        return int(
            tx.connection.execute(
                sa.update(job)
                .where(job.c.step == step, job.c.subject == subject, job.c.state != "done")
                .values(state="done", token=None, finished=now_s())
            ).rowcount
        )

    def held(self, reader: Reader, step: str) -> dict[str, bool]:
        """Subjects with an open job of this step, oldest first, and whether somebody holds a lease on it now."""
        alive = sa.and_(job.c.state == "leased", job.c.run_at > now_s())
        rows = reader.connection.execute(
            sa.select(job.c.subject, alive)
            .where(job.c.step == step, job.c.state.in_(("ready", "leased")))
            .order_by(job.c.created, job.c.id)
        )
        return {subject: bool(now) for subject, now in rows}

    def retry(self, id: str | None = None) -> int:
        """Wake dead jobs (all, or the one with this id); the number woken."""
        where = [job.c.state == "dead"] + ([job.c.id == id] if id else [])
        with self.catalog.write() as tx:
            woken = tx.connection.execute(
                sa.update(job).where(*where).values(state="ready", token=None, run_at=now_s(), attempts=0)
            ).rowcount
        if id and not woken:
            raise UnknownRecord(f"no dead job {id!r}; `voxloop status` lists them")
        return int(woken)

    def counts(self, reader: Reader, *, done: bool = True) -> dict[str, dict[str, int]]:
        """Jobs by step and state. Without the `done` ones, which are all that ever was, it is quick at any size."""
        states = ("ready", "leased", "dead", *(("done",) if done else ()))
        rows = reader.connection.execute(
            sa.select(job.c.step, job.c.state, sa.func.count())
            .where(job.c.state.in_(states))
            .group_by(job.c.step, job.c.state)
        )
        counts: dict[str, dict[str, int]] = {}
        for step, state, count in rows:
            counts.setdefault(step, {})[state] = count
        return counts

    def dead(self, reader: Reader, *, limit: int = 20) -> list[sa.Row[Any]]:
        """Buried jobs with their errors, newest first."""
        statement = sa.select(job).where(job.c.state == "dead").order_by(job.c.finished.desc()).limit(limit)
        return list(reader.connection.execute(statement))

    def open(self, reader: Reader, steps: Sequence[str]) -> int:
        """Jobs of these steps that are waiting or being worked on."""
        statement = (
            sa.select(sa.func.count())
            .select_from(job)
            .where(job.c.state.in_(("ready", "leased")), job.c.step.in_(steps))
        )
        return int(reader.connection.execute(statement).scalar_one())

    def _held(self, claim: Claim) -> sa.ColumnElement[bool]:
        return sa.and_(job.c.id.in_(claim.jobs), job.c.token == claim.token, job.c.state == "leased")

    def _bury(self, tx: Writer, id: str, error: str) -> None:
        tx.connection.execute(
            sa.update(job).where(job.c.id == id).values(state="dead", token=None, finished=now_s(), error=error)
        )
