"""What there is to train on and to judge by, and what is missing for a verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from voxloop.errors import counted
from voxloop.models import CHAMPION
from voxloop.records import Dataset, Model, seconds
from voxloop.steps import datasets, review
from voxloop.steps.gate.promotion import comparisons
from voxloop.stores import tables

if TYPE_CHECKING:
    from voxloop.steps.gate.comparison import Comparison
    from voxloop.stores.catalog import Reader
    from voxloop.workspace import Workspace


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """Something that is missing, and what to do about it."""

    message: str
    remedy: str  # empty if nothing can be done


@dataclass(frozen=True, kw_only=True, slots=True)
class Readiness:
    """The speech of a workspace as training and the gate see it."""

    hours: float  # of all utterances
    reviewed_hours: float
    utterances: int
    reviewed: int
    waiting: int  # transcribed, not reviewed
    speakers: int
    languages: dict[str, float]  # reviewed hours by language, most first
    dataset: Dataset | None  # the newest
    fresh: int  # reviewed utterances that are not in it
    test_clips: int  # of the newest dataset
    least_test_clips: int  # that a verdict needs
    champion: str | None
    verdict: Comparison | None  # the newest
    missing: tuple[Need, ...]


def readiness(ws: Workspace) -> Readiness:
    """Count what is there, and say what a training or a verdict still needs."""
    found = review.stats(ws)
    with ws.read() as reader:
        newest = reader.all(Dataset, order=tables.dataset.c.created.desc(), limit=1)
        alias = tables.alias.c
        champion = reader.connection.execute(sa.select(alias.model).where(alias.name == CHAMPION)).scalar()
        models = reader.count(Model, tables.model.c.run.is_not(None))
        dataset = newest[0] if newest else None
        fresh = _fresh(reader, dataset)
        speakers, languages = _speakers(reader), _languages(reader)
    judged = comparisons(ws)
    verdict = judged[-1] if judged else None
    return Readiness(
        hours=found.hours,
        reviewed_hours=found.reviewed_hours,
        utterances=found.utterances,
        reviewed=found.reviewed,
        waiting=found.waiting,
        speakers=speakers,
        languages=languages,
        dataset=dataset,
        fresh=fresh,
        test_clips=dataset.clips.get("test", 0) if dataset else 0,
        least_test_clips=ws.settings.promote_min_utterances,
        champion=champion,
        verdict=verdict,
        missing=tuple(_missing(ws, found, dataset, fresh, models, verdict)),
    )


def _missing(
    ws: Workspace,
    found: review.ReviewStats,
    dataset: Dataset | None,
    fresh: int,
    models: int,
    verdict: Comparison | None,
) -> list[Need]:
    least = ws.settings.promote_min_utterances
    if not found.utterances:
        return [Need(message="There is no speech yet.", remedy="record phrases, or `voxloop ingest FOLDER`")]
    needs = []
    if not found.reviewed:
        remedy = "correct the least certain ones on the Review page"
        needs.append(Need(message=f"None of {counted(found.utterances, 'utterance')} is reviewed.", remedy=remedy))
    elif dataset is None and found.reviewed < 2 * least:
        message = (
            f"{counted(found.reviewed, 'utterance')} reviewed; a verdict needs at least {least} for testing alone."
        )
        needs.append(Need(message=message, remedy=f"review about {2 * least - found.reviewed} more"))
    if dataset is not None:
        needs += [Need(message=one.message, remedy=one.remedy) for one in datasets.advise(ws, dataset.id).warnings]
    if fresh and dataset is not None:
        remedy = "train on a new dataset to use them"
        needs.append(
            Need(message=f"{counted(fresh, 'reviewed utterance')} not in the newest dataset yet.", remedy=remedy)
        )
    if models and verdict is not None and verdict.needed_utterances and verdict.next_step:
        needs.append(
            Need(
                message=f"The last verdict was open: {verdict.utterances} of about {verdict.needed_utterances} test "
                "clips that would settle it.",
                remedy=verdict.next_step[0].lower() + verdict.next_step[1:].rstrip("."),
            )
        )
    return needs


def _fresh(reader: Reader, dataset: Dataset | None) -> int:
    """Reviewed utterances that are not in a dataset (None: all)."""
    u, d = tables.utterance.c, tables.dataset_utterance.c
    reviewed = sa.select(sa.func.count()).where(u.status == "reviewed")
    if dataset is not None:
        reviewed = reviewed.where(~sa.exists().where(d.dataset == dataset.id, d.utterance == u.id))
    return int(reader.connection.execute(reviewed).scalar_one())


def _speakers(reader: Reader) -> int:
    """Named speakers of reviewed utterances."""
    u = tables.utterance.c
    named = sa.select(sa.func.count(u.speaker.distinct())).where(u.status == "reviewed")
    return int(reader.connection.execute(named).scalar_one())


def _languages(reader: Reader) -> dict[str, float]:
    u = tables.utterance.c
    summed = sa.select(u.language, sa.func.sum(u.end - u.start)).where(u.status == "reviewed").group_by(u.language)
    hours = {(row[0] or "unknown"): seconds(int(row[1])) / 3600 for row in reader.connection.execute(summed)}
    return dict(sorted(hours.items(), key=lambda item: -item[1]))
