"""What the null bench runs; any change is another bench with results of its own."""

from __future__ import annotations

import hashlib
import inspect
import json
from types import ModuleType
from typing import Final, Literal

from pydantic import Field, model_validator

from mlbot_core.config import FeesConfig, LightGBMConfig, TargetConfig, WalkForwardConfig
from mlbot_core.config.settings import Frozen
from mlbot_core.provenance import code_version
from mlbot_core.validation.nulls import Shape

Kind = Literal["garch", "bootstrap", "shuffled", "signal-null", "planted"]
KINDS: Final[tuple[Kind, ...]] = ("garch", "bootstrap", "shuffled", "signal-null", "planted")
NULLS: Final[tuple[Kind, ...]] = ("garch", "bootstrap", "shuffled")

# results belong to the code that made them
_ROOMS: Final = ("features", "targets", "models", "decision")

FEATURES: Final = (
    *("ret_1", "ret_4", "ret_12", "ret_24", "ret_72", "ret_168"),
    *("sma_gap_24", "sma_gap_96", "ema_gap_26", "macd_hist", "rsi_14", "range_place_24", "range_place_96"),
    *("from_high_168", "from_low_168", "aroon_96", "slope_24", "slope_96", "efficiency_24", "autocorr_48"),
    *("body", "shadow", "vol_12", "vol_48", "vol_168", "vol_term", "parkinson_24", "garman_klass_48"),
    *("range_efficiency_48", "atr_14"),
)
"""Thirty registered features that need nothing but open, high, low and close."""


class Profile(Frozen):
    """Labels, split and model of a part of the bench.

    Parameters
    ----------
    targets, walk_forward, lightgbm
        As in ``models.yaml``; the first test window begins after ``walk_forward.min_train_days``.
    boundary_bars
        Bars after the begin of a test window that count as its boundary; at most the horizon.
    """

    targets: TargetConfig
    walk_forward: WalkForwardConfig
    lightgbm: LightGBMConfig
    boundary_bars: int = Field(ge=1)

    @model_validator(mode="after")
    def _inside(self) -> Profile:
        if self.boundary_bars > self.targets.horizon:
            raise ValueError(f"boundary_bars {self.boundary_bars} exceed the horizon {self.targets.horizon}")
        return self


def _small_trees(**changes: float) -> LightGBMConfig:
    values: dict[str, float] = {
        "n_estimators": 20,
        "learning_rate": 0.1,
        "num_leaves": 15,
        "min_child_samples": 10,
        "subsample": 1.0,
        "subsample_freq": 0,
        "colsample_bytree": 0.5,
        "reg_lambda": 1.0,
        "seed": 7,
    }
    return LightGBMConfig.model_validate(values | changes)


LEAK: Final = Profile(
    targets=TargetConfig(volatility_window=48, horizon=12, barrier_width=1.0),
    walk_forward=WalkForwardConfig(train_days=10_000, min_train_days=50, test_days=10, embargo_bars=0),
    lightgbm=_small_trees(),
    boundary_bars=3,
)
"""Long labels, many boundaries, trees that can tell neighbouring bars apart: where a leak shows if there is one."""

POWER: Final = Profile(
    targets=TargetConfig(volatility_window=48, horizon=1, barrier_width=0.6),
    walk_forward=WalkForwardConfig(train_days=10_000, min_train_days=50, test_days=20, embargo_bars=0),
    lightgbm=_small_trees(
        n_estimators=60,
        learning_rate=0.1,
        num_leaves=2,
        min_child_samples=60,
        reg_lambda=5.0,
        subsample=0.5,
        subsample_freq=1,
        colsample_bytree=1.0,
    ),
    boundary_bars=1,
)
"""One-bar labels and stiff trees: as many independent labels as 2,000 bars can hold. With labels of 12 bars there are
too few for any method: the 99th percentile of the null's IC then lies near the planted IC itself."""


class NullBenchConfig(Frozen):
    """The whole bench.

    Parameters
    ----------
    bars
        Of a path, after the features' warm-up.
    timeframe
        Of the bars.
    zscore_window
        Of the features.
    bar_volatility, alpha, beta, degrees, steps
        :class:`mlbot_core.validation.nulls.GarchParams`.
    mean_block
        Mean block of the stationary bootstrap, in bars.
    planted_ic, half_life, shape
        Rank correlation of the planted column with the outcome, its half-life in bars (0: white noise), and whether it
        is normal or a flag of -1 and 1.
    tilt_scale
        What :func:`mlbot_core.validation.nulls.tilt_for_ic` is multiplied by: it counts with the return over the
        horizon, the outcome with what happens at a barrier. Set so that the measured correlation is ``planted_ic``.
    leak, power
        Profiles of the nulls and of the planted signal with its own null.
    fees
        Of the simulation after costs.
    seed
        Of path 0; path k has ``seed + k``.
    """

    bars: int = Field(default=2_000, ge=200)
    timeframe: str = "2h"
    zscore_window: int = Field(default=120, ge=20)
    bar_volatility: float = 0.008
    alpha: float = 0.04
    beta: float = 0.95
    degrees: float = 5.0
    steps: int = 6
    mean_block: float = 48.0
    planted_ic: float = 0.15
    half_life: float = 0.0
    shape: Shape = "normal"
    tilt_scale: float = 1.16
    leak: Profile = LEAK
    power: Profile = POWER
    fees: FeesConfig = FeesConfig(taker_bp=5.5, maker_bp=2.0, slippage_bp=2.0)
    seed: int = 1_000_000

    def profile(self, kind: Kind) -> Profile:
        """Return the profile that a kind of path runs with."""
        return self.leak if kind in NULLS else self.power

    def identity(self, kind: Kind, *more: ModuleType) -> str:
        """Return the hash of what decides the results of a kind: configuration, features, code; 16 hex digits.

        Parameters
        ----------
        kind
            The nulls do not depend on the profile of the planted signal, nor the other way round.
        more
            Further modules whose code decides the results.
        """
        other = {"power", "planted_ic", "half_life", "shape", "tilt_scale"} if kind in NULLS else {"leak", "mean_block"}
        content = {
            "config": self.model_dump(mode="json", exclude=other),
            "features": FEATURES,
            "code": code_version(rooms=_ROOMS),
            "modules": [hashlib.sha256(inspect.getsource(module).encode()).hexdigest() for module in more],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
