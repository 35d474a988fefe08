"""The review's HTTP API over a real server: entries, conflicts, deletion, many at once, hostile texts."""

from __future__ import annotations

import io
import json
import time
import wave
from dataclasses import replace
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
import sqlalchemy as sa

from tests.web.conftest import TOKEN, Running
from tests.web.filled import TEXTS, fill, heard, recorded, voice
from voxloop.maintenance.integrity import verify
from voxloop.maintenance.removal import erase_deleted
from voxloop.records import Recording, Run
from voxloop.serving import tokens
from voxloop.steps import review
from voxloop.steps.recordings import read_audio
from voxloop.stores import tables
from voxloop.workspace import Workspace

BEARER = {"authorization": f"Bearer {TOKEN}"}
HOSTILE = "<img src=x onerror=alert(1)> ‮evil‬ \"';--<script>alert(2)</script>"


class Api:
    """One person's requests."""

    def __init__(self, server: Running, secret: str = TOKEN) -> None:
        self.client = httpx.Client(
            base_url=server.url, headers={"authorization": f"Bearer {secret}"}, trust_env=False, timeout=30
        )

    def __call__(self, method: str, path: str, status: int = 200, **given: Any) -> Any:
        said = self.client.request(method, f"/api/{path}", **given)
        assert said.status_code == status, said.text
        return said.json() if said.content and "json" in said.headers["content-type"] else said


@pytest.fixture
def api(server: Running) -> Api:
    fill(server.ws)
    return Api(server)


def person(server: Running, name: str) -> Api:
    return Api(server, tokens.add(server.ws, name, ["review"]).secret)


def first(api: Api) -> dict[str, Any]:
    found: dict[str, Any] = api("GET", "entries")["entries"][0]
    return found


def test_an_entry_has_the_fields_of_the_training_table(api: Api) -> None:
    page = api("GET", "entries")
    assert [one["transcript"] for one in page["entries"]] == list(TEXTS)
    assert page["next"] is None
    found = api("GET", f"entries/{page['entries'][0]['id']}")
    assert isinstance(found["id"], int)
    assert (found["transcript"], found["is_reviewed"], found["is_trained"]) == (TEXTS[0], False, False)
    assert time.strptime(found["timestamp"], "%Y-%m-%d %H:%M:%S")
    assert [word["text"] for word in found["words"]] == TEXTS[0].split()
    assert found["duration"] == 2.0
    assert "uncertain words" in [one["kind"] for one in found["warnings"]]
    assert all(one["advice"] for one in found["warnings"])
    api("GET", "entries/999", 404)
    api("GET", "entries/x", 400)


def test_pages_follow_each_other_without_gaps(api: Api) -> None:
    seen, after = [], None
    while True:
        page = api("GET", "entries", params={"limit": 4} | ({"after": after} if after else {}))
        seen += [one["transcript"] for one in page["entries"]]
        after = page["next"]
        if after is None:
            break
    assert seen == list(TEXTS)
    api("GET", "entries", 400, params={"after": "nonsense"})
    api("GET", "entries", 400, params={"limit": 501})


def test_filters_select(server: Running, api: Api) -> None:
    def found(**given: Any) -> list[str]:
        return [one["transcript"] for one in api("GET", "entries", params=given)["entries"]]

    fill(server.ws, ["xin chào"], speaker="minh", language="vi", seconds=1.5)
    assert found(speaker="minh") == found(language="vi") == ["xin chào"]
    assert found(q="SNACK") == [TEXTS[3]]
    assert set(found(max_confidence=0.35)) == {TEXTS[0], "xin chào"}
    assert found(since="2999-01-01") == []
    assert len(found(until="2999-01-01T00:00:00Z")) == 7
    assert set(found(warning="low confidence")) == {*TEXTS[:3], "xin chào"}
    id = next(one["id"] for one in api("GET", "entries")["entries"] if one["transcript"] == TEXTS[0])
    api("POST", f"entries/{id}/review")
    assert found(is_reviewed=True) == [TEXTS[0]]
    assert TEXTS[0] not in found(is_reviewed=False)
    assert found(status="reviewed", is_trained=False) == [TEXTS[0]]
    api("GET", "entries", 400, params={"warning": "nonsense"})


