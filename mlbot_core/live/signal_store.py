"""The table of signals: what every model said of every bar, with the exact bytes it was asked with; written once.

A row is named by (source, market, bar, model type, model version). Who comes second gets the row that stands, so two
processes at work on one bar agree. A row carries a digest of everything in it.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import duckdb
import numpy as np
import numpy.typing as npt

from mlbot_core.clock import format_utc
from mlbot_core.errors import MissingDataError, WarehouseError
from mlbot_core.live.code import Code
from mlbot_core.live.rows import Input
from mlbot_core.models.base import FORECAST
from mlbot_core.models.canonical import canonical_json, sha256_hex
from mlbot_core.timeframe import Market
from mlbot_core.warehouse import Warehouse
from mlbot_core.warehouse.windows import exists

TABLE: Final = "signals"
CODE_TABLE: Final = "signal_code"

_DDL: Final = f"""
CREATE TABLE IF NOT EXISTS {TABLE} (
    source VARCHAR NOT NULL, symbol VARCHAR NOT NULL, timeframe VARCHAR NOT NULL, ts BIGINT NOT NULL,
    model_type VARCHAR NOT NULL, model_version VARCHAR NOT NULL, role VARCHAR NOT NULL,
    {", ".join(f"{name} DOUBLE" for name in FORECAST)},
    width DOUBLE, edge DOUBLE, multiplier DOUBLE,
    usable BOOLEAN NOT NULL, late BOOLEAN NOT NULL, reason VARCHAR NOT NULL,
    decision_ms BIGINT NOT NULL, known_by_ms BIGINT NOT NULL, made_at BIGINT NOT NULL, run_id VARCHAR NOT NULL,
    code VARCHAR NOT NULL, vector BLOB NOT NULL, vector_rows INTEGER NOT NULL,
    inputs VARCHAR NOT NULL, details VARCHAR NOT NULL, digest VARCHAR NOT NULL
);
CREATE TABLE IF NOT EXISTS {CODE_TABLE} (code VARCHAR NOT NULL, files VARCHAR NOT NULL, first_ms BIGINT NOT NULL);
"""
_KEY: Final = ("source", "symbol", "timeframe", "ts", "model_type", "model_version")
_PLAIN: Final = (
    *_KEY, "role", *FORECAST, "width", "edge", "multiplier", "usable", "late", "reason", "decision_ms", "known_by_ms",
    "made_at", "run_id", "code",
)  # fmt: skip
_COLUMNS: Final = (*_PLAIN, "vector", "vector_rows", "inputs", "details", "digest")


@dataclass(frozen=True)
class SignalKey:
    """The name of a signal.

    Parameters
    ----------
    source, market, ts
        Which bar: its open time, UTC ms.
    model_type, model_version
        Who spoke.
    """

    source: str
    market: Market
    ts: int
    model_type: str
    model_version: str

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "source": self.source,
            "market": str(self.market),
            "ts": self.ts,
            "model_type": self.model_type,
            "model_version": self.model_version,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SignalKey:
        """Read what :meth:`as_json` wrote; more names than that may be there."""
        return cls(
            str(values["source"]),
            Market.parse(str(values["market"])),
            int(values["ts"]),
            str(values["model_type"]),
            str(values["model_version"]),
        )

    @property
    def args(self) -> list[object]:
        """Values of the key's columns."""
        market = self.market
        return [self.source, market.symbol, str(market.timeframe), self.ts, self.model_type, self.model_version]

    def __str__(self) -> str:
        return f"{self.market} {format_utc(self.ts)} {self.model_type} {self.model_version[:12]}"


