"""Word times: the warping against transformers' own, attention against attention weights, times against the truth."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.generation_whisper import _dynamic_time_warping, _median_filter

from tests.unit import tiny_whisper
from voxloop.families.contract import Decoding, Hypothesis
from voxloop.families.whisper import WHISPER, timing, words
from voxloop.families.whisper.recogniser import WhisperRecogniser
from voxloop.records import Word
from voxloop.speech.audio import decode
from voxloop.starter import STARTER_DIR
from voxloop.starter.spelling import byte_symbols

RATE = 16_000


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory: pytest.TempPathFactory) -> WhisperRecogniser:
    return WHISPER.load(tiny_whisper.make(tmp_path_factory.mktemp("timed"), multilingual=True, seed=1))


def noise(duration_s: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(duration_s * RATE))).astype(np.float32)


class TestWarping:
    @settings(max_examples=40, deadline=None)
    @given(
        sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 30)), min_size=1, max_size=4),
        seed=st.integers(0, 99),
    )
    def test_equals_transformers_however_many_at_once(self, sizes: list[tuple[int, int]], seed: int) -> None:
        rng = np.random.default_rng(seed)
        # Quarters add up without rounding, and meet often, so that ties are decided alike.
        matrices = [rng.integers(-8, 8, size).astype(np.float32) / 4 for size in sizes]
        for matrix, firsts in zip(matrices, timing.first_positions(matrices), strict=True):
            rows, columns = _dynamic_time_warping(matrix)
            assert firsts == [int(columns[rows == row].min()) for row in range(len(matrix))]

    @pytest.mark.parametrize("length", [1, 3, 4, 50])
    def test_median_filter_equals_transformers(self, length: int) -> None:
        values = torch.randn(2, 3, length, generator=torch.Generator().manual_seed(0))
        expected = _median_filter(values, 7)
        torch.testing.assert_close(timing.median_filter(values, 7), expected)

    def test_finds_the_joins_that_noisy_attention_was_made_of(self) -> None:
        rng = np.random.default_rng(0)
        joins = np.array([0, 11, 40, 47, 90, 120])
        attention = rng.normal(0, 0.5, (len(joins), 130))
        for row, (start, end) in enumerate(zip(joins, [*joins[1:], 130], strict=True)):
            attention[row, start:end] += 2.0
        (found,) = timing.first_positions([-attention.astype(np.float32)])
        assert np.abs(np.array(found) - joins).max() <= 2


@pytest.mark.parametrize("heads", [None, [[0, 1], [1, 0]]])
@pytest.mark.parametrize("context", ["full", "trimmed"])
def test_attention_is_that_of_the_slow_form(multilingual: WhisperRecogniser, heads: object, context: str) -> None:
    """Against `output_attentions` of the eager model, normalised by the formula of whisper/timing.py."""
    clips = [noise(1.3), noise(2.0, 1)]
    model = multilingual.model
    texts = [list(b"one two"), list(b"a b c d e")]
    positions = [65, 100]
    asked, task = Decoding(language="de"), multilingual.vocabulary.transcribe
    model.generation_config.alignment_heads = heads
    try:
        with torch.inference_mode():
            states, mask = multilingual._encode(clips, context)  # type: ignore[arg-type]
            prompts = torch.tensor(multilingual._prompts(states, mask, len(clips), asked, task)[0])
            found = timing._attention(model, states, mask, prompts, texts, positions)
            model.set_attn_implementation("eager")
            for index, text in enumerate(texts):
                tokens = torch.tensor([[*prompts[0].tolist(), *text, multilingual.vocabulary.end]])
                out = model.model(
                    encoder_outputs=BaseModelOutput(last_hidden_state=states[index : index + 1]),
                    attention_mask=None if mask is None else mask[index : index + 1],
                    decoder_input_ids=tokens,
                    output_attentions=True,
                    use_cache=False,
                )
                chosen = heads or [[1, 0], [1, 1]]  # the last half of two layers
                weights = torch.stack([out.cross_attentions[layer][0, head] for layer, head in chosen])  # type: ignore[attr-defined]
                weights = weights[..., : positions[index]]
                weights = weights / weights.sum(dim=-1, keepdim=True)  # a softmax over these positions alone
                std, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
                expected = _median_filter((weights - mean) / std, 7).mean(dim=0)[prompts.shape[1] - 1 : -1]
                np.testing.assert_allclose(found[index], expected.numpy(), atol=2e-3)
    finally:
        model.generation_config.alignment_heads = None
        model.set_attn_implementation("sdpa")


class TestWords:
    class Tokenizer:
        """Tokens that spell what they are given to spell."""

        def __init__(self, *spelled: bytes) -> None:
            self.spelled = spelled
            self.added_tokens_decoder = {99: "<|0.00|>"}

        def convert_ids_to_tokens(self, token: int) -> str:
            return "".join(byte_symbols()[byte] for byte in self.spelled[token])

    def words(self, spelled: list[bytes], language: str | None = None) -> list[tuple[str, float, float, float]]:
        tokens = list(range(len(spelled)))
        chances = [0.1 * (token + 1) for token in tokens]
        times = [float(token) for token in range(len(spelled) + 1)]
        found = words.words_of(self.Tokenizer(*spelled), tokens, chances, times, language)
        return [(word.text, word.start, word.end, word.probability) for word in found]

    def test_are_what_stands_between_spaces_with_its_marks(self) -> None:
        found = self.words([b" Don", b"'t", b" pay", b" 3", b".5", b"!"])
        assert found == [("Don't", 0, 2, 0.15), ("pay", 2, 3, 0.3), ("3.5!", 3, 6, 0.5)]

    def test_a_space_of_its_own_belongs_to_no_word(self) -> None:
        found = self.words([b"a", b" ", b"b", b"c"])
        assert found == [("a", 0, 1, 0.1), ("bc", 2, 4, 0.35)]

    def test_letters_of_several_tokens_and_tokens_of_several_letters(self) -> None:
        e_acute = "é".encode()
        assert self.words([b"caf", e_acute[:1], e_acute[1:], b" \xff"]) == [
            ("café", 0, 3, 0.2),
            ("\ufffd", 3, 4, 0.4),
        ]

    def test_are_characters_where_no_spaces_are_written(self) -> None:
        found = self.words(["今日".encode(), "は。".encode(), "「雨」".encode(), b"OK", b"3"], "ja")
        assert [word for word, *_ in found] == ["今", "日", "は。", "「雨」", "OK3"]
        assert "".join(word for word, *_ in self.words(["สวัสดี".encode()], "th")) == "สวัสดี"

    def test_time_stamps_spell_nothing(self) -> None:
        found = words.words_of(self.Tokenizer(b"a"), [99, 0, 99], [0.5] * 3, [0.0, 1.0, 2.0, 3.0], None)
        assert [(word.text, word.start, word.end) for word in found] == [("a", 1.0, 2.0)]

    @settings(max_examples=25, deadline=None)
    @given(text=st.text(max_size=30), cuts=st.lists(st.integers(0, 90), max_size=8))
    def test_are_the_text_again_in_any_tokens(self, text: str, cuts: list[int]) -> None:
        encoded = text.encode("utf-8", "replace")
        edges = sorted({0, len(encoded), *(cut for cut in cuts if cut < len(encoded))})
        spelled = [encoded[start:end] for start, end in itertools.pairwise(edges)]
        for language in (None, "ja"):
            found = self.words(spelled, language)
            assert "".join(word for word, *_ in found) == "".join(encoded.decode().split())
            for _, start, end, _ in found:
                assert start < end

    def test_begin_and_end_with_sound(self) -> None:
        rng = np.random.default_rng(0)
        clip = 0.001 * rng.standard_normal(2 * RATE)
        for start, end in ((0.3, 0.6), (1.0, 1.5)):
            clip[round(start * RATE) : round(end * RATE)] += 0.2 * rng.standard_normal(round((end - start) * RATE))
        crude = [Word(text="a", start=0.0, end=0.8, probability=1), Word(text="b", start=0.8, end=2.0, probability=1)]
        found = words.without_silence(crude, clip.astype(np.float32))
        assert [(word.start, word.end) for word in found] == [(0.3, 0.6), (1.0, 1.5)]
        silent = words.without_silence(crude, np.zeros(2 * RATE, np.float32))
        assert [(word.start, word.end) for word in silent] == [(0.0, 0.8), (0.8, 2.0)]


class TestRecogniser:
    @pytest.mark.parametrize("context", ["full", "trimmed"])
    @pytest.mark.parametrize("beams", [1, 2])
    def test_times_rise_and_lie_inside(self, multilingual: WhisperRecogniser, context: str, beams: int) -> None:
        clips = [noise(duration, seed) for seed, duration in enumerate((0.05, 0.4, 2.03, 1.0))]
        asked = Decoding(language="en", audio_context=context, beams=beams, max_new_tokens=40)  # type: ignore[arg-type]
        plain = multilingual.transcribe(clips, asked)
        timed = multilingual.transcribe(clips, asked, word_times=True)
        assert [one.text for one in timed] == [one.text for one in plain]
        assert any(one.words for one in timed)
        for clip, one, other in zip(clips, timed, plain, strict=True):
            assert other.words == ()
            # Bytes that are no text are written apart by the tokenizer; all else is the text's own words.
            if "\ufffd" not in one.text:
                assert [word.text for word in one.words] == one.text.split()
            times = [time for word in one.words for time in (word.start, word.end)]
            assert times == sorted(times)
            assert all(0 <= time <= len(clip) / RATE + 1e-3 for time in times)
            assert all(0 < word.probability <= 1 for word in one.words)

    def test_the_batch_does_not_matter(self, multilingual: WhisperRecogniser) -> None:
        clips = [noise(duration, seed) for seed, duration in enumerate((0.5, 1.7))]
        asked = Decoding(language="en", audio_context="trimmed", max_new_tokens=40)
        together = multilingual.transcribe(clips, asked, word_times=True)
        alone = [multilingual.transcribe([clip], asked, word_times=True)[0] for clip in clips]
        for one, other in zip(together, alone, strict=True):
            assert [word.text for word in one.words] == [word.text for word in other.words]
            for word, same in zip(one.words, other.words, strict=True):
                assert word.start == pytest.approx(same.start, abs=0.041)


def joined(folder: Path, count: int) -> Iterator[tuple[np.ndarray, list[tuple[str, float, float]]]]:
    """Two or three real digits of one speaker with pauses of faint noise; the sound, and what was said where."""
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    rng = np.random.default_rng(0)
    speakers = sorted({row["speaker"] for row in rows})
    for number in range(count):
        mine = [row for row in rows if row["speaker"] == speakers[number % len(speakers)]]
        pieces: list[np.ndarray] = []
        said = []
        at = 0
        for place in rng.integers(0, len(mine), int(rng.integers(2, 4))):
            gap = (0.0005 * rng.standard_normal(int(rng.uniform(0.05, 0.3) * RATE))).astype(np.float32)
            digit = decode(folder / mine[place]["file"])
            at += len(gap)
            said.append((mine[place]["text"], at / RATE, (at + len(digit)) / RATE))
            pieces += [gap, digit]
            at += len(digit)
        yield np.concatenate(pieces), said


def test_words_of_real_speech_lie_where_they_were_put(real_speech: Path) -> None:
    strings = list(joined(real_speech / "digits_en", 40))
    heard = WHISPER.load(STARTER_DIR).transcribe(
        [sound for sound, _ in strings], Decoding(language="en"), word_times=True
    )
    starts, ends = [], []
    for (_, said), one in zip(strings, heard, strict=True):
        if [word.text for word in one.words] == [text for text, *_ in said]:
            starts += [abs(word.start - start) for word, (_, start, _) in zip(one.words, said, strict=True)]
            ends += [abs(word.end - end) for word, (*_, end) in zip(one.words, said, strict=True)]
    print(
        f"{len(starts)} words: median error {np.median(starts):.3f} s at the start, {np.median(ends):.3f} s at the end"
    )
    assert len(starts) >= 40
    assert np.median(starts) < 0.08
    assert np.median(ends) < 0.12


def test_threads_that_share_a_model_hear_what_one_alone_hears(demo_speech: Path) -> None:
    recogniser = WHISPER.load(STARTER_DIR)
    clips = [decode(path) for path in sorted(demo_speech.glob("*.ogg"))[:8]]
    asked = Decoding(audio_context="trimmed")

    def heard(clip: np.ndarray) -> Hypothesis:
        return recogniser.transcribe([clip], asked, word_times=True)[0]

    alone = [heard(clip) for clip in clips]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(heard, clips * 2)) == alone * 2
