"""Crowding: the top traders' accounts and positions, alone and against the crowd, and how extreme both are."""

from __future__ import annotations

from mlbot_core.features import elementwise as e
from mlbot_core.features import kernels as k
from mlbot_core.features.registry import Array, feature, intermediate

_PRESSURE = "De Roon, Nijman, Veld (2000), Hedging pressure effects in futures markets, JF 55"
_TRADERS = "Wang (2003), The behavior and performance of major types of futures traders, Journal of Futures Markets 23"
_SENTIMENT = "Sanders, Irwin, Merrin (2009), Smart money: the forecasting ability of CFTC large traders, JARE 34"


@intermediate(("top_account_share",))
def top_account_odds(top_account_share: Array) -> Array:
    """Log of the top traders' long over short accounts."""
    return e.log_ratio(top_account_share, 1.0 - top_account_share)


@intermediate(("top_position_share",))
def top_position_odds(top_position_share: Array) -> Array:
    """Log of the top traders' long over short positions."""
    return e.log_ratio(top_position_share, 1.0 - top_position_share)


@intermediate(("top_position_odds", "log_odds"))
def top_crowd_gap(top_position_odds: Array, log_odds: Array) -> Array:
    """Log odds of the top traders' positions less those of all accounts."""
    return top_position_odds - log_odds


@feature(
    "top_account_level",
    inputs=("top_account_odds",),
    unit="log ratio",
    definition="log of the top traders' long over short accounts",
    source=_TRADERS,
)
def top_account_level(top_account_odds: Array) -> Array:
    """The large accounts against their own past, by the z-score."""
    return top_account_odds.copy()


@feature(
    "top_account_change_{n}",
    over=(4, 24),
    inputs=("top_account_odds",),
    lookback=lambda n: n,
    unit="log ratio",
    definition="change over {n} bars of the log of the top traders' long over short accounts",
    source=_TRADERS,
)
def top_account_change(top_account_odds: Array, n: int) -> Array:
    """Where the large accounts move."""
    return e.diff(top_account_odds, n)


@feature(
    "top_position_level",
    inputs=("top_position_odds",),
    unit="log ratio",
    definition="log of the top traders' long over short positions",
    source=_TRADERS,
)
def top_position_level(top_position_odds: Array) -> Array:
    """The large positions against their own past, by the z-score."""
    return top_position_odds.copy()


@feature(
    "top_position_change_{n}",
    over=(4, 24),
    inputs=("top_position_odds",),
    lookback=lambda n: n,
    unit="log ratio",
    definition="change over {n} bars of the log of the top traders' long over short positions",
    source=_TRADERS,
)
def top_position_change(top_position_odds: Array, n: int) -> Array:
    """Where the large money moves."""
    return e.diff(top_position_odds, n)


@feature(
    "top_position_rank_168",
    inputs=("top_position_odds",),
    lookback=167,
    unit="0 to 1",
    definition="rank of the share of the top traders' long positions among 168 bars",
    source=_PRESSURE,
    normalise="none",
)
def top_position_rank(top_position_odds: Array) -> Array:
    """How extreme the large positions are."""
    return k.rank(top_position_odds, 168)


@feature(
    "top_size_tilt",
    inputs=("top_position_odds", "top_account_odds"),
    unit="log ratio",
    definition="log odds of the top traders' positions less those of their accounts",
    source=_SENTIMENT,
)
def top_size_tilt(top_position_odds: Array, top_account_odds: Array) -> Array:
    """Are the larger of the large on the long side."""
    return top_position_odds - top_account_odds


@feature(
    "top_crowd_spread",
    inputs=("top_crowd_gap",),
    unit="log ratio",
    definition="log odds of the top traders' positions less those of all accounts",
    source=_SENTIMENT,
)
def top_crowd_spread(top_crowd_gap: Array) -> Array:
    """Large money against the crowd."""
    return top_crowd_gap.copy()


@feature(
    "top_crowd_spread_mean_168",
    inputs=("top_crowd_gap",),
    lookback=167,
    unit="log ratio",
    definition="mean over 168 bars of the top positions' log odds less the crowd's",
    source=_SENTIMENT,
    normalise="none",
)
def top_crowd_spread_mean(top_crowd_gap: Array) -> Array:
    """Their lasting disagreement, kept as a level."""
    return k.mean(top_crowd_gap, 168)


@feature(
    "top_crowd_spread_change_24",
    inputs=("top_crowd_gap",),
    lookback=24,
    unit="log ratio",
    definition="change over 24 bars of the top positions' log odds less the crowd's",
    source=_SENTIMENT,
)
def top_crowd_spread_change(top_crowd_gap: Array) -> Array:
    """Are they parting."""
    return e.diff(top_crowd_gap, 24)


@feature(
    "top_crowd_spread_rank_168",
    inputs=("top_crowd_gap",),
    lookback=167,
    unit="0 to 1",
    definition="rank among 168 bars of the top positions' log odds less the crowd's",
    source=_PRESSURE,
    normalise="none",
)
def top_crowd_spread_rank(top_crowd_gap: Array) -> Array:
    """How extreme the disagreement is."""
    return k.rank(top_crowd_gap, 168)


@feature(
    "top_price_corr_48",
    inputs=("top_position_odds", "log_close"),
    lookback=48,
    unit="correlation",
    definition="correlation of one-bar changes of the top positions' log odds with one-bar returns over 48 bars",
    source=_TRADERS,
    normalise="none",
)
def top_price_corr(top_position_odds: Array, log_close: Array) -> Array:
    """Does large money chase (above zero) or fade (below) the price."""
    return k.correlation(e.diff(top_position_odds, 1), e.diff(log_close, 1), 48)


@feature(
    "crowd_extreme_48",
    inputs=("crowd_rank_168",),
    lookback=47,
    unit="-1 to 1",
    definition="mean over 48 bars of the cube of the crowd's rank, put on -1 to 1: near 0 unless the rank is extreme",
    source=_PRESSURE,
    normalise="none",
)
def crowd_extreme(crowd_rank: Array) -> Array:
    """How long the crowd has been at an extreme."""
    away = 2.0 * crowd_rank - 1.0
    return k.mean(away * away * away, 48)