@dataclass(frozen=True, eq=False)
class Signal:
    """What one model said of one bar.

    Parameters
    ----------
    role
        ``champion``, ``candidate`` (speaks where there is no champion), ``challenger`` (beside a champion) or ``base``
        (only stacked by a meta-model), when it was made. The last two are shadow: nothing trades on them.
    forecast
        The columns of :data:`mlbot_core.models.base.FORECAST`; NaN = no forecast.
    width
        Distance of the main barrier at this bar, log return.
    edge, multiplier
        As the decision function takes them; NaN where there is no forecast.
    usable
        Whether a decision may rest on it: enough was known, and in time.
    late
        Made from what came after the decision time: for the record only.
    reason
        In words, what stale inputs did; empty where nothing was stale.
    decision_ms, known_by_ms, made_at
        The bar's decision time, T of what it rests on, and when it was made, UTC ms.
    run_id
        Which run made it.
    code
        Version of the code that made it.
    vector
        float64[rows, columns], the very numbers that the model was asked with, in the order of its feature names; rows
        before the last are context.
    inputs
        What they rest on, with ages.
    details
        ``feature_hash``, ``settle_delay_ms``, ``served`` (features that the model was trained with values of),
        ``known_share`` of them, ``blank`` (rows that were given to it as unknown); of a meta-model ``disagreement``.
    """

    key: SignalKey
    role: str
    forecast: Mapping[str, float]
    width: float
    edge: float
    multiplier: float
    usable: bool
    late: bool
    reason: str
    decision_ms: int
    known_by_ms: int
    made_at: int
    run_id: str
    code: str
    vector: npt.NDArray[np.float64]
    inputs: tuple[Input, ...]
    details: Mapping[str, Any]

    @property
    def shadow(self) -> bool:
        """Whether nothing may trade on it."""
        return self.role not in ("champion", "candidate")

    @property
    def vector_sha256(self) -> str:
        """SHA-256 of the vector's bytes."""
        return hashlib.sha256(_bytes(self.vector)).hexdigest()

    @property
    def digest(self) -> str:
        """SHA-256 of everything in the signal, floats by their hexadecimal text."""
        plain = {name: _exact(value) for name, value in _row(self).items()}
        return sha256_hex(canonical_json(plain | {"vector": self.vector_sha256}))

    @property
    def stale_inputs(self) -> tuple[str, ...]:
        """Names of the inputs that were not fresh."""
        return tuple(one.name for one in self.inputs if one.state != "fresh")

    def as_json(self) -> dict[str, Any]:
        """Return plain values for people and webhooks; what is not a number is None."""
        numbers = {**self.forecast, "width": self.width, "edge": self.edge, "multiplier": self.multiplier}
        return {
            **self.key.as_json(),
            "bar": format_utc(self.key.ts),
            "role": self.role,
            "shadow": self.shadow,
            **{name: value if math.isfinite(value) else None for name, value in numbers.items()},
            "usable": self.usable,
            "late": self.late,
            "reason": self.reason,
            "decision_time": format_utc(self.decision_ms),
            "made_at": format_utc(self.made_at),
            "stale_inputs": {
                one.name: {"state": one.state, "age_ms": one.age_ms}
                for one in self.inputs
                if one.name in self.stale_inputs
            },
            "digest": self.digest,
        }


def write_signals(store: Warehouse, signals: Sequence[Signal], code: Code) -> list[Signal]:
    """Write the signals that are not there yet; return all as they stand, in the given order."""
    if not signals:
        return []
    with store.write() as con:
        con.execute(_DDL)
        if con.execute(f"SELECT 1 FROM {CODE_TABLE} WHERE code = ?", [code.version]).fetchone() is None:
            files = json.dumps(dict(code.files), sort_keys=True)
            con.execute(f"INSERT INTO {CODE_TABLE} VALUES (?, ?, ?)", [code.version, files, store.clock.now_ms()])
        stands = []
        for signal in signals:
            found = _find(con, signal.key)
            if found is None:
                row = _row(signal) | {
                    "vector": zlib.compress(_bytes(signal.vector), 6),
                    "vector_rows": len(signal.vector),
                    "digest": signal.digest,
                }
                marks = ", ".join("?" for _ in _COLUMNS)
                con.execute(f"INSERT INTO {TABLE} ({', '.join(_COLUMNS)}) VALUES ({marks})", [row[c] for c in _COLUMNS])
            stands.append(signal if found is None else found)
    return stands


def read_signal(store: Warehouse, key: SignalKey) -> Signal | None:
    """Return a stored signal; None if there is none.

    Raises
    ------
    WarehouseError
        If what is stored is not what was written.
    """
    with store.read() as con:
        return _find(con, key) if exists(con, TABLE) else None


