"""forget, verify, backup, restore."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voxloop.cli.screen import By, Json, opened, print_json, progress, short, table, when

if TYPE_CHECKING:
    from voxloop.maintenance.integrity import Verification
    from voxloop.maintenance.removal import Removal

SHOWN = 50  # findings; --json prints all


def register(app: typer.Typer) -> None:
    app.command()(forget)
    app.command()(verify)
    app.command()(backup)
    app.command()(restore)


def forget(
    ctx: typer.Context,
    speaker: Annotated[str | None, typer.Option(help="Forget all recordings in which this speaker speaks.")] = None,
    recording: Annotated[str | None, typer.Option(help="Forget this recording.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Report what would go; change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Only finish removals that were cut off.")] = False,
    by: By = "cli",
    as_json: Json = False,
) -> None:
    """Forget a speaker or a recording: audio, texts, vectors, copies; what used them is listed and marked."""
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
            typer.echo(f"{finished} removals finished, {left} unfinished")
            if left:
                raise typer.Exit(1)
            return
        try:
            if not (dry_run or yes):
                planned = remove(ws, speaker=speaker, recording=recording, by=by, dry_run=True)
                if not sys.stdin.isatty():
                    raise UsageError("forgetting cannot be undone: look with --dry-run, then say --yes")
                _print_removal(planned)
                typer.confirm("Forget all this for good?", abort=True)
            with progress("forget", "blobs") as told:
                done = remove(ws, speaker=speaker, recording=recording, by=by, dry_run=dry_run, progress=told)
        except UnknownRecord as error:  # nothing was wrong with how it was asked
            raise VoxloopError(str(error)) from error
    print_json(done) if as_json else _print_removal(done)


def _print_removal(done: Removal) -> None:
    typer.echo(
        f"{'would be forgotten' if done.dry_run else 'forgotten'}: {done.recordings} recordings "
        f"({done.seconds_of_audio / 60:.1f} min), {done.utterances} utterances, {done.transcripts} texts, "
        f"{done.vectors} vectors, rows of {done.evaluations} evaluations; {done.blobs} blobs"
    )
    for dataset in done.datasets:
        typer.echo(f"dataset {dataset.name} {short(dataset.id)}: {dataset.utterances} utterances taken out, marked")
    for model in done.models:
        how = f"learnt from {model.utterances} of them" if model.utterances else "made from a model that learnt"
        typer.echo(f"model {short(model.id)} (run {model.name}): {how}, marked")
    for note in done.notes:
        typer.echo(f"note: {note}")
    if done.id:
        typer.echo(f"audit entry: {done.id}" + ("" if done.finished else ", not finished"))


def verify(
    ctx: typer.Context,
    repair: Annotated[bool, typer.Option("--repair", help="Repair what can be repaired.")] = False,
    as_json: Json = False,
) -> None:
    """Recompute every hash and cross-check catalog, blobs and files; exit with status 1 if anything is wrong."""
    from voxloop.maintenance.integrity import verify as check

    with opened(ctx) as ws, progress("verify", "things") as told:
        found = check(ws, repair=repair, progress=told)
    if as_json:
        print_json(found)
    else:
        _print_verification(found)
    if not found.sound:
        raise typer.Exit(1)


def _print_verification(found: Verification) -> None:
    checked = ", ".join(f"{count} {kind}" for kind, count in found.checked.items() if count)
    typer.echo(f"checked in {found.elapsed:.1f} s: {checked or 'nothing'}")
    table(
        ["", "finding", "of", "what", "what to do"],
        [
            ["mended" if f.repaired else "wrong", f.kind, short(f.subject), f.message, "" if f.repaired else f.remedy]
            for f in found.findings[:SHOWN]
        ],
        empty="all is as it should be",
    )
    if len(found.findings) > SHOWN:
        typer.echo(f"... and {len(found.findings) - SHOWN} more; --json lists all")


def backup(
    ctx: typer.Context,
    folder: Annotated[
        Path, typer.Argument(help="Folder to write; where it holds an earlier backup, only what is new is copied.")
    ],
    as_json: Json = False,
) -> None:
    """Back up the workspace while work goes on: the catalog at one moment, the blobs it names, settings, runs."""
    from voxloop.maintenance.backups import backup as copy

    with opened(ctx) as ws, progress("backup", "files") as told:
        done = copy(ws, folder, progress=told)
    if as_json:
        print_json(done)
    else:
        typer.echo(
            f"{done.folder}: {done.files} files, {done.copied} copied ({done.copied_bytes / 1e6:.1f} MB), "
            f"{done.removed} no longer named removed, in {done.elapsed:.1f} s"
        )
        typer.echo("left out: the runs' copies of audio and their checkpoints, exports, caches")
    for key in done.missing:
        typer.echo(f"missing: {key}; see `voxloop verify`", err=True)
    if done.missing:
        raise typer.Exit(1)


def restore(
    ctx: typer.Context,
    source: Annotated[Path, typer.Argument(help="Folder that `voxloop backup` wrote.")],
    as_json: Json = False,
) -> None:
    """Restore a backup to a new workspace (named with -C), checking every file; an existing one is never touched."""
    from voxloop.maintenance.backups import restore as bring_back
    from voxloop.settings import workspace_folder

    with progress("restore", "files") as told:
        done = bring_back(source, workspace_folder(ctx.obj), progress=told)
    if as_json:
        print_json(done)
        return
    held = f"{done.files} files ({done.bytes / 1e6:.1f} MB) as of {when(done.made)}"
    typer.echo(f"{done.folder}: {held}, in {done.elapsed:.1f} s")
    for key in done.missing:
        typer.echo(f"missing when the backup was made: {key}", err=True)
    typer.echo("what was forgotten after that moment is there again: forget it again")
    typer.echo(f"next: voxloop -C {done.folder} verify")
