"""The ``mlbot`` command: thin calls into Dagster, so that everything it does is recorded and can be audited."""

from __future__ import annotations

import errno
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mlbot_core import __version__
from mlbot_core.cli import audit as audit_commands
from mlbot_core.cli import bandit as bandit_commands
from mlbot_core.cli import browser, explanations, output, research, selection
from mlbot_core.cli import compare as compare_command
from mlbot_core.cli import db as db_commands
from mlbot_core.cli import features as feature_commands
from mlbot_core.cli import models as model_commands
from mlbot_core.cli import probe as probe_command
from mlbot_core.cli import research_table as table_commands
from mlbot_core.cli import series as series_commands
from mlbot_core.cli import signal as signal_command
from mlbot_core.cli import trading as trading_commands
from mlbot_core.cli.launcher import RunResult, launch
from mlbot_core.cli.selection import Run
from mlbot_core.clock import clock_from_env
from mlbot_core.config import Settings, load_settings
from mlbot_core.errors import MlbotError
from mlbot_core.timeframe import Market

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="A machine-learning trader for BTC perpetual futures. Every command launches the same assets as the web UI.",
    epilog="Exit status: 0 done, 1 the work failed, 2 a mistake in what was asked or configured.",
)

# what the system says of a place that cannot be used as it was meant
_PLACES = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EROFS, errno.ENAMETOOLONG)

STEPS: Mapping[str, int] = {
    "features_and_targets": 2,
    "train": 1,
    "stack": 1,
    "backtest": 2,
    "report": 1,
}

Interval = Annotated[
    list[str] | None, typer.Option("--interval", "-i", help="30m, 1h, 2h or 4h; may be repeated; default: all.")
]
Source = Annotated[
    str | None,
    typer.Option(
        "--source", "-s", help="emulator, coinglass, bybit, archive or archive-vintages; default: as configured."
    ),
]
Symbol = Annotated[str, typer.Option("--symbol", help="A configured symbol.")]
Model = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        "-m",
        help="lightgbm, catboost, tft, ridge, momentum, constant, meta or all; may be repeated; default: lightgbm.",
    ),
]
From = Annotated[str | None, typer.Option("--from", help="First date, UTC, like 2024-03-01.")]
To = Annotated[str | None, typer.Option("--to", help="End date, UTC, exclusive, like 2025-07-01.")]
Json = Annotated[bool, typer.Option("--json", help="Write JSON to standard output, progress to standard error.")]


@app.command()
def up(
    host: Annotated[
        str, typer.Option(help="Address to listen on; keep it local, the UI has no password.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the web UI.")] = 3000,
    demo: Annotated[bool, typer.Option("--demo", help="Serve the home that `mlbot demo` filled.")] = False,
    live: Annotated[
        bool, typer.Option("--live", help="Trade: sensors on, risk watch, dead-man and exporter beside the servers.")
    ] = False,
    warm: Annotated[
        bool, typer.Option("--warm", help="With --live: runs start from a process that has imported everything.")
    ] = False,
) -> None:
    """Serve the Dagster UI and daemon until Ctrl-C; with --live, trade at the configured venue."""
    from mlbot_core.cli.up import up as serve

    if demo:
        _enter_demo()
    if live:
        from mlbot_core.cli.up_live import up_live

        raise typer.Exit(up_live(load_settings(), output.console(), host=host, port=port, warm=warm))
    raise typer.Exit(serve(load_settings(), output.console(), host=host, port=port))


@app.command()
def backfill(
    interval: Interval = None,
    source: Source = None,
    symbol: Symbol = "BTC",
    start: From = None,
    end: To = None,
    series: Annotated[
        str,
        typer.Option(
            "--series",
            help="needed (by the configured feature set), all, or names with commas; see `mlbot series list`.",
        ),
    ] = "needed",
    again: Annotated[
        bool, typer.Option("--again", help="Read stored months again too, which finds restated bars.")
    ] = False,
    raw_only: Annotated[bool, typer.Option("--raw-only", help="Make no features and targets.")] = False,
    as_json: Json = False,
) -> None:
    """Pull raw series, then make features and targets, month by month; what is stored in full is not asked again."""
    settings, name, chosen = _resolve(source, symbol, interval)
    months = selection.months(settings, clock_from_env(), name, start, end)
    names = selection.raw_series(settings, series)
    runs = selection.pull_runs(settings, chosen, months, name, names, derive=not raw_only, again=again)
    _finish(_launch(runs, settings, as_json), as_json)


@feature_commands.app.callback(invoke_without_command=True)
def features(
    context: typer.Context,
    interval: Interval = None,
    source: Source = None,
    symbol: Symbol = "BTC",
    start: From = None,
    end: To = None,
    as_json: Json = False,
) -> None:
    """Make features and targets again from stored series; with a command, look at the definitions instead."""
    if context.invoked_subcommand is None:
        _data_job("features_and_targets", interval, source, symbol, start, end, as_json)


app.add_typer(feature_commands.app, name="features")
app.add_typer(db_commands.app, name="db")
explanations.register(model_commands.app)
app.add_typer(model_commands.app, name="models")
app.add_typer(series_commands.app, name="series")


