"""Who may open live sessions, what ends them, and clients that mean no good."""

from __future__ import annotations

import base64
import json
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx2 as httpx
import numpy as np
import openai
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.web.conftest import TOKEN, Running, served
from tests.web.live import COMPLETED, PCM_16K, live, said, silence
from tests.web.test_hot_swap import crowned, disturbed, promoted, serving, wait_for
from voxloop.pipeline import open_loop
from voxloop.records import Recording, Transcript
from voxloop.serving import streams, tokens
from voxloop.speech.audio import to_pcm16
from voxloop.web.limits import AudioLimit


def status(server: Running, **given: Any) -> int:
    """The answer to a handshake."""
    try:
        with live(server, **given):
            return 101
    except InvalidStatus as error:
        return error.response.status_code


def test_a_socket_wants_a_token_on_loopback_too(server: Running) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Bearer {TOKEN}x"}):
        assert status(server, headers=headers) == 401
    in_address = urlencode({"token": TOKEN, "api_key": TOKEN})
    assert status(server, headers={}, query=f"?{in_address}") == 401
    assert status(server) == 101
    reviewer = tokens.add(server.ws, "rita", ["review"])
    assert status(server, headers={"authorization": f"Bearer {reviewer.secret}"}) == 403


def test_a_socket_of_another_site_or_host_is_refused(server: Running) -> None:
    bearer = {"authorization": f"Bearer {TOKEN}"}
    for origin in ("https://evil.example", f"{server.url}.evil.example", "null", "http://127.0.0.1"):
        assert status(server, origin=origin) == 403
    assert status(server, origin=server.url) == 101
    assert status(server, origin="app://obsidian.md") == 101
    with pytest.raises(InvalidStatus) as refused, live(server, headers=bearer | {"host": "evil.example"}):
        pass
    assert refused.value.response.status_code == 400


def test_a_cookie_opens_a_socket_from_the_servers_own_pages_alone(server: Running) -> None:
    with httpx.Client(base_url=server.url, trust_env=False) as browser:
        browser.get("/login", params={"code": tokens.link(server.ws)})
        cookie = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
    assert status(server, headers={"cookie": cookie}, origin=server.url) == 101
    assert status(server, headers={"cookie": cookie}, origin="https://evil.example") == 403


def test_a_browser_sends_its_key_as_a_subprotocol(server: Running) -> None:
    ann = tokens.add(server.ws, "ann")
    with live(server, headers={}, subprotocols=["realtime", f"openai-insecure-api-key.{ann.secret}"]) as session:
        assert session.socket.subprotocol == "realtime"  # the key is not echoed
        session.next("session.created")
    assert status(server, headers={}, subprotocols=["realtime", "openai-insecure-api-key.wrong"]) == 401


def test_a_client_secret_opens_sessions_and_nothing_else(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    ann = tokens.add(server.ws, "ann", ["listen", "review"])
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=ann.secret, max_retries=0)
    made = client.realtime.client_secrets.create(
        expires_after={"anchor": "created_at", "seconds": 60},
        session={"type": "transcription", "audio": {"input": {"turn_detection": None}}},
    )
    assert made.value.startswith("ek_")
    assert 50 <= made.expires_at - time.time() <= 61
    assert made.session.type == "transcription"
    type(made).model_validate(made.model_dump())
    own = {"authorization": f"Bearer {made.value}"}
    with live(server, headers={}, subprotocols=["realtime", f"openai-insecure-api-key.{made.value}"]) as session:
        created = session.next("session.created")["session"]
        assert created["audio"]["input"]["turn_detection"] is None  # as the secret was made for
    assert httpx.get(f"{server.url}/v1/models", headers=own, trust_env=False).status_code == 401
    with live(server, headers=own) as session:
        session.next("session.created")
        tokens.revoke(server.ws, "ann")  # ends what was opened in her name, whichever way
        with pytest.raises(ConnectionClosed) as closed:
            session.next("nothing")
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008
        assert session.of("error")[0]["error"]["code"] == "invalid_api_key"
    made = openai.OpenAI(base_url=f"{server.url}/v1", api_key=TOKEN).realtime.client_secrets.create()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 601)
    assert status(server, headers={"authorization": f"Bearer {made.value}"}) == 401


