"""Check a model's texts for clips without a reference: errors cannot be counted, but empty and looping texts can.

The clips are a sample of the workspace's own, the same for every model as long as they have no reference. Neither texts
nor clip ids are stored, only what is needed to compare two models clip by clip.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa

from voxloop.families.decoding import Guards, compression
from voxloop.records import Utterance
from voxloop.steps import hearing
from voxloop.stores import tables

if TYPE_CHECKING:
    from voxloop.families.contract import Recogniser
    from voxloop.families.decoding import Decoding
    from voxloop.workspace import Workspace

CLIPS = 40
EACH = 4  # per recording at most, so that a long one does not fill the sample
FASTEST = 30.0  # characters per second, with one second to spare for short clips: nobody speaks faster

Odd = Literal["", "empty", "loop", "too long"]


def unlabelled(ws: Workspace, recogniser: Recogniser, decoding: Decoding) -> dict[str, Any] | None:
    """Counts of odd texts for clips without a reference; None if there are no such clips."""
    clips = _sample(ws)
    if not clips:
        return None
    found: dict[str, dict[str, Any]] = {}
    most = (decoding.guards or Guards()).max_compression
    for language in dict.fromkeys(clip.language for clip in clips):
        mine = [clip for clip in clips if clip.language == language]
        asked = replace(decoding, language=language or decoding.language)
        for clip, heard in zip(mine, hearing.hear(ws, recogniser, mine, asked), strict=True):
            said = heard.hypothesis.text.strip()
            odd = oddity(said, clip.duration, most)
            found[_digest(clip.id)] = {"seconds": clip.duration, "characters": len(said), "odd": odd}
    odd_ones = [one["odd"] for one in found.values()]
    return {
        "clips": len(found),
        "seconds": sum(one["seconds"] for one in found.values()),
        "characters": sum(one["characters"] for one in found.values()),
        "empty": odd_ones.count("empty"),
        "loops": odd_ones.count("loop"),
        "too_long": odd_ones.count("too long"),
        "each": found,
    }


def oddity(said: str, seconds: float, max_compression: float) -> Odd:
    """What is wrong with the text of a clip of so many seconds; empty if nothing is."""
    if not said:
        return "empty"
    if compression(said) > max_compression:
        return "loop"
    return "too long" if len(said) > FASTEST * (1.0 + seconds) else ""


def _sample(ws: Workspace) -> list[Utterance]:
    """At most CLIPS utterances without a reference, from as many recordings as possible.

    Recordings are taken in the order of their ids, which are hashes: a random sample that stays mostly the same
    when more are added.
    """
    table = tables.utterance
    waiting = table.c.status.in_(("new", "transcribed"))
    recordings = sa.select(table.c.recording).where(waiting).group_by(table.c.recording).order_by(table.c.recording)
    with ws.read() as reader:
        ids = reader.connection.execute(recordings.limit(CLIPS)).scalars().all()
        found = reader.all(Utterance, waiting, table.c.recording.in_(ids)) if ids else []
    return _shared_out(found)


def _shared_out(utterances: Sequence[Utterance]) -> list[Utterance]:
    """First one of each recording, then a second, up to EACH per recording and CLIPS in total."""
    taken: dict[str, int] = {}
    ranked = []
    for utterance in sorted(utterances, key=lambda one: _digest(one.id)):
        rank = taken[utterance.recording] = taken.get(utterance.recording, -1) + 1
        if rank < EACH:
            ranked.append((rank, utterance.recording, utterance))
    return [utterance for _, _, utterance in sorted(ranked, key=lambda one: one[:2])[:CLIPS]]


def _digest(utterance: str) -> str:
    """A clip's pseudonym, since its recording may be forgotten one day."""
    return hashlib.sha256(f"unlabelled {utterance}".encode()).hexdigest()[:16]
