"""What every model says of the newest closed bar, stored once: with or without trading.

The row of a bar is computed from its lookback alone, as of its decision time; each model is asked with exactly the
bytes that are stored; the meta-models last, once the forecasts of timeframes that close at the same moment are there
or have been waited for long enough. The same bar asked again, by whomever, gives what is stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mlbot_core.clock import format_utc
from mlbot_core.config import Settings, TargetConfig
from mlbot_core.config.models import META_MODEL
from mlbot_core.decision.edges import FULL_SIZE, edge_of
from mlbot_core.errors import MissingDataError, UsageError
from mlbot_core.features.sets import configured_set
from mlbot_core.live.asking import ask, served_features, usable_rows
from mlbot_core.live.chosen import Base, Refused, Speaker, load_cast, stacked_by
from mlbot_core.live.code import Code, code_now
from mlbot_core.live.pull import wanted_series
from mlbot_core.live.rows import MIN_KNOWN, BarRow, Input, Moment, compute_row, read_bar
from mlbot_core.live.signal_store import Signal, SignalKey, read_signals, write_signals
from mlbot_core.live.stacking import Stacked, max_age_of, missing_bases, newest_bar, stack_bar, wait_for
from mlbot_core.models.loading import Venue
from mlbot_core.models.registry_state import Entry
from mlbot_core.timeframe import Market
from mlbot_core.warehouse import Warehouse


@dataclass(frozen=True)
class Forecasted:
    """What came of forecasting one bar.

    Parameters
    ----------
    decision_ms
        Of the bar, UTC ms.
    signals
        As they stand in the table, the meta-models' last.
    speaking
        By model type, the version that a decision may rest on at ``venue``: as registry and gate said just now.
    refused
        Models that could not be loaded.
    awaited
        Base forecasts that were waited for and did not come.
    made
        How many of the signals are new; the others stood already.
    """

    source: str
    market: Market
    ts: int
    decision_ms: int
    venue: str
    signals: tuple[Signal, ...]
    speaking: Mapping[str, str]
    refused: tuple[Refused, ...]
    awaited: tuple[str, ...]
    made: int

    @property
    def late(self) -> bool:
        """Whether what there is came after the decision time: for the record, never for a decision."""
        return any(one.late for one in self.signals)

    def of(self, model_type: str) -> Signal | None:
        """Return what the model of a type that may speak said; None if it said nothing."""
        version = self.speaking.get(model_type)
        return next((one for one in self.signals if one.key.model_version == version), None)

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "source": self.source,
            "market": str(self.market),
            "bar": format_utc(self.ts),
            "decision_time": format_utc(self.decision_ms),
            "venue": self.venue,
            "late": self.late,
            "speaking": dict(self.speaking),
            "signals": [one.as_json() for one in self.signals],
            "refused": [{"model": str(one.slot), "version": one.version, "reason": one.reason} for one in self.refused],
            "awaited": list(self.awaited),
        }


@dataclass(frozen=True)
class _Task:
    """What does not change while one bar is forecast."""

    store: Warehouse
    settings: Settings
    moment: Moment
    venue: Venue
    run_id: str
    code: Code

    @property
    def source(self) -> str:
        return self.moment.source

    @property
    def market(self) -> Market:
        return self.moment.market


def forecast_newest(
    store: Warehouse,
    settings: Settings,
    source: str,
    market: Market,
    ts: int | None = None,
    *,
    venue: Venue | None = None,
    run_id: str,
    wait_s: float | None = None,
    make_others: bool = False,
) -> Forecasted:
    """Forecast a closed bar with every model of its market, and store what they say; what is stored stands.

    Parameters
    ----------
    source
        Where the bars come from.
    ts
        Open time of the bar, UTC ms; by default the newest closed one.
    venue
        Where it is to be traded; by default as configured. Decides who may speak.
    wait_s
        How long to wait for forecasts of other timeframes that close at the same moment, seconds after the decision
        time; by default as configured. An old bar waits for nothing.
    make_others
        Make what is missing of other timeframes' base forecasts here, from what is stored; for whoever runs alone.

    Raises
    ------
    MissingDataError
        If no model is registered, or the bar is not stored.
    QualityRefusedError
        If a month in its lookback failed a check.
    UsageError
        If the bar has not closed yet, or is off the grid.
    """
    clock = store.clock
    delay = settings.intervals.settle_delay_ms(source)
    now = clock.now_ms()
    opened = market.timeframe.last_closed(now) if ts is None else ts
    if opened % market.timeframe.ms or not market.timeframe.is_closed(opened, now):
        raise UsageError(
            f"no closed bar of {market} opens at {format_utc(opened)} (now {format_utc(now)}); give the open time of a "
            "closed bar"
        )
    moment = Moment(source, market, opened, delay)
    at = venue or settings.execution.venue
    # loading takes a while: what can be done before the decision time is
    cast = load_cast(settings, clock, source, market, at)
    # whoever comes early would not see what becomes known until then, and a replay would
    while (left := moment.decision_ms - clock.now_ms()) > 0:
        clock.sleep(left / 1000)
    task = _Task(store, settings, moment, at, run_id, code_now())
    signals, made = _forecast_own(task, [one for one in cast.speakers if not _is_meta(one)])
    metas = [one for one in cast.speakers if _is_meta(one)]
    stood = {one.key.model_version: one for one in read_signals(store, source, market, opened, opened + 1)}
    awaited: tuple[str, ...] = ()
    unmade = [one for one in metas if one.entry.version not in stood]
    if unmade:
        bases = list({base.name: base for one in unmade for base in stacked_by(one.entry)}.values())
        if make_others:
            _make_others(task, bases)
        fresh = moment.decision_ms + market.timeframe.ms > clock.now_ms()
        patience = settings.execution.wait_for_others_s if wait_s is None else wait_s
        until = moment.decision_ms + round(patience * 1000) if fresh else 0
        close = opened + market.timeframe.ms
        awaited = tuple(base.name for base in wait_for(store, source, bases, close, until))
        own = _own_row(task, [one.entry for one in unmade])
        new = [_meta_signal(task, one, own) for one in unmade]
        stands = write_signals(store, new, task.code)
        made += sum(a.digest == b.digest for a, b in zip(new, stands, strict=True))
        stood |= {one.key.model_version: one for one in stands}
    signals += [stood[one.entry.version] for one in metas]
    return Forecasted(
        source, market, opened, moment.decision_ms, at, tuple(signals), cast.speaking(), cast.refused, awaited, made
    )


def _is_meta(speaker: Speaker) -> bool:
    return speaker.entry.slot.model_type == META_MODEL


def _forecast_own(task: _Task, speakers: Sequence[Speaker]) -> tuple[list[Signal], int]:
    """Return the signals of models of the market's own features, in the order of ``speakers``, and how many are new."""
    ts = task.moment.ts
    stood = {one.key.model_version: one for one in read_signals(task.store, task.source, task.market, ts, ts + 1)}
    unmade = [one for one in speakers if one.entry.version not in stood]
    made = 0
    if unmade:
        rows = 1 + max(one.loaded.model.context_bars for one in unmade)
        row = _row(task, rows)
        served = _served(task, [one.entry for one in unmade], row)
        new = [_signal(task, one, row, served[one.entry.version]) for one in unmade]
        stands = write_signals(task.store, new, task.code)
        made = sum(a.digest == b.digest for a, b in zip(new, stands, strict=True))
        stood |= {one.key.model_version: one for one in stands}
    return [stood[one.entry.version] for one in speakers], made


