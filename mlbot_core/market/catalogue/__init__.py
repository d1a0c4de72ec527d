"""The series catalogue: for each series its endpoint, fields, canonical units, lag and resampling.

Adding a series is adding one entry: the client, the warehouse, the assets and the conformance suite follow from it.
Values are stored in one canonical unit (USD, coin, fraction, index); ``scale`` converts from what the endpoint
serves. Endpoints and units: Coinglass API v4, https://docs.coinglass.com.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mlbot_core.errors import UsageError
from mlbot_core.market.catalogue import context, flow, futures, venue
from mlbot_core.market.catalogue.spec import Column, PlanName, Resample, SeriesSpec, Unit

__all__ = ["CATALOGUE", "CORE_SERIES", "Column", "PlanName", "Resample", "SeriesSpec", "Unit", "series_spec"]

CATALOGUE: Final[Mapping[str, SeriesSpec]] = {
    spec.name: spec for spec in (*futures.SERIES, *flow.SERIES, *context.SERIES, *venue.SERIES)
}

# What the features are made of: pulled, and required to be sound, wherever features are. The rest is pulled when it is
# asked for.
CORE_SERIES: Final = (
    "price",
    "open_interest",
    "funding_rate",
    "long_short_ratio",
    "liquidations",
    "taker_volume",
    "funding_settled",
)


def series_spec(name: str) -> SeriesSpec:
    """Return the catalogue's entry of a series.

    Raises
    ------
    UsageError
        If there is none of that name.
    """
    try:
        return CATALOGUE[name]
    except KeyError:
        raise UsageError(f"series {name!r} is not in the catalogue; choose one of {', '.join(CATALOGUE)}") from None
