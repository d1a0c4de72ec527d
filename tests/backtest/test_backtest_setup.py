"""The two sizes that a backtest is judged at, as the configuration makes them."""

from __future__ import annotations

import itertools
import math

import pytest

from mlbot_core.backtest.setup import simulation_params
from mlbot_core.config import FeesConfig, RiskConfig, load_settings
from mlbot_core.errors import UsageError
from mlbot_core.timeframe import HOUR_MS, Market

BTC_2H = Market.parse("BTC-2h")
SETTINGS = load_settings({"MLBOT_THREADS": "1"})


def test_the_traded_size_has_every_limit_and_cost() -> None:
    params = simulation_params(BTC_2H, SETTINGS.fees, SETTINGS.risk, 90_000, 2_000, unit=False)
    assert (params.settle_ms, params.delay_ms) == (90_000, 92_000)
    assert (params.fee, params.slippage) == pytest.approx((0.00055, 0.0002))
    assert params.cost_round_trip == pytest.approx(2 * (0.00055 + 0.0002))
    assert params.impact == pytest.approx(SETTINGS.fees.impact_bp * 1e-4)
    assert params.participation == SETTINGS.fees.participation
    assert (params.cap, params.daily_loss, params.max_drawdown) == (0.10, 0.03, 0.25)
    limits = params.limits()
    assert limits.trim_above == pytest.approx(0.105)
    assert params.rebalance_band == pytest.approx(0.02)
    # a stop-out at full cap costs 1 % of NAV
    assert params.stop_distance * params.cap == pytest.approx(0.01)
    assert params.max_forecast_age_ms == 3 * HOUR_MS
    assert (params.lot, params.tick, params.min_notional) == (0.001, 0.1, 5.0)
    assert params.maintenance[0] == (2_000_000.0, 0.005, 0.0)


def test_unit_exposure_lifts_the_limits_and_keeps_the_costs() -> None:
    traded = simulation_params(BTC_2H, SETTINGS.fees, SETTINGS.risk, 90_000, 2_000, unit=False)
    unit = simulation_params(BTC_2H, SETTINGS.fees, SETTINGS.risk, 90_000, 2_000, unit=True, initial_nav=50_000.0)
    assert unit.cap == 1.0
    assert unit.initial_nav == 50_000.0
    for name in ("trim_ratio", "daily_loss", "max_drawdown", "stop_distance"):
        assert getattr(unit, name) == math.inf
    assert unit.rebalance_band / unit.cap == pytest.approx(traded.rebalance_band / traded.cap)
    for name in ("fee", "slippage", "impact", "participation", "lot", "tick", "min_notional", "maintenance"):
        assert getattr(unit, name) == getattr(traded, name)
    assert (unit.delay_ms, unit.cost_round_trip) == (traded.delay_ms, traded.cost_round_trip)


def test_the_same_order_has_the_same_impact_whatever_the_bars_are() -> None:
    coins, per_hour = 3.0, 500.0
    impacts = []
    for name, hours in (("BTC-30m", 0.5), ("BTC-2h", 2.0), ("BTC-4h", 4.0)):
        params = simulation_params(Market.parse(name), SETTINGS.fees, SETTINGS.risk, 2_000, 200, unit=True)
        impacts.append(params.impact * math.sqrt(coins / (per_hour * hours)))
    assert impacts == pytest.approx([impacts[0]] * 3)


def test_a_symbol_without_rules_is_refused_and_no_rules_at_all_are_none() -> None:
    with pytest.raises(UsageError, match="no rules of SOL"):
        simulation_params(Market.parse("SOL-2h"), SETTINGS.fees, SETTINGS.risk, 2_000, 200, unit=False)
    fees = FeesConfig(taker_bp=5.5, maker_bp=2.0, slippage_bp=2.0)
    risk = RiskConfig(max_position=0.1, daily_loss_limit=0.03, max_drawdown=0.25)
    bare = simulation_params(Market.parse("SOL-2h"), fees, risk, 2_000, 200, unit=False)
    assert (bare.lot, bare.maintenance, bare.participation, bare.impact) == (0.0, (), math.inf, 0.0)


def test_orders_take_at_once_unless_limit_orders_are_configured() -> None:
    params = simulation_params(BTC_2H, SETTINGS.fees, SETTINGS.risk, 90_000, 2_000, unit=False)
    assert (params.maker_bars, params.latency_bars) == (0, 0)
    assert params.maker_fee == pytest.approx(0.0002)
    fees = SETTINGS.fees.model_copy(update={"maker_bars": 2, "latency_bars": 1})
    params = simulation_params(BTC_2H, fees, SETTINGS.risk, 90_000, 2_000, unit=True)
    assert (params.maker_bars, params.latency_bars) == (2, 1)
    # the no-trade band goes on counting what the rest of an order costs that nobody meets
    assert params.cost_round_trip == pytest.approx(2 * (0.00055 + 0.0002))


def test_every_tier_of_the_shipped_configuration_is_cheaper_than_the_one_before() -> None:
    tiers = list(SETTINGS.fees.tiers.values())
    assert len(tiers) == 7
    for dear, cheap in itertools.pairwise(tiers):
        assert cheap.taker_bp <= dear.taker_bp
        assert cheap.maker_bp < dear.maker_bp
    best = FeesConfig.model_validate(
        {"tier": "supreme", "slippage_bp": 2.0, "tiers": {n: t.model_dump() for n, t in SETTINGS.fees.tiers.items()}}
    )
    assert (best.taker_bp, best.maker_bp) == (3.0, 0.0)
