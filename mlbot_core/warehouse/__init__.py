"""The store: DuckDB, bitemporal, safe under many processes."""

from mlbot_core.warehouse.bitemporal import AppendResult, Settled, append, as_of, latest, settled
from mlbot_core.warehouse.locks import FileLock
from mlbot_core.warehouse.partitions import (
    Accepted,
    PartitionKey,
    PartitionOutcome,
    Verdict,
    data_version,
    made_partitions,
    record_partition,
    require,
    verdicts,
)
from mlbot_core.warehouse.store import Warehouse
from mlbot_core.warehouse.windows import read_window, replace_window

__all__ = [
    "Accepted",
    "AppendResult",
    "FileLock",
    "PartitionKey",
    "PartitionOutcome",
    "Settled",
    "Verdict",
    "Warehouse",
    "append",
    "as_of",
    "data_version",
    "latest",
    "made_partitions",
    "read_window",
    "record_partition",
    "replace_window",
    "require",
    "settled",
    "verdicts",
]