def test_entries_that_a_finished_run_trained_on_say_so(server: Running, api: Api) -> None:
    id, ws = first(api)["utterance"], server.ws
    with ws.transaction() as tx:
        values = {"name": "d", "filters": {}, "clips": {}, "hours": {}, "excluded": {}, "created": 1.0}
        tx.connection.execute(sa.insert(tables.dataset).values(id="d", **values))
        row = {"dataset": "d", "utterance": id, "transcript": "t", "split": "train"}
        tx.connection.execute(sa.insert(tables.dataset_utterance).values(row))
        run = Run(id="r", dataset="d", base="starter", family="whisper", method="lora", recipe={}, status="running")
        tx.add(run)
    assert api("GET", "entries", params={"is_trained": True})["entries"] == []
    with ws.transaction() as tx:
        tx.change(Run, "r", status="completed")
    (found,) = api("GET", "entries", params={"is_trained": True})["entries"]
    assert (found["utterance"], found["is_trained"]) == (id, True)
    assert len(api("GET", "entries", params={"is_trained": False})["entries"]) == 5


def test_audio_is_wav_and_answers_a_range(api: Api) -> None:
    id = first(api)["id"]
    whole = api("GET", f"entries/{id}/audio")
    assert whole.headers["content-type"] == "audio/wav"
    with wave.open(io.BytesIO(whole.content)) as wav:
        assert (wav.getframerate(), wav.getnchannels(), wav.getnframes()) == (16_000, 1, 32_000)
    size = len(whole.content)
    for asked, span in (
        ("0-9", (0, 9)),
        ("100-", (100, size - 1)),
        ("-5", (size - 5, size - 1)),
        ("9-99999999", (9, size - 1)),
    ):
        part = api("GET", f"entries/{id}/audio", 206, headers={"range": f"bytes={asked}"})
        assert part.headers["content-range"] == f"bytes {span[0]}-{span[1]}/{size}"
        assert part.content == whole.content[span[0] : span[1] + 1]
    api("GET", f"entries/{id}/audio", 416, headers={"range": f"bytes={size}-"})
    # Several ranges at once, and what is no range, are answered with everything.
    for odd in ("bytes=0-1,3-4", "bytes=5-2", "lines=1-2", "bytes=--", "bytes=-0"):
        assert len(api("GET", f"entries/{id}/audio", headers={"range": odd}).content) == size
    peaks = api("GET", f"entries/{id}/peaks")["peaks"]
    assert len(peaks) == 200
    assert max(peaks) > 20 > min(peaks)
    assert "attachment" in api("GET", f"entries/{id}/audio?download=1").headers["content-disposition"]


def test_saving_accepting_rejecting_and_undoing(server: Running, api: Api) -> None:
    ann = person(server, "ann")
    one, two, three, *_ = api("GET", "entries")["entries"]
    saved = ann("PUT", f"entries/{one['id']}", json={"transcript": "Please call  Stella.", "seconds": 4.5})
    assert (saved["transcript"], saved["is_reviewed"], saved["reviewed_by"]) == ("Please call Stella.", True, "ann")
    assert saved["original"] == TEXTS[0]
    assert [(d["kind"], d["by"], d["seconds"]) for d in saved["history"]] == [("save", "ann", 4.5)]
    assert ann("PUT", f"entries/{two['id']}", json={"is_reviewed": True})["transcript"] == TEXTS[1]
    rejected = ann("POST", f"entries/{three['id']}/review", json={"decision": "reject", "reason": "two at once"})
    assert rejected["status"] == "rejected"
    ann("POST", f"entries/{three['id']}/review", 400, json={"decision": "reject", "reason": " "})
    assert ann("POST", f"entries/{three['id']}/review", json={"decision": "undo"})["status"] == "transcribed"
    assert ann("PUT", f"entries/{two['id']}", json={"is_reviewed": False})["is_reviewed"] is False
    ann("PUT", f"entries/{two['id']}", 400, json={"transcript": "other words", "is_reviewed": False})
    ann("PUT", f"entries/{two['id']}", 400, json={"transcript": "  "})
    ann("PUT", f"entries/{two['id']}", 400, json={"transcript": "x" * 20_001})
    ann("POST", f"entries/{two['id']}/review", json={"decision": "skip"})
    stats = ann("GET", "stats")
    assert (stats["total"], stats["reviewed"], stats["you"], stats["seconds"]) == (6, 1, "ann", 4.5)


