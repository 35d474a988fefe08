"""Adapt a published base to short contexts: it learns to hear a clip at its own length as it hears it at 30 s.

Any audio will do, without labels: the base teaches itself (`families.whisper.distilling`). What is learnt is a LoRA
adapter, merged for serving and kept beside the weights. The result becomes a base of its own only if it is no worse
than the one that it was made of, on files it has not heard:

    at the clip's own length   at most 1 point more word errors than the base at 30 s
    at 30 s                    at most 0.5 points more

Both must hold at the upper end of the difference's interval (paired bootstrap over files). Files with a text are
measured by it. Where there are too few, the base's own texts at 30 s stand in, and any difference counts as an error.

An adaptation has a folder in the workspace, `adapted/<name>`, from which it goes on after an interruption:

    adaptation.json   what it was begun with, and its result     lessons-N.pt   what the base made of the clips
    state.pt          adapter, optimiser, place                  model-STEPS/   the adapted model
"""

from __future__ import annotations

import hashlib
import logging
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxloop import models
from voxloop.errors import AudioError, ConflictError, UsageError
from voxloop.families.contract import Lesson, require
from voxloop.families.registry import family
from voxloop.records import MAX_UTTERANCE_S, SAMPLE_RATE, Model
from voxloop.speech import audio, text
from voxloop.steps import hearing, transcripts
from voxloop.steps.evaluation import significance
from voxloop.steps.recordings.sources import Item, find_items
from voxloop.steps.training.files import read_json, write_json
from voxloop.steps.utterances import PHRASES, spans_in, with_margins

if TYPE_CHECKING:
    from voxloop.families.contract import Distillable, Trainable, Waveform
    from voxloop.families.decoding import Context
    from voxloop.settings import Settings
    from voxloop.steps.utterances import Span
    from voxloop.workspace import Workspace

log = logging.getLogger(__name__)

FOLDER = "adapted"  # of the workspace
TOLD, STATE, MODEL = "adaptation.json", "state.pt", "model"
MARGINS: dict[str, float] = {"trimmed": 0.01, "full": 0.005}  # how much worse it may be: shares of the words
TEST_SHARE = 5  # of every so many files one is kept for the test
TEST_FILES = 120  # at most
TEST_WORDS = 200  # with fewer words of references, the base's own texts stand in; with fewer of these, nothing is shown
LONGEST_S = 2 * 3600.0  # of speech that is learnt from: 230 MB in memory for each hour, and the base's states
LESSONS = 24  # clips by file
AT_ONCE_S = 120.0  # seconds of windows of 30 s that the base hears at once
BATCH_S = 60.0  # seconds of audio in a batch, with padding
RANK, ALPHA = 32, 64
RATE, WARMUP, FINAL = 5e-4, 20, 0.02
EPOCHS = 20  # at most
FULL_SHARE, BETWEEN_SHARE = 0.1, 0.2  # of batches heard at 30 s, and at any length between
SAVE_S = 60.0
SEED = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptProgress:
    """How far an adaptation is."""

    phase: str  # listening (what the base makes of the clips), training, or measuring
    done: float  # clips, seconds or clips, out of
    total: float
    step: int = 0
    states: float | None = None  # error of the encoder's states, as a share of their variance
    entropy: float | None = None  # cross-entropy of the decoder, by token


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """The adapted model at one context, beside the base at 30 s. Shares of the references' words."""

    context: str  # trimmed or full
    before: float
    after: float
    low: float  # interval of the difference
    high: float
    margin: float

    @property
    def accepted(self) -> bool:
        return self.high <= self.margin


@dataclass(frozen=True, kw_only=True, slots=True)
class Adaptation:
    """An adaptation and what it came to."""

    folder: Path
    model: str | None  # id; None: it was not accepted, so it is no base
    name: str
    clips: int  # learnt from
    seconds: float
    steps: int
    files: int  # of the test
    words: int
    references: bool  # whether the test's files had texts
    measured: tuple[Measured, ...]

    @property
    def accepted(self) -> bool:
        """Whether the test shows that it is no worse; with few words it shows nothing."""
        return self.words >= TEST_WORDS and all(one.accepted for one in self.measured)


Told = Callable[[AdaptProgress], None]


