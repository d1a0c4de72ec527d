"""Cross-timeframe: what bars of 4, 12, 24 and 84 times the market's own length say, each only after it has closed.

At 2h these are 8 hours, 1 day, 2 days and 1 week; :mod:`mlbot_core.features.kernels_higher` says how they are aligned
and from when they are used. Lookbacks are in bars of the market.
"""

from __future__ import annotations

import numpy as np

from mlbot_core.features import elementwise as e
from mlbot_core.features import kernels_higher as h
from mlbot_core.features.registry import Array, feature

_TSMOM = "Moskowitz, Ooi, Pedersen (2012), Time series momentum, JFE 104"
_HETEROGENEOUS = "Corsi (2009), A simple approximate long-memory model of realized volatility, JFEC 7"
_SCREENS = "Elder (1993), Trading for a Living, ch. 9 (triple screen)"
_RULES = "Brock, Lakonishok, LeBaron (1992), Simple technical trading rules, JF 47"

_ALL = (4, 12, 24, 84)
_WINDOWED = (4, 12, 24)  # ten bars of the longest would be ten weeks at 2h
_BARS = 10  # higher bars in a window


@feature(
    "higher_ret_{n}",
    over=_ALL,
    inputs=("ts", "log_close"),
    lookback=lambda n: h.reach(n, 2),
    unit="log return",
    definition="log return of the last closed bar of {n} times the market's length",
    source=_TSMOM,
)
def higher_ret(ts: Array, log_close: Array, n: int) -> Array:
    """Momentum as the slower chart shows it."""
    return h.change(h.bar(log_close, h.ends(ts, n), n, h.LAST), n, 1)


@feature(
    "higher_forming_{n}",
    over=_ALL,
    inputs=("ts", "log_close"),
    lookback=lambda n: h.reach(n),
    unit="log return",
    definition="log of close over the close of the last closed bar of {n} times the market's length (0 as it closes)",
    source=_SCREENS,
)
def higher_forming(ts: Array, log_close: Array, n: int) -> Array:
    """What the forming slower bar has done so far."""
    return log_close - h.bar(log_close, h.ends(ts, n), n, h.LAST)


@feature(
    "higher_place_{n}",
    over=_ALL,
    inputs=("ts", "high", "low", "close"),
    lookback=lambda n: h.reach(n),
    unit="0 to 1 inside the bar",
    definition="place of close in the range of the last closed bar of {n} times the market's length, unbounded",
    source="Person (2004), A Complete Guide to Technical Trading Tactics, ch. 6 (pivots of the bar before)",
)
def higher_place(ts: Array, high: Array, low: Array, close: Array, n: int) -> Array:
    """Above or below the slower bar."""
    end = h.ends(ts, n)
    floor = h.bar(low, end, n, h.MIN)
    return e.ratio(close - floor, h.bar(high, end, n, h.MAX) - floor)


@feature(
    "higher_body_{n}",
    over=(12, 84),
    inputs=("ts", "open", "high", "low", "close"),
    lookback=lambda n: h.reach(n),
    unit="-1 to 1",
    definition="(close - open) / (high - low) of the last closed bar of {n} times the market's length",
    source="Nison (1991), Japanese Candlestick Charting Techniques",
    normalise="none",
)
def higher_body(ts: Array, open_: Array, high: Array, low: Array, close: Array, n: int) -> Array:
    """Conviction of the slower bar."""
    end = h.ends(ts, n)
    body = h.bar(close, end, n, h.LAST) - h.bar(open_, end, n, h.FIRST)
    return e.ratio(body, h.bar(high, end, n, h.MAX) - h.bar(low, end, n, h.MIN))


@feature(
    "higher_sma_gap_{n}",
    over=(24,),
    inputs=("ts", "close"),
    lookback=lambda n: h.reach(n, _BARS),
    unit="log ratio",
    definition="log of close over the mean close of the last 10 closed bars of {n} times the market's length",
    source=_RULES,
)
def higher_sma_gap(ts: Array, close: Array, n: int) -> Array:
    """Distance from the slower moving average."""
    return e.log_ratio(close, h.mean(h.bar(close, h.ends(ts, n), n, h.LAST), n, _BARS))


