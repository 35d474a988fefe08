"""What sounds alike: a vector for every utterance, and the nearest ones to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from voxloop import utterances as _utterances
from voxloop.records import Utterance
from voxloop.stores import catalog as tables
from voxloop.transcripts import STARTER, base_model, blocks, recogniser

if TYPE_CHECKING:
    from voxloop.workspace import Workspace


def index(ws: Workspace, recordings: str | Sequence[str]) -> int:
    """Give every utterance of recordings its vector; the number of vectors.

    The vectors are mean encoder states of the starter, whoever is champion: those
    of different models do not compare, and the starter is small and always there.
    """
    ids = [recordings] if isinstance(recordings, str) else list(recordings)
    model = base_model(ws, STARTER)
    with ws.read() as reader:
        found = reader.all(Utterance, tables.utterance.c.recording.in_(ids))
    made = []
    for block in blocks(found, [utterance.samples for utterance in found]):
        waveforms = [_utterances.utterance_audio(ws, utterance) for utterance in block]
        made.append((block, recogniser(ws, model).embed(waveforms)))
    with ws.completion() as tx:
        for block, matrix in made:
            ws.vectors.upsert(tx, model.id, [utterance.id for utterance in block], matrix)
    return len(found)


def nearest(ws: Workspace, utterance: str, *, limit: int = 10) -> list[tuple[str, float]]:
    """Ids of the utterances that sound most alike, with their cosine similarity, the nearest first."""
    model = base_model(ws, STARTER)
    with ws.read() as reader:
        found = reader.get(Utterance, utterance)
    query = recogniser(ws, model).embed([_utterances.utterance_audio(ws, found)])[0]
    near = ws.vectors.search(model.id, np.asarray(query, dtype=np.float32), limit=limit + 1)
    return [(id, similarity) for id, similarity in near if id != found.id][:limit]
