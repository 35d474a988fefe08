"""What stands in front of a text: the prompt, on both engines, and what must not change with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.unit import tiny_whisper
from voxloop.errors import UsageError
from voxloop.families.decoding import Decoding, PersonalVocabulary, Term
from voxloop.families.whisper import WHISPER
from voxloop.families.whisper.reading import Reader
from voxloop.families.whisper.recogniser import WhisperRecogniser
from voxloop.starter import STARTER_DIR

RATE = 16_000
PREVIOUS, TASK = 264, [257, 258, 262, 266]  # of the tiny model: start of what was before; start, en, transcribe, plain
PLAIN = Decoding(language="en", audio_context="full")
PROMPTED = replace(PLAIN, prompt="Dear Zoë, <|en|> ")


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [(0.1 * rng.standard_normal(round(d * RATE))).astype(np.float32) for d in (1.0, 2.5, 4.0)]


@pytest.fixture(scope="module")
def torchs(tmp_path_factory: pytest.TempPathFactory) -> WhisperRecogniser:
    return WHISPER.load(tiny_whisper.make(tmp_path_factory.mktemp("tiny"), multilingual=True, seed=3))


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_whisper.make(folder / "saved", multilingual=True, seed=3)
    WHISPER.convert(folder / "saved", folder / "converted", "float32")
    return WHISPER.load_converted(folder / "converted")


@pytest.fixture(params=["torch", "ctranslate2"])
def reader(request: pytest.FixtureRequest, torchs: WhisperRecogniser, exact: Reader) -> Reader:
    return torchs if request.param == "torch" else exact


class TestBefore:
    def test_it_is_the_prompt_s_own_letters(self, reader: Reader) -> None:
        assert reader._before(PROMPTED) == [PREVIOUS, *" Dear Zoë, <|en|>".encode()]  # a token for each byte
        assert reader._before(PLAIN) == []

    def test_of_a_long_one_the_end_counts(self, reader: Reader) -> None:
        half = 96 // 2 - 1  # Whisper: 223 of 448
        assert reader._before(replace(PLAIN, prompt="a" * 60 + "b")) == [PREVIOUS, *b"a" * (half - 1), *b"b"]

    def test_of_a_vocabulary_the_terms_that_fit(self, reader: Reader) -> None:
        terms = (Term("Zoë"), Term("Ägypten", "de"), Term("Bo", "en"), Term("x" * 40))
        known = PersonalVocabulary(terms=terms, prompt=True)
        assert reader._before(replace(PLAIN, vocabulary=known)) == [PREVIOUS, *" Zoë, Bo.".encode()]
        both = replace(PROMPTED, vocabulary=known)
        assert reader._before(both) == [PREVIOUS, *" Zoë, Bo. Dear Zoë, <|en|>".encode()]

    def test_a_model_without_the_token_refuses_by_name(self) -> None:
        starter = WHISPER.load(STARTER_DIR)
        starter.tokenizer = type("Bare", (), {"added_tokens_decoder": {}, "encode": lambda *_, **__: [1]})()
        with pytest.raises(UsageError, match=r"startofprev.*leave `prompt` empty"):
            starter._before(PROMPTED)


@pytest.mark.parametrize("beams", [1, 3])
def test_both_engines_hear_the_same_behind_a_prompt(
    torchs: WhisperRecogniser, exact: Reader, clips: list[np.ndarray], beams: int
) -> None:
    asked = replace(PROMPTED, beams=beams)
    ours, theirs = exact.transcribe(clips, asked, word_times=True), torchs.transcribe(clips, asked, word_times=True)
    assert any(one.text != plain.text for one, plain in zip(ours, exact.transcribe(clips, PLAIN), strict=True))
    for one, other in zip(ours, theirs, strict=True):
        assert one.no_speech == pytest.approx(other.no_speech, abs=1e-4)
        if beams == 1:  # the two beam searches end differently
            assert one.text == other.text
            assert one.mean_logprob == pytest.approx(other.mean_logprob, abs=1e-3)
            edges = [(word.start - same.start) for word, same in zip(one.words, other.words, strict=True)]
            assert np.abs(edges).max(initial=0.0) <= 0.021


def test_it_is_read_as_transformers_reads_it(torchs: WhisperRecogniser, clips: list[np.ndarray]) -> None:
    """The same first token and the same probability of no speech as the bare network gives behind these tokens."""
    heard = torchs.transcribe(clips[:1], replace(PROMPTED, max_new_tokens=1))[0]
    states, _ = torchs._encode(clips[:1], "full")
    given = torch.tensor([[*torchs._before(PROMPTED), *TASK]])
    with torch.no_grad():
        logits = torchs.model(encoder_outputs=(states,), decoder_input_ids=given).logits[0]
    silent = logits[-len(TASK)].softmax(dim=-1)[torchs.vocabulary.no_speech]
    assert heard.no_speech == pytest.approx(float(silent), abs=1e-5)
    logits[-1, [257, 264, 256]] = -torch.inf  # never written, or not first
    assert heard.confidence == pytest.approx(float(logits[-1].softmax(dim=-1).max()), abs=1e-5)


def test_the_language_is_detected_without_it(reader: Reader, clips: list[np.ndarray]) -> None:
    plain = reader.transcribe(clips, replace(PLAIN, language=None))
    behind = reader.transcribe(clips, replace(PROMPTED, language=None))
    assert [(one.language, one.language_probability) for one in behind] == [
        (one.language, one.language_probability) for one in plain
    ]


def test_a_text_has_the_room_that_the_prompt_leaves(reader: Reader, clips: list[np.ndarray]) -> None:
    asked = replace(PLAIN, prompt="c" * 60, max_new_tokens=90)
    long = reader.transcribe(clips, asked, word_times=True)
    assert max(len(one.text) for one in long) <= 96 - (1 + 47 + 4)
    assert all(word.end <= len(clip) / RATE for one, clip in zip(long, clips, strict=True) for word in one.words)


def test_word_times_of_the_same_text_are_those_without_a_prompt(reader: Reader, clips: list[np.ndarray]) -> None:
    states, mask = reader._encode(clips[:1], "full")
    text = list(b" one two")
    with reader._running():
        bare = reader._token_times(states, mask, [0], [TASK], [text], [len(clips[0])])
    drafts = reader.transcribe(clips[:1], PROMPTED, word_times=True)
    assert drafts[0].words  # placed by the task's tokens alone, as `bare` was
    assert len(bare[0]) == len(text) + 1


def test_a_vocabulary_biases_both_engines_alike(
    torchs: WhisperRecogniser, exact: Reader, clips: list[np.ndarray]
) -> None:
    terms = tuple(Term(f"{one}{two}") for one in "abcdefghijk" for two in "lmnopqrstuv")
    known = PersonalVocabulary(terms=terms, bonus=5.0, bonus_limit=40.0)
    asked = replace(PLAIN, vocabulary=known, max_new_tokens=12)
    plain = exact.transcribe(clips, replace(PLAIN, max_new_tokens=12))
    ours = exact.transcribe(clips, asked)
    assert [one.text for one in ours] == [one.text for one in torchs.transcribe(clips, asked)]
    assert [one.text for one in ours] != [one.text for one in plain]
    none = PersonalVocabulary(terms=terms, bonus=1e-6)
    assert [one.text for one in exact.transcribe(clips, replace(asked, vocabulary=none))] == [one.text for one in plain]
