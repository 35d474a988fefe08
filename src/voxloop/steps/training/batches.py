"""Batches: from a manifest's rows through buckets of similar length to tensors.

An epoch contains every clip once, alone or in a string of several. Batches contain
clips of similar length, as many as fit into a budget of padded seconds. The order
and augmentation of clips follow from the seed, the epoch and the clip, so that a
resumed run continues exactly where it stopped.
"""

from __future__ import annotations

import json
import random
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from voxloop.errors import TrainingError
from voxloop.families.contract import require, words_alone
from voxloop.records import MAX_UTTERANCE_S, SAMPLE_RATE
from voxloop.steps.datasets import lhotse_cut
from voxloop.steps.training import augment, packing
from voxloop.steps.training.packing import Window

if TYPE_CHECKING:
    import torch
    from torch.utils.data import DataLoader

    from voxloop.families.contract import Family, Segment, Trainable, Waveform
    from voxloop.steps.training.recipes import Recipe

CACHE_S = 4 * 3600.0  # seconds of audio held in memory: 920 MB; more is read from disk each time
CLIPS_PER_BUCKET = 16  # with fewer, buckets stay half empty
MOST_BUCKETS = 10
FLOOR_BINS = (0.5, 0.75, 1.0)  # bounds of the buckets where there is a floor, as shares of it
SILENCE = "silence"  # what the ids of clips without speech begin with
SHORTEST_SILENCE_S = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipRow:
    """One line of a manifest: a clip and its text."""

    id: str
    path: Path
    text: str
    duration: float  # seconds
    speaker: str | None
    language: str | None
    whole: bool = False  # a whole recording, of which a model is given what the voice detector finds


def read_rows(manifest: Path) -> list[ClipRow]:
    """The rows of `<split>.jsonl`; audio paths are relative to its folder. Raises TrainingError."""
    rows = []
    for number, line in enumerate(manifest.read_bytes().splitlines(), 1):
        try:
            values = json.loads(line)
            rows.append(
                ClipRow(
                    id=str(values.get("id") or values["audio_path"]),
                    path=manifest.parent / values["audio_path"],
                    text=values["text"],
                    duration=float(values["duration"]),
                    speaker=values.get("speaker"),
                    language=values.get("language"),
                    whole=bool(values.get("whole")),
                )
            )
        except (ValueError, KeyError, TypeError) as error:
            raise TrainingError(
                f"{manifest}, line {number}: expected JSON with audio_path, text and duration, found {line[:80]!r}"
            ) from error
    return rows


class Speech:
    """The clips of a manifest, cached in memory if they are few."""

    def __init__(self, rows: Sequence[ClipRow]) -> None:
        self.rows = list(rows)
        self.seconds = sum(row.duration for row in rows)
        self._by_id = {row.id: row for row in rows}
        self._cache: dict[str, Waveform] | None = {} if self.seconds <= CACHE_S else None

    def row(self, id: str) -> ClipRow:
        return self._by_id[id]

    def waveform(self, id: str) -> Waveform:
        """The clip's samples (S,)."""
        if self._cache is None:
            return read_wav(self._by_id[id].path)
        if id not in self._cache:
            self._cache[id] = read_wav(self._by_id[id].path)
        return self._cache[id]


def read_wav(path: Path) -> Waveform:
    """Samples (S,) of a 16 kHz mono file. Raises TrainingError."""
    import soundfile

    try:
        samples, rate = soundfile.read(path, dtype="float32")
    except (OSError, soundfile.LibsndfileError) as error:
        raise TrainingError(f"the training audio {path} cannot be read ({error}): start a new run") from error
    if rate != SAMPLE_RATE or samples.ndim != 1:
        raise TrainingError(
            f"{path} has {rate} Hz and shape {samples.shape}, but training needs mono audio at {SAMPLE_RATE} Hz"
        )
    return np.asarray(samples, dtype=np.float32)


def read_noises(folder: Path) -> list[Waveform]:
    """The noises of a run's folder, in the order of their names."""
    return [read_wav(path) for path in sorted(folder.glob("*.wav"))]


def lhotse_cuts(rows: Sequence[ClipRow]) -> dict[str, Any]:
    """The rows as Lhotse cuts, by id."""
    return {
        row.id: lhotse_cut(
            row.id, row.path, duration=row.duration, text=row.text, speaker=row.speaker, language=row.language
        )
        for row in rows
    }


# What an epoch hears -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Batch:
    """The input of one forward pass: windows, or Lhotse cuts (single clips, strings and silences)."""

    epoch: int
    index: int  # from 0 in each epoch
    cuts: tuple[Any, ...]
    at_least_s: float  # what shorter clips are filled up to with silence
    drawn: tuple[int, int]  # epoch and index of the batch that it is: its own, or those of the first time

    @property
    def clips(self) -> int:
        """Clips of the dataset, silences included."""
        return sum(len(cut.clips) if isinstance(cut, Window) else 1 for cut in self.cuts)


