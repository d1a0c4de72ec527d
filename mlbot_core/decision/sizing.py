"""From forecasts to target positions: trade only when the forecast beats its cost.

Per bar the expected edge is ``(p_up - p_down) * width``: with calibrated probabilities and barriers at plus and minus
``width`` (log return) it is the expected log return of a long position; neutral outcomes count as zero. The state is
the side held, -1, 0 or +1:

======================================  ====================================
edge of this bar                        side from here on
======================================  ====================================
> round-trip cost                       +1 (from flat, or by reversal)
< -(round-trip cost)                    -1 (from flat, or by reversal)
within the band, on the held side or 0  unchanged: costs are already paid
within the band, on the other side      0
missing (NaN probability or width)      0: nothing is held on no forecast
======================================  ====================================

The target is ``side * max_position``; sizes between come with a later slice. The cost is a simple fraction and the
edge a log return; at a few basis points the difference (half the square) is below 1e-6 and ignored.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from mlbot_core.errors import UsageError


@njit(cache=True)
def next_side(side: int, p_down: float, p_up: float, width: float, cost_round_trip: float) -> int:
    """Return the side (-1, 0, +1) to hold after one bar's forecast; the table in this module's description.

    Parameters
    ----------
    side
        Held before.
    p_down, p_up
        Probabilities; NaN where there is no forecast.
    width
        Distance of the barriers of this bar, log return.
    cost_round_trip
        Fraction.
    """
    edge = (p_up - p_down) * width
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
def target_positions_kernel(p_down: Any, p_up: Any, width: Any, cost_round_trip: float, max_position: float) -> Any:
    """Compiled loop of :func:`target_positions`, without its checks."""
    n = len(p_down)
    out = np.zeros(n, dtype=np.float64)
    side = 0
    for i in range(n):
        side = next_side(side, p_down[i], p_up[i], width[i], cost_round_trip)
        if side != 0:
            out[i] = side * max_position
    return out


def target_positions(
    p_down: npt.ArrayLike, p_up: npt.ArrayLike, width: npt.ArrayLike, cost_round_trip: float, max_position: float
) -> npt.NDArray[np.float64]:
    """Return the wanted position after each bar, as a signed fraction of NAV.

    Position i uses forecasts 0..i only, so a prefix of the inputs gives the prefix of the outputs.

    Parameters
    ----------
    p_down, p_up
        Shape (n,), one bar each, in time order and without missing bars; NaN where there is no forecast.
    width
        Shape (n,), distance of the triple barrier of that bar as a log return; NaN where unknown.
    cost_round_trip
        Fraction of the position's value (:attr:`mlbot_core.decision.costs.Costs.round_trip`).
    max_position
        Cap, fraction of NAV, in (0, 1].

    Raises
    ------
    UsageError
        If shapes differ, a probability lies outside [0, 1], a width is negative, the cost is negative or not finite,
        or the cap lies outside (0, 1].
    """
    down, up, wide = (np.ascontiguousarray(a, dtype=np.float64) for a in (p_down, p_up, width))
    if not (down.ndim == 1 and down.shape == up.shape == wide.shape):
        raise UsageError(f"p_down {down.shape}, p_up {up.shape} and width {wide.shape} must be series of one length")
    for name, values in (("p_down", down), ("p_up", up)):
        _refuse(name, values, (values < 0.0) | (values > 1.0), "a probability lies between 0 and 1")
    _refuse("width", wide, wide < 0.0, "a barrier's distance is not negative")
    if not (math.isfinite(cost_round_trip) and cost_round_trip >= 0.0):
        raise UsageError(f"cost_round_trip {cost_round_trip} must be a fraction >= 0; see config/fees.yaml")
    if not 0.0 < max_position <= 1.0:
        raise UsageError(f"max_position {max_position} must lie in (0, 1]; see config/risk.yaml")
    result: npt.NDArray[np.float64] = target_positions_kernel(
        down, up, wide, float(cost_round_trip), float(max_position)
    )
    return result


def _refuse(name: str, values: npt.NDArray[np.float64], bad: npt.NDArray[np.bool_], rule: str) -> None:
    if bad.any():
        at = int(np.argmax(bad))
        raise UsageError(f"{name}[{at}] is {values[at]}; {rule}")
