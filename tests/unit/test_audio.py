"""Decoding, the stored form and the measurements, against files made here and SciPy."""

from __future__ import annotations

import io
import struct
import wave
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import signal

from voxloop.errors import AudioError
from voxloop.speech import audio, quality
from voxloop.speech.audio import Waveform, decode, from_pcm16, pcm_id, stream, to_pcm16, wav_bytes
from voxloop.speech.quality import measure

RATE = 16_000


def tone(seconds: float, rate: int = RATE, hz: float = 440.0, amplitude: float = 0.3) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def refusal(path: Path, **options: float) -> AudioError:
    with pytest.raises(AudioError) as caught:
        decode(path, **options)  # type: ignore[arg-type]
    return caught.value


def encode(path: Path, samples: np.ndarray, rate: int, codec: str, layout: str = "mono") -> None:
    """(C, S) float32 into a file by FFmpeg's libraries."""
    import av

    with av.open(str(path), "w") as container:
        out = container.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples, np.float32), format="fltp", layout=layout)
        frame.sample_rate = rate
        frame.time_base = Fraction(1, rate)
        fit = av.AudioResampler(
            format=out.codec_context.format, layout=layout, rate=rate, frame_size=out.codec_context.frame_size or 0
        )
        for part in [*fit.resample(frame), *fit.resample(None)]:
            container.mux(out.encode(part))
        container.mux(out.encode(None))


# The stored form


@given(hnp.arrays(np.int16, st.integers(0, 2000)))
def test_pcm_survives_the_way_to_float_and_back(samples: np.ndarray) -> None:
    pcm = samples.astype("<i2").tobytes()
    assert to_pcm16(from_pcm16(pcm)) == pcm


@given(hnp.arrays(np.float32, st.integers(0, 500), elements=st.floats(-3, 3, width=32)))
def test_pcm_is_within_half_a_step_of_the_float(waveform: Waveform) -> None:
    back = from_pcm16(to_pcm16(waveform))
    assert np.abs(back - np.clip(waveform, -1, 32767 / 32768)).max(initial=0) <= 0.5 / 32768


@given(hnp.arrays(np.int16, st.integers(1, 500)), st.data())
def test_a_span_of_samples_is_a_span_of_bytes(samples: np.ndarray, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(samples)))
    end = data.draw(st.integers(start, len(samples)))
    stored = wav_bytes(samples.astype("<i2").tobytes())
    head = audio.WAV_HEADER_BYTES
    assert np.array_equal(np.frombuffer(stored[head + 2 * start : head + 2 * end], "<i2"), samples[start:end])


def test_the_stored_file_is_a_wav_that_others_read() -> None:
    pcm = to_pcm16(tone(0.5))
    with wave.open(io.BytesIO(wav_bytes(pcm))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16_000, 1, 2)
        assert file.readframes(file.getnframes()) == pcm


def test_an_id_names_its_algorithm_and_depends_on_every_sample() -> None:
    # The digest of two zero bytes, from `printf '\0\0' | sha256sum`.
    assert pcm_id(b"\0\0") == "sha256-96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"
    assert pcm_id(b"\0\0") != pcm_id(b"\0\1")


# Decoding


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000])
def test_resampling_agrees_with_scipy(tmp_path: Path, rate: int) -> None:
    source = tone(1.0, rate, hz=700) + tone(1.0, rate, hz=2_500, amplitude=0.1)
    soundfile.write(tmp_path / "a.wav", source, rate, subtype="FLOAT")
    got = decode(tmp_path / "a.wav")
    fraction = Fraction(RATE, rate)
    expected = signal.resample_poly(source, fraction.numerator, fraction.denominator)
    assert abs(len(got) - RATE) <= 1
    inner = slice(800, 15_200)  # the filters differ at the ends
    assert np.abs(got[inner] - expected[inner]).max() < 2e-3


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.aiff", "a.ogg", "a.mp3"])
def test_stereo_is_mixed_by_its_mean(tmp_path: Path, name: str) -> None:
    left, right = tone(1.0, hz=500), tone(1.0, hz=500, amplitude=0.1)
    soundfile.write(tmp_path / name, np.stack([left, right], axis=1), RATE)
    got = decode(tmp_path / name)
    level = np.sqrt(np.mean(got[4_000:12_000] ** 2))
    assert level == pytest.approx(0.2 / np.sqrt(2), rel=0.02)


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [("a.m4a", "aac", 44_100), ("a.opus", "libopus", 48_000), ("a.webm", "libopus", 48_000), ("a.mka", "ac3", 48_000)],
)
def test_what_libsndfile_refuses_is_read_by_ffmpeg(tmp_path: Path, name: str, codec: str, rate: int) -> None:
    encode(tmp_path / name, np.stack([tone(1.5, rate), tone(1.5, rate, amplitude=0.1)]), rate, codec, "stereo")
    got = decode(tmp_path / name)
    assert len(got) / RATE == pytest.approx(1.5, abs=0.1)
    assert np.sqrt(np.mean(got[6_000:18_000] ** 2)) == pytest.approx(0.2 / np.sqrt(2), rel=0.05)


