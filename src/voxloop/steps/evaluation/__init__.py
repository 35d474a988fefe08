"""How well a model hears frozen speech.

A model decodes the references of a dataset's split once; every text heard is
kept, and the scores are counted from what was kept.

    measuring.py   decode, keep, count       probes.py       silence, noise, 30 s
    scores.py      errors, rates, slices     sounds.py       in which nobody speaks
    word_times.py  where words lie in time   unlabelled.py   speech without a reference
    written.py     capitals, punctuation     heard_texts.py  texts heard in training, and new ones
"""

from voxloop.steps.evaluation.heard_texts import lineage, parted, texts_heard, with_texts
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
    "lineage",
    "measure",
    "normalisers",
    "parted",
    "score",
    "scored_rows",
    "scores_of",
    "slices",
    "texts_heard",
    "wer",
    "with_texts",
]
