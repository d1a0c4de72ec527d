"""Run jobs of this code location against the Dagster instance, in this process, one run a plan item.

``python -m mlbot_dagster.launch`` reads a JSON list of runs on standard input and writes one JSON line an event to
standard output; the ``mlbot`` command starts it and draws what it says. Everything is recorded in the instance
exactly as if it had been launched from the UI: runs, materializations, checks, lineage.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlbot_core.config import load_settings
from mlbot_core.config.home import prepare_dagster_home
from mlbot_dagster.priority import give_way

Emit = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class PlannedRun:
    """One run of a job over one partition or an unbroken range of partitions.

    Parameters
    ----------
    title
        For people: ``BTC-2h 2022-01 to 2025-06``.
    first, last
        Partition keys; equal for a single partition.
    source
        Where market data comes from in this run; None as configured.
    config
        Configuration of ops by asset name, for instance ``{"models__forecasts": {"start": "2022-01-01"}}``.
    assets
        Assets of the job to make, like ``raw/price``; empty: all of them.
    """

    job: str
    title: str
    first: str
    last: str
    source: str | None = None
    config: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    assets: Sequence[str] = ()

    def run_config(self) -> dict[str, Any]:
        """Return the Dagster run config."""
        out: dict[str, Any] = {"ops": {name: {"config": dict(values)} for name, values in self.config.items()}}
        # named here, or Dagster takes its own console logger, which has no listeners
        out["loggers"] = {"console": {"config": {}}}
        if self.source is not None:
            out["resources"] = {"market_data": {"config": {"source": self.source}}}
        return out


def execute(runs: list[PlannedRun], emit: Emit) -> bool:
    """Execute the runs one after another; return whether all succeeded.

    A failed run does not stop the others: markets do not depend on one another.
    """
    settings = load_settings()
    os.environ["DAGSTER_HOME"] = str(prepare_dagster_home(settings))
    import dagster as dg

    from mlbot_dagster import orphans
    from mlbot_dagster.definitions import defs

    succeeded = True
    with dg.DagsterInstance.get() as instance, orphans.alive() as launcher:
        orphans.sweep(instance)
        for number, run in enumerate(runs):
            emit({"event": "start", "run": number, "title": run.title, "job": run.job})
            tags = {"mlbot/launched_by": "cli", orphans.TAG: launcher, **run.tags}
            succeeded &= _execute_one(number, run, tags, defs, instance, emit)
    return succeeded


def _execute_one(number: int, run: PlannedRun, tags: dict[str, str], defs: Any, instance: Any, emit: Emit) -> bool:
    import dagster as dg
    from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

    from mlbot_dagster import origin
    from mlbot_dagster.logs import listening

    started = time.perf_counter()
    job = defs.resolve_job_def(run.job)
    keys: dict[str, Any] = {"partition_key": run.first}
    if run.first != run.last:
        tags |= {ASSET_PARTITION_RANGE_START_TAG: run.first, ASSET_PARTITION_RANGE_END_TAG: run.last}
        keys = {}
    if run.assets:
        keys["asset_selection"] = [dg.AssetKey.from_user_string(name) for name in run.assets]
    with listening(_StepListener(number, emit)), origin.noted(instance, run.job):
        result = job.execute_in_process(
            instance=instance, run_config=run.run_config(), tags=tags, raise_on_error=False, **keys
        )
    seconds = time.perf_counter() - started
    errors = [_reason(event) for event in result.all_events if event.is_step_failure]
    checks = [
        e.asset_check_evaluation_data for e in result.all_events if e.event_type_value == "ASSET_CHECK_EVALUATION"
    ]
    emit(
        {
            "event": "end",
            "run": number,
            "title": run.title,
            "run_id": result.run_id,
            "success": result.success,
            "seconds": seconds,
            "step_seconds": sum(_step_seconds(event) for event in result.all_events),
            "errors": errors,
            "failed_checks": _failed(checks, dg.AssetCheckSeverity.ERROR),
            "advisories": _failed(checks, dg.AssetCheckSeverity.WARN),
        }
    )
    return bool(result.success)


class _StepListener(logging.Handler):
    """Turns Dagster's own log records into progress: steps begun and lines written by assets."""

    def __init__(self, run: int, emit: Emit) -> None:
        super().__init__()
        self._run = run
        self._emit = emit

    def emit(self, record: logging.LogRecord) -> None:
        meta = getattr(record, "dagster_meta", None) or {}
        event = getattr(record, "dagster_event", None) or meta.get("dagster_event")
        kind = event.event_type_value if event is not None else None
        step = event.step_key if event is not None else meta.get("step_key")
        if kind in ("STEP_START", "STEP_SUCCESS", "STEP_FAILURE"):
            self._emit({"event": kind.lower(), "run": self._run, "step": step})
        elif kind is None and record.levelno >= logging.INFO:
            self._emit({"event": "log", "run": self._run, "step": step, "text": meta.get("orig_message")})


def _reason(event: Any) -> str:
    """Return why a step failed: what our code raised, below Dagster's wrapping; that is the text that names things."""
    error = event.step_failure_data.error
    while error.cause is not None and str(error.cls_name).startswith("Dagster"):
        error = error.cause
    return str(error.message).strip().partition(": ")[2].strip() or str(error.message).strip()


def _failed(checks: Sequence[Any], severity: Any) -> list[str]:
    return [
        f"{check.asset_key.to_user_string()}: {check.check_name}: {check.description}"
        for check in checks
        if not check.passed and check.severity == severity
    ]


def _step_seconds(event: Any) -> float:
    data = event.step_success_data if event.is_step_success else None
    return data.duration_ms / 1000 if data is not None else 0.0


def main() -> int:
    """Read the plan from standard input, run it, report on standard output."""
    give_way()
    plan = [PlannedRun(**item) for item in json.load(sys.stdin)]
    report = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    # whatever libraries print goes to the log, standard output carries events only
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def emit(event: Mapping[str, Any]) -> None:
        report.write(json.dumps(event, default=str) + "\n")

    return 0 if execute(plan, emit) else 1


if __name__ == "__main__":
    sys.exit(main())
