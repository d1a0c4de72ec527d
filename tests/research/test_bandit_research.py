"""From forecasts to decisions, a learned policy and its judgement: nothing lost, nothing seen early, bit for bit."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from mlbot_core.backtest.dataset import BacktestRequest
from mlbot_core.backtest.simulator import SimulationParams
from mlbot_core.cli.main import app
from mlbot_core.clock import FixedClock, parse_utc_ms
from mlbot_core.config import load_settings
from mlbot_core.config.bandit import BanditConfig
from mlbot_core.decision.bandit import ARMS, PolicySpec, choose
from mlbot_core.decision.bandit_baselines import volatility_target_arm
from mlbot_core.decision.bandit_context import ContextScale
from mlbot_core.decision.bandit_inputs import known_at_close, reward_of
from mlbot_core.decision.bandit_live import Sized, size_of
from mlbot_core.decision.bandit_log import BanditLog
from mlbot_core.research import bandit_store
from mlbot_core.research.bandit_data import LoadedMarket
from mlbot_core.research.bandit_episodes import (
    BanditMarket,
    attribute,
    build_decisions,
    periods,
)
from mlbot_core.research.bandit_evaluation import BANDIT, NO_POSITION, evaluate, replayed
from mlbot_core.research.bandit_store import decisions_table, replay
from mlbot_core.research.bandit_synthetic import disjoint_bandit, regret, sizing_bandit
from mlbot_core.research.bandit_training import learn, spec_of
from mlbot_core.timeframe import HOUR_MS, Market
from mlbot_core.warehouse import Warehouse, data_version

LENGTH = 2 * HOUR_MS
SCALE = ContextScale(0.5, 0.25)
CONFIG = BanditConfig()


def market(
    n: int = 3_000, seed: int = 1, skill: float = 0.0, hidden: float = 0.0, funding: bool = True
) -> BanditMarket:
    """A made-up market.

    skill: how much of the next return the edge tells where liquidity is high; hidden: how wrong it is where it is low.
    """
    rng = np.random.default_rng(seed)
    quiet = np.repeat(rng.random(n // 10 + 1) < 0.5, 10)[:n]
    volume = np.where(quiet, 500.0, 4_000.0) * rng.uniform(0.8, 1.25, n)
    edge = 0.004 * np.repeat(rng.standard_normal(n // 5 + 1), 5)[:n]
    drift = np.where(quiet, -hidden, skill) * np.r_[0.0, edge[:-1]]
    close = 30_000 * np.exp(np.cumsum(drift + 0.004 * rng.standard_normal(n)))
    open_ = np.r_[30_000.0, close[:-1]]
    wick = np.abs(rng.standard_normal((2, n))) * 0.0015
    ts = np.arange(n, dtype=np.int64) * LENGTH + 1_640_995_200_000
    up = 0.5 + np.clip(edge * 20, -0.3, 0.3)
    label = np.where(rng.random(n) < 0.2, 0.0, np.where(rng.random(n) < up, 1.0, -1.0))
    frame = pd.DataFrame(
        {
            "ts": ts,
            "open": open_,
            "high": np.maximum(open_, close) * (1 + wick[0]),
            "low": np.minimum(open_, close) * (1 - wick[1]),
            "close": close,
            "volume": volume,
            "edge": edge,
            "edge_sd": 0.01,
            "spread": 0.002 * rng.random(n),
            "p_down": (1 - up) * 0.8,
            "p_up": up * 0.8,
            "label": label,
            "t1": ts + LENGTH * rng.integers(2, 12, n),
        }
    )
    params = SimulationParams(
        timeframe_ms=LENGTH,
        delay_ms=90_000,
        settle_ms=87_000,
        fee=0.00055,
        slippage=0.0002,
        cost_round_trip=0.0015,
        initial_nav=1e5,
        cap=0.1,
        trim_ratio=1.05,
        rebalance_band=0.02,
        daily_loss=0.03,
        max_drawdown=0.25,
        stop_distance=0.1,
        max_forecast_age_ms=3 * LENGTH,
        lot=0.001,
    )
    events = ts[ts % (8 * HOUR_MS) == 0] if funding else np.array([], np.int64)
    return BanditMarket(frame, params, events, rng.normal(1e-4, 1e-4, len(events)))


def cut(whole: BanditMarket, n: int) -> BanditMarket:
    return replace(whole, frame=whole.frame.iloc[:n].reset_index(drop=True))


def test_periods_by_hand():
    edge = np.array([0.0, 3, 0.5, -0.5, -3, -3, 3, 3, math.nan, 3]) * 1e-3
    start, end = periods(edge, 1.5e-3)
    assert start.tolist() == [1, 4, 6]
    assert end.tolist() == [3, 6, 8]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.25, 1.0])
def test_every_dollar_belongs_to_one_period(seed, share):
    """Results of all periods sum to the account's, with reversals, stops, funding, and bars that are not recorded."""
    found = market(1_500, seed)
    frame = found.frame.copy()
    frame.loc[np.random.default_rng(seed).random(len(frame)) < 0.03, ["open", "high", "low", "close"]] = np.nan
    frame.loc[len(frame) - 3 :, "edge"] = np.nan
    found = replace(found, frame=frame, params=replace(found.params, stop_distance=0.012))
    simulation = found.simulate(np.full(len(frame), share))
    start, end = periods(frame["edge"].to_numpy(), found.params.cost_round_trip)
    assert (start[1:] == end[:-1]).any()
    parts = attribute(simulation, frame["close"].to_numpy(), start, end)
    assert simulation.position[-1] == 0.0
    assert (simulation.fills["reason"] == "stop").any()
    assert sum(part.sum() for part in parts) == pytest.approx(simulation.nav[-1] - 1e5, abs=1e-6)


