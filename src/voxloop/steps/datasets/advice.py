"""Find what a dataset lacks for training and for a promotion, and suggest what to do."""

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
from voxloop.steps.datasets.splits import MOST_TEST_SHARE, clips_for_test, sentence
from voxloop.steps.datasets.style import Style, styles_of
from voxloop.stores import tables

if TYPE_CHECKING:
    from voxloop.workspace import Workspace

FAR_OFF = 0.1  # of all clips: how far a split may miss the requested share
SEVERAL = 20  # training clips in a language, from which val and test should have some, too

WarningKind = Literal["small test", "no validation", "languages", "shares", "heard texts", "doubtful"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetWarning:
    """Something that a dataset lacks; the dataset is still usable."""

    kind: WarningKind
    message: str  # the finding and its consequence
    remedy: str  # what to do; empty if nothing can be done


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """Warnings about a dataset, and the style of its texts."""

    warnings: tuple[DatasetWarning, ...]
    styles: dict[str, Style]  # of the references, by language
    restored: int  # clips with case and punctuation from a recogniser
    heard: dict[Split, int]  # clips in val and test whose sentence also occurs in train
    untrained: int  # training clips that no model was trained on: `--fresh-test` may draw from them


def advise(ws: Workspace, name: str | None = None) -> Advice:
    """Check the dataset of this id, or the newest of this name (None: of all). Raises UnknownRecord."""
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
    """Count clips of val and of test whose sentence also occurs in a training clip."""
    said = [(row.split, sentence(row.text)) for row in listed]
    learnt = {text for split, text in said if split == "train"}
    held: tuple[Split, ...] = ("val", "test")
    return {split: sum(mine == split and text in learnt for mine, text in said) for split in held}


def _testable(row: DatasetRow) -> bool:
    return row.kind == "reference"


def _fresh(fresh: int) -> str:
    return f"run `voxloop dataset build --fresh-test`, which draws from {_clips(fresh)} that no model was trained on"


def _small_test(clips: dict[Split, int], least: int, fresh: int, *, testable: int) -> DatasetWarning | None:
    have = clips["test"]
    if have >= least:
        return None
    # With few clips, the usual share of test is two fifths.
    more = max(clips_for_test(least) - testable, math.ceil((least - have) / MOST_TEST_SHARE / 2))
    review = f"review about {_clips(more)} more, then build again"
    return DatasetWarning(
        kind="small test",
        message=f"The test split has {_clips(have)}; a promotion needs at least {least}.",
        remedy=f"{_fresh(fresh)}; or {review}" if fresh * MOST_TEST_SHARE >= least - have else review,
    )


def _no_validation(clips: dict[Split, int], fresh: int) -> DatasetWarning | None:
    if clips["val"] or not clips["train"]:
        return None
    return DatasetWarning(
        kind="no validation",
        message="The val split is empty, so training cannot choose its best checkpoint.",
        remedy=f"{_fresh(fresh)}; or review more clips" if fresh > 1 else "review more clips, then build again",
    )


def _shares(dataset: Dataset, clips: dict[Split, int], fresh: int) -> DatasetWarning | None:
    total = sum(clips.values())
    asked = dataset.filters.get("ratios")
    # A limit on training clips, or machine text that enters only train, changes the shares.
    if not total or not asked or dataset.filters.get("train_limit") or dataset.filters.get("machine_text") is not None:
        return None
    if "ratios" in dataset.filters.get("derived", ()):
        return None
    got = [clips[split] / total for split in SPLITS]
    # In a small dataset, one clip more or less is fine.
    if all(abs(share - wanted) <= max(FAR_OFF, 1.5 / total) for share, wanted in zip(got, asked, strict=True)):
        return None
    return DatasetWarning(
        kind="shares",
        message=f"Requested {_in_percent(asked)} % train/val/test, got {_in_percent(got)} %: clips of a group "
        "(speaker, recording, sentence) share a split, and a clip never changes its split.",
        remedy=f"{_fresh(fresh)}; or review more clips, which fill up the splits that lack clips"
        if fresh > 1
        else "review more clips, which fill up the splits that lack clips",
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
    told = [f"{split} has no clips in {', '.join(languages)}" for split, languages in lacking.items() if languages]
    if not told or len(counts["train"]) < 2:
        return None
    return DatasetWarning(
        kind="languages",
        message=f"{' and '.join(told)}, but train has: errors in these languages are not measured.",
        remedy="review more clips in these languages, or build one dataset per language with --language",
    )


def _heard(clips: dict[Split, int], heard: dict[Split, int]) -> DatasetWarning | None:
    if not heard["test"]:
        return None
    return DatasetWarning(
        kind="heard texts",
        message=f"{heard['test']} of {_clips(clips['test'])} in test repeat a sentence from train: "
        "their error rate says little about new sentences.",
        remedy="record sentences that train does not contain, if the model should recognise new ones",
    )


def _doubtful(count: int) -> DatasetWarning | None:
    if not count:
        return None
    return DatasetWarning(
        kind="doubtful",
        message=f"Excluded {_clips(count)} whose text does not fit the length of the speech.",
        remedy="list them with `voxloop review list --warning 'doubtful text'`; a text that a person saves is included",
    )


def _clips(count: int) -> str:
    return "1 clip" if count == 1 else f"{count} clips"
