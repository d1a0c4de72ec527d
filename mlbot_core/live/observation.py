"""From stored signals to what the decision function takes, exactly as the backtest makes it.

In a backtest a decided bar has its own forecast, of age 0, or none. Live it is the same:

======================================  ==========================================================
the signal of the decided bar           forecast of the decision
======================================  ==========================================================
is stored and usable                    its edge and multiplier, age 0
is stored and not usable, or late       no edge (NaN), age 0: nothing is held on no forecast
is not stored                           the newest usable one before it, with its age in time;
                                        :attr:`~mlbot_core.decision.state.Limits.max_forecast_age_ms`
                                        says how long that will do
none is stored at all                   no edge, older than any limit: one may only reduce
======================================  ==========================================================

An age is counted from the close of the forecast's bar to the close of the decided bar.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mlbot_core.clock import format_utc
from mlbot_core.config import Settings
from mlbot_core.decision.edges import FULL_SIZE
from mlbot_core.decision.state import Forecast
from mlbot_core.live.signal_store import Signal, read_signals
from mlbot_core.live.signals import Forecasted
from mlbot_core.timeframe import Market
from mlbot_core.warehouse import Warehouse

NO_AGE: Final = 2**62
"""Older than any limit."""
_LOOK_BACK_BARS: Final = 12


@dataclass(frozen=True, eq=False)
class Said:
    """What a decision on a bar rests on.

    Parameters
    ----------
    market, ts
        The decided bar; open time, UTC ms.
    forecast
        For :func:`mlbot_core.decision.step.step`.
    signal
        That it was made from; None where there is none.
    reason
        In words, what was stale or missing and what that did; empty where nothing was.
    size
        Where its share of the cap comes from (:mod:`mlbot_core.live.sizing`); None where nobody sized it.
    """

    market: Market
    ts: int
    forecast: Forecast
    signal: Signal | None
    reason: str
    size: Mapping[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """Return what a decision keeps of it as its caller's ``signal``: the key and digests, None where there is none.

        The vector itself stays in the table of signals; its hash says which one it was.
        """
        size = {} if self.size is None else {"size": dict(self.size)}
        if self.signal is None:
            return {"key": None, "reason": self.reason, **size}
        one = self.signal
        return {
            "key": one.key.as_json(),
            "digest": one.digest,
            "vector_sha256": one.vector_sha256,
            "role": one.role,
            "code": one.code,
            "score": one.forecast["score"].hex(),
            "width": one.width.hex(),
            "usable": one.usable,
            "late": one.late,
            "stale_inputs": list(one.stale_inputs),
            "reason": self.reason,
            **size,
        }


def forecast_to_decide(
    store: Warehouse, settings: Settings, forecasted: Forecasted, model_type: str | None = None
) -> Said:
    """Return the forecast that a decision on a bar rests on, right after the bar was forecast.

    Parameters
    ----------
    forecasted
        Says which version may speak at the venue: just now verified, never read from the table.
    model_type
        Whose forecast decides; by default as configured.
    """
    kind = model_type or settings.execution.model
    return said_of(store, forecasted.source, forecasted.market, forecasted.ts, kind, forecasted.speaking.get(kind))


def said_of(store: Warehouse, source: str, market: Market, ts: int, model_type: str, model_version: str | None) -> Said:
    """Return what one version said, as a decision on the bar opened at ``ts`` takes it.

    Parameters
    ----------
    model_version
        None where no version may speak.
    """
    nothing = Forecast(math.nan, FULL_SIZE, NO_AGE)
    if model_version is None:
        return Said(market, ts, nothing, None, f"no {model_type} model of {market} may speak here: only reducing")
    step = market.timeframe.ms
    rows = read_signals(
        store, source, market, ts - _LOOK_BACK_BARS * step, ts + 1, model_type=model_type, model_version=model_version
    )
    if rows and rows[-1].key.ts == ts:
        own = rows[-1]
        return Said(market, ts, as_forecast(own, ts), own, own.reason)
    older = [one for one in rows if one.usable]
    if not older:
        return Said(market, ts, nothing, None, f"no forecast of {model_type} for {market} is stored: only reducing")
    last = older[-1]
    told = f"this bar has no forecast; that of the bar {format_utc(last.key.ts)} stands in with its age"
    return Said(market, ts, as_forecast(last, ts), last, told)


def as_forecast(signal: Signal, ts: int) -> Forecast:
    """Return a signal as the decision function takes it on the bar opened at ``ts``."""
    usable = signal.usable and not signal.late
    return Forecast(signal.edge if usable else math.nan, signal.multiplier, ts - signal.key.ts)
