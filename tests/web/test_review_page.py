"""The review page in a real browser: every key, the mouse, hostile texts, any width."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.web.chromium import READY, launched, shown, shows, signed_in, until, violations
from tests.web.conftest import Running
from tests.web.filled import MODEL, TEXTS, fill
from tests.web.review_page import settled, text, texts
from voxloop.records import Transcript
from voxloop.steps import review
from voxloop.steps.review import Filters

HOSTILE = "<img src=x onerror=alert(1)> \"';--<script>alert(2)</script> ‮evil‬ {{7*7}} ${7*7}"


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


def out_of_text(page: Page) -> None:
    page.evaluate("document.activeElement.blur()")


# Keys ----------------------------------------------------------------------------------------------------------------


def test_keys_of_the_specification(page: Page, server: Running) -> None:
    shows(page, 1)
    page.keyboard.press("Space")
    expect(page.locator("button.play")).to_have_attribute("aria-label", "Pause")
    page.keyboard.press("Space")
    expect(page.locator("button.play")).to_have_attribute("aria-label", "Play")
    page.fill("#text", "Please call Stella.")
    page.keyboard.press("Control+s")
    settled(page)
    assert texts(server)[1] == ("Please call Stella.", "reviewed")
    shows(page, 1)
    page.keyboard.press("End")
    page.keyboard.type(" Now.")
    page.keyboard.press("Control+Enter")
    shows(page, 2)
    settled(page)
    assert texts(server)[1] == ("Please call Stella. Now.", "reviewed")
    page.keyboard.press("Control+r")
    settled(page)
    assert texts(server)[2] == (TEXTS[1], "reviewed")
    out_of_text(page)
    page.keyboard.press("ArrowRight")
    shows(page, 3)
    page.keyboard.press("ArrowLeft")
    shows(page, 2)
    page.keyboard.press("Control+d")
    shows(page, 3)
    settled(page)
    assert 2 not in texts(server)
    page.keyboard.press("u")
    shows(page, 2)
    assert texts(server)[2] == (TEXTS[1], "reviewed")


def test_single_keys_decide_and_move(page: Page, server: Running) -> None:
    page.keyboard.press("a")  # accepts and goes on
    shows(page, 2)
    page.keyboard.press("s")
    shows(page, 3)
    page.keyboard.press("x")
    page.keyboard.press("2")  # too noisy
    shows(page, 4)
    page.keyboard.press("x")
    page.keyboard.type("a door")
    page.keyboard.press("Enter")
    shows(page, 5)
    settled(page)
    found = texts(server)
    assert [found[n][1] for n in (1, 2, 3, 4)] == ["reviewed", "transcribed", "rejected", "rejected"]
    assert [one.reason for one in review.history(server.ws, "3")] == ["too noisy"]
    assert [one.reason for one in review.history(server.ws, "4")] == ["a door"]
    page.keyboard.press("Home")
    page.keyboard.press("n")
    shows(page, 6)
    page.keyboard.press("g")
    page.keyboard.type("2")
    page.keyboard.press("Enter")
    shows(page, 2)
    page.keyboard.press("n")
    shows(page, 5)
    page.keyboard.press("v")
    expect(page.locator(".selection")).to_contain_text("1 selected")
    page.keyboard.press("v")
    page.keyboard.press("/")
    page.keyboard.type("snack")
    expect(page.locator(".list li")).to_have_count(0)  # 4 was rejected
    page.select_option("select[aria-label=Status]", "all")
    expect(page.locator(".list li")).to_have_count(1)
    out_of_text(page)
    page.keyboard.press("?")
    expect(page.locator("dialog")).to_contain_text("Save and go to the next")
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)


def test_sound_keys(page: Page) -> None:
    position = "document.querySelector('.wave').getAttribute('aria-valuenow')"
    page.keyboard.press("l")
    expect(page.locator("button.toggle")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("l")
    page.keyboard.press("]")
    expect(page.locator("select[aria-label=Speed]")).to_have_value("1.1")
    page.keyboard.press("[")
    page.keyboard.press("[")
    expect(page.locator("select[aria-label=Speed]")).to_have_value("0.9")
    page.locator(".wave").focus()
    page.keyboard.press("End")
    until(page, f"{position} === '2'")
    page.keyboard.press("ArrowLeft")  # seeks, as in any slider, rather than changing the entry
    until(page, f"{position} === '1.5'")
    out_of_text(page)
    page.keyboard.press("b")
    until(page, f"{position} === '0.5'")
    shows(page, 1)


def test_in_the_text_keys_type(page: Page) -> None:
    page.click("#text", position={"x": 400, "y": 70})
    page.keyboard.press("End")
    for key in ["a", "x", "s", "n", "?", "/", "u"]:
        page.keyboard.press(key)
    page.keyboard.press("Space")
    page.keyboard.press("ArrowLeft")
    assert text(page) == TEXTS[0] + "axsn?/u "
    shows(page, 1)
    for key in ("Escape", "Shift+Space"):
        page.keyboard.press(key)
        page.wait_for_timeout(100)
    assert text(page) == TEXTS[0] + "axsn?/u "
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+z")
    assert text(page) == TEXTS[0]
    page.keyboard.press("Control+y")
    assert text(page) != TEXTS[0]
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+Shift+Z")
    assert text(page) != TEXTS[0]
    page.keyboard.press("Alt+o")
    assert text(page) == TEXTS[0]


def test_tab_goes_to_doubtful_words_and_then_on(page: Page) -> None:
    selected = "((t) => t.value.slice(t.selectionStart, t.selectionEnd))(document.getElementById('text'))"
    page.locator("#text").focus()
    page.evaluate("document.getElementById('text').setSelectionRange(0, 0)")
    page.keyboard.press("Tab")
    assert page.evaluate(selected) == "please"  # every fourth word is doubtful
    expect(page.locator("button.play")).to_have_attribute("aria-label", "Pause")
    page.keyboard.press("Tab")
    assert page.evaluate(selected) == "the"
    page.keyboard.press("Shift+Tab")
    assert page.evaluate(selected) == "please"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")  # no trap: after the last one the focus goes on
    assert page.evaluate("document.activeElement.id") != "text"


def test_keys_can_be_changed_and_switched_off(page: Page) -> None:
    page.keyboard.press("?")
    page.click("#change-skip")
    page.keyboard.press("j")
    expect(page.locator("#change-skip")).to_contain_text("J")
    page.keyboard.press("Escape")
    page.keyboard.press("s")
    shows(page, 1)
    page.keyboard.press("j")
    shows(page, 2)
    page.reload()
    page.wait_for_selector(READY)
    page.keyboard.press("j")
    page.wait_for_timeout(300)
    page.keyboard.press("F1")
    page.uncheck("dialog input[type=checkbox]")
    page.keyboard.press("Escape")
    before = shown(page)
    for key in ("j", "x", "n", "?"):
        page.keyboard.press(key)
    page.wait_for_timeout(200)
    assert shown(page) == before
    expect(page.locator("dialog")).to_have_count(0)
    page.keyboard.press("ArrowRight")  # no printable key: it stays
    assert shown(page) != before


def test_no_key_is_lost_at_five_a_second(chromium: Browser, server: Running) -> None:
    said = [f"sentence number {n}" for n in range(24)]
    fill(server.ws, said, seconds=1.0)
    with signed_in(chromium, server, "ann") as page:
        for _ in range(20):
            page.keyboard.press("Control+Enter")
            page.wait_for_timeout(200)
        page.keyboard.type("x")  # opens the reasons; the entry in hand is the 21st
        page.keyboard.press("Escape")
        settled(page)
        shows(page, 21)
        assert [n for n, (_, status) in texts(server).items() if status == "reviewed"] == list(range(1, 21))
        expect(page.locator(".session")).to_contain_text("20 this session")
        expect(page.locator(".top .progress")).to_contain_text("20 of 24")


# Mouse ---------------------------------------------------------------------------------------------------------------


def test_the_mouse_does_it_too(page: Page, server: Running) -> None:
    page.locator(".list .entry").nth(2).click()
    shows(page, 3)
    page.uncheck("label:has-text('Autoplay') input")
    if page.get_attribute("button.play", "aria-label") == "Pause":
        page.click("button.play")
    page.click("button.play")
    expect(page.locator("button.play")).to_have_attribute("aria-label", "Pause")
    page.click("button.play")
    box = page.locator(".wave").bounding_box()
    assert box
    page.mouse.click(box["x"] + box["width"] * 0.9, box["y"] + 40)  # a word's region: plays it
    until(page, "Number(document.querySelector('.wave').getAttribute('aria-valuenow')) > 1.4")
    page.click("text=Mark reviewed")
    settled(page)
    expect(page.locator(".heading .badge").first).to_have_text("Reviewed by ann")
    page.click("button:has-text('Reject')")
    page.click("dialog button:has-text('cut off')")
    shows(page, 4)
    page.click(".notice button:has-text('Undo')")
    shows(page, 3)
    settled(page)
    assert texts(server)[3][1] == "reviewed"
    page.click("button:has-text('Delete')")
    page.click(".notice button:has-text('Undo')")
    shows(page, 3)
    page.fill("input[list=speakers]", HOSTILE)
    page.locator("input[list=speakers]").blur()
    settled(page)
    assert review.show(server.ws, "3").utterance.speaker == " ".join(HOSTILE.split())


def test_a_click_on_a_word_plays_it(page: Page) -> None:
    word = page.locator(".layer [data-word='4']").bounding_box()
    assert word
    page.mouse.click(word["x"] + word["width"] / 2, word["y"] + word["height"] / 2)
    expect(page.locator(".layer [data-word='4']")).to_have_class("low now")
    until(page, "document.querySelector('button.play').getAttribute('aria-label') === 'Play'")
    assert float(page.get_attribute(".wave", "aria-valuenow") or 0) < 1.7  # it stopped after the word


def test_many_are_accepted_and_brought_back(page: Page, server: Running) -> None:
    page.locator(".list li input").nth(1).check()
    page.locator(".list li input").nth(4).click(modifiers=["Shift"])
    expect(page.locator(".selection")).to_contain_text("4 selected")
    page.click(".selection button:has-text('Accept')")
    expect(page.locator(".list li")).to_have_count(2)
    assert sum(status == "reviewed" for _, status in texts(server).values()) == 4
    page.click(".notice button:has-text('Undo')")
    expect(page.locator(".list li")).to_have_count(6)
    page.locator(".list li input").first.check()
    page.click(".selection button:has-text('All')")
    page.click(".selection button:has-text('Reject')")
    page.click("dialog button:has-text('private')")
    expect(page.locator(".list")).to_contain_text("Nothing is left")
    assert {status for _, status in texts(server).values()} == {"rejected"}


def test_words_are_replaced_after_a_preview(page: Page, server: Running) -> None:
    page.click("text=Find & replace")
    page.fill("dialog label:has-text('Find') input", "snow")
    page.fill("dialog label:has-text('Replace') input", "sand")
    page.click("dialog button:has-text('Preview')")
    expect(page.locator("dialog .preview li")).to_have_count(1)
    expect(page.locator("dialog ins")).to_have_text("sand")
    page.click("dialog button:has-text('Replace in 1')")
    expect(page.locator(".list")).to_contain_text("fresh sand peas")
    assert texts(server)[2] == ("six spoons of fresh sand peas", "transcribed")
    page.click(".notice button:has-text('Undo')")
    expect(page.locator(".list")).to_contain_text("fresh snow peas")


def test_export_and_import_by_the_page(page: Page, server: Running, tmp_path: Path) -> None:
    page.click("text=Export / import")
    with page.expect_download() as waiting:
        page.click("dialog a:has-text('JSONL')")
    waiting.value.save_as(tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    rows[0] |= {"text": "from a spreadsheet", "by": "eve"}
    (tmp_path / "in.jsonl").write_text(json.dumps(rows[0]))
    page.set_input_files("dialog input[type=file]", tmp_path / "in.jsonl")
    page.click("dialog button:has-text('Check')")
    page.click("dialog button:has-text('Import 1')")
    expect(page.locator(".notice")).to_contain_text("1 texts imported")
    assert ("from a spreadsheet", "reviewed") in texts(server).values()


def test_what_is_typed_stays_while_the_page_changes(page: Page, server: Running) -> None:
    page.locator("input[list=speakers]").focus()
    page.keyboard.press("Control+a")
    page.keyboard.type("zo")
    page.evaluate("window.dispatchEvent(new Event('online'))")  # the page draws itself anew
    page.wait_for_timeout(200)
    page.keyboard.type("e")
    page.keyboard.press("Enter")
    settled(page)
    assert review.show(server.ws, "1").utterance.speaker == "zoe"
    page.fill("input[list=languages]", "klingon")
    page.locator("input[list=languages]").blur()
    expect(page.locator(".notice")).to_contain_text("klingon")
    expect(page.locator("input[list=languages]")).to_have_value("en")


def test_filters_and_other_machines_texts(page: Page, server: Running) -> None:
    found = review.show(server.ws, "2").utterance
    with server.ws.transaction() as tx:
        other = Transcript(
            id="other",
            utterance=found.id,
            kind="hypothesis",
            text="six spoons of fresh snow keys",
            by=MODEL.replace("1", "2"),
            confidence=0.9,
            created=1.0,
        )
        tx.add(other)
    page.reload()
    page.wait_for_selector(READY)
    page.keyboard.press("ArrowRight")
    expect(page.locator("section:has(h3:text('Other machine texts'))")).to_contain_text("keys")
    page.keyboard.press("Alt+1")
    assert text(page) == "six spoons of fresh snow keys"
    expect(page.locator(".original ins")).to_have_text("keys")
    page.click("button:has-text('Filters')")
    page.select_option("label:has-text('Confidence up to') select", "0.5")
    expect(page.locator(".list li")).to_have_count(3)
    page.click("text=Clear filters")
    expect(page.locator(".list li")).to_have_count(6)


# Any text, any width, anybody ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "language", "edited"),
    [
        (HOSTILE, "en", HOSTILE + "<b>"),
        ("مرحبا بكم في التطبيق الجديد", "ar", "مرحبا بكم في التطبيق"),
        ("今日 は 東京 に 行き まし た", "ja", "今日は東京に行きました。"),
        ("xin chào các bạn", "vi", "Xin chào các bạn!"),
        ("a" * 400, "en", "b" * 400),
    ],
)
def test_any_text_is_shown_and_saved_as_it_is(
    chromium: Browser, server: Running, said: str, language: str, edited: str
) -> None:
    fill(server.ws, [said], language=language, speaker=HOSTILE, folder="<b>")
    with signed_in(chromium, server, HOSTILE.replace("‮", "")) as page:
        page.on("dialog", lambda opened: pytest.fail("a script ran"))
        assert text(page) == said
        page.fill("#text", edited)
        page.keyboard.press("Control+s")
        settled(page)
        assert texts(server)[1][0] == " ".join(edited.split())
        assert page.locator("main img, main script").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        if language == "ar":
            assert page.evaluate("getComputedStyle(document.getElementById('text')).direction") == "rtl"
            assert page.get_attribute("#text", "lang") == "ar"


LAYERS = """() => {
  const field = document.getElementById("text"), layer = document.querySelector(".layer");
  const names = ["fontFamily", "fontSize", "lineHeight", "padding", "width", "letterSpacing", "direction"];
  const rules = (one) => names.map((name) => getComputedStyle(one)[name]).join();
  return [rules(field) === rules(layer), field.scrollHeight <= layer.offsetHeight + 2];
}"""


@pytest.mark.parametrize(
    ("width", "height", "scheme"), [(390, 844, "light"), (390, 844, "dark"), (680, 425, "light"), (1360, 850, "dark")]
)
def test_it_works_at_any_width_and_is_accessible(
    chromium: Browser, server: Running, width: int, height: int, scheme: Any
) -> None:
    """390 px is a phone; 680 by 425 is a window of 1360 by 850 at 200 % zoom."""
    fill(server.ws, [*TEXTS, "word " * 60])
    view = {"width": width, "height": height}
    with signed_in(chromium, server, "ann", viewport=view, color_scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert violations(page) == []
        page.keyboard.press("g")
        page.keyboard.type("7")
        page.keyboard.press("Enter")
        shows(page, 7)
        assert page.evaluate(LAYERS) == [True, True]
        page.fill("#text", "please call Stella")
        page.keyboard.press("Control+s")
        settled(page)
        assert violations(page) == []
        for name in ("Export / import", "Find & replace"):
            if page.locator(".open-queue").is_visible():
                page.click(".open-queue")
            page.click(f"text={name}")
            assert violations(page) == []
            page.keyboard.press("Escape")
            if page.locator(".close-queue").is_visible():
                assert violations(page) == []
                page.click(".close-queue")
        page.keyboard.press("F1")
        assert violations(page) == []
        assert page.evaluate("document.querySelector('dialog').scrollWidth <= innerWidth")
        page.keyboard.press("Escape")
        assert page.evaluate(SMALL) == []


SMALL = """() => [...document.querySelectorAll("button, select, input, textarea")]
  .filter((one) => one.offsetParent)
  .filter((one) => one.getBoundingClientRect().height < 24 && one.type !== "checkbox")
  .map((one) => one.outerHTML.slice(0, 90))"""


FOCUSED = """() => {
  const one = document.activeElement;
  if (one === document.body) return "";
  const seen = getComputedStyle(one).outlineStyle !== "none";
  return (seen ? "" : "unseen ") + (one.getAttribute("aria-label") || one.textContent || one.id).trim().slice(0, 30);
}"""


def test_by_keyboard_alone_everything_is_reached(page: Page) -> None:
    page.evaluate("document.activeElement.blur()")
    reached: set[str] = set()
    for _ in range(70):
        page.keyboard.press("Tab")
        name = page.evaluate(FOCUSED)
        reached.add(name)
    assert not [one for one in reached if one.startswith("unseen ")]
    for wanted in ("Position", "Text", "Play", "Speed", "Status", "Search texts", "Keys", "Find & replace"):
        assert any(one.startswith(wanted) for one in reached), wanted
    assert any("Accept & next" in one for one in reached)


def test_ten_thousand_entries_scroll(chromium: Browser, server: Running) -> None:
    fill_many(server, 10_000)
    with signed_in(chromium, server, "ann") as page:
        expect(page.locator(".top .progress")).to_contain_text("0 of 10,000")
        assert page.locator(".list li").count() < 60  # those in sight
        page.set_default_timeout(60_000)
        for _ in range(600):
            page.evaluate("document.querySelector('.list').scrollTop = 1e9")
            page.wait_for_timeout(100)
            if page.get_attribute(".list ul", "aria-label") == "10000 entries":
                break
        assert page.get_attribute(".list ul", "aria-label") == "10000 entries"
        page.evaluate("document.querySelector('.list').scrollTop = 1e9")
        page.locator(".list li .entry").last.click()
        shows(page, 10_000)
        page.fill("input[type=search]", "number 4321")
        expect(page.locator(".list li")).to_have_count(1)
        page.fill("input[type=search]", "number 43")  # 111 of them
        expect(page.locator(".list ul")).to_have_attribute("aria-label", "100+ entries")
        page.locator(".list li input").first.check()
        page.click(".selection button:has-text('All')")
        expect(page.locator(".selection")).to_contain_text("111 selected")
        page.click(".selection button:has-text('Delete')")
        expect(page.locator("dialog")).to_contain_text("Delete 111 entries?")
        assert violations(page) == []
        page.click("dialog button:has-text('Delete 111')")
        expect(page.locator(".notice")).to_contain_text("111 deleted.")
        expect(page.locator(".list")).to_contain_text("No entry matches")
        page.click(".notice button:has-text('Undo')")
        expect(page.locator(".notice")).to_have_text("Undone.")
        expect(page.locator(".list ul")).to_have_attribute("aria-label", "100+ entries")


def fill_many(server: Running, count: int) -> None:
    """Many utterances of one recording."""
    from tests.web.filled import recorded, voice
    from voxloop.records import Utterance, utterance_id

    recording = recorded(server.ws, voice(count / 400, 120), "long.wav", "ann", "en")
    with server.ws.transaction() as tx:
        spans = [(n * 40, n * 40 + 40) for n in range(count)]
        ids = [utterance_id(recording.id, *span) for span in spans]
        tx.add(
            *(
                Utterance(
                    id=id, recording=recording.id, start=start, end=end, status="transcribed", priority=0.9 - n * 1e-6
                )
                for n, (id, (start, end)) in enumerate(zip(ids, spans, strict=True))
            )
        )
        tx.add(
            *(
                Transcript(id=f"t{n}", utterance=id, kind="hypothesis", text=f"sentence number {n}", by=MODEL)
                for n, id in enumerate(ids)
            )
        )


MERGES = """async () => {
  const { difference, merged, placed } = await import("./static/text.js");
  const told = (from, to) => difference(from, to, "en").map(({ kind, text }) => `${kind}:${text}`);
  const shown = (text) => (one) => [text.slice(one.from, one.to), one.probability];
  const at = (words, original, text) => placed(words, original, text).map(shown(text));
  const word = ([text, probability], n) => ({ text, start: n, end: n + 0.9, probability });
  const words = [["six ", 0.9], ["spoons", 0.2], ["of", 0.8]].map(word);
  return {
    same: told("a b", "a b"),
    changed: told("a cat sat", "a dog sat"),
    apart: merged("one two three four", "One two three four", "one two three FOUR", "en"),
    together: merged("one two three", "one TWO three", "one 2 three", "en"),
    alike: merged("one two three", "one too three", "one too three", "en"),
    removed: merged("one two three four", "one three four", "one two three four five", "en"),
    words: at(words, "six spoons of", "six big spoons of"),
    none: at([], "", "typed"),
  };
}"""


def test_differences_merges_and_places_of_words(page: Page) -> None:
    assert page.evaluate(MERGES) == {
        "same": ["same:a b"],
        "changed": ["same:a ", "gone:cat", "new:dog", "same: sat"],
        "apart": "One two three FOUR",
        "together": None,
        "alike": "one too three",
        "removed": "one three four five",
        "words": [["six", 0.9], ["big", None], ["spoons", 0.2], ["of", 0.8]],
        "none": [["typed", None]],
    }


def test_who_is_not_signed_in_is_told_how(chromium: Browser, server: Running) -> None:
    context = chromium.new_context()
    page = context.new_page()
    page.goto(server.url)
    expect(page.locator("body")).to_contain_text("This browser is not signed in")
    expect(page.locator("body")).to_contain_text("voxloop token link")
    context.close()


def test_filters_keep_their_place(page: Page, server: Running) -> None:
    review.accept(server.ws, "1", by="bob")
    page.select_option("select[aria-label=Status]", "reviewed")
    expect(page.locator(".list li")).to_have_count(1)
    page.reload()
    page.wait_for_selector(READY)
    expect(page.locator("select[aria-label=Status]")).to_have_value("reviewed")
    expect(page.locator(".list li")).to_have_count(1)
    assert len(review.page(server.ws, where=Filters(status="reviewed")).items) == 1
