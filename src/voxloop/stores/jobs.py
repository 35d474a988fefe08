"""Events and the jobs they cause: emit, claim, renew, finish, fail, sweep.

A transactional outbox with leased jobs (https://microservices.io/patterns/data/transactional-outbox.html).
`emit` writes the event and one job per listening step in the transaction of the change itself.
A worker claims jobs with a lease and a token, works outside any transaction, and commits its
result, the next events and the `done` state in one transaction fenced by the token. So neither
a zombie worker nor a kill -9 can do harm.
"""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from voxloop.errors import CatalogAway, LeaseLost, UnknownRecord, counted
from voxloop.stores import tables
from voxloop.stores.catalog import Catalog, Reader, Writer, insert_keys, insert_new
from voxloop.stores.tables import DEAD, DONE, LEASED, READY, now_s

log = logging.getLogger(__name__)

CLAIM_S = 600.0
"""Maximum seconds of audio per claim; a single job may have more."""

Listeners = Mapping[str, Sequence[str]]
"""Event type -> names of the steps that it starts."""

PRUNED = "jobs of "  # prefix of the names in the table `upkeep` that record the pruning of a step's jobs
DIED = "the worker died or lost its lease on every attempt"

job = tables.job
_NOW = sa.select(now_s()).scalar_subquery()  # evaluated once per statement, so that an index can be used
_ORDER = (job.c.priority.desc(), job.c.not_before, job.c.id)  # the order in which a step's jobs are claimed


@dataclass(frozen=True, slots=True)
class Claim:
    """Jobs of one step and one priority, held by this worker until the lease expires."""

    step: str
    token: str
    jobs: tuple[str, ...]
    subjects: tuple[str, ...]  # the jobs' subjects, in the same order
    priority: int = 0
    seconds: float = 0.0  # total audio of the jobs
    more: bool = False  # whether jobs of this step may be left for others


@dataclass(frozen=True, slots=True)
class News:
    """The content of one event; `key` is its natural id, by default the subject."""

    subject: str
    key: str | None = None
    payload: dict[str, Any] | None = None
    seconds: float = 0.0  # audio behind each job that it causes, if known


