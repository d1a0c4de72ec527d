"""Money computed by hand: fees, funding, partial closes, reversal, liquidation by tiers, the exchange's own trades."""

from decimal import Decimal

import pytest

from mlbot_core.clock import FixedClock, parse_utc_ms
from mlbot_core.emulator import SyntheticMarket
from mlbot_core.emulator.bybit_market import BybitMarket
from mlbot_core.emulator.bybit_snapshot import orderbook, ticker
from mlbot_core.emulator.exchange import Exchange, ExchangeOptions, PathFeed, Point, SyntheticFeed
from mlbot_core.timeframe import DAY_MS, HOUR_MS

T = parse_utc_ms("2024-03-01T09:00:00Z")
FUNDING = [parse_utc_ms(f"2024-03-{text}:00:00Z") for text in ("01T16", "02T00", "02T08")]
BTC = {"category": "linear", "symbol": "BTCUSDT"}


def balance(trader):
    return Decimal(trader.exchange.truth()["accounts"]["100001"]["wallet"]["USDT"])


def test_taker_and_maker_fees(trade_on):
    """Buy 0.1 at the ask 60000.1: fee 6000.01 x 0.00055; sell 0.1 resting at 60100: fee 6010 x 0.0002."""
    trader = trade_on((T, "60000"), (T + 60_000, "60200"))
    trader.ok("Buy", "0.1")
    assert balance(trader) == Decimal("99996.6999945")
    order = trader.ok("Sell", "0.1", "60100", reduceOnly=True)
    assert trader.row(order)["orderStatus"] == "New"
    trader.clock.set_ms(T + 60_000)
    # 100000 - 3.3000055 + (6010 - 6000.01) - 1.202
    assert balance(trader) == Decimal("100005.4879945")
    row = trader.row(order)
    assert (row["orderStatus"], row["avgPrice"], row["cumExecFee"]) == ("Filled", "60100", "1.202")
    maker = trader.fills()[-1]
    assert (maker["isMaker"], maker["feeRate"], maker["closedSize"]) == (True, "0.0002", "0.1")


def test_funding_over_three_settlements(trade_on):
    """A short of 0.5 receives at positive rates and pays at negative ones, on its value at mark."""
    marks = ("60200", "59800", "61000")
    rates = dict(zip(FUNDING, ("0.0001", "-0.0002", "0.0003"), strict=True))
    points = [(T, "60000"), *((ts, "60000", mark) for ts, mark in zip(FUNDING, marks, strict=True))]
    trader = trade_on(*points, funding=rates)
    trader.ok("Sell", "0.5")
    trader.clock.set_ms(FUNDING[2] + HOUR_MS)
    # fee 0.5 x 60000 x 0.00055; 0.5 x 60200 x 0.0001; 0.5 x 59800 x -0.0002; 0.5 x 61000 x 0.0003
    assert [row["change"] for row in trader.log()] == ["100000", "-16.5", "3.01", "-5.98", "9.15"]
    assert balance(trader) == Decimal("99989.68")
    funding = [row for row in trader.fills() if row["execType"] == "Funding"]
    assert [row["execFee"] for row in funding] == ["-3.01", "5.98", "-9.15"]
    assert [row["feeRate"] for row in funding] == ["-0.0001", "0.0002", "-0.0003"]
    assert [row["funding"] for row in trader.log()[2:]] == ["3.01", "-5.98", "9.15"]
    assert [int(row["execTime"]) for row in funding] == FUNDING
    assert trader.position()["curRealisedPnl"] == "-10.32"


def test_no_funding_without_a_position_at_the_instant(trade_on):
    trader = trade_on((T, "60000"), (FUNDING[0] + 1, "60000"))
    trader.ok("Buy", "0.1")
    trader.clock.set_ms(FUNDING[0] - 1)
    trader.ok("Sell", "0.1", reduceOnly=True)
    trader.clock.set_ms(FUNDING[0] + HOUR_MS)
    trader.ok("Buy", "0.1")
    assert not [row for row in trader.fills() if row["execType"] == "Funding"]


