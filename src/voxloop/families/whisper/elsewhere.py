"""What other programs make of an exported Whisper model: each opens it by itself and reads clips as it does by default.

Only transformers is always installed; a program that is not is named as missing.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from voxloop.errors import first_line
from voxloop.families.contract import ExportFormat, Heard, Reading
from voxloop.families.whisper.ggml import FILE
from voxloop.records import SAMPLE_RATE

if TYPE_CHECKING:
    from voxloop.families.contract import Waveform

LOADING_S, CLIP_S, CLIP_S_PER_GB = 180.0, 20.0, 60.0  # of a program; several times what a slow machine takes
CLIPS, TASK, FOUND = "clips.npz", "task.json", "found.jsonl"
Read = Callable[[Path, "Sequence[Waveform]", "str | None", "Path | None"], list[Heard]]


@dataclass(frozen=True, slots=True)
class Program:
    """A program, the package that it is of, and a call of it."""

    name: str
    package: str
    read: Read


def read(
    format: ExportFormat,
    folder: Path,
    clips: Sequence[Waveform],
    language: str | None,
    base: Path | None,
    *,
    limit_s: float | None = None,
) -> list[Reading]:
    """Have every program that takes the format read the clips (S,); `base` is the folder that adapters belong to.

    `language` is None for English-only models. Programs that fail or are not installed are reported, not raised.

    They run in a child process: a model that was damaged, or hardly trained, may have a program write without end, and
    whisper.cpp ends its process where it does not like a file. After `limit_s` (None: by the weights' size) the child
    is killed.
    """
    programs = PROGRAMS[format]
    limit_s = limit_s or len(programs) * _limit_s([folder, *([base] if base else [])], len(clips))
    with TemporaryDirectory(prefix="voxloop-elsewhere-") as kept:
        place = Path(kept)
        np.savez(place / CLIPS, *clips)
        torch = sys.modules.get("torch")
        task = {
            "format": format,
            "folder": str(folder.absolute()),
            "language": language,
            "base": str(base.absolute()) if base else None,
            "threads": torch.get_num_threads() if torch else None,
        }
        (place / TASK).write_text(json.dumps(task))
        try:
            done = subprocess.run([sys.executable, "-m", __name__, kept], capture_output=True, timeout=limit_s)
            printed = done.stderr.decode(errors="replace").strip().splitlines()
            ended = f"it failed: {printed[-1] if printed else f'its process ended with status {done.returncode}'}"
        except subprocess.TimeoutExpired:
            ended = f"it had not ended after {limit_s:.0f} s"
        lines = (place / FOUND).read_text().splitlines() if (place / FOUND).exists() else []
    readings = [_reading(format, program, json.loads(line)) for program, line in zip(programs, lines, strict=False)]
    left = [_reading(format, program, {"missing": ended}) for program in programs[len(readings) :]]
    return [*readings, *left]


def _limit_s(folders: Sequence[Path], clips: int) -> float:
    """How long a program may take to load a model from these folders and read some clips with it."""
    size = sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())
    return LOADING_S + clips * (CLIP_S + CLIP_S_PER_GB * size / 1e9)


def _reading(format: ExportFormat, program: Program, found: dict[str, Any]) -> Reading:
    try:
        version = f"{program.package} {importlib.metadata.version(program.package)}"
    except importlib.metadata.PackageNotFoundError:
        version, found = None, {"missing": f"{program.package} is not installed"}
    heard = None if "heard" not in found else tuple(Heard(text, end) for text, end in found["heard"])
    return Reading(format=format, program=program.name, version=version, heard=heard, missing=found.get("missing"))


# The child -----------------------------------------------------------------------------------------------------------


def main() -> None:
    """Read what `read` left in a folder, and leave a line for each program there."""
    place = Path(sys.argv[1])
    task = json.loads((place / TASK).read_text())
    if task["threads"]:
        import torch

        torch.set_num_threads(task["threads"])
    with np.load(place / CLIPS) as loaded:
        clips = [loaded[name] for name in loaded.files]
    given = (Path(task["folder"]), clips, task["language"], Path(task["base"]) if task["base"] else None)
    for program in PROGRAMS[task["format"]]:
        try:
            with _quiet():
                found: dict[str, Any] = {"heard": [(one.text, one.end) for one in program.read(*given)]}
        except Exception as error:  # noqa: BLE001  # whatever another program raises is what the trial is to find
            found = {"missing": f"it failed: {first_line(error)}"}
        with (place / FOUND).open("a") as out:
            out.write(json.dumps(found) + "\n")


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
    # As long a text as Whisper's authors allow; a model that never ends one would fill its context for each beam.
    asked: dict[str, Any] = {"max_new_tokens": model.config.max_target_positions // 2}
    if language:
        asked |= {"language": language, "task": "transcribe"}
    return [Heard(call({"raw": clip, "sampling_rate": SAMPLE_RATE}, generate_kwargs=asked)["text"]) for clip in clips]


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

if __name__ == "__main__":
    main()
