"""Regime: volatile or calm, trending or reverting, changed or not, all fitted on the row's own trailing window."""

from __future__ import annotations

import numpy as np

from mlbot_core.features import elementwise as e
from mlbot_core.features import kernels as k
from mlbot_core.features import kernels_regime as r
from mlbot_core.features.registry import Array, feature, intermediate

_HAMILTON = "Hamilton (1989), A new approach to the economic analysis of nonstationary time series, Econometrica 57"
_LO = "Lo, MacKinlay (1988), Stock market prices do not follow random walks, RFS 1"

_WINDOW = 240
_REFIT = 24  # bars between two fits of the hidden states
_LAGS = (1, 2, 4, 8, 16)
_VARIANCE_LAG = 8


@intermediate(("ts",), lookback=1)
def bar_number(ts: Array) -> Array:
    """Number of the bar since the epoch."""
    return e.ratio(ts, e.diff(ts, 1))


@intermediate(("log_return",), lookback=_WINDOW - 1)
def variance_break(log_return: Array) -> Array:
    """How sure it is that volatility changed within 240 bars, and how long ago, shape (bars, 2)."""
    return r.break_of_variance(log_return, _WINDOW).T


@intermediate(("log_close",), lookback=47)
def trend_fit_short(log_close: Array) -> Array:
    """Correlation of log close with time over 48 bars."""
    return r.trend_correlation(log_close, 48)


@intermediate(("log_close",), lookback=95)
def trend_fit_middle(log_close: Array) -> Array:
    """Correlation of log close with time over 96 bars."""
    return r.trend_correlation(log_close, 96)


@intermediate(("log_close",), lookback=191)
def trend_fit_long(log_close: Array) -> Array:
    """Correlation of log close with time over 192 bars."""
    return r.trend_correlation(log_close, 192)


@feature(
    "regime_volatile",
    inputs=("log_return", "bar_number"),
    lookback=_WINDOW + _REFIT - 1,
    unit="0 to 1",
    definition=(
        "filtered probability of the volatile of two hidden states of returns, fitted by the mean, variance and "
        "kurtosis of 240 bars every 24 bars"
    ),
    source=_HAMILTON,
    normalise="none",
)
def regime_volatile(log_return: Array, bar_number: Array) -> Array:
    """Storm or calm."""
    return r.hidden_state(log_return, bar_number, _WINDOW, _REFIT, False)


@feature(
    "regime_bull",
    inputs=("log_return", "bar_number"),
    lookback=_WINDOW + _REFIT - 1,
    unit="0 to 1",
    definition=(
        "filtered probability of the rising of two hidden states of returns, 0.15 deviations either side of zero, "
        "fitted by the variance of 240 bars every 24 bars"
    ),
    source=_HAMILTON,
    normalise="none",
)
def regime_bull(log_return: Array, bar_number: Array) -> Array:
    """Drifting up or down."""
    return r.hidden_state(log_return, bar_number, _WINDOW, _REFIT, True)


@feature(
    "regime_vol_rank_480",
    inputs=("log_return",),
    lookback=479 + 47,
    unit="0 to 1",
    definition="rank of the 48-bar standard deviation of returns among 480 bars",
    source="Ang, Timmermann (2012), Regime changes and financial markets, Annual Review of Financial Economics 4",
    normalise="none",
)
def regime_vol_rank(log_return: Array) -> Array:
    """How volatile this spell is among those of the last weeks."""
    whole = np.isfinite(e.lag(log_return, 47))  # a spell that has lost its head is another, shorter one
    return k.rank(np.where(whole, k.std(log_return, 48), np.nan), 480)


@feature(
    "regime_mean_break_96",
    inputs=("log_return",),
    lookback=95,
    unit="CUSUM statistic",
    definition="largest cumulative deviation of returns from their 96-bar mean, scaled; above 0: it rose",
    source="Ploberger, Krämer (1992), The CUSUM test with OLS residuals, Econometrica 60",
    normalise="none",
)
def regime_mean_break(log_return: Array) -> Array:
    """Has the drift changed."""
    return r.break_of_mean(log_return, 96)


@feature(
    "regime_vol_break_240",
    inputs=("variance_break",),
    unit="ICSS statistic",
    definition="centred cumulative sum of squared returns at its furthest over 240 bars; above 0: volatility rose",
    source="Inclan, Tiao (1994), Use of cumulative sums of squares for detection of changes of variance, JASA 89",
    normalise="none",
)
def regime_vol_break(variance_break: Array) -> Array:
    """Has volatility changed."""
    return variance_break[:, 0]


@feature(
    "regime_vol_break_age_240",
    inputs=("variance_break",),
    unit="0 to 1",
    definition="share of 240 bars that came after the most likely change of volatility",
    source="Inclan, Tiao (1994), Use of cumulative sums of squares for detection of changes of variance, JASA 89",
    normalise="none",
)
def regime_vol_break_age(variance_break: Array) -> Array:
    """How long ago volatility changed."""
    return variance_break[:, 1]


