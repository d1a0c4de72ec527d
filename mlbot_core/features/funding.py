"""Funding across venues and horizons: spreads between weightings, unrest, surprise, what the price makes of it.

Funding rates are fractions per 8 hours, positive when longs pay shorts.
"""

from __future__ import annotations

import numpy as np

from mlbot_core.features import elementwise as e
from mlbot_core.features import kernels as k
from mlbot_core.features.derivatives import SETTLEMENTS_PER_YEAR
from mlbot_core.features.registry import Array, feature

_CARRY = "Schmeling, Schrimpf, Todorov (2023), Crypto carry, BIS Working Paper 1087"
_PERPETUAL = "He, Manela, Ross, von Wachter (2022), Fundamentals of perpetual futures, arXiv 2212.06888"
_CYCLE = "Christin, Routledge, Soska, Zetlin-Jones (2022), The crypto carry trade"
_RISK = "Koijen, Moskowitz, Pedersen, Vrugt (2018), Carry, JFE 127"


@feature(
    "funding_z_48",
    inputs=("funding_rate",),
    lookback=47,
    unit="standard deviations",
    definition="running funding rate's distance from its mean of 48 bars in standard deviations of those",
    source=_CARRY,
    normalise="none",
)
def funding_z(funding_rate: Array) -> Array:
    """Funding against the last days."""
    return k.zscore(funding_rate, 48)


@feature(
    "funding_carry_168",
    inputs=("funding_rate",),
    lookback=167,
    unit="fraction per year",
    definition="mean running funding rate of 168 bars times 1,095 settlements a year",
    source=_CARRY,
    normalise="none",
)
def funding_carry_slow(funding_rate: Array) -> Array:
    """Annualised carry over a longer spell, kept as a level."""
    return k.mean(funding_rate, 168) * SETTLEMENTS_PER_YEAR


@feature(
    "funding_unrest_48",
    inputs=("funding_rate",),
    lookback=47,
    unit="fraction per 8 h",
    definition="standard deviation of the running funding rate over 48 bars",
    source=_PERPETUAL,
)
def funding_unrest(funding_rate: Array) -> Array:
    """How unsettled leverage is."""
    return k.std(funding_rate, 48)


@feature(
    "funding_range",
    inputs=("funding_high", "funding_low"),
    unit="fraction per 8 h",
    definition="highest less lowest running funding rate inside the bar",
    source=_PERPETUAL,
)
def funding_range(funding_high: Array, funding_low: Array) -> Array:
    """Movement of the rate inside the bar."""
    return funding_high - funding_low


@feature(
    "funding_side_168",
    inputs=("funding_rate",),
    lookback=167,
    unit="-1 to 1",
    definition="share of 168 bars in which longs paid less the share in which shorts paid",
    source=_CARRY,
    normalise="none",
)
def funding_side(funding_rate: Array) -> Array:
    """Who has been paying."""
    return k.mean(np.sign(funding_rate), 168)


@feature(
    "funding_price_corr_96",
    inputs=("funding_rate", "log_close"),
    lookback=96 - 1 + 8,
    unit="correlation",
    definition="correlation of 8-bar changes of the running funding rate with 8-bar returns over 96 bars",
    source=_PERPETUAL,
    normalise="none",
)
def funding_price_corr(funding_rate: Array, log_close: Array) -> Array:
    """Is it leverage that moves with the price."""
    return k.correlation(e.diff(funding_rate, 8), e.diff(log_close, 8), 96)


@feature(
    "funding_risk_48",
    inputs=("funding_rate", "log_return"),
    lookback=47,
    unit="ratio",
    definition="mean running funding rate over the standard deviation of one-bar returns, 48 bars",
    source=_RISK,
)
def funding_risk(funding_rate: Array, log_return: Array) -> Array:
    """Carry for a unit of risk."""
    return e.ratio(k.mean(funding_rate, 48), k.std(log_return, 48))


@feature(
    "funding_surprise",
    inputs=("funding_rate", "funding_settled"),
    unit="fraction per 8 h",
    definition="running funding rate less the last settled one that is known",
    source=_CYCLE,
)
def funding_surprise(funding_rate: Array, funding_settled: Array) -> Array:
    """What the next payment will add."""
    return funding_rate - funding_settled


@feature(
    "funding_pair_spread",
    inputs=("funding_pair", "funding_rate"),
    unit="fraction per 8 h",
    definition="running funding rate of the pair on Binance less the OI-weighted one of all exchanges",
    source=_CYCLE,
)
def funding_pair_spread(funding_pair: Array, funding_rate: Array) -> Array:
    """Is leverage dearer here than elsewhere."""
    return funding_pair - funding_rate


@feature(
    "funding_pair_change_8",
    inputs=("funding_pair",),
    lookback=8,
    unit="fraction per 8 h",
    definition="running funding rate of the pair less that of 8 bars before",
    source=_CARRY,
)
def funding_pair_change(funding_pair: Array) -> Array:
    """Leverage on the traded venue."""
    return e.diff(funding_pair, 8)


@feature(
    "funding_volume_spread",
    inputs=("funding_volume", "funding_rate"),
    unit="fraction per 8 h",
    definition="volume-weighted less OI-weighted running funding rate",
    source=_CYCLE,
)
def funding_volume_spread(funding_volume: Array, funding_rate: Array) -> Array:
    """What those who trade now pay beyond those who hold."""
    return funding_volume - funding_rate
