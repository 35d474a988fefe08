"""Probes beyond the test set: sounds without speech, and speech that lasts 30 s.

Each probe is transcribed like a file, through the voice detector, which keeps most sounds without speech from the
model. So a probe counts only if a user would have seen its text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from voxloop.records import MAX_UTTERANCE_S, SAMPLE_RATE
from voxloop.speech import text
from voxloop.steps import hearing
from voxloop.steps.evaluation.sounds import loud_sounds, quiet_sounds
from voxloop.steps.utterances import read_span

if TYPE_CHECKING:
    from voxloop.families.contract import Recogniser, Waveform
    from voxloop.families.decoding import Decoding
    from voxloop.steps.datasets import DatasetRow
    from voxloop.steps.hearing import Heard
    from voxloop.workspace import Workspace

JOINED_INPUTS = 8  # at most this many groups of test clips joined up to 30 s
JOINED_MIN_S = 10.0  # shorter joined speech says nothing about long speech
JOINED_GAP_S = 0.2


def probe(
    ws: Workspace, recogniser: Recogniser, rows: Sequence[DatasetRow], decoding: Decoding
) -> dict[str, dict[str, Any]]:
    """Scores on silence, noise and test clips joined up to 30 s, in the test set's main language."""
    languages = Counter(row.language or decoding.language for row in rows)
    language = languages.most_common(1)[0][0]
    asked = replace(decoding, language=language)
    changes = ws.settings.normaliser
    quiet, loud = quiet_sounds(), loud_sounds()
    heard = hearing.hear_files(recogniser, [*quiet.values(), *loud.values()], asked, ws.settings)
    probes: dict[str, dict[str, Any]] = {
        "silence": _inserted(heard[: len(quiet)], quiet, language, changes),
        "noise": _inserted(heard[len(quiet) :], loud, language, changes),
    }
    joined = list(_joined_groups([row for row in rows if (row.language or decoding.language) == language]))
    if joined:
        heard = hearing.hear_files(recogniser, [_join(ws, group) for group in joined], asked, ws.settings)
        counts = text.total(
            text.word_errors_each(
                [text.normalise(" ".join(row.text for row in group), language, changes) for group in joined],
                [text.normalise(one.hypothesis.text, language, changes) for one in heard],
            )
        )
        probes["joined"] = {
            "inputs": len(joined),
            "words": counts.units,
            "errors": counts.errors,
            "wer": counts.rate,
            "texts": [one.hypothesis.text for one in heard],
        }
    return probes


def _inserted(
    heard: Sequence[Heard], sounds: Mapping[str, Waveform], language: str | None, changes: text.Changes
) -> dict[str, Any]:
    """Words written where nobody speaks; each is an insertion."""
    texts = [one.hypothesis.text for one in heard]
    counts = [len(text.normalise(one, language, changes).split()) for one in texts]
    return {
        "inputs": len(sounds),
        "seconds": sum(len(waveform) for waveform in sounds.values()) / SAMPLE_RATE,
        "reached": sum(one.speech is not None for one in heard),  # sounds that the detector passed to the model
        "words": sum(counts),
        "counts": dict(zip(sounds, counts, strict=True)),
        "texts": texts,
    }


def _joined_groups(rows: Sequence[DatasetRow]) -> Iterator[list[DatasetRow]]:
    """At most JOINED_INPUTS groups of rows that fill 30 s, with a short gap between rows."""
    made = 0
    group: list[DatasetRow] = []
    filled_s = 0.0
    for row in rows:
        if group and filled_s + JOINED_GAP_S + row.duration > MAX_UTTERANCE_S:
            yield group
            made += 1
            if made == JOINED_INPUTS:
                return
            group, filled_s = [], 0.0
        filled_s += row.duration + (JOINED_GAP_S if group else 0.0)
        group.append(row)
    if filled_s >= JOINED_MIN_S:
        yield group


def _join(ws: Workspace, rows: Sequence[DatasetRow]) -> Waveform:
    import numpy as np

    gap = np.zeros(int(JOINED_GAP_S * SAMPLE_RATE), dtype=np.float32)
    parts: list[Waveform] = []
    for row in rows:
        parts += [gap] if parts else []
        parts.append(read_span(ws, row.recording, row.start, row.end))
    return np.concatenate(parts)
