"""What there is to take: files, folders, and what their metadata says of each file."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from voxloop.errors import UsageError
from voxloop.steps.recordings import manifests
from voxloop.steps.recordings.manifests import LISTINGS, Manifest, Mention, plain_text

# fmt: off
AUDIO_SUFFIXES = frozenset((
    ".3g2", ".3gp", ".aac", ".ac3", ".aif", ".aifc", ".aiff", ".amr", ".ape", ".au", ".avi", ".caf", ".flac", ".flv",
    ".gsm", ".m4a", ".m4b", ".mka", ".mkv", ".mov", ".mp2", ".mp3", ".mp4", ".mpeg", ".mpg", ".nist", ".oga", ".ogg",
    ".opus", ".rf64", ".snd", ".sph", ".tta", ".voc", ".w64", ".wav", ".webm", ".wma", ".wv",
))
# fmt: on
TEXT_SUFFIXES = (".txt", ".lab")  # of a text beside an audio file, in capitals too; the first that there is
SUBTITLE_SUFFIXES = (".srt", ".vtt")
MAX_TEXT_BYTES = 1 << 20  # a sidecar text beyond it is no transcript


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """A file (or a line of a manifest, as `file:line`) that was not taken, and why."""

    path: str
    reason: str  # a short stable word
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """What a line of metadata says of a span of a file."""

    where: str  # "<manifest>:<line>"
    start: float  # seconds
    end: float | None  # seconds; None: to the end
    text: str | None = None
    speaker: str | None = None
    language: str | None = None
    channel: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """A file to take, with what is said of it."""

    path: Path
    text: str | None = None
    speaker: str | None = None
    language: str | None = None
    session: str | None = None
    consent: str | None = None
    said: tuple[Said, ...] = ()  # of spans of it
    refusal: Refusal | None = None  # decided before the file was opened
    notes: tuple[str, ...] = ()  # what was noticed beside it, a sentence each


def find_items(
    sources: Sequence[Path], metadata: Path | None, given: Item, speakers: Sequence[str] | None, read: list[Path]
) -> Iterator[Item]:
    """Every file once, in the order in which it is first named; `read` gets the manifests. Raises UsageError."""
    seen: set[str] = set()
    if metadata is not None:
        base = sources[0] if len(sources) == 1 and sources[0].is_dir() else None
        yield from _unseen(_listed([manifests.named(metadata)], given, speakers, read, base=base), seen)
    for source in sources:
        shut = _shut(source)
        if shut:
            yield from _unseen(iter([shut]), seen)
            continue
        if source.is_dir():
            bare = metadata is None and not speakers
            found = _in_folder(source, given, speakers, read, lines=metadata is None, bare=bare)
        elif source.is_file() and source.name.endswith(LISTINGS):
            found = _listed([manifests.named(source)], given, speakers, read)
        elif source.exists() or len(sources) > 1:
            found = iter([_bare(source, given)] if not speakers else [])
        else:
            raise UsageError(f"there is nothing at {source}: give audio files or folders of them")
        yield from _unseen(found, seen)


def _shut(source: Path) -> Item | None:
    """A source that may not even be looked at, refused: there are others."""
    try:
        source.stat()
    except PermissionError as error:
        message = f"{source} cannot be looked at: {error.strerror}"
        return Item(path=source, refusal=Refusal(path=str(source), reason="unreadable", message=message))
    except OSError:
        pass  # what is not there is told as such
    return None


def _unseen(items: Iterator[Item], seen: set[str]) -> Iterator[Item]:
    for item in items:
        path = str(item.path)
        if path not in seen:
            seen.add(path)
            yield _nameable(item)


def _nameable(item: Item) -> Item:
    """The item, refused where its name is no Unicode: nothing could be said of it in a catalog or on a screen."""
    try:
        str(item.path).encode()
    except UnicodeEncodeError:
        shown = str(item.path).encode("utf-8", "backslashreplace").decode()
        message = f"the file name {shown} is not in UTF-8: rename it"
        return Item(path=Path(shown), refusal=Refusal(path=shown, reason="bad-name", message=message))
    return item


def _in_folder(
    folder: Path, given: Item, speakers: Sequence[str] | None, read: list[Path], *, lines: bool, bare: bool
) -> Iterator[Item]:
    """The files that the folder's metadata names, then the audio files that it does not; sub-folders likewise."""
    refused: list[Item] = []

    def unreadable(error: OSError) -> None:
        message = f"the folder {error.filename} cannot be read: {error.strerror}"
        path = Path(error.filename)
        refused.append(Item(path=path, refusal=Refusal(path=str(path), reason="unreadable", message=message)))

    for root, folders, names in os.walk(folder, onerror=unreadable):
        folders.sort()
        here = Path(root)
        listings = manifests.in_folder(here, names) if lines else []
        # The top folder is the user's word; a manifest found further down may not reach out of it.
        yield from _listed(listings, given, speakers, read, within=None if here == folder else folder)
        if any(manifest.complete for manifest in listings):
            folders.clear()
        elif bare:
            # splitext: a Path of every name takes longer than its file.
            parts = [(name, *os.path.splitext(name)) for name in sorted(names)]  # noqa: PTH122
            texts = {stem for _, stem, suffix in parts if suffix.lower() in (*TEXT_SUFFIXES, *SUBTITLE_SUFFIXES)}
            for name, stem, suffix in parts:
                if suffix.lower() in AUDIO_SUFFIXES:
                    found = _bare if stem in texts or name in texts else _alone
                    yield found(here / name, given)  # where a line named it, that was first
    yield from refused


