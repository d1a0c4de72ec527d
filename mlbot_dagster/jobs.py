"""Jobs: the flow in two halves, since data and models are partitioned differently. In-process: runs are short."""

from __future__ import annotations

import dagster as dg

from mlbot_dagster.assets import backtests, features, models, raw, targets

INGEST = "ingest"
FEATURES = "features_and_targets"
DATA = "data"
TRAIN = "train"
BACKTEST = "backtest"
REPORT = "report"
RESEARCH = "research"


def build() -> list[dg.UnresolvedAssetJobDefinition]:
    """Return the jobs."""
    raws = dg.AssetSelection.groups(raw.GROUP)
    derived = dg.AssetSelection.groups(features.GROUP, targets.GROUP)
    trained = dg.AssetSelection.assets(models.KEY)
    traded = dg.AssetSelection.groups(backtests.GROUP)
    return [
        _job(INGEST, raws, "Pull raw series for markets and months."),
        _job(FEATURES, derived, "Compute features and targets of stored months."),
        _job(DATA, raws | derived, "Pull raw series, then compute features and targets."),
        _job(TRAIN, trained, "Train walk-forward and store out-of-fold forecasts."),
        _job(BACKTEST, traded, "Backtest stored forecasts and write the report."),
        _job(REPORT, dg.AssetSelection.assets(backtests.REPORT_KEY), "Write the report of a stored backtest again."),
        _job(RESEARCH, trained | traded, "Train, backtest and report."),
    ]


def _job(name: str, selection: dg.AssetSelection, text: str) -> dg.UnresolvedAssetJobDefinition:
    return dg.define_asset_job(name, selection=selection, description=text, executor_def=dg.in_process_executor)
