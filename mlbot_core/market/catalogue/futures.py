"""Entries: prices, open interest, funding and long/short ratios."""

from __future__ import annotations

from typing import Final

from mlbot_core.market.catalogue.spec import Column, SeriesSpec, ohlc

# The set of exchanges defines an aggregated series: another set is another series.
EXCHANGES: Final = "Binance,OKX,Bybit"
ON_EXCHANGES: Final = f"on {EXCHANGES.replace(',', ', ')}"
PAIR: Final = {"exchange": "Binance", "symbol": "{pair}"}

# A price in USD beyond this is a turnover, or a price in something else.
MAX_PRICE: Final = 1e8
# A funding rate beyond this fraction per interval has never been allowed; a percent taken for a fraction would show.
_MAX_FUNDING: Final = 0.05


def _ratio(name: str, title: str, description: str, path: str, prefix: str) -> SeriesSpec:
    served = "Coinglass serves percent, stored as a fraction. The ratio is long_share / short_share: the served one"
    return SeriesSpec(
        name=name,
        title=title,
        description=f"{description}; {served} is rounded to two decimals.",
        columns=(
            Column("long_share", "fraction", "last", f"{prefix}_long_percent", 0.01, maximum=1.0),
            Column("short_share", "fraction", "last", f"{prefix}_short_percent", 0.01, maximum=1.0),
        ),
        endpoint=f"/api/futures/{path}/history",
        params=PAIR,
        parts=("long_share", "short_share"),
    )


SERIES: Final = (
    SeriesSpec(
        name="price",
        title="Perpetual price",
        description="Traded price and turnover of the coin's USDT perpetual on Binance.",
        columns=(
            *ohlc("USD", maximum=MAX_PRICE),
            Column("volume_usd", "USD", "sum", "volume_usd"),
            Column("volume_coin", "coin", "sum", None),
        ),
        endpoint="/api/futures/price/history",
        params=PAIR,
    ),
    SeriesSpec(
        name="open_interest",
        title="Aggregated open interest",
        description="Open interest over all exchanges and both margin kinds, in USD.",
        columns=ohlc("USD"),
        endpoint="/api/futures/open-interest/aggregated-history",
        params={"symbol": "{symbol}", "unit": "usd"},
        padded=True,
    ),
    SeriesSpec(
        name="funding_rate",
        title="OI-weighted funding rate",
        description=(
            "Running (predicted) funding rate over all exchanges, weighted by open interest; Coinglass serves "
            "percent per interval, stored as a fraction."
        ),
        columns=ohlc("fraction", 0.01, "no", _MAX_FUNDING),
        endpoint="/api/futures/funding-rate/oi-weight-history",
        params={"symbol": "{symbol}"},
    ),
    _ratio(
        "long_short_ratio",
        "Global long/short account ratio",
        "Shares of accounts that are long and short on Binance",
        "global-long-short-account-ratio",
        "global_account",
    ),
    SeriesSpec(
        name="spot_price",
        title="Spot price",
        description="Traded price and turnover of the coin against USDT on Binance spot.",
        columns=(*ohlc("USD", maximum=MAX_PRICE), Column("volume_usd", "USD", "sum", "volume_usd")),
        endpoint="/api/spot/price/history",
        params=PAIR,
    ),
    SeriesSpec(
        name="open_interest_pair",
        title="Open interest of the pair",
        description=(
            "Open interest of the coin's USDT perpetual on one venue, in USD where Coinglass serves it (Binance) and "
            "in coins at the close where the venue itself does (close_coin)."
        ),
        columns=(*ohlc("USD"), Column("close_coin", "coin", "last", None)),
        endpoint="/api/futures/open-interest/history",
        params={**PAIR, "unit": "usd"},
    ),
    SeriesSpec(
        name="open_interest_stablecoin",
        title="Stablecoin-margined open interest",
        description=(
            f"Open interest of contracts margined in stablecoins {ON_EXCHANGES}, in COINS: the endpoint serves coins "
            "even when USD is asked for. Never add it to the coin-margined series."
        ),
        columns=ohlc("coin", maximum=1e8),
        endpoint="/api/futures/open-interest/aggregated-stablecoin-history",
        params={"exchange_list": EXCHANGES, "symbol": "{symbol}"},
        padded=True,
    ),
    SeriesSpec(
        name="open_interest_coin_margin",
        title="Coin-margined open interest",
        description=f"Open interest of contracts margined in the coin {ON_EXCHANGES}, in USD.",
        columns=ohlc("USD"),
        endpoint="/api/futures/open-interest/aggregated-coin-margin-history",
        params={"exchange_list": EXCHANGES, "symbol": "{symbol}"},
        padded=True,
    ),
    SeriesSpec(
        name="funding_rate_pair",
        title="Funding rate of the pair",
        description=(
            "Running (predicted) funding rate of the coin's USDT perpetual on Binance; Coinglass serves percent per "
            "interval, stored as a fraction."
        ),
        columns=ohlc("fraction", 0.01, "no", _MAX_FUNDING),
        endpoint="/api/futures/funding-rate/history",
        params=PAIR,
    ),
    SeriesSpec(
        name="funding_rate_volume",
        title="Volume-weighted funding rate",
        description=(
            "Running (predicted) funding rate over all exchanges, weighted by volume; Coinglass serves percent per "
            "interval, stored as a fraction."
        ),
        columns=ohlc("fraction", 0.01, "no", _MAX_FUNDING),
        endpoint="/api/futures/funding-rate/vol-weight-history",
        params={"symbol": "{symbol}"},
    ),
    _ratio(
        "top_account_ratio",
        "Top traders' account ratio",
        "Shares of the top traders' accounts that are long and short on Binance",
        "top-long-short-account-ratio",
        "top_account",
    ),
    _ratio(
        "top_position_ratio",
        "Top traders' position ratio",
        "Shares of the top traders' positions that are long and short on Binance",
        "top-long-short-position-ratio",
        "top_position",
    ),
)
