"""Basis and premium: the perpetual against spot, index and mark, and which of them leads.

Where mark, index and premium come from another venue than the perpetual, what is compared is two venues' prices; the
spread between them moves far less than the basis does.
"""

from __future__ import annotations

import numpy as np

from mlbot_core.features import elementwise as e
from mlbot_core.features import kernels as k
from mlbot_core.features.registry import Array, feature, intermediate

_PERPETUAL = "He, Manela, Ross, von Wachter (2022), Fundamentals of perpetual futures, arXiv 2212.06888"
_CARRY = "Schmeling, Schrimpf, Todorov (2023), Crypto carry, BIS Working Paper 1087"
_LEAD = "Hasbrouck (1995), One security, many markets, JF 50"
_RULES = "Bybit, Introduction to funding rate: F = P + clamp(0.01 % - P, -0.05 %, 0.05 %)"

_INTEREST = 0.0001  # per 8 hours
_CLAMP = 0.0005


@intermediate(("close", "spot_close"))
def spot_basis(close: Array, spot_close: Array) -> Array:
    """Log of the perpetual's close over spot's."""
    return e.log_ratio(close, spot_close)


@intermediate(("spot_close",), lookback=1)
def spot_return(spot_close: Array) -> Array:
    """One-bar log return of spot."""
    return e.diff(e.log(spot_close), 1)


@feature(
    "basis_spot",
    inputs=("spot_basis",),
    unit="log ratio",
    definition="log of the perpetual's close over spot's",
    source=_PERPETUAL,
)
def basis_spot(spot_basis: Array) -> Array:
    """What leverage is worth now."""
    return spot_basis.copy()


@feature(
    "basis_mean_72",
    inputs=("spot_basis",),
    lookback=71,
    unit="log ratio",
    definition="mean of log perpetual over spot, 72 bars",
    source=_CARRY,
    normalise="none",
)
def basis_mean(spot_basis: Array) -> Array:
    """The lasting premium, kept as a level."""
    return k.mean(spot_basis, 72)


@feature(
    "basis_change_{n}",
    over=(4, 24),
    inputs=("spot_basis",),
    lookback=lambda n: n,
    unit="log ratio",
    definition="change over {n} bars of log perpetual over spot",
    source=_PERPETUAL,
)
def basis_change(spot_basis: Array, n: int) -> Array:
    """Which side is in a hurry."""
    return e.diff(spot_basis, n)


@feature(
    "basis_unrest_48",
    inputs=("spot_basis",),
    lookback=47,
    unit="log ratio",
    definition="standard deviation of log perpetual over spot, 48 bars",
    source=_PERPETUAL,
)
def basis_unrest(spot_basis: Array) -> Array:
    """How hard arbitrage is."""
    return k.std(spot_basis, 48)


@feature(
    "basis_price_corr_48",
    inputs=("spot_basis", "log_close"),
    lookback=48,
    unit="correlation",
    definition="correlation of one-bar changes of the basis with the perpetual's returns over 48 bars",
    source=_LEAD,
    normalise="none",
)
def basis_price_corr(spot_basis: Array, log_close: Array) -> Array:
    """Does the perpetual overshoot spot."""
    return k.correlation(e.diff(spot_basis, 1), e.diff(log_close, 1), 48)


@feature(
    "spot_lead_96",
    inputs=("spot_return", "log_return"),
    lookback=96,
    unit="difference of correlations",
    definition=(
        "correlation of the perpetual's return with spot's of the bar before, less that of spot's return with the "
        "perpetual's of the bar before, 96 bars"
    ),
    source=_LEAD,
    normalise="none",
)
def spot_lead(spot_return: Array, log_return: Array) -> Array:
    """Above zero spot leads."""
    ahead = k.correlation(log_return, e.lag(spot_return, 1), 96)
    return ahead - k.correlation(spot_return, e.lag(log_return, 1), 96)


@feature(
    "spot_volume_share_24",
    inputs=("spot_volume_usd", "volume_usd"),
    lookback=23,
    unit="log ratio",
    definition="log of spot turnover over the perpetual's, 24 bars",
    source="Alexander, Heck, Kaeck (2022), The role of Binance in bitcoin volatility transmission, AMF 29",
)
def spot_volume_share(spot_volume_usd: Array, volume_usd: Array) -> Array:
    """Cash or leverage."""
    return e.log_ratio(k.total(spot_volume_usd, 24), k.total(volume_usd, 24))


@feature(
    "mark_index_gap",
    inputs=("mark_close", "index_close"),
    unit="log ratio",
    definition="log of the mark price over the index price",
    source=_PERPETUAL,
)
def mark_index_gap(mark_close: Array, index_close: Array) -> Array:
    """The basis that margin is reckoned by."""
    return e.log_ratio(mark_close, index_close)


@feature(
    "last_mark_gap",
    inputs=("close", "mark_close"),
    unit="log ratio",
    definition="log of the last price over the mark price",
    source=_PERPETUAL,
)
def last_mark_gap(close: Array, mark_close: Array) -> Array:
    """A last price that ran ahead of its fair value."""
    return e.log_ratio(close, mark_close)


@feature(
    "premium_level",
    inputs=("premium_index",),
    unit="fraction",
    definition="premium of the perpetual over its index",
    source=_RULES,
)
def premium_level(premium_index: Array) -> Array:
    """The premium funding is made of."""
    return premium_index.copy()


@feature(
    "premium_mean_24",
    inputs=("premium_index",),
    lookback=23,
    unit="fraction",
    definition="mean premium of 24 bars",
    source=_RULES,
    normalise="none",
)
def premium_mean(premium_index: Array) -> Array:
    """The lasting premium, kept as a level."""
    return k.mean(premium_index, 24)


@feature(
    "premium_change_8",
    inputs=("premium_index",),
    lookback=8,
    unit="fraction",
    definition="premium less that of 8 bars before",
    source=_RULES,
)
def premium_change(premium_index: Array) -> Array:
    """Where the premium moves."""
    return e.diff(premium_index, 8)


@feature(
    "premium_funding_gap",
    inputs=("premium_index", "funding_settled"),
    lookback=7,
    unit="fraction per 8 h",
    definition=(
        "funding rate that the mean premium of 8 bars would give by the venue's formula less the last settled one"
    ),
    source=_RULES,
)
def premium_funding_gap(premium_index: Array, funding_settled: Array) -> Array:
    """Where funding is heading, before the running rate shows it."""
    premium = k.mean(premium_index, 8)
    return premium + np.clip(_INTEREST - premium, -_CLAMP, _CLAMP) - funding_settled
