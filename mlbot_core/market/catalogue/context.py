"""Entries: indices, margin, funds and options: what surrounds the perpetual."""

from __future__ import annotations

from typing import Final

from mlbot_core.clock import parse_utc_ms
from mlbot_core.market.catalogue.futures import PAIR
from mlbot_core.market.catalogue.spec import DAILY, Column, SeriesSpec
from mlbot_core.timeframe import HOUR_MS

# The first trading day of the US spot funds.
_FUNDS_SINCE: Final = parse_utc_ms("2024-01-11")

SERIES: Final = (
    SeriesSpec(
        name="coinbase_premium",
        title="Coinbase premium",
        description=(
            "Price on Coinbase minus price on Binance: in USD, and as a fraction of the price (Coinglass serves "
            "percent). A sample taken at ts, which never changed later in what has been recorded."
        ),
        columns=(
            Column("premium_usd", "USD", "first", "premium", 1.0, "no", 1e5),
            Column("premium_rate", "fraction", "first", "premium_rate", 0.01, "no", 0.5),
        ),
        endpoint="/api/coinbase-premium-index",
        params={},
        symbols=("BTC",),
        time_unit="s",
        point_sample=True,
    ),
    SeriesSpec(
        name="bitfinex_margin",
        title="Bitfinex margin positions",
        description=(
            "Margin longs and shorts on Bitfinex, in coins. The newest closed bar still moves by 0.1 to 3 %: it is "
            "taken one bar later."
        ),
        columns=(
            Column("long_coin", "coin", "last", "long_quantity"),
            Column("short_coin", "coin", "last", "short_quantity"),
        ),
        endpoint="/api/bitfinex-margin-long-short",
        params={"symbol": "{symbol}"},
        symbols=("BTC", "ETH"),
        time_unit="s",
        unsettled_rows=2,
    ),
    SeriesSpec(
        name="borrow_rate",
        title="Borrow rate",
        description="Interest for borrowing the coin on Binance, as a fraction per day.",
        columns=(Column("rate", "fraction", "last", "interest_rate", 0.01, "nonnegative", 0.1),),
        endpoint="/api/borrow-interest-rate/history",
        params={"exchange": "Binance", "symbol": "{symbol}"},
        time_unit="s",
        caveat=(
            "whether the endpoint serves percent or a fraction is not documented; read as percent, like every other "
            "rate of Coinglass: the level may be wrong by a factor of 100, changes and ranks are not"
        ),
    ),
    SeriesSpec(
        name="whale_index",
        title="Whale index",
        description="Coinglass' index of large traders' activity in the coin's USDT perpetual on Binance; unbounded.",
        columns=(Column("value", "index", "last", "whale_index_value", 1.0, "no"),),
        endpoint="/api/futures/whale-index/history",
        params=PAIR,
        plan="startup",
    ),
    SeriesSpec(
        name="fear_greed",
        title="Fear and greed",
        description=(
            "Sentiment of the whole crypto market from 0 (fear) to 100 (greed), one sample a day shortly after 00:00 "
            "UTC, stamps jittered; the newest one is revised slightly while its day lasts."
        ),
        columns=(Column("value", "index", "last", "data_list", 1.0, "nonnegative", 100.0),),
        endpoint="/api/index/fear-greed-history",
        params={},
        shape="lists",
        time_field="time_list",
        native=DAILY,
        point_sample=True,
        snapped=True,
    ),
    SeriesSpec(
        name="etf_flows",
        title="US spot ETF flows",
        description=(
            "Net flow of a US trade date into the US spot funds, in USD, labelled 00:00 UTC of that date. The row of "
            "a day exists early with a flow of 0 and every component null: that is no observation. A date's flow is "
            "used from 12:00 UTC of the next day on."
        ),
        columns=(Column("flow_usd", "USD", "sum", "flow_usd", 1.0, "no", 1e12),),
        endpoint="/api/etf/bitcoin/flow-history",
        params={},
        symbols=("BTC",),
        time_field="timestamp",
        native=DAILY,
        components=("etf_flows", "flow_usd"),
        sparse="us_trading_days",
        since_ms=_FUNDS_SINCE,
        publication_lag_ms=12 * HOUR_MS,
    ),
    SeriesSpec(
        name="options_oi",
        title="Options open interest",
        description="Open interest of options over all exchanges that Coinglass lists, in USD.",
        columns=(Column("oi_usd", "USD", "last", "data_map"),),
        endpoint="/api/option/exchange-oi-history",
        params={"symbol": "{symbol}", "unit": "USD", "range": "all"},
        shape="data_map",
        time_field="time_list",
        native=DAILY,
        point_sample=True,
        snapped=True,
        caveat="the step of range=all is not documented; the last point of a day is taken as that day's",
    ),
)
