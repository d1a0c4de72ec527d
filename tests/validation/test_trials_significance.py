"""DSR and PBO of a candidate come from every trial in its namespace."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mlbot_core.clock import FixedClock
from mlbot_core.timeframe import DAY_MS
from mlbot_core.validation.overfitting import pbo_cscv
from mlbot_core.validation.significance import (
    deflated_sharpe_ratio,
    expected_maximum_sharpe,
    probabilistic_sharpe_ratio,
    sharpe_ratio,
)
from mlbot_core.validation.trials import DailyReturns, LedgerError, TrialLedger
from mlbot_core.validation.trials_significance import MIN_PBO_DAYS, candidate_significance

DAYS = 400


def noise(seed, days=DAYS, mean=0.0, first=0):
    return DailyReturns(first * DAY_MS, np.random.default_rng(seed).normal(mean, 0.01, days))


@pytest.fixture
def ledger(tmp_path):
    return TrialLedger(tmp_path, FixedClock(0))


def add(ledger, x, returns):
    ledger.append("test", {"x": x}, returns, data_version="d", run_id="r")
    return returns


def test_a_single_trial_has_no_pbo_and_its_dsr_is_the_psr(ledger):
    mine = add(ledger, 0, noise(1, mean=0.001))
    found = candidate_significance(ledger.read("test"), mine)
    assert found.n_trials == 1
    assert found.dsr == found.psr == probabilistic_sharpe_ratio(mine.values)
    assert math.isnan(found.pbo)
    assert math.isnan(found.effective_trials)
    assert any("only one was made" in note for note in found.notes)


def test_the_numbers_are_those_of_the_pure_functions(ledger):
    trials = [add(ledger, x, noise(x)) for x in range(9)]
    mine = add(ledger, 9, noise(9, mean=0.002))
    history = ledger.read("test")
    found = candidate_significance(history, mine)
    sharpes = [sharpe_ratio(one.values) for one in (*trials, mine)]
    variance = np.var(sharpes, ddof=1)
    assert (found.n_trials, found.trial_variance) == (10, pytest.approx(variance, rel=1e-12))
    assert found.benchmark == pytest.approx(expected_maximum_sharpe(10, variance), rel=1e-12)
    assert found.dsr == pytest.approx(deflated_sharpe_ratio(mine.values, 10, variance), rel=1e-12)
    assert found.dsr < found.psr
    assert found.pbo == pbo_cscv(np.column_stack([one.values for one in (*trials, mine)]), 16).pbo
    assert (found.pbo_trials, found.pbo_days) == (10, DAYS)
    assert 1 <= found.effective_trials <= 10
    assert found.head == history.head


def test_every_further_trial_lowers_the_dsr_of_the_best(ledger):
    mine = add(ledger, -1, noise(77, mean=0.0015))
    before = candidate_significance(ledger.read("test"), mine).dsr
    for x in range(30):
        add(ledger, x, noise(1000 + x))
    after = candidate_significance(ledger.read("test"), mine)
    assert after.n_trials == 31
    assert after.dsr < before


def test_searching_for_parameters_never_lowers_the_hurdle(ledger):
    """Trials of a search are nearly the same: they count, and they must not make all trials look alike."""
    mine = add(ledger, -1, noise(77, mean=0.0015))
    for x in range(8):
        add(ledger, x, noise(1000 + x, mean=0.0005 * (x - 4)))
    hurdles = [candidate_significance(ledger.read("test"), mine).benchmark]
    searched = noise(5)
    for number in range(60):
        returns = DailyReturns(searched.first_day_ms, searched.values * (1 + 1e-3 * number))
        ledger.append("test", {"stage": "tuning", "n": number}, returns, data_version="d", run_id="r")
        if number in (9, 59):
            hurdles.append(candidate_significance(ledger.read("test"), mine).benchmark)
    assert hurdles == sorted(hurdles)
    assert hurdles[0] < hurdles[-1]


def test_the_best_of_many_noises_is_not_significant(ledger):
    trials = [add(ledger, x, noise(x)) for x in range(60)]
    best = max(trials, key=lambda one: sharpe_ratio(one.values))
    found = candidate_significance(ledger.read("test"), best)
    assert found.psr > 0.95  # taken alone it would pass
    assert found.dsr < 0.95
    assert found.pbo > 0.2


def test_trials_of_other_days_count_in_n_but_are_not_compared(ledger):
    mine = add(ledger, 0, noise(1))
    add(ledger, 1, noise(2))
    add(ledger, 2, noise(3, days=100, first=2000))
    found = candidate_significance(ledger.read("test"), mine)
    assert (found.n_trials, found.pbo_trials, found.pbo_days) == (3, 2, DAYS)
    assert any("1 of 3 trials cover less than 80%" in note for note in found.notes)


def test_too_few_common_days_are_said(ledger):
    mine = add(ledger, 0, noise(1, days=MIN_PBO_DAYS - 1))
    add(ledger, 1, noise(2, days=MIN_PBO_DAYS - 1))
    found = candidate_significance(ledger.read("test"), mine)
    assert math.isnan(found.pbo)
    assert any(f"share {MIN_PBO_DAYS - 1} days" in note for note in found.notes)


def test_trials_that_never_traded_count(ledger):
    mine = add(ledger, 0, noise(1))
    add(ledger, 1, DailyReturns(0, np.zeros(DAYS)))
    alone = candidate_significance(ledger.read("test"), mine)
    assert alone.n_trials == 2
    assert math.isnan(alone.dsr)
    assert any("variance is unknown" in note for note in alone.notes)
    add(ledger, 2, noise(3))
    found = candidate_significance(ledger.read("test"), mine)
    assert found.n_trials == 3
    assert math.isfinite(found.dsr)
    assert any("1 of 3 trials never traded" in note for note in found.notes)


def test_a_handful_of_active_days_says_nothing(ledger):
    values = np.zeros(DAYS)
    values[:29] = 0.01
    mine = add(ledger, 0, DailyReturns(0, values))
    found = candidate_significance(ledger.read("test"), mine)
    assert math.isnan(found.psr)
    assert math.isnan(found.dsr)
    assert any("only 29 days moved" in note for note in found.notes)


def test_an_uncounted_candidate_is_refused(ledger):
    add(ledger, 0, noise(1))
    with pytest.raises(LedgerError, match="not among the 1 evaluations"):
        candidate_significance(ledger.read("test"), noise(2))
