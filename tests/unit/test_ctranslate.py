"""The CTranslate2 engine against the torch one, and conversion."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperTokenizer

from tests.unit import frozen_speech, tiny_whisper
from voxloop import models
from voxloop.errors import ModelError, SettingError
from voxloop.families.contract import Hypothesis
from voxloop.families.decoding import Decoding, Guards
from voxloop.families.whisper import WHISPER, ctranslate, recogniser
from voxloop.families.whisper.ctranslate import CTranslateRecogniser
from voxloop.families.whisper.features import features_of, log_mel, log_mel_numpy
from voxloop.families.whisper.reading import Reader
from voxloop.families.whisper.recogniser import WhisperRecogniser
from voxloop.pipeline import open_loop
from voxloop.speech import text
from voxloop.speech.audio import decode
from voxloop.starter import STARTER_DIR
from voxloop.steps import transcripts
from voxloop.steps.evaluation import evaluate
from voxloop.steps.gate import promotion
from voxloop.workspace import Workspace

RATE = 16_000
NOTHING = Guards(max_compression=100.0, min_logprob=-100.0, max_no_speech=1.0)


def noise(*durations_s: float, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [(0.1 * rng.standard_normal(round(d * RATE))).astype(np.float32) for d in durations_s]


def converted(source: Path, target: Path, compute_type: str = "float32") -> CTranslateRecogniser:
    WHISPER.convert(source, target, compute_type)
    return WHISPER.load_converted(target)


def alone(reader: Reader, clips: list[np.ndarray], decoding: Decoding, **options: bool) -> list[Hypothesis]:
    """Each clip by itself: in a batch of several lengths torch's convolutions hear a little of the padding."""
    return [reader.transcribe([clip], decoding, **options)[0] for clip in clips]


def assert_alike(ours: list[Hypothesis], torchs: list[Hypothesis], *, tolerance: float) -> None:
    for one, other in zip(ours, torchs, strict=True):
        assert (one.text, one.guards, one.temperature) == (other.text, other.guards, other.temperature)
        assert (one.language, len(one.words)) == (other.language, len(other.words))
        assert one.confidence == pytest.approx(other.confidence, abs=tolerance)
        assert one.mean_logprob == pytest.approx(other.mean_logprob, abs=tolerance)
        assert one.no_speech == pytest.approx(other.no_speech, abs=tolerance)
        if other.language_probability is not None:
            assert one.language_probability == pytest.approx(other.language_probability, abs=tolerance)


def word_distances(ours: list[Hypothesis], torchs: list[Hypothesis]) -> list[float]:
    """Seconds between the edges of the words of equal texts."""
    return [
        abs(edge)
        for one, other in zip(ours, torchs, strict=True)
        if one.text == other.text
        for word, same in zip(one.words, other.words, strict=True)
        for edge in (word.start - same.start, word.end - same.end)
    ]


@pytest.fixture(scope="module")
def torchs() -> WhisperRecogniser:
    return WHISPER.load(STARTER_DIR)


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> CTranslateRecogniser:
    return converted(STARTER_DIR, tmp_path_factory.mktemp("exact") / "starter")


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> CTranslateRecogniser:
    return converted(STARTER_DIR, tmp_path_factory.mktemp("quantised") / "starter", "int8")


@pytest.fixture(scope="module")
def spoken(demo_speech: Path) -> tuple[list[np.ndarray], list[str]]:
    rows = [json.loads(line) for line in (demo_speech / "metadata.jsonl").read_text().splitlines()]
    return [decode(demo_speech / row["file"]) for row in rows], [row["text"] for row in rows]


