"""Sharpe statistics beside those of skfolio and vectorbt: the same numbers from other hands.

skfolio takes the Sharpe ratios of all trials where ours takes their number and variance, which a ledger or a clustering
may supply; vectorbt takes either, annual ones like ours.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from mlbot_core.validation.significance import (
    deflated_sharpe_ratio,
    expected_maximum_sharpe,
    probabilistic_sharpe_ratio,
    sharpe_ratio,
)


def trials(days: int = 500, count: int = 12) -> np.ndarray:
    generator = np.random.default_rng(1)
    return 0.001 * generator.uniform(-1, 2, count) + 0.02 * generator.standard_t(5, (days, count))


def test_probabilistic_sharpe_ratio_of_skfolio() -> None:
    from skfolio.measures import probabilistic_sharpe_ratio as theirs

    for column in trials().T:
        assert theirs(column) == pytest.approx(probabilistic_sharpe_ratio(column), rel=1e-10)
        benchmark = 0.5 / math.sqrt(365)  # theirs are per period
        assert theirs(column, benchmark) == pytest.approx(probabilistic_sharpe_ratio(column, 0.5), rel=1e-10)


def test_expected_maximum_and_deflated_sharpe_ratio_of_skfolio() -> None:
    from skfolio.measures import deflated_sharpe_ratio as theirs
    from skfolio.measures import expected_max_sharpe_ratio

    for count in (2, 10, 46, 100, 5000):
        assert expected_maximum_sharpe(count, 0.5) == pytest.approx(
            expected_max_sharpe_ratio(n_trials=count, trial_sharpe_ratio_std=math.sqrt(0.5)), rel=1e-12
        )
    returns = trials()
    sharpes = np.array([sharpe_ratio(column, 1.0) for column in returns.T])
    for column in returns.T:
        ours = deflated_sharpe_ratio(column, len(sharpes), float(sharpes.var(ddof=1)), 1.0)
        assert theirs(column, sharpes) == pytest.approx(ours, rel=1e-9)


@pytest.mark.slow
def test_deflated_sharpe_ratio_of_vectorbt() -> None:
    import vectorbt  # noqa: F401  # registers frame.vbt

    returns = trials()
    frame = pd.DataFrame(returns, index=pd.date_range("2024-01-01", periods=len(returns), freq="D", tz="UTC"))
    accessor = frame.vbt.returns(freq="D", year_freq="365D", defaults={"ddof": 1})
    sharpes = np.array([sharpe_ratio(column) for column in returns.T])
    np.testing.assert_allclose(accessor.sharpe_ratio().to_numpy(), sharpes, rtol=1e-10)
    ours = [deflated_sharpe_ratio(column, returns.shape[1], float(sharpes.var(ddof=1))) for column in returns.T]
    np.testing.assert_allclose(accessor.deflated_sharpe_ratio().to_numpy(), ours, rtol=1e-9)
    # And with a number and a variance from elsewhere, as from a ledger.
    theirs = accessor.deflated_sharpe_ratio(nb_trials=500, var_sharpe=0.8).to_numpy()
    np.testing.assert_allclose(theirs, [deflated_sharpe_ratio(c, 500, 0.8) for c in returns.T], rtol=1e-9)
