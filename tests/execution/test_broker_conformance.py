"""What every broker must do: pybit's session over an exchange in process, and the same over real sockets."""

from __future__ import annotations

from decimal import Decimal

import pytest

from mlbot_core.clock import FixedClock
from mlbot_core.emulator.exchange import TradeFault
from mlbot_core.execution.broker import (
    Absent,
    Accepted,
    Ambiguous,
    Broker,
    DefiniteReject,
    Existing,
    Next,
    VenueClockError,
    VenueRefusedError,
    VenueUnreachableError,
)
from mlbot_core.execution.types import ExecType, OrderStatus, Side, TimeInForce

HOUR_MS = 3_600_000
EFFECT = ("before", "after")
LOST = ("timeout", "reset", "http_500", "http_502", "body_10000", "body_10016", "truncated_json", "http_429")


def yes() -> bool:
    return True


def lost(kind: str, endpoint: str, when: str) -> TradeFault:
    # silent for longer than the client waits
    return TradeFault(kind, endpoint, when=when, nth=1, seconds=1.0 if kind == "timeout" else None)


def placed(bench, *args, **more) -> Accepted:
    outcome = bench.broker.place(bench.order(*args, **more), may_send=yes)
    assert isinstance(outcome, Accepted), outcome
    return outcome


def rejected(outcome, name: str, then: Next | None = None) -> DefiniteReject:
    assert isinstance(outcome, DefiniteReject), outcome
    assert outcome.name == name, outcome
    assert then is None or outcome.then is then, outcome
    return outcome


# --- questions


def test_the_account_and_its_market(bench):
    broker: Broker = bench.broker
    rules = broker.instrument("BTCUSDT")
    assert (rules.tick, rules.lot, rules.min_notional) == (Decimal("0.1"), Decimal("0.001"), Decimal(5))
    prices = broker.ticker("BTCUSDT")
    assert prices.bid < prices.ask
    assert abs(prices.mark / prices.index - 1) < Decimal("0.05")
    check = broker.check_clock()
    assert (check.offset_ms, check.worst_ms) == (0, 0)
    wallet = broker.wallet()
    assert wallet.total_equity == wallet.coin("USDT").equity == 100_000
    assert broker.position("BTCUSDT").flat
    assert broker.positions() == ()
    info = broker.api_key_info()
    assert (info.sub_account, info.can_trade, info.can_withdraw, info.can_transfer) == (True, True, False, False)
    assert (info.ips, info.expires_ms) == ((), None)
    assert info.fingerprint == bench.connect().api_key_info().fingerprint

    taken = placed(bench, "Buy", "0.05", link="taken", stop_loss=bench.away())
    resting = placed(bench, "Sell", "0.02", bench.away("Sell"), link="resting")
    order = broker.order("BTCUSDT", "taken")
    assert order is not None
    assert (order.order_id, order.status, order.filled_qty) == (taken.order_id, OrderStatus.FILLED, Decimal("0.05"))
    position = broker.position("BTCUSDT")
    assert (position.size, position.stop_loss) == (Decimal("0.05"), order.stop_loss)
    assert broker.positions() == (position,)
    listed = {one.order_id: one for one in broker.open_orders("BTCUSDT")}
    assert len(listed) == 2, "the resting order and the stop"
    assert listed.pop(resting.order_id).order_link_id == "resting"
    (stop,) = listed.values()
    assert (stop.stop_order_type, stop.trigger_price, stop.order_link_id) == ("StopLoss", position.stop_loss, "")
    wallet = broker.wallet()
    assert 0 < wallet.maintenance_margin_rate < wallet.initial_margin_rate < 1
    assert wallet.coin("USDT").unrealised == position.unrealised

    bench.clock.sleep(6 * 3600)  # over the funding of 16:00
    rows = broker.executions_since("BTCUSDT", bench.clock.now_ms() - 7 * HOUR_MS)
    trades = [row for row in rows if row.kind is ExecType.TRADE]
    assert sum(row.qty for row in trades if row.order_link_id == "taken") == Decimal("0.05")
    assert [row.exec_id for row in rows] == [row["execId"] for row in bench.truth()["executions"]]
    funding = [row for row in rows if row.kind is ExecType.FUNDING]
    assert len(funding) == 1
    assert (funding[0].order_id, funding[0].kind.moves_position) == ("", False)
    events = broker.wallet_events_since(bench.clock.now_ms() - 3 * 24 * HOUR_MS)
    assert {event.kind for event in events} >= {"TRADE", "SETTLEMENT"}
    assert sum(event.change for event in events) == broker.wallet().coin("USDT").wallet_balance
    assert [event.event_id for event in events] == [row["id"] for row in bench.truth()["transaction_log"]]


