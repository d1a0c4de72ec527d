"""One contract with its market: quotes, the price band, and a book that remembers what was taken from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Final

from mlbot_core.emulator.exchange.feed import Feed, Quote
from mlbot_core.emulator.exchange.numbers import ZERO, ceil_to, floor_to
from mlbot_core.emulator.exchange.orders import Side
from mlbot_core.emulator.exchange.rules import Rules

# How far a market order may go from the last price when it names no tolerance.
MARKET_CAP: Final = Decimal("0.01")


class Marks(Mapping[str, Decimal]):
    """Mark prices (USDT) by symbol at one instant; a market that nobody asks for is not looked at."""

    def __init__(self, contracts: Mapping[str, Contract], ts: int) -> None:
        self._contracts = contracts
        self._ts = ts

    def __getitem__(self, symbol: str) -> Decimal:
        return self._contracts[symbol].quote(self._ts).mark

    def __iter__(self) -> Iterator[str]:
        return iter(self._contracts)

    def __len__(self) -> int:
        return len(self._contracts)


class Contract:
    """Rules and feed of a symbol.

    What is taken from the book at an instant is missing from it until time moves on.
    """

    def __init__(self, rules: Rules, feed: Feed) -> None:
        self.rules = rules
        self.feed = feed
        self._taken: dict[tuple[Side, Decimal], Decimal] = {}
        self._taken_ms = -1

    def quote(self, now_ms: int) -> Quote:
        """Return the market at an instant."""
        return self.feed.quote(now_ms)

    def band(self, mark: Decimal) -> tuple[Decimal, Decimal]:
        """Return the highest price of a buy and the lowest of a sell (USDT), as ``price-limit`` shows them."""
        wide = mark * self.rules.band
        places = self.rules.tick
        return (mark + wide).quantize(places), (mark - wide).quantize(places)

    def cap(self, side: Side, quote: Quote, kind: str = "", value: Decimal = ZERO) -> Decimal:
        """Return the worst price of a market order: ``TickSize`` or ``Percent`` from the best level, or the default."""
        sign = 1 if side == "Buy" else -1
        levels = quote.asks if side == "Buy" else quote.bids
        best = levels[0][0]
        if kind == "TickSize":
            price = best + sign * value * self.rules.tick
        elif kind == "Percent":
            price = best * (1 + sign * value / 100)
        else:
            price = quote.last * (1 + sign * MARKET_CAP)
        return floor_to(price, self.rules.tick) if side == "Buy" else ceil_to(price, self.rules.tick)

    def crosses(self, side: Side, limit: Decimal, quote: Quote) -> bool:
        """Say whether an order at ``limit`` would trade at once."""
        return limit >= quote.asks[0][0] if side == "Buy" else limit <= quote.bids[0][0]

    def offers(self, side: Side, limit: Decimal, qty: Decimal, quote: Quote) -> list[tuple[Decimal, Decimal]]:
        """Return (price, coins) a taker would get up to ``qty`` within ``limit``, best first; nothing is taken."""
        taken = self._taken if self._taken_ms == quote.ts else {}
        found = []
        for price, size in quote.asks if side == "Buy" else quote.bids:
            if (price > limit if side == "Buy" else price < limit) or qty <= 0:
                break
            part = min(qty, size - taken.get((side, price), ZERO))
            if part > 0:
                found.append((price, part))
                qty -= part
        return found

    def take(self, side: Side, price: Decimal, qty: Decimal, quote: Quote) -> None:
        """Take coins off a level."""
        if self._taken_ms != quote.ts:
            self._taken, self._taken_ms = {}, quote.ts
        self._taken[side, price] = self._taken.get((side, price), ZERO) + qty
