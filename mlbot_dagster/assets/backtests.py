"""Backtests and their reports."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from mlbot_core.config import Settings
from mlbot_core.config.models import META_MODEL
from mlbot_core.observability.sparkline import sparkline
from mlbot_dagster import checks, metadata
from mlbot_dagster.assets import models, raw
from mlbot_dagster.partitions import TRAINED_MODELS, of_the_same_market, per_model, split_models, the_same_model
from mlbot_dagster.resources import MarketData, WarehouseResource

GROUP = "backtests"
KEY = dg.AssetKey([GROUP, "backtest"])
REPORT_KEY = dg.AssetKey([GROUP, "report"])
CHECKS = ("bookkeeping", "criteria")
ADVISORY = ("criteria",)
# parts of the summary which other metadata say better
SAID = frozenset(
    {"timeframe", "synthetic", "start_ms", "end_ms", "psr", "dsr", "n_trials", "pbo", "significance", "ledger_head"}
)


def build(settings: Settings) -> list[dg.AssetsDefinition]:
    """Return the backtest and the report asset."""

    @dg.asset(
        key=KEY,
        description=(
            "The out-of-fold forecasts traded with fees, slippage and funding, at the traded size and at unit "
            "exposure; the same fills kept in vectorbt's books as a cross-check."
        ),
        deps=[
            dg.AssetDep(models.KEY, partition_mapping=the_same_model(TRAINED_MODELS)),
            dg.AssetDep(models.META_KEY, partition_mapping=the_same_model([META_MODEL])),
            dg.AssetDep(raw.key("price"), partition_mapping=of_the_same_market()),
            dg.AssetDep(raw.key("funding_settled"), partition_mapping=of_the_same_market()),
            dg.AssetDep(raw.key("funding_rate"), partition_mapping=of_the_same_market()),
        ],
        kinds={"vectorbt", "numba", "duckdb"},
        check_specs=checks.specs(KEY, CHECKS, ADVISORY),
        group_name=GROUP,
        partitions_def=per_model(settings),
        owners=metadata.OWNERS,
        tags={"mlbot/room": "backtest"},
    )
    def backtest(
        context: dg.AssetExecutionContext, warehouse: WarehouseResource, market_data: MarketData
    ) -> Iterator[dg.MaterializeResult]:
        from mlbot_core.backtest.dataset import backtest as run
        from mlbot_core.backtest.significance_block import flat, significance_block

        done = run(
            warehouse.open(market_data.clock),
            _request(context, market_data),
            market_data.settings.fees,
            market_data.settings.risk,
        )
        period = {"period": metadata.span(done.result.start_ms, done.result.end_ms)}
        told = {name: value for name, value in done.summary.items() if value is not None and name not in SAID}
        held = {f"hold {name}": value for name, value in told.pop("hold").items() if value is not None}
        extra = period | told | held
        extra |= flat(significance_block(done.result))
        extra["model_version"] = str(extra["model_version"])[:12]
        metadata.describe(context, [done.outcome], market_data.name, plot=_plot(done.result), extra=extra)
        yield dg.MaterializeResult(check_results=checks.results([done.outcome], CHECKS, ADVISORY))

    @dg.asset(
        key=REPORT_KEY,
        description="One self-contained HTML file: equity, drawdown, costs, calibration, importance, provenance.",
        deps=[KEY],
        kinds={"html", "plotly"},
        group_name=GROUP,
        partitions_def=per_model(settings),
        owners=metadata.OWNERS,
        tags={"mlbot/room": "backtest"},
    )
    def report(
        context: dg.AssetExecutionContext, warehouse: WarehouseResource, market_data: MarketData
    ) -> dg.MaterializeResult:
        from mlbot_core.backtest.dataset import compute, write_report
        from mlbot_core.research.bandit_store import newest_evaluation

        store, asked = warehouse.open(market_data.clock), _request(context, market_data)
        result, model = compute(store, asked, market_data.settings.fees, market_data.settings.risk)
        sizes = newest_evaluation(store, asked)
        summary = None if sizes is None else sizes["summary"]
        path = write_report(result, model, market_data.settings.reports_dir, summary)
        return dg.MaterializeResult(
            metadata={
                "report": dg.MetadataValue.path(str(path)),
                "verdict": result.verdict.outcome,
                **_plot(result).shown(),
            }
        )

    return [backtest, report]


def _plot(result: Any) -> metadata.Plot:
    from mlbot_core.backtest.plots import summary_png

    daily = result.daily
    unit, hold = ((1.0 + daily[name].to_numpy()).cumprod() for name in ("unit", "hold"))
    ends = f"{unit[-1]:.2f} and {hold[-1]:.2f}" if len(unit) else "no days"
    caption = f"growth of 1, unit exposure (blue) beside buy and hold (grey): {ends}; {result.verdict.outcome}"
    return metadata.Plot(sparkline([unit, hold], caption), summary_png(result))


def _request(context: dg.AssetExecutionContext, market_data: MarketData) -> Any:
    from mlbot_core.backtest.dataset import BacktestRequest

    ((market, model_type),) = split_models(context.partition_keys)
    return BacktestRequest(
        market_data.name,
        market,
        model_type,
        market_data.settle_delay_ms,
        market_data.clock.now_ms(),
        context.run_id,
    )
