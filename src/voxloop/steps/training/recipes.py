"""Recipes: everything that decides how a model is trained, complete, named and checked."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from voxloop.errors import SettingError, nearest
from voxloop.settings import meanings

Method = Literal["full", "lora"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
AudioContext = Literal["auto", "packed", "floor", "full", "trimmed"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained. Saved whole with every run; never read from anywhere else once a run has begun."""

    name: str = "custom"
    """What the recipe is called; an overridden one keeps the name it began with."""
    why: str = ""
    """Why it was chosen; empty: it was asked for by name."""
    method: Method = "full"
    """full: every weight is trained; lora: low-rank adapters beside frozen weights (arXiv:2106.09685)."""
    audio_context: AudioContext = "auto"
    """What the encoder is fed. packed: windows of 30 s that hold several clips of one speaker, so that the model stays
    what it is in other programs; floor: a clip and as much silence again, `context_floor_s` at least; full: a clip and
    silence up to 30 s; trimmed: a clip's own length and a margin, which is how the model is served from then on.
    auto: trimmed where the base model was tuned that way, else packed."""
    context_floor_s: float = 10.0
    """With packed and floor: seconds that a clip heard alone is fed at least."""
    alone_share: float = 0.25
    """With packed: share of an epoch's clips that are heard alone."""
    time_stamp_share: float = 0.5
    """With packed: share of the windows in which the bounds of the clips are learnt as time stamps."""

    learning_rate: float = 4e-4
    """Highest learning rate of AdamW; it falls along a cosine."""
    final_share: float = 0.02
    """Share of the learning rate that is left at the end."""
    warmup_steps: int = 10
    """Steps over which the learning rate rises from 0."""
    max_steps: int | None = None
    """Optimiser steps at most; None: no bound."""
    max_epochs: float | None = None
    """Passes over the training speech at most; None: no bound."""
    max_seconds: float | None = None
    """Seconds at most from when the model is loaded, evaluation and saving included; None: no bound."""
    batch_seconds: float = 40.0
    """Seconds of audio in a batch, padding included. Halved when memory runs out."""
    accumulation: int = 1
    """Batches whose gradients make one step."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    beta1: float = 0.9
    """AdamW's decay of the mean gradient."""
    beta2: float = 0.98
    """AdamW's decay of the mean squared gradient."""
    label_smoothing: float = 0.0
    """Share of the probability spread over all tokens (arXiv:1512.00567)."""
    blend: bool = True
    """In the end, move the weights back towards the base model's as far as that helps on val: base + a (tuned - base)
    with the best a of 0, 0.25, 0.5, 0.75 and 1 (arXiv:2109.01903). There the model is never worse than its base."""
    average: float = 0.0
    """Decay by step of the running average of the weights, which is what is kept; 0: the last weights themselves."""
    precision: Precision = "auto"
    """Number format of the matrix products; weights stay in fp32. auto: bf16 where the device multiplies it faster
    (GPUs since Ampere, CPUs with AMX) and the model has 20 million weights or more, else fp32. fp16 needs a GPU."""
    gradient_checkpointing: bool = False
    """Compute activations twice to hold fewer of them."""
    layer_decay: float = 1.0
    """Learning rate of a layer as a share of that of the layer above it (arXiv:1801.06146); 1: one rate for all."""
    ctc_weight: float = 0.0
    """Weight of a CTC loss on the encoder beside cross-entropy (arXiv:1609.06773), for small models; 0: none."""
    freeze_encoder: bool = False
    """Train the decoder alone; with method=lora, the decoder alone gets adapters."""
    encoder_copies: int = 0
    """With freeze_encoder: epochs that are heard before they come again, so that the encoder, whose outputs are kept in
    a file till the run ends, computes no more; 0: every epoch is new, and computed."""
    freeze_embeddings: bool = False
    """Leave the embedding of tokens, which is the output layer too, as it is: of a small model it is most weights."""

    lora_rank: int = 16
    """Rank of the adapters."""
    lora_alpha: int = 32
    """Scale of the adapters, by rank."""
    lora_dropout: float = 0.05
    """Dropout before the adapters."""
    lora_targets: tuple[str, ...] = ()
    """Names of the layers that get adapters; empty: those that the model's family names."""

    speed: float = 0.1
    """Clips are played up to this share faster or slower (Ko et al., Interspeech 2015)."""
    cut_share: float = 0.0
    """Share of clips that begin late or end early, as recorders and voice detection cut them; for short clips."""
    cut_s: float = 0.15
    """Longest piece that is cut off either end, in seconds; never more than a quarter of the clip."""
    volume_db: float = 6.0
    """Clips are made up to this much louder or softer."""
    noise_share: float = 0.3
    """Share of clips that get white noise."""
    noise_snr_db: float = 10.0
    """Strongest noise: the lowest ratio of speech to noise; the weakest lies 30 dB above."""
    noise_folder: str | None = None
    """A folder of your own noises (any audio), as where the model will listen; None: white noise only."""
    noise_folder_share: float = 0.3
    """Share of clips that get a piece of one of those noises."""
    telephone_share: float = 0.0
    """Share of clips that are heard as over a telephone: 300 to 3,400 Hz, 8 kHz, mu-law."""
    mask_bands: int = 14
    """Widest of two bands of mel channels that are hidden (SpecAugment, arXiv:1904.08779); 0: none."""
    mask_frames: int = 12
    """Longest stretch of mel frames (10 ms each) that is hidden, one for each second; never more than a fifth of the
    clip; 0: none."""
    join_share: float = 0.3
    """Share of the clips of an epoch that are heard inside strings of several, so that long speech is not forgotten;
    not with audio_context=packed, whose windows do that."""
    join_clips: int = 5
    """Most clips in a string."""
    join_pause_s: float = 0.3
    """Longest pause between the clips of a string."""
    join_seconds: float = 12.0
    """Longest string; longer clips are not joined."""
    silence_share: float = 0.0
    """Share of an epoch's clips that are faint noise without a text, so that nothing is heard where nobody speaks."""
    full_length_share: float = 0.0
    """With trimmed: share of batches padded to 30 s, so that decoding at full length does not suffer."""
    replay_share: float = 0.2
    """Share of an epoch's clips that come from what the base model learnt before, so that it is not forgotten."""
    replay_from: tuple[str, ...] = ()
    """Datasets (names or ids) to hear again; empty: those that the base model and its bases were trained on."""

    eval_steps: int | None = None
    """Evaluate on val every so many steps; None: see eval_seconds."""
    eval_seconds: float | None = 10.0
    """Evaluate on val every so many seconds of training; None: see eval_steps. With neither: once an epoch."""
    keep_no_better: bool = False
    """Keep the last trained weights as a model also where val says that they are no better than the base model."""
    patience: int | None = None
    """Stop after this many evaluations in a row without a better word error rate, on few words of val without a lower
    loss either; None: never."""
    save_seconds: float = 60.0
    """A checkpoint to resume from, every so many seconds."""
    keep_checkpoints: int = 2
    """Checkpoints kept, the newest."""
    keep_checkpoints_after: int = 0
    """Intermediate models that stay after the run, in its folder `intermediate`: the best on val, or the newest where
    there is no val. `voxloop evaluate` takes each of them."""
    log_steps: int = 10
    """A line of metrics every so many steps."""
    max_val_clips: int = 200
    """Validation hears at most this many clips, the same ones every time."""
    seed: int = 1
    """Of everything random: order, augmentation, dropout."""
    workers: int | None = None
    """Processes that prepare batches; 0: the training process does it; None: 0 on a CPU, on a GPU one for every second
    core and 4 at most."""

    def __post_init__(self) -> None:
        if self.max_steps is None and self.max_epochs is None and self.max_seconds is None:
            raise SettingError("a recipe needs an end: set max_steps, max_epochs or max_seconds")
        for name in ("learning_rate", "batch_seconds", "clip_norm", "save_seconds", "join_seconds"):
            self._check(name, getattr(self, name) > 0, "it must be above 0")
        for name in ("accumulation", "lora_rank", "lora_alpha", "keep_checkpoints", "log_steps", "max_val_clips"):
            self._check(name, getattr(self, name) >= 1, "it must be 1 or more")
        for name in ("max_steps", "max_epochs", "max_seconds", "eval_steps", "eval_seconds", "patience"):
            value = getattr(self, name)
            self._check(name, value is None or value > 0, "it must be above 0, or none")
        for name in (
            "warmup_steps",
            "weight_decay",
            "keep_checkpoints_after",
            "ctc_weight",
            "volume_db",
            "mask_bands",
            "mask_frames",
            "cut_s",
            "join_pause_s",
            "encoder_copies",
        ):
            self._check(name, getattr(self, name) >= 0, "it must be 0 or more")
        self._check("workers", self.workers is None or self.workers >= 0, "it must be 0 or more, or none")
        for name in (
            "final_share",
            "noise_share",
            "noise_folder_share",
            "telephone_share",
            "cut_share",
            "join_share",
            "full_length_share",
            "silence_share",
            "alone_share",
            "time_stamp_share",
        ):
            self._check(name, 0 <= getattr(self, name) <= 1, "it must be from 0 to 1")
        for name in ("label_smoothing", "beta1", "beta2", "lora_dropout", "average", "replay_share"):
            self._check(name, 0 <= getattr(self, name) < 1, "it must be from 0 to below 1")
        self._check("layer_decay", 0 < self.layer_decay <= 1, "it must be above 0, and 1 at most")
        self._check("speed", 0 <= self.speed <= 0.5, "it must be from 0 to 0.5")
        self._check("join_clips", self.join_clips >= 2, "a string has 2 clips or more; set join_share=0 for none")
        self._check("context_floor_s", 1 <= self.context_floor_s <= 30, "it must be from 1 to 30")
        self._check("join_seconds", self.join_seconds <= 29, "a string and its margin must fit into 30 s")
        if self.freeze_encoder and self.ctc_weight:
            raise SettingError(
                "ctc_weight teaches the encoder, which freeze_encoder holds: set ctc_weight=0 or freeze_encoder=false"
            )
        if self.encoder_copies and not self.freeze_encoder:
            raise SettingError(
                f"encoder_copies is {self.encoder_copies}, which keeps the outputs of an encoder that is not trained: "
                "set freeze_encoder=true, or encoder_copies=0"
            )

    def _check(self, name: str, good: bool, needed: str) -> None:
        if not good:
            raise SettingError(f"recipe: {name} is {getattr(self, name)!r}: {needed}")

    def as_dict(self) -> dict[str, Any]:
        """Every setting with its value, as JSON knows them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def from_dict(values: Mapping[str, Any]) -> Recipe:
    """The recipe that `as_dict` wrote. Raises SettingError for a name that is not known."""
    known = {f.name for f in fields(Recipe)}
    for name in values:
        if name not in known:
            raise SettingError(f"a recipe has no setting {name!r}{nearest(name, known)}")
    typed: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return Recipe(**typed)


# For small models that were tuned to a clip's own length: the starter, and what was tuned from it.
SMALL: dict[str, Recipe] = {
    # Small batches, since a minute is short of steps, and averaged weights, since small batches are noisy. Joining is
    # for short clips: without strings digits are learnt and strings forgotten, with strings of whole phrases too little
    # is learnt. Cut, because a voice's few clips do not show how short it may be (docs/log.md).
    "quick": Recipe(
        name="quick",
        learning_rate=6e-4,
        max_seconds=60.0,
        max_epochs=400,
        batch_seconds=16.0,
        average=0.98,
        cut_share=0.5,
        join_share=0.5,
        join_seconds=2.5,
        silence_share=0.04,
    ),
    "thorough": Recipe(
        name="thorough",
        learning_rate=6e-4,
        warmup_steps=100,
        max_epochs=30,
        average=0.999,
        silence_share=0.01,
        full_length_share=0.02,
        eval_seconds=None,
        patience=6,
        save_seconds=300.0,
    ),
    "careful": Recipe(
        name="careful",
        method="lora",
        learning_rate=3e-4,
        warmup_steps=50,
        max_epochs=20,
        batch_seconds=60.0,
        label_smoothing=0.05,
        silence_share=0.01,
        full_length_share=0.1,
        eval_seconds=None,
        patience=5,
        save_seconds=300.0,
    ),
    "full": Recipe(
        name="full",
        learning_rate=1e-5,
        warmup_steps=200,
        max_epochs=10,
        batch_seconds=120.0,
        accumulation=2,
        silence_share=0.01,
        full_length_share=0.1,
        join_share=0.15,
        eval_seconds=None,
        patience=5,
        save_seconds=600.0,
    ),
}

# For published models, which know speech already and lose it at the rates above (docs/log.md).
PUBLISHED: dict[str, Recipe] = {
    "quick": Recipe(
        name="quick",
        learning_rate=2e-5,
        max_seconds=300.0,
        max_epochs=8,
        batch_seconds=30.0,
        silence_share=0.01,
        patience=4,
        max_val_clips=60,
    ),
    "thorough": Recipe(
        name="thorough",
        learning_rate=2e-5,
        warmup_steps=50,
        max_epochs=12,
        batch_seconds=60.0,
        silence_share=0.01,
        eval_seconds=60.0,
        patience=5,
        save_seconds=300.0,
    ),
    "careful": Recipe(
        name="careful",
        method="lora",
        learning_rate=3e-4,
        warmup_steps=20,
        max_epochs=8,
        batch_seconds=60.0,
        silence_share=0.01,
        eval_seconds=60.0,
        patience=4,
        save_seconds=300.0,
    ),
    "full": Recipe(
        name="full",
        learning_rate=1e-5,
        warmup_steps=200,
        max_epochs=10,
        batch_seconds=120.0,
        accumulation=2,
        silence_share=0.01,
        eval_seconds=None,
        patience=5,
        save_seconds=600.0,
    ),
}

RECIPES = tuple(SMALL)

FIXED = {"name", "why"}  # what a recipe says of itself: no settings

SUITS = {
    "quick": "a model that two cores train in minutes (starter, tiny, base) and up to an hour of speech: every weight",
    "thorough": "an hour of speech or more and such a model: every weight, until it no longer helps",
    "careful": "a larger model and up to ten hours of speech: adapters (LoRA), until they no longer help",
    "full": "a larger model and more than ten hours of speech: every weight, gently; a GPU is needed",
}

SMALL_MODEL = 20_000_000  # parameters: below, fp32 costs less than the casts to bf16
CPU_MODEL = 100_000_000  # parameters: below, every weight can be trained on two cores in minutes
SOME_SPEECH_S = 3600.0  # seconds of training speech from which there is more to learn than in minutes
MUCH_SPEECH_S = 10 * 3600.0  # seconds of training speech that can move all weights of a large model


def named(name: str, *, published: bool = False) -> Recipe:
    """The recipe of that name, for a published model or for a small one that was tuned to a clip's own length.

    Raises SettingError for one that is not known.
    """
    if name not in RECIPES:
        raise SettingError(f"there is no recipe {name!r}{nearest(name, RECIPES)}")
    return (PUBLISHED if published else SMALL)[name]


def choose(*, train_seconds: float, parameters: int, published: bool = False) -> Recipe:
    """The recipe for a model of so many parameters and so much training speech, where none is named; it says why."""
    small = parameters < CPU_MODEL
    if small:
        name = "thorough" if train_seconds >= SOME_SPEECH_S else "quick"
    else:
        name = "full" if train_seconds >= MUCH_SPEECH_S else "careful"
    limit_s = SOME_SPEECH_S if small else MUCH_SPEECH_S
    speech = f"{train_seconds / 3600:.1f} h" if train_seconds >= 3600 else f"{train_seconds / 60:.1f} min"
    why = (
        f"the model has {parameters / 1e6:.1f} M parameters ({'below' if small else 'not below'} "
        f"{CPU_MODEL / 1e6:.0f} M) and there are {speech} of training speech "
        f"({'below' if train_seconds < limit_s else 'not below'} {limit_s / 3600:.0f} h)"
    )
    return replace(named(name, published=published), why=why)


@dataclass(frozen=True, kw_only=True, slots=True)
class Described:
    """One setting of a recipe, as `voxloop recipe show` prints it."""

    setting: str
    value: Any
    default: Any
    meaning: str

    @property
    def differs(self) -> bool:
        return bool(self.value != self.default)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"differs": self.differs}


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeDetails:
    """A recipe with every setting explained."""

    name: str
    suits: str  # what it is for
    why: str | None  # why it was chosen; None where it was named
    settings: tuple[Described, ...]


def details(recipe: Recipe) -> RecipeDetails:
    """What a surface shows of a recipe."""
    return RecipeDetails(
        name=recipe.name, suits=SUITS[recipe.name], why=recipe.why or None, settings=tuple(described(recipe))
    )


def described(recipe: Recipe) -> list[Described]:
    """Every setting of a recipe with its default and its meaning, in the order of this module."""
    values, defaults = recipe.as_dict(), Recipe(max_steps=1).as_dict() | {"max_steps": None}
    return [
        Described(setting=name, value=values[name], default=defaults[name], meaning=meaning)
        for name, meaning in meanings(Recipe).items()
        if name not in FIXED
    ]


def override(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """The recipe with `key=value` settings applied. Raises SettingError for a wrong name or value."""
    hints = get_type_hints(Recipe)
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        name = name.strip()
        if not equals:
            raise SettingError(f"setting {setting!r}: needed is key=value, such as learning_rate=1e-4")
        if name not in hints or name in FIXED:
            raise SettingError(f"a recipe has no setting {name!r}{nearest(name, set(hints) - FIXED)}")
        values[name] = _parse(name, text.strip(), hints[name])
    return replace(recipe, **values)


def _parse(name: str, text: str, kind: Any) -> Any:
    """Text as the type of a field."""
    origin, options = get_origin(kind), get_args(kind)
    if origin is Literal:
        if text not in options:
            raise SettingError(f"{name} is {text!r}; needed is one of {', '.join(options)}")
        return text
    if origin is types.UnionType:
        if text.lower() in ("none", ""):
            return None
        return _parse(name, text, next(option for option in options if option is not type(None)))
    if origin is tuple:
        if text.lower() == "none":
            return ()
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if kind is bool:
        if text.lower() in ("true", "yes", "1", "on"):
            return True
        if text.lower() in ("false", "no", "0", "off"):
            return False
        raise SettingError(f"{name} is {text!r}; needed is true or false")
    try:
        return cast("type[int] | type[float] | type[str]", kind)(text)
    except ValueError as error:
        raise SettingError(f"{name} is {text!r}; needed is a {kind.__name__}") from error
