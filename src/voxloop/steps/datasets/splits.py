"""Which split an utterance belongs to, for ever.

The split comes from a hash of the speaker, so that no speaker is both learnt from
and tested on; speakers who share a recording go together. Where there are too few
speakers to fill the splits it comes from the session's hash, else the recording's.
It is decided once and stored: what was test stays test.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Protocol, TypeVar

from voxloop.records import SPLITS, Split

Ratios = tuple[float, float, float]


Id = TypeVar("Id", bound=Hashable)
IdOf = TypeVar("IdOf", bound=Hashable, covariant=True)


class Placed(Protocol[IdOf]):
    """What a split is found for: an utterance, or several of one recording and speaker that have one or none alike."""

    @property
    def id(self) -> IdOf: ...
    @property
    def recording(self) -> str: ...
    @property
    def speaker(self) -> str | None: ...
    @property
    def split(self) -> Split | None: ...


STRICTEST: tuple[Split, ...] = ("test", "val", "train")  # what is tested must not be learnt


def position(key: str) -> float:
    """A hash of `key` as a number in [0, 1), the same on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def split_at(place: float, ratios: Ratios) -> Split:
    """The split that a place in [0, 1) falls into."""
    train, val, _ = ratios
    return "train" if place < train else "val" if place < train + val else "test"


def assign_splits(
    utterances: Sequence[Placed[Id]],
    ratios: Ratios,
    *,
    sessions: Mapping[str, str | None],
    clips: Mapping[Id, int] | None = None,
) -> dict[Id, Split]:
    """The split of each utterance, by its id. `clips` says how many each stands for; None: they are single ones.

    One that has a split keeps it, and what belongs to the same group follows it.
    Groups are speakers (with those whom they share recordings with), where they fill
    every split that has a share; else sessions; else recordings. An utterance that
    cannot enter any split without a leak has none: its recording joins speakers who
    are in different splits already.
    """
    wanted = {split for split, share in zip(SPLITS, ratios, strict=True) if share > 0}
    groupings: list[Callable[[Placed[Id]], str]] = [
        _speaker_groups(utterances),
        lambda u: f"session {sessions.get(u.recording)}" if sessions.get(u.recording) else f"recording {u.recording}",
        lambda u: f"recording {u.recording}",
    ]
    assigned: dict[Id, Split] = {}
    for number, group_of in enumerate(groupings):
        assigned = _by_group(utterances, group_of, ratios, by_speaker=number == 0)
        if set(assigned.values()) >= wanted:
            return assigned
    return _fill(utterances, assigned, ratios, wanted, clips or {})


def _speaker_groups(utterances: Sequence[Placed[Id]]) -> Callable[[Placed[Id]], str]:
    """Names the group of an utterance: speakers who hang together by their recordings are one, with these.

    Found by disjoint sets with path halving (R. E. Tarjan and J. van Leeuwen, 1984).
    """
    parent: dict[str, str] = {}
    heard: dict[str, str] = {}  # a speaker of each recording

    def root(speaker: str) -> str:
        parent.setdefault(speaker, speaker)
        while parent[speaker] != speaker:
            parent[speaker] = parent[parent[speaker]]
            speaker = parent[speaker]
        return speaker

    for utterance in utterances:
        if utterance.speaker:
            pair = root(utterance.speaker), root(heard.setdefault(utterance.recording, utterance.speaker))
            # The first speaker's name stands for the group, whichever utterance comes first.
            parent[pair[0]] = parent[pair[1]] = min(pair)

    def name(utterance: Placed[Id]) -> str:
        speaker = heard.get(utterance.recording)
        return f"recording {utterance.recording}" if speaker is None else f"speaker {root(speaker)}"

    return name


def _by_group(
    utterances: Sequence[Placed[Id]], group_of: Callable[[Placed[Id]], str], ratios: Ratios, *, by_speaker: bool
) -> dict[Id, Split]:
    of_group: dict[str, set[Split]] = {}
    of_recording: dict[str, set[Split]] = {}
    of_speaker: dict[str, set[Split]] = {}
    for utterance in utterances:
        if utterance.split:
            of_group.setdefault(group_of(utterance), set()).add(utterance.split)
            of_recording.setdefault(utterance.recording, set()).add(utterance.split)
            if utterance.speaker:
                of_speaker.setdefault(utterance.speaker, set()).add(utterance.split)
    # Divided by recording when that was all there was.
    divided = {group_of(one) for one in utterances if len(of_speaker.get(one.speaker or "", ())) > 1}
    # Speakers of several splits hang together, by recordings that came later.
    torn = {group for group, splits in of_group.items() if by_speaker and len(splits) > 1 and group not in divided}
    speakers: dict[str, set[str]] = {}  # of each recording in such a group
    for utterance in utterances if torn else ():
        if utterance.speaker and group_of(utterance) in torn:
            speakers.setdefault(utterance.recording, set()).add(utterance.speaker)
    assigned: dict[Id, Split] = {}
    for utterance in utterances:
        group = group_of(utterance)
        before = of_group.get(group, set())
        if utterance.split:
            assigned[utterance.id] = utterance.split
        elif utterance.recording in of_recording:
            assigned[utterance.id] = strictest(of_recording[utterance.recording])
        elif len(before) == 1:
            assigned[utterance.id] = next(iter(before))
        elif not before:
            assigned[utterance.id] = split_at(position(group), ratios)
        elif group not in torn:
            assigned[utterance.id] = split_at(position(f"recording {utterance.recording}"), ratios)
        else:
            # Only what all its speakers' splits agree on is without a leak.
            known = [of_speaker.get(one, set()) for one in speakers.get(utterance.recording, ())]
            if known and all(known) and len(set().union(*known)) == 1:
                assigned[utterance.id] = next(iter(known[0]))
    return assigned


def strictest(splits: set[Split]) -> Split:
    """Of several splits the one whose speech may least be learnt from."""
    return next(split for split in STRICTEST if split in splits)


def _fill(
    utterances: Sequence[Placed[Id]],
    assigned: dict[Id, Split],
    ratios: Ratios,
    wanted: set[Split],
    clips: Mapping[Id, int],
) -> dict[Id, Split]:
    """Give each empty split the free recording that lies nearest to it: with few recordings chance leaves gaps."""
    parts: dict[str, list[Id]] = {}  # ids of each recording's utterances
    for utterance in utterances:
        parts.setdefault(utterance.recording, []).append(utterance.id)
    settled = {utterance.recording for utterance in utterances if utterance.split}
    free = sorted(parts.keys() - settled, key=lambda id: position(f"recording {id}"))
    middle = {"train": ratios[0] / 2, "val": ratios[0] + ratios[1] / 2, "test": 1 - ratios[2] / 2}
    for split in reversed(SPLITS):
        if split not in wanted or split in assigned.values():
            continue
        counts: Counter[Split] = Counter()
        for id, given in assigned.items():
            counts[given] += clips.get(id, 1)
        # A split of one is not robbed to fill another.
        spare = [recording for recording in free if counts[assigned[parts[recording][0]]] > 1]
        if not spare:
            continue
        taken = min(spare, key=lambda id: abs(position(f"recording {id}") - middle[split]))
        free.remove(taken)
        assigned.update(dict.fromkeys(parts[taken], split))
    return assigned
