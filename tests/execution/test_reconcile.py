"""Book against exchange: what is explained, what is named, what is mended."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from mlbot_core.decision.state import RECONCILE
from mlbot_core.emulator.exchange import TradeFault
from mlbot_core.execution.reconcile import reconcile
from mlbot_core.execution.types import OrderRequest, OrderType, Side, TimeInForce


def _foreign(desk: Any, side: str = "Buy", qty: str = "0.01", price: Decimal | None = None, link: str = "hand") -> None:
    kind = OrderType.MARKET if price is None else OrderType.LIMIT
    order = OrderRequest(
        link, desk.symbol, Side(side), kind, Decimal(qty), price,
        TimeInForce.IOC if price is None else TimeInForce.GTC,
    )  # fmt: skip
    desk.broker.place(order, may_send=lambda: True)


def _reconcile(desk: Any) -> Any:
    return reconcile(desk.ledger, desk.broker, desk.clock, desk.symbol)


def _keys(found: Any) -> list[str]:
    return [difference.key.split("/")[0] for difference in found.differences]


def test_the_book_begins_on_a_flat_account_only(desk: Any) -> None:
    _foreign(desk)
    found = _reconcile(desk)
    assert _keys(found) == ["opening_position"]
    assert desk.ledger.flags(desk.symbol) == RECONCILE
    assert "mlbot flatten" in desk.ledger.pending_alerts()[0].message
    made = desk.decide(0.01)
    assert made.status == "blind"
    assert desk.held() == Decimal("0.01")
    _foreign(desk, "Sell", link="hand-2")
    assert _reconcile(desk).clean
    assert desk.ledger.flags(desk.symbol) == 0
    # what came before the beginning is not of the book
    assert desk.ledger.held(desk.symbol).size == 0
    assert desk.decide(0.01).cycle.clean
    assert desk.ledger.held(desk.symbol).size == desk.held() > 0


def test_the_book_does_not_begin_where_somebody_saw_more(desk: Any) -> None:
    since = desk.clock.now_ms() - 1_000
    events = desk.broker.wallet_events_since(since)
    assert events
    desk.ledger.record_wallet_events(events)
    assert desk.ledger.open_book(desk.symbol, desk.clock.now_ms(), Decimal(0), (), (), since) is None
    opened = desk.ledger.open_book(desk.symbol, desk.clock.now_ms(), Decimal(100_000), (), events, since)
    again = desk.ledger.open_book(desk.symbol, desk.clock.now_ms() + 5, Decimal(1), (), (), since)
    assert opened == again == desk.ledger.opening(desk.symbol)
    assert _reconcile(desk).clean


def test_the_book_does_not_begin_among_open_orders(desk: Any) -> None:
    _foreign(desk, price=Decimal(10_000))
    assert _keys(_reconcile(desk)) == ["opening_orders"]
    assert desk.ledger.opening(desk.symbol) is None


def test_a_foreign_order_only_lets_reduce_until_it_is_gone(desk: Any) -> None:
    assert _reconcile(desk).clean
    last = desk.broker.ticker(desk.symbol).last
    _foreign(desk, price=(last * Decimal("0.95")).quantize(Decimal(1)))
    made = desk.decide(0.01)
    assert (made.cycle.level, made.cycle.causes) == ("REDUCE_ONLY", ("reconcile",))
    assert len(desk.placed()) == 1
    for _ in range(2):
        desk.trader().cycle()
    assert len([code for code in desk.codes() if code == "reconcile"]) == 1
    desk.broker.cancel(desk.symbol, "hand")
    report = desk.trader().cycle()
    assert (report.level, report.clean) == ("NORMAL", True)


def test_a_foreign_trade_is_named_once(desk: Any) -> None:
    assert _reconcile(desk).clean
    _foreign(desk)
    assert _keys(_reconcile(desk)) == ["foreign_fill"]
    assert _reconcile(desk).clean
    desk.agrees()


def test_another_coin_refuses_to_trade(desk: Any) -> None:
    assert _reconcile(desk).clean
    desk.exchange.transfer(Decimal(1), "BTC")
    assert _keys(_reconcile(desk)) == ["other_coin"]
    assert desk.decide(0.01).cycle.level == "REDUCE_ONLY"
    assert desk.held() == 0
    desk.exchange.transfer(Decimal(-1), "BTC")
    assert _reconcile(desk).clean


def test_a_position_without_a_stop_gets_one(desk: Any) -> None:
    made = desk.decide(0.01)
    planned = made.intents[0].stop_loss
    desk.broker.set_trading_stop(desk.symbol, None)
    assert desk.stop() is None
    report = desk.trader().cycle()
    assert report.clean
    mended = desk.stop()
    assert mended is not None
    assert abs(mended / planned - 1) < Decimal("0.01")
    assert "stop_mended" in desk.codes()


def test_a_stop_that_is_too_far_is_moved_and_a_nearer_one_stays(desk: Any) -> None:
    desk.decide(0.01)
    near, far = desk.stop() + 500, desk.stop() - 5_000
    desk.broker.set_trading_stop(desk.symbol, near)
    desk.trader().cycle()
    assert desk.stop() == near
    desk.broker.set_trading_stop(desk.symbol, far)
    desk.trader().cycle()
    assert desk.stop() > far


def test_a_lost_answer_to_the_mending_is_harmless(desk: Any) -> None:
    desk.decide(0.01)
    desk.broker.set_trading_stop(desk.symbol, None)
    desk.faults(TradeFault("timeout", endpoint="trading-stop", when="after", nth=1))
    desk.trader().cycle()
    assert desk.stop() is not None
    desk.trader().cycle()
    assert desk.trader().cycle().clean


def test_the_exchange_closing_a_position_halts_but_for_a_deleveraging(desk: Any) -> None:
    desk.decide(0.01)
    desk.exchange.intervene("AdlTrade", desk.held() / 2, None, desk.symbol)
    report = desk.trader().cycle()
    assert (report.level, report.clean) == ("NORMAL", True)
    assert "by_exchange" in desk.codes()
    desk.exchange.intervene("BustTrade", desk.held(), None, desk.symbol)
    report = desk.trader().cycle()
    assert (report.level, report.position) == ("HALTED", Decimal(0))
    assert desk.codes().count("by_exchange") == 2
    desk.agrees()


def test_funding_and_late_rows_are_explained(desk: Any) -> None:
    desk.decide(0.01)
    for _ in range(5):
        desk.to_next_bar()
    report = desk.trader().cycle()
    assert report.clean
    assert any(row["execType"] == "Funding" for row in desk.truth()["executions"])
    desk.agrees()


def test_an_exchange_that_does_not_answer_is_said_and_forgiven(desk: Any) -> None:
    desk.decide(0.01)
    desk.faults(TradeFault("outage", active_from_ms=0, active_to_ms=2**60))
    report = desk.trader().cycle()
    assert report.blind
    assert report.level == "REDUCE_ONLY"
    assert desk.codes() == ["api_degraded"]
    desk.faults()
    report = desk.trader().cycle()
    assert (report.blind, report.level) == ("", "NORMAL")


def test_a_key_that_is_refused_halts(desk: Any) -> None:
    desk.decide(0.01)
    desk.faults(TradeFault("reject", endpoint="wallet-balance", code=10003))
    report = desk.trader().cycle()
    assert (report.level, bool(report.blind)) == ("HALTED", True)
