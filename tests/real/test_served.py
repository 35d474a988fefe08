"""What is measured is what is served: an evaluation and `transcribe` write the same text of the same file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.real.conftest import THREADS
from voxloop import models
from voxloop.families.decoding import Decoding
from voxloop.pipeline import open_loop
from voxloop.settings import Settings
from voxloop.speech.audio import decode
from voxloop.steps import datasets, hearing, transcripts
from voxloop.steps.evaluation import measuring, scored_rows, sounds
from voxloop.steps.recordings import ingest
from voxloop.steps.utterances import segment

CLIPS = 4


@pytest.mark.parametrize("engine", ["torch", "ctranslate2"])
def test_an_evaluation_writes_what_transcribe_writes(
    engine: str, tmp_path: Path, tiny_en: Path, recordings: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = tmp_path / "said"
    said.mkdir()
    for number, file in enumerate(recordings[::-2][:CLIPS]):
        (said / f"{number}{file.suffix}").write_bytes(file.read_bytes())
        (said / f"{number}.txt").write_text(f"one two three {number}")
    monkeypatch.setattr(measuring, "probe", lambda *_: {})  # what the next test hears
    asked = {"base_model": str(tiny_en), "engine": engine, "device": "cpu", "threads": THREADS, "min_snr_db": -100.0}
    with open_loop(tmp_path / "workspace", create=True, **asked) as ws:
        segment(ws, list(ingest(ws, said, language="en", processes=1).taken))
        datasets.build(ws, ratios=(0.0, 0.0, 1.0))
        found = measuring.evaluate(ws)
        texts = sorted(row.hypothesis for row in scored_rows(ws, found))
        files = [file for file in said.iterdir() if file.suffix != ".txt"]
        assert texts == sorted(transcripts.transcribe_file(ws, file, language="en").text for file in files)
        assert sum(map(bool, texts)) >= CLIPS - 1
        assert found.decoding["engine"] == transcripts.decoding(ws).engine
        assert found.scores["edges"]["error_s"] < 0.5


def test_quiet_reaches_no_model_and_a_sentence_does(tiny_en: Path, recordings: list[Path]) -> None:
    """The sounds by which a better model was once refused: in use, none of them is ever given to a model."""
    from voxloop.families.whisper import WHISPER

    model = WHISPER.load(tiny_en)
    given = [*sounds.quiet_sounds().values(), decode(recordings[0])]
    heard = hearing.hear_files(model, given, Decoding(language="en"), Settings())
    assert [one.hypothesis.text for one in heard[:-1]] == [""] * (len(given) - 1)
    assert heard[-1].hypothesis.text
    # Given to the model itself, digital silence and hiss bring words that nobody said.
    alone = model.transcribe(given[:4], Decoding(language="en"))
    assert any(one.text for one in alone)
    models.free()
