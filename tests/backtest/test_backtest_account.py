"""Goldens, computed by hand, of what the exchange and the risk machine do to a simulated account; and invariants."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlbot_core.backtest.portfolio import require_agreement, vectorbt_view
from mlbot_core.backtest.roundtrips import round_trips
from mlbot_core.backtest.simulator import Forecasts, Simulation, SimulationParams, simulate
from mlbot_core.decision.sizing import target_positions
from mlbot_core.decision.state import HALTED, KILL, NORMAL, REDUCE_ONLY
from mlbot_core.errors import UsageError
from mlbot_core.timeframe import DAY_MS, HOUR_MS

TF = 2 * HOUR_MS
START = 1_704_067_200_000  # 2024-01-01, midnight UTC
A_DAY = DAY_MS // TF


def account(
    bars: list[tuple[float, float, float, float]],
    target: list[float] | Forecasts,
    *,
    funding: dict[int, float] | None = None,
    series: dict[str, Any] | None = None,
    **params: Any,
) -> Simulation:
    """Simulate (open, high, low, close) bars, trading free unless said otherwise."""
    events = sorted((funding or {}).items())
    o, h, low, c = (np.array(column, dtype=float) for column in zip(*bars, strict=True))
    return simulate(
        START + TF * np.arange(len(bars)),
        o,
        h,
        low,
        c,
        target,
        SimulationParams(**{"timeframe_ms": TF, "delay_ms": 0, "fee": 0.0, "slippage": 0.0, **params}),
        [t for t, _ in events],
        [r for _, r in events],
        **(series or {}),
    )


def flat(price: float, n: int = 1) -> list[tuple[float, float, float, float]]:
    return [(price, price, price, price)] * n


def test_a_three_percent_day_is_flattened_inside_the_bar_where_the_limit_lies() -> None:
    # 10 % of 10,000 at 100: 10 coins. NAV is 9,700 at 70; the bar goes on to 60 and closes at 90.
    bars = [*flat(100, 2), (100, 100, 60, 90), *flat(90, A_DAY)]
    sim = account(bars, [0.1] * len(bars), cap=0.1, daily_loss=0.03, max_drawdown=0.25)
    exit_ = sim.fills.iloc[1]
    assert (exit_["reason"], exit_["mid"], exit_["btc"], exit_["bar"]) == ("risk", 70.0, 10.0, 2)
    assert sim.nav[2] == pytest.approx(9_700.0)
    assert list(sim.risk_events["entered"]) == ["daily_loss", ""]
    # nothing until the next UTC day; the bar that closes at midnight is decided after it
    again = sim.fills.iloc[2]
    assert again["ts"] == START + DAY_MS
    assert again["btc"] == pytest.approx(970.0 / 90.0)
    assert (sim.position[2:A_DAY] == 0.0).all()


def test_the_limit_is_met_worse_by_slippage_and_fee() -> None:
    bars = [*flat(100, 2), (100, 100, 60, 90)]
    sim = account(bars, [0.1] * 3, cap=0.1, daily_loss=0.03, fee=0.001, slippage=0.01)
    entry, exit_ = sim.fills.iloc[0], sim.fills.iloc[1]
    # in: 10 coins at 101, fee 1.01; NAV(p) = 10,000 - 1,010 - 1.01 + 10 p = 9,700 at p = 71.101
    assert (entry["price"], entry["fee"]) == (101.0, pytest.approx(1.01))
    assert exit_["mid"] == pytest.approx(71.101)
    assert exit_["price"] == pytest.approx(71.101 * 0.99)
    assert sim.nav[2] == pytest.approx(9_700.0 - 10 * 0.71101 - 10 * 71.101 * 0.99 * 0.001)


def test_a_gap_over_the_limit_is_met_at_the_open() -> None:
    bars = [*flat(100, 2), (50, 55, 45, 50)]
    sim = account(bars, [0.1] * 3, cap=0.1, daily_loss=0.03)
    exit_ = sim.fills.iloc[1]
    assert (exit_["reason"], exit_["mid"], exit_["ts"]) == ("risk", 50.0, START + 2 * TF)
    assert sim.nav[2] == pytest.approx(9_500.0)


def test_a_squeeze_through_a_quarter_of_the_nav_halts_for_good() -> None:
    # short 10 coins at 100; the open at 360 costs 2,600 of 10,000
    bars = [*flat(100, 2), *flat(360), *flat(100, 3 * A_DAY)]
    sim = account(bars, [-0.1] * len(bars), cap=0.1, daily_loss=0.03, max_drawdown=0.25)
    assert sim.fills["reason"].tolist() == ["target", "risk"]
    assert sim.nav[2] == pytest.approx(7_400.0)
    assert (sim.level[2:] == HALTED).all()
    assert (sim.position[2:] == 0.0).all()
    assert sim.nav[-1] == pytest.approx(7_400.0)
    # the day's loss cleared at midnight, the halt did not
    assert sim.risk_events["cleared"].iloc[-1] == "daily_loss"


def test_nine_losing_days_and_the_tenth_halts_at_three_quarters_of_the_peak() -> None:
    day = [*flat(100, 2), (100, 100, 40, 100), *flat(100, A_DAY - 3)]
    sim = account(day * 11, [0.1] * len(day * 11), cap=0.1, daily_loss=0.03, max_drawdown=0.25)
    ends = sim.nav[A_DAY - 1 :: A_DAY]
    assert ends[:9] == pytest.approx(10_000 * 0.97 ** np.arange(1, 10))
    # on the tenth day 7,602.31 may fall by 3 % to 7,374.24, but 7,500 is a quarter below the peak
    assert ends[9:] == pytest.approx([7_500.0, 7_500.0])
    assert sim.level[-1] == HALTED


def test_a_deposit_and_a_withdrawal_trigger_nothing() -> None:
    bars = [*flat(100, 5), (100, 100, 75, 80), *flat(80, 2 * A_DAY)]
    flows = np.zeros(len(bars))
    flows[3], flows[8] = 10_000.0, -15_000.0
    sim = account(bars, [0.1] * len(bars), cap=0.1, daily_loss=0.03, max_drawdown=0.25, series={"flows": flows})
    assert sim.risk_events.empty
    # 10 coins lose 20 each
    assert sim.nav[-1] == pytest.approx(10_000 + 10_000 - 200 - 15_000)
    assert (sim.level == NORMAL).all()


def test_an_order_takes_its_share_of_the_volume_and_waits_for_the_rest() -> None:
    sim = account(
        flat(100, 6),
        [0.1] * 6,
        cap=0.1,
        participation=0.1,
        series={"volume": [30.0, 30.0, 30.0, 35.0, 30.0, 30.0]},
        lot=0.001,
    )
    assert sim.fills["btc"].tolist() == pytest.approx([3.0, 3.0, 3.5, 0.5])
    assert sim.position.tolist() == pytest.approx([0.0, 3.0, 6.0, 9.5, 10.0, 10.0])


def test_quantities_round_down_and_prices_against_the_trader() -> None:
    bars = flat(333.33, 3)
    sim = account(bars, [0.1, 0.0, 0.0], cap=0.1, lot=0.001, tick=0.1, slippage=0.0002)
    buy, sell = sim.fills.iloc[0], sim.fills.iloc[1]
    # 1,000 / 333.33 = 3.00003 coins; 333.33 x 1.0002 = 333.3967 and x 0.9998 = 333.2633
    assert (buy["btc"], sell["btc"]) == (pytest.approx(3.0), pytest.approx(3.0))
    assert (buy["price"], sell["price"]) == (pytest.approx(333.4), pytest.approx(333.2))
    assert sim.slippage.sum() == pytest.approx(3 * (0.07 + 0.13))


def test_an_order_below_the_smallest_value_is_not_sent() -> None:
    assert account(flat(100, 3), [0.1] * 3, cap=0.1, initial_nav=49.0, min_notional=5.0).fills.empty
    assert len(account(flat(100, 3), [0.1] * 3, cap=0.1, initial_nav=51.0, min_notional=5.0).fills) == 1
    # a close is always sent, however small
    shrunk = account([*flat(100, 2), *flat(40, 2)], [0.1, 0.0, 0.0, 0.0], cap=0.1, initial_nav=60.0, min_notional=5.0)
    assert shrunk.position.tolist() == pytest.approx([0.0, 0.06 * 10, 0.0, 0.0]) or shrunk.position[-1] == 0.0


def test_a_stop_inside_the_bar_and_one_that_is_gapped_through() -> None:
    inside = account([*flat(100, 2), (100, 101, 94, 99)], [0.1] * 3, cap=0.1, stop_distance=0.05)
    assert (inside.fills["reason"].iloc[1], inside.fills["mid"].iloc[1]) == ("stop", 95.0)
    gapped = account([*flat(100, 2), (90, 99, 88, 99)], [0.1] * 3, cap=0.1, stop_distance=0.05)
    assert (gapped.fills["reason"].iloc[1], gapped.fills["mid"].iloc[1]) == ("stop", 90.0)
    short = account([*flat(100, 2), (100, 106, 99, 100)], [-0.1] * 3, cap=0.1, stop_distance=0.05)
    assert (short.fills["reason"].iloc[1], short.fills["mid"].iloc[1]) == ("stop", 105.0)


def test_a_stop_in_the_bar_of_the_entry_comes_after_it() -> None:
    sim = account([*flat(100), (100, 102, 90, 100)], [0.1, 0.1], cap=0.1, stop_distance=0.05)
    assert sim.fills["mid"].tolist() == [100.0, 95.0]
    assert sim.nav[-1] == pytest.approx(9_950.0)


def test_the_nearest_level_is_hit_first() -> None:
    bars = [*flat(100, 2), (100, 100, 50, 60)]
    both = {"cap": 0.1, "daily_loss": 0.03}  # the limit lies at 70
    assert account(bars, [0.1] * 3, stop_distance=0.25, **both).fills["reason"].iloc[1] == "stop"
    assert account(bars, [0.1] * 3, stop_distance=0.35, **both).fills["reason"].iloc[1] == "risk"


def test_liquidation_at_the_maintenance_margin_takes_everything() -> None:
    # 2 x 1,000 at 100: 20 coins on -1,000 of cash; equity = 0.5 % of value at 1,000 / (20 x 0.995) = 50.25
    tiers = ((2_000_000.0, 0.005, 0.0),)
    survives = account([*flat(100, 2), (100, 100, 50.26, 80)], [2.0] * 3, initial_nav=1_000.0, maintenance=tiers)
    assert survives.bankrupt_bar is None
    assert survives.nav[-1] == pytest.approx(600.0)
    dead = account([*flat(100, 2), (100, 100, 50.25, 80), *flat(80)], [2.0] * 4, initial_nav=1_000.0, maintenance=tiers)
    assert dead.bankrupt_bar == 2
    assert dead.nav.tolist()[2:] == [0.0, 0.0]
    assert dead.fills["reason"].tolist() == ["target", "bankrupt"]
    without = account([*flat(100, 2), (100, 100, 50.25, 80)], [2.0] * 3, initial_nav=1_000.0)
    assert without.bankrupt_bar is None


def test_the_tier_follows_the_value_of_the_position() -> None:
    tiers = ((1_000.0, 0.005, 0.0), (10_000.0, 0.10, 95.0))
    # 2,000 USD lie in the second tier: -1,000 + 20 p = 20 p x 0.10 - 95 at p = 905 / 18 = 50.28
    hit = account([*flat(100, 2), (100, 100, 50.27, 80)], [2.0] * 3, initial_nav=1_000.0, maintenance=tiers)
    assert hit.bankrupt_bar == 2
    spared = account([*flat(100, 2), (100, 100, 50.29, 80)], [2.0] * 3, initial_nav=1_000.0, maintenance=tiers)
    assert spared.bankrupt_bar is None


def test_liquidation_and_limits_go_by_the_mark_price_the_stop_by_the_last() -> None:
    bars = [*flat(100, 2), (100, 100, 40, 100)]
    calm = tuple(np.full(3, 100.0) for _ in range(4))
    spared = account(bars, [0.1] * 3, cap=0.1, daily_loss=0.03, series={"mark": calm})
    assert spared.fills["reason"].tolist() == ["target"]
    stopped = account(bars, [0.1] * 3, cap=0.1, stop_distance=0.2, series={"mark": calm})
    assert stopped.fills["reason"].tolist() == ["target", "stop"]


def test_who_is_stopped_pays_what_is_owed_and_receives_nothing() -> None:
    inside = {START + 2 * TF + HOUR_MS: 0.01}
    bars = [*flat(100, 2), (100, 100, 90, 100)]
    paid = account(bars, [0.1] * 3, cap=0.1, stop_distance=0.05, funding=inside)
    assert paid.payments["payment"].tolist() == pytest.approx([10 * 100 * 0.01])
    received = account(bars, [0.1] * 3, cap=0.1, stop_distance=0.05, funding={t: -r for t, r in inside.items()})
    assert received.payments.empty
    # at the close the position is gone
    assert account(bars, [0.1] * 3, cap=0.1, stop_distance=0.05, funding={START + 3 * TF: 0.01}).payments.empty


def test_impact_grows_with_the_square_root_of_the_share_of_volume() -> None:
    sim = account(flat(100, 2), [0.1] * 2, cap=0.1, slippage=0.001, impact=0.02, series={"volume": [1_000.0] * 2})
    # 10 of 1,000 coins: 0.001 + 0.02 x 0.1
    assert sim.fills["price"].iloc[0] == pytest.approx(100.3)
    blind = account(flat(100, 2), [0.1] * 2, cap=0.1, slippage=0.001, impact=0.02)
    assert blind.fills["price"].iloc[0] == pytest.approx(100.1)


def test_a_stale_input_reduces_only_and_a_kill_flattens_at_the_next_open() -> None:
    flags = [0, 0, 1, 0, KILL, 0, 0]
    sim = account(flat(100, 7), [0.05, 0.05, 0.1, 0.1, 0.1, 0.1, 0.1], cap=0.1, series={"flags": flags})
    assert sim.level.tolist() == [NORMAL, NORMAL, REDUCE_ONLY, NORMAL, HALTED, HALTED, HALTED]
    assert sim.position.tolist() == pytest.approx([0.0, 5.0, 5.0, 5.0, 10.0, 0.0, 0.0])


def test_forecasts_are_sized_by_the_cap_and_it_must_be_finite() -> None:
    said = Forecasts([0.004] * 3)
    assert account(flat(100, 3), said, cap=0.1, cost_round_trip=0.0015).position[-1] == pytest.approx(10.0)
    with pytest.raises(UsageError, match="infinite"):
        account(flat(100, 3), said)
    with pytest.raises(UsageError, match=r"multiplier\[1\] is -1.0"):
        account(flat(100, 3), Forecasts([0.004] * 3, [1.0, -1.0, 1.0]), cap=0.1)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"daily_loss": 0.0}, "daily_loss is 0.0"),
        ({"tick": -1.0}, "tick is -1.0"),
        ({"maintenance": ((2.0, 0.01, 0.0), (1.0, 0.02, 0.0))}, "maintenance tiers"),
        ({"settle_ms": TF + 1}, "does not fit into a bar"),
    ],
)
def test_wrong_rules_are_named(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        account(flat(100), [0.0], **wrong)


QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def markets(draw: Any) -> dict[str, Any]:
    n = draw(st.integers(2, 60))
    maybe = st.sampled_from
    delay = draw(maybe([0, 5_000, TF]))
    return {
        "n": n,
        "seed": draw(st.integers(0, 10**6)),
        "missing": draw(maybe([0.0, 0.2])),
        "volatility": draw(maybe([0.005, 0.05, 0.2])),
        "rates": draw(st.lists(st.floats(-0.01, 0.01), min_size=20, max_size=20)),
        "params": {
            "delay_ms": delay,
            "settle_ms": draw(maybe([0, min(2_000, delay)])),
            "fee": draw(maybe([0.0, 0.00055])),
            "slippage": draw(maybe([0.0, 0.0002])),
            "cap": draw(maybe([0.1, 1.0, 3.0])),
            "daily_loss": draw(maybe([math.inf, 0.03])),
            "max_drawdown": draw(maybe([math.inf, 0.25])),
            "rebalance_band": draw(maybe([math.inf, 0.02])),
            "impact": draw(maybe([0.0, 0.01])),
            "participation": draw(maybe([math.inf, 0.1])),
            "lot": draw(maybe([0.0, 0.001])),
            "tick": draw(maybe([0.0, 0.1])),
            "min_notional": draw(maybe([0.0, 5.0])),
            "stop_distance": draw(maybe([math.inf, 0.05])),
            "maintenance": draw(maybe([(), ((2e6, 0.005, 0.0), (1e9, 0.01, 1e4))])),
            "cost_round_trip": 0.0015,
            "maker_bars": draw(maybe([0, 0, 1, 3])),
            "maker_fee": draw(maybe([0.0002, -0.0001])),
            "latency_bars": draw(maybe([0, 0, 2])),
        },
    }


def _forecasts(case: dict[str, Any]) -> Forecasts:
    rng = np.random.default_rng(case["seed"])
    n = case["n"]
    edge = (rng.random(n) - 0.5) * 0.03
    edge[rng.random(n) < 0.1] = np.nan
    return Forecasts(edge, rng.choice([0.25, 1.0], n))


def _run(case: dict[str, Any], random_bars: Any, upto: int | None = None) -> tuple[Any, Simulation]:
    bars = random_bars(case["n"], case["seed"], case["volatility"], case["missing"])
    volume = np.random.default_rng(case["seed"] + 1).random(case["n"]) * 5
    said = _forecasts(case).matrix(case["n"])
    k = case["n"] if upto is None else upto
    end = int(bars.ts[k - 1]) + TF
    times = bars.ts[0] + 8 * HOUR_MS * np.arange(20)
    known = times <= end
    sim = simulate(
        bars.ts[:k],
        bars.open[:k],
        bars.high[:k],
        bars.low[:k],
        bars.close[:k],
        Forecasts(*said[:, :k]),
        SimulationParams(timeframe_ms=TF, **case["params"]),
        times[known],
        np.array(case["rates"])[known],
        volume=volume[:k],
    )
    return bars, sim


@QUICK
@given(case=markets())
def test_the_books_balance_and_no_limit_is_exceeded_at_a_decision(case: Any, random_bars: Any) -> None:
    bars, sim = _run(case, random_bars)
    start = sim.params.initial_nav
    expected = start + np.cumsum(sim.gross - sim.fees - sim.slippage - sim.funding)
    assert np.max(np.abs(expected - sim.nav)) <= 1e-8 * start
    assert (sim.nav_low <= sim.nav + 1e-9).all()
    assert (np.diff(sim.fills["ts"]) >= 0).all()
    # nothing is filled before it was decided; a level is met at the open or inside the bar
    decided = sim.fills["reason"].isin(["target", "drift", "trim"])
    sent = sim.ts[sim.fills["bar"][decided]] + sim.params.delay_ms
    opened = sim.ts[sim.fills["bar"][decided]]
    inside = (
        sim.fills["maker"][decided] & (sim.fills["ts"][decided] >= opened) & (sim.fills["ts"][decided] <= opened + TF)
    )
    assert ((sim.fills["ts"][decided] == sent) | inside).all()
    # a limit order is filled only where a price went beyond it
    resting = sim.fills[sim.fills["maker"]]
    reached = np.where(resting["side"] > 0, bars.low[resting["bar"]], bars.high[resting["bar"]])
    assert ((resting["price"] - reached) * resting["side"] >= sim.params.tick * (1 - 1e-5)).all()
    assert (resting["slippage"] == 0.0).all()
    # what adds to a position stays within the cap of the last marked account, an order that took several bars too
    signed = sim.fills["side"] * sim.fills["btc"]
    adds = sim.fills[decided & (sim.fills["position"].abs() > (sim.fills["position"] - signed).abs())]
    close = pd.Series(bars.close).ffill().to_numpy()
    recorded = np.isfinite(bars.open) & np.isfinite(bars.close)
    decided_nav = pd.Series(np.where(recorded, sim.nav, np.nan)).ffill().to_numpy()
    value = adds["position"].abs().to_numpy() * close[adds["bar"] - 1]
    if sim.params.latency_bars == 0:  # what is on its way is not resized
        assert (value <= sim.params.cap * decided_nav[adds["bar"] - 1] * (1 + 1e-9)).all()
    assert (sim.level[adds["bar"] - 1] == NORMAL).all()
    # no rounding error is traded
    assert (sim.fills["btc"] * sim.fills["price"] > 1e-6).all()
    if sim.params.lot:
        assert np.allclose(np.round(sim.position / 0.001) * 0.001, sim.position, atol=1e-9)
    trips = round_trips(sim, float(bars.close[np.isfinite(bars.close)][-1]) if np.isfinite(bars.close).any() else 1.0)
    assert trips["pnl"].sum() == pytest.approx(sim.nav[-1] - start, abs=1e-6 * start)


@QUICK
@given(case=markets(), share=st.floats(0, 1))
def test_the_past_of_an_account_does_not_depend_on_the_future(case: Any, share: float, random_bars: Any) -> None:
    _, whole = _run(case, random_bars)
    k = max(1, round(share * case["n"]))
    _, cut = _run(case, random_bars, upto=k)
    for name in ("nav", "nav_low", "position", "gross", "fees", "slippage", "funding", "level"):
        np.testing.assert_array_equal(getattr(cut, name), getattr(whole, name)[:k])


@QUICK
@given(case=markets())
def test_vectorbt_keeps_the_same_books_of_stops_and_partial_fills(case: Any, random_bars: Any) -> None:
    bars, sim = _run(case, random_bars)
    require_agreement(vectorbt_view(sim, bars.close))


@QUICK
@given(case=markets())
def test_without_limits_a_forecast_trades_like_the_stream_of_its_targets(case: Any, random_bars: Any) -> None:
    params = {**case["params"], "daily_loss": math.inf, "max_drawdown": math.inf, "stop_distance": math.inf}
    params |= {"cap": 1.0, "min_notional": 0.0, "participation": math.inf, "lot": 0.0}
    params |= {"maker_bars": 0, "latency_bars": 0}
    bars, sim = _run({**case, "params": params, "missing": 0.0}, random_bars)
    said = _forecasts(case).matrix(case["n"])
    target = target_positions(said[0], 0.0015, 1.0) * np.where(np.isnan(said[0]), 1.0, said[1])
    times = bars.ts[0] + 8 * HOUR_MS * np.arange(20)
    known = times <= bars.ts[-1] + TF
    streamed = simulate(
        bars.ts,
        bars.open,
        bars.high,
        bars.low,
        bars.close,
        target,
        SimulationParams(timeframe_ms=TF, **params),
        times[known],
        np.array(case["rates"])[known],
        volume=np.random.default_rng(case["seed"] + 1).random(case["n"]) * 5,
    )
    np.testing.assert_array_equal(sim.nav, streamed.nav)
    assert sim.fills.equals(streamed.fills)
