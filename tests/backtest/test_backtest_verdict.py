from __future__ import annotations

import dataclasses
import math

import pytest

from mlbot_core.backtest.metrics import Drawdown, compute_metrics
from mlbot_core.backtest.verdict import CRITERIA_MET, STATISTICS_PASSED, judge
from mlbot_core.validation.significance import Interval
from mlbot_core.validation.trials import Head
from mlbot_core.validation.trials_significance import CandidateSignificance


@pytest.fixture(scope="module")
def good(make_bars, run_sim):
    bars = make_bars([(100, 100)] * 24)
    metrics = compute_metrics(run_sim(bars, [0.0] * 24), bars.close)
    sharpe = Interval(1.5, 0.5, 2.5, 0.5, 0.95, 365)
    return dataclasses.replace(
        metrics, sharpe=sharpe, mar=0.5, drawdown=Drawdown(0.2499, 10, True), days=365, trades=100
    )


def _sharpe(value, low, high):
    return {"sharpe": Interval(value, low, high, 0.5, 0.95, 365)}


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        (_sharpe(1.0, 0.1, 2.0), "Sharpe"),
        (_sharpe(math.nan, math.nan, math.nan), "Sharpe"),
        ({"mar": 0.4999}, "MAR"),
        ({"mar": math.nan}, "MAR"),
        ({"drawdown": Drawdown(0.25, 1, True)}, "max drawdown"),
        ({"drawdown": Drawdown(math.nan, 1, True)}, "max drawdown"),
        ({"days": 364}, "days"),
        ({"trades": 99}, "trades"),
    ],
)
def test_each_bound_refuses_at_either_size(good, change, failing):
    bad = dataclasses.replace(good, **change)
    for verdict, where in (
        (judge(bad, good), f"{failing} (traded)"),
        (judge(good, bad), f"{failing} (unit)"),
        (judge(bad, bad), failing),
    ):
        assert verdict.refused
        assert verdict.outcome.split(";")[0] == f"refused: {where}"


def test_the_best_outcome_is_not_a_promotion(good):
    verdict = judge(good, good)
    assert not verdict.refused
    assert verdict.significant
    assert verdict.outcome == CRITERIA_MET == "criteria met; significance not yet evaluated"
    assert verdict.not_evaluated == (("DSR", ">= 0.95"), ("PBO", "<= 0.2"))
    assert "promoted" not in verdict.outcome


def test_significance_is_said(good):
    unsure = dataclasses.replace(good, **_sharpe(1.5, -0.1, 3.1))
    assert judge(good, unsure).outcome == f"{CRITERIA_MET}; not significant"
    assert not judge(good, unsure).significant
    unknown = dataclasses.replace(good, **_sharpe(math.nan, math.nan, math.nan))
    assert judge(unknown, unknown).outcome == "refused: Sharpe; not significant"
    terrible = dataclasses.replace(good, **_sharpe(-2.0, -3.0, -1.0))
    assert judge(terrible, terrible).outcome == "refused: Sharpe; significantly below zero"


def test_several_failures_are_all_named(good):
    small = dataclasses.replace(good, days=10, trades=3)
    weak = dataclasses.replace(small, mar=0.1)
    assert judge(small, weak).outcome == "refused: days, trades, MAR (unit)"


def _among(dsr: float, pbo: float, n: int = 40) -> CandidateSignificance:
    return CandidateSignificance(
        head=Head("test", n, "0" * 64),
        n_trials=n,
        effective_trials=7.0,
        trial_variance=0.5,
        benchmark=1.0,
        psr=0.99,
        dsr=dsr,
        pbo=pbo,
        pbo_trials=n,
        pbo_days=400,
        notes=(),
    )


def test_statistics_may_pass_but_nothing_is_promoted(good):
    verdict = judge(good, good, _among(0.95, 0.2))
    assert verdict.passed
    assert not verdict.refused
    assert verdict.not_evaluated == ()
    assert verdict.outcome == STATISTICS_PASSED
    assert "not promoted" in verdict.outcome


@pytest.mark.parametrize(
    ("dsr", "pbo", "outcome"),
    [
        (0.9499, 0.2, "refused: DSR; not significant among 40 trials"),
        (0.95, 0.2001, "refused: PBO"),
        (0.5, 0.9, "refused: DSR, PBO; not significant among 40 trials"),
        (0.99, math.nan, "criteria met; PBO not evaluated"),
        (math.nan, math.nan, "criteria met; DSR and PBO not evaluated; not significant among 40 trials"),
    ],
)
def test_dsr_and_pbo_have_their_bounds(good, dsr, pbo, outcome):
    verdict = judge(good, good, _among(dsr, pbo))
    assert verdict.outcome == outcome
    assert not verdict.passed


def test_good_statistics_do_not_save_a_failed_criterion(good):
    verdict = judge(good, dataclasses.replace(good, days=364), _among(0.99, 0.0))
    assert verdict.outcome == "refused: days (unit)"
    assert not verdict.passed


def test_without_a_ledger_nothing_passes(good):
    assert not judge(good, good).passed
