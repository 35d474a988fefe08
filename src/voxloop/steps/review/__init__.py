"""Human review: the review queue, reviewers' decisions, and every version of each text.

items.py       utterances with their texts: filters, pages
warnings.py    what looks wrong with an utterance
queue.py       the order of the queue, and reservations for reviewers
decisions.py   save, accept, reject, skip, undo, bulk accept
bulk.py        one decision about many utterances; find and replace
entries.py     utterances as entries, as the page and other programs show them
differences.py two versions of a text side by side
exchange.py    export and import: JSONL, CSV and Label Studio
statistics.py  review progress, reviewers and speed
"""

from voxloop.steps.review.bulk import (
    Choice,
    Outcome,
    Part,
    Replacement,
    decide_all,
    decide_matching,
    find_all,
    replace_all,
    undo_all,
)
from voxloop.steps.review.decisions import (
    BulkAccepted,
    Decision,
    ItemHistory,
    accept,
    bulk_accept,
    confirm,
    delete,
    describe,
    history,
    item_history,
    reject,
    save,
    skip,
    undo,
)
from voxloop.steps.review.differences import Difference, diff, worst
from voxloop.steps.review.entries import (
    Entry,
    EntryPage,
    entries,
    entry,
    entry_wav,
    languages,
    peaks,
    speakers,
)
from voxloop.steps.review.exchange import Exported, Imported, Notice, export, import_reviews
from voxloop.steps.review.items import Filters, Item, Page, count, page, show
from voxloop.steps.review.queue import Ranking, Turn, held, next, prioritise, rank, release, renew, take
from voxloop.steps.review.statistics import ReviewerStats, ReviewStats, stats
from voxloop.steps.review.warnings import WARNINGS, ReviewWarning, warnings_of

__all__ = [
    "WARNINGS",
    "BulkAccepted",
    "Choice",
    "Decision",
    "Difference",
    "Entry",
    "EntryPage",
    "Exported",
    "Filters",
    "Imported",
    "Item",
    "ItemHistory",
    "Notice",
    "Outcome",
    "Page",
    "Part",
    "Ranking",
    "Replacement",
    "ReviewStats",
    "ReviewWarning",
    "ReviewerStats",
    "Turn",
    "accept",
    "bulk_accept",
    "confirm",
    "count",
    "decide_all",
    "decide_matching",
    "delete",
    "describe",
    "diff",
    "entries",
    "entry",
    "entry_wav",
    "export",
    "find_all",
    "held",
    "history",
    "import_reviews",
    "item_history",
    "languages",
    "next",
    "page",
    "peaks",
    "prioritise",
    "rank",
    "reject",
    "release",
    "renew",
    "replace_all",
    "save",
    "show",
    "skip",
    "speakers",
    "stats",
    "take",
    "undo",
    "undo_all",
    "warnings_of",
    "worst",
]
