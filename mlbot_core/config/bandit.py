"""``bandit.yaml``: how the size of a position is learned, and what must hold before that is believed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from mlbot_core.config.base import Frozen

# the shares of the cap that can be chosen, beside none at all
_SHARES = (0.25, 0.5, 0.75, 1.0)


class BanditPolicyConfig(Frozen):
    """The learning policy; see :class:`mlbot_core.decision.bandit.PolicySpec`.

    Parameters
    ----------
    policy
        Thompson sampling or LinUCB.
    features
        One regression for all multipliers, or one for each.
    ridge
        Precision of the prior.
    alpha
        Deviation of the noise in units of the reward (Thompson sampling), multiple of the width (LinUCB).
    epsilon
        Probability of a multiplier at random, while exploring.
    draws
        Samples of the posterior a decision.
    seed
        Of all randomness.
    """

    policy: Literal["lints", "linucb"] = "lints"
    features: Literal["shared", "disjoint"] = "shared"
    ridge: float = Field(default=1.0, gt=0, le=1e6)
    alpha: float = Field(default=2.0, ge=0, le=1e3)
    epsilon: float = Field(default=0.5, gt=0, le=1)
    draws: int = Field(default=128, ge=1, le=100_000)
    seed: int = Field(default=20250701, ge=0)


class BanditRewardConfig(Frozen):
    """What a decision is worth.

    Parameters
    ----------
    drawdown_penalty
        Times the deepest fall of NAV within the position's period, taken from its log growth.
    unit
        Log growth that counts as a reward of 1.
    """

    drawdown_penalty: float = Field(default=0.25, ge=0, le=10)
    unit: float = Field(default=0.001, gt=0, le=1)


class BanditBaselineConfig(Frozen):
    """What the bandit is compared with.

    Parameters
    ----------
    fixed
        Shares of the cap.
    target_volatility
        Annual volatility of the market at which the whole cap is used, fraction.
    kelly_fraction
        Of the growth-optimal position.
    """

    fixed: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    target_volatility: float = Field(default=0.5, gt=0, le=5)
    kelly_fraction: float = Field(default=0.25, gt=0, le=1)

    @field_validator("fixed")
    @classmethod
    def _arms(cls, fixed: tuple[float, ...]) -> tuple[float, ...]:
        if not fixed or any(share not in _SHARES for share in fixed) or len(set(fixed)) != len(fixed):
            raise ValueError(f"give one or more of {', '.join(map(str, _SHARES))}, each once")
        return fixed


class BanditContextConfig(Frozen):
    """How far back the context looks.

    Parameters
    ----------
    volatility_days
        Days of bars whose returns the volatility is made of.
    usual_volume_days
        Days whose median volume a bar is compared with.
    calibration_forecasts
        Newest forecasts with a known outcome that the recent calibration is made of.
    calibration_min
        Fewer of them say nothing.
    """

    volatility_days: float = Field(default=7.0, gt=0, le=365)
    usual_volume_days: float = Field(default=7.0, gt=0, le=365)
    calibration_forecasts: int = Field(default=200, ge=10, le=100_000)
    calibration_min: int = Field(default=50, ge=5, le=100_000)


class BanditEvaluationConfig(Frozen):
    """What must hold before a policy is believed.

    Parameters
    ----------
    train_share
        First share of the decisions that the policy learns from; it is judged on the rest.
    level
        Confidence of the intervals.
    max_weight
        Importance weights above it are clipped, and the share of those is reported.
    min_decisions
        Fewer judged decisions refuse.
    min_effective
        A smaller effective sample size refuses.
    initial_nav
        USD, of the simulated account; large enough that the lot does not round a quarter of the cap away.
    """

    train_share: float = Field(default=0.5, gt=0, lt=1)
    level: float = Field(default=0.95, gt=0.5, lt=1)
    max_weight: float = Field(default=50.0, gt=1)
    min_decisions: int = Field(default=100, ge=10)
    min_effective: float = Field(default=50.0, ge=5)
    initial_nav: float = Field(default=100_000.0, gt=0)


class BanditConfig(Frozen):
    """``bandit.yaml``: how the size of a position is learned, and what must hold before that is believed.

    Parameters
    ----------
    explore_live
        Whether a promoted policy explores with real money; off by default.
    """

    policy: BanditPolicyConfig = BanditPolicyConfig()
    reward: BanditRewardConfig = BanditRewardConfig()
    baselines: BanditBaselineConfig = BanditBaselineConfig()
    context: BanditContextConfig = BanditContextConfig()
    evaluation: BanditEvaluationConfig = BanditEvaluationConfig()
    explore_live: bool = False