def test_partial_closes_add_up(trade_on):
    """0.3 at 60000.1 and 0.1 at 61000.1 cost 24100.04; closes bring 9300 and 14750."""
    trader = trade_on((T, "60000"), (T + 1, "61000"), (T + 2, "62000"), (T + 3, "59000"))
    trader.ok("Buy", "0.3")
    trader.clock.set_ms(T + 1)
    trader.ok("Buy", "0.1")
    assert trader.position()["avgPrice"] == "60250.1"
    trader.clock.set_ms(T + 2)
    trader.ok("Sell", "0.15", reduceOnly=True)
    trader.clock.set_ms(T + 3)
    trader.ok("Sell", "0.25", reduceOnly=True)
    flows = [row["cashFlow"] for row in trader.log() if row["type"] == "TRADE"]
    assert flows == ["0", "0", "262.485", "-312.525"]
    position = trader.position()
    assert (position["side"], position["size"], position["avgPrice"]) == ("", "0", "")
    # -50.04 and fees 9.9000165 + 3.3550055 + 5.115 + 8.1125
    assert balance(trader) == Decimal("100000") - Decimal("50.04") - Decimal("26.482522")
    assert position["cumRealisedPnl"] == "-76.522522"


def test_reversal(trade_on):
    """Long 0.2 at 60000.1, then 0.5 sold at 60500: 0.2 closed with 99.98, 0.3 short from 60500."""
    trader = trade_on((T, "60000"), (T + 1, "60500"))
    trader.ok("Buy", "0.2", stopLoss="59000")
    trader.clock.set_ms(T + 1)
    trader.ok("Sell", "0.5")
    position, last = trader.position(), trader.log()[-1]
    assert (position["side"], position["size"], position["avgPrice"]) == ("Sell", "0.3", "60500")
    assert (last["cashFlow"], last["fee"], last["size"]) == ("99.98", "16.6375", "-0.3")
    assert trader.fills()[-1]["closedSize"] == "0.2"
    assert position["stopLoss"] == "", "the stop belonged to the long"
    assert trader.open_orders() == []


def thin(balance_):
    return ExchangeOptions(limits="off", balance=Decimal(balance_))


def leveraged(trader, leverage):
    answer = trader.post("/v5/position/set-leverage", **BTC, buyLeverage=leverage, sellLeverage=leverage)
    assert answer["retCode"] == 0, answer


@pytest.mark.parametrize(("mark", "survives"), [("59329.8", True), ("59329.7", False)])
def test_liquidation_in_the_first_tier(trade_on, mark, survives):
    """1 BTC at 60000.1 with 1000 USDT: wallet 966.999945, liquidation at (60000.1 - 966.999945) / 0.995 = 59329.7488.

    The takeover price leaves nothing: (60000.1 - 966.999945) / 0.99945 = 59065.586, on the grid 59065.6.
    """
    trader = trade_on((T, "60000"), (T + 60_000, "59900", mark), options=thin("1000"))
    leveraged(trader, "100")
    trader.ok("Buy", "1")
    resting = trader.ok("Buy", "0.001", "59500")
    assert trader.position()["liqPrice"] == "59329.7"
    trader.clock.set_ms(T + 60_000)
    if survives:
        wallet = trader.wallet()
        # 59329.8 x 0.005 of 966.999945 - 670.3
        assert wallet["totalMaintenanceMargin"] == "296.649"
        assert wallet["totalMarginBalance"] == "296.699945"
        assert wallet["accountMMRate"] == "0.9998"
        assert trader.position()["size"] == "1"
        return
    position, last, fill = trader.position(), trader.log()[-1], trader.fills()[-1]
    assert position["size"] == "0"
    assert (fill["execType"], fill["execPrice"], fill["createType"]) == (
        "BustTrade",
        "59065.6",
        "CreateByTakeOver_PassThrough",
    )
    assert (last["type"], last["cashFlow"], last["fee"]) == ("LIQUIDATION", "-934.5", "32.48608")
    assert balance(trader) == Decimal("0.013865")
    assert trader.row(resting)["cancelType"] == "CancelAllBeforeLiq"


