"""The look-ahead test: what is computed on data cut at t must equal, at t, what is computed on everything.

Three cuts, because there are three ways to see the future or to depend on the distant past:

* at the END of ``ts``: a column that reads ahead (a centred window, a global z-score, a back-fill) changes;
* at the START: a column that needs more history than its declared lookback changes;
* in ``known_at``: a join that uses a bar before it was known changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.errors import UsageError
from mlbot_core.features.panel import SettledSeries
from mlbot_core.features.panel_columns import read_margin_ms
from mlbot_core.timeframe import Market

START_TOLERANCE: Final = 1e-9
UNKNOWN_MS: Final = -1
"""In an int64 time column: not known."""

_MAX_VIOLATIONS: Final = 1000

CutKind = Literal["end", "start", "known_at"]
Column = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Violation:
    """One value that changed when data it must not depend on was cut away.

    Parameters
    ----------
    column, ts
        Where: column and open time of the row, UTC ms.
    full_value, cut_value
        Computed on everything, and on the cut data.
    cut, cut_ts
        Which cut, and the open time of the row it was made at, UTC ms.
    """

    column: str
    ts: int
    full_value: float
    cut_value: float
    cut: CutKind
    cut_ts: int


@dataclass(frozen=True)
class TruncationResult:
    """The verdict of a truncation check.

    Parameters
    ----------
    cuts
        How many cuts were made, of all kinds.
    violations
        The first 1,000 changed values.
    violation_count
        How many there are in all.
    compared
        How many values were compared.
    start_bit_equal
        Whether the cuts at the START changed no bit (``passed`` grants them 1e-9 relative); None if there were none.
    """

    cuts: int
    violations: tuple[Violation, ...]
    violation_count: int
    compared: int
    start_bit_equal: bool | None = None

    @property
    def passed(self) -> bool:
        """Nothing changed, and something was compared."""
        return self.violation_count == 0 and self.compared > 0

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns with violations, in order of appearance."""
        return tuple(dict.fromkeys(violation.column for violation in self.violations))


class _Tally:
    def __init__(self) -> None:
        self.cuts = 0
        self.compared = 0
        self.count = 0
        self.violations: list[Violation] = []

    def add(
        self,
        name: str,
        ts: npt.NDArray[np.int64],
        full: Column,
        cut: Column,
        equal: npt.NDArray[np.bool_],
        kind: CutKind,
        cut_ts: int,
    ) -> None:
        self.compared += len(ts)
        self.count += int((~equal).sum())
        for i in np.flatnonzero(~equal)[: max(0, _MAX_VIOLATIONS - len(self.violations))]:
            self.violations.append(Violation(name, int(ts[i]), float(full[i]), float(cut[i]), kind, cut_ts))

    def result(self, start_bit_equal: bool | None) -> TruncationResult:
        return TruncationResult(self.cuts, tuple(self.violations), self.count, self.compared, start_bit_equal)


