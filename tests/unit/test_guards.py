"""Guards against repetition and hallucination, the no-speech and language probabilities: against stock transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from tests.unit import tiny_whisper
from voxloop.families.decoding import Decoding, Guards, compression
from voxloop.families.whisper import WHISPER
from voxloop.families.whisper.recogniser import WhisperRecogniser, pick

RATE = 16_000
NOTHING = Guards(max_compression=100.0, min_logprob=-100.0, max_no_speech=1.0)
ASKED = Decoding(language="en", max_new_tokens=24)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper.make(tmp_path_factory.mktemp("guarded"), multilingual=True, seed=1)


@pytest.fixture(scope="module")
def recogniser(folder: Path) -> WhisperRecogniser:
    loaded = WHISPER.load(folder)
    loaded.model.config.voxloop_audio_context = "trimmed"
    return loaded


def noise(*durations_s: float) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [(0.1 * rng.standard_normal(round(d * RATE))).astype(np.float32) for d in durations_s]


def test_no_speech_and_language_probabilities_are_those_of_the_stock_model(folder: Path) -> None:
    clips = noise(0.7, 2.5)
    processor = WhisperProcessor.from_pretrained(folder)
    stock = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    features = processor(clips, sampling_rate=RATE, return_tensors="pt").input_features
    tokenizer = processor.tokenizer
    start = torch.full((2, 1), tokenizer.convert_tokens_to_ids("<|startoftranscript|>"))
    with torch.inference_mode():
        logits = stock(input_features=features, decoder_input_ids=start).logits[:, 0].float()
    silent = logits.softmax(-1)[:, tokenizer.convert_tokens_to_ids("<|nospeech|>")].tolist()
    codes = [f"<|{code}|>" for code in tiny_whisper.LANGUAGES]
    languages = logits[:, tokenizer.convert_tokens_to_ids(codes)].softmax(-1).amax(-1).tolist()
    loaded = WHISPER.load(folder)
    for beams in (1, 2):
        heard = loaded.transcribe(clips, Decoding(max_new_tokens=8, beams=beams))
        assert [one.no_speech for one in heard] == pytest.approx(silent, abs=1e-4)
        assert [one.language_probability for one in heard] == pytest.approx(languages, abs=1e-4)
    given = loaded.transcribe(clips, Decoding(max_new_tokens=8, language="vi"))
    assert [(one.language, one.language_probability) for one in given] == [("vi", None)] * 2
    loaded.vocabulary = replace(loaded.vocabulary, no_speech=None)
    assert [one.no_speech for one in loaded.transcribe(clips, ASKED)] == [None, None]


class TestRules:
    """The rules of whisper/transcribe.py, decode_with_fallback."""

    def test_what_repeats_itself(self) -> None:
        assert Guards().fired("and so on " * 30, -0.1, 0.0) == ("repetition",)
        assert Guards().fired("and so on and so forth, as it is", -0.1, 0.0) == ()

    def test_what_is_a_guess(self) -> None:
        assert Guards().fired("text", -1.01, 0.1) == ("low probability",)
        assert Guards().fired("text", -1.01, None) == ("low probability",)
        assert Guards().fired("text", -0.99, None) == ()

    def test_silence_needs_both(self) -> None:
        assert Guards().fired("thanks for watching", -1.5, 0.7) == ("no speech",)
        assert Guards().fired("a clear sentence", -0.2, 0.7) == ()

    def test_compression(self) -> None:
        assert compression("") == 0.0
        assert compression("short") < 1
        assert compression("la " * 100) > 10


class TestDecoding:
    def test_a_text_that_passes_is_what_it_was(self, recogniser: WhisperRecogniser) -> None:
        clips = noise(0.4, 2.0, 0.9)
        plain = recogniser.transcribe(clips, ASKED)
        guarded = recogniser.transcribe(clips, replace(ASKED, guards=NOTHING))
        assert [replace(one, guards=()) for one in guarded] == plain
        assert all("repetition" not in one.guards for one in guarded)

    def test_only_what_fails_is_decoded_again(
        self, recogniser: WhisperRecogniser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clips = noise(0.4, 2.0, 0.9, 1.4)
        plain = recogniser.transcribe(clips, ASKED)
        scores = sorted(one.mean_logprob or 0.0 for one in plain)
        guards = replace(NOTHING, min_logprob=(scores[1] + scores[2]) / 2)
        sizes = []
        inner = recogniser._greedy

        def counted(states: torch.Tensor, *rest: object) -> object:
            sizes.append(len(states))
            return inner(states, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(recogniser, "_greedy", counted)
        found = recogniser.transcribe(clips, replace(ASKED, guards=guards))
        assert sizes[0] == 4
        assert sizes[1] == 2
        assert sizes == sorted(sizes, reverse=True)
        for one, before in zip(found, plain, strict=True):
            if (before.mean_logprob or 0.0) > guards.min_logprob:
                assert one.text == before.text
            else:
                assert "low probability" in one.guards
                # Better than the likeliest text token by token, or that text itself.
                assert (one.mean_logprob or 0.0) >= (before.mean_logprob or 0.0)

    def test_sampling_repeats_in_any_batch(self, recogniser: WhisperRecogniser) -> None:
        clips = noise(0.4, 2.0, 0.9)
        asked = replace(ASKED, guards=replace(NOTHING, max_compression=0.01, temperatures=(0.6,)))
        together = recogniser.transcribe(clips, asked)
        assert together == recogniser.transcribe(clips, asked)
        alone = [recogniser.transcribe([clip], asked)[0] for clip in clips]
        assert [one.text for one in alone] == [one.text for one in together]

    def test_a_repeating_text_gives_way(self, recogniser: WhisperRecogniser) -> None:
        # Every text compresses more than this, so all fail and the likeliest stays, with what fired.
        found = recogniser.transcribe(noise(1.5), replace(ASKED, guards=replace(NOTHING, max_compression=0.01)))[0]
        assert "repetition" in found.guards
        assert found.text

    def test_no_speech_leaves_no_text(self, recogniser: WhisperRecogniser) -> None:
        guards = Guards(min_logprob=-1e-9, max_no_speech=0.0)
        found = recogniser.transcribe(noise(1.5), replace(ASKED, guards=guards), word_times=True)[0]
        assert (found.text, found.words, found.guards) == ("", (), ("no speech",))
        assert found.no_speech is not None
        assert found.no_speech > 0

    def test_silence_is_not_decoded(self, recogniser: WhisperRecogniser) -> None:
        silence = np.full(RATE, 1e-4, np.float32)
        found = recogniser.transcribe([silence, *noise(0.5)], replace(ASKED, guards=NOTHING))
        assert (found[0].text, found[0].guards) == ("", ("silence",))
        assert found[1].guards != ("silence",)

    def test_a_text_at_the_limit_is_said_to_be_cut_off(self, recogniser: WhisperRecogniser) -> None:
        recogniser.model.generation_config.suppress_tokens = [256]  # it never ends by itself
        try:
            found = recogniser.transcribe(noise(1.0), replace(ASKED, guards=NOTHING))[0]
        finally:
            recogniser.model.generation_config.suppress_tokens = [257]
        assert found.guards == ("cut off",)


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([0.0, -torch.inf, 1.0, 2.0])
    draws = 1 - torch.from_numpy(np.random.default_rng(0).random(20_000))
    found = torch.bincount(pick(logits.expand(len(draws), -1), draws), minlength=4) / len(draws)
    torch.testing.assert_close(found, logits.softmax(-1), atol=0.01, rtol=0)
    assert pick(logits[None], torch.tensor([1.0], dtype=torch.double)).item() == 3
