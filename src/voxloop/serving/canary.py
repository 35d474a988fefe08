"""A try of a model before it serves: it has to hear test clips as its evaluation did, and nothing in silence.

What was promoted on one machine may be broken on another: a damaged file, a number format that this processor computes
otherwise, a library of another version. Texts may differ by a word here and there, but not by more.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from voxloop.errors import ModelError
from voxloop.families.decoding import Decoding
from voxloop.records import SAMPLE_RATE, Evaluation, Utterance
from voxloop.speech.text import normalise, word_errors_each
from voxloop.steps import evaluation, hearing, transcripts
from voxloop.steps.datasets import position
from voxloop.stores import tables

if TYPE_CHECKING:
    from voxloop.families.contract import Recogniser
    from voxloop.records import Model
    from voxloop.steps.evaluation import Scored
    from voxloop.workspace import Workspace

CLIPS = 12
MOST_ERRORS = 0.05  # of the words that the evaluation stored; two words are let pass of however few


def check(ws: Workspace, model: Model, recogniser: Recogniser) -> int:
    """Try a loaded model; the number of test clips that it was tried on, 0 where nothing was measured of it.

    Raises ModelError where it does not hear what its evaluation heard.
    """
    silence = np.zeros(2 * SAMPLE_RATE, dtype=np.float32)
    asked = transcripts.decoding(ws, model=model)
    (nothing,) = recogniser.transcribe([silence], replace(asked, language=asked.language or "en"))
    if nothing.text:
        raise ModelError(f"it hears {nothing.text!r} in two seconds of silence")
    known = _measured(ws, model, asked)
    errors = words = 0
    for row, text in _heard(ws, model, recogniser, known):
        if row.hypothesis and not text:
            raise ModelError(f"it hears nothing in a clip in which its evaluation heard {row.hypothesis!r}")
        (found,) = word_errors_each(*([normalise(one, row.language)] for one in (row.hypothesis, text)))
        errors, words = errors + found.errors, words + found.units
    if errors > max(2, MOST_ERRORS * words):
        raise ModelError(
            f"{errors} of {words} words in {len(known)} test clips are not what its evaluation heard here: "
            "its files, this processor or a library differ from when it was measured; measure it here by "
            "`voxloop evaluate`"
        )
    return len(known)


def _measured(ws: Workspace, model: Model, asked: Decoding) -> list[Scored]:
    """Some rows of the newest evaluation that was decoded as requests are."""
    with ws.read() as reader:
        table = tables.evaluation.c
        found = reader.all(Evaluation, table.model == model.id, table.split == "test", order=table.created.desc())
    wanted = replace(asked, language=None, hearing="").identity()
    for one in found:
        if replace(Decoding.from_dict(one.decoding), language=None, hearing="").identity() == wanted:
            rows = sorted(evaluation.scored_rows(ws, one), key=lambda row: position(row.utterance))
            return rows[:CLIPS]
    return []


def _heard(ws: Workspace, model: Model, recogniser: Recogniser, rows: list[Scored]) -> list[tuple[Scored, str]]:
    with ws.read() as reader:
        there = reader.find_all(Utterance, [row.utterance for row in rows])
    found = []
    for row in rows:
        if row.utterance in there:
            asked = transcripts.decoding(ws, row.language, model=model)
            (heard,) = hearing.hear(ws, recogniser, [there[row.utterance]], asked)
            found.append((row, heard.hypothesis.text))
    return found