def test_reward_is_log_growth_less_the_penalty():
    found = market(800, 3)
    decisions = build_decisions(found, CONFIG.context)
    rewards = decisions.rewards(CONFIG.reward)
    assert (rewards[:, 0] == 0).all()
    assert (decisions.growth[:, 0] == 0).all()
    assert (decisions.fall >= 0).all()
    assert (decisions.peak >= 1).all()
    expected = (decisions.growth[5, 4] - 0.25 * decisions.fall[5, 4]) / 0.001
    assert rewards[5, 4] == pytest.approx(expected)
    assert reward_of(0.002, 0.004, CONFIG.reward) == pytest.approx(1.0)
    # a period at the whole cap earns about twice of that at half
    assert np.corrcoef(decisions.growth[:, 2], decisions.growth[:, 4])[0, 1] > 0.99


def test_a_decision_knows_nothing_of_what_comes_after_it():
    """Contexts, sizes and propensities on data that end at a bar are those on all data, bit for bit."""
    whole = market(1_600, 5)
    everything = learn(build_decisions(whole, CONFIG.context), spec_of(CONFIG), SCALE, CONFIG.reward, "x", explore=True)
    all_decisions = build_decisions(whole, CONFIG.context)
    for n in (700, 901, 1_203):
        part = cut(whole, n)
        pd.testing.assert_frame_equal(
            known_at_close(part.frame, LENGTH, CONFIG.context),
            known_at_close(whole.frame, LENGTH, CONFIG.context).iloc[:n],
            check_exact=True,
        )
        decisions = build_decisions(part, CONFIG.context)
        walk = learn(decisions, spec_of(CONFIG), SCALE, CONFIG.reward, "x", explore=True)
        # the last period may end with a fill in a bar that is cut away
        k = int(np.sum(decisions.end + 1 < n))
        assert k > 20
        assert decisions.ts[:k].tobytes() == all_decisions.ts[:k].tobytes()
        assert walk.vectors[:k].tobytes() == everything.vectors[:k].tobytes()
        assert walk.choices[:k] == everything.choices[:k]
        assert walk.rewards[:k].tobytes() == everything.rewards[:k].tobytes()


