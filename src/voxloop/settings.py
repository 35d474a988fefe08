"""Every setting: its default, its meaning, and where it may be set.

The only reader of the environment and of `voxloop.toml`. Later wins: default,
`voxloop.toml` in the workspace, `VOXLOOP_<NAME>` in the environment, keyword.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

from voxloop.errors import SettingError, nearest
from voxloop.speech import text as _text
from voxloop.speech.languages import UnknownLanguage, language_code

CONFIG_NAME = "voxloop.toml"
WORKSPACE_VARIABLE = "VOXLOOP_WORKSPACE"
DEFAULT_WORKSPACE = "voxloop-workspace"
PREFIX = "VOXLOOP_"
MOST_BONUS = 5.0  # of a token's log-probability: beyond, terms are heard everywhere
AUDIO_CONTEXTS = ("auto", "adaptive", "full", "trimmed")
ENGINES = ("torch", "ctranslate2", "auto")
COMPUTE_TYPES = ("int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16", "float16", "bfloat16", "float32")

# For processes that compute; read once, when torch loads its OpenMP. A thread that waits by spinning costs the others
# of a shared machine their core: transcribing was 20 times slower beside another busy process. One that sleeps at once
# is woken for every operation: a training step took a fifth longer. So GNU's spins for some 0.2 ms (docs/log.md).
THREADS_WAIT = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "4000"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Resolved settings of one workspace. Empty URLs mean the embedded store inside the workspace."""

    catalog: str = field(default="", repr=False)  # may hold a password
    """SQLAlchemy URL of the catalog, postgresql+psycopg://USER:PASSWORD@HOST/DATABASE (the extra `postgres`); empty:
    SQLite in the workspace."""
    blobs: str = field(default="", repr=False)
    """URL of the object store; empty: the folder `blobs` in the workspace."""
    bus: str = field(default="local", repr=False)
    """`local`: workers poll the job table."""
    base_model: str = "starter"
    """What transcribes before there is a champion: `starter`, a Hub id such as openai/whisper-small (with @REVISION,
    where it is not to be the newest), a folder in transformers' or CTranslate2's form, or what faster-whisper calls a
    model that it has here (`base`, `tiny.en`). The Hub is asked about a name once; then the workspace keeps to the
    commit that it found."""
    embedding_model: str = "starter"
    """What gives utterances the vectors by which similar ones are found: `starter`, `base` (what `base_model` names),
    a Hub id or a folder; never the champion, since vectors of different models do not compare. After a change,
    utterances get new vectors as they are indexed again; `voxloop verify --repair` has that done for all."""
    language: str = ""
    """Language taken where a recording names none (ISO 639-1); empty: the model detects it."""
    device: str = ""
    """`cpu`, `cuda`, `cuda:1`; empty: the first GPU, or the CPU where there is none."""
    engine: str = "torch"
    """What runs the model: `torch`, `ctranslate2` (faster on a CPU; the extra `fast`), or `auto`: the latter where it
    is installed. What is evaluated, promoted and transcribed with is the same conversion."""
    compute_type: str = ""
    """What CTranslate2 computes in: `int8`, `float32`, `float16`, `int8_float16` and others; empty: int8 on the CPU,
    float16 on a GPU."""
    serving_engines: tuple[str, ...] = ()
    """Everything that will run the champion, such as `ctranslate2-int8, torch`: a model is promoted only where it is no
    worse on any of them, and the verdict rests on the first. Empty: `engine` alone."""
    threads: int = 0
    """CPU threads for models; 0: as many as there are cores."""
    audio_context: str = "auto"
    """What Whisper hears of a clip: `auto` (what the model was tuned on, and `adaptive` where it was not tuned),
    `adaptive` (twice the clip and at least 10 s, 30 s where the text is doubtful), `full` (30 s), `trimmed` (the clip
    itself; for models tuned on it)."""
    batch_seconds: float = 120.0
    """Padded seconds of audio transcribed at once."""
    word_times: bool = True
    """Keep each word's place and probability with a text; transcribing takes a little longer."""
    guards: bool = True
    """Decode again, at rising temperatures, what repeats itself or is a guess; drop texts of silence."""
    guard_compression: float = 2.4
    """A text that zlib makes smaller by more than this repeats itself (Whisper's default)."""
    guard_logprob: float = -1.0
    """A text whose tokens have a lower mean log-probability is a guess (Whisper's default)."""
    guard_no_speech: float = 0.6
    """Above this no-speech probability, a text that is a guess too is dropped (Whisper's default)."""
    beams: int = 1
    """Texts that are followed at once while decoding; 1: only the likeliest. More take about as many times as long and
    make somewhat fewer errors."""
    prompt: str = ""
    """Text that Whisper takes for what was said before each utterance: its spelling and style carry over. Of a long
    one the last 223 tokens count."""
    vocabulary_bonus: float = 2.0
    """How far texts with terms of the vocabulary (`voxloop vocabulary`) are preferred: added to the log-probability for
    each token of a whole term; 0: not at all."""
    vocabulary_prompt: bool = False
    """Put the vocabulary's terms, as many as fit, in front of each utterance as well, as `prompt` is."""
    channels: str = "mix"
    """Files of several channels: `mix` them, or `split` them, each channel a recording with a speaker of its own."""
    max_file_mb: int = 4096
    """Files larger than this are refused."""
    max_recording_hours: float = 24.0
    """Recordings longer than this are refused."""
    vad_threshold: float = 0.5
    """Speech probability above which a frame counts as speech (Silero's default)."""
    vad_min_silence_ms: int = 300
    """Pause that ends an utterance."""
    vad_pad_ms: int = 100
    """Kept on both sides of the speech found."""
    ratios: tuple[float, float, float] | tuple[()] = ()
    """Shares of train, val and test, such as [0.8, 0.1, 0.1]; empty: chosen by the number of clips, so that the test
    split is large enough for a verdict where the clips suffice."""
    min_clip_s: float = 0.0
    """Utterances shorter than this stay out of datasets; 0: a bound derived from the clips themselves."""
    max_clip_s: float = 30.0
    """Utterances longer than this stay out of datasets."""
    min_snr_db: float = 5.0
    """Utterances measured noisier than this stay out of datasets."""
    promote_confidence: float = 0.95
    """Share of promotions that must be true: with 0.95, at most 5 % of all promotions over time are false."""
    promote_min_utterances: int = 20
    """With fewer test utterances the verdict is `insufficient evidence`; it rests on texts not heard in training where
    there are so many of them."""
    promote_min_improvement: float = 0.02
    """Share of the champion's word errors that a challenger must save at least: 0.02 is two errors of a hundred."""
    promote_slice_margin: float = 0.01
    """Word error rate that a speaker, a language or a length may lose: 0.01 is one word of a hundred."""
    promote_joined_margin: float = 0.10
    """Word error rate that speech of 30 s may lose: a handful of inputs decides no finer."""
    promote_silence_words: int = 0
    """Words more than before that may be heard where nobody speaks, whether or not that is luck."""
    promote_general: str = ""
    """Dataset on whose test split a challenger must not be worse, too: name or id; empty: none."""
    promote_general_margin: float = 0.02
    """Word error rate that the general dataset may lose."""
    checkpoints_to_blobs: str = "auto"
    """Copy each checkpoint of a run to the blob store, so that the run can go on on another machine: `on`, `off`, or
    `auto`: where the blobs are not in a folder or the catalog is not SQLite."""
    lease_s: float = 30.0
    """How long a worker's claim on a job lasts without renewal."""
    max_attempts: int = 5
    """Claims of one job before it is `dead`."""
    keep_jobs_days: float = 30.0
    """How long done jobs are kept."""
    review_lease_s: float = 600.0
    """How long an utterance that a reviewer took is kept from the others."""
    review_skip_s: float = 3600.0
    """How long a skipped utterance is not offered again, as long as there are others."""
    trackers: tuple[str, ...] = ()
    """What shows training runs beside Voxloop: `tensorboard`, `trackio`, `wandb`, each the name of an extra; nothing is
    sent to other machines."""
    serve_hosts: tuple[str, ...] = ()
    """Host names and addresses, besides the one listened on, that the server answers to: those of a proxy in front."""
    serve_origins: tuple[str, ...] = ()
    """Origins of other sites and programs whose pages may ask the server, written out: `app://obsidian.md`."""
    serve_prefix: str = ""
    """Path under which a proxy passes requests on, such as `/voxloop`."""
    serve_max_upload_mb: int = 512
    """Larger requests are refused, in MiB."""
    serve_max_audio_hours: float = 4.0
    """Longer files are refused by the server, in hours."""
    serve_max_wait_s: float = 30.0
    """A request that would wait longer is told to come back later, in seconds."""
    serve_audio_per_minute: float = 0.0
    """Minutes of audio that one token may send in a minute; 0: as many as it likes."""
    poll_s: float = 0.5
    """How often an idle worker looks for jobs."""
    normaliser: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """How texts are made comparable, where a language is to differ from the default; last in the file, a table
    `[normaliser.vi]` for each language, with `base` (whisper-english, whisper-basic, none), `numbers` (digits, whole,
    as-written), `case` (lower, keep), `punctuation` (remove, keep), `diacritics` (keep, remove), `words` (spaces,
    characters). In the environment: JSON."""

    def __post_init__(self) -> None:
        if self.ratios and (
            len(self.ratios) != 3 or any(r < 0 for r in self.ratios) or abs(sum(self.ratios) - 1) > 1e-6
        ):
            raise SettingError(
                f"ratios are {self.ratios}: give three shares (train, val, test) of 0 or more that add up to 1, "
                "such as 0.8/0.1/0.1"
            )
        for name in ("lease_s", "review_lease_s", "poll_s", "batch_seconds", "max_recording_hours", "keep_jobs_days"):
            if getattr(self, name) <= 0:
                raise SettingError(f"{name} is {getattr(self, name)}: it must be above 0")
        if self.guard_compression <= 0 or self.guard_logprob >= 0 or not 0 <= self.guard_no_speech <= 1:
            raise SettingError(
                f"guard_compression, guard_logprob and guard_no_speech are {self.guard_compression}, "
                f"{self.guard_logprob} and {self.guard_no_speech}: needed are a ratio above 0, a logarithm below 0 "
                "and a probability; `guards = false` turns them off"
            )
        if self.beams < 1:
            raise SettingError(f"beams is {self.beams}: it must be 1 or more")
        if not 0 <= self.vocabulary_bonus <= MOST_BONUS:
            raise SettingError(f"vocabulary_bonus is {self.vocabulary_bonus}: it must be from 0 to {MOST_BONUS:g}")
        try:
            # A frozen dataclass's own way to set a field while it is made.
            object.__setattr__(self, "language", language_code(self.language) or "")
        except UnknownLanguage as error:
            raise SettingError(f"language is {self.language!r}: {error}") from error
        _text.check_changes(self.normaliser)
        if self.embedding_model in ("", "champion"):
            raise SettingError(
                f"embedding_model is {self.embedding_model!r}: needed is a model that stays, since its vectors compare "
                "with no other's: `starter`, `base`, a Hub id or a folder"
            )
        if self.engine not in ENGINES:
            raise SettingError(f"engine is {self.engine!r}: it must be one of {', '.join(ENGINES)}")
        if self.compute_type and self.compute_type not in COMPUTE_TYPES:
            raise SettingError(
                f"compute_type is {self.compute_type!r}: it must be empty or one of {', '.join(COMPUTE_TYPES)}"
            )
        for served in self.serving_engines:
            name, _, compute_type = served.partition("-")
            if name not in ENGINES or (compute_type and (name != "ctranslate2" or compute_type not in COMPUTE_TYPES)):
                raise SettingError(
                    f"serving_engines names {served!r}: needed are {', '.join(ENGINES)}, or ctranslate2 with what it "
                    f"computes in ({', '.join(COMPUTE_TYPES)}), such as ctranslate2-int8"
                )
        if self.checkpoints_to_blobs not in ("auto", "on", "off"):
            raise SettingError(f"checkpoints_to_blobs is {self.checkpoints_to_blobs!r}: it must be auto, on or off")
        if self.audio_context not in AUDIO_CONTEXTS:
            raise SettingError(
                f"audio_context is {self.audio_context!r}: it must be one of {', '.join(AUDIO_CONTEXTS)}"
            )
        if self.channels not in ("mix", "split"):
            raise SettingError(f"channels is {self.channels!r}: it must be mix or split")
        if self.max_attempts < 1:
            raise SettingError(f"max_attempts is {self.max_attempts}: it must be 1 or more")
        if not 0.5 <= self.promote_confidence < 1:
            raise SettingError(f"promote_confidence is {self.promote_confidence}: it must be from 0.5 to below 1")
        for name in (
            "promote_min_improvement",
            "promote_slice_margin",
            "promote_joined_margin",
            "promote_general_margin",
        ):
            if not 0 <= getattr(self, name) < 1:
                raise SettingError(f"{name} is {getattr(self, name)}: it must be a share from 0 to below 1")
        if self.promote_silence_words < 0:
            raise SettingError(f"promote_silence_words is {self.promote_silence_words}: it must be 0 or more")


