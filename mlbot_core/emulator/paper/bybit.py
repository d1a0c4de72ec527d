"""Bybit's public endpoints, asked without a key: what one look at a market shows, checked before it is believed."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from typing import Any, Final

import httpx

from mlbot_core.clock import Clock
from mlbot_core.emulator.exchange.numbers import parse
from mlbot_core.errors import MlbotError
from mlbot_core.timeframe import MINUTE_MS

BYBIT_URL: Final = "https://api.bybit.com"
# Bybit answers every call with HTTP 403 for ten minutes after too many of them; calls made meanwhile prolong it.
BAN_MS: Final = 600_000
# How far this machine's clock and Bybit's may differ.
CLOCK_BOUND_MS: Final = 5_000
DEPTH: Final = 50
_MOST_CANDLES: Final = 1_000
Level = tuple[Decimal, Decimal]
Row = Mapping[str, Any]


class LiveError(MlbotError):
    """There is no live price now: nothing trades until there is one again."""


@dataclass(frozen=True)
class Candle:
    """One minute: open time (UTC ms), prices in USDT, coins traded (zero where the candle is none of trades)."""

    ts: int
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal = Decimal(0)


@dataclass(frozen=True)
class Look:
    """What one look at a symbol showed.

    Parameters
    ----------
    server_ms
        Bybit's time of the ticker, UTC ms.
    bids, asks
        Best level first, as (price, coins).
    funding_rate, next_funding_ms
        Rate that is expected, a fraction, and when it will be settled.
    candles, marks
        Minutes since the look before, oldest first; of trades, and of the mark price where whole minutes have passed.
    settled
        Funding rates by the time at which they were settled since the look before.
    """

    symbol: str
    server_ms: int
    last: Decimal
    mark: Decimal
    index: Decimal
    bids: tuple[Level, ...]
    asks: tuple[Level, ...]
    funding_rate: Decimal
    next_funding_ms: int
    candles: tuple[Candle, ...]
    marks: tuple[Candle, ...]
    settled: Mapping[int, Decimal]


class LiveBybit:
    """Asks; raises :class:`LiveError` for everything that is not a usable, recent answer.

    Parameters
    ----------
    url
        Bybit, or what plays it.
    clock
        This machine's.
    timeout_s
        For each answer, seconds.
    stale_ms
        Older answers are refused.
    """

    def __init__(self, url: str, clock: Clock, *, timeout_s: float = 3.0, stale_ms: int = 10_000) -> None:
        self.url = url.rstrip("/")
        self.stale_ms = stale_ms
        self._clock = clock
        self._http = httpx.Client(base_url=self.url, timeout=timeout_s, headers={"Accept": "application/json"})
        self._lock = threading.Lock()
        self._banned_until_ms = 0

    def close(self) -> None:
        """Let go of connections."""
        self._http.close()

    def look(self, symbol: str, since_ms: int | None, funding_times: tuple[int, ...] = ()) -> Look:
        """Look at a symbol now.

        Parameters
        ----------
        since_ms
            The look before, UTC ms; None for the first one.
        funding_times
            Settlements that have passed since, UTC ms.

        Raises
        ------
        LiveError
            If an answer is missing, wrong or old.
        """
        with self._lock:
            now = self._clock.now_ms()
            since = now if since_ms is None else since_ms
            candles = self._candles("kline", symbol, since, now)
            marks = self._candles("mark-price-kline", symbol, since, now) if now - since > MINUTE_MS else ()
            settled = self._settled(symbol, funding_times) if funding_times else {}
            # the book last: it is what an order meets
            ticker, server_ms = self._only_row("tickers", symbol)
            book, _ = self._get("orderbook", {"symbol": symbol, "limit": str(DEPTH)})
            self._require_recent(symbol, server_ms, _whole(book, "ts"))
            bids, asks = _side(book, "b", -1), _side(book, "a", 1)
            if bids[0][0] >= asks[0][0]:
                raise LiveError(f"{symbol}: the book is crossed ({bids[0][0]} and {asks[0][0]}); nothing trades on it")
            return Look(
                symbol,
                server_ms,
                _price(ticker, "lastPrice"),
                _price(ticker, "markPrice"),
                _price(ticker, "indexPrice"),
                bids,
                asks,
                _number(ticker, "fundingRate"),
                _whole(ticker, "nextFundingTime"),
                candles,
                marks,
                settled,
            )

    def instrument(self, symbol: str) -> tuple[Row, tuple[Row, ...]]:
        """Return a symbol's row of ``instruments-info`` and its risk tiers.

        Raises
        ------
        LiveError
            If there is none, or it does not trade.
        """
        row, _ = self._only_row("instruments-info", symbol)
        if row.get("status") != "Trading":
            raise LiveError(f"{symbol} has the status {row.get('status')!r}; it can be traded when that is Trading")
        tiers, _ = self._get("risk-limit", {"symbol": symbol})
        return row, tuple(_rows(tiers, "risk-limit"))

    def _require_recent(self, symbol: str, server_ms: int, book_ms: int) -> None:
        now = self._clock.now_ms()
        for what, at in (("prices", server_ms), ("book", book_ms)):
            if now - at > self.stale_ms:
                raise LiveError(f"{symbol}: the {what} are {(now - at) / 1000:.1f} s old; nothing trades on them")
            if at - now > CLOCK_BOUND_MS:
                raise LiveError(
                    f"{symbol}: the {what} are {(at - now) / 1000:.1f} s ahead of this machine's clock; set it (NTP)"
                )

    def _candles(self, kind: str, symbol: str, since_ms: int, now_ms: int) -> tuple[Candle, ...]:
        first, found = since_ms // MINUTE_MS * MINUTE_MS, []
        while first <= now_ms:
            last = min(first + (_MOST_CANDLES - 1) * MINUTE_MS, now_ms // MINUTE_MS * MINUTE_MS)
            window = {"interval": "1", "start": str(first), "end": str(last), "limit": str(_MOST_CANDLES)}
            result, _ = self._get(kind, {"symbol": symbol, **window})
            listed = result.get("list")
            if not isinstance(listed, list):
                raise LiveError(f"{kind} of {symbol}: no list of candles")
            found += [_candle(row, kind) for row in listed]
            first = last + MINUTE_MS
        unique = {candle.ts: candle for candle in found}
        return tuple(unique[ts] for ts in sorted(unique))

    def _settled(self, symbol: str, times: tuple[int, ...]) -> dict[int, Decimal]:
        window = {"startTime": str(times[0]), "endTime": str(times[-1]), "limit": "200"}
        result, _ = self._get("funding/history", {"symbol": symbol, **window})
        rows = _rows(result, "funding/history")
        return {_whole(row, "fundingRateTimestamp"): _number(row, "fundingRate") for row in rows}

    def _only_row(self, path: str, symbol: str) -> tuple[Row, int]:
        result, server_ms = self._get(path, {"symbol": symbol})
        rows = _rows(result, path)
        if len(rows) != 1 or rows[0].get("symbol") != symbol:
            raise LiveError(f"{path}: {len(rows)} rows where there must be the one of {symbol}")
        return rows[0], server_ms

    def _get(self, path: str, params: Mapping[str, str]) -> tuple[Row, int]:
        what = f"{self.url} {path}"
        if self._clock.now_ms() < self._banned_until_ms:
            raise LiveError(f"{what}: this address was refused (HTTP 403) and asks again after ten minutes")
        try:
            response = self._http.get(f"/v5/market/{path}", params={"category": "linear", **params})
            body = response.json() if response.status_code == 200 else None
        except (httpx.HTTPError, ValueError) as error:
            raise LiveError(f"{what}: no usable answer ({type(error).__name__})") from None
        if response.status_code in (403, 429):
            self._banned_until_ms = self._clock.now_ms() + BAN_MS
        if not isinstance(body, dict):
            raise LiveError(f"{what}: HTTP {response.status_code}")
        if (
            body.get("retCode") != 0
            or not isinstance(body.get("result"), dict)
            or not isinstance(body.get("time"), int)
        ):
            raise LiveError(f"{what}: retCode {str(body.get('retCode'))[:20]}, {str(body.get('retMsg'))[:100]}")
        return body["result"], body["time"]


def _rows(result: Row, what: str) -> list[Row]:
    rows = result.get("list")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise LiveError(f"{what}: no list of rows")
    return rows


def _number(row: Row, name: str) -> Decimal:
    value = parse(row.get(name))
    if value is None:
        raise LiveError(f"{name} is {str(row.get(name))[:40]!r}, not a number as text")
    return value


def _price(row: Row, name: str) -> Decimal:
    value = _number(row, name)
    if value <= 0:
        raise LiveError(f"{name} is {value}, not a price")
    return value


def _whole(row: Row, name: str) -> int:
    raw = row.get(name)
    if isinstance(raw, bool) or not (
        isinstance(raw, int) or (isinstance(raw, str) and raw.isascii() and raw.isdigit())
    ):
        raise LiveError(f"{name} is {str(raw)[:40]!r}, not a time")
    return int(raw)


def _side(book: Row, name: str, direction: int) -> tuple[Level, ...]:
    """Return one side of a book; prices go ``direction`` from level to level."""
    raw = book.get(name)
    if not isinstance(raw, list) or not raw:
        raise LiveError(f"the book has no side {name}")
    levels = [(parse(level[0]), parse(level[1])) for level in raw if isinstance(level, list) and len(level) == 2]
    good = tuple((price, size) for price, size in levels if price and size and price > 0 and size > 0)
    steps = all((after[0] - before[0]) * direction > 0 for before, after in pairwise(good))
    if len(good) != len(raw) or not steps:
        raise LiveError(f"the book's side {name} is not a list of prices and sizes, best first")
    return good


def _candle(row: Any, kind: str) -> Candle:
    if not isinstance(row, list) or len(row) < 5:
        raise LiveError(f"{kind}: a candle is not a list of texts")
    values = [parse(text) for text in row[1 : 6 if len(row) > 5 else 5]]
    if any(value is None or value < 0 for value in values) or not str(row[0]).isdigit():
        raise LiveError(f"{kind}: a candle holds something that is not a number")
    numbers = [value for value in values if value is not None]
    return Candle(int(row[0]), *numbers)