@given(
    samples=hnp.arrays(np.int16, st.tuples(st.integers(1, 5000), st.integers(1, 4))),
    rate=st.sampled_from([8_000, 16_000, 44_100]),
    block=st.integers(1, 6000),
    channel=st.sampled_from([None, 0, 1]),
    extra=st.binary(max_size=9),
)
@settings(max_examples=40)
def test_a_plain_wav_is_read_as_libsndfile_reads_it(
    tmp_path_factory: pytest.TempPathFactory,
    samples: np.ndarray,
    rate: int,
    block: int,
    channel: int | None,
    extra: bytes,
) -> None:
    path = tmp_path_factory.mktemp("plain") / "a.wav"
    file = io.BytesIO()
    soundfile.write(file, samples, rate, subtype="PCM_16", format="WAV")
    data = file.getvalue()
    chunk = b"LIST" + struct.pack("<I", len(extra)) + extra + b"\0" * (len(extra) % 2)
    path.write_bytes(data[:36] + chunk + data[36:])
    expected = soundfile.read(path, dtype="float32", always_2d=True)[0]
    channel = None if channel is not None and channel >= samples.shape[1] else channel
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audio, "BLOCK_VALUES", block)
        patch.setattr(soundfile, "SoundFile", None)  # it is not asked
        blocks = list(audio._native(path, 1e9, channel, None, audio.Source()))
    assert {found for found, _ in blocks} == {rate}
    assert all(len(one) <= max(1, block // samples.shape[1]) for _, one in blocks)
    wanted = expected.mean(axis=1, dtype=np.float32) if channel is None else expected[:, channel]
    assert np.array_equal(np.concatenate([one for _, one in blocks]), wanted)


def test_opus_by_ffmpeg_is_what_libsndfile_reads(tmp_path: Path, demo_speech: Path) -> None:
    one, other = (np.repeat(decode(path), 3) for path in sorted(demo_speech.glob("*.ogg"))[:2])
    both = np.stack([np.concatenate([one, other]), np.concatenate([other, one])])
    encode(tmp_path / "a.opus", both, 48_000, "libopus", "stereo")
    expected, rate = soundfile.read(tmp_path / "a.opus", dtype="float32")
    found = np.concatenate([block for _, block in audio._native(tmp_path / "a.opus", 1e9, None, None, audio.Source())])
    assert (rate, len(found)) == (48_000, len(expected))
    difference = found - expected.mean(axis=1)
    assert 10 * np.log10(np.mean(difference**2) / np.mean(expected**2)) < -60


def test_blocks_join_to_the_same_samples_whatever_their_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 44_100 * 25).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", noise, 44_100)
    whole = decode(tmp_path / "a.wav")
    monkeypatch.setattr(audio, "BLOCK_S", 1)
    blocks = list(stream(tmp_path / "a.wav"))
    assert len(blocks) > 20
    assert np.array_equal(np.concatenate(blocks), whole)


def wav_header(*, rate: int = RATE, channels: int = 1, data: int = 64, width: int = 2) -> bytes:
    form = struct.pack("<HHIIHH", 1, channels, rate, (rate * channels * width) % 2**32, (channels * width) % 2**16, 16)
    head = b"RIFF" + struct.pack("<I", min(36 + data, 2**32 - 1)) + b"WAVE"
    return head + b"fmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", data)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"This is a shopping list: bread, milk, eggs.\n" * 40, "not-audio"),
        (b"#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:9/a.ts\n", "not-audio"),
        (b"ffconcat version 1.0\nfile /etc/hostname\n", "not-audio"),
        (np.random.default_rng(0).bytes(4_000), "not-audio"),
        (b"RIFF\x24\0\0\0WAVE", "broken"),
        (wav_header(data=0), "empty"),
        (wav_header(rate=4_000_000_000) + b"\0" * 64, "bad-rate"),
        (wav_header(rate=0) + b"\0" * 64, "bad-rate"),
        (wav_header(channels=65_535) + b"\0" * 64, "too-many-channels"),
        (wav_header(channels=0) + b"\0" * 64, "too-many-channels"),
        (wav_header(data=0x7000_0000) + b"\0" * 64, "broken"),
        (wav_header(rate=4_000_000_000, channels=65_535, data=0xFFFF_FFFF) + b"\0" * 64, "bad-rate"),
    ],
    ids=[
        *("nothing", "a text", "a playlist", "a concat script", "random bytes", "no chunks", "no samples"),
        *("4 GHz", "0 Hz", "65,535 channels", "no channels", "data that is not there", "all absurd at once"),
    ],
)
def test_what_is_no_sound_audio_is_refused_with_its_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    error = refusal(path)
    assert error.reason == reason
    assert str(path) in str(error)


def test_a_wav_from_a_pipe_that_never_knew_its_length_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wav_header(data=0xFFFF_FFFF) + to_pcm16(tone(1.0)))
    assert len(decode(path)) == RATE


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_a_truncated_file_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 3 * RATE), RATE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert refusal(path).reason == "broken"


