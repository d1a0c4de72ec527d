"""How much money could trade like this before its orders are too large a part of the market.

An order of the fraction f of NAV in a bar in which V (USD) were traded takes the share s of that volume at a NAV of
``s x V / f``. An account's orders grow with its NAV and the market's volume does not, so that is the NAV at which this
order reaches the share. The idea is that of pyfolio's capacity analysis (``pyfolio.capacity``, Quantopian), which asks
of each traded day what part of the volume a portfolio of a given size would consume; here it is asked of each bar, and
turned around. What such a share costs is the impact in ``fees.yaml``; capacity says nothing about whether the edge
survives it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from mlbot_core.backtest.simulator import BANKRUPT, REASONS, Simulation

FloatArray = npt.NDArray[np.float64]

SHARES: Final = (0.01, 0.05, 0.10)
# the NAV that is reported keeps all but this part of the orders within the share; the strictest order is told beside it
TOLERANCE: Final = 0.05


@dataclass(frozen=True)
class Capacity:
    """NAV at which orders reach a share of the volume.

    Parameters
    ----------
    share
        Of the volume of the bar in which an order begins to be filled, fraction.
    nav
        USD, at which 95 % of the orders stay within the share; NaN where no volume is known, 0 where 5 % of the orders
        or more met a bar without any.
    nav_every
        USD, at which every one of them does.
    orders
        How many orders met a known volume.
    """

    share: float
    nav: float
    nav_every: float
    orders: int


def capacities(simulation: Simulation, volume: FloatArray | None) -> tuple[Capacity, ...]:
    """Return the capacity at 1, 5 and 10 % of volume.

    Parameters
    ----------
    simulation
        What happened. Fills of one order (same reason, same NAV at the decision, one after the other) count as one of
        their sum; a liquidation is none.
    volume
        float64[n], coins traded in each bar; NaN or None = unknown.
    """
    per_share = _nav_per_share(simulation, volume)
    if not len(per_share):
        return tuple(Capacity(share, math.nan, math.nan, 0) for share in SHARES)
    usual = float(np.quantile(per_share, TOLERANCE, method="lower"))
    strict = float(per_share.min())
    return tuple(Capacity(share, share * usual, share * strict, len(per_share)) for share in SHARES)


def _nav_per_share(simulation: Simulation, volume: FloatArray | None) -> FloatArray:
    """Return of each order the NAV at which it is as large as its bar's volume, USD."""
    fills = simulation.fills
    fills = fills[(fills["reason"] != REASONS[BANKRUPT]) & (fills["nav"] > 0)]
    if volume is None or fills.empty:
        return np.empty(0)
    nav = fills["nav"].to_numpy(dtype=np.float64)
    reason = fills["reason"].to_numpy()
    side = fills["side"].to_numpy()
    begins = np.r_[True, (nav[1:] != nav[:-1]) | (reason[1:] != reason[:-1]) | (side[1:] != side[:-1])]
    first = np.flatnonzero(begins)
    coins = np.add.reduceat(fills["btc"].to_numpy(dtype=np.float64), first)
    traded = np.asarray(volume, dtype=np.float64)[fills["bar"].to_numpy()[first]]
    known = np.isfinite(traded)
    result: FloatArray = traded[known] * nav[first][known] / coins[known]
    return result
