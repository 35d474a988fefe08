"""Assign each utterance to a split, permanently.

Utterances that must share a split form a group. Whole groups are assigned in the order
of a hash until each split has its share. A group is, by the first of these that fills
every split:

1. a speaker, with others in the same recordings, if there are enough speakers;
2. a session, with clips elsewhere that repeat one of its sentences;
3. a recording, with others that contain the same sentence, so that test has new sentences
   (a sentence read twice, or a lossy copy, counts once). If that leaves too few groups,
   sentences are compared only within each speaker;
4. a session; 5. a recording: a few commands, each said many times, cannot be split
   by sentence.

An utterance keeps its split, and the rest of its group follows: test stays test.
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Generic, Protocol, TypeVar

from voxloop.records import SPLITS, Split

Ratios = tuple[float, float, float]

Id = TypeVar("Id", bound=Hashable)
IdOf = TypeVar("IdOf", bound=Hashable, covariant=True)

MIN_SPEAKERS = 10  # named speakers; with fewer, a split would have only one or two voices
MANY_TEXTS = 30  # groups by sentence that suffice, however often each is said
TEXT_SHARE = 0.5  # of the recordings: least number of groups by sentence, if that is fewer

SPREAD, SPREAD_BY_SPEAKER = 1.25, 3.0  # maximum group size relative to what a split lacks: speakers are large groups
ENOUGH, ENOUGH_BY_SPEAKER = 0.9, 0.5  # share of the wanted test clips that a grouping must reach

# Default shares, by the number of clips that may enter test.
TEST_SHARE, TEST_CLIPS, MOST_TEST_SHARE = 0.2, 100, 0.4  # a fifth, up to 100 clips; with few clips up to two fifths
VAL_SHARE, VAL_CLIPS = 0.12, 50
LEAST_SHARE = 0.04  # minimum of val and of test, however many clips there are


class Placed(Protocol[IdOf]):
    """Anything that gets a split: an utterance, or several of one recording and speaker with the same split or none."""

    @property
    def id(self) -> IdOf: ...
    @property
    def recording(self) -> str: ...
    @property
    def speaker(self) -> str | None: ...
    @property
    def split(self) -> Split | None: ...


Said = Callable[[], Iterable[tuple[str, str | None, str]]]
"""Yields (recording, speaker, text) of every utterance, afresh at each call."""

STRICTEST: tuple[Split, ...] = ("test", "val", "train")  # test clips must never be trained on


def position(key: str) -> float:
    """Return a hash of `key` as a number in [0, 1), the same on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def strictest(splits: set[Split]) -> Split:
    """Return the strictest of several splits: test, then val, then train."""
    return next(split for split in STRICTEST if split in splits)


