"""Bybit's rows, one by one: what is taken, what is refused and with which words."""

import json
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbot_core.errors import BadDataError
from mlbot_core.sources.bybit_rows import FUNDING, Asked, account_shares, candles, funding, one_side, open_interest
from mlbot_core.sources.paging import Window
from mlbot_core.timeframe import HOUR_MS, Timeframe

H1 = Timeframe(60)
T0 = 1_700_006_400_000  # an hour, and a settlement
ASKED = Asked("Bybit test", "BTCUSDT", Window(T0, T0 + 9 * HOUR_MS), T0 + 8 * HOUR_MS, T0 + 8 * HOUR_MS + 5)


def candle(n, *, close="101.5", high="102", low="99", **change):
    row = [str(T0 + n * HOUR_MS), "100", high, low, close, "2.5", "250.1"]
    for at, value in change.items():
        row[int(at[1:])] = value
    return row


def result(rows, **more):
    return {"symbol": "BTCUSDT", "category": "linear", "list": rows, **more}


def read(rows, **more):
    return candles(result(rows, **more), H1, ASKED, flows=True)


def test_candles_ascend_without_the_open_and_the_unasked():
    page = read([candle(8), candle(7), candle(1), candle(0), candle(-1)])
    # bar 8 closes at 9 h, after the present; bar -1 was not asked for
    assert page.ts.tolist() == [T0, T0 + HOUR_MS, T0 + 7 * HOUR_MS]
    assert page.values[0].tolist() == [100, 102, 99, 101.5, 250.1, 2.5]  # turnover before volume
    assert page.observed_at == ASKED.received_ms
    assert page.notes == ()


def test_a_documented_sample_whose_open_lies_outside_its_range():
    row = [str(T0), "-0.000587", "-0.000344", "-0.000480", "-0.000344"]
    assert candles(result([row]), H1, ASKED, flows=False).values[0].tolist() == [
        -0.000587,
        -0.000344,
        -0.00048,
        -0.000344,
    ]


def test_a_new_value_at_the_end_of_every_row_is_left_alone():
    assert read([[*candle(1), "new"], [*candle(0), "new"]]).values[0].tolist() == [100, 102, 99, 101.5, 250.1, 2.5]


