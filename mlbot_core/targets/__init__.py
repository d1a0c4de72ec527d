"""Targets: what a model is asked to foretell, each with the interval [t0, t1] that its answer rests on."""

from mlbot_core.targets.build import (
    LABELS,
    TARGET_COLUMNS,
    build_targets,
    describe_targets,
    target_columns,
    target_labels,
    target_lookback,
)
from mlbot_core.targets.direction import average_uniqueness, label_overlap, triple_barrier
from mlbot_core.targets.meta import META_LABELS, build_meta_targets, meta_label
from mlbot_core.targets.returns import trailing_sigma, volatility_adjusted_return
from mlbot_core.targets.weights import class_balance, sample_weights, time_decay

__all__ = [
    "LABELS",
    "META_LABELS",
    "TARGET_COLUMNS",
    "average_uniqueness",
    "build_meta_targets",
    "build_targets",
    "class_balance",
    "describe_targets",
    "label_overlap",
    "meta_label",
    "sample_weights",
    "target_columns",
    "target_labels",
    "target_lookback",
    "time_decay",
    "trailing_sigma",
    "triple_barrier",
    "volatility_adjusted_return",
]
