"""Which stored series a feature rests on: what has to be read, and whose absence makes which columns empty."""

from __future__ import annotations

from collections.abc import Collection

from mlbot_core.features.panel import COLUMN_SERIES
from mlbot_core.features.registry import FeatureSet, panel_inputs
from mlbot_core.market.catalogue import CATALOGUE


def series_of(feature: str) -> frozenset[str]:
    """Return the catalogue names of the series that a feature is computed from, directly or through others.

    A feature of the calendar alone has none: it needs the grid, which prices span.
    """
    return frozenset(COLUMN_SERIES[column] for column in panel_inputs(feature) if column in COLUMN_SERIES)


def series_needed(features: FeatureSet) -> tuple[str, ...]:
    """Return the series that a feature set needs, prices always among them, in the catalogue's order."""
    needed = {"price"}.union(*(series_of(name) for name in features.names))
    return tuple(name for name in CATALOGUE if name in needed)


def servable(features: FeatureSet, served: Collection[str]) -> tuple[str, ...]:
    """Return the features whose every series is among ``served``; the others are NaN in every row.

    Parameters
    ----------
    served
        Catalogue names of the series for which there are rows at all.
    """
    there = set(served)
    return tuple(name for name in features.names if series_of(name) <= there)
