"""Matching: how an account's orders meet the market, at a request and while time passes.

The order of events at one instant is fixed: funding, then triggers (stops before conditional orders, then by age),
then resting orders by price and age, then the margin. Requests at that instant come after it. Nothing depends on how
often the state was looked at: instants lie on a grid of the feed, not on the clock's steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Final

from mlbot_core.emulator.bybit_market import FUNDING_MS
from mlbot_core.emulator.exchange import scan, stops
from mlbot_core.emulator.exchange.account import Account
from mlbot_core.emulator.exchange.contract import Contract, Marks
from mlbot_core.emulator.exchange.feed import Quote, Ticks
from mlbot_core.emulator.exchange.numbers import ZERO, floor_to
from mlbot_core.emulator.exchange.orders import POSITION_STOPS, RESTING, Order
from mlbot_core.emulator.exchange.settlement import after_fill, liquidate, settle_funding

# How much of an interval's volume a resting order gets when the price only touches it; all of it when it goes through.
TOUCH_SHARE: Final = Decimal("0.2")
_CHUNK_MS: Final = 24 * 3_600_000


class Engine:
    """The rules of matching over one account.

    Parameters
    ----------
    account
        Changed in place.
    contracts
        Rules and feed by symbol.
    start_ms
        The account has no past before it, UTC ms.
    """

    def __init__(self, account: Account, contracts: Mapping[str, Contract], start_ms: int) -> None:
        self.account = account
        self.contracts = contracts
        self.now_ms = start_ms
        account.marks_at = self.marks

    def marks(self, ts: int) -> Mapping[str, Decimal]:
        """Return the mark price of every contract at an instant, USDT."""
        return Marks(self.contracts, ts)

    def advance(self, to_ms: int) -> None:
        """Let time pass until ``to_ms``, that instant included."""
        account = self.account
        while self.now_ms < to_ms:
            symbols = scan.active_symbols(account)
            if not symbols:
                break
            upto = min(to_ms, self.now_ms + _CHUNK_MS)
            ticks = {symbol: self.contracts[symbol].feed.ticks(self.now_ms, upto) for symbol in symbols}
            while (ts := scan.first_event(account, ticks, self.now_ms)) is not None:
                self._follow(ticks, ts)
                self._happen(ticks, ts)
                self.now_ms = ts
                if not set(scan.active_symbols(account)) <= set(symbols):
                    break
            else:
                self._follow(ticks, upto)
                self.now_ms = upto
        self.now_ms = max(self.now_ms, to_ms)

    def _follow(self, ticks: Mapping[str, Ticks], upto_ms: int) -> None:
        """Let trailing stops follow the prices in ``(now, upto]``."""
        for order in list(self.account.open.values()):
            if order.trail is None or order.status != "Untriggered" or order.symbol not in ticks:
                continue
            part = ticks[order.symbol]
            passed = part.last[(part.ts > self.now_ms) & (part.ts <= upto_ms)]
            places = -int(self.contracts[order.symbol].rules.tick.normalize().as_tuple().exponent)
            stops.follow(self.account.positions[order.symbol], order, passed, places)

    def _happen(self, ticks: Mapping[str, Ticks], ts: int) -> None:
        """Work off one instant."""
        account = self.account
        for symbol in sorted(ticks):
            part = ticks[symbol]
            at = int(part.ts.searchsorted(ts))
            if at >= len(part.ts) or part.ts[at] != ts:
                continue
            contract, position = self.contracts[symbol], account.positions[symbol]
            quote = contract.quote(ts)
            if ts % FUNDING_MS == 0 and position.size:
                settle_funding(account, symbol, contract.feed.funding_rate(ts), quote.mark, ts)
            self._trigger(symbol, quote)
            self._match_resting(symbol, quote, Decimal(f"{part.volume[at]:.3f}"))
        if any(position.size for position in account.positions.values()):
            marks = self.marks(ts)
            margin = account.margin(marks)
            if margin.maintenance >= margin.balance:
                liquidate(account, marks, ts)

    def _trigger(self, symbol: str, quote: Quote) -> None:
        waiting = [o for o in self.account.open.values() if o.symbol == symbol and o.status == "Untriggered"]
        waiting.sort(key=lambda order: (order.stop_type not in POSITION_STOPS, order.number))
        for order in waiting:
            if order.status == "Untriggered" and self._is_due(order, quote):
                self.activate(order, quote)

    def _is_due(self, order: Order, quote: Quote) -> bool:
        if order.trail is not None:
            position = self.account.positions[order.symbol]
            if position.peak is None:
                return False
            away = position.peak - quote.last if position.size > 0 else quote.last - position.peak
            return away >= order.trail
        price, level = quote.price(order.trigger_by), order.trigger_price or ZERO
        return price >= level if order.trigger_direction == 1 else price <= level

    def activate(self, order: Order, quote: Quote) -> None:
        """Send a conditional order that has been triggered to the book."""
        account, position = self.account, self.account.positions[order.symbol]
        contract = self.contracts[order.symbol]
        order.status = "Triggered"
        account.changed(order, quote.ts)
        account.open[order.order_id] = order
        order.status, order.closed_ms = "New", 0
        if order.kind == "Market":
            order.limit = contract.cap(order.side, quote)
        if order.whole:
            order.qty = min(abs(position.size), contract.rules.max_market_qty)
        whole_again = order.whole
        order.whole = False
        if not order.reduce_only and self._too_dear(order, quote):
            order.status, order.reject_reason = "Rejected", "EC_NoEnoughQtyToFill"
            account.changed(order, quote.ts)
            return
        self.work(order, quote)
        if whole_again and position.size and not order.is_open:
            # the book was too thin: what is left keeps its stop
            price = order.trail if order.trail is not None else order.trigger_price or ZERO
            again = stops.place(
                account, position, stops.StopWish(order.stop_type, price, order.trigger_by), quote.ts, quote.last
            )
            if order.trail is not None:
                again.trigger_price = order.trigger_price

    def _too_dear(self, order: Order, quote: Quote) -> bool:
        margin = self.account.margin(self.marks(quote.ts), order)
        return margin.balance < margin.initial

    def room(self, order: Order) -> Decimal:
        """Return how much of an order may still be filled: its rest, and for reduce-only what the position allows."""
        left = order.qty - order.filled
        if order.fill_cap is not None:
            left = min(left, order.fill_cap - order.filled)
        if order.reduce_only:
            position = self.account.positions[order.symbol]
            left = min(left, abs(position.size) if position.side and position.side != order.side else ZERO)
        return max(left, ZERO)

    def work(self, order: Order, quote: Quote) -> None:
        """Let an accepted order meet the book: take what it may, then rest, or end."""
        contract = self.contracts[order.symbol]
        if order.tif == "PostOnly" and contract.crosses(order.side, order.limit, quote):
            self._end(order, quote.ts, "EC_PostOnlyWillTakeLiquidity")
            return
        offers = contract.offers(order.side, order.limit, self.room(order), quote)
        if order.tif == "FOK" and sum((qty for _, qty in offers), ZERO) < order.leaves:
            self._end(order, quote.ts, "EC_CancelForNoFullFill")
            return
        for price, qty in offers:
            contract.take(order.side, price, qty, quote)
            self.fill(order, qty, price, quote, maker=False)
        self._conclude(order, quote)
        if offers:
            after_fill(self.account, self.account.positions[order.symbol], quote.ts)

    def _conclude(self, order: Order, quote: Quote) -> None:
        """Give an order that has been worked its status."""
        if order.filled == order.qty:
            order.status = "Filled"
            self.account.changed(order, quote.ts)
        elif order.fill_cap is not None and order.filled >= order.fill_cap:
            self._end(order, quote.ts, "EC_NoImmediateQtyToFill")
        elif order.reduce_only and not self.room(order):
            self._end(order, quote.ts, "EC_NoError", "CancelByReduceOnly")
        elif order.tif in ("IOC", "FOK"):
            self._end(order, quote.ts, "EC_NoImmediateQtyToFill" if not order.filled else "EC_NoError")
        else:
            order.status = "PartiallyFilled" if order.filled else "New"
            self.account.changed(order, quote.ts)

    def _end(self, order: Order, ts: int, reason: str, cancel_type: str = "UNKNOWN") -> None:
        order.cancel(cancel_type, reason)
        self.account.changed(order, ts)

    def fill(self, order: Order, qty: Decimal, price: Decimal, quote: Quote, *, maker: bool) -> None:
        """Book a fill of an order and set the stops that it brings along."""
        account, position = self.account, self.account.positions[order.symbol]
        side_before = position.side
        account.trade(order, order.symbol, order.side, qty, price, maker=maker, ts=quote.ts, mark=quote.mark)
        if side_before and position.side != side_before:
            stops.clear(account, order.symbol, quote.ts)
        if position.side == order.side:
            for kind, level, by in (
                ("TakeProfit", order.take_profit, order.tp_by),
                ("StopLoss", order.stop_loss, order.sl_by),
            ):
                old = stops.standing(account, order.symbol, kind)
                if level is not None and (old is None or (old.trigger_price, old.trigger_by) != (level, by)):
                    stops.place(account, position, stops.StopWish(kind, level, by), quote.ts, quote.last)

    def _match_resting(self, symbol: str, quote: Quote, volume: Decimal) -> None:
        """Fill resting orders that the price has reached, as maker at their own price, while the volume lasts."""
        step = self.contracts[symbol].rules.step
        for side in ("Buy", "Sell"):
            left = {True: floor_to(volume, step), False: floor_to(volume * TOUCH_SHARE, step)}
            resting = [
                o for o in self.account.open.values() if o.symbol == symbol and o.side == side and o.status in RESTING
            ]
            resting.sort(key=lambda o: (-o.limit if o.side == "Buy" else o.limit, o.number))
            for order in resting:
                beyond = (order.limit - quote.last) * order.sign
                if beyond < 0 or not order.is_open:
                    continue
                through = beyond > 0
                qty = min(self.room(order), left[through])
                if qty > 0:
                    left = {key: max(ZERO, value - qty) for key, value in left.items()}
                    self.fill(order, qty, order.limit, quote, maker=True)
                    self._conclude(order, quote)
                    after_fill(self.account, self.account.positions[symbol], quote.ts)
