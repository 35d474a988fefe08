"""jobs list, show, retry, drop."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from voxloop.cli.screen import Json, counted, opened, print_json, table, when

if TYPE_CHECKING:
    from collections.abc import Mapping

jobs = typer.Typer(no_args_is_help=True, help="Look at the jobs of the pipeline; retry or give up those that failed.")

JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of a job, as in `jobs list`.")]


class State(StrEnum):
    failed = "failed"
    waiting = "waiting"
    running = "running"
    done = "done"


STATES = {"failed": "dead", "waiting": "ready", "running": "leased", "done": "done"}  # in the catalog


def register(app: typer.Typer) -> None:
    app.add_typer(jobs, name="jobs")


@jobs.command("list")
def jobs_list(
    ctx: typer.Context,
    state: Annotated[
        State | None, typer.Option(help="Jobs in this state.", show_default="failed, running and waiting")
    ] = None,
    step: Annotated[str | None, typer.Option(help="Jobs of this step.", show_default="all steps")] = None,
    limit: Annotated[int, typer.Option(help="Maximum number of jobs per state.", min=1)] = 20,
    as_json: Json = False,
) -> None:
    """List jobs: those that failed on every attempt, those that run, and those that wait, next first."""
    chosen = [state.value] if state else ["failed", "running", "waiting"]
    with opened(ctx) as ws, ws.read() as reader:
        rows = [
            _shown(row._mapping)
            for name in chosen
            for row in ws.jobs.listed(reader, STATES[name], step=step, limit=limit)
        ]
    if as_json:
        print_json(rows)
        return
    table(
        ["job", "state", "subject", "tries", "error"],
        [[row["id"], row["state"], row["subject"], row["attempts"], row["error"]] for row in rows],
        empty="no job is waiting, running or failed",
        if_different=("error",),
    )


@jobs.command("show")
def jobs_show(ctx: typer.Context, id: JobId, as_json: Json = False) -> None:
    """Show one job with its last error."""
    with opened(ctx) as ws, ws.read() as reader:
        row = _shown(ws.jobs.find(reader, id)._mapping)
    if as_json:
        print_json(row)
        return
    for name, value in row.items():
        if value not in (None, ""):
            typer.echo(f"{name:<10}{when(value) if name in ('created', 'not_before', 'finished') else value}")


@jobs.command("retry")
def jobs_retry(
    ctx: typer.Context,
    id: Annotated[
        str | None, typer.Argument(metavar="JOB", help="Id of a failed job.", show_default="all failed jobs")
    ] = None,
    as_json: Json = False,
) -> None:
    """Queue failed jobs again, with all their attempts."""
    with opened(ctx) as ws:
        count = ws.jobs.retry(id)
    if as_json:
        print_json({"retried": count})
        return
    typer.echo(f"{counted(count, 'job')} queued again; next: voxloop worker --until-idle")


@jobs.command("drop")
def jobs_drop(ctx: typer.Context, id: JobId) -> None:
    """Give a failed job up, so that it is neither retried nor reported again."""
    with opened(ctx) as ws:
        ws.jobs.drop(id)
    typer.echo(f"{id} is given up; its step is not run for this subject")


def _shown(row: Mapping[Any, Any]) -> dict[str, Any]:
    names = {kept: told for told, kept in STATES.items()}
    fields = ("id", "step", "subject", "state", "attempts", "priority", "created", "not_before", "finished", "error")
    return {name: names[row[name]] if name == "state" else row[name] for name in fields}