def test_numbers_and_times_may_be_numbers():
    assert read([[T0, 100, 102.0, 99, 101.5, 2, "250.1"]]).ts.tolist() == [T0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([candle(0, close="102.1")], "outside its range"),
        ([candle(0, high="98")], "outside its range"),
        ([candle(0, _1="abc")], "open is 'abc'"),
        ([candle(0, _6="")], "turnover is ''"),
        ([candle(0, _5="1_0")], "volume is '1_0'"),
        ([candle(0, _5="٣")], "volume is '٣'"),
        ([candle(0, _5="nan")], "volume is 'nan'"),
        ([candle(0, _5="1e999")], "volume is '1e999'"),
        ([candle(0, _5=True)], "volume is 'True'"),
        ([candle(0, _5=None)], "volume is 'None'"),
        ([candle(0, _5=["1"])], "volume is"),
        ([candle(0, _0=str(T0 // 1000))], "not a time in ms"),
        ([candle(0, _0=T0 + 0.0)], "not a time in ms"),
        ([candle(0, _0=str(T0 + 1))], "off the 1h grid"),
        ([candle(0)[:6]], "not 7 values"),
        (["text"], "not 7 values"),
        ([candle(1), [*candle(0), "1"]], "not 7 values"),
        ([candle(0), candle(0, close="101")], "occurs twice"),
    ],
)
def test_refused_candles(rows, message):
    with pytest.raises(BadDataError, match=message):
        read(rows)


def test_refused_answers():
    with pytest.raises(BadDataError, match="symbol 'ETHUSDT', not BTCUSDT"):
        read([candle(0)], symbol="ETHUSDT")
    with pytest.raises(BadDataError, match="category 'spot'"):
        read([candle(0)], category="spot")
    with pytest.raises(BadDataError, match="list is dict"):
        candles({"list": {}}, H1, ASKED, flows=True)
    with pytest.raises(BadDataError, match="list is NoneType"):
        candles({}, H1, ASKED, flows=True)


def test_equal_duplicates_and_order_are_noted():
    page = read([candle(0), candle(1), candle(1)])
    assert page.ts.tolist() == [T0, T0 + HOUR_MS]
    assert page.notes == ("1 identical duplicate rows dropped", "rows were out of order")


def sample(n, **fields):
    return {"timestamp": str(T0 + n * HOUR_MS), **fields}


def test_samples_belong_to_the_bar_they_end():
    rows = [sample(2, buyRatio="0.6", sellRatio="0.4"), sample(1, buyRatio="0.5", sellRatio="0.5")]
    page = account_shares(result(rows), H1, ASKED)
    assert page.ts.tolist() == [T0, T0 + HOUR_MS]
    assert page.values.tolist() == [[0.5, 0.5], [0.6, 0.4]]
    newest = account_shares(result([sample(8, buyRatio="0.5", sellRatio="0.5")]), H1, ASKED)
    assert newest.ts.tolist() == [T0 + 7 * HOUR_MS]  # taken at the present: its bar has just closed
    future = account_shares(result([sample(9, buyRatio="0.5", sellRatio="0.5")]), H1, ASKED)
    assert len(future.ts) == 0


@pytest.mark.parametrize("shares", [("0.6", "0.5"), ("57.77", "42.23"), ("-0.1", "1.1"), ("0", "0")])
def test_shares_that_are_no_parts_of_one(shares):
    with pytest.raises(BadDataError, match="no parts of one"):
        account_shares(result([sample(1, buyRatio=shares[0], sellRatio=shares[1])]), H1, ASKED)


def test_open_interest_of_both_sides_and_of_one():
    rows = [
        sample(3, openInterest="210.00000000", singleOpenInterest="105.000"),
        sample(2, openInterest="104.00000000", singleOpenInterest="104"),
        sample(1, openInterest="103.5"),
    ]
    page = open_interest(result(rows), H1, ASKED)
    assert page.values[:, 0].tolist() == [103.5, 104, 210]
    np.testing.assert_array_equal(page.values[:, 1], [math.nan, 104, 105])
    for served in ("150", "420", "1", "-210"):
        with pytest.raises(BadDataError):
            open_interest(result([{**rows[0], "openInterest": served}]), H1, ASKED)
    with pytest.raises(BadDataError, match="'openInterest' is missing"):
        open_interest(result([sample(1)]), H1, ASKED)


NAN = math.nan


@pytest.mark.parametrize(
    ("served", "single", "expected", "halved"),
    [
        ([100, 101, 204, 206], [NAN, NAN, 102, 103], [100, 101, 102, 103], 0),  # redefined: it jumps by two
        ([200, 202, 204, 206], [NAN, NAN, 102, 103], [100, 101, 102, 103], 2),  # merely described anew
        ([100, 101, 102, 103], [NAN, NAN, 102, 103], [100, 101, 102, 103], 0),
        ([204, 206, 104, 105], [102, 103, NAN, NAN], [102, 103, 104, 105], 0),  # the other way round
        ([204, 206, 208, 210], [102, 103, NAN, NAN], [102, 103, 104, 105], 2),
        ([204, 102, 206, 208], [102, NAN, NAN, 104], [102, 102, 103, 104], 1),  # a stray one in between
        ([0, 0, 2], [NAN, NAN, 1], [0, 0, 1], 0),
    ],
)
def test_one_side_where_it_is_not_given(served, single, expected, halved):
    got, note = one_side(np.array(served, dtype=float), np.array(single, dtype=float))
    assert got.tolist() == expected
    assert f"{halved} of them halved" in note


def test_one_side_given_throughout_or_nowhere():
    both = np.array([204.0, 206.0])
    assert one_side(both, both / 2)[1] == ""
    got, note = one_side(both, np.full(2, NAN))
    assert got.tolist() == both.tolist()
    assert "was not told" in note


@given(
    st.lists(st.floats(0.97, 1.03), min_size=3, max_size=60),
    st.integers(1, 59),
    st.booleans(),
)
def test_one_side_is_found_wherever_the_border_lies(steps, border, redefined):
    truth = 1000 * np.cumprod(steps)
    known = np.arange(len(truth)) >= min(border, len(truth) - 1)
    served = np.where(known | (not redefined), 2 * truth, truth)
    got, _ = one_side(served, np.where(known, truth, NAN))
    np.testing.assert_allclose(got, truth, rtol=1e-12)


def paid(hours, rate="0.0001"):
    return {"symbol": "BTCUSDT", "fundingRate": rate, "fundingRateTimestamp": str(T0 + hours * HOUR_MS)}


WIDE = Asked("Bybit test", "BTCUSDT", Window(T0, T0 + 40 * HOUR_MS), T0 + 24 * HOUR_MS, T0 + 25 * HOUR_MS)


def test_funding_by_eight_hours():
    page, oldest = funding(result([paid(16, "-0.00006352"), paid(8), paid(0)]), WIDE)
    assert page.ts.tolist() == [T0, T0 + FUNDING.ms, T0 + 2 * FUNDING.ms]
    assert page.values[:, 0].tolist() == [0.0001, 0.0001, -0.00006352]
    assert oldest == T0
    # the payment at 24 h is made, but its bar is still open
    assert funding(result([paid(24)]), WIDE)[0].ts.tolist() == []
    assert funding(result([]), WIDE)[1] is None


def test_more_frequent_funding_is_added_up_in_its_bar():
    page, _ = funding(result([paid(h, "0.0001") for h in (20, 16, 12, 8, 4, 0)]), WIDE)
    assert page.values[:, 0].tolist() == [0.0002, 0.0002, 0.0002]
    assert page.notes == ("3 payments between the 8-hour settlements were added to their bar",)


def test_refused_funding():
    with pytest.raises(BadDataError, match="occurs twice"):
        funding(result([paid(8), paid(8, "0.0002")]), WIDE)
    odd = {**paid(8), "fundingRateTimestamp": str(T0 + 1)}
    with pytest.raises(BadDataError, match="not on a full hour"):
        funding(result([odd]), WIDE)
    with pytest.raises(BadDataError, match="fundingRate is"):
        funding(result([paid(8, "high")]), WIDE)


@given(st.permutations(list(range(8))), st.randoms(use_true_random=False))
def test_order_and_repetition_change_nothing(order, chance: random.Random):
    rows = [candle(n, close=str(100 + n / 10)) for n in order]
    rows += [json.loads(json.dumps(row)) for row in rows if chance.random() < 0.3]
    page = read(rows)
    assert page.ts.tolist() == [T0 + n * HOUR_MS for n in range(8)]
    assert page.values[:, 3].tolist() == [100 + n / 10 for n in range(8)]
