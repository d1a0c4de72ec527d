"""Technical indicators, continued: channels, bands and regressions.

See :mod:`mlbot_core.features.technical` for what holds for all of them.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from mlbot_core.features import elementwise as e
from mlbot_core.features import kernels as k
from mlbot_core.features import recursive as rec
from mlbot_core.features.recursive import talib_window, wilder_span, window
from mlbot_core.features.registry import Array, feature, intermediate
from mlbot_core.features.rolling import trend_start, valid

_BOLLINGER = "Bollinger (2001), Bollinger on Bollinger Bands"
_REGRESSION = "TA-Lib, LINEARREG family"
_FAMILY = "technical"


@intermediate(("high", "low", "close"))
def typical_price(high: Array, low: Array, close: Array) -> Array:
    """Mean of high, low and close, USD."""
    return (high + low + close) / 3.0


def ultimate(high: Array, low: Array, close: Array) -> Array:
    """Return TA-Lib's ULTOSC(7, 14, 28), 0 to 100."""
    before = e.lag(close, 1)
    floor = np.minimum(low, before)
    pressure, span = close - floor, np.maximum(high, before) - floor
    part = [e.ratio(k.total(pressure, n), k.total(span, n)) for n in (7, 14, 28)]
    return 100.0 * (4.0 * part[0] + 2.0 * part[1] + part[2]) / 7.0


def money_flow_index(typical: Array, volume: Array, n: int) -> Array:
    """Return TA-Lib's MFI, 0 to 100."""
    move = e.diff(typical, 1)
    flow = typical * volume
    up = k.total(np.where(move > 0.0, flow, 0.0) + 0.0 * move, n)
    down = k.total(np.where(move < 0.0, flow, 0.0) + 0.0 * move, n)
    return 100.0 * e.ratio(up, up + down)


def commodity_channel(typical: Array, n: int) -> Array:
    """Return TA-Lib's CCI: distance from the mean over 0.015 mean absolute deviations."""
    mean = k.mean(typical, n)
    deviation = np.zeros(typical.size)
    for lag in range(n):
        deviation += np.abs(e.lag(typical, lag) - mean)
    return e.ratio(typical - mean, 0.015 * deviation / n)


@feature(
    "cci_{n}",
    over=(14, 40),
    inputs=("typical_price",),
    lookback=lambda n: n - 1,
    unit="CCI / 100",
    definition="CCI({n}) / 100",
    source="Lambert (1980), Commodity channel index, Commodities Magazine",
    normalise="none",
    family=_FAMILY,
)
def cci(typical_price: Array, n: int) -> Array:
    """Distance from the mean in mean deviations."""
    return commodity_channel(typical_price, n) / 100.0


@feature(
    "willr_{n}",
    over=(14, 48),
    inputs=("high", "low", "close"),
    lookback=lambda n: n - 1,
    unit="-1 to 0",
    definition="WILLR({n}) / 100, by TA-Lib",
    source="Williams (1979), How I Made One Million Dollars Last Year Trading Commodities",
    normalise="none",
    family=_FAMILY,
)
def willr(high: Array, low: Array, close: Array, n: int) -> Array:
    """Williams' %R."""
    return talib_window("WILLR", high, low, close, timeperiod=n) / 100.0


@feature(
    "aroon_osc_{n}",
    over=(14, 50),
    inputs=("high", "low"),
    lookback=lambda n: n,
    unit="-1 to 1",
    definition="AROONOSC({n}) / 100, by TA-Lib",
    source="Chande (1995), Aroon, Technical Analysis of Stocks and Commodities 13",
    normalise="none",
    family=_FAMILY,
)
def aroon_osc(high: Array, low: Array, n: int) -> Array:
    """Which extreme is fresher."""
    return talib_window("AROONOSC", high, low, timeperiod=n) / 100.0


