"""Entries: liquidations, taker volume and order-book depth."""

from __future__ import annotations

from typing import Final

from mlbot_core.market.catalogue.futures import EXCHANGES, ON_EXCHANGES, PAIR
from mlbot_core.market.catalogue.spec import Column, SeriesSpec

_AGGREGATED: Final = {"exchange_list": EXCHANGES, "symbol": "{symbol}"}
_DEPTH_RANGE: Final = "1"


def _two_sums(first: str, second: str, field: str, names: tuple[str, str]) -> tuple[Column, Column]:
    """Return two USD sums, fields made of a pattern and the served names."""
    return (
        Column(first, "USD", "sum", field.format(names[0])),
        Column(second, "USD", "sum", field.format(names[1])),
    )


def _depth(prefix: str) -> tuple[Column, ...]:
    return tuple(
        Column(f"{side}_{unit}", "USD" if unit == "usd" else "coin", "last", f"{prefix}{side}_{served}")
        for side in ("bids", "asks")
        for unit, served in (("usd", "usd"), ("coin", "quantity"))
    )


SERIES: Final = (
    SeriesSpec(
        name="liquidations",
        title="Aggregated liquidations",
        description=f"Liquidated value of longs and of shorts per bar {ON_EXCHANGES}, in USD.",
        columns=_two_sums("long_usd", "short_usd", "aggregated_{}_liquidation_usd", ("long", "short")),
        endpoint="/api/futures/liquidation/aggregated-history",
        params=_AGGREGATED,
        padded=True,
    ),
    SeriesSpec(
        name="taker_volume",
        title="Aggregated taker volume",
        description=f"Value bought and sold by takers per bar {ON_EXCHANGES}, in USD.",
        columns=_two_sums("buy_usd", "sell_usd", "aggregated_{}_volume_usd", ("buy", "sell")),
        endpoint="/api/futures/aggregated-taker-buy-sell-volume/history",
        params={**_AGGREGATED, "unit": "usd"},
        padded=True,
    ),
    SeriesSpec(
        name="liquidations_pair",
        title="Liquidations of the pair",
        description="Liquidated value of longs and of shorts per bar in the coin's USDT perpetual on Binance, in USD.",
        columns=_two_sums("long_usd", "short_usd", "{}_liquidation_usd", ("long", "short")),
        endpoint="/api/futures/liquidation/history",
        params=PAIR,
    ),
    SeriesSpec(
        name="taker_volume_pair",
        title="Taker volume of the pair",
        description="Value bought and sold by takers per bar in the coin's USDT perpetual on Binance, in USD.",
        columns=_two_sums("buy_usd", "sell_usd", "taker_{}_volume_usd", ("buy", "sell")),
        endpoint="/api/futures/v2/taker-buy-sell-volume/history",
        params=PAIR,
    ),
    SeriesSpec(
        name="taker_volume_spot",
        title="Aggregated spot taker volume",
        description=f"Value bought and sold by takers per bar on the spot markets of {EXCHANGES.replace(',', ', ')}.",
        columns=_two_sums("buy_usd", "sell_usd", "aggregated_{}_volume_usd", ("buy", "sell")),
        endpoint="/api/spot/aggregated-taker-buy-sell-volume/history",
        params={**_AGGREGATED, "unit": "usd"},
        padded=True,
    ),
    SeriesSpec(
        name="order_book",
        title="Order-book depth of the pair",
        description=(
            "Resting orders within 1 % of the middle of the coin's USDT perpetual on Binance, in USD and in coins. "
            "The newest closed bar still moves by 1 to 25 %: it is taken one bar later."
        ),
        columns=_depth(""),
        endpoint="/api/futures/orderbook/ask-bids-history",
        params={**PAIR, "range": _DEPTH_RANGE},
        unsettled_rows=2,
    ),
    SeriesSpec(
        name="order_book_aggregated",
        title="Aggregated order-book depth",
        description=(
            f"Resting orders within 1 % of the middle {ON_EXCHANGES}, in USD and in coins. The newest closed bar "
            "still moves by 1 to 25 %: it is taken one bar later."
        ),
        columns=_depth("aggregated_"),
        endpoint="/api/futures/orderbook/aggregated-ask-bids-history",
        params={**_AGGREGATED, "range": _DEPTH_RANGE},
        unsettled_rows=2,
    ),
)
