"""Debian's Chromium, driven by Playwright; every page is watched for errors, violations and requests that leave."""

from __future__ import annotations

import gzip
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, Playwright, expect

from tests.web.conftest import Running
from voxloop.serving import tokens

AXE = Path(__file__).parent / "axe-core-4.14.1.min.js.gz"
READY = "main[data-ready]"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
]
PATIENCE_MS = 15_000.0  # machines that test are busy
expect.set_options(timeout=PATIENCE_MS)
WATCH = """
window.__violations = [];
addEventListener("securitypolicyviolation", (event) => {
  window.__violations.push(`${event.violatedDirective} ${event.blockedURI}`);
});
"""


def launched(playwright: Playwright, *flags: str) -> Browser:
    """A browser with an empty profile."""
    program = shutil.which("chromium")
    assert program, "Chromium is not installed: `.ci/run` installs it"
    return playwright.chromium.launch(executable_path=program, args=[*FLAGS, *flags])


def speaking(playwright: Playwright, sound: Path, *flags: str) -> Browser:
    """A browser whose microphone hears a WAV file, again and again."""
    return launched(
        playwright,
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={sound}",
        *flags,
    )


@contextmanager
def signed_in(
    browser: Browser,
    server: Running,
    name: str,
    *,
    path: str = "review",
    scopes: Sequence[str] = ("review",),
    url: str | None = None,
    faults: bool = False,
    **options: Any,
) -> Iterator[Page]:
    """A page of a person, the review by default. `url` is the server's, where it is not to be loopback's.

    With `faults`, failed requests are expected, as where the server goes away.
    """
    root = url or server.url
    context = browser.new_context(**({"viewport": {"width": 1360, "height": 850}} | options))
    context.add_init_script(WATCH)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    errors: list[str] = []
    away: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    page.on(
        "request",
        lambda asked: None if asked.url.startswith((root, "blob:", "data:")) else away.append(asked.url),
    )
    login = f"{root}/login?code={tokens.add(server.ws, name, scopes).code}"
    if path == "review":
        page.goto(login)
        page.wait_for_url("**/review*")
        page.wait_for_selector(READY)
    else:
        page.goto(f"{root}/{path}")
        page.evaluate("(url) => fetch(url).then((said) => said.text())", login)  # sets the cookie
        page.reload()
        page.wait_for_selector(READY if path.startswith(("training", "models")) else "main")
    yield page
    assert away == []
    broken = page.evaluate("window.__violations")
    assert broken == [], broken
    # What the server refuses, browsers write into the console; that is no error of the page. Nor is what axe tries.
    known = ("the server responded with a status of", "Content Security Policy")
    assert [one for one in errors if not (faults or any(part in one for part in known))] == [], errors
    context.close()


def violations(page: Page) -> list[str]:
    """What axe-core finds wrong with the page as it is, WCAG 2.2 A and AA."""
    page.evaluate(gzip.decompress(AXE.read_bytes()).decode())
    # What fades in has not its contrast yet.
    page.evaluate("Promise.allSettled(document.getAnimations().map((one) => one.finished))")
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    before = page.evaluate("window.__violations")
    found = page.evaluate("(values) => axe.run(document, {runOnly: {type: 'tag', values}})", tags)
    page.evaluate("(before) => { window.__violations = before; }", before)  # axe tries styles of its own
    return [
        f"{one['id']}: {node['html'][:160]} {node.get('failureSummary', '')[:200]}"
        for one in found["violations"]
        for node in one["nodes"]
    ]


def until(page: Page, expression: str, *, timeout_s: float = 15.0) -> None:
    """Wait until an expression is true. Playwright's own waiting needs `eval`, which the page's policy forbids."""
    end = time.monotonic() + timeout_s
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"never true: {expression}"
        page.wait_for_timeout(20)


def shown(page: Page) -> int:
    """The id of the entry that is shown and whose sound is drawn."""
    until(page, "document.querySelector('main').dataset.ready === location.hash.slice(4)")
    return int(page.evaluate("location.hash.slice(4)"))


def shows(page: Page, id: int) -> None:
    """Wait until this entry is shown."""
    until(page, f"document.querySelector('main').dataset.ready === '{id}' && location.hash === '#id={id}'")
