"""The same clips through four programs: a real model that went the way of a tuned one is read alike in each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.conftest import ROOT, SHARED_DATA
from tests.real.conftest import THREADS
from voxloop.families.contract import Heard
from voxloop.families.decoding import Decoding
from voxloop.families.whisper import WHISPER
from voxloop.speech import text
from voxloop.speech.audio import decode

NOISE = 1e-4  # added to every weight: as little as no text follows, and no weight is the base's any more
POINT = 0.01
LATE_S = 1.0


@pytest.fixture(autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(THREADS)


@pytest.fixture(scope="module")
def spoken() -> list[tuple[np.ndarray, str]]:
    """Five sentences of English, some 20 s in all, with what is said in them."""
    folder = SHARED_DATA / "kathleen_en"
    if not folder.is_dir():
        folder = ROOT / "demo" / "speech"
    rows = [json.loads(row) for row in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    name = "file" if "file" in rows[0] else "file_name"
    return [(decode(folder / row[name]), row["text"]) for row in rows[::40][:5]]


@pytest.fixture(scope="module")
def tuned(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What training saves: adapters merged into weights that are not the base's any more, the adapter beside."""
    trainable = WHISPER.open_for_training(folder, audio_context="full")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in trainable.model.parameters():
            weight += NOISE * torch.randn(weight.shape, generator=generator)
    adapted = get_peft_model(trainable.model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    saved = tmp_path_factory.mktemp("tuned") / "best"
    WHISPER.save(trainable, adapted, saved)
    return saved


def wer(spoken: Sequence[tuple[np.ndarray, str]], heard: Sequence[str]) -> float:
    counts = text.word_errors_each(
        [text.normalise(said, "en") for _, said in spoken], [text.normalise(one, "en") for one in heard]
    )
    return text.total(counts).rate


def test_four_programs_read_it_alike(tuned: Path, spoken: list[tuple[np.ndarray, str]], tmp_path: Path) -> None:
    clips = [clip for clip, _ in spoken]
    ours = [one.text for one in WHISPER.load(tuned).transcribe(clips, Decoding(language="en", audio_context="full"))]
    assert not WHISPER.complete(tuned, tmp_path / "transformers")
    WHISPER.convert(tmp_path / "transformers", tmp_path / "ctranslate2", "float16")
    WHISPER.write_ggml(tmp_path / "transformers", tmp_path / "ggml")
    multilingual = WHISPER.cost(tmp_path / "transformers").multilingual
    language = "en" if multilingual else None
    heard: dict[str, tuple[Heard, ...]] = {}
    for format in ("transformers", "ctranslate2", "ggml"):
        for reading in WHISPER.read_elsewhere(format, tmp_path / format, clips, language, None):  # type: ignore[arg-type]
            assert reading.heard is not None, (reading.program, reading.missing)
            heard[reading.program] = reading.heard
    assert len(heard) == 4
    rates = {program: wer(spoken, [one.text for one in found]) for program, found in heard.items()}
    words = sum(len(said.split()) for _, said in spoken)
    allowed = wer(spoken, ours) + max(POINT, 1.01 / words)  # of so few words one is more than a point
    assert all(rate <= allowed for rate in rates.values()), (rates, allowed, ours)
    for program, found in heard.items():
        for one, clip in zip(found, clips, strict=True):
            assert one.end is None or 0 < one.end <= len(clip) / 16_000 + LATE_S, (program, one)