class TestFloat32:
    """Equal to torch: texts exactly, probabilities within 1e-4, word edges within 20 ms (one position)."""

    @pytest.mark.parametrize("beams", [1, 3])
    def test_synthetic_speech(
        self, beams: int, torchs: WhisperRecogniser, exact: CTranslateRecogniser, spoken: tuple[list[np.ndarray], list]
    ) -> None:
        clips = spoken[0][:24]
        asked = Decoding(beams=beams, guards=NOTHING)
        ours = exact.transcribe(clips, asked, word_times=True)
        theirs = alone(torchs, clips, asked, word_times=True)
        if beams > 1:  # the searches end differently: where both find the same, they say the same of it
            found = [pair for pair in zip(ours, theirs, strict=True) if pair[0].text == pair[1].text]
            assert len(found) >= 12
            ours, theirs = [one for one, _ in found], [other for _, other in found]
        assert_alike(ours, theirs, tolerance=1e-4)
        assert max(word_distances(ours, theirs)) <= 0.0201

    def test_real_speech(self, real_speech: Path, torchs: WhisperRecogniser, exact: CTranslateRecogniser) -> None:
        rows = (real_speech / "digits_en" / "metadata.jsonl").read_text().splitlines()[::60]
        clips = [decode(real_speech / "digits_en" / json.loads(row)["file"]) for row in rows]
        assert len(clips) >= 10
        ours = exact.transcribe(clips, Decoding(guards=NOTHING), word_times=True)
        theirs = alone(torchs, clips, Decoding(guards=NOTHING), word_times=True)
        assert_alike(ours, theirs, tolerance=1e-4)
        assert max(word_distances(ours, theirs)) <= 0.0201

    def test_at_30_s(self, torchs: WhisperRecogniser, exact: CTranslateRecogniser, spoken: tuple[list, list]) -> None:
        clips, asked = spoken[0][:2], Decoding(audio_context="full")
        assert_alike(exact.transcribe(clips, asked), torchs.transcribe(clips, asked), tolerance=1e-4)

    def test_what_fails_is_drawn_like_torch_draws_it(
        self, torchs: WhisperRecogniser, exact: CTranslateRecogniser, spoken: tuple[list, list]
    ) -> None:
        clips = spoken[0][:6]
        asked = Decoding(guards=replace(NOTHING, max_compression=0.01, temperatures=(0.2, 1.0)))
        ours = exact.transcribe(clips, asked)
        # Where a text was drawn just as the likeliest reads, rounding says which of the two is kept.
        unheated = [[replace(one, temperature=0.0) for one in found] for found in (ours, alone(torchs, clips, asked))]
        assert_alike(*unheated, tolerance=1e-4)
        assert {one.temperature for one in ours} - {0.0}  # not only the likeliest
        # So a text depends neither on its batch nor on what was decoded before.
        assert ours == exact.transcribe(clips, asked)
        assert [one.text for one in alone(exact, clips, asked)] == [one.text for one in ours]

    def test_silence_and_the_no_speech_guard(self, exact: CTranslateRecogniser) -> None:
        silence, (loud,) = np.full(RATE, 1e-4, np.float32), noise(1.5)
        found = exact.transcribe([silence, loud], Decoding(guards=Guards(min_logprob=-1e-9, max_no_speech=0.0)))
        assert [one.guards for one in found] == [("silence",), ("no speech",)]
        assert [one.text for one in found] == ["", ""]

    def test_limits(self, torchs: WhisperRecogniser, exact: CTranslateRecogniser, spoken: tuple[list, list]) -> None:
        clips = spoken[0][:2]
        for most in (1, 2, 5):
            asked = Decoding(max_new_tokens=most, guards=NOTHING)
            ours = exact.transcribe(clips, asked, word_times=True)
            assert_alike(ours, alone(torchs, clips, asked, word_times=True), tolerance=1e-4)
            assert all("cut off" in one.guards for one in ours)

    def test_batches_side_by_side_come_out_in_order(
        self, exact: CTranslateRecogniser, spoken: tuple[list, list], tmp_path: Path
    ) -> None:
        WHISPER.convert(STARTER_DIR, tmp_path / "converted", "float32")
        several = WHISPER.load_converted(tmp_path / "converted", threads=3)
        assert several._at_once == 3
        clips = spoken[0][:16]
        asked = Decoding(batch_seconds=5.0, guards=NOTHING)
        assert_alike(several.transcribe(clips, asked), alone(exact, clips, asked), tolerance=1e-4)
        np.testing.assert_allclose(several.embed(clips), exact.embed(clips), atol=1e-5)

    def test_embeddings(self, torchs: WhisperRecogniser, exact: CTranslateRecogniser) -> None:
        clips = noise(0.4, 1.3)
        for clip in clips:
            np.testing.assert_allclose(exact.embed([clip]), torchs.embed([clip]), atol=1e-5)
        assert exact.embed(clips).shape == (2, 128)


