"""Calendar arithmetic on arrays of UTC hours since the epoch: exchange sessions with daylight saving, expiries."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from numba import njit

Array = npt.NDArray[np.float64]

ASIA, EUROPE, AMERICA, CME_SHUT = 0, 1, 2, 3


@njit(cache=True)
def _civil(day: int) -> tuple[int, int, int]:
    """Return year, month and day of the month of a day since 1970-01-01 (Hinnant, Date algorithms, days_to_civil)."""
    z = day + 719468
    era = z // 146097
    doe = z - era * 146097
    yoe = (doe - doe // 1460 + doe // 36524 - doe // 146096) // 365
    doy = doe - (365 * yoe + yoe // 4 - yoe // 100)
    mp = (5 * doy + 2) // 153
    month = mp + 3 if mp < 10 else mp - 9
    return yoe + era * 400 + (1 if month <= 2 else 0), month, doy - (153 * mp + 2) // 5 + 1


@njit(cache=True)
def _day(year: int, month: int, day: int) -> int:
    """Return the day since 1970-01-01 of a date (Hinnant, Date algorithms, days_from_civil)."""
    y = year - 1 if month <= 2 else year
    era = y // 400
    yoe = y - era * 400
    doy = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5 + day - 1
    return era * 146097 + yoe * 365 + yoe // 4 - yoe // 100 + doy - 719468


@njit(cache=True)
def _weekday(day: int) -> int:
    """Return 0 for Monday to 6 for Sunday."""
    return (day + 3) % 7


@njit(cache=True)
def _sunday_from(day: int) -> int:
    return day + (6 - _weekday(day)) % 7


@njit(cache=True)
def _summer_us(day: int) -> bool:
    """Return whether New York keeps daylight time on a day: second Sunday of March to first Sunday of November."""
    year, _, _ = _civil(day)
    return _sunday_from(_day(year, 3, 8)) <= day < _sunday_from(_day(year, 11, 1))


@njit(cache=True)
def _summer_eu(day: int) -> bool:
    """Return whether London keeps summer time on a day: last Sunday of March to last Sunday of October."""
    year, _, _ = _civil(day)
    return _sunday_from(_day(year, 3, 25)) <= day < _sunday_from(_day(year, 10, 25))


@njit(cache=True)
def _open_and_shut(day: int, which: int) -> tuple[float, float]:
    """Return begin and end of the session of a day, UTC hours since the epoch; equal where there is none."""
    midnight = day * 24.0
    weekday = _weekday(day)
    if which == CME_SHUT:  # Friday 16:00 to Sunday 17:00 in Chicago
        if weekday != 4:
            return midnight, midnight
        begin = midnight + 16.0 + (5.0 if _summer_us(day) else 6.0)
        return begin, midnight + 48.0 + 17.0 + (5.0 if _summer_us(day + 2) else 6.0)
    if weekday >= 5:
        return midnight, midnight
    if which == ASIA:  # 9:00 to 15:30 in Tokyo, all year
        return midnight, midnight + 6.5
    if which == EUROPE:  # 8:00 to 16:30 in London
        shift = -1.0 if _summer_eu(day) else 0.0
        return midnight + 8.0 + shift, midnight + 16.5 + shift
    shift = 4.0 if _summer_us(day) else 5.0  # 9:30 to 16:00 in New York
    return midnight + 9.5 + shift, midnight + 16.0 + shift


@njit(cache=True)
def session_share(close: Array, length: Array, which: int) -> Array:
    """Return the share of each bar that lies in a session (ASIA, EUROPE, AMERICA, CME_SHUT); close and length in hours.

    Holidays are not known here: a session is held on every weekday.
    """
    out = np.full(close.size, np.nan)
    for i in range(close.size):
        if np.isfinite(close[i]) and np.isfinite(length[i]):
            begin = close[i] - length[i]
            inside = 0.0
            for day in range(int(math.floor(begin / 24.0)) - 3, int(math.floor(close[i] / 24.0)) + 1):  # noqa: RUF046
                opened, shut = _open_and_shut(day, which)
                inside += max(0.0, min(shut, close[i]) - max(opened, begin))
            out[i] = inside / length[i]
    return out


@njit(cache=True)
def hours_to_open(close: Array, which: int) -> Array:
    """Return the hours from the close to the next begin of a session, above 0."""
    out = np.full(close.size, np.nan)
    for i in range(close.size):
        if np.isfinite(close[i]):
            today = int(math.floor(close[i] / 24.0))  # noqa: RUF046
            for day in range(today, today + 9):
                opened, shut = _open_and_shut(day, which)
                if shut > opened and opened > close[i]:
                    out[i] = opened - close[i]
                    break
    return out


@njit(cache=True)
def hours_to_expiry(close: Array, months: int) -> Array:
    """Return the hours to the next expiry, above 0: 08:00 UTC on the last Friday of every ``months``-th month."""
    out = np.full(close.size, np.nan)
    for i in range(close.size):
        if np.isfinite(close[i]):
            year, month, _ = _civil(int(math.floor(close[i] / 24.0)))  # noqa: RUF046
            for ahead in range(0, 2 * months + 1):
                index = year * 12 + month - 1 + ahead
                if (index % 12 + 1) % months == 0:
                    following = _day((index + 1) // 12, (index + 1) % 12 + 1, 1)
                    friday = following - 1 - (_weekday(following - 1) - 4) % 7
                    expiry = friday * 24.0 + 8.0
                    if expiry > close[i]:
                        out[i] = expiry - close[i]
                        break
    return out


@njit(cache=True)
def month_share(close: Array) -> Array:
    """Return the elapsed share of the UTC month at the close, 0 to 1."""
    out = np.full(close.size, np.nan)
    for i in range(close.size):
        if np.isfinite(close[i]):
            year, month, _ = _civil(int(math.floor(close[i] / 24.0)))  # noqa: RUF046
            first = _day(year, month, 1) * 24.0
            after = _day(year + month // 12, month % 12 + 1, 1) * 24.0
            out[i] = (close[i] - first) / (after - first)
    return out
