"""One decision about many utterances: accept, reject or delete them, replace words in them, and undo all of that."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa
from ulid import ULID

from voxloop.errors import UsageError, VoxloopError
from voxloop.records import Transcript
from voxloop.steps.review.decisions import (
    check_seen,
    confirm,
    delete,
    history,
    note,
    opened,
    reject,
    undo,
    write_reference,
)
from voxloop.steps.review.items import EVERYTHING, Filters, Item, page, walk
from voxloop.steps.review.queue import reviewer, turn
from voxloop.stores.tables import now_s

if TYPE_CHECKING:
    from voxloop.workspace import Workspace

Action = Literal["accept", "reject", "delete"]
MOST = 1000  # utterances in one request
PART = 100  # matching utterances decided on at a time: about a second


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """An utterance that somebody chose, as they saw it."""

    utterance: str  # id or number
    seen: str | None = None  # the item's state; None: whatever it is now


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one of the chosen utterances."""

    utterance: str
    decision: int | None = None  # seq, with which `undo_all` undoes it
    error: str | None = None  # why nothing was changed


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What became of some of the utterances that match."""

    outcomes: tuple[Outcome, ...]
    next: str | None  # cursor for the next part; None: this was the last


@dataclass(frozen=True, kw_only=True, slots=True)
class Replacement:
    """A text in which words would be replaced."""

    item: Item
    before: str
    after: str
    places: int

    def as_dict(self) -> dict[str, Any]:
        """What a preview shows, and what applying needs."""
        return {
            "id": self.item.number,
            "etag": self.item.state,
            "before": self.before,
            "after": self.after,
            "places": self.places,
        }


def decide_all(ws: Workspace, choices: Sequence[Choice], action: Action, *, by: str, reason: str = "") -> list[Outcome]:
    """Make the same decision about each of the utterances. One that has changed since it was seen is left as it is."""

    def decide(choice: Choice) -> None:
        if action == "accept":
            confirm(ws, choice.utterance, by=by, seen=choice.seen)
        elif action == "reject":
            reject(ws, choice.utterance, reason=reason, by=by, seen=choice.seen)
        else:
            delete(ws, choice.utterance, by=by, seen=choice.seen)

    return _each(ws, choices, decide)


def decide_matching(
    ws: Workspace,
    where: Filters,
    action: Action,
    *,
    by: str,
    reason: str = "",
    after: str | None = None,
    limit: int = PART,
) -> Part:
    """Make the same decision about the next `limit` utterances that match; `after` is the previous part's `next`.

    What another reviewer is working on now is left as it is.
    """
    found = page(ws, where=where, limit=limit, after=after)
    with ws.read() as reader:
        at_work = dict(
            reader.connection.execute(
                sa.select(turn.c.utterance, turn.c.by).where(
                    turn.c.until > now_s(),
                    turn.c.by != reviewer(by),
                    turn.c.utterance.in_([item.utterance.id for item in found.items]),
                )
            )
            .tuples()
            .all()
        )
    free = [
        Choice(utterance=str(item.number), seen=item.state) for item in found.items if item.utterance.id not in at_work
    ]
    left = [
        Outcome(utterance=str(item.number), error=f"{at_work[item.utterance.id]} is reviewing it now")
        for item in found.items
        if item.utterance.id in at_work
    ]
    return Part(outcomes=(*decide_all(ws, free, action, by=by, reason=reason), *left), next=found.after)


def undo_all(ws: Workspace, outcomes: Iterable[Outcome], *, by: str) -> list[Outcome]:
    """Undo the decisions that `decide_all` or `replace_all` made; those that are no longer the last ones stay."""
    found = []
    for one in outcomes:
        try:
            undone = undo(ws, one.utterance, by=by, decision=one.decision)
            found.append(Outcome(utterance=one.utterance, decision=undone.seq))
        except VoxloopError as error:
            found.append(Outcome(utterance=one.utterance, error=str(error)))
    return found


def find_all(
    ws: Workspace,
    find: str,
    replace: str,
    *,
    where: Filters = EVERYTHING,
    ignore_case: bool = False,
    whole_words: bool = False,
    limit: int = MOST,
) -> list[Replacement]:
    """The texts that `find` occurs in, with what they would become. Changes nothing."""
    pattern = _pattern(find, ignore_case=ignore_case, whole_words=whole_words)
    with ws.read() as reader:
        made = (_replacement(item, pattern, replace) for item in walk(reader, where))
        return list(islice((one for one in made if one), limit))


def replace_all(
    ws: Workspace,
    choices: Sequence[Choice],
    find: str,
    replace: str,
    *,
    by: str,
    ignore_case: bool = False,
    whole_words: bool = False,
) -> list[Outcome]:
    """Replace words in the chosen texts, as `find_all` showed.

    A reviewed text becomes a new reference. A machine's text stays to be reviewed: what is written
    is a cleaned text with the same confidence and word times.
    """
    pattern = _pattern(find, ignore_case=ignore_case, whole_words=whole_words)
    by = reviewer(by)

    def change(choice: Choice) -> None:
        with ws.completion() as tx:
            item = opened(tx, choice.utterance)
            check_seen(tx, item, by=by, seen=choice.seen)
            found = _replacement(item, pattern, replace)
            if found is None:
                raise UsageError(f"{find!r} does not occur in utterance {item.number}")
            text = " ".join(found.after.split())
            if not text:
                raise UsageError(f"nothing would be left of the text of utterance {item.number}: reject it instead")
            if item.reference:
                write_reference(tx, item, text, by=by, kind="replace")
            elif item.hypothesis:
                old = item.hypothesis
                cleaned = Transcript(
                    id=str(ULID()),
                    utterance=old.utterance,
                    kind="clean",
                    text=text,
                    by=by,
                    confidence=old.confidence,
                    words=old.words,
                    language=old.language,
                    language_probability=old.language_probability,
                )
                tx.add(cleaned)
                note(tx, item, kind="replace", by=by, transcript=cleaned.id)

    return _each(ws, choices, change)


def _each(ws: Workspace, choices: Sequence[Choice], change: Callable[[Choice], None]) -> list[Outcome]:
    if len(choices) > MOST:
        raise UsageError(f"{len(choices)} utterances are chosen; at most {MOST} at once")
    found = []
    for choice in choices:
        try:
            before = _last(ws, choice)
            change(choice)
            made = _last(ws, choice)
            # What changes nothing makes no decision, and undoing must not reach for an earlier one.
            found.append(Outcome(utterance=choice.utterance, decision=made if made != before else None))
        except VoxloopError as error:
            found.append(Outcome(utterance=choice.utterance, error=str(error)))
    return found


def _last(ws: Workspace, choice: Choice) -> int | None:
    made = history(ws, choice.utterance)
    return made[-1].seq if made else None


def _pattern(find: str, *, ignore_case: bool, whole_words: bool) -> re.Pattern[str]:
    if not find.strip():
        raise UsageError("there is nothing to find: give the words to replace")
    escaped = re.escape(find)
    return re.compile(rf"(?<!\w){escaped}(?!\w)" if whole_words else escaped, re.IGNORECASE if ignore_case else 0)


def _replacement(item: Item, pattern: re.Pattern[str], replace: str) -> Replacement | None:
    if item.utterance.status == "rejected":
        return None
    after, places = pattern.subn(lambda _: replace, item.text)
    return Replacement(item=item, before=item.text, after=after, places=places) if after != item.text else None
