"""Flow: who takes (taker volume, cumulative delta rebuilt from buys and sells) and who is forced out (liquidations).

Flows are USD per bar of the panel, which spreads the total of a longer bar evenly over the rows it is joined to: a
sum over rows never counts such a bar's total more than once, and features keep their meaning.
"""

from __future__ import annotations

import numpy as np

from mlbot_core.features import elementwise as e
from mlbot_core.features import kernels as k
from mlbot_core.features.registry import Array, feature, intermediate

_IMBALANCE = "Chordia, Subrahmanyam (2004), Order imbalance and individual stock returns, JFE 72"
_SPIRAL = "Brunnermeier, Pedersen (2009), Market liquidity and funding liquidity, RFS 22"


@intermediate(("taker_buy_usd", "taker_sell_usd"))
def taker_delta(taker_buy_usd: Array, taker_sell_usd: Array) -> Array:
    """Taker buys less sells, USD."""
    return taker_buy_usd - taker_sell_usd


@intermediate(("taker_buy_usd", "taker_sell_usd"))
def taker_total(taker_buy_usd: Array, taker_sell_usd: Array) -> Array:
    """Taker buys plus sells, USD."""
    return taker_buy_usd + taker_sell_usd


@intermediate(("liq_long_usd", "liq_short_usd"))
def liq_total(liq_long_usd: Array, liq_short_usd: Array) -> Array:
    """Liquidated longs plus shorts, USD."""
    return liq_long_usd + liq_short_usd


@feature(
    "taker_imbalance_{n}",
    over=(1, 12, 48),
    inputs=("taker_delta", "taker_total"),
    lookback=lambda n: n - 1,
    unit="-1 to 1",
    definition="(taker buys - sells) / (buys + sells) over {n} bars",
    source=_IMBALANCE,
)
def taker_imbalance(taker_delta: Array, taker_total: Array, n: int) -> Array:
    """Order imbalance."""
    return e.ratio(k.total(taker_delta, n), k.total(taker_total, n))


@feature(
    "taker_activity",
    inputs=("taker_total",),
    lookback=95,
    unit="log ratio",
    definition="log of taker volume over its mean of 96 bars",
    source=_IMBALANCE,
)
def taker_activity(taker_total: Array) -> Array:
    """Taker volume against its past."""
    return e.log_ratio(taker_total, k.mean(taker_total, 96))


@feature(
    "cvd_change_24",
    inputs=("taker_delta", "taker_total"),
    lookback=167,
    unit="ratio",
    definition="24-bar change of the cumulative delta, rebuilt from buys and sells, over mean taker volume of 168 bars",
    source="Easley, Lopez de Prado, O'Hara (2012), Flow toxicity and liquidity, RFS 25",
)
def cvd_change(taker_delta: Array, taker_total: Array) -> Array:
    """Cumulative delta; a served one starts anew on every page and cannot be used."""
    return e.ratio(k.total(taker_delta, 24), k.mean(taker_total, 168))


@feature(
    "cvd_price_gap_24",
    inputs=("taker_delta", "taker_total", "log_return"),
    lookback=167,
    unit="standard deviations",
    definition="24-bar sum of the taker imbalance less that of the return, each over its own 168-bar deviation",
    source="Chordia, Roll, Subrahmanyam (2002), Order imbalance, liquidity, and market returns, JFE 65",
)
def cvd_price_gap(taker_delta: Array, taker_total: Array, log_return: Array) -> Array:
    """Buying that does not lift the price, selling that does not press it."""
    share = e.ratio(taker_delta, taker_total)
    flow = e.ratio(k.total(share, 24), k.std(share, 168))
    move = e.ratio(k.total(log_return, 24), k.std(log_return, 168))
    return (flow - move) / np.sqrt(24.0)


@feature(
    "flow_return_corr_48",
    inputs=("taker_delta", "log_return"),
    lookback=47,
    unit="correlation",
    definition="correlation of taker delta with the return of the same bar over 48 bars",
    source=_IMBALANCE,
    normalise="none",
)
def flow_return_corr(taker_delta: Array, log_return: Array) -> Array:
    """Do takers move the price."""
    return k.correlation(taker_delta, log_return, 48)


@feature(
    "flow_persistence_48",
    inputs=("taker_delta",),
    lookback=48,
    unit="correlation",
    definition="correlation of taker delta with the bar before over 48 bars",
    source=_IMBALANCE,
    normalise="none",
)
def flow_persistence(taker_delta: Array) -> Array:
    """Is somebody working a large order."""
    return k.correlation(taker_delta, e.lag(taker_delta, 1), 48)


@feature(
    "kyle_lambda_48",
    inputs=("log_return", "taker_delta", "taker_total"),
    lookback=47,
    unit="log return per unit imbalance",
    definition="slope of the return on the taker imbalance of the same bar over 48 bars",
    source="Kyle (1985), Continuous auctions and insider trading, Econometrica 53",
)
def kyle_lambda(log_return: Array, taker_delta: Array, taker_total: Array) -> Array:
    """Price impact."""
    return k.beta(log_return, e.ratio(taker_delta, taker_total), 48)


@feature(
    "liq_imbalance_{n}",
    over=(1, 24),
    inputs=("liq_long_usd", "liq_short_usd"),
    lookback=lambda n: n - 1,
    unit="-1 to 1",
    definition="(liquidated shorts - longs) / (shorts + longs) over {n} bars; nothing liquidated is missing",
    source=_SPIRAL,
    normalise="none",
)
def liq_imbalance(liq_long_usd: Array, liq_short_usd: Array, n: int) -> Array:
    """Which side is forced out."""
    longs = k.total(liq_long_usd, n)
    shorts = k.total(liq_short_usd, n)
    return e.ratio(shorts - longs, shorts + longs)


@feature(
    "liq_intensity",
    inputs=("liq_total",),
    lookback=167,
    unit="log ratio",
    definition="log of (liquidations + 1 USD) over their mean of 168 bars + 1 USD",
    source=_SPIRAL,
)
def liq_intensity(liq_total: Array) -> Array:
    """Liquidations against their past."""
    return e.log_ratio(liq_total + 1.0, k.mean(liq_total, 168) + 1.0)


@feature(
    "liq_to_oi_24",
    inputs=("liq_total", "oi_usd"),
    lookback=23,
    unit="fraction",
    definition="liquidations of 24 bars over open interest",
    source=_SPIRAL,
)
def liq_to_oi(liq_total: Array, oi_usd: Array) -> Array:
    """Share of the positions that was forced out."""
    return e.ratio(k.total(liq_total, 24), oi_usd)


@feature(
    "since_cascade_168",
    inputs=("liq_total",),
    lookback=167,
    unit="0 to 1",
    definition="bars since the largest liquidations of 168 bars, over 167",
    source=_SPIRAL,
    normalise="none",
)
def since_cascade(liq_total: Array) -> Array:
    """How fresh the last cascade is."""
    return k.since_highest(liq_total, 168) / 167.0
