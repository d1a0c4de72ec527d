"""Is the store whole? What holds by construction, looked for in what is there."""

from __future__ import annotations

import json
from dataclasses import dataclass

import duckdb

from mlbot_core.errors import MlbotError
from mlbot_core.market import CATALOGUE, series_spec
from mlbot_core.timeframe import Timeframe
from mlbot_core.warehouse.content import table_content
from mlbot_core.warehouse.merge import stored_version
from mlbot_core.warehouse.schema import columns
from mlbot_core.warehouse.snapshots import changed_since, snapshots
from mlbot_core.warehouse.store import Warehouse

_FEW = 5


@dataclass(frozen=True)
class Examined:
    """One rule: how many things it was looked for in, and the first that break it."""

    rule: str
    looked_at: int
    broken: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing breaks the rule."""
        return not self.broken


def check_store(store: Warehouse) -> list[Examined]:
    """Return what was found in a whole copy of the store; nothing is changed and nobody is held up.

    Raises
    ------
    WarehouseError
        If the file cannot be opened at all.
    """
    with store.copied() as con:
        return [
            _readable(con),
            *_series_rules(con),
            _versions(con),
            _verdicts(con),
            _gaps(con),
            _snapshots(con),
        ]


def _readable(con: duckdb.DuckDBPyConnection) -> Examined:
    """Read every value of every table: DuckDB verifies the checksum of each block it reads."""
    broken, rows = [], 0
    for table in columns(con):
        try:
            rows += table_content(con, table).rows
        except (duckdb.Error, MlbotError) as error:
            broken.append(f"{table}: {str(error).splitlines()[0]}")
    return Examined("every table can be read", rows, tuple(broken))


def _series_rules(con: duckdb.DuckDBPyConnection) -> list[Examined]:
    rules: dict[str, list[str]] = {
        "no version is stored twice": [],
        "no version repeats the one before it": [],
        "no bar was observed before its close": [],
        "known_at lies between close and observation": [],
        "later and live versions are known from when they were seen": [],
        "bars lie on the grid of their timeframe": [],
    }
    total = 0
    for series in CATALOGUE:
        scopes = con.execute(f"SELECT DISTINCT timeframe FROM {series} ORDER BY 1").fetchall()
        for (timeframe,) in scopes:
            step = Timeframe.parse(timeframe).ms
            counts = _counts(con, series, timeframe, step)
            total += counts[0]
            for rule, count in zip(rules, counts[1:], strict=True):
                if count:
                    rules[rule].append(f"{series} {timeframe}: {count} rows")
    return [Examined(rule, total, tuple(broken)) for rule, broken in rules.items()]


def _counts(con: duckdb.DuckDBPyConnection, series: str, timeframe: str, step: int) -> tuple[int, ...]:
    names = series_spec(series).column_names
    same = " AND ".join(f"{name} IS NOT DISTINCT FROM lag({name}) OVER versions" for name in names)
    row = con.execute(
        f"""
        WITH v AS (
            SELECT *, lag(observed_at) OVER versions AS before, {same} AS same FROM {series} WHERE timeframe = ?
            WINDOW versions AS (PARTITION BY symbol, source, ts ORDER BY observed_at)
        )
        SELECT count(*), count(*) FILTER (before = observed_at), count(*) FILTER (before IS NOT NULL AND same),
               count(*) FILTER (observed_at < ts + {step}),
               count(*) FILTER (known_at > observed_at OR known_at < ts + {step}),
               count(*) FILTER (known_at <> observed_at AND (before IS NOT NULL OR capture = 'live')),
               count(*) FILTER (ts % {step} <> 0)
        FROM v
        """,
        [timeframe],
    ).fetchone()
    return tuple(int(value) for value in row) if row is not None else (0,) * 7


def _versions(con: duckdb.DuckDBPyConnection) -> Examined:
    """Compare the newest recorded data version of each raw month with what is stored."""
    rows = con.execute(
        """
        SELECT asset, source, partition, data_version, rows, info FROM partitions WHERE asset IN (SELECT unnest(?))
        QUALIFY row_number() OVER (PARTITION BY asset, source, partition ORDER BY written_at DESC, rowid DESC) = 1
        ORDER BY asset, source, partition
        """,
        [list(CATALOGUE)],
    ).fetchall()
    broken = []
    for asset, source, partition, version, count, info in rows:
        timeframe = json.loads(info).get("timeframe")
        if timeframe is None:
            continue
        found, bars = stored_version(con, asset, source, partition, timeframe)
        if (found, bars) != (version, count):
            broken.append(f"{asset} {source} {partition}: {bars} bars, recorded are {count} of version {version}")
    return Examined("each raw month holds what was judged", len(rows), _first(broken))


def _verdicts(con: duckdb.DuckDBPyConnection) -> Examined:
    rows = con.execute(
        """
        SELECT DISTINCT q.asset, q.source, q.partition, q.data_version FROM quality q
        ANTI JOIN partitions p ON q.asset = p.asset AND q.source = p.source AND q.partition = p.partition
                              AND q.data_version = p.data_version
        ORDER BY ALL
        """
    ).fetchall()
    row = con.execute("SELECT count(*) FROM quality").fetchone()
    broken = [f"{asset} {source} {partition}: version {version}" for asset, source, partition, version in rows]
    return Examined("each verdict is about a partition that was made", int(row[0]) if row else 0, _first(broken))


def _gaps(con: duckdb.DuckDBPyConnection) -> Examined:
    rows = con.execute(
        "SELECT series, source, symbol, timeframe, from_ts, to_ts, filled_at FROM gaps ORDER BY ALL"
    ).fetchall()
    broken = []
    for series, source, symbol, timeframe, from_ts, to_ts, filled_at in rows:
        step = Timeframe.parse(timeframe).ms
        if series not in CATALOGUE or to_ts < from_ts or (to_ts - from_ts) % step:
            broken.append(f"{series} {source} {symbol}-{timeframe}: {from_ts} to {to_ts} is no stretch of bars")
            continue
        stored = con.execute(
            f"SELECT count(DISTINCT ts) FROM {series} WHERE symbol = ? AND source = ? AND timeframe = ? "
            "AND ts BETWEEN ? AND ?",
            [symbol, source, timeframe, from_ts, to_ts],
        ).fetchone()
        whole = stored is not None and stored[0] == (to_ts - from_ts) // step + 1
        if whole != (filled_at is not None):
            state = "open although every bar is stored" if whole else "marked as filled although bars are missing"
            broken.append(f"{series} {source} {symbol}-{timeframe} from {from_ts}: {state}")
    return Examined("gaps are open exactly while bars are missing", len(rows), _first(broken))


def _snapshots(con: duckdb.DuckDBPyConnection) -> Examined:
    every = snapshots(con)
    broken = []
    for one in every:
        for series, (then, now) in changed_since(con, one).items():
            broken.append(f"{one.name}: {series} had {then} rows and has {now}, or other values")
    return Examined("named snapshots hold what they held", len(every), _first(broken))


def _first(broken: list[str]) -> tuple[str, ...]:
    more = len(broken) - _FEW
    return (*broken[:_FEW], f"and {more} more") if more > 0 else tuple(broken)
