"""Variance: further estimators and horizons of volatility, its parts and its changes. Per bar, not annualised.

Windows are in bars; 24, 168 and 720 are a day, a week and a month of hourly bars.
"""

from __future__ import annotations

import math

import numpy as np

from mlbot_core.features import elementwise as e
from mlbot_core.features import kernels as k
from mlbot_core.features import recursive
from mlbot_core.features.registry import Array, feature, intermediate

_HAR = "Corsi (2009), A simple approximate long-memory model of realized volatility, JFEC 7"
_SEMI = "Barndorff-Nielsen, Kinnebrock, Shephard (2010), Measuring downside risk: realised semivariance"
_EWMA_SPAN = 32  # decay 1 - 2 / 33 = 0.94


@intermediate(("open", "high", "low", "close"))
def garman_klass_bar(open_: Array, high: Array, low: Array, close: Array) -> Array:
    """Garman-Klass variance of one bar."""
    return e.garman_klass(open_, high, low, close)


@intermediate(("open", "high", "low", "close"))
def rogers_satchell_bar(open_: Array, high: Array, low: Array, close: Array) -> Array:
    """Rogers-Satchell variance of one bar."""
    return e.rogers_satchell(open_, high, low, close)


@intermediate(("log_range",))
def squared_range(log_range: Array) -> Array:
    """Square of log(high/low)."""
    return log_range * log_range


@intermediate(("squared_return",), lookback=23)
def har_day_var(squared_return: Array) -> Array:
    """Mean squared return of 24 bars."""
    return k.mean(squared_return, 24)


@intermediate(("squared_return",), lookback=167)
def har_week_var(squared_return: Array) -> Array:
    """Mean squared return of 168 bars."""
    return k.mean(squared_return, 168)


@intermediate(("squared_return",), lookback=719)
def har_month_var(squared_return: Array) -> Array:
    """Mean squared return of 720 bars."""
    return k.mean(squared_return, 720)


@feature(
    "har_week",
    inputs=("har_week_var",),
    unit="log return per bar",
    definition="root mean square of 168 returns",
    source=_HAR,
)
@feature(
    "har_month",
    inputs=("har_month_var",),
    unit="log return per bar",
    definition="root mean square of 720 returns",
    source=_HAR,
)
@feature(
    "har_day",
    inputs=("har_day_var",),
    unit="log return per bar",
    definition="root mean square of 24 returns",
    source=_HAR,
)
def har(variance: Array) -> Array:
    """A term of the heterogeneous autoregression."""
    return np.sqrt(variance)


@feature(
    "har_day_week",
    inputs=("har_day_var", "har_week_var"),
    unit="log ratio",
    definition="half the log of the 24-bar over the 168-bar mean squared return",
    source=_HAR,
)
@feature(
    "har_week_month",
    inputs=("har_week_var", "har_month_var"),
    unit="log ratio",
    definition="half the log of the 168-bar over the 720-bar mean squared return",
    source=_HAR,
)
def har_term(short: Array, long: Array) -> Array:
    """Term structure of volatility."""
    return 0.5 * e.log_ratio(short, long)


@feature(
    "cc_vol_{n}",
    over=(6, 24, 72, 336),
    inputs=("log_return",),
    lookback=lambda n: n - 1,
    unit="log return per bar",
    definition="standard deviation of one-bar log returns over {n} bars",
    source=_HAR,
)
def cc_vol(log_return: Array, n: int) -> Array:
    """Close-to-close volatility of further horizons."""
    return k.std(log_return, n)


@feature(
    "parkinson_{n}",
    over=(6, 72, 168),
    inputs=("squared_range",),
    lookback=lambda n: n - 1,
    unit="log return per bar",
    definition="square root of the mean of log(high/low)^2 / (4 log 2) over {n} bars",
    source="Parkinson (1980), The extreme value method, Journal of Business 53",
)
def parkinson(squared_range: Array, n: int) -> Array:
    """Range volatility."""
    return np.sqrt(k.mean(squared_range, n) / (4.0 * math.log(2.0)))


@feature(
    "garman_klass_{n}",
    over=(12, 168),
    inputs=("garman_klass_bar",),
    lookback=lambda n: n - 1,
    unit="log return per bar",
    definition="square root of the mean Garman-Klass variance over {n} bars",
    source="Garman, Klass (1980), On the estimation of security price volatilities, Journal of Business 53",
)
@feature(
    "rogers_satchell_{n}",
    over=(12, 48, 168),
    inputs=("rogers_satchell_bar",),
    lookback=lambda n: n - 1,
    unit="log return per bar",
    definition="square root of the mean Rogers-Satchell variance over {n} bars",
    source="Rogers, Satchell (1991), Estimating variance from high, low and closing prices, AAP 1",
)
def bar_variance(variance: Array, n: int) -> Array:
    """Volatility from the prices inside bars."""
    return np.sqrt(e.positive_part(k.mean(variance, n)))


@feature(
    "yang_zhang_{n}",
    over=(12, 48, 168),
    inputs=("open", "close", "rogers_satchell_bar"),
    lookback=lambda n: n,
    unit="log return per bar",
    definition="square root of opening variance + c times open-to-close variance + (1 - c) times Rogers-Satchell, "
    "c = 0.34 / (1.34 + ({n} + 1) / ({n} - 1)), {n} bars",
    source="Yang, Zhang (2000), Drift-independent volatility estimation, Journal of Business 73",
)
def yang_zhang(open_: Array, close: Array, rogers_satchell_bar: Array, n: int) -> Array:
    """Volatility that withstands drift and opening gaps."""
    overnight = k.std(e.log_ratio(open_, e.lag(close, 1)), n)
    inside = k.std(e.log_ratio(close, open_), n)
    c = 0.34 / (1.34 + (n + 1.0) / (n - 1.0))
    variance = overnight * overnight + c * inside * inside + (1.0 - c) * k.mean(rogers_satchell_bar, n)
    return np.sqrt(e.positive_part(variance))


