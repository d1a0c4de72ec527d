"""Technical indicators, concluded: volume lines and candles.

See :mod:`mlbot_core.features.technical` for what holds for all of them.
"""

from __future__ import annotations

import numpy as np

from mlbot_core.features import elementwise as e
from mlbot_core.features import kernels as k
from mlbot_core.features import recursive as rec
from mlbot_core.features.recursive import talib_window, window
from mlbot_core.features.registry import Array, feature, intermediate

_CHAIKIN = "Chaikin, in Achelis (1995), Technical Analysis from A to Z"
_FAMILY = "technical"


@intermediate(("high", "low", "close", "volume_usd"))
def money_flow(high: Array, low: Array, close: Array, volume_usd: Array) -> Array:
    """Chaikin's money flow volume: turnover times the close's place in the range, -1 to 1, USD."""
    place = e.ratio((close - low) - (high - close), high - low)
    return np.where(high == low, 0.0, place) * volume_usd


def chaikin_oscillator(flow: Array, fast: int, slow: int, bars: int | None = None) -> Array:
    """Return TA-Lib's ADOSC: EMA(fast) less EMA(slow) of the accumulation line, without that endless line.

    An EMA of a running sum lags it by the EMA of the summands times (1 - alpha) / alpha; in the difference of two the
    sum itself cancels.
    """
    lag_fast = (fast - 1.0) / 2.0
    lag_slow = (slow - 1.0) / 2.0
    reach = window(slow) if bars is None else bars
    return lag_slow * rec.ema(flow, slow, reach) - lag_fast * rec.ema(flow, fast, reach)


@feature(
    "adosc_{n}",
    over=(10, 30),
    inputs=("money_flow", "volume_usd"),
    lookback=lambda n: window(n) - 1,
    unit="bars of turnover",
    definition="ADOSC(3, {n}) over the mean turnover of {n} bars, restarted ten spans back",
    source=_CHAIKIN,
    family=_FAMILY,
)
def adosc(money_flow: Array, volume_usd: Array, n: int) -> Array:
    """Momentum of accumulation."""
    return e.ratio(chaikin_oscillator(money_flow, 3, n), k.mean(volume_usd, n))


@feature(
    "ad_share_{n}",
    over=(20, 96),
    inputs=("money_flow", "volume_usd"),
    lookback=lambda n: n - 1,
    unit="-1 to 1",
    definition="change of the accumulation line (AD) over {n} bars, over their turnover (Chaikin money flow)",
    source=_CHAIKIN,
    normalise="none",
    family=_FAMILY,
)
def ad_share(money_flow: Array, volume_usd: Array, n: int) -> Array:
    """Accumulation as a share of turnover."""
    return e.ratio(k.total(money_flow, n), k.total(volume_usd, n))


@feature(
    "obv_share_{n}",
    over=(10, 96),
    inputs=("close", "volume_usd"),
    lookback=lambda n: n,
    unit="-1 to 1",
    definition="change of on-balance volume (OBV) over {n} bars, over their turnover",
    source="Granville (1963), New Key to Stock Market Profits",
    normalise="none",
    family=_FAMILY,
)
def obv_share(close: Array, volume_usd: Array, n: int) -> Array:
    """On-balance volume as a share of turnover."""
    return e.ratio(k.total(np.sign(e.diff(close, 1)) * volume_usd, n), k.total(volume_usd, n))


@feature(
    "engulfing",
    inputs=("open", "high", "low", "close"),
    lookback=2,
    unit="-1 to 1",
    definition="CDLENGULFING / 100, by TA-Lib",
    source="Nison (1991), Japanese Candlestick Charting Techniques",
    normalise="none",
    family=_FAMILY,
)
def engulfing(open_: Array, high: Array, low: Array, close: Array) -> Array:
    """A body that swallows the one before."""
    return _pattern("CDLENGULFING", 2, open_, high, low, close)


@feature(
    "three_outside",
    inputs=("open", "high", "low", "close"),
    lookback=3,
    unit="-1 to 1",
    definition="CDL3OUTSIDE / 100, by TA-Lib",
    source="Nison (1991), Japanese Candlestick Charting Techniques",
    normalise="none",
    family=_FAMILY,
)
def three_outside(open_: Array, high: Array, low: Array, close: Array) -> Array:
    """An engulfing that the next bar confirms."""
    return _pattern("CDL3OUTSIDE", 3, open_, high, low, close)


def _pattern(name: str, lookback: int, *prices: Array) -> Array:
    """Return a candle pattern as -1, 0 or 1; TA-Lib answers 0 where it lacks bars, here that is missing."""
    found = talib_window(name, *prices) / 100.0
    for lag in range(1, lookback + 1):
        found = found + 0.0 * e.lag(np.sum(prices, axis=0), lag)
    return found
