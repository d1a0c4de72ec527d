"""What an asset shows of itself in the UI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from mlbot_core.clock import format_utc
from mlbot_core.observability.thumbnails import markdown_image
from mlbot_core.warehouse.partitions import PartitionOutcome

OWNERS = ["team:mlbot"]
_MOST_ROWS = 120


def months_table(outcomes: Sequence[PartitionOutcome]) -> dg.TableMetadataValue:
    """Return one line a partition: rows, data version, whether its checks passed."""
    records = [
        dg.TableRecord(
            {"partition": o.key.partition, "rows": o.rows, "data version": o.version, "checks passed": o.passed}
        )
        for o in outcomes[:_MOST_ROWS]
    ]
    columns = [
        dg.TableColumn("partition", "string"),
        dg.TableColumn("rows", "int"),
        dg.TableColumn("data version", "string"),
        dg.TableColumn("checks passed", "bool"),
    ]
    return dg.TableMetadataValue(records, dg.TableSchema(columns=columns))


def of_outcomes(
    outcomes: Sequence[PartitionOutcome],
    source: str,
    *,
    plot: bytes | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the metadata that all monthly assets share."""
    out: dict[str, Any] = {
        "dagster/row_count": sum(o.rows for o in outcomes),
        "source": source,
        "partitions": months_table(outcomes),
    }
    notes = list(dict.fromkeys(str(o.info["note"]) for o in outcomes if o.info.get("note")))
    if notes:
        out["note"] = "; ".join(notes)
    if source == "emulator":
        out["market"] = "SYNTHETIC (emulator)"
    if plot is not None:
        out["plot"] = dg.MetadataValue.md(markdown_image(plot, "plot"))
    return out | dict(extra or {})


def schema(columns: Sequence[tuple[str, str, str]]) -> dg.TableSchema:
    """Return a column schema of (name, type, description)."""
    return dg.TableSchema(columns=[dg.TableColumn(name, kind, description=text) for name, kind, text in columns])


TIME_COLUMNS = (
    ("source", "string", "where the data came from"),
    ("symbol", "string", "base coin"),
    ("timeframe", "string", "length of the bar"),
    ("ts", "bigint", "open time, UTC ms"),
)


def span(first: int | None, last: int | None) -> str:
    """Return a period for people."""
    return "empty" if first is None or last is None else f"{format_utc(first)} to {format_utc(last)}"