def test_pages_are_read_to_the_end(bench):
    price = bench.away()
    for n in range(60):
        placed(bench, "Buy", "0.001", price - n, link=f"page-{n}")
    orders = bench.broker.open_orders("BTCUSDT")
    assert [order.order_link_id for order in orders if order.order_link_id] == [f"page-{n}" for n in range(60)]
    for _ in range(60):
        placed(bench, "Buy", "0.001")
        placed(bench, "Sell", "0.001")
    rows = bench.broker.executions_since("BTCUSDT", bench.clock.now_ms() - HOUR_MS)
    assert len(rows) == len({row.exec_id for row in rows}) == len(bench.truth()["executions"]) >= 120
    # a span of three weeks is read in windows
    assert bench.broker.executions_since("BTCUSDT", bench.clock.now_ms() - 20 * 24 * HOUR_MS) == rows


@pytest.mark.parametrize("kind", [*LOST, "body_10006"])
def test_a_question_is_asked_again(bench, kind):
    bench.faults(lost(kind, "wallet-balance", "after"))
    assert bench.broker.wallet().total_equity == 100_000
    assert len(bench.exchange.faults.log) == 1
    asked = sum(note["path"].endswith("wallet-balance") for note in bench.exchange.requests)
    assert asked == 2


def test_questions_end(bench):
    bench.faults(TradeFault("body_10016", "wallet-balance"))
    with pytest.raises(VenueUnreachableError, match=r"10016.*4 attempts"):
        bench.broker.wallet()
    bench.faults(TradeFault("reject", "wallet-balance", code=10005, message="no"))
    with pytest.raises(VenueRefusedError) as refused:
        bench.broker.wallet()
    assert (refused.value.code, refused.value.then) == (10005, Next.HALT)
    assert len(bench.exchange.faults.log) == 5


def test_an_address_that_is_banned_stays_silent(bench):
    bench.faults(TradeFault("http_403", "wallet-balance", nth=1))
    with pytest.raises(VenueUnreachableError, match="403"):
        bench.broker.wallet()
    before = len(bench.exchange.requests)
    outcome = rejected(bench.broker.place(bench.order(reduce_only=True), may_send=yes), "instrument_unknown")
    assert "10 more min" in outcome.reason
    bench.clock.sleep(599)
    rejected(bench.broker.cancel("BTCUSDT", "anything"), "address_banned", Next.WAIT)
    assert len(bench.exchange.requests) == before
    bench.clock.sleep(2)
    placed(bench)


# --- requests: refused for certain


