"""Costs by hand."""

from __future__ import annotations

import pytest

from mlbot_core.config import FeesConfig, load_settings
from mlbot_core.decision import costs_from_fees


def test_costs_by_hand() -> None:
    costs = costs_from_fees(FeesConfig(taker_bp=5.5, maker_bp=-1.0, slippage_bp=2.0))
    assert costs.taker == pytest.approx(0.00055, rel=1e-12)
    assert costs.maker == pytest.approx(-0.0001, rel=1e-12)
    assert costs.slippage == pytest.approx(0.0002, rel=1e-12)
    assert costs.side == pytest.approx(0.00075, rel=1e-12)
    assert costs.round_trip == pytest.approx(0.0015, rel=1e-12)


def test_the_configured_costs_are_not_zero() -> None:
    assert costs_from_fees(load_settings({"MLBOT_THREADS": "1"}).fees).round_trip > 0
