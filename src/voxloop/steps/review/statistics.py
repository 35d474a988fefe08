"""Review progress, reviewers and speed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from voxloop.records import seconds
from voxloop.stores import tables

if TYPE_CHECKING:
    from voxloop.workspace import Workspace

SESSION_GAP_S = 1800.0  # a longer pause between two decisions of a reviewer ends the session
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
    seconds: float | None  # median time from taking an utterance to deciding; None if none came from the queue
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
    seconds: float | None  # median time from taking to deciding, over all reviewers
    sessions: int
    entries_per_session: float
    reviewers: tuple[ReviewerStats, ...]  # busiest first


def stats(ws: Workspace) -> ReviewStats:
    """Count the reviewed utterances and each reviewer's decisions."""
    utterance, decision, turn = tables.utterance, tables.review_decision, tables.review_turn
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
        columns = (decision.c.by, decision.c.kind, decision.c.created, decision.c.seconds)
        rows = reader.connection.execute(sa.select(*columns).order_by(decision.c.seq)).all()
    by_reviewer: dict[str, list[Any]] = {}
    for row in rows:
        by_reviewer.setdefault(row.by, []).append(row)
    reviewers = []
    sessions: list[int] = []
    for by, made in by_reviewer.items():
        kinds = Counter(row.kind for row in made)
        own = _sessions([row.created for row in made if row.kind in BY_HAND])
        sessions += own
        timed = [row.seconds for row in made if row.seconds is not None and row.kind in BY_HAND]
        reviewers.append(
            ReviewerStats(
                by=by,
                saved=kinds["save"],
                accepted=kinds["accept"],
                bulk_accepted=kinds["bulk accept"],
                rejected=kinds["reject"],
                skipped=kinds["skip"],
                imported=kinds["import"],
                undone=kinds["undo"],
                seconds=median(timed) if timed else None,
                total_seconds=sum(timed),
                sessions=len(own),
                entries_per_session=fmean(own) if own else 0.0,
            )
        )
    reviewers.sort(key=lambda one: (-(one.saved + one.accepted + one.rejected + one.skipped), one.by))
    everybody = [row.seconds for row in rows if row.seconds is not None and row.kind in BY_HAND]
    utterances = sum(count for count, _ in counted.values())
    decided = sum(counted.get(status, (0, 0.0))[0] for status in ("reviewed", "rejected"))
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
        seconds=median(everybody) if everybody else None,
        sessions=len(sessions),
        entries_per_session=fmean(sessions) if sessions else 0.0,
        reviewers=tuple(reviewers),
    )


def _sessions(times: Sequence[float]) -> list[int]:
    """The number of decisions in each session, from their sorted times."""
    counts: list[int] = []
    last: float | None = None
    for time in times:
        if last is None or time - last > SESSION_GAP_S:
            counts.append(0)
        counts[-1] += 1
        last = time
    return counts
