"""``mlbot models shadow``: challengers that forecast in shadow, traded on paper beside their champions."""

from __future__ import annotations

from typing import Annotated

import typer

from mlbot_core.cli import output, selection
from mlbot_core.clock import clock_from_env, format_utc
from mlbot_core.config import load_settings

_COLUMNS = ("role", "version", "bars", "forecasts", "missed", "NAV", "return", "max DD", "turnover", "fills")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("shadow")(shadow)


def shadow(
    interval: Annotated[str | None, typer.Option("--interval", "-i", help="Default: the decision clock's.")] = None,
    source: Annotated[str | None, typer.Option("--source", "-s", help="Where the bars come from.")] = None,
    symbol: Annotated[str | None, typer.Option("--symbol", help="A configured symbol.")] = None,
    days: Annotated[int, typer.Option("--days", min=1, help="The newest so many days of live signals.")] = 30,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON to standard output.")] = False,
) -> None:
    """Trade the stored signals of challengers on paper, beside the champion on the same bars; no order is sent."""
    from mlbot_core.live.shadow import contests, newest_period
    from mlbot_core.warehouse import Warehouse

    settings, clock = load_settings(), clock_from_env()
    name = selection.source_name(settings, source)
    (market,) = selection.markets(
        settings, clock, name, symbol or settings.execution.symbol, [interval or str(settings.execution.timeframe)]
    )
    store = Warehouse(settings.warehouse_path, clock)
    start, end = newest_period(store, market, days)
    found = contests(store, settings, name, market, start, end)
    if as_json:
        output.emit_json({"market": str(market), "days": days, "contests": [one.as_json() for one in found]})
        return
    console = output.console()
    for one in found:
        rows = []
        for account in (one.champion, one.challenger):
            done = account.simulation
            rows.append(
                [
                    account.role,
                    account.versions[-1][:12],
                    len(done.ts),
                    account.forecasts,
                    account.missed,
                    f"{account.nav:,.2f}",
                    f"{account.total_return:+.2%}",
                    f"{account.drawdown:.2%}",
                    f"{account.turnover:.2f}",
                    len(done.fills),
                ]
            )
        title = f"{market} {one.model_type}, on paper from {format_utc(one.start_ms)} to {format_utc(one.end_ms)}"
        console.print(output.table(title, _COLUMNS, rows, right=_COLUMNS[2:]))
        if not one.same_bars:
            console.print("they were not asked on the same bars: see missed")
    if not found:
        console.print(f"No challenger of {market} forecast in the last {days} days.")
        console.print("A candidate beside a champion does: mlbot train, then mlbot up --live or mlbot signal")
