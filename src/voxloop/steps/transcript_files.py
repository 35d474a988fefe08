"""Where the texts of transcribed files are written: beside nothing of the user's, one place for each."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from voxloop.errors import UsageError, VoxloopError
from voxloop.steps.recordings.sources import AUDIO_SUFFIXES

SUFFIXES = {"text": ".txt", "txt": ".txt", "json": ".json", "srt": ".srt", "vtt": ".vtt", "tsv": ".tsv"}
ALL = ("txt", "json", "srt", "vtt", "tsv")  # what `all` stands for
SHOWN = 3  # existing files named in a message


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A file to transcribe."""

    path: Path
    relative: Path  # within the folder that was named, or its name


def audio_files(given: Sequence[Path]) -> list[Source]:
    """The files that are meant, each once: those given, and all audio in the folders given. Raises UsageError."""
    found: dict[str, Source] = {}
    for path in given:
        inside = list(_audio_in(path)) if path.is_dir() else [Source(path=path, relative=Path(path.name))]
        if not inside:
            raise UsageError(f"there are no audio files in {path}")
        for one in inside:
            found.setdefault(os.path.abspath(one.path), one)  # noqa: PTH100
    return list(found.values())


def _audio_in(folder: Path) -> Iterator[Source]:
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(root, name)
            if path.suffix.lower() in AUDIO_SUFFIXES:
                yield Source(path=path, relative=path.relative_to(folder))


def planned(sources: Sequence[Source], folder: Path, formats: Sequence[str], *, overwrite: bool) -> list[list[Path]]:
    """The files to write for each source, one for each format; no two are the same.

    They mirror the folders that were named. Files of one name from several folders are parted by their folders, and
    files that differ in their suffix alone keep it. Raises UsageError, before anything is written, where a file is
    there already and is not to be overwritten.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file: --output names a folder")
    names = [one.relative for one in sources]
    if _repeated(names):
        parents = [os.path.abspath(one.path.parent) for one in sources]  # noqa: PTH100
        common = os.path.commonpath(parents)
        folders = [Path(os.path.relpath(parent, common)) for parent in parents]
        names = [inside / one.path.name for inside, one in zip(folders, sources, strict=True)]
    repeated = _repeated(names)
    stems = [name if str(name.with_suffix("")) in repeated else name.with_suffix("") for name in names]
    if len(set(stems)) < len(stems):  # "a.wav" beside "a.mp3" and "a.wav.flac"
        stems = names
    plan = [[folder / stem.with_name(stem.name + SUFFIXES[one]) for one in formats] for stem in stems]
    there = [target for targets in plan for target in targets if os.path.lexists(target)]
    if there and not overwrite:
        shown = ", ".join(map(str, there[:SHOWN])) + (f" and {len(there) - SHOWN} more" if len(there) > SHOWN else "")
        raise UsageError(
            f"{shown} would be overwritten, so nothing was written: name another folder with --output, "
            "or say --overwrite"
        )
    return plan


def beside(source: Source, targets: Sequence[Path]) -> bool:
    """Whether a text is written where `ingest` looks for a person's."""
    return any(one.suffix == ".txt" and one.parent.resolve() == source.path.parent.resolve() for one in targets)


def _repeated(names: Sequence[Path]) -> set[str]:
    counts = Counter(str(name.with_suffix("")) for name in names)
    return {stem for stem, count in counts.items() if count > 1}


def write(target: Path, text: str, *, overwrite: bool) -> None:
    """Write a text as a whole or not at all. Raises VoxloopError, and UsageError where a file has appeared there."""
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not overwrite:
            try:
                with target.open("x", encoding="utf-8", newline="\n") as file:
                    file.write(text)
            except FileExistsError as error:
                raise UsageError(f"{target} has appeared meanwhile and was left as it is") from error
            except OSError:
                target.unlink(missing_ok=True)
                raise
            return
        part.write_text(text, encoding="utf-8", newline="\n")
        part.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise VoxloopError(f"{target} cannot be written: {error.strerror or error}") from error
