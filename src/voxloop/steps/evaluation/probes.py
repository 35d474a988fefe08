"""What a test set does not ask: silence, noise, and speech of 30 s."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from voxloop.records import MAX_UTTERANCE_S, SAMPLE_RATE
from voxloop.speech import text
from voxloop.steps.utterances import read_span

if TYPE_CHECKING:
    from voxloop.families.contract import Decoding, Recogniser, Waveform
    from voxloop.steps.datasets import DatasetRow
    from voxloop.workspace import Workspace

PROBE_S = (2.0, 10.0)  # lengths of silence and of noise that a model is made to hear
HISS_RMS = 1e-3  # -60 dBFS: the hiss of a quiet room
NOISE_RMS = 3e-2  # -30 dBFS: as loud as soft speech
JOINED_INPUTS = 8  # test clips joined up to 30 s, at most so many
JOINED_MIN_S = 10.0  # less than this joined says nothing about long speech
JOINED_GAP_S = 0.2


def probe(
    ws: Workspace, recogniser: Recogniser, rows: Sequence[DatasetRow], decoding: Decoding
) -> dict[str, dict[str, Any]]:
    """What the model makes of silence, noise and test clips joined up to 30 s, in the test's main language."""
    languages = Counter(row.language or decoding.language for row in rows)
    language = languages.most_common(1)[0][0]
    asked = replace(decoding, language=language)
    changes = ws.settings.normaliser
    quiet, loud = quiet_inputs(), noise_inputs()
    heard_in = [hypothesis.text for hypothesis in recogniser.transcribe([*quiet, *loud], asked)]
    probes: dict[str, dict[str, Any]] = {
        "silence": _inserted(heard_in[: len(quiet)], quiet, language, changes),
        "noise": _inserted(heard_in[len(quiet) :], loud, language, changes),
    }
    joined = list(_joined_groups([row for row in rows if (row.language or decoding.language) == language]))
    if joined:
        heard = recogniser.transcribe([_join(ws, group) for group in joined], asked)
        counts = text.total(
            text.word_errors_each(
                [text.normalise(" ".join(row.text for row in group), language, changes) for group in joined],
                [text.normalise(hypothesis.text, language, changes) for hypothesis in heard],
            )
        )
        probes["joined"] = {
            "inputs": len(joined),
            "words": counts.units,
            "errors": counts.errors,
            "wer": counts.rate,
            "texts": [hypothesis.text for hypothesis in heard],
        }
    return probes


def _inserted(
    heard: Sequence[str], inputs: Sequence[Waveform], language: str | None, changes: text.Changes
) -> dict[str, Any]:
    """Words heard where nobody speaks: each is an insertion."""
    return {
        "inputs": len(inputs),
        "seconds": sum(len(waveform) for waveform in inputs) / SAMPLE_RATE,
        "words": sum(len(text.normalise(one, language, changes).split()) for one in heard),
        "texts": list(heard),
    }


def quiet_inputs() -> list[Waveform]:
    """Digital silence and faint white noise of 2 s and 10 s, always the same: four waveforms (S,)."""
    import numpy as np

    rng = np.random.default_rng(0)
    inputs = []
    for length_s in PROBE_S:
        samples = int(length_s * SAMPLE_RATE)
        inputs.append(np.zeros(samples, dtype=np.float32))
        inputs.append((HISS_RMS * rng.standard_normal(samples)).astype(np.float32))
    return inputs


def noise_inputs() -> list[Waveform]:
    """White and pink noise as loud as soft speech, 2 s and 10 s, always the same: four waveforms (S,)."""
    import numpy as np

    rng = np.random.default_rng(1)
    inputs = []
    for length_s in PROBE_S:
        white = rng.standard_normal(int(length_s * SAMPLE_RATE))
        spectrum = np.fft.rfft(white)
        pink = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 1)), len(white))  # power as 1/f
        for noise in (white, pink):
            inputs.append((NOISE_RMS * noise / np.sqrt(np.mean(noise**2))).astype(np.float32))
    return inputs


def _joined_groups(rows: Sequence[DatasetRow]) -> Iterator[list[DatasetRow]]:
    """Groups of rows that fill 30 s with a short gap between two, at most JOINED_INPUTS of them."""
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
