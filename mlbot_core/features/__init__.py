"""Features: pure, declared, point in time. Importing the families below is what fills the registry."""

# Families build on the columns of those before them.
# isort: off
from mlbot_core.features import price, volatility, volume
from mlbot_core.features import calendar, derivatives, flow, positioning
from mlbot_core.features import alpha158, liquidity, momentum, technical, technical_bands, variance
from mlbot_core.features import (
    basis,
    context,
    cross_timeframe,
    crowding,
    depth,
    funding,
    open_interest,
    orderflow,
    regime,
    sessions,
)

# isort: on
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
    "alpha158",
    "basis",
    "build_features",
    "build_panel",
    "calendar",
    "configured_set",
    "context",
    "cross_timeframe",
    "crowding",
    "depth",
    "derivatives",
    "describe",
    "families",
    "feature_set",
    "flow",
    "funding",
    "known_at_check",
    "known_at_windows",
    "liquidity",
    "momentum",
    "open_interest",
    "orderflow",
    "positioning",
    "price",
    "regime",
    "sessions",
    "technical",
    "technical_bands",
    "truncation_check",
    "variance",
    "volatility",
    "volume",
]
