"""The clock of automatic runs: times of day and cron lines, time zones, and each tick once."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from voxloop.automation import schedule
from voxloop.errors import SettingError
from voxloop.pipeline import open_loop

BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str, zone: ZoneInfo = BERLIN) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()


@pytest.mark.parametrize(
    ("text", "line"), [("02:00", "0 2 * * *"), ("9:05", "5 9 * * *"), (" */15 * * * 1-5 ", "*/15 * * * 1-5")]
)
def test_a_time_of_day_or_a_cron_line(text: str, line: str) -> None:
    assert schedule.cron_line(text) == line


@pytest.mark.parametrize("text", ["25:00", "2", "nightly", "0 2 * *", "61 * * * *", "0 2 * * * *"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match="train_cron is"):
        schedule.cron_line(text)


def test_the_clock_of_the_time_zone_counts() -> None:
    daily = schedule.cron_line("02:00")
    assert schedule.following(daily, BERLIN, at("2026-11-28T12:00")) == at("2026-11-29T02:00")
    saigon = schedule.zone("Asia/Ho_Chi_Minh")
    assert schedule.following(daily, saigon, at("2026-11-28T12:00")) == at("2026-11-29T02:00", ZoneInfo("Asia/Saigon"))
    # In spring there is no 02:30; in autumn it comes twice, and one of them counts.
    half = schedule.cron_line("02:30")
    spring = schedule.following(half, BERLIN, at("2026-03-28T12:00"))
    assert at("2026-03-29T03:00") <= spring <= at("2026-03-29T03:30")
    autumn = schedule.following(half, BERLIN, at("2026-10-24T12:00"))
    assert schedule.following(half, BERLIN, autumn + 7200) == at("2026-10-26T02:30")
    with pytest.raises(SettingError, match="time_zone is 'Mars/Crater'"):
        schedule.zone("Mars/Crater")


def test_each_tick_is_acted_on_once_and_missed_ones_together(tmp_path: Path) -> None:
    now = at("2026-11-28T12:00")
    with open_loop(tmp_path / "w", create=True, train_cron="02:00", time_zone="Europe/Berlin") as ws:
        assert schedule.upcoming(ws, lambda: now) == at("2026-11-29T02:00")
        assert not schedule.claim(ws, lambda: now)  # the first look begins the schedule
        assert not schedule.claim(ws, lambda: at("2026-11-29T01:59"))
        late = at("2026-12-03T08:00")  # four ticks were missed
        assert schedule.upcoming(ws, lambda: late) == at("2026-11-29T02:00")
        assert [schedule.claim(ws, lambda: late) for _ in range(3)] == [True, False, False]
        assert schedule.upcoming(ws, lambda: late) == at("2026-12-04T02:00")
        # A clock that jumps back starts nothing twice.
        assert not schedule.claim(ws, lambda: at("2026-12-02T02:00"))
    with open_loop(tmp_path / "w", train_cron="") as ws:
        assert schedule.upcoming(ws) is None
        assert not schedule.claim(ws)
