"""Val during training: its clips heard as in serving, through the voice detector, with the workspace's decoding.

A model is heard in one of two ways. *As served* gives the texts that `evaluate` would store for it; the base and the
model that is kept are compared this way. *In passing* is what the steps and blends of a run are ranked by: greedy,
without fall-back temperatures and, where serving takes 30 s, at the adaptive context, which costs a third. Doubtful
clips are heard again at 30 s there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxloop.families.decoding import Decoding
from voxloop.settings import Settings
from voxloop.speech import text as _text
from voxloop.steps import datasets, hearing
from voxloop.steps.training.batches import ClipRow, read_rows
from voxloop.steps.utterances import heard_spans

if TYPE_CHECKING:
    from voxloop.families.contract import Recogniser, Waveform
    from voxloop.families.decoding import Context
    from voxloop.steps.utterances import Span
    from voxloop.workspace import Workspace

DETECTION = ("vad_threshold", "vad_min_silence_ms", "vad_pad_ms")  # the settings that say where speech is
FELL_BACK = {"repetition", "low probability"}  # guards that have a clip decoded again at a higher temperature


def write_val(ws: Workspace, dataset: str, manifest: Path) -> Path:
    """Write a dataset's val split with the sound that a model is given: margins included.

    `whole` marks recordings in which the detector has yet to find the speech.
    """
    rows = datasets.rows(ws, dataset, "val")
    found = heard_spans(ws, rows)
    wider = [replace(row, start=start, end=end) for row, ((start, end), _) in zip(rows, found, strict=True)]
    whole = {row.utterance for row, (_, is_whole) in zip(rows, found, strict=True) if is_whole}
    return datasets.write_rows(ws, wider, manifest, whole=whole)


def as_served(ws: Workspace, decoding: Decoding) -> dict[str, Any]:
    """The field `hearing` of `TrainingConfig`: how the workspace hears now."""
    return {"decoding": decoding.as_dict()} | {name: getattr(ws.settings, name) for name in DETECTION}


def val_rows(manifest: Path, most: int) -> list[ClipRow]:
    """The val clips to evaluate on, at most so many: the same ones every time."""
    rows = sorted(read_rows(manifest), key=lambda row: row.id) if manifest.exists() else []
    step = max(1, math.ceil(len(rows) / most))
    return rows[::step]


@dataclass(frozen=True, slots=True)
class Clip:
    """Sound of a val clip, or of several joined, with what is said in it."""

    waveform: Waveform
    text: str
    language: str | None
    whole: bool = False  # the detector has yet to find the speech in it


@dataclass(frozen=True, slots=True)
class Errors:
    """What a model got wrong."""

    words: _text.ErrorCounts
    characters: _text.ErrorCounts
    served: bool  # heard as served; or in passing, with texts that serving would have written as well


class Validation:
    """Val's clips, which models in training are made to hear."""

    def __init__(
        self, clips: Sequence[Clip], told: Mapping[str, Any], changes: _text.Changes, *, short_context: bool
    ) -> None:
        """`told` is what `as_served` returned; empty: clips are decoded greedily, as they are.

        `short_context` says whether the models can hear less than 30 s.
        """
        self.clips = clips
        self.decoding = Decoding.from_dict(told["decoding"]) if told else Decoding()
        self.settings = Settings(**{name: told[name] for name in DETECTION if told})
        self.changes = changes
        self.short_context = short_context
        self._spans: dict[Context, list[list[Span]]] = {}

    def errors(
        self, recogniser: Recogniser, context: Context | None, *, served: bool, clips: Sequence[Clip] | None = None
    ) -> Errors:
        """Word and character errors of a model on val's clips, or on others that need no detector.

        `context` is the one that the model was tuned at; None: its config says so.
        """
        decoding, same = self._decoding(recogniser, context, served=served)
        spans = self._cut(recogniser, decoding) if clips is None else [[(0, len(clip.waveform))] for clip in clips]
        clips = self.clips if clips is None else clips
        words: list[_text.ErrorCounts] = []
        characters: list[_text.ErrorCounts] = []
        for language in sorted({clip.language for clip in clips}, key=str):
            mine = [index for index, clip in enumerate(clips) if clip.language == language]
            heard = hearing.hear_files(
                recogniser,
                [clips[index].waveform for index in mine],
                replace(decoding, language=language or decoding.language),
                self.settings,
                spans=[spans[index] for index in mine],
            )
            same = same and not any(FELL_BACK.intersection(one.hypothesis.guards) for one in heard)
            left = [_text.normalise(clips[index].text, language, self.changes) for index in mine]
            right = [_text.normalise(one.hypothesis.text, language, self.changes) for one in heard]
            words += _text.word_errors_each(left, right)
            characters += _text.character_errors_each(
                [_text.letters(one, language, self.changes) for one in left],
                [_text.letters(one, language, self.changes) for one in right],
            )
        return Errors(_text.total(words), _text.total(characters), served or same)

    def _decoding(self, recogniser: Recogniser, context: Context | None, *, served: bool) -> tuple[Decoding, bool]:
        """How to decode; and whether that gives the texts of serving where no guard fires."""
        asked = self.decoding
        if context is not None and asked.audio_context == "auto":
            asked = replace(asked, audio_context=context)
        if served:
            return asked, True
        usual = recogniser.context(asked.audio_context, asked.untuned)
        # Torch packs no windows: each clip would take one of 30 s.
        quick: Context = "adaptive" if usual in ("full", "packed") and self.short_context else usual
        guards = replace(asked.guards, temperatures=()) if asked.guards else None
        same = quick == usual and asked.beams == 1
        return replace(asked, audio_context=quick, guards=guards, beams=1), same

    def _cut(self, recogniser: Recogniser, decoding: Decoding) -> list[list[Span]]:
        """Spans of speech in every clip, found once for each way in which they are joined."""
        context = recogniser.context(decoding.audio_context, decoding.untuned)
        if context not in self._spans:
            whole = [index for index, clip in enumerate(self.clips) if clip.whole]
            found = hearing.cut([self.clips[index].waveform for index in whole], recogniser, decoding, self.settings)
            cut = dict(zip(whole, found, strict=True))
            self._spans[context] = [cut.get(index, [(0, len(clip.waveform))]) for index, clip in enumerate(self.clips)]
        return self._spans[context]
