"""The broker on Bybit v5 (linear contracts, one-way mode), through pybit."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from mlbot_core.execution import bybit_rows as rows
from mlbot_core.execution.broker import (
    Absent,
    Accepted,
    Ambiguous,
    Broker,
    BrokerError,
    DefiniteReject,
    Existing,
    MaySend,
    Next,
    Outcome,
    Resolution,
    VenueRefusedError,
    plain,
    refused,
    rule_violation,
)
from mlbot_core.execution.bybit_errors import CLOCK_CODES, Failure, Kind, judge
from mlbot_core.execution.bybit_questions import (
    CLOCK_BOUND_MS,
    LINEAR,
    SLACK_MS,
    WEEK_MS,
    BybitQuestions,
    executions_of,
)
from mlbot_core.execution.bybit_wire import RECV_WINDOW_MS
from mlbot_core.execution.types import Execution, Instrument, OrderRequest, TriggerBy
from mlbot_core.timeframe import DAY_MS

CLOCK_VALID_MS: Final = 300_000
PRICE_VALID_MS: Final = 60_000
# A request that arrives later than its receive window is refused; what was taken in shows itself within the rest.
PROPAGATION_MS: Final = 10_000
SETTLED_MS: Final = RECV_WINDOW_MS + PROPAGATION_MS + CLOCK_BOUND_MS
# How much longer a resolution goes on where questions stay without an answer.
PATIENCE_MS: Final = 15_000
# After these the rules of the instrument are read again.
_RULE_CODES: Final = (10001, 110094)


class BybitBroker(BybitQuestions):
    """One account at Bybit, or at the emulator.

    Parameters
    ----------
    venue
        Where; the address belongs to it, only the emulator's is given.
    pair
        API key and secret.
    clock
        Stamps and measures everything, and passes while something is waited for.
    url
        Of the emulator.
    adapter
        Transport to an emulator in this process.
    allow_mainnet
        Real money is traded only when this is set.
    clock_bound_ms
        Orders that are not reduce-only are refused beyond this difference of the clocks.
    timeout_s
        For connecting, and for each wait for an answer, seconds.

    Raises
    ------
    ConfigError
        If keys are missing, the venue is mainnet without being allowed, or an address is given that is not the
        emulator's on this machine.
    """

    # --- requests

    def place(self, order: OrderRequest, *, may_send: MaySend) -> Outcome:
        """Send an order, once, if clock, grid and sizes are right and ``may_send`` agrees at the last moment.

        A reduce-only order is not held back by the clock: a way out must not depend on it.
        """
        problem = None if order.reduce_only else self._clock_problem()
        problem = problem or self._order_problem(order)
        if problem is not None:
            return problem
        return self._send("place_order", _create(order), may_send, order.order_link_id, order.symbol)

    def amend(
        self,
        symbol: str,
        order_link_id: str,
        *,
        may_send: MaySend,
        qty: Decimal | None = None,
        price: Decimal | None = None,
    ) -> Outcome:
        """Change quantity (coins, the whole) or price (USD) of an open order."""
        rules = self._rules(symbol)
        if isinstance(rules, DefiniteReject):
            return rules
        if qty is None and price is None:
            return refused("nothing_to_amend", f"{order_link_id}: neither a quantity nor a price is given")
        for name, value, step in (("lot", qty, rules.lot), ("tick", price, rules.tick)):
            if value is not None and (not isinstance(value, Decimal) or not value.is_finite() or value <= 0):
                return refused("not_decimal", f"{order_link_id}: {value!r} is not a positive Decimal")
            if value is not None and value % step:
                return refused(name, f"{order_link_id}: {value} is not a multiple of {step}")
        problem = self._clock_problem()
        if problem is not None:
            return problem
        changes = {"qty": qty, "price": price}
        params = {name: plain(value) for name, value in changes.items() if value is not None}
        params |= {**LINEAR, "symbol": symbol, "orderLinkId": order_link_id}
        return self._send("amend_order", params, may_send, order_link_id, symbol)

    def cancel(
        self, symbol: str, order_link_id: str = "", *, order_id: str = "", may_send: MaySend | None = None
    ) -> Outcome:
        """Cancel an open order by our id, or by the exchange's where it has none of ours."""
        name = {"orderLinkId": order_link_id} if order_link_id else {"orderId": order_id}
        if not any(name.values()):
            return refused("no_id", f"{symbol}: an order to cancel needs one of its ids")
        return self._send("cancel_order", {**LINEAR, "symbol": symbol, **name}, may_send, order_link_id, symbol)

    def cancel_all(self, symbol: str, *, keep_stops: bool = True, may_send: MaySend | None = None) -> Outcome:
        """Cancel all open orders; with ``keep_stops`` those that protect a position stay."""
        params = {**LINEAR, "symbol": symbol, **({"orderFilter": "Order"} if keep_stops else {})}
        return self._send("cancel_all_orders", params, may_send, None, symbol)

    def set_trading_stop(
        self,
        symbol: str,
        stop_loss: Decimal | None,
        *,
        may_send: MaySend | None = None,
        trigger_by: TriggerBy = TriggerBy.LAST,
    ) -> Outcome:
        """Set the stop (USD) of the whole position at the exchange; None takes it away."""
        if stop_loss is not None:
            rules = self._rules(symbol)
            if isinstance(rules, DefiniteReject):
                return rules
            if not isinstance(stop_loss, Decimal) or not stop_loss.is_finite() or stop_loss <= 0:
                return refused("not_decimal", f"{symbol}: the stop {stop_loss!r} is not a positive Decimal")
            if stop_loss % rules.tick:
                return refused("tick", f"{symbol}: the stop {stop_loss} is not a multiple of {rules.tick}")
        params = {
            **LINEAR,
            "symbol": symbol,
            "tpslMode": "Full",
            "positionIdx": 0,
            "stopLoss": "0" if stop_loss is None else plain(stop_loss),
            "slTriggerBy": str(trigger_by),
        }
        return self._send("set_trading_stop", params, may_send, None, symbol)

    def set_leverage(self, symbol: str, leverage: Decimal, *, may_send: MaySend | None = None) -> Outcome:
        """Set the leverage of a symbol."""
        text = plain(leverage)
        params = {**LINEAR, "symbol": symbol, "buyLeverage": text, "sellLeverage": text}
        return self._send("set_leverage", params, may_send, None, symbol)

    def _send(
        self, method: str, params: dict[str, Any], may_send: MaySend | None, order_link_id: str | None, symbol: str
    ) -> Outcome:
        """Send a request once; ``order_link_id`` is None where the answer names no order."""
        made = self._wire.call(method, params, may_send)
        if isinstance(made, Failure):
            if made.kind is Kind.VENUE and made.code in CLOCK_CODES:
                self._forget_clock()
            if made.kind is Kind.VENUE and made.code in _RULE_CODES:
                with self._lock:
                    self._instruments.pop(symbol, None)
            return judge(made, self._clock.now_ms())
        if order_link_id is None:
            return Accepted(at_ms=made.server_ms)
        order_id, link = made.result.get("orderId"), made.result.get("orderLinkId", "")
        if not isinstance(order_id, str) or not order_id or (order_link_id and link != order_link_id):
            return Ambiguous("unparsable", f"the answer to {method} names another order or none")
        return Accepted(order_id, str(link), made.server_ms)

    def _clock_problem(self) -> DefiniteReject | None:
        with self._lock:
            known = self._checked
        if known is None or not 0 <= self._clock.now_ms() - known.measured_ms < CLOCK_VALID_MS:
            try:
                known = self.check_clock()
            except BrokerError as error:
                return refused("clock_unknown", f"the clocks could not be compared ({error})", Next.CLOCK)
        if abs(known.offset_ms) > self._bound_ms:
            self._forget_clock()
            return refused(
                "clock_offset",
                f"this machine's clock is {known.offset_ms:+d} ms off the exchange's, more than "
                f"{self._bound_ms}; set it (NTP)",
                Next.CLOCK,
            )
        return None

    def _rules(self, symbol: str) -> Instrument | DefiniteReject:
        try:
            return self.instrument(symbol)
        except VenueRefusedError as error:
            name = "unknown_symbol" if error.code == 10001 else "instrument_refused"
            return refused(name, f"no rules for {symbol} ({error})", error.then)
        except rows.SymbolNotTradingError as error:
            return refused("not_trading", str(error), Next.PAUSE)
        except BrokerError as error:
            return refused("instrument_unknown", f"no rules for {symbol} ({error})", Next.REFRESH)

    def _order_problem(self, order: OrderRequest) -> DefiniteReject | None:
        rules = self._rules(order.symbol)
        if isinstance(rules, DefiniteReject):
            return rules
        last = None
        if order.price is None and not order.reduce_only:
            with self._lock:
                at, last = self._last.get(order.symbol, (0, None))
            if last is None or not 0 <= self._clock.now_ms() - at < PRICE_VALID_MS:
                try:
                    last = self.ticker(order.symbol).last
                except BrokerError as error:
                    return refused("no_price", f"{order.symbol}: no price to value the order ({error})", Next.REFRESH)
        return rule_violation(order, rules, last)

    # --- what became of it

    def resolve(self, symbol: str, order_link_id: str, sent_ms: int, *, must_exist: bool = False) -> Resolution:
        """Find out what became of an order that was sent at ``sent_ms`` (UTC, our clock).

        Realtime, history and executions are asked, in this order and again and again, until the order is seen; or
        until all three said no in a round that began after the receive window and the time of propagation
        (:data:`SETTLED_MS` after sending, together); or until patience ends.
        """
        settled = sent_ms + SETTLED_MS
        give_up = max(settled, self._clock.now_ms()) + PATIENCE_MS
        pause_ms, reason = 250, ""
        while True:
            asked = self._clock.now_ms()
            try:
                found = self._order(symbol, order_link_id, sent_ms, 1)
                if found is not None:
                    return Existing(found)
                fills = self._fills(symbol, order_link_id, sent_ms)
                reason = f"{len(fills)} executions name it, but no order" if fills else "nothing was seen of it"
                if not fills and not must_exist and asked >= settled:
                    # orders that ended without a fill are remembered for a day
                    return Absent(asked, "never_seen" if asked - sent_ms < DAY_MS - SLACK_MS else "no_effect")
            except BrokerError as error:
                reason = str(error)
            now = self._clock.now_ms()
            if now >= give_up:
                waited = (now - sent_ms) / 1000
                return Ambiguous(
                    "unresolved", f"{order_link_id}: {reason}, {waited:.0f} s after sending", must_exist=must_exist
                )
            wait_ms = min(pause_ms, settled - now) if now < settled else pause_ms
            self._clock.sleep(wait_ms / 1000)
            pause_ms = min(2 * pause_ms, 4_000)

    def _fills(self, symbol: str, order_link_id: str, sent_ms: int) -> tuple[Execution, ...]:
        named = {**LINEAR, "symbol": symbol, "orderLinkId": order_link_id, "limit": 100}
        return executions_of(self._since("get_executions", sent_ms - SLACK_MS, WEEK_MS, named, attempts=1))


def _create(order: OrderRequest) -> dict[str, Any]:
    params: dict[str, Any] = {
        **LINEAR,
        "symbol": order.symbol,
        "side": str(order.side),
        "orderType": str(order.order_type),
        "qty": plain(order.qty),
        "timeInForce": str(order.time_in_force),
        "positionIdx": 0,
        "orderLinkId": order.order_link_id,
        "reduceOnly": order.reduce_only,
    }
    if order.price is not None:
        params["price"] = plain(order.price)
    if order.stop_loss is not None:
        params |= {
            "stopLoss": plain(order.stop_loss),
            "slTriggerBy": str(order.stop_trigger_by),
            "tpslMode": "Full",
        }
    if order.slippage_bp is not None:
        params |= {"slippageToleranceType": "Percent", "slippageTolerance": plain(order.slippage_bp / 100)}
    return params


if TYPE_CHECKING:
    _conforms: type[Broker] = BybitBroker
