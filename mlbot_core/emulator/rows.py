"""Bars as the Coinglass endpoints write them: field names, units and JSON types of recorded answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from mlbot_core.emulator.market import Bars, Floats

Row = dict[str, Any]

# Shares of the aggregated flow in percent; the price endpoint serves each exchange's own turnover.
EXCHANGES: Final[Mapping[str, int]] = {"Binance": 53, "OKX": 27, "Bybit": 20}
PAIRS: Final[Mapping[str, str]] = {"Binance": "BTCUSDT", "OKX": "BTC-USDT-SWAP", "Bybit": "BTCUSDT"}
COIN: Final = "BTC"


def _text(value: float, decimals: int) -> str:
    """Write a number as Coinglass quotes it: fixed decimals without trailing zeros."""
    return f"{value:.{decimals}f}".rstrip("0").rstrip(".") if decimals else f"{value:.0f}"


def _scaled(column: Floats, share: float, decimals: int) -> list[float]:
    return [round(float(value), decimals) for value in (column if share == 1.0 else column * share)]


def price_rows(bars: Bars, share: float) -> list[Row]:
    """OHLC in USD and turnover in USD, all quoted; ``share`` is the exchange's turnover over that of Binance."""
    names = ("open", "high", "low", "close")
    rows: list[Row] = []
    turnover = _scaled(bars.values["turnover"], share, 4)
    for i, ts in enumerate(bars.ts.tolist()):
        prices = {name: _text(float(bars.values[name][i]), 1) for name in names}
        rows.append({"time": ts, **prices, "volume_usd": _text(turnover[i], 4)})
    return rows


def open_interest_rows(bars: Bars, _share: float) -> list[Row]:
    """OHLC in whole USD, the close as a decimal number; the open bar's close has a fraction."""
    opens, highs, lows, closes = (bars.values[name] for name in ("open", "high", "low", "close"))
    highs, lows = np.ceil(highs), np.floor(lows)  # the open bar's extremes are whole too
    return [
        {"time": ts, "open": int(o), "high": int(h), "low": int(low), "close": round(float(c), 4)}
        for ts, o, h, low, c in zip(bars.ts.tolist(), opens, highs, lows, closes, strict=True)
    ]


def funding_rows(bars: Bars, _share: float) -> list[Row]:
    """OHLC of the running rate in percent per 8 hours."""
    columns = {name: _scaled(bars.values[name], 1.0, 6) for name in ("open", "high", "low", "close")}
    return _rows(bars, columns)


def account_rows(bars: Bars, _share: float) -> list[Row]:
    """Long and short accounts in percent, and their ratio, each with two decimals."""
    longs = _scaled(bars.values["long_percent"], 1.0, 2)
    shorts = [round(100.0 - value, 2) for value in longs]
    ratios = [round(long / short, 2) for long, short in zip(longs, shorts, strict=True)]
    return _rows(
        bars,
        {
            "global_account_long_percent": longs,
            "global_account_short_percent": shorts,
            "global_account_long_short_ratio": ratios,
        },
    )


def liquidation_rows(bars: Bars, share: float) -> list[Row]:
    """Liquidated longs and shorts in USD."""
    return _rows(
        bars,
        {
            "aggregated_long_liquidation_usd": _scaled(bars.values["long"], share, 5),
            "aggregated_short_liquidation_usd": _scaled(bars.values["short"], share, 5),
        },
    )


def taker_rows(bars: Bars, share: float) -> list[Row]:
    """Taker buys and sells in USD."""
    return _rows(
        bars,
        {
            "aggregated_buy_volume_usd": _scaled(bars.values["buy"], share, 4),
            "aggregated_sell_volume_usd": _scaled(bars.values["sell"], share, 4),
        },
    )


def _rows(bars: Bars, columns: Mapping[str, list[float]]) -> list[Row]:
    names = ("time", *columns)
    return [dict(zip(names, row, strict=True)) for row in zip(bars.ts.tolist(), *columns.values(), strict=True)]


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
        ``coin`` (BTC) or ``pair`` (the exchange's instrument).
    build
        Makes rows from bars and the exchanges' share of the flow.
    """

    path: str
    series: str
    needs: tuple[str, ...]
    symbol: Literal["coin", "pair"]
    build: Callable[[Bars, float], list[Row]]


ENDPOINTS: Final[Mapping[str, Endpoint]] = {
    endpoint.path: endpoint
    for endpoint in (
        Endpoint("/api/futures/price/history", "price", ("exchange", "symbol", "interval"), "pair", price_rows),
        Endpoint(
            "/api/futures/open-interest/aggregated-history",
            "open_interest",
            ("symbol", "interval"),
            "coin",
            open_interest_rows,
        ),
        Endpoint(
            "/api/futures/funding-rate/oi-weight-history", "funding", ("symbol", "interval"), "coin", funding_rows
        ),
        Endpoint(
            "/api/futures/global-long-short-account-ratio/history",
            "accounts",
            ("exchange", "symbol", "interval"),
            "pair",
            account_rows,
        ),
        Endpoint(
            "/api/futures/liquidation/aggregated-history",
            "liquidations",
            ("exchange_list", "symbol", "interval"),
            "coin",
            liquidation_rows,
        ),
        Endpoint(
            "/api/futures/aggregated-taker-buy-sell-volume/history",
            "taker",
            ("exchange_list", "symbol", "interval"),
            "coin",
            taker_rows,
        ),
    )
}
