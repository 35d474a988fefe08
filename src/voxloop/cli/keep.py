"""forget, verify, backup, restore, move."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voxloop.cli.screen import By, Json, counted, lasting, opened, print_json, progress, short, when

if TYPE_CHECKING:
    from voxloop.maintenance.integrity import Verification
    from voxloop.maintenance.removal import Removal

SHOWN = 50  # findings printed; --json prints all
NOTE_WIDTH = 80  # columns


def register(app: typer.Typer) -> None:
    app.command()(forget)
    app.command()(verify)
    app.command()(backup)
    app.command()(restore)
    app.command()(move)


def forget(
    ctx: typer.Context,
    speaker: Annotated[
        str | None, typer.Option(metavar="NAME", help="Forget every recording in which this speaker speaks.")
    ] = None,
    recording: Annotated[str | None, typer.Option(metavar="ID", help="Forget the recording with this id.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be deleted without deleting it.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Only finish interrupted removals.")] = False,
    by: By = "cli",
    as_json: Json = False,
) -> None:
    """Forget a speaker or a recording: delete its data and mark datasets and models that used it."""
    import sys

    from voxloop.errors import UnknownRecord, UsageError, VoxloopError
    from voxloop.maintenance.removal import forget as remove
    from voxloop.maintenance.removal import resume as finish
    from voxloop.maintenance.removal import unfinished

    with opened(ctx) as ws:
        if resume:
            with progress("forget", "blobs") as told:
                finished = finish(ws, progress=told)
            left = len(unfinished(ws))
            typer.echo(f"{counted(finished, 'removal')} finished, {left} unfinished")
            if left:
                raise typer.Exit(1)
            return
        try:
            if not (dry_run or yes):
                planned = remove(ws, speaker=speaker, recording=recording, by=by, dry_run=True)
                if not sys.stdin.isatty():
                    raise UsageError("Forgetting cannot be undone. Check with --dry-run first, then pass --yes.")
                _print_removal(planned)
                typer.confirm("Forget all of this permanently?", abort=True)
            with progress("forget", "blobs") as told:
                done = remove(ws, speaker=speaker, recording=recording, by=by, dry_run=dry_run, progress=told)
        except UnknownRecord as error:  # the command was used correctly, so exit with 1
            raise VoxloopError(str(error)) from error
    print_json(done) if as_json else _print_removal(done)


def _print_removal(done: Removal) -> None:
    typer.echo(
        f"{'would be forgotten' if done.dry_run else 'forgotten'}: {counted(done.recordings, 'recording')} "
        f"({lasting(done.seconds_of_audio)} of audio)"
    )
    rows = [
        ("utterances", done.utterances),
        ("texts", done.transcripts),
        ("vectors", done.vectors),
        ("evaluations", done.evaluations),
        ("blobs", done.blobs),
    ]
    for name, count in rows:
        typer.echo(f"  {name:<13}{count:,}" + (" changed" if name == "evaluations" and count else ""))
    for dataset in done.datasets:
        typer.echo(f"dataset {dataset.name} {short(dataset.id)}: {counted(dataset.utterances, 'utterance')} removed")
    for model in done.models:
        how = (
            f"trained on {model.utterances:,} of these utterances"
            if model.utterances
            else "made from a model that was trained on them"
        )
        typer.echo(f"model {short(model.id)} (run {short(model.name)}): {how}")
    for note in done.notes:
        typer.echo(textwrap.fill(note, NOTE_WIDTH, initial_indent="note: ", subsequent_indent="      "))
    if done.id:
        typer.echo(f"audit entry: {done.id}" + ("" if done.finished else " (unfinished)"))


def verify(
    ctx: typer.Context,
    repair: Annotated[bool, typer.Option("--repair", help="Repair what can be repaired automatically.")] = False,
    as_json: Json = False,
) -> None:
    """Recompute every hash and cross-check catalog, blobs and files. Exits with status 1 if problems remain."""
    from voxloop.maintenance.integrity import verify as check

    with opened(ctx) as ws, progress("verify", "objects") as told:
        found = check(ws, repair=repair, progress=told)
    if as_json:
        print_json(found)
    else:
        _print_verification(found)
    if not found.sound:
        raise typer.Exit(1)


def _print_verification(found: Verification) -> None:
    typer.echo(f"checked in {lasting(found.elapsed)}:")
    for kind, count in found.checked.items():
        if count:
            typer.echo(f"  {kind:<13}{count:,}")
    repaired = sum(finding.repaired for finding in found.findings)
    if not found.findings:
        typer.echo("no problems found")
        return
    typer.echo(f"{counted(len(found.findings), 'problem')} found" + (f", {repaired:,} repaired" if repaired else ""))
    for finding in found.findings[:SHOWN]:
        typer.echo(f"\n{finding.kind} ({'repaired' if finding.repaired else 'not repaired'}): {short(finding.subject)}")
        _print_wrapped(finding.message)
        if not finding.repaired:
            _print_wrapped(finding.remedy)
    if len(found.findings) > SHOWN:
        typer.echo(f"\n... and {len(found.findings) - SHOWN:,} more; --json lists all of them")


def _print_wrapped(text: str) -> None:
    wrapped = textwrap.fill(
        text,
        NOTE_WIDTH,
        initial_indent="  ",
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    typer.echo(wrapped)


def backup(
    ctx: typer.Context,
    folder: Annotated[
        Path, typer.Argument(help="Folder for the backup. If it holds an earlier backup, only new files are copied.")
    ],
    as_json: Json = False,
) -> None:
    """Back up the workspace, even while it is in use: catalog, blobs, settings and runs."""
    from voxloop.maintenance.backups import backup as copy

    with opened(ctx) as ws, progress("backup", "files") as told:
        done = copy(ws, folder, progress=told)
    if as_json:
        print_json(done)
    else:
        typer.echo(
            f"backed up {counted(done.files, 'file')} to {done.folder} in {lasting(done.elapsed)}\n"
            f"copied {counted(done.copied, 'new file')} ({done.copied_bytes / 1e6:.1f} MB), "
            f"removed {counted(done.removed, 'obsolete file')}"
        )
        typer.echo("not included: training checkpoints, the runs' copies of audio, exports, caches")
    for key in done.missing:
        typer.echo(f"missing: {key} (see `voxloop verify`)", err=True)
    if done.missing:
        raise typer.Exit(1)


def restore(
    ctx: typer.Context,
    source: Annotated[Path, typer.Argument(help="Folder written by `voxloop backup`.")],
    as_json: Json = False,
) -> None:
    """Restore a backup to a new workspace (given with -C) and check every file. Never overwrites a workspace."""
    from voxloop.maintenance.backups import restore as bring_back
    from voxloop.settings import workspace_folder

    with progress("restore", "files") as told:
        done = bring_back(source, workspace_folder(ctx.obj), progress=told)
    if as_json:
        print_json(done)
        return
    typer.echo(
        f"restored {counted(done.files, 'file')} ({done.bytes / 1e6:.1f} MB) to {done.folder} "
        f"in {lasting(done.elapsed)}\nbackup made: {when(done.made)}"
    )
    for key in done.missing:
        typer.echo(f"missing since the backup was made: {key}", err=True)
    typer.echo("Speakers and recordings forgotten after the backup are back. Forget them again.")
    typer.echo(f"next: voxloop -C {done.folder} verify")


def move(
    ctx: typer.Context,
    catalog: Annotated[
        str | None,
        typer.Option(metavar="URL", help="New catalog: postgresql+psycopg://USER@HOST/NAME, or embedded."),
    ] = None,
    blobs: Annotated[
        str | None, typer.Option(metavar="URL", help="New object store: s3://BUCKET/PREFIX, gs://, az://, or embedded.")
    ] = None,
    vectors: Annotated[
        str | None, typer.Option(metavar="URL", help="New vector store: qdrant+http://HOST:6333, or embedded.")
    ] = None,
    bus: Annotated[str | None, typer.Option(metavar="URL", help="New bus: nats://HOST:4222/NAME, or local.")] = None,
    as_json: Json = False,
) -> None:
    """Move the workspace between embedded stores and servers, in either direction, and check every copy.

    Stop its workers and servers first. An interrupted move goes on when the command is run again. The old stores stay.
    """
    from voxloop.maintenance.moving import EMBEDDED
    from voxloop.maintenance.moving import move as copy

    given = {"catalog": catalog, "blobs": blobs, "vectors": vectors, "bus": bus}
    stores = {
        name: EMBEDDED[name] if url in ("embedded", "local") else url for name, url in given.items() if url is not None
    }
    with opened(ctx) as ws, progress("move", "objects") as told:
        done = copy(ws, stores, progress=told)
    if as_json:
        print_json(done)
    else:
        typer.echo(
            f"moved and checked: {counted(done.rows, 'row')}, {counted(done.blobs, 'blob')} ({done.copied:,} copied "
            f"now), {counted(done.vectors, 'vector')}"
        )
        for name, url in done.stores.items():
            typer.echo(f"{name:<9}{url}")
    for variable in done.by_hand:
        typer.echo(f"set in the environment, with the password: {variable}", err=True)
    for key in done.missing:
        typer.echo(f"missing: {key} (see `voxloop verify`)", err=True)
    if done.missing:
        raise typer.Exit(1)
