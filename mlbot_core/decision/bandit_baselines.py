"""What the bandit must beat: fixed fractions of the cap, volatility targeting and fractional Kelly. Pure.

All of them choose one of the bandit's arms, the nearest to what their rule asks for, so that only the rule differs.

Sources
-------
J. Kelly, "A new interpretation of information rate", Bell System Technical Journal 35, 1956; for a normal return with
mean μ and variance σ² the growth-optimal fraction is μ / σ² (E. Thorp, "The Kelly criterion in blackjack, sports
betting and the stock market", 2006, section 7).
A. Moreira and T. Muir, "Volatility-managed portfolios", Journal of Finance 72, 2017.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from mlbot_core.decision.bandit import ARMS, nearest_arm
from mlbot_core.decision.bandit_context import Context

VOLATILITY_TARGET: Final = "volatility target"
KELLY: Final = "fractional Kelly"

Rule = Callable[[Context], int]


@dataclass(frozen=True)
class Baseline:
    """A rule that never learns.

    Parameters
    ----------
    name
        For tables.
    rule
        Arm of a context.
    """

    name: str
    rule: Rule


def volatility_target(target: float, context: Context) -> float:
    """Return the share of the cap at which the position's volatility is the cap's at the target, 0 to 1.

    Parameters
    ----------
    target
        Annual volatility at which the whole cap is used, fraction.
    """
    if not (math.isfinite(context.volatility) and context.volatility > 0.0 and target > 0.0):
        return 0.0
    return min(target / context.volatility, 1.0)


def fractional_kelly(fraction: float, max_position: float, context: Context) -> float:
    """Return a fraction of the growth-optimal position as a share of the cap, 0 to 1.

    The mean is the edge that is left after the round trip's cost; what it does not leave is not bet.

    Parameters
    ----------
    fraction
        Of Kelly's position, 0 to 1.
    max_position
        The cap, fraction of NAV.
    """
    if not (math.isfinite(context.edge) and math.isfinite(context.edge_sd) and context.edge_sd > 0.0):
        return 0.0
    left = abs(context.edge) - context.cost
    variance = context.edge_sd * context.edge_sd
    if not (left > 0.0 and variance > 0.0 and max_position > 0.0):
        return 0.0
    return min(fraction * (left / variance) / max_position, 1.0)


def volatility_target_arm(target: float, context: Context) -> int:
    """Return volatility targeting's arm: what is traded where a promoted policy is off or cannot be asked."""
    return nearest_arm(volatility_target(target, context))


def baselines(
    *, fixed: Sequence[float], target_volatility: float, kelly_fraction: float, max_position: float
) -> tuple[Baseline, ...]:
    """Return every baseline: the fixed fractions, volatility targeting and fractional Kelly.

    Parameters
    ----------
    fixed
        Shares of the cap, each one of the arms.
    target_volatility, kelly_fraction, max_position
        As in :func:`volatility_target` and :func:`fractional_kelly`.
    """
    return (
        *(Baseline(f"fixed {share:g}", _constant(ARMS.index(share))) for share in fixed),
        Baseline(VOLATILITY_TARGET, lambda context: volatility_target_arm(target_volatility, context)),
        Baseline(KELLY, lambda context: nearest_arm(fractional_kelly(kelly_fraction, max_position, context))),
    )


def _constant(arm: int) -> Rule:
    return lambda _context: arm