def test_a_truncated_m4a_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.m4a"
    encode(path, tone(3.0, 44_100)[None], 44_100, "aac")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert refusal(path).reason == "broken"


def test_limits_hold(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(2.0), RATE)
    assert refusal(path, max_seconds=1.0).reason == "too-long"
    assert refusal(path, max_bytes=1_000).reason == "too-large"
    encode(tmp_path / "a.m4a", tone(3.0, 44_100)[None], 44_100, "aac")
    assert refusal(tmp_path / "a.m4a", max_seconds=1.0).reason == "too-long"


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "gone.wav").reason == "missing"
    assert refusal(tmp_path).reason == "not-audio"


@pytest.mark.usefixtures("ordinary_user")
def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(1.0), RATE)
    path.chmod(0)
    assert refusal(path).reason == "unreadable"


def test_samples_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    samples = tone(1.0)
    samples[500] = np.nan
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    assert refusal(tmp_path / "a.wav").reason == "broken"


def test_a_video_without_sound_is_refused(tmp_path: Path) -> None:
    import av

    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        out = container.add_stream("mpeg4", rate=10)
        out.width, out.height, out.pix_fmt = 32, 32, "yuv420p"
        container.mux(out.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(out.encode(None))
    assert refusal(path).reason == "not-audio"


# Measuring


def test_levels_are_those_of_theory() -> None:
    quality = measure(tone(2.0, amplitude=0.5))
    assert quality.level_dbfs == pytest.approx(20 * np.log10(0.5 / np.sqrt(2)), abs=0.02)
    assert quality.peak_dbfs == pytest.approx(20 * np.log10(0.5), abs=0.02)
    assert quality.clipping == 0
    assert quality.silence == 0


def test_digital_silence_measures_as_such() -> None:
    quality = measure(np.zeros(RATE, np.float32))
    assert (quality.level_dbfs, quality.silence, quality.snr_db, quality.bandwidth_hz) == (-120.0, 1.0, None, None)


def test_silence_is_the_share_of_quiet_frames() -> None:
    quality = measure(np.concatenate([tone(1.0), np.zeros(3 * RATE, np.float32)]))
    assert quality.silence == pytest.approx(0.75, abs=0.01)


def test_clipping_is_the_share_of_samples_at_full_scale() -> None:
    loud = np.clip(tone(1.0, amplitude=2.0), -1, 1)
    # A sine of twice full scale is beyond it for 2/3 of the time.
    assert measure(from_pcm16(to_pcm16(loud))).clipping == pytest.approx(2 / 3, abs=0.01)


@pytest.mark.parametrize("cutoff", [1_000, 2_000, 4_000, 6_000])
def test_bandwidth_is_where_band_limited_noise_ends(cutoff: int) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 10 * RATE)
    limited = signal.sosfilt(signal.butter(12, cutoff, fs=RATE, output="sos"), noise).astype(np.float32)
    assert measure(limited).bandwidth_hz == pytest.approx(cutoff, abs=100)


@pytest.mark.parametrize("snr_db", [0, 5, 10, 15, 20])
def test_snr_of_known_mixtures(real_speech: Path, snr_db: int) -> None:
    rng = np.random.default_rng(snr_db)
    errors = []
    for path in sorted((real_speech / "kathleen_en").glob("*.flac"))[:12]:
        speech = decode(path)
        noise = rng.normal(0, np.sqrt(np.mean(speech**2) * 10 ** (-snr_db / 10)), len(speech))
        found = measure((speech + noise).astype(np.float32)).snr_db
        assert found is not None
        errors.append(found - snr_db)
    assert abs(np.median(errors)) < 2.5
    assert max(map(abs, errors)) < 4.5


def test_clean_single_words_are_not_taken_for_noise(real_speech: Path) -> None:
    paths = sorted((real_speech / "digits_en").glob("*.wav"))[::50]
    values = [measure(decode(path)).snr_db for path in paths]
    known = [value for value in values if value is not None]
    assert len(known) > 0.9 * len(values)
    assert np.mean([value >= 5 for value in known]) > 0.95


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 9_000), min_size=1, max_size=8), st.integers(0, 2**32 - 1))
def test_measuring_in_blocks_is_measuring_at_once(sizes: list[int], seed: int) -> None:
    whole = np.random.default_rng(seed).normal(0, 0.1, sum(sizes)).astype(np.float32)
    meter = quality.Meter()
    for block in np.split(whole, np.cumsum(sizes)[:-1]):
        meter.add(block)
    in_blocks, at_once = meter.quality(), measure(whole)
    assert in_blocks.level_dbfs == pytest.approx(at_once.level_dbfs, abs=0.02)
    assert (in_blocks.silence, in_blocks.snr_db, in_blocks.clipping) == (
        at_once.silence,
        at_once.snr_db,
        at_once.clipping,
    )


def test_a_long_waveform_is_measured_like_a_short_one() -> None:
    quality = measure(np.tile(tone(1.0), 150))
    assert quality.level_dbfs == pytest.approx(measure(tone(1.0)).level_dbfs, abs=0.01)
