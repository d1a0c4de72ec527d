"""Audit of live trading: each night the last day is simulated again, and challengers trade on paper beside champions.

Both are derived from what live runs stored. They write nothing, send nothing and may be made again at any time.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from mlbot_core.clock import format_utc
from mlbot_core.config import Settings
from mlbot_core.observability.sparkline import sparkline
from mlbot_core.observability.thumbnails import line_png, markdown_image
from mlbot_dagster import checks, metadata
from mlbot_dagster.assets import live, raw
from mlbot_dagster.resources import MarketData, WarehouseResource

if TYPE_CHECKING:
    from mlbot_core.live.parity_day import ParityDay
    from mlbot_core.live.shadow import Contest

GROUP = "audit"
JOB = "audit_live"
PARITY_KEY = dg.AssetKey([GROUP, "parity"])
SHADOW_KEY = dg.AssetKey([GROUP, "shadow"])
PARITY_CHECKS = ("parity",)
SHADOW_CHECKS = ("same_bars",)
_OP = "audit__parity"

_FILLS = (
    ("bar", "string", "open time of the bar, UTC"),
    ("live_qty", "double", "coins filled in the bar by live trading, signed"),
    ("qty", "double", "coins filled by the simulation, signed"),
    ("live_price", "double", "USD, average"),
    ("price", "double", "USD, average, simulated"),
    ("price_bp", "double", "live over simulated price, 1e-4"),
    ("band_bp", "double", "difference that is tolerated, 1e-4"),
    ("live_fee", "double", "USD"),
    ("fee", "double", "USD, simulated"),
    ("fee_difference", "double", "USD, live less simulated"),
    ("live_funding", "double", "USD paid"),
    ("funding", "double", "USD paid, simulated"),
    ("funding_difference", "double", "USD, live less simulated"),
    ("position_difference", "double", "coins held at the decision, live less simulated"),
    ("within", "bool", "whether position and price are within tolerance"),
)
_ACCOUNTS = (
    ("model", "string", "model type"),
    ("role", "string", "champion, or challenger in shadow"),
    ("version", "string", "of the model; the newest of a champion"),
    ("bars", "int", "bars that were decided on"),
    ("forecasts", "int", "bars with a usable forecast of their own"),
    ("missed", "int", "bars on which it said nothing"),
    ("nav", "double", "USD at the end"),
    ("return", "double", "fraction of the NAV at the start"),
    ("max_drawdown", "double", "fraction of the peak"),
    ("turnover", "double", "traded value over the NAV at the start"),
    ("fills", "int", "paper fills"),
    ("fees", "double", "USD"),
    ("funding", "double", "USD paid"),
)


class ParityConfig(dg.Config):
    """Which day."""

    day: str | None = Field(default=None, description="A whole UTC day like 2025-06-30; empty: the last one.")


class ShadowConfig(dg.Config):
    """Which market, and how far back."""

    market: str | None = Field(default=None, description="Like BTC-2h; empty: the decision clock's.")
    days: int = Field(default=30, ge=1, description="The newest so many days of signals.")


def run_config(day: str) -> dict[str, Any]:
    """Return the run config for one day."""
    return {"ops": {_OP: {"config": {"day": day}}}}


def build(settings: Settings) -> list[dg.AssetsDefinition]:  # noqa: ARG001 - as every room is built
    """Return the two assets."""

    @dg.asset(
        key=PARITY_KEY,
        group_name=GROUP,
        description=(
            "The last UTC day of live trading simulated again with the backtest's code from what was known then: each "
            "decision bit for bit, then position, fills, fees and funding of a free run beside the book's."
        ),
        deps=[live.DECISION_KEY, raw.key("price"), raw.key("funding_settled"), raw.key("funding_rate")],
        kinds={"numba", "duckdb", "sqlite"},
        owners=metadata.OWNERS,
        tags={"mlbot/room": "live"},
        metadata={"fill columns": metadata.schema(_FILLS)},
        check_specs=checks.specs(PARITY_KEY, PARITY_CHECKS, PARITY_CHECKS),
    )
    def parity(
        context: dg.AssetExecutionContext, config: ParityConfig, warehouse: WarehouseResource, market_data: MarketData
    ) -> Iterator[dg.MaterializeResult]:
        from mlbot_core.live.parity_day import certify_day, day_of

        clock = market_data.clock
        done = certify_day(warehouse.open(clock), market_data.settings, market_data.name, day_of(config.day, clock))
        context.log.info(done.line())
        told: dict[str, Any] = {"what came out": done.line(), "findings": _list(done.findings)}
        result = dg.AssetCheckResult(
            passed=done.passed,
            check_name=PARITY_CHECKS[0],
            asset_key=PARITY_KEY,
            severity=dg.AssetCheckSeverity.ERROR,
            metadata=told,
        )
        facts: dict[str, Any] = {
            "day": format_utc(done.day_ms)[:10],
            "outcome": done.outcome,
            "accounts": len(done.accounts),
        }
        yield dg.MaterializeResult(
            metadata={**facts, **told, **_certificates(done), "everything": dg.MetadataValue.json(done.as_json())},
            check_results=[result],
        )

    @dg.asset(
        key=SHADOW_KEY,
        group_name=GROUP,
        description=(
            "Challengers that forecast in shadow, each traded on paper on the champion's bars by the decision function "
            "and the backtest's costs, beside the champion's own forecasts. No order is sent and no book is touched."
        ),
        deps=[live.SIGNALS_KEY, raw.key("price"), raw.key("funding_settled"), raw.key("funding_rate")],
        kinds={"numba", "duckdb"},
        owners=metadata.OWNERS,
        tags={"mlbot/room": "live"},
        metadata={"account columns": metadata.schema(_ACCOUNTS)},
        check_specs=checks.specs(SHADOW_KEY, SHADOW_CHECKS, SHADOW_CHECKS),
    )
    def shadow(
        context: dg.AssetExecutionContext, config: ShadowConfig, warehouse: WarehouseResource, market_data: MarketData
    ) -> Iterator[dg.MaterializeResult]:
        from mlbot_core.live.shadow import contests, newest_period

        chosen, store = market_data.settings, warehouse.open(market_data.clock)
        market = chosen.decision_market if config.market is None else chosen.intervals.market(config.market)
        start, end = newest_period(store, market, config.days)
        found = contests(store, chosen, market_data.name, market, start, end)
        lines = [one.line() for one in found] or [f"{market}: no challenger forecast in the last {config.days} days"]
        for line in lines:
            context.log.info(line)
        apart = [one.line() for one in found if not one.same_bars]
        result = dg.AssetCheckResult(
            passed=not apart,
            check_name=SHADOW_CHECKS[0],
            asset_key=SHADOW_KEY,
            severity=dg.AssetCheckSeverity.WARN,
            metadata={"asked on other bars": _list(apart)},
        )
        yield dg.MaterializeResult(
            metadata={
                "market": str(market),
                "period": metadata.span(start, end),
                "challengers": len(found),
                "what came out": _list(lines),
                **_accounts(found),
                "everything": dg.MetadataValue.json([one.as_json() for one in found]),
            },
            check_results=[result],
        )

    return [parity, shadow]


def _certificates(done: "ParityDay") -> dict[str, Any]:
    """Return what is shown of each account: a table of fills, totals, a plot."""
    from mlbot_core.live.parity_plot import parity_png

    shown: dict[str, Any] = {}
    for name, found in done.accounts.items():
        bars, fills = found.bars, found.fills
        rows = fills.assign(bar=[format_utc(ts) for ts in fills["ts"].tolist()]).to_dict("records")
        shown[f"fills of {name}"] = _table(rows, _FILLS)
        totals = [
            {
                "what": what,
                "live": live_usd,
                "simulated": simulated,
                "difference": live_usd - simulated,
                "tolerated": tolerated,
            }
            for what, (live_usd, simulated, tolerated) in found.totals.items()
        ]
        shown[f"totals of {name}"] = _table(totals, _TOTALS)
        caption = f"{name}: coins held, live (blue) and simulated (grey)"
        lines = [bars["live_position"].to_numpy(), bars["position"].to_numpy()]
        shown |= {f"{part} of {name}": value for part, value in _plot(sparkline(lines, caption), parity_png(found))}
        shown[f"notes on {name}"] = _list(found.notes)
    return shown


_TOTALS = (
    ("what", "string", "fees or funding"),
    ("live", "double", "USD paid"),
    ("simulated", "double", "USD"),
    ("difference", "double", "USD"),
    ("tolerated", "double", "USD, a lot or half a percent of each fill or position"),
)


def _accounts(found: Sequence["Contest"]) -> dict[str, Any]:
    """Return the table of champions beside challengers, and the newest contest's NAV."""
    rows = []
    for one in found:
        for account in (one.champion, one.challenger):
            told = account.as_json()
            rows.append({**told, "model": told["model_type"], "version": told["versions"][-1][:12]})
    shown: dict[str, Any] = {"champion and challenger": _table(rows, _ACCOUNTS)}
    for one in found:
        name = f"{one.model_type} {one.challenger.versions[0][:12]}"
        champion, challenger = one.champion.simulation, one.challenger.simulation
        png = line_png(
            challenger.ts, {"champion": champion.nav, "challenger": challenger.nav}, f"{one.market} {name}", "USD"
        )
        small = sparkline([challenger.nav, champion.nav], f"NAV of {name} (blue) and its champion (grey)")
        shown |= {f"{part}, {name}": value for part, value in _plot(small, png)}
    return shown


def _plot(small: str, png: bytes) -> list[tuple[str, Any]]:
    return [
        ("at a glance", dg.MetadataValue.md(small)),
        ("plot", dg.MetadataValue.md(markdown_image(png, "plot"))),
    ]


def _list(lines: Sequence[str]) -> dg.MarkdownMetadataValue:
    return dg.MetadataValue.md("\n".join(f"- {line}" for line in lines) or "none")


def _table(rows: Sequence[Mapping[Any, Any]], columns: Sequence[tuple[str, str, str]]) -> dg.TableMetadataValue:
    """Return a table; what is not a number is left empty."""
    records = [dg.TableRecord({name: _cell(row[name]) for name, _, _ in columns}) for row in rows]
    return dg.TableMetadataValue(records, metadata.schema(columns))


def _cell(value: Any) -> str | int | float | bool | None:
    plain = value.item() if hasattr(value, "item") else value
    if isinstance(plain, float):
        return round(plain, 6) if plain == plain else None
    return plain if isinstance(plain, str | int | bool) else str(plain)
