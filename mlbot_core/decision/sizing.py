"""From forecasts to target positions: trade only when the forecast beats its cost.

Per bar the ``edge`` is the expected log return of a long position over the forecast's horizon: the forecast's score
times the bar's barrier width (:data:`mlbot_core.models.base.FORECAST`). The state is the side held, -1, 0 or +1:

======================================  ====================================
edge of this bar                        side from here on
======================================  ====================================
> round-trip cost                       +1 (from flat, or by reversal)
< -(round-trip cost)                    -1 (from flat, or by reversal)
within the band, on the held side or 0  unchanged: costs are already paid
within the band, on the other side      0
missing (NaN)                           0: nothing is held on no forecast
======================================  ====================================

The cost is a simple fraction and the edge a log return; at a few basis points the difference (half the square) is
below 1e-6 and ignored.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from mlbot_core.errors import UsageError


@njit(cache=True)
def next_side(side: int, edge: float, cost_round_trip: float) -> int:
    """Return the side (-1, 0, +1) to hold after one bar's forecast; the table in this module's description.

    Parameters
    ----------
    side
        Held before.
    edge
        Expected log return of a long position; NaN where there is no forecast.
    cost_round_trip
        Fraction.
    """
    if not math.isfinite(edge):
        return 0
    if edge > cost_round_trip:
        return 1
    if edge < -cost_round_trip:
        return -1
    if side * edge < 0.0:
        return 0
    return side


@njit(cache=True)
def _target_positions(edge: Any, cost_round_trip: float, max_position: float) -> Any:
    n = len(edge)
    out = np.zeros(n, dtype=np.float64)
    side = 0
    for i in range(n):
        side = next_side(side, edge[i], cost_round_trip)
        if side != 0:
            out[i] = side * max_position
    return out


def target_positions(edge: npt.ArrayLike, cost_round_trip: float, max_position: float) -> npt.NDArray[np.float64]:
    """Return the wanted position after each bar, as a signed fraction of NAV.

    Position i uses forecasts 0..i only, so a prefix of the inputs gives the prefix of the outputs.

    Parameters
    ----------
    edge
        Shape (n,), one bar each, in time order and without missing bars; NaN where there is no forecast.
    cost_round_trip
        Fraction of the position's value (:attr:`mlbot_core.decision.costs.Costs.round_trip`).
    max_position
        Cap, fraction of NAV, in (0, 1].

    Raises
    ------
    UsageError
        If the edges are not a series, the cost is negative or not finite, or the cap lies outside (0, 1].
    """
    values = np.ascontiguousarray(edge, dtype=np.float64)
    if values.ndim != 1:
        raise UsageError(f"edges of shape {values.shape} are not one series")
    if not (math.isfinite(cost_round_trip) and cost_round_trip >= 0.0):
        raise UsageError(f"cost_round_trip {cost_round_trip} must be a fraction >= 0; see config/fees.yaml")
    if not 0.0 < max_position <= 1.0:
        raise UsageError(f"max_position {max_position} must lie in (0, 1]; see config/risk.yaml")
    result: npt.NDArray[np.float64] = _target_positions(values, float(cost_round_trip), float(max_position))
    return result
