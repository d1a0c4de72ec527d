"""Order flow beside the aggregate: spot and the pair, the shape of the delta, clusters and aftermath of liquidations.

Flows are USD per bar of the panel (a longer bar's total is spread evenly over its rows), and every feature compares a
flow with itself, its past or another flow.
"""

from __future__ import annotations

import numpy as np

from mlbot_core.features import elementwise as e
from mlbot_core.features import kernels as k
from mlbot_core.features import kernels_events as v
from mlbot_core.features.registry import Array, feature, intermediate

_IMBALANCE = "Chordia, Subrahmanyam (2004), Order imbalance and individual stock returns, JFE 72"
_TOXIC = "Easley, Lopez de Prado, O'Hara (2012), Flow toxicity and liquidity, RFS 25"
_SPIRAL = "Brunnermeier, Pedersen (2009), Market liquidity and funding liquidity, RFS 22"
_CLUSTERS = (
    "Ait-Sahalia, Cacho-Diaz, Laeven (2015), Modeling financial contagion using mutually exciting jumps, JFE 117"
)
_SPOT = "Alexander, Heck, Kaeck (2022), The role of Binance in bitcoin volatility transmission, AMF 29"

_BURST = 3.0  # a bar with this many times the usual liquidations belongs to a cluster


@intermediate(("taker_spot_buy_usd", "taker_spot_sell_usd"))
def spot_delta(taker_spot_buy_usd: Array, taker_spot_sell_usd: Array) -> Array:
    """Spot taker buys less sells, USD."""
    return taker_spot_buy_usd - taker_spot_sell_usd


@intermediate(("taker_spot_buy_usd", "taker_spot_sell_usd"))
def spot_total(taker_spot_buy_usd: Array, taker_spot_sell_usd: Array) -> Array:
    """Spot taker buys plus sells, USD."""
    return taker_spot_buy_usd + taker_spot_sell_usd


@intermediate(("taker_pair_buy_usd", "taker_pair_sell_usd"))
def pair_delta(taker_pair_buy_usd: Array, taker_pair_sell_usd: Array) -> Array:
    """The pair's taker buys less sells, USD."""
    return taker_pair_buy_usd - taker_pair_sell_usd


@intermediate(("taker_pair_buy_usd", "taker_pair_sell_usd"))
def pair_total(taker_pair_buy_usd: Array, taker_pair_sell_usd: Array) -> Array:
    """The pair's taker buys plus sells, USD."""
    return taker_pair_buy_usd + taker_pair_sell_usd


@feature(
    "spot_imbalance_{n}",
    over=(1, 12, 48),
    inputs=("spot_delta", "spot_total"),
    lookback=lambda n: n - 1,
    unit="-1 to 1",
    definition="spot (taker buys - sells) / (buys + sells) over {n} bars",
    source=_IMBALANCE,
)
def spot_imbalance(spot_delta: Array, spot_total: Array, n: int) -> Array:
    """Order imbalance of those who pay in full."""
    return e.ratio(k.total(spot_delta, n), k.total(spot_total, n))


@feature(
    "spot_perp_gap_24",
    inputs=("spot_delta", "spot_total", "taker_delta", "taker_total"),
    lookback=23,
    unit="-2 to 2",
    definition="spot taker imbalance less that of the perpetuals, 24 bars",
    source=_SPOT,
)
def spot_perp_gap(spot_delta: Array, spot_total: Array, taker_delta: Array, taker_total: Array) -> Array:
    """Cash buying against leveraged buying."""
    spot = e.ratio(k.total(spot_delta, 24), k.total(spot_total, 24))
    return spot - e.ratio(k.total(taker_delta, 24), k.total(taker_total, 24))


@feature(
    "spot_cvd_place_96",
    inputs=("spot_delta",),
    lookback=95,
    unit="0 to 1",
    definition="place of spot's cumulative delta, rebuilt over 96 bars, between its least and greatest there",
    source=_IMBALANCE,
    normalise="none",
)
def spot_cvd_place(spot_delta: Array) -> Array:
    """Where cash flow stands in its range."""
    return v.cumulative_place(spot_delta, 96)


