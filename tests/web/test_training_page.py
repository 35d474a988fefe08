"""The training page in a real browser, over a real server and real training processes."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.web.chromium import launched, signed_in, until, violations
from tests.web.conftest import Running, served
from tests.web.trained import spoken
from voxloop.records import Run
from voxloop.steps import training
from voxloop.steps.gate.promotion import champion
from voxloop.steps.training.telemetry import metrics
from voxloop.workspace import Workspace

LONG_MS = 90_000  # for processes that load their libraries on a machine that does other things
STEP = """Number(
  document.querySelector('.run-progress')?.textContent.match(/step ([\\d,.]+)/)?.[1].replace(/\\D/g, '') ?? 0)"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = launched(playwright)
        yield browser
        browser.close()


def newest(ws: Workspace) -> Run:
    return training.listed(ws)[0].run


def _champion(ws: Workspace) -> str | None:
    found = champion(ws)
    return found.id if found else None


def badge(page: Page, status: str) -> None:
    expect(page.locator("[data-status]")).to_have_attribute("data-status", status, timeout=LONG_MS)


def start(page: Page) -> None:
    """Fill the form by keyboard: clips per batch, no limits of time, and an advanced setting."""
    page.get_by_label("Clips per batch").fill("6")
    page.get_by_label("Most epochs").fill("")
    page.get_by_label("Most minutes").fill("")
    page.locator(".advanced summary").press("Enter")
    for name, value in (("Max steps", "100000"), ("Eval seconds", "1"), ("Log steps", "2"), ("Save seconds", "1")):
        page.get_by_label(name, exact=True).fill(value)
    page.get_by_label("Keep no better").press("Space")
    page.get_by_role("button", name="Start training").press("Enter")


def test_a_training_from_the_page_to_the_champion(chromium: Browser, tmp_path: Path) -> None:
    with socket.socket() as held:  # so that the server comes back under the same address
        held.bind(("127.0.0.1", 0))
        port = int(held.getsockname()[1])
    with spoken(tmp_path) as ws:
        first = served(ws, port=port)
        server = first.__enter__()
        with signed_in(chromium, server, "ann", scopes=("admin",), path="training", faults=True) as page:
            expect(page.locator(".side")).to_contain_text("50 of 50 clips")
            expect(page.get_by_role("button", name="Forecast")).to_be_enabled()
            start(page)
            badge(page, "running")
            # Curves appear while it trains, with their numbers beside them.
            expect(page.locator("figure.chart", has_text="Loss").locator("path.line.c0")).to_have_count(
                1, timeout=LONG_MS
            )
            until(page, "document.querySelectorAll('figure.chart circle.dot').length > 1", timeout_s=60)
            expect(page.locator("dt", has_text="Processor")).to_be_visible()
            page.locator(".log summary").click()
            expect(page.locator(".log pre")).to_contain_text("step ", timeout=LONG_MS)
            assert violations(page) == []
            recipe = newest(ws).recipe
            assert (recipe["max_steps"], recipe["max_seconds"], recipe["keep_no_better"]) == (100_000, None, True)
            assert newest(ws).dataset == training.listed(ws)[0].run.dataset
            # The server goes away in the middle: its worker saves a checkpoint, and the next server goes on from there.
            first.__exit__(None, None, None)
            expect(page.locator(".outbox")).to_contain_text("Server away")
            reached = int(newest(ws).progress["step"])
            with served(ws, port=port):
                expect(page.locator(".outbox")).to_have_text("", timeout=LONG_MS)
                until(page, f"{STEP} > {reached + 1}", timeout_s=90)
                badge(page, "running")
                _learnt(page, ws)
                page.get_by_role("button", name="Pause").click()
                badge(page, "paused")
                until(page, "document.querySelector('[role=status][aria-live=polite]').textContent.includes('paused')")
                page.get_by_role("button", name="Stop…").click()
                page.get_by_role("button", name="Stop and keep the best").click()
                badge(page, "stopped")
                _judged(page, ws)


def _learnt(page: Page, ws: Workspace) -> None:
    """Wait until it makes a third fewer errors on val, so that the test can tell it from its base."""
    for _ in range(300):
        rates = [line["val_wer"] for line in metrics(ws, newest(ws).id) if "val_wer" in line]
        if min(rates) < rates[0] * 2 / 3:
            return
        page.wait_for_timeout(500)
    raise AssertionError(rates)


def _judged(page: Page, ws: Workspace) -> None:
    """The verdict is told in words, with numbers, and what changed can be played; then back again."""
    model = newest(ws).model
    assert model is not None
    page.get_by_role("button", name="Judge and promote").click()
    expect(page.locator(".task")).to_be_visible()
    page.reload()  # which a task survives
    word = page.locator(".verdict-word")
    expect(word).to_have_text("Better", timeout=LONG_MS)
    expect(page.locator(".verdict")).to_contain_text("WER")
    expect(page.locator(".verdict")).to_contain_text("This model is the champion.")
    assert _champion(ws) == model
    page.locator(".changes summary").click()
    expect(page.locator(".change-list .heard").first).to_contain_text("Before")
    sound = page.locator(".change-list audio").first
    sound.evaluate("(sound) => sound.play()")
    until(page, "document.querySelector('.change-list audio').currentTime > 0")
    page.locator(".report summary").click()
    expect(page.locator(".report")).to_contain_text("texts")
    assert violations(page) == []
    page.get_by_role("button", name="Roll back…").click()
    page.get_by_role("button", name="Roll back", exact=True).click()
    expect(page.locator(".verdict")).not_to_contain_text("This model is the champion.")
    assert _champion(ws) not in (None, model)


def test_nothing_to_train_on_is_said_and_a_wrong_setting_refused(chromium: Browser, server: Running) -> None:
    with signed_in(chromium, server, "ann", scopes=("admin",), path="training") as page:
        expect(page.locator(".side")).to_contain_text("There is no speech yet.")
        page.get_by_role("button", name="Start training").click()
        expect(page.locator("[role=alert]")).to_contain_text("there are no utterances yet")
        page.get_by_label("Learning rate").fill("-1")
        page.get_by_role("button", name="Start training").click()
        assert page.evaluate("document.querySelector(':invalid') !== null")  # before it is sent
        assert violations(page) == []


def test_who_only_reviews_sees_all_and_changes_nothing(chromium: Browser, server: Running) -> None:
    with signed_in(chromium, server, "rae", path="training", viewport={"width": 390, "height": 844}) as page:
        expect(page.get_by_role("button", name="Start training")).to_be_disabled()
        expect(page.get_by_text("Only administrators start trainings.")).to_be_visible()
        expect(page.get_by_role("button", name="Forecast")).to_have_count(0)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert violations(page) == []
        page.emulate_media(color_scheme="dark")
        assert violations(page) == []
