"""What a dataset holds, in numbers: hours, speakers, languages, lengths, vocabulary."""

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

LENGTHS_S = (0.0, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 30.0)  # edges of the histogram; the last bin takes the rest
UNKNOWN = "unknown"
FREQUENT = 20  # words listed


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitSummary:
    """One split."""

    clips: int
    hours: float
    speakers: int  # known by name
    recordings: int
    words: int
    vocabulary: int  # different words, normalised
    unseen: int  # words, counted as often as they are said, that the training split does not have
    heard: int  # clips whose sentence is said in a training clip, too
    machine: int  # clips whose text no person wrote
    lengths: tuple[int, ...]  # clips by length, between the edges LENGTHS_S


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """A dataset as a whole."""

    splits: dict[Split, SplitSummary]
    speakers: dict[str, dict[Split, float]]  # hours by speaker and split, the most first
    languages: dict[str, dict[Split, float]]  # hours by language and split, the most first
    lengths_s: tuple[float, ...]
    words: int
    vocabulary: int
    frequent: tuple[tuple[str, int], ...]  # words with how often they are said
    once: int  # words said once

    @property
    def hours(self) -> float:
        return sum(split.hours for split in self.splits.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetDetails:
    """A frozen dataset with what it holds."""

    dataset: Dataset
    summary: Summary
    reviewed: int  # utterances left out although a person had written or accepted their text
    advice: Advice
    encodings: dict[str, int]  # clips by codec, rate and channels of the files they came from, the most first

    def as_dict(self) -> dict[str, Any]:
        """The dataset's fields, its summary, what it lacks, and what its source files are."""
        named = {f.name: getattr(self.dataset, f.name) for f in fields(self.dataset)}
        return named | {"summary": self.summary, "advice": self.advice, "encodings": self.encodings}


def details(ws: Workspace, name: str | None = None) -> DatasetDetails:
    """The dataset of this id or the newest of this name (None: of all), with what it holds. Raises UnknownRecord."""
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
    """Count what a dataset holds. Words are normalised as they are where error rates are counted."""
    return summary_of(rows(ws, dataset))


def summary_of(listed: Iterable[DatasetRow]) -> Summary:
    """As `summarise`, of rows at hand."""
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
