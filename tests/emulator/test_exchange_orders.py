"""Entering orders and stops: what is refused, how they fill, what protects a position; amend and cancel."""

import pytest

from mlbot_core.clock import parse_utc_ms

T = parse_utc_ms("2024-03-01T09:00:00Z")
BTC = {"category": "linear", "symbol": "BTCUSDT"}


@pytest.fixture
def trader(trade_on):
    return trade_on((T, "60000"), (T + 10_000, "59900"), (T + 20_000, "60200"), (T + 30_000, "60000"))


def code(answer):
    assert answer["result"] == {} or answer["retCode"] == 0
    return answer["retCode"]


# --- entering orders


@pytest.mark.parametrize(
    ("wish", "wanted"),
    [
        ({"qty": "0.0005"}, 10001),
        ({"qty": "0.0015"}, 10001),
        ({"qty": 0.1}, 10001),
        ({"qty": "1e400"}, 10001),
        ({"qty": "-1"}, 10001),
        ({"qty": "501"}, 10001),
        ({"qty": "0.001", "orderType": "Limit", "price": "4999.9"}, 110094),
        ({"qty": "0.1", "side": "Up"}, 10001),
        ({"qty": "0.1", "symbol": "DOGEUSDT"}, 10001),
        ({"qty": "0.1", "category": "spot"}, 10001),
        ({"qty": "0.1", "positionIdx": 1}, 10001),
        ({"qty": "0.1", "orderLinkId": "a" * 37}, 10001),
        ({"qty": "0.1", "orderLinkId": "a b"}, 10001),
        ({"qty": "0.1", "reduceOnly": "yes"}, 10001),
        ({"qty": "0.1", "reduceOnly": True}, 110017),
        ({"qty": "0.1", "orderType": "Limit"}, 10001),
        ({"qty": "0.1", "orderType": "Limit", "price": "60000.05"}, 10001),
        ({"qty": "0.1", "orderType": "Limit", "price": "60600.1"}, 30208),
        ({"qty": "0.1", "orderType": "Limit", "price": "60600"}, 0),
        ({"qty": "0.1", "orderType": "Limit", "price": "59399.9", "side": "Sell"}, 30209),
        ({"qty": "0.1", "orderType": "Limit", "price": "3000000"}, 110003),
        ({"qty": "17"}, 110007),
        ({"qty": "0.1", "stopLoss": "60000"}, 10001),
        ({"qty": "0.1", "takeProfit": "59000"}, 10001),
        ({"qty": "0.1", "stopLoss": "59000", "takeProfit": "61000"}, 0),
        ({"qty": "0.1", "triggerPrice": "60000", "triggerDirection": 1}, 110092),
        ({"qty": "0.1", "triggerPrice": "60000", "triggerDirection": 2}, 110093),
        ({"qty": "0.1", "triggerPrice": "61000"}, 10001),
        ({"qty": "0.1", "triggerPrice": "61000", "triggerDirection": 1}, 0),
        ({"qty": "0.1", "slippageToleranceType": "TickSize", "slippageTolerance": "20000"}, 110108),
        ({"qty": "0.1", "slippageToleranceType": "Percent", "slippageTolerance": "11"}, 110109),
    ],
)
def test_what_is_refused(trader, wish, wanted):
    wish = {**BTC, "side": "Buy", "orderType": "Market", **wish}
    assert code(trader.post("/v5/order/create", **wish)) == wanted
    if wanted:
        assert trader.exchange.truth()["accounts"]["100001"]["orders"] == []


def test_an_order_link_id_makes_one_order(trader):
    first = trader.order("Buy", "0.1", orderLinkId="once-1")
    assert first["result"]["orderLinkId"] == "once-1"
    for qty, price in (("0.1", None), ("0.2", "59000"), ("99", None)):
        assert code(trader.order("Buy", qty, price, orderLinkId="once-1")) == 110072
    assert trader.position()["size"] == "0.1"
    assert code(trader.order("Buy", "0.1", "59999.95", orderLinkId="refused-1")) == 10001
    assert code(trader.order("Buy", "0.1", orderLinkId="refused-1")) == 0, "a refused order has used no id"


