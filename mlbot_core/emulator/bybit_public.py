"""Bybit's public market data: ``GET /v5/market/...`` for linear perpetuals, in the wire format of the documentation.

https://bybit-exchange.github.io/docs/v5/market: arrays of texts, newest first; numbers are texts nearly everywhere.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from mlbot_core.clock import parse_utc_ms
from mlbot_core.emulator.bybit_api import PARAMETER_ERROR, BybitOptions, Call, Handler, Refusal
from mlbot_core.emulator.bybit_market import FUNDING_MS, STEP, BybitMarket, Candles, Kind
from mlbot_core.emulator.bybit_snapshot import instrument, orderbook, price_limit, recent_trades, risk_limits, ticker
from mlbot_core.emulator.corrupt import corrupt
from mlbot_core.timeframe import Timeframe

Row = dict[str, Any]

INTERVALS: Final[Mapping[str, Timeframe]] = {
    **{str(minutes): Timeframe(minutes) for minutes in (1, 3, 5, 15, 30, 60, 120, 240, 360, 720)},
    "D": Timeframe(1440),
}
PERIODS: Final[Mapping[str, Timeframe]] = {
    "5min": Timeframe(5),
    "15min": Timeframe(15),
    "30min": Timeframe(30),
    "1h": Timeframe(60),
    "4h": Timeframe(240),
    "1d": Timeframe(1440),
}
# The account ratio is documented to begin here.
RATIO_SINCE_MS: Final = parse_utc_ms("2020-07-20")

_KLINES: Final[Mapping[str, Kind]] = {
    "/v5/market/kline": "trade",
    "/v5/market/mark-price-kline": "mark",
    "/v5/market/index-price-kline": "index",
    "/v5/market/premium-index-price-kline": "premium",
}


class PublicMarket:
    """The public endpoints over some instruments.

    Parameters
    ----------
    markets
        Instruments by symbol, such as ``BTCUSDT``.
    options
        Behaviour where the documentation is silent.
    """

    def __init__(self, markets: Mapping[str, BybitMarket], options: BybitOptions) -> None:
        self._markets = markets
        self._options = options

    @property
    def handlers(self) -> Mapping[tuple[str, str], Handler]:
        """Handlers by method and path."""
        paths: dict[str, Handler] = {
            "/v5/market/time": _time,
            "/v5/market/funding/history": self._funding,
            "/v5/market/open-interest": self._open_interest,
            "/v5/market/account-ratio": self._account_ratio,
            "/v5/market/instruments-info": self._instruments,
            "/v5/market/tickers": self._tickers,
            "/v5/market/orderbook": self._orderbook,
            "/v5/market/recent-trade": self._recent_trade,
            "/v5/market/risk-limit": self._risk_limit,
            "/v5/market/price-limit": self._price_limit,
        }
        paths |= {path: self._kline(kind) for path, kind in _KLINES.items()}
        return {("GET", path): handler for path, handler in paths.items()}

    def _kline(self, kind: Kind) -> Handler:
        def answer(call: Call) -> dict[str, Any]:
            symbol, market = self._instrument(call)
            timeframe = INTERVALS.get(_required(call, "interval"))
            if timeframe is None:
                raise Refusal(PARAMETER_ERROR, "Invalid period!")
            limit = _limit(call, 200, 1000)
            start, end = _integer(call, "start"), _integer(call, "end")
            # a start inside a bar returns that bar too; an end keeps the bars that opened by then
            first = market.launch_ms if start is None else max(timeframe.floor(start), market.launch_ms)
            last = timeframe.floor(min(call.now_ms - 1, call.now_ms if end is None else end))
            if start is not None and (end is None or self._options.overfull == "first"):
                last = min(last, first + (limit - 1) * timeframe.ms)
            else:
                first = max(first, last - (limit - 1) * timeframe.ms)
            candles = market.candles(kind, timeframe, first, last, call.now_ms)
            rows = _corrupted(_candle_rows(candles, market.tick, kind), call, timeframe)
            listed = [[str(value) for value in row.values()] for row in reversed(rows)]
            return {"symbol": symbol, "category": "linear", "list": listed}

        return answer

    def _funding(self, call: Call) -> dict[str, Any]:
        symbol, market = self._instrument(call)
        start, end, limit = _integer(call, "startTime"), _integer(call, "endTime"), _limit(call, 200, 200)
        if start is not None and end is None:
            raise Refusal(PARAMETER_ERROR, "params error: endTime can not be empty when startTime is given")
        stamps = _stamps(Timeframe(FUNDING_MS // 60_000), market.launch_ms, start, end, call.now_ms)[-limit:]
        rates = market.funding(stamps, call.now_ms).tolist() if len(stamps) else []
        rows: list[Row] = [
            {"time": ts, "fundingRate": _text(rate, 8)} for ts, rate in zip(stamps.tolist(), rates, strict=True)
        ]
        rows = _corrupted(rows, call, Timeframe(FUNDING_MS // 60_000))
        listed = [
            {"symbol": symbol, "fundingRate": row["fundingRate"], "fundingRateTimestamp": str(row["time"])}
            for row in reversed(rows)
        ]
        return {"category": "linear", "list": listed}

    def _open_interest(self, call: Call) -> dict[str, Any]:
        symbol, market = self._instrument(call)
        since = self._options.both_sides_since_ms

        def build(stamps: Any) -> list[Row]:
            rows: list[Row] = []
            for ts, coins in zip(stamps.tolist(), market.open_interest(stamps, call.now_ms).tolist(), strict=True):
                both = ts >= since
                row: Row = {"time": ts, "openInterest": f"{coins * 2 if both else coins:.8f}"}
                rows.append({**row, "singleOpenInterest": _text(coins, 3)} if both else row)
            return rows

        rows, cursor = _sampled(call, "intervalTime", market.launch_ms, 200, build)
        listed = [{**_values(row), "timestamp": str(row["time"])} for row in rows]
        return {"symbol": symbol, "category": "linear", "list": listed, "nextPageCursor": cursor}

    def _account_ratio(self, call: Call) -> dict[str, Any]:
        symbol, market = self._instrument(call)

        def build(stamps: Any) -> list[Row]:
            shares = market.long_share(stamps, call.now_ms).tolist()
            return [
                {"time": ts, "buyRatio": f"{share:.4f}", "sellRatio": f"{1 - share:.4f}"}
                for ts, share in zip(stamps.tolist(), shares, strict=True)
            ]

        rows, cursor = _sampled(call, "period", max(market.launch_ms, RATIO_SINCE_MS), 500, build)
        listed = [{"symbol": symbol, **_values(row), "timestamp": str(row["time"])} for row in rows]
        return {"list": listed, "nextPageCursor": cursor}

    def _instruments(self, call: Call) -> dict[str, Any]:
        _category(call)
        asked = call.query.get("symbol")
        if asked is not None and asked not in self._markets:
            raise Refusal(PARAMETER_ERROR, "params error: symbol invalid")
        names = sorted(self._markets) if asked is None else [asked]
        if call.query.get("status", "Trading") != "Trading":
            names = []
        limit, begin = _limit(call, 500, 1000), 0
        if cursor := call.query.get("cursor"):
            begin = names.index(cursor) if cursor in names else len(names)
        page = names[begin : begin + limit]
        following = names[begin + limit] if begin + limit < len(names) else ""
        listed = [instrument(name, self._markets[name]) for name in page]
        return {"category": "linear", "list": listed, "nextPageCursor": following}

    def _tickers(self, call: Call) -> dict[str, Any]:
        names = [self._instrument(call)[0]] if "symbol" in call.query else sorted(self._markets)
        _category(call)
        return {"category": "linear", "list": [ticker(name, self._markets[name], call.now_ms) for name in names]}

    def _orderbook(self, call: Call) -> dict[str, Any]:
        symbol, market = self._instrument(call)
        return orderbook(symbol, market, _limit(call, 25, 500), call.now_ms)

    def _recent_trade(self, call: Call) -> dict[str, Any]:
        symbol, market = self._instrument(call)
        trades = recent_trades(symbol, market, _limit(call, 500, 1000), call.now_ms)
        return {"category": "linear", "list": trades}

    def _risk_limit(self, call: Call) -> dict[str, Any]:
        names = [self._instrument(call)[0]] if "symbol" in call.query else sorted(self._markets)
        _category(call)
        listed = [tier for name in names for tier in risk_limits(name)]
        return {"category": "linear", "list": listed, "nextPageCursor": ""}

    def _price_limit(self, call: Call) -> dict[str, Any]:
        symbol, market = self._instrument(call)
        return price_limit(symbol, market, call.now_ms)

    def _instrument(self, call: Call) -> tuple[str, BybitMarket]:
        _category(call)
        symbol = _required(call, "symbol")
        if symbol not in self._markets:
            raise Refusal(PARAMETER_ERROR, "params error: symbol invalid")
        return symbol, self._markets[symbol]


def _time(call: Call) -> dict[str, Any]:
    return {"timeSecond": str(call.now_ms // 1000), "timeNano": str(call.now_ms * 1_000_000)}


def _category(call: Call) -> None:
    if call.query.get("category", "linear") != "linear":
        raise Refusal(PARAMETER_ERROR, "params error: Category is invalid; the emulator has linear only")


def _required(call: Call, name: str) -> str:
    text = call.query.get(name)
    if not text:
        raise Refusal(PARAMETER_ERROR, f"params error: {name} can not be empty")
    return text


def _integer(call: Call, name: str) -> int | None:
    text = call.query.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise Refusal(PARAMETER_ERROR, f"params error: {name} is invalid: {text[:40]}")
    return int(text)


def _limit(call: Call, default: int, most: int) -> int:
    given = _integer(call, "limit")
    if given == 0:
        raise Refusal(PARAMETER_ERROR, "params error: limit must be at least 1")
    return min(default if given is None else given, most)


def _stamps(timeframe: Timeframe, after_ms: int, start: int | None, end: int | None, now_ms: int) -> Any:
    """Return the sampling instants in ``[start, end]`` later than ``after_ms`` and not later than now, ascending."""
    first = max(timeframe.ceil(after_ms + STEP.ms), 0 if start is None else timeframe.ceil(start))
    last = min(now_ms, now_ms if end is None else end)
    return np.arange(first, last + 1, timeframe.ms, dtype=np.int64)


def _sampled(
    call: Call, period: str, after_ms: int, most: int, build: Callable[[Any], list[Row]]
) -> tuple[list[Row], str]:
    """Return one page of samples, newest first, and the cursor of the next page (empty on the last one)."""
    timeframe = PERIODS.get(_required(call, period))
    if timeframe is None:
        raise Refusal(PARAMETER_ERROR, f"params error: {period} is invalid")
    start, end = _integer(call, "startTime"), _integer(call, "endTime")
    if cursor := call.query.get("cursor"):
        # opaque to clients: a percent-encoded text in the answer, which the query's own decoding turns into this
        name, _, before = cursor.partition("=")
        if name != "lasttime" or not before.isdigit():
            raise Refusal(PARAMETER_ERROR, "params error: cursor is invalid")
        end = int(before) - 1
    stamps = _stamps(timeframe, after_ms, start, end, call.now_ms)
    page = stamps[-_limit(call, 50, most) :]
    rows = _corrupted(build(page) if len(page) else [], call, timeframe)
    more = len(stamps) > len(page)
    return rows[::-1], urllib.parse.quote(f"lasttime={int(page[0])}", safe="") if more else ""


def _corrupted(rows: list[Row], call: Call, timeframe: Timeframe) -> list[Row]:
    """Apply the faults that act on rows; rows ascend and have a ``time``."""
    for fault in call.faults:
        changed = corrupt(rows, fault, timeframe.ms, call.now_ms)
        if changed != rows:
            call.record(fault)
        rows = changed
    return rows


def _candle_rows(candles: Candles, tick: int, kind: Kind) -> list[Row]:
    """Return candles as texts: prices at the tick's decimals, the premium with six, volume and turnover trimmed."""
    decimals = 6 if kind == "premium" else tick
    columns: dict[str, list[Any]] = {"time": candles.ts.tolist()}
    for name in ("open", "high", "low", "close"):
        columns[name] = [f"{value:.{decimals}f}" for value in candles.values[name].tolist()]
    if kind == "trade":
        columns["volume"] = [_text(value, 3) for value in candles.values["volume"].tolist()]
        columns["turnover"] = [_text(value, 4) for value in candles.values["turnover"].tolist()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _values(row: Row) -> Row:
    return {name: value for name, value in row.items() if name != "time"}


def _text(value: float, decimals: int) -> str:
    text = f"{value:.{decimals}f}".rstrip("0").rstrip(".")
    return "0" if text in ("", "-0") else text
