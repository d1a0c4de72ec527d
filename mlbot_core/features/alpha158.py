"""Alpha158, the feature set of Microsoft's Qlib, column by column as pyqlib 0.9.7 defines it.

A feature is called ``a158_`` and Qlib's name in lower case: ``CORR20`` is ``a158_corr20``.

Source of every definition: ``qlib.contrib.data.loader.Alpha158DL.get_feature_config()``: 9 features of the candle's
shape, 4 prices, 29 rolling operators over 5, 10, 20, 30 and 60 bars. The values are raw, as Qlib's.

``$volume`` is the panel's ``volume_usd`` (every feature of volume is a ratio, a share or a correlation, so that the
unit hardly shows) and ``$vwap`` is (high + low + close) / 3, as the panel has no traded average price.

Where this differs from Qlib, and why: Qlib answers from the first bar on (``min_periods=1``) and treats a missing value
as each pandas function happens to; here a window that does not fit, ends in a missing value or lacks more than 20 %
of its values yields NaN, so that no value depends on where the data begins. Qlib computes in float32 between its
operators, here all is float64. Compared on complete windows in ``tests/features/test_features_alpha158.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from mlbot_core.features import alpha158_kernels as c
from mlbot_core.features import elementwise as e
from mlbot_core.features import rolling as r
from mlbot_core.features.registry import Array, feature, intermediate

WINDOWS: Final = (5, 10, 20, 30, 60)
SOURCE: Final = "Yang, Liu, Zhou, Bian, Liu (2020), Qlib, arXiv 2009.11189; pyqlib 0.9.7, Alpha158DL"
PREFIX: Final = "a158_"

_PARTS: Final = {10: (5, 5), 20: (10, 10), 30: (20, 10), 60: (30, 30)}
"""Length of a window -> lengths of its older and its recent part."""


@intermediate(("high", "low", "close"))
def q_vwap(high: Array, low: Array, close: Array) -> Array:
    """Typical price, USD, in the place of Qlib's $vwap."""
    return (high + low + close) / 3.0


@intermediate(("close",), lookback=1)
def q_move(close: Array) -> Array:
    """Change of the close, USD."""
    return e.diff(close, 1)


@intermediate(("close",), lookback=1)
def q_growth(close: Array) -> Array:
    """Close over the close before."""
    return e.ratio(close, e.lag(close, 1))


@intermediate(("volume_usd",))
def q_log_volume(volume: Array) -> Array:
    """Log of one plus volume."""
    return e.log(volume + 1.0)


@intermediate(("volume_usd",), lookback=1)
def q_log_volume_growth(volume: Array) -> Array:
    """Log of one plus volume over the volume before."""
    return e.log(e.ratio(volume, e.lag(volume, 1)) + 1.0)


@intermediate(("volume_usd",), lookback=1)
def q_volume_move(volume: Array) -> Array:
    """Change of volume."""
    return e.diff(volume, 1)


@intermediate(("q_growth", "volume_usd"))
def q_weighted_move(growth: Array, volume: Array) -> Array:
    """Size of the return times volume."""
    return np.abs(growth - 1.0) * volume


def _rows(state: Array) -> Array:
    """Return a state (bars, rows) as the kernels take it: (rows, bars), contiguous; no copy unless it was cut."""
    return np.ascontiguousarray(state.T)


def _declare_states(
    name: str, inputs: tuple[str, ...], start: Callable[..., Array], join: Callable[..., Array]
) -> None:
    """Declare the shared columns ``q_{name}_{n}``: one state (bars, rows) a window, each joined from shorter ones."""

    def short(*values: Array) -> Array:
        return start(*values, WINDOWS[0]).T

    short.__name__ = f"q_{name}_{WINDOWS[0]}"
    intermediate(inputs, lookback=WINDOWS[0] - 1)(short)
    for n, (older, recent) in _PARTS.items():
        _declare_joined(name, n, older, recent, join)


def _declare_joined(name: str, n: int, older: int, recent: int, join: Callable[..., Array]) -> None:
    def joined(recent_state: Array, older_state: Array) -> Array:
        return join(_rows(older_state), _rows(recent_state), recent).T

    joined.__name__ = f"q_{name}_{n}"
    intermediate((f"q_{name}_{recent}", f"q_{name}_{older}"), lookback=recent)(joined)


_declare_states("trend", ("close",), r.trend_start, r.trend_join)
_declare_states("extremes", ("high", "low"), r.extremes_start, r.extremes_join)
_declare_states("corr", ("close", "q_log_volume"), r.pairs_start, r.pairs_join)
_declare_states("cord", ("q_growth", "q_log_volume_growth"), r.pairs_start, r.pairs_join)
_declare_states("moves", ("q_move",), r.moves_start, r.moves_join)
_declare_states("volume", ("volume_usd",), r.moments_start, r.moments_join)
_declare_states("weighted", ("q_weighted_move",), r.moments_start, r.moments_join)
_declare_states("volume_moves", ("q_volume_move",), r.moves_start, r.moves_join)


