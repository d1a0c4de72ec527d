"""``mlbot models explain``: what the newest models rest on, measured on bars that trained nothing."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mlbot_core.cli import output, selection
from mlbot_core.cli.launcher import launch
from mlbot_core.clock import clock_from_env
from mlbot_core.config import Settings, load_settings
from mlbot_core.timeframe import Market

_SHOWN = 12


def register(app: typer.Typer) -> None:
    """Add the command to the group of models."""
    app.command("explain")(explain)


def explain(
    interval: Annotated[
        list[str] | None, typer.Option("--interval", "-i", help="May be repeated; default: all.")
    ] = None,
    source: Annotated[str | None, typer.Option("--source", "-s", help="Where the bars come from.")] = None,
    symbol: Annotated[str, typer.Option("--symbol", help="A configured symbol.")] = "BTC",
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="May be repeated, or all; default: lightgbm.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write JSON to standard output, progress to standard error.")
    ] = False,
) -> None:
    """Explain the newest trained models: permutation importance, contributions, lift and drift of the forecasts."""
    settings, clock = load_settings(), clock_from_env()
    name = selection.source_name(settings, source)
    models = selection.models_of(settings, selection.markets(settings, clock, name, symbol, interval or []), model)
    runs = selection.model_runs("explain", models, name)
    results = launch(runs, settings, output.console(to_stderr=as_json), steps={"explain": 1})
    tables = {f"{market}|{kind}": _stored(settings, name, market, kind) for market, kind in models}
    if as_json:
        output.emit_json({"runs": [result.as_json() for result in results], "explanations": tables})
    else:
        console = output.console()
        output.draw_runs(console, results)
        for title, rows in tables.items():
            if rows:
                console.print(_table(title, rows))
    output.require_success(results)


def _stored(settings: Settings, source: str, market: Market, kind: str) -> list[dict[str, Any]]:
    """Return the explanation of the newest version; nothing where there is none."""
    from mlbot_core.models.explanations import FEATURES_TABLE, newest_version
    from mlbot_core.warehouse import Warehouse
    from mlbot_core.warehouse.windows import read_window

    with Warehouse(settings.warehouse_path, clock_from_env()).read() as con:
        version = newest_version(con, source, f"{market}|{kind}")
        if version is None:
            return []
        scope = {
            "source": source,
            "symbol": market.symbol,
            "timeframe": str(market.timeframe),
            "model_type": kind,
            "model_version": version,
        }
        rows = read_window(con, FEATURES_TABLE, scope, order_by="feature").to_pylist()
    return sorted(rows, key=lambda row: -(row["permutation"] if row["permutation"] is not None else float("-inf")))


def _table(title: str, rows: list[dict[str, Any]]) -> Any:
    columns = ("feature", "share of gain", "loss of skill when shuffled", "deviation", "mean contribution")
    keys = ("gain_share", "permutation", "permutation_sd", "contribution")
    cells = [
        [row["feature"], *("n/a" if row[key] is None else f"{row[key]:.4f}" for key in keys)] for row in rows[:_SHOWN]
    ]
    return output.table(
        f"{title}: the {min(_SHOWN, len(rows))} of {len(rows)} that count most", columns, cells, right=columns[1:]
    )
