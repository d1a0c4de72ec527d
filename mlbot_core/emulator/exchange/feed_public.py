"""Public endpoints over contracts whose feed is all there is: no candles, no history."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mlbot_core.emulator.bybit_api import Call, Handler, Refusal
from mlbot_core.emulator.bybit_market import FUNDING_MS
from mlbot_core.emulator.bybit_snapshot import instrument_row, risk_limits
from mlbot_core.emulator.exchange.contract import Contract
from mlbot_core.emulator.exchange.numbers import text
from mlbot_core.emulator.exchange.params import integer, linear, wrong
from mlbot_core.timeframe import HOUR_MS

Row = dict[str, Any]
_DEPTH: Final = 25


class FeedPublic:
    """Time, instruments, tickers, book, price band and risk tiers.

    Parameters
    ----------
    contracts
        By symbol.
    """

    def __init__(self, contracts: Mapping[str, Contract]) -> None:
        self._contracts = contracts

    @property
    def handlers(self) -> Mapping[tuple[str, str], Handler]:
        """Handlers by method and path."""
        paths: dict[str, Handler] = {
            "/v5/market/time": _time,
            "/v5/market/instruments-info": lambda call: self._listed(call, lambda name: [instrument_row(name, 0)]),
            "/v5/market/tickers": lambda call: self._listed(call, lambda name: [self._ticker(name, call.now_ms)]),
            "/v5/market/risk-limit": lambda call: self._listed(call, risk_limits),
            "/v5/market/orderbook": self._orderbook,
            "/v5/market/price-limit": self._price_limit,
        }
        return {("GET", path): handler for path, handler in paths.items()}

    def _names(self, call: Call) -> list[str]:
        linear(call.query)
        name = call.query.get("symbol")
        if name and name not in self._contracts:
            raise wrong("symbol invalid")
        return [name] if name else sorted(self._contracts)

    def _listed(self, call: Call, rows: Any) -> Row:
        listed = [row for name in self._names(call) for row in rows(name)]
        if call.query.get("status", "Trading") != "Trading":
            listed = []
        return {"category": "linear", "list": listed, "nextPageCursor": ""}

    def _one(self, call: Call) -> str:
        if not call.query.get("symbol"):
            raise Refusal(10001, "params error: symbol can not be empty")
        return self._names(call)[0]

    def _ticker(self, name: str, now_ms: int) -> Row:
        contract = self._contracts[name]
        quote = contract.quote(now_ms)
        settled = now_ms // FUNDING_MS * FUNDING_MS
        return {
            "symbol": name,
            "lastPrice": text(quote.last),
            "markPrice": text(quote.mark),
            "indexPrice": text(quote.index),
            "fundingRate": text(contract.feed.funding_rate(settled + FUNDING_MS)),
            "nextFundingTime": str(settled + FUNDING_MS),
            "fundingIntervalHour": str(FUNDING_MS // HOUR_MS),
            "bid1Price": text(quote.bids[0][0]),
            "bid1Size": text(quote.bids[0][1]),
            "ask1Price": text(quote.asks[0][0]),
            "ask1Size": text(quote.asks[0][1]),
        }

    def _orderbook(self, call: Call) -> Row:
        name = self._one(call)
        quote, depth = self._contracts[name].quote(call.now_ms), integer(call.query, "limit", _DEPTH, 500)
        sides = {
            side: [[text(price), text(size)] for price, size in levels[:depth]]
            for side, levels in (("b", quote.bids), ("a", quote.asks))
        }
        stamps = {"ts": call.now_ms, "u": call.now_ms // 20, "seq": call.now_ms // 10, "cts": call.now_ms}
        return {"s": name, **sides, **stamps}

    def _price_limit(self, call: Call) -> Row:
        name = self._one(call)
        highest, lowest = self._contracts[name].band(self._contracts[name].quote(call.now_ms).mark)
        return {"symbol": name, "buyLmt": text(highest), "sellLmt": text(lowest), "ts": str(call.now_ms)}


def _time(call: Call) -> Row:
    return {"timeSecond": str(call.now_ms // 1000), "timeNano": str(call.now_ms * 1_000_000)}
