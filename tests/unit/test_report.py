"""The page: one file, no network, no script, no text of a user's as markup, and something for every reader."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.unit import frozen_speech
from voxloop import models
from voxloop.cli import app
from voxloop.errors import UsageError
from voxloop.pipeline import open_loop
from voxloop.records import Model
from voxloop.steps import report
from voxloop.steps.evaluation import evaluate, forecast, scored_rows
from voxloop.steps.report.charts import Line, Point, bar, plot
from voxloop.steps.report.page import _name, percent, rate_in_words
from voxloop.steps.report.sound import Sounds

NASTY = "<script>alert('ann')</script>"
VOID = {"meta", "br"}


class Page(HTMLParser):
    """What a page consists of; fails where tags do not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A workspace with two models measured, and the page of one beside the other."""
    folder = tmp_path_factory.mktemp("report")
    champion, challenger = frozen_speech.models(folder)
    with open_loop(
        folder / "ws", create=True, base_model=str(champion), threads=1, device="cpu", min_snr_db=-99.0
    ) as ws:
        frozen = frozen_speech.freeze(ws, folder / "speech", clips=12, speakers=(NASTY, "bob"))
        for name, heard in ((champion, 0.5), (challenger, 0.25)):
            frozen_speech.remember(ws, models.base_model(ws, str(name)), frozen, frozen_speech.wrong_in(heard))
        before, after = evaluate(ws), evaluate(ws, str(challenger))
        written = report.write(ws, after, folder / "report.html", against=before)
        assert written.notes == ()
        assert written.size == written.file.stat().st_size
    return folder, written.file


def test_the_page_asks_for_nothing_and_runs_nothing(made: tuple[Path, Path]) -> None:
    text = made[1].read_text()
    page = Page(text)
    assert page.all("script") == page.all("link") == page.all("img") == []
    assert "http" not in text.replace("http-equiv", "")
    for tag, attrs in page.tags:
        for name, value in attrs.items():
            assert not name.startswith("on"), f"{tag} {name}"
            if name in ("src", "href"):
                assert value
                assert value.startswith(("data:audio/mpeg;base64,", "#"))
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv"))
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; media-src data:"


def test_names_are_text_and_never_markup(made: tuple[Path, Path]) -> None:
    assert NASTY in Page(made[1].read_text()).text
    assert "<script" not in made[1].read_text()


def test_what_was_measured_is_on_the_page(made: tuple[Path, Path]) -> None:
    page = Page(made[1].read_text())
    words = " ".join(page.text.split())
    assert "5.0 %" in words  # a word in five, in a quarter of the clips
    assert "10.0 %" in words
    assert "Better than champion" in words
    assert "3 utterances got better, 0 worse." in words
    assert "insufficient evidence" in words
    assert {"reference", "hypothesis"} <= set(words.split())
    assert len([1 for tag, _ in page.tags if tag == "del"]) >= 3
    assert page.all("ins")


def test_a_screen_reader_and_a_keyboard_find_their_way(made: tuple[Path, Path]) -> None:
    page = Page(made[1].read_text())
    ids = [attrs["id"] for _, attrs in page.tags if attrs.get("id")]
    assert len(ids) == len(set(ids))
    links = [attrs["href"] for attrs in page.all("a")]
    assert links
    assert {str(link)[1:] for link in links} <= set(ids)
    assert [attrs["aria-labelledby"] in ids for attrs in page.all("section")] == [True] * len(page.all("section"))
    svgs = page.all("svg")
    assert svgs
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in svgs)
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == len(page.all("main")) == 1
    assert all(attrs["aria-label"] for attrs in page.all("audio"))


def test_a_model_is_called_what_its_owner_called_it() -> None:
    base = Model(id="sha256-" + "a" * 64, family="whisper", base="/models/tiny", kind="full", where="/models/tiny")
    tuned = replace(base, id="sha256-" + "b" * 64, base=base.id, run="r")
    again = replace(base, id="sha256-" + "c" * 64, base=tuned.id, run="s")
    assert _name(base, {}, None) == "tiny"
    assert _name(tuned, {}, base) == "tiny, fine-tuned (bbbbbbbbbbbb)"
    assert _name(again, {}, tuned) == "fine-tuned again (cccccccccccc)"
    assert _name(again, {}, replace(tuned, name="ann")) == "ann, fine-tuned (cccccccccccc)"
    named = replace(tuned, name="ann")
    assert _name(named, {}, base) == "ann"
    assert _name(named, {"champion": named.id}, base) == "champion (ann)"
    assert _name(tuned, {"champion": tuned.id}, base) == "champion (bbbbbbbbbbbb)"


def test_the_sound_is_the_clips(made: tuple[Path, Path]) -> None:
    sounds = [str(attrs["src"]) for attrs in Page(made[1].read_text()).all("audio")]
    assert len(sounds) == len(set(sounds)) == 6  # three wrong now, and three that got better
    for uri in sounds:
        samples, rate = soundfile.read(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
        assert len(samples) / rate == pytest.approx(1.0, abs=0.1)


def test_the_sound_is_bounded_and_what_is_missing_said(made: tuple[Path, Path]) -> None:
    folder, _ = made
    with open_loop(folder / "ws") as ws:
        found = evaluate(ws, str(folder / "challenger"))
        rows = [row.utterance for row in scored_rows(ws, found)]
        first = Sounds(ws).uri(rows[0])
        assert first
        sounds = Sounds(ws, max_bytes=len(first) + 10)
        assert sounds.uri(rows[0]) == first
        assert sounds.uri(rows[0]) is None  # once is enough
        assert sounds.uri(rows[1]) is None
        assert sounds.left_out == 1
        assert Sounds(ws, wanted=False).uri(rows[0]) is None
        unknown = Sounds(ws)
        assert unknown.uri("sha256-00:0-16000") is None
        assert unknown.missing == 1
        again = report.write(ws, found, folder / "silent.html", audio=False)
        assert Page(again.file.read_text()).all("audio") == []


def test_a_forecast_of_the_dataset_is_drawn(made: tuple[Path, Path]) -> None:
    folder, _ = made
    with open_loop(folder / "ws") as ws:
        found = evaluate(ws, str(folder / "challenger"))
        at = [
            {"clips": clips, "wer": wer, "low": wer - 0.05, "high": wer + 0.05} for clips, wer in ((8, 0.4), (16, 0.3))
        ]
        curve = {"measured": at, "forecast": [at[1] | {"clips": 32, "wer": 0.2}], "usable": True}
        kept = ws.runs / "forecast-1" / forecast.FORECAST
        kept.parent.mkdir(parents=True)
        said = {
            "dataset": found.dataset,
            "sentences": [f"{NASTY} would bring less."],
            "recipe": "quick",
            "split": "val",
        }
        kept.write_text(json.dumps(said | {"curve": curve, "seeds": 3, "steps": 120, "utterances": 12}))
        written = report.write(ws, found, folder / "forecast.html", audio=False)
    page = Page(written.file.read_text())
    assert f"{NASTY} would bring less." in page.text
    assert "forecast: 32 clips, 20.0 %" in page.text
    assert "measured: 16 clips, 30.0 %" in page.text


def test_a_place_that_cannot_be_written_is_refused(made: tuple[Path, Path]) -> None:
    folder, _ = made
    with open_loop(folder / "ws") as ws:
        found = evaluate(ws, str(folder / "challenger"))
        with pytest.raises(UsageError, match=r"is a folder: name a file"):
            report.write(ws, found, folder)
        with pytest.raises(UsageError, match=r"does not exist: create it"):
            report.write(ws, found, folder / "nowhere" / "report.html")


def test_from_the_command_line(made: tuple[Path, Path]) -> None:
    folder, _ = made
    arguments = ["-C", str(folder / "ws"), "model", "compare", str(folder / "challenger"), str(folder / "champion")]
    run = CliRunner().invoke(app, [*arguments, "--report", str(folder / "cli.html"), "--no-audio"])
    assert run.exit_code == 0, run.output
    assert "-5.0 points" in run.output
    assert "Utterances: 3 better, 0 worse, 9 unchanged." in run.output
    assert "[-the-] {+thex+}" in run.output or "{+" in run.output
    assert "report:" in run.output
    assert Page((folder / "cli.html").read_text()).all("audio") == []
    as_json = CliRunner().invoke(app, [*arguments, "--json"])
    found = json.loads(as_json.stdout)
    assert len(found["better"]) == 3
    assert found["better"][0]["after"]["errors"] < found["better"][0]["before"]["errors"]
    assert {one["by"] for one in found["slices"]} == {"speaker", "language"}
    wrong = CliRunner().invoke(app, [*arguments, "--report", str(folder)])
    assert wrong.exit_code == 2


# Charts --------------------------------------------------------------------------------------------------------------


def test_a_bar_is_in_proportion_and_names_itself() -> None:
    drawn = Page(str(bar(0.25, 0.2, 0.5, top=0.5, color=1, label=f"{NASTY}: 25 %")))
    track, fill = drawn.all("rect")
    assert (track["width"], fill["width"]) == ("100%", "50.00%")
    whisker = drawn.all("line")[0]
    assert (whisker["x1"], whisker["x2"]) == ("40.00%", "100.00%")
    assert drawn.all("svg")[0]["aria-label"] == f"{NASTY}: 25 %"


def test_a_plot_of_many_points_stays_small_and_of_none_is_empty() -> None:
    many = Line(name="loss", points=[Point(x=n, y=1 / (n + 1)) for n in range(10_000)])
    drawn = plot([many], label="loss", x_name="steps", y=str)
    assert len(str(drawn)) < 60_000
    assert "steps" in Page(str(drawn)).text
    assert Page(str(plot([Line(name="none", points=[])], label="none", x_name="steps", y=str))).all("circle") == []


numbers = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.just(0.0),
    st.floats(0, 5),
    st.sampled_from([1e-300, 1e308, -1.0]),
)
curves = st.lists(
    st.builds(
        Point,
        x=st.one_of(st.integers(0, 10_000), numbers),
        y=numbers,
        low=st.none() | numbers,
        high=st.none() | numbers,
    ),
    max_size=30,
)


def drawn_within(page: Page, height: float) -> None:
    """Every place is a number, and lies in the picture."""
    for _, attrs in page.tags:
        for name in ("x", "x1", "x2", "cx", "width"):
            assert attrs.get(name) is None or 0 <= float(str(attrs[name]).rstrip("%")) <= 100
        for name in ("y1", "y2", "cy"):
            assert attrs.get(name) is None or 0 <= float(str(attrs[name])) <= height


@given(st.lists(curves, max_size=3))
@settings(deadline=None)
def test_any_curve_can_be_drawn(lines: list[list[Point]]) -> None:
    drawn = plot(
        [Line(name=str(number), points=points) for number, points in enumerate(lines)],
        label="l",
        x_name="steps",
        y=percent,
    )
    page = Page(str(drawn))
    drawn_within(page, 250)
    kept = [point for points in lines for point in points if math.isfinite(point.x) and abs(point.y) < 1e15]
    assert len(page.all("circle")) == len(kept)
    assert not re.search(r"nan|inf", str(drawn))


@given(numbers, st.none() | numbers, st.none() | numbers, numbers)
def test_any_bar_can_be_drawn(value: float, low: float | None, high: float | None, top: float) -> None:
    drawn_within(Page(str(bar(value, low, high, top=top, color=0, label="l"))), 20)


def test_a_model_without_errors_at_every_step_has_a_curve() -> None:
    perfect = [Point(x=step, y=0.0) for step in (0, 20, 40)]
    page = Page(str(plot([Line(name="WER", points=perfect)], label="l", x_name="steps", y=percent)))
    assert {dot["cy"] for dot in page.all("circle")} == {"224.0"}  # on the line of 0 %
    assert "100.0 %" in page.text


def test_a_rate_above_all_words_is_said_in_words_that_make_sense() -> None:
    scores = {"wer": 1.305, "substitutions": 40, "deletions": 3, "insertions": 218, "words": 200}
    told = rate_in_words(scores)
    assert told.startswith(
        "word error rate (WER): more errors (261) than reference words (200), since 218 words were inserted"
    )
    assert rate_in_words(scores | {"wer": 1.0}) == "word error rate (WER)"
