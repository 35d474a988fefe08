"""The CTranslate2 engine: Whisper in 8-bit integers on a CPU, in half precision on a GPU.

What is converted is the saved folder, never a model in memory: quantising changes the weights that it is given.
CTranslate2 masks no padding, so clips of equal length are decoded together, and each as it would be alone.

Letters in shapes: `B` batch, `F` mel channels, `T` mel frames, `E` encoder positions, `V` vocabulary, `D` width,
`U` tokens.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, get_type_hints

import numpy as np

from voxloop.errors import ModelError, first_line
from voxloop.families.decoding import Decoding
from voxloop.families.whisper import ctranslate_folder
from voxloop.families.whisper.bias import Reading, log_softmax
from voxloop.families.whisper.features import (
    CONTEXT_KEY,
    FULL_FRAMES,
    POSITION_SAMPLES,
    Array,
    AudioContext,
    frames_in,
    log_mel_numpy,
    mel_filters,
)
from voxloop.families.whisper.reading import Config, Draft, Reader
from voxloop.families.whisper.special_tokens import Vocabulary, vocabulary
from voxloop.records import SAMPLE_RATE

if TYPE_CHECKING:
    from transformers import GenerationConfig, WhisperConfig, WhisperProcessor

    from voxloop.families.contract import Waveform

MANIFEST = "voxloop.json"  # in a converted folder: all that is read of the model beside its files, and their hashes
FORMAT = 3  # of that; folders with another version are converted again
FILTERS = "mel_filters.npy"
TIME_STAMP = re.compile(r"<\|\d+\.\d+\|>")
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # glibc, malloc.h; mallopt(3)
KEPT_BYTES = 1 << 30  # free memory that is kept, at most
WORKERS = 4  # batches decoded side by side on a CPU, at most
LOGITS_BYTES = 512 << 20  # of all steps of these batches: each token's probability is read off them
ONE_WINDOW = (FULL_FRAMES // 2) ** 2  # places of the encoder's attention at 30 s, for each head
LOOK_AHEAD = 8  # tokens read at once while sampling: as many of them are kept as were drawn like that


def library() -> Any:
    """The package ctranslate2. Raises ModelError where it cannot be imported (some systems have no build of it)."""
    try:
        import ctranslate2
    except ImportError as error:
        raise ModelError(
            f"the engine ctranslate2 cannot be used ({first_line(error)}): "
            "install it with `pip install ctranslate2`, or set `engine` to torch"
        ) from error
    return ctranslate2


# Conversion ----------------------------------------------------------------------------------------------------------


def convert(folder: str | Path, target: Path, compute_type: str) -> None:
    """Write the CTranslate2 form of a saved Whisper folder into `target`, which faster-whisper opens as well.

    A folder that has that form already may be given too: its weights are taken as they are where they have the type.
    """
    ctranslate2 = library()
    from safetensors import SafetensorError
    from transformers.utils import logging as transformers_logging

    from voxloop.families.whisper.timing import alignment_heads

    transformers_logging.disable_progress_bar()

    base: Any = ctranslate2.converters.TransformersConverter

    class Converter(base):  # type: ignore[misc]
        def load_model(self, model_class: Any, name: str, **given: Any) -> Any:
            return super().load_model(model_class, name, **given, use_safetensors=True)

    try:
        if not ctranslate_folder.recognised(folder):
            Converter(str(folder)).convert(str(target), quantization=compute_type, force=True)
            config, generation, processor = _described(folder)
        else:
            config, generation, processor = ctranslate_folder.described(folder)
            if ctranslate_folder.compute_type(folder) == compute_type:
                _take(Path(folder), target)
            else:
                with TemporaryDirectory(prefix="voxloop-") as restored:
                    ctranslate_folder.restore(folder, Path(restored))
                    Converter(restored).convert(str(target), quantization=compute_type, force=True)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(f"{folder} cannot be converted for CTranslate2: {first_line(error)}") from error
    known = vocabulary(config, generation, processor)
    told = {
        "suppress_ids": generation.suppress_tokens or [],
        "suppress_ids_begin": generation.begin_suppress_tokens or [],
        "alignment_heads": [
            [layer, head] for layer, heads in alignment_heads(config, generation).items() for head in heads
        ],
        "lang_ids": sorted(known.languages.values()),
    }
    (target / "config.json").write_text(json.dumps(told, indent=2) + "\n")
    processor.tokenizer.save_pretrained(target)
    processor.feature_extractor.save_pretrained(target)
    np.save(target / FILTERS, mel_filters(processor).numpy())
    manifest = {
        "format": FORMAT,
        "engine": "ctranslate2",
        "version": ctranslate2.__version__,
        "compute_type": compute_type,
        "config": {name: getattr(config, name) for name in get_type_hints(Config)}
        | {CONTEXT_KEY: getattr(config, CONTEXT_KEY, None)},
        "vocabulary": asdict(known),
        "suppressed": list(generation.suppress_tokens or []),
        "files": {path.name: _sha256(path) for path in sorted(target.iterdir()) if path.name != MANIFEST},
    }
    (target / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def _take(folder: Path, target: Path) -> None:
    """Weights and vocabulary of a converted folder, linked where both are on one disk."""
    target.mkdir(parents=True, exist_ok=True)
    for file in (folder / ctranslate_folder.WEIGHTS, *folder.glob("vocabulary.*")):
        try:
            (target / file.name).hardlink_to(file.resolve())
        except OSError:
            shutil.copyfile(file, target / file.name)


def intact(target: Path) -> bool:
    """Whether a converted folder is whole: every file of its manifest has the hash that it was written with."""
    try:
        manifest = json.loads((target / MANIFEST).read_text())
        files = manifest["files"]
        return (
            bool(files)
            and manifest["format"] == FORMAT
            and all(_sha256(target / name) == hash for name, hash in files.items())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256-{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _described(folder: str | Path) -> tuple[WhisperConfig, GenerationConfig, WhisperProcessor]:
    """All of a saved model but its weights."""
    from transformers import AutoConfig, GenerationConfig, WhisperProcessor

    name = str(folder)
    return (
        AutoConfig.from_pretrained(name),
        GenerationConfig.from_pretrained(name),
        WhisperProcessor.from_pretrained(name),
    )


# Recognition ---------------------------------------------------------------------------------------------------------


class Spelling:
    """The tokenizer of a converted model, without transformers, whose import takes longer than a short file's text."""

    def __init__(self, file: Path) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(file))
        self.added_tokens_decoder: dict[int, Any] = self._tokenizer.get_added_tokens_decoder()

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return found

    def batch_decode(self, texts: Sequence[Sequence[int]], *, skip_special_tokens: bool) -> list[str]:
        """Texts without time stamps, as transformers' WhisperTokenizer writes them."""
        written = self._tokenizer.decode_batch([list(one) for one in texts], skip_special_tokens=skip_special_tokens)
        return [TIME_STAMP.sub("", one) for one in written]

    def convert_ids_to_tokens(self, token: int) -> str | None:
        found: str | None = self._tokenizer.id_to_token(token)
        return found


