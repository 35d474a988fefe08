"""OpenAI's own client, unmodified, against the server; and what other programs send, byte by byte."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import httpx2 as httpx
import numpy as np
import openai
import pytest
import soundfile

from tests.unit import tiny_whisper
from tests.web.conftest import Running, served
from voxloop.pipeline import open_loop
from voxloop.speech.audio import decode
from voxloop.steps.transcripts import formatted, transcribe_file
from voxloop.web import openai_audio


@pytest.fixture
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.token, max_retries=0)


@pytest.fixture
def clip(demo_speech: Path) -> Path:
    return sorted(demo_speech.glob("*.ogg"))[0]


def test_the_text_is_that_of_the_command_line(server: Running, client: openai.OpenAI, demo_speech: Path) -> None:
    for clip in sorted(demo_speech.glob("*.ogg"))[:4]:
        heard = client.audio.transcriptions.create(model="whisper-1", file=clip, language="en")
        assert heard.text == transcribe_file(server.ws, clip, language="en").text
        assert heard.usage is not None
        assert heard.usage.type == "duration"


def test_every_format_is_what_the_client_expects(server: Running, client: openai.OpenAI, clip: Path) -> None:
    expected = transcribe_file(server.ws, clip, word_times=True)
    asked = client.audio.transcriptions
    for format in ("text", "srt", "vtt"):
        plain = asked.create(model="whisper-1", file=clip, response_format=format)
        assert plain.rstrip("\n") == formatted(expected, format).rstrip("\n")
    verbose = asked.create(
        model="whisper-1", file=clip, response_format="verbose_json", timestamp_granularities=["word", "segment"]
    )
    assert type(verbose).model_validate(verbose.model_dump()) == verbose
    assert verbose.language == "english"
    assert verbose.duration == pytest.approx(expected.duration, abs=0.01)
    assert verbose.segments is not None
    assert [one.text for one in verbose.segments] == [one.text for one in expected.segments]
    assert verbose.words is not None
    assert [one.word for one in verbose.words] == [word.text.strip() for one in expected.segments for word in one.words]
    bare = asked.create(model="whisper-1", file=clip, response_format="verbose_json")
    assert bare.words is None
    scored = asked.create(model="gpt-4o-transcribe", file=clip, include=["logprobs"])
    assert scored.logprobs is not None
    assert "".join(str(one.token) for one in scored.logprobs).strip() == expected.text
    assert all(one.logprob is not None and one.logprob <= 0 for one in scored.logprobs)
    assert all(bytes(map(int, one.bytes or [])).decode() == one.token for one in scored.logprobs)
    assert len(scored.logprobs) == len(verbose.segments[0].tokens)


def test_a_stream_tells_of_parts_as_they_are_heard(client: openai.OpenAI, clip: Path) -> None:
    whole = client.audio.transcriptions.create(model="gpt-4o-transcribe", file=clip).text
    events = list(client.audio.transcriptions.create(model="gpt-4o-transcribe", file=clip, stream=True))
    assert events[-1].type == "transcript.text.done"
    assert events[-1].text == whole
    assert "".join(one.delta for one in events if one.type == "transcript.text.delta") == whole


def test_a_stream_carries_what_the_whole_answer_does(client: openai.OpenAI, two_speakers: Path) -> None:
    asked = client.audio.transcriptions
    whole = asked.create(model="gpt-4o-transcribe-diarize", file=two_speakers, response_format="diarized_json")
    events = list(
        asked.create(
            model="gpt-4o-transcribe-diarize",
            file=two_speakers,
            response_format="diarized_json",
            include=["logprobs"],
            stream=True,
        )
    )
    assert [one.type for one in events] == ["transcript.text.segment", "transcript.text.delta"] * 2 + [
        "transcript.text.done"
    ]
    segments = [one for one in events if one.type == "transcript.text.segment"]
    assert [one.to_dict() for one in segments] == [one.to_dict() for one in whole.segments]
    deltas = [one for one in events if one.type == "transcript.text.delta"]
    assert [one.segment_id for one in deltas] == [one.id for one in segments]
    done = events[-1]
    assert done.type == "transcript.text.done"
    assert done.languages is not None
    assert [one.code for one in done.languages] == ["en"]
    assert done.logprobs is not None
    assert done.usage is not None
    assert done.usage.output_tokens == len(done.logprobs) == sum(len(one.logprobs or []) for one in deltas)


def test_each_field_does_what_it_says(
    server: Running, client: openai.OpenAI, demo_speech: Path, tmp_path: Path
) -> None:
    asked = client.audio.transcriptions
    clips = sorted(demo_speech.glob("*.ogg"))[:6]
    likeliest = [asked.create(model="whisper-1", file=clip).text for clip in clips]
    sampled = [asked.create(model="whisper-1", file=clip, temperature=1.0).text for clip in clips]
    assert sampled != likeliest
    assert sampled == [asked.create(model="whisper-1", file=clip, temperature=1.0).text for clip in clips]
    assert [asked.create(model="whisper-1", file=clip, temperature=0.0).text for clip in clips] == likeliest
    # Clips half a second apart are one part to the detector by default, and several where it is told so.
    pause = np.zeros(8_000, dtype=np.float32)
    joined = np.concatenate([part for clip in clips for part in (decode(clip), pause)])
    soundfile.write(tmp_path / "joined.wav", joined, 16_000)
    detector = {"type": "server_vad", "silence_duration_ms": 250, "threshold": 0.4, "prefix_padding_ms": 50}

    def parts(strategy: object) -> int:
        found = asked.create(
            model="whisper-1", file=tmp_path / "joined.wav", response_format="verbose_json", chunking_strategy=strategy
        )  # type: ignore[call-overload]
        return len(found.segments)

    assert parts("auto") < parts(detector)
    assert asked.create(model="whisper-1", file=clips[0], extra_body={"languages": ["en"]}).text == likeliest[0]
    for wrong, param in (
        ({"temperature": 1.5}, "temperature"),
        ({"include": ["everything"]}, "include"),
        ({"timestamp_granularities": ["letter"]}, "timestamp_granularities"),
        ({"language": "klingon"}, "language"),
        ({"chunking_strategy": {"type": "by hand"}}, "chunking_strategy"),
        ({"chunking_strategy": {"type": "server_vad", "threshold": 2}}, "chunking_strategy.threshold"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            asked.create(model="whisper-1", file=clips[0], extra_body=wrong)
        assert refused.value.param == param


def test_a_model_of_english_alone_translates_nothing(client: openai.OpenAI, clip: Path) -> None:
    with pytest.raises(openai.BadRequestError, match="knows English alone and cannot translate") as refused:
        client.audio.translations.create(model="whisper-1", file=clip)
    assert refused.value.param == "model"


def test_translations_are_what_a_multilingual_model_writes(tmp_path: Path, clip: Path) -> None:
    folder = tiny_whisper.make(tmp_path / "multilingual", multilingual=True, seed=1)
    with open_loop(tmp_path / "workspace", create=True, base_model=str(folder), engine="torch") as ws, served(ws) as it:
        asked = openai.OpenAI(base_url=f"{it.url}/v1", api_key=it.token, max_retries=0).audio
        translated = asked.translations.create(model="whisper-1", file=clip)
        verbose = asked.translations.create(model="whisper-1", file=clip, response_format="verbose_json")
        heard = asked.transcriptions.create(model="whisper-1", file=clip, language="de")
        with pytest.raises(openai.BadRequestError, match="response_format"):
            asked.translations.create(model="whisper-1", file=clip, response_format="diarized_json")  # type: ignore[call-overload]
    assert type(verbose).model_validate(verbose.model_dump()) == verbose
    assert (verbose.language, verbose.text) == ("english", translated.text)
    assert translated.text != heard.text


def test_a_long_answer_is_begun_before_it_is_there(
    server: Running, client: openai.OpenAI, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = client.audio.transcriptions.create(model="whisper-1", file=clip).text
    monkeypatch.setattr(openai_audio, "PATIENCE_S", 0.0)
    monkeypatch.setattr(openai_audio, "BREATH_S", 0.005)
    raw = client.audio.transcriptions.with_raw_response.create(model="whisper-1", file=clip)
    assert raw.parse().text == expected
    assert raw.text.startswith(" ")
    assert raw.headers["x-voxloop-model"]


@pytest.fixture
def two_speakers(demo_speech: Path, tmp_path: Path) -> Path:
    """A call, in which each speaker has a channel."""
    first, second = (decode(file) for file in sorted(demo_speech.glob("*.ogg"))[:2])
    both = np.zeros((len(first) + len(second) + 16_000, 2), dtype=np.float32)
    both[: len(first), 0] = first
    both[len(first) + 16_000 :, 1] = second
    soundfile.write(tmp_path / "call.wav", both, 16_000)
    return tmp_path / "call.wav"


def test_each_channel_is_a_speaker(client: openai.OpenAI, demo_speech: Path, two_speakers: Path) -> None:
    first = decode(sorted(demo_speech.glob("*.ogg"))[0])
    heard = client.audio.transcriptions.create(
        model="gpt-4o-transcribe-diarize",
        file=two_speakers,
        response_format="diarized_json",
        extra_body={"known_speaker_names": ["ann"]},
    )
    assert [one.speaker for one in heard.segments] == ["ann", "B"]
    assert heard.segments[1].start > len(first) / 16_000
    with pytest.raises(openai.BadRequestError, match="a channel for each speaker, 2 to 8: this one has 1"):
        client.audio.transcriptions.create(
            model="whisper-1", file=sorted(demo_speech.glob("*.ogg"))[0], response_format="diarized_json"
        )


def test_errors_are_the_clients_own_exceptions(server: Running, client: openai.OpenAI, clip: Path) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.audio.transcriptions.create(model="no such model", file=clip)
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.audio.transcriptions.create(model="/etc", file=clip)  # a folder is never opened for a request
    with pytest.raises(openai.BadRequestError) as no_sound:
        client.audio.transcriptions.create(model="whisper-1", file=("notes.txt", b"no sound at all"))
    assert no_sound.value.param == "file"
    with pytest.raises(openai.BadRequestError, match="response_format is 'xml'"):
        client.audio.transcriptions.create(model="whisper-1", file=clip, response_format="xml")  # type: ignore[call-overload]
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0).models.list()


def test_models_are_listed_by_every_name(server: Running, client: openai.OpenAI, clip: Path) -> None:
    listed = [one.id for one in client.models.list()]
    assert len(listed) == 1
    assert client.models.retrieve("whisper-1").model_dump()["model"] == listed[0]
    for name in ("", "starter", listed[0], listed[0][:20]):
        raw = client.audio.transcriptions.with_raw_response.create(model=name, file=clip)
        assert raw.headers["x-voxloop-model"] == listed[0]


def test_what_other_programs_send(server: Running, clip: Path) -> None:
    bearer = {"authorization": f"Bearer {server.token}"}
    url, sound = f"{server.url}/v1/audio/transcriptions", clip.read_bytes()
    expected = transcribe_file(server.ws, clip).text

    def text(**given: object) -> str:
        said = httpx.post(url, trust_env=False, timeout=60, **given)  # type: ignore[arg-type]
        assert said.status_code == 200, said.text
        return str(said.json()["text"])

    # curl -F file=@a -F model=…: the file first, its name without a suffix, as octets.
    named = {"file": ("blob", sound, "application/octet-stream")}
    assert text(headers=bearer, files=named, data={"model": "whisper-1"}) == expected
    # Open WebUI's JSON mode.
    body = {"model": "whisper-1", "input_audio": {"data": base64.b64encode(sound).decode(), "format": "ogg"}}
    assert text(headers=bearer, json=body) == expected
    # The Obsidian plugin: webm or ogg, named so; the options that are not at their defaults alone.
    named = {"file": ("audio.webm", sound, "audio/webm")}
    assert text(headers=bearer | {"origin": "app://obsidian.md"}, files=named, data={"model": "whisper-1"}) == expected
    # What cannot be read is told in OpenAI's shape.
    for given in (
        {"data": {"model": "whisper-1"}, "files": {"other": b"x"}},
        {"content": b"{", "headers": {"content-type": "application/json"}},
        {"json": {"model": "whisper-1", "input_audio": {"data": "***", "format": "wav"}}},
        {"json": [1]},
        {"content": b"x", "headers": {"content-type": "text/plain"}},
    ):
        headers = bearer | given.pop("headers", {})  # type: ignore[call-overload,operator]
        refused = httpx.post(url, headers=headers, trust_env=False, **given)  # type: ignore[arg-type]
        assert refused.status_code in (400, 415), refused.text
        assert set(json.loads(refused.text)["error"]) == {"message", "type", "param", "code"}
