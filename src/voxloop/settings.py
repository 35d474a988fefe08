"""Every setting: its default, its meaning and where it can be set.

Only this module reads the environment and `voxloop.toml`. In increasing order of precedence:
the default, `voxloop.toml` in the workspace, `VOXLOOP_<NAME>` in the environment, a keyword argument.
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
TOKEN_VARIABLE = "VOXLOOP_TOKEN"  # a secret, and so no setting
WEBHOOK_SECRET_VARIABLE = "VOXLOOP_WEBHOOK_SECRET"  # another one
DEFAULT_WORKSPACE = "voxloop-workspace"
PREFIX = "VOXLOOP_"
MOST_BONUS = 5.0  # added to a token's log-probability; with more, vocabulary terms appear everywhere
AUDIO_CONTEXTS = ("auto", "adaptive", "packed", "full", "trimmed")
ENGINES = ("torch", "ctranslate2", "auto")
INBOX_LEVELS = ("speaker", "language", "session")
COMPUTE_TYPES = ("int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16", "float16", "bfloat16", "float32")

# For processes that compute. Read once, when torch loads OpenMP. Threads that wait by spinning take a core from other
# processes: transcription was 20 times slower next to another busy process. Threads that sleep at once have to be
# woken for every operation: a training step took a fifth longer. So GNU's threads spin for about 0.2 ms (docs/log.md).
THREADS_WAIT = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "4000"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The resolved settings of one workspace. An empty URL means the embedded store inside the workspace."""

    catalog: str = field(default="", repr=False)  # may hold a password
    """SQLAlchemy URL of the catalog, such as postgresql+psycopg://USER:PASSWORD@HOST/DATABASE (needs the extra
    `postgres`). Empty: SQLite in the workspace."""
    blobs: str = field(default="", repr=False)
    """URL of the object store (file://, s3://BUCKET/PREFIX, gs:// or az://). Empty: the folder `blobs` in the
    workspace. Endpoint and credentials come from the environment, such as AWS_ENDPOINT and AWS_ACCESS_KEY_ID."""
    blob_cache_gb: float = 20.0
    """Disk space for local copies of blobs from a remote store, in GB. Copies in use can exceed it."""
    vectors: str = field(default="", repr=False)
    """Where vectors for similarity search are kept: qdrant+http://HOST:6333 or qdrant+https://HOST:6333/PREFIX (needs
    the extra `qdrant`; the key comes from QDRANT_API_KEY). Empty: the catalog."""
    bus: str = field(default="local", repr=False)
    """How workers learn of new jobs, and where events are published: `local` (workers poll the job table; nothing is
    published), or nats://HOST:4222 or nats://HOST:4222/NAME (needs the extra `nats`; credentials come from NATS_USER
    and NATS_PASSWORD, NATS_TOKEN or NATS_CREDS). Workspaces that share a server need different names."""
    base_model: str = "starter"
    """Model that transcribes until there is a champion: `starter`, a Hub id such as openai/whisper-small (add @REVISION
    to pin a version), a folder in transformers or CTranslate2 format, or the faster-whisper name of a cached model
    (`base`, `tiny.en`). A Hub id is resolved once; after that the workspace stays with that commit."""
    embedding_model: str = "starter"
    """Model that computes the vectors for similarity search: `starter`, `base` (the model in `base_model`), a Hub id or
    a folder. It cannot be the champion, because vectors of different models are not comparable. After a change,
    `voxloop verify --repair` queues every utterance for new vectors."""
    language: str = ""
    """Language of recordings that do not name one (ISO 639-1). Empty: the model detects it."""
    device: str = ""
    """Device for models: `cpu`, `cuda` or `cuda:1`. Empty: the first GPU, or the CPU if there is none."""
    engine: str = "auto"
    """Inference engine: `auto` (`ctranslate2` on a CPU, `torch` on a GPU and for families that only PyTorch runs),
    `ctranslate2` or `torch`. Evaluation, promotion, transcription and serving all use the same model files."""
    compute_type: str = ""
    """Number format for CTranslate2: `int8`, `float32`, `float16`, `int8_float16` and others. Empty: int8 on a CPU,
    float16 on a GPU."""
    serving_engines: tuple[str, ...] = ()
    """Engines that will serve the champion, such as `ctranslate2-int8, torch`. A model is promoted only if it is no
    worse on any of them; the verdict rests on the first. Empty: only `engine`."""
    threads: int = 0
    """CPU threads for models. 0: one per core."""
    audio_context: str = "auto"
    """Length of Whisper's input window: `auto` (as in the model's fine-tuning, or `full` if it was not fine-tuned),
    `adaptive` (twice the clip, at least 10 s, and 30 s if the text is doubtful), `packed` (short clips
    share a 30 s window; needs `ctranslate2` and a known language), `full` (30 s), or `trimmed` (the clip
    itself; only for models fine-tuned this way)."""
    batch_seconds: float = 120.0
    """Seconds of audio per transcription batch, including padding."""
    word_times: bool = True
    """Store the time and probability of each word. Makes transcription slightly slower."""
    guards: bool = True
    """Decode again at rising temperatures if a text repeats itself or is improbable, and drop texts in silence."""
    guard_compression: float = 2.4
    """A text with a higher zlib compression ratio counts as repeating itself (Whisper's default)."""
    guard_logprob: float = -1.0
    """A text with a lower mean token log-probability counts as improbable (Whisper's default)."""
    guard_no_speech: float = 0.6
    """An improbable text with a higher no-speech probability is dropped (Whisper's default)."""
    beams: int = 1
    """Beam width for decoding. 1: greedy decoding. Decoding time grows about in proportion; errors fall slightly."""
    prompt: str = ""
    """Text that Whisper treats as preceding each utterance, so that its spelling and style carry over. Only the last
    223 tokens are used."""
    vocabulary_bonus: float = 2.0
    """Bonus for terms of the vocabulary (`voxloop vocabulary`): added to the log-probability of each token of a
    complete term. 0: no bonus; at most 5."""
    vocabulary_prompt: bool = False
    """Also put as many vocabulary terms as fit in the prompt of each utterance."""
    channels: str = "mix"
    """Multi-channel files: `mix` the channels, or `split` them into one recording with its own speaker per channel."""
    max_file_mb: int = 4096
    """Largest file to ingest, in MB; larger files are refused."""
    max_recording_hours: float = 24.0
    """Longest recording to ingest, in hours; longer recordings are refused."""
    vad_threshold: float = 0.5
    """A frame with a higher speech probability counts as speech (Silero's default)."""
    vad_min_silence_ms: int = 300
    """Shortest pause, in milliseconds, that ends an utterance."""
    vad_pad_ms: int = 100
    """Audio kept before and after detected speech, in milliseconds."""
    ratios: tuple[float, float, float] | tuple[()] = ()
    """Shares of train, val and test, such as [0.8, 0.1, 0.1]. Empty: chosen from the number of clips so that the test
    split is large enough for a verdict, if there are enough clips."""
    min_clip_s: float = 0.0
    """Shortest utterance in a dataset, in seconds. 0: a bound derived from the clips."""
    max_clip_s: float = 30.0
    """Longest utterance in a dataset, in seconds."""
    min_snr_db: float = 5.0
    """Lowest signal-to-noise ratio of an utterance in a dataset, in dB."""
    promote_confidence: float = 0.95
    """Share of promotions that must be real improvements. With 0.95, at most 5 % of all promotions over time are
    false."""
    promote_min_utterances: int = 20
    """Fewest test utterances for a verdict; with fewer, it is `insufficient evidence`. If this many test texts do not
    occur in training, the verdict rests on them alone."""
    promote_min_improvement: float = 0.02
    """Smallest relative reduction of the champion's word errors. 0.02: two errors fewer in a hundred."""
    promote_slice_margin: float = 0.01
    """Largest allowed increase in word error rate for any speaker, language or clip length. 0.01: one word in a
    hundred."""
    promote_joined_margin: float = 0.10
    """Largest allowed increase in word error rate on clips joined to 30 s. Larger than the other margins because there
    are only a few such inputs."""
    promote_silence_words: int = 0
    """Additional words that a challenger may output where nobody speaks, whether or not the increase is significant."""
    promote_general: str = ""
    """Name or id of a second dataset on whose test split a challenger must not be worse. Empty: none."""
    promote_general_margin: float = 0.02
    """Largest allowed increase in word error rate on `promote_general`."""
    checkpoints_to_blobs: str = "auto"
    """Copy each checkpoint to the blob store so that a run can continue on another machine: `on`, `off`, or `auto` (on
    if the blobs are not in a local folder or the catalog is not SQLite)."""
    lease_s: float = 30.0
    """Duration of a worker's lease on a job, in seconds; workers renew it while they work."""
    max_attempts: int = 5
    """Attempts per job before it counts as failed for good (`dead`)."""
    keep_jobs_days: float = 30.0
    """Days before finished jobs are deleted."""
    review_lease_s: float = 600.0
    """Seconds for which an utterance is reserved for the reviewer who took it."""
    review_skip_s: float = 3600.0
    """Seconds before a skipped utterance comes back, unless nothing else is left to review."""
    review_undo_s: float = 86400.0
    """Seconds for which deleting an utterance can be undone. After that, its audio and texts are erased."""
    trackers: tuple[str, ...] = ()
    """Experiment trackers that also show training runs: `tensorboard`, `trackio`, `wandb`. Each needs the extra of that
    name. Nothing is sent to other machines."""
    serve_hosts: tuple[str, ...] = ()
    """Host names that the server accepts besides the address it listens on, such as the name of a proxy."""
    serve_origins: tuple[str, ...] = ()
    """Origins of other sites and programs whose pages may use the server, such as `app://obsidian.md`."""
    serve_prefix: str = ""
    """Path under which a proxy forwards requests, such as `/voxloop`."""
    serve_max_upload_mb: int = 512
    """Largest request to the server, in MiB."""
    serve_max_audio_hours: float = 4.0
    """Longest file sent to the server, in hours."""
    serve_models: int = 4
    """Models that the server keeps in memory: the one in use, and those that requests named last."""
    serve_max_wait_s: float = 30.0
    """Longest expected wait of a request, in seconds; beyond it the client is told to retry later."""
    serve_audio_per_minute: float = 0.0
    """Minutes of audio per minute that one token may send. 0: no limit."""
    serve_sessions: int = 16
    """Live sessions that one token may have open at a time."""
    serve_idle_s: float = 600.0
    """Seconds without a message after which a live session ends."""
    capture: str = "off"
    """Keep what the server hears as recordings to review: `off`, `asked` (where a request or session says `capture`),
    or `all` (unless it says `store` or `capture` false)."""
    capture_keep_days: float = 30.0
    """Days after which captured recordings that nobody reviewed are removed. 0: they stay."""
    capture_queue_minutes: float = 10.0
    """Minutes of captured audio that may wait to be written, in memory; what is beyond is answered, but not kept."""
    serve_requests_per_minute: int = 3000
    """Requests per minute to the review's API that one token may make. 0: no limit."""
    inbox: str = ""
    """Folder whose audio files `voxloop watch` ingests as they arrive. Empty: `inbox` in the workspace."""
    inbox_url: str = ""
    """Bucket prefix whose audio is ingested as well: s3://BUCKET/PREFIX, gs:// or az://. Objects move to `processed/`
    or `failed/` beside the prefix, or are remembered where the key may only read. Empty: none."""
    processed: str = ""
    """Folder to which ingested files move, under the same relative path. Empty: `processed` next to the inbox."""
    failed: str = ""
    """Folder to which files that cannot be ingested move, each with a `.reason.txt`. Empty: `failed` next to the
    inbox."""
    inbox_levels: tuple[str, ...] = ()
    """What the folders inside the inbox name, from the top: `speaker`, `language` or `session`. With `speaker`, the
    files in `inbox/ann/` are by the speaker ann."""
    inbox_scan_s: float = 30.0
    """Seconds between two scans of the inbox. Changes that the system reports are looked at sooner."""
    inbox_settle_s: float = 2.0
    """Seconds for which a file's size and time must not have changed before it is ingested."""
    usable_machine_share: float = 0.8
    """Largest share of machine text in the hours of usable speech that an automatic run trains on, from 0 (none) to
    1."""
    usable_confidence: float = 0.8
    """Lowest confidence of machine text that an automatic run trains on."""
    usable_agreement: float = 0.9
    """Share of the words on which two decodings of a clip must agree for its machine text to be usable."""
    usable_min_s: float = 1.0
    """Shortest utterance, in seconds, whose machine text is usable."""
    train_hours: float = 5.0
    """Hours of new usable speech that start an automatic run. 0: no run starts because of the hours."""
    train_cron: str = "02:00"
    """When an automatic run starts if there is any new usable speech: a time of day (`02:00`) or a cron line
    (`0 2 * * 1-5`). Empty: never."""
    time_zone: str = ""
    """Time zone of `train_cron`, such as `Asia/Ho_Chi_Minh`. Empty: the machine's."""
    train_recipe: str = ""
    """Recipe of automatic runs. Empty: chosen by model size and training speech."""
    train_set: tuple[str, ...] = ()
    """Settings of the recipe to override in automatic runs, such as `max_seconds=7200`."""
    train_retries: int = 3
    """How often an automatic run that failed is tried again."""
    train_retry_s: float = 60.0
    """Seconds before the first new try of a failed automatic run. Each later one waits four times as long."""
    backup_to: str = ""
    """Folder for a backup before every training run, outside the workspace. Empty: none."""
    backup_keep: int = 3
    """Newest backups that are kept in `backup_to`. Unchanged files are shared between them."""
    backup_required: bool = True
    """Whether a failed backup stops the run. If false, it is only reported."""
    webhook_url: str = field(default="", repr=False)  # may hold a password
    """Address to which the orchestrator posts chosen events, signed with the secret in the variable
    VOXLOOP_WEBHOOK_SECRET. Empty: none."""
    webhook_events: tuple[str, ...] = ("model.promoted", "model.rolled_back", "training.given_up", "review.asked")
    """Events that are posted to `webhook_url`."""
    poll_s: float = 0.5
    """Seconds between an idle worker's looks for new jobs; ten times as long while a server wakes it."""
    normaliser: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Text normalisation for languages that need other rules than the default. At the end of the file, add a table per
    language, such as `[normaliser.vi]`, with `base` (whisper-english, whisper-basic, none), `numbers` (digits, whole,
    as-written), `case` (lower, keep), `punctuation` (remove, keep), `diacritics` (keep, remove) and `words` (spaces,
    characters). In the environment: JSON."""

    def __post_init__(self) -> None:
        if self.ratios and (
            len(self.ratios) != 3 or any(r < 0 for r in self.ratios) or abs(sum(self.ratios) - 1) > 1e-6
        ):
            raise SettingError(
                f"ratios is {'/'.join(map(str, self.ratios))}. Give three shares (train/val/test) that add up to 1, "
                "such as 0.8/0.1/0.1."
            )
        if self.review_undo_s < 0:
            raise SettingError(f"review_undo_s is {self.review_undo_s}. It must be 0 or more.")
        for name in (
            *("lease_s", "review_lease_s", "poll_s", "batch_seconds", "max_recording_hours", "keep_jobs_days"),
            "blob_cache_gb",
            *("inbox_scan_s", "inbox_settle_s", "train_retry_s", "backup_keep"),
        ):
            if getattr(self, name) <= 0:
                raise SettingError(f"{name} is {getattr(self, name)}. It must be above 0.")
        for name in ("usable_machine_share", "usable_confidence", "usable_agreement"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingError(f"{name} is {getattr(self, name)}. It must be from 0 to 1.")
        for name in ("train_hours", "usable_min_s", "train_retries"):
            if getattr(self, name) < 0:
                raise SettingError(f"{name} is {getattr(self, name)}. It must be 0 or more.")
        for level in self.inbox_levels:
            if level not in INBOX_LEVELS:
                raise SettingError(f"inbox_levels contains {level!r}. Use {', '.join(INBOX_LEVELS)}.")
        if self.guard_compression <= 0 or self.guard_logprob >= 0 or not 0 <= self.guard_no_speech <= 1:
            raise SettingError(
                f"guard_compression, guard_logprob and guard_no_speech are {self.guard_compression}, "
                f"{self.guard_logprob} and {self.guard_no_speech}. Give a ratio above 0, a log-probability below 0 and "
                "a probability from 0 to 1, or turn the guards off with `guards = false`."
            )
        if self.beams < 1:
            raise SettingError(f"beams is {self.beams}. It must be 1 or more.")
        if not 0 <= self.vocabulary_bonus <= MOST_BONUS:
            raise SettingError(f"vocabulary_bonus is {self.vocabulary_bonus}. It must be from 0 to {MOST_BONUS:g}.")
        try:
            # The way to set a field of a frozen dataclass during construction.
            object.__setattr__(self, "language", language_code(self.language) or "")
        except UnknownLanguage as error:
            raise SettingError(f"language is {self.language!r}: {error}") from error
        _text.check_changes(self.normaliser)
        if self.embedding_model in ("", "champion"):
            raise SettingError(
                f"embedding_model is {self.embedding_model!r}, but vectors of different models are not comparable. "
                "Give a model that does not change: `starter`, `base`, a Hub id or a folder."
            )
        if self.engine not in ENGINES:
            raise SettingError(f"engine is {self.engine!r}. It must be one of {', '.join(ENGINES)}.")
        if self.compute_type and self.compute_type not in COMPUTE_TYPES:
            raise SettingError(
                f"compute_type is {self.compute_type!r}. It must be empty or one of {', '.join(COMPUTE_TYPES)}."
            )
        for served in self.serving_engines:
            name, _, compute_type = served.partition("-")
            if name not in ENGINES or (compute_type and (name != "ctranslate2" or compute_type not in COMPUTE_TYPES)):
                raise SettingError(
                    f"serving_engines contains {served!r}. Use {', '.join(ENGINES)}, or ctranslate2 with a number "
                    f"format ({', '.join(COMPUTE_TYPES)}), such as ctranslate2-int8."
                )
        if self.checkpoints_to_blobs not in ("auto", "on", "off"):
            raise SettingError(f"checkpoints_to_blobs is {self.checkpoints_to_blobs!r}. It must be auto, on or off.")
        if self.audio_context not in AUDIO_CONTEXTS:
            raise SettingError(
                f"audio_context is {self.audio_context!r}. It must be one of {', '.join(AUDIO_CONTEXTS)}."
            )
        if self.capture not in ("off", "asked", "all"):
            raise SettingError(f"capture is {self.capture!r}. It must be off, asked or all.")
        if self.capture_keep_days < 0 or self.capture_queue_minutes <= 0:
            raise SettingError(
                f"capture_keep_days and capture_queue_minutes are {self.capture_keep_days} and "
                f"{self.capture_queue_minutes}. The first must be 0 or more, the second above 0."
            )
        if self.channels not in ("mix", "split"):
            raise SettingError(f"channels is {self.channels!r}. It must be mix or split.")
        if self.max_attempts < 1:
            raise SettingError(f"max_attempts is {self.max_attempts}. It must be 1 or more.")
        if not 0.5 <= self.promote_confidence < 1:
            raise SettingError(f"promote_confidence is {self.promote_confidence}. It must be at least 0.5 and below 1.")
        for name in (
            "promote_min_improvement",
            "promote_slice_margin",
            "promote_joined_margin",
            "promote_general_margin",
        ):
            if not 0 <= getattr(self, name) < 1:
                raise SettingError(f"{name} is {getattr(self, name)}. It must be at least 0 and below 1.")
        if self.promote_silence_words < 0:
            raise SettingError(f"promote_silence_words is {self.promote_silence_words}. It must be 0 or more.")


def described() -> list[tuple[str, Any, str]]:
    """Every setting with its default and meaning."""
    defaults = Settings()
    return [(name, getattr(defaults, name), meaning) for name, meaning in meanings(Settings).items()]


def meanings(settings: type) -> dict[str, str]:
    """The meaning of each field of a settings class, from the docstring below it."""
    tree = ast.parse(inspect.getsource(settings))
    body = cast("ast.ClassDef", tree.body[0]).body
    return {
        stated.target.id: " ".join(str(cast("ast.Constant", doc.value).value).split())
        for stated, doc in itertools.pairwise(body)
        if isinstance(stated, ast.AnnAssign) and isinstance(stated.target, ast.Name) and isinstance(doc, ast.Expr)
    }


def template() -> str:
    """A `voxloop.toml` with every setting commented out at its default."""
    lines = ["# Settings of this workspace. To change one, remove the # before its name.", ""]
    for name, default, meaning in described():
        value = list(default) if isinstance(default, tuple) else default
        shown = json.dumps(value)
        lines += [f"# {meaning}", f"# {name} = {shown}", ""]
    return "\n".join(lines)


def parse_ratios(text: str) -> tuple[float, float, float]:
    """Parse `0.8/0.1/0.1` (commas also work) into three shares. Accepts percentages that add up to 100."""
    try:
        parts = [float(part) for part in text.replace(",", "/").split("/")]
    except ValueError:
        parts = []
    if len(parts) == 3 and abs(sum(parts) - 100) < 1e-6:
        parts = [part / 100 for part in parts]
    if len(parts) != 3 or any(p < 0 for p in parts) or abs(sum(parts) - 1) > 1e-6:
        raise SettingError(
            f"ratios is {text!r}. Give three shares (train/val/test) that add up to 1, such as 0.8/0.1/0.1 or 80/10/10."
        )
    return parts[0], parts[1], parts[2]


_KINDS = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    tuple: "three shares",
    dict: "a table",
}
_BOOLEANS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def _convert(name: str, value: Any, like: Any, where: str) -> Any:
    """Convert a value from a file or the environment to the type of its default."""
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
        raise SettingError(f"{where}: {name} is {value!r}. It must be {_KINDS[type(like)]}.") from error


def resolve(
    folder: Path, *, environ: Mapping[str, str] | None = None, overrides: Mapping[str, Any] | None = None
) -> Settings:
    """Resolve the settings of the workspace in `folder`. Raises SettingError for an unknown name or invalid value."""
    defaults = Settings()
    known = {f.name: getattr(defaults, f.name) for f in fields(Settings)}
    values: dict[str, Any] = {}
    config = folder / CONFIG_NAME
    if config.exists():
        try:
            given = tomllib.loads(config.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise SettingError(f"cannot read {config} as UTF-8 text: {error}") from error
        except tomllib.TOMLDecodeError as error:
            raise SettingError(f"{config} is not valid TOML: {error}") from error
        for name, value in given.items():
            if name not in known:
                raise SettingError(f"{config}: unknown setting {name!r}{nearest(name, known)}")
            values[name] = _convert(name, value, known[name], str(config))
    environ = os.environ if environ is None else environ
    for variable, text in environ.items():
        name = variable.removeprefix(PREFIX).lower()
        if not variable.startswith(PREFIX) or variable in (
            WORKSPACE_VARIABLE,
            TOKEN_VARIABLE,
            WEBHOOK_SECRET_VARIABLE,
        ):
            continue
        if name not in known:
            raise SettingError(f"environment: unknown setting {variable}{nearest(name, known)}")
        values[name] = _convert(name, text, known[name], f"environment variable {variable}")
    for name, value in (overrides or {}).items():
        if name not in known:
            raise SettingError(f"unknown setting {name!r}{nearest(name, known)}")
        values[name] = value
    return replace(defaults, **values)


def nats_secrets(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The credentials for NATS in the environment, by the names of its own command line, as the client takes them."""
    environ = os.environ if environ is None else environ
    known = {
        "NATS_USER": "user",
        "NATS_PASSWORD": "password",
        "NATS_TOKEN": "token",
        "NATS_CREDS": "user_credentials",  # a file
    }
    return {name: environ[variable] for variable, name in known.items() if environ.get(variable)}


def qdrant_key(environ: Mapping[str, str] | None = None) -> str | None:
    """Qdrant's API key in the environment, if there is one."""
    environ = os.environ if environ is None else environ
    return environ.get("QDRANT_API_KEY") or None


def workspace_folder(given: Path | None = None, *, environ: Mapping[str, str] | None = None) -> Path:
    """The workspace folder: the one given, else VOXLOOP_WORKSPACE, else `voxloop-workspace` in the current folder."""
    environ = os.environ if environ is None else environ
    return given or Path(environ.get(WORKSPACE_VARIABLE) or DEFAULT_WORKSPACE)