def test_what_breaks_a_rule_is_not_sent(bench):
    broker, price = bench.broker, bench.away()
    refusals = {
        "lot": bench.order("Buy", "0.0015", price),
        "tick": bench.order("Buy", "0.01", price + Decimal("0.05")),
        "max_qty": bench.order("Buy", "2000", price),
        "min_notional": bench.order("Buy", "0.001", Decimal("4000")),
    }
    for name, order in refusals.items():
        outcome = rejected(broker.place(order, may_send=yes), name)
        assert (outcome.code, "nothing was sent" in outcome.reason) == (0, True)
    rejected(broker.place(bench.order("Buy", "501"), may_send=yes), "max_qty")
    off_grid = bench.order("Buy", "0.01", price, stop_loss=price - Decimal("50.01"))
    rejected(broker.place(off_grid, may_send=yes), "tick")
    wrong = bench.order("Buy", "0.01", price)
    object.__setattr__(wrong, "qty", 0.01)
    rejected(broker.place(wrong, may_send=yes), "not_decimal")
    rejected(broker.amend("BTCUSDT", "x", may_send=yes), "nothing_to_amend")
    rejected(broker.amend("BTCUSDT", "x", may_send=yes, price=Decimal("1.23")), "tick")
    rejected(broker.amend("BTCUSDT", "x", may_send=yes, qty=0.01), "not_decimal")
    rejected(broker.set_trading_stop("BTCUSDT", Decimal("1.23")), "tick")
    rejected(broker.cancel("BTCUSDT"), "no_id")
    assert bench.posts() == 0


def test_an_unknown_symbol(bench):
    bench.symbol = "NOPEUSDT"
    outcome = rejected(bench.broker.place(bench.order(), may_send=yes), "unknown_symbol")
    assert "10001" in outcome.reason
    with pytest.raises(VenueRefusedError):
        bench.broker.ticker("NOPEUSDT")
    assert bench.posts() == 0


@pytest.mark.parametrize(
    ("key", "secret", "name"),
    [
        ("expired", "expired-secret", "key_expired"),
        ("reader", "reader-secret", "permission"),
        ("bound", "bound-secret", "address_not_bound"),
        ("canary-key/7Zq+Vx", "guess", "signature"),
        ("nobody", "guess", "key_invalid"),
    ],
)
def test_keys_that_may_not(bench, key, secret, name):
    other = bench.connect(key, secret)
    outcome = rejected(other.place(bench.order(link="nothing"), may_send=yes), name, Next.HALT)
    assert outcome.code
    assert bench.orders("nothing") == []


@pytest.mark.parametrize("ahead_ms", [-700, 700, 20_000, -20_000])
def test_a_clock_that_is_off(bench, ahead_ms):
    clock = FixedClock(bench.clock.now_ms() + ahead_ms)
    other = bench.connect(clock=clock)
    assert other.check_clock().offset_ms == ahead_ms
    outcome = rejected(other.place(bench.order(link="late"), may_send=yes), "clock_offset", Next.CLOCK)
    assert f"{ahead_ms:+d} ms" in outcome.reason
    assert bench.posts() == 0
    if abs(ahead_ms) > 1_000:
        with pytest.raises(VenueClockError, match="10002"):
            other.wallet()
    # the way out is not held back by us: the exchange decides
    exit_ = other.place(bench.order("Sell", reduce_only=True), may_send=yes)
    rejected(exit_, "nothing_to_reduce" if abs(ahead_ms) < 1_000 else "timestamp")


def test_a_clock_that_cannot_be_measured(bench):
    bench.faults(TradeFault("outage", active_from_ms=bench.clock.now_ms(), active_to_ms=bench.clock.now_ms() + HOUR_MS))
    rejected(bench.broker.place(bench.order(), may_send=yes), "clock_unknown", Next.CLOCK)
    assert bench.posts() == 0


def test_a_clock_that_goes_wrong_later(bench):
    placed(bench)
    now = bench.clock.now_ms()
    bench.faults(TradeFault("clock_skew", seconds=8, active_from_ms=now, active_to_ms=now + HOUR_MS))
    rejected(bench.broker.place(bench.order(link="skewed"), may_send=yes), "timestamp", Next.CLOCK)
    rejected(bench.broker.place(bench.order(link="skewed"), may_send=yes), "clock_offset", Next.CLOCK)
    assert bench.orders("skewed") == []
    bench.faults()
    placed(bench, link="skewed")


