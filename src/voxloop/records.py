"""The records that flow through the loop: plain frozen values, no input or output.

Times are counted in samples of the stored audio, and given in seconds at the interface.
`stores/catalog.py` defines how records are stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

SAMPLE_RATE = 16_000  # Hz: every recording is stored at this rate, mono
MAX_UTTERANCE_S = 30.0  # Whisper's window (arXiv:2212.04356, section 2.2)
MAX_UTTERANCE_SAMPLES = int(MAX_UTTERANCE_S * SAMPLE_RATE)  # 480,000 samples

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

# reference -> withdrawn (undone) -> reference; the others stay what they are
TranscriptKind = Literal["hypothesis", "clean", "reference", "withdrawn"]

# new -> transcribed -> reviewed; new | transcribed -> rejected; rejected -> reviewed
# any -> deleted -> what it was before (undo), or erased once the undo time has passed
UtteranceStatus = Literal["new", "transcribed", "reviewed", "rejected", "deleted"]
LEFT_OUT: tuple[UtteranceStatus, ...] = ("rejected", "deleted")  # neither transcribed again nor in later datasets

# queued -> running -> completed | failed
# queued | running -> paused (pause, Ctrl-C) | stopped (stop: what was learnt is kept as a model, or discarded)
# running -> interrupted (its processes died without a word)
# paused | interrupted | failed -> queued (resume) | stopped (stop)
RunStatus = Literal["queued", "running", "completed", "failed", "stopped", "paused", "interrupted"]
RunWish = Literal["pause", "stop", "discard"]

# What was suspicious while a text was decoded (families/contract.py: Guards)
Guard = Literal["repetition", "low probability", "no speech", "silence", "cut off"]

Verdict = Literal["promote", "reject", "insufficient evidence"]


def seconds(samples: int) -> float:
    """Samples at 16 kHz as seconds."""
    return samples / SAMPLE_RATE


def plain(value: Any) -> Any:
    """A record, or anything that holds records, in the types that JSON has.

    A record becomes a dictionary of its fields, or what its own `as_dict` returns: that is how a record adds what it
    derives from its fields. Every surface (`--json`, and an HTTP API alike) shows records in this form.
    """
    if is_dataclass(value) and not isinstance(value, type):
        own = getattr(value, "as_dict", None)
        return plain(own() if own else {f.name: getattr(value, f.name) for f in fields(value)})
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


Progress = Callable[[float, float | None], None]
"""Called during long work with the units done and the total (None: unknown)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """Measurements of the audio at ingest; not a judgement of it."""

    level_dbfs: float  # RMS level relative to a full-scale square wave
    peak_dbfs: float  # highest absolute sample
    snr_db: float | None  # None where no estimate is possible (too short, digital silence)
    clipping: float  # share of samples at or next to full scale, 0 to 1
    silence: float  # share of 20 ms frames more than 40 dB below the loudest, 0 to 1
    bandwidth_hz: float | None  # frequency below which 99 % of the energy lies

    @property
    def soundless(self) -> bool:
        """Whether there is nothing to hear: digital silence, or a constant level."""
        return self.silence >= 1.0  # the loudest frame of any sound is not silent


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoding:
    """How a file encoded its audio before conversion to the stored format."""

    codec: str  # pcm_16, flac, mp3, opus, aac, …
    rate: int  # Hz
    channels: int


@dataclass(frozen=True, kw_only=True, slots=True)
class GivenSegment:
    """A span of a recording that its metadata names; not yet an utterance, and it may be longer than 30 s."""

    start: int  # samples from the recording's beginning
    end: int  # samples, exclusive
    text: str | None = None
    speaker: str | None = None
    language: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """One piece of audio, stored once under the hash of its samples; not a file on the user's disk."""

    id: str  # sha256-<hex> of the canonical PCM (little-endian int16, 16 kHz, mono)
    source: str  # where it came from: a path, a bucket key, "capture"
    name: str  # the original file name
    samples: int
    speaker: str | None = None
    language: str | None = None  # ISO 639-1 code, as Whisper names languages
    consent: str | None = None
    session: str | None = None
    text: str | None = None  # what the given metadata says was spoken, from beginning to end
    segments: tuple[GivenSegment, ...] = ()  # what the given metadata says was spoken where
    quality: Quality | None = None
    encoding: Encoding | None = None  # of its source file; None if it was not recorded
    remains: str | None = None  # sha256-<hex> of the PCM if a stretch was erased (silenced); None: as ingested
    created: float = 0.0  # seconds since the epoch

    @property
    def duration(self) -> float:
        """Seconds."""
        return seconds(self.samples)


