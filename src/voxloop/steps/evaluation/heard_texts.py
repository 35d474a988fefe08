"""Texts heard in training, and new texts: a model may know a sentence by heart and still not know the voice.

Which texts a model was trained on follows from its run's dataset, and from those of the models that it was tuned from.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from voxloop.records import Dataset, Evaluation, Model, Run
from voxloop.speech import text
from voxloop.steps import datasets
from voxloop.steps.evaluation.measuring import scored_rows
from voxloop.steps.evaluation.scores import Scored, slice_of

if TYPE_CHECKING:
    from voxloop.stores.catalog import Reader
    from voxloop.workspace import Workspace

NEW, HEARD = "new", "heard in training"


def lineage(reader: Reader, model: Model) -> list[Model]:
    """A model and those it was tuned from, itself first, as far as the catalog knows them."""
    found = [model]
    while found[-1].run is not None:
        base = reader.find(Model, found[-1].base)
        if base is None or base in found:
            break
        found.append(base)
    return found


def texts_heard(ws: Workspace, *models: str) -> frozenset[str] | None:
    """The normalised texts that any of these models was trained on; None where none came from a run here."""
    with ws.read() as reader:
        lines = [lineage(reader, record) for id in models if (record := reader.find(Model, id))]
        runs = [reader.find(Run, model.run) for line in lines for model in line if model.run]
        trained = {run.dataset for run in runs if run and reader.find(Dataset, run.dataset)}
    if not trained:
        return None
    spoken = {(row.text, row.language) for dataset in trained for row in datasets.rows(ws, dataset, "train")}
    return frozenset(text.normalise(words, language, ws.settings.normaliser) for words, language in spoken)


def parted(
    rows: Sequence[Scored], heard: Collection[str], language: str | None, changes: text.Changes | None = None
) -> dict[str, list[int]]:
    """Places of the rows whose texts are new, and of those that were heard in training.

    `language` counts where a row names none, `changes` is the setting `normaliser`.
    """
    places: dict[str, list[int]] = {NEW: [], HEARD: []}
    for place, row in enumerate(rows):
        known = text.normalise(row.reference, row.language or language, changes) in heard
        places[HEARD if known else NEW].append(place)
    return places


def with_texts(ws: Workspace, evaluation: Evaluation, heard: Collection[str] | None = None) -> Evaluation:
    """The evaluation with two slices more: new texts, and texts heard in training (`heard`, or by its model).

    Nothing is added where the model was not trained here.
    """
    heard = texts_heard(ws, evaluation.model) if heard is None else heard
    if heard is None:
        return evaluation
    rows = scored_rows(ws, evaluation)
    places = parted(rows, heard, evaluation.decoding.get("language"), ws.settings.normaliser)
    slices = [slice_of("texts", name, [rows[place] for place in part]) for name, part in places.items() if part]
    return replace(evaluation, scores=evaluation.scores | {"slices": [*slices, *evaluation.scores["slices"]]})