@pytest.mark.parametrize(
    ("fault", "name", "then"),
    [
        (TradeFault("reject", "order/create", nth=1, code=110007), "balance", Next.REFRESH),
        (TradeFault("reject", "order/create", nth=1, code=110003), "price_band", Next.REFRESH),
        (TradeFault("body_10006", "order/create", nth=1), "rate_limit", Next.WAIT),
        (TradeFault("body_10018", "order/create", nth=1), "address_rate_limit", Next.WAIT),
        (TradeFault("http_403", "order/create", nth=1), "http_403", Next.WAIT),
    ],
)
def test_refusals_of_the_exchange(bench, fault, name, then):
    bench.faults(fault)
    order = bench.order(link="refused")
    outcome = rejected(bench.broker.place(order, may_send=yes), name, then)
    assert bench.orders("refused") == []
    assert bench.posts() == 1, "sent once, never again by itself"
    if then is Next.WAIT:
        assert outcome.retry_at_ms > bench.clock.now_ms()
        bench.clock.set_ms(outcome.retry_at_ms)
    assert isinstance(bench.broker.place(order, may_send=yes), Accepted)


def test_a_code_that_nobody_listed_is_unknown(bench):
    bench.faults(TradeFault("reject", "order/create", nth=1, code=119999, message="surprise"))
    sent = bench.clock.now_ms()
    outcome = bench.broker.place(bench.order(link="odd"), may_send=yes)
    assert isinstance(outcome, Ambiguous)
    assert (outcome.name, outcome.code) == ("unlisted_code", 119999)
    assert isinstance(bench.broker.resolve("BTCUSDT", "odd", sent), Absent)


def test_the_rate_limit_is_respected(bench):
    started = bench.clock.now_ms()
    for n in range(25):
        placed(bench, "Buy", "0.001", bench.away() - n)
    codes = [note["note"] for note in bench.exchange.requests if note["path"] == "/v5/order/create"]
    assert codes == ["carried out"] * 25, "10 a second, and the header said when"
    assert 2_000 <= bench.clock.now_ms() - started <= 3_000


# --- requests: unknown


@pytest.mark.parametrize("when", EFFECT)
@pytest.mark.parametrize("kind", LOST)
def test_a_lost_answer_is_found_out(bench, kind, when):
    fault = lost(kind, "order/create", when)
    bench.broker.check_clock()
    bench.faults(fault)
    sent = bench.clock.now_ms()
    outcome = bench.broker.place(bench.order(link="unknown"), may_send=yes)
    assert isinstance(outcome, Ambiguous), outcome
    assert not outcome.must_exist
    assert bench.posts() == 1
    truth = bench.orders("unknown")
    assert len(truth) == fault.takes_effect
    bench.faults()
    found = bench.broker.resolve("BTCUSDT", "unknown", sent)
    if truth:
        assert isinstance(found, Existing)
        assert (found.order.order_id, found.order.status) == (truth[0]["orderId"], OrderStatus.FILLED)
        again = bench.broker.place(bench.order(link="unknown"), may_send=yes)
        assert isinstance(again, Ambiguous)
        assert (again.name, again.must_exist) == ("duplicate_link_id", True)
        assert bench.broker.resolve("BTCUSDT", "unknown", sent, must_exist=True) == found
    else:
        assert isinstance(found, Absent)
        assert found.asked_ms >= sent + 15_000, "not before the receive window and the propagation have passed"
        placed(bench, link="unknown")
    assert len(bench.orders("unknown")) == 1
    assert bench.broker.position("BTCUSDT").size == Decimal("0.01")


@pytest.mark.parametrize("path", ["order/realtime", "order/history", "execution/list"])
@pytest.mark.parametrize("effect", [True, False])
def test_finding_out_survives_trouble(bench, path, effect):
    """While questions fail nothing is proven; each of the three must have said no."""
    if effect:
        placed(bench, link="hidden")
    sent = bench.clock.now_ms()
    bench.faults(TradeFault("body_10016", path, count=3))
    found = bench.broker.resolve("BTCUSDT", "hidden", sent)
    assert isinstance(found, Existing if effect else Absent)
    bench.faults(TradeFault("body_10016", "", probability=1.0))
    found = bench.broker.resolve("BTCUSDT", "hidden", sent)
    assert isinstance(found, Ambiguous)
    assert found.name == "unresolved"
    assert "10016" in found.reason


