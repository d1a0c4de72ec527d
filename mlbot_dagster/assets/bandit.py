"""The bandit: a policy that learns the size of positions, evaluated before it is believed."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from mlbot_core.config import Settings
from mlbot_core.config.models import META_MODEL
from mlbot_core.observability.sparkline import small_table
from mlbot_core.observability.thumbnails import bar_png
from mlbot_dagster import checks, metadata
from mlbot_dagster.assets import models, raw
from mlbot_dagster.partitions import TRAINED_MODELS, of_the_same_market, per_model, split_models, the_same_model
from mlbot_dagster.resources import MarketData, WarehouseResource

GROUP = "bandit"
KEY = dg.AssetKey([GROUP, "evaluation"])
CHECKS = ("replay", "promotion")
ADVISORY = ("promotion",)

_COLUMNS = (
    ("ts", "bigint", "open time of the bar on whose close the size was chosen, UTC ms"),
    ("arm", "bigint", "number of the chosen size"),
    ("multiplier", "double", "chosen share of the cap"),
    ("p_0", "double", "probability with which size 0 was chosen there; p_1 to p_4 likewise"),
    ("reward", "double", "log growth of the period net of costs less the drawdown's penalty, in units of bandit.yaml"),
    ("judged", "boolean", "whether policies were judged by it, not trained on it"),
)


def build(settings: Settings) -> list[dg.AssetsDefinition]:
    """Return the asset of the evaluation."""

    @dg.asset(
        key=KEY,
        group_name=GROUP,
        description=(
            "A contextual bandit learns how much of the risk cap a position uses, and is judged on decisions that it "
            "did not learn from: by simulation and from its log (IPS, SNIPS, doubly robust), against fixed fractions, "
            "volatility targeting and fractional Kelly. Stores the log with its propensities and the verdict."
        ),
        deps=[
            dg.AssetDep(models.KEY, partition_mapping=the_same_model(TRAINED_MODELS)),
            dg.AssetDep(models.META_KEY, partition_mapping=the_same_model([META_MODEL])),
            dg.AssetDep(raw.key("price"), partition_mapping=of_the_same_market()),
            dg.AssetDep(raw.key("funding_settled"), partition_mapping=of_the_same_market()),
            dg.AssetDep(raw.key("funding_rate"), partition_mapping=of_the_same_market()),
        ],
        partitions_def=per_model(settings),
        kinds={"numba", "duckdb"},
        owners=metadata.OWNERS,
        tags={"mlbot/room": "research"},
        metadata={"dagster/column_schema": metadata.schema(_COLUMNS)},
        # a refused policy is a result, not a fault
        check_specs=checks.specs(KEY, CHECKS, ADVISORY),
    )
    def evaluation(
        context: dg.AssetExecutionContext, warehouse: WarehouseResource, market_data: MarketData
    ) -> Iterator[dg.MaterializeResult]:
        from mlbot_core.backtest.dataset import BacktestRequest
        from mlbot_core.research.bandit_store import evaluate_stored

        ((market, model_type),) = split_models(context.partition_keys)
        request = BacktestRequest(
            market_data.name,
            market,
            model_type,
            market_data.settle_delay_ms,
            market_data.clock.now_ms(),
            context.run_id,
        )
        done = evaluate_stored(warehouse.open(market_data.clock), request, market_data.settings)
        summary = done.summary
        extra = {
            "period": metadata.span(summary["judged_from_ms"], summary["end_ms"]),
            "verdict": summary["verdict"],
            "model_version": summary["model_version"][:12],
            "policy_version": summary["policy_version"][:12],
            "decisions": summary["decisions"],
            "judged decisions": summary["judged"],
            "best baseline": summary["best_baseline"],
        }
        metadata.describe(context, [done.outcome], market_data.name, plot=_plot(summary), extra=extra)
        yield dg.MaterializeResult(check_results=checks.results([done.outcome], CHECKS, ADVISORY))

    return [evaluation]


def _plot(summary: dict[str, Any]) -> metadata.Plot:
    rewards = {str(row["name"]): float(row["reward"][0]) for row in summary["rows"]}
    return metadata.Plot(
        small_table(("sizes by", "mean reward a decision"), rewards),
        bar_png(list(rewards), list(rewards.values()), "mean reward a decision, judged part"),
    )
