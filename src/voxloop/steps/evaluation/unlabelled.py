"""What a model makes of speech that has no reference: no errors can be counted, but empty and looping texts can.

The clips are a sample of the workspace's own, the same for every model as long as they stay without a reference. No
text is kept, and no clip's id: only what is needed to compare two models clip by clip.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa

from voxloop.families.contract import Guards, compression
from voxloop.records import Utterance
from voxloop.steps import hearing
from voxloop.stores import tables

if TYPE_CHECKING:
    from voxloop.families.contract import Decoding, Recogniser
    from voxloop.workspace import Workspace

CLIPS = 40
EACH = 4  # of one recording at most, so that a long one does not fill the sample
FASTEST = 30.0  # characters a second, with as many to spare for the shortest clips: nobody speaks faster

Odd = Literal["", "empty", "loop", "too long"]


def unlabelled(ws: Workspace, recogniser: Recogniser, decoding: Decoding) -> dict[str, Any] | None:
    """What is odd about the texts of clips without a reference; None where there are none."""
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
    """What is odd about a text that was heard in so many seconds."""
    if not said:
        return "empty"
    if compression(said) > max_compression:
        return "loop"
    return "too long" if len(said) > FASTEST * (1.0 + seconds) else ""


def _sample(ws: Workspace) -> list[Utterance]:
    """At most CLIPS utterances without a reference, of as many recordings as can be.

    Recordings are taken in the order of their ids, which are hashes: a sample by chance, and mostly the same one
    after more were added.
    """
    table = tables.utterance
    waiting = table.c.status.in_(("new", "transcribed"))
    recordings = sa.select(table.c.recording).where(waiting).group_by(table.c.recording).order_by(table.c.recording)
    with ws.read() as reader:
        ids = reader.connection.execute(recordings.limit(CLIPS)).scalars().all()
        found = reader.all(Utterance, waiting, table.c.recording.in_(ids)) if ids else []
    return _shared_out(found)


def _shared_out(utterances: Sequence[Utterance]) -> list[Utterance]:
    """First one of each recording, then a second, up to EACH of one and CLIPS of all."""
    taken: dict[str, int] = {}
    ranked = []
    for utterance in sorted(utterances, key=lambda one: _digest(one.id)):
        rank = taken[utterance.recording] = taken.get(utterance.recording, -1) + 1
        if rank < EACH:
            ranked.append((rank, utterance.recording, utterance))
    return [utterance for _, _, utterance in sorted(ranked, key=lambda one: one[:2])[:CLIPS]]


def _digest(utterance: str) -> str:
    """What a clip is known by where its recording may be forgotten one day."""
    return hashlib.sha256(f"unlabelled {utterance}".encode()).hexdigest()[:16]
