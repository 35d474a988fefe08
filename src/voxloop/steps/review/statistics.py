"""Review progress, reviewers and speed."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import sqlalchemy as sa

from voxloop.records import seconds
from voxloop.stores import tables

if TYPE_CHECKING:
    from voxloop.stores.catalog import Reader
    from voxloop.workspace import Workspace

SESSION_GAP_S = 1800.0  # a longer pause between two decisions of a reviewer ends the session
NEWEST = 500  # decisions whose times are looked at: how fast reviewers are now
BY_HAND = ("save", "accept", "reject", "skip")  # decisions made after listening


@dataclass(frozen=True, kw_only=True, slots=True)
class ReviewerStats:
    """One reviewer's work."""

    by: str
    saved: int
    accepted: int
    bulk_accepted: int
    rejected: int
    skipped: int
    imported: int
    undone: int
    seconds: float | None  # median time from taking an utterance to deciding, of the newest; None if none was timed
    total_seconds: float  # of all timed decisions
    sessions: int
    entries_per_session: float  # decisions by hand


@dataclass(frozen=True, kw_only=True, slots=True)
class ReviewStats:
    """The progress of the review."""

    utterances: int
    reviewed: int
    rejected: int
    share: float  # reviewed or rejected, as a fraction of all utterances
    waiting: int  # transcribed, not decided yet
    untranscribed: int
    hours: float  # of all utterances
    reviewed_hours: float
    taken: int  # reserved for reviewers now
    seconds: float | None  # median time from taking to deciding, of the newest by all reviewers
    sessions: int
    entries_per_session: float
    reviewers: tuple[ReviewerStats, ...]  # busiest first


def stats(ws: Workspace) -> ReviewStats:
    """Count the reviewed utterances and each reviewer's decisions.

    The database does the counting, from indexes alone: of the decisions, only the times of the newest are read.
    """
    utterance, turn = tables.utterance, tables.review_turn
    with ws.read() as reader:
        counted = {
            row[0]: (int(row[1]), seconds(int(row[2] or 0)) / 3600)
            for row in reader.connection.execute(
                sa.select(
                    utterance.c.status, sa.func.count(), sa.func.sum(utterance.c.end - utterance.c.start)
                ).group_by(utterance.c.status)
            )
            if row[0] != "deleted"
        }
        taken = reader.connection.execute(
            sa.select(sa.func.count()).select_from(turn).where(turn.c.until > tables.now_s())
        ).scalar_one()
        reviewers = _reviewers(reader)
        everybody = _median_s(reader)
    reviewers.sort(key=lambda one: (-(one.saved + one.accepted + one.rejected + one.skipped), one.by))
    utterances = sum(count for count, _ in counted.values())
    decided = sum(counted.get(status, (0, 0.0))[0] for status in ("reviewed", "rejected"))
    sessions = sum(one.sessions for one in reviewers)
    by_hand = sum(one.sessions * one.entries_per_session for one in reviewers)
    return ReviewStats(
        utterances=utterances,
        share=decided / utterances if utterances else 0.0,
        reviewed=counted.get("reviewed", (0, 0.0))[0],
        rejected=counted.get("rejected", (0, 0.0))[0],
        waiting=counted.get("transcribed", (0, 0.0))[0],
        untranscribed=counted.get("new", (0, 0.0))[0],
        hours=sum(hours for _, hours in counted.values()),
        reviewed_hours=counted.get("reviewed", (0, 0.0))[1],
        taken=int(taken),
        seconds=everybody,
        sessions=sessions,
        entries_per_session=by_hand / sessions if sessions else 0.0,
        reviewers=tuple(reviewers),
    )


def _reviewers(reader: Reader) -> list[ReviewerStats]:
    made = tables.review_decision.c
    by_hand = made.kind.in_(BY_HAND)
    kinds: dict[str, dict[str, tuple[int, float]]] = {}
    grouped = sa.select(made.by, made.kind, sa.func.count(), sa.func.sum(made.seconds)).group_by(made.by, made.kind)
    for by, kind, count, timed in reader.connection.execute(grouped):
        kinds.setdefault(by, {})[kind] = (int(count), float(timed or 0.0))
    before = sa.func.lag(made.created).over(partition_by=made.by, order_by=made.created)
    paused = sa.select(made.by, (made.created - before).label("pause")).where(by_hand).subquery()
    begins = sa.or_(paused.c.pause.is_(None), paused.c.pause > SESSION_GAP_S)
    begun = sa.select(paused.c.by, sa.func.count()).where(begins).group_by(paused.c.by)
    sessions = {by: int(count) for by, count in reader.connection.execute(begun)}
    found = []
    for by, counts in kinds.items():
        decisions = sum(counts[kind][0] for kind in BY_HAND if kind in counts)
        count = {kind: counts.get(kind, (0, 0.0))[0] for kind in (*BY_HAND, "bulk accept", "import", "undo")}
        found.append(
            ReviewerStats(
                by=by,
                saved=count["save"],
                accepted=count["accept"],
                bulk_accepted=count["bulk accept"],
                rejected=count["reject"],
                skipped=count["skip"],
                imported=count["import"],
                undone=count["undo"],
                seconds=_median_s(reader, by) if decisions else None,
                total_seconds=sum(counts[kind][1] for kind in BY_HAND if kind in counts),
                sessions=sessions.get(by, 0),
                entries_per_session=decisions / sessions[by] if by in sessions else 0.0,
            )
        )
    return found


def _median_s(reader: Reader, by: str | None = None) -> float | None:
    """The median time of the newest decisions by hand, a reviewer's or everybody's; None without a timed one."""
    made = tables.review_decision.c
    query = sa.select(made.seconds).where(made.kind.in_(BY_HAND), made.seconds.is_not(None)).limit(NEWEST)
    query = query.order_by(made.seq.desc()) if by is None else query.where(made.by == by).order_by(made.created.desc())
    times = reader.connection.execute(query).scalars().all()
    return median(times) if times else None