def test_liquidation_in_the_second_tier(trade_on):
    """40 BTC at 60000.1 are 2.4 million: rate 0.56 %, deduction 1200; fee 1320.0022, wallet 98679.9978.

    (2400004 - 98679.9978 - 1200) / (40 x 0.9944) = 57826.9308.
    """
    trader = trade_on((T, "60000"), (T + 60_000, "57900", "57827"), (T + 120_000, "57900", "57826.9"))
    leveraged(trader, "50")
    trader.ok("Buy", "40")
    position = trader.position()
    assert (position["riskId"], position["riskLimitValue"], position["positionMM"]) == (2, "2600000", "12240")
    assert position["liqPrice"] == "57826.9"
    trader.clock.set_ms(T + 60_000)
    assert trader.position()["size"] == "40"
    trader.clock.set_ms(T + 120_000)
    assert trader.position()["size"] == "0"
    # takeover: (2400004 - 98679.9978) / (40 x 0.99945) = 57564.7607, on the grid 57564.8
    assert trader.fills()[-1]["execPrice"] == "57564.8"
    assert balance(trader) == Decimal("98679.9978") + 40 * Decimal("57564.8") * Decimal("0.99945") - Decimal("2400004")
    assert 0 <= balance(trader) < 4


def test_a_short_is_liquidated_above(trade_on):
    """1 BTC sold at 60000 with 1000 USDT: wallet 967, liquidation at (60000 + 967) / 1.005 = 60663.6816."""
    trader = trade_on((T, "60000"), (T + 1, "60100", "60663.6"), (T + 2, "60100", "60663.7"), options=thin("1000"))
    leveraged(trader, "100")
    trader.ok("Sell", "1")
    assert trader.position()["liqPrice"] == "60663.7"
    trader.clock.set_ms(T + 1)
    assert trader.position()["size"] == "1"
    trader.clock.set_ms(T + 2)
    # takeover: 60967 / 1.00055 = 60933.4866, on the grid 60933.4
    assert (trader.position()["size"], trader.fills()[-1]["execPrice"]) == ("0", "60933.4")
    assert balance(trader) == Decimal("967") - Decimal("933.4") - Decimal("33.51337")


def test_what_the_exchange_does_by_itself(trade_on):
    """Deleveraging pays the taker fee, a settlement none; each has its own type in both lists."""
    trader = trade_on((T, "60000", "60010"))
    trader.ok("Buy", "0.3")
    trader.exchange.intervene("AdlTrade", Decimal("0.1"), Decimal("60500"), "BTCUSDT")
    trader.exchange.intervene("Settle", Decimal("0.2"), None, "BTCUSDT")
    kinds = [(row["execType"], row["execPrice"], row["execFee"]) for row in trader.fills()[1:]]
    assert kinds == [("AdlTrade", "60500", "3.3275"), ("Settle", "60010", "0")]
    rows = [(row["type"], row["cashFlow"]) for row in trader.log()[2:]]
    assert rows == [("ADL", "49.99"), ("SETTLEMENT", "1.98")]
    assert trader.position()["size"] == "0"


def test_margins_of_position_and_orders(trade_on):
    """0.5 at 60000.1 at 10x; a bid for 0.4 at 59000 takes a tenth of its value and its taker fee."""
    trader = trade_on((T, "60000"))
    trader.ok("Buy", "0.5")
    trader.ok("Buy", "0.4", "59500")
    trader.ok("Sell", "0.3", "60500")
    wallet = trader.wallet()
    (coin,) = wallet["coin"]
    assert (coin["totalPositionIM"], coin["totalOrderIM"]) == ("3000", "2393.09")  # 23800 x (0.1 + 0.00055)
    assert coin["unrealisedPnl"] == wallet["totalPerpUPL"] == "-0.05"
    # 100000 - 16.5000275 - 0.05 - 5393.09
    assert wallet["totalAvailableBalance"] == "94590.3599725"
    assert wallet["totalMaintenanceMargin"] == "150"


def test_deposits_withdrawals_and_other_coins(trade_on):
    trader = trade_on((T, "60000", "60010"))
    trader.exchange.transfer(Decimal("250.5"))
    trader.exchange.transfer(Decimal("-50"))
    trader.exchange.transfer(Decimal("0.01"), "BTC")
    assert [(row["type"], row["currency"], row["change"]) for row in trader.log()[1:]] == [
        ("TRANSFER_IN", "USDT", "250.5"),
        ("TRANSFER_OUT", "USDT", "-50"),
        ("TRANSFER_IN", "BTC", "0.01"),
    ]
    wallet = trader.wallet()
    assert (wallet["totalEquity"], wallet["totalMarginBalance"]) == ("100800.6", "100200.5")
    assert {coin["coin"]: coin["usdValue"] for coin in wallet["coin"]} == {"USDT": "100200.5", "BTC": "600.1"}


