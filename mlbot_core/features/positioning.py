"""Positioning: the share of accounts that are long, its moves, and whether it follows the price or fights it."""

from __future__ import annotations

from mlbot_core.features import elementwise as e
from mlbot_core.features import kernels as k
from mlbot_core.features.registry import Array, feature, intermediate

_PRESSURE = "De Roon, Nijman, Veld (2000), Hedging pressure effects in futures markets, JF 55"
_RETAIL = "Barber, Odean (2008), All that glitters, RFS 21"


@intermediate(("long_share",))
def log_odds(long_share: Array) -> Array:
    """Log of long accounts over short accounts."""
    return e.log_ratio(long_share, 1.0 - long_share)


@intermediate(("log_odds",), lookback=1)
def odds_change(log_odds: Array) -> Array:
    """One-bar change of the log odds."""
    return e.diff(log_odds, 1)


@feature(
    "crowd_level",
    inputs=("log_odds",),
    unit="log ratio",
    definition="log of long over short accounts",
    source=_PRESSURE,
)
def crowd_level(log_odds: Array) -> Array:
    """The crowd against its own past, by its z-score."""
    return log_odds.copy()


@feature(
    "crowd_tilt_168",
    inputs=("log_odds",),
    lookback=167,
    unit="log ratio",
    definition="mean log of long over short accounts, 168 bars",
    source=_PRESSURE,
    normalise="none",
)
def crowd_tilt(log_odds: Array) -> Array:
    """The crowd's lasting side, kept as a level."""
    return k.mean(log_odds, 168)


@feature(
    "crowd_change_{n}",
    over=(4, 24),
    inputs=("log_odds",),
    lookback=lambda n: n,
    unit="log ratio",
    definition="change over {n} bars of the log of long over short accounts",
    source=_RETAIL,
)
def crowd_change(log_odds: Array, n: int) -> Array:
    """Where the crowd moves."""
    return e.diff(log_odds, n)


@feature(
    "crowd_rank_168",
    inputs=("log_odds",),
    lookback=167,
    unit="0 to 1",
    definition="rank of the share of long accounts among 168 bars",
    source=_PRESSURE,
    normalise="none",
)
def crowd_rank(log_odds: Array) -> Array:
    """How extreme the crowd is."""
    return k.rank(log_odds, 168)


@feature(
    "crowd_price_corr_48",
    inputs=("odds_change", "log_return"),
    lookback=47,
    unit="correlation",
    definition="correlation of one-bar changes of the crowd with one-bar returns over 48 bars",
    source=_RETAIL,
    normalise="none",
)
def crowd_price_corr(odds_change: Array, log_return: Array) -> Array:
    """Does the crowd chase (above zero) or fade (below) the price."""
    return k.correlation(odds_change, log_return, 48)


@feature(
    "crowd_carry",
    inputs=("log_odds", "funding_rate"),
    unit="fraction per 8 h",
    definition="running funding rate times the log of long over short accounts",
    source="Schmeling, Schrimpf, Todorov (2023), Crypto carry, BIS Working Paper 1087",
)
def crowd_carry(log_odds: Array, funding_rate: Array) -> Array:
    """Is the crowd the side that pays."""
    return log_odds * funding_rate
