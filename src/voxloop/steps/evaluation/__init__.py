"""How well a model hears frozen speech.

A model decodes the references of a dataset's split once; every text heard is
kept, and the scores are counted from what was kept.

    measuring.py   decode, keep, count       probes.py       silence, noise, 30 s
    scores.py      errors, rates, slices     sounds.py       in which nobody speaks
    word_times.py  where words lie in time   unlabelled.py   speech without a reference
    written.py     capitals, punctuation
"""

from voxloop.steps.evaluation.measuring import (
    as_heard,
    as_served,
    evaluate,
    evaluation_id,
    find_evaluation,
    measure,
    normalisers,
    scored_rows,
)
from voxloop.steps.evaluation.scores import Scored, interval, score, scores_of, slices, wer

__all__ = [
    "Scored",
    "as_heard",
    "as_served",
    "evaluate",
    "evaluation_id",
    "find_evaluation",
    "interval",
    "measure",
    "normalisers",
    "score",
    "scored_rows",
    "scores_of",
    "slices",
    "wer",
]
