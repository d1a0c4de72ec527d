"""Targets: what a model is asked to foretell, each with the interval [t0, t1] that its answer rests on."""

from mlbot_core.targets.build import LABELS, TARGET_COLUMNS, build_targets, target_lookback
from mlbot_core.targets.direction import average_uniqueness, triple_barrier
from mlbot_core.targets.returns import trailing_sigma, volatility_adjusted_return

__all__ = [
    "LABELS",
    "TARGET_COLUMNS",
    "average_uniqueness",
    "build_targets",
    "target_lookback",
    "trailing_sigma",
    "triple_barrier",
    "volatility_adjusted_return",
]