@feature(
    "pair_imbalance_{n}",
    over=(1, 12),
    inputs=("pair_delta", "pair_total"),
    lookback=lambda n: n - 1,
    unit="-1 to 1",
    definition="(taker buys - sells) / (buys + sells) of the pair on Binance over {n} bars",
    source=_IMBALANCE,
)
def pair_imbalance(pair_delta: Array, pair_total: Array, n: int) -> Array:
    """Order imbalance where the price is made."""
    return e.ratio(k.total(pair_delta, n), k.total(pair_total, n))


@feature(
    "pair_flow_share_24",
    inputs=("pair_total", "taker_total"),
    lookback=23,
    unit="log ratio",
    definition="log of the pair's taker volume on Binance over that of all exchanges, 24 bars",
    source=_SPOT,
)
def pair_flow_share(pair_total: Array, taker_total: Array) -> Array:
    """Is the trading here or elsewhere."""
    return e.log_ratio(k.total(pair_total, 24), k.total(taker_total, 24))


@feature(
    "cvd_place_{n}",
    over=(48, 168),
    inputs=("taker_delta",),
    lookback=lambda n: n - 1,
    unit="0 to 1",
    definition="place of the cumulative delta, rebuilt over {n} bars, between its least and greatest there",
    source=_IMBALANCE,
    normalise="none",
)
def cvd_place(taker_delta: Array, n: int) -> Array:
    """Where the flow stands in its range."""
    return v.cumulative_place(taker_delta, n)


@feature(
    "cvd_price_divergence_48",
    inputs=("taker_delta", "log_close"),
    lookback=48,
    unit="-1 to 1",
    definition="place of the rebuilt cumulative delta in its 48-bar range less that of log close in its",
    source="Chordia, Roll, Subrahmanyam (2002), Order imbalance, liquidity, and market returns, JFE 65",
    normalise="none",
)
def cvd_price_divergence(taker_delta: Array, log_close: Array) -> Array:
    """New highs of the price without new highs of the flow."""
    floor = k.lowest(log_close, 49)
    return v.cumulative_place(taker_delta, 48) - e.ratio(log_close - floor, k.highest(log_close, 49) - floor)


@feature(
    "flow_toxicity_48",
    inputs=("taker_delta", "taker_total"),
    lookback=47,
    unit="0 to 1",
    definition="sum of |taker buys - sells| of each bar over taker volume, 48 bars",
    source=_TOXIC,
)
def flow_toxicity(taker_delta: Array, taker_total: Array) -> Array:
    """VPIN in bars of time: how one-sided single bars are."""
    return e.ratio(k.total(np.abs(taker_delta), 48), k.total(taker_total, 48))


@feature(
    "flow_run_24",
    inputs=("taker_delta",),
    lookback=23,
    unit="-1 to 1",
    definition="bars in a row in which takers bought (above 0) or sold (below) on balance, at most 24, over 24",
    source=_IMBALANCE,
    normalise="none",
)
def flow_run(taker_delta: Array) -> Array:
    """How long one side has been pressing."""
    return v.run_share(taker_delta, 24)


@feature(
    "flow_lead_corr_48",
    inputs=("taker_delta", "log_close"),
    lookback=48,
    unit="correlation",
    definition="correlation of the return with the taker delta of the bar before over 48 bars",
    source=_IMBALANCE,
    normalise="none",
)
def flow_lead_corr(taker_delta: Array, log_close: Array) -> Array:
    """Has flow been worth following lately."""
    return k.correlation(e.diff(log_close, 1), e.lag(taker_delta, 1), 48)


@feature(
    "liq_to_volume_24",
    inputs=("liq_total", "taker_total"),
    lookback=23,
    unit="fraction",
    definition="liquidations over taker volume, 24 bars",
    source=_SPIRAL,
)
def liq_to_volume(liq_total: Array, taker_total: Array) -> Array:
    """Share of the trading that was forced."""
    return e.ratio(k.total(liq_total, 24), k.total(taker_total, 24))


