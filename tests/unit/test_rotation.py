"""A backup before every training run, the newest kept, and what happens when it fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit import kept
from voxloop.errors import WorkspaceError
from voxloop.maintenance import rotation
from voxloop.maintenance.backups import restore
from voxloop.pipeline import open_loop
from voxloop.records import Recording
from voxloop.workspace import Workspace


def backed_up(ws: Workspace, into: Path, **settings: object) -> Workspace:
    return replace(ws, settings=replace(ws.settings, backup_to=str(into), **settings))  # type: ignore[arg-type]


def test_the_newest_backups_stay_and_share_what_did_not_change(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.take(workspace, tmp_path / "speech", clips=4)
    into = tmp_path / "backups"
    for second in range(3):
        monkeypatch.setattr(rotation.time, "strftime", lambda *_, second=second: f"20261128T02000{second}Z")
        done = rotation.rotate(workspace, into, keep=2)
        assert done.copied <= (20 if second == 0 else 2)  # the catalog is another file each time
    first, second_ = rotation.made(into)
    assert [first.name, second_.name] == ["20261128T020001Z", "20261128T020002Z"]
    audio = [sorted(folder.glob("blobs/audio/*")) for folder in (first, second_)]
    assert len(audio[0]) == 4
    assert all(one.samefile(other) for one, other in zip(*audio, strict=True))
    restore(second_, tmp_path / "again")
    with open_loop(tmp_path / "again") as ws, ws.read() as reader:
        assert reader.count(Recording) == 4


def test_a_killed_backup_is_no_backup(workspace: Workspace, tmp_path: Path) -> None:
    into = tmp_path / "backups"
    left = into / f"20200101T000000Z{rotation.UNFINISHED}"
    left.mkdir(parents=True)
    (left / "catalog.db.partial").touch()
    rotation.rotate(workspace, into, keep=1)
    assert not left.exists()
    assert len(rotation.made(into)) == 1


def test_a_failed_backup_stops_the_run_unless_told_otherwise(workspace: Workspace, tmp_path: Path) -> None:
    rotation.before_run(workspace)  # none is asked for
    (tmp_path / "file").touch()
    with pytest.raises(WorkspaceError, match=r"the backup before the run failed: .*backup_required = false"):
        rotation.before_run(backed_up(workspace, tmp_path / "file"))
    inside = workspace.folder / "backups"
    with pytest.raises(WorkspaceError, match="is inside the workspace"):
        rotation.before_run(backed_up(workspace, inside))
    rotation.before_run(backed_up(workspace, inside, backup_required=False))
    rotation.before_run(backed_up(workspace, tmp_path / "backups"))
    assert len(rotation.made(tmp_path / "backups")) == 1