def test_wrong_client_secrets_are_refused(server: Running) -> None:
    headers = {"authorization": f"Bearer {TOKEN}"}
    for body in (
        {"session": {"type": "realtime"}},
        {"expires_after": {"seconds": 5}},
        {"expires_after": {"seconds": 1e9}},
        {"session": {"audio": {"input": {"format": {"type": "audio/mp3"}}}}},
    ):
        said = httpx.post(f"{server.url}/v1/realtime/client_secrets", json=body, headers=headers, trust_env=False)
        assert said.status_code == 400, body
    assert status(server, headers={"authorization": "Bearer ek_made_up"}) == 401


def test_hostile_messages_are_told_of_and_do_no_harm(server: Running, real_speech: Path) -> None:
    with live(server) as session:
        session.update(**PCM_16K)
        for text, code in (
            ("not JSON", "invalid_json"),
            ("[]", "invalid_json"),
            ("[" * 100_000, "invalid_json"),
            (json.dumps({"type": "response.create"}), "unknown_event"),
            (json.dumps({"type": 5}), "unknown_event"),
            (json.dumps({"type": "input_audio_buffer.append"}), "invalid_type"),
            (json.dumps({"type": "input_audio_buffer.append", "audio": "&&&"}), "invalid_value"),
            (json.dumps({"type": "input_audio_buffer.append", "audio": "AAA"}), "invalid_value"),
            (json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(b"abc").decode()}),
             "invalid_value"),
            (json.dumps({"type": "session.update"}), "invalid_type"),
            (json.dumps({"type": "session.update", "session": {"type": "realtime"}}), "invalid_value"),
            (json.dumps({"type": "session.update", "session": {"audio": {"input": {"format": {"rate": 1}}}}}),
             "invalid_value"),
            (json.dumps({"type": "session.update", "session": {"audio": {"input": {"turn_detection": {
                "silence_duration_ms": -5}}}}}), "invalid_value"),
            (json.dumps({"type": "session.update", "session": {"audio": {"input": {"transcription": {
                "model": "nobody"}}}}}), "model_not_found"),
            (json.dumps({"type": "session.update", "session": {"audio": {"input": {"transcription": {
                "language": "klingonese"}}}}}), "invalid_value"),
        ):  # fmt: skip
            session.socket.send(text)
            assert session.next("error")["error"]["code"] == code, text[:80]
        session.socket.send(b"abc")  # binary messages are audio
        assert "multiple of 2" in session.next("error")["error"]["message"]
        session.speak(said(real_speech, 3), silence(0.8))
        assert session.next(COMPLETED)["transcript"]
        with suppress(ConnectionClosed):  # the session may end before all of them are sent
            for _ in range(100):
                session.socket.send("{")
        with pytest.raises(ConnectionClosed):
            session.next("nothing")
        assert session.events[-1]["error"]["code"] == "too_many_errors"


def test_a_huge_message_ends_the_session_and_not_the_server(server: Running) -> None:
    with live(server) as session, pytest.raises(ConnectionClosed) as closed:
        session.append(bytes(15 << 20))
        session.next("nothing")
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009
    assert status(server) == 101


def test_a_long_message_is_heard_whole(server: Running, real_speech: Path) -> None:
    with live(server) as session:
        session.update(**PCM_16K)
        session.append(to_pcm16(np.concatenate([silence(60.0), said(real_speech, 3), silence(1.0)])))
        assert session.next(COMPLETED)["transcript"]
        start = session.of("input_audio_buffer.speech_started")[0]["audio_start_ms"]
        assert 59_300 < start < 60_400


def test_one_token_has_so_many_sessions(server: Running) -> None:
    server.app.state.served.sessions._most = 2
    with ExitStack() as stack:
        first, *_ = [stack.enter_context(live(server)) for _ in range(2)]
        first.next("session.created")
        with live(server) as third:
            assert third.next("error")["error"]["code"] == "session_limit_exceeded"
            with pytest.raises(ConnectionClosed) as closed:
                third.next("nothing")
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1013
        other = tokens.add(server.ws, "ann")
        with live(server, headers={"authorization": f"Bearer {other.secret}"}) as own:
            own.next("session.created")
    wait_for(lambda: status(server) == 101)  # whoever left makes room


