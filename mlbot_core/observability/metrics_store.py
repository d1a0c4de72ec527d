"""Data and forecasts: what the store says of them, in visits that make nobody wait.

A visit holds the shared lock for some tens of milliseconds, waits for it a fifth of a second at most, is never made
around the close of a bar, when live runs write, and neither creates nor migrates a store.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any, Final

import duckdb

from mlbot_core.clock import Clock
from mlbot_core.config import Settings
from mlbot_core.errors import LockTimeoutError
from mlbot_core.features.drift_dataset import DRIFT_TABLE
from mlbot_core.live.signal_store import TABLE as SIGNALS
from mlbot_core.market import CATALOGUE
from mlbot_core.observability.metrics import PassedOver, Readings, Since
from mlbot_core.timeframe import Timeframe
from mlbot_core.warehouse import Warehouse
from mlbot_core.warehouse.gaps import fillable

_PATIENCE_S: Final = 0.2
_BEFORE_MS: Final = 5_000
_AFTER_MS: Final = 45_000
_FORECASTS: Final = "forecasts"
_MODELS: Final = "models"


class StoreMetrics:
    """Reads the store.

    Parameters
    ----------
    settings
        Which store, and which source's data.
    clock
        Says when bars close.
    every_s
        Pause between visits, seconds.
    """

    name = "warehouse"

    def __init__(self, settings: Settings, clock: Clock, every_s: float = 30.0) -> None:
        self.every_s = every_s
        self._path = settings.warehouse_path
        self._source = settings.intervals.source
        self._psi_alarm = settings.models.drift.psi_alarm
        self._delay_ms = settings.intervals.settle_delay_ms(self._source)
        self._timeframes = settings.intervals.timeframes
        self._clock = clock
        self._store = _Visited(self._path, clock, timeout_s=_PATIENCE_S)

    def read(self) -> Readings | None:
        """Return what is stored; None where there is no store.

        Raises
        ------
        PassedOver
            Around the close of a bar, and while somebody writes.
        """
        if not self._path.exists():
            return None
        self._pass_over_closes()
        try:
            with self._store.read() as con:
                tables = {str(row[0]) for row in con.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
                found = {name: self._rows(con, name, tables) for name in _QUERIES}
                found["series"] = self._series(con, tables)
        except LockTimeoutError as error:
            raise PassedOver(str(error)) from error
        readings = Readings()
        self._show_series(readings, found)
        self._show_forecasts(readings, found)
        _show_models(readings, found["models"])
        return readings

    def _pass_over_closes(self) -> None:
        now = self._clock.now_ms()
        for timeframe in self._timeframes:
            since = now - timeframe.floor(now)
            if since < self._delay_ms + _AFTER_MS or since > timeframe.ms - _BEFORE_MS:
                raise PassedOver(f"a bar of {timeframe} closes")

    def _rows(self, con: duckdb.DuckDBPyConnection, name: str, tables: set[str]) -> list[tuple[Any, ...]]:
        table, query = _QUERIES[name]
        if table not in tables:
            return []
        return con.execute(
            query, {"source": self._source, "psi": self._psi_alarm} if "$psi" in query else [self._source]
        ).fetchall()

    def _series(self, con: duckdb.DuckDBPyConnection, tables: set[str]) -> list[tuple[Any, ...]]:
        names = sorted(set(CATALOGUE) & tables)
        if not names:
            return []
        one = "SELECT '{0}' AS series, symbol, timeframe, max(ts) AS ts FROM {0} WHERE source = ? GROUP BY ALL"
        query = " UNION ALL ".join(one.format(name) for name in names)
        return con.execute(query, [self._source] * len(names)).fetchall()

    def _show_series(self, readings: Readings, found: dict[str, list[tuple[Any, ...]]]) -> None:
        watched = {tuple(map(str, row)) for row in found["watches"]}
        for series, symbol, text, ts in found["series"]:
            interval_ms = Timeframe.parse(text).ms
            here = {"source": self._source, "series": str(series), "symbol": str(symbol), "timeframe": str(text)}
            readings.put("mlbot_series_age_seconds", Since(int(ts) + interval_ms), **here)
            readings.put("mlbot_series_interval_seconds", interval_ms / 1000, **here)
            readings.put("mlbot_series_watched", float((series, symbol, text) in watched), **here)
        gaps = {True: 0, False: 0}
        for cause, count in found["gaps"]:
            gaps[fillable(str(cause))] += int(count)
        for can, count in gaps.items():
            text = "yes" if can else "no"
            readings.put("mlbot_gaps_open", float(count), source=self._source, fillable=text)
        failed = sum(int(row[0]) for row in found["quality"])
        readings.put("mlbot_quality_checks_failed", float(failed), source=self._source)
        for symbol, text, worst, share in found["drift"]:
            market = {"source": self._source, "symbol": str(symbol), "timeframe": str(text)}
            readings.put("mlbot_drift_psi_max", _number(worst), **market)
            readings.put("mlbot_drift_features_ratio", _number(share), **market)

    def _show_forecasts(self, readings: Readings, found: dict[str, list[tuple[Any, ...]]]) -> None:
        for symbol, text, model, ts, score, usable, count in found["signals"]:
            here = self._model(symbol, text, model)
            interval_ms = Timeframe.parse(text).ms
            readings.put("mlbot_forecast_age_seconds", Since(int(ts) + interval_ms), **here)
            readings.put("mlbot_forecast_interval_seconds", interval_ms / 1000, **here)
            readings.put("mlbot_forecast_score", _number(score), **here)
            readings.put("mlbot_forecast_usable", float(bool(usable)), **here)
            readings.put("mlbot_forecasts_total", float(count), **here)
        for symbol, text, model, count in found["forecasts"]:
            readings.put("mlbot_backtest_forecasts", float(count), **self._model(symbol, text, model))

    def _model(self, symbol: object, timeframe: object, model_type: object) -> dict[str, str]:
        names = ("symbol", "timeframe", "model_type")
        return {"source": self._source, **dict(zip(names, map(str, (symbol, timeframe, model_type)), strict=True))}


class _Visited(Warehouse):
    """A store that is only looked at: whoever observes must not be the one that creates or migrates it."""

    def _prepare(self) -> None:
        pass


_NEWEST_VERSION: Final = """
    SELECT symbol, timeframe, model_type, model_version FROM models WHERE source = {source}
    QUALIFY row_number() OVER (PARTITION BY symbol, timeframe, model_type ORDER BY created_at DESC, rowid DESC) = 1
