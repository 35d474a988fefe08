"""OpenAI's client for Node, as npm has it, against the server."""

from __future__ import annotations

from pathlib import Path

from openai.types.audio import Transcription, TranscriptionTextDoneEvent, TranscriptionVerbose
from openai.types.model import Model

from tests.web import node_client
from tests.web.conftest import Running
from voxloop.steps.transcripts import formatted, transcribe_file


def test_it_hears_what_the_command_line_does(server: Running, openai_for_node: Path, demo_speech: Path) -> None:
    clip = sorted(demo_speech.glob("*.ogg"))[0]
    expected = transcribe_file(server.ws, clip, word_times=True)

    def call(**given: object) -> dict[str, object]:
        return {"method": "audio.transcriptions.create", "file": str(clip), "given": {"model": "whisper-1"} | given}

    calls = [
        call(),
        call(response_format="verbose_json", timestamp_granularities=["word", "segment"]),
        call(response_format="srt"),
        call(model="gpt-4o-transcribe", include=["logprobs"], chunking_strategy={"type": "server_vad"}),
        call(model="gpt-4o-transcribe", stream=True),
        {"method": "models.list"},
        {"method": "models.retrieve", "given": "champion"},
        call(model="no such model"),
        call(response_format="diarized_json"),
        call() | {"method": "audio.translations.create"},
    ]
    plain, verbose, srt, scored, stream, models, *wrong = node_client.asked(
        openai_for_node, server.url, server.token, calls
    )
    assert Transcription.model_validate(plain["value"], strict=True).text == expected.text
    timed = TranscriptionVerbose.model_validate(verbose["value"], strict=True)
    assert timed.words is not None
    assert [one.word for one in timed.words] == [word.text.strip() for one in expected.segments for word in one.words]
    assert srt["value"].rstrip("\n") == formatted(expected, "srt").rstrip("\n")
    assert Transcription.model_validate(scored["value"]).logprobs
    assert "".join(event.get("delta", "") for event in stream["items"]) == expected.text
    assert TranscriptionTextDoneEvent.model_validate(stream["items"][-1], strict=True).text == expected.text
    assert [Model.model_validate(one, strict=True).object for one in models["items"]] == ["model"]
    champion, unknown, one_channel, english = wrong
    assert (champion["error"], champion["code"]) == ("NotFoundError", "model_not_found")  # none was promoted yet
    assert (unknown["error"], unknown["param"]) == ("NotFoundError", "model")
    assert (one_channel["error"], one_channel["param"]) == ("BadRequestError", "response_format")
    assert (english["error"], english["code"]) == ("BadRequestError", "unsupported_value")


def test_a_wrong_key_is_an_authentication_error(server: Running, openai_for_node: Path) -> None:
    (refused,) = node_client.asked(openai_for_node, server.url, "wrong", [{"method": "models.list"}])
    assert (refused["error"], refused["status"], refused["code"]) == ("AuthenticationError", 401, "invalid_api_key")
