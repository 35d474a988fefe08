"""Make the pictures of the pages under docs/screenshots, from a workspace with the demo's speech and a real browser."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ["HF_HUB_OFFLINE"] = "1"

from playwright.sync_api import Browser, sync_playwright  # noqa: E402
from tests.web.chromium import launched, signed_in  # noqa: E402
from tests.web.conftest import Running, served  # noqa: E402
from tests.web.trained import spoken  # noqa: E402

from voxloop.automation.worker import work  # noqa: E402
from voxloop.pipeline import open_loop  # noqa: E402
from voxloop.steps import datasets, review, training  # noqa: E402
from voxloop.steps.gate.promotion import promote  # noqa: E402
from voxloop.steps.recordings import ingest  # noqa: E402

OUT = ROOT / "docs" / "screenshots"
DESKTOP = {"width": 1440, "height": 860}
PHONE = {"width": 390, "height": 844}


def main() -> None:
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, open_loop(Path(folder) / "ws", create=True) as ws:
        clips = sorted((ROOT / "demo" / "speech").glob("*.ogg"))[::7][:16]
        for clip in clips:
            ingest(ws, clip, speaker="amy" if len(clip.name) % 2 else "sam", language="en")
        work(ws, until_idle=True)
        for item in review.page(ws).items[-5:]:
            review.accept(ws, str(item.number), by="bob")
        with sync_playwright() as playwright, served(ws) as server:
            browser = launched(playwright)
            _desktop(browser, server)
            _phone(browser, server)
            browser.close()
    with tempfile.TemporaryDirectory() as folder, spoken(Path(folder), clips=120) as ws:
        datasets.build(ws)
        run = training.train(ws, recipe="quick", overrides=["max_seconds=60", "eval_seconds=3", "log_steps=5"])
        if run.model:
            promote(ws, run.model, by="ann")
        with sync_playwright() as playwright, served(ws) as server:
            browser = launched(playwright)
            _administrators(browser, server, f"training#run={run.id}", "training")
            _administrators(browser, server, f"models#models={run.model}", "models")
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


def _administrators(browser: Browser, server: Running, at: str, name: str) -> None:
    """Pictures of a page that administrators use, on a desktop, in the dark and on a phone."""
    with signed_in(browser, server, f"{name}er", scopes=["admin"], path=at, viewport=DESKTOP) as page:
        page.wait_for_selector(".verdict-word, .tree")
        page.wait_for_timeout(800)
        page.screenshot(path=OUT / f"{name}.png")
        page.emulate_media(color_scheme="dark")
        page.wait_for_timeout(200)
        page.screenshot(path=OUT / f"{name}-dark.png")
        page.emulate_media(color_scheme="light")
        page.set_viewport_size(PHONE)
        page.wait_for_timeout(400)
        page.screenshot(path=OUT / f"{name}-phone.png")


if __name__ == "__main__":
    main()
