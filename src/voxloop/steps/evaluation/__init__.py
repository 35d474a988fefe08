"""How well a model hears frozen speech.

A model decodes the references of a dataset's split once; every text heard is
kept, and the scores are counted from what was kept.

    measuring.py   decode, keep, count       probes.py       silence, noise, 30 s
    scores.py      errors, rates, slices     word_times.py   where words lie in time
    heard_texts.py texts heard in training, and new ones
"""

from voxloop.steps.evaluation.heard_texts import lineage, parted, texts_heard, with_texts
from voxloop.steps.evaluation.measuring import (
    evaluate,
    evaluation_id,
    find_evaluation,
    measure,
    normalisers,
    scored_rows,
)
from voxloop.steps.evaluation.probes import noise_inputs, quiet_inputs
from voxloop.steps.evaluation.scores import Scored, interval, score, scores_of, slices, wer

__all__ = [
    "Scored",
    "evaluate",
    "evaluation_id",
    "find_evaluation",
    "interval",
    "lineage",
    "measure",
    "noise_inputs",
    "normalisers",
    "parted",
    "quiet_inputs",
    "score",
    "scored_rows",
    "scores_of",
    "slices",
    "texts_heard",
    "wer",
    "with_texts",
]
