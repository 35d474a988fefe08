"""A run's metrics and log in the catalog, readable from any machine while it trains.

The training process writes `metrics.jsonl` and `train.log` in its folder. The attending process copies new lines, in a
transaction that is refused once the lease is lost. A line of metrics is identified by its number and a piece of the log
by the offset of its first byte, so copying one again changes nothing.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from voxloop.steps.training import control
from voxloop.steps.training.files import LOG, METRICS
from voxloop.stores import tables
from voxloop.stores.catalog import insert_new

if TYPE_CHECKING:
    from pathlib import Path

    from voxloop.stores.catalog import Reader, Writer
    from voxloop.workspace import Workspace

MOST_LINES = 10_000  # of metrics returned at once; beyond that, only every second, third, ... beside all evaluations
MOST_LOG_BYTES = 8 << 20  # the catalog keeps this much of a log: its end
PIECE_BYTES = 256 << 10  # read from metrics or log in one go
PIECES = 16  # of the log returned at once


@dataclass(frozen=True, slots=True)
class CopiedUntil:
    """How much of a folder's files has been copied to the catalog."""

    line: int  # of metrics
    metrics: int  # bytes of metrics.jsonl
    log: int  # bytes of train.log


@dataclass(frozen=True, kw_only=True, slots=True)
class TelemetryRows:
    """New lines of metrics and log since the last copy, as rows."""

    lines: list[dict[str, Any]]
    log: list[dict[str, Any]]
    until: CopiedUntil


class TelemetryCopier:
    """Copies a run's new metrics and log lines into the catalog."""

    def __init__(self, ws: Workspace, run: str) -> None:
        self._run = run
        self._folder = ws.runs / run
        with ws.read() as reader:
            copied = reader.connection.execute(
                sa.select(sa.func.max(tables.run_metric.c.line)).where(tables.run_metric.c.run == run)
            ).scalar()
            log_end = _log_end(reader, run)
            place, there = _after_lines(self._folder / METRICS, copied or 0)
            if there < (copied or 0):  # a power failure took the last lines from the file
                place = _append_lines(reader, run, self._folder / METRICS, after=there)
        self.until = CopiedUntil(line=copied or 0, metrics=place, log=log_end)

    def gained(self, *, to_the_end: bool = False) -> TelemetryRows | None:
        """The next piece of new lines; None if there are none. `to_the_end` includes an unfinished last log line."""
        lines, line, metrics = self._lines()
        log, log_place = self._log(to_the_end=to_the_end)
        if metrics == self.until.metrics and log_place == self.until.log:
            return None
        return TelemetryRows(lines=lines, log=log, until=CopiedUntil(line=line, metrics=metrics, log=log_place))

    def write(self, tx: Writer, entries: TelemetryRows) -> None:
        """Write the entries inside `tx`; once that is committed, set `until` to theirs."""
        insert_new(tx.connection, tables.run_metric, entries.lines)
        if entries.log:
            insert_new(tx.connection, tables.run_log, entries.log)
            log = tables.run_log
            old = entries.until.log - MOST_LOG_BYTES
            if old > 0:
                tx.connection.execute(sa.delete(log).where(log.c.run == self._run, log.c.start < old))

    def _lines(self) -> tuple[list[dict[str, Any]], int, int]:
        """Rows of whole lines, the last one's number, and where it ends."""
        text = _read(self._folder / METRICS, self.until.metrics)
        whole = text[: text.rfind(b"\n") + 1]
        rows = []
        number = self.until.line
        for raw in whole.split(b"\n")[:-1]:
            number += 1
            with contextlib.suppress(ValueError):  # cut off by a kill or a full disk: it keeps its number
                values = json.loads(raw)
                step = int(values.get("step", 0))
                measured = values.get("val_wer") is not None
                rows.append({"run": self._run, "line": number, "step": step, "measured": measured, "values": values})
        return rows, number, self.until.metrics + len(whole)

    def _log(self, *, to_the_end: bool) -> tuple[list[dict[str, Any]], int]:
        path, start = self._folder / LOG, self.until.log
        size = path.stat().st_size if path.exists() else 0
        start = max(start, size - MOST_LOG_BYTES)
        text = _read(path, start)
        if not to_the_end and len(text) < PIECE_BYTES:
            text = text[: text.rfind(b"\n") + 1]
        if not text:
            return [], self.until.log
        return [{"run": self._run, "start": start, "data": text}], start + len(text)


