"""What the decision remembers, sees and may do: plain numbers, so that the compiled code and a JSON file hold the same.

All of these are named tuples of integers and floats: numba takes them as they are, and they are compared and stored
without loss. Times are UTC ms, money USD, fractions are of NAV unless said otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from mlbot_core.errors import UsageError

# Causes: the state is the set of those that are active, one bit each.
DATA_STALE: Final = 1
DRIFT: Final = 2
RECONCILE: Final = 4
API_DEGRADED: Final = 8
DAILY_LOSS: Final = 16
DRAWDOWN: Final = 32
KILL: Final = 64
ERROR: Final = 128

# Flags of an observation are the causes that somebody else found; each holds as long as it is raised.
OBSERVED: Final = DATA_STALE | DRIFT | RECONCILE | API_DEGRADED
HALTING: Final = DRAWDOWN | KILL | ERROR

# Levels, by severity: the most severe active cause rules.
NORMAL: Final = 0
REDUCE_ONLY: Final = 1
FLAT_TODAY: Final = 2
HALTED: Final = 3
LEVELS: Final = ("NORMAL", "REDUCE_ONLY", "FLAT_TODAY", "HALTED")

# Why a target asks for an order now.
HOLD: Final = 0
TARGET: Final = 1
REBALANCE: Final = 2
TRIM: Final = 3
FLATTEN: Final = 4
ACTIONS: Final = ("hold", "target", "rebalance", "trim", "flatten")


class Cause(NamedTuple):
    """One line of the table of causes; documentation and alerts are made from it.

    Parameters
    ----------
    bit
        Its number in the set.
    level
        The level that it raises.
    entered, cleared
        When, in words.
    """

    name: str
    bit: int
    level: int
    entered: str
    cleared: str


CAUSES: Final = (
    Cause(
        "data_stale",
        DATA_STALE,
        REDUCE_ONLY,
        "an input of the decision, or its forecast, is older than allowed, NAV or mark price is unknown, or the "
        "account holds nothing",
        "when every input is fresh again",
    ),
    Cause("drift", DRIFT, REDUCE_ONLY, "the drift alarm of the features is raised", "when the alarm is lowered"),
    Cause(
        "reconcile",
        RECONCILE,
        REDUCE_ONLY,
        "position, orders, fills or wallet differ from the exchange's",
        "by the next clean reconciliation",
    ),
    Cause(
        "api_degraded",
        API_DEGRADED,
        REDUCE_ONLY,
        "the exchange answers late, wrongly or not at all",
        "when it answers again",
    ),
    Cause(
        "daily_loss",
        DAILY_LOSS,
        FLAT_TODAY,
        "NAV <= NAV at the start of the UTC day x (1 - daily loss limit)",
        "at the first mark of the next UTC day",
    ),
    Cause(
        "drawdown",
        DRAWDOWN,
        HALTED,
        "NAV <= peak NAV x (1 - maximum drawdown)",
        "when a person re-arms; the peak then starts at the NAV of that moment",
    ),
    Cause("kill", KILL, HALTED, "the kill switch is pressed", "when a person re-arms"),
    Cause("error", ERROR, HALTED, "something happened that needs a person", "when a person re-arms"),
)


class RiskState(NamedTuple):
    """What is carried from one call to the next, and over restarts.

    Parameters
    ----------
    ts
        Time of the newest mark; -1 before the first.
    day
        UTC day number (days since 1970) of ``day_start_nav``; -1 before the first mark.
    day_start_nav, peak_nav, last_nav
        USD, scaled by deposits and withdrawals since (see :func:`mlbot_core.decision.risk.risk_check`); NaN while the
        account holds nothing.
    causes
        Set of active causes.
    side
        -1, 0, +1: the side that the last decision wanted.
    target
        Signed fraction of NAV that the last decision wanted.
    stopped_side
        Side that was closed by its stop and is not entered again until the forecast has left it; 0 for none.
    decided_bar
        Open time of the newest bar that was decided; -1 before the first.
    unmarked_flow
        Deposits less withdrawals that were reported while NAV was unknown, USD; the next known NAV contains them.
    """

    ts: int
    day: int
    day_start_nav: float
    peak_nav: float
    last_nav: float
    causes: int
    side: int
    target: float
    stopped_side: int
    decided_bar: int
    unmarked_flow: float


class Observation(NamedTuple):
    """What is seen at one moment.

    Parameters
    ----------
    ts
        The moment.
    bar_ts
        Open time of the bar that the decision rests on; -1 for a mark between decisions.
    mark
        Mark price, USD; NaN unknown.
    nav
        Marked equity, USD: wallet and unrealised PnL, fees and funding included; NaN unknown.
    position
        Coins, signed; NaN unknown.
    flow
        Deposits less withdrawals since the previous call, USD; already contained in ``nav``. Each is reported once.
    flags
        Causes of :data:`OBSERVED` that others found, as a set, plus ``KILL`` and ``ERROR``.
    stopped
        Side of the position that the protective stop closed since the previous call: -1, +1; 0 for none.
    """

    ts: int
    bar_ts: int
    mark: float
    nav: float
    position: float
    flow: float
    flags: int
    stopped: int


class Forecast(NamedTuple):
    """What a model said of the bar.

    Parameters
    ----------
    edge
        Expected log return of a long position over the forecast's horizon, before costs; NaN where there is no
        forecast.
    multiplier
        Share of the cap to use, 0 to 1 (volatility targeting, bandit); 1 for all of it.
    age_ms
        How old the forecast is, from the close of its bar to the decision.
    """

    edge: float
    multiplier: float
    age_ms: int


class Limits(NamedTuple):
    """Bounds of the risk state machine; infinite switches one off.

    Parameters
    ----------
    max_position
        Largest |position value at mark| / NAV that a decision may ask for.
    trim_above
        A position is cut back to ``max_position`` above this fraction of NAV.
    daily_loss, max_drawdown
        Fractions of NAV.
    max_forecast_age_ms
        An older forecast counts as stale data.
    rebalance_band
        An unchanged target is traded again when |actual - target| exceeds this fraction of NAV.
    day_grace_ms
        The first mark within this time after 00:00 UTC is the day's start; 5 minutes by design.
    """

    max_position: float
    trim_above: float
    daily_loss: float
    max_drawdown: float
    max_forecast_age_ms: int
    rebalance_band: float
    day_grace_ms: int


class Decision(NamedTuple):
    """What a decision came to.

    Parameters
    ----------
    target
        Signed fraction of NAV to hold from here on.
    action
        Why an order is needed, :data:`HOLD` when none is.
    level
        Of :data:`LEVELS`.
    entered, cleared
        Causes that became active and inactive in this call, as sets.
    keep_entries
        1 where an earlier order that is still working may go on adding to the position, up to ``target``; 0 where it is
        cancelled. What only reduces goes on either way. An action other than ``hold`` replaces every earlier order.
    """

    target: float
    action: int
    level: int
    entered: int
    cleared: int
    keep_entries: int


_ANY: Final = (-1, 2**63 - 1)
_RANGES: Final[Mapping[str, tuple[int, int]]] = {"causes": (0, 2 * ERROR - 1), "side": (-1, 1), "stopped_side": (-1, 1)}


def initial_state() -> RiskState:
    """Return the state of an account that was never marked."""
    return RiskState(-1, -1, math.nan, math.nan, math.nan, 0, 0, 0.0, 0, -1, 0.0)


def cause_names(causes: int) -> tuple[str, ...]:
    """Return the names of a set of causes, in the order of the table."""
    return tuple(cause.name for cause in CAUSES if causes & cause.bit)


def state_to_json(state: RiskState) -> dict[str, Any]:
    """Return a state as plain values that JSON keeps exactly (floats by their hexadecimal text)."""
    return {name: value.hex() if isinstance(value, float) else int(value) for name, value in state._asdict().items()}


def state_from_json(values: Mapping[str, Any]) -> RiskState:
    """Return the state that :func:`state_to_json` wrote.

    Raises
    ------
    UsageError
        If a field is missing, unknown, or not of its kind: a damaged state is never guessed at.
    """
    expected = initial_state()
    unknown = set(values) ^ set(expected._fields)
    if unknown:
        raise UsageError(
            f"stored risk state has other fields than expected ({', '.join(sorted(unknown))}); halt and re-arm"
        )
    read: dict[str, Any] = {}
    for name, like in expected._asdict().items():
        value = values[name]
        try:
            if isinstance(like, float):
                read[name] = float.fromhex(value)
            elif type(value) is int and _RANGES.get(name, _ANY)[0] <= value <= _RANGES.get(name, _ANY)[1]:
                read[name] = value
            else:
                raise ValueError(name)
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"stored risk state: {name} is {value!r}; restore the ledger from a backup, or halt and re-arm"
            ) from error
    return RiskState(**read)
