"""What there is to take: files, folders, and what their metadata says of each file."""

from __future__ import annotations

import csv
import json
import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from voxloop.errors import UsageError

METADATA = ("metadata.jsonl", "metadata.csv")  # the first that a folder holds
# fmt: off
AUDIO_SUFFIXES = frozenset((
    ".3g2", ".3gp", ".aac", ".ac3", ".aif", ".aifc", ".aiff", ".amr", ".ape", ".au", ".avi", ".caf", ".flac", ".flv",
    ".gsm", ".m4a", ".m4b", ".mka", ".mkv", ".mov", ".mp2", ".mp3", ".mp4", ".mpeg", ".mpg", ".nist", ".oga", ".ogg",
    ".opus", ".rf64", ".snd", ".sph", ".tta", ".voc", ".w64", ".wav", ".webm", ".wma", ".wv",
))
# fmt: on
FILE_KEYS = ("file", "file_name", "audio_path", "audio_filepath")
TEXT_KEYS = ("text", "sentence", "transcription", "transcript")
MAX_TEXT_BYTES = 1 << 20  # a sidecar text beyond it is no transcript


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """A file that was not taken, and why."""

    path: str
    reason: str  # a short stable word
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """A file to take, with what is said of it."""

    path: Path
    text: str | None = None
    speaker: str | None = None
    language: str | None = None
    session: str | None = None
    consent: str | None = None
    refusal: Refusal | None = None  # decided before the file was opened


def find_items(
    sources: Sequence[Path], metadata: Path | None, given: Item, speakers: Sequence[str] | None
) -> Iterator[Item]:
    seen: set[Path] = set()
    if metadata is not None:
        if not metadata.is_file():
            raise UsageError(f"there is no metadata file {metadata}")
        base = sources[0] if len(sources) == 1 and sources[0].is_dir() else metadata.parent
        for item in _from_metadata(metadata, base, given, speakers):
            if item.path not in seen:
                seen.add(item.path)
                yield item
    for source in sources:
        if source.is_dir():
            found = _in_folder(source, given, speakers, lines=metadata is None, bare=metadata is None and not speakers)
        elif source.exists() or len(sources) > 1:
            found = iter([_bare(source, given)] if not speakers else [])
        else:
            raise UsageError(f"there is nothing at {source}: give audio files or folders of them")
        for item in found:
            if item.path not in seen:
                seen.add(item.path)
                yield item


def _in_folder(folder: Path, given: Item, speakers: Sequence[str] | None, *, lines: bool, bare: bool) -> Iterator[Item]:
    """The files that the folder's metadata names, then the audio files that it does not; sub-folders likewise."""
    refused: list[Item] = []

    def unreadable(error: OSError) -> None:
        message = f"the folder {error.filename} cannot be read: {error.strerror}"
        path = Path(error.filename)
        refused.append(Item(path=path, refusal=Refusal(path=str(path), reason="unreadable", message=message)))

    for root, folders, names in os.walk(folder, onerror=unreadable):
        folders.sort()
        here = Path(root)
        named: set[Path] = set()
        listing = next((name for name in METADATA if name in names), None)
        if lines and listing:
            for item in _from_metadata(here / listing, here, given, None):
                named.add(item.path)
                if not speakers or item.speaker in speakers or item.refusal:
                    yield item
        if bare:
            for name in sorted(names):
                path = here / name
                if path.suffix.lower() in AUDIO_SUFFIXES and path not in named:
                    yield _bare(path, given)
    yield from refused


def _from_metadata(file: Path, base: Path, given: Item, speakers: Sequence[str] | None) -> Iterator[Item]:
    """The files that a metadata file names; paths in it are relative to `base`."""

    def bad(number: int, message: str) -> Item:
        path = f"{file}:{number}"
        return Item(path=Path(path), refusal=Refusal(path=path, reason="bad-metadata", message=f"{path}: {message}"))

    for number, row in _rows(file):
        if isinstance(row, str):
            yield bad(number, row)
            continue
        name = next((row[key] for key in FILE_KEYS if row.get(key)), None)
        if not isinstance(name, str) or "\0" in name:
            yield bad(number, f"the line names no file; needed is one of {', '.join(FILE_KEYS)}")
            continue
        item = replace(
            given,
            path=Path(os.path.normpath(base / name)),
            text=_text(next((row[key] for key in TEXT_KEYS if row.get(key)), None)),
            speaker=_name(row.get("speaker")) or given.speaker,
            language=language_code(_name(row.get("language"))) or given.language,
            session=_name(row.get("session")) or given.session,
            consent=_name(row.get("consent")) or given.consent,
        )
        if not speakers or item.speaker in speakers:
            yield item


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Line numbers of a JSONL or CSV file, each with its values or with what is wrong with it."""
    try:
        if file.suffix.lower() == ".csv":
            with file.open(encoding="utf-8-sig", newline="") as text:
                reader = csv.DictReader(text)
                for line in reader:
                    yield reader.line_num, {key: value for key, value in line.items() if key}
            return
        with file.open("rb") as stream:
            for number, raw in enumerate(stream, 1):
                if not raw.strip():
                    continue
                try:
                    row = json.loads(raw.decode("utf-8-sig"))
                except ValueError as error:
                    yield number, f"the line is no JSON in UTF-8: {error}"
                    continue
                yield number, row if isinstance(row, dict) else "the line is no JSON object"
    except (OSError, ValueError, csv.Error) as error:
        yield 0, f"the file cannot be read as UTF-8 {file.suffix[1:].upper()}: {error}"


def _bare(path: Path, given: Item) -> Item:
    """A file that no metadata names, with the text beside it."""
    beside = path.with_suffix(".txt")
    try:
        if not beside.is_file() or beside == path:
            return replace(given, path=path)
        if beside.stat().st_size > MAX_TEXT_BYTES:
            raise ValueError(f"it has more than {MAX_TEXT_BYTES:,} bytes")
        return replace(given, path=path, text=_text(beside.read_bytes().decode("utf-8-sig")))
    except (OSError, ValueError) as error:
        message = f"the text {beside} beside {path.name} cannot be read as UTF-8: {error}; mend or remove it"
        return Item(path=path, refusal=Refusal(path=str(path), reason="bad-text", message=message))


def _name(value: Any) -> str | None:
    """A speaker, session, language or consent as given; what says that it is not known is None."""
    if value is None or isinstance(value, (dict, list)):
        return None
    text = unicodedata.normalize("NFC", str(value)).strip()
    return None if text.lower() in ("", "unknown", "none", "null", "n/a") else text


def _text(value: Any) -> str | None:
    text = unicodedata.normalize("NFC", value).strip() if isinstance(value, str) else ""
    return " ".join(text.split()) or None


def language_code(value: str | None) -> str | None:
    """`en-GB`, `EN` and `en_US` as `en`."""
    return value.strip().lower().replace("_", "-").split("-")[0] or None if value else None
