"""What only an order can tell: one far from the price, of the smallest size, post-only, cancelled at once."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from mlbot_core.clock import Clock
from mlbot_core.execution.broker import Accepted, Ambiguous, DefiniteReject, Outcome
from mlbot_core.execution.bybit import BybitBroker
from mlbot_core.execution.limits import smallest_order
from mlbot_core.execution.probe_questions import Found, Question
from mlbot_core.execution.rounding import round_price
from mlbot_core.execution.types import OrderRequest, OrderSnapshot, OrderType, Side, TimeInForce

_AWAY: Final = Decimal("0.9")
_VISIBLE_MS: Final = 15_000
_TRIED_AGAIN: Final = 3


@dataclass
class OrderProbe:
    """The account, and what was sent so far.

    Parameters
    ----------
    earlier
        Ids of orders of former probes, all closed.
    """

    broker: BybitBroker
    contract: str
    clock: Clock
    earlier: Sequence[str] = ()
    link: str = field(default_factory=lambda: f"mlbot-probe-{secrets.token_hex(8)}")
    sent: list[str] = field(default_factory=list)

    def place(self, link: str) -> tuple[OrderRequest, Outcome]:
        """Send the order under an id."""
        rules, price = self.broker.instrument(self.contract), self.broker.ticker(self.contract).bid * _AWAY
        limit = round_price(price, Side.BUY, rules)
        request = OrderRequest(
            link,
            self.contract,
            Side.BUY,
            OrderType.LIMIT,
            smallest_order(limit, rules),
            limit,
            TimeInForce.POST_ONLY,
        )
        self.sent.append(link)
        return request, self.broker.place(request, may_send=lambda: True)

    def wait(self, link: str, *, terminal: bool) -> tuple[OrderSnapshot | None, int]:
        """Return an order once it is (or is not any more) open, and how long that took, ms; None if it never was."""
        begun = self.clock.now_ms()
        while True:
            found = self.broker.order(self.contract, link)
            took = self.clock.now_ms() - begun
            if (found is not None and found.terminal is terminal) or took > _VISIBLE_MS:
                return found, took
            self.clock.sleep(0.2)

    def clean(self) -> list[str]:
        """Cancel what a probe has sent and is still open; return what could not be cancelled."""
        left = [order for order in self.broker.open_orders(self.contract) if order.order_link_id in self.sent]
        for order in left:
            self.broker.cancel(self.contract, order.order_link_id)
        return [
            order.order_link_id
            for order in left
            if (self.wait(order.order_link_id, terminal=True)[0] or order).terminal is False
        ]


def _said(outcome: Outcome) -> str:
    if isinstance(outcome, Accepted):
        return "accepted"
    kind = "refused" if isinstance(outcome, DefiniteReject) else "unknown"
    return f"{kind} ({outcome.name}, {outcome.code}: {outcome.reason})"


def _duplicate(outcome: Outcome) -> bool:
    return isinstance(outcome, Ambiguous) and outcome.must_exist


def _visible(probe: OrderProbe) -> Found:
    request, outcome = probe.place(probe.link)
    asked = f"{request.side} {request.qty} {request.symbol} at {request.price}, post-only"
    if not isinstance(outcome, Accepted):
        return Found(asked, _said(outcome), "differs")
    found, took = probe.wait(probe.link, terminal=False)
    if found is None:
        return Found(asked, f"accepted, but not seen within {took} ms", "differs")
    return Found(
        asked, f"accepted, seen as {found.status} after {took} ms", "differs" if found.terminal else "as_expected"
    )


def _twice(probe: OrderProbe) -> Found:
    _, outcome = probe.place(probe.link)
    return Found(
        "the same id while the order is open", _said(outcome), "as_expected" if _duplicate(outcome) else "differs"
    )


def _cancelled(probe: OrderProbe) -> Found:
    outcome = probe.broker.cancel(probe.contract, probe.link)
    found, took = probe.wait(probe.link, terminal=True)
    state = "not seen" if found is None else str(found.status)
    good = isinstance(outcome, Accepted) and found is not None and found.terminal and not found.filled_qty
    return Found(
        "cancel by our id", f"{_said(outcome)}, then {state} after {took} ms", "as_expected" if good else "differs"
    )


def _cancelled_again(probe: OrderProbe) -> Found:
    outcome = probe.broker.cancel(probe.contract, probe.link)
    good = isinstance(outcome, DefiniteReject) and outcome.code in (110001, 110008, 110010)
    return Found("cancel of a cancelled order", _said(outcome), "as_expected" if good else "differs")


def _reuse(probe: OrderProbe) -> Found:
    _, outcome = probe.place(probe.link)
    return Found(
        "the same id after the order was closed", _said(outcome), "as_expected" if _duplicate(outcome) else "differs"
    )


def _reuse_later(probe: OrderProbe) -> Found:
    tried = list(probe.earlier)[:_TRIED_AGAIN]
    if not tried:
        return Found("ids of former probes", "there is no former probe with an order; try again another day", "unknown")
    outcomes = [probe.place(link)[1] for link in tried]
    good = all(_duplicate(outcome) for outcome in outcomes)
    text = "; ".join(_said(outcome) for outcome in outcomes)
    return Found(f"{len(tried)} ids of former probes, oldest first", text, "as_expected" if good else "differs")


def _nothing_left(probe: OrderProbe) -> Found:
    left = probe.clean()
    return Found("open orders of this probe", f"left: {left or 'none'}", "differs" if left else "as_expected")


ORDERS: Final = (
    Question("order_visible", "Is an accepted order seen soon?", _visible, matters=True),
    Question("link_twice", "Is a used orderLinkId refused while the order is open?", _twice, matters=True),
    Question("order_cancelled", "Does a cancel take effect?", _cancelled, matters=True),
    Question("cancel_twice", "What does a second cancel say?", _cancelled_again),
    Question("link_reuse", "Is a used orderLinkId refused after the order is closed?", _reuse, matters=True),
    Question("link_reuse_later", "Is it refused days later?", _reuse_later),
    Question("nothing_left", "Is nothing of the probe left open?", _nothing_left, matters=True),
)
