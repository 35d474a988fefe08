"""OpenAI's own client, unmodified, against the server."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest

from tests.web.conftest import Running
from voxloop.steps.transcripts import transcribe_file


@pytest.fixture
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.token, max_retries=0)


def test_the_text_is_that_of_the_command_line(server: Running, client: openai.OpenAI, demo_speech: Path) -> None:
    for clip in sorted(demo_speech.glob("*.ogg"))[:4]:
        heard = client.audio.transcriptions.create(model="whisper-1", file=clip, language="en")
        assert heard.text == transcribe_file(server.ws, clip, language="en").text
        assert heard.usage is not None


def test_errors_are_the_clients_own_exceptions(server: Running, client: openai.OpenAI, demo_speech: Path) -> None:
    clip = sorted(demo_speech.glob("*.ogg"))[0]
    with pytest.raises(openai.NotFoundError) as unknown:
        client.audio.transcriptions.create(model="no such model", file=clip)
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as no_sound:
        client.audio.transcriptions.create(model="whisper-1", file=("notes.txt", b"no sound at all"))
    assert no_sound.value.param == "file"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0).models.list()
