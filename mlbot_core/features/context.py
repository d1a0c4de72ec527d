"""Context: what surrounds the perpetual: US spot demand, margin and borrowing, large traders, mood, funds, options.

Daily series hold their newest known value until the next is known; windows are in bars of the market all the same.
"""

from __future__ import annotations

import numpy as np

from mlbot_core.features import elementwise as e
from mlbot_core.features import kernels as k
from mlbot_core.features import kernels_events as v
from mlbot_core.features.derivatives import SETTLEMENTS_PER_YEAR
from mlbot_core.features.registry import Array, feature, intermediate
from mlbot_core.timeframe import HOUR_MS

_SEGMENTED = "Makarov, Schoar (2020), Trading and arbitrage in cryptocurrency markets, JFE 135"
_LENDING = "Hong, Sraer (2016), Speculative betas, JF 71 (betting and the price of borrowing)"
_MARGIN = "Coinglass, Bitfinex margin longs and shorts"
_WHALES = "Coinglass, Whale index"
_MOOD = "Baker, Wurgler (2006), Investor sentiment and the cross-section of stock returns, JF 61"
_FLOWS = "Ben-David, Franzoni, Moussawi (2018), Do ETFs increase volatility, JF 73"
_OPTIONS = "Pan, Poteshman (2006), The information in option volume for future stock prices, RFS 19"

_DAYS_PER_YEAR = 365.0


@intermediate(("margin_long_coin", "margin_short_coin"))
def margin_odds(margin_long_coin: Array, margin_short_coin: Array) -> Array:
    """Log of margin longs over margin shorts on Bitfinex."""
    return e.log_ratio(margin_long_coin, margin_short_coin)


@intermediate(("ts", "etf_age_h"))
def etf_date(ts: Array, etf_age_h: Array) -> Array:
    """Close of the trade date in use, in hours and up to a constant: the same on all bars that hold one observation."""
    return ts / HOUR_MS - etf_age_h


@feature(
    "coinbase_premium_level",
    inputs=("coinbase_premium",),
    unit="fraction",
    definition="price on Coinbase over that on Binance, less 1, sampled at the bar's open",
    source=_SEGMENTED,
)
def coinbase_premium_level(coinbase_premium: Array) -> Array:
    """US demand."""
    return coinbase_premium.copy()


@feature(
    "coinbase_premium_mean_24",
    inputs=("coinbase_premium",),
    lookback=23,
    unit="fraction",
    definition="mean Coinbase premium of 24 bars",
    source=_SEGMENTED,
    normalise="none",
)
def coinbase_premium_mean(coinbase_premium: Array) -> Array:
    """Lasting US demand, kept as a level."""
    return k.mean(coinbase_premium, 24)


@feature(
    "coinbase_premium_change_8",
    inputs=("coinbase_premium",),
    lookback=8,
    unit="fraction",
    definition="Coinbase premium less that of 8 bars before",
    source=_SEGMENTED,
)
def coinbase_premium_change(coinbase_premium: Array) -> Array:
    """US demand coming or going."""
    return e.diff(coinbase_premium, 8)


@feature(
    "coinbase_price_corr_96",
    inputs=("coinbase_premium", "log_return"),
    lookback=95,
    unit="correlation",
    definition="correlation of the bar's return with the Coinbase premium at its open over 96 bars",
    source=_SEGMENTED,
    normalise="none",
)
def coinbase_price_corr(coinbase_premium: Array, log_return: Array) -> Array:
    """Has US demand been worth following lately."""
    return k.correlation(log_return, coinbase_premium, 96)


@feature(
    "margin_level",
    inputs=("margin_odds",),
    unit="log ratio",
    definition="log of margin longs over margin shorts on Bitfinex, coins",
    source=_MARGIN,
)
def margin_level(margin_odds: Array) -> Array:
    """Where the oldest margin market stands."""
    return margin_odds.copy()


@feature(
    "margin_long_change_{n}",
    over=(24, 72),
    inputs=("margin_long_coin",),
    lookback=lambda n: n,
    unit="log change",
    definition="log change over {n} bars of margin longs on Bitfinex",
    source=_MARGIN,
)
def margin_long_change(margin_long_coin: Array, n: int) -> Array:
    """Longs built slowly by few."""
    return e.diff(e.log(margin_long_coin), n)


@feature(
    "margin_short_change_{n}",
    over=(24, 72),
    inputs=("margin_short_coin",),
    lookback=lambda n: n,
    unit="log change",
    definition="log change over {n} bars of margin shorts on Bitfinex",
    source=_MARGIN,
)
def margin_short_change(margin_short_coin: Array, n: int) -> Array:
    """Shorts, often hedges."""
    return e.diff(e.log(margin_short_coin), n)


@feature(
    "borrow_level",
    inputs=("borrow_rate",),
    unit="fraction per day",
    definition="interest for borrowing the coin on Binance",
    source=_LENDING,
)
def borrow_level(borrow_rate: Array) -> Array:
    """What selling short costs, against its own past."""
    return borrow_rate.copy()


