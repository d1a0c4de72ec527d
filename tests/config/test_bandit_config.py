"""``bandit.yaml``: what may stand in it."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from mlbot_core.config import load_settings
from mlbot_core.config.bandit import BanditBaselineConfig, BanditConfig
from mlbot_core.decision.bandit import ARMS
from mlbot_core.research.bandit_training import spec_of


def test_the_file_holds_the_defaults():
    assert load_settings({}).bandit == BanditConfig()


def test_fixed_fractions_are_arms():
    assert all(share in ARMS for share in BanditConfig().baselines.fixed)
    for wrong in ((0.3,), (), (0.5, 0.5), (0.0,), (2.0,)):
        with pytest.raises(ValidationError, match=r"0\.25, 0\.5, 0\.75, 1\.0"):
            BanditBaselineConfig(fixed=wrong)


def test_every_configured_policy_is_a_policy():
    for policy in ("lints", "linucb"):
        for features in ("shared", "disjoint"):
            config = BanditConfig.model_validate({"policy": {"policy": policy, "features": features}})
            assert spec_of(config).policy == policy


@pytest.mark.parametrize(
    "wrong",
    [
        {"policy": {"epsilon": 0}},
        {"policy": {"policy": "dqn"}},
        {"reward": {"unit": 0}},
        {"evaluation": {"max_weight": 1}},
        {"evaluation": {"train_share": 1}},
        {"explore": True},
    ],
)
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ValidationError):
        BanditConfig.model_validate(wrong)
