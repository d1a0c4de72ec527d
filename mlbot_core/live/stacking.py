"""What a meta-model is asked with: the base forecasts that stood at its bar's close, as in its training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from mlbot_core.live.chosen import Base
from mlbot_core.live.rows import Input
from mlbot_core.live.signal_store import Signal, SignalKey, read_signals
from mlbot_core.models.meta import AGE, SCORE
from mlbot_core.models.meta_training import BaseForecasts, stack
from mlbot_core.timeframe import Market
from mlbot_core.warehouse import Warehouse

_PAUSE_S: Final = 0.25


@dataclass(frozen=True, eq=False)
class Stacked:
    """The base forecasts of one bar.

    Parameters
    ----------
    X
        One row: ``NAME_score`` and ``NAME_age`` of every base.
    inputs
        One a base, with the score as it entered.
    disagreement
        Standard deviation of the scores that are present, barrier widths; NaN where none is.
    """

    X: pd.DataFrame
    inputs: tuple[Input, ...]
    disagreement: float

    @property
    def awaited(self) -> tuple[str, ...]:
        """Bases whose newest forecast is not there."""
        return tuple(one.name for one in self.inputs if one.state == "late")


def newest_bar(base: Base, close_ms: int) -> int:
    """Return the open time of the newest bar of a base that has closed by ``close_ms``, UTC ms."""
    return base.market.timeframe.last_closed(close_ms)


def missing_bases(store: Warehouse, source: str, bases: Sequence[Base], close_ms: int) -> tuple[Base, ...]:
    """Return the bases of which the forecast of their newest closed bar is not stored."""
    return tuple(base for base in bases if not _stored(store, source, base, newest_bar(base, close_ms)))


def wait_for(store: Warehouse, source: str, bases: Sequence[Base], close_ms: int, until_ms: int) -> tuple[Base, ...]:
    """Wait for base forecasts of bars that close at ``close_ms`` too; return those that did not come.

    Parameters
    ----------
    until_ms
        The longest to wait, by the store's clock, UTC ms; in the past: not at all.
    """
    coincident = [base for base in bases if newest_bar(base, close_ms) + base.market.timeframe.ms == close_ms]
    while True:
        missing = missing_bases(store, source, coincident, close_ms)
        if not missing or store.clock.now_ms() + _PAUSE_S * 1000 > until_ms:
            return missing
        store.clock.sleep(_PAUSE_S)


def stack_bar(
    store: Warehouse,
    source: str,
    market: Market,
    ts: int,
    bases: Sequence[Base],
    max_age_bars: int,
    *,
    with_late: bool,
) -> Stacked:
    """Stack what is stored of the bases at the close of one bar.

    Parameters
    ----------
    max_age_bars
        Of the meta-model's parameters.
    with_late
        Take forecasts that were made of late data too, as a late signal does; a decision has none of those.
    """
    close = ts + market.timeframe.ms
    found: list[BaseForecasts] = []
    seen: dict[str, dict[int, Signal]] = {}
    for base in bases:
        slower = max(market.timeframe.ms, base.market.timeframe.ms)
        first = close - (max_age_bars + 1) * slower - base.market.timeframe.ms
        rows = read_signals(
            store, source, base.market, first, close - base.market.timeframe.ms + 1,
            model_type=base.model_type, model_version=base.version,
        )  # fmt: skip
        said = [one for one in rows if with_late or not one.late]
        seen[base.name] = {one.key.ts: one for one in said}
        score = [one.forecast["score"] if one.usable or one.late else math.nan for one in said]
        stamps = np.array([one.key.ts for one in said], dtype=np.int64)
        found.append(BaseForecasts(base.name, base.market, base.version, {}, stamps, np.array(score, dtype=np.float64)))
    X = stack(found, np.array([ts], dtype=np.int64), market.timeframe, max_age_bars)
    inputs = tuple(_input(base, X, seen[base.name], close) for base in bases)
    scores = np.array([one.value for one in inputs if one.value is not None])
    return Stacked(X, inputs, float(scores.std()) if len(scores) else math.nan)


def max_age_of(params: Mapping[str, Any]) -> int:
    """Return how old a base forecast may be, from a meta-model's parameters, bars."""
    return int(params["max_age_bars"])


def _input(base: Base, X: pd.DataFrame, seen: Mapping[int, Signal], close_ms: int) -> Input:
    """Say which of a base's forecasts entered."""
    score, age = float(X[base.name + SCORE].iloc[0]), float(X[base.name + AGE].iloc[0])
    newest = newest_bar(base, close_ms)
    name, timeframe = base.name, str(base.market.timeframe)
    if math.isnan(score):
        state = "absent" if newest not in seen else "silent"
        return Input(name, timeframe, None, None, newest, None, state, base.version)
    known = [ts for ts, one in seen.items() if math.isfinite(one.forecast["score"]) and (one.usable or one.late)]
    at = max(known)
    state = "fresh" if at == newest else "late"
    age_ms = close_ms - at - base.market.timeframe.ms
    assert age >= 0.0
    return Input(name, timeframe, at, seen[at].made_at, newest, age_ms, state, base.version, score)


def _stored(store: Warehouse, source: str, base: Base, ts: int) -> bool:
    key = SignalKey(source, base.market, ts, base.model_type, base.version)
    rows = read_signals(
        store, source, base.market, ts, ts + 1, model_type=key.model_type, model_version=key.model_version
    )
    return bool(rows)