@feature(
    "borrow_funding_gap",
    inputs=("funding_rate", "borrow_rate"),
    unit="fraction per year",
    definition="annualised running funding rate less the annualised borrow rate",
    source="Schmeling, Schrimpf, Todorov (2023), Crypto carry, BIS Working Paper 1087",
)
def borrow_funding_gap(funding_rate: Array, borrow_rate: Array) -> Array:
    """What the perpetual pays beyond the money market."""
    return funding_rate * SETTLEMENTS_PER_YEAR - borrow_rate * _DAYS_PER_YEAR


@feature(
    "whale_level",
    inputs=("whale_index",),
    unit="index",
    definition="Coinglass' whale index of the pair",
    source=_WHALES,
)
def whale_level(whale_index: Array) -> Array:
    """Large traders' side and activity."""
    return whale_index.copy()


@feature(
    "whale_change_24",
    inputs=("whale_index",),
    lookback=24,
    unit="index",
    definition="whale index less that of 24 bars before",
    source=_WHALES,
)
def whale_change(whale_index: Array) -> Array:
    """Large traders coming or going."""
    return e.diff(whale_index, 24)


@feature(
    "fear_greed_level",
    inputs=("fear_greed",),
    unit="0 to 1",
    definition="newest known fear and greed index over 100",
    source=_MOOD,
    normalise="none",
)
def fear_greed_level(fear_greed: Array) -> Array:
    """Mood, kept as a level: 0.2 is fear in any year."""
    return fear_greed / 100.0


@feature(
    "fear_greed_change_{n}",
    over=(72, 168),
    inputs=("fear_greed",),
    lookback=lambda n: n,
    unit="-1 to 1",
    definition="newest known fear and greed index less that of {n} bars before, over 100",
    source=_MOOD,
    normalise="none",
)
def fear_greed_change(fear_greed: Array, n: int) -> Array:
    """Mood turning."""
    return e.diff(fear_greed, n) / 100.0


@feature(
    "etf_flow_to_oi",
    inputs=("etf_flow_usd", "oi_usd"),
    unit="fraction",
    definition="newest known daily net flow into US spot funds over open interest",
    source=_FLOWS,
    normalise="none",
)
def etf_flow_to_oi(etf_flow_usd: Array, oi_usd: Array) -> Array:
    """The last day's demand of the funds."""
    return e.ratio(etf_flow_usd, oi_usd)


@feature(
    "etf_flow_sum_168",
    inputs=("etf_flow_usd", "etf_date", "oi_usd"),
    lookback=167,
    unit="fraction",
    definition="sum of the fund flows of the trade dates in use over 168 bars, each counted once, over open interest",
    source=_FLOWS,
    normalise="none",
)
def etf_flow_sum(etf_flow_usd: Array, etf_date: Array, oi_usd: Array) -> Array:
    """The funds' demand over a longer spell."""
    return e.ratio(v.distinct_total(etf_flow_usd, etf_date, 168), oi_usd)


@feature(
    "etf_flow_run_168",
    inputs=("etf_flow_usd", "etf_date"),
    lookback=167,
    unit="trade dates",
    definition="trade dates in a row with inflows (above 0) or outflows (below) among those in use over 168 bars",
    source=_FLOWS,
    normalise="none",
)
def etf_flow_run(etf_flow_usd: Array, etf_date: Array) -> Array:
    """How long the funds have been on one side."""
    return v.distinct_run(etf_flow_usd, etf_date, 168)


@feature(
    "etf_flow_age",
    inputs=("etf_age_h",),
    unit="days",
    definition="days from the close of the newest trade date whose flow is known to the bar's close",
    source=_FLOWS,
    normalise="none",
)
def etf_flow_age(etf_age_h: Array) -> Array:
    """How stale the flow is: over weekends and holidays nothing new comes."""
    return etf_age_h / 24.0


@feature(
    "options_to_oi",
    inputs=("options_oi_usd", "oi_usd"),
    unit="log ratio",
    definition="log of the open interest of options over that of futures",
    source=_OPTIONS,
)
def options_to_oi(options_oi_usd: Array, oi_usd: Array) -> Array:
    """Hedged and convex positions against plain leverage."""
    return e.log_ratio(options_oi_usd, oi_usd)


@feature(
    "options_change_{n}",
    over=(24, 168),
    inputs=("options_oi_usd", "close"),
    lookback=lambda n: n,
    unit="log change",
    definition="log change over {n} bars of the open interest of options, USD over the price",
    source=_OPTIONS,
)
def options_change(options_oi_usd: Array, close: Array, n: int) -> Array:
    """Options being opened, or expired."""
    return e.diff(e.log_ratio(options_oi_usd, close), n)


@feature(
    "mood_price_gap_168",
    inputs=("fear_greed", "log_close"),
    lookback=167,
    unit="-1 to 1",
    definition="rank of the newest known fear and greed index among 168 bars less that of the close",
    source=_MOOD,
    normalise="none",
)
def mood_price_gap(fear_greed: Array, log_close: Array) -> Array:
    """Mood that does not follow the price."""
    return np.subtract(k.rank(fear_greed, 168), k.rank(log_close, 168))
