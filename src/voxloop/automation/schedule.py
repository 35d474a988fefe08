"""The clock of automatic runs: a time of day or a cron line, in a time zone. Each tick is acted on once."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from datetime import datetime, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import sqlalchemy as sa
from croniter import croniter

from voxloop.errors import SettingError
from voxloop.stores import tables
from voxloop.stores.catalog import insert_new
from voxloop.workspace import Workspace

DAILY = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)")

Clock = Callable[[], float]
"""Seconds since the epoch."""

upkeep = tables.upkeep


def cron_line(text: str) -> str:
    """The cron line of a setting, which may be a time of day such as 02:00. Raises SettingError."""
    found = DAILY.fullmatch(text.strip())
    line = f"{int(found[2])} {int(found[1])} * * *" if found else text.strip()
    if len(line.split()) != 5 or not croniter.is_valid(line):
        raise SettingError(
            f"train_cron is {text!r}. Give a time of day (02:00), a cron line of five fields (0 2 * * 1-5), or nothing."
        )
    return line


def zone(name: str) -> tzinfo:
    """The time zone of this name, or the machine's own if it is empty. Raises SettingError."""
    name = name or os.environ.get("TZ", "").lstrip(":") or _of_machine()
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise SettingError(f"time_zone is {name!r}, which is unknown. Give a name such as Asia/Ho_Chi_Minh.") from error


def _of_machine() -> str:
    """The machine's zone by name, so that its changes to and from summer time are known."""
    linked = Path("/etc/localtime")
    _, found, name = str(linked.resolve()).partition("zoneinfo/") if linked.exists() else ("", "", "")
    return name if found else "UTC"


def following(line: str, where: tzinfo, now: float) -> float:
    """The first tick after a time, both in seconds since the epoch. A time that summer time skips comes right after."""
    found: datetime = croniter(line, datetime.fromtimestamp(now, where)).get_next(datetime)
    return found.timestamp()


def upcoming(ws: Workspace, clock: Clock = time.time) -> float | None:
    """The next tick, seconds since the epoch; in the past if it was missed; None if the clock starts nothing."""
    if not ws.settings.train_cron:
        return None
    line, where = cron_line(ws.settings.train_cron), zone(ws.settings.time_zone)
    with ws.read() as reader:
        found = reader.connection.execute(sa.select(upkeep.c.until).where(upkeep.c.name == _name(ws))).scalar()
    return following(line, where, clock()) if found is None else float(found)


def claim(ws: Workspace, clock: Clock = time.time) -> bool:
    """Whether a tick is due and this process is the one to act on it. Ticks that were missed count as one."""
    if not ws.settings.train_cron:
        return False
    line, where = cron_line(ws.settings.train_cron), zone(ws.settings.time_zone)
    now = clock()
    with ws.read() as reader:
        due = reader.connection.execute(sa.select(upkeep.c.until).where(upkeep.c.name == _name(ws))).scalar()
    if due is not None and due > now:
        return False
    next_tick = following(line, where, now)
    with ws.catalog.write() as tx:
        if due is None:  # the first look at this schedule: it begins now
            insert_new(tx.connection, upkeep, [{"name": _name(ws), "until": next_tick}])
            return False
        mine = sa.update(upkeep).where(upkeep.c.name == _name(ws), upkeep.c.until == due).values(until=next_tick)
        return bool(tx.connection.execute(mine).rowcount)


def _name(ws: Workspace) -> str:
    """A changed schedule is another one, which begins when it is first seen."""
    return f"train at {cron_line(ws.settings.train_cron)} {ws.settings.time_zone}".rstrip()
