"""What an asset shows of itself in the UI."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import dagster as dg

from mlbot_core.clock import format_utc
from mlbot_core.observability.thumbnails import markdown_image
from mlbot_core.warehouse.partitions import PartitionOutcome

OWNERS = ["team:mlbot"]
_MOST_ROWS = 120


class Plot(NamedTuple):
    """A plot twice: ``small`` is markdown short enough for the UI to show at once, ``png`` opens at a click."""

    small: str
    png: bytes

    def shown(self) -> dict[str, Any]:
        """Return the two as metadata."""
        return {
            "at a glance": dg.MetadataValue.md(self.small),
            "plot": dg.MetadataValue.md(markdown_image(self.png, "plot")),
        }


def describe(
    context: dg.AssetExecutionContext,
    outcomes: Sequence[PartitionOutcome],
    source: str,
    *,
    plot: Plot | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Attach metadata to what is about to be materialized: its own facts to each partition, the rest once.

    A run over a range makes one event a partition, and Dagster would copy everything into each of them: megabytes a
    run, and the row count of the whole run on the page of every month.
    """
    once = {} if plot is None else plot.shown()
    once |= {name: _rounded(value) for name, value in (extra or {}).items()}
    if len(outcomes) > 1:
        once |= {"rows of this run": sum(o.rows for o in outcomes), "partitions of this run": _table(outcomes)}
    # first, so that it stands on top
    context.add_asset_metadata(once, partition_key=_newest_event(context))
    said = f"{source} (a SYNTHETIC market)" if source == "emulator" else source
    for outcome in outcomes:
        facts = {
            "dagster/row_count": outcome.rows,
            "source": said,
            "data version": outcome.version,
            "checks passed": outcome.passed,
        }
        if outcome.info.get("note"):
            facts["note"] = str(outcome.info["note"])
        context.add_asset_metadata(facts, partition_key=outcome.key.partition)


def _newest_event(context: dg.AssetExecutionContext) -> str:
    """Return the partition whose event Dagster writes last: the UI shows its metadata on the asset's page.

    The keys of a run come out of a set, in the order of their hashes; made again in the same process from the same
    range, the same set has the same order.
    """
    definition = context.assets_def.partitions_def
    assert definition is not None
    keys = definition.empty_subset().with_partition_key_range(definition, context.partition_key_range)
    return list(keys.get_partition_keys())[-1]


def _table(outcomes: Sequence[PartitionOutcome]) -> dg.TableMetadataValue:
    """Return one line a partition: rows, data version, whether its checks passed."""
    records = [
        dg.TableRecord({"partition": o.key.partition, "rows": o.rows, "version": o.version[:8], "passed": o.passed})
        for o in outcomes[:_MOST_ROWS]
    ]
    columns = [
        dg.TableColumn("partition", "string"),
        dg.TableColumn("rows", "int"),
        dg.TableColumn("version", "string"),
        dg.TableColumn("passed", "bool"),
    ]
    return dg.TableMetadataValue(records, dg.TableSchema(columns=columns))


def _rounded(value: Any) -> Any:
    """Return a float with four significant digits or, from 1000, as a whole number: more only clutters the page."""
    if not isinstance(value, float) or not math.isfinite(value):
        return value
    return float(f"{value:.4g}") if abs(value) < 1000 else float(round(value))


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
