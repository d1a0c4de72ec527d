"""What a private handler is given, and the pages that it answers with."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from mlbot_core.emulator.exchange.auth import ApiKey
from mlbot_core.emulator.exchange.engine import Engine
from mlbot_core.emulator.exchange.feed import Quote
from mlbot_core.emulator.exchange.params import Params, integer, linear, wrong
from mlbot_core.emulator.exchange.trade_faults import TradeFault
from mlbot_core.timeframe import DAY_MS

WEEK_MS: Final = 7 * DAY_MS
T = TypeVar("T")


@dataclass(frozen=True)
class Context:
    """One private request: who, what, when (the exchange's time, UTC ms), and what a fault does to its order."""

    key: ApiKey
    engine: Engine
    params: Params
    now_ms: int
    fault: TradeFault | None = None

    def symbol(self) -> str:
        """Return the contract that the request names.

        Raises
        ------
        Refusal
            10001 if it names none or an unknown one.
        """
        linear(self.params)
        name = self.params.get("symbol")
        if name not in self.engine.contracts:
            raise wrong("symbol invalid" if name else "symbol can not be empty")
        return str(name)

    def symbols(self) -> list[str]:
        """Return the contracts that ``symbol``, ``baseCoin`` or ``settleCoin`` name, of which one is required.

        Raises
        ------
        Refusal
            10001 if none is given or the symbol is unknown.
        """
        if self.params.get("symbol"):
            return [self.symbol()]
        linear(self.params)
        base, settle = self.params.get("baseCoin"), self.params.get("settleCoin")
        if not base and not settle:
            raise wrong("symbol, baseCoin or settleCoin is required")
        contracts = self.engine.contracts
        return [n for n in contracts if (not base or n == f"{base}USDT") and (not settle or settle == "USDT")]

    def quote(self, symbol: str) -> Quote:
        """Return the market of now."""
        return self.engine.contracts[symbol].quote(self.now_ms)


Handler = Callable[[Context], dict[str, Any]]
Handlers = Mapping[tuple[str, str], Handler]


def page(context: Context, found: list[T], number: Callable[[T], int], default: int, most: int) -> tuple[list[T], str]:
    """Return one page of what was found, newest first, and the cursor of the next one (empty on the last).

    ``number`` counts up with age; a cursor names the last number that was given.

    Raises
    ------
    Refusal
        10001 if limit or cursor is wrong.
    """
    limit = integer(context.params, "limit", default, most)
    if not limit:
        raise wrong("limit invalid")
    rows = sorted(found, key=number, reverse=True)
    if cursor := context.params.get("cursor"):
        name, _, before = urllib.parse.unquote(str(cursor)).partition("=")
        if name != "before" or not before.isdigit():
            raise wrong("cursor invalid")
        rows = [row for row in rows if number(row) < int(before)]
    shown = rows[:limit]
    more = len(rows) > len(shown)
    return shown, urllib.parse.quote(f"before={number(shown[-1])}", safe="") if more else ""
