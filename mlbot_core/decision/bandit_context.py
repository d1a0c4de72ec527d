"""What the bandit sees of a decision, in natural units, and as the numbers it learns from. Pure.

Everything in a context is known when the decision is made. The numbers are fixed functions of it, bounded and without
anything fitted, so that a context means the same at any time:

============  ==========================================================  =========================================
number        of                                                          value
============  ==========================================================  =========================================
1             none                                                             1
strength      ratio ρ = absolute edge / round-trip cost                    log ρ, within 3 of 0
uncertainty   u = deviation of the forecast / (deviation + absolute edge)  2 u - 1, so -1 to 1
disagreement  d = spread of the models' edges, as u                        2 d - 1; 0 where one model is alone
volatility    annual, relative to the target                               log, within 3 of 0
liquidity     volume of the bar, relative to the usual                     log, within 3 of 0; 0 where unknown
drawdown      of the account, as a share of the limit that halts it        0 to 1
calibration   recent hit rate less the one the forecasts claimed           5 x, within 1 of 0; 0 where unknown
============  ==========================================================  =========================================

Edge, deviation, volatility and drawdown must be known; a context without one of them is all NaN, and the bandit then
takes no position.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlbot_core.decision.bandit import BanditError

NAMES: Final = (
    "one",
    "strength",
    "uncertainty",
    "disagreement",
    "volatility",
    "liquidity",
    "drawdown",
    "calibration",
)
N_CONTEXT: Final = len(NAMES)
_FAR: Final = 3.0
_CALIBRATION_SCALE: Final = 5.0


@dataclass(frozen=True)
class Context:
    """One decision, as it was known then.

    Parameters
    ----------
    edge
        Expected log return of a long position over the horizon, before costs.
    edge_sd
        Its standard deviation, log return.
    cost
        Of a round trip, fraction of the position's value.
    spread
        Standard deviation of the edges of different models on the same bar, log return; NaN where there is only one.
    volatility
        Annual, fraction.
    liquidity
        Volume of the decided bar over its usual volume; NaN unknown.
    drawdown
        Of the account from its peak NAV, fraction.
    calibration
        Hit rate of the newest forecasts whose outcome is known, less the hit rate they claimed; NaN unknown.
    """

    edge: float
    edge_sd: float
    cost: float
    spread: float
    volatility: float
    liquidity: float
    drawdown: float
    calibration: float


@dataclass(frozen=True)
class ContextScale:
    """What contexts are measured against.

    Parameters
    ----------
    target_volatility
        Annual, fraction.
    max_drawdown
        The loss from the peak that halts the account, fraction.
    """

    target_volatility: float
    max_drawdown: float


def context_vector(context: Context, scale: ContextScale) -> npt.NDArray[np.float64]:
    """Return the numbers of a context, float64[8] in the order of :data:`NAMES`; all NaN where it cannot be judged."""
    needed = (context.edge, context.edge_sd, context.cost, context.volatility, context.drawdown)
    usable = all(map(math.isfinite, needed)) and context.cost > 0.0 and context.volatility > 0.0
    if not usable or context.edge_sd < 0.0 or context.spread < 0.0:
        return np.full(N_CONTEXT, math.nan)
    size = abs(context.edge)
    return np.array(
        [
            1.0,
            _log_ratio(size / context.cost),
            2.0 * _share(context.edge_sd, size) - 1.0,
            2.0 * _share(context.spread, size) - 1.0 if math.isfinite(context.spread) else 0.0,
            _log_ratio(context.volatility / scale.target_volatility),
            _log_ratio(context.liquidity) if math.isfinite(context.liquidity) else 0.0,
            _within(context.drawdown / scale.max_drawdown, 0.0),
            _within(_CALIBRATION_SCALE * context.calibration, -1.0) if math.isfinite(context.calibration) else 0.0,
        ]
    )


def context_to_json(context: Context) -> dict[str, str]:
    """Return a context as texts that JSON keeps exactly (floats by their hexadecimal text, NaN included)."""
    return {name: float(value).hex() for name, value in asdict(context).items()}


def context_from_json(values: Mapping[str, Any]) -> Context:
    """Return the context that :func:`context_to_json` wrote.

    Raises
    ------
    BanditError
        If a field is missing, unknown or no number.
    """
    try:
        return Context(**{name: float.fromhex(value) for name, value in values.items()})
    except (TypeError, ValueError, AttributeError) as error:
        raise BanditError(f"a stored context cannot be read ({error}); restore the log from a backup") from error


def _log_ratio(ratio: float) -> float:
    if not ratio > 0.0:
        return -_FAR
    return min(max(math.log(ratio), -_FAR), _FAR)


def _within(value: float, low: float) -> float:
    return min(max(value, low), 1.0)


def _share(part: float, other: float) -> float:
    """Return part / (part + other), 0 where both are 0; both are 0 or more and the part may be infinite."""
    whole = part + other
    if not whole > 0.0:
        return 0.0
    return part / whole if math.isfinite(whole) else 1.0
