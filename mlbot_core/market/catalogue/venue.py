"""Entries that Coinglass does not serve: what the venue itself publishes, and what was recorded from it."""

from __future__ import annotations

from typing import Final

from mlbot_core.market.catalogue.futures import MAX_PRICE
from mlbot_core.market.catalogue.spec import Column, SeriesSpec, ohlc

SERIES: Final = (
    SeriesSpec(
        name="funding_settled",
        title="Settled funding rate",
        description=(
            "Funding rate that was paid at ts, as a fraction of position value; positive: longs pay shorts. "
            "Recorded history or the venue's own; where it is absent the backtest pays the running rate at 00:00, "
            "08:00, 16:00 UTC."
        ),
        columns=(Column("rate", "fraction", "sum", None, 1.0, "no", 0.05),),
        endpoint=None,
        params={},
    ),
    SeriesSpec(
        name="mark_price",
        title="Mark price",
        description="Mark price of the coin's USDT perpetual on Bybit: what margin and liquidation are reckoned by.",
        columns=ohlc("USD", maximum=MAX_PRICE, served=False),
        endpoint=None,
        params={},
    ),
    SeriesSpec(
        name="index_price",
        title="Index price",
        description="Index price of the coin on Bybit: a basket of spot markets.",
        columns=ohlc("USD", maximum=MAX_PRICE, served=False),
        endpoint=None,
        params={},
    ),
    SeriesSpec(
        name="premium_index",
        title="Premium index",
        description="Premium of the coin's USDT perpetual on Bybit over its index, as a fraction of the index.",
        columns=ohlc("fraction", 1.0, "no", 0.5, served=False),
        endpoint=None,
        params={},
    ),
)
