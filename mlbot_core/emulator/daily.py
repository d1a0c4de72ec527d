"""Endpoints that take no interval and answer with their whole history: fear and greed, ETF flows, options.

Each value is made from the market's daily closes up to its day and from a random stream of its own, one draw a day,
so a day's value is the same whenever it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlbot_core.clock import parse_utc_ms
from mlbot_core.emulator import process
from mlbot_core.emulator.market import SyntheticMarket
from mlbot_core.market.trading_days import is_us_trading_day
from mlbot_core.timeframe import DAY_MS, HOUR_MS, MINUTE_MS, Timeframe

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_DAILY: Final = Timeframe(1440)
_STAMP_MS: Final = 20 * MINUTE_MS
_ETF_SINCE: Final = parse_utc_ms("2024-01-11")
# A date's flows arrive fund by fund in the hours after midnight UTC; until then its row stands there empty.
_ETF_BEGINS_MS: Final = DAY_MS + 3 * HOUR_MS
_ETF_ENDS_MS: Final = DAY_MS + 9 * HOUR_MS
_FUNDS: Final = (("IBIT", 0.5), ("FBTC", 0.25), ("ARKB", 0.12), ("BITB", 0.08), ("GBTC", 0.05))
_OPTION_SHARES: Final = (("Deribit", 0.8), ("OKX", 0.08), ("Binance", 0.06), ("Bybit", 0.06))
_RANGES: Final = {"1h": HOUR_MS, "4h": 4 * HOUR_MS, "12h": 12 * HOUR_MS, "all": DAY_MS}
_SHORT_POINTS: Final = 30


@dataclass(frozen=True)
class Whole:
    """An endpoint that answers with everything it has.

    Parameters
    ----------
    path
        Path of the URL.
    needs
        Required parameters.
    build
        Makes ``data`` from the market, the query and the present (UTC ms); raises ValueError for a bad parameter.
    """

    path: str
    needs: tuple[str, ...]
    build: Callable[[SyntheticMarket, Mapping[str, str], int], Any]


def _draws(market: SyntheticMarket, name: str, count: int) -> Floats:
    coin = process.COINS[market.symbol]
    return process.stream(market.seed, f"{coin.prefix}{name}").standard_normal(count)


def _closes(market: SyntheticMarket, now_ms: int) -> tuple[Ints, Floats]:
    """Return the days (00:00 UTC) from the market's start to today, and the price at each of them."""
    bars = market.bars("price", _DAILY, market.start_ms, now_ms, now_ms)
    return bars.ts, bars.values["open"]


def fear_greed(market: SyntheticMarket, _query: Mapping[str, str], now_ms: int) -> dict[str, list[Any]]:
    """Sentiment from 0 to 100: trend of a month against its volatility; today's value is still revised by one."""
    days, price = _closes(market, now_ms - _STAMP_MS)
    if len(days) == 0:
        return {"data_list": [], "price_list": [], "time_list": []}
    moves = np.diff(np.log(price), prepend=np.log(price[0]))
    window = np.ones(30) / 30
    trend = np.convolve(moves, window)[: len(moves)] / 0.02
    stress = np.sqrt(np.convolve(moves**2, window)[: len(moves)]) / 0.03
    noise = _draws(market, "fear_greed", len(days))
    value = np.round(np.clip(55 + 45 * np.tanh(2 * trend) - 10 * stress + 3 * noise, 1, 99))
    if now_ms - int(days[-1]) < DAY_MS // 2:
        value[-1] += 1
    jitter = np.round(1000 * np.tanh(_draws(market, "fear_greed_stamp", len(days)))).astype(np.int64)
    return {
        "data_list": [int(v) for v in value],
        "price_list": [round(float(p), 2) for p in price],
        "time_list": (days + _STAMP_MS + jitter).tolist(),
    }


def etf_flows(market: SyntheticMarket, _query: Mapping[str, str], now_ms: int) -> list[dict[str, Any]]:
    """One row a US trading day; a date's components are null, and its flow 0, until they arrive the next day."""
    days, price = _closes(market, now_ms)
    moves = np.diff(np.log(price), append=np.log(price[-1:])) if len(days) else np.empty(0)
    flow = 120e6 * _draws(market, "etf", len(days)) + 4e9 * np.clip(moves, -0.1, 0.1) + 40e6
    rows: list[dict[str, Any]] = []
    trading = is_us_trading_day(days) & (days >= _ETF_SINCE)
    for i in np.flatnonzero(trading):
        ts, total = int(days[i]), round(float(flow[i]) / 1e5)
        parts = [round(total * share) for _, share in _FUNDS]
        parts[0] += total - sum(parts)
        arrived = _arrived(now_ms - ts)
        funds = [
            {"etf_ticker": name, "flow_usd": part * 100_000 if n < arrived else None}
            for n, ((name, _), part) in enumerate(zip(_FUNDS, parts, strict=True))
        ]
        row: dict[str, Any] = {"timestamp": ts, "flow_usd": sum(fund["flow_usd"] or 0 for fund in funds)}
        if len(rows) >= 2:  # the first rows of the record have no price
            row["price_usd"] = round(float(price[i]), 2)
        rows.append({**row, "etf_flows": funds})
    return rows


def _arrived(age_ms: int) -> int:
    """Return how many funds have reported ``age_ms`` after the date began."""
    share = (age_ms - _ETF_BEGINS_MS) / (_ETF_ENDS_MS - _ETF_BEGINS_MS)
    return int(min(1.0, max(0.0, share)) * len(_FUNDS))


def options_oi(market: SyntheticMarket, query: Mapping[str, str], now_ms: int) -> list[dict[str, Any]]:
    """Parallel lists per exchange; the last point is stamped now, off the grid."""
    unit, span = query["unit"], query["range"]
    if span not in _RANGES or unit not in ("USD", market.symbol):
        raise ValueError(f"unit={unit}, range={span}")
    days, price = _closes(market, now_ms)
    coins = 0.9 * process.COINS[market.symbol].open_interest
    walk = np.cumsum(_draws(market, "options", len(days) + 1))
    level = coins * np.exp(0.3 * np.tanh(walk / 12))
    stamps = days
    if span != "all":
        step = _RANGES[span]
        last = now_ms - now_ms % step
        stamps = np.arange(last - (_SHORT_POINTS - 1) * step, last + 1, step, dtype=np.int64)
        stamps = stamps[stamps >= market.start_ms]
    if len(days) and stamps[-1] < now_ms:
        stamps = np.append(stamps, now_ms)
    at = (stamps - market.start_ms) // DAY_MS
    into = ((stamps - market.start_ms) % DAY_MS) / DAY_MS
    held = level[at] + (level[at + 1] - level[at]) * into
    values = held * price[at] if unit == "USD" else held
    shares = {name: np.round(values * share, 2).tolist() for name, share in _OPTION_SHARES}
    for i in range(min(5, len(stamps)) if span == "all" else 0):
        shares["Bybit"][i] = None  # listed a few days later than the others
    prices = [round(float(p), 2) for p in price[at]]
    return [{"time_list": stamps.tolist(), "price_list": prices, "data_map": shares}]


WHOLE: Final[Mapping[str, Whole]] = {
    whole.path: whole
    for whole in (
        Whole("/api/index/fear-greed-history", (), fear_greed),
        Whole("/api/etf/bitcoin/flow-history", (), etf_flows),
        Whole("/api/option/exchange-oi-history", ("symbol", "unit", "range"), options_oi),
    )
}