@pytest.mark.parametrize(("seconds", "wanted"), [(10, Absent), (120, Ambiguous)])
def test_an_outage(bench, seconds, wanted):
    bench.broker.ticker("BTCUSDT")
    placed(bench, link="before")
    sent = bench.clock.now_ms()
    bench.faults(TradeFault("outage", active_from_ms=sent, active_to_ms=sent + seconds * 1000))
    assert isinstance(bench.broker.place(bench.order(link="during"), may_send=yes), Ambiguous)
    assert isinstance(bench.broker.resolve("BTCUSDT", "during", sent), wanted)
    assert bench.orders("during") == []


def test_an_order_that_shows_itself_late(bench):
    bench.faults(TradeFault("late_visibility", "order/create", nth=1, seconds=6))
    sent = bench.clock.now_ms()
    placed(bench, link="shy")
    assert bench.broker.order("BTCUSDT", "shy") is None
    found = bench.broker.resolve("BTCUSDT", "shy", sent)
    assert isinstance(found, Existing)
    assert 6_000 <= bench.clock.now_ms() - sent <= 10_000


def test_an_order_that_the_exchange_says_exists_is_never_absent(bench):
    bench.faults(TradeFault("late_visibility", "order/create", nth=1, seconds=3_600))
    sent = bench.clock.now_ms()
    placed(bench, link="shy")
    outcome = bench.broker.place(bench.order(link="shy"), may_send=yes)
    assert isinstance(outcome, Ambiguous)
    found = bench.broker.resolve("BTCUSDT", "shy", sent, must_exist=outcome.must_exist)
    assert isinstance(found, Ambiguous)
    assert bench.clock.now_ms() - sent < 60_000


def test_long_ago(bench):
    sent = bench.clock.now_ms()
    placed(bench, link="old-fill")
    placed(bench, "Buy", "0.01", bench.away(), link="old-cancel")
    bench.broker.cancel("BTCUSDT", "old-cancel")
    bench.clock.sleep(9 * 86_400)
    assert isinstance(bench.broker.resolve("BTCUSDT", "old-fill", sent), Existing)
    never = bench.broker.resolve("BTCUSDT", "old-never", sent)
    assert isinstance(never, Absent)
    assert never.name == "no_effect"


@pytest.mark.parametrize("when", EFFECT)
@pytest.mark.parametrize("kind", ["timeout", "reset", "body_10000", "truncated_json"])
def test_lost_answers_to_amend_and_cancel(bench, kind, when):
    price = bench.away()
    placed(bench, "Buy", "0.01", price, link="resting")
    fault = lost(kind, "order/amend", when)
    bench.faults(fault, lost(kind, "order/cancel", when))
    outcome = bench.broker.amend("BTCUSDT", "resting", may_send=yes, price=price - 10)
    assert isinstance(outcome, Ambiguous), outcome
    order = bench.broker.order("BTCUSDT", "resting")
    assert order.price == (price - 10 if fault.takes_effect else price)
    assert isinstance(bench.broker.cancel("BTCUSDT", "resting"), Ambiguous)
    order = bench.broker.order("BTCUSDT", "resting")
    assert order.status is (OrderStatus.CANCELLED if fault.takes_effect else OrderStatus.NEW)
    assert (bench.posts("amend"), bench.posts("cancel")) == (1, 1)


# --- what orders do


