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

import re
from collections.abc import Callable
from typing import Final

import numpy as np

from mlbot_core.features import alpha158_kernels as c
from mlbot_core.features import elementwise as e
from mlbot_core.features.alpha158_orders import orders
from mlbot_core.features.alpha158_states import LENGTHS as WINDOWS
from mlbot_core.features.registry import Array, intermediate, table, table_feature

SOURCE: Final = "Yang, Liu, Zhou, Bian, Liu (2020), Qlib, arXiv 2009.11189; pyqlib 0.9.7, Alpha158DL"
PREFIX: Final = "a158_"
FAMILY: Final = "alpha158"


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


_FIELDS: Final = {
    **{name: name for name in ("open", "high", "low", "close")},
    "volume": "volume_usd",
    "vwap": "q_vwap",
}
"""Qlib's name of a field -> ours."""

# table -> its pass, its inputs, the operators whose columns it fills, in that order
_TABLES: Final[dict[str, tuple[Callable[..., None], tuple[str, ...], str]]] = {
    "q_candles": (
        c.candles,
        ("open", "high", "low", "close", "q_vwap"),
        "KMID KLEN KMID2 KUP KUP2 KLOW KLOW2 KSFT KSFT2 OPEN0 HIGH0 LOW0 VWAP0 ROC",
    ),
    "q_trends": (c.trends, ("close",), "MA STD BETA RSQR RESI"),
    "q_extremes": (c.extremes, ("high", "low", "close"), "MAX MIN RSV IMAX IMIN IMXD"),
    "q_orders": (orders, ("close",), "QTLU QTLD RANK"),
    "q_level_correlations": (c.correlations, ("close", "q_log_volume"), "CORR"),
    "q_change_correlations": (c.correlations, ("q_growth", "q_log_volume_growth"), "CORD"),
    "q_moves": (c.price_moves, ("q_move",), "CNTP CNTN CNTD SUMP SUMN SUMD"),
    "q_volumes": (c.volumes, ("volume_usd",), "VMA VSTD"),
    "q_weighted_moves": (c.weighted_moves, ("q_weighted_move",), "WVMA"),
    "q_volume_moves": (c.volume_moves, ("q_volume_move",), "VSUMP VSUMN VSUMD"),
}

_UP, _DOWN = "Greater($close-Ref($close, 1), 0)", "Greater(Ref($close, 1)-$close, 0)"
_V_UP, _V_DOWN = _UP.replace("close", "volume"), _DOWN.replace("close", "volume")
_ABS, _V_ABS = "Abs($close-Ref($close, 1))", "Abs($volume-Ref($volume, 1))"
_RISE, _FALL = "Mean($close>Ref($close, 1), {n})", "Mean($close<Ref($close, 1), {n})"
_WEIGHTED = "Abs($close/Ref($close, 1)-1)*$volume"

