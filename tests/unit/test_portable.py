"""A vocabulary without time stamps is completed, so that other programs read the same text as before."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from tests.conftest import ROOT
from tests.unit import tiny_whisper
from voxloop.errors import ModelError
from voxloop.families.contract import Decoding
from voxloop.families.whisper import WHISPER, elsewhere, ggml, portable
from voxloop.speech.audio import decode
from voxloop.starter import STARTER_DIR

FULL = Decoding(audio_context="full")
LETTERS = set(" abcdefghijklmnopqrstuvwxyz'")  # that the starter writes
WINDOW = 480_000  # samples of 30 s


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    """Six clips of speech, padded with silence to 30 s: faster-whisper pads features of shorter ones with zeros."""
    files = sorted((ROOT / "demo" / "speech").glob("*.ogg"))[::20][:6]
    return [np.pad(one, (0, WINDOW - len(one))) for one in map(decode, files)]


@pytest.fixture(scope="module")
def completed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completed") / "whole"
    assert portable.complete(STARTER_DIR, folder)
    return folder


@pytest.fixture(scope="module")
def texts(clips: list[np.ndarray]) -> list[str]:
    found = [one.text.strip() for one in WHISPER.load(STARTER_DIR).transcribe(clips, FULL)]
    assert any(found)
    return found


def test_a_row_is_never_written_whatever_the_state(completed: Path) -> None:
    model = WhisperForConditionalGeneration.from_pretrained(completed)
    norm, embedding = model.model.decoder.layer_norm, model.model.decoder.embed_tokens.weight
    states = norm(torch.randn(1000, model.config.d_model, generator=torch.Generator().manual_seed(1)) * 3)
    logits = states @ embedding.T
    first = WhisperProcessor.from_pretrained(completed).tokenizer.convert_tokens_to_ids("<|0.00|>")
    assert torch.equal(logits[:, first], logits[:, first - 1])  # as `<|notimestamps|>`, before it in the vocabulary
    assert (logits[:, first + 1 :] - portable.LOGIT).abs().max() < 0.5


def test_without_a_shift_no_row_can_be_ruled_out(tmp_path: Path) -> None:
    random = tiny_whisper.make(tmp_path / "random")  # its last layer norm shifts nothing
    with pytest.raises(ModelError, match="no bias"):
        portable.complete(random, tmp_path / "whole")


def test_what_has_time_stamps_is_copied_as_it_is(completed: Path, tmp_path: Path) -> None:
    assert not portable.complete(completed, tmp_path / "again")
    weights = "model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (completed / weights).read_bytes()


def test_the_tokenizer_writes_what_it_wrote(completed: Path) -> None:
    tokenizer = WhisperProcessor.from_pretrained(completed).tokenizer
    text = "five o'clock, über-all 日本 ♪ - 'quoted'"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    assert tokenizer.convert_tokens_to_ids("<|0.00|>") == 264
    assert tokenizer.convert_tokens_to_ids("<|30.00|>") == 264 + 1500
    # What faster-whisper suppresses, `Tokenizer.non_speech_tokens`, holds no byte that words are written with.
    for symbol in (" -", " '", " ♪"):
        assert tokenizer(symbol, add_special_tokens=False).input_ids[0] > 264


def test_voxloop_reads_the_completed_model_as_before(
    completed: Path, clips: list[np.ndarray], texts: list[str]
) -> None:
    assert [one.text.strip() for one in WHISPER.load(completed).transcribe(clips, FULL)] == texts


def test_transformers_reads_it_with_and_without_time_stamps(
    completed: Path, clips: list[np.ndarray], texts: list[str]
) -> None:
    model = WhisperForConditionalGeneration.from_pretrained(completed)
    processor = WhisperProcessor.from_pretrained(completed)
    features = processor(clips, sampling_rate=16_000, return_tensors="pt").input_features
    for stamps in (False, True):
        written = model.generate(features, return_timestamps=stamps)
        found = processor.batch_decode(written, skip_special_tokens=True)
        assert [one.strip() for one in found] == texts
    (reading,) = WHISPER.read_elsewhere("transformers", completed, clips, None, None)  # which has five beams
    assert reading.heard is not None, reading.missing
    assert {letter for one in reading.heard for letter in one.text} <= LETTERS


def test_faster_whisper_reads_it_as_it_is_called_by_default(
    completed: Path, clips: list[np.ndarray], texts: list[str], tmp_path: Path
) -> None:
    WHISPER.convert(completed, tmp_path / "converted", "float32")
    # Greedy here, since a beam of five finds likelier texts now and then.
    from faster_whisper import WhisperModel

    model = WhisperModel(str(tmp_path / "converted"), device="cpu", cpu_threads=1)
    for stamps in (True, False):
        call = {"beam_size": 1, "temperature": 0.0, "without_timestamps": not stamps, "no_speech_threshold": None}
        found = [list(model.transcribe(clip, log_prob_threshold=None, **call)[0]) for clip in clips]
        assert ["".join(one.text for one in segments).strip() for segments in found] == texts
        assert all(0 <= one.start < one.end <= 30 for segments in found for one in segments)
    default, _ = WHISPER.read_elsewhere("ctranslate2", tmp_path / "converted", clips, None, None)
    assert default.heard is not None, default.missing
    letters = {letter for one in default.heard for letter in one.text}
    assert letters <= LETTERS, letters  # before: control characters, and never a space


def test_whisper_cpp_reads_it(completed: Path, clips: list[np.ndarray], texts: list[str], tmp_path: Path) -> None:
    from pywhispercpp.model import Model

    WHISPER.write_ggml(completed, tmp_path)
    model = Model(
        str(tmp_path / ggml.FILE),
        redirect_whispercpp_logs_to=None,
        print_progress=False,
        temperature_inc=0.0,
        greedy={"best_of": 1},
    )
    found = [model.transcribe(clip) for clip in clips]
    read = ["".join(one.text for one in segments).strip() for segments in found]
    # Half precision decides some near ties otherwise: these are words that the starter does not know.
    assert sum(one == other for one, other in zip(read, texts, strict=True)) >= 4, read
    assert {letter for one in read for letter in one} <= LETTERS
    assert all(0 <= one.t0 < one.t1 <= 3000 for segments in found for one in segments)


def test_the_file_for_whisper_cpp_has_its_layout(completed: Path, tmp_path: Path) -> None:
    """Read back by the layout of ggml-org/whisper.cpp, src/whisper.cpp, `whisper_model_load`."""
    WHISPER.write_ggml(completed, tmp_path)
    data = (tmp_path / ggml.FILE).read_bytes()
    shape = struct.unpack_from("<I11i", data)
    # magic; vocabulary, positions, width, heads, layers of the encoder; the same of the decoder; mels, float16
    assert shape == (0x67676D6C, 51_864, 1500, 128, 4, 4, 448, 128, 4, 3, 80, 1)
    mels, bins = struct.unpack_from("<2i", data, 48)
    assert (mels, bins) == (80, 201)
    place = 56 + mels * bins * 4
    (count,) = struct.unpack_from("<i", data, place)
    place += 4
    words = []
    for _ in range(count):
        (length,) = struct.unpack_from("<i", data, place)
        words.append(data[place + 4 : place + 4 + length])
        place += 4 + length
    assert count == 50_256
    assert sorted(words[:256]) == [bytes([value]) for value in range(256)]
    assert not any(words[256:])
    tensors = {}
    while place < len(data):
        rank, length, kind = struct.unpack_from("<3i", data, place)
        sides = struct.unpack_from(f"<{rank}i", data, place + 12)[::-1]
        place += 12 + 4 * rank
        name = data[place : place + length].decode()
        place += length
        dtype = np.dtype("<f2" if kind else "<f4")
        size = int(np.prod(sides)) * dtype.itemsize
        tensors[name] = np.frombuffer(data[place : place + size], dtype).reshape(sides)
        place += size
    assert place == len(data)
    state = WhisperForConditionalGeneration.from_pretrained(completed).state_dict()
    assert len(tensors) == len(state) - 1  # the output layer is the embedding
    written = tensors["encoder.blocks.2.attn.query.weight"]
    assert np.array_equal(written, state["model.encoder.layers.2.self_attn.q_proj.weight"].half().numpy())
    assert tensors["decoder.positional_embedding"].dtype == np.float32
    assert tensors["encoder.conv1.bias"].shape == (128, 1)
    embedding = state["model.decoder.embed_tokens.weight"].half().numpy()
    spread = tensors["decoder.token_embedding.weight"]
    assert np.array_equal(spread[[50_256, 50_257, 50_362, 50_363]], embedding[[256, 257, 263, 264]])


def test_a_vocabulary_that_whisper_cpp_has_no_place_for_is_refused() -> None:
    class Tokenizer:
        def get_added_vocab(self) -> dict[str, int]:
            return {"<|endoftext|>": 60_000, portable.NO_TIME_STAMPS: 60_001}

    with pytest.raises(ModelError, match="60,000 text tokens"):
        ggml._places(Tokenizer(), 61_600)


def test_a_text_without_end_is_cut_and_a_program_without_end_is_killed(
    completed: Path, clips: list[np.ndarray], tmp_path: Path
) -> None:
    endless = tiny_whisper.make(tmp_path / "endless")
    told = json.loads((endless / "generation_config.json").read_text())
    del told["max_length"]
    told["suppress_tokens"] = [256]  # the end
    (endless / "generation_config.json").write_text(json.dumps(told))
    (reading,) = elsewhere.read("transformers", endless, clips[:1], None, None)
    assert reading.heard is not None, reading.missing
    assert 0 < len(reading.heard[0].text) <= 48  # half of its context, a letter or nothing for each token
    (reading,) = elsewhere.read("transformers", completed, clips, None, None, limit_s=1.0)
    assert (reading.heard, reading.missing) == (None, "it had not ended after 1 s")


def test_a_program_that_ends_its_process_is_reported(clips: list[np.ndarray], tmp_path: Path) -> None:
    (tmp_path / ggml.FILE).write_bytes(b"no model")
    (reading,) = elsewhere.read("ggml", tmp_path, clips[:1], None, None)
    assert reading.heard is None
    assert "it failed" in str(reading.missing)
