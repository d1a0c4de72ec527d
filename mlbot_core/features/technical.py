"""Technical indicators as TA-Lib defines them, made free of the distant past.

Functions of TA-Lib that read nothing but a window are called as they are (``talib_window``). Recursive ones and those
with running sums are rebuilt from restarted averages and windowed sums (:mod:`mlbot_core.features.recursive` says
why) and tested against TA-Lib itself. What is in USD there is a fraction of price here.

Left out: CMO (2 RSI - 100 in TA-Lib, and RSI is here), SAR, KAMA, T3, MAMA and the Hilbert transforms ``HT_*`` (they
have no bounded memory, or one of thousands of bars), and the candle patterns that compare with running averages; the
two patterns that compare bars only with each other are here.
"""

from __future__ import annotations

import numpy as np

from mlbot_core.features import elementwise as e
from mlbot_core.features import kernels as k
from mlbot_core.features import recursive as rec
from mlbot_core.features.recursive import wilder_span, window
from mlbot_core.features.registry import Array, feature, intermediate

_WILDER = "Wilder (1978), New Concepts in Technical Trading Systems"
_APPEL = "Appel (2005), Technical Analysis: Power Tools for Active Investors"
_LANE = "Lane (1984), Lane's stochastics, Technical Analysis of Stocks and Commodities 2"


def _wilder_reach(period: int) -> int:
    return window(wilder_span(period)) - 1


@intermediate(("high", "low"), lookback=1)
def rise_of_high(high: Array, low: Array) -> Array:
    """Wilder's +DM: how far the high rose, where that exceeds how far the low fell, USD."""
    up, down = e.diff(high, 1), -e.diff(low, 1)
    return np.where((up > down) & (up > 0.0), up, 0.0) + 0.0 * (up + down)


@intermediate(("high", "low"), lookback=1)
def fall_of_low(high: Array, low: Array) -> Array:
    """Wilder's -DM, USD."""
    up, down = e.diff(high, 1), -e.diff(low, 1)
    return np.where((down > up) & (down > 0.0), down, 0.0) + 0.0 * (up + down)


@intermediate(("true_range",), lookback=_wilder_reach(14))
def mean_true_range(true_range: Array) -> Array:
    """Wilder's average true range of 14 bars, USD."""
    return rec.wilder(true_range, 14)


@intermediate(("rise_of_high",), lookback=_wilder_reach(14))
def mean_rise(rise_of_high: Array) -> Array:
    """Wilder's average of +DM, 14 bars, USD."""
    return rec.wilder(rise_of_high, 14)


@intermediate(("fall_of_low",), lookback=_wilder_reach(14))
def mean_fall(fall_of_low: Array) -> Array:
    """Wilder's average of -DM, 14 bars, USD."""
    return rec.wilder(fall_of_low, 14)


@intermediate(("mean_rise", "mean_true_range"))
def plus_di(mean_rise: Array, mean_true_range: Array) -> Array:
    """Wilder's +DI(14), 0 to 100."""
    return 100.0 * e.ratio(mean_rise, mean_true_range)


@intermediate(("mean_fall", "mean_true_range"))
def minus_di(mean_fall: Array, mean_true_range: Array) -> Array:
    """Wilder's -DI(14), 0 to 100."""
    return 100.0 * e.ratio(mean_fall, mean_true_range)


@intermediate(("plus_di", "minus_di"))
def directional_index(plus_di: Array, minus_di: Array) -> Array:
    """Wilder's DX(14), 0 to 100."""
    return 100.0 * e.ratio(np.abs(plus_di - minus_di), plus_di + minus_di)


@intermediate(("close",), lookback=window(15) - 1)
def ema_15(close: Array) -> Array:
    """Exponential mean of the close, span 15."""
    return rec.ema(close, 15)


@intermediate(("ema_15",), lookback=window(15) - 1)
def ema_15_twice(ema_15: Array) -> Array:
    """Exponential mean of the exponential mean."""
    return rec.ema(ema_15, 15)


@intermediate(("ema_15_twice",), lookback=window(15) - 1)
def ema_15_thrice(ema_15_twice: Array) -> Array:
    """Once more."""
    return rec.ema(ema_15_twice, 15)


@intermediate(("high", "low", "close"), lookback=13)
def stochastic_raw(high: Array, low: Array, close: Array) -> Array:
    """Raw %K: place of the close in the range of 14 bars, 0 to 100."""
    floor = k.lowest(low, 14)
    return 100.0 * e.ratio(close - floor, k.highest(high, 14) - floor)


@intermediate(("close",), lookback=_wilder_reach(14) + 1)
def rsi_level(close: Array) -> Array:
    """Wilder's RSI(14), 0 to 100."""
    return relative_strength(close, 14)


def relative_strength(close: Array, period: int, bars: int | None = None) -> Array:
    """Return TA-Lib's RSI, 0 to 100, from averages restarted ``bars`` back; 50 where nothing moved."""
    move = e.diff(close, 1)
    up = rec.wilder(e.positive_part(move), period, bars)
    whole = rec.wilder(np.abs(move), period, bars)
    return np.where(whole == 0.0, 50.0, 100.0 * e.ratio(up, whole))


@feature(
    "rsi_{n}",
    over=(6, 28),
    inputs=("close",),
    lookback=lambda n: _wilder_reach(n) + 1,
    unit="-1 to 1",
    definition="(RSI({n}) - 50) / 50, Wilder's averages restarted ten spans back",
    source=_WILDER,
    normalise="none",
)
def rsi(close: Array, n: int) -> Array:
    """Share of gains among moves."""
    return (relative_strength(close, n) - 50.0) / 50.0