@feature(
    "roc_{n}",
    over=(10, 20),
    inputs=("close",),
    lookback=lambda n: n,
    unit="fraction",
    definition="ROCP({n}), by TA-Lib",
    source="Pring (1980), Technical Analysis Explained",
    family=_FAMILY,
)
def roc(close: Array, n: int) -> Array:
    """Rate of change."""
    return talib_window("ROCP", close, timeperiod=n)


@intermediate(("close",), lookback=10)
def mom_10(close: Array) -> Array:
    """TA-Lib's MOM(10), USD."""
    return talib_window("MOM", close, timeperiod=10)


@intermediate(("close",), lookback=40)
def mom_40(close: Array) -> Array:
    """TA-Lib's MOM(40), USD."""
    return talib_window("MOM", close, timeperiod=40)


@feature(
    "mom_atr_40",
    inputs=("mom_40", "mean_true_range"),
    unit="average true ranges",
    definition="MOM(40), by TA-Lib, over the average true range of 14 bars",
    source="Pring (1980), Technical Analysis Explained",
    normalise="none",
    family=_FAMILY,
)
@feature(
    "mom_atr_10",
    inputs=("mom_10", "mean_true_range"),
    unit="average true ranges",
    definition="MOM(10), by TA-Lib, over the average true range of 14 bars",
    source="Pring (1980), Technical Analysis Explained",
    normalise="none",
    family=_FAMILY,
)
def mom_atr(momentum: Array, mean_true_range: Array) -> Array:
    """Momentum in average true ranges."""
    return e.ratio(momentum, mean_true_range)


@feature(
    "ultosc",
    inputs=("high", "low", "close"),
    lookback=28,
    unit="-1 to 1",
    definition="(ULTOSC(7, 14, 28) - 50) / 50",
    source="Williams (1985), The Ultimate Oscillator, Technical Analysis of Stocks and Commodities 3",
    normalise="none",
    family=_FAMILY,
)
def ultosc(high: Array, low: Array, close: Array) -> Array:
    """Buying pressure over three windows."""
    return (ultimate(high, low, close) - 50.0) / 50.0


@feature(
    "mfi_{n}",
    over=(14, 48),
    inputs=("typical_price", "volume_usd"),
    lookback=lambda n: n,
    unit="-1 to 1",
    definition="(MFI({n}) - 50) / 50",
    source="Quong, Soudack (1989), Volume-weighted RSI: money flow, Technical Analysis of Stocks and Commodities 7",
    normalise="none",
    family=_FAMILY,
)
def mfi(typical_price: Array, volume_usd: Array, n: int) -> Array:
    """Relative strength weighted by turnover."""
    return (money_flow_index(typical_price, volume_usd, n) - 50.0) / 50.0


def band_deviation(close: Array, n: int) -> Array:
    """Return TA-Lib's STDDEV: the population standard deviation, in the close's unit."""
    return k.std(close, n) * math.sqrt((n - 1.0) / n)


@feature(
    "bb_place_{n}",
    over=(20, 50),
    inputs=("close",),
    lookback=lambda n: n - 1,
    unit="band widths",
    definition="place of the close between the bands of BBANDS({n}, 2, 2): 0 the lower, 1 the upper (%b)",
    source=_BOLLINGER,
    normalise="none",
    family=_FAMILY,
)
def bb_place(close: Array, n: int) -> Array:
    """Place between the bands."""
    return e.ratio(close - k.mean(close, n), 4.0 * band_deviation(close, n)) + 0.5


@feature(
    "bb_width_{n}",
    over=(20, 50),
    inputs=("close",),
    lookback=lambda n: n - 1,
    unit="log ratio",
    definition="log of the width of BBANDS({n}, 2, 2) over its middle",
    source=_BOLLINGER,
    family=_FAMILY,
)
def bb_width(close: Array, n: int) -> Array:
    """Width of the bands."""
    return e.log_ratio(4.0 * band_deviation(close, n), k.mean(close, n))