def sentence(text: str) -> str:
    """Return a text without case, punctuation and extra spaces, to recognise the same sentence."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().translate(_LETTERS).split())


class _Letters(dict[int, str]):
    """Maps letters, marks and digits to themselves, others to spaces. Marks include vowel signs of Hindi and Thai."""

    def __missing__(self, code: int) -> str:
        self[code] = kept = chr(code) if unicodedata.category(chr(code))[0] in "LMN" else " "
        return kept


_LETTERS = _Letters()


def split_at(place: float, ratios: Ratios) -> Split:
    """Return the split that a place in [0, 1) falls into."""
    train, val, _ = ratios
    return "train" if place < train else "val" if place < train + val else "test"


def usual_ratios(clips: int, least: int) -> Ratios:
    """Return default shares: enough test clips for a promotion (`least`) if that leaves most clips for training.

    50 clips are split 24/6/20, 276 are split 188/33/55, and 10,000 are split 9,200/400/400.
    """
    if not clips:
        return 1 - 2 * LEAST_SHARE, LEAST_SHARE, LEAST_SHARE
    test = max(min(MOST_TEST_SHARE * clips, max(least, min(TEST_SHARE * clips, TEST_CLIPS))), LEAST_SHARE * clips)
    val = max(min(VAL_SHARE * clips, VAL_CLIPS), LEAST_SHARE * clips)
    return 1 - (test + val) / clips, val / clips, test / clips


def clips_for_test(count: int) -> int:
    """Return how many new clips bring `count` test clips at the largest default share."""
    return math.ceil(count / MOST_TEST_SHARE)


def assign_splits(
    utterances: Sequence[Placed[Id]],
    ratios: Ratios,
    *,
    sessions: Mapping[str, str | None],
    clips: Mapping[Id, int] | None = None,
    said: Said = tuple,
    afresh: bool = False,
) -> dict[Id, Split]:
    """Return the split of each utterance, by its id.

    `clips` gives the number of clips that each stands for and that may enter test (None: one each);
    if it is 0, the hash alone decides, and most go to train. With `afresh`, the shares apply to
    utterances without a split, whatever the others have. An existing split never changes. An
    utterance is missing from the result if every split would leak: its recording joins
    speakers who are already in different splits.
    """
    counts = {one.id: 1 if clips is None else clips.get(one.id, 0) for one in utterances}
    recordings = {one.recording for one in utterances}
    wanted = _Wanted(utterances, counts, ratios, afresh=afresh)
    alike = cache(partial(_by_text, recordings, said))  # computed only if needed
    assigned: dict[Id, Split] = {}
    for grouping in _groupings(utterances, recordings, alike, sessions):
        assigned = _by_group(utterances, grouping, wanted, counts)
        have = _clips_of(assigned, counts)
        enough = ENOUGH_BY_SPEAKER if grouping.by_speaker else ENOUGH
        if all(have[split] for split in wanted.splits) and have["test"] >= enough * wanted.in_all["test"]:
            return assigned
    return _fill(utterances, assigned, wanted, counts)


class _Wanted:
    """The number of clips that each split should have."""

    def __init__(
        self, utterances: Sequence[Placed[Id]], counts: Mapping[Id, int], ratios: Ratios, *, afresh: bool
    ) -> None:
        here = _clips_of({one.id: one.split for one in utterances if one.split}, counts)
        total = sum(counts.values()) - (here.total() if afresh else 0)
        shares: dict[Split, float] = dict(zip(SPLITS, ratios, strict=True))
        self.in_all = {
            split: max(1.0, share * total + (here[split] if afresh else 0)) if share else 0.0
            for split, share in shares.items()
        }
        self.missing = {split: max(0.0, wanted - here[split]) for split, wanted in self.in_all.items()}
        self.splits = [split for split in STRICTEST if shares[split] > 0]
        self.trains = shares["train"] > 0
        val, test = (min(shares[split], LEAST_SHARE) for split in ("val", "test"))
        self.untested = (1 - val - test, val, test) if self.trains else ratios
        """Shares for speech that may not enter test yet: once it is reviewed, some should be available for test."""


def _clips_of(assigned: Mapping[Id, Split], counts: Mapping[Id, int]) -> Counter[Split]:
    found: Counter[Split] = Counter()
    for id, split in assigned.items():
        found[split] += counts[id]
    return found


# Groups --------------------------------------------------------------------------------------------------------------


class _Joined:
    """Disjoint sets of names, with path halving (Tarjan and van Leeuwen, 1984)."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def root(self, name: str) -> str:
        """Return the representative of a name's set: the smallest name, regardless of order."""
        parent = self._parent
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    def join(self, one: str, other: str) -> None:
        pair = self.root(one), self.root(other)
        self._parent[pair[0]] = self._parent[pair[1]] = min(pair)


class _Grouping(Generic[Id]):
    """A way to group utterances."""

    def __init__(
        self,
        name: Callable[[Placed[Id]], str],
        *,
        finer: Callable[[Placed[Id]], str],
        by_speaker: bool = False,
    ) -> None:
        self.name = name
        self.finer = finer  # for utterances of a group that is already in several splits
        self.by_speaker = by_speaker


