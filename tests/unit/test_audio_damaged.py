"""Sound is taken whole, whatever a header claims; what is missing becomes silence in the right place, and is told."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from tests.unit.test_audio import RATE, encode, refusal, tone
from voxloop.speech import audio
from voxloop.speech.audio import Source, decode, stream, to_pcm16
from voxloop.speech.containers import check_ogg, check_wav


def read(path: Path, **options: int) -> tuple[np.ndarray, Source]:
    source = Source()
    return np.concatenate(list(stream(path, source=source, **options))), source  # type: ignore[arg-type]


def noise(seconds: float, rate: int = RATE) -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal(round(seconds * rate))).astype(np.float32)


def rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(samples**2)))


class TestMp3:
    """https://github.com/libsndfile/libsndfile/issues/1001, https://github.com/MusicPlayerDaemon/MPD/issues/1200"""

    @pytest.fixture
    def whole(self, tmp_path: Path) -> Path:
        """Quiet, then loud, so that a variable bit rate makes the first frames small."""
        path = tmp_path / "a.mp3"
        loud = np.concatenate([tone(4.0, amplitude=0.001), noise(4.0)])
        soundfile.write(path, loud, RATE, format="MP3", bitrate_mode="VARIABLE", compression_level=0.5)
        return path

    def test_one_whose_header_is_true_is_read_as_before(self, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(audio, "_by_ffmpeg", None)
        expected = soundfile.read(whole, dtype="float32")[0]
        assert np.abs(decode(whole) - expected).max() < 1e-6
        whole.write_bytes(whole.read_bytes() + b"TAG" + bytes(125))  # ID3v1
        assert np.abs(decode(whole) - expected).max() < 1e-6

    def test_without_a_header_every_frame_is_read(self, tmp_path: Path, whole: Path) -> None:
        data = whole.read_bytes()
        assert data[13:17] in (b"Xing", b"Info") or data[21:25] in (b"Xing", b"Info")
        with av.open(str(whole)) as container:  # its first packet lies behind the header's frame
            first = next(container.demux(audio=0)).pos
        bare = tmp_path / "bare.mp3"
        bare.write_bytes(data[first:])
        assert len(read(bare)[0]) == pytest.approx(8 * RATE, abs=0.2 * RATE)

    @pytest.mark.parametrize("claimed", [0.0, 0.5, 3.0])
    def test_the_number_of_frames_in_the_header_is_a_claim(self, whole: Path, claimed: float) -> None:
        data = bytearray(whole.read_bytes())
        at = max(data.find(b"Xing", 0, 64), data.find(b"Info", 0, 64)) + 8
        frames = struct.unpack_from(">I", data, at)[0]
        struct.pack_into(">I", data, at, round(claimed * frames))
        whole.write_bytes(data)
        assert len(read(whole)[0]) == pytest.approx(8 * RATE, abs=0.2 * RATE)

    def test_files_joined_end_to_end_are_all_read(self, whole: Path) -> None:
        whole.write_bytes(2 * whole.read_bytes())
        found, _ = read(whole)
        assert len(found) == pytest.approx(16 * RATE, abs=0.2 * RATE)
        assert rms(found[13 * RATE : 15 * RATE]) == pytest.approx(0.1, rel=0.1)


class TestWav:
    """Recorders that die leave sizes that were never filled in."""

    def header(self, riff: int, data: int, subtype: str = "PCM_16") -> bytes:
        kind, size = (1, 2) if subtype == "PCM_16" else (3, 4)
        form = struct.pack("<HHIIHH", kind, 1, RATE, RATE * size, size, 8 * size)
        return (
            b"RIFF"
            + struct.pack("<I", riff)
            + b"WAVEfmt "
            + struct.pack("<I", 16)
            + form
            + b"data"
            + struct.pack("<I", data)
        )

    @pytest.mark.parametrize("sizes", [(0, 0), (36, 0), (0xFFFF_FFFF, 0xFFFF_FFFF), (8, 0)])
    @pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
    def test_sizes_that_were_never_filled_in(self, tmp_path: Path, sizes: tuple[int, int], subtype: str) -> None:
        sound = tone(1.0)
        body = to_pcm16(sound) if subtype == "PCM_16" else sound.astype("<f4").tobytes()
        path = tmp_path / "a.wav"
        path.write_bytes(self.header(*sizes, subtype) + body)
        assert np.abs(decode(path) - sound).max() < 1e-4

    def test_no_audio_and_a_comment_behind_it_is_empty(self, tmp_path: Path) -> None:
        path = tmp_path / "a.wav"
        path.write_bytes(self.header(36, 0) + b"LIST" + struct.pack("<I", 4) + b"INFO")
        assert refusal(path).reason == "empty"

    def test_a_size_that_wrapped_past_4_gib(self, tmp_path: Path) -> None:
        path = tmp_path / "a.wav"
        frames = (1 << 31) + 1000  # of 2 bytes
        with path.open("wb") as file:
            file.write(self.header(0, 2000))
            file.truncate(44 + 2 * frames)  # sparse: it takes no room
        with path.open("rb") as file:
            found = check_wav(path, file, file.read(36), audio._check_claims)
        assert found is not None
        assert found.frames == frames
        assert found.note


class TestOgg:
    """https://github.com/SYSTRAN/faster-whisper/issues/988: a hole moves all that follows."""

    def pages(self, data: bytes) -> list[tuple[int, int]]:
        found, place = [], 0
        while place < len(data):
            segments = data[place + 26]
            end = place + 27 + segments + sum(data[place + 27 : place + 27 + segments])
            found.append((place, end))
            place = end
        return found

    @pytest.fixture(params=["VORBIS", "OPUS"])
    def ogg(self, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
        path = tmp_path / "a.ogg"
        sound = np.concatenate([tone(6.0, 48_000, hz=300), tone(6.0, 48_000, hz=2000)])
        sound += 0.3 * noise(12.0, 48_000)  # so that it takes more than a few pages
        soundfile.write(path, sound, 48_000, format="OGG", subtype=request.param)
        return path

    def test_a_whole_file_is_whole(self, ogg: Path) -> None:
        with ogg.open("rb") as file:
            pages = check_ogg(ogg, file, file.read(36))
        assert pages is not None
        assert pages.whole

    @pytest.mark.parametrize("harm", ["page lost", "bytes changed"])
    def test_what_follows_a_damaged_stretch_keeps_its_time(self, ogg: Path, harm: str) -> None:
        data = ogg.read_bytes()
        pages = self.pages(data)
        begin, end = pages[len(pages) // 2 - 1]
        if harm == "page lost":
            ogg.write_bytes(data[:begin] + data[end:])
        else:
            ogg.write_bytes(data[: begin + 60] + bytes(200) + data[begin + 260 :])
        found, source = read(ogg)
        assert len(found) == pytest.approx(12 * RATE, abs=0.1 * RATE)
        spectrum = [np.abs(np.fft.rfft(found[at * RATE : (at + 1) * RATE])).argmax() for at in (0, 10)]
        assert spectrum == [pytest.approx(300, abs=3), pytest.approx(2000, abs=3)]
        assert "silence" in " ".join(source.notes)

    def test_streams_joined_end_to_end_are_all_read(self, ogg: Path) -> None:
        ogg.write_bytes(2 * ogg.read_bytes())
        assert len(read(ogg)[0]) == pytest.approx(24 * RATE, abs=0.3 * RATE)


class TestTimelines:
    """Players show a sound that begins late, or has a gap, at its own time; so do our cues."""

    def written(self, path: Path, codec: str, starts_s: tuple[float, ...]) -> None:
        """A second of tone at each of these times."""
        rate = 48_000
        with av.open(str(path), "w") as container:
            out = container.add_stream(codec, rate=rate, layout="mono")
            fit = av.AudioResampler(
                format=out.codec_context.format,
                layout="mono",
                rate=rate,
                frame_size=out.codec_context.frame_size or 960,
            )
            for start in starts_s:
                frame = av.AudioFrame.from_ndarray(tone(1.0, rate)[None], format="fltp", layout="mono")
                frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
                for number, part in enumerate(fit.resample(frame)):
                    part.pts = round(start * rate) + number * part.samples
                    part.time_base = Fraction(1, rate)
                    container.mux(out.encode(part))
            container.mux(out.encode(None))

    @pytest.mark.parametrize(("name", "codec"), [("a.mkv", "libopus"), ("a.webm", "libopus"), ("a.mp4", "aac")])
    def test_a_late_start_and_a_gap_become_silence(self, tmp_path: Path, name: str, codec: str) -> None:
        path = tmp_path / name
        self.written(path, codec, (2.0, 5.0))
        found, source = read(path)
        assert len(found) == pytest.approx(6 * RATE, abs=0.15 * RATE)
        loud = [rms(found[int(at * RATE) : int((at + 0.5) * RATE)]) > 0.05 for at in (0.5, 1.3, 2.25, 3.4, 4.3, 5.25)]
        assert loud == [False, False, True, False, False, True]
        assert source.gaps == 2

    def test_the_default_track_is_taken_and_the_others_told(self, tmp_path: Path) -> None:
        path = tmp_path / "a.mkv"
        rate = 48_000
        with av.open(str(path), "w") as container:
            outs = [container.add_stream("libopus", rate=rate, layout="mono") for _ in range(2)]
            outs[0].disposition, outs[1].disposition = 0, 1
            for out, hz in zip(outs, (300, 2000), strict=True):
                frame = av.AudioFrame.from_ndarray(tone(1.0, rate, hz)[None], format="fltp", layout="mono")
                frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
                fit = av.AudioResampler(format=out.codec_context.format, layout="mono", rate=rate, frame_size=960)
                for part in fit.resample(frame):
                    container.mux(out.encode(part))
                container.mux(out.encode(None))
        assert np.abs(np.fft.rfft(read(path)[0][:RATE])).argmax() == pytest.approx(2000, abs=3)
        assert "2 audio tracks" in read(path)[1].notes[0]
        assert np.abs(np.fft.rfft(read(path, track=0)[0][:RATE])).argmax() == pytest.approx(300, abs=3)
        with pytest.raises(audio.AudioError, match="counted from 0"):
            read(path, track=2)


def test_a_damaged_stretch_of_flac_keeps_the_times_behind_it(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, np.concatenate([noise(6.0), tone(6.0)]), RATE)
    data = bytearray(path.read_bytes())
    at = len(data) // 4
    data[at : at + 3000] = bytes(3000)
    path.write_bytes(data)
    found, source = read(path)
    assert len(found) == pytest.approx(12 * RATE, abs=0.5 * RATE)
    assert np.abs(np.fft.rfft(found[10 * RATE : 11 * RATE])).argmax() == pytest.approx(440, abs=3)
    assert source.notes


def test_channels_that_cancel_each_other_out_are_noticed(tmp_path: Path) -> None:
    sound = noise(1.0)
    soundfile.write(tmp_path / "a.wav", np.stack([sound, -sound], axis=1), RATE)
    soundfile.write(tmp_path / "b.wav", np.stack([sound, np.roll(sound, 1000)], axis=1), RATE)
    assert read(tmp_path / "a.wav")[1].cancels
    assert not read(tmp_path / "b.wav")[1].cancels


@pytest.mark.parametrize(
    ("name", "codec"), [("a.opus", "opus"), ("a.flac", "flac"), ("a.wav", "pcm_16"), ("a.mp3", "mp3")]
)
def test_what_a_source_was_is_told(tmp_path: Path, name: str, codec: str) -> None:
    path = tmp_path / name
    if codec == "opus":
        encode(path, tone(1.0, 48_000)[None], 48_000, "libopus")
    else:
        soundfile.write(path, tone(1.0), RATE)
    _, source = read(path)
    assert (source.codec, source.channels) == (codec, 1)
    assert source.rate in (RATE, 48_000)
