"""Live: the newest bar of a market, what the models say of it, and on the one decision clock what is done about it.

The three are unpartitioned: a run is about the one bar that its tags name. Nothing here decides whether a bar may
still be traded; :mod:`mlbot_core.execution` does, whoever launched the run.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dagster as dg
from pydantic import Field, PrivateAttr

from mlbot_core.clock import format_utc
from mlbot_core.config import Settings
from mlbot_core.timeframe import Market
from mlbot_dagster import metadata, upkeep
from mlbot_dagster.assets import features, models, raw
from mlbot_dagster.resources import MarketData, WarehouseResource

GROUP = "live"
JOB = "live_bar"
BARS_KEY = dg.AssetKey([GROUP, "bars"])
SIGNALS_KEY = dg.AssetKey([GROUP, "signals"])
DECISION_KEY = dg.AssetKey([GROUP, "decision"])
_ORDER_COLUMNS = ("order_link_id", "side", "type", "qty", "price", "status", "filled", "average_price", "stop_loss")
_OPS = ("live__bars", "live__signals", "live__decision")


class BarConfig(dg.Config):
    """Which bar; by hand the newest closed one of the decision clock."""

    market: str | None = Field(default=None, description="Like BTC-2h; empty: the decision clock's.")
    ts: int | None = Field(default=None, description="Open time, UTC ms; empty: the newest closed bar.")


class BarOfRun(dg.ConfigurableResource):
    """What the assets of one run hand to each other without storing it twice."""

    _forecasted: Any = PrivateAttr(default=None)

    def keep(self, forecasted: Any) -> None:
        """Remember what the models said of the bar."""
        self._forecasted = forecasted

    def kept(self) -> Any:
        """Return it; None where the signals were not made in this run."""
        return self._forecasted


def run_config(market: Market, ts: int) -> dict[str, Any]:
    """Return the run config for one bar."""
    bar = {"config": {"market": str(market), "ts": ts}}
    return {"ops": dict.fromkeys(_OPS, bar), "loggers": {"console": {"config": {}}}}


def build(settings: Settings) -> list[dg.AssetsDefinition]:
    """Return the live assets."""
    series = [raw.key(name) for name in features.series(settings)]

    @dg.asset(
        key=BARS_KEY,
        group_name=GROUP,
        description=(
            "The newest bar of every series that the features of a market are made of, asked for from its close until "
            "its decision time; what comes later is stored as late and is not traded on."
        ),
        deps=series,
        kinds={"duckdb"},
        owners=metadata.OWNERS,
        tags={"mlbot/room": "live"},
    )
    def bars(
        context: dg.AssetExecutionContext, config: BarConfig, warehouse: WarehouseResource, market_data: MarketData
    ) -> dg.MaterializeResult:
        from mlbot_core.live.pull import pull

        market = _market(config, market_data)
        store = warehouse.open(market_data.clock)
        done = pull(
            store,
            market_data.open(),
            market_data.settings,
            market,
            config.ts,
            run_id=context.run_id,
            identity=market_data.identity,
        )
        upkeep.tell(context, done.outcomes)
        context.log.info(done.line())
        return dg.MaterializeResult(metadata={**_facts(market, done.ts), **_shown(done.as_json())})

    @dg.asset(
        key=SIGNALS_KEY,
        group_name=GROUP,
        description=(
            "What every model of the market says of the bar, and the meta-models after them: stored once, with the "
            "bytes of the features that it was made of. Works without any trading."
        ),
        deps=[BARS_KEY, models.KEY, models.META_KEY],
        kinds={"lightgbm", "numpy", "duckdb"},
        owners=metadata.OWNERS,
        tags={"mlbot/room": "live"},
    )
    def signals(
        context: dg.AssetExecutionContext,
        config: BarConfig,
        warehouse: WarehouseResource,
        market_data: MarketData,
        bar_of_run: BarOfRun,
    ) -> dg.MaterializeResult:
        from mlbot_core.live.signals import forecast_newest

        market = _market(config, market_data)
        told = forecast_newest(
            warehouse.open(market_data.clock),
            market_data.settings,
            market_data.name,
            market,
            config.ts,
            run_id=context.run_id,
        )
        bar_of_run.keep(told)
        return dg.MaterializeResult(
            metadata={**_facts(market, told.ts), **_shown(told.as_json()), "said": _said_table(told.signals)}
        )

    @dg.asset(
        key=DECISION_KEY,
        group_name=GROUP,
        description=(
            "On the decision clock: the one decision on the bar, and its orders. A bar that is not the newest closed "
            "one, is too old or was decided already is left alone, with a line that says why, as other timeframes are."
        ),
        deps=[SIGNALS_KEY],
        kinds={"bybit", "sqlite"},
        owners=metadata.OWNERS,
        tags={"mlbot/room": "live"},
    )
    def decision(
        context: dg.AssetExecutionContext,
        config: BarConfig,
        warehouse: WarehouseResource,
        market_data: MarketData,
        bar_of_run: BarOfRun,
    ) -> dg.MaterializeResult:
        from mlbot_core.live.trading import decide_and_trade

        market = _market(config, market_data)
        done = decide_and_trade(
            warehouse.open(market_data.clock),
            market_data.settings,
            market_data.name,
            market,
            config.ts,
            forecasted=bar_of_run.kept(),
            run_id=context.run_id,
        )
        context.log.info(done.line())
        return dg.MaterializeResult(
            metadata={
                **_facts(market, done.ts),
                "what happened": done.line(),
                "orders sent": len(done.orders),
                "orders": _table_of(done.orders, _ORDER_COLUMNS),
                **_shown(done.as_json()),
            }
        )

    return [bars, signals, decision]


def _market(config: BarConfig, market_data: MarketData) -> Market:
    settings = market_data.settings
    return settings.decision_market if config.market is None else settings.intervals.market(config.market)


def _facts(market: Market, ts: int) -> dict[str, Any]:
    return {"market": str(market), "bar": format_utc(ts), "bar closed": format_utc(ts + market.timeframe.ms)}


def _shown(values: dict[str, Any]) -> dict[str, Any]:
    return {"everything": dg.MetadataValue.json(values)}


def _said_table(signals: Iterable[Any]) -> dg.TableMetadataValue:
    """Return one line a model: who it is, what it says, whether that may be used."""
    rows = [
        {
            "model": one.key.model_type,
            "version": one.key.model_version[:12],
            "role": one.role,
            "edge bp": f"{one.edge * 1e4:.2f}",
            "usable": str(one.usable),
            "why not": one.reason,
        }
        for one in signals
    ]
    return _table_of(rows, ("model", "version", "role", "edge bp", "usable", "why not"))


def _table_of(rows: Iterable[Mapping[str, str]], columns: Sequence[str]) -> dg.TableMetadataValue:
    records = [dg.TableRecord({name: row.get(name, "") for name in columns}) for row in rows]
    return dg.TableMetadataValue(records, dg.TableSchema(columns=[dg.TableColumn(name, "string") for name in columns]))