def _groupings(
    utterances: Sequence[Placed[Id]],
    recordings: set[str],
    texts: Callable[[], Mapping[str, str] | None],
    sessions: Mapping[str, str | None],
) -> Iterator[_Grouping[Id]]:
    """Yield groupings, the strictest first."""

    def by_text(one: Placed[Id]) -> str:
        alike = texts()
        return f"recording {alike[one.recording] if alike else one.recording}"

    speakers, named = _speaker_groups(utterances, by_text)
    if named >= MIN_SPEAKERS or _disjoint(utterances):
        yield _Grouping(speakers, finer=by_text, by_speaker=True)
    alike = texts()
    in_session = {recording: sessions[recording] for recording in recordings if sessions.get(recording)}
    if alike and in_session:
        both = _Joined()
        for recording in recordings:
            both.join(f"recording {alike[recording]}", f"recording {recording}")
            if recording in in_session:
                both.join(f"recording {recording}", f"session {in_session[recording]}")
        yield _Grouping(lambda one: both.root(f"recording {one.recording}"), finer=by_text)
    if alike:
        yield _Grouping(by_text, finer=by_text)
    if in_session:
        yield _Grouping(
            lambda one: f"session {in_session[one.recording]}" if one.recording in in_session else by_recording(one),
            finer=by_recording,
        )
    yield _Grouping(by_recording, finer=by_recording)


def by_recording(one: Placed[Id]) -> str:
    """Return the group name of a single recording."""
    return f"recording {one.recording}"


def _disjoint(utterances: Sequence[Placed[Id]]) -> bool:
    """Whether speakers already fill every split, each in exactly one: then grouping by speaker continues."""
    found: dict[str, set[Split]] = {}
    for one in utterances:
        if one.split and one.speaker:
            found.setdefault(one.speaker, set()).add(one.split)
    return len(set().union(*found.values())) == len(SPLITS) and all(len(splits) == 1 for splits in found.values())


def _by_text(recordings: set[str], said: Said) -> dict[str, str] | None:
    """Map each recording to a representative of those with the same sentence; None: too few sentences.

    Sentences are compared over all speakers or, if that leaves too few groups, within each speaker.
    """
    for by_anybody in (True, False):
        joined = _Joined()
        first: dict[int, str] = {}  # by a hash of speaker and sentence, to save memory
        for recording, speaker, text in said():
            key = sentence(text)
            if key:
                who = "" if by_anybody else speaker or ""
                digest = hashlib.blake2b(f"{who}\n{key}".encode(), digest_size=8).digest()
                joined.join(recording, first.setdefault(int.from_bytes(digest), recording))
        found = {recording: joined.root(recording) for recording in recordings}
        if len(set(found.values())) >= min(MANY_TEXTS, TEXT_SHARE * len(recordings)):
            return found
    return None


def _speaker_groups(
    utterances: Sequence[Placed[Id]], unnamed: Callable[[Placed[Id]], str]
) -> tuple[Callable[[Placed[Id]], str], int]:
    """Return a function that names an utterance's group, and the number of groups with a named speaker.

    Speakers who share a recording are in one group.
    """
    joined = _Joined()
    heard: dict[str, str] = {}  # one speaker of each recording
    for utterance in utterances:
        if utterance.speaker:
            joined.join(utterance.speaker, heard.setdefault(utterance.recording, utterance.speaker))

    def name(utterance: Placed[Id]) -> str:
        speaker = heard.get(utterance.recording)
        return unnamed(utterance) if speaker is None else f"speaker {joined.root(speaker)}"

    return name, len({joined.root(speaker) for speaker in heard.values()})


# Placing -------------------------------------------------------------------------------------------------------------


