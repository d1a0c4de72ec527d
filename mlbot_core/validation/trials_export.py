"""The trial ledger as a Parquet file: one row an evaluation, for people and other tools."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mlbot_core.validation.trials import TrialHistory


def export_table(history: TrialHistory) -> pa.Table:
    """Return every row with its whole content; ``returns`` is a list of daily fractions from ``first_day_ms`` on.

    ``counted`` says whether the row stands for one of the N trials. The file's metadata name the head.
    """
    counted = {row.seq for row in history.counted}
    rows = history.rows
    table = pa.table(
        {
            "namespace": pa.array([row.namespace for row in rows], pa.string()),
            "seq": pa.array([row.seq for row in rows], pa.int64()),
            "trial_id": pa.array([row.trial_id for row in rows], pa.string()),
            "counted": pa.array([row.seq in counted for row in rows], pa.bool_()),
            "data_version": pa.array([row.data_version for row in rows], pa.string()),
            "series_id": pa.array([row.series_id for row in rows], pa.string()),
            "recorded_at_ms": pa.array([row.recorded_at_ms for row in rows], pa.int64()),
            "run_id": pa.array([row.run_id for row in rows], pa.string()),
            "configuration": pa.array([row.configuration for row in rows], pa.string()),
            "info": pa.array([row.info for row in rows], pa.string()),
            "first_day_ms": pa.array([row.returns.first_day_ms for row in rows], pa.int64()),
            "returns": pa.array([row.returns.values for row in rows], pa.list_(pa.float64())),
            "prev_hash": pa.array([row.prev_hash for row in rows], pa.string()),
            "row_hash": pa.array([row.row_hash for row in rows], pa.string()),
        }
    )
    return table.replace_schema_metadata({"mlbot.ledger_head": str(history.head)})


def write_export(history: TrialHistory, path: Path) -> None:
    """Write the export, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".trials-", suffix=".parquet")
    os.close(handle)
    pq.write_table(export_table(history), temporary)
    Path(temporary).chmod(0o644)
    Path(temporary).replace(path)
