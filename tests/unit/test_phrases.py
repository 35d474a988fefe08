"""Phrases to read: lists, what is left of them for a speaker, and a choice of what a model would learn most from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.unit.speech import add_utterance
from voxloop.errors import UsageError
from voxloop.speech.text import normalise
from voxloop.steps import captures, phrases, review, vocabulary
from voxloop.steps.captures import Source
from voxloop.steps.recordings.conversion import of_waveform
from voxloop.workspace import Workspace


def read(ws: Workspace, phrase: str, *, speaker: str = "ann", language: str = "en", seconds: float = 2.0) -> str:
    """Keep a take of a phrase; return its recording."""
    noise = np.random.default_rng(abs(hash((phrase, speaker)))).normal(0, 0.1, int(seconds * 16_000))
    return captures.keep(
        ws,
        of_waveform(noise.astype(np.float32)),
        place=Path("record") / "take.wav",
        speaker=speaker,
        language=language,
        text=captures.Text(text=phrase, by=speaker, reviewed=True),
        source=Source(client="ann", phrase=phrase),
    ).recording


def left(ws: Workspace, source: phrases.Source, *, speaker: str = "ann", **more: object) -> list[str]:
    found = phrases.next_phrases(ws, speaker=speaker, language="en", source=source, **more)  # type: ignore[arg-type]
    return [one.text for one in found.phrases]


@pytest.mark.parametrize("language", phrases.languages())
def test_bundled_phrases_cover_the_letters_and_have_gaps_for_words(language: str) -> None:
    found = phrases.bundled(language)
    assert len(found.phrases) == len(set(found.phrases)) >= 40
    assert all(len(one) <= phrases.LONGEST for one in found.phrases)
    assert all(one.count("{}") == 1 for one in found.carriers)
    said = set(normalise(" ".join(found.phrases), language).replace(" ", ""))
    own = {"en": "abcdefghijklmnopqrstuvwxyz", "vi": "aăâbcdđeêghiklmnoôơpqrstuưvxyàảãáạềểễếệờởỡớợ"}[language]
    assert set(own) <= said


def test_lists_are_tidied_kept_in_order_and_replaced(each_workspace: Workspace) -> None:
    ws = each_workspace
    assert phrases.own(ws, "en") == []
    kept = phrases.keep_list(ws, ["  two\twords ", "", "one", "two words"], language="English", by="bob")
    assert kept == phrases.own(ws, "en") == ["two words", "one"]
    assert phrases.own_languages(ws) == ["en"]
    assert phrases.keep_list(ws, ["three"], language="en", by="bob") == phrases.own(ws, "en") == ["three"]
    for wrong in ("x" * 301, "a\x00b"):
        with pytest.raises(UsageError, match="no phrase to read"):
            phrases.keep_list(ws, [wrong], language="en", by="bob")
    assert phrases.own(ws, "en") == ["three"]
    with pytest.raises(UsageError):
        phrases.keep_list(ws, ["x"], language="", by="bob")
    assert phrases.keep_list(ws, [], language="en", by="bob") == phrases.own_languages(ws) == []


def test_what_a_speaker_has_read_does_not_come_again(each_workspace: Workspace) -> None:
    ws = each_workspace
    phrases.keep_list(ws, ["one", "two", "three", "four"], language="en", by="bob")
    assert left(ws, "own", count=2) == ["one", "two"]
    assert left(ws, "own", without=["one", "three"]) == ["two", "four"]
    first = read(ws, "one")
    read(ws, "two", seconds=3.0)
    read(ws, "two", speaker="bob")
    found = phrases.next_phrases(ws, speaker="ann", language="en", source="own")
    assert ([one.text for one in found.phrases], found.recorded, found.total) == (["three", "four"], 2, 4)
    assert found.seconds == 5.0
    assert left(ws, "own", speaker="bob") == ["one", "three", "four"]
    # What is rejected or deleted in the review is to be read again.
    for kind in ("delete", "reject"):
        (entry,) = [one for one in review.entries(ws).entries if one.item.utterance.recording == first]
        id, seen = entry.item.utterance.id, entry.item.state
        if kind == "delete":
            review.delete(ws, id, by="bob", seen=seen)
        else:
            review.reject(ws, id, by="bob", seen=seen, reason="noise")
        assert left(ws, "own") == ["one", "three", "four"]
        review.undo(ws, id, by="bob")
    assert left(ws, "own") == ["three", "four"]


def test_own_words_and_misheard_ones_come_first_then_what_is_new(workspace: Workspace) -> None:
    ws = workspace
    vocabulary.add(ws, ["Voxloop", "Kubernetes cluster"])
    for number, said in enumerate(["the quiche is cold", "a quiche for two", "more quiche please", "good night"]):
        add_utterance(ws, f"{number}", heard=said.replace("quiche", "keys"), duration=2.0)
        review.save(ws, f"sha256-{number}:0-32000", said, by="bob")
    mine = ["Restart the Kubernetes cluster now.", "yes yes yes yes", "A zebra quickly jumped over five vexing dwarfs."]
    phrases.keep_list(ws, mine, language="en", by="bob")
    found = phrases.next_phrases(ws, speaker="ann", language="en", source="chosen", count=6)
    reasons = {one.text: one.reason for one in found.phrases}
    texts = list(reasons)
    assert reasons[mine[0]] == "“Kubernetes cluster” is in your vocabulary"
    # No phrase has these words, so that they come in sentences with a gap.
    (carried,) = [one for one in texts if "Voxloop" in one]
    (mended,) = [one for one in texts if "quiche" in one]
    assert carried.replace("Voxloop", "{}") in phrases.bundled("en").carriers
    assert reasons[mended] == "“quiche” is often misheard"
    assert max(texts.index(mine[0]), texts.index(carried)) < 2
    assert "yes yes yes yes" not in texts
    assert "new words and sounds" in reasons.values()
    for one in (mine[0], carried, mended):
        read(ws, one)
    # Once they are read, they do not come before everything any more, and not in the same sentences.
    again = left(ws, "chosen", count=6)
    assert not {mine[0], carried, mended} & set(again)
    assert sum(any(word in one for word in ("Kubernetes", "Voxloop", "quiche")) for one in again) <= 3
    assert found.total >= 40


def test_a_language_without_a_list_has_words_alone(workspace: Workspace) -> None:
    vocabulary.add(workspace, ["Grüß Gott"], language="de")
    found = phrases.next_phrases(workspace, speaker="ann", language="de", source="chosen")
    assert [one.text for one in found.phrases] == ["Grüß Gott"]
    assert phrases.next_phrases(workspace, speaker="ann", language="de", source="bundled").phrases == ()
