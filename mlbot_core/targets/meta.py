"""The meta-label: given which side somebody else chose, would that trade have made money after its costs?

Lopez de Prado (2018), Advances in Financial Machine Learning, sections 3.6 and 3.7: a primary model says the side, a
second one learns from this label whether to follow it, and how large.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pandas as pd
from numba import njit

from mlbot_core.errors import BadDataError
from mlbot_core.features.truncation import UNKNOWN_MS
from mlbot_core.timeframe import Market

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

META_LABELS = {"meta_t1": ("meta_label", "meta_ret")}
"""Time of knowledge of the meta-label and what becomes known with it, as the truncation check takes them."""


@njit(cache=True)
def meta_label(
    open_: Array,
    high: Array,
    low: Array,
    close: Array,
    side: Array,
    profit: Array,
    stop: Array,
    horizon: int,
    cost: float,
) -> tuple[Array, IntArray, Array]:
    """Follow every trade from its entry to its profit barrier, stop barrier or time limit.

    The position is entered at the close of bar ``i`` and watched over bars ``i + 1 .. i + horizon``. It leaves at the
    barrier that is touched first, at the open of a bar that opened beyond it, or at the close of bar ``i + horizon``.
    Where one bar touches both, the stop came first: the order inside a bar is not known and nobody is paid for hope.

    Parameters
    ----------
    open_, high, low, close
        Prices, USD, shape (bars,); NaN where a bar is missing.
    side
        What the primary model says at the close of each bar: above 0 long, below 0 short, 0 or NaN no trade.
    profit, stop
        Log distances of the two barriers from the entry, shape (bars,); a bar without positive ones gets no label.
    horizon
        Bars until the trade is closed.
    cost
        Of the whole round trip, as a fraction of the position's value at entry.

    Returns
    -------
    label
        1 the trade made money after costs, 0 it did not; NaN without a side, or where a bar that is needed is missing
        or has not closed yet.
    touch
        Row of the bar that decided, -1 where unknown.
    result
        Return after costs, fraction of the position's value at entry; NaN where unknown.
    """
    size = close.size
    label = np.full(size, np.nan)
    touch = np.full(size, -1, dtype=np.int64)
    result = np.full(size, np.nan)
    for i in range(size):
        tradable = np.isfinite(close[i]) and np.isfinite(side[i]) and side[i] != 0.0
        if not (tradable and np.isfinite(profit[i]) and profit[i] > 0.0 and np.isfinite(stop[i]) and stop[i] > 0.0):
            continue
        long = side[i] > 0.0
        upper = close[i] * math.exp(profit[i] if long else stop[i])
        lower = close[i] * math.exp(-stop[i] if long else -profit[i])
        for j in range(i + 1, min(i + horizon, size - 1) + 1):
            if not (np.isfinite(open_[j]) and np.isfinite(high[j]) and np.isfinite(low[j]) and np.isfinite(close[j])):
                break
            up = high[j] >= upper
            down = low[j] <= lower
            if up and (not down or not long):
                price = max(upper, open_[j])
            elif down:
                price = min(lower, open_[j])
            elif j == i + horizon:
                price = close[j]
            else:
                continue
            gain = price / close[i] - 1.0
            result[i] = (gain if long else -gain) - cost
            label[i] = 1.0 if result[i] > 0.0 else 0.0
            touch[i] = j
            break
    return label, touch, result


def build_meta_targets(
    panel: pd.DataFrame,
    market: Market,
    side: npt.ArrayLike,
    width: npt.ArrayLike,
    horizon: int,
    cost: float,
    *,
    stop_share: float = 1.0,
) -> pd.DataFrame:
    """Meta-label every bar of a panel.

    Parameters
    ----------
    panel
        A regular grid with ``ts``, ``open``, ``high``, ``low``, ``close``; NaN where a bar is missing.
    side
        What the primary model said at each bar's close, shape (bars,). Out-of-fold forecasts only: sides that a model
        gave to its own training rows would teach that it is always right.
    width
        Log distance of the profit barrier, shape (bars,): for instance ``tb_width`` of the main targets.
    horizon
        Bars until the trade is closed.
    cost
        Of the round trip, fraction of the position's value.
    stop_share
        The stop lies at this share of the profit barrier's distance.

    Returns
    -------
    pd.DataFrame
        ``ts``, ``t0`` (the close, UTC ms), ``meta_label`` (1, 0 or NaN), ``meta_t1`` (when it is known, UTC ms; -1
        unknown), ``meta_ret`` (return after costs, fraction).

    Raises
    ------
    BadDataError
        If ``side`` or ``width`` do not have one value a row.
    """
    ts = panel["ts"].to_numpy(dtype=np.int64)
    chosen, distance = (np.ascontiguousarray(x, dtype=np.float64) for x in (side, width))
    for name, values in (("side", chosen), ("width", distance)):
        if values.shape != ts.shape:
            raise BadDataError(f"{name} has shape {values.shape}, the panel of {market} has {len(ts)} rows")
    open_, high, low, close = (
        np.ascontiguousarray(panel[name].to_numpy(dtype=np.float64)) for name in ("open", "high", "low", "close")
    )
    label, touch, result = meta_label(open_, high, low, close, chosen, distance, stop_share * distance, horizon, cost)
    step = market.timeframe.ms
    t1 = np.where(touch >= 0, ts[np.maximum(touch, 0)] + step, np.int64(UNKNOWN_MS)) if len(ts) else ts.copy()
    return pd.DataFrame({"ts": ts, "t0": ts + step, "meta_label": label, "meta_t1": t1, "meta_ret": result})
