"""Find the files to ingest, in folders and manifests, with the metadata of each."""

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
TEXT_SUFFIXES = (".txt", ".lab")  # of a text next to an audio file, also in capitals; the first match wins
SUBTITLE_SUFFIXES = (".srt", ".vtt")
MAX_TEXT_BYTES = 1 << 20  # a larger text file is not a transcript


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """A file (or a line of a manifest, as `file:line`) that was refused, and why."""

    path: str
    reason: str  # a short stable word
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """The metadata of a span of a file, from one line."""

    where: str  # "<manifest>:<line>"
    start: float  # seconds
    end: float | None  # seconds; None: to the end
    text: str | None = None
    speaker: str | None = None
    language: str | None = None
    channel: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """A file to ingest, with its metadata."""

    path: Path
    text: str | None = None
    speaker: str | None = None
    language: str | None = None
    session: str | None = None
    consent: str | None = None
    said: tuple[Said, ...] = ()  # metadata of its spans
    refusal: Refusal | None = None  # decided before opening the file
    notes: tuple[str, ...] = ()  # observations, a sentence each


def find_items(
    sources: Sequence[Path], metadata: Path | None, given: Item, speakers: Sequence[str] | None, read: list[Path]
) -> Iterator[Item]:
    """Yield every file once, in the order of first mention; add the manifests to `read`. Raises UsageError."""
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
            raise UsageError(f"no such file or folder: {source}; give audio files or folders")
        yield from _unseen(found, seen)


def _shut(source: Path) -> Item | None:
    """Refuse a source that cannot be accessed, so that the other sources are still ingested."""
    try:
        source.stat()
    except PermissionError as error:
        message = f"cannot access {source}: {error.strerror}"
        return Item(path=source, refusal=Refusal(path=str(source), reason="unreadable", message=message))
    except OSError:
        pass  # a missing source is reported later
    return None


def _unseen(items: Iterator[Item], seen: set[str]) -> Iterator[Item]:
    for item in items:
        path = str(item.path)
        if path not in seen:
            seen.add(path)
            yield _nameable(item)


def _nameable(item: Item) -> Item:
    """Refuse an item whose name is not Unicode: it could not be stored in a catalog or printed."""
    try:
        str(item.path).encode()
    except UnicodeEncodeError:
        shown = str(item.path).encode("utf-8", "backslashreplace").decode()
        message = f"the file name {shown} is not valid UTF-8: rename the file"
        return Item(path=Path(shown), refusal=Refusal(path=shown, reason="bad-name", message=message))
    return item


def _in_folder(
    folder: Path, given: Item, speakers: Sequence[str] | None, read: list[Path], *, lines: bool, bare: bool
) -> Iterator[Item]:
    """Yield the files that a folder's metadata names, then its other audio files; likewise for subfolders."""
    refused: list[Item] = []

    def unreadable(error: OSError) -> None:
        message = f"cannot read the folder {error.filename}: {error.strerror}"
        path = Path(error.filename)
        refused.append(Item(path=path, refusal=Refusal(path=str(path), reason="unreadable", message=message)))

    for root, folders, names in os.walk(folder, onerror=unreadable):
        folders.sort()
        here = Path(root)
        listings = manifests.in_folder(here, names) if lines else []
        # The user named the top folder; a manifest found further down may not refer to files outside it.
        yield from _listed(listings, given, speakers, read, within=None if here == folder else folder)
        if any(manifest.complete for manifest in listings):
            folders.clear()
        elif bare:
            # splitext, because creating a Path for every name takes longer than looking up its file.
            parts = [(name, *os.path.splitext(name)) for name in sorted(names)]  # noqa: PTH122
            texts = {stem for _, stem, suffix in parts if suffix.lower() in (*TEXT_SUFFIXES, *SUBTITLE_SUFFIXES)}
            for name, stem, suffix in parts:
                if suffix.lower() in AUDIO_SUFFIXES:
                    found = _bare if stem in texts or name in texts else _alone
                    yield found(here / name, given)  # if a line named it, that came first
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
    """Yield the files that manifests name, each once with all its metadata; then the invalid lines."""
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
                message = f"{row.file} is outside {within}: to allow that, pass the manifest itself to `voxloop ingest`"
                wrong.append(_wrong(row, "outside", message))
                continue
            rows = files.setdefault(path, [])
            whole = next((one for one in rows if one.start is None), None) if row.start is None else None
            if whole is None:
                rows.append(row)
            elif whole.text != row.text:
                message = f"{whole.where} has another text for {row.file}; that text is used"
                wrong.append(_wrong(row, "contradiction", message))
    for path, rows in files.items():
        yield _item(path, rows, given)
    yield from wrong


def _wrong(row: Mention, reason: str, message: str) -> Item:
    return Item(path=Path(row.where), refusal=Refusal(path=row.where, reason=reason, message=f"{row.where}: {message}"))


def _resolved(base: Path, file: str, manifest: Manifest) -> Path:
    """Resolve a path in a manifest. Relative paths of Kaldi and Lhotse start in the directory where their tools run."""
    path = Path(os.path.normpath(base / file))
    # For an impossible file name os.path returns False, while Path raises.
    if os.path.exists(path):  # noqa: PTH110
        return path
    if manifest.complete and os.path.isfile(file):  # noqa: PTH113
        return Path(os.path.normpath(file))
    # Manifests from other systems: NFC or NFD accents, backslashes between folders.
    for other in (file.replace("\\", "/"), unicodedata.normalize("NFC", file), unicodedata.normalize("NFD", file)):
        if other != file and os.path.exists(found := os.path.normpath(base / other)):  # noqa: PTH110
            return Path(found)
    return path


def _item(path: Path, rows: Sequence[Mention], given: Item) -> Item:
    """Combine all the lines about one file."""
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
        """Return the value that all spans share, which then holds for the recording."""
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
        consent="; ".join(consents) or given.consent,  # with several speakers, keep every consent
        said=said,
    )


def _alone(path: Path, given: Item) -> Item:
    """A file without metadata and without a text next to it."""
    return Item(
        path=path,
        speaker=given.speaker,
        language=given.language,
        session=given.session,
        consent=given.consent,
    )


def _bare(path: Path, given: Item) -> Item:
    """A file without metadata, with the text next to it."""
    beside = next(_beside(path, TEXT_SUFFIXES), None)
    if beside is None:
        # Subtitles are mostly machine output, but a text next to a file counts as written by a person.
        notes = tuple(f"{path}: did not read {other.name} next to it" for other in _beside(path, SUBTITLE_SUFFIXES))
        return replace(given, path=path, notes=notes)
    try:
        if beside.stat().st_size > MAX_TEXT_BYTES:
            raise ValueError(f"the file has more than {MAX_TEXT_BYTES:,} bytes")
        return replace(given, path=path, text=plain_text(beside.read_bytes().decode("utf-8-sig")))
    except (OSError, ValueError) as error:
        message = f"cannot read the transcript {beside} of {path.name} as UTF-8: {error}; fix or remove it"
        return Item(path=path, refusal=Refusal(path=str(path), reason="bad-text", message=message))


def _beside(path: Path, suffixes: Sequence[str]) -> Iterator[Path]:
    """Yield existing files such as `a.txt` and `a.wav.txt` for `a.wav`."""
    for suffix in suffixes:
        for end in (suffix, suffix.upper()):
            for name in (path.with_suffix(end), path.with_name(path.name + end)):
                if name != path and name.is_file():
                    yield name
