"""The history endpoints that take an interval: path, required parameters, plan, and how a row is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from mlbot_core.emulator.market import Bars
from mlbot_core.emulator.rows import (
    EXCHANGES,
    Row,
    account_rows,
    field,
    funding_rows,
    liquidation_rows,
    ohlc_fields,
    open_interest_rows,
    price_rows,
    table,
    taker_rows,
)

DEPTH_RANGES: Final[Mapping[str, float]] = {
    text: float(text) ** 0.8 for text in ("0.25", "0.5", "0.75", "1", "2", "3", "5", "10")
}

_PAIR: Final = ("exchange", "symbol", "interval")
_COIN: Final = ("symbol", "interval")
_LIST: Final = ("exchange_list", "symbol", "interval")


@dataclass(frozen=True)
class Endpoint:
    """A history endpoint.

    Parameters
    ----------
    path
        Path of the URL.
    series
        Series of the market.
    needs
        Required parameters, in the order in which their absence is reported.
    symbol
        ``coin`` (BTC), ``pair`` (the exchange's instrument), ``spot`` (the same on a spot market), ``none``.
    build
        Makes rows from bars and the exchanges' share of the flow.
    plan
        The smallest plan that includes it.
    seconds
        Times are written in seconds.
    moving
        The newest closed bar is still preliminary until the next one closes.
    ranged
        Takes ``range``, the width of a book around the middle in percent.
    time_last
        ``time`` is the last key of a row.
    """

    path: str
    series: str
    needs: tuple[str, ...]
    symbol: Literal["coin", "pair", "spot", "none"]
    build: Callable[[Bars, float], list[Row]]
    plan: str = "hobbyist"
    seconds: bool = False
    moving: bool = False
    ranged: bool = False
    time_last: bool = False

    def finish(self, rows: list[Row], step: int, now_ms: int) -> list[Row]:
        """Return the rows as they go over the wire: what still moves has moved, times in their unit and place."""
        if self.moving:
            rows = [_moved(row) if row["time"] + step <= now_ms < row["time"] + 2 * step else row for row in rows]
        if self.seconds:
            rows = [{**row, "time": row["time"] // 1000} for row in rows]
        if self.time_last:
            rows = [{**{k: v for k, v in row.items() if k != "time"}, "time": row["time"]} for row in rows]
        return rows


def _moved(row: Row) -> Row:
    """Return a closed bar before its last revision: 2 to 6 % off, the same for whoever asks."""
    factor = 1.02 + (row["time"] // 60_000 % 41) / 1000
    return {name: value if name == "time" else round(value * factor, 4) for name, value in row.items()}


def _depth(prefix: str, part: float = 1.0) -> Callable[[Bars, float], list[Row]]:
    names = [(f"{prefix}{side}_{unit}", f"{side}_{own}") for side in ("bids", "asks") for unit, own in _DEPTH_UNITS]
    return table(*(field(name, value, 4, "n", part) for name, value in names), shared=tuple(name for name, _ in names))


_DEPTH_UNITS: Final = (("usd", "usd"), ("quantity", "coin"))
_FLOW: Final = (
    field("aggregated_buy_volume_usd", "buy", 4),
    field("aggregated_sell_volume_usd", "sell", 4),
)

ENDPOINTS: Final[Mapping[str, Endpoint]] = {
    endpoint.path: endpoint
    for endpoint in (
        Endpoint("/api/futures/price/history", "price", _PAIR, "pair", price_rows),
        Endpoint("/api/futures/open-interest/aggregated-history", "open_interest", _COIN, "coin", open_interest_rows),
        Endpoint("/api/futures/funding-rate/oi-weight-history", "funding", _COIN, "coin", funding_rows),
        Endpoint("/api/futures/global-long-short-account-ratio/history", "accounts", _PAIR, "pair", account_rows),
        Endpoint("/api/futures/liquidation/aggregated-history", "liquidations", _LIST, "coin", liquidation_rows),
        Endpoint("/api/futures/aggregated-taker-buy-sell-volume/history", "taker", _LIST, "coin", taker_rows),
        Endpoint(
            "/api/spot/price/history",
            "spot",
            _PAIR,
            "spot",
            table(*ohlc_fields(2), field("volume_usd", "turnover", 4), shared=("volume_usd",)),
        ),
        Endpoint("/api/futures/open-interest/history", "oi_pair", _PAIR, "pair", table(*ohlc_fields(4, "s"))),
        Endpoint(
            "/api/futures/open-interest/aggregated-stablecoin-history",
            "oi_stable",
            _LIST,
            "coin",
            # coins, whatever unit was asked for
            table(*ohlc_fields(3), shared=("open", "high", "low", "close")),
        ),
        Endpoint(
            "/api/futures/open-interest/aggregated-coin-margin-history",
            "oi_coin_margin",
            _LIST,
            "coin",
            # inverse contracts of 100 USD each
            table(*ohlc_fields(0, "i", 100.0), shared=("open", "high", "low", "close")),
        ),
        Endpoint("/api/futures/funding-rate/history", "funding_pair", _PAIR, "pair", table(*ohlc_fields(6, "s"))),
        Endpoint(
            "/api/futures/funding-rate/vol-weight-history",
            "funding_volume",
            _COIN,
            "coin",
            table(*ohlc_fields(6, "s"), mixed=True),
        ),
        Endpoint(
            "/api/futures/top-long-short-account-ratio/history",
            "top_accounts",
            _PAIR,
            "pair",
            table(percents=("top_account", "long_percent")),
        ),
        Endpoint(
            "/api/futures/top-long-short-position-ratio/history",
            "top_positions",
            _PAIR,
            "pair",
            table(percents=("top_position", "long_percent")),
        ),
        Endpoint(
            "/api/futures/liquidation/history",
            "liquidations_pair",
            _PAIR,
            "pair",
            table(
                field("long_liquidation_usd", "long", 5, "s"),
                field("short_liquidation_usd", "short", 5, "s"),
                shared=("long_liquidation_usd", "short_liquidation_usd"),
            ),
        ),
        Endpoint(
            "/api/futures/v2/taker-buy-sell-volume/history",
            "taker_pair",
            _PAIR,
            "pair",
            table(
                field("taker_buy_volume_usd", "buy", 4, "s"),
                field("taker_sell_volume_usd", "sell", 4, "s"),
                shared=("taker_buy_volume_usd", "taker_sell_volume_usd"),
            ),
        ),
        Endpoint(
            "/api/spot/aggregated-taker-buy-sell-volume/history",
            "spot_taker",
            _LIST,
            "coin",
            table(*_FLOW, shared=tuple(f[0] for f in _FLOW)),
        ),
        Endpoint(
            "/api/futures/orderbook/ask-bids-history",
            "depth",
            _PAIR,
            "pair",
            _depth("", EXCHANGES["Binance"] / 100),
            moving=True,
            ranged=True,
            time_last=True,
        ),
        Endpoint(
            "/api/futures/orderbook/aggregated-ask-bids-history",
            "depth",
            _LIST,
            "coin",
            _depth("aggregated_"),
            moving=True,
            ranged=True,
            time_last=True,
        ),
        Endpoint(
            "/api/coinbase-premium-index",
            "premium",
            ("interval",),
            "none",
            table(
                field("premium", "premium", 2),
                field("premium_rate", "premium_rate", 4),
                field("coinbase_price", "coinbase_price", 2),
            ),
            seconds=True,
        ),
        Endpoint(
            "/api/bitfinex-margin-long-short",
            "margin",
            _COIN,
            "coin",
            table(field("long_quantity", "long", 4), field("short_quantity", "short", 4)),
            seconds=True,
            moving=True,
        ),
        Endpoint(
            "/api/borrow-interest-rate/history",
            "borrow",
            _PAIR,
            "coin",
            table(field("interest_rate", "rate", 6)),
            seconds=True,
        ),
        Endpoint(
            "/api/futures/whale-index/history",
            "whales",
            _PAIR,
            "pair",
            table(field("whale_index_value", "value", 4)),
            plan="startup",
        ),
    )
}
