"""What other programs make of an exported Whisper model: each opens it by itself and reads clips as it does by default.

Only transformers is always installed; a program that is not is named as missing.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxloop.errors import first_line
from voxloop.families.contract import ExportFormat, Heard, Reading
from voxloop.families.whisper.ggml import FILE
from voxloop.records import SAMPLE_RATE

if TYPE_CHECKING:
    from voxloop.families.contract import Waveform

Read = Callable[[Path, "Sequence[Waveform]", "str | None", "Path | None"], list[Heard]]


@dataclass(frozen=True, slots=True)
class Program:
    """A program, the package that it is of, and a call of it."""

    name: str
    package: str
    read: Read


def read(
    format: ExportFormat, folder: Path, clips: Sequence[Waveform], language: str | None, base: Path | None
) -> list[Reading]:
    """Have every program that takes the format read the clips (S,); `base` is the folder that adapters belong to.

    `language` is None for English-only models. A program that fails or is not installed is told of, not raised.
    """
    readings = []
    for program in PROGRAMS[format]:
        heard, missing, version = None, None, None
        try:
            version = f"{program.package} {importlib.metadata.version(program.package)}"
            with _quiet():
                heard = tuple(program.read(folder, clips, language, base))
        except importlib.metadata.PackageNotFoundError:
            missing = f"{program.package} is not installed"
        except Exception as error:  # noqa: BLE001  # whatever another program raises is what the trial is to find
            missing = f"it failed: {first_line(error)}"
        readings.append(Reading(format=format, program=program.name, version=version, heard=heard, missing=missing))
    return readings


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what transformers and CTranslate2 log of settings and number formats."""
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.ERROR)
    converter = sys.modules.get("ctranslate2")
    if converter:
        level = converter.get_log_level()
        converter.set_log_level(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(before)
        if converter:
            converter.set_log_level(level)


def _by_pipeline(model: Any, processor: Any, clips: Sequence[Waveform], language: str | None) -> list[Heard]:
    from transformers import pipeline

    call = pipeline(
        "automatic-speech-recognition",
        model=model,
        tokenizer=processor.tokenizer,
        feature_extractor=processor.feature_extractor,
    )
    asked: dict[str, Any] = {"generate_kwargs": {"language": language, "task": "transcribe"}} if language else {}
    return [Heard(call({"raw": clip, "sampling_rate": SAMPLE_RATE}, **asked)["text"]) for clip in clips]


def _transformers(folder: Path, clips: Sequence[Waveform], language: str | None, base: Path | None) -> list[Heard]:
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    # As the pipeline opens a folder that it is given by name, but never pickled weights.
    model = WhisperForConditionalGeneration.from_pretrained(folder, use_safetensors=True)
    return _by_pipeline(model, WhisperProcessor.from_pretrained(folder), clips, language)


def _peft(folder: Path, clips: Sequence[Waveform], language: str | None, base: Path | None) -> list[Heard]:
    from peft import PeftModel
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    model = WhisperForConditionalGeneration.from_pretrained(base, use_safetensors=True)
    model = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    return _by_pipeline(model, WhisperProcessor.from_pretrained(folder), clips, language)


def _faster_whisper(**call: Any) -> Read:
    def read(folder: Path, clips: Sequence[Waveform], language: str | None, base: Path | None) -> list[Heard]:
        import torch
        from faster_whisper import WhisperModel

        model = WhisperModel(str(folder), device="cpu", cpu_threads=torch.get_num_threads())
        found = []
        for clip in clips:
            segments = list(model.transcribe(clip, language=language, **call)[0])
            found.append(Heard("".join(one.text for one in segments), segments[-1].end if segments else None))
        return found

    return read


def _whisper_cpp(folder: Path, clips: Sequence[Waveform], language: str | None, base: Path | None) -> list[Heard]:
    from pywhispercpp.model import Model

    model: Any = Model(str(folder / FILE), redirect_whispercpp_logs_to=None, print_progress=False, print_realtime=False)
    asked = {"language": language} if language else {}
    found = []
    for clip in clips:
        segments = model.transcribe(clip, **asked)
        end = segments[-1].t1 / 100 if segments else None  # hundredths of a second
        found.append(Heard("".join(one.text for one in segments), end))
    return found


PROGRAMS: dict[ExportFormat, tuple[Program, ...]] = {
    "transformers": (Program("transformers, pipeline", "transformers", _transformers),),
    "ctranslate2": (
        Program("faster-whisper, default call", "faster-whisper", _faster_whisper()),
        Program("faster-whisper, without_timestamps", "faster-whisper", _faster_whisper(without_timestamps=True)),
    ),
    "ggml": (Program("whisper.cpp, default call", "pywhispercpp", _whisper_cpp),),
    "peft": (Program("peft, merged into its base", "peft", _peft),),
}