def adapt(
    ws: Workspace,
    base: str | None,
    sources: Sequence[Path],
    *,
    name: str | None = None,
    language: str | None = None,
    minutes: float = 20.0,
    keep: bool = False,
    progress: Told | None = None,
) -> Adaptation:
    """Make a base hear short contexts, and register it under `name` if it is no worse than before.

    `sources` are audio files and folders; texts beside them serve the test alone. `minutes` bounds the training; a
    later call with the same name goes on from where an earlier one stopped. With `keep` the model is registered
    whatever the test says. Raises UsageError, ConflictError and ModelError.
    """
    record = models.base_model(ws, base)
    kind = require(family(record.family), "distillation")
    source = models.model_folder(ws, record)
    if kind.tuned_context(source) == "trimmed":
        raise UsageError("this model hears clips at their own length already: name a published base")
    name = name or f"{record.name or Path(record.base).name.rpartition('/')[2]}-short"
    models.check_name(name)
    folder = ws.folder / FOLDER / name
    items = list(find_items(list(sources), None, Item(path=Path(), language=language), None, []))
    for item in items:
        if item.refusal:
            log.warning("skipped %s: %s", item.refusal.path, item.refusal.message)
    learnt, test = _parted([item for item in items if item.refusal is None])
    begun = {"base": record.id, "audio": _digest([*learnt, *test], ws.settings), "name": name}
    _begin(folder, begun)
    tell = progress or (lambda _: None)

    if ws.settings.threads:
        import torch

        torch.set_num_threads(ws.settings.threads)
    trainable = kind.open_for_training(source, audio_context="trimmed")
    model = _with_adapter(trainable, kind.lora_targets)
    model.to(models.device(ws))
    clips = _clips(learnt, ws.settings)
    if not clips:
        raise UsageError("no speech was found in the audio: name files or folders in which somebody speaks")
    lessons = _lessons(kind, trainable, model, clips, folder, language or ws.settings.language or None, tell)
    known = [(clip.waveform, lesson) for clip, lesson in zip(clips, lessons, strict=True) if lesson is not None]
    if not known:
        raise UsageError("the base is in doubt about every clip: give clearer speech in a language that it knows")
    steps = _train(kind, trainable, model, known, folder, minutes * 60, tell)
    made = folder / f"{MODEL}-{steps}"
    kind.save(trainable, model, made)
    files, words, references, measured = _measure(ws, kind, trainable, model, record, test, language, tell)
    result = Adaptation(
        folder=made,
        model=None,
        name=name,
        clips=len(known),
        seconds=round(sum(len(clip) for clip, _ in known) / SAMPLE_RATE, 1),
        steps=steps,
        files=files,
        words=words,
        references=references,
        measured=measured,
    )
    if result.accepted or keep:
        result = replace(result, model=models.register(ws, made, base=record.id, name=name).id)
    write_json(folder / TOLD, begun | {"result": asdict(result) | {"folder": str(made)}})
    return result


# Speech ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Clip:
    """A phrase of a file, margins included."""

    waveform: Waveform
    language: str | None


