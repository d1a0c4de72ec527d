"""Derivatives: funding (level, carry, change, extremes) and open interest (change, crowding, its link with price).

Funding rates are fractions per 8 hours, positive when longs pay shorts; a year holds 1,095 settlements.
"""

from __future__ import annotations

import numpy as np

from mlbot_core.features import elementwise as e
from mlbot_core.features import kernels as k
from mlbot_core.features.registry import Array, feature, intermediate

SETTLEMENTS_PER_YEAR = 3 * 365

_CARRY = "Schmeling, Schrimpf, Todorov (2023), Crypto carry, BIS Working Paper 1087"
_HONG_YOGO = "Hong, Yogo (2012), What does futures market interest tell us, JFE 105"
_BESSEMBINDER = "Bessembinder, Seguin (1993), Price volatility, trading volume, and market depth, JFQA 28"


@intermediate(("oi_usd",))
def log_oi(oi_usd: Array) -> Array:
    """Log of open interest, USD."""
    return e.log(oi_usd)


@intermediate(("log_oi",), lookback=1)
def oi_change(log_oi: Array) -> Array:
    """One-bar log change of open interest."""
    return e.diff(log_oi, 1)


@feature(
    "funding_level",
    inputs=("funding_rate",),
    unit="fraction per 8 h",
    definition="running funding rate",
    source=_CARRY,
)
def funding_level(funding_rate: Array) -> Array:
    """What longs are about to pay."""
    return funding_rate.copy()


@feature(
    "funding_carry_24",
    inputs=("funding_rate",),
    lookback=23,
    unit="fraction per year",
    definition="mean running funding rate of 24 bars times 1,095 settlements a year",
    source=_CARRY,
    normalise="none",
)
def funding_carry(funding_rate: Array) -> Array:
    """Annualised carry, kept as a level: its sign and size mean the same in every year."""
    return k.mean(funding_rate, 24) * SETTLEMENTS_PER_YEAR


@feature(
    "funding_change_{n}",
    over=(8, 72),
    inputs=("funding_rate",),
    lookback=lambda n: n,
    unit="fraction per 8 h",
    definition="running funding rate less that of {n} bars before",
    source=_CARRY,
)
def funding_change(funding_rate: Array, n: int) -> Array:
    """Is leverage being put on or taken off."""
    return e.diff(funding_rate, n)


@feature(
    "funding_rank_168",
    inputs=("funding_rate",),
    lookback=167,
    unit="0 to 1",
    definition="rank of the running funding rate among 168 bars",
    source=_CARRY,
    normalise="none",
)
def funding_rank(funding_rate: Array) -> Array:
    """How extreme the funding is."""
    return k.rank(funding_rate, 168)


@feature(
    "funding_paid_72",
    inputs=("funding_settled",),
    lookback=71,
    unit="fraction per year",
    definition="mean settled funding rate as known over 72 bars times 1,095 settlements a year",
    source=_CARRY,
    normalise="none",
)
def funding_paid(funding_settled: Array) -> Array:
    """Annualised carry that was really paid."""
    return k.mean(funding_settled, 72) * SETTLEMENTS_PER_YEAR


@feature(
    "funding_paid_change_24",
    inputs=("funding_settled",),
    lookback=24,
    unit="fraction per 8 h",
    definition="last known settled funding rate less that of 24 bars before",
    source=_CARRY,
)
def funding_paid_change(funding_settled: Array) -> Array:
    """Change of what was really paid."""
    return e.diff(funding_settled, 24)


@feature(
    "oi_level",
    inputs=("log_oi",),
    unit="log USD",
    definition="log of open interest",
    source=_HONG_YOGO,
)
def oi_level(log_oi: Array) -> Array:
    """Open interest against its own past, by its z-score."""
    return log_oi.copy()


@feature(
    "oi_change_{n}",
    over=(4, 24, 72),
    inputs=("log_oi",),
    lookback=lambda n: n,
    unit="log change",
    definition="log change of open interest over {n} bars",
    source=_HONG_YOGO,
)
def oi_growth(log_oi: Array, n: int) -> Array:
    """Growth of open interest."""
    return e.diff(log_oi, n)


@feature(
    "oi_change_vol_48",
    inputs=("oi_change",),
    lookback=47,
    unit="log change per bar",
    definition="standard deviation of one-bar log changes of open interest over 48 bars",
    source=_BESSEMBINDER,
)
def oi_change_vol(oi_change: Array) -> Array:
    """Unrest among positions."""
    return k.std(oi_change, 48)


@feature(
    "oi_turnover_24",
    inputs=("oi_usd", "volume_usd"),
    lookback=23,
    unit="log ratio",
    definition="log of open interest over the turnover of 24 bars",
    source=_BESSEMBINDER,
)
def oi_turnover(oi_usd: Array, volume_usd: Array) -> Array:
    """Positions held per dollar traded."""
    return e.log_ratio(oi_usd, k.total(volume_usd, 24))


@feature(
    "price_oi_quadrant_24",
    inputs=("log_close", "log_oi"),
    lookback=24,
    unit="-2, -1, 1, 2",
    definition="over 24 bars: 2 up on rising OI, 1 up otherwise, -1 down otherwise, -2 down on rising OI",
    source="Murphy (1999), Technical Analysis of the Financial Markets, ch. 7",
    normalise="none",
)
def price_oi_quadrant(log_close: Array, log_oi: Array) -> Array:
    """New longs, covered shorts, closed longs, new shorts (0 where the price stood still)."""
    move = e.diff(log_close, 24)
    growth = e.diff(log_oi, 24)
    return np.where(np.isfinite(growth), np.sign(move) * np.where(growth > 0, 2.0, 1.0), np.nan)


@feature(
    "price_oi_corr_48",
    inputs=("log_return", "oi_change"),
    lookback=47,
    unit="correlation",
    definition="correlation of one-bar returns with one-bar log changes of open interest over 48 bars",
    source=_HONG_YOGO,
    normalise="none",
)
def price_oi_corr(log_return: Array, oi_change: Array) -> Array:
    """Which side is adding."""
    return k.correlation(log_return, oi_change, 48)


@feature(
    "crowded_carry_24",
    inputs=("funding_rate", "log_oi"),
    lookback=24,
    unit="fraction per 8 h",
    definition="running funding rate times the log change of open interest over 24 bars",
    source="Brunnermeier, Pedersen (2009), Market liquidity and funding liquidity, RFS 22",
)
def crowded_carry(funding_rate: Array, log_oi: Array) -> Array:
    """Paying more for a growing position."""
    return funding_rate * e.diff(log_oi, 24)