@feature(
    "var_{n}",
    over=(5, 60),
    inputs=("close",),
    lookback=lambda n: n - 1,
    unit="log of (fraction of price)^2",
    definition="log of VAR({n}) over the squared close",
    source="TA-Lib, VAR",
    family=_FAMILY,
)
def var(close: Array, n: int) -> Array:
    """Variance of the price level."""
    deviation = band_deviation(close, n)
    return e.log_ratio(deviation * deviation, close * close)


@feature(
    "natr_{n}",
    over=(7, 28),
    inputs=("true_range", "close"),
    lookback=lambda n: window(wilder_span(n)) - 1,
    unit="fraction of price",
    definition="NATR({n}) / 100: Wilder's average true range over close, restarted ten spans back",
    source="Wilder (1978), New Concepts in Technical Trading Systems",
    family=_FAMILY,
)
def natr(true_range: Array, close: Array, n: int) -> Array:
    """Average true range."""
    return e.ratio(rec.wilder(true_range, n), close)


@feature(
    "midprice_gap_{n}",
    over=(14, 50),
    inputs=("high", "low", "close"),
    lookback=lambda n: n - 1,
    unit="log ratio",
    definition="log of close over MIDPRICE({n}), by TA-Lib",
    source="TA-Lib, MIDPRICE (middle of the Donchian channel)",
    family=_FAMILY,
)
def midprice_gap(high: Array, low: Array, close: Array, n: int) -> Array:
    """Distance from the middle of the channel."""
    return e.log_ratio(close, talib_window("MIDPRICE", high, low, timeperiod=n))


@njit(cache=True, error_model="numpy")
def _line(state: Array, last: Array, n: int, ahead: float) -> Array:
    """Return the least-squares line's value ``ahead`` bars after the current one; the slope where that is NaN."""
    out = np.full(last.size, np.nan)
    for i in range(last.size):
        if valid(state[0, i], last[i], n):
            slope = state[5, i] / state[3, i]
            out[i] = slope if math.isnan(ahead) else state[2, i] + slope * (ahead - state[1, i])
    return out


def regression_slope(x: Array, n: int) -> Array:
    """Return TA-Lib's LINEARREG_SLOPE, units of ``x`` per bar."""
    return _line(trend_start(x, n), x, n, np.nan)


def series_forecast(x: Array, n: int) -> Array:
    """Return TA-Lib's TSF: the least-squares line one bar ahead."""
    return _line(trend_start(x, n), x, n, 1.0)


@feature(
    "linreg_angle_{n}",
    over=(14, 48),
    inputs=("log_close",),
    lookback=lambda n: n - 1,
    unit="degrees",
    definition="LINEARREG_ANGLE({n}) of 100 times log close",
    source=_REGRESSION,
    family=_FAMILY,
)
def linreg_angle(log_close: Array, n: int) -> Array:
    """Angle of the trend, percent against bars."""
    return angle(regression_slope(100.0 * log_close, n))


@njit(cache=True)
def angle(slope: Array) -> Array:
    """Return the slope's angle in degrees."""
    out = np.empty(slope.size)
    for i in range(slope.size):
        out[i] = math.atan(slope[i]) * (180.0 / math.pi)
    return out


@feature(
    "linreg_slope_{n}",
    over=(14, 48),
    inputs=("close",),
    lookback=lambda n: n - 1,
    unit="fraction of price per bar",
    definition="LINEARREG_SLOPE({n}) over close",
    source=_REGRESSION,
    family=_FAMILY,
)
def linreg_slope(close: Array, n: int) -> Array:
    """Slope of the trend."""
    return e.ratio(regression_slope(close, n), close)


@feature(
    "tsf_gap_{n}",
    over=(14, 48),
    inputs=("close",),
    lookback=lambda n: n - 1,
    unit="log ratio",
    definition="log of TSF({n}) over close",
    source=_REGRESSION,
    family=_FAMILY,
)
def tsf_gap(close: Array, n: int) -> Array:
    """Where the trend would lead next."""
    return e.log_ratio(series_forecast(close, n), close)