def test_nobody_overwrites_what_they_have_not_seen(server: Running, api: Api) -> None:
    ann, bob = person(server, "ann"), person(server, "bob")
    id, etag = first(api)["id"], first(api)["etag"]
    said = ann.client.get(f"/api/entries/{id}")
    assert said.headers["etag"] == f'"{etag}"'
    ann("PUT", f"entries/{id}", json={"transcript": "ann's text"}, headers={"if-match": f'"{etag}"'})
    refused = bob("PUT", f"entries/{id}", 412, json={"transcript": "bob's text"}, headers={"if-match": f'"{etag}"'})
    assert refused["error"]["code"] == "conflict"
    assert (refused["entry"]["transcript"], refused["entry"]["reviewed_by"]) == ("ann's text", "ann")
    # A program that does not say what it saw must not replace a person's text either.
    assert bob("PUT", f"entries/{id}", 409, json={"transcript": "bob's"})["entry"]["transcript"] == "ann's text"
    bob("DELETE", f"entries/{id}", 412, headers={"if-match": etag})
    bob("POST", f"entries/{id}/review", 409, json={"decision": "undo"})
    merged = refused["entry"]["etag"]
    assert (
        bob("PUT", f"entries/{id}", json={"transcript": "both"}, headers={"if-match": merged})["transcript"] == "both"
    )
    # So does a change of the speaker: what was seen is no longer what is there.
    ann("PUT", f"entries/{id}", 412, json={"speaker": "x"}, headers={"if-match": merged})


def test_speaker_and_language_are_corrected_and_noted(server: Running, api: Api) -> None:
    id = first(api)["id"]
    found = api("PUT", f"entries/{id}", json={"speaker": HOSTILE, "language": "vi"})
    assert (found["speaker"], found["language"], found["is_reviewed"]) == (HOSTILE, "vi", False)
    assert HOSTILE in api("GET", "options")["speakers"]
    api("PUT", f"entries/{id}", 400, json={"language": "klingon"})
    assert api("PUT", f"entries/{id}", json={"speaker": ""})["speaker"] is None
    with server.ws.read() as reader:
        query = sa.select(tables.event.c.payload).where(tables.event.c.type == "utterance.described")
        noted = list(reader.connection.execute(query).scalars())
    assert noted[0]["by"] == "admin"
    assert noted[0]["after"] == {"speaker": HOSTILE, "language": "vi"}


def test_reviewers_take_entries_one_by_one(server: Running, api: Api) -> None:
    ann, bob = person(server, "ann"), person(server, "bob")
    assert ann("POST", "entries/next")["transcript"] == TEXTS[0]
    taken = bob("POST", "entries/next")
    assert taken["transcript"] == TEXTS[1]
    assert "bob is reviewing" in ann("POST", f"entries/{taken['id']}/take", 409)["error"]["message"]
    assert [one["held_by"] for one in api("GET", "entries")["entries"][:3]] == ["ann", "bob", None]
    bob("DELETE", f"entries/{taken['id']}/take", 204)
    ann("POST", f"entries/{taken['id']}/take")


def test_a_deleted_entry_is_gone_at_once_and_can_come_back(server: Running, api: Api) -> None:
    id = first(api)["id"]
    gone = api("DELETE", f"entries/{id}")
    assert gone["deleted"] is True
    assert gone["undo_until"] > time.time() + 80_000
    for path in (f"entries/{id}", f"entries/{id}/audio", f"entries/{id}/peaks"):
        api("GET", path, 404)
    api("PUT", f"entries/{id}", 404, json={"transcript": "x"})
    api("DELETE", f"entries/{id}", 404)
    assert len(api("GET", "entries")["entries"]) == 5
    assert [one["id"] for one in api("GET", "entries", params={"status": "deleted"})["entries"]] == [id]
    assert api("GET", "stats")["total"] == 5
    assert erase_deleted(server.ws) is None  # it can still be undone
    assert api("POST", f"entries/{id}/review", json={"decision": "undo"})["status"] == "transcribed"
    assert len(api("GET", "entries")["entries"]) == 6


def without_waiting(ws: Workspace) -> Workspace:
    return replace(ws, settings=replace(ws.settings, review_undo_s=0.0))


