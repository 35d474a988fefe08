"""What WAV, Ogg and MP3 files claim in their headers, held against what is really there.

A header is a claim: recorders that die leave sizes of 0, live streams never know theirs, and sizes wrap past 4 GiB.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from voxloop.errors import AudioError

SAMPLE_BYTES = 2  # of int16
WRAP = 1 << 32  # bytes: where the sizes of RIFF begin at 0 again
UNFINISHED = 0x7FFF_0000  # from here on a size stands for "not known yet"


class Pcm16(NamedTuple):
    """Where the samples of a plain WAV lie: little-endian int16."""

    rate: int  # Hz
    channels: int
    begin: int  # byte
    frames: int
    note: str | None = None  # what its header got wrong


def check_wav(path: Path, file: BinaryIO, head: bytes, check_claims: Callable[[Path, int, int], None]) -> Pcm16 | None:
    """Read the chunks of a RIFF WAV: libsndfile takes a truncated one without a word, and opens absurd headers.

    None for what is no WAV, and for a WAV of another sample format. Raises AudioError for a truncated one.
    """
    if len(head) < 12 or head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return None
    size = file.seek(0, 2)
    place = 12
    plain: tuple[int, int] | None = None
    while place + 8 <= size:
        file.seek(place)
        name, length = struct.unpack("<4sI", file.read(8))
        if name == b"fmt " and length >= 16 and place + 24 <= size:
            kind, channels, rate, _, step, bits = struct.unpack("<HHIIHH", file.read(16))
            check_claims(path, rate, channels)
            plain = (rate, channels) if (kind, bits, step) == (1, 16, SAMPLE_BYTES * channels) else None
        if name == b"data":
            begin, note = place + 8, None
            if not 0 < length < UNFINISHED:
                # Never finished by its recorder, or streamed: everything up to the end of the file is audio.
                if length == 0 and _chunks_until_the_end(file, begin, size):
                    raise AudioError("empty", f"{path} is a WAV file without a single sample")
                length = size - begin
            elif begin + length > size:
                raise AudioError(
                    "broken",
                    f"{path} is truncated: {size - begin:,} bytes of the {length:,} bytes of audio it claims",
                )
            elif size - begin - length >= WRAP and not _chunks_until_the_end(file, begin + length, size):
                length += (size - begin - length) // WRAP * WRAP
                note = "its size wraps past 4 GiB in the header; all of it was read"
            if plain is None:
                return None
            return Pcm16(*plain, begin, length // (SAMPLE_BYTES * plain[1]), note)
        place += 8 + length + length % 2
    return None


def _chunks_until_the_end(file: BinaryIO, place: int, size: int) -> bool:
    """Whether nothing but RIFF chunks follows."""
    while place + 8 <= size:
        file.seek(place)
        name, length = struct.unpack("<4sI", file.read(8))
        if not (name.isascii() and name.strip().isalnum()):
            return False
        place += 8 + length + length % 2
    return size <= place <= size + 1


class OggPages(NamedTuple):
    """What the pages of an Ogg file say."""

    whole: bool  # every page is there and undamaged, of one stream that begins once
    opus: bool


_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_OGG_HEADER = struct.Struct("<4sBBqIIIB")


def check_ogg(path: Path, file: BinaryIO, head: bytes) -> OggPages | None:
    """Walk the pages of an Ogg file (RFC 3533, section 6): libsndfile drops damaged ones without a word.

    None for what is no Ogg file. Raises AudioError where the last page is cut off.
    """
    if head[:4] != b"OggS":
        return None
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        size, place = len(data), 0
        following: dict[int, int] = {}  # the sequence number that comes next, by stream
        begun = 0
        whole = True
        while place + _OGG_HEADER.size <= size:
            magic, _, flags, _, serial, number, checksum, segments = _OGG_HEADER.unpack_from(data, place)
            end = place + 27 + segments
            end += sum(data[place + 27 : end])
            if magic != b"OggS" or (end <= size and _ogg_checksum(data[place:end]) != checksum):
                whole = False
                found = data.find(b"OggS", place + 1)
                if found < 0:
                    break
                place = found
                continue
            if end > size:
                raise AudioError(
                    "broken", f"{path} is truncated: its last Ogg page is cut off after {size - place:,} bytes"
                )
            begun += bool(flags & 2)
            whole &= following.get(serial, number) == number
            following[serial] = number + 1
            place = end
        if size - place >= 4 and data[place : place + 4] == b"OggS":
            raise AudioError(
                "broken", f"{path} is truncated: its last Ogg page is cut off after {size - place:,} bytes"
            )
    return OggPages(whole=whole and begun == 1, opus=head[28:36] == b"OpusHead")


def _ogg_checksum(page: bytes) -> int:
    """The CRC of RFC 3533: zlib's polynomial, with the bits of each byte in the other order and nothing inverted."""
    blank = page[:22] + bytes(4) + page[26:]
    reflected = zlib.crc32(blank.translate(_REVERSED), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return int(f"{reflected:032b}"[::-1], 2)


_XING_AT = {(True, True): 36, (True, False): 21, (False, True): 21, (False, False): 13}  # by MPEG-1, by stereo
CHAINED = 3  # frames that must follow each other for the first of them to be one
_MISSING_MP3 = 2_048  # bytes: tags at the end are counted differently by different writers


# Bit rates of Layer III in kbit/s by MPEG-1 and by MPEG-2, and sample rates by version (ISO/IEC 11172-3, 13818-3).
_KBITS = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
TAGS = (b"TAG", b"APETAGEX", b"LYRICSBEGIN")  # what writers put behind the last frame


class Mp3(NamedTuple):
    """What the header of an MP3 claims, held against its frames."""

    true: bool  # there is a Xing or Info header, and it counts the frames that are there
    holes: tuple[tuple[float, float], ...] = ()  # damaged stretches: where, and how much is missing, in seconds


def check_mp3(path: Path, file: BinaryIO, head: bytes) -> Mp3 | None:
    """Walk the frames of an MP3: libsndfile stops where its header says, or guesses where it has none.

    None for what is no MP3. Raises AudioError where it has fewer bytes than its Xing or Info header claims.
    """
    begin = 0
    if head[:3] == b"ID3" and len(head) >= 10:  # https://id3.org/id3v2.4.0-structure: 7 bits in each byte
        begin = 10 + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9])
    file.seek(begin)
    frame = file.read(64)
    size = file.seek(0, 2)
    if len(frame) < 64 or frame[0] != 0xFF or frame[1] & 0xE6 != 0xE2:
        return None
    tag = _XING_AT[frame[1] & 0x18 == 0x18, frame[3] & 0xC0 != 0xC0]
    if frame[tag : tag + 4] not in (b"Xing", b"Info"):
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return Mp3(true=False, holes=_walk_mp3(data, begin).holes)
    flags = int.from_bytes(frame[tag + 4 : tag + 8], "big")
    if flags & 2:
        at = tag + (12 if flags & 1 else 8)
        claimed = int.from_bytes(frame[at : at + 4], "big")
        if size - begin < claimed - _MISSING_MP3:
            raise AudioError(
                "broken", f"{path} is truncated: {size - begin:,} bytes of the {claimed:,} bytes of audio it claims"
            )
    frames = int.from_bytes(frame[tag + 8 : tag + 12], "big") if flags & 1 else 0
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        walk = _walk_mp3(data, begin)
    # Its own frame is one more.
    return Mp3(true=frames > 0 and not walk.holes and walk.frames == frames + 1, holes=walk.holes)


