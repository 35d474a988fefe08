"""Manifests: the ways in which people say what was spoken in which file, all read into the same rows.

Which format a file has is told by its content, not by its ending alone. Kaldi folders, LibriSpeech trees and Common
Voice tables are read here, line by line, and not by Lhotse's recipes: those open every audio file first, stop at
the first that is missing, name no line and would run the commands in a `wav.scp`. Lhotse's own manifests are read
by Lhotse.
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
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.tsv", "metadata.json")  # the first that a folder holds
# Common Voice's tables of clips that people found right; the others hold what is unheard or was voted down.
COMMON_VOICE = ("validated.tsv", "train.tsv", "dev.tsv", "test.tsv")
LISTINGS = (".jsonl", ".jsonl.gz", ".json", ".csv", ".tsv", ".trans.txt", "wav.scp")  # what may be a manifest
AUDIO_BESIDE = (".flac", ".wav", ".ogg", ".opus", ".mp3")  # beside a *.trans.txt
LONGEST_S = 1e7  # 115 days: no time in a file is later
MAX_LIST = 256 << 20  # bytes of a JSON list, which is read as a whole
MAX_LINE = 1 << 20  # characters: longer is no manifest

Kind = Literal[
    "rows", "common-voice", "kaldi", "librispeech", "lhotse-recordings", "lhotse-supervisions", "lhotse-cuts"
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Mention:
    """What one line says of one file, or of a span of it; or what is wrong with the line."""

    where: str  # "<manifest>:<line>"
    file: str = ""  # the audio, as the line writes it
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
    """A file that lists audio, and how it does so."""

    file: Path
    kind: Kind
    complete: bool  # it lists all that is meant: what else lies in its folder is left alone

    @property
    def base(self) -> Path:
        """What paths in it are relative to."""
        clips = self.file.parent / "clips"
        return clips if self.kind == "common-voice" and clips.is_dir() else self.file.parent

    def rows(self) -> Iterator[Mention]:
        """Its lines, those that are wrong with their problem. Never raises for a line's sake."""
        try:
            yield from _READERS[self.kind](self.file)
        except (OSError, ValueError, EOFError) as error:
            yield Mention(where=f"{self.file}:0", problem=f"the file cannot be read as text in UTF-8: {error}")


def in_folder(folder: Path, names: Sequence[str]) -> list[Manifest]:
    """The manifests among a folder's files: of the first kind that is there, all."""
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
        # validated.tsv holds train, dev and test and more; invalidated.tsv and other.tsv are taken when named.
        chosen = [voiced[name] for name in COMMON_VOICE if name in voiced]
        return chosen[:1] if "validated.tsv" in voiced else chosen
    order: tuple[Kind, ...] = ("lhotse-recordings", "rows", "lhotse-cuts", "librispeech")
    return next((found[kind] for kind in order if kind in found), [])


def named(file: Path) -> Manifest:
    """The manifest that somebody named. Raises UsageError where it is none."""
    if not file.is_file():
        raise UsageError(f"there is no metadata file {file}")
    manifest = recognised(file)
    if manifest is None:
        raise UsageError(
            f"{file} is no manifest that is known here: needed is JSONL or CSV with one of {', '.join(FILE_KEYS)}, "
            "Lhotse recordings or cuts as JSONL, Kaldi's wav.scp, Common Voice's TSV or LibriSpeech's *.trans.txt"
        )
    if manifest.kind == "lhotse-supervisions":
        partner = file.with_name(file.name.replace("supervisions", "recordings"))
        if partner == file or not partner.is_file():
            raise UsageError(f"{file} holds Lhotse supervisions and no audio: their recordings are needed at {partner}")
        return Manifest(file=partner, kind="lhotse-recordings", complete=True)
    return manifest


def recognised(file: Path) -> Manifest | None:
    """What a file lists, by its first line; None where it is no manifest."""
    name = file.name
    if not file.is_file():
        return None
    if name == "wav.scp":
        return Manifest(file=file, kind="kaldi", complete=True)
    if name.endswith(".trans.txt"):
        return Manifest(file=file, kind="librispeech", complete=False)
    if name in METADATA:  # whatever is wrong with it is told line by line
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


# Rows with a column or key for each thing -----------------------------------------------------------------------------


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
    """A number of a JSON file, as it is written there."""


def _lower(values: dict[str, Any]) -> dict[str, Any]:
    """Names of columns and keys, however they are written."""
    return {key.strip().lower(): value for key, value in values.items()}


