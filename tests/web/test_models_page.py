"""Models and data: the API over a real server, and the page in a real browser, with hostile names and texts."""

from __future__ import annotations

import time
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pytest
import sqlalchemy as sa
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.web.chromium import READY, launched, signed_in, until, violations
from tests.web.conftest import Running, served
from tests.web.filled import TEXTS, fill, recorded, voice
from tests.web.test_entries import Api
from tests.web.trained import copied, judged
from voxloop.errors import UsageError
from voxloop.health import VARIES, health
from voxloop.records import Recording, Run
from voxloop.steps import consent, datasets, review
from voxloop.steps.gate.readiness import readiness
from voxloop.steps.recordings import ingest
from voxloop.steps.review import Filters
from voxloop.stores import tables
from voxloop.workspace import Workspace

HOSTILE = "<img src=x onerror=alert(1)> ‮evil‬ \"';--<script>alert(2)</script> {{7*7}}"
SPEAKER = "<img src=x onerror=alert(1)> \"';--<b>eve</b> {{7*7}}"  # printable, as consent asks of names
VIEWS = ("models", "datasets", "recordings", "speakers", "usage")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = launched(playwright)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a workspace with a promoted model, hostile names and texts, and things that went wrong."""
    folder = tmp_path_factory.mktemp("judged")
    ws, base, model = judged(folder)
    with ws:
        fill(ws, ["hello there", HOSTILE], speaker=SPEAKER, folder=HOSTILE)
        fill(ws, TEXTS, seconds=1.5, speaker="cleo")
        recorded(ws, voice(1.0, 330), f"{HOSTILE}.wav", SPEAKER, "en")
        *reviewed, left = (str(item.number) for item in review.page(ws, where=Filters(status="transcribed")).items)
        for number in reviewed:
            review.save(ws, number, f"{HOSTILE} {number}", by="bob")
        review.reject(ws, left, reason=HOSTILE, by="bob")
        datasets.build(ws, name="second")
        consent.add_text(ws, "You agree that models learn from your voice.", ["train"], by="ann")
        consent.give(ws, SPEAKER, by="ann")
        (folder / "broken.wav").write_bytes(b"no sound")
        ingest(ws, folder / "broken.wav", processes=1)
        newest = datasets.find(ws)
        runs = [
            Run(
                id=f"01HOSTILE{n}",
                dataset=newest.id,
                base=base,
                family="whisper",
                method="full",
                recipe={"name": "quick", "replay_from": []},
                status=status,
                error=HOSTILE if status == "failed" else None,
                progress={"elapsed_s": 12.0, "peak_memory_mb": 900, "samples_per_second": 3.5, "notes": [HOSTILE]},
            )
            for n, status in enumerate(("failed", "completed"))
        ]
        with ws.transaction() as tx:
            tx.add(*runs)
            changed = tables.model.c.id == model
            tx.connection.execute(sa.update(tables.model).where(changed).values(run=runs[1].id, base=base))
            tx.connection.execute(sa.update(tables.run).where(tables.run.c.id == runs[1].id).values(model=model))
    return ws.folder


@contextmanager
def serving(made: Path, folder: Path) -> Iterator[Running]:
    with copied(made, folder) as ws, served(ws) as running:
        running.app.state.served.trainer.close()
        yield running


@pytest.fixture
def server(made: Path, tmp_path: Path) -> Iterator[Running]:
    with serving(made, tmp_path) as running:
        yield running


@pytest.fixture
def api(server: Running) -> Api:
    return Api(server)


def champion(api: Api) -> str:
    found = next(one for one in api("GET", "models")["models"] if "champion" in one["aliases"])
    id: str = found["model"]["id"]
    return id


# The API -------------------------------------------------------------------------------------------------------------


def test_a_model_with_its_verdict_is_renamed_only_as_it_was_seen(api: Api) -> None:
    id = champion(api)
    said = api.client.get("/api/models/champion")
    told = said.json()
    assert (told["model"]["id"], told["aliases"]) == (id, ["champion"])
    assert [one["verdict"] for one in told["comparisons"]] == ["promote"]
    assert told["comparisons"][0]["reasons"][0].startswith("Better")
    same = {"if-none-match": said.headers["etag"]}
    assert api.client.get(f"/api/models/{id}", headers=same).status_code == 304
    seen = {"if-match": said.headers["etag"]}
    named = api("PUT", f"models/{id}", json={"name": "kitchen"}, headers=seen)
    assert named["model"]["name"] == "kitchen"
    conflict = api("PUT", "models/kitchen", 412, json={"name": "cellar"}, headers=seen)
    assert conflict["now"]["model"]["name"] == "kitchen"
    assert "is not a valid name" in api("PUT", "models/kitchen", 400, json={"name": HOSTILE})["error"]["message"]
    assert "it is the champion" in api("DELETE", "models/kitchen", 409)["error"]["message"]


def test_a_promotion_that_is_refused_says_why(api: Api) -> None:
    base = next(one["model"]["id"] for one in api("GET", "models")["models"] if "previous" in one["aliases"])
    api("POST", f"models/{base}/promote", 202, json={"dataset": "frozen"})
    until = time.monotonic() + 90
    while (task := api("GET", "train/status")["task"])["status"] == "running":
        assert time.monotonic() < until
        time.sleep(0.1)
    assert task["status"] == "done", task["error"]
    assert (task["outcome"]["verdict"], task["outcome"]["moved"]) == ("reject", False)
    assert "Clearly worse" in task["outcome"]["message"]
    assert task["outcome"]["next_step"]
    assert api("GET", f"models/{base}")["comparisons"][-1]["verdict"] == "reject"
    assert champion(api) != base


@pytest.mark.parametrize("name", ["nothing", "..%2F..%2Fetc", "openai%2Fwhisper-tiny", "%2Fetc", "sha256-", "starter2"])
def test_only_models_of_this_workspace_have_names(api: Api, name: str) -> None:
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/promote"), ("GET", "/report")):
        assert api.client.request(method, f"/api/models/{name}{path}").status_code == 404


def test_what_a_model_hears_differently_names_entries_that_play(api: Api) -> None:
    told = api("GET", f"models/{champion(api)}/changes")
    assert (told["better_count"], told["worse_count"]) == (15, 0)
    one = told["better"][0]
    assert one["before"]["errors"] > one["after"]["errors"]
    assert {word["operation"] for word in one["before"]["words"]} == {"equal", "substitute"}
    sound = api.client.get(f"/api/entries/{one['entry']}/audio")
    with wave.open(BytesIO(sound.content)) as opened:
        assert opened.getnframes() == 16_000
    base = next(one["model"]["id"] for one in api("GET", "models")["models"] if "previous" in one["aliases"])
    api("GET", f"models/{base}/changes", 404)


def test_a_report_may_run_nothing(api: Api) -> None:
    said = api.client.get(f"/api/models/{champion(api)}/report")
    policy = said.headers["content-security-policy"]
    assert "sandbox" in policy
    assert "script-src" not in policy
    assert "default-src 'none'" in policy
    assert "<script" not in said.text


def test_a_dataset_tells_who_stands_behind_it(api: Api, server: Running) -> None:
    newest = api("GET", "datasets")["datasets"][-1]
    told = api("GET", f"datasets/{newest['id']}")
    assert told["name"] == "second"
    by = {one["by"]: one["clips"] for one in told["contributors"]}
    assert by == {"metadata": 24, "bob": 7}
    assert sum(by.values()) == sum(newest["clips"].values())
    mine = api("GET", f"datasets/{newest['id']}/entries", params={"by": "bob"})["entries"]
    assert [one["by"] for one in mine] == ["bob"] * by["bob"]
    seen, after = [], 0
    while True:
        page = api("GET", f"datasets/{newest['id']}/entries", params={"limit": 10, "after": after})
        seen += [one["number"] for one in page["entries"]]
        if page["next"] is None:
            break
        after = page["next"]
    assert seen == sorted(set(seen))
    assert len(seen) == sum(newest["clips"].values())
    left = api("GET", f"datasets/{newest['id']}/exclusions", params={"reason": "rejected"})
    assert [one["reason"] for one in left["exclusions"]] == ["rejected by a reviewer"]
    assert left["exclusions"][0]["origin"]["number"]
    assert "trained on it" in api("DELETE", f"datasets/{newest['id']}", 409)["error"]["message"]
    assert api("PUT", f"datasets/{newest['id']}", json={"name": "third"})["name"] == "third"


def test_recordings_are_found_played_in_parts_and_deleted_for_good(api: Api, server: Running) -> None:
    page = api("GET", "recordings", params={"limit": 10})
    more = api("GET", "recordings", params={"limit": 500, "after": page["next"]})
    ids = [one["id"] for one in (*page["recordings"], *more["recordings"])]
    with server.ws.read() as reader:
        assert len(ids) == len(set(ids)) == reader.count(Recording)
    times = [one["created"] for one in (*page["recordings"], *more["recordings"])]
    assert times == sorted(times, reverse=True)
    (found,) = api("GET", "recordings", params={"q": f"{HOSTILE}.wav"})["recordings"]
    path = f"/api/recordings/{found['id']}/audio"
    whole = api.client.get(path)
    assert len(whole.content) == int(whole.headers["content-length"])
    with wave.open(BytesIO(whole.content)) as opened:
        assert opened.getnframes() == 16_000
    part = api.client.get(path, headers={"range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, whole.content[100:200])
    assert part.headers["content-range"] == f"bytes 100-199/{len(whole.content)}"
    assert api.client.get(path, headers={"range": f"bytes={len(whole.content)}-"}).status_code == 416
    assert api("DELETE", f"recordings/{found['id']}?dry_run=true")["dry_run"]
    api("GET", f"recordings/{found['id']}")
    assert api("DELETE", f"recordings/{found['id']}")["recordings"] == 1
    api("GET", f"recordings/{found['id']}", 404)
    with server.ws.read() as reader:
        removal = tables.removal.c
        assert reader.connection.execute(sa.select(removal.by).where(removal.kind == "recording")).scalar() == "admin"


def test_a_speaker_is_forgotten_after_it_was_counted(api: Api) -> None:
    told = {one["name"]: one for one in api("GET", "speakers")["speakers"]}
    assert told[SPEAKER]["consent"]["permits"] == ["train"]
    assert told["ann"]["consent"] is None
    asked = {"speaker": SPEAKER, "dry_run": True}
    planned = api("POST", "speakers/forget", json=asked)
    assert (planned["dry_run"], planned["recordings"]) == (True, 3)
    assert SPEAKER in [one["name"] for one in api("GET", "speakers")["speakers"]]
    done = api("POST", "speakers/forget", json=asked | {"dry_run": False})
    assert done["recordings"] == 3
    assert SPEAKER not in [one["name"] for one in api("GET", "speakers")["speakers"]]
    api("POST", "speakers/forget", 404, json=asked)


# Figures -------------------------------------------------------------------------------------------------------------


def test_usage_adds_up_what_was_done(api: Api, server: Running) -> None:
    told = api("GET", "usage")
    outcomes = {one["what"]: (one["succeeded"], one["failed"]) for one in told["outcomes"]}
    assert outcomes == {"runs": (1, 1), "promotions": (1, 0)}
    assert [one["name"] for one in told["sizes"]] == ["frozen", "second"]
    assert told["runs"][0]["peak_memory_bytes"] == 900 << 20
    troubles = {(one["kind"], one["count"]) for one in told["troubles"]}
    assert troubles == {("run", 1), ("file", 1)}
    assert all(one["remedy"] for one in told["troubles"])
    train = next(one for one in told["pace"] if one["step"] == "train")
    assert train["per_hour_s"] == pytest.approx(3600 * 12 / train["audio_s"])
    assert told["machine"]["memory_bytes"] < told["machine"]["total_bytes"]


def test_the_time_of_jobs_that_were_claimed_together_counts_once(workspace: Workspace) -> None:
    with workspace.transaction() as tx:
        for n in range(4):
            tx.emit("recording.ingested", f"r{n}", seconds=30.0)
    claim = workspace.jobs.claim(["segment"], limit=3)
    assert claim is not None
    with workspace.catalog.write() as tx:
        workspace.jobs.finish(tx, claim)
        tx.connection.execute(
            sa.update(tables.job).where(tables.job.c.state == "done").values(claimed=100, finished=106)
        )
    (pace,) = health(workspace).pace
    assert (pace.step, pace.jobs, pace.work_s, pace.audio_s, pace.per_hour_s) == ("segment", 3, 6.0, 90.0, 240.0)


def test_the_same_error_of_other_files_is_counted_as_one(workspace: Workspace) -> None:
    with workspace.transaction() as tx:
        for n in range(3):
            tx.emit("recording.ingested", f"sha256-{n:064x}")
    for _ in range(3 * workspace.settings.max_attempts):
        claim = workspace.jobs.claim(["segment"])
        if claim:
            workspace.jobs.fail(claim, UsageError(f"blob {claim.subjects[0]} is gone after 3.5 s"))
        with workspace.catalog.write() as tx:
            tx.connection.execute(sa.update(tables.job).values(not_before=0))
    (trouble,) = health(workspace).troubles
    assert (trouble.kind, trouble.where, trouble.count) == ("job", "segment", 3)
    assert VARIES.sub("…", trouble.message) == "blob … is gone after … s"


def test_what_is_missing_is_said_step_by_step(workspace: Workspace, tmp_path: Path) -> None:
    assert readiness(workspace).missing[0].message == "There is no speech yet."
    fill(workspace, ["one", "two", "three"])
    assert readiness(workspace).missing[0].message == "None of 3 utterances is reviewed."
    review.accept(workspace, "1", by="bob")
    few = readiness(workspace)
    assert "a verdict needs at least 20" in few.missing[0].message
    assert (few.reviewed, few.fresh, few.speakers, few.test_clips) == (1, 1, 1, 0)
    datasets.build(workspace)
    review.accept(workspace, "2", by="bob")
    then = readiness(workspace)
    assert (then.fresh, then.dataset is not None) == (1, True)
    assert any("not in the newest dataset" in one.message for one in then.missing)


# The page ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def page(chromium: Browser, server: Running) -> Iterator[Page]:
    with signed_in(chromium, server, "ann", scopes=["admin"], path="models") as opened:
        opened.wait_for_selector(READY)
        yield opened


def shown(page: Page, view: str) -> None:
    """Go to a view by its link."""
    page.locator(f".tabs a[href='#{view}']").click()
    expect(page.locator(f".tabs a[href='#{view}']")).to_have_attribute("aria-current", "true")
    expect(page.get_by_text("One moment…")).to_have_count(0)


def test_every_view_by_keyboard_small_large_dark_and_without_violations(page: Page) -> None:
    for view in VIEWS:
        link = page.locator(f".tabs a[href='#{view}']")
        link.focus()
        link.press("Enter")
        expect(link).to_have_attribute("aria-current", "true")
        expect(page.get_by_text("One moment…")).to_have_count(0)
        assert violations(page) == [], view
        for width in (390, 683):  # a phone; 1366 pixels at 200 %
            page.set_viewport_size({"width": width, "height": 800})
            wide = "[...document.querySelectorAll('main *')].filter((one) => !one.closest('.scroll, .chart'))"
            until(page, f"{wide}.every((one) => one.getBoundingClientRect().right <= innerWidth + 1)")
            assert page.evaluate("document.documentElement.scrollWidth") == width
        page.set_viewport_size({"width": 1360, "height": 850})
        page.emulate_media(color_scheme="dark")
        assert violations(page) == [], f"{view}, dark"
        page.emulate_media(color_scheme="light")
    assert page.evaluate("document.querySelector('script:not([src])')") is None


def test_lineage_leads_to_model_run_dataset_utterance_and_reviewer(page: Page, server: Running) -> None:
    tree = page.locator(".tree")
    expect(tree.locator(".node.model")).to_have_count(2)
    expect(tree.locator("ul ul .node.model")).to_contain_text("champion")  # below its run, which is below its base
    tree.locator("ul ul .node.model").press("Enter")
    expect(page.locator(".verdict-word")).to_have_text("Better")
    expect(page.locator("#model-title")).to_be_focused()
    page.locator(".changes summary").click()
    expect(page.locator(".change-list li")).to_have_count(10)
    page.get_by_role("button", name="Rename…").click()
    page.get_by_label("Name", exact=True).fill("kitchen")
    page.keyboard.press("Enter")
    expect(page.locator("#model-title")).to_have_text("kitchen")
    page.get_by_role("button", name="Delete…").click()
    page.get_by_role("button", name="Delete for good").click()
    expect(page.locator("dialog [role=alert]")).to_contain_text("it is the champion")
    page.keyboard.press("Escape")
    page.locator(".tree .node.run a[href^='#datasets']").first.click()
    expect(page.locator("#dataset-title")).to_have_text("second")
    expect(page.get_by_text("Texts written or accepted by")).to_be_visible()
    page.get_by_text("Utterances and who reviewed them").click()
    page.locator("label", has_text="By everybody").locator("select").select_option("bob")
    expect(page.locator(".entries")).to_contain_text("text by bob")
    expect(page.locator(".entries p").first).to_contain_text("<img src=x onerror=alert(1)>")
    page.get_by_role("button", name="rejected by a reviewer").click()
    expect(page.locator(".entries").first).to_contain_text("Entry")
    page.locator("a[href^='training#run=']").first.click()
    expect(page.locator("#run-title")).to_be_visible()
    assert page.evaluate("document.querySelectorAll('img').length") == 0


def test_a_recording_is_searched_played_and_deleted(page: Page) -> None:
    shown(page, "recordings")
    page.get_by_label("Search file names").fill("onerror")
    expect(page.locator(".entries > li")).to_have_count(3)
    expect(page.locator(".entries")).to_contain_text("<script>alert(2)</script>")
    page.locator(".entries audio").first.evaluate("(sound) => sound.play()")
    until(page, "document.querySelector('.entries audio').currentTime > 0")
    page.locator(".entries > li").first.get_by_role("button", name="Delete").click()
    expect(page.locator("dialog")).to_contain_text("This removes 1 recording (1 s)")
    assert violations(page) == []
    page.get_by_role("button", name="Delete for good").click()
    expect(page.locator(".entries > li")).to_have_count(2)


def test_a_speaker_is_forgotten_with_consent_shown(page: Page) -> None:
    shown(page, "speakers")
    row = page.locator(".entries > li", has_text="onerror")
    expect(row).to_contain_text("Permits: train.")
    row.get_by_role("button", name="Forget").click()
    expect(page.locator("dialog")).to_contain_text("3 recordings")
    expect(page.locator("dialog")).to_contain_text("Permits: train.")
    page.get_by_role("button", name="Delete for good").click()
    expect(row).to_have_count(0)


def test_usage_tells_the_commonest_errors_with_what_to_do(page: Page) -> None:
    shown(page, "usage")
    expect(page.locator("section", has_text="Commonest errors")).to_contain_text("What to do")
    expect(page.locator("section", has_text="What succeeded")).to_contain_text("50 % (1 of 2)")
    expect(page.locator("section", has_text="Work for an hour of audio")).to_contain_text("train")