def test_outcomes_that_come_later_do_not_move_the_calibration_now():
    found = market(800, 6)
    before = known_at_close(found.frame, LENGTH, CONFIG.context)["calibration"].to_numpy()
    frame = found.frame.copy()
    now = int(frame["ts"].iloc[500]) + LENGTH
    later = frame["t1"] > now
    frame.loc[later, "label"] = -frame.loc[later, "label"]
    after = known_at_close(frame, LENGTH, CONFIG.context)["calibration"].to_numpy()
    np.testing.assert_array_equal(before[:501], after[:501])
    assert not np.array_equal(before[501:], after[501:], equal_nan=True)


def test_at_a_reversal_the_last_reward_is_not_known_yet():
    """Changing a period's reward moves no choice until the bar of its exit has closed."""
    decisions = build_decisions(market(1_200, 7), CONFIG.context)
    # the drawdown is the account's, so it is kept out of this question
    quiet = ContextScale(0.5, math.inf)
    first = learn(decisions, spec_of(CONFIG), quiet, CONFIG.reward, "x", explore=True)
    reversals = np.flatnonzero((decisions.start[1:] == decisions.end[:-1]) & (first.arms[:-1] > 0))
    e = int(reversals[len(reversals) // 2])
    growth = decisions.growth.copy()
    growth[e] += 0.5
    changed = replace(decisions, growth=growth)
    second = learn(changed, spec_of(CONFIG), quiet, CONFIG.reward, "x", explore=True)
    assert first.choices[: e + 2] == second.choices[: e + 2]
    assert first.choices[e + 2].propensities != second.choices[e + 2].propensities


def test_the_log_replays_to_the_same_policy_bit_for_bit():
    found = evaluate(market(2_400, 8), CONFIG, "x")
    again = evaluate(market(2_400, 8), CONFIG, "x")
    table = decisions_table(found)
    assert data_version(table) == data_version(decisions_table(again))
    assert found.state.version == again.state.version
    assert replay(table, found).version == found.walk.state.version == replayed(found).version
    changed = table.set_column(
        table.column_names.index("reward"), "reward", [table.column("reward").to_numpy() + np.float64(1e-12)]
    )
    assert replay(changed, found).version != found.walk.state.version


def test_forecasts_without_skill_are_refused():
    found = evaluate(market(6_000, 9), CONFIG, "x")
    assert not found.passed
    assert "sizes stay as they are" in found.outcome
    assert NO_POSITION in found.outcome
    assert found.row(BANDIT).multiplier < 0.3


def test_a_context_that_tells_good_forecasts_from_bad_ones_is_found():
    """The edge is right where liquidity is high and wrong where it is low: no rule knows that, the bandit learns."""
    found = evaluate(market(12_000, 10, skill=2.0, hidden=2.0), CONFIG, "x")
    assert found.passed, found.outcome
    bandit = found.row(BANDIT)
    assert bandit.metrics.total_return > max(r.metrics.total_return for r in found.rows if r.name.startswith("fixed"))
    log = found.row(BANDIT).estimates["DR"]
    assert log.interval.low <= bandit.reward.value <= log.interval.high
    busy = choose(found.state, found.walk.vectors[np.nanargmax(found.walk.vectors[:, 5])], "q", explore=False)
    quiet = choose(found.state, found.walk.vectors[np.nanargmin(found.walk.vectors[:, 5])], "q", explore=False)
    assert busy.multiplier > quiet.multiplier == 0.0


def test_estimates_from_the_log_agree_with_what_simulation_knows():
    """On the same decisions the truth is known here, and lies in the interval about as often as stated."""
    inside = asked = 0
    for seed in range(8):
        found = evaluate(market(4_000, 20 + seed, skill=0.5), CONFIG, "x")
        for row in found.rows:
            for estimate in row.estimates.values():
                if estimate.interval.standard_error > 0:
                    asked += 1
                    inside += estimate.interval.low <= row.reward.value <= estimate.interval.high
    assert asked > 100
    assert inside / asked > 0.85


@pytest.mark.parametrize("features", ["shared", "disjoint"])
def test_regret_lies_below_the_naive_policies(features):
    bandit = sizing_bandit(4) if features == "shared" else disjoint_bandit(4)
    policies = {
        "lints": PolicySpec("lints", features, 6, epsilon=0.0, draws=32, alpha=0.5),
        "linucb": PolicySpec("linucb", features, 6, epsilon=0.0, alpha=0.5),
    }
    steps = 1_000
    total = {name: np.zeros(steps) for name in (*policies, "random", "best fixed", "no context")}
    for seed in range(3):
        for name, path in regret(bandit, policies, steps, seed).items():
            if name in total:
                total[name] += path / 3
    for name in policies:
        assert total[name][-1] < 0.6 * min(total[n][-1] for n in ("random", "best fixed", "no context"))
        # it learns: the second half costs less than the first
        assert total[name][-1] - total[name][steps // 2] < 0.6 * total[name][steps // 2]
    assert len(ARMS) == 5


@pytest.mark.slow
def test_an_accepted_policy_sizes_live_decisions_until_it_is_turned_off(tmp_path, monkeypatch):
    """Evaluated and stored, promoted by the command, asked live, turned off by the command."""
    # wrong enough where liquidity is low that the log alone shows what leaving those forecasts is worth
    learned = market(14_000, 10, skill=2.0, hidden=4.0)
    line = "archive BTC-2h lightgbm"
    monkeypatch.setenv("MLBOT_HOME", str(tmp_path))
    monkeypatch.setenv("MLBOT_SOURCE", "archive")
    monkeypatch.setenv("MLBOT_CLOCK", "fixed:2025-07-02T00:00:00Z")
    settings, clock = load_settings(), FixedClock(parse_utc_ms("2025-07-02T00:00:00Z"))
    request = BacktestRequest("archive", Market.parse("BTC-2h"), "lightgbm", 87_000, clock.now_ms(), "test")
    data = SimpleNamespace(latency_ms=3_000, market=request.market, synthetic=True)

    def made_up(_warehouse, asked, _settings):
        # only where the forecasts come from is the test's; all that is made of them is not
        assert asked.model_type == "lightgbm"
        return LoadedMarket(learned, "archive", "lightgbm", "f" * 64, data)

    monkeypatch.setattr(bandit_store, "load_market", made_up)
    warehouse = Warehouse(settings.warehouse_path, clock)
    with warehouse.write() as con:
        con.execute("SELECT 1")
    log = BanditLog(settings.home, clock)
    quiet, busy = (replace(found, drawdown=0.0) for found in _extremes(learned))

    def size(name, context):
        return size_of(log, line, name, context, settings.bandit)

    targeting = ARMS[volatility_target_arm(0.5, quiet)]
    assert size("before", quiet) == Sized(targeting, "volatility target")
    assert targeting > 0.0
    promote = ["bandit", "promote", "-i", "2h", "--why", "for a test"]
    refused = CliRunner().invoke(app, promote)
    assert refused.exit_code != 0
    assert "no evaluation" in refused.output
    done = bandit_store.evaluate_stored(warehouse, request, settings)
    assert done.evaluation.passed, done.evaluation.outcome
    assert all(verdict.passed for verdict in done.outcome.checks)
    for row in done.evaluation.rows:
        if row.name.startswith("fixed"):
            assert min(interval.low for interval in row.advantage) > 0.0
    accepted = CliRunner().invoke(app, promote)
    assert accepted.exit_code == 0, accepted.output
    assert log.promoted(line).state.version == done.evaluation.state.version
    small, large = size("quiet", quiet), size("busy", busy)
    assert (small.by, large.by) == ("bandit", "bandit")
    assert small.multiplier == 0.0 < large.multiplier
    action, again = log.again(line, "quiet")
    assert again == action.choice
    assert action.base == done.evaluation.state.version
    turned = CliRunner().invoke(app, ["bandit", "off", "--why", "drill"])
    assert turned.exit_code == 0, turned.output
    assert size("after", quiet) == Sized(targeting, "volatility target")
    assert [event["kind"] for event in log.events()] == ["promoted", "off"]


def _extremes(found):
    """Return a context of little and one of much liquidity, both calm enough for volatility targeting to trade."""
    contexts = [one for one in build_decisions(found, CONFIG.context).context if one.volatility < 1.5]
    ordered = sorted((one for one in contexts if one.liquidity > 0), key=lambda one: one.liquidity)
    return ordered[0], ordered[-1]
