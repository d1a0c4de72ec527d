"""Upkeep of the raw series: the newest bars read again every bar, and open gaps asked for again.

One op for all series of a market, since thirty steps would cost far more than the thirty calls. What it changes is told
to Dagster as materializations and check results of the raw assets, so their pages show it.
"""

from collections.abc import Iterable

import dagster as dg
from pydantic import Field

from mlbot_core.market import CATALOGUE
from mlbot_core.timeframe import Market
from mlbot_core.warehouse.ingest import IngestRequest
from mlbot_core.warehouse.partitions import PartitionOutcome
from mlbot_core.warehouse.refresh import REFRESH_BARS, failures, refresh_many
from mlbot_core.warehouse.repair import gap_repair
from mlbot_dagster.assets import raw
from mlbot_dagster.resources import MarketData, WarehouseResource

REFRESH = "refresh_recent_bars"
REPAIR = "repair_gaps"


class RefreshConfig(dg.Config):
    """Which market's newest bars are read again."""

    market: str = Field(description="Like BTC-2h.")
    bars: int = Field(default=REFRESH_BARS, ge=1, description="How many of the newest bars.")


class RepairConfig(dg.Config):
    """Which market's gaps are asked for again."""

    market: str = Field(description="Like BTC-2h.")


@dg.op(description="Read the newest bars of every series again; late and restated bars become versions.")
def read_newest_bars(
    context: dg.OpExecutionContext, config: RefreshConfig, warehouse: WarehouseResource, market_data: MarketData
) -> None:
    """Refresh every series of a market; fail at the end if a series failed, with all others stored."""
    market = Market.parse(config.market)
    store = warehouse.open(market_data.clock)
    requests = [_request(name, market, market_data, context.run_id) for name in CATALOGUE]
    done = refresh_many(store, market_data.open(), market_data.clock, requests, config.bars)
    for one in done:
        tell(context, one.outcomes)
    new, restated = sum(one.inserted for one in done), sum(one.restated for one in done)
    context.log.info(f"{market}: {new} new versions, {restated} of them restate a bar")
    if failed := failures(done):
        first = next(iter(failed))
        raise dg.Failure(f"{len(failed)} of {len(done)} series failed, first {first}: {failed[first]}")


@dg.op(description="Ask again for the bars that are missing and may be filled, and only for those.")
def fill_open_gaps(
    context: dg.OpExecutionContext, config: RepairConfig, warehouse: WarehouseResource, market_data: MarketData
) -> None:
    """Repair the gaps of a market; fail at the end if a series failed."""
    market = Market.parse(config.market)
    store = warehouse.open(market_data.clock)
    done = gap_repair(
        store,
        market_data.open(),
        market_data.clock,
        [market],
        quality=market_data.settings.intervals.quality,
        settle_delay_ms=market_data.settle_delay_ms,
        run_id=context.run_id,
        identity=market_data.identity,
    )
    for one in done:
        tell(context, one.outcomes)
        context.log.info(f"{market} {one.series}: {one.filled_bars} of {one.asked_bars} missing bars filled")
    if failed := [one for one in done if one.error]:
        raise dg.Failure(f"{len(failed)} of {len(done)} series failed, first {failed[0].series}: {failed[0].error}")


def jobs() -> list[dg.JobDefinition]:
    """Return the two jobs."""
    # a failed read is not repeated by Dagster: the next bar, or the next repair, does it
    refresh = dg.GraphDefinition(name=REFRESH, node_defs=[read_newest_bars])
    repair = dg.GraphDefinition(name=REPAIR, node_defs=[fill_open_gaps])
    return [
        refresh.to_job(
            description="Read the newest bars of every series of a market again, as its schedule does every bar.",
            executor_def=dg.in_process_executor,
        ),
        repair.to_job(
            description="Ask again for the bars of a market that are missing and may be filled.",
            executor_def=dg.in_process_executor,
        ),
    ]


def run_config(op: str, market: Market) -> dict[str, object]:
    """Return the run config of one of the ops for a market."""
    return {"ops": {op: {"config": {"market": str(market)}}}}


def _request(series: str, market: Market, market_data: MarketData, run_id: str) -> IngestRequest:
    return IngestRequest(
        series,
        market,
        (),
        market_data.settings.intervals.quality,
        market_data.settle_delay_ms,
        run_id,
        market_data.identity,
    )


def tell(context: dg.OpExecutionContext | dg.AssetExecutionContext, outcomes: Iterable[PartitionOutcome]) -> None:
    """Write what changed into Dagster's event log, as if the assets had been made."""
    for outcome in outcomes:
        asset = raw.key(outcome.key.asset)
        context.log_event(
            dg.AssetMaterialization(
                asset_key=asset,
                partition=outcome.key.partition,
                metadata={
                    "dagster/row_count": outcome.rows,
                    "data version": outcome.version,
                    "checks passed": outcome.passed,
                },
            )
        )
        for check in outcome.checks:
            # an event that ops may log since Dagster 1.4; its signature does not say so
            context.log_event(
                dg.AssetCheckEvaluation(  # type: ignore[arg-type]
                    asset_key=asset,
                    check_name=check.check,
                    passed=check.passed,
                    metadata={"partition": outcome.key.partition, "detail": str(dict(check.detail))},
                    severity=dg.AssetCheckSeverity.WARN if check.check in raw.ADVISORY else dg.AssetCheckSeverity.ERROR,
                )
            )
