"""Summarise a dataset: hours, speakers, languages, clip lengths, vocabulary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from voxloop.records import SPLITS, Dataset, Split
from voxloop.speech import text as _text
from voxloop.steps.datasets.advice import Advice, advise, heard_texts
from voxloop.steps.datasets.rows import DatasetRow, exclusions, find, rows
from voxloop.steps.recordings.listing import encodings

if TYPE_CHECKING:
    from voxloop.workspace import Workspace

LENGTHS_S = (0.0, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 30.0)  # histogram edges; the last bin is open-ended
UNKNOWN = "unknown"
FREQUENT = 20  # words listed


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitSummary:
    """The summary of one split."""

    clips: int
    hours: float
    speakers: int  # named speakers
    recordings: int
    words: int
    vocabulary: int  # different words, normalised
    unseen: int  # word tokens that do not occur in train
    heard: int  # clips whose sentence also occurs in train
    machine: int  # clips with machine text
    lengths: tuple[int, ...]  # clips by length, with the edges LENGTHS_S


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """The summary of a whole dataset."""

    splits: dict[Split, SplitSummary]
    speakers: dict[str, dict[Split, float]]  # hours by speaker and split, most hours first
    languages: dict[str, dict[Split, float]]  # hours by language and split, most hours first
    lengths_s: tuple[float, ...]
    words: int
    vocabulary: int
    frequent: tuple[tuple[str, int], ...]  # words with their counts
    once: int  # words that occur once

    @property
    def hours(self) -> float:
        return sum(split.hours for split in self.splits.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetDetails:
    """A frozen dataset with its summary and warnings."""

    dataset: Dataset
    summary: Summary
    reviewed: int  # excluded utterances whose text a person wrote or accepted
    advice: Advice
    encodings: dict[str, int]  # clips by codec, rate and channels of their source files, most clips first

    def as_dict(self) -> dict[str, Any]:
        """Return the dataset's fields, its summary, its warnings and its source encodings."""
        named = {f.name: getattr(self.dataset, f.name) for f in fields(self.dataset)}
        return named | {"summary": self.summary, "advice": self.advice, "encodings": self.encodings}


def details(ws: Workspace, name: str | None = None) -> DatasetDetails:
    """Return the dataset of this id, or the newest of this name (None: of all), in detail. Raises UnknownRecord."""
    dataset = find(ws, name)
    reviewed = len(exclusions(ws, dataset.id, reviewed=True))
    clips = Counter(row.recording for row in rows(ws, dataset.id))
    with ws.read() as reader:
        held = encodings(reader, clips)
    return DatasetDetails(
        dataset=dataset,
        summary=summarise(ws, dataset.id),
        reviewed=reviewed,
        advice=advise(ws, dataset.id),
        encodings=held,
    )


def summarise(ws: Workspace, dataset: str) -> Summary:
    """Summarise a dataset. Words are normalised as for error rates."""
    return summary_of(rows(ws, dataset))


def summary_of(listed: Iterable[DatasetRow]) -> Summary:
    """Summarise rows, as `summarise` does for a dataset."""
    words: dict[Split, Counter[str]] = {split: Counter() for split in SPLITS}
    held: dict[Split, list[DatasetRow]] = {split: [] for split in SPLITS}
    speakers: dict[str, dict[Split, float]] = {}
    languages: dict[str, dict[Split, float]] = {}
    for row in listed:
        held[row.split].append(row)
        words[row.split].update(_text.normalise(row.text, row.language).split())
        for hours, name in ((speakers, row.speaker or UNKNOWN), (languages, row.language or UNKNOWN)):
            mine = hours.setdefault(name, dict.fromkeys(SPLITS, 0.0))
            mine[row.split] += row.duration / 3600
    heard = heard_texts(row for mine in held.values() for row in mine)
    everything = sum(words.values(), Counter())
    return Summary(
        splits={split: _split(held[split], words[split], words["train"], heard.get(split, 0)) for split in SPLITS},
        speakers=_most_first(speakers),
        languages=_most_first(languages),
        lengths_s=LENGTHS_S,
        words=everything.total(),
        vocabulary=len(everything),
        frequent=tuple(sorted(everything.items(), key=lambda item: (-item[1], item[0]))[:FREQUENT]),
        once=sum(count == 1 for count in everything.values()),
    )


def _split(held: list[DatasetRow], words: Counter[str], learnt: Counter[str], heard: int) -> SplitSummary:
    lengths = [0] * len(LENGTHS_S)
    for row in held:
        lengths[max(index for index, edge in enumerate(LENGTHS_S) if row.duration >= edge)] += 1
    return SplitSummary(
        clips=len(held),
        hours=sum(row.duration for row in held) / 3600,
        speakers=len({row.speaker for row in held if row.speaker}),
        recordings=len({row.recording for row in held}),
        words=words.total(),
        vocabulary=len(words),
        unseen=sum(count for word, count in words.items() if word not in learnt),
        heard=heard,
        machine=sum(row.kind != "reference" for row in held),
        lengths=tuple(lengths),
    )


def _most_first(hours: dict[str, dict[Split, float]]) -> dict[str, dict[Split, float]]:
    return dict(sorted(hours.items(), key=lambda item: (-sum(item[1].values()), item[0])))
