"""The page that phrases are read on, in a real browser with a microphone that plays a file."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from playwright.sync_api import Browser, Page, Playwright, expect, sync_playwright

from tests.web.chromium import signed_in, speaking, until, violations
from tests.web.conftest import Running, served
from tests.web.spoken import clip, phrases, played, rustling, silent
from voxloop.pipeline import open_loop
from voxloop.records import Transcript
from voxloop.steps import consent
from voxloop.steps import phrases as steps
from voxloop.stores import tables
from voxloop.workspace import Workspace

BOTH = ("listen", "review")
ELSEWHERE = "voice.test"  # a name that browsers do not take for this machine


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def speech(playwright: Playwright, tmp_path_factory: pytest.TempPathFactory, demo_speech: Path) -> Iterator[Browser]:
    """Somebody who says "dim the lantern" every two seconds."""
    folder = tmp_path_factory.mktemp("microphone")
    browser = speaking(
        playwright,
        played(folder / "speech.wav", clip(demo_speech, "dim-the-lantern-01"), pause_s=0.4),
        f"--host-resolver-rules=MAP {ELSEWHERE} 127.0.0.1",
    )
    yield browser
    browser.close()


def references(ws: Workspace) -> dict[str, str]:
    """Every reference with its author."""
    with ws.read() as reader:
        return {one.text: one.by for one in reader.all(Transcript, tables.transcript.c.kind == "reference")}


def agree(page: Page) -> None:
    page.get_by_role("button", name="I agree").click()
    page.wait_for_selector(".phrase")


def record(page: Page, ms: int = 1300) -> None:
    """Record a take by the key, and wait until it is checked."""
    page.keyboard.press("Space")
    expect(page.locator(".reading")).to_have_attribute("data-state", "recording")
    page.wait_for_timeout(ms)
    page.keyboard.press("Space")
    expect(page.locator(".reading")).to_have_attribute("data-state", re.compile("decide|ready"))


def stored(page: Page, ws: Workspace, count: int) -> None:
    """Wait until the server has so many takes, and the browser none."""
    captured = sa.select(sa.func.count()).select_from(tables.capture)
    end = time.monotonic() + 20
    found = -1
    while found != count:
        assert time.monotonic() < end, f"{found} takes instead of {count}"
        page.wait_for_timeout(50)
        with ws.read() as reader:
            found = reader.connection.execute(captured).scalar_one()
    expect(page.locator(".outbox")).to_have_text("")


def test_five_phrases_are_recorded_by_keyboard_alone(speech: Browser, server: Running) -> None:
    texts = list(phrases(5))
    steps.keep_list(server.ws, texts, language="en", by="bob")
    with signed_in(speech, server, "ann", path="record", scopes=BOTH) as page:
        expect(page.locator(".consent")).to_contain_text(consent.STANDARD)
        page.keyboard.press("Space")  # nothing is recorded before
        assert page.locator(".record").count() == 0
        for _ in range(20):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.textContent") == "I agree":
                break
        page.keyboard.press("Enter")
        page.wait_for_selector(".phrase")
        page.evaluate("document.activeElement.blur()")
        page.get_by_label("Phrases").select_option("own")
        page.evaluate("document.activeElement.blur()")
        page.get_by_label("Keep at once").uncheck()
        page.evaluate("document.activeElement.blur()")
        seen = []
        for number in range(5):
            expect(page.locator(".reading")).to_contain_text(f"{number + 1} of 5")
            seen.append(page.inner_text(".phrase"))
            record(page, 1000)
            page.keyboard.press("Enter")
        assert seen == texts
        expect(page.locator(".reading")).to_contain_text("5 of 5 kept")
        stored(page, server.ws, 5)
        expect(page.locator(".top .progress")).to_contain_text("5 of 5")
        page.keyboard.press("Enter")  # the next ten: there are none
        expect(page.locator(".reading")).to_contain_text("All phrases are recorded")
    assert references(server.ws) == dict.fromkeys(texts, "ann")
    with server.ws.read() as reader:
        rows = reader.connection.execute(sa.select(tables.capture)).all()
        assert consent.of(reader, "ann").version == 1
        assert consent.text_of(reader).text == consent.STANDARD
    assert {row.phrase for row in rows} == set(texts)
    assert {(row.client, row.version) for row in rows} == {("ann", 1)}


def test_misheard_words_are_shown_and_hold_nobody_up_for_long(
    playwright: Playwright, server: Running, tmp_path: Path
) -> None:
    texts = list(phrases(6))
    steps.keep_list(server.ws, texts, language="en", by="bob")
    browser = speaking(playwright, rustling(tmp_path / "noise.wav"))
    with signed_in(browser, server, "ann", path="record", scopes=BOTH) as page:
        agree(page)
        page.get_by_label("Phrases").select_option("own")
        page.evaluate("document.activeElement.blur()")
        for text in texts[:3]:
            expect(page.locator(".phrase")).to_have_text(text)
            record(page, 500)
            expect(page.locator(".heard del").first).to_be_visible()
            assert page.locator(".reading .warnings").count() == 0
            page.keyboard.press("Enter")
        # The sound is right, and three were kept in spite of the words: the next is kept by itself.
        record(page, 500)
        expect(page.locator(".phrase")).to_have_text(texts[4])
        page.keyboard.press("s")  # skipped: it comes again when all else is done
        record(page, 500)
        expect(page.locator(".reading")).to_contain_text("5 of 6 kept")
        stored(page, server.ws, 5)
        page.keyboard.press("Enter")
        expect(page.locator(".phrase")).to_have_text(texts[4])
    browser.close()
    assert references(server.ws) == {text: "ann" for text in texts if text != texts[4]}


def test_a_silent_microphone_is_told_of(playwright: Playwright, server: Running, tmp_path: Path) -> None:
    browser = speaking(playwright, silent(tmp_path / "silence.wav"))
    with signed_in(browser, server, "ann", path="record", scopes=BOTH) as page:
        agree(page)
        record(page, 500)
        expect(page.locator(".reading .warnings")).to_contain_text("nothing to hear: is the microphone on?")
        assert page.locator(".heard").count() == 0
        page.keyboard.press("r")
        expect(page.locator(".record")).to_contain_text("Stop")
        page.keyboard.press("Space")
    browser.close()
    assert references(server.ws) == {}


def test_a_take_outlives_a_server_that_goes_away_and_a_reload(speech: Browser, tmp_path: Path) -> None:
    with open_loop(tmp_path / "served", create=True) as ws:
        with served(ws) as first:
            running = signed_in(speech, first, "ann", path="record", scopes=BOTH, faults=True)
            page = running.__enter__()
            agree(page)
            phrase = page.inner_text(".phrase")
            page.keyboard.press("Space")
            expect(page.locator(".record")).to_contain_text("Stop")
        page.wait_for_timeout(500)
        page.keyboard.press("Space")
        expect(page.locator(".reading")).to_contain_text("it stays in this browser until the server is back")
        page.keyboard.press("Enter")
        expect(page.locator(".outbox")).to_contain_text("Server away: 1 kept here")
        record(page, 500)  # another one, which nobody decides on
        second = page.inner_text(".phrase")
        with served(ws, port=int(first.url.rpartition(":")[2])):
            page.reload()
            expect(page.locator(".phrase")).to_have_text(second)
            expect(page.get_by_role("button", name="Keep & next")).to_be_enabled()
            stored(page, ws, 1)
            assert references(ws) == {phrase: "ann"}
            page.evaluate("document.activeElement.blur()")
            expect(page.locator(".reading")).to_have_attribute("data-state", "decide")
            page.keyboard.press("Enter")
            stored(page, ws, 2)
            running.__exit__(None, None, None)
        assert references(ws) == dict.fromkeys([phrase, second], "ann")


def test_what_the_server_refuses_is_not_thrown_away(speech: Browser, server: Running) -> None:
    with signed_in(speech, server, "ann", path="record", scopes=BOTH) as page:
        agree(page)
        record(page, 500)
        consent.withdraw(server.ws, "ann", by="ann")
        page.keyboard.press("Enter")
        refused = page.get_by_label("Not stored")
        expect(refused).to_contain_text("ann has not agreed to being recorded")
        page.reload()
        expect(refused).to_contain_text("One take was not stored")
        expect(page.locator(".consent")).to_contain_text("ann has withdrawn consent")
        agree(page)
        refused.get_by_role("button", name="Try again").click()
        expect(refused).to_have_count(0)
        stored(page, server.ws, 1)
    assert len(references(server.ws)) == 1


def test_who_withdraws_is_not_recorded_any_more(speech: Browser, server: Running) -> None:
    consent.add_text(server.ws, "You may train on <b>this</b>,\nand publish it.", ["train", "publish"], by="bob")
    with signed_in(speech, server, "ann", path="record", scopes=("listen",)) as page:
        expect(page.locator(".consent blockquote")).to_contain_text("<b>this</b>")
        page.get_by_label("The recordings themselves are published").check()
        agree(page)
        expect(page.locator(".agreed")).to_contain_text("version 1 (train, publish)")
        record(page, 500)
        page.keyboard.press("Enter")
        stored(page, server.ws, 1)
        page.click("text=Withdraw")
        expect(page.locator(".consent")).to_contain_text("has withdrawn consent")
        page.keyboard.press("Space")
        assert page.locator(".record").count() == 0
    # Without the scope `review`, the text waits for somebody who has it.
    assert references(server.ws) == {}
    with server.ws.read() as reader:
        assert reader.count(Transcript, tables.transcript.c.kind == "hypothesis") == 1
        assert consent.of(reader, "ann").permits == ()


def test_a_list_is_pasted_and_hostile_lines_are_only_text(speech: Browser, server: Running) -> None:
    hostile = "<img src=x onerror=alert(1)> \"';-- ${7*7}"
    with signed_in(speech, server, "ann", path="record", scopes=BOTH) as page:
        page.on("dialog", lambda opened: pytest.fail("a script ran"))
        agree(page)
        page.click("text=Edit our list")
        page.fill("dialog textarea", f"# a comment\n{hostile}\n\nxin chào các bạn\n{hostile}")
        page.click("dialog button:has-text('Save')")
        expect(page.locator(".phrase")).to_have_text(hostile)
        expect(page.locator(".top .progress")).to_contain_text("0 of 2")
        page.keyboard.press("s")
        expect(page.locator(".phrase")).to_have_text("xin chào các bạn")
    assert steps.own(server.ws, "en") == [hostile, "xin chào các bạn"]


def test_a_page_over_plain_http_says_why_there_is_no_microphone(speech: Browser, tmp_path: Path) -> None:
    with open_loop(tmp_path / "served", create=True) as ws, served(ws, hosts=(ELSEWHERE,)) as server:
        url = server.url.replace("127.0.0.1", ELSEWHERE)
        for path in ("record", "listen"):
            with signed_in(speech, server, path, path=path, scopes=BOTH, url=url, faults=True) as page:
                told = page.get_by_role("alert")
                expect(told).to_contain_text("only to pages that come over HTTPS")
                expect(told).to_contain_text(f"{server.url}/{path}")
                expect(told).to_contain_text("--tls-cert")
                assert violations(page) == []


def test_a_token_without_the_scope_is_told_so(speech: Browser, server: Running) -> None:
    with signed_in(speech, server, "ann", path="record") as page:
        expect(page.get_by_role("alert")).to_contain_text("It needs the scope listen")
        assert page.locator(".record").count() == 0


@pytest.mark.parametrize(("width", "height", "scheme"), [(390, 844, "dark"), (680, 425, "light")])
def test_it_works_at_any_width_and_is_accessible(
    speech: Browser, server: Running, width: int, height: int, scheme: Any
) -> None:
    view = {"width": width, "height": height}
    with signed_in(speech, server, "ann", path="record", scopes=BOTH, viewport=view, color_scheme=scheme) as page:
        page.wait_for_selector(".consent")
        for stage in ("consent", "phrase", "take", "list"):
            if stage == "phrase":
                agree(page)
            elif stage == "take":
                page.get_by_label("Keep at once").uncheck()
                page.evaluate("document.activeElement.blur()")
                record(page, 600)
            elif stage == "list":
                page.click("text=Edit our list")
                until(page, "!document.querySelector('dialog textarea').disabled")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), stage
            assert violations(page) == [], stage