def test_amend_and_cancel(bench):
    broker, price = bench.broker, bench.away()
    first = placed(bench, "Buy", "0.01", price, link="one")
    amended = broker.amend("BTCUSDT", "one", may_send=yes, qty=Decimal("0.02"), price=price - 5)
    assert isinstance(amended, Accepted)
    assert (amended.order_id, amended.order_link_id) == (first.order_id, "one")
    order = broker.order("BTCUSDT", "one")
    assert (order.qty, order.price, order.status) == (Decimal("0.02"), price - 5, OrderStatus.NEW)
    assert isinstance(broker.cancel("BTCUSDT", order_id=first.order_id), Accepted)
    assert broker.order("BTCUSDT", "one").status is OrderStatus.CANCELLED
    rejected(broker.cancel("BTCUSDT", "one"), "order_not_open", Next.LOOK)
    rejected(broker.amend("BTCUSDT", "one", may_send=yes, price=price), "order_not_open", Next.LOOK)
    placed(bench, link="filled")
    rejected(broker.cancel("BTCUSDT", "filled"), "order_not_open", Next.LOOK)
    assert broker.order("BTCUSDT", "filled").status is OrderStatus.FILLED


def test_reduce_only(bench):
    rejected(bench.broker.place(bench.order("Sell", reduce_only=True), may_send=yes), "nothing_to_reduce", Next.LOOK)
    placed(bench, "Buy", "0.02")
    placed(bench, "Sell", "5", reduce_only=True, link="all")
    assert bench.broker.position("BTCUSDT").flat
    assert bench.broker.order("BTCUSDT", "all").filled_qty == Decimal("0.02")


def test_a_small_rest_may_be_closed(bench):
    """The smallest value of an order is not asked of a way out."""
    placed(bench, "Sell", "0.001")
    assert bench.broker.position("BTCUSDT").size == Decimal("-0.001")
    cheap = bench.order("Buy", "0.001", Decimal(3000), reduce_only=True, link="cheap")
    assert isinstance(bench.broker.place(cheap, may_send=yes), Accepted)


def test_post_only(bench):
    ask = bench.broker.ticker("BTCUSDT").ask
    placed(bench, "Buy", "0.01", ask + 50, tif=TimeInForce.POST_ONLY, link="crossing")
    order = bench.broker.order("BTCUSDT", "crossing")
    assert (order.status, order.filled_qty) == (OrderStatus.CANCELLED, 0)
    assert order.reject_reason == "EC_PostOnlyWillTakeLiquidity"
    placed(bench, "Buy", "0.01", bench.away(), tif=TimeInForce.POST_ONLY, link="resting")
    assert bench.broker.order("BTCUSDT", "resting").status is OrderStatus.NEW


@pytest.mark.parametrize("fraction", [0.0, 0.34])
def test_a_part_is_filled_and_the_rest_cancelled(bench, fraction):
    bench.faults(TradeFault("partial_fill", "order/create", nth=1, fraction=fraction))
    placed(bench, "Buy", "0.1", link="part")
    order = bench.broker.order("BTCUSDT", "part")
    filled = Decimal("0.034") if fraction else Decimal(0)
    assert (order.status, order.filled_qty, order.terminal) == (OrderStatus.CANCELLED, filled, True)
    rows = bench.broker.executions_since("BTCUSDT", bench.clock.now_ms() - HOUR_MS)
    assert sum(row.qty for row in rows) == filled
    assert sum(row.value for row in rows) == order.filled_value


def test_accepted_and_rejected_later(bench):
    bench.faults(TradeFault("engine_reject", "order/create", nth=1))
    placed(bench, link="late-no")
    order = bench.broker.order("BTCUSDT", "late-no")
    assert (order.status, order.terminal) == (OrderStatus.REJECTED, True)
    assert order.reject_reason == "EC_NoEnoughQtyToFill"


