"""``mlbot research table``: train, stack and backtest everything, then show it side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from mlbot_core.cli import output, selection
from mlbot_core.cli.launcher import launch
from mlbot_core.clock import clock_from_env
from mlbot_core.config import Settings, load_settings
from mlbot_core.errors import MissingDataError
from mlbot_core.timeframe import Market

research = typer.Typer(no_args_is_help=True, help="Every model and baseline side by side.")

_STEPS = {"train": 1, "stack": 1, "backtest": 2}
# what fits a terminal; the markdown has all columns
_SHOWN = (
    "timeframe",
    "model",
    "trades",
    "IC [95 %]",
    "hit rate [95 %]",
    "Sharpe [95 %]",
    "max DD",
    "MAR",
    "DSR (N)",
    "PBO",
)
# months of 4h bars as they were seen at the time: too short to judge, and shown as that
_VINTAGES, _VINTAGE_MARKET = "archive-vintages", "BTC-4h"


@research.callback()
def _group() -> None:
    """Make `table` a command of the group even while it is the only one."""


@research.command("table")
def table(
    interval: Annotated[
        list[str] | None, typer.Option("--interval", "-i", help="30m, 1h, 2h or 4h; may be repeated; default: all.")
    ] = None,
    source: Annotated[str, typer.Option("--source", "-s", help="Where the bars come from.")] = "archive",
    symbol: Annotated[str, typer.Option("--symbol", help="A configured symbol.")] = "BTC",
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="May be repeated; default: all models and baselines.")
    ] = None,
    start: Annotated[str | None, typer.Option("--from", help="First date of the test period, UTC.")] = "2022-01-01",
    end: Annotated[str | None, typer.Option("--to", help="End date, UTC, exclusive.")] = "2025-07-01",
    stored: Annotated[bool, typer.Option("--stored", help="Run nothing, show the newest stored backtests.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write JSON to standard output, progress to standard error.")
    ] = False,
) -> None:
    """Pull what is missing, train, stack and backtest every model walk-forward, and show one table.

    What is stored already is not made again; a run that was stopped goes on. The table is also written as markdown to
    reports/research-table.md under MLBOT_HOME.
    """
    from mlbot_core.research.table import COLUMNS, MEANING, markdown, table_rows

    settings, clock = load_settings(), clock_from_env()
    chosen = selection.markets(settings, clock, source, symbol, interval or [])
    models = selection.models_of(settings, chosen, model or ["all"])
    wanted = [(source, market, name) for market, name in models]
    if source == "archive" and any(str(market) == _VINTAGE_MARKET for market in chosen):
        wanted.append((_VINTAGES, Market.parse(_VINTAGE_MARKET), "lightgbm"))
    if not stored:
        _make(settings, source, chosen, models, start, end, as_json)
    rows = [row for name in dict.fromkeys(s for s, _, _ in wanted) for row in _stored(settings, name)]
    asked = {(name, f"{market.symbol}-{market.timeframe}", kind) for name, market, kind in wanted}
    rows = [row for row in rows if (row["source"], f"{row['symbol']}-{row['timeframe']}", row["model_type"]) in asked]
    if not rows:
        raise MissingDataError("no backtest is stored; run `mlbot research table` without --stored")
    cells = table_rows(rows)
    path = settings.reports_dir / "research-table.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(markdown(cells) + "\n" + MEANING + "\n", encoding="utf-8")
    if as_json:
        output.emit_json({"rows": rows, "markdown": str(path)})
        return
    console = output.console()
    shown = [COLUMNS.index(name) for name in _SHOWN]
    console.print(output.table("Research", _SHOWN, [[row[i] for i in shown] for row in cells], right=_SHOWN[2:]))
    for row in cells:
        console.print(f"{row[0]} {row[1]}: {row[-1]}", markup=False, soft_wrap=True)
    console.print(MEANING)
    console.print(f"markdown: {path}", soft_wrap=True)


def _make(
    settings: Settings,
    source: str,
    chosen: Sequence[Market],
    models: Sequence[tuple[Market, str]],
    start: str | None,
    end: str | None,
    as_json: bool,
) -> None:
    """Run what the table needs, phase by phase; a phase that fails ends it, since the next would rest on it."""
    clock = clock_from_env()
    series = selection.raw_series(settings, "needed")
    period = {key: value for key, value in (("start", start), ("end", end)) if value is not None}

    def pull(name: str, markets: Sequence[Market], last: str | None) -> list[selection.Run]:
        months = selection.months(settings, clock, name, None, last)
        return selection.pull_runs(settings, markets, months, name, series, derive=True, again=False)

    phases = [pull(source, chosen, end)]
    phases += selection.training_phases(models, source, period)
    phases.append(selection.model_runs("backtest", models, source))
    if source == "archive" and any(str(market) == _VINTAGE_MARKET for market in chosen):
        vintage = [(Market.parse(_VINTAGE_MARKET), "lightgbm")]
        phases.append(pull(_VINTAGES, [market for market, _ in vintage], None))
        phases += selection.training_phases(vintage, _VINTAGES, {})
        phases.append(selection.model_runs("backtest", vintage, _VINTAGES))
    for runs in phases:
        results = launch(runs, settings, output.console(to_stderr=as_json), steps=_STEPS)
        output.draw_runs(output.console(to_stderr=as_json), results)
        output.require_success(results)


def _stored(settings: Settings, source: str) -> list[dict[str, Any]]:
    from mlbot_core.cli import status as state
    from mlbot_core.warehouse import Warehouse

    with Warehouse(settings.warehouse_path, clock_from_env()).read() as con:
        return state.backtests(con, source)
