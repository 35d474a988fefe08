"""The interactive `voxloop review`: play an utterance, correct its text and move on, with single keys."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prompt_toolkit import PromptSession
from prompt_toolkit.key_binding import KeyBindings
from rich.console import Console
from rich.text import Text

from voxloop.cli.screen import clock, counted, percent
from voxloop.errors import ConflictError, UsageError, VoxloopError
from voxloop.records import Recording
from voxloop.steps import review

if TYPE_CHECKING:
    from prompt_toolkit.key_binding.key_processor import KeyPressEvent

    from voxloop.records import Transcript, Utterance
    from voxloop.steps.review import Filters, Item
    from voxloop.workspace import Workspace

UNSURE = 0.5  # words with a lower probability are underlined
KEYS = {
    "p": "play",
    "a": "accept",
    "e": "edit",
    "r": "reject",
    "s": "skip",
    "u": "undo",
    "n": "next",
    "q": "quit",
}
ALSO = {"space": "play", "enter": "accept", "c-c": "quit", "c-d": "quit"}

Play = Callable[["Utterance"], AbstractContextManager[None]]
"""Starts playing an utterance; leaving the context stops it."""


@dataclass(kw_only=True, slots=True)
class Reviewing:
    """One person's review session at a terminal. Every decision is saved at once."""

    ws: Workspace
    by: str
    where: Filters
    play: Play | None = None  # None: this machine cannot play sound
    autoplay: bool = True
    console: Console = field(default_factory=Console)
    decided: list[str] = field(default_factory=list)  # utterances decided in this session, for undo
    passed: list[str] = field(default_factory=list)  # passed over undecided, reserved until the session ends
    _keys: PromptSession[str] = field(init=False)
    _line: PromptSession[str] = field(init=False)
    _playing: AbstractContextManager[None] = field(init=False, default_factory=nullcontext)

    def __post_init__(self) -> None:
        self._keys = PromptSession(key_bindings=_bindings(), erase_when_done=True)
        self._line = PromptSession()

    def run(self) -> int:
        """Review until the queue is empty or the reviewer quits. Return the number of decisions that stand."""
        try:
            while (item := self._next()) is not None:
                if not self._decide(item):
                    break
        finally:
            self._stop()
            self._give_back()
        self._say_end()
        return len(self.decided)

    def _next(self) -> Item | None:
        turn = review.next(self.ws, by=self.by, where=self.where)
        if turn is None and self.passed:
            self._give_back()
            turn = review.next(self.ws, by=self.by, where=self.where)
        return turn.item if turn else None

    def _give_back(self) -> None:
        """Release the utterances that were passed over without a decision."""
        while self.passed:
            review.release(self.ws, self.passed.pop(), by=self.by)

    def _decide(self, item: Item) -> bool:
        """Show one utterance and handle keys until it is decided. Return False if the reviewer quits."""
        self._show(item)
        if self.autoplay:
            self._start(item.utterance)
        while True:
            key = self._keys.prompt(_legend(can_play=self.play is not None))
            try:
                if key == "play":
                    self._start(item.utterance)
                elif key in ("next", "quit"):
                    self.passed.append(item.utterance.id)
                    return key == "next"
                elif key == "undo":
                    if (back := self._undo()) is not None:
                        self.passed.append(item.utterance.id)
                        return self._decide(back)
                elif self._carry_out(key, item):
                    self.decided.append(item.utterance.id)
                    return True
            except ConflictError as error:
                self.console.print(Text(str(error), style="yellow"))
                item = review.show(self.ws, item.utterance.id)
                self._show(item)
            except UsageError as error:
                self.console.print(Text(str(error), style="yellow"))

    def _carry_out(self, key: str, item: Item) -> bool:
        """Save one decision. Return False if the reviewer cancels."""
        id, seen = item.utterance.id, item.version
        if key == "accept" and item.reference is not None:
            # The text shown is a person's. Accepting it saves it under this reviewer's name.
            self._kept("kept", review.save(self.ws, id, item.reference.text, by=self.by, seen=seen))
        elif key == "accept":
            shown = item.hypothesis.id if item.hypothesis else None
            self._kept("accepted", review.accept(self.ws, id, by=self.by, seen=seen, transcript=shown))
        elif key == "edit":
            text = self._asked("text: ", item.text)
            if text is None:
                return False
            self._kept("saved", review.save(self.ws, id, text, by=self.by, seen=seen))
        elif key == "reject":
            reason = self._asked("reason: ", "")
            if not reason:
                return False
            review.reject(self.ws, id, reason=reason, by=self.by, seen=seen)
            self._say("rejected", reason)
        else:
            review.skip(self.ws, id, by=self.by)
            self._say("skipped", "comes back later")
        return True

    def _undo(self) -> Item | None:
        """Undo the last decision of this session and return its utterance."""
        if not self.decided:
            self.console.print(Text("nothing to undo in this session", style="yellow"))
            return None
        id = self.decided[-1]
        review.undo(self.ws, id, by=self.by)
        self.decided.pop()
        self._say("undone", "decide again")
        return review.show(self.ws, id)

    def _asked(self, message: str, default: str) -> str | None:
        """Let the reviewer edit a line in place. Return None if they cancel with Ctrl-C."""
        try:
            return self._line.prompt(message, default=default).strip()
        except (KeyboardInterrupt, EOFError):
            return None

    # Sound -----------------------------------------------------------------------------------------------------------

    def _start(self, utterance: Utterance) -> None:
        self._stop()
        if self.play is None:
            return
        try:
            playing = self.play(utterance)
            playing.__enter__()
        except VoxloopError as error:
            self.console.print(Text(str(error), style="yellow"))
            self.play = None
        else:
            self._playing = playing

    def silence(self, error: VoxloopError) -> None:
        """Review on without sound: nothing here could play it."""
        if self.play is not None:
            self.play = None
            self.console.print(Text(f"without sound: {error}", style="yellow"))

    def _stop(self) -> None:
        playing, self._playing = self._playing, nullcontext()
        playing.__exit__(None, None, None)

    # The screen ------------------------------------------------------------------------------------------------------

    def _show(self, item: Item) -> None:
        self.console.print()
        self.console.print(heading(self.ws, item))
        for warning in item.warnings:
            self.console.print(Text(f"{warning.kind}: {warning.detail}", style="yellow"))
        self.console.print(marked(item))

    def _kept(self, what: str, saved: Transcript) -> None:
        self._say(what, saved.text)

    def _say(self, what: str, detail: str) -> None:
        self._stop()
        self.console.print(Text.assemble((what, "green"), ": ", detail))

    def _say_end(self) -> None:
        found = review.stats(self.ws)
        self.console.print(
            f"{counted(len(self.decided), 'decision')} in this session; {found.reviewed:,} of "
            f"{counted(found.utterances, 'utterance')} reviewed ({percent(found.share)}), {found.waiting:,} waiting"
        )


