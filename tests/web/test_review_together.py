"""The review page with two reviewers, two tabs, and a server that goes away: nothing is lost or overwritten."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.web.chromium import READY, launched, shows, signed_in
from tests.web.conftest import Running, served
from tests.web.filled import TEXTS, fill
from tests.web.review_page import settled, text, texts
from voxloop.pipeline import open_loop
from voxloop.steps import review
from voxloop.stores import tables


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = launched(playwright)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser, server: Running) -> Iterator[Page]:
    """Ann reviews six entries."""
    fill(server.ws)
    with signed_in(chromium, server, "ann") as opened:
        yield opened


def test_two_reviewers_never_overwrite_each_other(chromium: Browser, server: Running) -> None:
    fill(server.ws)
    with signed_in(chromium, server, "ann") as ann, signed_in(chromium, server, "bob") as bob:
        shows(ann, 1)
        shows(bob, 1)
        expect(bob.locator(".banner")).to_contain_text("ann is reviewing this entry now")
        ann.fill("#text", "please call Stella about the kitchen lights")
        bob.fill("#text", "please call stella about the kitchen lights today")
        ann.keyboard.press("Control+s")
        settled(ann)
        bob.keyboard.press("Control+s")
        expect(bob.locator(".conflict")).to_contain_text("ann changed this while you worked on it")
        assert texts(server)[1][0] == "please call Stella about the kitchen lights"
        # Different words were changed: both changes are offered as one text.
        assert bob.input_value(".merge") == "please call Stella about the kitchen lights today"
        bob.reload()
        bob.wait_for_selector(".conflict")
        bob.click(".conflict button:has-text('Save this')")
        settled(bob)
        assert texts(server)[1][0] == "please call Stella about the kitchen lights today"
        assert [one.by for one in review.history(server.ws, "1")] == ["ann", "bob"]


def test_what_another_changes_while_one_types_is_shown(chromium: Browser, server: Running) -> None:
    fill(server.ws)
    with signed_in(chromium, server, "ann") as ann:
        ann.fill("#text", "mine")
        review.save(server.ws, "1", "theirs", by="bob", seen="")
        ann.keyboard.press("Control+Enter")
        expect(ann.locator("button:has-text('1 conflict')")).to_be_visible()
        ann.click("button:has-text('1 conflict')")
        expect(ann.locator(".conflict")).to_contain_text("Both change the same words")
        ann.click("button:has-text('Keep theirs')")
        expect(ann.locator(".conflict")).to_have_count(0)
        assert text(ann) == "theirs"
        assert texts(server)[1][0] == "theirs"


def test_nothing_typed_is_lost_by_a_reload(page: Page, server: Running) -> None:
    page.locator("#text").focus()
    page.keyboard.press("Control+End")
    page.keyboard.type(" and more")
    page.reload()
    page.wait_for_selector(READY)
    assert text(page) == TEXTS[0] + " and more"
    expect(page.locator(".unsaved")).to_be_visible()
    page.locator("#text").focus()
    for _ in range(6):
        page.keyboard.press("Control+z")
    assert text(page) == TEXTS[0]  # undo survives, too
    assert texts(server)[1] == (TEXTS[0], "transcribed")


def test_a_server_that_goes_away_loses_nothing(chromium: Browser, tmp_path: Path) -> None:
    with open_loop(tmp_path / "served", create=True) as ws:
        fill(ws)
        with served(ws) as first:
            running = signed_in(chromium, first, "ann", faults=True)
            page = running.__enter__()
            page.wait_for_timeout(1500)  # the next three are fetched
        page.fill("#text", "typed without a server")
        page.keyboard.press("Control+Enter")
        page.fill("#text", "so was this")
        page.keyboard.press("Control+Enter")
        expect(page.locator(".outbox")).to_contain_text("Server away: 2 kept here")
        page.fill("#text", "not finished")
        with served(ws, port=int(first.url.rpartition(":")[2])) as second:
            settled(page)
            expect(page.locator(".outbox")).to_have_text("")
            assert texts(second)[1] == ("typed without a server", "reviewed")
            assert texts(second)[2] == ("so was this", "reviewed")
            page.reload()
            page.wait_for_selector(READY)
            page.keyboard.press("g")
            page.keyboard.type("3")
            page.keyboard.press("Enter")
            shows(page, 3)
            assert text(page) == "not finished"
            running.__exit__(None, None, None)


def decisions(server: Running) -> list[tuple[int, str]]:
    """Each decision on any entry, as the server has noted it."""
    with server.ws.read() as reader:
        made = tables.review_decision.c
        query = sa.select(made.utterance, made.kind, made.by).order_by(made.seq)
        numbers = {one.item.utterance.id: one.item.number for one in review.entries(server.ws).entries}
        return [(numbers[row.utterance], row.kind) for row in reader.connection.execute(query)]


@pytest.mark.parametrize("locks", ["locks", "no locks, as over plain HTTP"])
def test_two_tabs_share_what_waits_and_send_it_once(chromium: Browser, tmp_path: Path, locks: str) -> None:
    with open_loop(tmp_path / "served", create=True) as ws:
        fill(ws)
        with served(ws) as first:
            running = signed_in(chromium, first, "ann", faults=True)
            one = running.__enter__()
            if locks != "locks":
                one.context.add_init_script("Object.defineProperty(navigator, 'locks', { value: undefined })")
                one.reload()
                one.wait_for_selector(READY)
            two = one.context.new_page()
            two.goto(f"{first.url}/review#id=2")
            two.wait_for_selector(READY)
            shows(two, 2)
            for tab in (one, two):
                tab.wait_for_timeout(1000)  # the next three are fetched
        one.fill("#text", "from the first tab")
        one.keyboard.press("Control+s")
        two.fill("#text", "from the second tab")
        two.keyboard.press("Control+Enter")
        shows(two, 3)
        two.keyboard.press("Alt+x")
        two.keyboard.press("2")
        for tab in (one, two):
            expect(tab.locator(".outbox")).to_contain_text("Server away: 3 kept here")
        two.close()  # what it had to send is not lost
        with served(ws, port=int(first.url.rpartition(":")[2])) as second:
            settled(one)
            expect(one.locator(".outbox")).to_have_text("")
            assert texts(second)[1] == ("from the first tab", "reviewed")
            assert texts(second)[2] == ("from the second tab", "reviewed")
            assert decisions(second) == [(1, "save"), (2, "save"), (3, "reject")]
            running.__exit__(None, None, None)


def test_a_tab_sees_what_another_has_saved(page: Page, server: Running) -> None:
    other = page.context.new_page()
    other.goto(f"{server.url}/review#id=1")
    other.wait_for_selector(READY)
    other.locator("#text").focus()
    other.keyboard.press("Control+End")
    other.keyboard.type(" typed here")
    page.fill("#text", "Please call Stella.")
    page.keyboard.press("Control+s")
    settled(page)
    # Both changed it: nothing of either is lost.
    expect(other.locator(".merge")).to_have_value("Please call Stella. typed here")
    other.click(".conflict button:has-text('Keep theirs')")
    assert text(other) == "Please call Stella."
    for tab, id in ((page, 2), (other, 3)):
        tab.evaluate(f"location.hash = '#id={id}'")
        tab.reload()
        tab.wait_for_selector(READY)
    page.keyboard.press("Control+r")
    other.keyboard.press("Control+r")
    settled(page)
    settled(other)
    assert [id for id, (_, status) in texts(server).items() if status == "reviewed"] == [1, 2, 3]
    assert sorted(decisions(server)) == [(1, "save"), (2, "accept"), (3, "accept")]
