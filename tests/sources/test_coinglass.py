"""The client against a real server: what it asks for and what it makes of good answers, late ones and holes."""

import numpy as np
import pytest

from mlbot_core.clock import parse_utc_ms
from mlbot_core.errors import (
    KeyRejectedError,
    PlanError,
    UsageError,
)
from mlbot_core.market import CATALOGUE, CORE_SERIES
from mlbot_core.market.batch import column
from mlbot_core.sources.base import CAUSE_BEFORE_HISTORY, CAUSE_NOT_YET, CAUSE_NOTHING, CAUSE_PADDING
from mlbot_core.sources.rows import parse_answer
from mlbot_core.sources.transport import RequestRefusedError
from mlbot_core.timeframe import DAY_MS, HOUR_MS, Market, Timeframe

PRICE = str(CATALOGUE["price"].endpoint)
OI = str(CATALOGUE["open_interest"].endpoint)
LIQUIDATIONS = str(CATALOGUE["liquidations"].endpoint)
SIX = [name for name in CORE_SERIES if CATALOGUE[name].endpoint]
H1 = Market.parse("BTC-1h")
START = parse_utc_ms("2025-03-09T00:00:00Z")
NOON = parse_utc_ms("2025-03-10T12:00:00Z")


def closes(batch, name="close"):
    return np.asarray(batch.table.column(name).to_numpy(zero_copy_only=False), dtype=float)


@pytest.mark.parametrize("series", SIX)
def test_values_units_and_open_bar(series, source, server, row_of):
    batch = source.fetch(series, H1, START, NOON + DAY_MS)
    ts = column(batch.table, "ts")
    # 12:10 now: the 12:00 bar is open and 11:00 is the last closed one
    assert ts.tolist() == list(range(START, NOON, HOUR_MS))
    assert batch.gaps == ()
    assert not batch.recorded
    assert set(column(batch.table, "observed_at").tolist()) == {server.clock.now_ms()}
    for col in CATALOGUE[series].columns:
        if col.field is None:
            assert batch.table.column(col.name).null_count == batch.rows
            continue
        expected = [float(str(row_of(series, int(t))[col.field])) * col.scale for t in ts]
        assert closes(batch, col.name).tolist() == expected


def test_requests_carry_key_pair_bounds_and_limit(source, server):
    source.fetch("price", H1, START, NOON)
    (params,) = server.calls(PRICE)
    assert params["exchange"] == "Binance"
    assert params["symbol"] == "BTCUSDT"
    assert params["interval"] == "1h"
    assert int(params["start_time"]) == START
    assert NOON - HOUR_MS <= int(params["end_time"]) < NOON
    assert int(params["limit"]) <= 1000
    assert {h["CG-API-KEY"] for _, _, h in server.requests} == {"test-key"}
    source.fetch("liquidations", H1, START, NOON)
    assert server.calls(LIQUIDATIONS)[0]["symbol"] == "BTC"
    assert server.calls(LIQUIDATIONS)[0]["exchange_list"] == "Binance,OKX,Bybit"


@pytest.mark.parametrize("inclusive", [(True, True), (True, False), (False, True), (False, False)])
def test_long_ranges_are_complete_whatever_the_bounds_mean(inclusive, source, server):
    server.inclusive = inclusive
    start = NOON - 2500 * HOUR_MS
    batch = source.fetch("price", H1, start, NOON)
    assert column(batch.table, "ts").tolist() == list(range(start, NOON, HOUR_MS))
    assert batch.gaps == ()
    for params in server.calls(PRICE):
        assert (int(params["end_time"]) - int(params["start_time"])) // HOUR_MS + 1 <= int(params["limit"]) <= 1000
    if inclusive == (True, True):
        assert len(server.calls(PRICE)) == 3


def test_nothing_closed_yet_asks_for_nothing(source, server):
    batch = source.fetch("price", H1, NOON, NOON + DAY_MS)
    assert batch.rows == 0
    assert batch.gaps == ()
    assert server.calls(PRICE) == []


def test_bar_that_closes_while_the_answer_travels_is_still_open(source, server, clock, row_of):
    clock.set_ms(NOON + HOUR_MS - 1)

    def late(path, rows):
        clock.set_ms(NOON + HOUR_MS + 1)
        return [*rows, {"time": NOON, **row_of("price", NOON)}]

    source.subscription()
    server.edit = late
    batch = source.fetch("price", H1, START, NOON + DAY_MS)
    assert int(column(batch.table, "ts")[-1]) == NOON - HOUR_MS