def test_time_in_force(trade_on):
    trader = trade_on((T, "60000"), sizes=("0.5", "0.5"))
    post_only = trader.row(trader.ok("Buy", "0.1", "60000.1", timeInForce="PostOnly"))
    assert (post_only["orderStatus"], post_only["rejectReason"]) == ("Cancelled", "EC_PostOnlyWillTakeLiquidity")
    assert trader.row(trader.ok("Buy", "0.1", "60000", timeInForce="PostOnly"))["orderStatus"] == "New"
    killed = trader.row(trader.ok("Buy", "1.1", "60001", timeInForce="FOK"))
    assert (killed["orderStatus"], killed["cumExecQty"], killed["rejectReason"]) == (
        "Cancelled",
        "0",
        "EC_CancelForNoFullFill",
    )
    rest = trader.row(trader.ok("Buy", "0.8", "60000.1", timeInForce="IOC"))
    assert (rest["orderStatus"], rest["cumExecQty"], rest["leavesQty"]) == ("Cancelled", "0.5", "0")
    nothing = trader.row(trader.ok("Buy", "0.1", "60000.1", timeInForce="IOC"))
    assert (nothing["cumExecQty"], nothing["rejectReason"]) == ("0", "EC_NoImmediateQtyToFill")
    through = trader.row(trader.ok("Buy", "0.8", "60000.2"))
    assert (through["orderStatus"], through["cumExecQty"], through["leavesQty"]) == ("PartiallyFilled", "0.5", "0.3")
    # the book is empty now, a market order finds nothing, and the price walked the levels before
    assert trader.row(trader.ok("Buy", "0.1"))["rejectReason"] == "EC_NoImmediateQtyToFill"
    assert [row["execPrice"] for row in trader.fills()] == ["60000.1", "60000.2"]


def test_a_market_order_walks_the_book_to_its_tolerance(trade_on):
    trader = trade_on((T, "60000"), sizes=["0.1"] * 30)
    order = trader.ok("Buy", "2", slippageToleranceType="TickSize", slippageTolerance="9")
    row = trader.row(order)
    assert (row["orderStatus"], row["cumExecQty"], row["avgPrice"]) == ("Cancelled", "1", "60000.55")


def test_a_book_that_is_known_is_used(trade_on):
    bids, asks = (("59999.8", "1"), ("59999", "2")), (("60000.4", "0.05"), ("60003", "1"))
    trader = trade_on((T, "60000"), (T + 1, "60000", None, None, "0", bids, asks))
    trader.clock.set_ms(T + 1)
    trader.ok("Buy", "0.15")
    trader.ok("Sell", "0.15", reduceOnly=True)
    assert [(row["execPrice"], row["execQty"]) for row in trader.fills()] == [
        ("60000.4", "0.05"),
        ("60003", "0.1"),
        ("59999.8", "0.15"),
    ]


def test_resting_orders_fill_over_time_by_volume(trade_on):
    """Touched, a fifth of the volume goes to the order; once the price has gone through, all of it."""
    trader = trade_on(
        (T, "60000"), (T + 1, "59990", None, None, "1"), (T + 2, "59980", None, None, "1"), (T + 3, "59990")
    )
    order = trader.ok("Buy", "2", "59990")
    later = trader.ok("Buy", "0.5", "59990")
    trader.clock.set_ms(T + 1)
    assert trader.row(order)["cumExecQty"] == "0.2"
    trader.clock.set_ms(T + 2)
    assert (trader.row(order)["cumExecQty"], trader.row(later)["cumExecQty"]) == ("1.2", "0")
    trader.clock.set_ms(T + 3)
    assert (trader.row(order)["orderStatus"], trader.row(later)["orderStatus"]) == ("Filled", "Filled")
    assert {row["execPrice"] for row in trader.fills()} == {"59990"}


def test_reduce_only_is_cut_and_follows_the_position(trader):
    trader.ok("Buy", "0.5")
    first = trader.ok("Sell", "0.3", "60500", reduceOnly=True)
    second = trader.ok("Sell", "0.9", "60550", reduceOnly=True)
    assert trader.row(second)["qty"] == "0.2"
    assert code(trader.order("Sell", "0.1", "60560", reduceOnly=True)) == 110017
    trader.ok("Sell", "0.3")
    assert [trader.row(order)["leavesQty"] for order in (first, second)] == ["0.2", "0"]
    assert trader.row(second)["cancelType"] == "CancelByReduceOnly"
    trader.ok("Sell", "0.2")
    assert trader.row(first)["orderStatus"] == "Cancelled"
    assert trader.open_orders() == []