def test_two_positions_are_liquidated_together():
    """1 BTC at 60000.1 and 10 ETH at 3000.1 on 2000 USDT: 1950.49939 left after fees, a maintenance margin of 450."""
    points = {
        "BTCUSDT": (("60000", T), ("59000", T + 60_000), ("58800", T + 120_000)),
        "ETHUSDT": (("3000", T), ("2980", T + 60_000)),
    }
    feeds = {
        symbol: PathFeed([Point(ts, last) for last, ts in path], tick="0.1" if symbol == "BTCUSDT" else "0.01")
        for symbol, path in points.items()
    }
    clock = FixedClock(T)
    exchange = Exchange(feeds, clock, options=thin("2000"))
    account = exchange.engines[100001].account
    for symbol, size, price in (("BTCUSDT", "1", "60000.1"), ("ETHUSDT", "10", "3000.1")):
        account.positions[symbol].leverage = Decimal(100)
        account.trade(
            None, symbol, "Buy", Decimal(size), Decimal(price), maker=False, ts=T, mark=Decimal(price), kind="Trade"
        )
    assert account.wallet["USDT"] == Decimal("1950.499395")
    clock.set_ms(T + 60_000)  # 1950.499395 - 1000.1 - 201 = 749.399395 above 295 + 149
    told = exchange.truth()["accounts"]["100001"]
    assert told["balance"]["totalMarginBalance"] == "749.399395"
    assert told["balance"]["totalMaintenanceMargin"] == "444"
    assert told["positions"]["BTCUSDT"]["size"] == "1"
    feeds["BTCUSDT"].append(Point(T + 180_000, "58600"))  # 349.399395 is not above 293 + 149
    clock.set_ms(T + 180_000)
    told = exchange.truth()["accounts"]["100001"]
    assert [row["execType"] for row in told["executions"][2:]] == ["BustTrade", "BustTrade"]
    assert {row["size"] for row in told["positions"].values()} == {"0"}
    assert 0 <= Decimal(told["wallet"]["USDT"]) < 1


def test_the_feed_is_the_market_that_the_public_endpoints_show():
    start = parse_utc_ms("2024-01-01")
    market = BybitMarket(SyntheticMarket(7, start))
    feed = SyntheticFeed(market)
    for ts in (start + DAY_MS, *(start + 2 * DAY_MS + 7_919 * n * 1000 for n in range(40))):
        quote, shown = feed.quote(ts), ticker("BTCUSDT", market, ts)
        assert [str(p) for p in (quote.last, quote.mark, quote.index)] == [
            shown[name] for name in ("lastPrice", "markPrice", "indexPrice")
        ]
        book = orderbook("BTCUSDT", market, 5, ts)
        for side, levels in (("b", quote.bids), ("a", quote.asks)):
            assert [[str(price), str(size)] for price, size in levels[:5]] == book[side]
    ticks = feed.ticks(start + DAY_MS, start + DAY_MS + 300_000)
    assert ticks.ts.tolist() == [start + DAY_MS + 10_000 * n for n in range(1, 31)]
    assert [f"{value:.1f}" for value in ticks.mark] == [str(feed.quote(int(ts)).mark) for ts in ticks.ts]


def test_funding_of_the_synthetic_market_is_what_its_history_says():
    start = parse_utc_ms("2024-01-01")
    clock = FixedClock(start + DAY_MS + HOUR_MS)
    market = BybitMarket(SyntheticMarket(7, start))
    exchange = Exchange.synthetic({"BTCUSDT": market}, clock, options=ExchangeOptions(limits="off"))
    due = start + DAY_MS + 8 * HOUR_MS
    from_history = SyntheticFeed(market).funding_rate(due)
    engine = exchange.engines[100001]
    engine.account.positions["BTCUSDT"].fill(1, Decimal("0.1"), Decimal("60000"), clock.now_ms())
    clock.set_ms(due)
    (row,) = exchange.truth()["accounts"]["100001"]["executions"]
    mark = SyntheticFeed(market).quote(due).mark
    assert Decimal(row["execFee"]) == (mark * Decimal("0.1") * from_history).quantize(Decimal("1e-8"))
    assert row["execPrice"] == f"{mark.normalize():f}"