def _row(task: _Task, rows: int) -> BarRow:
    """Return the bar as of its decision time; where it came later, as of now and marked late."""
    features = configured_set(task.settings.models.features)
    names = wanted_series(task.store, task.source, task.settings, task.market, task.run_id)
    moments = [task.moment]
    now = task.store.clock.now_ms()
    if now > task.moment.decision_ms:
        moments.append(replace(task.moment, seen_ms=now, snapshot_ms=now))
    problem: MissingDataError | None = None
    for moment in moments:
        with task.store.read() as con:
            series = read_bar(con, moment, features, names, rows)
        try:
            row = compute_row(series, moment, features, rows)
        except MissingDataError as error:
            problem = problem or error
            continue
        return row
    assert problem is not None
    raise problem


def _served(task: _Task, entries: Sequence[Entry], row: BarRow) -> dict[str, npt.NDArray[np.bool_]]:
    return served_features(
        task.store, task.settings, task.source, task.market, entries, [str(name) for name in row.features.columns]
    )


def _signal(task: _Task, speaker: Speaker, row: BarRow, served: npt.NDArray[np.bool_]) -> Signal:
    """Ask one model of the market's own features."""
    model = speaker.loaded.model
    count = 1 + model.context_bars
    X = row.features.iloc[-count:]
    late = row.late_rows[-count:]
    usable, share = usable_rows(X.to_numpy(dtype=np.float64), served, late, keep_late=row.moment.late)
    ordered = X[list(model.feature_names)]
    vector = np.ascontiguousarray(ordered.to_numpy(dtype=np.float64))
    said = ask(model, vector, model.feature_names, ordered.index, ~usable)
    details = {
        "feature_hash": configured_set(task.settings.models.features).hash,
        "settle_delay_ms": task.moment.settle_delay_ms,
        "served": [name for name, there in zip(X.columns, served, strict=True) if there],
        "known_share": share,
        "blank": [int(x) for x in ~usable],
    }
    why = _why(row, bool(usable[-1]), share)
    return _made(task, speaker, row, said, vector, row.inputs, why, details)


