"""A backtest as a trial: what of it is the configuration, what the data, and its judgement among all trials."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pandas as pd

from mlbot_core.backtest.metrics import MIN_ACTIVE_DAYS
from mlbot_core.backtest.run import BacktestResult, UnitRun, with_significance
from mlbot_core.validation.namespaces import namespace_of
from mlbot_core.validation.trials import Appended, DailyReturns, TrialLedger
from mlbot_core.validation.trials_significance import candidate_significance

# re-exported: the namespace is a question of the data, not of the backtest
__all__ = ["configuration_of", "count", "count_and_judge", "daily_series", "data_version_of", "namespace_of"]

Counted = BacktestResult | UnitRun

# what of a model's version is a person's choice; the rest (code, libraries, partitions) is not
_CHOICES: Final = (
    "market",
    "source",
    "feature_set",
    "targets",
    "walk_forward",
    "weights",
    "model_type",
    "params",
    "test_start_ms",
    "asked_end_ms",
)
# of the limits, those that bind at unit exposure
_UNIT_LIMITS: Final = ("rebalance_band", "max_forecast_age")


def configuration_of(result: Counted, model_inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything a person could have chosen differently, as plain JSON.

    The first day of the test period is a choice and belongs to it; so does the last where it was asked for, and does
    not where it moves on with time. Code and library versions do not belong to it: what they change shows in the
    returns, and the ledger counts that.

    Parameters
    ----------
    result
        Of the backtest.
    model_inputs
        What the model's version was made from (:class:`mlbot_core.models.version.VersionInputs` as JSON).
    """
    data = result.input
    chosen = {name: model_inputs[name] for name in _CHOICES if name in model_inputs}
    return {
        "market": str(data.market),
        "source": data.source,
        "model_type": data.model_type,
        **chosen,
        "fees": data.fees.model_dump(mode="json"),
        "limits": {name: getattr(data.risk, name) for name in _UNIT_LIMITS},
        "settle_delay_ms": data.settle_delay_ms,
        "latency_ms": data.latency_ms,
        "exposure": "unit",
    }


def data_version_of(result: Counted, model_inputs: Mapping[str, Any]) -> str:
    """Return the hash of the data behind a backtest: what the model learnt from and what it was traded on.

    Versions of stacked base models are not data: a base that was trained again gives other returns on the same data,
    and the ledger counts that.
    """
    learnt = {k: v for k, v in model_inputs.get("partitions", {}).items() if not k.startswith("forecasts|")}
    partitions = json.dumps(learnt, sort_keys=True)
    period = f"{result.start_ms}:{result.end_ms}:{model_inputs.get('test_end_ms')}"
    digest = hashlib.sha256(f"{partitions}\n{period}\n".encode())
    for frame, columns in (
        (result.input.bars, ("ts", "open", "high", "low", "close")),
        (result.input.funding, ("ts", "rate")),
    ):
        for column in columns:
            digest.update(_bytes(frame[column]))
    return digest.hexdigest()


def daily_series(result: Counted) -> DailyReturns:
    """Return the net daily returns at unit exposure."""
    return DailyReturns(int(result.daily["day"].iloc[0]), result.daily["unit"].to_numpy(dtype=np.float64))


def count(
    result: Counted, model_inputs: Mapping[str, Any], ledger: TrialLedger, *, namespace: str, run_id: str
) -> Appended:
    """Record a result in the ledger; the same one again, from a training or a backtest, changes nothing.

    Raises
    ------
    LedgerTamperedError
        If the ledger was tampered with.
    """
    return ledger.append(
        namespace,
        configuration_of(result, model_inputs),
        daily_series(result),
        data_version=data_version_of(result, model_inputs),
        run_id=run_id,
        info={
            "model_version": result.input.model_version,
            "code": model_inputs.get("code"),
            "libraries": model_inputs.get("libraries"),
            "start_ms": result.start_ms,
            "end_ms": result.end_ms,
            # what daily returns cannot be asked for: here it cannot be changed afterwards
            "unit_trades": result.metrics["unit"].trades,
        },
    )


def count_and_judge(
    result: BacktestResult, model_inputs: Mapping[str, Any], ledger: TrialLedger, *, namespace: str, run_id: str
) -> BacktestResult:
    """Record a backtest in the ledger and return it judged among all trials of its namespace.

    Recording the same result again changes nothing, so whoever shows a result may, and must, come through here.

    Raises
    ------
    LedgerTamperedError
        If the ledger was tampered with: nothing is judged by a count that cannot be believed.
    """
    count(result, model_inputs, ledger, namespace=namespace, run_id=run_id)
    among = candidate_significance(ledger.read(namespace), daily_series(result), min_active_days=MIN_ACTIVE_DAYS)
    return with_significance(result, among)


def _bytes(values: pd.Series) -> bytes:
    kind = "<i8" if values.dtype.kind in "iu" else "<f8"
    return bytes(np.ascontiguousarray(values.to_numpy(dtype=kind)).tobytes())
