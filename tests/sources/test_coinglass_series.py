"""What the client does for series with ways of their own: late ones, whole histories, samples, plans, silent cuts."""

from contextlib import contextmanager

import numpy as np
import pytest

from mlbot_core.clock import FixedClock, parse_utc_ms
from mlbot_core.emulator import CoinglassOptions, EmulatorServer
from mlbot_core.emulator.faults import Fault, FaultSchedule
from mlbot_core.errors import PlanError, UsageError
from mlbot_core.market import CATALOGUE
from mlbot_core.market.batch import column
from mlbot_core.sources import fetch_many, open_source
from mlbot_core.timeframe import DAY_MS, HOUR_MS, Market

START = parse_utc_ms("2024-01-01")
NOW = parse_utc_ms("2024-07-10T12:10:00Z")
H1 = Market.parse("BTC-1h")


@contextmanager
def emulated(settings, now=NOW, faults=(), **options):
    schedule = FaultSchedule(tuple(faults))
    clock = FixedClock(now)
    with (
        EmulatorServer(
            seed=7, start_ms=START, clock=clock, options=CoinglassOptions(**options), faults=schedule
        ) as server,
        open_source("emulator", settings, clock, base_url=server.url) as source,
    ):
        yield source, server, clock


def days(batch):
    return [str(np.datetime64(int(ts), "ms"))[5:10] for ts in column(batch.table, "ts")]


def test_a_fund_flow_is_taken_when_it_is_complete_and_never_as_a_zero(settings):
    week = parse_utc_ms("2024-07-03")
    with emulated(settings, parse_utc_ms("2024-07-09T11:59:59Z")) as (source, _, clock):
        before = source.fetch("etf_flows", H1, week, NOW)
        # the 8th is there in part, the 9th as a zero with nothing in it, the 4th was a holiday
        assert days(before) == ["07-03", "07-05"]
        clock.sleep(1)
        at_noon = source.fetch("etf_flows", H1, week, NOW)
        assert days(at_noon) == ["07-03", "07-05", "07-08"]
        assert 0 not in at_noon.table.column("flow_usd").to_pylist()
        assert before.gaps == at_noon.gaps == ()
        assert at_noon.publication_lag_ms == 12 * HOUR_MS


def test_a_fund_day_that_stays_empty_is_a_gap(settings, server, reply, source, clock):
    spec = CATALOGUE["etf_flows"]
    friday, monday = parse_utc_ms("2025-02-28"), parse_utc_ms("2025-03-03")
    rows = [
        {"timestamp": friday, "flow_usd": 5_000_000, "etf_flows": [{"etf_ticker": "IBIT", "flow_usd": 5_000_000}]},
        {"timestamp": monday, "flow_usd": 0, "etf_flows": [{"etf_ticker": "IBIT", "flow_usd": None}]},
    ]
    server.always[str(spec.endpoint)] = reply({"code": "0", "data": rows})
    batch = source.fetch("etf_flows", H1, friday, monday + DAY_MS)
    assert days(batch) == ["02-28"]
    assert [(gap.from_ts, gap.to_ts) for gap in batch.gaps] == [(monday, monday)]
    assert "1 rows without any value are observations not made, not zeros" in batch.notes
    assert len(server.calls(str(spec.endpoint))) == 2, "asked once more before it is believed"


@pytest.mark.parametrize("wrapped", [False, True])
def test_fear_and_greed_in_both_shapes_on_the_day_it_was_stamped(settings, wrapped):
    with emulated(settings, wrapped=wrapped) as (source, _, _):
        batch = source.fetch("fear_greed", H1, NOW - 4 * DAY_MS, NOW)
    assert days(batch) == ["07-07", "07-08", "07-09"]
    assert all(value == int(value) for value in batch.table.column("value").to_pylist())


def test_options_sum_over_exchanges_and_skip_the_point_stamped_now(settings):
    with emulated(settings) as (source, server, _):
        batch = source.fetch("options_oi", H1, START, NOW)
        again = source.fetch("options_oi", H1, START, NOW)
        assert server.api.calls["/api/option/exchange-oi-history"] == 2
    assert batch.rows == 191
    assert batch.table.equals(again.table)
    assert batch.timeframe.ms == DAY_MS