def _meta_signal(task: _Task, speaker: Speaker, own: dict[str, tuple[BarRow, bool, float]]) -> Signal:
    """Ask one meta-model, with the base forecasts that stood at the bar's close."""
    model, entry = speaker.loaded.model, speaker.entry
    row, usable, share = own[entry.version]
    bases = stacked_by(entry)
    max_age = max_age_of(entry.registration.inputs["params"])
    stacked = stack_bar(task.store, task.source, task.market, task.moment.ts, bases, max_age, with_late=row.moment.late)
    ordered = stacked.X[list(model.feature_names)]
    vector = np.ascontiguousarray(ordered.to_numpy(dtype=np.float64))
    said = ask(model, vector, model.feature_names, ordered.index, np.array([not usable]))
    details = {
        "settle_delay_ms": task.moment.settle_delay_ms,
        "known_share": share,
        "blank": [int(not usable)],
        "disagreement": stacked.disagreement if math.isfinite(stacked.disagreement) else None,
        "max_age_bars": max_age,
    }
    inputs = (*stacked.inputs, *(one for one in row.inputs if one.state in ("late", "silent")))
    return _made(task, speaker, row, said, vector, inputs, _why_meta(row, usable, share, stacked), details)


def _own_row(task: _Task, metas: Sequence[Entry]) -> dict[str, tuple[BarRow, bool, float]]:
    """Return the bar and whether enough of it was known in time: on others a meta-model was not trained either."""
    row = _row(task, 1)
    served = _served(task, metas, row)
    found = {}
    for entry in metas:
        matrix = row.features.to_numpy(dtype=np.float64)
        usable, share = usable_rows(matrix, served[entry.version], row.late_rows, keep_late=row.moment.late)
        found[entry.version] = (row, bool(usable[-1]), share)
    return found


def _made(
    task: _Task,
    speaker: Speaker,
    row: BarRow,
    said: Mapping[str, float],
    vector: npt.NDArray[np.float64],
    inputs: Sequence[Input],
    reason: str,
    details: Mapping[str, Any],
) -> Signal:
    entry = speaker.entry
    width = row.width(TargetConfig.model_validate(entry.registration.inputs["targets"]))
    edge = edge_of(float(said["score"]), width)
    late = row.moment.late
    return Signal(
        key=SignalKey(task.source, task.market, task.moment.ts, entry.slot.model_type, entry.version),
        role=speaker.role,
        forecast=said,
        width=width,
        edge=edge,
        multiplier=FULL_SIZE,
        usable=math.isfinite(edge) and not late,
        late=late,
        reason=reason,
        decision_ms=task.moment.decision_ms,
        known_by_ms=row.moment.known_by_ms,
        made_at=task.store.clock.now_ms(),
        run_id=task.run_id,
        code=task.code.version,
        vector=vector,
        inputs=tuple(inputs),
        details=dict(details),
    )


def _why(row: BarRow, usable: bool, share: float) -> str:
    """Say what stale inputs did."""
    stale = {state: [one.name for one in row.inputs if one.state == state] for state in ("late", "silent", "absent")}
    parts = [f"{', '.join(names)} {word}" for word, names in stale.items() if names]
    if row.moment.late:
        parts.insert(0, f"made late, of what was known by {format_utc(row.moment.known_by_ms)}: for the record only")
    elif stale["late"]:
        parts.append("no forecast: a row with late values has none in a backtest either")
    elif not usable:
        parts.append(f"no forecast: {share:.0%} of the features are known, at least {MIN_KNOWN:.0%} are needed")
    return "; ".join(parts)


def _why_meta(row: BarRow, usable: bool, share: float, stacked: Stacked) -> str:
    parts = [_why(row, usable, share)]
    older = [one for one in stacked.inputs if one.state == "late"]
    if older:
        told = ", ".join(f"{one.name} (of the bar {format_utc(one.ts or 0)})" for one in older)
        parts.append(f"older base forecasts stand in, with their ages: {told}")
    gone = [one.name for one in stacked.inputs if one.value is None]
    if gone:
        parts.append(f"without {', '.join(gone)}")
    return "; ".join(part for part in parts if part)


def _make_others(task: _Task, bases: Sequence[Base]) -> None:
    """Make the base forecasts of other timeframes that are missing, as their own runs would."""
    close = task.moment.ts + task.market.timeframe.ms
    missing = missing_bases(task.store, task.source, [b for b in bases if b.market != task.market], close)
    for market in sorted({base.market for base in missing}):
        mine = [base for base in missing if base.market == market]
        cast = load_cast(task.settings, task.store.clock, task.source, market, task.venue)
        wanted = {base.version for base in mine}
        speakers = [one for one in cast.speakers if one.entry.version in wanted]
        other = replace(task, moment=replace(task.moment, market=market, ts=newest_bar(mine[0], close)))
        try:
            _forecast_own(other, speakers)
        except MissingDataError:
            # it is missing among the inputs of the meta-model, which says so
            continue