@feature(
    "higher_range_place_{n}",
    over=(12, 24),
    inputs=("ts", "high", "low", "close"),
    lookback=lambda n: h.reach(n, _BARS),
    unit="0 to 1 inside the channel",
    definition="place of close in the range of the last 10 closed bars of {n} times the market's length, unbounded",
    source="Donchian (1960), High finance in copper, FAJ 16",
    normalise="none",
)
def higher_range_place(ts: Array, high: Array, low: Array, close: Array, n: int) -> Array:
    """Place in the slower channel, break-outs beyond 0 and 1."""
    end = h.ends(ts, n)
    floor = h.extreme(h.bar(low, end, n, h.MIN), n, _BARS, h.MIN)
    return e.ratio(close - floor, h.extreme(h.bar(high, end, n, h.MAX), n, _BARS, h.MAX) - floor)


@feature(
    "higher_rsi_{n}",
    over=_WINDOWED,
    inputs=("ts", "log_close"),
    lookback=lambda n: h.reach(n, _BARS + 1),
    unit="-1 to 1",
    definition="(rises - falls) / (rises + falls) of the last 10 closes of bars of {n} times the market's length",
    source="Chande, Kroll (1994), The New Technical Trader (momentum oscillator; an RSI of plain sums)",
    normalise="none",
)
def higher_rsi(ts: Array, log_close: Array, n: int) -> Array:
    """Relative strength on the slower chart."""
    return h.balance(h.bar(log_close, h.ends(ts, n), n, h.LAST), n, _BARS + 1)


@feature(
    "higher_vol_ratio_{n}",
    over=_WINDOWED,
    inputs=("ts", "log_close"),
    lookback=lambda n: h.reach(n, _BARS + 1),
    unit="log ratio",
    definition=(
        "log of the deviation of 10 returns of bars of {n} times the market's length over that of as many of the "
        "market's own, times the square root of {n}: above 0 trending, below 0 reverting"
    ),
    source="Lo, MacKinlay (1988), Stock market prices do not follow random walks, RFS 1",
)
def higher_vol_ratio(ts: Array, log_close: Array, n: int) -> Array:
    """Does volatility grow faster than the square root of time."""
    end = h.ends(ts, n)
    slow = h.deviation(h.bar(log_close, end, n, h.LAST), n, _BARS + 1)
    one = e.diff(log_close, 1)
    squares = h.bar(one * one, end, n, h.SUM)
    return e.log_ratio(slow, np.sqrt(h.mean(squares, n, _BARS)))


@feature(
    "higher_range_{n}",
    over=(12, 24),
    inputs=("ts", "high", "low"),
    lookback=lambda n: h.reach(n, _BARS),
    unit="log ratio",
    definition=(
        "log of the range log(high/low) of the last closed bar of {n} times the market's length over the mean range "
        "of the last 10"
    ),
    source=_HETEROGENEOUS,
)
def higher_range(ts: Array, high: Array, low: Array, n: int) -> Array:
    """Wide or narrow slower bar."""
    end = h.ends(ts, n)
    width = e.log_ratio(h.bar(high, end, n, h.MAX), h.bar(low, end, n, h.MIN))
    return e.log_ratio(width, h.mean(width, n, _BARS))


@feature(
    "higher_volume_{n}",
    over=(12, 24),
    inputs=("ts", "volume_usd"),
    lookback=lambda n: h.reach(n, _BARS),
    unit="log ratio",
    definition=(
        "log of the turnover of the last closed bar of {n} times the market's length over the mean of the last 10"
    ),
    source="Gervais, Kaniel, Mingelgrin (2001), The high-volume return premium, JF 56",
)
def higher_volume(ts: Array, volume_usd: Array, n: int) -> Array:
    """Busy or quiet slower bar."""
    total = h.bar(volume_usd, h.ends(ts, n), n, h.SUM)
    return e.log_ratio(total, h.mean(total, n, _BARS))


@feature(
    "higher_agreement",
    inputs=("higher_rsi_4", "higher_rsi_12", "higher_rsi_24"),
    unit="-1 to 1",
    definition="mean sign of the slower charts' relative strength: 1 all rising, -1 all falling",
    source=_SCREENS,
    normalise="none",
)
def higher_agreement(fast: Array, middle: Array, slow: Array) -> Array:
    """Do the slower charts agree."""
    return (np.sign(fast) + np.sign(middle) + np.sign(slow)) / 3.0
