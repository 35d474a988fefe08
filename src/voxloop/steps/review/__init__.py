"""Human review: the review queue, reviewers' decisions, and every version of each text.

items.py       utterances with their texts: filters, pages
warnings.py    what looks wrong with an utterance
queue.py       the order of the queue, and reservations for reviewers
decisions.py   save, accept, reject, skip, undo, bulk accept
differences.py two versions of a text side by side
exchange.py    export and import: JSONL, CSV and Label Studio
statistics.py  review progress, reviewers and speed
"""

from voxloop.steps.review.decisions import (
    BulkAccepted,
    Decision,
    ItemHistory,
    accept,
    bulk_accept,
    history,
    item_history,
    reject,
    save,
    skip,
    undo,
)
from voxloop.steps.review.differences import Difference, diff, worst
from voxloop.steps.review.exchange import Exported, Imported, Notice, export, import_reviews
from voxloop.steps.review.items import Filters, Item, Page, page, show
from voxloop.steps.review.queue import Ranking, Turn, held, next, prioritise, rank, release, renew
from voxloop.steps.review.statistics import ReviewerStats, ReviewStats, stats
from voxloop.steps.review.warnings import WARNINGS, ReviewWarning, warnings_of

__all__ = [
    "WARNINGS",
    "BulkAccepted",
    "Decision",
    "Difference",
    "Exported",
    "Filters",
    "Imported",
    "Item",
    "ItemHistory",
    "Notice",
    "Page",
    "Ranking",
    "ReviewStats",
    "ReviewWarning",
    "ReviewerStats",
    "Turn",
    "accept",
    "bulk_accept",
    "diff",
    "export",
    "held",
    "history",
    "import_reviews",
    "item_history",
    "next",
    "page",
    "prioritise",
    "rank",
    "reject",
    "release",
    "renew",
    "save",
    "show",
    "skip",
    "stats",
    "undo",
    "warnings_of",
    "worst",
]