class _Mp3Walk(NamedTuple):
    frames: int
    holes: tuple[tuple[float, float], ...]  # seconds from the beginning, and seconds that are missing there


def _walk_mp3(data: mmap.mmap, place: int) -> _Mp3Walk:
    """The frames from a place to the end, tags aside, and the stretches that hold none."""
    size, count = len(data), 0
    lengths: dict[bytes, int] = {}  # by the second and third byte of a header
    holes: list[tuple[float, float]] = []
    frame_s = 0.0
    begin = place
    missing = 0  # bytes
    while place + 4 <= size:
        kind = data[place : place + 3]
        length = lengths.get(kind)
        if length is None:
            length = _mp3_length(kind)
            if not length:
                following = None if data[place : place + 11].startswith(TAGS) else _next_mp3_frame(data, place)
                if following is None:  # nothing but a tag, or what some other program appended
                    break
                if kind != b"ID3":
                    share = max(1, count) / max(1, place - begin - missing)  # frames in a byte
                    holes.append((count * frame_s, (following - place) * share * frame_s))
                missing += following - place
                place = following
                continue
            lengths[kind] = length
            first = kind[1] >> 3 & 3 == 3
            frame_s = (1152 if first else 576) / _HZ[kind[1] >> 3 & 3][kind[2] >> 2 & 3]
        place += length
        count += 1
    return _Mp3Walk(count, tuple(holes))


def _mp3_length(header: bytes) -> int:
    """Bytes of a frame of Layer III by the first three bytes of its header; 0 for what is none."""
    if len(header) < 3 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2 or header[1] >> 3 & 3 == 1:
        return 0
    version, bits, rate = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
    if bits in (0, 15) or rate == 3:
        return 0
    first = version == 3
    return (144 if first else 72) * 1000 * _KBITS[first][bits] // _HZ[version][rate] + (header[2] >> 1 & 1)


def _next_mp3_frame(data: mmap.mmap, place: int) -> int | None:
    """Where frames follow each other again; two bytes that look like a header stand in any noise."""
    while (place := data.find(b"\xff", place + 1)) >= 0:
        at, chained = place, 0
        while chained < CHAINED and (length := _mp3_length(data[at : at + 3])):
            at += length
            chained += 1
        if chained == CHAINED or (chained and at >= len(data)):
            return place
    return None