def described() -> list[tuple[str, Any, str]]:
    """Every setting with its default and its meaning, as this module states them."""
    defaults = Settings()
    return [(name, getattr(defaults, name), meaning) for name, meaning in meanings(Settings).items()]


def meanings(settings: type) -> dict[str, str]:
    """What each field of a class of settings means: the docstrings below them."""
    tree = ast.parse(inspect.getsource(settings))
    body = cast("ast.ClassDef", tree.body[0]).body
    return {
        stated.target.id: " ".join(str(cast("ast.Constant", doc.value).value).split())
        for stated, doc in itertools.pairwise(body)
        if isinstance(stated, ast.AnnAssign) and isinstance(stated.target, ast.Name) and isinstance(doc, ast.Expr)
    }


def template() -> str:
    """A `voxloop.toml` that names every setting, each commented out at its default."""
    lines = ["# Settings of this workspace. Remove the # of a line to change it.", ""]
    for name, default, meaning in described():
        value = list(default) if isinstance(default, tuple) else default
        shown = json.dumps(value)
        lines += [f"# {meaning}", f"# {name} = {shown}", ""]
    return "\n".join(lines)


def parse_ratios(text: str) -> tuple[float, float, float]:
    """`0.8/0.1/0.1` (or with commas) as three shares; percentages that sum to 100 are taken too."""
    try:
        parts = [float(part) for part in text.replace(",", "/").split("/")]
    except ValueError:
        parts = []
    if len(parts) == 3 and abs(sum(parts) - 100) < 1e-6:
        parts = [part / 100 for part in parts]
    if len(parts) != 3 or any(p < 0 for p in parts) or abs(sum(parts) - 1) > 1e-6:
        raise SettingError(
            f"ratios {text!r}: give three shares (train/val/test) that add up to 1, such as 0.8/0.1/0.1 or 80/10/10"
        )
    return parts[0], parts[1], parts[2]


