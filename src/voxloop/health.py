"""Usage and health: how fast each step works, what it takes, what succeeded and what goes wrong most often."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import psutil
import sqlalchemy as sa

from voxloop.errors import first_line
from voxloop.records import Dataset, Evaluation, Run, seconds
from voxloop.steps.gate.promotion import attempts
from voxloop.stores import tables

if TYPE_CHECKING:
    from voxloop.stores.catalog import Reader
    from voxloop.workspace import Workspace

SHOWN_RUNS = 20  # newest
SHOWN_TROUBLES = 12
DEAD_READ = 2000  # failed jobs that are read to count their errors
VARIES = re.compile(r"sha256-[0-9a-f]+|\b[0-9A-HJKMNP-TV-Z]{26}\b|/\S+|\b\d[\d.,]*\b|'[^']*'")  # what differs by case

REMEDIES = {
    "job": "Mend the cause that the message names, then retry the failed jobs.",
    "run": "See the run on the Training page: its message says what to change; then retry or resume it.",
    "file": "Mend the file as the message says, then ingest it again.",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """How long a step works on an hour of audio."""

    step: str
    jobs: int
    work_s: float
    audio_s: float

    @property
    def per_hour_s(self) -> float | None:
        """Seconds of work per hour of audio; None where no audio is counted."""
        return 3600 * self.work_s / self.audio_s if self.audio_s else None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"per_hour_s": self.per_hour_s}


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcomes:
    """How often something succeeded."""

    what: str
    succeeded: int
    failed: int
    open: int  # not ended, or ended on request

    @property
    def share(self) -> float | None:
        """The share of those that ended by themselves; None if none did."""
        ended = self.succeeded + self.failed
        return self.succeeded / ended if ended else None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"share": self.share}


@dataclass(frozen=True, kw_only=True, slots=True)
class RunUsage:
    """What a run took."""

    run: str
    status: str
    created: float
    elapsed_s: float | None
    peak_memory_bytes: int | None
    clips_per_s: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Trouble:
    """An error that occurred at least once, and what to do about it."""

    kind: str  # job, run or file
    where: str  # the step, or what was refused
    message: str  # the newest such message
    count: int
    remedy: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """A dataset's size when it was frozen."""

    id: str
    name: str
    created: float
    clips: int
    hours: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """The figures of a workspace."""

    pace: tuple[Pace, ...]
    jobs: dict[str, dict[str, int]]  # by step and state
    outcomes: tuple[Outcomes, ...]
    languages: dict[str, float]  # hours by language, most first
    sizes: tuple[Size, ...]  # oldest first
    runs: tuple[RunUsage, ...]  # newest first
    troubles: tuple[Trouble, ...]  # most frequent first


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What this machine or a process uses now."""

    cpu: float  # cores in use
    cores: int
    memory_bytes: int
    total_bytes: int  # of the machine
    gpu_bytes: int | None  # in use on the first GPU; None: there is none, or it is not this process that uses it
    gpu_total_bytes: int | None


def health(ws: Workspace) -> Health:
    """Add up what the catalog knows of the work that was done."""
    with ws.read() as reader:
        work = ws.jobs.work_done(reader)
        jobs = ws.jobs.counts(reader)
        runs, datasets, evaluations = reader.all(Run), reader.all(Dataset), reader.all(Evaluation)
        languages = _languages(reader)
        troubles = [*_dead(ws, reader), *_refused(reader)]
    pace = [Pace(step=step, work_s=took, audio_s=audio, jobs=count) for step, (took, audio, count) in work.items()]
    # Jobs of training hold no audio, and wait for the device.
    pace = [*(one for one in pace if one.step != "train"), *_training(runs, datasets), *_evaluating(evaluations)]
    return Health(
        pace=tuple(sorted(pace, key=_costly)),
        jobs=jobs,
        outcomes=(_runs(runs), _promotions(ws)),
        languages=languages,
        sizes=tuple(
            Size(
                id=one.id,
                name=one.name,
                created=one.created,
                clips=sum(one.clips.values()),
                hours=sum(one.hours.values()),
            )
            for one in datasets
        ),
        runs=tuple(_usage(run) for run in reversed(runs[-SHOWN_RUNS:])),
        troubles=tuple(_most_frequent([*troubles, *_failed(runs)])),
    )


def machine() -> Usage:
    """What this machine uses now; the processors since this was last asked."""
    memory = psutil.virtual_memory()
    cores = psutil.cpu_count() or 1
    used, total = _gpu()
    return Usage(
        cpu=psutil.cpu_percent() / 100 * cores,
        cores=cores,
        memory_bytes=memory.total - memory.available,
        total_bytes=memory.total,
        gpu_bytes=used,
        gpu_total_bytes=total,
    )


class ProcessUsage:
    """What one process uses; the processors between two questions."""

    def __init__(self) -> None:
        self._process: psutil.Process | None = None

    def of(self, pid: int | None) -> Usage | None:
        """The usage of a process; None if it has ended."""
        try:
            if pid is None:
                self._process = None
                return None
            if self._process is None or self._process.pid != pid:
                self._process = psutil.Process(pid)
            return Usage(
                cpu=self._process.cpu_percent() / 100,
                cores=psutil.cpu_count() or 1,
                memory_bytes=self._process.memory_info().rss,
                total_bytes=psutil.virtual_memory().total,
                gpu_bytes=None,
                gpu_total_bytes=None,
            )
        except psutil.Error:
            self._process = None
            return None


def _gpu() -> tuple[int | None, int | None]:
    """Bytes in use and in all on the first GPU; a process that has not loaded torch does not do it for this."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None, None
    free, total = torch.cuda.mem_get_info()
    return int(total - free), int(total)


