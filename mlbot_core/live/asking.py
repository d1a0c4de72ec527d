"""How a model is asked about one bar: which rows it is given as known, and what it says.

Training and backtest leave out rows of which too little is known or something came late; the same rule holds here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import duckdb
import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.config import Settings
from mlbot_core.features.dataset import table_name
from mlbot_core.features.sets import configured_set
from mlbot_core.live.rows import MIN_KNOWN
from mlbot_core.models.base import FORECAST, Model
from mlbot_core.models.registry_state import Entry
from mlbot_core.timeframe import Market, Month
from mlbot_core.warehouse import Warehouse
from mlbot_core.warehouse.windows import exists

_FEATURES: Final = "features|"


def served_features(
    store: Warehouse, settings: Settings, source: str, market: Market, entries: Sequence[Entry], names: Sequence[str]
) -> dict[str, npt.NDArray[np.bool_]]:
    """Return, by model version, which features had any value in what the model was trained on; bool[names] each."""
    table = table_name(configured_set(settings.models.features))
    with store.read() as con:
        if not exists(con, table):
            return {entry.version: np.ones(len(names), dtype=np.bool_) for entry in entries}
        return {entry.version: _served_in(con, table, source, market, entry, names) for entry in entries}


def _served_in(
    con: duckdb.DuckDBPyConnection, table: str, source: str, market: Market, entry: Entry, names: Sequence[str]
) -> npt.NDArray[np.bool_]:
    prefix = f"{_FEATURES}{market}|"
    months = sorted(
        Month.parse(key.removeprefix(prefix))
        for key in entry.registration.inputs.get("partitions", {})
        if key.startswith(prefix)
    )
    everything = np.ones(len(names), dtype=np.bool_)
    if not months:
        return everything
    row = con.execute(
        f"SELECT {', '.join(f'count({name}) > 0' for name in names)} FROM {table} "
        "WHERE source = ? AND symbol = ? AND timeframe = ? AND ts >= ? AND ts < ?",
        [source, market.symbol, str(market.timeframe), months[0].start_ms, months[-1].end_ms],
    ).fetchone()
    served = np.array(row, dtype=np.bool_)
    # features that were deleted since then say nothing about what the model was trained on
    return served if served.any() else everything


def usable_rows(
    matrix: npt.NDArray[np.float64], served: npt.NDArray[np.bool_], late: npt.NDArray[np.bool_], *, keep_late: bool
) -> tuple[npt.NDArray[np.bool_], float]:
    """Return which rows a forecast may be made of, and the share of served features that the last one knows.

    Parameters
    ----------
    matrix
        float64[rows, features].
    served
        bool[features]: which count.
    late
        bool[rows]: rows with a value that was not known at their decision.
    keep_late
        Whether such rows are taken all the same, as for a late signal.
    """
    known = np.isfinite(matrix[:, served]).mean(axis=1)
    usable = (known >= MIN_KNOWN) & (keep_late | ~late)
    return np.asarray(usable, dtype=np.bool_), float(known[-1])


def ask(
    model: Model, vector: npt.NDArray[np.float64], names: Sequence[str], index: pd.Index, blank: npt.NDArray[np.bool_]
) -> dict[str, float]:
    """Return what a model says of the last row of a vector; the rows of ``blank`` are given to it as unknown."""
    given = np.where(blank[:, None], np.nan, vector)
    X = pd.DataFrame(given, columns=list(names), index=index)
    said = model.predict(X, np.array([len(X) - 1], dtype=np.int64)).iloc[0]
    return {name: float(said[name]) for name in FORECAST}