def test_a_client_that_hangs_up_stops_costing(server: Running, real_speech: Path) -> None:
    batches = server.app.state.served.batches
    with live(server) as session:
        session.update(**PCM_16K, turn_detection=None)
        session.speak(said(real_speech, 8), silence(0.5))
        session.next("session.updated")
    wait_for(lambda: not any(batches.waiting_s().values()))
    wait_for(lambda: not server.app.state.served.sessions._open)


def test_an_idle_session_ends(server: Running) -> None:
    object.__setattr__(server.ws.settings, "serve_idle_s", 0.5)
    with live(server) as session:
        with pytest.raises(ConnectionClosed) as closed:
            session.next("nothing")
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1000


def test_sockets_go_on_across_hot_swaps(server: Running, real_speech: Path, tmp_path: Path) -> None:
    """An utterance is heard by the model that served when it began; the next one by its successor."""
    one, other = (disturbed(server.ws, tmp_path / f"model {seed}", seed=seed) for seed in (1, 2))
    promoted(server.ws, one)
    wait_for(lambda: serving(server) == one.id)
    spoken = said(real_speech, 3)
    with live(server) as first, live(server) as second:
        for session in (first, second):
            session.update(**PCM_16K, turn_detection=None)
        for round in range(6):
            new, old = (other, one) if round % 2 == 0 else (one, other)
            for session in (first, second):
                session.speak(spoken[: len(spoken) // 2])
            time.sleep(0.3)  # in the middle of both utterances
            crowned(server.ws, new)
            wait_for(lambda new=new: serving(server) == new.id)
            for session in (first, second):
                session.speak(spoken[len(spoken) // 2 :])
                session.send(type="input_audio_buffer.commit")
            assert [session.next(COMPLETED)["model"] for session in (first, second)] == [old.id] * 2
        assert not first.of("error") + second.of("error")


def test_more_audio_than_a_token_may_send_ends_the_session(server: Running, real_speech: Path) -> None:
    server.app.state.served.limit = AudioLimit(0.05)  # 3 s in a minute
    with live(server) as session:
        session.update(**PCM_16K)
        with pytest.raises(ConnectionClosed) as closed:
            session.speak(said(real_speech, 3), silence(4.0))
            session.next("nothing")
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1013
        with pytest.raises(ConnectionClosed):
            session.next("nothing")
        assert session.of("error")[-1]["error"]["code"] == "rate_limit_exceeded"


def test_a_full_queue_refuses_new_sessions(server: Running) -> None:
    server.app.state.served.batches._max_wait_s = -1.0
    with live(server) as session:
        assert session.next("error")["error"]["code"] == "queue_full"
        with pytest.raises(ConnectionClosed) as closed:
            session.next("nothing")
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1013


def test_a_client_that_sends_faster_than_it_is_heard_waits(server: Running, real_speech: Path) -> None:
    """Utterances pile up to a bound, and each has its text at last, in order."""
    spoken, most = said(real_speech, 2), 0
    with live(server) as session:
        session.update(**PCM_16K, turn_detection=None)
        for _ in range(24):
            session.speak(spoken)
            session.send(type="input_audio_buffer.commit")
            most = max(most, int(sum(server.app.state.served.batches.waiting_s().values()) * 16_000) // len(spoken))
        done = [session.next(COMPLETED)["item_id"] for _ in range(24)]
        assert done == [event["item_id"] for event in session.of("input_audio_buffer.committed")]
    assert most <= streams.MOST_OPEN


def test_what_is_said_is_kept_where_the_session_asks_for_it(tmp_path: Path, real_speech: Path) -> None:
    with open_loop(tmp_path / "served", create=True, capture="asked") as ws, served(ws) as server:
        for capture in (None, True, False):
            with live(server) as session:
                audio = {"input": PCM_16K | {"turn_detection": None}}
                session.send(type="session.update", session={"audio": audio, "capture": capture})
                session.speak(said(real_speech, 4))
                session.send(type="input_audio_buffer.commit")
                done = session.next(COMPLETED)
                if capture:
                    told = session.next("voxloop.input_audio.captured")
                    assert told["item_id"] == done["item_id"]
        assert server.app.state.served.capture.flush()
        with ws.read() as reader:
            (kept,) = reader.all(Recording)
            texts = [one.text for one in reader.all(Transcript)]
        assert kept.id == told["capture"]["recording"]
        assert " ".join(texts) == done["transcript"]  # the same words were said three times