def _costly(one: Pace) -> tuple[float, str]:
    return -(one.per_hour_s or 0.0), one.step


def _training(runs: list[Run], datasets: list[Dataset]) -> Iterator[Pace]:
    hours = {one.id: one.hours.get("train", 0.0) for one in datasets}
    ended = [run for run in runs if run.status == "completed" and run.progress.get("elapsed_s")]
    if ended:
        work_s = sum(float(run.progress["elapsed_s"]) for run in ended)
        heard_s = sum(3600 * hours.get(run.dataset, 0.0) for run in ended)
        yield Pace(step="train", jobs=len(ended), work_s=work_s, audio_s=heard_s)


def _evaluating(evaluations: list[Evaluation]) -> Iterator[Pace]:
    timed = [one.scores for one in evaluations if one.scores.get("decode_seconds")]
    if timed:
        work_s = sum(float(scores["decode_seconds"]) for scores in timed)
        yield Pace(step="evaluate", jobs=len(timed), work_s=work_s, audio_s=sum(scores["seconds"] for scores in timed))


def _runs(runs: list[Run]) -> Outcomes:
    by = Counter(run.status for run in runs)
    return Outcomes(
        what="runs",
        succeeded=by["completed"],
        failed=by["failed"] + by["interrupted"],
        open=len(runs) - by["completed"] - by["failed"] - by["interrupted"],
    )


def _promotions(ws: Workspace) -> Outcomes:
    tried = attempts(ws)
    promoted = sum(one.promoted for one in tried)
    return Outcomes(what="promotions", succeeded=promoted, failed=len(tried) - promoted, open=0)


def _usage(run: Run) -> RunUsage:
    peak = run.progress.get("peak_memory_mb")
    return RunUsage(
        run=run.id,
        status=run.status,
        created=run.created,
        elapsed_s=run.progress.get("elapsed_s"),
        peak_memory_bytes=int(peak) << 20 if peak else None,
        clips_per_s=run.progress.get("samples_per_second"),
    )


def _languages(reader: Reader) -> dict[str, float]:
    r = tables.recording.c
    summed = sa.select(r.language, sa.func.sum(r.samples)).group_by(r.language)
    hours = {(row[0] or "unknown"): seconds(int(row[1])) / 3600 for row in reader.connection.execute(summed)}
    return dict(sorted(hours.items(), key=lambda item: -item[1]))


# Errors ---------------------------------------------------------------------------------------------------------------


def _dead(ws: Workspace, reader: Reader) -> Iterator[tuple[str, str, str]]:
    for job in ws.jobs.dead(reader, limit=DEAD_READ):
        # An exception's type says nothing to whoever reads this.
        yield "job", job.step, re.sub(r"^[\w.]+: ", "", first_line(Exception(job.error or "")))


def _failed(runs: list[Run]) -> Iterator[tuple[str, str, str]]:
    for run in reversed(runs):
        if run.status in ("failed", "interrupted") and run.error:
            yield "run", "train", run.error


def _refused(reader: Reader) -> Iterator[tuple[str, str, str]]:
    refusal = tables.refusal.c
    newest = sa.select(refusal.reason, refusal.message).order_by(refusal.created.desc()).limit(DEAD_READ)
    for reason, message in reader.connection.execute(newest):
        yield "file", reason, message


def _most_frequent(found: list[tuple[str, str, str]]) -> list[Trouble]:
    """The same error of different files or jobs is one trouble."""
    counts: Counter[tuple[str, str, str]] = Counter()
    newest: dict[tuple[str, str, str], str] = {}
    for kind, where, message in found:
        key = (kind, where, where if kind == "file" else VARIES.sub("…", message))
        counts[key] += 1
        newest.setdefault(key, message)
    return [
        Trouble(kind=key[0], where=key[1], message=newest[key], count=count, remedy=REMEDIES[key[0]])
        for key, count in counts.most_common(SHOWN_TROUBLES)
    ]
