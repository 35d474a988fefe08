"""The interactive review: single keys decide, texts are edited in place, undo takes back, leaving loses nothing."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from tests.unit.speech import add_utterance
from voxloop.cli.reviewing import Reviewing, marked
from voxloop.cli.screen import clock
from voxloop.pipeline import open_loop
from voxloop.records import Utterance
from voxloop.steps import review
from voxloop.steps.review import Filters
from voxloop.workspace import Workspace

ENTER, CTRL_C, CTRL_U = "\r", "\x03", "\x15"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def reviewed(ws: Workspace, keys: str, *, by: str = "ann", where: Filters | None = None, **given: object) -> str:
    """What the screen said while these keys were pressed."""
    screen = StringIO()
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text(keys)
        console = Console(file=screen, width=80)
        session = Reviewing(ws=ws, by=by, where=where or Filters(), console=console, **{"play": None, **given})  # type: ignore[arg-type]
        session.run()
    return screen.getvalue()


def texts(ws: Workspace) -> dict[str, str]:
    """The references by the recording's name."""
    items = review.page(ws).items
    return {
        item.utterance.recording.removeprefix("sha256-"): item.reference.text
        for item in items
        if item.reference is not None
    }


def test_each_utterance_is_decided_by_a_key(workspace: Workspace) -> None:
    for name, confidence in (("a", 0.1), ("b", 0.2), ("c", 0.3), ("d", 0.4)):
        add_utterance(workspace, name, heard=f"text {name}", confidence=confidence, speaker="eve", language="en")
    said = reviewed(workspace, f"ae{CTRL_U}better{ENTER}rnoise{ENTER}sq")
    assert texts(workspace) == {"a": "text a", "b": "better"}
    assert "accepted: text a" in said
    assert "saved: better" in said
    assert "rejected: noise" in said
    assert "4 decisions in this session; 2 of 4 utterances reviewed" in said
    states = {item.utterance.recording: item.utterance.status for item in review.page(workspace).items}
    assert states == {"sha256-a": "reviewed", "sha256-b": "reviewed", "sha256-c": "rejected", "sha256-d": "transcribed"}
    assert all(decision.by == "ann" for id in states for decision in review.history(workspace, id))


def test_a_file_is_named_with_the_time_in_it(workspace: Workspace) -> None:
    add_utterance(workspace, "talk", heard="one", speaker="eve", language="en", duration=2.5, parts=3)
    said = reviewed(workspace, "nnq")
    assert "talk  0:00.0-0:02.5 (2.5 s)  speaker eve  en  confidence 90.0 %" in said
    assert "0:05.0-0:07.5" in said
    assert "sha256" not in said


@pytest.mark.parametrize(
    ("at", "shown"), [(0, "0:00.0"), (59.96, "1:00.0"), (3599.94, "59:59.9"), (3725.5, "1:02:05.5")]
)
def test_times_read_as_a_player_shows_them(at: float, shown: str) -> None:
    assert clock(round(16_000 * at)) == shown


def test_what_is_passed_by_comes_again_and_is_given_back(workspace: Workspace) -> None:
    for name, confidence in (("a", 0.1), ("b", 0.2)):
        add_utterance(workspace, name, heard=f"text {name}", confidence=confidence)
    said = reviewed(workspace, "nnaq")
    assert [line for line in said.splitlines() if line.startswith("text")] == ["text a", "text b", "text a", "text b"]
    assert texts(workspace) == {"a": "text a"}
    assert review.held(workspace) == []


def test_undo_hands_the_last_decision_back(workspace: Workspace) -> None:
    for name, confidence in (("a", 0.1), ("b", 0.2)):
        add_utterance(workspace, name, heard=f"text {name}", confidence=confidence)
    said = reviewed(workspace, f"uaue{CTRL_U}other{ENTER}q")
    assert "nothing to undo in this session" in said
    assert texts(workspace) == {"a": "other"}
    assert review.held(workspace) == []


