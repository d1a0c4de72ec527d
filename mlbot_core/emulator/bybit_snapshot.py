"""What Bybit says of this moment: instrument rules, ticker, book, trades, risk tiers, price band."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from mlbot_core.emulator.bybit_market import FUNDING_MS, STEP, BybitMarket
from mlbot_core.timeframe import DAY_MS, HOUR_MS, MINUTE_MS, Timeframe

Row = dict[str, Any]

PRICE_LIMIT_RATIO: Final = 0.01
# Maintenance tiers of BTCUSDT: position value up to (USDT), leverage, maintenance and initial margin in percent,
# deduction in USDT (Bybit's public table, undated).
_TIERS: Final = (
    ("2000000", "100.00", "0.5", "1", "0"),
    ("2600000", "90.00", "0.56", "1.11", "1200"),
    ("3200000", "80.00", "0.63", "1.25", "3020"),
    ("3800000", "75.00", "0.67", "1.33", "4300"),
    ("4400000", "70.00", "0.71", "1.43", "5820"),
    ("5000000", "65.00", "0.77", "1.54", "8460"),
    ("5600000", "55.00", "0.91", "1.82", "15460"),
    ("8500000", "50.00", "1", "2", "20500"),
    ("10000000", "45.00", "1.3", "2.22", "46000"),
)


def trading_rules(symbol: str) -> tuple[str, str, str, str]:
    """Return quantity step, largest limit and market order, and tick of an instrument."""
    return ("0.001", "1190.000", "500.000", "0.10") if symbol == "BTCUSDT" else ("0.01", "7240.00", "1450.00", "0.01")


def instrument(symbol: str, market: BybitMarket) -> Row:
    """Return the specification of an instrument as ``instruments-info`` lists it."""
    return instrument_row(symbol, market.launch_ms)


def instrument_row(symbol: str, launch_ms: int) -> Row:
    """Return the specification of an instrument that was listed at ``launch_ms`` (UTC)."""
    step, most, most_at_market, tick = trading_rules(symbol)
    coin = symbol.removesuffix("USDT")
    return {
        "symbol": symbol,
        "contractType": "LinearPerpetual",
        "status": "Trading",
        "baseCoin": coin,
        "quoteCoin": "USDT",
        "launchTime": str(launch_ms),
        "deliveryTime": "0",
        "deliveryFeeRate": "",
        "priceScale": "2",
        "leverageFilter": {"minLeverage": "1", "maxLeverage": "100.00", "leverageStep": "0.01"},
        "priceFilter": {"minPrice": tick, "maxPrice": "1999999.80", "tickSize": tick},
        "lotSizeFilter": {
            "maxOrderQty": most,
            "minOrderQty": step,
            "qtyStep": step,
            "postOnlyMaxOrderQty": most,
            "maxMktOrderQty": most_at_market,
            "minNotionalValue": "5",
        },
        "unifiedMarginTrade": True,
        "fundingInterval": FUNDING_MS // MINUTE_MS,
        "settleCoin": "USDT",
        "copyTrading": "both",
        "upperFundingRate": "0.00375",
        "lowerFundingRate": "-0.00375",
        "isPreListing": False,
        "preListingInfo": None,
        "riskParameters": {"priceLimitRatioX": str(PRICE_LIMIT_RATIO), "priceLimitRatioY": "0.02"},
        "displayName": "",
    }


def _last(market: BybitMarket, kind: Any, now_ms: int) -> float:
    return float(market.candles(kind, STEP, now_ms - STEP.ms, now_ms - 1, now_ms).values["close"][-1])


def ticker(symbol: str, market: BybitMarket, now_ms: int) -> Row:
    """Return the ticker of this moment; both sides' open interest, as documented since 2026-06, and one side's."""
    day = market.candles("trade", STEP, now_ms - DAY_MS, now_ms - 1, now_ms).values
    hour = market.candles("trade", STEP, now_ms - HOUR_MS, now_ms - 1, now_ms).values
    last, mark, index = (_last(market, kind, now_ms) for kind in ("trade", "mark", "index"))
    sampled = np.array([STEP.floor(now_ms)], dtype=np.int64)
    coins = float(market.open_interest(sampled, now_ms)[0])
    settled = now_ms // FUNDING_MS * FUNDING_MS
    book = orderbook(symbol, market, 1, now_ms)
    price = f"%.{market.tick}f"
    return {
        "symbol": symbol,
        "lastPrice": price % last,
        "indexPrice": price % index,
        "markPrice": price % mark,
        "prevPrice24h": price % float(day["open"][0]),
        "price24hPcnt": f"{last / float(day['open'][0]) - 1:.6f}",
        "highPrice24h": price % float(day["high"].max()),
        "lowPrice24h": price % float(day["low"].min()),
        "prevPrice1h": price % float(hour["open"][0]),
        "openInterest": f"{2 * coins:.3f}",
        "openInterestValue": f"{2 * coins * mark:.2f}",
        "singleOpenInterest": f"{coins:.3f}",
        "singleOpenInterestValue": f"{coins * mark:.2f}",
        "turnover24h": f"{float(day['turnover'].sum()):.4f}",
        "volume24h": f"{float(day['volume'].sum()):.4f}",
        "fundingRate": f"{float(market.funding(sampled, now_ms)[0]):.8f}",
        "nextFundingTime": str(settled + FUNDING_MS),
        "fundingIntervalHour": str(FUNDING_MS // HOUR_MS),
        "fundingCap": "0.00375",
        "predictedDeliveryPrice": "",
        "basisRate": "",
        "deliveryFeeRate": "",
        "deliveryTime": "0",
        "bid1Price": book["b"][0][0],
        "bid1Size": book["b"][0][1],
        "ask1Price": book["a"][0][0],
        "ask1Size": book["a"][0][1],
    }


def book_sizes(seed: int, now_ms: int, depth: int) -> np.ndarray:
    """Return the coins on the levels of a book, shape ``(2, depth)``: bids and asks, best first.

    A deeper book of the same instant begins with the same levels.
    """
    rng = np.random.default_rng([seed, now_ms])
    return np.round(rng.lognormal(0.0, 1.0, (depth, 2)).T + 0.001, 3)


def orderbook(symbol: str, market: BybitMarket, depth: int, now_ms: int) -> Row:
    """Return a book around the last price: one tick wide, ``depth`` levels a side, sizes drawn from seed and time."""
    last = _last(market, "trade", now_ms)
    tick = 10.0**-market.tick
    sizes = book_sizes(market.underlying.seed, now_ms, depth)
    bids = [[f"{last - level * tick:.{market.tick}f}", f"{sizes[0, level]:.3f}"] for level in range(depth)]
    asks = [[f"{last + (level + 1) * tick:.{market.tick}f}", f"{sizes[1, level]:.3f}"] for level in range(depth)]
    return {"s": symbol, "b": bids, "a": asks, "ts": now_ms, "u": now_ms // 20, "seq": now_ms // 10, "cts": now_ms - 3}


def recent_trades(symbol: str, market: BybitMarket, limit: int, now_ms: int) -> list[Row]:
    """Return one trade a minute before now, newest first: at the minute's close, with its volume."""
    minute = Timeframe(1)
    candles = market.candles("trade", minute, minute.floor(now_ms) - limit * MINUTE_MS, now_ms - MINUTE_MS, now_ms)
    rows = []
    for at in reversed(range(len(candles.ts))):
        ts, close, open_ = int(candles.ts[at]), candles.values["close"][at], candles.values["open"][at]
        rows.append(
            {
                "execId": f"{market.underlying.seed:08x}-{ts:x}",
                "symbol": symbol,
                "price": f"{close:.{market.tick}f}",
                "size": f"{candles.values['volume'][at]:.3f}",
                "side": "Buy" if close >= open_ else "Sell",
                "time": str(ts + MINUTE_MS - 1),
                "isBlockTrade": False,
                "isRPITrade": False,
                "seq": str(ts // 10),
            }
        )
    return rows


def risk_limits(symbol: str) -> list[Row]:
    """Return the maintenance tiers; margins in percent, as in the documentation's sample."""
    return [
        {
            "id": number,
            "symbol": symbol,
            "riskLimitValue": value,
            "maintenanceMargin": maintenance,
            "initialMargin": initial,
            "isLowestRisk": 1 if number == 1 else 0,
            "maxLeverage": leverage,
            "mmDeduction": deduction if number > 1 else "",
        }
        for number, (value, leverage, maintenance, initial, deduction) in enumerate(_TIERS, start=1)
    ]


def price_limit(symbol: str, market: BybitMarket, now_ms: int) -> Row:
    """Return the highest bid and the lowest ask that an order may name: the mark price and one percent."""
    mark = _last(market, "mark", now_ms)
    return {
        "symbol": symbol,
        "buyLmt": f"{mark * (1 + PRICE_LIMIT_RATIO):.{market.tick}f}",
        "sellLmt": f"{mark * (1 - PRICE_LIMIT_RATIO):.{market.tick}f}",
        "ts": str(now_ms),
    }