class Jobs:
    """The job table of one catalog.

    `priorities` gives the priority of an event's jobs by event type (default 0). Steps in `coalesced` have at most one
    waiting job, however many events ask for it.
    """

    def __init__(
        self,
        catalog: Catalog,
        listeners: Listeners,
        *,
        lease_s: float,
        max_attempts: int,
        priorities: Mapping[str, int] | None = None,
        coalesced: Collection[str] = (),
    ) -> None:
        self.catalog = catalog
        self.listeners = listeners
        self.lease_s = lease_s
        self.max_attempts = max_attempts
        self.priorities = priorities or {}
        self.coalesced = frozenset(coalesced)
        self._swept = -math.inf  # when this process last looked for expired leases

    # Emitting --------------------------------------------------------------------------------------------------------

    def emit(
        self,
        tx: Writer,
        type: str,
        subject: str,
        *,
        key: str | None = None,
        payload: dict[str, Any] | None = None,
        seconds: float = 0.0,
        priority: int | None = None,
    ) -> bool:
        """Emit an event inside `tx`. `key` is its natural id, by default the subject. Return True if it is new."""
        return bool(self.emit_all(tx, type, [News(subject, key, payload, seconds)], priority=priority))

    def emit_all(self, tx: Writer, type: str, news: Sequence[News], *, priority: int | None = None) -> int:
        """Like `emit`, for many subjects at once. Return the number of new events."""
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
        if not new:
            return 0
        urgency = self.priorities.get(type, 0) if priority is None else priority
        rows = []
        for step in self.listeners.get(type, ()):
            told: Iterable[str] = new
            if step in self.coalesced:
                told = () if self._is_waiting(tx, step, urgency) else new[:1]
            rows += [
                waiting_row(step, id, step if step in self.coalesced else subjects[id].subject, now)
                | {"priority": urgency, "cost_s": subjects[id].seconds}
                for id in told
            ]
        insert_new(tx.connection, job, rows)
        return len(new)

    def _is_waiting(self, tx: Writer, step: str, priority: int) -> bool:
        """Whether a job of the step is waiting; if so, raise its priority to at least `priority`."""
        waiting = sa.and_(job.c.state == READY, job.c.step == step)
        if tx.connection.execute(sa.select(job.c.id).where(waiting).limit(1)).first() is None:
            return False
        more = sa.update(job).where(waiting, job.c.priority < priority).values(priority=priority)
        tx.connection.execute(more)
        return True

    # Claiming --------------------------------------------------------------------------------------------------------

    def ready(self, reader: Reader, steps: Sequence[str]) -> list[str]:
        """The steps that have a job to claim now, most urgent first, otherwise in the order given.

        One query, whatever the number of jobs. Includes jobs whose lease has expired.
        """
        firsts = [
            sa.select(sa.literal(step).label("step"), job.c.priority)
            .where(_is_free(step))
            .order_by(*_ORDER)
            .limit(1)
            .subquery()
            for step in steps
        ]
        if not firsts:
            return []
        gone = sa.select(job.c.step, job.c.priority).where(_is_expired(), job.c.step.in_(steps))
        urgency: dict[str, int] = {}
        for step, priority in reader.connection.execute(sa.union_all(*(sa.select(one) for one in firsts), gone)):
            urgency[step] = max(priority, urgency.get(step, priority))
        return sorted(urgency, key=lambda step: (-urgency[step], steps.index(step)))

    def claim(
        self, steps: Sequence[str], *, limit: int = 1, cost_s: float = CLAIM_S, subject: str | None = None
    ) -> Claim | None:
        """Lease the most urgent, oldest jobs of one of `steps` (for one subject, if given); None if there are none.

        A claim has at most `limit` jobs of one priority and `cost_s` seconds of audio; a larger job is claimed alone.
        So is a job that was tried before, so that a job that always fails does not use up its neighbours' attempts.
        """
        token = secrets.token_hex(8)
        with self.catalog.write() as tx:
            due = time.monotonic() - self._swept > self.lease_s / 3
            found = [] if due else self._free(tx, steps, limit, subject)
            if not found:  # of many workers that claim all the time, each need not look for lost leases every time
                self._swept = time.monotonic()
                self._give_back(tx)
                found = self._free(tx, steps, limit, subject)
            if not found:
                return None
            rows = _within(found, cost_s)
            ids = [row.id for row in rows]
            tx.connection.execute(
                sa.update(job)
                .where(job.c.id.in_(ids))
                .values(
                    state="leased",
                    token=token,
                    claimed=now_s(),
                    lease_until=now_s() + self.lease_s,
                    attempts=job.c.attempts + 1,
                )
            )
        first = rows[0]
        return Claim(
            step=first.step,
            token=token,
            jobs=tuple(ids),
            subjects=tuple(row.subject for row in rows),
            priority=first.priority,
            seconds=sum(row.cost_s for row in rows),
            more=len(rows) < len(found) or len(found) == limit,
        )

    def _free(self, tx: Writer, steps: Sequence[str], limit: int, subject: str | None) -> Sequence[Any]:
        """The first jobs of the most urgent of the steps that has any, locked."""
        columns = (job.c.id, job.c.subject, job.c.step, job.c.attempts, job.c.priority, job.c.cost_s)
        for step in steps if len(steps) == 1 else self.ready(tx, steps):
            free = sa.and_(_is_free(step), *([job.c.subject == subject] if subject is not None else ()))
            first = sa.select(*columns).where(free).order_by(*_ORDER).limit(limit)
            found: list[Any] = list(tx.connection.execute(first.with_for_update(skip_locked=True)))
            if found:
                return found
        return []

    def sweep(self) -> dict[str, int]:
        """Return jobs with expired leases to the queue, or mark them dead after the last attempt.

        Returns the number of requeued jobs by step. Claiming does this, too, a few times per lease.
        """
        with self.catalog.write() as tx:
            return self._give_back(tx)

    def _give_back(self, tx: Writer) -> dict[str, int]:
        lost = sa.select(job.c.id).where(_is_expired()).with_for_update(skip_locked=True)
        spent = job.c.attempts >= self.max_attempts
        rows = tx.connection.execute(
            sa.update(job)
            .where(job.c.id.in_(lost))
            .values(
                state=sa.case((spent, "dead"), else_="ready"),
                token=None,
                lease_until=None,
                not_before=now_s(),
                finished=sa.case((spent, now_s())),
                error=sa.case((spent, sa.func.coalesce(job.c.error, DIED)), else_=job.c.error),
            )
            .returning(job.c.step, job.c.state)
        )
        given: dict[str, int] = {}
        for step, state in rows.all():
            if state == "ready":
                given[step] = given.get(step, 0) + 1
        return given

    # Holding ---------------------------------------------------------------------------------------------------------

    def renew(self, claim: Claim) -> bool:
        """Renew the lease on the unfinished jobs. Return False if any of them was lost."""
        with self.catalog.write() as tx:
            return self._prolong(tx, claim) == len(claim.jobs)

    def _prolong(self, tx: Writer, claim: Claim) -> int:
        """Renew the lease. Return the number of jobs that this claim still holds or has finished."""
        held = tx.connection.execute(
            sa.update(job).where(_held(claim)).values(lease_until=now_s() + self.lease_s)
        ).rowcount
        return int(held) if held == len(claim.jobs) else self._kept(tx, claim)

    def _kept(self, tx: Writer, claim: Claim) -> int:
        """The number of the claim's jobs that nobody took over; a finished job keeps its token."""
        kept = sa.select(sa.func.count()).where(job.c.id.in_(claim.jobs), job.c.token == claim.token)
        return int(tx.connection.execute(kept).scalar_one())

    @contextmanager
    def renewing(self, claim: Claim) -> Iterator[None]:
        """Keep renewing the lease while the block runs."""
        ended = threading.Event()

        def renew() -> None:
            while not ended.wait(self.lease_s / 3):
                try:
                    if not self.renew(claim):
                        return  # lost; the step's own commit will be refused
                except CatalogAway as error:  # it may be back before the lease ends
                    log.warning("a lease was not renewed: %s", error, extra={"action": "renewal_failed"})

        thread = threading.Thread(target=renew, name=f"lease-{claim.token}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def fence(self, tx: Writer, claim: Claim) -> None:
        """Check inside `tx` that the claim still holds. Raises LeaseLost."""
        kept = self._prolong(tx, claim)
        if kept != len(claim.jobs):
            raise _lost(claim, kept, len(claim.jobs))

    # Ending ----------------------------------------------------------------------------------------------------------

    def finish(self, tx: Writer, claim: Claim, subjects: Collection[str] = ()) -> None:
        """Mark the claim's jobs done inside `tx`: those of the given subjects, or all that are left.

        Raises LeaseLost if another worker holds one.
        """
        ids = [
            id for id, subject in zip(claim.jobs, claim.subjects, strict=True) if not subjects or subject in subjects
        ]
        done = tx.connection.execute(
            sa.update(job)
            .where(_held(claim), job.c.id.in_(ids))
            .values(state="done", finished=now_s(), error=None, lease_until=None)
        ).rowcount
        if done != len(ids):
            kept = self._kept(tx, claim)
            if subjects or kept != len(claim.jobs):
                raise _lost(claim, min(kept, int(done)), len(ids))

    def fail(self, claim: Claim, error: BaseException) -> bool:
        """Requeue the unfinished jobs, or mark them dead after the last attempt. Return True if any is dead."""
        text = "".join(traceback.format_exception_only(error)).strip()
        buried = False
        with self.catalog.write() as tx:
            rows = tx.connection.execute(sa.select(job.c.id, job.c.attempts).where(_held(claim))).all()
            for row in rows:
                one = sa.update(job).where(job.c.id == row.id).values(token=None, lease_until=None, error=text)
                if row.attempts >= self.max_attempts:
                    tx.connection.execute(one.values(state="dead", finished=now_s()))
                    buried = True
                else:
                    # Exponential backoff, so that a short outage of a store does not use up the attempts.
                    delay = 0.0 if len(claim.jobs) > 1 else min(0.5 * 2**row.attempts, 60.0)
                    tx.connection.execute(one.values(state="ready", not_before=now_s() + delay))
        return buried

    def release(self, claim: Claim) -> None:
        """Requeue the unfinished jobs without counting an attempt, for instance on Ctrl-C."""
        with self.catalog.write() as tx:
            tx.connection.execute(
                sa.update(job)
                .where(_held(claim))
                .values(state="ready", token=None, lease_until=None, not_before=now_s(), attempts=job.c.attempts - 1)
            )

    def withdraw(self, tx: Writer, step: str, subject: str) -> int:
        """End a subject's open and dead jobs of a step inside `tx`, whoever holds them. Return their number."""
        ids = [
            sa.select(job.c.id).where(job.c.state == state, job.c.step == step, job.c.subject == subject)
            for state in (READY, LEASED, DEAD)
        ]
        return int(
            tx.connection.execute(
                sa.update(job)
                .where(job.c.id.in_(sa.union_all(*ids)))
                .values(state="done", token=None, lease_until=None, finished=now_s())
            ).rowcount
        )

    def retry(self, id: str | None = None) -> int:
        """Retry dead jobs (all, or the one with this id). Return their number."""
        where = [job.c.state == DEAD] + ([job.c.id == id] if id else [])
        with self.catalog.write() as tx:
            woken = tx.connection.execute(sa.update(job).where(*where).values(**_anew())).rowcount
        if id and not woken:
            raise UnknownRecord(f"no failed job {id!r}. See `voxloop jobs list --state failed`.")
        return int(woken)

    def drop(self, id: str) -> None:
        """Give a dead job up: it counts as done, so that nothing queues it again. Raises UnknownRecord."""
        with self.catalog.write() as tx:
            given_up = sa.update(job).where(job.c.id == id, job.c.state == DEAD).values(state="done")
            if not tx.connection.execute(given_up).rowcount:
                raise UnknownRecord(f"no failed job {id!r}. See `voxloop jobs list --state failed`.")

    def redo(self, tx: Writer, step: str, subjects: Iterable[str]) -> int:
        """Queue a step again inside `tx` for subjects that it has processed. Return the number of jobs.

        The newest event of each subject that starts the step gets its job again, whether that was done or pruned.
        """
        types = [type for type, steps in self.listeners.items() if step in steps]
        event = tables.event
        again = 0
        for subject in subjects:
            newest = sa.select(event.c.id).where(event.c.type.in_(types), event.c.subject == subject)
            id = tx.connection.execute(newest.order_by(event.c.seq.desc()).limit(1)).scalar()
            if id is None:
                continue
            again += insert_new(tx.connection, job, [waiting_row(step, id, subject, tx.now())])
            done = sa.and_(job.c.id == f"{step}:{id}", job.c.state == DONE)
            again += int(tx.connection.execute(sa.update(job).where(done).values(**_anew())).rowcount)
        return again

    def prune(self, older_s: float, limit: int) -> int:
        """Remove at most `limit` done jobs that ended more than `older_s` seconds ago. Return the number removed.

        Their events stay, so that emitting one again creates no new job. Jobs without an event are left to `verify`.
        """
        event = sa.exists().where(tables.event.c.id == job.c.event)
        with self.catalog.read() as reader:  # usually there are none, and nothing is written
            until = reader.now() - older_s
            old = sa.select(job.c.id).where(job.c.state == DONE, job.c.finished < until, event).limit(limit)
            if reader.connection.execute(old.limit(1)).first() is None:
                return 0
        with self.catalog.write() as tx:
            gone = sa.delete(job).where(job.c.id.in_(old)).returning(job.c.step)
            steps = list(tx.connection.execute(gone).scalars())
            for step in set(steps):
                name = f"{PRUNED}{step}"
                insert_new(tx.connection, tables.upkeep, [{"name": name}])
                mark = sa.update(tables.upkeep).where(tables.upkeep.c.name == name, tables.upkeep.c.until < until)
                tx.connection.execute(mark.values(until=until))
        return len(steps)

    def pruned(self, reader: Reader) -> dict[str, float]:
        """By step, the time before which an event's job may have been pruned."""
        name, until = tables.upkeep.c.name, tables.upkeep.c.until
        rows = reader.connection.execute(sa.select(name, until).where(name.startswith(PRUNED)))
        return {row.name.removeprefix(PRUNED): row.until for row in rows}

    # Querying --------------------------------------------------------------------------------------------------------

    def held(self, reader: Reader, step: str) -> dict[str, bool]:
        """The subjects with an open job of this step, oldest first, and whether its lease is valid now."""
        parts = [
            sa.select(job.c.subject, (job.c.lease_until > _NOW).label("alive"), job.c.created, job.c.id).where(part)
            for part in _open([step])
        ]
        found = sa.union_all(*parts).subquery()
        rows = reader.connection.execute(sa.select(found).order_by(found.c.created, found.c.id))
        return {row.subject: bool(row.alive) for row in rows}

    def counts(self, reader: Reader, *, done: bool = True) -> dict[str, dict[str, int]]:
        """The number of jobs by step and state. Without `done` jobs, the majority, this needs only small indexes."""
        states = (READY, LEASED, DEAD, *((DONE,) if done else ()))
        parts = [
            sa.select(job.c.step, state.label("state"), sa.func.count())
            .where(job.c.state == state)
            .group_by(job.c.step)
            for state in states
        ]
        counts: dict[str, dict[str, int]] = {}
        for step, state, count in reader.connection.execute(sa.union_all(*parts)):
            counts.setdefault(step, {})[state] = count
        return counts

    def waiting_audio(self, reader: Reader, steps: Sequence[str]) -> dict[str, float]:
        """Seconds of audio in the waiting and running jobs of these steps, by step."""
        parts = [sa.select(job.c.step, job.c.cost_s).where(part) for part in _open(steps)]
        if not parts:
            return {}
        found = sa.union_all(*parts).subquery()
        rows = reader.connection.execute(sa.select(found.c.step, sa.func.sum(found.c.cost_s)).group_by(found.c.step))
        return {step: float(total) for step, total in rows}

    def oldest(self, reader: Reader) -> dict[str, float]:
        """Seconds for which the oldest job of each step has been ready to run; steps without one are missing."""
        first = sa.func.min(job.c.not_before)
        rows = reader.connection.execute(
            sa.select(job.c.step, first).where(job.c.state == READY, job.c.not_before <= _NOW).group_by(job.c.step)
        ).all()
        now = reader.now()
        return {step: max(now - since, 0.0) for step, since in rows}

    def recent(self, reader: Reader, seconds: float) -> dict[str, tuple[int, float]]:
        """By step, the jobs done in the last `seconds`, and the mean seconds from their events to their ends."""
        took = sa.func.avg(job.c.finished - job.c.created)
        rows = reader.connection.execute(
            sa.select(job.c.step, sa.func.count(), took)
            .where(job.c.state == DONE, job.c.finished > now_s() - seconds)
            .group_by(job.c.step)
        )
        return {step: (count, float(mean)) for step, count, mean in rows}

    def work_done(self, reader: Reader) -> dict[str, tuple[float, float, int]]:
        """By step: seconds of work, seconds of audio and number of the done jobs that are still kept.

        Jobs that were claimed together were worked on together, so the time of a claim counts once.
        """
        claims = (
            sa.select(
                job.c.step,
                (sa.func.max(job.c.finished) - sa.func.min(job.c.claimed)).label("work_s"),
                sa.func.sum(job.c.cost_s).label("audio_s"),
                sa.func.count().label("jobs"),
            )
            .where(job.c.state == DONE, job.c.claimed.is_not(None), job.c.token.is_not(None))
            .group_by(job.c.step, job.c.token)
            .subquery()
        )
        sums = (sa.func.sum(claims.c[name]) for name in ("work_s", "audio_s", "jobs"))
        rows = reader.connection.execute(sa.select(claims.c.step, *sums).group_by(claims.c.step))
        return {row[0]: (float(row[1]), float(row[2] or 0), int(row[3])) for row in rows}

    def listed(self, reader: Reader, state: str, *, step: str | None = None, limit: int = 20) -> list[sa.Row[Any]]:
        """Jobs in a state (ready, leased, dead, done), those that are next to be claimed or ended last first."""
        kind = {"ready": READY, "leased": LEASED, "dead": DEAD, "done": DONE}[state]
        order = _ORDER if state == "ready" else (job.c.lease_until,) if state == "leased" else (job.c.finished.desc(),)
        where = [job.c.state == kind, *([job.c.step == step] if step else ())]
        return list(reader.connection.execute(sa.select(job).where(*where).order_by(*order).limit(limit)))

    def find(self, reader: Reader, id: str) -> sa.Row[Any]:
        """One job. Raises UnknownRecord."""
        found = reader.connection.execute(sa.select(job).where(job.c.id == id)).first()
        if found is None:
            raise UnknownRecord(f"no job {id!r}. See `voxloop jobs list`.")
        return found

    def dead(self, reader: Reader, *, limit: int = 20) -> list[sa.Row[Any]]:
        """Dead jobs with their errors, newest first."""
        return self.listed(reader, "dead", limit=limit)

    def open(self, reader: Reader, steps: Sequence[str], *, limit: int | None = None) -> int:
        """The number of waiting and running jobs of these steps, counting at most `limit` of each kind."""
        found = [sa.select(job.c.step).where(part).limit(limit).subquery() for part in _open(steps)]
        counts = [sa.select(sa.func.count()).select_from(one).scalar_subquery() for one in found]
        return sum(reader.connection.execute(sa.select(*counts)).one())


def waiting_row(step: str, event: str, subject: str, now: float) -> dict[str, Any]:
    """The table row of a waiting job."""
    return {
        "id": f"{step}:{event}",
        "created": now,
        "step": step,
        "event": event,
        "subject": subject,
        "state": "ready",
        "not_before": now,
        "attempts": 0,
    }


def _anew() -> dict[str, Any]:
    """The column values that reset an ended job so that it runs again."""
    return {"state": "ready", "token": None, "not_before": now_s(), "attempts": 0, "finished": None}


def _within(found: Sequence[sa.Row[Any]], cost_s: float) -> list[sa.Row[Any]]:
    """The first jobs that can be claimed together: untried, of one priority, within `cost_s` seconds of audio."""
    first = found[0]
    if first.attempts:
        return [first]
    rows: list[sa.Row[Any]] = []
    total = 0.0
    for row in found:
        total += row.cost_s
        if row.priority != first.priority or (rows and total > cost_s):
            break
        if not row.attempts:
            rows.append(row)
    return rows


def _is_free(step: str) -> sa.ColumnElement[bool]:
    return sa.and_(job.c.state == READY, job.c.step == step, job.c.not_before <= _NOW)


def _is_expired() -> sa.ColumnElement[bool]:
    return sa.and_(job.c.state == LEASED, job.c.lease_until <= _NOW)


def _open(steps: Sequence[str]) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    """The conditions for waiting and for running jobs; separate, since no index covers both."""
    ready, leased = (sa.and_(job.c.state == state, job.c.step.in_(steps)) for state in (READY, LEASED))
    return ready, leased


def _held(claim: Claim) -> sa.ColumnElement[bool]:
    return sa.and_(job.c.id.in_(claim.jobs), job.c.token == claim.token, job.c.state == "leased")


def _lost(claim: Claim, held: int, of: int) -> LeaseLost:
    return LeaseLost(f"another worker took over {of - held} of {counted(of, f'{claim.step} job')}")
