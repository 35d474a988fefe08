"""Backups before training runs: each in a folder of its own, sharing what has not changed, the newest kept.

BACKUP_TO/20261128T020000Z/    a complete backup (`backups`); files that an earlier one holds too are hard links
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from voxloop.errors import VoxloopError, WorkspaceError
from voxloop.maintenance.backups import MANIFEST, Backup, backup

if TYPE_CHECKING:
    from voxloop.workspace import Workspace

log = logging.getLogger(__name__)

STAMP = re.compile(r"\d{8}T\d{6}Z")  # name of a backup's folder: UTC
UNFINISHED = ".unfinished"  # suffix of a folder that is being written


def before_run(ws: Workspace) -> None:
    """Make the backup that the settings ask for before a training run. Raises WorkspaceError if it is required."""
    if not ws.settings.backup_to:
        return
    try:
        made = rotate(ws, Path(ws.settings.backup_to), keep=ws.settings.backup_keep)
    except (VoxloopError, OSError) as error:
        if not ws.settings.backup_required:
            log.warning("no backup before this run: %s", error, extra={"action": "backup_failed"})
            return
        raise WorkspaceError(
            f"the backup before the run failed: {error}. Make room or correct backup_to, or set backup_required = "
            "false to train without one"
        ) from error
    log.info("backup before the run: %s", made.folder, extra={"action": "backup_made"})


def rotate(ws: Workspace, into: Path, *, keep: int) -> Backup:
    """Make a backup in a new folder inside `into`, and remove all but the newest `keep`. Raises as `backup`."""
    into.mkdir(parents=True, exist_ok=True)
    before = made(into)
    partial = into / f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}{UNFINISHED}"
    for left in into.glob(f"*{UNFINISHED}"):  # of killed processes
        shutil.rmtree(left)
    if before:
        _share(before[-1], partial)
    done = backup(ws, partial)
    final = partial.with_name(partial.name.removesuffix(UNFINISHED))
    if final.exists():  # a second one within the same second
        shutil.rmtree(final)
    partial.rename(final)
    for old in made(into)[:-keep]:
        shutil.rmtree(old)
    return replace(done, folder=str(final))


def made(into: Path) -> list[Path]:
    """The complete backups in a folder, oldest first."""
    return sorted(path for path in into.iterdir() if STAMP.fullmatch(path.name) and (path / MANIFEST).is_file())


def _share(earlier: Path, new: Path) -> None:
    """Fill a new folder with an earlier backup's files, without copying them where the disk allows links.

    `backup` replaces files and never writes into them, so the earlier backup stays as it is.
    """
    for root, _, names in os.walk(earlier):
        folder = new / Path(root).relative_to(earlier)
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            source, target = Path(root, name), folder / name
            try:
                os.link(source, target)
            except OSError:  # a disk without hard links
                shutil.copy2(source, target)
