"""Properties of every simulation, over random markets, targets, costs and funding.

1. nav_end = nav_0 + gross - fees - slippage - funding, at every bar.
2. What happened up to a bar does not depend on anything later.
3. vectorbt keeps the same books of the same fills, with and without funding.
4. Round trips add up to the net result.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlbot_core.backtest.portfolio import equity_with_funding, require_agreement, vectorbt_view
from mlbot_core.backtest.roundtrips import round_trips
from mlbot_core.timeframe import HOUR_MS

TF = 2 * HOUR_MS
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def cases(draw):
    n = draw(st.integers(1, 60))
    sizes = draw(st.sampled_from([(0.0, 0.1, -0.1), (0.0, 1.0, -1.0), (0.0, 0.3, -0.7, 1.0, float("nan"))]))
    return {
        "n": n,
        "seed": draw(st.integers(0, 10**6)),
        "missing": draw(st.sampled_from([0.0, 0.0, 0.2])),
        "volatility": draw(st.sampled_from([0.002, 0.02, 0.2])),
        "target": np.array(draw(st.lists(st.sampled_from(sizes), min_size=n, max_size=n))),
        "rates": draw(st.lists(st.floats(-0.01, 0.01), min_size=20, max_size=20)),
        "params": {
            "delay_ms": draw(st.sampled_from([0, 5_000, TF // 3, TF])),
            "fee": draw(st.sampled_from([0.0, 0.00055, 0.01])),
            "slippage": draw(st.sampled_from([0.0, 0.0002, 0.01])),
            "cap": draw(st.sampled_from([1.0, float("inf")])),
            "rebalance_band": draw(st.sampled_from([float("inf"), 0.0, 0.05])),
        },
    }


def _run(case, random_bars, run_sim, with_funding=True):
    bars = random_bars(case["n"], case["seed"], case["volatility"], case["missing"])
    funding = {int(bars.ts[0]) + 8 * HOUR_MS * i: r for i, r in enumerate(case["rates"])} if with_funding else {}
    return bars, funding, run_sim(bars, case["target"], funding, **case["params"])


@QUICK
@given(case=cases())
def test_the_books_balance_at_every_bar(case, random_bars, run_sim):
    _, _, sim = _run(case, random_bars, run_sim)
    start = sim.params.initial_nav
    expected = start + np.cumsum(sim.gross - sim.fees - sim.slippage - sim.funding)
    assert np.max(np.abs(expected - sim.nav)) <= 1e-9 * start
    assert sim.fills["fee"].sum() == pytest.approx(sim.fees.sum(), rel=1e-12)
    assert sim.fills["slippage"].sum() == pytest.approx(sim.slippage.sum(), rel=1e-12)
    assert sim.payments["payment"].sum() == pytest.approx(sim.funding.sum(), rel=1e-9, abs=1e-9)
    assert (sim.nav_low <= sim.nav + 1e-9).all()
    # Never filled before it was decided: at least the delay after the close before it.
    ts = sim.fills.loc[sim.fills["reason"] != "bankrupt", "ts"].to_numpy()
    assert ((ts - sim.ts[0] - sim.params.delay_ms) % TF == 0).all()
    assert (ts >= sim.ts[0] + TF).all()


@QUICK
@given(case=cases(), share=st.floats(0, 1))
def test_the_past_does_not_depend_on_the_future(case, share, random_bars, run_sim):
    bars, funding, whole = _run(case, random_bars, run_sim)
    n = max(1, round(share * case["n"]))
    end = int(bars.ts[n - 1]) + TF
    known = {t: r for t, r in funding.items() if t <= end}
    cut = run_sim(bars.head(n), case["target"][:n], known, **case["params"])
    for name in ("nav", "nav_low", "position", "gross", "fees", "slippage", "funding"):
        np.testing.assert_array_equal(getattr(cut, name), getattr(whole, name)[:n])
    earlier = whole.fills[whole.fills["bar"] < n]
    assert cut.fills.equals(earlier.reset_index(drop=True))
    assert cut.payments.equals(whole.payments[whole.payments["ts"] <= end].reset_index(drop=True))


@QUICK
@given(case=cases())
def test_vectorbt_keeps_the_same_books_without_funding(case, random_bars, run_sim):
    bars, _, sim = _run(case, random_bars, run_sim, with_funding=False)
    view = vectorbt_view(sim, bars.close)
    n = len(view.equity)
    assert n == (sim.bankrupt_bar if sim.bankrupt else case["n"])
    if n:
        scale = np.maximum(sim.nav[:n], sim.params.initial_nav)
        assert np.max(np.abs(view.equity - sim.nav[:n]) / scale) <= 1e-9
    require_agreement(view)


@QUICK
@given(case=cases())
def test_vectorbt_less_funding_is_ours(case, random_bars, run_sim):
    bars, _, sim = _run(case, random_bars, run_sim)
    view = vectorbt_view(sim, bars.close)
    n = len(view.equity)
    ours = equity_with_funding(view.equity, sim)
    assert np.all(np.abs(ours - sim.nav[:n]) <= 1e-9 * np.maximum(sim.nav[:n], sim.params.initial_nav))


@QUICK
@given(case=cases())
def test_round_trips_add_up(case, random_bars, run_sim):
    bars, _, sim = _run(case, random_bars, run_sim)
    known = bars.close[~np.isnan(bars.close)]
    trips = round_trips(sim, float(known[-1]) if len(known) else float("nan"))
    start = sim.params.initial_nav
    assert trips["pnl"].sum() == pytest.approx(sim.nav[-1] - start, abs=1e-9 * start)
    for name in ("gross", "fees", "slippage", "funding"):
        assert trips[name].sum() == pytest.approx(getattr(sim, name).sum(), abs=1e-9 * start)
    assert (trips["closed"] < 0).sum() == int(sim.position[-1] != 0)
