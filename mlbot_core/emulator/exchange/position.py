"""One-way positions: what a fill does to size, entry and profit."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from mlbot_core.emulator.exchange.numbers import ZERO, ceil_to, floor_to, money
from mlbot_core.emulator.exchange.rules import DEFAULT_LEVERAGE, Rules


@dataclass(frozen=True)
class Closing:
    """What a fill closed: coins, and the profit on them (USDT, before fees)."""

    qty: Decimal
    pnl: Decimal


@dataclass
class Position:
    r"""The net position in one symbol.

    ``size`` is signed, coins. ``entry_value`` is what the open coins cost, USDT, kept as a sum so that the profits of
    partial closes and of the last close add up to the difference of the fills' values, to the last unit:

    .. math:: pnl = sign \cdot (q \cdot price - entry\_value \cdot q / |size|)
    """

    symbol: str
    size: Decimal = ZERO
    entry_value: Decimal = ZERO
    leverage: Decimal = DEFAULT_LEVERAGE
    realised: Decimal = ZERO
    total_realised: Decimal = ZERO
    created_ms: int = 0
    updated_ms: int = 0
    opened_ms: int = 0
    seq: int = -1
    peak: Decimal | None = None

    @property
    def average(self) -> Decimal:
        """Average entry price; 0 when flat."""
        return self.entry_value / abs(self.size) if self.size else ZERO

    @property
    def side(self) -> str:
        """``Buy``, ``Sell`` or an empty text when flat."""
        return "" if not self.size else ("Buy" if self.size > 0 else "Sell")

    def unrealised(self, mark: Decimal) -> Decimal:
        """Return the profit at a mark price, USDT."""
        value = abs(self.size) * mark
        return value - self.entry_value if self.size > 0 else self.entry_value - value

    def fill(self, sign: int, qty: Decimal, price: Decimal, ts: int) -> Closing:
        """Take in a fill of ``qty`` coins bought (+1) or sold (-1) and return what it closed.

        A fill larger than an opposite position closes it and opens the rest the other way round.
        """
        closed = min(qty, abs(self.size)) if self.size and (self.size > 0) != (sign > 0) else ZERO
        pnl = ZERO
        if closed:
            cost = self.entry_value if closed == abs(self.size) else money(self.entry_value * closed / abs(self.size))
            pnl = closed * price - cost if self.size > 0 else cost - closed * price
            self.entry_value -= cost
            self.size += sign * closed
        opened = qty - closed
        if opened:
            if not self.size:
                self.opened_ms, self.realised = ts, ZERO
                self.created_ms = self.created_ms or ts
            self.entry_value += opened * price
            self.size += sign * opened
        self.updated_ms = ts
        return Closing(closed, money(pnl))

    def book(self, amount: Decimal) -> None:
        """Count an amount (profit, fee, funding; USDT) as realised by this position."""
        self.realised += amount
        self.total_realised += amount


def bankruptcy_price(position: Position, wallet: Decimal, taker: Decimal, tick: Decimal) -> Decimal:
    r"""Return the price at which closing leaves nothing of a wallet, rounded to a tick in its favour.

    From :math:`W + s (P - a) - |s| P f = 0` for size s, entry a and taker fee f.
    """
    size = abs(position.size)
    if position.size > 0:
        return ceil_to((position.entry_value - wallet) / (size * (1 - taker)), tick)
    return floor_to((position.entry_value + wallet) / (size * (1 + taker)), tick)


def liquidation_price(position: Position, wallet: Decimal, rules: Rules) -> Decimal | None:
    r"""Return the mark price at which the maintenance margin uses up the margin balance; None when there is none.

    For a long of size s, entry value E, wallet W (with the other positions' unrealised profit), tier rate m and
    deduction d: :math:`W + sP - E = sPm - d`, so :math:`P = (E - W - d) / (s (1 - m))`; for a short
    :math:`P = (E + W + d) / (s (1 + m))`. The tier is that of the value at P.
    """
    size = abs(position.size)
    for tier in rules.tiers:
        if position.size > 0:
            price = (position.entry_value - wallet - tier.deduction) / (size * (1 - tier.rate))
        else:
            price = (position.entry_value + wallet + tier.deduction) / (size * (1 + tier.rate))
        if price * size <= tier.up_to:
            break
    return price if rules.min_price < price < rules.max_price else None
