"""Align: the given text of a recording longer than 30 s, given to its utterances with the help of what was heard.

The text as a whole and the hypotheses of all utterances one after the other are
aligned word by word with the fewest edits; each utterance gets the words that fall on it. Where
they agree well with what was heard, they become its reference; elsewhere a
suggestion for the person who reviews it. Nothing is cut by time or by length.
The idea is that of P. J. Moreno et al., "A recursive algorithm for the forced
alignment of very long audio segments" (ICSLP 1998), with one pass.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from voxloop.records import MAX_UTTERANCE_SAMPLES, Recording, Transcript, Utterance
from voxloop.speech import text as _text
from voxloop.steps.transcripts import latest
from voxloop.stores import tables
from voxloop.stores.jobs import News

if TYPE_CHECKING:
    from voxloop.stores.catalog import Reader
    from voxloop.workspace import Workspace

ALIGNED = "aligned-"  # begins the ids of the transcripts made here
GOOD = 0.8  # share of words that agree from which the given words are taken as what was said
FEW = 3  # words: fewer that agree may do so by chance, unless the words around them agree too
SUGGESTED = 0.3  # below it the words that fall on an utterance are as likely a neighbour's


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """The words of a given text that fall on one utterance."""

    text: str
    agreement: float  # share of the words, given and heard, that agree: 0 to 1
    edges: bool  # its first and last word were heard as given, and around few words their neighbours: it is in place


@dataclass(frozen=True, kw_only=True, slots=True)
class _Given:
    """A given text with the utterances that it falls on, and what was heard in each."""

    text: str
    utterances: tuple[Utterance, ...]
    heard: tuple[str, ...]


def align(ws: Workspace, recordings: str | Sequence[str]) -> list[Transcript]:
    """Give the texts of long recordings (and of long given segments) to their utterances; the transcripts made.

    An utterance with a reference keeps it. Words that agree with at least `GOOD` of what
    was heard, and at both ends, become the reference; from `SUGGESTED` on they are a clean text
    with that confidence, first in line for review.
    """
    ids = list(dict.fromkeys([recordings] if isinstance(recordings, str) else recordings))
    table = tables.recording
    with ws.read() as reader:
        long = reader.all(Recording, table.c.id.in_(ids), table.c.samples > MAX_UTTERANCE_SAMPLES)
    given = {one.id for one in long}
    if others := [id for id in ids if id not in given]:
        with ws.completion(*others):
            pass  # their texts have their places
    return [transcript for recording in long for transcript in _align(ws, recording)]


def _align(ws: Workspace, recording: Recording) -> list[Transcript]:
    references: list[Transcript] = []
    suggestions: list[Transcript] = []
    with ws.read() as reader:
        for given in _given(reader, recording):
            found = parts(given.text, given.heard, recording.language)
            for utterance, heard, part in zip(given.utterances, given.heard, found, strict=True):
                transcript = _transcript(utterance, heard, part)
                if transcript:
                    (references if transcript.kind == "reference" else suggestions).append(transcript)
    with ws.completion(recording.id) as tx:
        tx.add(*references, *suggestions)
        tx.change(Utterance, [one.utterance for one in references], status="reviewed")
        for one in suggestions:
            tx.change(Utterance, one.utterance, priority=2.0 - (one.confidence or 0.0))
        tx.emit_all(
            "utterance.aligned",
            [
                News(one.utterance, one.id, {"transcript": one.id, "kind": one.kind, "agreement": one.confidence})
                for one in (*references, *suggestions)
            ],
        )
    return [*references, *suggestions]


def is_aligned(transcript: str) -> bool:
    """Whether the text of this id was given to its utterance by `align`, and nobody has listened to it there."""
    return transcript.startswith(ALIGNED)


def _given(reader: Reader, recording: Recording) -> list[_Given]:
    """The texts that wait for their place. Rejected utterances and those with a reference take no part of one."""
    spans = [
        (one.start, one.end, one.text)
        for one in recording.segments
        if one.text and one.end - one.start > MAX_UTTERANCE_SAMPLES
    ]
    if recording.text and not recording.segments:
        spans = [(0, recording.samples, recording.text)]
    if not spans:
        return []
    table = tables.utterance
    utterances = reader.all(Utterance, table.c.recording == recording.id, order=table.c.start)
    transcripts: dict[str, list[Transcript]] = {utterance.id: [] for utterance in utterances}
    for transcript in reader.all(Transcript, tables.transcript.c.utterance.like(f"{recording.id}:%")):
        transcripts.setdefault(transcript.utterance, []).append(transcript)
    found = []
    for start, end, text in spans:
        inside = [one for one in utterances if start <= one.start and one.end <= end and one.status != "rejected"]
        heard = []
        for utterance in inside:
            # What a person wrote is the best there is to find the others' places by.
            newest = latest(transcripts[utterance.id], "reference") or latest(transcripts[utterance.id], "hypothesis")
            heard.append(newest)
        if not inside or any(one is None for one in heard):
            continue  # not all of it is transcribed yet
        if all(one.kind == "reference" for one in heard if one):
            continue
        found.append(
            _Given(
                text=text,
                utterances=tuple(one for one in inside),
                heard=tuple(one.text for one in heard if one),
            )
        )
    return found


def _transcript(utterance: Utterance, heard: str, part: Part) -> Transcript | None:
    if not part.text or part.agreement < SUGGESTED or utterance.status == "reviewed":
        return None
    good = part.agreement >= GOOD and part.edges
    name = hashlib.sha256(f"{utterance.id} {heard} {part.text}".encode()).hexdigest()[:26]
    return Transcript(
        id=f"{ALIGNED}{name}",
        utterance=utterance.id,
        kind="reference" if good else "clean",
        text=part.text,
        by="metadata",
        confidence=round(part.agreement, 4),
    )


def parts(text: str, heard: Sequence[str], language: str | None = None) -> list[Part]:
    """The words of `text` that fall on each of the texts `heard`, which follow each other.

    Put together in order the parts are the text. Words that were not heard at all
    go to the utterance before them, or to the first, and lower its agreement.
    """
    given = text.split()
    keys = [_key(word, language) for word in given]
    places: list[int] = []  # of each word heard, the utterance it belongs to
    said: list[str] = []
    for index, one in enumerate(heard):
        for word in one.split():
            key = _key(word, language)
            if key:
                said.append(key)
                places.append(index)
    owner = _owners([key for key in keys if key], said, places)
    words: list[list[str]] = [[] for _ in heard]
    members: list[list[int]] = [[] for _ in heard]  # places in `owner` of each utterance's words
    current = number = 0
    for word, key in zip(given, keys, strict=True):
        if key:  # a lone dash is no word: it follows the word before it
            place = owner[number][0]
            current = max(current, place) if place is not None else current
            members[current].append(number)
            number += 1
        words[current].append(word)
    equal = [agrees for _, agrees in owner]
    return [
        Part(
            text=" ".join(words[index]),
            agreement=sum(equal[one] for one in mine) / max(len(mine), places.count(index), 1),
            edges=_in_place(mine, equal),
        )
        for index, mine in enumerate(members)
    ]


def _in_place(mine: Sequence[int], equal: Sequence[bool]) -> bool:
    if not mine or not equal[mine[0]] or not equal[mine[-1]]:
        return False
    around = equal[max(0, mine[0] - 1) : mine[-1] + 2]
    return len(mine) >= FEW or all(around)


def _owners(given: Sequence[str], said: Sequence[str], places: Sequence[int]) -> list[tuple[int | None, bool]]:
    """For each given word the utterance it falls on (None: it was not heard), and whether it was heard as it is."""
    found: list[tuple[int | None, bool]] = []
    at = 0
    if not said:
        return [(None, False)] * len(given)
    for pair in _text.align(" ".join(given), " ".join(said)):
        place = places[at] if pair.hypothesis is not None else None
        at += pair.hypothesis is not None
        if pair.reference is not None:
            found.append((place, pair.operation == "equal"))
    return found


def _key(word: str, language: str | None) -> str:
    """A word as it is compared: normalised by itself, without spaces; "" for what is no word."""
    return _text.normalise(word, language).replace(" ", "_")
