"""Order-book depth within 1 % of the middle: imbalance, amount, distance, and what it says about flow and price.

A book's newest closed bar is not settled when the next decision is made, so the panel holds the one before it: every
feature here is one bar old on purpose, where the series is stored at the market's own timeframe.
"""

from __future__ import annotations

from mlbot_core.features import elementwise as e
from mlbot_core.features import kernels as k
from mlbot_core.features.registry import Array, feature, intermediate

_BOOK = "Cao, Hansch, Wang (2009), The information content of an open limit-order book, Journal of Futures Markets 29"
_IMPACT = "Cont, Kukanov, Stoikov (2014), The price impact of order book events, JFEC 12"
_RESILIENCE = "Kempf, Mayston, Gehde-Trapp, Yadav (2015), Resiliency: a dynamic view of liquidity, Applied Economics 47"


@intermediate(("book_bids_usd", "book_asks_usd"))
def book_imbalance(book_bids_usd: Array, book_asks_usd: Array) -> Array:
    """The pair's bids less asks over both, -1 to 1."""
    return e.ratio(book_bids_usd - book_asks_usd, book_bids_usd + book_asks_usd)


@intermediate(("book_bids_usd", "book_asks_usd"))
def book_total(book_bids_usd: Array, book_asks_usd: Array) -> Array:
    """The pair's bids plus asks, USD."""
    return book_bids_usd + book_asks_usd


@intermediate(("book_all_bids_usd", "book_all_asks_usd"))
def book_all_imbalance(book_all_bids_usd: Array, book_all_asks_usd: Array) -> Array:
    """Bids less asks over both on all exchanges, -1 to 1."""
    return e.ratio(book_all_bids_usd - book_all_asks_usd, book_all_bids_usd + book_all_asks_usd)


@intermediate(("book_all_bids_usd", "book_all_asks_usd"))
def book_all_total(book_all_bids_usd: Array, book_all_asks_usd: Array) -> Array:
    """Bids plus asks on all exchanges, USD."""
    return book_all_bids_usd + book_all_asks_usd


@feature(
    "depth_imbalance",
    inputs=("book_imbalance",),
    unit="-1 to 1",
    definition="(bids - asks) / (bids + asks) within 1 % of the pair's middle",
    source=_BOOK,
)
def depth_imbalance(book_imbalance: Array) -> Array:
    """Which side is willing to trade."""
    return book_imbalance.copy()


@feature(
    "depth_imbalance_mean_24",
    inputs=("book_imbalance",),
    lookback=23,
    unit="-1 to 1",
    definition="mean of the pair's depth imbalance over 24 bars",
    source=_BOOK,
    normalise="none",
)
def depth_imbalance_mean(book_imbalance: Array) -> Array:
    """The lasting side, kept as a level."""
    return k.mean(book_imbalance, 24)


@feature(
    "depth_imbalance_change_4",
    inputs=("book_imbalance",),
    lookback=4,
    unit="-1 to 1",
    definition="pair's depth imbalance less that of 4 bars before",
    source=_IMPACT,
)
def depth_imbalance_change(book_imbalance: Array) -> Array:
    """Orders coming in or pulled."""
    return e.diff(book_imbalance, 4)


@feature(
    "depth_all_imbalance",
    inputs=("book_all_imbalance",),
    unit="-1 to 1",
    definition="(bids - asks) / (bids + asks) within 1 % of the middle on all exchanges",
    source=_BOOK,
)
def depth_all_imbalance(book_all_imbalance: Array) -> Array:
    """Which side is willing to trade anywhere."""
    return book_all_imbalance.copy()


@feature(
    "depth_all_imbalance_mean_24",
    inputs=("book_all_imbalance",),
    lookback=23,
    unit="-1 to 1",
    definition="mean over 24 bars of the depth imbalance of all exchanges",
    source=_BOOK,
    normalise="none",
)
def depth_all_imbalance_mean(book_all_imbalance: Array) -> Array:
    """The lasting side everywhere, kept as a level."""
    return k.mean(book_all_imbalance, 24)


@feature(
    "depth_amount",
    inputs=("book_total",),
    unit="log USD",
    definition="log of bids plus asks within 1 % of the pair's middle",
    source=_RESILIENCE,
)
def depth_amount(book_total: Array) -> Array:
    """Liquidity against its own past, by the z-score."""
    return e.log(book_total)