def test_stops(bench):
    broker = bench.broker
    rejected(broker.set_trading_stop("BTCUSDT", Decimal(30000)), "parameters")
    placed(bench, "Buy", "0.02")
    below = bench.away()
    for wanted in (below, below + 20):
        outcome = broker.set_trading_stop("BTCUSDT", wanted)
        assert isinstance(outcome, Accepted)
        assert not outcome.unchanged
        assert broker.position("BTCUSDT").stop_loss == wanted
    again = broker.set_trading_stop("BTCUSDT", below + 20)
    assert isinstance(again, Accepted)
    assert again.unchanged
    placed(bench, "Buy", "0.01", below - 100, link="resting")
    assert isinstance(broker.cancel_all("BTCUSDT"), Accepted)
    assert broker.order("BTCUSDT", "resting").status is OrderStatus.CANCELLED
    assert broker.position("BTCUSDT").stop_loss == below + 20, "the position keeps its stop"
    assert isinstance(broker.set_trading_stop("BTCUSDT", None), Accepted)
    assert broker.position("BTCUSDT").stop_loss is None
    broker.set_trading_stop("BTCUSDT", below)
    assert isinstance(broker.cancel_all("BTCUSDT", keep_stops=False), Accepted)
    assert broker.position("BTCUSDT").stop_loss is None
    wrong_side = broker.set_trading_stop("BTCUSDT", bench.away("Sell"))
    rejected(wrong_side, "parameters", Next.REFRESH)


def test_leverage(bench):
    assert bench.broker.set_leverage("BTCUSDT", Decimal(5)) == Accepted(at_ms=bench.clock.now_ms())
    assert bench.broker.position("BTCUSDT").leverage == 5
    again = bench.broker.set_leverage("BTCUSDT", Decimal("5"))
    assert isinstance(again, Accepted)
    assert again.unchanged
    rejected(bench.broker.set_leverage("BTCUSDT", Decimal(101)), "parameters")


def test_more_than_the_account_carries(bench):
    rejected(bench.broker.place(bench.order("Buy", "400"), may_send=yes), "balance", Next.REFRESH)


def test_a_short_position(bench):
    placed(bench, "Sell", "0.03")
    position = bench.broker.position("BTCUSDT")
    assert position.size == Decimal("-0.03")
    (row,) = {execution.side for execution in bench.broker.executions_since("BTCUSDT", bench.clock.now_ms() - 1000)}
    assert row is Side.SELL


# --- the last moment


def test_nothing_is_sent_without_leave(bench):
    broker, price = bench.broker, bench.away()
    placed(bench, "Buy", "0.01", price, link="resting")
    posts = bench.posts()
    for outcome in (
        broker.place(bench.order(link="held"), may_send=lambda: False),
        broker.amend("BTCUSDT", "resting", may_send=lambda: False, price=price - 1),
        broker.cancel("BTCUSDT", "resting", may_send=lambda: False),
        broker.cancel_all("BTCUSDT", may_send=lambda: False),
        broker.set_trading_stop("BTCUSDT", None, may_send=lambda: False),
        broker.set_leverage("BTCUSDT", Decimal(3), may_send=lambda: False),
    ):
        assert rejected(outcome, "may_not_send").code == 0
    assert bench.posts() == posts
    assert bench.orders("held") == []
    placed(bench, link="held")


def test_leave_is_asked_after_everything_else(bench):
    """The clock, the rules and the prices were read, the pace was kept, and the connection stands."""
    seen = []

    def now() -> bool:
        seen.append([note["path"] for note in bench.exchange.requests])
        return False

    for _ in range(3):
        rejected(bench.broker.place(bench.order(), may_send=now), "may_not_send")
    assert len(seen) == 3
    assert bench.posts() == 0
    assert all(row == seen[0] for row in seen)


@pytest.mark.parametrize("bench", ["sockets"], indirect=True)
def test_a_trader_that_froze_between_head_and_body(bench):
    answers = iter([True, False])
    outcome = bench.broker.place(bench.order(link="frozen"), may_send=lambda: next(answers))
    rejected(outcome, "may_not_send")
    assert bench.orders("frozen") == []
    placed(bench, link="frozen")
    assert len(bench.orders("frozen")) == 1