def test_an_edit_or_a_reason_may_be_abandoned(workspace: Workspace) -> None:
    (id,) = add_utterance(workspace, "a", heard="text a")
    said = reviewed(workspace, f"e{CTRL_C}r{CTRL_C}r{ENTER}e{CTRL_U}{ENTER}q")
    assert review.history(workspace, id) == []
    assert "text is empty" in said


def test_nobody_elses_text_is_replaced_unseen(workspace: Workspace) -> None:
    (id,) = add_utterance(workspace, "a", heard="text a")

    @contextmanager
    def meanwhile(utterance: Utterance) -> Iterator[None]:
        if not texts(workspace):
            review.save(workspace, id, "eve's text", by="eve", seen="")
        yield

    said = reviewed(workspace, "aq", play=meanwhile)
    assert "changed while you were reviewing it" in said
    assert texts(workspace) == {"a": "eve's text"}


def test_sound_begins_with_each_utterance_and_ends_with_its_decision(workspace: Workspace) -> None:
    (first,) = add_utterance(workspace, "a", heard="text a", confidence=0.1)
    (second,) = add_utterance(workspace, "b", heard="text b", confidence=0.2)
    heard: list[str] = []

    @contextmanager
    def play(utterance: Utterance) -> Iterator[None]:
        heard.append(f"play {utterance.id}")
        yield
        heard.append("stop")

    reviewed(workspace, "p aq", play=play)
    assert heard == [f"play {first}", "stop"] * 3 + [f"play {second}", "stop"]
    heard.clear()
    reviewed(workspace, "q", play=play, autoplay=False)
    assert heard == []


def test_words_that_the_model_was_unsure_of_are_marked(workspace: Workspace) -> None:
    from dataclasses import replace

    from voxloop.records import Word

    add_utterance(workspace, "a", heard="the cat the mat")
    item = review.page(workspace).items[0]
    assert item.hypothesis is not None
    words = tuple(
        Word(text=text, start=0.0, end=1.0, probability=chance)
        for text, chance in (("the", 0.9), ("cat", 0.2), ("the", 0.3), ("mat", 0.9))
    )
    text = marked(replace(item, hypothesis=replace(item.hypothesis, words=words)))
    assert [text.plain[span.start : span.end] for span in text.spans] == ["cat", "the"]
    assert text.spans[1].start == 8


def test_a_session_in_a_real_terminal(tmp_path: Path) -> None:
    """The command itself, in a terminal of its own: keys go in, decisions come out, Ctrl-C leaves in order."""
    with open_loop(tmp_path / "ws", create=True) as ws:
        for name, confidence in (("a", 0.1), ("b", 0.2)):
            add_utterance(ws, name, heard=f"text {name}", confidence=confidence)
    command = [
        sys.executable,
        "-c",
        "from voxloop.cli import main; main()",
        "-C",
        str(tmp_path / "ws"),
        "review",
        "--by",
        "ann",
        "--no-play",
    ]
    pid, terminal = pty.fork()
    if pid == 0:
        # Nobody here answers where the cursor is.
        os.execve(sys.executable, command, os.environ | {"PROMPT_TOOLKIT_NO_CPR": "1", "COLUMNS": "80"})
    screen = ""

    def wait_for(pattern: str) -> None:
        nonlocal screen
        end = time.monotonic() + 60
        while not re.search(pattern, screen):
            ready, _, _ = select.select([terminal], [], [], max(0.0, end - time.monotonic()))
            assert ready, screen
            try:
                screen = ESCAPES.sub("", screen + os.read(terminal, 4096).decode(errors="replace"))
            except OSError:  # Linux: the other side has closed
                assert re.search(pattern, screen), screen
                return

    try:
        wait_for(r"text a[\s\S]*uit")
        os.write(terminal, b"a")
        wait_for(r"accepted: text a[\s\S]*text b[\s\S]*uit")
        os.write(terminal, b"\x03")
        wait_for("1 decision in this session")
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        pid = 0
    finally:
        os.close(terminal)
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    with open_loop(tmp_path / "ws") as ws:
        assert texts(ws) == {"a": "text a"}
        assert review.held(ws) == []
