"""Asset checks: the verdict rows of the core, shown in the UI. They are computed and stored where the data is made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import dagster as dg

from mlbot_core.warehouse.partitions import PartitionOutcome

DESCRIPTIONS = {
    "duplicates": "No row is stored twice.",
    "gaps": "Few enough bars are missing; each missing stretch is a row of the gaps table.",
    "freshness": "The newest bar that can be expected by now is there.",
    "sanity": "Values are possible: signs, finiteness, high and low around open and close.",
    "lookahead": "Computed again on data cut in the middle, every earlier value is the same, bit for bit.",
    "purge": "No training label was settled after its fold's test began.",
    "coverage": "Every bar of the test period outside skipped folds has a forecast.",
    "bookkeeping": "An independent bookkeeping (vectorbt) of the same fills has the same equity.",
    "criteria": "The user's criteria at the traded size and at unit exposure. Failing refuses promotion, nothing else.",
}


def specs(asset: dg.AssetKey, names: Iterable[str], advisory: Sequence[str] = ()) -> list[dg.AssetCheckSpec]:
    """Return the checks of an asset: blocking, except the advisory ones."""
    return [
        dg.AssetCheckSpec(name, asset=asset, description=DESCRIPTIONS[name], blocking=name not in advisory)
        for name in names
    ]


def results(outcomes: Sequence[PartitionOutcome], advisory: Sequence[str] = ()) -> list[dg.AssetCheckResult]:
    """Return one result a check: passed only if it passed in EVERY partition of the run."""
    names = list(dict.fromkeys(check.check for outcome in outcomes for check in outcome.checks))
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
        description=first or ("passed" if len(found) == 1 else f"{len(found)} partitions passed"),
        metadata={
            "partitions checked": len(found),
            "partitions failed": len(failed),
            "verdicts": dg.TableMetadataValue(records, _SCHEMA),
        },
    )


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
