"""The page that transcribes what the microphone hears, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.web.chromium import READY, signed_in, speaking, violations
from tests.web.conftest import Running, served
from tests.web.spoken import digits, played
from voxloop.pipeline import open_loop
from voxloop.records import Recording
from voxloop.speech.audio import Waveform
from voxloop.steps import consent, review

BOTH = ("listen", "review")
LINES = ".lines p:not(.faint)"


@pytest.fixture(scope="module")
def said(real_speech: Path) -> list[tuple[Waveform, str]]:
    """Two utterances, which are said again and again."""
    return digits(real_speech, 2, 4)


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory, said: list[tuple[Waveform, str]]) -> Iterator[Browser]:
    """Somebody who says them, with pauses between."""
    file = played(tmp_path_factory.mktemp("microphone") / "speech.wav", *(sound for sound, _ in said))
    with sync_playwright() as playwright:
        browser = speaking(playwright, file)
        yield browser
        browser.close()


def words(page: Page) -> str:
    return " ".join(page.locator(LINES).all_inner_texts())


def test_speech_becomes_text_that_can_be_downloaded(
    speech: Browser, server: Running, tmp_path: Path, said: list[tuple[Waveform, str]]
) -> None:
    with signed_in(speech, server, "ann", path="listen", scopes=BOTH) as page:
        expect(page.get_by_label("Keep what is said")).to_be_disabled()  # the server keeps nothing
        expect(page.locator(".model")).to_contain_text("Heard by starter")
        page.keyboard.press("Space")
        expect(page.locator(".outbox")).to_have_text("Listening")
        expect(page.locator(LINES)).to_have_count(2)
        page.keyboard.press("Space")
        expect(page.get_by_role("button", name="Start")).to_be_enabled()
        # Some of it right: on a busy machine, a fake microphone stumbles.
        assert {word for _, text in said for word in text.split()} & set(words(page).split())
        first = page.locator(LINES).count()
        for kind in ("txt", "srt"):
            with page.expect_download() as waiting:
                page.click(f"button:has-text('.{kind}')")
            waiting.value.save_as(tmp_path / f"said.{kind}")
        lines = (tmp_path / "said.txt").read_text().splitlines()
        assert [line for line in lines if line] == lines
        assert all(line in words(page) for line in lines)
        cues = (tmp_path / "said.srt").read_text()
        assert re.match(r"1\n00:00:0\d,\d{3} --> 00:00:0\d,\d{3}\n\S", cues)
        times = [float(f"{minute}") * 60 + float(f"{second}.{ms}") for minute, second, ms in STAMP.findall(cues)]
        assert times == sorted(times)
        # It goes on where it ended.
        page.keyboard.press("Space")
        expect(page.locator(LINES)).to_have_count(first + 1)
        page.keyboard.press("Space")
        expect(page.get_by_role("button", name="Start")).to_be_enabled()
        page.click("text=Clear")
        expect(page.locator(LINES)).to_have_count(0)
    with server.ws.read() as reader:
        assert reader.count(Recording) == 0


STAMP = re.compile(r"00:(\d\d):(\d\d),(\d{3})")


def test_what_is_said_is_kept_with_consent_and_found_in_the_review(speech: Browser, tmp_path: Path) -> None:
    with open_loop(tmp_path / "served", create=True, capture="asked") as ws, served(ws) as server:
        consent.add_text(ws, "I agree to training.", ["train"], by="bob")
        with signed_in(speech, server, "ann", path="listen", scopes=BOTH) as page:
            page.keyboard.press("Space")
            expect(page.locator(LINES)).to_have_count(1)
            assert page.locator(".capture").count() == 0
            page.get_by_label("Keep what is said").check()
            expect(page.locator(".consent")).to_contain_text("I agree to training.")
            expect(page.locator("#capture-says")).to_have_text("Nothing is kept.")
            page.get_by_role("button", name="I agree").click()
            expect(page.locator("#capture-says")).to_have_text("Kept from now on.")
            expect(page.locator(".capture [role=status]")).to_contain_text(re.compile("[1-9] kept"))
            page.evaluate("document.activeElement.blur()")
            page.keyboard.press("Space")
            expect(page.get_by_role("button", name="Start")).to_be_enabled()
            assert server.app.state.served.capture.flush()
            with ws.read() as reader:
                found = reader.all(Recording)
                assert consent.of(reader, "ann").version == 1
            assert found
            assert {one.speaker for one in found} == {"ann"}
            kept = len(review.entries(ws).entries)
            expect(page.locator(".capture [role=status]")).to_contain_text(f"{kept} kept")
            # Another recording, which is not of this session.
            page.locator(".capture a").click()
            page.wait_for_selector(READY)
            expect(page.locator(".list li")).to_have_count(kept)
            expect(page.locator(".of-session")).to_contain_text("Captured in listen")


def test_a_server_that_goes_away_misses_nothing(speech: Browser, tmp_path: Path) -> None:
    with open_loop(tmp_path / "served", create=True) as ws:
        with served(ws) as first:
            running = signed_in(speech, first, "ann", path="listen", scopes=BOTH, faults=True)
            page = running.__enter__()
            page.keyboard.press("Space")
            expect(page.locator(LINES)).to_have_count(1)
        expect(page.locator(".outbox")).to_contain_text("Server away")
        page.wait_for_timeout(3500)  # in which both phrases are said
        with served(ws, port=int(first.url.rpartition(":")[2])):
            expect(page.locator(".outbox")).to_have_text("Listening")
            expect(page.locator(LINES)).to_have_count(3)
            page.keyboard.press("Space")
            expect(page.get_by_role("button", name="Start")).to_be_enabled()
            expect(page.get_by_role("alert")).to_have_count(0)
            running.__exit__(None, None, None)


@pytest.mark.parametrize(("width", "height", "scheme"), [(390, 844, "light"), (1360, 850, "dark")])
def test_it_works_at_any_width_and_is_accessible(
    speech: Browser, tmp_path: Path, width: int, height: int, scheme: Any
) -> None:
    with open_loop(tmp_path / "served", create=True, capture="asked") as ws, served(ws) as server:
        view = {"width": width, "height": height}
        with signed_in(speech, server, "ann", path="listen", scopes=BOTH, viewport=view, color_scheme=scheme) as page:
            for stage in ("start", "consent", "text"):
                if stage == "consent":
                    page.get_by_label("Keep what is said").check()
                    page.wait_for_selector(".consent")
                elif stage == "text":
                    page.get_by_role("button", name="I agree").click()
                    page.get_by_role("button", name="Start").click()
                    expect(page.locator(LINES)).to_have_count(1)
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), stage
                assert violations(page) == [], stage


def test_by_keyboard_alone_everything_is_reached(speech: Browser, server: Running) -> None:
    with signed_in(speech, server, "ann", path="listen", scopes=BOTH) as page:
        reached = set()
        for _ in range(20):
            page.keyboard.press("Tab")
            reached.add(
                page.evaluate("(document.activeElement.labels?.[0] || document.activeElement).textContent.trim()")
            )
        assert {"Review", "Record", "Listen", "Training", "Models", "Start Space", "Language"} <= reached
