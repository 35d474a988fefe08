"""Compare two texts of an utterance, and find the utterances with the most errors."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from voxloop.errors import UsageError, counted
from voxloop.records import Transcript, Utterance
from voxloop.speech import text
from voxloop.steps.review.items import BATCH, EVERYTHING, Filters, Item, show, walk

if TYPE_CHECKING:
    from voxloop.workspace import Workspace


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """The differences between two texts of an utterance."""

    utterance: Utterance
    reference: Transcript  # the version taken as correct; can be any version
    hypothesis: Transcript
    found: text.Differences

    def as_dict(self) -> dict[str, Any]:
        """Both texts, the pieces in which they differ, and the error rates."""
        words, characters = self.found.words, self.found.characters
        return {
            "utterance": self.utterance.id,
            "reference": self.reference,
            "hypothesis": self.hypothesis,
            "normaliser": self.found.normaliser,
            "pieces": self.found.pieces,
            "words": words,
            "wer": words.rate,
            "characters": characters,
            "cer": characters.rate,
        }


def diff(
    ws: Workspace, utterance: str, *, version: str | None = None, against: str | None = None, written: bool = False
) -> Difference:
    """Compare one version of an utterance's text with another, normalised as in evaluations unless `written`.

    A version is given by its number (1 is the oldest), its id, or its kind (reference, clean,
    hypothesis), which means the newest of that kind. `version` defaults to the current machine
    text and `against` to the reference. Raises UsageError if there is no such version.
    """
    item = show(ws, utterance)
    right = _version(item, against) if against else item.reference
    heard = _version(item, version) if version else item.hypothesis
    if right is None or heard is None:
        lacks, remedy = ("reference", "against") if right is None else ("machine text", "version")
        raise UsageError(
            f"utterance {item.number} has no {lacks} to compare. Choose another of its "
            f"{counted(len(item.versions), 'version')}, such as --{remedy} 1; `voxloop review show` lists them."
        )
    return _difference(ws, item, right, heard, written=written)


def worst(ws: Workspace, *, limit: int, where: Filters = EVERYTHING, written: bool = False) -> list[Difference]:
    """The utterances whose machine text has the most word errors against the reference, worst first."""
    found: list[tuple[int, str, Item]] = []
    with ws.read() as reader:
        both = (item for item in walk(reader, where) if item.reference and item.hypothesis)
        while items := list(islice(both, BATCH)):
            counts = text.word_errors_each(
                [_comparable(ws, item, item.reference, written=written) for item in items],
                [_comparable(ws, item, item.hypothesis, written=written) for item in items],
            )
            found += [
                (count.errors, item.utterance.id, item)
                for count, item in zip(counts, items, strict=True)
                if count.errors
            ]
            found = heapq.nlargest(limit, found, key=lambda one: one[:2])
    return [
        _difference(ws, item, item.reference, item.hypothesis, written=written)
        for _, _, item in found
        if item.reference and item.hypothesis
    ]


def _difference(ws: Workspace, item: Item, right: Transcript, heard: Transcript, *, written: bool) -> Difference:
    return Difference(
        utterance=item.utterance,
        reference=right,
        hypothesis=heard,
        found=text.differences(right.text, heard.text, _language(ws, item), ws.settings.normaliser, written=written),
    )


def _comparable(ws: Workspace, item: Item, shown: Transcript | None, *, written: bool) -> str:
    made = text.as_written if written else text.normalise
    return made(shown.text if shown else "", _language(ws, item), ws.settings.normaliser)


def _language(ws: Workspace, item: Item) -> str | None:
    """The language as in evaluations: the utterance's, or else the one in the settings."""
    return item.utterance.language or ws.settings.language or None


def _version(item: Item, name: str) -> Transcript:
    versions = item.versions
    if name.isdecimal() and 0 < int(name) <= len(versions):
        return versions[int(name) - 1]
    named = [one for one in versions if name in (one.id, one.kind)]
    if not named:
        known = ", ".join(f"{number} ({one.kind})" for number, one in enumerate(versions, 1)) or "none"
        raise UsageError(f"utterance {item.number} has no version {name!r}. Its versions: {known}.")
    return max(named, key=lambda one: (one.created, one.id))
