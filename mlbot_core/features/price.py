"""Price: returns, trend, place in the range, the shape of the bar. Logarithms are natural."""

from __future__ import annotations

import numpy as np

from mlbot_core.features import elementwise as e
from mlbot_core.features import kernels as k
from mlbot_core.features import smoothing as s
from mlbot_core.features.registry import Array, feature, intermediate


@intermediate(("close",))
def log_close(close: Array) -> Array:
    """Log of the close."""
    return e.log(close)


@intermediate(("log_close",), lookback=1)
def log_return(log_close: Array) -> Array:
    """Log return of one bar."""
    return e.diff(log_close, 1)


@intermediate(("log_return",))
def abs_return(log_return: Array) -> Array:
    """Size of the log return of one bar."""
    return np.abs(log_return)


@intermediate(("close",), lookback=s.ema_window(12) - 1)
def ema_12(close: Array) -> Array:
    """Exponential mean of the close, span 12."""
    return s.ema(close, 12)


@intermediate(("close",), lookback=s.ema_window(26) - 1)
def ema_26(close: Array) -> Array:
    """Exponential mean of the close, span 26."""
    return s.ema(close, 26)


@intermediate(("ema_12", "ema_26"))
def macd_line(ema_12: Array, ema_26: Array) -> Array:
    """Fast less slow exponential mean, USD."""
    return ema_12 - ema_26


@feature(
    "ret_{n}",
    over=(1, 4, 12, 24, 72, 168),
    inputs=("log_close",),
    lookback=lambda n: n,
    unit="log return",
    definition="log return over {n} bars",
    source="Moskowitz, Ooi, Pedersen (2012), Time series momentum, JFE 104",
)
def ret(log_close: Array, n: int) -> Array:
    """Momentum."""
    return e.diff(log_close, n)


@feature(
    "sma_gap_{n}",
    over=(24, 96),
    inputs=("close",),
    lookback=lambda n: n - 1,
    unit="log ratio",
    definition="log of close over its mean of {n} bars",
    source="Brock, Lakonishok, LeBaron (1992), Simple technical trading rules, JF 47",
)
def sma_gap(close: Array, n: int) -> Array:
    """Distance from the moving average."""
    return e.log_ratio(close, k.mean(close, n))


@feature(
    "ema_gap_26",
    inputs=("close", "ema_26"),
    unit="log ratio",
    definition="log of close over its exponential mean of span 26",
    source="Brock, Lakonishok, LeBaron (1992), Simple technical trading rules, JF 47",
)
def ema_gap(close: Array, mean: Array) -> Array:
    """Distance from the exponential average."""
    return e.log_ratio(close, mean)


@feature(
    "macd_hist",
    inputs=("macd_line", "close"),
    lookback=s.ema_window(9) - 1,
    unit="fraction of price",
    definition="(EMA12 - EMA26) less its own EMA9, over close",
    source="Appel (2005), Technical Analysis: Power Tools for Active Investors",
)
def macd_hist(macd_line: Array, close: Array) -> Array:
    """Change of momentum."""
    return e.ratio(macd_line - s.ema(macd_line, 9), close)


@feature(
    "rsi_14",
    inputs=("close",),
    lookback=s.wilder_window(14),
    unit="-1 to 1",
    definition="(RSI(14) - 50) / 50, Wilder's averages restarted 270 bars back",
    source="Wilder (1978), New Concepts in Technical Trading Systems",
    normalise="none",
)
def rsi_14(close: Array) -> Array:
    """Share of gains among moves."""
    return (s.rsi(close, 14) - 50.0) / 50.0


@feature(
    "range_place_{n}",
    over=(24, 96),
    inputs=("high", "low", "close"),
    lookback=lambda n: n - 1,
    unit="0 to 1",
    definition="place of close between the lowest low and the highest high of {n} bars",
    source="Lane (1984), Lane's stochastics; Donchian channels",
    normalise="none",
)
def range_place(high: Array, low: Array, close: Array, n: int) -> Array:
    """Stochastic oscillator."""
    floor = k.lowest(low, n)
    return e.ratio(close - floor, k.highest(high, n) - floor)


@feature(
    "from_high_168",
    inputs=("high", "close"),
    lookback=167,
    unit="log ratio",
    definition="log of close over the highest high of 168 bars",
    source="George, Hwang (2004), The 52-week high and momentum investing, JF 59",
)
def from_high(high: Array, close: Array) -> Array:
    """Distance below the high."""
    return e.log_ratio(close, k.highest(high, 168))


@feature(
    "from_low_168",
    inputs=("low", "close"),
    lookback=167,
    unit="log ratio",
    definition="log of close over the lowest low of 168 bars",
    source="George, Hwang (2004), The 52-week high and momentum investing, JF 59",
)
def from_low(low: Array, close: Array) -> Array:
    """Distance above the low."""
    return e.log_ratio(close, k.lowest(low, 168))


@feature(
    "aroon_96",
    inputs=("high", "low"),
    lookback=95,
    unit="-1 to 1",
    definition="(bars since the lowest low - bars since the highest high) / 95, over 96 bars",
    source="Chande (1995), Aroon, Technical Analysis of Stocks and Commodities 13",
    normalise="none",
)
def aroon(high: Array, low: Array) -> Array:
    """Which extreme is fresher."""
    return (k.since_lowest(low, 96) - k.since_highest(high, 96)) / 95.0


@feature(
    "slope_{n}",
    over=(24, 96),
    inputs=("log_close",),
    lookback=lambda n: n - 1,
    unit="log return per bar",
    definition="slope of the least-squares line through log close of {n} bars",
    source="Clenow (2013), Following the Trend",
)
def slope(log_close: Array, n: int) -> Array:
    """Trend."""
    return k.slope(log_close, n)


@feature(
    "efficiency_24",
    inputs=("log_close",),
    lookback=24,
    unit="-1 to 1",
    definition="net log return of 24 bars over the sum of its absolute one-bar returns",
    source="Kaufman (1995), Smarter Trading",
    normalise="none",
)
def efficiency(log_close: Array) -> Array:
    """Signed efficiency ratio."""
    return e.ratio(e.diff(log_close, 24), k.total(np.abs(e.diff(log_close, 1)), 24))


@feature(
    "autocorr_48",
    inputs=("log_return",),
    lookback=48,
    unit="correlation",
    definition="correlation of one-bar returns with the bar before, 48 bars",
    source="Lo, MacKinlay (1988), Stock market prices do not follow random walks, RFS 1",
    normalise="none",
)
def autocorr(log_return: Array) -> Array:
    """Persistence of returns."""
    return k.correlation(log_return, e.lag(log_return, 1), 48)


@feature(
    "body",
    inputs=("open", "high", "low", "close"),
    unit="-1 to 1",
    definition="(close - open) / (high - low) of the bar",
    source="Nison (1991), Japanese Candlestick Charting Techniques",
    normalise="none",
)
def body(open_: Array, high: Array, low: Array, close: Array) -> Array:
    """Conviction of the bar."""
    return e.ratio(close - open_, high - low)


@feature(
    "shadow",
    inputs=("open", "high", "low", "close"),
    unit="-1 to 1",
    definition="(lower shadow - upper shadow) / (high - low) of the bar",
    source="Nison (1991), Japanese Candlestick Charting Techniques",
    normalise="none",
)
def shadow(open_: Array, high: Array, low: Array, close: Array) -> Array:
    """Rejection of the extremes."""
    return e.ratio((np.minimum(open_, close) - low) - (high - np.maximum(open_, close)), high - low)
