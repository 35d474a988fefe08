"""Pieces of live transcription: what is decided, how bytes become audio, voice detection piece by piece."""

from __future__ import annotations

import av
import hypothesis
import numpy as np
import pytest
import soxr
from hypothesis import strategies as st

from voxloop.errors import UsageError
from voxloop.families.contract import Hypothesis
from voxloop.records import Word
from voxloop.serving.agreement import Agreement, joined, units
from voxloop.serving.incoming import G711, Format, Incoming
from voxloop.speech import voice
from voxloop.speech.audio import from_pcm16, to_pcm16


def heard(text: str, *words: Word) -> Hypothesis:
    return Hypothesis(text=text, confidence=0.9, words=words)


def word(text: str, end: float, probability: float) -> Word:
    return Word(text=text, start=end - 0.3, end=end, probability=probability)


def test_a_word_is_decided_when_two_looks_agree_and_it_is_not_the_last() -> None:
    agreement = Agreement()
    assert agreement.take(heard("the cat"), 1.0, pause=False) == ([], ["the", " cat"])
    assert agreement.take(heard("the cats are"), 1.6, pause=False) == (["the"], [" cats", " are"])
    assert agreement.take(heard("the cats are"), 2.2, pause=False) == ([" cats"], [" are"])
    assert agreement.take(heard("the cats are"), 2.4, pause=True) == ([" are"], [])
    assert agreement.end("The cats are here.") == ([" here."], False)
    assert "".join(agreement.decided) == "the cats are here."


def test_a_sure_word_well_before_the_end_is_decided_at_once() -> None:
    agreement = Agreement()
    words = (word("one", 0.4, 0.95), word("two", 0.8, 0.99), word("three", 1.3, 0.99))
    assert agreement.take(heard("one two three", *words), 1.5, pause=False) == (["one", " two"], [" three"])
    doubtful = (word("one", 0.4, 0.5), word("two", 0.8, 0.99))
    assert Agreement().take(heard("one two", *doubtful), 5.0, pause=False) == ([], ["one", " two"])


def test_decided_words_stay_where_a_later_look_says_otherwise() -> None:
    agreement = Agreement()
    agreement.take(heard("she sells sea shells"), 2.0, pause=False)
    new, _ = agreement.take(heard("she sells sea shells on"), 2.6, pause=False)
    assert "".join(new) == "she sells sea shells"
    new, tail = agreement.take(heard("he sells seashells on the shore"), 3.2, pause=False)
    assert "".join(new + tail).strip() == "on the shore"
    rest, contradicted = agreement.end("he sells seashells on the shore")
    assert contradicted
    assert "".join(agreement.decided) == "she sells sea shells on the shore"
    assert rest == [" the", " shore"]


LOOKS = st.lists(st.lists(st.sampled_from(["one", "two", "three", "four", "Five,", "six."]), max_size=8), max_size=6)


@hypothesis.given(LOOKS)
def test_what_was_told_is_never_taken_back(looks: list[list[str]]) -> None:
    agreement = Agreement()
    told: list[str] = []
    for count, look in enumerate(looks):
        new, tail = agreement.take(heard(" ".join(look)), float(count), pause=count % 3 == 2)
        told += new
        assert agreement.decided == told
        assert "".join(tail) == "" or " ".join(look).endswith("".join(tail).strip())
    rest, _ = agreement.end(" ".join(looks[-1]) if looks else "")
    assert agreement.decided == told + rest


def test_scripts_without_spaces_are_decided_by_character() -> None:
    assert units("今日は good 天気") == ["今", "日", "は", " good", " 天", "気"]
    assert "".join(units("  Das ist, nun ja, gut. ")) == "Das ist, nun ja, gut."
    assert joined("今日は", "天気") == "今日は天気"
    assert joined("one", "two") == "one two"
    assert joined("", "two") == "two"


@pytest.mark.parametrize(("codec", "coder"), [("pcmu", "pcm_mulaw"), ("pcma", "pcm_alaw")])
def test_g711_is_decoded_as_ffmpeg_does(codec: str, coder: str) -> None:
    context = av.CodecContext.create(coder, "r")
    context.sample_rate, context.layout = 8_000, "mono"
    (frame,) = context.decode(av.Packet(bytes(range(256))))
    assert np.array_equal(G711[codec], frame.to_ndarray()[0].astype(np.float32))


@pytest.mark.parametrize("rate", [8_000, 24_000, 44_100, 48_000])
def test_pieces_of_any_length_are_resampled_without_seams(rate: int) -> None:
    chance = np.random.default_rng(rate)
    pcm = to_pcm16((0.3 * chance.standard_normal(3 * rate)).astype(np.float32))
    incoming = Incoming(Format(rate=rate))
    pieces, place = [], 0
    while place < len(pcm):
        size = 2 * int(chance.integers(0, 5_000))
        pieces.append(incoming.hear(pcm[place : place + size]))
        place += size
    pieces.append(incoming.end())
    whole = soxr.resample(from_pcm16(pcm), rate, 16_000)
    assert np.abs(np.concatenate(pieces)[: len(whole)] - whole).max() < 1e-4
    assert abs(sum(map(len, pieces)) - len(whole)) <= 1


def test_frequencies_above_the_new_rate_do_not_fold_back() -> None:
    time = np.arange(2 * 24_000) / 24_000
    for hertz, kept in ((3_000, True), (10_000, False)):
        incoming = Incoming(Format(rate=24_000))
        tone = to_pcm16((0.5 * np.sin(2 * np.pi * hertz * time)).astype(np.float32))
        found = np.concatenate([incoming.hear(tone), incoming.end()])[2_000:-2_000]
        assert (float(np.sqrt((found**2).mean())) > 0.3) is kept
        if not kept:
            assert np.abs(found).max() < 1e-3


def test_channels_are_mixed_and_parts_of_samples_refused() -> None:
    stereo = np.array([[8192, -8192], [16384, 0]], "<i2").tobytes()
    assert Incoming(Format(rate=16_000, channels=2)).hear(stereo).tolist() == [0.0, 0.25]
    with pytest.raises(UsageError, match="a multiple of 4"):
        Incoming(Format(rate=16_000, channels=2)).hear(stereo[:-1])
    for wrong in ({"rate": 100}, {"rate": 1_000_000}, {"channels": 0}, {"channels": 99}):
        with pytest.raises(UsageError):
            Format(**wrong)  # type: ignore[arg-type]


def test_voice_is_detected_piece_by_piece_as_in_one() -> None:
    chance = np.random.default_rng(0)
    sound = (0.1 * chance.standard_normal(16_000 * 4)).astype(np.float32)
    stream, found, place = voice.Stream(), [], 0
    while place < len(sound):
        size = int(chance.integers(1, 2_000))
        found += stream.hear(sound[place : place + size])
        place += size
    whole = voice.chances(lambda start, end: sound[start:end], len(sound))
    assert len(found) == len(sound) // voice.FRAME
    assert np.abs(np.array(found) - whole[: len(found)]).max() < 1e-5