def _parted(items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """Files to learn from and files for the test, decided by their names; those with a text are tested first."""
    order = sorted(items, key=lambda item: hashlib.sha256(item.path.name.encode()).hexdigest())
    most = min(TEST_FILES, max(1, len(order) // TEST_SHARE))
    with_text = [item for item in order if item.text and not item.said]
    test = with_text[:most] or order[:most]
    chosen = {item.path for item in test}
    learnt = [item for item in order if item.path not in chosen]
    if not learnt:
        raise UsageError(f"found {len(order)} audio files, but an adaptation needs at least two: name more")
    return learnt, test


def _digest(items: Sequence[Item], settings: Settings) -> str:
    """A hash of what decides the clips: the files and how speech is found in them."""
    stats = [(item.path, item.path.stat()) for item in items if item.path.exists()]
    lines = [f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats]
    lines.append(f"{settings.vad_threshold:g} {settings.vad_min_silence_ms} {settings.vad_pad_ms}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _begin(folder: Path, begun: dict[str, Any]) -> None:
    """Make the folder, or go on in it. Raises ConflictError where it belongs to something else."""
    if (folder / TOLD).exists():
        earlier = read_json(folder / TOLD)
        if any(earlier.get(key) != value for key, value in begun.items()):
            raise ConflictError(
                f"{folder.name!r} was begun with another base or other audio: give this one another name with --name, "
                f"or delete {folder}"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / TOLD, begun)


def _clips(items: Sequence[Item], settings: Settings) -> list[Clip]:
    """Phrases in the files, as the detector finds them for a model that hears them at their own length."""
    clips: list[Clip] = []
    left = round(LONGEST_S * SAMPLE_RATE)
    for item in items:
        try:
            whole = audio.decode(item.path)
        except AudioError as error:
            log.warning("skipped %s: %s", item.path, error)
            continue
        for start, end in with_margins(_phrases(whole, settings), len(whole)):
            clips.append(Clip(whole[start:end].copy(), item.language))
            left -= end - start
        if left <= 0:
            break
    return clips


def _phrases(whole: Waveform, settings: Settings) -> list[Span]:
    return spans_in(lambda start, end: whole[start:end], len(whole), settings, PHRASES)


def _lessons(
    kind: Distillable,
    trainable: Trainable,
    model: Any,
    clips: Sequence[Clip],
    folder: Path,
    language: str | None,
    tell: Told,
) -> list[Lesson | None]:
    """What the base makes of every clip, from the folder where it was written down before."""
    import torch

    found: list[Lesson | None] = []
    together = max(1, int(AT_ONCE_S / MAX_UTTERANCE_S))
    for number, first in enumerate(range(0, len(clips), LESSONS)):
        file = folder / f"lessons-{number:05}.pt"
        block = clips[first : first + LESSONS]
        if not file.exists():
            made: list[Lesson | None] = []
            with model.disable_adapter():
                for group in _groups(block, together):
                    waveforms = [clip.waveform for clip in group]
                    made += kind.lessons(trainable, model, waveforms, group[0].language or language)
            partial = file.with_suffix(".partial")
            torch.save([None if one is None else asdict(one) for one in made], partial)
            partial.replace(file)
        kept = torch.load(file, weights_only=True)
        found += [None if one is None else Lesson(**one) for one in kept]
        tell(AdaptProgress(phase="listening", done=len(found), total=len(clips)))
    return found


def _groups(clips: Sequence[Clip], most: int) -> Iterator[list[Clip]]:
    """Clips in their order, at most so many of one language at a time."""
    group: list[Clip] = []
    for clip in clips:
        if group and (len(group) == most or clip.language != group[0].language):
            yield group
            group = []
        group.append(clip)
    if group:
        yield group


# Training -------------------------------------------------------------------------------------------------------------


def _with_adapter(trainable: Trainable, targets: Sequence[str]) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(SEED)  # half of an adapter begins with random weights
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=list(targets), bias="none")
    return get_peft_model(trainable.model, config)


Pair = tuple["Waveform", Lesson]


Batch = tuple[float, list[int]]
"""Seconds that its clips are fed at least, and which clips these are."""


def _epoch(known: Sequence[Pair], number: int, padded_s: Callable[[float, float], float]) -> list[Batch]:
    """Batches of clips of similar length, the same ones whenever the epoch of this number is asked for."""
    rng = random.Random(f"adapt {SEED} {number}")
    order = sorted(range(len(known)), key=lambda index: len(known[index][0]) * rng.uniform(0.8, 1.25))
    batches: list[Batch] = []
    batch: list[int] = []
    least_s = 0.0
    for index in order:
        length = len(known[index][0]) / SAMPLE_RATE
        if batch and (len(batch) + 1) * padded_s(length, least_s) > BATCH_S:
            batches.append((least_s, batch))
            batch = []
        if not batch:
            drawn = rng.random()
            least_s = MAX_UTTERANCE_S if drawn < FULL_SHARE else 0.0
            if FULL_SHARE <= drawn < FULL_SHARE + BETWEEN_SHARE:
                least_s = rng.uniform(length, MAX_UTTERANCE_S)
        batch.append(index)
    batches.append((least_s, batch))
    rng.shuffle(batches)
    return batches


def _train(
    kind: Distillable,
    trainable: Trainable,
    model: Any,
    known: Sequence[Pair],
    folder: Path,
    most_s: float,
    tell: Told,
) -> int:
    """Train the adapter for so many seconds, those of earlier calls included, and return its steps."""
    import torch

    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    optimizer = torch.optim.AdamW(weights.values(), lr=RATE, weight_decay=0.01, betas=(0.9, 0.98))
    place = {"epoch": 0, "batch": 0, "step": 0}
    before_s = 0.0
    if (folder / STATE).exists():
        state = torch.load(folder / STATE, weights_only=True, map_location="cpu")
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(state["weights"][name])
        optimizer.load_state_dict(state["optimizer"])
        place, before_s = state["place"], state["elapsed_s"]
    began = saved = time.monotonic()

    def spent() -> float:
        return before_s + time.monotonic() - began

    def save() -> None:
        partial = folder / f"{STATE}.partial"
        kept = {name: weight.detach().cpu() for name, weight in weights.items()}
        told = {"weights": kept, "optimizer": optimizer.state_dict(), "place": place, "elapsed_s": spent()}
        torch.save(told, partial)
        partial.replace(folder / STATE)

    model.train()
    try:
        while place["epoch"] < EPOCHS and spent() < most_s:
            batches = _epoch(known, place["epoch"], kind.padded_seconds)
            for least_s, batch in batches[place["batch"] :]:
                done = max(spent() / most_s, (place["epoch"] + place["batch"] / len(batches)) / EPOCHS)
                rise = min(1.0, (place["step"] + 1) / WARMUP)
                fall = FINAL + (1 - FINAL) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
                for group in optimizer.param_groups:
                    group["lr"] = RATE * rise * fall
                states, entropy = kind.distil(
                    trainable,
                    model,
                    [known[index][0] for index in batch],
                    [known[index][1] for index in batch],
                    at_least_s=least_s,
                )
                torch.autograd.backward(states + entropy)
                torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                place = {**place, "batch": place["batch"] + 1, "step": place["step"] + 1}
                tell(
                    AdaptProgress(
                        phase="training",
                        done=min(spent(), most_s),
                        total=most_s,
                        step=place["step"],
                        states=round(float(states.detach()), 4),
                        entropy=round(float(entropy.detach()), 4),
                    )
                )
                if time.monotonic() - saved >= SAVE_S:
                    save()
                    saved = time.monotonic()
                if spent() >= most_s:
                    break
            else:
                place = {**place, "epoch": place["epoch"] + 1, "batch": 0}
    finally:
        save()  # also after Ctrl-C: a later call goes on from here
    return place["step"]


# The test -------------------------------------------------------------------------------------------------------------


def _measure(
    ws: Workspace,
    kind: Distillable,
    trainable: Trainable,
    model: Any,
    base: Model,
    test: Sequence[Item],
    language: str | None,
    tell: Told,
) -> tuple[int, int, bool, tuple[Measured, ...]]:
    """Files, words, whether they are references, and the adapted model at each context beside the base at 30 s."""
    read = [(item, waveform) for item in test if (waveform := _read(item)) is not None]
    asked = transcripts.decoding(ws, language, model=base)
    recogniser = kind.recogniser(trainable, model)
    total = 3 * len(read)

    def heard(context: Context, number: int, *, adapted: bool) -> list[str]:
        texts: list[str] = []
        with nullcontext() if adapted else model.disable_adapter():
            for item, waveform in read:
                mine = replace(asked, audio_context=context, language=item.language or asked.language)
                (one,) = hearing.hear_files(recogniser, [waveform], mine, ws.settings)
                texts.append(text.normalise(one.hypothesis.text, item.language or language, ws.settings.normaliser))
                tell(AdaptProgress(phase="measuring", done=number * len(read) + len(texts), total=total))
        return texts

    before = heard("full", 0, adapted=False)
    said = [text.normalise(item.text or "", item.language or language, ws.settings.normaliser) for item, _ in read]
    references = sum(len(one.split()) for one in said) >= TEST_WORDS and all(said)
    wanted = said if references else before
    counts = [text.word_errors_each(wanted, before)]
    names = [item.path.name for item, _ in read]
    measured = []
    for number, (context, margin) in enumerate(MARGINS.items(), 1):
        counts.append(text.word_errors_each(wanted, heard(context, number, adapted=True)))  # type: ignore[arg-type]
        found = significance.paired(
            [one.errors for one in counts[0]],
            [one.errors for one in counts[-1]],
            [one.units for one in counts[0]],
            names,
        )
        measured.append(
            Measured(
                context=context,
                before=text.total(counts[0]).rate,
                after=text.total(counts[-1]).rate,
                low=found.low,
                high=found.high,
                margin=margin,
            )
        )
    return len(read), text.total(counts[0]).units, references, tuple(measured)


def _read(item: Item) -> Waveform | None:
    try:
        return audio.decode(item.path)
    except AudioError as error:
        log.warning("skipped %s: %s", item.path, error)
        return None