def load(converted: Path, device: str, threads: int = 0) -> CTranslateRecogniser:
    """Open what `convert` made of a saved model, on so many threads (0: `available_threads`). Raises ModelError."""
    ctranslate2 = library()
    kind, _, index = device.partition(":")
    try:
        told = json.loads((converted / MANIFEST).read_text())
        compute_type = told["compute_type"]
        possible = ctranslate2.get_supported_compute_types(kind, int(index or 0))
        if compute_type not in possible:
            raise ModelError(
                f"CTranslate2 cannot compute in {compute_type} on {device}: "
                f"set `compute_type` to one of {', '.join(sorted(possible))}"
            )
        if kind == "cpu":
            keep_memory()
        # CTranslate2's own default is four threads, however many cores there are. Side by side first, since clips of
        # different length make small batches, in which threads mostly wait.
        threads = threads or available_threads()
        workers = min(threads, WORKERS) if kind == "cpu" else 1
        model = ctranslate2.models.Whisper(
            str(converted),
            device=kind,
            device_index=int(index or 0),
            compute_type=compute_type,
            inter_threads=workers,
            intra_threads=max(1, threads // workers),
        )
        return CTranslateRecogniser(
            model,
            SimpleNamespace(**told["config"]),
            Vocabulary(**told["vocabulary"]),
            Spelling(converted / "tokenizer.json"),
            np.load(converted / FILTERS),
            told["suppressed"],
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(
            f"CTranslate2 cannot load {converted} on {device}: {first_line(error)}; set `engine` to torch"
        ) from error


def available_threads() -> int:
    """As many as `OMP_NUM_THREADS` says, which PyTorch goes by as well, or as the process has cores."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdecimal() and int(told):
        return int(told)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_memory() -> None:
    """Have this process keep the memory that it frees, up to 1 GiB, where its memory is glibc's.

    By default glibc gives every large tensor back to the system, which zeroes it page by page before it is had again,
    and what threads keep of it has places of 64 MiB at most: a quarter of the time of encoding 30 s (docs/log.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        for parameter, value in ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, KEPT_BYTES)):
            mallopt(parameter, value)


class CTranslateRecogniser(Reader):
    """A converted Whisper model; states are CTranslate2's StorageView (B, E, D), and there is no mask."""

    _writes_time_stamps = True

    def __init__(
        self,
        model: Any,
        config: Config,
        vocabulary: Vocabulary,
        tokenizer: Spelling,
        filters: Array,
        suppressed: list[int],
    ) -> None:
        super().__init__(config, vocabulary, tokenizer, filters)
        self.model = model
        self.suppressed = suppressed

    @property
    def _at_once(self) -> int:
        workers: int = self.model.num_workers
        return workers

    def _same_batch(self, first: int, next: int, count: int, context: AudioContext) -> bool:
        limit = self._limit(first, Decoding().max_new_tokens, 4)
        memory = (count + 1) * limit * self.config.vocab_size * 4
        return frames_in(first, context) == frames_in(next, context) and memory * self._at_once <= LOGITS_BYTES

    def _encode(self, clips: Sequence[Waveform], context: AudioContext) -> tuple[Any, None]:
        given = log_mel_numpy(clips, frames_in(len(clips[0]), context), self.filters)
        positions = given.shape[-1] // 2
        # CTranslate2 tells states (B, E, D) from features (B, F, T) by the middle: clips of E = F positions, which are
        # 1.6 s at 80 channels, would be encoded twice. They stay features, and it encodes them where it needs them.
        if positions == self.config.num_mel_bins:
            return _view(given), None
        # The attention that CTranslate2 writes out, (B, heads, E, E), is no larger than one clip of 30 s makes it: the
        # encoder is not faster with several of them. On a GPU states would have to come back to be joined.
        few = max(1, ONE_WINDOW // positions**2) if self.model.device == "cpu" else len(clips)
        parts = [self.model.encode(_view(given[first : first + few])) for first in range(0, len(clips), few)]
        return (parts[0] if len(parts) == 1 else _view(np.concatenate([_array(part) for part in parts]))), None

    def _means(self, states: Any, positions: Sequence[int]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        found = _array(self.model.encode(states) if states.shape[1] == self.config.num_mel_bins else states)
        return np.stack([one[:count].mean(axis=0) for one, count in zip(found, positions, strict=True)])

    def _detect(self, states: Any, mask: None, codes: Sequence[str]) -> list[tuple[str, float]]:
        # CTranslate2's own detection refuses vocabularies that it does not take for Whisper's. Given a text right
        # behind the start token, it returns the logits of the text's first place: those that name the language.
        results = self.model.generate(
            states,
            [[self.vocabulary.start, 0]] * states.shape[0],
            beam_size=1,
            max_length=2,
            return_logits_vocab=True,
            suppress_tokens=[],
            suppress_blank=False,
        )
        logits = np.concatenate([_logits(result, 0, 1) for result in results])
        among = _softmax(logits[:, [self.vocabulary.languages[code] for code in codes]])
        return [(codes[best], float(row[best])) for row, best in zip(among, among.argmax(axis=-1), strict=True)]

    def _likeliest(
        self, states: Any, mask: None, prompts: Sequence[Sequence[int]], limits: Sequence[int], beams: int, keep: bool
    ) -> list[Draft]:
        if beams == 1:
            results = self._generate(states, prompts, max(limits))
            texts = [list(result.sequences_ids[0]) for result in results]
        else:
            found = self._generate(states, prompts, max(limits), beam_size=beams, return_logits_vocab=False)
            texts = [list(result.sequences_ids[0]) for result in found]
            # The probabilities come from reading the winners once more, and their ends where there is room.
            most = min(max(map(len, texts)) + 1, self.config.max_target_positions - len(prompts[0]))
            given = [[*prompt, *text] for prompt, text in zip(prompts, texts, strict=True)]
            results = self._generate(states, given, most, suppress_blank=False)
        drafts = []
        for result, text, limit in zip(results, texts, limits, strict=True):
            # One step more than there are tokens wrote the end.
            tokens = [*text, self.vocabulary.end][: min(limit, len(result.logits[0]))]
            chances = [_chance(_array(step), token) for step, token in zip(result.logits[0], tokens, strict=False)]
            kept = log_softmax(_logits(result, 0, len(tokens))) if keep else None
            drafts.append(Draft(tokens, chances, self._no_speech(result), logprobs=kept))
        return drafts

    def _drawn(
        self,
        states: Any,
        mask: None,
        rows: Sequence[int],
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        temperature: float,
        draws: Sequence[np.ndarray[tuple[int], np.dtype[np.float64]]],
        floors: Sequence[float],
    ) -> list[Draft]:
        """Texts drawn as the torch engine draws them, from the logits of some tokens read ahead.

        CTranslate2's own sampling goes by a random state that cannot be set again, so a text would depend on
        what was decoded before. What is read ahead holds up to the first token that was drawn differently.

        CTranslate2 reads the text so far again each time, token by token. So more is read ahead where all of it was
        kept, and a text that can no longer be used is given up.
        """
        drafts = [Draft([], [], None, temperature) for _ in rows]
        ahead = [LOOK_AHEAD] * len(rows)
        running = list(range(len(rows)))
        while running:
            written = [drafts[index].tokens for index in running]
            most = max(min(len(drafts[index].tokens) + ahead[index], limits[index]) for index in running)
            given = [[*prompts[index], *tokens] for index, tokens in zip(running, written, strict=True)]
            results = self._generate(_rows(states, [rows[index] for index in running]), given, most)
            still = []
            for index, result in zip(running, results, strict=True):
                draft = drafts[index]
                draft.no_speech = self._no_speech(result)
                first = len(draft.tokens)
                logits = _logits(result, first, min(len(result.logits[0]), limits[index]))
                # Forbidden tokens have the lowest logit that there is: divided it is minus infinity, as it should be.
                with np.errstate(over="ignore"):
                    scaled = logits / np.float32(temperature)
                drawn = pick(scaled, draws[index][first : first + len(logits)])
                count = int((drawn == logits.argmax(axis=-1)).cumprod().sum()) + 1
                ahead[index] = LOOK_AHEAD if count <= len(drawn) else 2 * ahead[index]
                kept = drawn[:count].tolist()
                draft.tokens += kept
                draft.chances += [_chance(row, token) for row, token in zip(logits, kept, strict=False)]
                ended = draft.tokens[-1] == self.vocabulary.end or len(draft.tokens) >= limits[index]
                if not ended and draft.logprob >= floors[index]:
                    still.append(index)
            running = still
        return drafts

    def _read_on(
        self,
        states: Any,
        mask: None,
        rows: Sequence[int],
        prompts: Sequence[Sequence[int]],
        texts: Sequence[Sequence[int]],
        more: Sequence[int],
    ) -> list[Reading]:
        found: dict[int, Reading] = {}
        length = [len(text) + further for text, further in zip(texts, more, strict=True)]
        order = sorted(range(len(rows)), key=lambda index: (length[index], index))
        at_once = max(1, LOGITS_BYTES // self._at_once // (4 * self.config.vocab_size * max(length, default=1)))
        for first in range(0, len(order), at_once):
            part = order[first : first + at_once]
            results = self._generate(
                _rows(states, [rows[index] for index in part]),
                [[*prompts[index], *texts[index]] for index in part],
                max(length[index] for index in part),
                suppress_blank=False,
            )
            for index, result in zip(part, results, strict=True):
                places = [_array(step) for step in result.logits[0][: length[index]]]
                tokens = list(texts[index])
                while len(tokens) < len(places) and tokens[-1:] != [self.vocabulary.end]:
                    tokens.append(int(places[len(tokens)].argmax()))
                since = 0 if more[index] != 1 else len(tokens) - 1
                found[index] = Reading(tokens, log_softmax(np.stack(places[since : len(tokens)])))
        return [found[index] for index in range(len(rows))]

    def _token_times(
        self,
        states: Any,
        mask: None,
        rows: Sequence[int],
        prompts: Sequence[Sequence[int]],
        texts: Sequence[Sequence[int]],
        samples: Sequence[int],
    ) -> list[list[float]]:
        found: dict[int, list[float]] = {}
        room = self.config.max_target_positions - len(prompts[0]) - 1  # the end is read as well
        for prompt in dict.fromkeys(map(tuple, prompts)):  # one language at a time
            mine = [index for index, other in enumerate(prompts) if tuple(other) == prompt]
            results = self.model.align(
                _rows(states, [rows[index] for index in mine]),
                list(prompt[:-1]),
                [list(texts[index][:room]) for index in mine],
                [2 * max(1, -(-samples[index] // POSITION_SAMPLES)) for index in mine],
                median_filter_width=self.config.median_filter_width,
            )
            for index, result in zip(mine, results, strict=True):
                firsts: dict[int, int] = {}
                for token, position in result.alignments:
                    firsts.setdefault(token, position)
                times = [min(firsts[token] * POSITION_SAMPLES, samples[index]) for token in sorted(firsts)]
                times += times[-1:] * (len(texts[index]) + 1 - len(times))
                found[index] = [time / SAMPLE_RATE for time in times]
        return [found[index] for index in range(len(rows))]

    def _generate(self, states: Any, prompts: Sequence[Sequence[int]], most: int, **options: Any) -> list[Any]:
        """At most so many tokens behind each prompt, those of a text that the prompts go on with counted."""
        led = [self._task_tokens(prompt) for prompt in prompts]
        if len(set(led)) > 1:  # texts that begin with one: CTranslate2 takes prompts with equally many at a time
            found: dict[int, Any] = {}
            for count in dict.fromkeys(led):
                mine = [index for index, other in enumerate(led) if other == count]
                part = self._generate(_rows(states, mine), [prompts[index] for index in mine], most, **options)
                found |= dict(zip(mine, part, strict=True))
            return [found[index] for index in range(len(prompts))]
        known = self.vocabulary
        stamped = known.no_timestamps not in prompts[0]
        before = prompts[0].index(known.start) + self._prompt_length - stamped
        results: list[Any] = self.model.generate(
            states,
            [list(prompt) for prompt in prompts],
            # Behind a prompt of P tokens CTranslate2 writes the lesser of half of max_length and max_length - P + 1.
            max_length=max(2 * most, most + before - 1),
            suppress_tokens=self.suppressed,
            **{"beam_size": 1, "return_logits_vocab": True, "return_no_speech_prob": self._speaks_of_silence} | options,
        )
        return results

    def _task_tokens(self, prompt: Sequence[int]) -> int:
        """How many tokens of languages and tasks follow the start, as CTranslate2 counts them."""
        known = self.vocabulary
        behind = prompt[prompt.index(known.start) + 1 :]
        return next(
            (place for place, token in enumerate(behind) if not known.start <= token <= known.no_timestamps),
            len(behind),
        )

    @property
    def _prompt_length(self) -> int:
        return 4 if self.vocabulary.languages else 2

    @property
    def _speaks_of_silence(self) -> bool:
        return self.vocabulary.no_speech is not None

    def _no_speech(self, result: Any) -> float | None:
        return round(result.no_speech_prob, 6) if self._speaks_of_silence else None


def _array(view: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A StorageView as an array, wherever it lies."""
    ctranslate2 = library()
    if view.device != "cpu":
        view = view.to_device(ctranslate2.Device.cpu)
    if view.dtype != ctranslate2.DataType.float32:
        view = view.to(ctranslate2.DataType.float32)
    return np.asarray(view)


def _rows(states: Any, rows: Sequence[int]) -> Any:
    if list(rows) == list(range(states.shape[0])):
        return states
    return _view(_array(states)[list(rows)])


def _view(values: np.ndarray[Any, np.dtype[np.float32]]) -> Any:
    return library().StorageView.from_array(np.ascontiguousarray(values))


def _logits(result: Any, first: int, stop: int) -> Array:
    """Logits (U, V) of some of a text's tokens, suppressed ones at the bottom."""
    return np.stack([_array(step) for step in result.logits[0][first:stop]])


def _softmax(logits: Array) -> Array:
    """Probabilities of the last dimension."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    found: Array = powers / powers.sum(axis=-1, keepdims=True)
    return found


def _chance(logits: Array, token: int) -> float:
    """The probability of one token, by its logits (V,)."""
    highest = logits.max()
    return float(np.exp(logits[token] - highest) / np.exp(logits - highest).sum())


def pick(logits: Array, draws: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.intp]]:
    """Tokens (U,) of logits (U, V), by the inverse of their cumulative distribution; the torch engine's draw."""
    summed = _softmax(logits).cumsum(axis=-1, dtype=np.float64)
    found: np.ndarray[Any, np.dtype[np.intp]] = (summed < draws[:, None] * summed[:, -1:]).sum(axis=-1)
    return found