def test_close_all(trader):
    trader.ok("Buy", "0.5")
    order = trader.ok("Sell", "0", reduceOnly=True, closeOnTrigger=True)
    assert (trader.row(order)["cumExecQty"], trader.position()["size"]) == ("0.5", "0")


def test_amend(trader):
    order = trader.ok("Buy", "0.5", "59000", orderLinkId="to-amend")

    def amend(**wish):
        return code(trader.post("/v5/order/amend", **BTC, orderLinkId="to-amend", **wish))

    assert amend(qty="0.5", price="59000") == 10001
    assert amend(price="59000.05") == 10001
    assert amend(qty="40") == 110007
    assert trader.row(order)["qty"] == "0.5"
    assert amend(qty="0.4", price="59500") == 0
    row = trader.row(order)
    assert (row["qty"], row["price"], row["orderStatus"]) == ("0.4", "59500", "New")
    assert amend(price="60100") == 0
    assert trader.row(order)["orderStatus"] == "Filled"
    assert amend(price="60000") == 110001
    assert trader.exchange.truth()["accounts"]["100001"]["positions"]["BTCUSDT"]["avgPrice"] == "60000.1"


def test_cancel(trader):
    order = trader.ok("Buy", "0.5", "59000", orderLinkId="to-cancel")

    def cancel(**names):
        return code(trader.post("/v5/order/cancel", **BTC, **names))

    assert cancel() == 10001
    assert cancel(orderId="nothing") == 110001
    assert cancel(orderId=order, orderLinkId="another") == 0, "orderId wins"
    assert cancel(orderLinkId="to-cancel") == 110001
    row = trader.row(order)
    assert (row["orderStatus"], row["cancelType"], row["rejectReason"]) == (
        "Cancelled",
        "CancelByUser",
        "EC_PerCancelRequest",
    )
    assert cancel(orderId=trader.ok("Buy", "0.1")) == 110001


def test_cancel_all_can_strip_the_stop(trader):
    trader.ok("Buy", "0.1", stopLoss="59000")
    resting, waiting = (
        trader.ok("Buy", "0.1", "59500"),
        trader.ok("Buy", "0.1", triggerPrice="61000", triggerDirection=1),
    )
    path = "/v5/order/cancel-all"
    assert code(trader.post(path, category="linear")) == 10001
    done = trader.post(path, **BTC, orderFilter="Order")["result"]
    assert (done["success"], [row["orderId"] for row in done["list"]]) == ("1", [resting])
    done = trader.post(path, **BTC, orderFilter="StopOrder", stopOrderType="Stop")["result"]
    assert [row["orderId"] for row in done["list"]] == [waiting]
    assert trader.position()["stopLoss"] == "59000"
    assert len(trader.post(path, category="linear", settleCoin="USDT")["result"]["list"]) == 1
    assert trader.position()["stopLoss"] == ""
    assert trader.row(waiting)["orderStatus"] == "Deactivated", "it had not been triggered"


# --- stops


def test_a_stop_protects_from_the_first_fill(trade_on):
    trader = trade_on((T, "60000"), (T + 1, "59500"), (T + 2, "58999", "59300"), (T + 3, "58000"))
    entry = trader.ok("Buy", "0.2", "59600", stopLoss="59000", takeProfit="62000", slTriggerBy="MarkPrice")
    assert trader.position()["stopLoss"] == ""
    trader.clock.set_ms(T + 1)
    position = trader.position()
    assert (position["size"], position["stopLoss"], position["takeProfit"]) == ("0.2", "59000", "62000")
    stops = {row["stopOrderType"]: row for row in trader.open_orders()}
    assert set(stops) == {"StopLoss", "TakeProfit"}
    assert (stops["StopLoss"]["triggerBy"], stops["StopLoss"]["orderStatus"]) == ("MarkPrice", "Untriggered")
    trader.clock.set_ms(T + 2)
    assert trader.position()["size"] == "0.2", "the mark has not reached it"
    trader.clock.set_ms(T + 3)
    assert trader.position()["size"] == "0"
    closing = trader.fills()[-1]
    assert (closing["execPrice"], closing["stopOrderType"], closing["createType"]) == (
        "58000",
        "StopLoss",
        "CreateByStopLoss",
    )
    assert trader.row(stops["TakeProfit"]["orderId"])["cancelType"] == "CancelByTpSlTsClear"
    assert trader.row(entry)["stopLoss"] == "59000"