# Qlib's name, its expression, unit, in Qlib's order
_CANDLE: Final = (
    ("KMID", "($close-$open)/$open", "fraction of price"),
    ("KLEN", "($high-$low)/$open", "fraction of price"),
    ("KMID2", "($close-$open)/($high-$low+1e-12)", "-1 to 1"),
    ("KUP", "($high-Greater($open, $close))/$open", "fraction of price"),
    ("KUP2", "($high-Greater($open, $close))/($high-$low+1e-12)", "0 to 1"),
    ("KLOW", "(Less($open, $close)-$low)/$open", "fraction of price"),
    ("KLOW2", "(Less($open, $close)-$low)/($high-$low+1e-12)", "0 to 1"),
    ("KSFT", "(2*$close-$high-$low)/$open", "fraction of price"),
    ("KSFT2", "(2*$close-$high-$low)/($high-$low+1e-12)", "-1 to 1"),
    ("OPEN0", "$open/$close", "ratio"),
    ("HIGH0", "$high/$close", "ratio"),
    ("LOW0", "$low/$close", "ratio"),
    ("VWAP0", "$vwap/$close", "ratio"),
)
_ROLLING: Final = (
    ("ROC", "Ref($close, {n})/$close", "ratio"),
    ("MA", "Mean($close, {n})/$close", "ratio"),
    ("STD", "Std($close, {n})/$close", "fraction of price"),
    ("BETA", "Slope($close, {n})/$close", "fraction of price per bar"),
    ("RSQR", "Rsquare($close, {n})", "0 to 1"),
    ("RESI", "Resi($close, {n})/$close", "fraction of price"),
    ("MAX", "Max($high, {n})/$close", "ratio"),
    ("MIN", "Min($low, {n})/$close", "ratio"),
    ("QTLU", "Quantile($close, {n}, 0.8)/$close", "ratio"),
    ("QTLD", "Quantile($close, {n}, 0.2)/$close", "ratio"),
    ("RANK", "Rank($close, {n})", "0 to 1"),
    ("RSV", "($close-Min($low, {n}))/(Max($high, {n})-Min($low, {n})+1e-12)", "0 to 1"),
    ("IMAX", "IdxMax($high, {n})/{n}", "0 to 1"),
    ("IMIN", "IdxMin($low, {n})/{n}", "0 to 1"),
    ("IMXD", "(IdxMax($high, {n})-IdxMin($low, {n}))/{n}", "-1 to 1"),
    ("CORR", "Corr($close, Log($volume+1), {n})", "correlation"),
    ("CORD", "Corr($close/Ref($close,1), Log($volume/Ref($volume, 1)+1), {n})", "correlation"),
    ("CNTP", _RISE, "0 to 1"),
    ("CNTN", _FALL, "0 to 1"),
    ("CNTD", f"{_RISE}-{_FALL}", "-1 to 1"),
    ("SUMP", f"Sum({_UP}, {{n}})/(Sum({_ABS}, {{n}})+1e-12)", "0 to 1"),
    ("SUMN", f"Sum({_DOWN}, {{n}})/(Sum({_ABS}, {{n}})+1e-12)", "0 to 1"),
    ("SUMD", f"(Sum({_UP}, {{n}})-Sum({_DOWN}, {{n}}))/(Sum({_ABS}, {{n}})+1e-12)", "-1 to 1"),
    ("VMA", "Mean($volume, {n})/($volume+1e-12)", "ratio"),
    ("VSTD", "Std($volume, {n})/($volume+1e-12)", "ratio"),
    ("WVMA", f"Std({_WEIGHTED}, {{n}})/(Mean({_WEIGHTED}, {{n}})+1e-12)", "ratio"),
    ("VSUMP", f"Sum({_V_UP}, {{n}})/(Sum({_V_ABS}, {{n}})+1e-12)", "0 to 1"),
    ("VSUMN", f"Sum({_V_DOWN}, {{n}})/(Sum({_V_ABS}, {{n}})+1e-12)", "0 to 1"),
    ("VSUMD", f"(Sum({_V_UP}, {{n}})-Sum({_V_DOWN}, {{n}}))/(Sum({_V_ABS}, {{n}})+1e-12)", "-1 to 1"),
)


def _columns(operators: str) -> tuple[str, ...]:
    """Return the columns of some operators: one for a candle's, one a window for the others."""
    single = {name for name, *_ in _CANDLE}
    return tuple(
        f"{PREFIX}{name.lower()}{n}" for name in operators.split() for n in (("",) if name in single else WINDOWS)
    )


def _reads(expression: str) -> tuple[str, ...]:
    """Return what an expression of Qlib's names, as this project calls it."""
    return tuple(dict.fromkeys(_FIELDS[field] for field in re.findall(r"\$(\w+)", expression)))


for _table, (_fill, _inputs, _operators) in _TABLES.items():
    table(_table, inputs=_inputs, columns=_columns(_operators))(_fill)

for _name, _formula, _unit in _CANDLE:
    table_feature(
        f"{PREFIX}{_name.lower()}",
        unit=_unit,
        definition=_formula,
        source=SOURCE,
        family=FAMILY,
        reads=_reads(_formula),
    )

for _name, _formula, _unit in _ROLLING:
    for _n in WINDOWS:
        table_feature(
            f"{PREFIX}{_name.lower()}{_n}",
            lookback=_n if _name == "ROC" else _n - 1,
            unit=_unit,
            definition=_formula.format(n=_n),
            source=SOURCE,
            family=FAMILY,
            reads=_reads(_formula),
        )
