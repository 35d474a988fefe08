"""The Whisper family against stock transformers."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperProcessor

from tests.unit import tiny_whisper
from voxloop.errors import ModelError, TrainingError, UsageError
from voxloop.families.contract import Decoding, Guards, Segment
from voxloop.families.registry import family
from voxloop.families.whisper import WHISPER
from voxloop.families.whisper.features import MARGIN_S, features_of, frames_in, log_mel, padded_frames
from voxloop.families.whisper.reading import SPARE_TOKENS, TOKENS_PER_S, Reader
from voxloop.families.whisper.recogniser import WhisperRecogniser

RATE = 16_000


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper.make(tmp_path_factory.mktemp("english"))


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper.make(tmp_path_factory.mktemp("multilingual"), multilingual=True, seed=1)


def noise(*durations_s: float, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [(0.1 * rng.standard_normal(round(d * RATE))).astype(np.float32) for d in durations_s]


def trimmed(folder: Path) -> WhisperRecogniser:
    """The model, marked as tuned on trimmed audio."""
    recogniser = WHISPER.load(folder)
    recogniser.model.config.voxloop_audio_context = "trimmed"
    return recogniser


class TestFeatures:
    def test_a_clip_is_fed_as_twice_its_length_and_10_s_at_least(self) -> None:
        for clip_s, fed_s in ((0.1, 10), (5.0, 10), (5.1, 12), (7.0, 14), (14.9, 30), (15.1, 30), (30.0, 30)):
            assert frames_in(round(clip_s * RATE), "adaptive") == 100 * fed_s

    def test_equal_those_of_transformers_clip_by_clip(self) -> None:
        extractor = WhisperFeatureExtractor(feature_size=80)
        filters = torch.tensor(np.asarray(extractor.mel_filters).T, dtype=torch.float32)
        clips = [*noise(0.31, 2.0, 0.001), np.zeros(8_000, np.float32)]
        frames = [padded_frames(len(clip)) for clip in clips]
        batch = log_mel(clips, frames, filters)
        for clip, count, features in zip(clips, frames, batch, strict=True):
            padded = np.pad(clip, (0, count * 160 - len(clip)))
            expected = extractor(padded, sampling_rate=RATE, padding="do_not_pad", return_tensors="np").input_features
            np.testing.assert_allclose(features[:, :count].numpy(), expected[0], atol=2e-5)
            assert not features[:, count:].any()

    def test_equal_those_of_transformers_at_full_length(self) -> None:
        extractor = WhisperFeatureExtractor(feature_size=128)
        filters = torch.tensor(np.asarray(extractor.mel_filters).T, dtype=torch.float32)
        clips = noise(0.5, 30.0)
        batch = log_mel(clips, [3000, 3000], filters)
        expected = extractor(clips, sampling_rate=RATE, return_tensors="np").input_features
        np.testing.assert_allclose(batch.numpy(), expected, atol=2e-5)

    @pytest.mark.parametrize("samples", [1, 159, 160, 8_000, 123_457, 469_760, 469_761, 480_000])
    def test_length_has_the_margin_and_is_a_multiple_of_16(self, samples: int) -> None:
        frames = padded_frames(samples)
        assert frames == 3000 or frames % 16 == 0
        if frames < 3000:
            assert frames * 160 - samples >= round(MARGIN_S * RATE)
            assert frames * 160 - samples < round(MARGIN_S * RATE) + 16 * 160


class TestNetwork:
    def test_full_length_equals_stock_exactly(self, english: Path) -> None:
        stock = WhisperForConditionalGeneration.from_pretrained(english).eval()
        ours = WHISPER.load(english).model
        features = torch.randn(2, 80, 3000)
        tokens = torch.randint(0, 256, (2, 7))
        with torch.inference_mode():
            expected = stock(input_features=features, decoder_input_ids=tokens).logits
            assert torch.equal(ours(input_features=features, decoder_input_ids=tokens).logits, expected)

    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    def test_padding_does_not_change_logits(self, english: Path, attention: str) -> None:
        recogniser = WHISPER.load(english)
        recogniser.model.set_attn_implementation(attention)
        short, long = noise(0.4, 3.0)
        tokens = torch.randint(0, 256, (1, 9))

        def logits(clips: list[np.ndarray]) -> torch.Tensor:
            features, mask = features_of(clips, "trimmed", recogniser.filters, "cpu")
            given = tokens.expand(len(clips), -1)
            with torch.inference_mode():
                return recogniser.model(input_features=features, attention_mask=mask, decoder_input_ids=given).logits

        alone, together = logits([short]), logits([short, long])
        assert alone.std() > 0.1
        torch.testing.assert_close(together[:1], alone, atol=1e-3, rtol=0)
        torch.testing.assert_close(together[1:], logits([long]), atol=1e-3, rtol=0)

    def test_mask_is_needed(self, english: Path) -> None:
        # Guards the test above: without the mask the same padding is heard.
        recogniser = WHISPER.load(english)
        features, mask = features_of(noise(0.4, 3.0), "trimmed", recogniser.filters, "cpu")
        tokens = torch.randint(0, 256, (2, 9))
        with torch.inference_mode():
            masked = recogniser.model(input_features=features, attention_mask=mask, decoder_input_ids=tokens).logits
            heard = recogniser.model(input_features=features, decoder_input_ids=tokens).logits
        assert (masked[0] - heard[0]).abs().max() > 0.05

    def test_learns_under_lora_with_a_mask(self, english: Path) -> None:
        from peft import LoraConfig, get_peft_model

        trainable = WHISPER.open_for_training(english, audio_context="trimmed")
        model = get_peft_model(trainable.model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
        batch = WHISPER.collate(trainable, noise(0.5, 1.5), ["one", "two three"], [None, None])
        loss = model(**batch).loss
        loss.backward()
        touched = [name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()]
        assert touched
        assert all("lora_" in name for name in touched)


class TestTranscribe:
    def test_greedy_equals_stock_generate_at_full_length(self, english: Path) -> None:
        clips = noise(0.7, 4.0, 2.0)
        processor = WhisperProcessor.from_pretrained(english)
        stock = WhisperForConditionalGeneration.from_pretrained(english).eval()
        features = processor(clips, sampling_rate=RATE, return_tensors="pt").input_features
        expected = processor.batch_decode(stock.generate(features, max_new_tokens=30), skip_special_tokens=True)
        found = WHISPER.load(english).transcribe(clips, Decoding(max_new_tokens=30))
        assert [h.text for h in found] == [text.strip() for text in expected]
        assert any(h.text for h in found)

    def test_confidence_is_that_of_stock_scores(self, english: Path) -> None:
        clip = noise(1.0)[0]
        processor = WhisperProcessor.from_pretrained(english)
        stock = WhisperForConditionalGeneration.from_pretrained(english).eval()
        features = processor(clip, sampling_rate=RATE, return_tensors="pt").input_features
        out = stock.generate(features, max_new_tokens=12, return_dict_in_generate=True, output_scores=True)
        chances = [scores[0].float().softmax(-1).max().item() for scores in out.scores]
        found = WHISPER.load(english).transcribe([clip], Decoding(max_new_tokens=12))[0]
        assert found.confidence == pytest.approx(sum(chances) / len(chances), abs=1e-4)

    def test_language_given_and_detected_equal_stock(self, multilingual: Path) -> None:
        clips = noise(0.7, 2.5)
        processor = WhisperProcessor.from_pretrained(multilingual)
        stock = WhisperForConditionalGeneration.from_pretrained(multilingual).eval()
        features = processor(clips, sampling_rate=RATE, return_tensors="pt").input_features
        recogniser = WHISPER.load(multilingual)
        given = recogniser.transcribe(clips, Decoding(language="vi", max_new_tokens=20))
        expected = stock.generate(features, language="vi", task="transcribe", max_new_tokens=20)
        assert [h.text for h in given] == [
            t.strip() for t in processor.batch_decode(expected, skip_special_tokens=True)
        ]
        assert {h.language for h in given} == {"vi"}
        detected = recogniser.transcribe(clips, Decoding(max_new_tokens=20))
        ids = stock.detect_language(features).tolist()
        assert [f"<|{h.language}|>" for h in detected] == processor.tokenizer.convert_ids_to_tokens(ids)

    def test_translations_equal_those_of_stock(self, multilingual: Path, english: Path, tmp_path: Path) -> None:
        clips = noise(0.7, 2.5)
        processor = WhisperProcessor.from_pretrained(multilingual)
        stock = WhisperForConditionalGeneration.from_pretrained(multilingual).eval()
        features = processor(clips, sampling_rate=RATE, return_tensors="pt").input_features
        made = stock.generate(features, language="vi", task="translate", max_new_tokens=20)
        expected = [text.strip() for text in processor.batch_decode(made, skip_special_tokens=True)]
        heard = stock.generate(features, language="vi", task="transcribe", max_new_tokens=20)
        assert not torch.equal(made, heard)
        asked = Decoding(language="vi", task="translate", max_new_tokens=20)
        WHISPER.convert(multilingual, tmp_path / "converted", "float32")
        for reader in (WHISPER.load(multilingual), WHISPER.load_converted(tmp_path / "converted")):
            found = reader.transcribe(clips, asked, word_times=True)
            assert [one.text for one in found] == expected
        with pytest.raises(UsageError, match="knows English alone and cannot translate"):
            WHISPER.load(english).transcribe([], asked)

    def test_a_language_is_detected_among_those_that_may_be_spoken(self, multilingual: Path, tmp_path: Path) -> None:
        WHISPER.convert(multilingual, tmp_path / "converted", "float32")
        for reader in (WHISPER.load(multilingual), WHISPER.load_converted(tmp_path / "converted")):
            (free,) = reader.transcribe(noise(0.7), Decoding(max_new_tokens=2))
            others = tuple(code for code in tiny_whisper.LANGUAGES if code != free.language)
            (found,) = reader.transcribe(noise(0.7), Decoding(max_new_tokens=2, languages=others))
            assert found.language in others
            (only,) = reader.transcribe(noise(0.7), Decoding(max_new_tokens=2, languages=others[:1]))
            assert (only.language, only.language_probability) == (others[0], 1.0)

    def test_tokens_are_those_of_the_text(self, english: Path, tmp_path: Path) -> None:
        WHISPER.convert(english, tmp_path / "converted", "float32")
        for reader in (WHISPER.load(english), WHISPER.load_converted(tmp_path / "converted")):
            for temperature in (0.0, 0.7):
                (found,) = reader.transcribe(noise(1.0), Decoding(max_new_tokens=12, temperature=temperature))
                assert b"".join(token.text for token in found.tokens).decode("utf-8", "replace").strip() == found.text
                assert found.text
                assert all(token.logprob <= 0 for token in found.tokens)
                assert found.mean_logprob is not None
                total = found.mean_logprob * (len(found.tokens) + (len(found.tokens) < 12))
                assert sum(token.logprob for token in found.tokens) >= total - 1e-3

    def test_unknown_language_is_refused(self, multilingual: Path) -> None:
        with pytest.raises(ModelError, match="no language 'xx'"):
            WHISPER.load(multilingual).transcribe(noise(0.5), Decoding(language="xx"))

    def test_batch_and_order_do_not_matter(self, english: Path) -> None:
        recogniser = trimmed(english)
        clips = noise(0.4, 3.0, 0.9, 0.05, 1.7)
        alone = [recogniser.transcribe([clip], Decoding())[0] for clip in clips]
        together = recogniser.transcribe(clips, Decoding())
        few = recogniser.transcribe(clips, Decoding(batch_seconds=4.0))
        for hypotheses in (together, few):
            assert [h.text for h in hypotheses] == [h.text for h in alone]
            for found, expected in zip(hypotheses, alone, strict=True):
                assert found.confidence == pytest.approx(expected.confidence, abs=1e-4)

    def test_masks_follow_beams(self, english: Path) -> None:
        recogniser = trimmed(english)
        clips = noise(0.4, 3.0)
        alone = [recogniser.transcribe([clip], Decoding(beams=3))[0] for clip in clips]
        together = recogniser.transcribe(clips, Decoding(beams=3))
        assert [h.text for h in together] == [h.text for h in alone]
        assert all(h.confidence is not None and 0 < h.confidence <= 1 for h in together)

    def test_text_is_bounded_by_the_sound(self, english: Path) -> None:
        recogniser = trimmed(english)
        recogniser.model.generation_config.suppress_tokens = [256]  # it never ends by itself
        found = recogniser.transcribe(noise(0.2), Decoding())[0]
        assert 0 < len(found.text) <= 0.2 * TOKENS_PER_S + SPARE_TOKENS

    def test_empty_and_tiny_sound(self, english: Path) -> None:
        found = trimmed(english).transcribe([np.zeros(0, np.float32), np.zeros(1, np.float32)], Decoding())
        assert found[0].text == ""
        assert found[0].confidence is None
        assert found[1].confidence is not None
        assert trimmed(english).transcribe([], Decoding()) == []

    def test_longer_than_the_window_is_refused(self, english: Path) -> None:
        with pytest.raises(UsageError, match="at most 30 s"):
            WHISPER.load(english).transcribe([np.zeros(480_001, np.float32)], Decoding())

    def test_untuned_model_warns_when_trimmed(self, english: Path, caplog: pytest.LogCaptureFixture) -> None:
        recogniser = WHISPER.load(english)
        with caplog.at_level(logging.WARNING):
            recogniser.transcribe(noise(0.3), Decoding(audio_context="trimmed", max_new_tokens=2))
        assert "not trained on trimmed audio" in caplog.text

    @pytest.mark.parametrize("engine", ["torch", "ctranslate2"])
    def test_a_doubtful_text_is_read_again_at_30_s(self, engine: str, english: Path, tmp_path: Path) -> None:
        """What fires is the guard on repetition, at any text; the rest of the batch is not read again."""
        if engine == "torch":
            recogniser: Reader = WHISPER.load(english)
        else:
            WHISPER.convert(english, tmp_path / "converted", "float32")
            recogniser = WHISPER.load_converted(tmp_path / "converted")
        clips, heard = noise(0.7, 3.0, 11.0), []
        doubtful = Guards(max_compression=0.01, min_logprob=-100.0, temperatures=())
        asked = Decoding(guards=doubtful, max_new_tokens=8)
        full = recogniser.transcribe(clips, asked)
        adaptive = recogniser.transcribe(clips, replace(asked, untuned="adaptive"), heard=heard.append)
        assert [one.text for one in adaptive] == [one.text for one in full]
        assert [one.mean_logprob for one in adaptive] == pytest.approx([one.mean_logprob for one in full], abs=1e-4)
        assert sum(heard) == pytest.approx(14.7)  # each clip is counted once

    def test_an_untuned_model_is_fed_as_is_asked_for(self, english: Path) -> None:
        recogniser = WHISPER.load(english)
        assert recogniser.context("auto") == "full"
        assert recogniser.context("auto", untuned="adaptive") == "adaptive"
        assert trimmed(english).context("auto", untuned="adaptive") == "trimmed"

    def test_leaves_a_training_model_training(self, english: Path) -> None:
        trainable = WHISPER.open_for_training(english, audio_context="trimmed")
        trainable.model.train()
        WHISPER.recogniser(trainable, trainable.model).transcribe(noise(0.3), Decoding(max_new_tokens=2))
        assert trainable.model.training


class TestEmbed:
    def test_unit_vectors_that_do_not_depend_on_the_batch(self, english: Path) -> None:
        recogniser = trimmed(english)
        clips = noise(0.4, 3.0, 1.0)
        vectors = recogniser.embed(clips)
        assert vectors.shape == (3, 32)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(recogniser.embed(clips[:1])[0], vectors[0], atol=1e-4)


class TestTraining:
    def test_the_text_and_its_end_are_learnt_and_the_prompt_is_not(self, english: Path, multilingual: Path) -> None:
        for folder, code in ((english, None), (multilingual, "de")):
            trainable = WHISPER.open_for_training(folder, audio_context="trimmed")
            tokenizer = WhisperProcessor.from_pretrained(folder).tokenizer
            batch = WHISPER.collate(trainable, noise(0.5, 0.7), ["one", "two zero"], [code, code])
            names = tokenizer.convert_ids_to_tokens([t for t in batch["labels"][0].tolist() if t != -100])
            prompt = ["<|notimestamps|>"] if code is None else ["<|de|>", "<|transcribe|>", "<|notimestamps|>"]
            # A model that hears 30 s was published, and its texts begin with a space.
            assert names == ["Ġ", "o", "n", "e", "<|endoftext|>"]
            given = tokenizer.convert_ids_to_tokens(batch["decoder_input_ids"][0].tolist())
            assert given[: len(prompt) + 5] == ["<|startoftranscript|>", *prompt, *names[:-1]]
            assert WHISPER.label_length(trainable, "one", code) == len(prompt) + len(names)

    def test_a_model_tuned_to_short_contexts_writes_no_space_before_its_texts(
        self, english: Path, tmp_path: Path
    ) -> None:
        trainable = WHISPER.open_for_training(english, audio_context="trimmed")
        WHISPER.save(trainable, trainable.model, tmp_path / "tuned")
        assert WHISPER.tuned_context(english) == "full"
        assert WHISPER.tuned_context(tmp_path / "tuned") == "trimmed"
        again = WHISPER.open_for_training(tmp_path / "tuned", audio_context="trimmed")
        said = WHISPER.collate(again, noise(0.5), ["one"], [None])["labels"]
        assert again.processor.tokenizer.decode(said[said != -100][:-1]) == "one"

    def test_segments_are_written_with_their_times_in_steps_of_20_ms(self, tmp_path: Path) -> None:
        folder = tiny_whisper.make(tmp_path / "timed", multilingual=True, vocabulary=256 + 11 + 1501)
        trainable = WHISPER.open_for_training(folder, audio_context="full")
        assert trainable.time_stamps
        first = trainable.processor.tokenizer.convert_tokens_to_ids("<|notimestamps|>") + 1
        parts = [Segment(text="a", start=0.0, end=1.235), Segment(text="b", start=1.4, end=30.0)]
        batch = WHISPER.collate(trainable, noise(3.0, 2.0), [parts, "c"], ["de", "de"], at_least_s=10.0)
        stamped, plain = batch["labels"].tolist()
        space, a, b = (trainable.processor.tokenizer.convert_tokens_to_ids(name) for name in ("Ġ", "a", "b"))
        end = trainable.vocabulary.end
        assert stamped == [-100, -100, first, space, a, first + 62, first + 70, space, b, first + 1500, end]
        assert batch["decoder_input_ids"][0].tolist()[:4] == [*trainable.vocabulary.prompt("de")[:-1], first]
        assert plain[:3] == [-100] * 3
        assert WHISPER.label_length(trainable, parts, "de") == len(stamped)
        assert batch["input_features"].shape[-1] == 1008
        assert "attention_mask" not in batch

    def test_full_length_batches_are_padded_to_30_s_without_a_mask(self, english: Path) -> None:
        trainable = WHISPER.open_for_training(english, audio_context="trimmed")
        batch = WHISPER.collate(trainable, noise(0.5, 0.7), ["a", "b"], [None, None], at_least_s=30.0)
        assert batch["input_features"].shape == (2, 80, 3000)
        assert "attention_mask" not in batch

    def test_too_long_a_text_is_refused_with_its_length(self, english: Path) -> None:
        trainable = WHISPER.open_for_training(english, audio_context="trimmed")
        with pytest.raises(TrainingError, match="103 tokens, and the model writes at most 96"):
            WHISPER.collate(trainable, noise(0.5), ["a" * 100], [None])

    @pytest.mark.parametrize("lora", [False, True])
    def test_saved_folder_is_plain_whisper(self, english: Path, tmp_path: Path, lora: bool) -> None:
        from peft import LoraConfig, get_peft_model

        trainable = WHISPER.open_for_training(english, audio_context="trimmed")
        model = trainable.model
        if lora:
            model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
        clips = noise(0.6, 2.0)
        before = WHISPER.recogniser(trainable, model).transcribe(clips, Decoding(max_new_tokens=16))
        WHISPER.save(trainable, model, tmp_path / "saved")
        config = json.loads((tmp_path / "saved" / "config.json").read_text())
        assert config["architectures"] == ["WhisperForConditionalGeneration"]
        assert config["voxloop_audio_context"] == "trimmed"
        assert (tmp_path / "saved" / "adapter" / "adapter_model.safetensors").exists() == lora
        _, info = WhisperForConditionalGeneration.from_pretrained(tmp_path / "saved", output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        after = family("whisper").load(tmp_path / "saved").transcribe(clips, Decoding(max_new_tokens=16))
        assert [h.text for h in after] == [h.text for h in before]


class TestRefusals:
    def test_another_kind_of_model(self, tmp_path: Path) -> None:
        from transformers import BertConfig

        BertConfig().save_pretrained(tmp_path)
        with pytest.raises(ModelError, match="type 'bert'"):
            WHISPER.load(tmp_path)

    def test_no_model_at_all(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="not a model folder"):
            WHISPER.load(tmp_path)

    def test_pickled_weights(self, english: Path, tmp_path: Path) -> None:
        for file in english.iterdir():
            if file.suffix != ".safetensors":
                (tmp_path / file.name).write_bytes(file.read_bytes())
        torch.save({}, tmp_path / "pytorch_model.bin")
        with pytest.raises(ModelError, match="pickled ones"):
            WHISPER.load(tmp_path)

    def test_an_unreachable_hub(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(ModelError, match="check the name and the network"):
            WHISPER.load("nobody/no-such-whisper")
