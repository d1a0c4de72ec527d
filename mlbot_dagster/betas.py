"""The one place that lists the beta APIs of Dagster we rely on, and silences their warnings (no others).

* ``backfill_policy`` of an asset: one run for a range of partitions instead of one run each.
* ``MultiPartitionMapping``: model partitions (market x model type) depend on all months of their market.
"""

from __future__ import annotations

import warnings

from dagster import BetaWarning

RELIED_ON = ("backfill_policy", "MultiPartitionMapping")


def silence() -> None:
    """Filter the warnings of what is listed above."""
    for name in RELIED_ON:
        warnings.filterwarnings("ignore", message=f".*{name}.*", category=BetaWarning)
