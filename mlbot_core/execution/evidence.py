"""What a decision rested on, as plain JSON that keeps every bit, and the same decision made again from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, get_type_hints

from mlbot_core.decision.state import (
    ACTIONS,
    LEVELS,
    Decision,
    Forecast,
    Limits,
    Observation,
    RiskState,
    cause_names,
    state_from_json,
    state_to_json,
)
from mlbot_core.decision.step import step
from mlbot_core.errors import UsageError

_KINDS: Final[dict[str, type]] = {"observation": Observation, "forecast": Forecast, "limits": Limits}


class Evidence(NamedTuple):
    """Arguments of :func:`mlbot_core.decision.step.step`."""

    state: RiskState
    observation: Observation
    forecast: Forecast
    limits: Limits
    cost_round_trip: float

    def decide(self) -> tuple[RiskState, Decision]:
        """Return what ``step`` makes of it."""
        return step(*self)


def record(evidence: Evidence, after: RiskState, decision: Decision) -> dict[str, Any]:
    """Return a decision with all that it rested on; floats by their hexadecimal text."""
    return {
        "state": state_to_json(evidence.state),
        **{name: _plain(getattr(evidence, name)) for name in _KINDS},
        "cost_round_trip": float(evidence.cost_round_trip).hex(),
        "after": state_to_json(after),
        "decision": _plain(decision),
        "action": ACTIONS[decision.action],
        "level": LEVELS[decision.level],
        "entered": list(cause_names(decision.entered)),
        "cleared": list(cause_names(decision.cleared)),
    }


def read(details: Mapping[str, Any]) -> Evidence:
    """Return what a recorded decision rested on.

    Raises
    ------
    UsageError
        If the record is not one of :func:`record`.
    """
    try:
        parts = {name: _typed(kind, details[name]) for name, kind in _KINDS.items()}
        return Evidence(
            state_from_json(details["state"]), **parts, cost_round_trip=float.fromhex(details["cost_round_trip"])
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"the decision was not recorded with what it rested on ({error!r})") from error


def replays(details: Mapping[str, Any]) -> bool:
    """Return whether a recorded decision comes out the same, bit for bit, when it is made again."""
    after, decision = read(details).decide()
    return state_to_json(after) == details["after"] and _plain(decision) == details["decision"]


def _plain(values: Any) -> dict[str, Any]:
    hints = get_type_hints(type(values))
    return {
        name: float(value).hex() if hints[name] is float else int(value) for name, value in values._asdict().items()
    }


def _typed(kind: Any, values: Mapping[str, Any]) -> Any:
    hints = get_type_hints(kind)
    if set(values) != set(hints):
        raise ValueError(f"{kind.__name__} has other fields than expected")
    return kind(**{name: float.fromhex(values[name]) if hints[name] is float else int(values[name]) for name in hints})
