"""What a dataset lacks for training and for a verdict, and what to do about it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import sqlalchemy as sa

from voxloop.records import SPLITS, Dataset, Split
from voxloop.steps.datasets.fresh import untrained
from voxloop.steps.datasets.rows import DatasetRow, find, rows
from voxloop.steps.datasets.splits import MOST_TEST_SHARE, sentence
from voxloop.steps.datasets.style import Style, styles_of
from voxloop.stores import tables

if TYPE_CHECKING:
    from voxloop.workspace import Workspace

FAR_OFF = 0.1  # of all clips, by which a split may miss the share that was asked for
SEVERAL = 20  # clips of a language in train from which val and test should have some, too

WarningKind = Literal["small test", "no validation", "languages", "shares", "heard texts", "doubtful"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetWarning:
    """Something that a dataset lacks; it can be used all the same."""

    kind: WarningKind
    message: str  # what is so, and what it means
    remedy: str  # what to do; empty where nothing can be done


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """What there is to say of a dataset beside its numbers."""

    warnings: tuple[DatasetWarning, ...]
    styles: dict[str, Style]  # of the references, by language
    restored: int  # clips whose case and punctuation come from a recogniser
    heard: dict[Split, int]  # clips of val and test whose sentence is said in training, too
    untrained: int  # training clips that no model has been trained on: `--fresh-test` may draw from them


def advise(ws: Workspace, name: str | None = None) -> Advice:
    """Look at the dataset of this id or the newest of this name (None: of all). Raises UnknownRecord."""
    dataset = find(ws, name)
    listed = rows(ws, dataset.id)
    heard = heard_texts(listed)
    clips: dict[Split, int] = {split: sum(row.split == split for row in listed) for split in SPLITS}
    with ws.read() as reader:
        free = untrained(reader.connection)
        u = tables.utterance.c
        doubtful = reader.connection.execute(
            sa.select(sa.func.count()).where(u.doubt.is_not(None), u.status == "transcribed")
        ).scalar_one()
    fresh = sum(row.split == "train" and row.utterance in free for row in listed)
    found = [
        _shares(dataset, clips, fresh),
        _small_test(clips, ws.settings.promote_min_utterances, fresh, testable=sum(map(_testable, listed))),
        _no_validation(clips, fresh),
        _languages(listed),
        _heard(clips, heard),
        _doubtful(doubtful),
    ]
    styles = styles_of((row.text, row.language) for row in listed if row.kind == "reference" and not row.styled)
    return Advice(
        warnings=tuple(one for one in found if one),
        styles={language or "unknown": style for language, style in styles.items()},
        restored=sum(row.styled for row in listed),
        heard=heard,
        untrained=fresh,
    )


def heard_texts(listed: Iterable[DatasetRow]) -> dict[Split, int]:
    """How many clips of val and of test say what somebody says in a training clip, too."""
    said = [(row.split, sentence(row.text)) for row in listed]
    learnt = {text for split, text in said if split == "train"}
    held: tuple[Split, ...] = ("val", "test")
    return {split: sum(mine == split and text in learnt for mine, text in said) for split in held}


def _testable(row: DatasetRow) -> bool:
    return row.kind == "reference"


def _fresh(fresh: int) -> str:
    return f"`voxloop dataset build --fresh-test` (draws from {_clips(fresh)} that no model has been trained on)"


def _small_test(clips: dict[Split, int], least: int, fresh: int, *, testable: int) -> DatasetWarning | None:
    have = clips["test"]
    if have >= least:
        return None
    # By the usual shares, of few clips two fifths are tested on.
    more = max(math.ceil(least / MOST_TEST_SHARE) - testable, math.ceil((least - have) / MOST_TEST_SHARE / 2))
    review = f"review about {_clips(more)} more, then build again"
    return DatasetWarning(
        kind="small test",
        message=f"The test split has {_clips(have)}; a promotion needs at least {least}.",
        remedy=f"{_fresh(fresh)}, or {review}" if fresh * MOST_TEST_SHARE >= least - have else review,
    )


def _no_validation(clips: dict[Split, int], fresh: int) -> DatasetWarning | None:
    if clips["val"] or not clips["train"]:
        return None
    return DatasetWarning(
        kind="no validation",
        message="The val split is empty: training cannot tell which of its checkpoints is best.",
        remedy=f"{_fresh(fresh)}, or review more clips" if fresh > 1 else "review more clips, then build again",
    )


def _shares(dataset: Dataset, clips: dict[Split, int], fresh: int) -> DatasetWarning | None:
    total = sum(clips.values())
    asked = dataset.filters.get("ratios")
    # A limit on training clips, or machine text that only trains, makes shares of the dataset other than those asked.
    if not total or not asked or dataset.filters.get("train_limit") or dataset.filters.get("machine_text") is not None:
        return None
    if "ratios" in dataset.filters.get("derived", ()):
        return None
    got = [clips[split] / total for split in SPLITS]
    # One clip more or less is no fault where there are few.
    if all(abs(share - wanted) <= max(FAR_OFF, 1.5 / total) for share, wanted in zip(got, asked, strict=True)):
        return None
    return DatasetWarning(
        kind="shares",
        message=f"Asked for {_in_percent(asked)} % train/val/test, got {_in_percent(got)} %: whole groups (speaker, "
        "recording, sentence) stay together, and what has a split keeps it.",
        remedy=f"{_fresh(fresh)}, or review more clips: new ones go where clips are missing"
        if fresh > 1
        else "review more clips: new ones go where clips are missing",
    )


def _in_percent(shares: Iterable[float]) -> str:
    return "/".join(f"{100 * share:.0f}" for share in shares)


def _languages(listed: Iterable[DatasetRow]) -> DatasetWarning | None:
    counts: dict[Split, Counter[str]] = {split: Counter() for split in SPLITS}
    for row in listed:
        counts[row.split][row.language or "unknown"] += 1
    learnt = [language for language, clips in counts["train"].most_common() if clips >= SEVERAL]
    held: tuple[Split, ...] = ("val", "test")
    lacking = {split: [one for one in learnt if not counts[split][one]] for split in held if counts[split]}
    told = [f"{split} has no clip in {', '.join(languages)}" for split, languages in lacking.items() if languages]
    if not told or len(counts["train"]) < 2:
        return None
    return DatasetWarning(
        kind="languages",
        message=f"{' and '.join(told)}, which training has: there, nothing is measured.",
        remedy="review more clips in these languages, or build a dataset for each with --language",
    )


def _heard(clips: dict[Split, int], heard: dict[Split, int]) -> DatasetWarning | None:
    if not heard["test"]:
        return None
    return DatasetWarning(
        kind="heard texts",
        message=f"{heard['test']} of {_clips(clips['test'])} in test say a sentence that training has, too: "
        "an error rate on these tells little about new sentences.",
        remedy="record sentences that training does not have, if the model is to understand new ones",
    )


def _doubtful(count: int) -> DatasetWarning | None:
    if not count:
        return None
    return DatasetWarning(
        kind="doubtful",
        message=f"{_clips(count)} {'stays' if count == 1 else 'stay'} out: the text does not fit the length of the "
        "speech.",
        remedy="`voxloop review list --warning 'doubtful text'`; a text that a person saves is taken",
    )


def _clips(count: int) -> str:
    return "1 clip" if count == 1 else f"{count} clips"