def truncation_check(
    build: Callable[[pd.DataFrame], pd.DataFrame],
    panel: pd.DataFrame,
    cut_positions: Iterable[int],
    *,
    lookback: int | None = None,
    labels: Mapping[str, Sequence[str]] | None = None,
    timeframe_ms: int | None = None,
    ahead: int | None = None,
) -> TruncationResult:
    """Cut a panel at several rows and compare what is built from the pieces with what is built from all of it.

    At each position ``t`` the END cut builds on ``panel[: t + 1]``; every row of it must equal the full build bit for
    bit (NaN equals NaN). The START cut builds on ``panel[t - lookback : t + 1]`` and compares row ``t`` within 1e-9
    relative; positions with less history than ``lookback`` get no START cut.

    With ``ahead`` the END cut is made inside a window, so that its cost does not grow with the panel: built on
    ``panel[t - lookback : t + 1]`` and on that with ``ahead`` rows more, every common row must be equal bit for bit.
    What looks further ahead than that is caught at row ``t``, which is compared with the build on everything.

    Parameters
    ----------
    build
        Panel to columns: a frame with ``ts`` and the panel's rows.
    panel
        As :func:`mlbot_core.features.panel.build_panel` makes it.
    cut_positions
        Row numbers to cut after.
    lookback
        Declared bars before the current one; None makes no START cuts.
    labels
        For targets: the time column of each label (int64 UTC ms, -1 unknown) and the columns that become known
        with it. A label known by the cut (its time at or before the close of row ``t``) must be equal, one that is
        known later must be missing (NaN, time -1); and START cuts keep the rows after ``t``, which labels need.
    timeframe_ms
        Length of a bar, needed with ``labels``.
    ahead
        Rows after each cut in its window; needs ``lookback``, and with ``labels`` at least as many as they reach.

    Returns
    -------
    TruncationResult

    Raises
    ------
    UsageError
        If a position lies outside the panel, ``labels`` come without ``timeframe_ms``, or ``build`` changes the rows.
    """
    if labels and timeframe_ms is None:
        raise UsageError("labels can only be cut at their time of knowledge with timeframe_ms")
    if ahead is not None and (lookback is None or ahead < 1):
        raise UsageError(f"a window of {ahead} rows ahead needs a lookback, and at least 1 row")
    ts = panel["ts"].to_numpy(dtype=np.int64)
    full = _build(build, panel)
    label_time = {name: time for time, names in (labels or {}).items() for name in (time, *names)}
    tally = _Tally()
    start_bit_equal: bool | None = None
    for t in sorted(set(map(int, cut_positions))):
        if not 0 <= t < len(panel):
            raise UsageError(f"cut position {t} lies outside the panel's {len(panel)} rows")
        tally.cuts += 1
        cut_ts = int(ts[t])
        first, wide = 0, full
        if ahead is not None and lookback is not None:
            first = max(0, t - lookback)
            wide = _build(build, panel.iloc[first : t + 1 + ahead])
        cut = _build(build, panel.iloc[first : t + 1])
        rows = t + 1 - first
        for name in full:
            expected = wide[name][:rows]
            if name in label_time:
                times = wide[label_time[name]][:rows].astype(np.int64)
                known = (times != UNKNOWN_MS) & (times <= cut_ts + (timeframe_ms or 0))
                missing = UNKNOWN_MS if name == label_time[name] else np.nan
                expected = np.where(known, expected, np.asarray(missing, dtype=expected.dtype))
            tally.add(name, ts[first : t + 1], expected, cut[name], _same(expected, cut[name]), "end", cut_ts)
        if lookback is not None and t >= lookback:
            tally.cuts += 1
            if ahead is None:
                piece = _build(build, panel.iloc[t - lookback : (None if labels else t + 1)])
            else:
                piece = wide if labels else cut
            for name in full:
                expected, got = full[name][t : t + 1], piece[name][lookback : lookback + 1]
                same = _same(expected, got)
                start_bit_equal = bool(same.all()) and start_bit_equal is not False
                tally.add(name, ts[t : t + 1], expected, got, same | _close(expected, got), "start", cut_ts)
    return tally.result(start_bit_equal)


def known_at_windows(
    build: Callable[[Mapping[str, SettledSeries], int, int], pd.DataFrame],
    inputs: Mapping[str, SettledSeries],
    market: Market,
    settle_delay_ms: int,
    cut_ts: Iterable[int],
    *,
    lookback: int,
    ahead: int,
) -> TruncationResult:
    """Make the ``known_at`` cut inside a window around each row, so that its cost does not grow with the history.

    Around each row ``t`` two builds: on the series of ``[t - lookback, t + ahead]`` with everything that ever became
    known, and on ``[t - lookback, t]`` with nothing that was not known at ``t``'s decision time. Every common row must
    be equal bit for bit.

    Parameters
    ----------
    build
        ``build(series, start_ms, end_ms)``: a frame with ``ts`` and one row a bar of ``[start_ms, end_ms)``.
    inputs, market, settle_delay_ms, cut_ts
        As in :func:`known_at_check`.
    lookback, ahead
        Bars before and after the row that are looked at.
    """
    step = market.timeframe.ms
    tally = _Tally()
    for moment in sorted(set(map(int, cut_ts))):
        tally.cuts += 1
        start_ms, end_ms = moment - lookback * step, moment + (ahead + 1) * step
        near = {
            name: between(
                one,
                start_ms - read_margin_ms(name, one.timeframe, market.timeframe, settle_delay_ms),
                end_ms,
            )
            for name, one in inputs.items()
        }
        known = moment + step + settle_delay_ms
        wide = build(near, start_ms, end_ms)
        cut = build({name: known_by(one, known) for name, one in near.items()}, start_ms, moment + step)
        ts = cut["ts"].to_numpy(dtype=np.int64)
        for name in cut.columns:
            if name != "ts":
                expected, got = wide[name].to_numpy()[: len(ts)], cut[name].to_numpy()
                tally.add(name, ts, expected, got, _same(expected, got), "known_at", moment)
    return tally.result(None)


