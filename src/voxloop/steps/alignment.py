"""Align the text of a recording longer than 30 s with its hypotheses, to assign its words to utterances.

The text and the concatenated hypotheses of all utterances are aligned word by word with
the fewest edits; each utterance gets the words aligned with it. If they agree well with
the hypothesis, they become the utterance's reference; otherwise they become a suggestion
for the reviewer. Nothing is cut by time or by length. The idea is from P. J. Moreno
et al., "A recursive algorithm for the forced alignment of very long audio segments"
(ICSLP 1998), with one pass.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from voxloop.records import LEFT_OUT, MAX_UTTERANCE_SAMPLES, Recording, Transcript, Utterance
from voxloop.speech import text as _text
from voxloop.steps.transcripts import latest
from voxloop.stores import tables
from voxloop.stores.jobs import News

if TYPE_CHECKING:
    from voxloop.stores.catalog import Reader
    from voxloop.workspace import Workspace

ALIGNED = "aligned-"  # prefix of the ids of aligned transcripts
GOOD = 0.8  # minimum share of matching words for a reference
FEW = 3  # words: fewer may match by chance, unless the surrounding words match too
SUGGESTED = 0.3  # minimum share for a suggestion: below it, the words may well belong to a neighbour


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """The words of a given text that are aligned with one utterance."""

    text: str
    agreement: float  # share of matching words, from 0 to 1
    edges: bool  # its first and last word match, and for short parts the neighbouring words too


@dataclass(frozen=True, kw_only=True, slots=True)
class _Given:
    """A given text with the utterances that it covers, and the hypothesis of each."""

    text: str
    utterances: tuple[Utterance, ...]
    heard: tuple[str, ...]


def align(ws: Workspace, recordings: str | Sequence[str]) -> list[Transcript]:
    """Assign the texts of long recordings (and long given segments) to utterances. Return the new transcripts.

    Utterances with a reference keep it. If at least `GOOD` of the words match, including both
    ends, they become the reference; from `SUGGESTED` on they become a clean text with the
    agreement as confidence, at the front of the review queue.
    """
    ids = list(dict.fromkeys([recordings] if isinstance(recordings, str) else recordings))
    table = tables.recording
    with ws.read() as reader:
        long = reader.all(Recording, table.c.id.in_(ids), table.c.samples > MAX_UTTERANCE_SAMPLES)
    given = {one.id for one in long}
    if others := [id for id in ids if id not in given]:
        with ws.completion(*others):
            pass  # their texts need no alignment
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
    """Whether `align` assigned the text of this id, and nobody has checked it since."""
    return transcript.startswith(ALIGNED)


def _given(reader: Reader, recording: Recording) -> list[_Given]:
    """Return the texts that wait for alignment. Rejected utterances and those with a reference get no words."""
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
        inside = [one for one in utterances if start <= one.start and one.end <= end and one.status not in LEFT_OUT]
        heard = []
        for utterance in inside:
            # A human reference is the best anchor for aligning the neighbours.
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
    """Divide the words of `text` among the consecutive hypotheses `heard`.

    The parts in order make up the text. Words without a counterpart in any hypothesis
    go to the preceding utterance, or to the first, and lower its agreement.
    """
    given = text.split()
    keys = [_key(word, language) for word in given]
    places: list[int] = []  # utterance of each word of the hypotheses
    said: list[str] = []
    for index, one in enumerate(heard):
        for word in one.split():
            key = _key(word, language)
            if key:
                said.append(key)
                places.append(index)
    owner = _owners([key for key in keys if key], said, places)
    words: list[list[str]] = [[] for _ in heard]
    members: list[list[int]] = [[] for _ in heard]  # indices in `owner` of each utterance's words
    current = number = 0
    for word, key in zip(given, keys, strict=True):
        if key:  # a lone dash is not a word: it follows the preceding word
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
    """Return, for each given word, its utterance (None: no counterpart) and whether its counterpart is equal."""
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
    """Return a word as it is compared: normalised on its own, without spaces; "" if it is not a word."""
    return _text.normalise(word, language).replace(" ", "_")