def _declare_order(n: int) -> None:
    def order(close: Array) -> Array:
        return r.order_statistics(close, n).T

    order.__name__ = f"q_order_{n}"
    intermediate(("close",), lookback=n - 1)(order)


for _n in WINDOWS:
    _declare_order(_n)


def _one(name: str, inputs: tuple[str, ...], formula: str, unit: str) -> Callable[..., Callable[..., Array]]:
    return feature(PREFIX + name.lower(), inputs=inputs, unit=unit, definition=formula, source=SOURCE, normalise="none")


@_one("KMID", ("open", "close"), "($close-$open)/$open", "fraction of price")
def kmid(open_: Array, close: Array) -> Array:
    """Body."""
    return e.ratio(close - open_, open_)


@_one("KLEN", ("open", "high", "low"), "($high-$low)/$open", "fraction of price")
def klen(open_: Array, high: Array, low: Array) -> Array:
    """Range."""
    return e.ratio(high - low, open_)


@_one("KMID2", ("open", "high", "low", "close"), "($close-$open)/($high-$low+1e-12)", "-1 to 1")
def kmid2(open_: Array, high: Array, low: Array, close: Array) -> Array:
    """Body as a share of the range."""
    return e.ratio(close - open_, high - low + c.EPSILON)


@_one("KUP", ("open", "high", "close"), "($high-Greater($open, $close))/$open", "fraction of price")
def kup(open_: Array, high: Array, close: Array) -> Array:
    """Upper shadow."""
    return e.ratio(high - np.maximum(open_, close), open_)


@_one("KUP2", ("open", "high", "low", "close"), "($high-Greater($open, $close))/($high-$low+1e-12)", "0 to 1")
def kup2(open_: Array, high: Array, low: Array, close: Array) -> Array:
    """Upper shadow as a share of the range."""
    return e.ratio(high - np.maximum(open_, close), high - low + c.EPSILON)


@_one("KLOW", ("open", "low", "close"), "(Less($open, $close)-$low)/$open", "fraction of price")
def klow(open_: Array, low: Array, close: Array) -> Array:
    """Lower shadow."""
    return e.ratio(np.minimum(open_, close) - low, open_)


@_one("KLOW2", ("open", "high", "low", "close"), "(Less($open, $close)-$low)/($high-$low+1e-12)", "0 to 1")
def klow2(open_: Array, high: Array, low: Array, close: Array) -> Array:
    """Lower shadow as a share of the range."""
    return e.ratio(np.minimum(open_, close) - low, high - low + c.EPSILON)


@_one("KSFT", ("open", "high", "low", "close"), "(2*$close-$high-$low)/$open", "fraction of price")
def ksft(open_: Array, high: Array, low: Array, close: Array) -> Array:
    """Close against the middle of the range."""
    return e.ratio(2.0 * close - high - low, open_)


@_one("KSFT2", ("high", "low", "close"), "(2*$close-$high-$low)/($high-$low+1e-12)", "-1 to 1")
def ksft2(high: Array, low: Array, close: Array) -> Array:
    """Close against the middle of the range, as a share of it."""
    return e.ratio(2.0 * close - high - low, high - low + c.EPSILON)


@_one("VWAP0", ("q_vwap", "close"), "$vwap/$close", "ratio")  # decorators apply upwards: OPEN0 comes first
@_one("LOW0", ("low", "close"), "$low/$close", "ratio")
@_one("HIGH0", ("high", "close"), "$high/$close", "ratio")
@_one("OPEN0", ("open", "close"), "$open/$close", "ratio")
def price0(price: Array, close: Array) -> Array:
    """One of the bar's prices over its close."""
    return e.ratio(price, close)


def roc(close: Array, n: int) -> Array:
    """Earlier close over this one."""
    return e.ratio(e.lag(close, n), close)


def ma(trend: Array, close: Array, n: int) -> Array:
    """Mean of the close."""
    return c.over(trend[:, 2], trend[:, 0], close, n)


def std(trend: Array, close: Array, n: int) -> Array:
    """Standard deviation of the close."""
    return c.deviation(trend[:, 4], trend[:, 0], close, 0.0, close, n)


def beta(trend: Array, close: Array, n: int) -> Array:
    """Slope of the least-squares line."""
    return c.slope(trend[:, 5], trend[:, 3], trend[:, 0], close, n)