def test_what_was_deleted_is_erased_when_the_undo_time_ends(server: Running) -> None:
    api, ws = Api(server), server.ws
    waveform = voice(6.0, 140)
    long = recorded(ws, waveform, "long.wav", "ann", "en")
    heard(ws, long, 0, 32_000, "the part that stays")
    secret = heard(ws, long, 32_000, 64_000, "the secret part")
    heard(ws, long, 64_000, 96_000, "the end that stays")
    (alone,) = fill(ws, ["another secret"])
    with ws.transaction() as tx:
        tx.change(Recording, long.id, text="the part that stays the secret part the end that stays")
    ids = {one["transcript"]: one["id"] for one in api("GET", "entries")["entries"]}
    api("PUT", f"entries/{ids['the secret part']}", json={"transcript": "the very secret part"})
    api("DELETE", f"entries/{ids['the secret part']}")
    api("DELETE", f"entries/{ids['another secret']}")
    erased = erase_deleted(without_waiting(ws))
    assert erased is not None
    assert (erased.kind, erased.utterances, erased.recordings) == ("utterance", 2, 1)
    left = read_audio(ws, long.id)
    assert not left[32_000:64_000].any()
    assert np.abs(left[:32_000] - waveform[:32_000]).max() < 1e-4
    assert np.abs(left[64_000:] - waveform[64_000:]).max() < 1e-4
    with ws.read() as reader:
        assert reader.find(Recording, alone.recording) is None
        kept = reader.get(Recording, long.id)
        assert (kept.text, kept.remains is None) == (None, False)
        said = [
            str(row) for table in tables.metadata.sorted_tables for row in reader.connection.execute(sa.select(table))
        ]
    assert [row for row in said if "secret" in row or secret.id in row] == []
    assert not any(alone.recording in key for key in ws.blobs.list(""))
    assert not list(ws.blobs.list("erasing"))
    assert [found for found in verify(ws).findings if "audio" in found.kind] == []
    api("POST", f"entries/{ids['the secret part']}/review", 404, json={"decision": "undo"})
    assert len(api("GET", "entries")["entries"]) == 2
    assert erase_deleted(without_waiting(ws)) is None
    # The number is not given to another utterance.
    fill(ws, ["somebody else"], seconds=1.0)
    assert max(one["id"] for one in api("GET", "entries")["entries"]) > max(ids.values())


