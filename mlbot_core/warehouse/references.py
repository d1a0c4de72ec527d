"""What else is stored that a series can be compared with.

Made-up markets are compared with nothing but themselves: a source of the same identity, or real data with real data.
"""

from __future__ import annotations

from dataclasses import dataclass

import duckdb
import numpy as np
import numpy.typing as npt

from mlbot_core.timeframe import Month, Timeframe


@dataclass(frozen=True)
class OtherPrices:
    """Newest closes that another source stores: open times (UTC ms, ascending) and values in USD."""

    source: str
    ts: npt.NDArray[np.int64]
    close: npt.NDArray[np.float64]


def stored_identity(con: duckdb.DuckDBPyConnection, source: str) -> str | None:
    """Return which market the stored rows of a source are of: empty for real data, None where nothing says."""
    row = con.execute(
        """
        SELECT json_extract_string(info, '$.identity') AS identity FROM partitions
        WHERE source = ? AND identity IS NOT NULL ORDER BY written_at DESC, rowid DESC LIMIT 1
        """,
        [source],
    ).fetchone()
    return None if row is None else str(row[0])


def typical_price(con: duckdb.DuckDBPyConnection, source: str, symbol: str, month: Month) -> float | None:
    """Return the median close that a source stores for a month, in USD; None where it stores none."""
    row = con.execute(
        "SELECT median(close) FROM price WHERE symbol = ? AND source = ? AND ts >= ? AND ts < ?",
        [symbol, source, month.start_ms, month.end_ms],
    ).fetchone()
    return None if row is None or row[0] is None else float(row[0])


def other_prices(
    con: duckdb.DuckDBPyConnection, source: str, symbol: str, timeframe: Timeframe, month: Month, identity: str
) -> list[OtherPrices]:
    """Return the closes of a month from every other source of the same market."""
    where = "symbol = ? AND timeframe = ? AND ts >= ? AND ts < ?"
    args = [symbol, str(timeframe), month.start_ms, month.end_ms]
    others = con.execute(
        f"SELECT DISTINCT source FROM price WHERE {where} AND source <> ? ORDER BY 1", [*args, source]
    ).fetchall()
    found = []
    for (other,) in others:
        if stored_identity(con, other) != identity:
            continue
        rows = con.execute(
            f"SELECT ts, arg_max(close, observed_at) AS close FROM price WHERE {where} AND source = ? "
            "GROUP BY ts ORDER BY ts",
            [*args, other],
        ).to_arrow_table()
        ts = np.asarray(rows.column("ts").to_numpy(), dtype=np.int64)
        found.append(OtherPrices(str(other), ts, np.asarray(rows.column("close").to_numpy(), dtype=np.float64)))
    return found


def settled_funding(
    con: duckdb.DuckDBPyConnection, source: str, symbol: str, month: Month, identity: str
) -> list[tuple[str, npt.NDArray[np.float64]]]:
    """Return the settled funding of a month (fractions) by source, that of ``source`` itself included."""
    rows = con.execute(
        "SELECT source, rate FROM funding_settled WHERE symbol = ? AND ts >= ? AND ts < ? AND rate IS NOT NULL "
        "ORDER BY source",
        [symbol, month.start_ms, month.end_ms],
    ).to_arrow_table()
    sources = np.asarray(rows.column("source").to_pylist(), dtype=object)
    rates = np.asarray(rows.column("rate").to_numpy(), dtype=np.float64)
    names = [str(name) for name in dict.fromkeys(sources.tolist())]
    return [
        (name, rates[sources == name]) for name in names if name == source or stored_identity(con, name) == identity
    ]