def test_int8_hears_as_well(
    torchs: WhisperRecogniser, quantised: CTranslateRecogniser, spoken: tuple[list[np.ndarray], list[str]]
) -> None:
    """On the demo's speech: word error rate within 5 % of torch's, confidence within 0.02, most words in place.

    The starter mishears most of that speech (150 %), where a processor's own int8 kernels decide some words.
    """
    clips, references = spoken
    ours = quantised.transcribe(clips, Decoding(), word_times=True)
    theirs = torchs.transcribe(clips, Decoding(), word_times=True)

    def wer(found: list[Hypothesis]) -> float:
        return text.total(text.word_errors_each(references, [one.text for one in found])).rate

    assert wer(ours) == pytest.approx(wer(theirs), rel=0.05)
    same = [(one, other) for one, other in zip(ours, theirs, strict=True) if one.text == other.text]
    assert len(same) >= 0.7 * len(clips)
    assert all(one.confidence == pytest.approx(other.confidence, abs=0.02) for one, other in same)
    distances = word_distances(ours, theirs)
    assert np.mean(np.array(distances) <= 0.0401) >= 0.9
    assert np.median(distances) == 0.0


class TestLanguages:
    @pytest.fixture(scope="class", params=[None, 51_865])
    def folder(self, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A model of three languages, with few tokens and with as many as Whisper's own multilingual vocabulary."""
        return tiny_whisper.make(
            tmp_path_factory.mktemp("multilingual"), multilingual=True, seed=1, vocabulary=request.param
        )

    def test_are_detected_as_torch_does(self, folder: Path, tmp_path: Path) -> None:
        clips = noise(0.5, 0.9, 1.7, seed=3)
        ours, theirs = converted(folder, tmp_path / "converted"), WHISPER.load(folder)
        asked = Decoding(max_new_tokens=6, audio_context="trimmed")
        found = ours.transcribe(clips, asked, word_times=True)
        assert_alike(found, alone(theirs, clips, asked, word_times=True), tolerance=1e-4)
        assert all(one.language_probability is not None for one in found)
        for code in tiny_whisper.LANGUAGES:
            given = replace(asked, language=code)
            assert_alike(ours.transcribe(clips, given), alone(theirs, clips, given), tolerance=1e-4)

    def test_an_untuned_model_is_fed_30_s_and_trimming_it_warns(
        self, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        ours = converted(folder, tmp_path / "converted")
        assert ours.context("auto") == "full"
        assert ours.context("trimmed") == "trimmed"
        assert "not trained on trimmed audio" in caplog.text


class TestConversion:
    @pytest.mark.parametrize("multilingual", [False, True])
    def test_its_tokens_are_spelled_as_transformers_spells_them(self, tmp_path: Path, multilingual: bool) -> None:
        source = tiny_whisper.make(tmp_path / "model", multilingual=multilingual)
        tokenizer = WhisperTokenizer.from_pretrained(source)
        tokenizer.add_tokens(["<|0.00|>", "<|29.98|>"], special_tokens=False)
        tokenizer.save_pretrained(tmp_path / "saved")
        ours = ctranslate.Spelling(tmp_path / "saved" / "tokenizer.json")
        rng = np.random.default_rng(0)
        texts = [rng.integers(0, len(tokenizer), count).tolist() for count in (0, 1, 5, 40, 200)]
        texts += [tokenizer("Nine, “ten”… é 日本 <|0.00|> !", add_special_tokens=False).input_ids]
        for skipped in (True, False):
            expected = tokenizer.batch_decode(texts, skip_special_tokens=skipped)
            assert ours.batch_decode(texts, skip_special_tokens=skipped) == expected
        assert set(ours.added_tokens_decoder) == set(tokenizer.added_tokens_decoder)
        every = list(range(len(tokenizer)))
        assert [ours.convert_ids_to_tokens(one) for one in every] == tokenizer.convert_ids_to_tokens(every)

    def test_leaves_the_saved_model_as_it_was(self, tmp_path: Path) -> None:
        folder = tiny_whisper.make(tmp_path / "model")
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        WHISPER.convert(folder, tmp_path / "converted", "int8")
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    def test_of_a_merged_lora_model(self, tmp_path: Path) -> None:
        from peft import LoraConfig, get_peft_model

        trainable = WHISPER.open_for_training(tiny_whisper.make(tmp_path / "base"), audio_context="trimmed")
        model = get_peft_model(trainable.model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
        torch.manual_seed(0)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.5)
        WHISPER.save(trainable, model, tmp_path / "merged")
        assert (tmp_path / "merged" / "adapter").is_dir()
        clips, asked = noise(0.5, 0.9), Decoding(max_new_tokens=12, guards=NOTHING)
        ours = converted(tmp_path / "merged", tmp_path / "converted").transcribe(clips, asked)
        assert_alike(ours, alone(WHISPER.load(tmp_path / "merged"), clips, asked), tolerance=1e-4)
        assert [one.text for one in ours] != [
            one.text for one in WHISPER.load(tmp_path / "base").transcribe(clips, asked)
        ]

    def test_what_is_no_model_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(ModelError, match="cannot be converted"):
            WHISPER.convert(tmp_path, tmp_path / "converted", "int8")

    def test_without_the_package_the_remedy_is_named(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setitem(sys.modules, "ctranslate2", None)
        with pytest.raises(ModelError, match=r"`pip install ctranslate2`, or set `engine` to torch"):
            WHISPER.convert(STARTER_DIR, tmp_path / "converted", "int8")

    def test_an_impossible_compute_type_is_said(self, tmp_path: Path) -> None:
        WHISPER.convert(STARTER_DIR, tmp_path / "half", "float16")
        with pytest.raises(ModelError, match="cannot compute in float16 on cpu: set `compute_type` to one of"):
            WHISPER.load_converted(tmp_path / "half")


@pytest.fixture
def fast(tmp_path: Path) -> Workspace:
    with open_loop(
        tmp_path / "workspace", create=True, engine="ctranslate2", device="cpu", threads=1, min_snr_db=-99.0
    ) as ws:
        yield ws


class TestInAWorkspace:
    def test_a_conversion_is_kept_and_a_damaged_one_is_made_anew(self, fast: Workspace) -> None:
        model = models.base_model(fast)
        target = models.converted(fast, model, "int8")
        made = (target / "model.bin").stat().st_mtime_ns
        assert models.converted(fast, model, "int8") == target
        assert (target / "model.bin").stat().st_mtime_ns == made
        whole = (target / "model.bin").read_bytes()
        manifest = target / "voxloop.json"

        def of_an_earlier_version() -> None:
            manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 1}))

        damages = (
            lambda: (target / "model.bin").write_bytes(whole[:-1] + b"?"),
            manifest.unlink,
            of_an_earlier_version,
        )
        for damage in damages:
            damage()
            assert not ctranslate.intact(target)
            assert models.converted(fast, model, "int8") == target
            assert (target / "model.bin").read_bytes() == whole
        assert [path.name for path in target.parent.iterdir()] == [target.name]

    def test_processes_and_threads_that_want_the_same_conversion_make_it_once(self, fast: Workspace) -> None:
        """The first one makes it, also where a damaged one is in its place; the others wait, and open what it made."""
        model = models.base_model(fast)
        target = models.converted(fast, model, "int8")
        whole = (target / "model.bin").read_bytes()
        (target / "model.bin").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        code = (
            "import os, sys\n"
            "from concurrent.futures import ThreadPoolExecutor\n"
            "from pathlib import Path\n"
            "from voxloop import models\n"
            "from voxloop.families.whisper import WHISPER\n"
            "from voxloop.pipeline import open_loop\n"
            "convert = type(WHISPER).convert\n"
            "def told(self, *given):\n"
            "    os.write(1, b'converted\\n')\n"
            "    convert(self, *given)\n"
            "type(WHISPER).convert = told\n"
            "with open_loop(Path(sys.argv[1]), engine='ctranslate2', device='cpu', threads=1) as ws:\n"
            "    model = models.base_model(ws)\n"
            "    sys.stdin.readline()\n"
            "    with ThreadPoolExecutor(3) as pool:\n"
            "        for folder in pool.map(lambda _: models.converted(ws, model, 'int8'), range(3)):\n"
            "            WHISPER.load_converted(folder)\n"
        )
        command = [sys.executable, "-c", code, str(fast.folder)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with ExitStack() as stack:
            processes = [stack.enter_context(subprocess.Popen(command, **pipes)) for _ in range(2)]  # type: ignore[call-overload]
            for process in processes:
                process.stdin.write(b"\n")
                process.stdin.flush()
            told = [process.communicate(timeout=120) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], told
        assert sorted(out for out, _ in told) == [b"", b"converted\n"]
        assert (target / "model.bin").read_bytes() == whole
        assert [path.name for path in target.parent.iterdir()] == [target.name]

    def test_a_full_disk_is_said_and_leaves_nothing(self, fast: Workspace, small_disk: Path) -> None:
        (fast.folder / "cache").symlink_to(small_disk)
        filler = small_disk / "filler"
        filler.write_bytes(bytes(7 << 19))  # half a megabyte is left
        model = models.base_model(fast)
        with pytest.raises(ModelError, match=r"cannot be (converted|written).*No space left"):
            models.converted(fast, model, "int8")

        assert list((small_disk / "ctranslate2").iterdir()) == []
        filler.unlink()
        assert ctranslate.intact(models.converted(fast, model, "int8"))

    def test_files_are_transcribed_with_it(self, fast: Workspace, demo_speech: Path) -> None:
        file = demo_speech / "boil-the-kettle-01.ogg"
        found = transcripts.transcribe_file(fast, file, word_times=True)
        assert found.text
        assert all(segment.words for segment in found.segments if segment.text)
        assert (fast.folder / "cache" / "ctranslate2").is_dir()

    def test_a_converted_model_is_read_without_transformers(self, fast: Workspace, demo_speech: Path) -> None:
        file = demo_speech / "boil-the-kettle-01.ogg"
        models.converted(fast, models.base_model(fast), "int8")
        here = transcripts.transcribe_file(fast, file, word_times=True)
        code = (
            "import sys\n"
            "from pathlib import Path\n"
            "from voxloop.steps import transcripts\n"
            "from voxloop.pipeline import open_loop\n"
            "with open_loop(Path(sys.argv[1]), engine='ctranslate2', device='cpu', threads=1) as ws:\n"
            "    print(transcripts.transcribe_file(ws, Path(sys.argv[2]), word_times=True))\n"
            "heavy = {'transformers', 'safetensors', 'lhotse', 'scipy', 'torch._dynamo'} & set(sys.modules)\n"
            "assert not heavy, heavy\n"
        )
        command = [sys.executable, "-c", code, str(fast.folder), str(file)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == str(here)

    def test_what_is_gated_is_what_is_served(self, fast: Workspace, tmp_path: Path) -> None:
        frozen_speech.freeze(fast, tmp_path / "speech", clips=6)
        by_torch = evaluate(fast, "starter", decoding=replace(transcripts.decoding(fast), engine="torch"))
        ours = evaluate(fast, "starter")
        assert ours.decoding["engine"] == "ctranslate2-int8"
        assert ours.id != by_torch.id
        with models.loaded(fast, models.base_model(fast)) as served:
            assert isinstance(served, CTranslateRecogniser)
        with models.loaded(fast, models.base_model(fast), "ctranslate2-int8") as again:
            assert again is served

    def test_what_cannot_be_converted_is_not_promoted(self, fast: Workspace, tmp_path: Path) -> None:
        folder = tiny_whisper.make(tmp_path / "model")
        (folder / "model.safetensors").write_bytes(b"damaged")
        model = models.base_model(fast, str(folder))
        with pytest.raises(ModelError, match="cannot be converted"):
            promotion.promote(fast, model.id, force=True)
        assert promotion.champion(fast) is None


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's memory")
def test_memory_is_kept_for_the_next_clip_in_any_thread() -> None:
    code = (
        "import ctypes, resource, threading\n"
        "from voxloop.families.whisper.ctranslate import keep_memory\n"
        "keep_memory()\n"
        "c = ctypes.CDLL(None)\n"
        "c.malloc.restype, c.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]\n"
        "c.free.argtypes, c.memset.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]\n"
        "def work():\n"
        "    held = c.malloc(100 << 20); c.memset(held, 1, 100 << 20); c.free(held)\n"
        "def in_a_thread():\n"
        "    thread = threading.Thread(target=work); thread.start(); thread.join()\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "first, second = in_a_thread(), in_a_thread()\n"
        "print(second - first)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert int(done.stdout) < 2_000  # pages, of 25,600 that the system would have to zero


def test_clips_of_30_s_are_encoded_one_at_a_time_and_read_together(tmp_path: Path) -> None:
    ours = converted(tiny_whisper.make(tmp_path / "model"), tmp_path / "fast")
    clips = noise(25.0, 28.0, 26.0)
    features, _ = features_of(clips, "full", torch.from_numpy(ours.filters), "cpu")
    at_once = ours.model.encode(ctranslate._view(features.numpy()))
    apart, _ = ours._encode(clips, "full")
    assert np.asarray(apart) == pytest.approx(np.asarray(at_once), abs=1e-5)


def test_texts_that_begin_with_a_task_token_are_read_beside_others(tmp_path: Path) -> None:
    """A text that is drawn at a high temperature may, and CTranslate2 wants equally many in each prompt."""
    ours = converted(tiny_whisper.make(tmp_path / "model"), tmp_path / "fast")
    known = ours.vocabulary
    prompt = known.prompt("en")
    texts: list[list[int]] = [[1, 2], [known.transcribe, 2], [3]]
    states, _ = ours._encode(noise(4.0, 4.0, 4.0), "full")
    together = ours._generate(states, [[*prompt, *one] for one in texts], 3)
    for index, one in enumerate(texts):
        (by_itself,) = ours._generate(ctranslate._rows(states, [index]), [[*prompt, *one]], 3)
        assert together[index].sequences_ids == by_itself.sequences_ids


def test_neither_pytorch_nor_transformers_is_imported(tmp_path: Path, demo_speech: Path) -> None:
    """Their import takes longer than a short file's text. Converting needs them, once."""
    folder = tiny_whisper.make(tmp_path / "model", multilingual=True)
    file = min(demo_speech.glob("*.ogg"))
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from voxloop.pipeline import open_loop\n"
        "from voxloop.steps.transcripts import transcribe_file\n"
        f"settings = {{'base_model': {str(folder)!r}, 'engine': 'ctranslate2'}}\n"
        f"with open_loop(Path({str(tmp_path / 'workspace')!r}), create=True, **settings) as ws:\n"
        f"    found = transcribe_file(ws, Path({str(file)!r}), word_times=True)\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)), found.segments)\n"
    )
    converting, again = (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    )
    assert again.startswith("[] (Segment(")
    assert converting.partition(" (")[2] == again.partition(" (")[2]


def test_features_by_numpy_are_those_by_pytorch() -> None:
    filters = np.abs(np.random.default_rng(0).standard_normal((80, 201))).astype(np.float32) / 100
    for samples, frames in ((0, 1000), (5, 1000), (16_000, 1000), (100_000, 1400), (479_900, 3000), (480_000, 3000)):
        (clip,) = noise(samples / RATE)
        expected = log_mel([clip], [frames], torch.from_numpy(filters)).numpy()
        np.testing.assert_allclose(log_mel_numpy([clip], frames, filters), expected, atol=2e-5)


def test_tokens_are_drawn_as_the_torch_engine_draws_them() -> None:
    chance = np.random.default_rng(0)
    logits = chance.normal(0, 3, (500, 60)).astype(np.float32)
    logits[:, 7] = -np.inf
    draws = 1.0 - chance.random(500)
    expected = recogniser.pick(torch.from_numpy(logits), torch.from_numpy(draws)).numpy()
    np.testing.assert_array_equal(ctranslate.pick(logits, draws), expected)


def test_engines_by_setting(tmp_path: Path) -> None:
    def engine(**settings: str) -> str:
        with open_loop(tmp_path / "workspace", create=True, **settings) as ws:
            return models.engine(ws)

    assert engine(device="cpu") == "ctranslate2-int8"
    assert engine(device="cpu", engine="torch") == "torch"
    assert engine(device="cpu", engine="auto") == "ctranslate2-int8"
    assert engine(device="cuda:1", engine="ctranslate2") == "ctranslate2-float16"
    assert engine(device="cpu", engine="ctranslate2", compute_type="float32") == "ctranslate2-float32"
    with pytest.raises(SettingError, match=r"engine is 'onnx'\. It must be one of torch, ctranslate2, auto"):
        engine(engine="onnx")
    with pytest.raises(SettingError, match="compute_type is 'int4'"):
        engine(compute_type="int4")
