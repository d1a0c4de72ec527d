"""Days on which the US stock exchanges trade: regular holidays by rule, single closures by date.

Rules: NYSE, "Holidays and Trading Hours" (a holiday on Saturday is kept on Friday, except New Year's Day, which is
not kept then; on Sunday it is kept on Monday). Early closes are trading days. Valid from 1998 on.
"""

from __future__ import annotations

from datetime import date, timedelta
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

# Days of national mourning and the storms of 2012, as announced by the exchanges.
_SINGLE_CLOSURES: Final = frozenset(
    date.fromisoformat(day)
    for day in (
        "2001-09-11", "2001-09-12", "2001-09-13", "2001-09-14", "2004-06-11", "2007-01-02", "2012-10-29",
        "2012-10-30", "2018-12-05", "2025-01-09",
    )
)  # fmt: skip
_JUNETEENTH_SINCE: Final = 2022
_MS_A_DAY: Final = 86_400_000


def is_us_trading_day(ms: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return for UTC instants in ms whether their UTC date is a day on which the US stock exchanges trade."""
    days = np.asarray(ms, dtype=np.int64) // _MS_A_DAY
    if len(days) == 0:
        return np.zeros(0, dtype=np.bool_)
    dates = days.astype("datetime64[D]")
    years = range(int(str(dates.min())[:4]), int(str(dates.max())[:4]) + 1)
    closed = [day for year in years for day in us_holidays(year)]
    return np.asarray(np.is_busday(dates, holidays=np.array(closed, dtype="datetime64[D]")))


@cache
def us_holidays(year: int) -> tuple[date, ...]:
    """Return the weekdays of a year on which the US stock exchanges are closed, ascending."""
    fixed = [_observed(date(year, 7, 4)), _observed(date(year, 12, 25))]
    if date(year, 1, 1).weekday() != 5:
        fixed.append(_observed(date(year, 1, 1)))
    if year >= _JUNETEENTH_SINCE:
        fixed.append(_observed(date(year, 6, 19)))
    moving = [
        _nth(year, 1, 0, 3),  # Martin Luther King, third Monday of January
        _nth(year, 2, 0, 3),  # Washington, third Monday of February
        _easter(year) - timedelta(days=2),  # Good Friday
        _nth(year, 6, 0, 1) - timedelta(days=7),  # Memorial Day, last Monday of May
        _nth(year, 9, 0, 1),  # Labor Day, first Monday of September
        _nth(year, 11, 3, 4),  # Thanksgiving, fourth Thursday of November
    ]
    single = [day for day in _SINGLE_CLOSURES if day.year == year]
    return tuple(sorted({*fixed, *moving, *single}))


def _observed(day: date) -> date:
    return day + timedelta(days={5: -1, 6: 1}.get(day.weekday(), 0))


def _nth(year: int, month: int, weekday: int, n: int) -> date:
    """Return the nth given weekday (Monday is 0) of a month."""
    first = date(year, month, 1)
    return first + timedelta(days=(weekday - first.weekday()) % 7 + 7 * (n - 1))


def _easter(year: int) -> date:
    """Return Easter Sunday (Meeus/Jones/Butcher, Gregorian calendar)."""
    a, b, c = year % 19, year // 100, year % 100
    d, e = b // 4, b % 4
    g = (8 * b + 13) // 25
    h = (19 * a + b - d - g + 15) % 30
    i, k = c // 4, c % 4
    m = (32 + 2 * e + 2 * i - h - k) % 7
    n = (a + 11 * h + 22 * m) // 451
    month, day = divmod(h + m - 7 * n + 114, 31)
    return date(year, month, day + 1)
