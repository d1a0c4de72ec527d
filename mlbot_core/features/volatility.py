"""Volatility: level by several estimators, term structure, asymmetry, jumps. Per bar, not annualised."""

from __future__ import annotations

import math

import numpy as np

from mlbot_core.features import elementwise as e
from mlbot_core.features import kernels as k
from mlbot_core.features import smoothing as s
from mlbot_core.features.registry import Array, feature, intermediate


@intermediate(("log_return",))
def squared_return(log_return: Array) -> Array:
    """Square of the one-bar log return."""
    return log_return * log_return


@intermediate(("high", "low"))
def log_range(high: Array, low: Array) -> Array:
    """Log of high over low."""
    return e.log_ratio(high, low)


@intermediate(("high", "low", "close"), lookback=1)
def true_range(high: Array, low: Array, close: Array) -> Array:
    """Wilder's true range, USD."""
    return e.true_range(high, low, close)


@feature(
    "vol_{n}",
    over=(12, 48, 168),
    inputs=("log_return",),
    lookback=lambda n: n - 1,
    unit="log return per bar",
    definition="standard deviation of one-bar log returns over {n} bars",
    source="Corsi (2009), A simple approximate long-memory model of realized volatility, JFEC 7",
)
def vol(log_return: Array, n: int) -> Array:
    """Realised volatility."""
    return k.std(log_return, n)


@feature(
    "vol_term",
    inputs=("log_return",),
    lookback=95,
    unit="log ratio",
    definition="log of the 12-bar over the 96-bar standard deviation of returns",
    source="Corsi (2009), A simple approximate long-memory model of realized volatility, JFEC 7",
)
def vol_term(log_return: Array) -> Array:
    """Is volatility rising."""
    return e.log_ratio(k.std(log_return, 12), k.std(log_return, 96))


@feature(
    "parkinson_24",
    inputs=("log_range",),
    lookback=23,
    unit="log return per bar",
    definition="square root of the mean of log(high/low)^2 / (4 log 2) over 24 bars",
    source="Parkinson (1980), The extreme value method, Journal of Business 53",
)
def parkinson(log_range: Array) -> Array:
    """Range volatility."""
    return np.sqrt(k.mean(log_range * log_range, 24) / (4.0 * math.log(2.0)))


@feature(
    "garman_klass_48",
    inputs=("open", "high", "low", "close"),
    lookback=47,
    unit="log return per bar",
    definition="square root of the mean Garman-Klass variance over 48 bars",
    source="Garman, Klass (1980), On the estimation of security price volatilities, Journal of Business 53",
)
def garman_klass(open_: Array, high: Array, low: Array, close: Array) -> Array:
    """Volatility from open, high, low and close."""
    return np.sqrt(e.positive_part(k.mean(e.garman_klass(open_, high, low, close), 48)))


@feature(
    "range_efficiency_48",
    inputs=("open", "high", "low", "close", "squared_return"),
    lookback=47,
    unit="log ratio",
    definition="log of the Rogers-Satchell variance over the close-to-close variance, 48 bars",
    source="Rogers, Satchell (1991), Estimating variance from high, low and closing prices, AAP 1",
)
def range_efficiency(open_: Array, high: Array, low: Array, close: Array, squared_return: Array) -> Array:
    """Back-and-forth inside bars against progress between them."""
    return e.log_ratio(k.mean(e.rogers_satchell(open_, high, low, close), 48), k.mean(squared_return, 48))


@feature(
    "atr_14",
    inputs=("true_range", "close"),
    lookback=s.wilder_window(14) - 1,
    unit="fraction of price",
    definition="Wilder's average true range of 14 bars over close, restarted 270 bars back",
    source="Wilder (1978), New Concepts in Technical Trading Systems",
)
def atr(true_range: Array, close: Array) -> Array:
    """Average true range."""
    return e.ratio(s.wilder(true_range, 14), close)


@feature(
    "range_rank_168",
    inputs=("log_range",),
    lookback=167,
    unit="0 to 1",
    definition="rank of this bar's log(high/low) among 168 bars",
    source="Parkinson (1980), The extreme value method, Journal of Business 53",
    normalise="none",
)
def range_rank(log_range: Array) -> Array:
    """How unusual this bar's range is."""
    return k.rank(log_range, 168)


@feature(
    "vol_of_vol_96",
    inputs=("log_range",),
    lookback=95,
    unit="ratio",
    definition="standard deviation over mean of log(high/low), 96 bars",
    source="Corsi, Mittnik, Pigorsch, Pigorsch (2008), The volatility of realized volatility, Econometric Reviews 27",
)
def vol_of_vol(log_range: Array) -> Array:
    """Unsteadiness of volatility."""
    return e.ratio(k.std(log_range, 96), k.mean(log_range, 96))


@feature(
    "semivariance_48",
    inputs=("log_return", "squared_return"),
    lookback=47,
    unit="-1 to 1",
    definition="(upside - downside) / total sum of squared returns, 48 bars",
    source="Barndorff-Nielsen, Kinnebrock, Shephard (2010), Measuring downside risk: realised semivariance",
    normalise="none",
)
def semivariance(log_return: Array, squared_return: Array) -> Array:
    """Which side the volatility is on."""
    return e.ratio(k.total(np.sign(log_return) * squared_return, 48), k.total(squared_return, 48))


@feature(
    "skew_96",
    inputs=("log_return",),
    lookback=95,
    unit="skewness",
    definition="bias-adjusted skewness of one-bar returns over 96 bars",
    source="Amaya, Christoffersen, Jacobs, Vasquez (2015), Does realized skewness predict returns, JFE 118",
)
def skew(log_return: Array) -> Array:
    """Realised skewness."""
    return k.skew(log_return, 96)


@feature(
    "jump_share_48",
    inputs=("abs_return", "squared_return"),
    lookback=48,
    unit="fraction",
    definition="1 - bipower variation / realised variance over 48 bars",
    source="Barndorff-Nielsen, Shephard (2004), Power and bipower variation, JFEC 2",
    normalise="none",
)
def jump_share(abs_return: Array, squared_return: Array) -> Array:
    """Share of the variance that came in jumps."""
    bipower = k.mean(abs_return * e.lag(abs_return, 1), 48) * (math.pi / 2.0)
    return 1.0 - e.ratio(bipower, k.mean(squared_return, 48))


@feature(
    "variance_ratio_96",
    inputs=("log_close",),
    lookback=99,
    unit="ratio less 1",
    definition="variance of 4-bar returns over 4 times that of 1-bar returns, less 1, over 96 bars",
    source="Lo, MacKinlay (1988), Stock market prices do not follow random walks, RFS 1",
    normalise="none",
)
def variance_ratio(log_close: Array) -> Array:
    """Trending above zero, reverting below."""
    four = k.std(e.diff(log_close, 4), 96)
    one = k.std(e.diff(log_close, 1), 96)
    return e.ratio(four * four, 4.0 * one * one) - 1.0