def between(series: SettledSeries, start_ms: int, end_ms: int) -> SettledSeries:
    """Return the bars of a series opened in ``[start_ms, end_ms)``."""
    first, last = np.searchsorted(series.ts, [start_ms, end_ms])
    return series.rows(slice(first, last))


def known_by(series: SettledSeries, moment_ms: int) -> SettledSeries:
    """Return the bars of a series that were known at a moment."""
    return series.rows(series.known_at <= moment_ms)


def known_at_check(
    build: Callable[[Mapping[str, SettledSeries]], pd.DataFrame],
    inputs: Mapping[str, SettledSeries],
    market: Market,
    settle_delay_ms: int,
    cut_ts: Iterable[int],
) -> TruncationResult:
    """Forget everything that was not known at a row's decision time and compare that row, bit for bit.

    Parameters
    ----------
    build
        Settled series to a frame with ``ts``: a panel, or features on one.
    inputs
        Settled series by catalogue name.
    market, settle_delay_ms
        Make the decision time of a row: ``ts`` + timeframe + ``settle_delay_ms``.
    cut_ts
        Open times of the rows to check, UTC ms.

    Returns
    -------
    TruncationResult
        A bar of the market's own timeframe that became known late counts as a violation for the rows whose decision
        it missed: those rows have ``late`` set in the panel, or it lies in their window.
    """
    full = build(inputs)
    full_ts = full["ts"].to_numpy(dtype=np.int64)
    tally = _Tally()
    for moment in sorted(set(map(int, cut_ts))):
        known = moment + market.timeframe.ms + settle_delay_ms
        cut = build({name: known_by(series, known) for name, series in inputs.items()})
        here = np.flatnonzero(full_ts == moment)
        there = np.flatnonzero(cut["ts"].to_numpy(dtype=np.int64) == moment)
        if len(here) != 1 or len(there) != 1:
            raise UsageError(f"row {moment} is not in what was built; choose open times of the panel's grid")
        tally.cuts += 1
        for name in full.columns:
            if name == "ts":
                continue
            expected, got = full[name].to_numpy()[here], cut[name].to_numpy()[there]
            tally.add(name, full_ts[here], expected, got, _same(expected, got), "known_at", moment)
    return tally.result(None)


def _build(build: Callable[[pd.DataFrame], pd.DataFrame], panel: pd.DataFrame) -> dict[str, Column]:
    piece = panel.reset_index(drop=True)
    built = build(piece)
    if not np.array_equal(built["ts"].to_numpy(), piece["ts"].to_numpy()):
        raise UsageError("build must return one row for each row of its panel, in order")
    return {str(name): built[name].to_numpy() for name in built.columns if name != "ts"}


def _same(a: Column, b: Column) -> npt.NDArray[np.bool_]:
    """Return where two columns are equal bit for bit, or both NaN."""
    if a.dtype.kind != "f" or b.dtype.kind != "f":
        return np.asarray(a == b, dtype=np.bool_)
    x, y = np.ascontiguousarray(a, dtype=np.float64), np.ascontiguousarray(b, dtype=np.float64)
    return (x.view(np.int64) == y.view(np.int64)) | (np.isnan(x) & np.isnan(y))


def _close(a: Column, b: Column) -> npt.NDArray[np.bool_]:
    if a.dtype.kind != "f" or b.dtype.kind != "f":
        return np.zeros(len(a), dtype=np.bool_)
    return np.isclose(a.astype(np.float64), b.astype(np.float64), rtol=START_TOLERANCE, atol=0.0)