def _by_group(
    utterances: Sequence[Placed[Id]], grouping: _Grouping[Id], wanted: _Wanted, counts: Mapping[Id, int]
) -> dict[Id, Split]:
    of_group: dict[str, set[Split]] = {}
    of_finer: dict[str, set[Split]] = {}
    of_recording: dict[str, set[Split]] = {}
    of_speaker: dict[str, set[Split]] = {}
    for utterance in utterances:
        if utterance.split:
            of_group.setdefault(grouping.name(utterance), set()).add(utterance.split)
            of_recording.setdefault(utterance.recording, set()).add(utterance.split)
            if utterance.speaker:
                of_speaker.setdefault(utterance.speaker, set()).add(utterance.split)
    if any(len(splits) > 1 for splits in of_group.values()):
        for utterance in utterances:
            if utterance.split:
                of_finer.setdefault(grouping.finer(utterance), set()).add(utterance.split)
    torn = _torn(utterances, grouping, of_group, of_speaker)
    speakers: dict[str, set[str]] = {}  # of each recording in such a group
    for utterance in utterances if torn else ():
        if utterance.speaker and grouping.name(utterance) in torn:
            speakers.setdefault(utterance.recording, set()).add(utterance.speaker)
    assigned: dict[Id, Split] = {}
    free: dict[str, list[Id]] = {}
    for utterance in utterances:
        group = grouping.name(utterance)
        before = of_group.get(group, set())
        if utterance.split:
            assigned[utterance.id] = utterance.split
        elif utterance.recording in of_recording:
            assigned[utterance.id] = strictest(of_recording[utterance.recording])
        elif not before:
            free.setdefault(group, []).append(utterance.id)
        elif len(before) == 1:
            assigned[utterance.id] = next(iter(before))
        elif group in torn:
            # A recording does not leak only if all its speakers are in the same split.
            known = [of_speaker.get(one, set()) for one in speakers.get(utterance.recording, ())]
            if known and all(known) and len(set().union(*known)) == 1:
                assigned[utterance.id] = next(iter(known[0]))
        elif grouping.finer(utterance) in of_finer:
            assigned[utterance.id] = strictest(of_finer[grouping.finer(utterance)])
        else:
            free.setdefault(grouping.finer(utterance), []).append(utterance.id)
    return assigned | _shared_out(free, wanted, counts, spread=SPREAD_BY_SPEAKER if grouping.by_speaker else SPREAD)


def _torn(
    utterances: Sequence[Placed[Id]],
    grouping: _Grouping[Id],
    of_group: Mapping[str, set[Split]],
    of_speaker: Mapping[str, set[Split]],
) -> set[str]:
    """Return groups of speakers from several splits that recordings added later have joined."""
    if not grouping.by_speaker:
        return set()
    # If a speaker is in several splits, the dataset was split by recording.
    divided = {grouping.name(one) for one in utterances if len(of_speaker.get(one.speaker or "", ())) > 1}
    return {group for group, splits in of_group.items() if len(splits) > 1 and group not in divided}


def _shared_out(
    free: Mapping[str, list[Id]], wanted: _Wanted, counts: Mapping[Id, int], *, spread: float
) -> dict[Id, Split]:
    """Assign groups, in the order of their hashes, to the splits that lack clips: test first, then val.

    A split never gets a group that is larger than `spread` times what it lacks.
    """
    missing = dict(wanted.missing)
    assigned: dict[Id, Split] = {}
    for group in sorted(free, key=lambda name: (position(name), name)):
        size = sum(counts[id] for id in free[group])
        taker: Split = "train" if wanted.trains else wanted.splits[0]
        if not size:
            taker = split_at(position(group), wanted.untested)
        for split in STRICTEST if size else ():
            if split != "train" and missing[split] >= 0.5 and size <= max(1.0, spread * missing[split]):
                taker = split
                break
        missing[taker] -= size
        assigned.update(dict.fromkeys(free[group], taker))
    return assigned


def _fill(
    utterances: Sequence[Placed[Id]], assigned: dict[Id, Split], wanted: _Wanted, counts: Mapping[Id, int]
) -> dict[Id, Split]:
    """Give each empty split an unassigned recording: with few or long recordings, no group may have fitted."""
    parts: dict[str, list[Id]] = {}  # ids of each recording's utterances
    for utterance in utterances:
        parts.setdefault(utterance.recording, []).append(utterance.id)
    sizes = {recording: sum(counts[id] for id in ids) for recording, ids in parts.items()}
    settled = {utterance.recording for utterance in utterances if utterance.split}
    free = sorted(parts.keys() - settled, key=lambda id: (sizes[id], position(f"recording {id}")))
    for split in wanted.splits:
        have = _clips_of(assigned, counts)
        if have[split] > 0:
            continue
        # Do not empty one split to fill another.
        spare = [one for one in free if sizes[one] and have[assigned[parts[one][0]]] > sizes[one]]
        if spare:
            free.remove(spare[0])
            assigned.update(dict.fromkeys(parts[spare[0]], split))
    return assigned
