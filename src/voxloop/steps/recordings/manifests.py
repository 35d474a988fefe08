"""Manifests: read transcripts and metadata of audio files in many formats into the same rows.

The content of a file decides its format, not only its suffix. Kaldi folders, LibriSpeech trees and Common Voice tables
are read here, line by line, rather than by Lhotse's recipes: these open every audio file first, stop at the first
missing one, do not name the line, and would run the commands in a `wav.scp`. Lhotse reads its own manifests.
"""

from __future__ import annotations

import gzip
import json
import math
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from voxloop.errors import UsageError
from voxloop.speech import separated
from voxloop.speech.languages import UnknownLanguage, language_code

FILE_KEYS = ("file", "file_name", "audio_path", "audio_filepath", "path", "audio")
TEXT_KEYS = ("text", "sentence", "transcription", "transcript")
SPEAKER_KEYS = ("speaker", "speaker_id", "client_id")
LANGUAGE_KEYS = ("language", "lang", "locale")
START_KEYS = ("start", "start_time", "offset")  # seconds
END_KEYS = ("end", "end_time")  # seconds
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.tsv", "metadata.json")  # the first in a folder is used
# Common Voice's tables of validated clips; the others hold clips that are unchecked or were voted down.
COMMON_VOICE = ("validated.tsv", "train.tsv", "dev.tsv", "test.tsv")
LISTINGS = (".jsonl", ".jsonl.gz", ".json", ".csv", ".tsv", ".trans.txt", "wav.scp")  # possible manifests
AUDIO_BESIDE = (".flac", ".wav", ".ogg", ".opus", ".mp3")  # next to a *.trans.txt
LONGEST_S = 1e7  # 115 days: the latest time in a file
MAX_LIST = 256 << 20  # bytes of a JSON list, which is read at once
MAX_LINE = 1 << 20  # characters: a file with a longer first line is not a manifest

