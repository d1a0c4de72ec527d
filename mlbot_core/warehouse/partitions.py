"""What was written when, and whether it was found good: rows that every consumer reads and obeys.

A check shown by an orchestrator does not hold back a run that somebody launches on its own. So each verdict is a row
for (asset, source, partition, check, data version), and consumers refuse what failed or was never checked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from mlbot_core.errors import MissingDataError, QualityRefusedError
from mlbot_core.market.quality import ADVISORY_CHECKS, BLOCKING_CHECKS


@dataclass(frozen=True, order=True)
class PartitionKey:
    """An asset's partition of one source, for example ``price``, ``archive``, ``BTC-2h|2024-03-01``."""

    asset: str
    source: str
    partition: str


@dataclass(frozen=True)
class Verdict:
    """The outcome of one check of one partition.

    Parameters
    ----------
    detail
        Plain values for people: counts, bounds, the first offender.
    """

    check: str
    passed: bool
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PartitionOutcome:
    """What making one partition came to.

    Parameters
    ----------
    checks
        Verdicts; consumers require some of them, refuse what failed a blocking one, and leave the advisory ones to
        people.
    info
        Plain facts about the data: stored timeframe, first and last bar, hash of the configuration ...
    """

    key: PartitionKey
    rows: int
    version: str
    checks: tuple[Verdict, ...]
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every check passed that is not advisory."""
        return all(check.passed for check in self.checks if check.check not in ADVISORY_CHECKS)


@dataclass(frozen=True)
class Accepted:
    """A partition that a consumer may use: its data version and what was written down about it."""

    version: str
    rows: int
    info: Mapping[str, Any]


def data_version(table: pa.Table) -> str:
    """Return a hash of the content of a table: same rows in the same order, same text, on any machine."""
    digest = hashlib.sha256()
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        digest.update(f"{name}:{column.type}:{len(column)};".encode())
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            digest.update(json.dumps(column.to_pylist()).encode())
            continue
        nulls = np.asarray(column.is_null().to_numpy(zero_copy_only=False), dtype=np.uint8)
        digest.update(nulls.tobytes())
        filled = column.fill_null(False if pa.types.is_boolean(column.type) else 0)
        digest.update(np.ascontiguousarray(filled.to_numpy(zero_copy_only=False)).tobytes())
    return digest.hexdigest()[:16]


def record_partition(con: duckdb.DuckDBPyConnection, outcome: PartitionOutcome, *, now_ms: int, run_id: str) -> None:
    """Write down that a partition was made, and its verdicts, in the transaction that made it."""
    key = outcome.key
    where = [key.asset, key.source, key.partition]
    con.execute(
        "INSERT INTO partitions VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [*where, outcome.version, outcome.rows, _json(outcome.info), now_ms, run_id],
    )
    rows = [
        [*where, check.check, outcome.version, bool(check.passed), _json(check.detail), now_ms, run_id]
        for check in outcome.checks
    ]
    if rows:
        places = ", ".join(["(?, ?, ?, ?, ?, ?, ?, ?, ?)"] * len(rows))
        con.execute(f"INSERT INTO quality VALUES {places}", [value for row in rows for value in row])


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(dict(values), default=str, sort_keys=True)


def verdicts(con: duckdb.DuckDBPyConnection, key: PartitionKey) -> tuple[str | None, dict[str, Verdict]]:
    """Return the newest data version of a partition and the newest verdict of each check on that version."""
    row = con.execute(
        "SELECT data_version FROM partitions WHERE asset = ? AND source = ? AND partition = ? "
        "ORDER BY written_at DESC, rowid DESC LIMIT 1",
        [key.asset, key.source, key.partition],
    ).fetchone()
    if row is None:
        return None, {}
    found = con.execute(
        "SELECT check_name, passed, detail FROM quality WHERE asset = ? AND source = ? AND partition = ? "
        "AND data_version = ? ORDER BY checked_at, rowid",
        [key.asset, key.source, key.partition, row[0]],
    ).fetchall()
    return str(row[0]), {name: Verdict(name, passed, json.loads(detail)) for name, passed, detail in found}


def recorded(con: duckdb.DuckDBPyConnection, key: PartitionKey) -> tuple[PartitionOutcome, int] | None:
    """Return the newest outcome of a partition as it was written down, and when (UTC ms); None if it was never made."""
    row = con.execute(
        "SELECT rows, info, written_at FROM partitions WHERE asset = ? AND source = ? AND partition = ? "
        "ORDER BY written_at DESC, rowid DESC LIMIT 1",
        [key.asset, key.source, key.partition],
    ).fetchone()
    version, found = verdicts(con, key)
    if row is None or version is None:
        return None
    return PartitionOutcome(key, int(row[0]), version, tuple(found.values()), json.loads(row[1])), int(row[2])


def require(
    con: duckdb.DuckDBPyConnection,
    asset: str,
    source: str,
    partitions: Sequence[str],
    checks: Sequence[str],
) -> dict[str, Accepted]:
    """Refuse input that is missing, failed a check or was never checked; return what each partition holds.

    Verdicts beyond ``checks`` are obeyed too where they block (:data:`~mlbot_core.market.quality.BLOCKING_CHECKS`).

    Raises
    ------
    MissingDataError
        If a partition was never made.
    QualityRefusedError
        If a check failed on the stored data version, or has no verdict for it.
    """
    return require_many(con, {asset: partitions}, source, partitions, checks)[asset]


def require_many(
    con: duckdb.DuckDBPyConnection,
    wanted: Mapping[str, Sequence[str]],
    source: str,
    needed: Sequence[str],
    checks: Sequence[str],
) -> dict[str, dict[str, Accepted]]:
    """Do what :func:`require` does for several assets in two queries.

    Parameters
    ----------
    wanted
        Partitions by asset; of these, those that were never made are left out unless they are needed.
    needed
        Partitions that must have been made.

    Returns
    -------
    dict
        What each partition holds, by asset and partition.

    Raises
    ------
    MissingDataError
        If a needed partition was never made.
    QualityRefusedError
        If a check failed on the stored data version, or has no verdict for it.
    """
    every = sorted({partition for partitions in wanted.values() for partition in partitions})
    newest = _newest(con, list(wanted), source, every)
    versions = {part.version for part in newest.values()}
    outcomes = _outcomes(con, list(wanted), source, every, versions)
    accepted: dict[str, dict[str, Accepted]] = {}
    for asset, partitions in wanted.items():
        made = {p: newest[asset, p] for p in partitions if (asset, p) in newest}
        missing = [p for p in partitions if p not in made and p in needed]
        if missing:
            raise MissingDataError(
                f"{asset} from {source} has no data for {_few(missing)}; materialize it first "
                f"({'mlbot train' if asset == 'forecasts' else 'mlbot backfill'}), then run this again"
            )
        problems = [
            problem
            for partition, part in made.items()
            for problem in _problems(
                partition, part.version, outcomes.get((asset, partition, part.version), {}), checks
            )
        ]
        if problems:
            raise QualityRefusedError(
                f"{asset} from {source} is not fit for use: {_few(problems)}; "
                "repair the source or its bounds in config/intervals.yaml and materialize it again"
            )
        accepted[asset] = made
    return accepted


def _problems(
    partition: str, version: str, outcomes: Mapping[str, tuple[bool, str]], checks: Sequence[str]
) -> list[str]:
    """Return why a consumer that requires ``checks`` refuses a version of a partition."""
    found = [f"{partition}: {check} was never run on version {version}" for check in checks if check not in outcomes]
    obeyed = [*checks, *(check for check in BLOCKING_CHECKS if check not in checks)]
    failed = [(check, outcomes[check][1]) for check in obeyed if check in outcomes and not outcomes[check][0]]
    return found + [f"{partition}: {check} failed ({detail})" for check, detail in failed]


def made_partitions(con: duckdb.DuckDBPyConnection, asset: str, source: str) -> list[str]:
    """Return the partitions of an asset that were ever made, ascending."""
    rows = con.execute(
        "SELECT DISTINCT partition FROM partitions WHERE asset = ? AND source = ? ORDER BY 1", [asset, source]
    ).fetchall()
    return [str(row[0]) for row in rows]


def _newest(
    con: duckdb.DuckDBPyConnection, assets: Sequence[str], source: str, partitions: Sequence[str]
) -> dict[tuple[str, str], Accepted]:
    """Return the newest outcome of each partition that was made, by asset and partition."""
    rows = con.execute(
        """
        SELECT asset, partition, data_version, rows, info FROM partitions
        WHERE asset IN (SELECT unnest(?)) AND source = ? AND partition IN (SELECT unnest(?))
        QUALIFY row_number() OVER (PARTITION BY asset, partition ORDER BY written_at DESC, rowid DESC) = 1
        """,
        [list(assets), source, list(partitions)],
    ).fetchall()
    return {
        (str(asset), str(p)): Accepted(str(version), int(count), json.loads(info))
        for asset, p, version, count, info in rows
    }


def _outcomes(
    con: duckdb.DuckDBPyConnection, assets: Sequence[str], source: str, partitions: Sequence[str], versions: set[str]
) -> dict[tuple[str, str, str], dict[str, tuple[bool, str]]]:
    """Return the newest verdict of each check, by asset, partition and data version."""
    rows = con.execute(
        """
        SELECT asset, partition, data_version, check_name, passed, detail FROM quality
        WHERE asset IN (SELECT unnest(?)) AND source = ? AND partition IN (SELECT unnest(?))
          AND data_version IN (SELECT unnest(?))
        QUALIFY row_number() OVER (
            PARTITION BY asset, partition, data_version, check_name ORDER BY checked_at DESC, rowid DESC
        ) = 1
        """,
        [list(assets), source, list(partitions), sorted(versions)],
    ).fetchall()
    found: dict[tuple[str, str, str], dict[str, tuple[bool, str]]] = {}
    for asset, partition, version, check, passed, detail in rows:
        found.setdefault((str(asset), str(partition), str(version)), {})[str(check)] = (bool(passed), str(detail))
    return found


def _few(items: Sequence[str], most: int = 3) -> str:
    shown = "; ".join(items[:most])
    return f"{shown} and {len(items) - most} more" if len(items) > most else shown
