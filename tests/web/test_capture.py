"""What the server hears is kept where that is wanted, and becomes a dataset."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import openai
import pytest
import soundfile
import sqlalchemy as sa

from tests.web.conftest import Running, served
from voxloop.automation.worker import work
from voxloop.maintenance import pruning
from voxloop.maintenance.removal import forget
from voxloop.pipeline import open_loop
from voxloop.records import Recording, Transcript, Utterance
from voxloop.serving import tokens
from voxloop.serving.capture import Capture, Captured, Wish
from voxloop.serving.tokens import Client
from voxloop.speech.audio import decode
from voxloop.steps import consent, review
from voxloop.steps.datasets import build, rows
from voxloop.stores import tables
from voxloop.workspace import Workspace


@pytest.fixture
def capturing(tmp_path: Path) -> Iterator[Running]:
    """A server that keeps what requests ask it to keep."""
    with open_loop(tmp_path / "served", create=True, capture="asked") as ws, served(ws) as running:
        yield running


def clips(demo_speech: Path) -> list[Path]:
    return sorted(demo_speech.glob("*.ogg"))


def client(server: Running, key: str | None = None) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key or server.token, max_retries=0)


def kept(ws: Workspace, count: int) -> list[Recording]:
    """The recordings, once there are so many: they are written behind the answers."""
    deadline = time.monotonic() + 20
    while True:
        with ws.read() as reader:
            found = reader.all(Recording)
        if len(found) >= count or time.monotonic() > deadline:
            assert len(found) == count
            return found
        time.sleep(0.02)


def test_nothing_is_kept_unless_the_setting_allows_it(server: Running, demo_speech: Path) -> None:
    heard = client(server).audio.transcriptions.create(
        model="whisper-1", file=clips(demo_speech)[0], extra_body={"capture": "true"}
    )
    assert "capture" not in heard.model_dump()
    assert server.ws.settings.capture == "off"


def test_a_request_is_kept_reviewed_and_frozen(capturing: Running, demo_speech: Path) -> None:
    ws = capturing.ws
    key = tokens.add(ws, "ann").secret
    said = clips(demo_speech)[:4]
    named = []
    for clip in said:
        raw = client(capturing, key).audio.transcriptions.with_raw_response.create(
            model="whisper-1", file=clip, language="en", extra_body={"capture": "true"}
        )
        body = raw.parse().model_dump()
        assert body["capture"]["recording"] == raw.headers["x-voxloop-recording"]
        named.append(body)
    quiet = client(capturing, key).audio.transcriptions.create(
        model="whisper-1", file=said[0], extra_body={"capture": "true", "store": "false"}
    )
    assert "capture" not in quiet.model_dump()
    found = {one.id: one for one in kept(ws, 4)}
    assert set(found) == {one["capture"]["recording"] for one in named}
    first = found[named[0]["capture"]["recording"]]
    assert (first.name, first.source, first.speaker) == (said[0].name, f"capture/{said[0].name}", "ann")
    assert first.quality is not None
    assert first.encoding is not None
    assert (first.encoding.codec, first.encoding.channels) == (soundfile.info(said[0]).subtype.lower(), 1)
    with ws.read() as reader:
        (utterance,) = reader.all(Utterance, tables.utterance.c.recording == first.id)
        (heard,) = reader.all(Transcript, tables.transcript.c.utterance == utterance.id)
        row = reader.connection.execute(sa.select(tables.capture).where(tables.capture.c.recording == first.id)).one()
    assert (heard.kind, heard.text, utterance.status) == ("hypothesis", named[0]["text"], "transcribed")
    assert heard.confidence is not None
    assert (row.client, row.purposes) == ("ann", ["train"])
    work(ws, until_idle=True)
    with ws.read() as reader:  # the pipeline went on from there, and heard nothing again
        assert reader.count(Transcript, tables.transcript.c.kind == "hypothesis") == 4
        utterances = reader.all(Utterance)
    for one in utterances:
        review.save(ws, one.id, "what was said", by="bob")
    dataset = build(ws, name="heard")
    assert {row.recording for row in rows(ws, dataset.id)} == set(found)
    consent.withdraw(ws, "ann", by="bob")
    again = client(capturing, key).audio.transcriptions.create(
        model="whisper-1", file=clips(demo_speech)[5], extra_body={"capture": "true"}
    )
    assert "capture" not in again.model_dump()
    with pytest.raises(Exception, match="consent withdrawn"):
        build(ws, name="after")


def test_streams_texts_and_translations(capturing: Running, demo_speech: Path) -> None:
    first, second = clips(demo_speech)[:2]
    events = list(
        client(capturing).audio.transcriptions.create(
            model="gpt-4o-transcribe", file=first, stream=True, extra_body={"capture": "true", "speaker": "ann"}
        )
    )
    (recording,) = kept(capturing.ws, 1)
    assert events[-1].model_dump()["capture"]["recording"] == recording.id
    assert recording.speaker == "ann"
    raw = client(capturing).audio.transcriptions.with_raw_response.create(
        model="whisper-1", file=second, response_format="text", extra_body={"capture": "true"}
    )
    assert raw.headers["x-voxloop-recording"] in {one.id for one in kept(capturing.ws, 2)}


def test_a_request_names_the_consent(capturing: Running, demo_speech: Path) -> None:
    asked = client(capturing).audio.transcriptions
    with pytest.raises(openai.NotFoundError, match="no version 1"):
        asked.create(
            model="whisper-1", file=clips(demo_speech)[0], extra_body={"capture": "1", "speaker": "ann", "consent": "1"}
        )
    consent.add_text(capturing.ws, "I agree.", ["train", "publish"], by="bob")
    asked.create(
        model="whisper-1", file=clips(demo_speech)[0], extra_body={"capture": "1", "speaker": "ann", "consent": "1"}
    )
    kept(capturing.ws, 1)
    with capturing.ws.read() as reader:
        assert consent.of(reader, "ann").permits == ("train", "publish")
        row = reader.connection.execute(sa.select(tables.capture)).one()
    assert (row.version, row.purposes) == (1, ["train", "publish"])
    for fields, message in (
        ({"capture": "perhaps"}, "capture is 'perhaps'"),
        ({"capture": "1", "consent": "1; drop", "speaker": "ann"}, "version of a consent text"),
        ({"capture": "1", "consent": "1"}, "needs a speaker"),
        ({"capture": "1", "speaker": "a\x00b"}, "not the name of a speaker"),
    ):
        with pytest.raises(openai.BadRequestError, match=message):
            asked.create(model="whisper-1", file=clips(demo_speech)[0], extra_body=fields)


def test_a_full_queue_drops_and_counts(workspace: Workspace) -> None:
    dropped: list[str] = []
    wish_of = Client(name="ann", scopes=frozenset({"listen"}))
    wish = Wish(client=wish_of)
    with workspace.transaction():  # on SQLite, nothing else is written meanwhile
        capture = Capture(workspace, kept=lambda: None, dropped=dropped.append)
        minute = np.random.default_rng(1).normal(0, 0.1, 60 * 16_000).astype(np.float32)
        assert capture.wish({}, wish_of) is None
        began = time.monotonic()
        offers = [capture.offer(Captured(waveform=np.roll(minute, n), name="m.wav", wish=wish)) for n in range(11)]
        assert time.monotonic() - began < 20
    assert [one.reason for one in offers] == [None] * 10 + ["queue full"]
    assert dropped == ["queue full"]
    assert capture.flush(60)
    capture.close()
    with workspace.read() as reader:
        assert reader.count(Recording) == 10


def test_quality_is_said_at_once(capturing: Running) -> None:
    noise = np.random.default_rng(0).normal(0, 0.5, 16_000)
    for waveform, said in (
        (np.clip(4 * noise, -1, 1), "clipped"),
        (0.001 * noise, "too quiet"),
        (0.1 * noise[:3200], "too short"),
        (0 * noise, "nothing to hear"),
    ):
        answer = push(capturing, waveform, data={"transcript": "noise"})
        assert any(said in warning for warning in answer.json()["audio_warnings"]), said


def push(server: Running, waveform: Any, name: str = "a.wav", key: str | None = None, **more: Any) -> httpx.Response:
    sound = io.BytesIO()
    soundfile.write(sound, waveform, 16_000, format="WAV")
    return httpx.post(
        f"{server.url}/api/entries",
        headers={"authorization": f"Bearer {key or server.token}"},
        files={"file": (name, sound.getvalue())},
        trust_env=False,
        timeout=60,
        **more,
    )


def test_an_app_pushes_audio_with_its_own_text(server: Running, demo_speech: Path) -> None:
    waveform = decode(clips(demo_speech)[0])
    first = push(server, waveform, "../../etc/pass\u202ewd\x01.wav", data={"transcript": "as heard", "speaker": "ann"})
    assert first.status_code == 201, first.text
    entry = first.json()
    assert (entry["transcript"], entry["is_reviewed"], isinstance(entry["id"], int)) == ("as heard", False, True)
    shown = httpx.get(
        f"{server.url}/api/entries/{entry['id']}",
        headers={"authorization": f"Bearer {server.token}"},
        trust_env=False,
    )
    assert entry == shown.json() | {"audio_warnings": []}  # one shape, wherever an entry is shown
    with server.ws.read() as reader:
        (recording,) = reader.all(Recording)
        (heard,) = reader.all(Transcript)
    assert "/" not in recording.name
    assert recording.name.isprintable()
    assert recording.source == f"capture/{recording.name}"
    assert (heard.kind, heard.text) == ("hypothesis", "as heard")
    again = push(server, waveform, data={"transcript": "as heard"})
    assert (again.status_code, again.json()["id"]) == (200, entry["id"])
    key = tokens.add(server.ws, "app").secret
    assert push(server, waveform, key=key, data={"transcript": "x", "is_reviewed": "1"}).status_code == 403
    right = push(server, waveform, data={"transcript": "as said", "is_reviewed": "1"})
    assert right.json()["is_reviewed"] is True
    with server.ws.read() as reader:
        assert [one.text for one in reader.all(Transcript, tables.transcript.c.kind == "reference")] == ["as said"]
    assert push(server, waveform, data={"is_reviewed": "1"}).status_code == 400
    assert push(server, waveform, data={"transcript": "x", "timestamp": "yesterday"}).status_code == 400
    consent.withdraw(server.ws, "ann", by="bob")
    assert push(server, 0.5 * waveform, data={"transcript": "x", "speaker": "ann"}).status_code == 403


def test_captures_expire_unless_somebody_reviews_them(server: Running, demo_speech: Path) -> None:
    ws = server.ws
    for clip in clips(demo_speech)[:3]:
        push(server, decode(clip), clip.name, data={"transcript": "as heard"})
    with ws.read() as reader:
        first, second, third = reader.all(Utterance)
    review.save(ws, first.id, "as said", by="ann")
    review.skip(ws, second.id, by="ann")
    assert pruning.prune(ws).captures == 0
    with ws.transaction() as tx:
        old = tables.capture.c.recording != third.recording
        tx.connection.execute(sa.update(tables.capture).where(old).values(created=1.0))
    assert pruning.prune(ws).captures == 1
    with ws.read() as reader:
        assert {one.id for one in reader.all(Recording)} == {first.recording, third.recording}
        events = reader.connection.execute(
            sa.select(tables.event.c.payload).where(tables.event.c.type == "capture.expired")
        )
        assert events.scalars().all() == [{"recordings": 1}]
    forget(ws, recording=third.recording)
    with ws.read() as reader:
        assert reader.connection.execute(sa.select(sa.func.count()).select_from(tables.capture)).scalar() == 1
