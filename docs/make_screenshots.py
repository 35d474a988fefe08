"""Make the pictures of the pages under docs/screenshots, from a workspace with the demo's speech and a real browser."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ["HF_HUB_OFFLINE"] = "1"

from playwright.sync_api import Browser, sync_playwright  # noqa: E402
from tests.web import spoken  # noqa: E402
from tests.web.chromium import launched, signed_in, speaking, until  # noqa: E402
from tests.web.conftest import Running, served  # noqa: E402

from voxloop.automation.worker import work  # noqa: E402
from voxloop.pipeline import open_loop  # noqa: E402
from voxloop.steps import phrases, review, vocabulary  # noqa: E402
from voxloop.steps.recordings import ingest  # noqa: E402

OUT = ROOT / "docs" / "screenshots"
DESKTOP = {"width": 1440, "height": 860}
PHONE = {"width": 390, "height": 844}


def main() -> None:
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, open_loop(Path(folder) / "ws", create=True, capture="asked") as ws:
        clips = sorted((ROOT / "demo" / "speech").glob("*.ogg"))[::7][:16]
        for clip in clips:
            ingest(ws, clip, speaker="amy" if len(clip.name) % 2 else "sam", language="en")
        work(ws, until_idle=True)
        for item in review.page(ws).items[-5:]:
            review.accept(ws, str(item.number), by="bob")
        names = ["dim-the-lantern-01", "boil-the-kettle-01", "fold-the-awning-01"]
        sound = spoken.played(
            Path(folder) / "said.wav", *(spoken.clip(ROOT / "demo" / "speech", name) for name in names)
        )
        own = ["Dim the lantern.", "Brighten the hallway.", "Raise the curtain."]
        phrases.keep_list(ws, own, language="en", by="ann")
        vocabulary.add(ws, ["Voxloop"])
        with sync_playwright() as playwright, served(ws) as server:
            browser = launched(playwright)
            _desktop(browser, server)
            _phone(browser, server)
            browser.close()
            browser = speaking(playwright, sound)
            _spoken(browser, server)
            browser.close()


def _desktop(browser: Browser, server: Running) -> None:
    with signed_in(browser, server, "ann", viewport=DESKTOP) as page:
        page.wait_for_timeout(1000)
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(1200)
        page.screenshot(path=OUT / "review.png")
        text = page.input_value("#text")
        page.fill("#text", f"{text.capitalize()}.")
        page.emulate_media(color_scheme="dark")
        page.wait_for_timeout(400)
        page.screenshot(path=OUT / "review-dark.png")
        page.emulate_media(color_scheme="light")
        id = int(page.evaluate("location.hash.slice(4)"))
        review.save(server.ws, str(id), f"{text} indeed", by="bob", seen="")
        page.keyboard.press("Control+s")
        page.wait_for_selector(".conflict")
        page.wait_for_timeout(400)
        page.screenshot(path=OUT / "review-conflict.png")
        page.wait_for_timeout(200)
        page.keyboard.press("F1")
        page.wait_for_timeout(300)
        page.screenshot(path=OUT / "review-keys.png")


def _phone(browser: Browser, server: Running) -> None:
    with signed_in(browser, server, "cleo", viewport=PHONE, device_scale_factor=2) as page:
        page.wait_for_timeout(800)
        page.screenshot(path=OUT / "review-phone.png")


def _spoken(browser: Browser, server: Running) -> None:
    for name, view, scheme in (
        ("", DESKTOP, "light"),
        ("-dark", DESKTOP, "dark"),
        ("-phone", PHONE, "light"),
        ("-phone-dark", PHONE, "dark"),
    ):
        look: dict[str, Any] = {"viewport": view, "color_scheme": scheme, "scopes": ("listen", "review")}
        look["device_scale_factor"] = 2 if view is PHONE else 1
        with signed_in(browser, server, f"dora{name}", path="record", **look) as page:
            page.wait_for_selector(".consent")
            page.screenshot(path=OUT / f"record-consent{name}.png")
            page.get_by_role("button", name="I agree").click()
            page.wait_for_selector(".phrase")
            page.get_by_label("Keep at once").uncheck()
            page.evaluate("document.activeElement.blur()")
            page.keyboard.press("Space")
            page.wait_for_timeout(1700)
            page.keyboard.press("Space")
            page.wait_for_selector(".reading[data-state=decide]")
            page.screenshot(path=OUT / f"record{name}.png")
        with signed_in(browser, server, f"eric{name}", path="listen", **look) as page:
            page.get_by_label("Keep what is said").check()
            page.get_by_role("button", name="I agree").click()
            page.get_by_role("button", name="Start").click()
            until(page, "document.querySelectorAll('.lines p:not(.faint)').length > 2")
            page.screenshot(path=OUT / f"listen{name}.png")


if __name__ == "__main__":
    main()
