"""What is read of a run from anywhere: its metrics and its log in the catalog."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from voxloop.cli import app
from voxloop.records import Run
from voxloop.steps import training
from voxloop.steps.training import control, telemetry
from voxloop.steps.training.files import LOG, METRICS, append_line
from voxloop.stores import tables
from voxloop.workspace import Workspace

RUN = "01RUN"


@pytest.fixture
def ws(workspace: Workspace) -> Workspace:
    run = Run(id=RUN, dataset="d", base="b", family="whisper", method="full", recipe={"name": "quick"}, status="paused")
    with workspace.transaction() as tx:
        tx.add(run)
    (workspace.runs / RUN).mkdir(parents=True)
    return workspace


def copy(ws: Workspace, writer: telemetry.TelemetryCopier, *, to_the_end: bool = False) -> int:
    """Copy all that a folder gained; the number of copies."""
    copies = 0
    while entries := writer.gained(to_the_end=to_the_end):
        with ws.transaction() as tx:
            writer.write(tx, entries)
        writer.until = entries.until
        copies += 1
    return copies


def lines(ws: Workspace) -> list[int]:
    with ws.read() as reader:
        return list(reader.connection.execute(tables.run_metric.select().order_by("line")).scalars("line"))


def test_metrics_are_copied_once_past_cut_lines_and_steps_done_again(ws: Workspace) -> None:
    folder = ws.runs / RUN
    writer = telemetry.TelemetryCopier(ws, RUN)
    assert copy(ws, writer) == 0
    for step in (1, 2, 3):
        append_line(folder / METRICS, {"step": step, "loss": 1.0})
    assert copy(ws, writer) == 1
    with (folder / METRICS).open("a") as file:
        file.write('{"step": 4, "lo\n')
    append_line(folder / METRICS, {"step": 2, "val_wer": 0.5})
    with (folder / METRICS).open("a") as file:
        file.write('{"step": 3, "val')  # being written
    # A writer that knows nothing of the first one begins where that ended.
    assert copy(ws, telemetry.TelemetryCopier(ws, RUN)) == 1
    assert lines(ws) == [1, 2, 3, 5]
    # So does the first, whose last copy another has made: nothing is there twice.
    assert copy(ws, writer) == 1
    assert lines(ws) == [1, 2, 3, 5]
    found = training.metrics(ws, RUN)
    assert (
        found
        == control.metrics(folder)
        == [
            {"step": 1, "loss": 1.0},
            {"step": 2, "loss": 1.0},
            {"step": 2, "val_wer": 0.5},
        ]
    )


def test_of_very_many_lines_every_evaluation_is_returned_and_some_of_the_others(ws: Workspace) -> None:
    for step in range(1, 101):
        line = {"step": step, "loss": 1.0} if step % 10 else {"step": step, "val_wer": 0.5}
        append_line(ws.runs / RUN / METRICS, line)
    copy(ws, telemetry.TelemetryCopier(ws, RUN))
    assert len(training.metrics(ws, RUN)) == 100
    found = training.metrics(ws, RUN, most=30)
    assert [line["step"] for line in found if "val_wer" in line] == list(range(10, 101, 10))
    assert len(found) <= 30 + 10 + 1
    assert found[-1]["step"] == 100


def test_lines_that_a_power_failure_took_from_the_file_come_back_from_the_catalog(ws: Workspace) -> None:
    path = ws.runs / RUN / METRICS
    for step in (1, 2, 3):
        append_line(path, {"step": step})
    copy(ws, telemetry.TelemetryCopier(ws, RUN))
    path.write_text('{"step": 1}\n')
    writer = telemetry.TelemetryCopier(ws, RUN)
    append_line(path, {"step": 4})
    copy(ws, writer)
    assert lines(ws) == [1, 2, 3, 4]
    assert control.metrics(ws.runs / RUN) == training.metrics(ws, RUN)


def test_a_log_is_copied_by_lines_and_its_end_is_kept(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ws.runs / RUN / LOG
    writer = telemetry.TelemetryCopier(ws, RUN)
    path.write_bytes("première\nnext".encode())
    copy(ws, writer)
    text, place = training.log_after(ws, RUN)
    assert text.decode() == "première\n"
    assert training.log_after(ws, RUN, place) == (b"", place)
    copy(ws, writer, to_the_end=True)
    more, place = training.log_after(ws, RUN, place)
    assert more == b"next"
    monkeypatch.setattr(telemetry, "PIECE_BYTES", 1000)
    monkeypatch.setattr(telemetry, "MOST_LOG_BYTES", 5000)
    with path.open("ab") as file:
        for number in range(2000):
            file.write(b"%07d\n" % number)
    copy(ws, telemetry.TelemetryCopier(ws, RUN), to_the_end=True)
    kept, end = training.log_after(ws, RUN)
    assert kept == path.read_bytes()[-len(kept) :]
    assert 4000 <= len(kept) <= 6000
    assert end == path.stat().st_size


def test_both_are_shown_without_the_run_folder(ws: Workspace) -> None:
    folder = ws.runs / RUN
    append_line(folder / METRICS, {"step": 1, "loss": 2.0, "val_wer": 0.5})
    append_line(folder / METRICS, {"step": 2, "loss": 1.0, "val_wer": 0.25})
    (folder / LOG).write_text("what the process said\n")
    copy(ws, telemetry.TelemetryCopier(ws, RUN))
    for name in (METRICS, LOG):
        (folder / name).unlink()

    def voxloop(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["-C", str(ws.folder), *arguments])
        assert done.exit_code == 0, done.output
        return done.output

    assert voxloop("run", "logs", RUN) == "what the process said\n"
    shown = json.loads(voxloop("run", "show", RUN, "--json"))
    assert [line["loss"] for line in shown["metrics"]] == [2.0, 1.0]
    telemetry.lay_out(ws, RUN)
    assert control.metrics(folder) == shown["metrics"]
    assert (folder / LOG).read_text() == "what the process said\n"