class Plan:
    """The endless sequence of batches of a run."""

    def __init__(
        self,
        rows: Sequence[ClipRow],
        recipe: Recipe,
        *,
        padded_s: Callable[[float, float], float],
        label_length: Callable[[str | Sequence[Segment], str | None], int],
        label_limit: int,
        earlier: Sequence[ClipRow] = (),
        time_stamps: bool = False,
    ) -> None:
        """`padded_s` maps a clip's length and its shortest input to its padded length, in seconds.

        `label_length` limits strings and windows; `time_stamps` says whether the model writes them. Every epoch
        replays the recipe's share of `earlier`, the base model's earlier training clips.
        """
        from lhotse.dataset.sampling.base import TimeConstraint
        from lhotse.dataset.sampling.dynamic_bucketing import estimate_duration_buckets

        class PaddedSeconds(TimeConstraint):  # type: ignore[misc]
            """Lhotse's budget, counted with the margin and the rounding that a clip gets."""

            def add(self, example: Any) -> None:
                takes_up = padded_s(example.duration, packing.context_s(recipe, example.duration))
                self.longest_seen: float = max(self.longest_seen, takes_up)
                self.num_cuts += 1

        if not rows:
            raise TrainingError(
                "the dataset's train split is empty, so there is nothing to train on: review more utterances"
            )
        self.rows = list(rows)
        self.recipe = recipe
        self.earlier = list(earlier)
        self.packed = recipe.audio_context == "packed"
        self.cuts = {} if self.packed else lhotse_cuts([*rows, *earlier])
        self.time_stamps = time_stamps
        self.label_length = label_length
        self.label_limit = label_limit
        self.constraint = PaddedSeconds(max_duration=recipe.batch_seconds)
        buckets = max(1, min(MOST_BUCKETS, len(rows) // CLIPS_PER_BUCKET))
        self.bins: list[float] = []
        if recipe.audio_context in ("packed", "floor"):
            # Clips that are fed the floor take up the same; of longer ones each second counts twice.
            self.bins = [step * recipe.context_floor_s for step in FLOOR_BINS]
        elif buckets > 1 and len({cut.duration for cut in self.examples(0)}) > buckets:
            self.bins = estimate_duration_buckets(
                self.examples(0), num_buckets=buckets, constraint=TimeConstraint(max_duration=1e9)
            )

    def batches(self, epoch: int = 0, index: int = 0) -> Iterator[Batch]:
        """An endless stream of batches, from the given one."""
        for current in count(epoch):
            for batch in self.epoch(current):
                if current > epoch or batch.index >= index:
                    yield batch

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch: every clip in exactly one of them.

        With `encoder_copies`, those of an earlier epoch in a different order.
        """
        copies = self.recipe.encoder_copies
        first = epoch % copies if copies else epoch
        batches = list(enumerate(self._sampled(first)))
        if first != epoch:
            random.Random(f"again {self.recipe.seed} {epoch}").shuffle(batches)
        for index, (number, (cuts, at_least_s)) in enumerate(batches):
            yield Batch(epoch, index, cuts, at_least_s, (first, number))

    def _sampled(self, epoch: int) -> Iterator[tuple[tuple[Any, ...], float]]:
        # Lhotse's DynamicBucketingSampler (1.33) may end an epoch while a bucket still holds clips: once no bucket is
        # full it draws from empty ones too. All clips are known here, so filling the buckets takes no sampler.
        buckets: list[list[Any]] = [[] for _ in range(len(self.bins) + 1)]
        for cut in self.examples(epoch):
            buckets[bisect_right(self.bins, cut.duration)].append(cut)
        batches = [batch for bucket in buckets if bucket for batch in self._within_budget(bucket)]
        random.Random(f"batches {self.recipe.seed} {epoch}").shuffle(batches)
        rng = random.Random(f"full length {self.recipe.seed} {epoch}")
        at_once = max(1, int(self.recipe.batch_seconds // MAX_UTTERANCE_S))
        trimmed = self.recipe.audio_context == "trimmed"
        for cuts in batches:
            if trimmed and rng.random() < self.recipe.full_length_share:
                # As many as the budget holds at 30 s each; the others are heard at their own length.
                yield cuts[:at_once], MAX_UTTERANCE_S
                if cuts[at_once:]:
                    yield cuts[at_once:], 0.0
            else:
                yield cuts, packing.context_s(self.recipe, max(cut.duration for cut in cuts))

    def _within_budget(self, cuts: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
        """The clips of a bucket in batches within the budget."""
        constraint = self.constraint.copy()
        constraint.reset()
        part: list[Any] = []
        for cut in cuts:
            constraint.add(cut)
            if part and constraint.exceeded():
                yield tuple(part)
                part = []
                constraint.reset()
                constraint.add(cut)
            part.append(cut)
        yield tuple(part)

    def examples(self, epoch: int) -> list[Any]:
        """The examples of one epoch, in random order: windows, or single clips and strings by one speaker."""
        rng = random.Random(f"order {self.recipe.seed} {epoch}")
        heard = [*self.rows, *self.again(epoch)]
        order = rng.sample(heard, len(heard))
        examples: list[Any] = []
        if self.packed:
            examples += packing.windows(
                order, self.recipe, rng, name=str(epoch), time_stamps=self.time_stamps, fits=self._fits
            )
            examples += self._silences(epoch, len(heard), max(row.duration for row in heard))
            rng.shuffle(examples)
            return examples
        waiting: dict[tuple[str | None, str | None], list[ClipRow]] = {}
        for row in order:
            if rng.random() < self.recipe.join_share and row.duration <= self.recipe.join_seconds / 2:
                waiting.setdefault((row.speaker, row.language), []).append(row)
            else:
                examples.append(self.cuts[row.id])
        for rows in waiting.values():
            while rows:
                wanted = rng.randint(2, self.recipe.join_clips)
                examples.append(self._string(rows, wanted, rng, f"{epoch}-{len(examples)}"))
        examples += self._silences(epoch, len(heard), max(cut.duration for cut in examples))
        rng.shuffle(examples)
        return examples

    def _silences(self, epoch: int, clips: int, longest_s: float) -> list[Any]:
        """The recipe's share of clips without speech, no longer than the longest clip."""
        from lhotse.cut import PaddingCut

        rng = random.Random(f"silence {self.recipe.seed} {epoch}")
        durations = [
            round(rng.uniform(SHORTEST_SILENCE_S, max(SHORTEST_SILENCE_S, longest_s)), 2)
            for _ in range(round(clips * self.recipe.silence_share))
        ]
        return [
            PaddingCut(
                id=f"{SILENCE}-{epoch}-{number}",
                duration=duration,
                sampling_rate=SAMPLE_RATE,
                feat_value=0.0,
                num_samples=round(duration * SAMPLE_RATE),
                custom={"language": rng.choice(self.rows).language},
            )
            for number, duration in enumerate(durations)
        ]

    def _fits(self, texts: Sequence[str], language: str | None) -> bool:
        """Whether texts, with the times of each, are short enough for one label."""
        return (
            self.label_length(" ".join(texts), language) + (2 * len(texts) if self.time_stamps else 0)
            <= self.label_limit
        )

    def again(self, epoch: int) -> list[ClipRow]:
        """The earlier clips that this epoch replays: `replay_share` of its clips, each at most once."""
        share = self.recipe.replay_share
        wanted = min(len(self.earlier), round(len(self.rows) * share / (1 - share)))
        return random.Random(f"replay {self.recipe.seed} {epoch}").sample(self.earlier, wanted)

    def _string(self, rows: list[ClipRow], wanted: int, rng: random.Random, name: str) -> Any:
        """Take up to `wanted` rows off the end and join them, as far as the string stays short enough."""
        first = rows.pop()
        cut, text = self.cuts[first.id], first.text
        taken = 1
        while rows and taken < wanted:
            pause = rng.uniform(0.0, self.recipe.join_pause_s)
            longer = f"{text} {rows[-1].text}"
            if cut.duration + pause + rows[-1].duration > self.recipe.join_seconds:
                break
            if self.label_length(longer, first.language) > self.label_limit:
                break
            following = rows.pop()
            cut = cut.pad(duration=cut.duration + pause, preserve_id=True).append(self.cuts[following.id])
            text = longer
            taken += 1
        return cut.with_id(f"string-{name}") if taken > 1 else cut

    def batches_in_epoch(self) -> int:
        """Batches of the first epoch; other epochs differ slightly, because their strings differ."""
        return sum(1 for _ in self.epoch(0))


# From cuts to tensors ------------------------------------------------------------------------------------------------


def spoken(cut: Any, speech: Speech, seed: int = 0) -> tuple[Waveform, str | list[Segment], str | None]:
    """Samples (S,), text and language of a window, a clip, a string, or of a clip without speech by its `seed`."""
    if isinstance(cut, Window):
        return packing.heard(cut, speech)
    from lhotse import MonoCut
    from lhotse.cut import PaddingCut

    if isinstance(cut, PaddingCut):
        rng = np.random.default_rng([seed, *cut.id.encode()])
        return augment.hiss(cut.num_samples, rng), "", cut.custom["language"]
    tracks = getattr(cut, "tracks", None)
    if tracks is None:
        row = speech.row(cut.id)
        return speech.waveform(cut.id), row.text, row.language
    parts = [(track.offset, speech.row(track.cut.recording_id)) for track in tracks if isinstance(track.cut, MonoCut)]
    placed = [(round(offset * SAMPLE_RATE), speech.waveform(row.id)) for offset, row in parts]
    whole = np.zeros(max(start + len(clip) for start, clip in placed), dtype=np.float32)
    for start, clip in placed:
        whole[start : start + len(clip)] += clip
    return whole, " ".join(row.text for _, row in parts), parts[0][1].language


class Collator:
    """Makes a planned batch into what the model's forward takes, augmented by (seed, epoch, clip).

    `place` says which batch it is: its epoch, its index, and its clips; `drawn` when it was drawn.
    """

    def __init__(
        self,
        speech: Speech,
        recipe: Recipe,
        family: Family,
        trainable: Trainable,
        *,
        ctc_classes: Mapping[int, int] | None = None,
        noises: Sequence[Waveform] = (),
    ) -> None:
        """`ctc_classes` are those of the tokens, where CTC is learnt from as well; `noises` are the recipe's folder."""
        self.speech = speech
        self.recipe = recipe
        # A window has its speed already, and what is cut off its ends would no longer be where its time stamps say.
        self.whole = replace(recipe, speed=0.0, cut_share=0.0)
        self.family = family
        self.trainable = trainable
        self.ctc_classes = ctc_classes
        self.noises = noises

    def place(self, batch: Batch) -> dict[str, Any]:
        """A batch whose tensors are known already."""
        return {"place": (batch.epoch, batch.index, batch.clips), "drawn": batch.drawn}

    def __call__(self, batch: Batch) -> dict[str, Any]:
        heard = [spoken(cut, self.speech, self.recipe.seed) for cut in batch.cuts]
        waveforms = [
            augment.waveform(
                clip,
                self.whole if isinstance(cut, Window) else self.recipe,
                np.random.default_rng(_seed(self.recipe.seed, batch.drawn[0], cut.id)),
                self.noises,
            )
            for (clip, _, _), cut in zip(heard, batch.cuts, strict=True)
        ]
        limit = round(MAX_UTTERANCE_S * SAMPLE_RATE)
        tensors: dict[str, Any] = self.family.collate(
            self.trainable,
            [clip[:limit] for clip in waveforms],
            [text for _, text, _ in heard],
            [language for _, _, language in heard],
            at_least_s=batch.at_least_s,
        )
        tensors = self.family.masked(tensors, [len(clip) for clip in waveforms], self._hide(batch))
        if self.ctc_classes is not None:
            tensors |= self._ctc(tensors, [words_alone(text) for _, text, _ in heard], self.ctc_classes)
        return tensors | self.place(batch)

    def _ctc(self, tensors: dict[str, Any], texts: Sequence[str], known: Mapping[int, int]) -> dict[str, Any]:
        from voxloop.steps.training import ctc

        found = ctc.targets(texts, lambda text: self.family.text_tokens(self.trainable, text), known)
        lengths = (found != ctc.BLANK).sum(dim=1)
        positions = require(self.family, "encoder states").encoder_positions(tensors)
        return dict(zip(ctc.INPUTS, (found, lengths, positions), strict=True))

    def _hide(self, batch: Batch) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """SpecAugment for this batch, always the same."""
        epoch, index = batch.drawn
        rng = np.random.default_rng(_seed(self.recipe.seed, epoch, f"mask {index}"))
        return lambda features, frames: augment.mask_features(features, frames, self.recipe, rng)


def _seed(seed: int, epoch: int, name: str) -> list[int]:
    return [seed, epoch, *name.encode()]


def loader(
    plan: Plan, collator: Collator, *, epoch: int, index: int, workers: int, process: int = 0, processes: int = 1
) -> DataLoader[Any]:
    """A DataLoader over the plan's batches, from that one on. Of those heard before it brings the place alone.

    Of several processes that train together each gets every so-manieth batch.
    """
    import torch
    from torch.utils.data import DataLoader, IterableDataset, get_worker_info

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[dict[str, Any]]:
            worker = get_worker_info()
            share, of = (worker.id, worker.num_workers) if worker else (0, 1)
            drawn: set[tuple[int, int]] = set()
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", module="lhotse")
                for number, batch in enumerate(islice(plan.batches(epoch, index), process, None, processes)):
                    # The loader asks its workers in turn, so the order is that of the plan.
                    if number % of == share:
                        yield collator.place(batch) if batch.drawn in drawn else collator(batch)
                    if plan.recipe.encoder_copies:
                        drawn.add(batch.drawn)

    # A loader draws a seed when it begins; from a generator of its own, so that a resumed run's dropout is not shifted.
    generator = torch.Generator()
    return DataLoader(
        Stream(),
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=workers,
        persistent_workers=workers > 0,
        generator=generator,
    )


def _as_it_is(batch: Any) -> Any:
    return batch