@feature(
    "stoch_rsi_14",
    inputs=("rsi_level",),
    lookback=13,
    unit="0 to 1",
    definition="place of RSI(14) in its range of 14 bars (STOCHRSI's fast %K / 100)",
    source="Chande, Kroll (1994), The New Technical Trader",
    normalise="none",
)
def stoch_rsi(rsi_level: Array) -> Array:
    """Stochastic of the RSI."""
    floor = k.lowest(rsi_level, 14)
    return e.ratio(rsi_level - floor, k.highest(rsi_level, 14) - floor)


@feature("plus_di_14", inputs=("plus_di",), unit="0 to 1", definition="+DI(14) / 100", source=_WILDER, normalise="none")
@feature(
    "minus_di_14", inputs=("minus_di",), unit="0 to 1", definition="-DI(14) / 100", source=_WILDER, normalise="none"
)
@feature(
    "dx_14", inputs=("directional_index",), unit="0 to 1", definition="DX(14) / 100", source=_WILDER, normalise="none"
)
def hundredth(value: Array) -> Array:
    """A directional indicator as a fraction."""
    return value / 100.0


@feature(
    "adx_14",
    inputs=("directional_index",),
    lookback=_wilder_reach(14),
    unit="0 to 1",
    definition="ADX(14) / 100: Wilder's average of DX, restarted 270 bars back",
    source=_WILDER,
    normalise="none",
)
def adx(directional_index: Array) -> Array:
    """Strength of the trend."""
    return rec.wilder(directional_index, 14) / 100.0


@feature(
    "di_gap_14",
    inputs=("plus_di", "minus_di"),
    unit="-1 to 1",
    definition="(+DI(14) - -DI(14)) / (+DI(14) + -DI(14))",
    source=_WILDER,
    normalise="none",
)
def di_gap(plus_di: Array, minus_di: Array) -> Array:
    """Direction of the trend."""
    return e.ratio(plus_di - minus_di, plus_di + minus_di)


@feature(
    "macd",
    inputs=("macd_line", "close"),
    unit="fraction of price",
    definition="MACD(12, 26) over close",
    source=_APPEL,
)
def macd(macd_line: Array, close: Array) -> Array:
    """Fast less slow average."""
    return e.ratio(macd_line, close)


@feature(
    "macd_signal",
    inputs=("macd_line", "close"),
    lookback=window(9) - 1,
    unit="fraction of price",
    definition="EMA(9) of MACD(12, 26), over close",
    source=_APPEL,
)
def macd_signal(macd_line: Array, close: Array) -> Array:
    """Smoothed MACD."""
    return e.ratio(rec.ema(macd_line, 9), close)


@feature(
    "ppo",
    inputs=("ema_12", "ema_26"),
    unit="fraction",
    definition="EMA(12) over EMA(26), less 1 (PPO / 100 with exponential averages)",
    source=_APPEL,
)
def ppo(ema_12: Array, ema_26: Array) -> Array:
    """Percentage price oscillator."""
    return e.ratio(ema_12, ema_26) - 1.0


@feature(
    "trix_15",
    inputs=("ema_15_thrice",),
    lookback=1,
    unit="fraction per bar",
    definition="one-bar rate of change of the triple EMA(15) (TRIX / 100)",
    source="Hutson (1983), TRIX, Technical Analysis of Stocks and Commodities 1",
)
def trix(ema_15_thrice: Array) -> Array:
    """Slope of a thrice-smoothed price."""
    return e.ratio(ema_15_thrice, e.lag(ema_15_thrice, 1)) - 1.0


@feature(
    "dema_gap_15",
    inputs=("close", "ema_15", "ema_15_twice"),
    unit="log ratio",
    definition="log of close over DEMA(15) = 2 EMA - EMA of EMA",
    source="Mulloy (1994), Smoothing data with faster moving averages, Technical Analysis of Stocks and Commodities 12",
)
def dema_gap(close: Array, ema_15: Array, ema_15_twice: Array) -> Array:
    """Distance from the double exponential average."""
    return e.log_ratio(close, 2.0 * ema_15 - ema_15_twice)


@feature(
    "tema_gap_15",
    inputs=("close", "ema_15", "ema_15_twice", "ema_15_thrice"),
    unit="log ratio",
    definition="log of close over TEMA(15) = 3 EMA - 3 EMA of EMA + triple EMA",
    source="Mulloy (1994), Smoothing data with faster moving averages, Technical Analysis of Stocks and Commodities 12",
)
def tema_gap(close: Array, ema_15: Array, ema_15_twice: Array, ema_15_thrice: Array) -> Array:
    """Distance from the triple exponential average."""
    return e.log_ratio(close, 3.0 * ema_15 - 3.0 * ema_15_twice + ema_15_thrice)


@feature(
    "stoch_k",
    inputs=("stochastic_raw",),
    lookback=2,
    unit="0 to 1",
    definition="slow %K / 100 of STOCH(14, 3, 3)",
    source=_LANE,
    normalise="none",
)
def stoch_k(stochastic_raw: Array) -> Array:
    """Slow stochastic."""
    return k.mean(stochastic_raw, 3) / 100.0


@feature(
    "stoch_d_gap",
    inputs=("stochastic_raw",),
    lookback=4,
    unit="-1 to 1",
    definition="(slow %K - slow %D) / 100 of STOCH(14, 3, 3)",
    source=_LANE,
    normalise="none",
)
def stoch_d_gap(stochastic_raw: Array) -> Array:
    """Stochastic against its signal."""
    slow = k.mean(stochastic_raw, 3)
    return (slow - k.mean(slow, 3)) / 100.0