@app.command()
def train(
    interval: Interval = None,
    source: Source = None,
    symbol: Symbol = "BTC",
    model: Model = None,
    start: From = None,
    end: To = None,
    optimize: Annotated[
        bool, typer.Option("--optimize", help="Search parameters on what lies before --from first; goes on if stopped.")
    ] = False,
    trials: Annotated[int | None, typer.Option(min=1, help="Parameter sets to try; default: as configured.")] = None,
    as_json: Json = False,
) -> None:
    """Train walk-forward; --from and --to bound the test period."""
    settings, name, chosen = _resolve(source, symbol, interval)
    period = {"start": start, "end": end}
    selection.require_period(start, end)
    asked = {key: value for key, value in period.items() if value is not None}
    chosen_models = selection.models_of(settings, chosen, model)
    search = selection.search_of(settings, model, trials) if optimize else None
    phases = selection.training_phases(chosen_models, name, asked, search)
    _finish([result for runs in phases for result in _launch(runs, settings, as_json)], as_json)


@app.command()
def backtest(
    interval: Interval = None,
    source: Source = None,
    symbol: Symbol = "BTC",
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Trade the stored forecasts with all costs; write the report."""
    settings, name, chosen = _resolve(source, symbol, interval)
    models = selection.models_of(settings, chosen, model)
    results = _launch(selection.model_runs("backtest", models, name), settings, as_json)
    _finish(results, as_json, _summaries(settings, name, models), _reports(settings, name, models))


@app.command()
def report(
    interval: Interval = None,
    source: Source = None,
    symbol: Symbol = "BTC",
    model: Model = None,
    open_: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    as_json: Json = False,
) -> None:
    """Write the HTML report of a stored backtest again."""
    settings, name, chosen = _resolve(source, symbol, interval)
    models = selection.models_of(settings, chosen, model)
    results = _launch(selection.model_runs("report", models, name), settings, as_json)
    paths = _reports(settings, name, models)
    if open_:
        browser.open_files(paths, output.console(to_stderr=as_json))
    _finish(results, as_json, _summaries(settings, name, models), paths)


@app.command()
def status(as_json: Json = False) -> None:
    """Say what is stored, what failed, what was trained, and how trading stands."""
    from mlbot_core.cli import status as state
    from mlbot_core.cli import trading_status

    settings = load_settings()
    found = {**state.collect(settings), "trading": trading_status.collect(settings, clock_from_env())}
    if as_json:
        output.emit_json(found)
        return
    console = output.console()
    running = found["up"]
    where = f"up at {running['url']} (process {running['pid']})" if running else "not up"
    console.print(f"home {found['home']}, source {found['source']}, {where}")
    trading_status.draw(console, found["trading"])
    if not found["partitions"]:
        console.print("Nothing is stored yet. Try: mlbot backfill   (or make demo)")
        return
    columns = ("source", "market", "months", "first", "last", "price bars", "feature rows", "target rows", "written")
    console.print(output.table("Stored", columns, _by_market(found["partitions"]), right=columns[5:8]))
    failed = [
        [check[name] for name in ("source", "asset", "partition", "check", "detail")]
        for check in found["failed_checks"]
    ]
    if failed:
        console.print(output.table("Failed checks", ("source", "asset", "partition", "check", "detail"), failed))
    console.print(f"open gaps: {found['open_gaps']}")
    for source in sorted({str(row["source"]) for row in found["backtests"]}):
        rows = _by_timeframe([row for row in found["backtests"] if row["source"] == source])
        title = f"Newest backtests, source {source}{' (SYNTHETIC)' if rows[0]['synthetic'] else ''}"
        console.print(output.summary_table(rows, title))


@app.command()
def doctor(
    test_message: Annotated[
        bool, typer.Option("--test-message", help="Send one to every channel of alerts, and say whether it was taken.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Examine machine, configuration, store, sources and where alerts go."""
    from mlbot_core.cli.doctor import examine

    findings = examine(load_settings(), clock_from_env(), test_message=test_message)
    if as_json:
        output.emit_json([finding.as_json() for finding in findings])
    else:
        rows = [(finding.name, finding.state, finding.text) for finding in findings]
        output.console().print(output.table("mlbot doctor", ("what", "state", "finding"), rows))
    if any(finding.state == "bad" for finding in findings):
        raise typer.Exit(1)


@app.command()
def demo(as_json: Json = False) -> None:
    """Run the whole flow on a SYNTHETIC market; no key needed."""
    from mlbot_core.cli.demo import START

    home = _enter_demo()
    settings, name, chosen = _resolve(None, "BTC", None)
    console = output.console(to_stderr=as_json)
    console.print(f"mlbot demo: a SYNTHETIC market with a planted signal; everything goes to {home}")
    months = selection.months(settings, clock_from_env(), name, START, None)
    series = selection.raw_series(settings, "needed")
    runs = selection.pull_runs(settings, chosen, months, name, series, derive=True, again=False)
    models = selection.models_of(settings, chosen, None)
    for phase in selection.training_phases(models, name, {}):
        runs += phase
    runs += selection.model_runs("backtest", models, name)
    results = _launch(runs, settings, as_json)
    _finish(results, as_json, _summaries(settings, name, models), _reports(settings, name, models))
    console.print(
        "The market above is synthetic and its signal was planted: it shows that the machinery works, nothing else."
    )
    console.print("Look at it in the Dagster UI: .venv/bin/mlbot up --demo")


research.register(app)
compare_command.register(app)
probe_command.register(app)
signal_command.register(app)
trading_commands.register(app)
audit_commands.register(app)
app.add_typer(table_commands.research, name="research")
app.add_typer(bandit_commands.app, name="bandit")


def main() -> None:
    """Entry point: one clear line for a person's mistake, never a traceback for one."""
    try:
        app(prog_name="mlbot")
    except MlbotError as error:
        print(f"mlbot: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    except OSError as error:
        if error.filename is None or error.errno not in _PLACES:
            raise
        said = f"{error.filename}: {error.strerror}; choose another place (MLBOT_HOME, --help) or mend this one"
        print(f"mlbot: {said}", file=sys.stderr)  # noqa: T201
        sys.exit(2)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"mlbot {__version__}")
        raise typer.Exit(0)


def _enter_demo() -> Path:
    from mlbot_core.cli import demo as room

    return room.enter()


def _resolve(source: str | None, symbol: str, intervals: Sequence[str] | None) -> tuple[Settings, str, list[Market]]:
    settings = load_settings()
    name = selection.source_name(settings, source)
    return settings, name, selection.markets(settings, clock_from_env(), name, symbol, intervals or [])


def _data_job(
    job: str,
    interval: Sequence[str] | None,
    source: str | None,
    symbol: str,
    start: str | None,
    end: str | None,
    as_json: bool,
) -> None:
    settings, name, chosen = _resolve(source, symbol, interval)
    months = selection.months(settings, clock_from_env(), name, start, end)
    results = _launch(selection.data_runs(job, chosen, months, name), settings, as_json)
    _finish(results, as_json)


def _launch(runs: Sequence[Run], settings: Settings, as_json: bool) -> list[RunResult]:
    return launch(runs, settings, output.console(to_stderr=as_json), steps=STEPS)


def _finish(
    results: Sequence[RunResult],
    as_json: bool,
    summaries: Sequence[Mapping[str, Any]] = (),
    reports: Sequence[Path] = (),
) -> None:
    """Show how the runs ended and leave with 1 if one failed."""
    if as_json:
        document: dict[str, Any] = {"runs": [result.as_json() for result in results]}
        if summaries or reports:
            document |= {"summaries": list(summaries), "reports": [str(path) for path in reports]}
        output.emit_json(document)
    else:
        _draw(results, summaries, reports)
    output.require_success(results)


def _draw(results: Sequence[RunResult], summaries: Sequence[Mapping[str, Any]], reports: Sequence[Path]) -> None:
    console = output.console()
    output.draw_runs(console, results, done=True)
    if summaries:
        synthetic = any(row.get("synthetic") for row in summaries)
        console.print(output.summary_table(summaries, "SYNTHETIC MARKET: backtests" if synthetic else "Backtests"))
    for path in reports:
        console.print(f"report: {path}", soft_wrap=True)


def _by_market(parts: Sequence[Mapping[str, Any]]) -> list[list[object]]:
    """Return one line a market of the monthly assets."""
    rows: list[list[object]] = []
    for source, market in sorted({(str(p["source"]), Market.parse(str(p["market"]))) for p in parts}):
        mine = {p["asset"]: p for p in parts if (p["source"], p["market"]) == (source, str(market))}
        price = mine.get("price")
        if price is None:
            continue
        counts = [f"{mine[name]['rows']:,}" if name in mine else "" for name in ("price", "features", "targets")]
        newest = max(str(part["written_at"]) for part in mine.values())
        rows.append([source, market, price["partitions"], price["first"], price["last"], *counts, newest])
    return rows


def _by_timeframe(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: Market.parse(f"{row['symbol']}-{row['timeframe']}"))


def _summaries(settings: Settings, source: str, models: Sequence[tuple[Market, str]]) -> list[dict[str, Any]]:
    from mlbot_core.cli import status as state
    from mlbot_core.warehouse import Warehouse

    asked = {(market.symbol, str(market.timeframe), model) for market, model in models}
    with Warehouse(settings.warehouse_path, clock_from_env()).read() as con:
        rows = state.backtests(con, source)
    return _by_timeframe([row for row in rows if (row["symbol"], row["timeframe"], row["model_type"]) in asked])


def _reports(settings: Settings, source: str, models: Sequence[tuple[Market, str]]) -> list[Path]:
    """Return the newest report of each market and model type."""
    found = []
    for market, model in models:
        paths = settings.reports_dir.glob(f"{market}-{model}-{source}-*.html")
        found += sorted(paths, key=lambda path: path.stat().st_mtime)[-1:]
    return found


__all__ = ["app", "main"]

if __name__ == "__main__":
    main()