@feature(
    "semivol_up_{n}",
    over=(24, 168),
    inputs=("log_return",),
    lookback=lambda n: n - 1,
    unit="log return per bar",
    definition="square root of the mean of squared positive returns (others count as 0) over {n} bars",
    source=_SEMI,
)
def semivol_up(log_return: Array, n: int) -> Array:
    """Upside volatility."""
    rise = e.positive_part(log_return)
    return np.sqrt(k.mean(rise * rise, n))


@feature(
    "semivol_down_{n}",
    over=(24, 168),
    inputs=("log_return",),
    lookback=lambda n: n - 1,
    unit="log return per bar",
    definition="square root of the mean of squared negative returns (others count as 0) over {n} bars",
    source=_SEMI,
)
def semivol_down(log_return: Array, n: int) -> Array:
    """Downside volatility."""
    fall = e.positive_part(-log_return)
    return np.sqrt(k.mean(fall * fall, n))


@feature(
    "semivar_share_{n}",
    over=(12, 168),
    inputs=("log_return", "squared_return"),
    lookback=lambda n: n - 1,
    unit="-1 to 1",
    definition="(upside - downside) / total sum of squared returns, {n} bars",
    source=_SEMI,
    normalise="none",
)
def semivar_share(log_return: Array, squared_return: Array, n: int) -> Array:
    """Which side the volatility is on."""
    return e.ratio(k.total(np.sign(log_return) * squared_return, n), k.total(squared_return, n))


@feature(
    "ewma_vol",
    inputs=("squared_return",),
    lookback=recursive.window(_EWMA_SPAN) - 1,
    unit="log return per bar",
    definition="square root of the exponential mean of squared returns with decay 0.94, restarted 320 bars back",
    source="J.P. Morgan, Reuters (1996), RiskMetrics Technical Document",
)
def ewma_vol(squared_return: Array) -> Array:
    """RiskMetrics volatility."""
    return np.sqrt(recursive.ema(squared_return, _EWMA_SPAN))


@feature(
    "vol_change_{n}",
    over=(6, 24),
    inputs=("har_day_var",),
    lookback=lambda n: n,
    unit="log ratio",
    definition="log of the 24-bar mean squared return over that of {n} bars before",
    source=_HAR,
)
def vol_change(har_day_var: Array, n: int) -> Array:
    """Is volatility rising."""
    return e.log_ratio(har_day_var, e.lag(har_day_var, n))


@feature(
    "vol_rank_{n}",
    over=(168, 720),
    inputs=("har_day_var",),
    lookback=lambda n: n - 1,
    unit="0 to 1",
    definition="rank of the 24-bar mean squared return among those of {n} bars",
    source=_HAR,
    normalise="none",
)
def vol_rank(har_day_var: Array, n: int) -> Array:
    """Calm or storm, by past standards."""
    return k.rank(har_day_var, n)


@feature(
    "quarticity_{n}",
    over=(48, 168),
    inputs=("squared_return",),
    lookback=lambda n: n - 1,
    unit="log ratio",
    definition="log of the mean fourth power of returns over the square of the mean second, {n} bars",
    source="Barndorff-Nielsen, Shephard (2002), Econometric analysis of realized volatility, JRSS B 64",
)
def quarticity(squared_return: Array, n: int) -> Array:
    """Fat tails."""
    mean = k.mean(squared_return, n)
    return e.log_ratio(k.mean(squared_return * squared_return, n), mean * mean)


@feature(
    "largest_share_{n}",
    over=(24, 168),
    inputs=("squared_return",),
    lookback=lambda n: n - 1,
    unit="fraction",
    definition="largest squared return as a share of the sum of {n}",
    source="Barndorff-Nielsen, Shephard (2004), Power and bipower variation, JFEC 2",
    normalise="none",
)
def largest_share(squared_return: Array, n: int) -> Array:
    """How much one bar made of the variance."""
    return e.ratio(k.highest(squared_return, n), k.total(squared_return, n))


@feature(
    "leverage_{n}",
    over=(168, 336),
    inputs=("log_return", "abs_return"),
    lookback=lambda n: n,
    unit="correlation",
    definition="correlation of |return| with the return of the bar before, {n} bars",
    source="Bouchaud, Matacz, Potters (2001), Leverage effect in financial markets, PRL 87",
    normalise="none",
)
def leverage(log_return: Array, abs_return: Array, n: int) -> Array:
    """Do falls bring volatility."""
    return k.correlation(abs_return, e.lag(log_return, 1), n)


@feature(
    "vol_clustering_{n}",
    over=(168, 336),
    inputs=("abs_return",),
    lookback=lambda n: n,
    unit="correlation",
    definition="correlation of |return| with that of the bar before, {n} bars",
    source="Ding, Granger, Engle (1993), A long memory property of stock market returns, JEF 1",
    normalise="none",
)
def vol_clustering(abs_return: Array, n: int) -> Array:
    """Does volatility persist."""
    return k.correlation(abs_return, e.lag(abs_return, 1), n)
