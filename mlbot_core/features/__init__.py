"""Features: pure, declared, point in time. Importing the families below is what fills the registry."""

from mlbot_core.features import price, volatility, volume  # isort: skip  # the families after them build on their columns
from mlbot_core.features import calendar, derivatives, flow, positioning
from mlbot_core.features.build import build_features
from mlbot_core.features.panel import PANEL_COLUMNS, SettledSeries, build_panel
from mlbot_core.features.registry import FeatureSet, describe, feature_set
from mlbot_core.features.truncation import TruncationResult, Violation, known_at_check, truncation_check

__all__ = [
    "PANEL_COLUMNS",
    "FeatureSet",
    "SettledSeries",
    "TruncationResult",
    "Violation",
    "build_features",
    "build_panel",
    "calendar",
    "derivatives",
    "describe",
    "feature_set",
    "flow",
    "known_at_check",
    "positioning",
    "price",
    "truncation_check",
    "volatility",
    "volume",
]