def _row(where: str, values: dict[str, Any]) -> Mention:
    file = _first(values, FILE_KEYS)
    if isinstance(file, dict):  # datasets' way: {"audio": {"path": "a.flac"}}
        file = file.get("path")
    if not isinstance(file, str) or isinstance(file, Number) or not file.strip() or "\0" in file:
        return Mention(where=where, problem=f"the line names no file; needed is one of {', '.join(FILE_KEYS)}")
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
        end = start + length  # NeMo's way; a duration alone says how long the file is
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
    """A text; a number is one, too, as it is written. Raises ValueError for anything else."""
    if value is None or isinstance(value, str):
        return plain_text(value)
    raise ValueError(f"the text is {json.dumps(value)}; needed is a string")


def _json_lines(file: Path, *, as_written: bool = False) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """The objects of a JSONL file; `as_written`: numbers as the text that stands there."""
    load = partial(json.loads, parse_float=Number, parse_int=Number) if as_written else json.loads
    with file.open("rb") as packed, gzip.open(packed) if file.suffix == ".gz" else packed as stream:
        for number, raw in enumerate(stream, 1):
            if not raw.strip():
                continue
            try:
                row = load(raw.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                yield number, f"the line is no JSON in UTF-8: {error}"
                continue
            yield number, row if isinstance(row, dict) else "the line is no JSON object"


def _is_list(file: Path) -> bool:
    with _opened(file) as lines:
        return (
            next((line for line in iter(lambda: lines.readline(MAX_LINE), "") if line.strip()), "").lstrip()[:1] == "["
        )


def _json_list(file: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """The objects of a JSON list, numbered from 1."""
    if file.stat().st_size > MAX_LIST:
        yield 0, f"a JSON list of more than {MAX_LIST >> 20} MB is not read: write a line for each file (JSONL)"
        return
    with _opened(file) as text:
        try:
            found = json.load(text, parse_float=Number, parse_int=Number)
        except (ValueError, RecursionError) as error:
            yield 0, f"the file is no JSON: {error}"
            return
    for number, row in enumerate(found, 1):
        yield number, row if isinstance(row, dict) else "the entry is no JSON object"


def _separated(file: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    tabs = file.suffix.lower() == ".tsv"
    with file.open(encoding="utf-8-sig", newline="") as text:
        first = next((line for line in text if line.strip()), "")
        columns, _ = separated.header(first, tabs=tabs)
        if first and not set(columns) & set(FILE_KEYS):
            shown = first.strip()[:60]
            yield 1, f"the first line is no header ({shown!r}): it must name the columns, one of {', '.join(FILE_KEYS)}"
            return
        text.seek(0)
        yield from separated.rows(text, tabs=tabs)


def _first(values: dict[str, Any], keys: Sequence[str]) -> Any:
    return next((values[key] for key in keys if values.get(key) not in (None, "")), None)


def _seconds(value: Any, what: str) -> float | None:
    """Seconds as a number or its text. Raises ValueError."""
    if value is None or value == "":
        return None
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if isinstance(value, bool) or not math.isfinite(found):
        raise ValueError(f"{what} is {value!r}; needed is a number of seconds")
    return found


def _channel(value: Any) -> int | None:
    """A channel counted from 0. Raises ValueError."""
    if isinstance(value, list) and len(value) == 1:  # Lhotse's multi-channel cuts
        value = value[0]
    if value is None or value == "" or isinstance(value, list):
        return None
    try:
        found = int(value)
    except (TypeError, ValueError, OverflowError):
        found = -1
    if found < 0:
        raise ValueError(f"channel is {value!r}; needed is a number from 0")
    return found


def _span_problem(start: float | None, end: float | None) -> str | None:
    for value in (start, end):
        if value is not None and not abs(value) <= LONGEST_S:  # so written, what is no number does not pass either
            return f"the span is from {start} s to {end} s; needed are seconds within the file"
    if start is not None and start < 0:
        return f"the span begins at {start:g} s; needed is 0 or more"
    if start is not None and end is not None and end <= start:
        return f"the span ends at {end:g} s and begins at {start:g} s; the end must follow the start"
    return None


# Kaldi (https://kaldi-asr.org/doc/data_prep.html) ---------------------------------------------------------------------


def _kaldi(file: Path) -> Iterator[Mention]:
    """`wav.scp` with `segments`, `text`, `utt2spk` and `utt2lang` beside it; commands in it are never run."""
    folder = file.parent
    broken: list[Mention] = []

    def column(name: str) -> dict[str, tuple[str, str]]:
        """First word of each line: the rest of it, and where it stands."""
        found: dict[str, tuple[str, str]] = {}
        path = folder / name
        if not path.is_file():
            return found
        with _opened(path) as lines:
            for number, line in enumerate(lines, 1):
                key, _, rest = line.strip().replace("\t", " ").partition(" ")
                if key and key in found:
                    broken.append(Mention(where=f"{path}:{number}", problem=f"{key} stands there a second time"))
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
                    problem=f"{recording} is a command, which is never run here: write its output to a file",
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
            speaker=None if speaker == utterance else speaker,  # Kaldi's way of saying that it is not known
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
                    Mention(where=where, problem=f"needed is `{utterance} RECORDING START END`, found {rest!r}")
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
            broken.append(Mention(where=where, problem=f"no audio is listed for {utterance}"))
    yield from broken


# LibriSpeech (https://www.openslr.org/12) -----------------------------------------------------------------------------


def _librispeech(file: Path) -> Iterator[Mention]:
    """`<speaker>-<chapter>.trans.txt`: `<speaker>-<chapter>-<number> TEXT`, the audio beside it under that name."""
    with _opened(file) as lines:
        for number, line in enumerate(lines, 1):
            key, _, text = line.strip().partition(" ")
            if not key:
                continue
            if "/" in key or "\0" in key or not text.strip():
                yield Mention(
                    where=f"{file}:{number}", problem=f"needed is a name and its text, found {line.strip()[:80]!r}"
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
    """Recordings, with the supervisions of the file beside it that is named so."""
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
    """(where, Lhotse's object), or (where, a Mention with what is wrong)."""
    from lhotse.serialization import deserialize_item

    for number, values in _json_lines(file):
        where = f"{file}:{number}"
        if isinstance(values, str):
            yield where, Mention(where=where, problem=values)
            continue
        try:
            item = deserialize_item(values)
        except (LookupError, TypeError, ValueError, AttributeError, AssertionError, ArithmeticError) as error:
            # Lhotse reports a malformed item by whatever its constructors happen to raise.
            yield (
                where,
                Mention(where=where, problem=f"Lhotse cannot read the line: {type(error).__name__}: {error}"),
            )
            continue
        if type(item).__name__ not in kinds:
            found = type(item).__name__
            yield where, Mention(where=where, problem=f"the line holds a {found}; taken are {' and '.join(kinds)}")
            continue
        yield where, item


def _lhotse_source(recording: Any) -> Mention:
    """The one file of a Lhotse recording, or what is wrong with it."""
    if len(recording.sources) != 1 or recording.sources[0].type != "file":
        kinds = ", ".join(source.type for source in recording.sources)
        return Mention(where="", problem=f"its audio is {kinds or 'nothing'}; taken is one source of type file")
    if recording.transforms:
        return Mention(where="", problem="it is changed audio (speed, volume or the like); taken is what was recorded")
    return Mention(where="", file=str(recording.sources[0].source))


def _supervision(where: str, file: str, supervision: Any, offset: float, last: float) -> Mention:
    """A supervision `offset` seconds into the file, of which nothing after second `last` is meant."""
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


# What is written of a file, made uniform ------------------------------------------------------------------------------


def name(value: Any) -> str | None:
    """A speaker, session, language or consent as given; what says that it is not known is None."""
    if value is None or isinstance(value, (dict, list)):
        return None
    text = unicodedata.normalize("NFC", _storable(str(value))).strip()
    return None if text.lower() in ("", "unknown", "none", "null", "n/a") else text


def plain_text(value: Any) -> str | None:
    """A text with single spaces, in NFC; None where there is none."""
    text = unicodedata.normalize("NFC", _storable(value)).strip() if isinstance(value, str) else ""
    return " ".join(text.split()) or None


def _storable(text: str) -> str:
    """Text without halves of surrogate pairs and NUL, which no database takes."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


_READERS: dict[Kind, Callable[[Path], Iterator[Mention]]] = {
    "rows": _table,
    "common-voice": _table,
    "kaldi": _kaldi,
    "librispeech": _librispeech,
    "lhotse-recordings": _lhotse_recordings,
    "lhotse-cuts": _lhotse_cuts,
}
