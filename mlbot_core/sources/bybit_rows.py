"""Rows of Bybit's answers as arrays in canonical units: anything doubtful is refused by name.

Bybit writes numbers as texts and the newest row first. It gives no sign of whether a candle is closed: that follows
from Bybit's own time, which every answer carries.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlbot_core.clock import format_utc
from mlbot_core.errors import BadDataError
from mlbot_core.sources.paging import Page, Window
from mlbot_core.timeframe import HOUR_MS, Timeframe

FUNDING: Final = Timeframe(480)
# Both sides' open interest over one side's; served with different decimals, hence the tolerance.
BOTH_SIDES: Final = 2.0
_TOLERANCE: Final = 1e-3
_NUMBER: Final = re.compile(r"-?\d+(\.\d*)?([eE][+-]?\d+)?", re.ASCII)
_STAMP: Final = re.compile(r"\d{13}", re.ASCII)
_REFUSED: Final = "nothing of this answer was stored"


@dataclass(frozen=True)
class Asked:
    """What was asked for, which an answer has to fit.

    Parameters
    ----------
    what
        The endpoint, for messages.
    pair
        The instrument, such as ``BTCUSDT``.
    window
        First and last open time that are of interest, UTC ms; other rows are left out.
    known_ms
        The present as both our clock and Bybit's agree on: a bar that closes later was open.
    received_ms
        When the answer had arrived, UTC ms.
    """

    what: str
    pair: str
    window: Window
    known_ms: int
    received_ms: int


def candles(result: Mapping[str, Any], timeframe: Timeframe, asked: Asked, *, flows: bool) -> Page:
    """Return the closed candles of one answer.

    Parameters
    ----------
    result
        ``result`` of the answer: ``list`` of arrays [start, open, high, low, close] and, with ``flows``,
        [volume in coins, turnover in USD].
    timeframe
        Length of a candle.

    Returns
    -------
    Page
        Columns open, high, low, close and, with ``flows``, turnover and volume.

    Raises
    ------
    BadDataError
        If the answer is of another instrument or shape, a number is none, a candle is off the grid, contradicts
        itself, or occurs twice with different values.
    """
    width = 7 if flows else 5
    bars = _Bars(asked, timeframe)
    rows = _rows(result, asked)
    # further values at the end of every row would be something new; in one row alone they are damage
    length = max(width, len(rows[0])) if rows and isinstance(rows[0], list) else width
    for row in rows:
        if not isinstance(row, list) or len(row) != length:
            raise BadDataError(f"{asked.what}: a row is {str(row)[:80]!r}, not {length} values; {_REFUSED}")
        ts = _stamp(row[0], asked, "start")
        numbers = [_number(value, name, ts, asked) for name, value in zip(_NAMES, row[1:width], strict=False)]
        high, low, close = numbers[1:4]
        # the open may lie outside: the exchange takes over the close before it
        if not low <= close <= high:
            raise BadDataError(
                f"{asked.what}: bar {format_utc(ts)} closes at {close}, outside its range {low} to {high}; {_REFUSED}"
            )
        bars.add(ts, (*numbers[:4], *reversed(numbers[4:])))
    return bars.page(6 if flows else 4)


_NAMES: Final = ("open", "high", "low", "close", "volume", "turnover")


def account_shares(result: Mapping[str, Any], timeframe: Timeframe, asked: Asked) -> Page:
    """Return long and short shares of accounts (fractions) as bars that END at the sample's time.

    Raises
    ------
    BadDataError
        As for candles, and if the shares do not add up to one.
    """
    bars = _Bars(asked, timeframe)
    for row in _rows(result, asked):
        ts = _stamp(_field(row, "timestamp", asked), asked, "timestamp") - timeframe.ms
        shares = tuple(_number(_field(row, name, asked), name, ts, asked) for name in ("buyRatio", "sellRatio"))
        if not (min(shares) >= 0 and abs(sum(shares) - 1) <= 0.01):
            raise BadDataError(
                f"{asked.what}: shares {shares[0]} and {shares[1]} of the bar {format_utc(ts)} are no parts of one; "
                f"{_REFUSED}"
            )
        bars.add(ts, shares)
    return bars.page(2)


def open_interest(result: Mapping[str, Any], timeframe: Timeframe, asked: Asked) -> Page:
    """Return ``openInterest`` and ``singleOpenInterest`` (coins; NaN where not given) as bars that END at the sample.

    Raises
    ------
    BadDataError
        As for candles, and if ``openInterest`` is neither one nor two times ``singleOpenInterest``.
    """
    bars = _Bars(asked, timeframe)
    for row in _rows(result, asked):
        ts = _stamp(_field(row, "timestamp", asked), asked, "timestamp") - timeframe.ms
        served = _number(_field(row, "openInterest", asked), "openInterest", ts, asked)
        single = math.nan
        if row.get("singleOpenInterest") not in (None, ""):
            single = _number(row["singleOpenInterest"], "singleOpenInterest", ts, asked)
            factor = served / single if single else 1.0 if served == 0 else math.inf
            if not any(abs(factor - known) <= _TOLERANCE * known for known in (1.0, BOTH_SIDES)):
                raise BadDataError(
                    f"{asked.what}: openInterest {served} of the bar {format_utc(ts)} is {factor:.4g} times "
                    f"singleOpenInterest {single}, neither one side nor both; {_REFUSED}"
                )
        if served < 0 or single < 0:
            raise BadDataError(f"{asked.what}: negative open interest {served} at {format_utc(ts)}; {_REFUSED}")
        bars.add(ts, (served, single))
    return bars.page(2)


def one_side(served: npt.NDArray[np.float64], single: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], str]:
    """Return one side's open interest and a note on how it was told apart (empty: it was given throughout).

    Where only ``openInterest`` is given it may be one side or both: Bybit documents the sum of both sides since
    2026-06, and not whether older samples changed. It is taken to mean what it means in the nearest sample that gives
    both, unless it jumps by about a factor of two on the way there. Without such a sample it is taken as one side.

    Parameters
    ----------
    served, single
        ``openInterest`` and ``singleOpenInterest`` (NaN where not given) of consecutive samples, coins.
    """
    given = ~np.isnan(single)
    if given.all():
        return single, ""
    lacking = int((~given).sum())
    if not given.any():
        return served, "open interest as served: whether it is one side or both was not told"
    divisor = np.full(len(served), np.nan)
    divisor[given] = np.where(single[given] > 0, np.round(served[given] / np.maximum(single[given], 1e-12)), 1.0)
    # from every sample that gives both, outward over those that do not, watching for the factor of two
    order = range(1, len(served))
    for steps, back in ((order, 1), (reversed(range(len(served) - 1)), -1)):
        for at in steps:
            if np.isnan(divisor[at]) and not np.isnan(divisor[at - back]):
                jump = served[at] / served[at - back] if served[at - back] > 0 else 1.0
                divisor[at] = min(max(divisor[at - back] * 2.0 ** round(math.log2(max(jump, 1e-12))), 1.0), 2.0)
    halved = int((divisor[~given] == BOTH_SIDES).sum())
    note = (
        f"one side's open interest was not given for {lacking} samples: {halved} of them halved, as those beside them"
    )
    return np.where(given, single, served / divisor), note


def funding(result: Mapping[str, Any], asked: Asked) -> tuple[Page, int | None]:
    """Return settled rates (fraction) in bars of 8 hours, and the oldest payment in the answer (None: it is empty).

    A bar holds what is paid in ``[ts, ts + 8h)``: at an interval of eight hours the payment at ts. Where an
    instrument pays more often, the payments of a bar are added up.

    Raises
    ------
    BadDataError
        As for candles, and if a payment is not on a full hour.
    """
    payments: dict[int, float] = {}
    for row in _rows(result, asked):
        ts = _stamp(_field(row, "fundingRateTimestamp", asked), asked, "fundingRateTimestamp")
        rate = _number(_field(row, "fundingRate", asked), "fundingRate", ts, asked)
        if ts % HOUR_MS:
            raise BadDataError(f"{asked.what}: a payment at {format_utc(ts)} is not on a full hour; {_REFUSED}")
        if payments.setdefault(ts, rate) != rate:
            raise BadDataError(
                f"{asked.what}: the payment at {format_utc(ts)} occurs twice, as {payments[ts]} and {rate}; {_REFUSED}"
            )
    bars: dict[int, float] = {}
    for ts in sorted(payments):
        opened = FUNDING.floor(ts)
        if asked.window.first_ts <= opened <= asked.window.last_ts and FUNDING.is_closed(opened, asked.known_ms):
            bars[opened] = bars.get(opened, 0.0) + payments[ts]
    often = sum(1 for ts in payments if ts % FUNDING.ms)
    notes = (f"{often} payments between the 8-hour settlements were added to their bar",) if often else ()
    stamps = np.array(list(bars), dtype=np.int64)
    rates = np.array(list(bars.values()), dtype=np.float64).reshape(-1, 1)
    return Page(stamps, rates, asked.received_ms, notes), min(payments, default=None)


class _Bars:
    """Closed bars of one answer inside the window, each once."""

    def __init__(self, asked: Asked, timeframe: Timeframe) -> None:
        self._asked = asked
        self._timeframe = timeframe
        self._bars: dict[int, tuple[float, ...]] = {}
        self._repeated = 0
        self._order: list[int] = []

    def add(self, ts: int, values: tuple[float, ...]) -> None:
        asked = self._asked
        if ts % self._timeframe.ms:
            raise BadDataError(f"{asked.what}: {format_utc(ts)} is off the {self._timeframe} grid; {_REFUSED}")
        if not self._timeframe.is_closed(ts, asked.known_ms):
            return
        if not asked.window.first_ts <= ts <= asked.window.last_ts:
            return
        known = self._bars.setdefault(ts, values)
        if known is not values:
            # as texts: a value that is not given (NaN) equals itself
            if repr(known) != repr(values):
                raise BadDataError(
                    f"{asked.what}: bar {format_utc(ts)} occurs twice, with {known} and with {values}; {_REFUSED}"
                )
            self._repeated += 1
        self._order.append(ts)

    def page(self, columns: int) -> Page:
        notes = []
        if self._repeated:
            notes.append(f"{self._repeated} identical duplicate rows dropped")
        if self._order != sorted(self._order, reverse=True):
            notes.append("rows were out of order")
        stamps = np.array(sorted(self._bars), dtype=np.int64)
        matrix = np.array([self._bars[int(ts)] for ts in stamps], dtype=np.float64).reshape(len(stamps), columns)
        return Page(stamps, matrix, self._asked.received_ms, tuple(notes))


def _rows(result: Mapping[str, Any], asked: Asked) -> Sequence[Any]:
    rows = result.get("list")
    if not isinstance(rows, list):
        raise BadDataError(f"{asked.what}: list is {type(rows).__name__}, not an array; {_REFUSED}")
    for holder in (result, *(row for row in rows if isinstance(row, dict))):
        for name, wanted in (("symbol", asked.pair), ("category", "linear")):
            if holder.get(name, wanted) != wanted:
                raise BadDataError(
                    f"{asked.what}: the answer is of {name} {str(holder[name])[:40]!r}, not {wanted}; {_REFUSED}"
                )
    return rows


def _field(row: Any, name: str, asked: Asked) -> Any:
    if not isinstance(row, dict):
        raise BadDataError(f"{asked.what}: a row is {str(row)[:80]!r}, not an object; {_REFUSED}")
    if name not in row:
        raise BadDataError(
            f"{asked.what}: field {name!r} is missing in {str(row)[:80]!r}; has the answer's shape changed? {_REFUSED}"
        )
    return row[name]


def _stamp(raw: Any, asked: Asked, name: str) -> int:
    text = str(raw) if isinstance(raw, (str, int)) and not isinstance(raw, bool) else ""
    if not _STAMP.fullmatch(text):
        raise BadDataError(f"{asked.what}: {name} is {str(raw)[:80]!r}, not a time in ms; {_REFUSED}")
    return int(text)


def _number(raw: Any, name: str, ts: int, asked: Asked) -> float:
    text = str(raw) if isinstance(raw, (str, int, float)) and not isinstance(raw, bool) else ""
    value = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not math.isfinite(value):
        raise BadDataError(
            f"{asked.what}: {name} is {str(raw)[:80]!r} at {format_utc(ts)}, not a finite number; {_REFUSED}"
        )
    return value