@feature(
    "depth_term",
    inputs=("book_total",),
    lookback=95,
    unit="log ratio",
    definition="log of the pair's mean depth of 12 bars over that of 96 bars",
    source=_RESILIENCE,
)
def depth_term(book_total: Array) -> Array:
    """Is liquidity being withdrawn."""
    return e.log_ratio(k.mean(book_total, 12), k.mean(book_total, 96))


@feature(
    "depth_to_volume_24",
    inputs=("book_total", "volume_usd"),
    lookback=23,
    unit="log ratio",
    definition="log of the pair's depth over the mean turnover of 24 bars",
    source=_RESILIENCE,
)
def depth_to_volume(book_total: Array, volume_usd: Array) -> Array:
    """How long the book would last."""
    return e.log_ratio(book_total, k.mean(volume_usd, 24))


@feature(
    "depth_pair_share",
    inputs=("book_total", "book_all_total"),
    unit="log ratio",
    definition="log of the pair's depth over that of all exchanges",
    source=_BOOK,
)
def depth_pair_share(book_total: Array, book_all_total: Array) -> Array:
    """Is liquidity here or elsewhere."""
    return e.log_ratio(book_total, book_all_total)


@feature(
    "depth_width",
    inputs=("book_bids_usd", "book_bids_coin", "book_asks_usd", "book_asks_coin"),
    unit="log ratio",
    definition="log of the mean price of the pair's asks over that of its bids, each weighted by coins",
    source=_BOOK,
)
def depth_width(bids_usd: Array, bids_coin: Array, asks_usd: Array, asks_coin: Array) -> Array:
    """How far from the middle the orders rest."""
    return e.log_ratio(e.ratio(asks_usd, asks_coin), e.ratio(bids_usd, bids_coin))


@feature(
    "depth_lead_corr_96",
    inputs=("book_imbalance", "log_close"),
    lookback=96,
    unit="correlation",
    definition="correlation of the return with the pair's depth imbalance of the row before over 96 bars",
    source=_IMPACT,
    normalise="none",
)
def depth_lead_corr(book_imbalance: Array, log_close: Array) -> Array:
    """Has the book been worth following lately."""
    return k.correlation(e.diff(log_close, 1), e.lag(book_imbalance, 1), 96)


@feature(
    "depth_flow_corr_96",
    inputs=("book_imbalance", "taker_delta", "taker_total"),
    lookback=95,
    unit="correlation",
    definition="correlation of the pair's depth imbalance with the taker imbalance over 96 bars",
    source=_IMPACT,
    normalise="none",
)
def depth_flow_corr(book_imbalance: Array, taker_delta: Array, taker_total: Array) -> Array:
    """Do takers hit the thick side (below zero) or the thin one."""
    return k.correlation(book_imbalance, e.ratio(taker_delta, taker_total), 96)


@feature(
    "depth_to_oi",
    inputs=("book_all_total", "oi_usd"),
    unit="log ratio",
    definition="log of the depth of all exchanges over open interest",
    source="Brunnermeier, Pedersen (2009), Market liquidity and funding liquidity, RFS 22",
)
def depth_to_oi(book_all_total: Array, oi_usd: Array) -> Array:
    """How much of the positions could leave near the price."""
    return e.log_ratio(book_all_total, oi_usd)


@feature(
    "depth_to_liq_24",
    inputs=("liq_long_usd", "liq_short_usd", "book_all_bids_usd", "book_all_asks_usd"),
    lookback=23,
    unit="fraction",
    definition=(
        "liquidated longs over bids less liquidated shorts over asks of all exchanges, liquidations summed over 24 bars"
    ),
    source="Brunnermeier, Pedersen (2009), Market liquidity and funding liquidity, RFS 22",
)
def depth_to_liq(liq_long_usd: Array, liq_short_usd: Array, bids_usd: Array, asks_usd: Array) -> Array:
    """Forced selling per bid against forced buying per ask."""
    return e.ratio(k.total(liq_long_usd, 24), bids_usd) - e.ratio(k.total(liq_short_usd, 24), asks_usd)