Kind = Literal[
    "rows", "common-voice", "kaldi", "librispeech", "lhotse-recordings", "lhotse-supervisions", "lhotse-cuts"
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Mention:
    """One line's metadata about a file or a span of it, or the line's problem."""

    where: str  # "<manifest>:<line>"
    file: str = ""  # the audio path as written in the line
    text: str | None = None
    speaker: str | None = None
    language: str | None = None
    session: str | None = None
    consent: str | None = None
    start: float | None = None  # seconds; None: the line is about the whole file
    end: float | None = None  # seconds; None: to the file's end
    channel: int | None = None
    problem: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """A file that lists audio, and its format."""

    file: Path
    kind: Kind
    complete: bool  # it lists all audio: other files in its folder are ignored

    @property
    def base(self) -> Path:
        """The folder that its paths are relative to."""
        clips = self.file.parent / "clips"
        return clips if self.kind == "common-voice" and clips.is_dir() else self.file.parent

    def rows(self) -> Iterator[Mention]:
        """Yield its lines, invalid ones with their problem. A bad line never raises."""
        try:
            yield from _READERS[self.kind](self.file)
        except (OSError, ValueError, EOFError) as error:
            yield Mention(where=f"{self.file}:0", problem=f"cannot read the file as UTF-8 text: {error}")


def in_folder(folder: Path, names: Sequence[str]) -> list[Manifest]:
    """Find a folder's manifests: all those of the first kind that it has."""
    own = next((name for name in METADATA if name in names), None)
    if own:
        return [Manifest(file=folder / own, kind="rows", complete=False)]
    if "wav.scp" in names:
        return [Manifest(file=folder / "wav.scp", kind="kaldi", complete=True)]
    found: dict[Kind, list[Manifest]] = {}
    for name in sorted(names):
        if name.endswith(LISTINGS):
            manifest = recognised(folder / name)
            if manifest:
                found.setdefault(manifest.kind, []).append(manifest)
    voiced = {manifest.file.name: manifest for manifest in found.get("common-voice", ())}
    if voiced:
        # validated.tsv includes train, dev, test and more; invalidated.tsv and other.tsv are read only when named.
        chosen = [voiced[name] for name in COMMON_VOICE if name in voiced]
        return chosen[:1] if "validated.tsv" in voiced else chosen
    order: tuple[Kind, ...] = ("lhotse-recordings", "rows", "lhotse-cuts", "librispeech")
    return next((found[kind] for kind in order if kind in found), [])


def named(file: Path) -> Manifest:
    """Return the manifest in a file that the user named. Raises UsageError if it is not a manifest."""
    if not file.is_file():
        raise UsageError(f"there is no metadata file {file}")
    manifest = recognised(file)
    if manifest is None:
        raise UsageError(
            f"{file} is not a supported manifest: give JSONL or CSV with a column {', '.join(FILE_KEYS[:-1])} or "
            f"{FILE_KEYS[-1]}, Lhotse recordings or cuts as JSONL, Kaldi's wav.scp, Common Voice's TSV or "
            "LibriSpeech's *.trans.txt"
        )
    if manifest.kind == "lhotse-supervisions":
        partner = file.with_name(file.name.replace("supervisions", "recordings"))
        if partner == file or not partner.is_file():
            raise UsageError(f"{file} has Lhotse supervisions but no audio: put their recordings at {partner}")
        return Manifest(file=partner, kind="lhotse-recordings", complete=True)
    return manifest


def recognised(file: Path) -> Manifest | None:
    """Recognise a manifest by its name and first line; None if it is not one."""
    name = file.name
    if not file.is_file():
        return None
    if name == "wav.scp":
        return Manifest(file=file, kind="kaldi", complete=True)
    if name.endswith(".trans.txt"):
        return Manifest(file=file, kind="librispeech", complete=False)
    if name in METADATA:  # its problems are reported line by line
        return Manifest(file=file, kind="rows", complete=False)
    try:
        with _opened(file) as lines:
            first = next((line for line in iter(lambda: lines.readline(MAX_LINE), "") if line.strip()), "")
    except (OSError, ValueError, EOFError):
        return None
    if name.endswith((".csv", ".tsv")):
        columns, _ = separated.header(first, tabs=name.endswith(".tsv"))
        if name.endswith(".tsv") and {"path", "sentence"} <= set(columns):
            return Manifest(file=file, kind="common-voice", complete=True)
        return Manifest(file=file, kind="rows", complete=False) if set(columns) & set(FILE_KEYS) else None
    if first.lstrip().startswith("["):
        listed = next((values for _, values in _json_list(file)), None)
        known = isinstance(listed, dict) and set(_lower(listed)) & set(FILE_KEYS)
        return Manifest(file=file, kind="rows", complete=False) if known else None
    try:
        row = json.loads(first)
    except ValueError:
        return None
    if not isinstance(row, dict):
        return None
    if "sources" in row and "num_samples" in row:
        return Manifest(file=file, kind="lhotse-recordings", complete=True)
    if "recording_id" in row and "duration" in row:
        return Manifest(file=file, kind="lhotse-supervisions", complete=True)
    if str(row.get("type", "")).endswith("Cut"):
        return Manifest(file=file, kind="lhotse-cuts", complete=True)
    return Manifest(file=file, kind="rows", complete=False) if set(_lower(row)) & set(FILE_KEYS) else None


def _opened(file: Path) -> Any:
    if file.suffix == ".gz":
        return gzip.open(file, "rt", encoding="utf-8-sig", newline="")
    return file.open(encoding="utf-8-sig", newline="")


# Tables with a column or key per field --------------------------------------------------------------------------------


def _table(file: Path) -> Iterator[Mention]:
    """JSONL, a JSON list, CSV or TSV: `metadata.jsonl`, the audiofolder's CSV, NeMo, Common Voice, our own export."""
    if file.suffix.lower() in (".csv", ".tsv"):
        found: Iterator[tuple[int, dict[str, Any] | str]] = _separated(file)
    elif _is_list(file):
        found = _json_list(file)
    else:
        found = _json_lines(file, as_written=True)
    for number, values in found:
        where = f"{file}:{number}"
        yield Mention(where=where, problem=values) if isinstance(values, str) else _row(where, _lower(values))


class Number(str):
    """A number in a JSON file, as written."""


def _lower(values: dict[str, Any]) -> dict[str, Any]:
    """Lower-case and strip the names of columns and keys."""
    return {key.strip().lower(): value for key, value in values.items()}


def _row(where: str, values: dict[str, Any]) -> Mention:
    file = _first(values, FILE_KEYS)
    if isinstance(file, dict):  # as in Hugging Face datasets: {"audio": {"path": "a.flac"}}
        file = file.get("path")
    if not isinstance(file, str) or isinstance(file, Number) or not file.strip() or "\0" in file:
        return Mention(where=where, problem=f"the line names no file; give it in one of {', '.join(FILE_KEYS)}")
    file = file.strip()
    try:
        start, end = _seconds(_first(values, START_KEYS), "start"), _seconds(_first(values, END_KEYS), "end")
        length = _seconds(values.get("duration"), "duration")
        channel = _channel(values.get("channel"))
        text = _text(_first(values, TEXT_KEYS))
        language = language_code(name(_first(values, LANGUAGE_KEYS)))
    except (ValueError, UnknownLanguage) as error:
        return Mention(where=where, file=file, problem=str(error))
    if start is None and (end is not None or channel is not None):
        start = 0.0
    if start is not None and end is None and length is not None:
        end = start + length  # as in NeMo; a duration alone is the file's length
    return Mention(
        where=where,
        file=file,
        text=text,
        speaker=name(_first(values, SPEAKER_KEYS)),
        language=language,
        session=name(values.get("session")),
        consent=name(values.get("consent")),
        start=start,
        end=end,
        channel=channel,
        problem=_span_problem(start, end),
    )


def _text(value: Any) -> str | None:
    """Return a text; numbers count as text, as written. Raises ValueError for anything else."""
    if value is None or isinstance(value, str):
        return plain_text(value)
    raise ValueError(f"the text is {json.dumps(value)}, not a string")


def _json_lines(file: Path, *, as_written: bool = False) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield the objects of a JSONL file; `as_written`: keep numbers as written."""
    load = partial(json.loads, parse_float=Number, parse_int=Number) if as_written else json.loads
    with file.open("rb") as packed, gzip.open(packed) if file.suffix == ".gz" else packed as stream:
        for number, raw in enumerate(stream, 1):
            if not raw.strip():
                continue
            try:
                row = load(raw.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                yield number, f"the line is not valid JSON in UTF-8: {error}"
                continue
            yield number, row if isinstance(row, dict) else "the line is not a JSON object"


def _is_list(file: Path) -> bool:
    with _opened(file) as lines:
        return (
            next((line for line in iter(lambda: lines.readline(MAX_LINE), "") if line.strip()), "").lstrip()[:1] == "["
        )


def _json_list(file: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield the objects of a JSON list, numbered from 1."""
    if file.stat().st_size > MAX_LIST:
        yield 0, f"the JSON list has more than {MAX_LIST >> 20} MB: write one line per file instead (JSONL)"
        return
    with _opened(file) as text:
        try:
            found = json.load(text, parse_float=Number, parse_int=Number)
        except (ValueError, RecursionError) as error:
            yield 0, f"the file is not valid JSON: {error}"
            return
    for number, row in enumerate(found, 1):
        yield number, row if isinstance(row, dict) else "the entry is not a JSON object"


def _separated(file: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    tabs = file.suffix.lower() == ".tsv"
    with file.open(encoding="utf-8-sig", newline="") as text:
        first = next((line for line in text if line.strip()), "")
        columns, _ = separated.header(first, tabs=tabs)
        if first and not set(columns) & set(FILE_KEYS):
            shown = first.strip()[:60]
            names = ", ".join(FILE_KEYS)
            yield 1, f"the first line is not a header ({shown!r}): name the columns there, including one of {names}"
            return
        text.seek(0)
        yield from separated.rows(text, tabs=tabs)


def _first(values: dict[str, Any], keys: Sequence[str]) -> Any:
    return next((values[key] for key in keys if values.get(key) not in (None, "")), None)


def _seconds(value: Any, what: str) -> float | None:
    """Parse seconds from a number or its text. Raises ValueError."""
    if value is None or value == "":
        return None
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if isinstance(value, bool) or not math.isfinite(found):
        raise ValueError(f"{what} is {value!r}, not a number of seconds")
    return found


def _channel(value: Any) -> int | None:
    """Parse a channel, counted from 0. Raises ValueError."""
    if isinstance(value, list) and len(value) == 1:  # Lhotse's multi-channel cuts
        value = value[0]
    if value is None or value == "" or isinstance(value, list):
        return None
    try:
        found = int(value)
    except (TypeError, ValueError, OverflowError):
        found = -1
    if found < 0:
        raise ValueError(f"channel is {value!r}; give a number, counted from 0")
    return found


def _span_problem(start: float | None, end: float | None) -> str | None:
    for value in (start, end):
        if value is not None and not abs(value) <= LONGEST_S:  # written this way, NaN is refused too
            return f"the span runs from {start} s to {end} s; give seconds within the file"
    if start is not None and start < 0:
        return f"the span begins at {start:g} s; give 0 or more"
    if start is not None and end is not None and end <= start:
        return f"the span begins at {start:g} s and ends at {end:g} s; the end must be after the start"
    return None


# Kaldi (https://kaldi-asr.org/doc/data_prep.html) ---------------------------------------------------------------------


def _kaldi(file: Path) -> Iterator[Mention]:
    """Read `wav.scp` with `segments`, `text`, `utt2spk` and `utt2lang` next to it; never run its commands."""
    folder = file.parent
    broken: list[Mention] = []

    def column(name: str) -> dict[str, tuple[str, str]]:
        """Map the first word of each line to the rest of it and its place."""
        found: dict[str, tuple[str, str]] = {}
        path = folder / name
        if not path.is_file():
            return found
        with _opened(path) as lines:
            for number, line in enumerate(lines, 1):
                key, _, rest = line.strip().replace("\t", " ").partition(" ")
                if key and key in found:
                    broken.append(
                        Mention(where=f"{path}:{number}", problem=f"{key} occurs twice; remove one of the lines")
                    )
                elif key:
                    found[key] = (rest.strip(), f"{path}:{number}")
        return found

    audio, texts, speakers, languages = map(column, ("wav.scp", "text", "utt2spk", "utt2lang"))
    segments = column("segments")
    files: dict[str, str] = {}
    for recording, (path, where) in audio.items():
        if path.endswith("|"):
            broken.append(
                Mention(
                    where=where,
                    problem=f"{recording} is a command, and Voxloop runs no commands: write its output to a file",
                )
            )
        elif not path:
            broken.append(Mention(where=where, problem=f"{recording} has no path"))
        else:
            files[recording] = path

    def said(utterance: str, where: str, recording: str, start: float | None, end: float | None) -> Mention:
        speaker = name(speakers.get(utterance, ("", ""))[0])
        try:
            language = language_code(name(languages.get(utterance, ("", ""))[0]))
        except UnknownLanguage as error:
            return Mention(where=where, problem=str(error))
        return Mention(
            where=where,
            file=files[recording],
            text=plain_text(texts.get(utterance, ("", ""))[0]),
            speaker=None if speaker == utterance else speaker,  # in Kaldi this means unknown
            language=language,
            start=start,
            end=end,
            problem=_span_problem(start, end),
        )

    if (folder / "segments").is_file():
        for utterance, (rest, where) in segments.items():
            parts = rest.split()
            try:
                recording, start, end = parts[0], float(parts[1]), float(parts[2])
            except (IndexError, ValueError):
                broken.append(
                    Mention(where=where, problem=f"expected `{utterance} RECORDING START END`, found {rest!r}")
                )
                continue
            if recording in files:
                yield said(utterance, where, recording, start, None if end == -1 else end)
            elif recording not in audio:
                broken.append(Mention(where=where, problem=f"wav.scp has no recording {recording}"))
        heard = segments
    else:
        for recording in files:
            yield said(recording, audio[recording][1], recording, None, None)
        heard = audio
    for utterance, (_, where) in texts.items():
        if utterance not in heard:
            broken.append(Mention(where=where, problem=f"{utterance} has a text but no audio"))
    yield from broken


# LibriSpeech (https://www.openslr.org/12) -----------------------------------------------------------------------------


def _librispeech(file: Path) -> Iterator[Mention]:
    """Read `<speaker>-<chapter>.trans.txt`: lines `<speaker>-<chapter>-<number> TEXT`, the audio next to it."""
    with _opened(file) as lines:
        for number, line in enumerate(lines, 1):
            key, _, text = line.strip().partition(" ")
            if not key:
                continue
            if "/" in key or "\0" in key or not text.strip():
                yield Mention(
                    where=f"{file}:{number}", problem=f"expected a name and its text, found {line.strip()[:80]!r}"
                )
                continue
            beside = (key + suffix for suffix in AUDIO_BESIDE if (file.parent / (key + suffix)).is_file())
            parts = key.split("-")
            yield Mention(
                where=f"{file}:{number}",
                file=next(beside, key + AUDIO_BESIDE[0]),
                text=plain_text(text),
                speaker=parts[0] if len(parts) > 1 else None,
                session="-".join(parts[:2]) if len(parts) > 2 else None,
            )


# Lhotse (https://lhotse.readthedocs.io) -------------------------------------------------------------------------------


def _lhotse_recordings(file: Path) -> Iterator[Mention]:
    """Read recordings, with the supervisions in the matching file next to it."""
    partner = file.with_name(file.name.replace("recordings", "supervisions"))
    spoken: dict[str, list[tuple[str, Any]]] = {}
    broken: list[Mention] = []
    if partner != file and partner.is_file():
        for where, item in _lhotse_items(partner, "SupervisionSegment"):
            if isinstance(item, Mention):
                broken.append(item)
            else:
                spoken.setdefault(item.recording_id, []).append((where, item))
    known = set()
    for where, item in _lhotse_items(file, "Recording"):
        if isinstance(item, Mention):
            yield item
            continue
        known.add(item.id)
        source = _lhotse_source(item)
        if source.problem:
            yield Mention(where=where, problem=f"{item.id}: {source.problem}")
            continue
        for place, supervision in spoken.get(item.id, ()):
            yield _supervision(place, source.file, supervision, 0.0, float(supervision.end))
        if item.id not in spoken:
            yield Mention(where=where, file=source.file)
    for recording, items in spoken.items():
        if recording not in known:
            broken += [Mention(where=where, problem=f"{file.name} has no recording {recording}") for where, _ in items]
    yield from broken


def _lhotse_cuts(file: Path) -> Iterator[Mention]:
    for where, item in _lhotse_items(file, "MonoCut", "MultiCut"):
        if isinstance(item, Mention):
            yield item
            continue
        if item.recording is None:
            yield Mention(where=where, problem=f"cut {item.id} has no recording")
            continue
        source = _lhotse_source(item.recording)
        if source.problem:
            yield Mention(where=where, problem=f"{item.id}: {source.problem}")
            continue
        last = float(item.start + item.duration)
        for supervision in item.supervisions:
            yield _supervision(where, source.file, supervision, float(item.start), last)
        if not item.supervisions:
            yield Mention(
                where=where, file=source.file, start=float(item.start), end=last, channel=_channel(item.channel)
            )


def _lhotse_items(file: Path, *kinds: str) -> Iterator[tuple[str, Any]]:
    """Yield (where, Lhotse's object), or (where, a Mention with the problem)."""
    from lhotse.serialization import deserialize_item

    for number, values in _json_lines(file):
        where = f"{file}:{number}"
        if isinstance(values, str):
            yield where, Mention(where=where, problem=values)
            continue
        try:
            item = deserialize_item(values)
        except (LookupError, TypeError, ValueError, AttributeError, AssertionError, ArithmeticError) as error:
            # For a malformed item, Lhotse raises whatever its constructors happen to raise.
            yield (
                where,
                Mention(where=where, problem=f"Lhotse cannot read the line: {type(error).__name__}: {error}"),
            )
            continue
        if type(item).__name__ not in kinds:
            found = type(item).__name__
            yield where, Mention(where=where, problem=f"the line is a {found}; supported: {' and '.join(kinds)}")
            continue
        yield where, item


def _lhotse_source(recording: Any) -> Mention:
    """Return the single file of a Lhotse recording, or its problem."""
    if len(recording.sources) != 1 or recording.sources[0].type != "file":
        kinds = ", ".join(source.type for source in recording.sources)
        return Mention(where="", problem=f"the audio source is {kinds or 'missing'}; give one source of type file")
    if recording.transforms:
        return Mention(
            where="", problem="the audio is transformed (speed, volume or similar); use the original recording"
        )
    return Mention(where="", file=str(recording.sources[0].source))


def _supervision(where: str, file: str, supervision: Any, offset: float, last: float) -> Mention:
    """Read a supervision that starts `offset` seconds into the file; ignore everything after `last` seconds."""
    custom = supervision.custom or {}
    start = max(offset, offset + float(supervision.start))
    end = min(last, offset + float(supervision.end))
    try:
        channel = _channel(supervision.channel)
        language = language_code(name(supervision.language))
    except (ValueError, UnknownLanguage) as error:
        return Mention(where=where, problem=str(error))
    return Mention(
        where=where,
        file=file,
        text=plain_text(supervision.text),
        speaker=name(supervision.speaker),
        language=language,
        session=name(custom.get("session")),
        consent=name(custom.get("consent")),
        start=start,
        end=end,
        channel=channel,
        problem=_span_problem(start, end),
    )


# Cleaning values ------------------------------------------------------------------------------------------------------


def name(value: Any) -> str | None:
    """Clean a speaker, session, language or consent; None for values that mean unknown."""
    if value is None or isinstance(value, (dict, list)):
        return None
    text = unicodedata.normalize("NFC", _storable(str(value))).strip()
    return None if text.lower() in ("", "unknown", "none", "null", "n/a") else text


def plain_text(value: Any) -> str | None:
    """Clean a text: single spaces, NFC; None if it is empty."""
    text = unicodedata.normalize("NFC", _storable(value)).strip() if isinstance(value, str) else ""
    return " ".join(text.split()) or None


def _storable(text: str) -> str:
    """Remove lone surrogates and NUL, which databases refuse."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


_READERS: dict[Kind, Callable[[Path], Iterator[Mention]]] = {
    "rows": _table,
    "common-voice": _table,
    "kaldi": _kaldi,
    "librispeech": _librispeech,
    "lhotse-recordings": _lhotse_recordings,
    "lhotse-cuts": _lhotse_cuts,
}