def _bindings() -> KeyBindings:
    """Bind the single keys that act at once. Every other key does nothing."""
    bindings = KeyBindings()

    def answering(action: str) -> Callable[[KeyPressEvent], None]:
        return lambda event: event.app.exit(result=action)

    for key, action in (KEYS | ALSO).items():
        bindings.add(key, eager=True)(answering(action))
    bindings.add("<any>")(lambda event: None)
    return bindings


def _legend(*, can_play: bool) -> str:
    return " ".join(f"[{key}]{action[1:]}" for key, action in KEYS.items() if can_play or action != "play") + " "


def heading(ws: Workspace, item: Item) -> Text:
    """An utterance's heading: file name, position, length, speaker, language, confidence."""
    found = item.utterance
    with ws.read() as reader:
        name = reader.get(Recording, found.recording).name
    parts = [f"{clock(found.start)}-{clock(found.end)} ({found.duration:.1f} s)"]
    parts += [f"speaker {found.speaker}"] if found.speaker else []
    parts += [found.language] if found.language else []
    if item.reference is not None:
        parts.append(f"text by {item.reference.by}")
    elif item.hypothesis is not None and item.hypothesis.confidence is not None:
        parts.append(f"confidence {percent(item.hypothesis.confidence)}")
    return Text.assemble((name, "bold"), "  ", "  ".join(parts))


def marked(item: Item) -> Text:
    """The current text. In a hypothesis, words that the model was unsure of are underlined."""
    text = Text(item.text or "(no text)", style="" if item.text else "dim")
    if item.reference is None and item.hypothesis is not None:
        place = 0
        for word in item.hypothesis.words:
            said = word.text.strip()
            at = item.text.find(said, place) if said else -1
            if at < 0:  # the clean text spells this word differently
                continue
            place = at + len(said)
            if word.probability < UNSURE:
                text.stylize("underline yellow", at, place)
    return text