def require_signal(store: Warehouse, key: SignalKey) -> Signal:
    """As :func:`read_signal`.

    Raises
    ------
    MissingDataError
        If there is none.
    """
    found = read_signal(store, key)
    if found is None:
        raise MissingDataError(
            f"no signal {key} from {key.source} is stored; its warehouse was deleted or is another one (MLBOT_HOME)"
        )
    return found


def read_signals(
    store: Warehouse,
    source: str,
    market: Market,
    start_ms: int,
    end_ms: int,
    *,
    model_type: str | None = None,
    model_version: str | None = None,
) -> list[Signal]:
    """Return the signals of bars opened in ``[start_ms, end_ms)``, by bar, model type and version."""
    where = "source = ? AND symbol = ? AND timeframe = ? AND ts >= ? AND ts < ?"
    args: list[object] = [source, market.symbol, str(market.timeframe), start_ms, end_ms]
    for column, value in (("model_type", model_type), ("model_version", model_version)):
        if value is not None:
            where += f" AND {column} = ?"
            args.append(value)
    with store.read() as con:
        if not exists(con, TABLE):
            return []
        return _select(con, f"{where} ORDER BY ts, model_type, model_version", args)


def code_files(store: Warehouse, code: str) -> Mapping[str, str] | None:
    """Return the files of the code that made a signal; None if they were not kept."""
    with store.read() as con:
        if not exists(con, CODE_TABLE):
            return None
        row = con.execute(f"SELECT files FROM {CODE_TABLE} WHERE code = ?", [code]).fetchone()
    files: Mapping[str, str] | None = None if row is None else json.loads(row[0])
    return files


def _find(con: duckdb.DuckDBPyConnection, key: SignalKey) -> Signal | None:
    found = _select(con, " AND ".join(f"{column} = ?" for column in _KEY), key.args)
    return found[0] if found else None


def _select(con: duckdb.DuckDBPyConnection, where: str, args: list[object]) -> list[Signal]:
    rows = con.execute(f"SELECT {', '.join(_COLUMNS)} FROM {TABLE} WHERE {where}", args).fetchall()
    return [_signal(dict(zip(_COLUMNS, row, strict=True))) for row in rows]


def _row(signal: Signal) -> dict[str, Any]:
    """Return the columns but for the vector and the digest."""
    names = {field.name for field in fields(Signal)} & set(_PLAIN)
    return {
        **dict(zip(_KEY, signal.key.args, strict=True)),
        **{name: float(signal.forecast[name]) for name in FORECAST},
        **{name: getattr(signal, name) for name in names},
        "inputs": json.dumps([one.as_json() for one in signal.inputs], sort_keys=True),
        "details": json.dumps(dict(signal.details), sort_keys=True),
    }


def _signal(row: dict[str, Any]) -> Signal:
    key = SignalKey(
        row["source"],
        Market.parse(f"{row['symbol']}-{row['timeframe']}"),
        int(row["ts"]),
        row["model_type"],
        row["model_version"],
    )
    flat = np.frombuffer(zlib.decompress(row["vector"]), dtype="<f8").astype(np.float64)
    plain = {name: row[name] for name in _PLAIN if name not in (*_KEY, *FORECAST)}
    numbers = {name: math.nan if row[name] is None else float(row[name]) for name in ("width", "edge", "multiplier")}
    signal = Signal(
        key=key,
        forecast={name: math.nan if row[name] is None else float(row[name]) for name in FORECAST},
        vector=flat.reshape(int(row["vector_rows"]), -1),
        inputs=tuple(Input.from_json(one) for one in json.loads(row["inputs"])),
        details=json.loads(row["details"]),
        **(plain | numbers),
    )
    if signal.digest != row["digest"]:
        raise WarehouseError(
            f"the stored signal {key} is not what was written (its digest differs): restore the warehouse from a backup"
        )
    return signal


def _bytes(vector: npt.NDArray[np.float64]) -> bytes:
    return np.ascontiguousarray(vector, dtype="<f8").tobytes()


def _exact(value: Any) -> Any:
    return value.hex() if isinstance(value, float) else value
