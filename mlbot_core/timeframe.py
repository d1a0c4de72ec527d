"""Bar intervals, months and markets: the arithmetic of time that everything else relies on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import numpy as np
import numpy.typing as npt

from mlbot_core.errors import UsageError

MINUTE_MS: Final = 60_000
HOUR_MS: Final = 60 * MINUTE_MS
DAY_MS: Final = 24 * HOUR_MS

_UNITS: Final = {"m": 1, "h": 60, "d": 1440}
_LABEL: Final = re.compile(r"^([1-9]\d*)([mhd])$")


@dataclass(frozen=True, order=True)
class Timeframe:
    """The length of a bar. Bars are labelled by their OPEN time and aligned to the UTC epoch.

    Parameters
    ----------
    minutes
        Length in minutes; a divisor or a multiple of a day.

    Examples
    --------
    >>> Timeframe.parse("2h").ms
    7200000
    >>> str(Timeframe(30))
    '30m'
    """

    minutes: int

    def __post_init__(self) -> None:
        if self.minutes <= 0 or (1440 % self.minutes and self.minutes % 1440):
            raise UsageError(f"a bar of {self.minutes} minutes does not divide a day; use 30m, 1h, 2h, 4h or 1d")

    @classmethod
    def parse(cls, text: str) -> Timeframe:
        """Read ``30m``, ``2h`` or ``1d``.

        Raises
        ------
        UsageError
            If the text is not a number followed by m, h or d, or does not divide a day.
        """
        match = _LABEL.match(str(text).strip())
        if match is None:
            raise UsageError(f"interval {text!r} is not a number followed by m, h or d; for example 30m, 2h or 1d")
        return cls(int(match[1]) * _UNITS[match[2]])

    @property
    def ms(self) -> int:
        """Length in milliseconds."""
        return self.minutes * MINUTE_MS

    @property
    def bars_per_day(self) -> float:
        """How many of these bars make 24 hours."""
        return 1440 / self.minutes

    def __str__(self) -> str:
        for unit in ("d", "h"):
            if self.minutes % _UNITS[unit] == 0:
                return f"{self.minutes // _UNITS[unit]}{unit}"
        return f"{self.minutes}m"

    def floor(self, ms: int) -> int:
        """Return the open time of the bar that contains the instant ``ms``."""
        return ms - ms % self.ms

    def ceil(self, ms: int) -> int:
        """Return the first open time at or after ``ms``."""
        return -(-ms // self.ms) * self.ms

    def close_of(self, ts: int) -> int:
        """Return when the bar opened at ``ts`` closes, UTC ms."""
        return ts + self.ms

    def is_closed(self, ts: int, now_ms: int) -> bool:
        """Return whether the bar opened at ``ts`` has closed by ``now_ms``."""
        return ts + self.ms <= now_ms

    def last_closed(self, now_ms: int) -> int:
        """Return the open time of the newest bar that has closed by ``now_ms``."""
        return self.floor(now_ms) - self.ms

    def opens_between(self, start_ms: int, end_ms: int) -> npt.NDArray[np.int64]:
        """Return the open times in ``[start_ms, end_ms)``, int64, ascending."""
        return np.arange(self.ceil(start_ms), end_ms, self.ms, dtype=np.int64)


@dataclass(frozen=True, order=True)
class Market:
    """What is traded and at which pace: a symbol and a timeframe, written ``BTC-2h``."""

    symbol: str
    timeframe: Timeframe

    @classmethod
    def parse(cls, text: str) -> Market:
        """Read ``BTC-2h``.

        Raises
        ------
        UsageError
            If there is no dash or the interval is not one.
        """
        symbol, dash, interval = text.rpartition("-")
        if not dash or not symbol.isalnum():
            raise UsageError(f"market {text!r} is not SYMBOL-INTERVAL; for example BTC-2h")
        return cls(symbol.upper(), Timeframe.parse(interval))

    def __str__(self) -> str:
        return f"{self.symbol}-{self.timeframe}"


@dataclass(frozen=True, order=True)
class Month:
    """A calendar month in UTC: the time side of a partition, written ``2024-03-01``."""

    year: int
    month: int

    @classmethod
    def parse(cls, text: str) -> Month:
        """Read ``2024-03`` or the partition key ``2024-03-01``.

        Raises
        ------
        UsageError
            If the text is neither.
        """
        match = re.fullmatch(r"(\d{4})-(\d{2})(?:-01)?", text.strip())
        if match is None or not 1 <= int(match[2]) <= 12:
            raise UsageError(f"month {text!r} is not YYYY-MM; for example 2024-03")
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def of(cls, ms: int) -> Month:
        """Return the month that contains the instant ``ms``."""
        moment = datetime.fromtimestamp(ms / 1000, tz=UTC)
        return cls(moment.year, moment.month)

    @property
    def key(self) -> str:
        """The partition key: the month's first day."""
        return f"{self.year:04d}-{self.month:02d}-01"

    def __str__(self) -> str:
        return f"{self.year:04d}-{self.month:02d}"

    def next(self) -> Month:
        """Return the following month."""
        return Month(self.year + self.month // 12, self.month % 12 + 1)

    @property
    def start_ms(self) -> int:
        """First instant, UTC ms, inclusive."""
        return int(datetime(self.year, self.month, 1, tzinfo=UTC).timestamp()) * 1000

    @property
    def end_ms(self) -> int:
        """First instant of the next month, UTC ms, exclusive."""
        return self.next().start_ms

    @classmethod
    def span(cls, start_ms: int, end_ms: int) -> list[Month]:
        """Return every month that shares an instant with ``[start_ms, end_ms)``, ascending."""
        months: list[Month] = []
        current = cls.of(start_ms)
        while current.start_ms < end_ms:
            months.append(current)
            current = current.next()
        return months
