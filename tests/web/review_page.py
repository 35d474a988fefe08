"""What tests of the review page look at."""

from __future__ import annotations

from playwright.sync_api import Page

from tests.web.chromium import until
from tests.web.conftest import Running
from voxloop.steps import review


def text(page: Page) -> str:
    return page.input_value("#text")


def texts(server: Running) -> dict[int, tuple[str, str]]:
    """Every entry's text and status as the server has them."""
    return {one.item.number: (one.item.text, one.item.utterance.status) for one in review.entries(server.ws).entries}


SETTLED = "!Object.keys(localStorage).some((key) => key.includes('.outbox.'))"


def settled(page: Page) -> None:
    """Wait until the server has every change."""
    until(page, SETTLED)
