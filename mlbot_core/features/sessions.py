"""Sessions: which exchanges are open while the bar runs, and how far expiries and month ends are. Never normalised."""

from __future__ import annotations

from mlbot_core.features import elementwise as e
from mlbot_core.features import kernels_sessions as s
from mlbot_core.features.registry import Array, feature, intermediate
from mlbot_core.timeframe import HOUR_MS

_SESSIONS = "Eross, McGroarty, Urquhart, Wolfe (2019), The intraday dynamics of bitcoin, RIBAF 49"
_EXPIRY = "Ni, Pearson, Poteshman (2005), Stock price clustering on option expiration dates, JFE 78"
_CME = "Alexander, Heck (2020), Price discovery in bitcoin: the impact of unregulated markets, JFS 50"
_TURN = "Ariel (1987), A monthly effect in stock returns, JFE 18"

_DAY_HOURS = 24.0


@intermediate(("ts",), lookback=1)
def bar_hours(ts: Array) -> Array:
    """Length of the bar, hours."""
    return e.diff(ts, 1) / HOUR_MS


@feature(
    "session_asia",
    inputs=("close_hours", "bar_hours"),
    unit="0 to 1",
    definition="share of the bar within 9:00 to 15:30 of a Tokyo weekday",
    source=_SESSIONS,
    normalise="none",
)
def session_asia(close_hours: Array, bar_hours: Array) -> Array:
    """Tokyo is open."""
    return s.session_share(close_hours, bar_hours, s.ASIA)


@feature(
    "session_europe",
    inputs=("close_hours", "bar_hours"),
    unit="0 to 1",
    definition="share of the bar within 8:00 to 16:30 of a London weekday, summer time kept",
    source=_SESSIONS,
    normalise="none",
)
def session_europe(close_hours: Array, bar_hours: Array) -> Array:
    """London is open."""
    return s.session_share(close_hours, bar_hours, s.EUROPE)


@feature(
    "session_america",
    inputs=("close_hours", "bar_hours"),
    unit="0 to 1",
    definition="share of the bar within 9:30 to 16:00 of a New York weekday, daylight time kept",
    source=_SESSIONS,
    normalise="none",
)
def session_america(close_hours: Array, bar_hours: Array) -> Array:
    """New York is open, and with it the spot funds."""
    return s.session_share(close_hours, bar_hours, s.AMERICA)


@feature(
    "to_america_open",
    inputs=("close_hours",),
    unit="days",
    definition="days from the close to the next 9:30 of a New York weekday",
    source=_SESSIONS,
    normalise="none",
)
def to_america_open(close_hours: Array) -> Array:
    """Until New York opens."""
    return s.hours_to_open(close_hours, s.AMERICA) / _DAY_HOURS


@feature(
    "cme_shut",
    inputs=("close_hours", "bar_hours"),
    unit="0 to 1",
    definition="share of the bar within the weekend of the CME's futures: Friday 16:00 to Sunday 17:00 in Chicago",
    source=_CME,
    normalise="none",
)
def cme_shut(close_hours: Array, bar_hours: Array) -> Array:
    """Institutions cannot trade their futures."""
    return s.session_share(close_hours, bar_hours, s.CME_SHUT)


@feature(
    "to_month_expiry",
    inputs=("close_hours",),
    unit="days",
    definition="days from the close to the next monthly expiry of options: last Friday of a month, 08:00 UTC",
    source=_EXPIRY,
    normalise="none",
)
def to_month_expiry(close_hours: Array) -> Array:
    """Until options expire."""
    return s.hours_to_expiry(close_hours, 1) / _DAY_HOURS


@feature(
    "to_quarter_expiry",
    inputs=("close_hours",),
    unit="days",
    definition="days from the close to the next quarterly expiry of futures and options: last Friday, 08:00 UTC",
    source=_EXPIRY,
    normalise="none",
)
def to_quarter_expiry(close_hours: Array) -> Array:
    """Until the large expiry."""
    return s.hours_to_expiry(close_hours, 3) / _DAY_HOURS


@feature(
    "month_sin",
    inputs=("close_hours",),
    unit="-1 to 1",
    definition="sine of the elapsed share of the UTC month at the close",
    source=_TURN,
    normalise="none",
)
def month_sin(close_hours: Array) -> Array:
    """Place in the month."""
    return e.phase(s.month_share(close_hours), 1.0, 0.0)


@feature(
    "month_cos",
    inputs=("close_hours",),
    unit="-1 to 1",
    definition="cosine of the elapsed share of the UTC month at the close: 1 at its turn",
    source=_TURN,
    normalise="none",
)
def month_cos(close_hours: Array) -> Array:
    """Place in the month."""
    return e.phase(s.month_share(close_hours), 1.0, 1.0)
