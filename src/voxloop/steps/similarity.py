"""Similarity of utterances: embed every utterance, and find its nearest neighbours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from voxloop.families.contract import require
from voxloop.families.registry import family
from voxloop.models import embedding_model, loaded
from voxloop.records import Utterance
from voxloop.steps import utterances as _utterances
from voxloop.steps.transcripts import blocks
from voxloop.stores import tables

COMPARED = 2_000  # maximum number of known utterances to compare with: enough to recognise what is new
BLOCK = 4_096  # waiting utterances compared at a time: 33 MB of cosines

if TYPE_CHECKING:
    from voxloop.stores.vectors import Matrix
    from voxloop.workspace import Workspace


def index(ws: Workspace, recordings: str | Sequence[str]) -> int:
    """Compute the missing vectors of the utterances of recordings. Return the number of new vectors.

    Vectors are mean encoder states of the model in the `embedding_model` setting, whoever is champion, and their
    space is that model's id. Vectors of other models do not count: after a change of the setting, indexing a
    recording again embeds it again.
    """
    ids = list(dict.fromkeys([recordings] if isinstance(recordings, str) else recordings))
    model = embedding_model(ws)
    require(family(model.family), "embeddings")
    with ws.read() as reader:
        found = reader.all(Utterance, tables.utterance.c.recording.in_(ids))
    known = set(ws.vectors.read(model.id, [utterance.id for utterance in found])[0])
    found = [utterance for utterance in found if utterance.id not in known]
    left = Counter(utterance.recording for utterance in found)
    _complete(ws, [id for id in ids if not left[id]])
    for block in blocks(found, [utterance.samples for utterance in found]):
        waveforms = [_utterances.utterance_audio(ws, utterance) for utterance in block]
        with loaded(ws, model) as recogniser:
            matrix = recogniser.embed(waveforms)
        ws.vectors.upsert(model.id, [one.id for one in block], matrix)
        _forget_gone(ws, [one.id for one in block])
        left.subtract(utterance.recording for utterance in block)
        _complete(ws, [id for id in dict.fromkeys(utterance.recording for utterance in block) if not left[id]])
    return len(found)


def _complete(ws: Workspace, recordings: Sequence[str]) -> None:
    if recordings:
        with ws.completion(*recordings):
            pass


def _forget_gone(ws: Workspace, ids: Sequence[str]) -> None:
    """Delete the vectors of utterances that were forgotten while their vectors were being computed."""
    with ws.read() as reader:
        there = set(reader.numbers(ids))
    if gone := [id for id in ids if id not in there]:
        ws.vectors.delete(gone)


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbours:
    """The utterances that sound most similar to another one."""

    nearest: tuple[tuple[str, float], ...]  # id and cosine similarity, -1 to 1, nearest first
    space: str  # id of the model whose vectors were compared
    without_vector: int  # utterances without a vector in this space, which were not compared


def nearest(ws: Workspace, utterance: str, *, limit: int = 10) -> Neighbours:
    """Find the most similar utterances among those with a vector."""
    model = embedding_model(ws)
    with ws.read() as reader:
        found = reader.get(Utterance, utterance)
        utterances = reader.count(Utterance)
    with loaded(ws, model) as recogniser:
        query = recogniser.embed([_utterances.utterance_audio(ws, found)])[0]
    near = ws.vectors.search(model.id, np.asarray(query, dtype=np.float32), limit=limit + 1)
    return Neighbours(
        nearest=tuple((id, similarity) for id, similarity in near if id != found.id)[:limit],
        space=model.id,
        without_vector=utterances - ws.vectors.count(model.id),
    )


def novelty(ws: Workspace, waiting: Sequence[str], known: Sequence[str]) -> dict[str, float]:
    """Return how much each waiting utterance differs from the known ones: 1 minus the greatest cosine, 0 to 1.

    Mean encoder states of speech all point in similar directions, so the mean of all
    vectors is subtracted first (Mu and Viswanath 2018, arXiv:1702.01417). The result has
    only utterances with a vector; if no known one has a vector, all are new (1).
    """
    space = embedding_model(ws).id
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