def metrics(ws: Workspace, run: str, *, most: int = MOST_LINES) -> list[dict[str, Any]]:
    """A run's lines of metrics, oldest first; for steps repeated after a kill, only the later ones.

    Of more than `most` lines, every evaluation is returned and every n-th of the others.
    """
    m = tables.run_metric.c
    with ws.read() as reader:
        last = reader.connection.execute(sa.select(sa.func.max(m.line)).where(m.run == run)).scalar()
        if last is None:
            return control.metrics(ws.runs / run)  # of a run that an earlier version trained here
        wanted = sa.select(m["values"]).where(m.run == run).order_by(m.line)
        if last > most:
            stride = -(-last // most)
            wanted = wanted.where(sa.or_(m.measured, m.line % stride == 0, m.line == last))
        lines = list(reader.connection.execute(wanted).scalars())
    return control.without_repeated_steps(lines)


def metrics_after(ws: Workspace, run: str, line: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The run's lines of metrics after number `line`, oldest first, and the number of the last one.

    A line whose step is lower than that of the line before repeats steps after a kill: it replaces what it repeats.
    """
    m = tables.run_metric.c
    wanted = sa.select(m.line, m["values"]).where(m.run == run, m.line > line).order_by(m.line).limit(MOST_LINES)
    with ws.read() as reader:
        rows = reader.connection.execute(wanted).all()
    return [row[1] for row in rows], rows[-1].line if rows else line


def log_after(ws: Workspace, run: str, place: int = 0) -> tuple[bytes, int]:
    """The next piece of a run's log from byte `place`, and the next place; empty if there is no more yet."""
    log = tables.run_log.c
    behind = log.start + sa.func.length(log.data) > place
    wanted = sa.select(log.start, log.data).where(log.run == run, behind).order_by(log.start).limit(PIECES)
    with ws.read() as reader:
        pieces = reader.connection.execute(wanted).all()
        kept = bool(pieces) or _log_end(reader, run) > 0
    if not kept:  # of a run that an earlier version trained here
        text = _read(ws.runs / run / LOG, place)
        return text, place + len(text)
    if not pieces:
        return b"", place
    first = pieces[0].data[max(0, place - pieces[0].start) :]
    rest = [piece.data for piece in pieces[1:]]
    return b"".join([first, *rest]), pieces[-1].start + len(pieces[-1].data)


def lay_out(ws: Workspace, run: str) -> None:
    """Write a run's metrics and log into this machine's folder, as far as the catalog has them."""
    folder = ws.runs / run
    (folder / METRICS).unlink(missing_ok=True)
    with ws.read() as reader:
        _append_lines(reader, run, folder / METRICS, after=0)
        log = tables.run_log.c
        pieces = sa.select(log.start, log.data).where(log.run == run).order_by(log.start)
        with (folder / LOG).open("wb") as file:
            for piece in reader.connection.execute(pieces):
                file.seek(piece.start)  # what the catalog has let go of is a hole
                file.write(piece.data)


def forget_metrics(tx: Writer, run: str) -> None:
    """Delete a run's lines of metrics, because it starts over."""
    tx.connection.execute(sa.delete(tables.run_metric).where(tables.run_metric.c.run == run))


def _log_end(reader: Reader, run: str) -> int:
    log = tables.run_log.c
    last = sa.select(log.start, sa.func.length(log.data)).where(log.run == run).order_by(log.start.desc()).limit(1)
    row = reader.connection.execute(last).first()
    return 0 if row is None else int(row[0] + row[1])


def _read(path: Path, place: int) -> bytes:
    if not path.exists():
        return b""
    with path.open("rb") as file:
        file.seek(place)
        return file.read(PIECE_BYTES)


def _after_lines(path: Path, count: int) -> tuple[int, int]:
    """The byte after the first `count` lines of a file, and how many of them there are."""
    if not path.exists():
        return 0, 0
    place = there = 0
    with path.open("rb") as file:
        for line in file:
            if there == count or not line.endswith(b"\n"):
                break
            there += 1
            place += len(line)
    return place, there


def _append_lines(reader: Reader, run: str, path: Path, *, after: int) -> int:
    """Append the catalog's lines of metrics behind line `after` to a file; its size then."""
    m = tables.run_metric.c
    rows = sa.select(m.line, m["values"]).where(m.run == run, m.line > after).order_by(m.line)
    with path.open("ab") as file:
        for number, values in reader.connection.execute(rows):
            # A line that could not be read is left empty, so that the others keep their numbers.
            file.write(b"\n" * (number - after - 1) + json.dumps(values, ensure_ascii=False).encode() + b"\n")
            after = number
        return file.tell()
