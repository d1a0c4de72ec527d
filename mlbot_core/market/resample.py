"""Longer bars from shorter ones, by the rules of the series catalogue."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mlbot_core.errors import UsageError
from mlbot_core.market.batch import column, make_table
from mlbot_core.market.catalogue import Resample, series_spec
from mlbot_core.timeframe import Timeframe

_Matrix = npt.NDArray[np.float64]
_Stamps = npt.NDArray[np.int64]

MISSING: Final = -1


def resample(table: pa.Table, series: str, source: Timeframe, target: Timeframe) -> pa.Table:
    """Return the bars of ``target`` that follow from a batch table of ``source`` bars.

    A longer bar exists only once ALL its children do. With one version per child it is observed when the last
    of them was (``observed_at`` = the maximum). With several versions per child the longer bar gets a version at
    every moment at which a child was seen or changed, made of the children's versions as of that moment.

    Parameters
    ----------
    table
        Batch table of ``series`` (see :mod:`mlbot_core.market.batch`), sorted by (ts, observed_at).
    series
        Name in the catalogue; its columns say how they combine (first, max, min, last, sum).
    source, target
        Timeframe of the rows and of the result; ``target`` is a multiple of ``source``.

    Returns
    -------
    pyarrow.Table
        Batch table of ``series``. A value is null where any of its children is.

    Raises
    ------
    UsageError
        If ``target`` is not a multiple of ``source``.
    """
    spec = series_spec(series)
    if target.ms % source.ms:
        raise UsageError(f"{series}: bars of {source} do not make bars of {target}; choose a multiple of {source}")
    if target == source:
        return table
    ts, observed = column(table, "ts"), column(table, "observed_at")
    children = target.ms // source.ms
    parents, events = _events(ts, observed, target)
    at = _versions_as_of(ts, observed, parents, events, source, children)
    complete = (at != MISSING).all(axis=1)
    parents, events, at = parents[complete], events[complete], at[complete]
    values = {
        col.name: _reduce(col.resample, _floats(table, col.name)[at])
        for col in spec.columns
        if table.column(col.name).null_count < table.num_rows
    }
    return make_table(series, parents, events, values)


def _events(ts: _Stamps, observed: _Stamps, target: Timeframe) -> tuple[_Stamps, _Stamps]:
    """Return each (parent bar, moment at which one of its children was seen or changed), once, sorted."""
    pairs = np.unique(np.stack([ts - ts % target.ms, observed], axis=1), axis=0)
    return np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])


def _versions_as_of(
    ts: _Stamps, observed: _Stamps, parents: _Stamps, events: _Stamps, source: Timeframe, children: int
) -> npt.NDArray[np.intp]:
    """Return per (event, child) the row of the newest version seen by then, or MISSING."""
    if len(ts) == 0:
        return np.empty((0, children), dtype=np.intp)
    moments = np.unique(observed)
    origin = int(parents[0])
    # one sortable number per version: its bar, then the rank of the moment at which it was seen
    width = len(moments)
    keys = (ts - origin) // source.ms * width + np.searchsorted(moments, observed)
    bars = (parents - origin)[:, None] // source.ms + np.arange(children)[None, :]
    wanted = bars * width + np.searchsorted(moments, events)[:, None]
    at = np.searchsorted(keys, wanted, side="right") - 1
    found = (at >= 0) & (keys[at] // width == bars)
    return np.where(found, at, MISSING)


def _floats(table: pa.Table, name: str) -> _Matrix:
    return np.asarray(table.column(name).to_numpy(zero_copy_only=False), dtype=np.float64)


def _reduce(rule: Resample, values: _Matrix) -> _Matrix:
    """Combine the children (axis 1); NaN in one of them makes NaN."""
    if rule == "first":
        return values[:, 0]
    if rule == "last":
        return values[:, -1]
    if rule == "max":
        return np.asarray(values.max(axis=1))
    if rule == "min":
        return np.asarray(values.min(axis=1))
    return np.asarray(values.sum(axis=1))
