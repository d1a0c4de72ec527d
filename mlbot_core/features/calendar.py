"""Calendar: where in the day, the week and the funding cycle the bar closes, UTC. Never normalised.

The length of a bar is read off the grid (this open time less the one before), so a close time is known from the
second row on and nothing but open times is needed.
"""

from __future__ import annotations

import numpy as np

from mlbot_core.features import elementwise as e
from mlbot_core.features.registry import Array, feature, intermediate
from mlbot_core.timeframe import DAY_MS, HOUR_MS

_DAY = "Eross, McGroarty, Urquhart, Wolfe (2019), The intraday dynamics of bitcoin, RIBAF 49"
_WEEK = "Caporale, Plastun (2019), The day of the week effect in the cryptocurrency market, FRL 31"
_FUNDING = "Christin, Routledge, Soska, Zetlin-Jones (2022), The crypto carry trade"

_WEEK_HOURS = 168.0
_MONDAY = 4.0 * 24.0  # 1970-01-01 was a Thursday; the first Monday came four days later
_FUNDING_HOURS = 8.0  # settlements at 00:00, 08:00 and 16:00


@intermediate(("ts",), lookback=1)
def close_hours(ts: Array) -> Array:
    """Close time in hours since the epoch."""
    return (ts + e.diff(ts, 1)) / HOUR_MS


@feature(
    "hour_sin",
    inputs=("close_hours",),
    unit="-1 to 1",
    definition="sine of the hour of the close in the UTC day",
    source=_DAY,
    normalise="none",
)
def hour_sin(close_hours: Array) -> Array:
    """Hour of the day."""
    return e.phase(close_hours, 24.0, 0.0)


@feature(
    "hour_cos",
    inputs=("close_hours",),
    unit="-1 to 1",
    definition="cosine of the hour of the close in the UTC day",
    source=_DAY,
    normalise="none",
)
def hour_cos(close_hours: Array) -> Array:
    """Hour of the day."""
    return e.phase(close_hours, 24.0, 1.0)


@feature(
    "weekday_sin",
    inputs=("close_hours",),
    unit="-1 to 1",
    definition="sine of the time of the close in the UTC week from Monday",
    source=_WEEK,
    normalise="none",
)
def weekday_sin(close_hours: Array) -> Array:
    """Place in the week."""
    return e.phase(close_hours - _MONDAY, _WEEK_HOURS, 0.0)


@feature(
    "weekday_cos",
    inputs=("close_hours",),
    unit="-1 to 1",
    definition="cosine of the time of the close in the UTC week from Monday",
    source=_WEEK,
    normalise="none",
)
def weekday_cos(close_hours: Array) -> Array:
    """Place in the week."""
    return e.phase(close_hours - _MONDAY, _WEEK_HOURS, 1.0)


@feature(
    "weekend",
    inputs=("ts",),
    unit="0 or 1",
    definition="1 when the bar opens on a Saturday or Sunday, UTC",
    source=_WEEK,
    normalise="none",
)
def weekend(ts: Array) -> Array:
    """Banks and ETFs are shut."""
    return (np.floor(ts / DAY_MS - 4.0) % 7.0 >= 5.0).astype(np.float64)


@feature(
    "to_funding",
    inputs=("close_hours",),
    unit="hours",
    definition="hours from the close to the next funding settlement (8 when it closes on one)",
    source=_FUNDING,
    normalise="none",
)
def to_funding(close_hours: Array) -> Array:
    """Funding clock."""
    return _FUNDING_HOURS - close_hours % _FUNDING_HOURS


@feature(
    "funding_due",
    inputs=("close_hours", "funding_rate"),
    unit="fraction",
    definition="running funding rate times the elapsed share of the 8 h funding period",
    source=_FUNDING,
)
def funding_due(close_hours: Array, funding_rate: Array) -> Array:
    """Funding accrued since the last settlement."""
    return funding_rate * (close_hours % _FUNDING_HOURS) / _FUNDING_HOURS