def rsqr(trend: Array, close: Array, n: int) -> Array:
    """How straight the trend is."""
    return c.fit(trend[:, 0], trend[:, 3], trend[:, 4], trend[:, 5], close, n, True)


def resi(trend: Array, close: Array, n: int) -> Array:
    """Distance from the trend."""
    return c.residual(trend[:, 0], trend[:, 1], trend[:, 2], trend[:, 3], trend[:, 5], close, n)


def maximum(extremes: Array, close: Array, n: int) -> Array:
    """Highest high."""
    return c.over(extremes[:, 1], extremes[:, 0], close, n)


def minimum(extremes: Array, close: Array, n: int) -> Array:
    """Lowest low."""
    return c.over(extremes[:, 4], extremes[:, 3], close, n)


def qtlu(order: Array, close: Array, n: int) -> Array:
    """High quantile."""
    return c.over(order[:, 2], order[:, 0], close, n)


def qtld(order: Array, close: Array, n: int) -> Array:
    """Low quantile."""
    return c.over(order[:, 3], order[:, 0], close, n)


def rank(order: Array, close: Array, n: int) -> Array:
    """Rank of the close."""
    return c.plain(order[:, 1], order[:, 0], close, n)


def rsv(extremes: Array, close: Array, n: int) -> Array:
    """Place in the range."""
    return c.stochastic(extremes[:, 1], extremes[:, 0], extremes[:, 4], extremes[:, 3], close, n)


def imax(extremes: Array, high: Array, n: int) -> Array:
    """When the high was."""
    return c.place(extremes[:, 2], extremes[:, 0], high, n)


def imin(extremes: Array, low: Array, n: int) -> Array:
    """When the low was."""
    return c.place(extremes[:, 5], extremes[:, 3], low, n)


def imxd(extremes: Array, high: Array, low: Array, n: int) -> Array:
    """Which came last."""
    return c.apart(extremes[:, 2], extremes[:, 5], extremes[:, 0], extremes[:, 3], high + low, n)


def corr(state: Array, close: Array, log_volume: Array, n: int) -> Array:
    """Correlation of two columns; missing where either is missing at the current bar."""
    return c.fit(state[:, 0], state[:, 3], state[:, 4], state[:, 5], close + log_volume, n, False)


def cntp(moves: Array, move: Array, n: int) -> Array:
    """Share of rises."""
    return c.mean_of(moves[:, 3], moves[:, 0], move, n)


def cntn(moves: Array, move: Array, n: int) -> Array:
    """Share of falls."""
    return c.mean_of(moves[:, 4], moves[:, 0], move, n)


def cntd(moves: Array, move: Array, n: int) -> Array:
    """Rises less falls."""
    return c.mean_of(moves[:, 3] - moves[:, 4], moves[:, 0], move, n)


def sump(moves: Array, move: Array, n: int) -> Array:
    """Rises as a share of all movement."""
    return c.balance(moves[:, 1], moves[:, 2], 1, moves[:, 0], move, n)


def sumn(moves: Array, move: Array, n: int) -> Array:
    """Falls as a share of all movement."""
    return c.balance(moves[:, 1], moves[:, 2], -1, moves[:, 0], move, n)


def sumd(moves: Array, move: Array, n: int) -> Array:
    """Rises less falls as a share of all movement."""
    return c.balance(moves[:, 1], moves[:, 2], 0, moves[:, 0], move, n)


def vma(state: Array, volume: Array, n: int) -> Array:
    """Mean volume."""
    return c.share(state[:, 1], volume, state[:, 0], volume, n)


def vstd(state: Array, volume: Array, n: int) -> Array:
    """Standard deviation of volume."""
    return c.deviation(state[:, 2], state[:, 0], volume, c.EPSILON, volume, n)


def wvma(state: Array, weighted: Array, n: int) -> Array:
    """Unsteadiness of volume-weighted moves."""
    return c.deviation(state[:, 2], state[:, 0], state[:, 1], c.EPSILON, weighted, n)


_UP, _DOWN = "Greater($close-Ref($close, 1), 0)", "Greater(Ref($close, 1)-$close, 0)"
_V_UP, _V_DOWN = _UP.replace("close", "volume"), _DOWN.replace("close", "volume")
_ABS, _V_ABS = "Abs($close-Ref($close, 1))", "Abs($volume-Ref($volume, 1))"
_RISE, _FALL = "Mean($close>Ref($close, 1), {n})", "Mean($close<Ref($close, 1), {n})"
_WEIGHTED = "Abs($close/Ref($close, 1)-1)*$volume"
_TREND, _EXTREMES, _ORDER = ("q_trend", "close"), ("q_extremes", "close"), ("q_order", "close")
_MOVES, _V_MOVES, _VOLUME = ("q_moves", "q_move"), ("q_volume_moves", "q_volume_move"), ("q_volume", "volume_usd")