def test_rows_are_judged_by_when_they_were_asked_for(row_of):
    rows = [{"time": ts, **row_of("price", ts)} for ts in (NOON - HOUR_MS, NOON)]
    close = NOON + HOUR_MS
    assert parse_answer(rows, CATALOGUE["price"], Timeframe(60), close - 1, close + 1).ts.tolist() == [NOON - HOUR_MS]
    page = parse_answer(rows, CATALOGUE["price"], Timeframe(60), close, close + 1)
    assert page.ts.tolist() == [NOON - HOUR_MS, NOON]
    assert page.observed_at == close + 1


def test_seconds_are_milliseconds(source, server):
    server.edit = lambda _, rows: [{**row, "time": row["time"] // 1000} for row in rows]
    assert source.fetch("price", H1, START, NOON).rows == 36


def test_middle_gap_is_asked_again_once_then_recorded(source, server):
    hole = {START + 5 * HOUR_MS, START + 6 * HOUR_MS}
    server.edit = lambda _, rows: [row for row in rows if row["time"] not in hole]
    batch = source.fetch("price", H1, START, NOON)
    assert batch.rows == 34
    (gap,) = batch.gaps
    assert (gap.from_ts, gap.to_ts, gap.cause) == (min(hole), max(hole), CAUSE_NOTHING)
    assert (gap.series, gap.symbol, gap.source, gap.timeframe) == ("price", "BTC", "coinglass", Timeframe(60))
    assert len(server.calls(PRICE)) == 2


def test_empty_hiccup_is_healed_by_asking_again(source, server, reply):
    server.script[PRICE].append(reply({"code": "0", "data": []}))
    batch = source.fetch("price", H1, START, NOON)
    assert batch.rows == 36
    assert batch.gaps == ()


def test_nothing_at_all_is_a_gap(source, server, reply):
    server.always[PRICE] = reply({"code": "0", "data": []})
    batch = source.fetch("price", H1, START, NOON)
    assert batch.rows == 0
    assert [(g.from_ts, g.to_ts, g.cause) for g in batch.gaps] == [(START, NOON - HOUR_MS, CAUSE_NOTHING)]
    assert len(server.calls(PRICE)) == 2


def test_newest_bar_not_served_yet(source, server):
    server.edit = lambda _, rows: [row for row in rows if row["time"] < NOON - HOUR_MS]
    (gap,) = source.fetch("price", H1, START, NOON).gaps
    assert (gap.from_ts, gap.to_ts, gap.cause) == (NOON - HOUR_MS, NOON - HOUR_MS, CAUSE_NOT_YET)


def test_plan_depth_is_not_asked_beyond_and_is_recorded(source, server):
    server.level = "STARTUP"
    start = NOON - 200 * DAY_MS
    batch = source.fetch("price", H1, start, NOON)
    first = NOON - (180 * 24 - 1) * HOUR_MS
    assert source.served("price", H1).earliest_ms == first
    assert int(column(batch.table, "ts")[0]) == first
    (gap,) = batch.gaps
    assert (gap.from_ts, gap.to_ts) == (start, first - HOUR_MS)
    assert "STARTUP" in gap.cause
    assert "180 days" in gap.cause
    assert min(int(p["start_time"]) for p in server.calls(PRICE)) >= first - HOUR_MS


def test_silent_cut_is_detected(source, server):
    server.earliest_ms = NOON - 100 * HOUR_MS
    start = NOON - 3000 * HOUR_MS
    batch = source.fetch("price", H1, start, NOON)
    assert batch.rows == 100
    (gap,) = batch.gaps
    assert (gap.from_ts, gap.to_ts, gap.cause) == (start, server.earliest_ms - HOUR_MS, CAUSE_BEFORE_HISTORY)


def test_range_before_the_plan_costs_no_call(source, server):
    server.level = "STARTUP"
    batch = source.fetch("price", H1, NOON - 400 * DAY_MS, NOON - 390 * DAY_MS)
    assert batch.rows == 0
    assert len(batch.gaps) == 1
    assert server.calls(PRICE) == []


def test_zero_padding_is_stripped_but_a_quiet_bar_is_kept(source, server):
    zeros = {"aggregated_long_liquidation_usd": 0, "aggregated_short_liquidation_usd": "0"}
    begins = START + 30 * HOUR_MS
    server.edit = lambda _, rows: [{**row, **zeros} if row["time"] < begins else row for row in rows]
    batch = source.fetch("liquidations", H1, START, NOON)
    assert int(column(batch.table, "ts")[0]) == begins
    assert [(g.from_ts, g.to_ts, g.cause) for g in batch.gaps] == [(START, begins - HOUR_MS, CAUSE_PADDING)]
    assert batch.notes[0] == "30 rows of zero padding dropped"
    assert "asked from 2025-03-09T00:00:00Z, served from 2025-03-10T06:00:00Z on: zero padding" in batch.notes[1]
    begins = START + HOUR_MS
    batch = source.fetch("liquidations", H1, START, NOON)
    assert batch.rows == 36
    assert closes(batch, "long_usd")[0] == 0.0


def test_two_hours_are_resampled_from_one_hour(source, server, row_of):
    market = Market.parse("BTC-2h")
    for _ in range(2):
        batch = source.fetch("price", market, START, NOON + DAY_MS)
    assert [p["limit"] for p in server.calls(PRICE) if p["interval"] == "2h"] == ["3"]
    ts = column(batch.table, "ts")
    assert ts.tolist() == list(range(START, NOON, 2 * HOUR_MS))
    assert batch.notes == ("2h bars made of 1h bars",)
    pairs = [(row_of("price", int(t)), row_of("price", int(t) + HOUR_MS)) for t in ts]
    assert closes(batch).tolist() == [float(b["close"]) for _, b in pairs]
    assert closes(batch, "open").tolist() == [float(a["open"]) for a, _ in pairs]
    assert closes(batch, "high").tolist() == [float(max(a["high"], b["high"])) for a, b in pairs]
    assert closes(batch, "volume_usd").tolist() == [float(a["volume_usd"]) + float(b["volume_usd"]) for a, b in pairs]


def test_two_hours_with_a_child_missing_are_a_gap(source, server):
    server.edit = lambda _, rows: [row for row in rows if row["time"] != START + 5 * HOUR_MS]
    batch = source.fetch("price", Market.parse("BTC-2h"), START, NOON)
    assert [(g.from_ts, g.to_ts) for g in batch.gaps] == [(START + 4 * HOUR_MS, START + 4 * HOUR_MS)]
    assert batch.rows == 17


def test_native_two_hours_are_used_where_they_are_real(source, server):
    server.refuse_intervals = set()
    batch = source.fetch("price", Market.parse("BTC-2h"), START, NOON)
    assert {p["interval"] for p in server.calls(PRICE)} == {"2h"}
    assert batch.rows == 18
    assert batch.notes == ()


def test_one_hour_rows_under_the_name_of_two_are_not_believed(source, server):
    real = server.answer
    server.refuse_intervals = set()
    server.answer = lambda path, params: real(
        path, {**params, "interval": "1h"} if params.get("interval") == "2h" else params
    )
    batch = source.fetch("price", Market.parse("BTC-2h"), START, NOON)
    assert batch.notes == ("2h bars made of 1h bars",)
    assert batch.rows == 18


def test_legacy_spelling_is_tried_once_and_remembered(source, server):
    server.refuse_intervals = {"1h"}
    batch = source.fetch("price", H1, START, NOON)
    assert batch.rows == 36
    source.fetch("price", H1, START, NOON)
    assert [p["interval"] for p in server.calls(PRICE)] == ["1h", "h1", "h1"]
    server.refuse_intervals = {"1h", "h1"}
    with pytest.raises(RequestRefusedError, match="interval"):
        source.fetch("open_interest", H1, START, NOON)
    assert [p["interval"] for p in server.calls(OI)] == ["1h", "h1"]


def test_plan_without_the_interval(source, server):
    server.level = "HOBBYIST"
    assert source.served("price", H1) is None
    assert "HOBBYIST" in source.why_not("price", H1)
    assert source.served("price", Market.parse("BTC-4h")) is not None
    for market in ("BTC-1h", "BTC-2h"):
        with pytest.raises(PlanError, match="HOBBYIST serves bars of 4h and longer"):
            source.fetch("price", Market.parse(market), START, NOON)
    assert server.calls(PRICE) == []


def test_series_and_intervals_that_do_not_exist(source):
    assert source.served("funding_settled", H1) is None
    with pytest.raises(UsageError, match="no endpoint"):
        source.fetch("funding_settled", H1, START, NOON)
    with pytest.raises(UsageError, match="no 3h bars"):
        source.fetch("price", Market.parse("BTC-3h"), START, NOON)
    with pytest.raises(UsageError, match="not in the catalogue"):
        source.fetch("nonsense", H1, START, NOON)


def test_expired_and_unknown_subscriptions(source, server, reply):
    path = "/api/user/account/subscription"
    expired = {"level": "STANDARD", "expire_time": NOON, "expired": True}
    server.script[path].append(reply({"code": "0", "data": expired}))
    with pytest.raises(KeyRejectedError, match="expired on 2025-03-10"):
        source.fetch("price", H1, START, NOON)
    server.script[path].append(reply({"code": "404", "msg": "Endpoint not found"}, status=404))
    assert source.fetch("price", H1, START, NOON).rows == 36
    assert source.subscription().plan.level == "UNKNOWN"