def test_erasing_survives_a_crash_at_every_write(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    ws = server.ws
    waveform = voice(4.0, 150)
    long = recorded(ws, waveform, "long.wav", None, None)
    heard(ws, long, 0, 32_000, "stays")
    one = heard(ws, long, 32_000, 64_000, "goes")
    review.delete(ws, one.id, by="ann")
    put, delete = type(ws.blobs).put, type(ws.blobs).delete
    calls = {"left": 0}

    def counted(method: Any) -> Any:
        def once(*given: Any, **named: Any) -> Any:
            if calls["left"] == 0:
                raise KeyboardInterrupt
            calls["left"] -= 1
            return method(*given, **named)

        return once

    monkeypatch.setattr(type(ws.blobs), "put", counted(put))
    monkeypatch.setattr(type(ws.blobs), "delete", counted(delete))
    for writes in range(20):
        calls["left"] = writes
        try:
            from voxloop.maintenance.removal import resume

            resume(ws)
            erase_deleted(without_waiting(ws))
        except KeyboardInterrupt:
            continue
        break
    else:
        raise AssertionError("it never ended")
    assert writes >= 3
    left = read_audio(ws, long.id)
    assert not left[32_000:].any()
    assert np.abs(left[:32_000] - waveform[:32_000]).max() < 1e-4


def test_many_at_once_and_back(server: Running, api: Api) -> None:
    ann = person(server, "ann")
    chosen = [{"id": one["id"], "etag": one["etag"]} for one in api("GET", "entries")["entries"]]
    api("PUT", f"entries/{chosen[0]['id']}", json={"transcript": "changed meanwhile"})
    done = ann("POST", "bulk", json={"action": "accept", "entries": chosen})
    assert done["changed"] == 5
    assert "changed while you were reviewing" in done["entries"][0]["error"]
    undone = ann("POST", "bulk/undo", json={"decisions": [one for one in done["entries"] if one["decision"]]})
    assert undone["changed"] == 5
    assert api("GET", "stats")["reviewed"] == 1
    ids = [{"id": one["id"]} for one in chosen[1:3]]
    assert ann("POST", "bulk", json={"action": "reject", "entries": ids, "reason": "music"})["changed"] == 2
    assert ann("POST", "bulk", json={"action": "delete", "entries": ids})["changed"] == 2
    ann("POST", "bulk", 400, json={"action": "publish", "entries": ids})


def test_all_that_match_are_decided_on_part_by_part_and_brought_back(server: Running, api: Api) -> None:
    ann = person(server, "ann")
    fill(server.ws, [f"sentence {n}" for n in range(7)], speaker="bob", seconds=1.0, folder="more/")
    bobs = {"speaker": "bob", "status": "transcribed"}
    shown = api("POST", "bulk/preview", params=bobs)
    assert shown["count"] == 7
    assert api("POST", "bulk/preview", params=bobs | {"q": "sentence 3"})["count"] == 1
    held = next(one["id"] for one in api("GET", "entries", params=bobs)["entries"])
    person(server, "eve")("POST", f"entries/{held}/take")
    fill(server.ws, ["said after the preview"], speaker="bob", seconds=1.5)
    made, after = [], None
    while True:
        asked = {"action": "accept", "after": after}
        part = ann("POST", "bulk/matching", params=bobs | {"until": shown["until"]}, json=asked)
        made += part["entries"]
        after = part["next"]
        if after is None:
            break
    assert len(made) == 7
    assert {one["id"]: one["error"] for one in made if one["error"]} == {held: "eve is reviewing it now"}
    assert api("GET", "stats")["reviewed"] == 6
    # Accepting again what one has accepted makes no decision, so that undoing does not reach for the first one.
    again = ann("POST", "bulk/matching", params={"status": "reviewed"}, json={"action": "accept"})
    assert [one["decision"] for one in again["entries"]] == [None] * 6
    decisions = [one for one in made if one["decision"]]
    assert ann("POST", "bulk/undo", json={"decisions": decisions})["changed"] == 6
    assert api("GET", "stats")["reviewed"] == 0
    deleted = ann("POST", "bulk/matching", params={"speaker": "ann"}, json={"action": "delete"})
    assert api("GET", "stats")["total"] == 8
    assert ann("POST", "bulk/undo", json={"decisions": deleted["entries"]})["changed"] == 6
    assert api("GET", "stats")["total"] == 14


def test_many_parts_follow_each_other(server: Running, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    from voxloop.steps.review import bulk

    monkeypatch.setattr(bulk.decide_matching, "__kwdefaults__", bulk.decide_matching.__kwdefaults__ | {"limit": 2})
    seen, after = [], None
    for _ in range(3):
        part = api("POST", "bulk/matching", json={"action": "reject", "reason": "music", "after": after})
        seen += [one["id"] for one in part["entries"]]
        after = part["next"]
    assert (len(set(seen)), after) == (6, None)
    assert api("GET", "stats")["rejected"] == 6


def test_a_session_is_found(server: Running, api: Api) -> None:
    found = first(api)
    with server.ws.transaction() as tx:
        tx.change(Recording, found["recording"], session="listen 1")
    assert [one["id"] for one in api("GET", "entries", params={"session": "listen 1"})["entries"]] == [found["id"]]
    assert api("GET", "entries", params={"session": "listen 2"})["entries"] == []
    assert api("GET", "export", params={"session": "listen 1"}).text.count("\n") == 1


def test_find_and_replace_shows_first_and_can_be_undone(server: Running, api: Api) -> None:
    id = first(api)["id"]
    api("PUT", f"entries/{id}", json={"transcript": "snow and Snow and snowball"})
    asked = {"find": "snow", "replace": "sand", "whole_words": True, "ignore_case": True}
    shown = api("POST", "replace/preview", json=asked)
    assert {one["before"]: one["after"] for one in shown["entries"]} == {
        "snow and Snow and snowball": "sand and sand and snowball",
        "six spoons of fresh snow peas": "six spoons of fresh sand peas",
    }
    assert shown["places"] == 3
    assert api("GET", f"entries/{id}")["transcript"] == "snow and Snow and snowball"  # only shown
    done = api("POST", "replace", json=asked | {"entries": shown["entries"]})
    assert done["changed"] == 2
    texts = {one["transcript"]: one["is_reviewed"] for one in api("GET", "entries")["entries"]}
    assert texts["sand and sand and snowball"] is True
    assert texts["six spoons of fresh sand peas"] is False  # nobody has listened to it
    assert api("POST", "bulk/undo", json={"decisions": done["entries"]})["changed"] == 2
    texts = [one["transcript"] for one in api("GET", "entries")["entries"]]
    assert {"snow and Snow and snowball", TEXTS[1]} <= set(texts)
    # What is looked for is a string, no pattern.
    assert api("POST", "replace/preview", json={"find": ".*"})["entries"] == []
    preview = api("POST", "replace/preview", json={"find": "six", "replace": r"\1 \g<0>"})
    assert preview["entries"][0]["after"] == r"\1 \g<0> spoons of fresh snow peas"


def test_export_and_import_of_what_is_filtered(server: Running, api: Api) -> None:
    id = first(api)["id"]
    api("PUT", f"entries/{id}", json={"transcript": HOSTILE})
    lines = api("GET", "export", params={"status": "reviewed"}).text.splitlines()
    (row,) = [json.loads(line) for line in lines]
    assert row["text"] == HOSTILE
    assert api("GET", "export", params={"format": "csv"}).text.count("sha256-") >= 6
    assert api("GET", "export", params={"format": "label-studio"})[0]["data"]
    row |= {"text": "from elsewhere", "by": "eve", "reference": None, "created": None, "earlier": row["reference"]}
    file = {"file": ("r.jsonl", json.dumps(row).encode())}
    assert api("POST", "import", files=file, data={"dry_run": "true"})["new"] == 1
    assert api("GET", f"entries/{id}")["transcript"] == HOSTILE
    assert api("POST", "import", files=file)["new"] == 1
    assert api("GET", f"entries/{id}")["transcript"] == "from elsewhere"
    assert api("POST", "import", files={"file": ("r.jsonl", b"\x00\xff")}, status=400)["error"]["message"]


def test_the_api_wants_a_reviewer_and_a_page_of_this_server(server: Running, api: Api) -> None:
    listener = Api(server, tokens.add(server.ws, "lis", ["listen"]).secret)
    id = first(api)["id"]
    for method, path in (
        ("GET", "entries"),
        ("GET", f"entries/{id}"),
        ("GET", f"entries/{id}/audio"),
        ("GET", "stats"),
        ("GET", "export"),
        ("GET", "options"),
        ("POST", "bulk"),
        ("POST", "bulk/preview"),
        ("POST", "bulk/matching"),
        ("POST", "replace"),
        ("POST", "import"),
        ("PUT", f"entries/{id}"),
        ("DELETE", f"entries/{id}"),
    ):
        listener(method, path, 403)
        assert httpx.request(method, f"{server.url}/api/{path}", trust_env=False).status_code == 401
    with httpx.Client(base_url=server.url, trust_env=False) as browser:
        browser.get("/login", params={"code": tokens.link(server.ws)})
        evil = {"origin": "https://evil.example"}
        assert browser.put(f"/api/entries/{id}", json={"transcript": "x"}, headers=evil).status_code == 403
        assert browser.delete(f"/api/entries/{id}").status_code == 403
        own = {"origin": server.url}
        assert browser.put(f"/api/entries/{id}", json={"transcript": "x"}, headers=own).status_code == 200


def test_the_page_is_open_and_holds_nothing(server: Running) -> None:
    page = httpx.get(f"{server.url}/review", trust_env=False)
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    nonce = policy.partition("'nonce-")[2].partition("'")[0]
    assert len(nonce) > 16
    assert f'content="{nonce}"' in page.text
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert nonce not in httpx.get(f"{server.url}/review", trust_env=False).text
    script = httpx.get(f"{server.url}/static/main.js", trust_env=False)
    assert script.headers["content-type"].startswith("text/javascript")
    for path in ("/static/../entries.py", "/static/%2e%2e/entries.py", "/static//etc/passwd", "/static/nothing.js"):
        assert httpx.get(server.url + path, trust_env=False).status_code in (401, 404)


def test_too_many_requests_are_told_to_wait(server: Running, api: Api) -> None:
    from voxloop.web.limits import RequestLimit

    served = api  # the fixture's own requests were few
    assert served("GET", "stats")
    server.app.state.served.requests = RequestLimit(3)
    statuses = [api.client.get("/api/stats").status_code for _ in range(5)]
    assert statuses == [200, 200, 200, 429, 429]