"""
_QUERIES: Final[dict[str, tuple[str, str]]] = {
    "watches": ("watches", "SELECT DISTINCT series, symbol, timeframe FROM watches WHERE source = ?"),
    "gaps": ("gaps", "SELECT cause, count(*) FROM gaps WHERE filled_at IS NULL AND source = ? GROUP BY cause"),
    "quality": (
        "quality",
        """
        WITH newest AS (
            SELECT asset, source, partition, data_version FROM partitions
            QUALIFY row_number() OVER (PARTITION BY asset, source, partition ORDER BY written_at DESC, rowid DESC) = 1
        ), verdict AS (
            SELECT q.passed FROM quality q JOIN newest n USING (asset, source, partition, data_version)
            WHERE q.source = ?
            QUALIFY row_number() OVER (
                PARTITION BY q.asset, q.partition, q.check_name ORDER BY q.checked_at DESC, q.rowid DESC
            ) = 1
        )
        SELECT count(*) FROM verdict WHERE NOT passed
        """,
    ),
    "drift": (
        DRIFT_TABLE,
        f"""
        WITH newest AS (
            SELECT symbol, timeframe, max(ts) AS ts FROM {DRIFT_TABLE} WHERE source = $source GROUP BY ALL
        )
        SELECT symbol, timeframe, max(psi), avg((psi > $psi)::INTEGER)
        FROM {DRIFT_TABLE} d JOIN newest n USING (symbol, timeframe, ts) WHERE d.source = $source GROUP BY ALL
        """,
    ),
    "signals": (
        SIGNALS,
        f"""
        SELECT symbol, timeframe, model_type, max(ts), arg_max(score, ts), arg_max(usable, ts), count(*)
        FROM {SIGNALS} WHERE source = ? GROUP BY ALL
        """,
    ),
    "forecasts": (
        _FORECASTS,
        f"""
        SELECT symbol, timeframe, model_type, count(*)
        FROM {_FORECASTS} JOIN ({_NEWEST_VERSION.format(source="?")})
        USING (symbol, timeframe, model_type, model_version) GROUP BY ALL
        """,
    ),
    "models": (
        _MODELS,
        """
        SELECT source, symbol, timeframe, model_type, folds FROM models WHERE source = ?
        QUALIFY row_number() OVER (PARTITION BY symbol, timeframe, model_type ORDER BY created_at DESC, rowid DESC) = 1
        """,
    ),
}


def _show_models(readings: Readings, rows: Iterable[tuple[Any, ...]]) -> None:
    """Show the mean scores of the newest version's folds, each fold weighted by its forecasts."""
    for source, symbol, timeframe, model_type, text in rows:
        folds = json.loads(text)
        names = ("source", "symbol", "timeframe", "model_type")
        here = dict(zip(names, map(str, (source, symbol, timeframe, model_type)), strict=True))
        for metric, score in (
            ("mlbot_model_log_loss_nats", "log_loss"),
            ("mlbot_model_base_log_loss_nats", "base_log_loss"),
            ("mlbot_model_information_coefficient", "ic"),
        ):
            known = [(_number(f.get(score)), float(f.get("forecast_rows") or 0)) for f in folds]
            weighed = [(value, rows_) for value, rows_ in known if math.isfinite(value) and rows_ > 0]
            total = sum(rows_ for _, rows_ in weighed)
            readings.put(metric, sum(v * r for v, r in weighed) / total if total else math.nan, **here)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
