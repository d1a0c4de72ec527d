"""Momentum: returns of many horizons, how sure they are, and how far price stands from its extremes.

Windows are in bars; 24, 168 and 720 are a day, a week and a month of hourly bars. Logarithms are natural.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from mlbot_core.features import elementwise as e
from mlbot_core.features import kernels as k
from mlbot_core.features import rolling as r
from mlbot_core.features.registry import Array, feature, intermediate

_TSMOM = "Moskowitz, Ooi, Pedersen (2012), Time series momentum, JFE 104"
_HIGH = "George, Hwang (2004), The 52-week high and momentum investing, JF 59"
_RULES = "Brock, Lakonishok, LeBaron (1992), Simple technical trading rules, JF 47"
_WALK = "Lo, MacKinlay (1988), Stock market prices do not follow random walks, RFS 1"


@intermediate(("log_return",), lookback=167)
def week_deviation(log_return: Array) -> Array:
    """Standard deviation of one-bar log returns over 168 bars."""
    return k.std(log_return, 168)


@feature(
    "mom_{n}",
    over=(2, 6, 48, 336, 720),
    inputs=("log_close",),
    lookback=lambda n: n,
    unit="log return",
    definition="log return over {n} bars",
    source=_TSMOM,
)
def mom(log_close: Array, n: int) -> Array:
    """Momentum of further horizons."""
    return e.diff(log_close, n)


def mom_scaled(ret: Array, week_deviation: Array, n: int) -> Array:
    """Momentum in units of risk."""
    return e.ratio(ret, week_deviation * math.sqrt(n))


for _ret in ("ret_1", "mom_6", "ret_24", "ret_72"):
    feature(
        "mom_scaled_{n}",
        over=(int(_ret.partition("_")[2]),),
        inputs=(_ret, "week_deviation"),
        unit="standard deviations",
        definition="log return over {n} bars over the 168-bar deviation of one-bar returns times sqrt({n})",
        source=_TSMOM,
        normalise="none",
    )(mom_scaled)


@feature(
    "mom_t_{n}",
    over=(24, 72, 168, 336),
    inputs=("log_return",),
    lookback=lambda n: n - 1,
    unit="t statistic",
    definition="mean of {n} one-bar log returns over its standard error",
    source=_TSMOM,
    normalise="none",
)
def mom_t(log_return: Array, n: int) -> Array:
    """How sure the trend is."""
    return e.ratio(k.mean(log_return, n), k.std(log_return, n) / math.sqrt(n))


@feature(
    "mom_skip_{n}",
    over=(168, 720),
    inputs=("log_close",),
    lookback=lambda n: n,
    unit="log return",
    definition="log return from {n} to 24 bars ago",
    source="Jegadeesh, Titman (1993), Returns to buying winners and selling losers, JF 48",
)
def mom_skip(log_close: Array, n: int) -> Array:
    """Momentum without its latest part, which tends to revert."""
    return e.lag(log_close, 24) - e.lag(log_close, n)


@feature(
    "mom_change_{n}",
    over=(24, 168),
    inputs=("log_close",),
    lookback=lambda n: 2 * n,
    unit="log return",
    definition="log return over {n} bars less that of the {n} bars before",
    source="Gettleman, Marks (2006), Acceleration strategies, Illinois working paper",
)
def mom_change(log_close: Array, n: int) -> Array:
    """Acceleration."""
    return e.diff(e.diff(log_close, n), n)


@feature(
    "dist_high_{n}",
    over=(24, 72, 336, 720),
    inputs=("high", "close"),
    lookback=lambda n: n - 1,
    unit="log ratio",
    definition="log of close over the highest high of {n} bars",
    source=_HIGH,
)
def dist_high(high: Array, close: Array, n: int) -> Array:
    """Distance below the high."""
    return e.log_ratio(close, k.highest(high, n))


@feature(
    "dist_low_{n}",
    over=(24, 72, 336, 720),
    inputs=("low", "close"),
    lookback=lambda n: n - 1,
    unit="log ratio",
    definition="log of close over the lowest low of {n} bars",
    source=_HIGH,
)
def dist_low(low: Array, close: Array, n: int) -> Array:
    """Distance above the low."""
    return e.log_ratio(close, k.lowest(low, n))


@feature(
    "since_high_{n}",
    over=(168, 720),
    inputs=("high",),
    lookback=lambda n: n - 1,
    unit="0 to 1",
    definition="bars since the highest high of {n} bars, over {n} - 1",
    source="Bhootra, Hur (2013), The timing of 52-week high price and momentum, JBF 37",
    normalise="none",
)
def since_high(high: Array, n: int) -> Array:
    """How old the high is."""
    return k.since_highest(high, n) / (n - 1.0)


@feature(
    "since_low_{n}",
    over=(168, 720),
    inputs=("low",),
    lookback=lambda n: n - 1,
    unit="0 to 1",
    definition="bars since the lowest low of {n} bars, over {n} - 1",
    source="Bhootra, Hur (2013), The timing of 52-week high price and momentum, JBF 37",
    normalise="none",
)
def since_low(low: Array, n: int) -> Array:
    """How old the low is."""
    return k.since_lowest(low, n) / (n - 1.0)


@feature(
    "price_rank_{n}",
    over=(168, 720),
    inputs=("close",),
    lookback=lambda n: n - 1,
    unit="0 to 1",
    definition="rank of the close among {n} closes",
    source=_HIGH,
    normalise="none",
)
def price_rank(close: Array, n: int) -> Array:
    """Place among past closes."""
    return k.rank(close, n)


@feature(
    "sma_cross_{n}",
    over=(24, 48, 168),
    inputs=("close",),
    lookback=lambda n: 4 * n - 1,
    unit="log ratio",
    definition="log of the mean close of {n} bars over that of four times as many",
    source=_RULES,
)
def sma_cross(close: Array, n: int) -> Array:
    """Fast average against slow."""
    return e.log_ratio(k.mean(close, n), k.mean(close, 4 * n))


@feature(
    "up_share_{n}",
    over=(24, 96),
    inputs=("log_return",),
    lookback=lambda n: n - 1,
    unit="-1 to 1",
    definition="mean sign of {n} one-bar returns",
    source="Papailias, Liu, Thomakos (2021), Return signal momentum, JBF 124",
    normalise="none",
)
def up_share(log_return: Array, n: int) -> Array:
    """Rises against falls, by number."""
    return k.mean(np.sign(log_return), n)


@feature(
    "trend_fit_{n}",
    over=(48, 168),
    inputs=("log_close",),
    lookback=lambda n: n - 1,
    unit="-1 to 1",
    definition="correlation of log close with time over {n} bars",
    source="Clenow (2013), Following the Trend",
    normalise="none",
)
def trend_fit(log_close: Array, n: int) -> Array:
    """How straight the trend is, with its direction."""
    return _signed_fit(r.trend_start(log_close, n), log_close, n)


@njit(cache=True, error_model="numpy")
def _signed_fit(state: Array, last: Array, n: int) -> Array:
    out = np.full(last.size, np.nan)
    for i in range(last.size):
        if r.valid(state[0, i], last[i], n) and state[4, i] > 0.0:
            out[i] = state[5, i] / math.sqrt(state[3, i] * state[4, i])
    return out


@feature(
    "ret_autocorr_{n}",
    over=(2, 6, 24),
    inputs=("log_return",),
    lookback=lambda n: 167 + n,
    unit="correlation",
    definition="correlation of one-bar returns with those {n} bars before, 168 bars",
    source=_WALK,
    normalise="none",
)
def ret_autocorr(log_return: Array, n: int) -> Array:
    """Persistence or reversal at a lag."""
    return k.correlation(log_return, e.lag(log_return, n), 168)


@feature(
    "extreme_ret_{n}",
    over=(24, 168),
    inputs=("log_return",),
    lookback=lambda n: n - 1,
    unit="log return",
    definition="greatest plus least one-bar log return of {n} bars",
    source="Bali, Cakici, Whitelaw (2011), Maxing out: stocks as lotteries, JFE 99",
)
def extreme_ret(log_return: Array, n: int) -> Array:
    """Which side the largest move was on."""
    return k.highest(log_return, n) + k.lowest(log_return, n)
