"""Jobs: the flow in two halves, since data and models are partitioned differently. In-process: runs are short."""

from __future__ import annotations

import dagster as dg

from mlbot_core.config import Settings
from mlbot_dagster.assets import audit, backtests, bandit, drift, explanations, features, live, models, raw, targets

INGEST = "ingest"
FEATURES = "features_and_targets"
DATA = "data"
PULL = "pull"
TRAIN = "train"
BACKTEST = "backtest"
BANDIT = "bandit"
REPORT = "report"
STACK = "stack"
DRIFT = "drift"
EXPLAIN = "explain"


def build(settings: Settings) -> list[dg.UnresolvedAssetJobDefinition]:
    """Return the jobs."""
    raws = dg.AssetSelection.groups(raw.GROUP)
    needed = dg.AssetSelection.assets(*(raw.key(name) for name in features.series(settings)))
    derived = dg.AssetSelection.groups(features.GROUP, targets.GROUP)
    trained = dg.AssetSelection.assets(models.KEY)
    traded = dg.AssetSelection.groups(backtests.GROUP)
    return [
        _job(INGEST, raws, "Pull every raw series for markets and months."),
        _job(FEATURES, derived, "Compute features and targets of stored months."),
        _job(PULL, raws | derived, "Pull any raw series, and derive features and targets: what `mlbot backfill` runs."),
        _job(DATA, needed | derived, "Pull the series that features are made of, then compute features and targets."),
        _job(TRAIN, trained, "Train walk-forward and store out-of-fold forecasts."),
        _job(STACK, dg.AssetSelection.assets(models.META_KEY), "Stack stored forecasts of models and timeframes."),
        _job(BACKTEST, traded, "Backtest stored forecasts and write the report."),
        _job(BANDIT, dg.AssetSelection.groups(bandit.GROUP), "Evaluate learned position sizes on stored forecasts."),
        _job(REPORT, dg.AssetSelection.assets(backtests.REPORT_KEY), "Write the report of a stored backtest again."),
        _job(EXPLAIN, dg.AssetSelection.assets(explanations.KEY), "Explain the newest models on bars they never saw."),
        _job(
            live.JOB,
            dg.AssetSelection.groups(live.GROUP),
            "One bar, live: pull, forecasts, and on the decision clock the decision and its orders. Asked for by "
            "sensors; a bar that is old or was decided already is not traded, whoever asks.",
        ),
        _job(
            audit.JOB,
            dg.AssetSelection.groups(audit.GROUP),
            "Simulate the last day of live trading again, and trade challengers on paper beside their champions.",
        ),
        _job(DRIFT, dg.AssetSelection.assets(drift.KEY), "Compare features with the newest model's training."),
    ]


def _job(name: str, selection: dg.AssetSelection, text: str) -> dg.UnresolvedAssetJobDefinition:
    # what dagster.yaml limits, so that live bars do not wait for it
    tags = {} if name == live.JOB else {"mlbot/batch": "1"}
    return dg.define_asset_job(
        name, selection=selection, description=text, executor_def=dg.in_process_executor, tags=tags
    )
