"""Features: pure, declared, point in time. Importing the families is what fills the registry."""

from importlib import import_module

from mlbot_core.features.build import build_features
from mlbot_core.features.panel import PANEL_COLUMNS, SettledSeries, build_panel
from mlbot_core.features.registry import FeatureSet, describe
from mlbot_core.features.sets import configured_set, families, feature_set
from mlbot_core.features.truncation import (
    TruncationResult,
    Violation,
    known_at_check,
    known_at_windows,
    truncation_check,
)

__all__ = [
    "PANEL_COLUMNS",
    "FeatureSet",
    "SettledSeries",
    "TruncationResult",
    "Violation",
    "build_features",
    "build_panel",
    "configured_set",
    "describe",
    "families",
    "feature_set",
    "known_at_check",
    "known_at_windows",
    "truncation_check",
]

for _family in (  # each after those whose columns it builds on; features are listed in this order
    "price",
    "volatility",
    "volume",
    "calendar",
    "derivatives",
    "flow",
    "positioning",
    "alpha158",
    "liquidity",
    "momentum",
    "technical",
    "technical_bands",
    "technical_volume",
    "variance",
    "basis",
    "context",
    "cross_timeframe",
    "crowding",
    "depth",
    "funding",
    "open_interest",
    "orderflow",
    "regime",
    "sessions",
):
    import_module(f"{__name__}.{_family}")