@feature(
    "liq_burst_6",
    inputs=("liq_total",),
    lookback=167,
    unit="log ratio",
    definition="log of (mean liquidations of 6 bars + 1 USD) over (those of 168 bars + 1 USD)",
    source=_CLUSTERS,
)
def liq_burst(liq_total: Array) -> Array:
    """A cluster under way."""
    return e.log_ratio(k.mean(liq_total, 6) + 1.0, k.mean(liq_total, 168) + 1.0)


@feature(
    "liq_cluster_48",
    inputs=("liq_total",),
    lookback=47 + 167,
    unit="0 to 1",
    definition="share of 48 bars with more than 3 times the mean liquidations of their own 168 bars",
    source=_CLUSTERS,
    normalise="none",
)
def liq_cluster(liq_total: Array) -> Array:
    """How many bursts there were."""
    usual = k.mean(liq_total, 168)
    burst = (liq_total > _BURST * usual).astype(np.float64)
    return k.mean(np.where(np.isfinite(usual), burst, np.nan), 48)


@feature(
    "liq_concentration_48",
    inputs=("liq_total",),
    lookback=47,
    unit="0 to 1",
    definition="Herfindahl index of liquidations over 48 bars: 1 when all came in one bar",
    source=_CLUSTERS,
    normalise="none",
)
def liq_concentration(liq_total: Array) -> Array:
    """One cascade or many small ones."""
    return v.concentration(liq_total, 48)


@feature(
    "liq_rebound_96",
    inputs=("log_close", "liq_total"),
    lookback=95,
    unit="log return",
    definition="log return since the bar of the largest liquidations of 96 bars",
    source=_SPIRAL,
)
def liq_rebound(log_close: Array, liq_total: Array) -> Array:
    """What the price has done since the last cascade."""
    return v.change_since_highest(log_close, liq_total, 96)


@feature(
    "since_long_flush_168",
    inputs=("liq_long_usd",),
    lookback=167,
    unit="0 to 1",
    definition="bars since the largest liquidations of longs of 168 bars, over 167",
    source=_SPIRAL,
    normalise="none",
)
def since_long_flush(liq_long_usd: Array) -> Array:
    """How fresh the last wash-out of longs is."""
    return k.since_highest(liq_long_usd, 168) / 167.0


@feature(
    "since_short_squeeze_168",
    inputs=("liq_short_usd",),
    lookback=167,
    unit="0 to 1",
    definition="bars since the largest liquidations of shorts of 168 bars, over 167",
    source=_SPIRAL,
    normalise="none",
)
def since_short_squeeze(liq_short_usd: Array) -> Array:
    """How fresh the last squeeze of shorts is."""
    return k.since_highest(liq_short_usd, 168) / 167.0


@feature(
    "liq_pair_imbalance_{n}",
    over=(1, 24),
    inputs=("liq_pair_long_usd", "liq_pair_short_usd"),
    lookback=lambda n: n - 1,
    unit="-1 to 1",
    definition="(liquidated shorts - longs) / (shorts + longs) of the pair on Binance over {n} bars",
    source=_SPIRAL,
    normalise="none",
)
def liq_pair_imbalance(liq_pair_long_usd: Array, liq_pair_short_usd: Array, n: int) -> Array:
    """Which side is forced out of the traded contract."""
    longs = k.total(liq_pair_long_usd, n)
    shorts = k.total(liq_pair_short_usd, n)
    return e.ratio(shorts - longs, shorts + longs)


@feature(
    "liq_pair_share_24",
    inputs=("liq_pair_long_usd", "liq_pair_short_usd", "liq_total"),
    lookback=23,
    unit="log ratio",
    definition="log of the pair's liquidations on Binance over those of all exchanges, 24 bars, 1 USD added to both",
    source=_CLUSTERS,
)
def liq_pair_share(liq_pair_long_usd: Array, liq_pair_short_usd: Array, liq_total: Array) -> Array:
    """Where the forced selling happens."""
    return e.log_ratio(k.total(liq_pair_long_usd + liq_pair_short_usd, 24) + 1.0, k.total(liq_total, 24) + 1.0)