_KINDS = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text",
    tuple: "three shares",
    dict: "a table",
}
_BOOLEANS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def _convert(name: str, value: Any, like: Any, where: str) -> Any:
    """A value from a file or the environment in the type of its default."""
    try:
        if isinstance(like, dict):
            made = json.loads(value) if isinstance(value, str) else value
            return {str(key): item for key, item in made.items()}
        if name != "ratios" and isinstance(like, tuple):
            names = value.split(",") if isinstance(value, str) else value
            return tuple(part.strip() for part in names if part.strip())
        if isinstance(like, tuple):
            if not value:
                return ()
            return parse_ratios(value if isinstance(value, str) else "/".join(str(v) for v in value))
        if isinstance(like, bool):
            return _BOOLEANS[str(value).lower()]
        if isinstance(like, int):
            return int(value)
        if isinstance(like, float):
            return float(value)
        return str(value)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SettingError(f"{where}: {name} is {value!r}; it must be {_KINDS[type(like)]}") from error


def resolve(
    folder: Path, *, environ: Mapping[str, str] | None = None, overrides: Mapping[str, Any] | None = None
) -> Settings:
    """The settings of the workspace in `folder`. Raises SettingError naming the wrong name or value."""
    defaults = Settings()
    known = {f.name: getattr(defaults, f.name) for f in fields(Settings)}
    values: dict[str, Any] = {}
    config = folder / CONFIG_NAME
    if config.exists():
        try:
            given = tomllib.loads(config.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise SettingError(f"{config} cannot be read as text in UTF-8: {error}") from error
        except tomllib.TOMLDecodeError as error:
            raise SettingError(f"{config} is not valid TOML: {error}") from error
        for name, value in given.items():
            if name not in known:
                raise SettingError(f"{config}: there is no setting {name!r}{nearest(name, known)}")
            values[name] = _convert(name, value, known[name], str(config))
    environ = os.environ if environ is None else environ
    for variable, text in environ.items():
        name = variable.removeprefix(PREFIX).lower()
        if not variable.startswith(PREFIX) or variable == WORKSPACE_VARIABLE:
            continue
        if name not in known:
            raise SettingError(f"environment: there is no setting {variable}{nearest(name, known)}")
        values[name] = _convert(name, text, known[name], f"environment variable {variable}")
    for name, value in (overrides or {}).items():
        if name not in known:
            raise SettingError(f"there is no setting {name!r}{nearest(name, known)}")
        values[name] = value
    return replace(defaults, **values)


def workspace_folder(given: Path | None = None, *, environ: Mapping[str, str] | None = None) -> Path:
    """The workspace that is meant: the one given, VOXLOOP_WORKSPACE, or `voxloop-workspace` here."""
    environ = os.environ if environ is None else environ
    return given or Path(environ.get(WORKSPACE_VARIABLE) or DEFAULT_WORKSPACE)