def test_trading_stop(trader):
    def stop(**wish):
        return code(trader.post("/v5/position/trading-stop", **BTC, tpslMode="Full", positionIdx=0, **wish))

    assert stop(stopLoss="59000") == 10001, "there is no position"
    trader.ok("Buy", "0.2")
    assert stop(stopLoss="60500") == 10001
    assert stop() == 34040
    assert stop(stopLoss="0") == 34040
    assert stop(stopLoss="59000") == 0
    assert stop(stopLoss="59000") == 34040
    (before,) = trader.open_orders()
    assert stop(stopLoss="59100", takeProfit="61000") == 0
    assert {row["orderId"]: row["triggerPrice"] for row in trader.open_orders()}[before["orderId"]] == "59100"
    trader.ok("Buy", "0.1")
    assert {row["qty"] for row in trader.open_orders()} == {"0.3"}, "stops of the whole position grow with it"
    assert stop(stopLoss="0") == 0
    assert (trader.position()["stopLoss"], trader.position()["takeProfit"]) == ("", "61000")


def test_a_trailing_stop_follows(trade_on):
    path = ((T, "60000"), (T + 1, "60300"), (T + 2, "60250"), (T + 3, "60900"), (T + 4, "60801"), (T + 5, "60800"))
    trader = trade_on(*path)
    trader.ok("Buy", "0.1")
    wish = {"tpslMode": "Full", "positionIdx": 0, "trailingStop": "100", "activePrice": "60300"}
    assert code(trader.post("/v5/position/trading-stop", **BTC, **wish)) == 0
    trader.clock.set_ms(T + 4)
    assert (trader.position()["size"], trader.position()["trailingStop"]) == ("0.1", "100")
    assert trader.open_orders()[0]["triggerPrice"] == "60800"
    trader.clock.set_ms(T + 5)
    assert trader.position()["size"] == "0"
    assert trader.fills()[-1]["execPrice"] == "60800"


def test_partial_stops(trader):
    trader.ok("Buy", "0.4")
    path = "/v5/position/trading-stop"
    wish = {"tpslMode": "Partial", "positionIdx": 0, "stopLoss": "59950"}
    assert code(trader.post(path, **BTC, **wish)) == 10001
    assert code(trader.post(path, **BTC, **wish, slSize="0.1")) == 0
    trader.clock.set_ms(T + 10_000)
    assert trader.position()["size"] == "0.3"
    assert trader.fills()[-1]["stopOrderType"] == "PartialStopLoss"


@pytest.mark.parametrize(("by", "fills"), [("LastPrice", 1), ("MarkPrice", 0)])
def test_conditional_orders(trade_on, by, fills):
    trader = trade_on((T, "60000", "60000"), (T + 1, "60200", "60050"), (T + 2, "60300", "60060"))
    order = trader.ok("Buy", "0.1", triggerPrice="60150", triggerDirection=1, triggerBy=by)
    assert trader.row(order)["orderStatus"] == "Untriggered"
    assert trader.wallet()["totalInitialMargin"] == "0"
    trader.clock.set_ms(T + 2)
    assert len(trader.fills()) == fills
    if fills:
        assert (trader.row(order)["orderStatus"], trader.fills()[0]["execPrice"]) == ("Filled", "60200.1")
        assert int(trader.fills()[0]["execTime"]) == T + 1


def test_a_conditional_order_that_cannot_be_paid_is_rejected(trader):
    order = trader.ok("Buy", "20", triggerPrice="60100", triggerDirection=1)
    trader.clock.set_ms(T + 20_000)
    assert trader.row(order)["orderStatus"] == "Rejected"
    assert trader.position()["size"] == "0"


def test_how_many_may_wait(trader):
    for _ in range(10):
        trader.ok("Buy", "0.001", triggerPrice="61000", triggerDirection=1)
    assert code(trader.order("Buy", "0.001", triggerPrice="61000", triggerDirection=1)) == 110009
    for _ in range(500):
        trader.ok("Buy", "0.001", "59500")
    assert code(trader.order("Buy", "0.001", "59500")) == 110020
