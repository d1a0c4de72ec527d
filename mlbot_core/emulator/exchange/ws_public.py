"""What public websockets push: the answers of the public endpoints, as snapshots and what changed since."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mlbot_core.emulator.bybit_api import Call, Refusal
from mlbot_core.emulator.bybit_public import INTERVALS

Message = dict[str, Any]
Ask = Callable[[str, Mapping[str, str], int], Any]

# How often a topic is looked at, exchange ms.
_PERIODS: Final[Mapping[str, int]] = {"tickers": 100, "orderbook": 20, "publicTrade": 100, "kline": 1000}
_DEPTHS: Final = ("1", "50", "200", "500", "1000")
_MOST_BARS: Final = 1000
_TICK_FIELDS: Final = {"tickDirection": "ZeroPlusTick", "preOpenPrice": "", "preQty": "", "curPreListingPhase": ""}


@dataclass
class _Topic:
    """One subscription and what was pushed on it last."""

    name: str
    kind: str
    symbol: str
    detail: str = ""
    pushed_ms: int = -1
    last: dict[str, Any] = field(default_factory=dict)
    since: int = -1


class PublicTopics:
    """The subscriptions of one public connection.

    Parameters
    ----------
    handlers
        Public endpoints by method and path; see :class:`mlbot_core.emulator.bybit_api.Group`.
    """

    def __init__(self, handlers: Mapping[tuple[str, str], Callable[[Call], dict[str, Any]]]) -> None:
        self._handlers = handlers
        self._topics: dict[str, _Topic] = {}

    def subscribe(self, name: str, now_ms: int) -> str:
        """Add a topic; the first message comes with the next :meth:`poll`. Returns what is wrong, or an empty text."""
        parts = name.split(".")
        kind, symbol = parts[0], parts[-1]
        known = (
            (len(parts) == 2 and kind in ("tickers", "publicTrade"))
            or (len(parts) == 3 and kind == "orderbook" and parts[1] in _DEPTHS)
            or (len(parts) == 3 and kind == "kline" and parts[1] in INTERVALS)
        )
        if not known:
            return f"error:handler not found,topic:{name}"
        try:
            self._ask("tickers", {"symbol": symbol}, now_ms)
        except Refusal:
            return f"Invalid symbol :[{name}]"
        self._topics.setdefault(name, _Topic(name, kind, symbol, parts[1] if len(parts) == 3 else ""))
        return ""

    def unsubscribe(self, name: str) -> None:
        """Take a topic away."""
        self._topics.pop(name, None)

    def poll(self, now_ms: int) -> list[Message]:
        """Return what is new since the last poll, topic by topic in the order of subscription."""
        messages: list[Message] = []
        for topic in self._topics.values():
            if topic.pushed_ms >= 0 and now_ms - topic.pushed_ms < _PERIODS[topic.kind]:
                continue
            messages += getattr(self, f"_{topic.kind.lower()}")(topic, now_ms)
            topic.pushed_ms = now_ms
        return messages

    def _ask(self, what: str, params: Mapping[str, str], now_ms: int) -> Any:
        handler = self._handlers.get(("GET", f"/v5/market/{what}"))
        if handler is None:
            raise Refusal(10017, "Route not found.", status=404)
        return handler(Call({"category": "linear", **params}, now_ms))

    def _tickers(self, topic: _Topic, now_ms: int) -> list[Message]:
        (row,) = self._ask("tickers", {"symbol": topic.symbol}, now_ms)["list"]
        row = {**row, **_TICK_FIELDS}
        kind = "delta" if topic.last else "snapshot"
        data = {name: value for name, value in row.items() if topic.last.get(name) != value}
        topic.last = row
        if not data:
            return []
        data = {"symbol": topic.symbol, **data}
        return [{"topic": topic.name, "type": kind, "data": data, "cs": now_ms // 10, "ts": now_ms}]

    def _orderbook(self, topic: _Topic, now_ms: int) -> list[Message]:
        book = self._ask("orderbook", {"symbol": topic.symbol, "limit": topic.detail}, now_ms)
        kind = "delta" if topic.last else "snapshot"
        sides = {}
        for side in ("b", "a"):
            now = dict(book[side])
            before = topic.last.get(side, {})
            gone = [[price, "0"] for price in before if price not in now]
            sides[side] = gone + [[price, size] for price, size in now.items() if before.get(price) != size]
            topic.last[side] = now
        if kind == "delta" and not sides["b"] and not sides["a"]:
            return []
        data = {"s": topic.symbol, **sides, "u": book["u"], "seq": book["seq"]}
        return [{"topic": topic.name, "type": kind, "ts": now_ms, "data": data, "cts": book["cts"]}]

    def _publictrade(self, topic: _Topic, now_ms: int) -> list[Message]:
        rows = self._ask("recent-trade", {"symbol": topic.symbol, "limit": "60"}, now_ms)["list"]
        fresh = [row for row in reversed(rows) if int(row["time"]) > topic.since]
        if fresh:
            first = topic.since < 0
            topic.since = int(fresh[-1]["time"])
            fresh = fresh[-1:] if first else fresh
        data = [
            {
                "T": int(row["time"]),
                "s": topic.symbol,
                "S": row["side"],
                "v": row["size"],
                "p": row["price"],
                "L": "PlusTick" if row["side"] == "Buy" else "MinusTick",
                "i": row["execId"],
                "BT": False,
                "seq": int(row["seq"]),
            }
            for row in fresh
        ]
        return [{"topic": topic.name, "type": "snapshot", "ts": now_ms, "data": data}] if data else []

    def _kline(self, topic: _Topic, now_ms: int) -> list[Message]:
        """Push every bar that closed since the last look (``confirm``), then the open one."""
        step = INTERVALS[topic.detail]
        current = step.floor(now_ms)
        bars = 1 if topic.since < 0 else min(_MOST_BARS, (current - topic.since) // step.ms + 1)
        topic.since = current
        params = {"symbol": topic.symbol, "interval": topic.detail, "limit": str(bars), "end": str(current)}
        rows = self._ask("kline", params, now_ms)["list"]
        messages = []
        for start, open_, high, low, close, volume, turnover in reversed(rows):
            end = int(start) + step.ms
            bar = {
                "start": int(start),
                "end": end - 1,
                "interval": topic.detail,
                "open": open_,
                "close": close,
                "high": high,
                "low": low,
                "volume": volume,
                "turnover": turnover,
                "confirm": end <= now_ms,
                "timestamp": min(now_ms, end),
            }
            messages.append({"topic": topic.name, "data": [bar], "ts": now_ms, "type": "snapshot"})
        return messages
