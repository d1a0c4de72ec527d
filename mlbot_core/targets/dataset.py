"""From stored prices to stored labels."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pyarrow as pa

from mlbot_core.config import TargetConfig
from mlbot_core.features.dataset import DatasetRequest, first_price, make_panel, provenance
from mlbot_core.features.truncation import truncation_check
from mlbot_core.targets.build import build_targets, target_labels, target_lookback
from mlbot_core.targets.direction import average_uniqueness
from mlbot_core.targets.weights import class_balance
from mlbot_core.timeframe import Month
from mlbot_core.warehouse import PartitionKey, PartitionOutcome, Verdict, Warehouse, data_version, record_partition
from mlbot_core.warehouse.ingest import partition_name
from mlbot_core.warehouse.inputs import Window, contiguous, read_inputs
from mlbot_core.warehouse.windows import replace_window

TABLE = "targets"
CODE_ROOMS = ("targets",)
TARGET_CHECKS = ("duplicates", "freshness", "lookahead")
_CUTS_PER_MONTH = 3


def materialize_targets(warehouse: Warehouse, request: DatasetRequest, config: TargetConfig) -> list[PartitionOutcome]:
    """Compute and store the labels of the requested months.

    Labels of the last bars need prices of the following month: they stay unknown until those exist, and the month is
    made again then.

    Raises
    ------
    MissingDataError, QualityRefusedError
        If the prices of a month are absent or were found bad.
    """
    outcomes: list[PartitionOutcome] = []
    lookback = target_lookback(config)
    for months in contiguous(request.months):
        full = request.window(months, lookback, config.reach)
        window = Window(
            full.source, full.market, full.months, full.settle_delay_ms, full.before_ms, full.after_ms, ("price",)
        )
        inputs = read_inputs(warehouse, window, known_by_ms=request.known_by_ms)
        # labels are about what happened, whenever we learnt of it
        panel = make_panel(inputs, window.start_ms, window.end_ms, request.settle_delay_ms, keep_late=True)
        built = build_targets(panel, request.market, config)
        first = first_price(inputs) or 0
        panel = panel.loc[panel["ts"] >= first].reset_index(drop=True)
        built = built.loc[built["ts"] >= first].reset_index(drop=True)
        judged = [_judge(month, panel, built, config, request) for month in months]
        with warehouse.write() as con:
            for month, checks in zip(months, judged, strict=True):
                rows = built.loc[(built["ts"] >= month.start_ms) & (built["ts"] < month.end_ms)]
                table = pa.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata(None)
                written = replace_window(con, TABLE, request.scope, table, start_ms=month.start_ms, end_ms=month.end_ms)
                key = PartitionKey("targets", request.source, partition_name(request.market, month))
                outcome = PartitionOutcome(
                    key,
                    written,
                    data_version(table),
                    checks,
                    _info(rows, request, config) | provenance(inputs, replace(window, months=(month,)), CODE_ROOMS),
                )
                record_partition(con, outcome, now_ms=warehouse.clock.now_ms(), run_id=request.run_id)
                outcomes.append(outcome)
    return outcomes


def _info(rows: pd.DataFrame, request: DatasetRequest, config: TargetConfig) -> dict[str, object]:
    """Return what people and models want to know of a month: which labels, how balanced, how much they overlap."""
    columns = {name: rows[name].to_numpy(dtype=np.float64) for name in rows.columns if name.startswith("tb_label")}
    label = columns["tb_label"]
    t0, t1 = (rows[name].to_numpy(dtype=np.int64) for name in ("t0", "tb_t1"))
    unique = average_uniqueness(t0, t1, request.market.timeframe.ms)
    return {
        "target_config": config.model_dump(),
        "unknown_labels": int((~np.isfinite(label)).sum()),
        "classes": class_balance(label, _CLASSES),
        "class_balance": {name: class_balance(values, _CLASSES) for name, values in columns.items()},
        "mean_uniqueness": float(np.nanmean(unique)) if np.isfinite(unique).any() else None,
    }


_CLASSES = {"down": -1.0, "neutral": 0.0, "up": 1.0}


def _judge(
    month: Month, panel: pd.DataFrame, built: pd.DataFrame, config: TargetConfig, request: DatasetRequest
) -> tuple[Verdict, ...]:
    ts = panel["ts"].to_numpy(dtype=np.int64)
    inside = np.flatnonzero((ts >= month.start_ms) & (ts < month.end_ms))
    stamps = built["ts"].to_numpy(dtype=np.int64)[inside]
    repeated = len(stamps) - len(np.unique(stamps))
    priced = panel["ts"].to_numpy(dtype=np.int64)[np.isfinite(panel["close"].to_numpy(dtype=np.float64))]
    missing = np.setdiff1d(priced[(priced >= month.start_ms) & (priced < month.end_ms)], stamps)
    fresh = Verdict("freshness", len(missing) == 0, {"rows": len(inside), "priced_bars_without_row": len(missing)})
    unique = Verdict("duplicates", repeated == 0, {"rows": len(stamps), "repeated": repeated})
    if len(inside) == 0:
        return unique, fresh, Verdict("lookahead", True, {"note": "no rows"})
    first = max(0, int(inside[0]) - target_lookback(config))
    piece = panel.iloc[first : int(inside[-1]) + config.reach + 1].reset_index(drop=True)
    shares = (np.arange(_CUTS_PER_MONTH) + 0.5) / _CUTS_PER_MONTH
    cuts = [int(inside[int(share * (len(inside) - 1))]) - first for share in shares]
    result = truncation_check(
        partial(build_targets, market=request.market, config=config),
        piece,
        cuts,
        lookback=target_lookback(config),
        labels=target_labels(config),
        timeframe_ms=request.market.timeframe.ms,
    )
    detail = {"cuts": result.cuts, "values_compared": result.compared, "violations": result.violation_count}
    return unique, fresh, Verdict("lookahead", result.passed, detail | {"columns": list(result.columns)})
