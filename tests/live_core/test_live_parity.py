"""The backtest reproduces a day of live trading, or the certificate says where it does not."""

from __future__ import annotations

import dataclasses

import pandas as pd
import pytest

from mlbot_core.clock import parse_utc_ms
from mlbot_core.errors import MissingDataError
from mlbot_core.live.parity import _tolerated, parity
from mlbot_core.live.parity_plot import parity_png
from mlbot_core.timeframe import DAY_MS, HOUR_MS

BAR = parse_utc_ms("2024-09-20T00:00:00Z")
START = BAR


def certificate(desk, tools, start=START, end=BAR + DAY_MS):
    return parity(desk.home.store, desk.home.settings, desk.ledger, tools.SOURCE, tools.TWO, "BTCUSDT", start, end)


@pytest.mark.slow
def test_a_day_comes_out_as_it_was_lived(day, tools):
    found = certificate(day, tools, start=BAR + 2 * HOUR_MS)
    assert found.findings == ()
    assert found.passed
    told = found.as_json()
    assert told["decisions"] == told["identical_decisions"] == len(tools.EDGES)
    assert told["bars_with_other_positions"] == 0
    assert (found.bars["live_qty"] != 0).sum() >= 5
    live, simulated, tolerated = found.totals["fees"]
    assert live * 0.005 <= tolerated < live * 0.1
    assert live > 1
    assert live == pytest.approx(simulated, abs=0.05)
    live, simulated, _ = found.totals["funding"]
    assert live != 0
    assert live == pytest.approx(simulated, abs=0.01)
    assert parity_png(found)[:4] == b"\x89PNG"


@pytest.mark.slow
def test_whichever_bar_a_certificate_begins_with_its_fills_are_simulated(day, tools):
    """What is filled in the first bar came of a decision before it: of one that entered, or of one that closed."""
    found = {
        start: certificate(day, tools, start=start) for start in range(BAR + 2 * HOUR_MS, BAR + DAY_MS, 2 * HOUR_MS)
    }
    assert {start: one.findings for start, one in found.items()} == dict.fromkeys(found, ())
    traded = [one for one in found.values() if one.bars["live_qty"].iloc[0] != 0.0]
    assert any(one.bars["live_position"].iloc[0] == 0.0 for one in traded), "one begins with a close"
    assert any(one.bars["live_position"].iloc[0] != 0.0 for one in traded), "one begins with an entry"


@pytest.mark.slow
def test_what_is_different_is_named(day, tools):
    home = day.home
    risk = home.settings.risk.model_copy(update={"daily_loss_limit": 0.02})
    home.settings = home.settings.model_copy(update={"risk": risk})
    found = certificate(day, tools)
    assert not found.passed
    assert any("limits" in one for one in found.findings)
    shifted = dataclasses.replace(found, totals={"fees": (2.0, 1.0, 0.99)})
    assert "fees: 2.0000 USD paid, 1.0000 simulated" in shifted.findings
    assert "fees" not in " ".join(dataclasses.replace(found, totals={"fees": (2.0, 1.0, 1.01)}).findings)
    assert found.undecided == (BAR - 2 * HOUR_MS,)


def test_totals_may_differ_by_a_lot_of_each_fill():
    """0.5 USD on 0.004 coins is 12.5 cents a lot of 0.001; of 1 coin, half a percent is more than a lot."""
    assert _tolerated(pd.Series([0.5, -20.0]), pd.Series([-0.004, 1.0]), 0.001) == pytest.approx(0.125 + 0.1)
    assert _tolerated(pd.Series([], dtype=float), pd.Series([], dtype=float), 0.001) == 0.01
    assert _tolerated(pd.Series([1.0]), pd.Series([1.0]), 0.0) == 0.01


def test_a_day_without_decisions_has_nothing_to_compare(desk, tools):
    with pytest.raises(MissingDataError, match="decided on no bar"):
        certificate(desk, tools)
