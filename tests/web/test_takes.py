"""Takes over HTTP: what the check says of them, who may keep them, and what they become."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
import soundfile

from tests.web.conftest import Running
from tests.web.live import hiss, silence
from tests.web.spoken import clip, digits
from voxloop.records import Recording, Transcript, Utterance
from voxloop.serving import tokens
from voxloop.speech.audio import Waveform
from voxloop.steps import captures, consent
from voxloop.stores import tables


class Speaker:
    """A person with a browser."""

    def __init__(self, server: Running, name: str, *scopes: str) -> None:
        secret = tokens.add(server.ws, name, scopes or ("listen", "review")).secret
        self.client = httpx.Client(
            base_url=f"{server.url}/api/", headers={"authorization": f"Bearer {secret}"}, trust_env=False, timeout=60
        )

    def __call__(self, method: str, path: str, status: int = 200, **given: Any) -> Any:
        said = self.client.request(method, path, **given)
        assert said.status_code == status, said.text
        return said.json()

    def take(self, path: str, waveform: Waveform, status: int = 200, **fields: str) -> Any:
        sound = io.BytesIO()
        soundfile.write(sound, waveform, 16_000, format="WAV")
        data = {"phrase": "dim the lantern", "speaker": "ann", "language": "en"} | fields
        return self("POST", path, status, files={"file": ("take.wav", sound.getvalue())}, data=data)


def within(waveform: Waveform) -> Waveform:
    """A clip with a pause on both sides."""
    return np.concatenate([silence(0.4), hiss(waveform), silence(0.4)])


def test_what_was_read_well_passes(server: Running, real_speech: Path) -> None:
    ((sound, said),) = digits(real_speech, 4)
    found = Speaker(server, "ann").take("takes/check", within(sound), phrase=said.upper() + ".")
    assert (found["warnings"], found["wrong_words"], found["words"]) == ([], 0, 3), found
    assert {one["operation"] for one in found["pieces"]} == {"equal"}
    assert found["model"]["name"] == "starter"
    assert found["seconds"] == pytest.approx(0.8 + len(sound) / 16_000, abs=0.01)


def test_what_went_wrong_is_said(server: Running, demo_speech: Path) -> None:
    ann = Speaker(server, "ann")
    sound = clip(demo_speech, "dim-the-lantern-01")
    speech = np.flatnonzero(np.abs(sound) > 0.05)
    middle = int(speech[len(speech) // 2])
    for waveform, warning in (
        (np.concatenate([hiss(sound)[middle:], silence(0.4)]), "cut at the start"),
        (np.concatenate([silence(0.4), hiss(sound)[:middle]]), "cut at the end"),
        (np.clip(20 * within(sound), -1, 1), "clipped"),
        (0.002 * within(sound), "too quiet"),
        (within(sound)[:3200], "too short"),
        (np.zeros(16_000, np.float32), "nothing to hear"),
    ):
        found = ann.take("takes/check", waveform)
        assert any(one.startswith(warning) for one in found["warnings"]), (warning, found)
    assert found["unheard"]
    wrong = ann.take("takes/check", within(sound), phrase="an entirely different sentence")
    assert wrong["wrong_words"] >= 4
    assert not [one for one in wrong["warnings"] if one.startswith("cut")]
    assert "at most 30 s" in ann.take("takes/check", silence(31), 400)["error"]["message"]
    ann.take("takes/check", sound, 400, language="klingon")
    ann.take("takes/check", sound, 400, phrase="")
    with server.ws.read() as reader:  # nothing is kept by looking
        assert reader.count(Recording) == 0


def test_a_take_is_kept_once_and_with_consent(server: Running, demo_speech: Path) -> None:
    ws = server.ws
    ann, lis = Speaker(server, "ann"), Speaker(server, "lis", "listen")
    sound = within(clip(demo_speech, "dim-the-lantern-01"))
    assert ann.take("takes", sound, 403)["error"]["code"] == "consent_needed"
    about = ann("GET", "microphone")
    assert (about["consent"]["version"], about["consent"]["purposes"]) == (0, ["train"])
    given = ann("POST", "consent", json={"speaker": "ann", "version": 0})
    assert (given["version"], given["permits"]) == (1, ["train"])
    entry = ann.take("takes", sound, 201, phrase="dim  the\nlantern / now")
    assert (entry["transcript"], entry["is_reviewed"], entry["reviewed_by"]) == ("dim the lantern / now", True, "ann")
    assert entry["file"] == "dim the lantern   now.wav"
    assert ann.take("takes", sound, 200, phrase="dim the lantern / now")["id"] == entry["id"]
    with ws.read() as reader:
        assert (reader.count(Recording), reader.count(Transcript)) == (1, 1)
        row = reader.connection.execute(tables.capture.select()).one()
        assert (row.client, row.version, row.phrase) == ("ann", 1, "dim the lantern / now")
    # Who may not review may read; the text waits for somebody who may.
    entry = lis.take("takes", 0.5 * sound, 201)
    assert (entry["transcript"], entry["is_reviewed"], entry["status"]) == ("dim the lantern", False, "transcribed")
    assert lis("GET", "phrases", params={"language": "en"})["phrases"] == []
    lis("PUT", "phrases", 403, json={"language": "en", "phrases": ["x"]})
    lis("DELETE", "consent", 403, params={"speaker": "ann"})
    assert ann("DELETE", "consent", params={"speaker": "ann"})["permits"] == []
    ann.take("takes", 0.25 * sound, 403)
    with ws.read() as reader:
        assert reader.count(Utterance) == 2
    captures.expired(ws, lambda ids: pytest.fail("they are new"))


def test_nobody_agrees_to_a_text_that_they_did_not_see(server: Running) -> None:
    ann = Speaker(server, "ann")
    consent.add_text(server.ws, "another text", ["train", "share"], by="bob")
    assert "has changed" in ann("POST", "consent", 409, json={"speaker": "ann", "version": 0})["error"]["message"]
    assert ann("GET", "microphone")["consent"]["text"] == "another text"
    ann("POST", "consent", 400, json={"speaker": "ann", "version": 1, "purposes": ["publish"]})
    ann("POST", "consent", 404, json={"speaker": "ann", "version": 2})
    found = ann("POST", "consent", json={"speaker": "ann", "version": 1, "purposes": ["train"]})
    assert (found["permits"], ann("GET", "consent", params={"speaker": "ann"})) == (["train"], found)


def test_the_routes_want_a_token_of_scope_listen(server: Running) -> None:
    rev = Speaker(server, "rev", "review")
    assert rev("GET", "microphone")["may_listen"] is False
    for method, path in (
        ("GET", "consent?speaker=a"),
        ("POST", "consent"),
        ("DELETE", "consent?speaker=a"),
        ("POST", "phrases/next"),
        ("GET", "phrases?language=en"),
        ("PUT", "phrases"),
        ("POST", "takes"),
        ("POST", "takes/check"),
    ):
        rev(method, path, 403)
        assert httpx.request(method, f"{server.url}/api/{path}", trust_env=False).status_code == 401
    with httpx.Client(base_url=server.url, trust_env=False) as browser:
        browser.get("/login", params={"code": tokens.link(server.ws)})
        evil = {"origin": "https://evil.example"}
        assert browser.post("/api/consent", json={"speaker": "a", "version": 0}, headers=evil).status_code == 403
        assert browser.post("/api/takes", data={"phrase": "x"}, headers=evil).status_code == 403