@dataclass(frozen=True, kw_only=True, slots=True)
class Utterance:
    """A span of a recording that is transcribed as one text, at most 30 s; holds no audio itself."""

    id: str  # <recording id>:<start>-<end>
    recording: str
    start: int  # samples from the recording's beginning
    end: int  # samples, exclusive
    speaker: str | None = None
    language: str | None = None
    split: Split | None = None  # decided once, when first frozen into a dataset
    status: UtteranceStatus = "new"
    quality: Quality | None = None
    priority: float = 0.0  # higher is reviewed sooner
    doubt: str | None = None  # why a dataset left its text out until a person confirms it

    @property
    def samples(self) -> int:
        return self.end - self.start

    @property
    def duration(self) -> float:
        """Seconds."""
        return seconds(self.samples)


def utterance_id(recording: str, start: int, end: int) -> str:
    """The id of samples `start` to `end` of a recording."""
    return f"{recording}:{start}-{end}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Word:
    """A word with its place, in seconds from the start of its utterance (in `FileTranscript`: of its file)."""

    text: str
    start: float
    end: float
    probability: float  # mean of its tokens'


@dataclass(frozen=True, kw_only=True, slots=True)
class Transcript:
    """One text of one utterance. Its text never changes: a correction is a new transcript, undone it is withdrawn."""

    id: str  # ULID, or a name derived from what was transcribed by which model
    utterance: str
    kind: TranscriptKind  # hypothesis: a model's; clean: post-processed; reference: a person's; withdrawn: undone
    text: str
    by: str  # a person, "metadata", or the model's id
    confidence: float | None = None  # mean probability of the tokens, 0 to 1
    words: tuple[Word, ...] = ()
    language: str | None = None  # that the model was told or detected
    language_probability: float | None = None  # None where it was told
    no_speech: float | None = None  # the model's own probability that nobody speaks
    guards: tuple[Guard, ...] = ()  # what was suspicious while it was decoded
    temperature: float | None = None  # at which it was sampled; 0: the likeliest text
    created: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """A frozen set of utterances with their texts; never edited, only followed by a new version."""

    id: str  # sha256-<hex> of its manifest
    name: str
    filters: dict[str, Any]
    clips: dict[str, int]  # utterances by split
    hours: dict[str, float]  # by split
    excluded: dict[str, int] = field(default_factory=dict)  # utterances left out, by reason
    parent: str | None = None
    manifest: str | None = None  # blob key of what is left, where something was forgotten; None: as it was frozen
    forgotten: int = 0  # utterances that were frozen in it and removed since
    created: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One training of one model on one dataset; its folder holds everything else."""

    id: str  # ULID
    dataset: str
    base: str  # a model's id, a Hub id, a folder, or "starter"
    family: str
    method: Literal["lora", "full"]
    recipe: dict[str, Any]  # complete: every setting with its value
    status: RunStatus = "queued"
    progress: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    model: str | None = None
    created: float = 0.0
    finished: float | None = None
    wanted: RunWish | None = None  # a request that has not been carried out yet
    retry_of: str | None = None  # the run whose settings it reuses

    @property
    def no_better(self) -> bool:
        """Whether training found no gain on val, so that the kept weights are those of the base."""
        return (self.progress.get("best") or {}).get("step") == 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """Weights that can transcribe, with where they came from; not an alias such as `champion`."""

    id: str  # sha256-<hex> over its files' names and hashes
    family: str
    base: str
    kind: Literal["full", "adapter"]  # adapter: trained as LoRA, stored merged with the adapter beside it
    where: str  # blob prefix, a Hub id or a folder
    run: str | None = None
    files: dict[str, str] = field(default_factory=dict)  # name -> sha256-<hex>
    forgotten: int = 0  # utterances used for its training or selection and since removed; it cannot unlearn them
    name: str | None = None  # given by a person
    created: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """The scores of one model on one frozen split under fixed decoding settings."""

    id: str  # hash of model, dataset, split, decoding and normaliser
    model: str
    dataset: str
    split: Split
    decoding: dict[str, Any]
    normaliser: str
    scores: dict[str, Any]  # wer, cer, substitutions, insertions, deletions, words, intervals
    hypotheses: str  # blob key of a JSONL: utterance, recording, speaker, reference, hypothesis, confidence
    created: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Promotion:
    """One promotion or rollback of an alias, with its evidence; the history is never rewritten."""

    id: str  # ULID
    alias: str
    model: str
    previous: str | None
    verdict: Verdict | Literal["rollback", "by hand"]
    evidence: dict[str, Any]
    by: str
    created: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that happened, recorded once: emitting the same id again changes nothing."""

    id: str  # "<type>:<key>"
    type: str
    subject: str  # id of the record it is about
    payload: dict[str, Any] = field(default_factory=dict)
    seq: int = 0
    created: float = 0.0