def _listed(
    listings: Sequence[Manifest],
    given: Item,
    speakers: Sequence[str] | None,
    read: list[Path],
    *,
    base: Path | None = None,
    within: Path | None = None,
) -> Iterator[Item]:
    """The files that manifests name, each once with all that is said of it; then the lines that are wrong."""
    files: dict[Path, list[Mention]] = {}
    wrong: list[Item] = []
    for manifest in listings:
        read.append(manifest.file)
        for row in manifest.rows():
            if row.problem:
                wrong.append(_wrong(row, "bad-metadata", row.problem))
                continue
            speaker = row.speaker or given.speaker
            if speakers and speaker not in speakers:
                continue
            path = _resolved(base or manifest.base, row.file, manifest)
            if within is not None and not path.resolve().is_relative_to(within.resolve()):
                message = f"{row.file} lies outside {within}: name the manifest itself if that is meant"
                wrong.append(_wrong(row, "outside", message))
                continue
            rows = files.setdefault(path, [])
            whole = next((one for one in rows if one.start is None), None) if row.start is None else None
            if whole is None:
                rows.append(row)
            elif whole.text != row.text:
                message = f"{row.file} has another text in {whole.where}; that one is taken"
                wrong.append(_wrong(row, "contradiction", message))
    for path, rows in files.items():
        yield _item(path, rows, given)
    yield from wrong


def _wrong(row: Mention, reason: str, message: str) -> Item:
    return Item(path=Path(row.where), refusal=Refusal(path=row.where, reason=reason, message=f"{row.where}: {message}"))


def _resolved(base: Path, file: str, manifest: Manifest) -> Path:
    """A file as a manifest writes it. Kaldi's and Lhotse's relative paths start where their tools are run."""
    path = Path(os.path.normpath(base / file))
    # os.path says False of a name that no file can have, where Path raises.
    if os.path.exists(path):  # noqa: PTH110
        return path
    if manifest.complete and os.path.isfile(file):  # noqa: PTH113
        return Path(os.path.normpath(file))
    # Written on another system: letters with their accents apart or together, folders parted by backslashes.
    for other in (file.replace("\\", "/"), unicodedata.normalize("NFC", file), unicodedata.normalize("NFD", file)):
        if other != file and os.path.exists(found := os.path.normpath(base / other)):  # noqa: PTH110
            return Path(found)
    return path


def _item(path: Path, rows: Sequence[Mention], given: Item) -> Item:
    """What all the lines about one file say together."""
    whole = next((row for row in rows if row.start is None), None)
    said = tuple(
        Said(
            where=row.where,
            start=row.start,
            end=row.end,
            text=row.text,
            speaker=row.speaker,
            language=row.language,
            channel=row.channel,
        )
        for row in rows
        if row.start is not None
    )

    def agreed(values: Sequence[str | None]) -> str | None:
        """What all spans have in common is true of the recording."""
        found = set(values)
        return next(iter(found)) if len(found) == 1 else None

    consents = sorted({row.consent for row in rows if row.consent})
    return replace(
        given,
        path=path,
        text=whole.text if whole else None,
        speaker=(whole.speaker if whole else agreed([row.speaker for row in rows])) or given.speaker,
        language=(whole.language if whole else agreed([row.language for row in rows])) or given.language,
        session=next((row.session for row in rows if row.session), None) or given.session,
        consent="; ".join(consents) or given.consent,  # of several people: all that was agreed to is kept
        said=said,
    )


def _alone(path: Path, given: Item) -> Item:
    """A file that neither metadata nor a text beside it says anything of."""
    return Item(
        path=path,
        speaker=given.speaker,
        language=given.language,
        session=given.session,
        consent=given.consent,
    )


def _bare(path: Path, given: Item) -> Item:
    """A file that no metadata names, with the text beside it."""
    beside = next(_beside(path, TEXT_SUFFIXES), None)
    if beside is None:
        # Subtitles are most often a machine's, and what lies beside a file counts as a person's text.
        notes = tuple(f"{path}: {other.name} beside it was not read" for other in _beside(path, SUBTITLE_SUFFIXES))
        return replace(given, path=path, notes=notes)
    try:
        if beside.stat().st_size > MAX_TEXT_BYTES:
            raise ValueError(f"it has more than {MAX_TEXT_BYTES:,} bytes")
        return replace(given, path=path, text=plain_text(beside.read_bytes().decode("utf-8-sig")))
    except (OSError, ValueError) as error:
        message = f"the text {beside} beside {path.name} cannot be read as UTF-8: {error}; mend or remove it"
        return Item(path=path, refusal=Refusal(path=str(path), reason="bad-text", message=message))


def _beside(path: Path, suffixes: Sequence[str]) -> Iterator[Path]:
    """`a.txt` or `a.wav.txt` for `a.wav`, and so on."""
    for suffix in suffixes:
        for end in (suffix, suffix.upper()):
            for name in (path.with_suffix(end), path.with_name(path.name + end)):
                if name != path and name.is_file():
                    yield name
