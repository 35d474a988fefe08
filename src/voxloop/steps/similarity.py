"""What sounds alike: a vector for every utterance, and the nearest ones to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from voxloop.families.contract import require
from voxloop.families.registry import family
from voxloop.models import STARTER, base_model, recogniser
from voxloop.records import Utterance
from voxloop.steps import utterances as _utterances
from voxloop.steps.transcripts import blocks
from voxloop.stores import tables

COMPARED = 2_000  # known utterances that novelty is measured against, at most: enough to tell what is new
BLOCK = 4_096  # waiting utterances compared at once: 33 MB of cosines

if TYPE_CHECKING:
    from voxloop.stores.vectors import Matrix
    from voxloop.workspace import Workspace


def index(ws: Workspace, recordings: str | Sequence[str]) -> int:
    """Give every utterance of recordings its vector; the number of vectors.

    The vectors are mean encoder states of the starter, whoever is champion: those
    of different models do not compare, and the starter is small and always there.
    """
    ids = [recordings] if isinstance(recordings, str) else list(recordings)
    model = base_model(ws, STARTER)
    require(family(model.family), "embeddings")
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


def novelty(ws: Workspace, waiting: Sequence[str], known: Sequence[str]) -> dict[str, float]:
    """How unlike the known utterances each waiting one sounds: 1 minus the greatest cosine, 0 to 1.

    Mean encoder states of speech all point one way, so the mean of all vectors is
    taken off first (Mu and Viswanath 2018, arXiv:1702.01417), else everything would
    be alike. Only utterances that have a vector are in the answer; where no known
    one has, all are new (1).
    """
    space = base_model(ws, STARTER).id
    ids, vectors = ws.vectors.read(space, waiting)
    step = max(1, len(known) // COMPARED)
    _, reviewed = ws.vectors.read(space, known[::step][:COMPARED])
    if not ids or not len(reviewed):
        return dict.fromkeys(ids, 1.0)
    mean = np.concatenate([vectors, reviewed]).mean(axis=0)
    vectors, reviewed = _unit(vectors - mean), _unit(reviewed - mean)
    likest = np.concatenate(
        [(vectors[start : start + BLOCK] @ reviewed.T).max(axis=1) for start in range(0, len(vectors), BLOCK)]
    )
    return dict(zip(ids, np.clip(1.0 - likest, 0.0, 1.0).tolist(), strict=True))


def _unit(matrix: Matrix) -> Matrix:
    length = np.linalg.norm(matrix, axis=1, keepdims=True)
    unit: Matrix = (matrix / np.maximum(length, 1e-12)).astype(np.float32)
    return unit
