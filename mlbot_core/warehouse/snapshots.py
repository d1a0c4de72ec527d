"""Named snapshots: an instant S, by a name, with a hash of every version that had been observed by then.

A read that is given ``snapshot_ms`` sees the same rows however much is appended since. The hash proves it: whoever
loads recorded versions with earlier times afterwards, or loses rows, changes what S covers, and is found out.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

import duckdb

from mlbot_core.errors import UsageError
from mlbot_core.market import CATALOGUE
from mlbot_core.warehouse.content import Content, table_content
from mlbot_core.warehouse.store import Warehouse

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")


@dataclass(frozen=True)
class Snapshot:
    """A dataset as it was observed by an instant.

    Parameters
    ----------
    snapshot_ms
        S: versions with ``observed_at <= S`` belong to it, UTC ms.
    created_at
        When it was named, UTC ms.
    content_hash, rows
        Of all versions of all series it covers.
    covers
        The same by series; a series without a row is absent.
    """

    name: str
    snapshot_ms: int
    created_at: int
    content_hash: str
    rows: int
    covers: Mapping[str, Content]


def create_snapshot(store: Warehouse, name: str, snapshot_ms: int | None = None) -> Snapshot:
    """Name the dataset that was observed by ``snapshot_ms`` (default: now) and write down what it covers.

    Raises
    ------
    UsageError
        If the name is taken or not plain, or the instant lies in the future.
    """
    if not _NAME.match(name):
        raise UsageError(f"snapshot {name!r}: use letters, digits, dot, dash and underscore, at most 64")
    now_ms = store.clock.now_ms()
    instant = now_ms if snapshot_ms is None else snapshot_ms
    if instant > now_ms:
        raise UsageError(f"snapshot {name!r}: {instant} lies in the future, when nothing has been observed yet")
    with store.copied() as con:
        covers = _covers(con, instant)
    made = Snapshot(name, instant, now_ms, _combined(covers), sum(c.rows for c in covers.values()), covers)
    text = json.dumps({series: [content.rows, content.hash] for series, content in covers.items()}, sort_keys=True)
    with store.write() as con:
        if con.execute("SELECT 1 FROM snapshots WHERE name = ?", [name]).fetchone():
            raise UsageError(f"there is a snapshot {name!r} already; choose another name (mlbot db snapshots)")
        con.execute(
            "INSERT INTO snapshots VALUES (?, ?, ?, ?, ?, ?)",
            [name, instant, now_ms, made.content_hash, made.rows, text],
        )
    return made


def snapshots(con: duckdb.DuckDBPyConnection) -> list[Snapshot]:
    """Return every named snapshot, oldest first."""
    rows = con.execute(
        "SELECT name, snapshot_ms, created_at, content_hash, rows, covers FROM snapshots ORDER BY created_at, name"
    ).fetchall()
    return [
        Snapshot(
            str(name), int(instant), int(created), str(digest), int(count),
            {series: Content(int(n), str(h)) for series, (n, h) in json.loads(covers).items()},
        )
        for name, instant, created, digest, count, covers in rows
    ]  # fmt: skip


def snapshot(con: duckdb.DuckDBPyConnection, name: str) -> Snapshot:
    """Return a named snapshot.

    Raises
    ------
    UsageError
        If there is none of that name.
    """
    every = snapshots(con)
    for found in every:
        if found.name == name:
            return found
    names = ", ".join(one.name for one in every) or "none"
    raise UsageError(f"there is no snapshot {name!r}; stored are: {names} (mlbot db snapshot NAME makes one)")


def changed_since(con: duckdb.DuckDBPyConnection, found: Snapshot) -> dict[str, tuple[int, int]]:
    """Return the series whose covered rows are no longer what they were: rows then and now. Empty: it still holds."""
    now = _covers(con, found.snapshot_ms)
    empty = Content(0, "")
    return {
        series: (found.covers.get(series, empty).rows, now.get(series, empty).rows)
        for series in sorted({*found.covers, *now})
        if found.covers.get(series) != now.get(series)
    }


def _covers(con: duckdb.DuckDBPyConnection, instant: int) -> dict[str, Content]:
    every = {series: table_content(con, series, "observed_at <= ?", (instant,)) for series in CATALOGUE}
    return {series: content for series, content in every.items() if content.rows}


def _combined(covers: Mapping[str, Content]) -> str:
    text = json.dumps({series: content.hash for series, content in covers.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