def test_seconds_and_milliseconds_are_the_same_bar(settings):
    with emulated(settings) as (source, _, _):
        premium = source.fetch("coinbase_premium", H1, NOW - DAY_MS, NOW)
        price = source.fetch("price", H1, NOW - DAY_MS, NOW)
    assert column(premium.table, "ts").tolist() == column(price.table, "ts").tolist()
    usd, rate = (np.array(premium.table.column(name).to_pylist()) for name in ("premium_usd", "premium_rate"))
    close = np.array(price.table.column("open").to_pylist())
    np.testing.assert_allclose(rate, usd / close, atol=1e-6)


def test_a_silent_cut_is_detected_and_said(settings):
    now = parse_utc_ms("2024-12-01T00:07:00Z")
    with emulated(settings, now, plan="startup") as (source, _, _):
        batch = source.fetch("order_book", H1, now - 200 * DAY_MS, now)
    (gap,) = batch.gaps
    assert "before the history of plan STARTUP (180 days at 1h)" in gap.cause
    assert any(note.startswith("asked from 2024-05-15") and "plan STARTUP" in note for note in batch.notes)


def test_a_refusal_by_the_plan_is_asked_once(settings):
    endpoint = str(CATALOGUE["order_book"].endpoint)
    with emulated(settings) as (source, server, _):
        refusal = '{"code":"401","msg":"Upgrade plan"}'
        calls = []

        def refuse(path, params, container=list):
            calls.append(path)
            raise PlanError(f"{path}: {refusal}")

        served = source.subscription()
        assert served.plan.level == "ENTERPRISE"
        source._transport.get = refuse
        for _ in range(2):
            with pytest.raises(PlanError, match="Upgrade plan"):
                source.fetch("order_book", H1, NOW - DAY_MS, NOW)
        assert calls == [endpoint]
        assert "refused it to this key before" in source.why_not("order_book", H1)
        assert source.served("order_book", H1) is None
        assert source.served("price", H1) is not None
        assert server.api.calls[endpoint] == 0


def test_a_plan_that_is_too_small_is_refused_before_any_call(settings):
    with emulated(settings, plan="hobbyist") as (source, server, _):
        with pytest.raises(PlanError, match="whale_index begins with plan STARTUP, this key has HOBBYIST"):
            source.fetch("whale_index", Market.parse("BTC-4h"), NOW - DAY_MS, NOW)
        assert server.api.calls[str(CATALOGUE["whale_index"].endpoint)] == 0


def test_series_of_one_coin(settings):
    eth = Market.parse("ETH-4h")
    with emulated(settings) as (source, _, _):
        for series in ("coinbase_premium", "etf_flows"):
            assert source.served(series, eth) is None
            with pytest.raises(UsageError, match="is about BTC only, not ETH"):
                source.fetch(series, eth, NOW - DAY_MS, NOW)
        assert source.fetch("bitfinex_margin", eth, NOW - DAY_MS, NOW).rows == 4


def test_an_empty_answer_is_asked_again(settings):
    for series in ("fear_greed", "order_book", "etf_flows"):
        fault = Fault("empty_page", endpoint=str(CATALOGUE[series].endpoint), nth=1)
        with emulated(settings) as (source, _, _):
            clean = source.fetch(series, H1, NOW - 3 * DAY_MS, NOW)
        with emulated(settings, faults=[fault]) as (source, _, _):
            batch = source.fetch(series, H1, NOW - 3 * DAY_MS, NOW)
        assert batch.table.equals(clean.table)
        assert batch.gaps == ()


def test_many_series_within_a_plans_rate_and_progress_is_told(settings):
    told = []
    names = [name for name, spec in CATALOGUE.items() if spec.endpoint]
    with emulated(settings, plan="professional") as (source, server, _):
        batches = fetch_many(
            source, names, H1, NOW - 2 * DAY_MS, NOW, threads=6, progress=lambda name, batch: told.append((name, batch))
        )
        assert dict(server.api.refused) == {}
    assert list(batches) == names
    assert sorted(name for name, _ in told) == sorted(names)
    assert all(batches[name] is batch for name, batch in told)
    assert batches["order_book"].publication_lag_ms == HOUR_MS
