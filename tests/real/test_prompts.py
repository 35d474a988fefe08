"""Prompt, beams and vocabulary on real weights: the texts of faster-whisper, and names that stock Whisper misses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from faster_whisper import WhisperModel

from tests.conftest import SHARED_DATA
from tests.real.conftest import THREADS
from tests.real.test_ctranslate_folder import GREEDY, PEER
from voxloop.families.decoding import PersonalVocabulary, Term
from voxloop.families.whisper import WHISPER
from voxloop.families.whisper.reading import Reader
from voxloop.records import MAX_UTTERANCE_SAMPLES
from voxloop.speech.audio import decode

PROMPT = "Notes of Captain Philip, in full sentences. Names: Raoul, Jeanne"
SAID = "Raoul"  # in the recording arctic_a0274 of kathleen_en; tiny.en hears "row"


@pytest.fixture(autouse=True)
def _few_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def exact(tiny_en: Path, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    target = tmp_path_factory.mktemp("converted") / "tiny.en"
    WHISPER.convert(tiny_en, target, "float32")
    return WHISPER.load_converted(target)


@pytest.mark.parametrize(("beams", "prompt"), [(5, ""), (1, PROMPT), (5, PROMPT)])
def test_the_texts_are_those_of_faster_whisper(
    tiny_en: Path, exact: Reader, clips: list[np.ndarray], beams: int, prompt: str
) -> None:
    peer = WhisperModel(str(tiny_en), device="cpu", compute_type="float32", cpu_threads=THREADS)

    def text(clip: np.ndarray) -> str:
        padded = np.pad(clip, (0, max(0, MAX_UTTERANCE_SAMPLES - len(clip))))
        found, _ = peer.transcribe(padded, **PEER | {"beam_size": beams, "initial_prompt": prompt or None})
        return "".join(segment.text for segment in found).strip()

    ours = exact.transcribe(clips, replace(GREEDY, beams=beams, prompt=prompt))
    assert [one.text for one in ours] == [text(clip) for clip in clips]


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the recording with this name is not in the repository")
@pytest.mark.parametrize("engine", ["torch", "ctranslate2"])
def test_a_name_is_heard_that_is_in_the_vocabulary(tiny_en: Path, exact: Reader, tmp_path: Path, engine: str) -> None:
    file = next((SHARED_DATA / "kathleen_en").glob("arctic_a0274*.flac"))
    clips = [decode(file)]
    reader = exact
    if engine == "torch":
        WHISPER.restore(tiny_en, tmp_path / "restored")
        reader = WHISPER.load(tmp_path / "restored")
    distractors = ("Zbigniew", "Gwendolyn", "Thaddeus", "Siobhan", "Ramanujan")
    known = PersonalVocabulary(terms=tuple(map(Term, (SAID, *distractors))), bonus=2.0)
    (plain,) = reader.transcribe(clips, GREEDY)
    (heard,) = reader.transcribe(clips, replace(GREEDY, vocabulary=known))
    assert SAID not in plain.text
    assert SAID in heard.text
    assert not any(name in heard.text for name in distractors)
