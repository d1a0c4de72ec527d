"""Asset checks: the verdict rows of the core, shown in the UI. They are computed and stored where the data is made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import dagster as dg

from mlbot_core.market.quality import QUALITY_CHECKS
from mlbot_core.warehouse.partitions import PartitionOutcome

DESCRIPTIONS = {
    **{name: check.description for name, check in QUALITY_CHECKS.items()},
    "lookahead": "Computed again on data cut in the middle, every earlier value is the same, bit for bit.",
    "purge": "No training label was settled after its fold's test began.",
    "coverage": "Every bar of the test period outside skipped folds has a forecast.",
    "drift": "Few enough features of the month are distributed otherwise than in the model's training window.",
    "ood": "Few enough bars lie outside of what the model was trained on.",
    "forecast_drift": "The newest fold's forecasts are distributed as those of the folds before it.",
    "bookkeeping": "An independent bookkeeping (vectorbt) of the same fills has the same equity.",
    "replay": "The stored log, folded again, gives the same policy bit for bit.",
    "parity": "The day of live trading, simulated again, is the same within tolerance, and every bar was decided.",
    "same_bars": "Champion and challenger were asked on every bar that they are compared on.",
    "promotion": "The learned sizes beat every baseline and no position. Failing leaves the sizes as they are.",
    "criteria": "The user's criteria at the traded size and at unit exposure. Failing refuses promotion, nothing else.",
}


def specs(asset: dg.AssetKey, names: Iterable[str], advisory: Sequence[str] = ()) -> list[dg.AssetCheckSpec]:
    """Return the checks of an asset: blocking, except the advisory ones."""
    return [
        dg.AssetCheckSpec(name, asset=asset, description=DESCRIPTIONS[name], blocking=name not in advisory)
        for name in names
    ]


def results(
    outcomes: Sequence[PartitionOutcome], names: Sequence[str], advisory: Sequence[str] = ()
) -> list[dg.AssetCheckResult]:
    """Return one result a check: passed only if it passed in EVERY partition of the run.

    A check that no partition needed (of a series the source does not serve) passes and says so.
    """
    return [_result(name, outcomes, advisory) for name in names]


def _result(name: str, outcomes: Sequence[PartitionOutcome], advisory: Sequence[str]) -> dg.AssetCheckResult:
    found = [(o.key.partition, check) for o in outcomes for check in o.checks if check.check == name]
    failed = [(partition, check) for partition, check in found if not check.passed]
    worst = failed or found
    records = [
        dg.TableRecord({"partition": partition, "passed": check.passed, "detail": _text(check.detail)})
        for partition, check in worst[:50]
    ]
    first = f"{failed[0][0]}: {_text(failed[0][1].detail)}" if failed else None
    return dg.AssetCheckResult(
        passed=not failed,
        check_name=name,
        severity=dg.AssetCheckSeverity.WARN if name in advisory else dg.AssetCheckSeverity.ERROR,
        description=first or _praise(len(found)),
        metadata={
            "partitions checked": len(found),
            "partitions failed": len(failed),
            "verdicts": dg.TableMetadataValue(records, _SCHEMA),
        },
    )


def _praise(partitions: int) -> str:
    if partitions == 0:
        return "nothing to check"
    return "passed" if partitions == 1 else f"{partitions} partitions passed"


_SCHEMA = dg.TableSchema(
    columns=[
        dg.TableColumn("partition", "string"),
        dg.TableColumn("passed", "bool"),
        dg.TableColumn("detail", "string"),
    ]
)


def _text(detail: object) -> str:
    values = detail.items() if isinstance(detail, dict) else []
    return ", ".join(f"{key}: {value}" for key, value in values if value not in ([], {}, None))