@feature(
    "regime_page_96",
    inputs=("log_return",),
    lookback=95,
    unit="standard deviations",
    definition="Page's upper less lower cumulative sum of standardised returns over 96 bars, slack 0.25, over sqrt(96)",
    source="Page (1954), Continuous inspection schemes, Biometrika 41",
    normalise="none",
)
def regime_page(log_return: Array) -> Array:
    """A drift that began lately."""
    return r.page_drift(log_return, 96, 0.25)


@feature(
    "regime_trend_fit_192",
    inputs=("trend_fit_long",),
    unit="-1 to 1",
    definition="share of the variance of log close over 192 bars that a straight line explains, with its slope's sign",
    source="Clenow (2013), Following the Trend",
    normalise="none",
)
def regime_trend_fit(trend_fit_long: Array) -> Array:
    """How straight the long trend is."""
    return trend_fit_long * np.abs(trend_fit_long)


@feature(
    "regime_trend_scan",
    inputs=("trend_fit_short", "trend_fit_middle", "trend_fit_long"),
    unit="log of t",
    definition="sign(t) log(1 + |t|) of the strongest linear trend of log close over the last 48, 96 and 192 bars",
    source="Lopez de Prado (2020), Machine Learning for Asset Managers, ch. 5.4 (trend scanning, looking back)",
    normalise="none",
)
def regime_trend_scan(short: Array, middle: Array, long: Array) -> Array:
    """The clearest trend at any pace."""
    return r.strongest(r.t_statistic(short, 48), r.t_statistic(middle, 96), r.t_statistic(long, 192))


@feature(
    "regime_hurst_240",
    inputs=("log_close",),
    lookback=_WINDOW - 1 + _LAGS[-1],
    unit="exponent less 0.5",
    definition=(
        "slope of log mean |change of log close| on log lag, lags 1 to 16, over 240 bars, less 0.5: above 0 persistent"
    ),
    source="Di Matteo (2007), Multi-scaling in finance, Quantitative Finance 7 (generalised Hurst exponent, q = 1)",
    normalise="none",
)
def regime_hurst(log_close: Array) -> Array:
    """Persistent or reverting over scales."""
    moves = np.stack([k.mean(np.abs(e.diff(log_close, lag)), _WINDOW) for lag in _LAGS])
    return r.log_log_slope(log_close, moves, np.array(_LAGS, dtype=np.float64)) - 0.5


@feature(
    "regime_variance_ratio_z_240",
    inputs=("log_return",),
    lookback=_WINDOW - 1 + _VARIANCE_LAG - 1,
    unit="standard deviations",
    definition="robust z of the variance ratio of 8-bar to 1-bar returns over 240 bars: above 0 trending",
    source=_LO,
    normalise="none",
)
def regime_variance_ratio_z(log_return: Array) -> Array:
    """Is the departure from a random walk more than noise; by autocorrelations, robust to changing volatility."""
    squares = k.total(log_return * log_return, _WINDOW)
    ratio = np.zeros(len(log_return))
    variance = np.zeros(len(log_return))
    for lag in range(1, _VARIANCE_LAG):
        weight = 2.0 * (1.0 - lag / _VARIANCE_LAG)
        product = log_return * e.lag(log_return, lag)
        ratio += weight * e.ratio(k.total(product, _WINDOW), squares)
        variance += weight * weight * e.ratio(k.total(product * product, _WINDOW), squares * squares)
    return e.ratio(ratio, np.sqrt(variance))


@feature(
    "regime_efficiency_{n}",
    over=(96, 240),
    inputs=("log_close",),
    lookback=lambda n: n,
    unit="0 to 1",
    definition="size of the net log return of {n} bars over the sum of its absolute one-bar returns",
    source="Kaufman (1995), Smarter Trading",
    normalise="none",
)
def regime_efficiency(log_close: Array, n: int) -> Array:
    """Progress or noise, whatever the direction."""
    return e.ratio(np.abs(e.diff(log_close, n)), k.total(np.abs(e.diff(log_close, 1)), n))


@feature(
    "regime_entropy_96",
    inputs=("close",),
    lookback=97,
    unit="0 to 1",
    definition="permutation entropy of the orders of three consecutive closes over 96 bars",
    source="Bandt, Pompe (2002), Permutation entropy, Physical Review Letters 88",
    normalise="none",
)
def regime_entropy(close: Array) -> Array:
    """Order or noise in the sequence."""
    return r.permutation_entropy(close, 96)


@feature(
    "regime_reversion_96",
    inputs=("log_close",),
    lookback=96,
    unit="per bar",
    definition="speed of reversion: less the slope of the next change of log close on its level over 96 bars",
    source="Uhlenbeck, Ornstein (1930); Chan (2013), Algorithmic Trading, ch. 2 (half-life of mean reversion)",
    normalise="none",
)
def regime_reversion(log_close: Array) -> Array:
    """How fast the price is pulled back to where it has been."""
    return -k.beta(e.diff(log_close, 1), e.lag(log_close, 1), 96)
