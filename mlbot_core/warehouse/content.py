"""A hash of what a table holds: the same rows give the same hash on any machine, in whatever order they lie.

Each value is mixed to 64 bits with its column's name, the values of a row are added and mixed again, and two different
mixtures of the rows are added up (modulo 2^64). A missing value adds nothing, so a column that is added later and has
no values yet changes nothing. This finds accidents (lost, doubled or changed rows), it is no defence against forgery.
The mixer is splitmix64: Steele, Lea, Flood, Fast splittable pseudorandom number generators, OOPSLA 2014.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mlbot_core.errors import WarehouseError

_Words = npt.NDArray[np.uint64]
_BATCH_ROWS = 200_000
_SECOND = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Content:
    """How many rows a table holds, and the hash of what is in them."""

    rows: int
    hash: str


def table_content(
    con: duckdb.DuckDBPyConnection, table: str, where: str = "TRUE", args: tuple[Any, ...] = ()
) -> Content:
    """Return the content of a table (or of the rows that fulfil a condition), read in batches.

    Raises
    ------
    WarehouseError
        If a column has a type that the store does not use.
    """
    reader = con.execute(f"SELECT * FROM {table} WHERE {where}", list(args)).to_arrow_reader(_BATCH_ROWS)
    rows, first, second = 0, np.uint64(0), np.uint64(0)
    with np.errstate(over="ignore"):
        for batch in reader:
            words = _rows(batch)
            rows += len(words)
            first += words.sum(dtype=np.uint64)
            second += _mix(words ^ _SECOND).sum(dtype=np.uint64)
    return Content(rows, hashlib.sha256(f"{rows}:{first}:{second}".encode()).hexdigest()[:32])


def _rows(batch: pa.RecordBatch) -> _Words:
    total = np.zeros(batch.num_rows, dtype=np.uint64)
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        seed = np.uint64(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))
        mixed = _mix(_mix(_words(name, column)) + seed)
        mixed[np.asarray(column.is_null().to_numpy(zero_copy_only=False), dtype=np.bool_)] = 0
        total += mixed
    return _mix(total)


def _words(name: str, column: pa.Array) -> _Words:
    """Return 64 bits a value; those of missing values do not matter."""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        coded = column.dictionary_encode()
        texts = [hashlib.sha256(str(text).encode()).digest()[:8] for text in coded.dictionary.to_pylist()]
        known = np.frombuffer(b"".join(texts) or bytes(8), dtype="<u8").astype(np.uint64)
        return known[np.asarray(coded.indices.fill_null(0).to_numpy(zero_copy_only=False), dtype=np.int64)]
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        digests = [hashlib.sha256(value or b"").digest()[:8] for value in column.to_pylist()]
        return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)
    if pa.types.is_floating(kind):
        values = np.array(column.fill_null(0.0).to_numpy(zero_copy_only=False), dtype=np.float64)
        values[np.isnan(values)] = np.nan
        return (values + 0.0).view(np.uint64)
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        empty = False if pa.types.is_boolean(kind) else 0
        whole = np.asarray(column.fill_null(empty).to_numpy(zero_copy_only=False), dtype=np.int64)
        return whole.view(np.uint64)
    raise WarehouseError(f"column {name} has type {kind}, which the store does not use")


def _mix(words: _Words) -> _Words:
    """Return the finalizer of splitmix64 of each word."""
    mixed = words + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)), dtype=np.uint64)