# name, function, inputs (the first is a state of {n} bars, unless it is a panel column), Qlib's expression, unit
_ROLLING: Final = (
    ("ROC", roc, ("close",), "Ref($close, {n})/$close", "ratio"),
    ("MA", ma, _TREND, "Mean($close, {n})/$close", "ratio"),
    ("STD", std, _TREND, "Std($close, {n})/$close", "fraction of price"),
    ("BETA", beta, _TREND, "Slope($close, {n})/$close", "fraction of price per bar"),
    ("RSQR", rsqr, _TREND, "Rsquare($close, {n})", "0 to 1"),
    ("RESI", resi, _TREND, "Resi($close, {n})/$close", "fraction of price"),
    ("MAX", maximum, _EXTREMES, "Max($high, {n})/$close", "ratio"),
    ("MIN", minimum, _EXTREMES, "Min($low, {n})/$close", "ratio"),
    ("QTLU", qtlu, _ORDER, "Quantile($close, {n}, 0.8)/$close", "ratio"),
    ("QTLD", qtld, _ORDER, "Quantile($close, {n}, 0.2)/$close", "ratio"),
    ("RANK", rank, _ORDER, "Rank($close, {n})", "0 to 1"),
    ("RSV", rsv, _EXTREMES, "($close-Min($low, {n}))/(Max($high, {n})-Min($low, {n})+1e-12)", "0 to 1"),
    ("IMAX", imax, ("q_extremes", "high"), "IdxMax($high, {n})/{n}", "0 to 1"),
    ("IMIN", imin, ("q_extremes", "low"), "IdxMin($low, {n})/{n}", "0 to 1"),
    ("IMXD", imxd, ("q_extremes", "high", "low"), "(IdxMax($high, {n})-IdxMin($low, {n}))/{n}", "-1 to 1"),
    ("CORR", corr, ("q_corr", "close", "q_log_volume"), "Corr($close, Log($volume+1), {n})", "correlation"),
    (
        "CORD",
        corr,
        ("q_cord", "q_growth", "q_log_volume_growth"),
        "Corr($close/Ref($close,1), Log($volume/Ref($volume, 1)+1), {n})",
        "correlation",
    ),
    ("CNTP", cntp, _MOVES, _RISE, "0 to 1"),
    ("CNTN", cntn, _MOVES, _FALL, "0 to 1"),
    ("CNTD", cntd, _MOVES, f"{_RISE}-{_FALL}", "-1 to 1"),
    ("SUMP", sump, _MOVES, f"Sum({_UP}, {{n}})/(Sum({_ABS}, {{n}})+1e-12)", "0 to 1"),
    ("SUMN", sumn, _MOVES, f"Sum({_DOWN}, {{n}})/(Sum({_ABS}, {{n}})+1e-12)", "0 to 1"),
    ("SUMD", sumd, _MOVES, f"(Sum({_UP}, {{n}})-Sum({_DOWN}, {{n}}))/(Sum({_ABS}, {{n}})+1e-12)", "-1 to 1"),
    ("VMA", vma, _VOLUME, "Mean($volume, {n})/($volume+1e-12)", "ratio"),
    ("VSTD", vstd, _VOLUME, "Std($volume, {n})/($volume+1e-12)", "ratio"),
    (
        "WVMA",
        wvma,
        ("q_weighted", "q_weighted_move"),
        f"Std({_WEIGHTED}, {{n}})/(Mean({_WEIGHTED}, {{n}})+1e-12)",
        "ratio",
    ),
    ("VSUMP", sump, _V_MOVES, f"Sum({_V_UP}, {{n}})/(Sum({_V_ABS}, {{n}})+1e-12)", "0 to 1"),
    ("VSUMN", sumn, _V_MOVES, f"Sum({_V_DOWN}, {{n}})/(Sum({_V_ABS}, {{n}})+1e-12)", "0 to 1"),
    ("VSUMD", sumd, _V_MOVES, f"(Sum({_V_UP}, {{n}})-Sum({_V_DOWN}, {{n}}))/(Sum({_V_ABS}, {{n}})+1e-12)", "-1 to 1"),
)

for _name, _compute, (_first, *_others), _formula, _unit in _ROLLING:
    for _n in WINDOWS:
        feature(
            f"{PREFIX}{_name.lower()}{_n}",
            inputs=(_first if _first == "close" else f"{_first}_{_n}", *_others),
            over=(_n,),
            lookback=_n if _first == "close" else 0,
            unit=_unit,
            definition=_formula,
            source=SOURCE,
            normalise="none",
        )(_compute)
