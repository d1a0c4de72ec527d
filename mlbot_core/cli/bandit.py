"""``mlbot bandit``: sizes that are learned: evaluate them, let a market use them, turn them off, see what is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from mlbot_core.cli import output, selection
from mlbot_core.clock import Clock, clock_from_env, format_utc
from mlbot_core.config import Settings, load_settings
from mlbot_core.errors import MlbotError, UsageError
from mlbot_core.timeframe import Market

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Learned position sizes: used where a policy was evaluated and promoted, else the whole cap as backtested.",
)

Source = Annotated[str | None, typer.Option("--source", "-s", help="Where the bars come from; default: as configured.")]
Symbol = Annotated[str, typer.Option("--symbol", help="A configured symbol.")]
Intervals = Annotated[
    list[str] | None, typer.Option("--interval", "-i", help="30m, 1h, 2h or 4h; may be repeated; default: all.")
]
Models = Annotated[list[str] | None, typer.Option("--model", "-m", help="May be repeated, or all; default: lightgbm.")]
Interval = Annotated[str, typer.Option("--interval", "-i", help="30m, 1h, 2h or 4h.")]
Model = Annotated[str, typer.Option("--model", "-m", help="A model type.")]
Why = Annotated[str, typer.Option("--why", help="The reason, for those who read it later.")]
Json = Annotated[bool, typer.Option("--json", help="Write JSON to standard output, progress to standard error.")]

_STEPS = {"bandit": 1}
_COLUMNS = (
    "sizes by",
    "mean size",
    "reward [95 %]",
    "eff. n",
    "bandit's advantage [95 %]",
    "from the log [95 %]",
    "net return",
    "Sharpe [95 %]",
    "max DD",
    "trades",
)
MEANING = (
    "On the judged part of the decisions, at the traded size, net of fees, slippage and funding. Reward: log growth of "
    "a position's period less the drawdown's penalty, a decision, in units of bandit.yaml. Advantage: the bandit's "
    "mean reward less this row's, by simulation, and from the exploring policy's log alone (doubly robust); eff. n: "
    "effective sample size of that log's weights."
)


@app.command()
def evaluate(
    interval: Intervals = None,
    source: Source = None,
    symbol: Symbol = "BTC",
    model: Models = None,
    as_json: Json = False,
) -> None:
    """Let the bandit learn on stored forecasts and judge it against fixed fractions, volatility targeting and Kelly."""
    from mlbot_core.cli.launcher import launch

    settings, clock = load_settings(), clock_from_env()
    name = selection.source_name(settings, source)
    models = selection.models_of(settings, selection.markets(settings, clock, name, symbol, interval or []), model)
    runs = selection.model_runs("bandit", models, name)
    results = launch(runs, settings, output.console(to_stderr=as_json), steps=_STEPS)
    found = [row for market, kind in models for row in _newest(settings, clock, name, market, kind)]
    if as_json:
        output.emit_json({"runs": [result.as_json() for result in results], "evaluations": found})
    else:
        console = output.console()
        output.draw_runs(console, results)
        for summary in found:
            console.print(table_of(summary))
            console.print(f"verdict: {summary['verdict']}", markup=False, soft_wrap=True)
        if found:
            console.print(MEANING)
    output.require_success(results)


@app.command()
def promote(
    interval: Interval,
    why: Why,
    source: Source = None,
    symbol: Symbol = "BTC",
    model: Model = "lightgbm",
    as_json: Json = False,
) -> None:
    """Let a market use the evaluated policy, if the evaluation, made again now, passes. Exit status 1 if not."""
    from mlbot_core.decision.bandit_log import BanditLog
    from mlbot_core.research.bandit_store import promote_stored
    from mlbot_core.warehouse import Warehouse

    settings, clock = load_settings(), clock_from_env()
    request = _request(settings, clock, source, symbol, interval, model)
    warehouse = Warehouse(settings.warehouse_path, clock)
    log = BanditLog(settings.home, clock)
    refusal: MlbotError | None = None
    try:
        promote_stored(warehouse, request, settings, log, _reason(why))
    except MlbotError as error:
        refusal = error
    line = f"{request.source} {request.market} {request.model_type}"
    if as_json:
        output.emit_json(
            {"line": line, "promoted": refusal is None, "reason": None if refusal is None else str(refusal)}
        )
    elif refusal is None:
        output.console().print(f"{line} uses the learned sizes from now on; to stop: mlbot bandit off", soft_wrap=True)
    else:
        output.console().print(f"REFUSED: {refusal}", style="red", markup=False, soft_wrap=True)
    if refusal is not None:
        raise typer.Exit(refusal.exit_code)


@app.command()
def off(
    why: Why,
    interval: Annotated[str | None, typer.Option("--interval", "-i", help="Only this interval.")] = None,
    source: Annotated[str | None, typer.Option("--source", "-s", help="Only this source.")] = None,
    symbol: Annotated[str | None, typer.Option("--symbol", help="Only this symbol.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Only this model type.")] = None,
    as_json: Json = False,
) -> None:
    """Take a promoted policy out of use: volatility targeting from now on. Works whatever else is broken."""
    from mlbot_core.config.models import MODEL_NAMES
    from mlbot_core.config.settings import SOURCE_NAMES
    from mlbot_core.decision.bandit_live import line_of
    from mlbot_core.decision.bandit_log import BanditLog

    settings, clock = load_settings(), clock_from_env()
    log = BanditLog(settings.home, clock)
    # every line there can be, whatever the log would say: it may be what is broken
    lines = [
        line_of(one, market, kind)
        for one in SOURCE_NAMES
        for market in settings.intervals.markets
        for kind in MODEL_NAMES
        if source in (None, one)
        and symbol in (None, market.symbol)
        and interval in (None, str(market.timeframe))
        and model in (None, kind)
    ]
    if not lines:
        raise UsageError(
            "no configured source, market and model matches; leave options out, or see: mlbot bandit status"
        )
    problem = log.off(lines, why=_reason(why))
    if as_json:
        output.emit_json({"off": lines, "not_logged": problem})
        return
    console = output.console()
    console.print(
        f"off: no learned sizes for {len(lines)} combinations of source, market and model; volatility targeting where "
        "a policy was in use, the whole cap as backtested elsewhere",
        soft_wrap=True,
    )
    if problem is not None:
        console.print(f"it holds, but could not be written into the log: {problem}", style="yellow", markup=False)


@app.command()
def status(as_json: Json = False) -> None:
    """Show what is used where, what was evaluated, and what was promoted and turned off."""
    from mlbot_core.decision.bandit_log import BanditLog
    from mlbot_core.research.bandit_store import stored_evaluations
    from mlbot_core.warehouse import Warehouse

    settings, clock = load_settings(), clock_from_env()
    log = BanditLog(settings.home, clock)
    evaluations: list[dict[str, Any]] = []
    if settings.warehouse_path.exists():
        with Warehouse(settings.warehouse_path, clock).read() as con:
            evaluations = stored_evaluations(con, {})
    newest = {str(row["summary"]["line"]): row for row in evaluations}
    events = log.events()
    lines = sorted({*newest, *(str(event["line"]) for event in events)})
    rows = [_state(log, line, newest.get(line)) for line in lines]
    if as_json:
        output.emit_json({"lines": rows, "events": events})
        return
    console = output.console()
    if not rows:
        console.print("Nothing was evaluated yet: the whole cap is used, as backtested. Try: mlbot bandit evaluate")
        return
    columns = ("line", "sizes by", "policy", "updates", "open", "evaluated", "verdict")
    console.print(output.table("Position sizes", columns, [[row[name] for name in columns] for row in rows]))
    if events:
        history = [(format_utc(int(e["at_ms"])), e["line"], e["kind"], e["why"]) for e in events[-20:]]
        console.print(output.table("History", ("at", "line", "event", "why"), history))


def table_of(summary: Mapping[str, Any]) -> Any:
    """Return the table of one evaluation."""
    rows = [
        (
            row["name"],
            f"{row['multiplier']:.2f}",
            _interval(row["reward"], ".3f"),
            "" if row["effective_n"] is None else f"{row['effective_n']:.0f}",
            _interval(row["advantage_simulated"], "+.3f"),
            _interval(row["advantage_log"], "+.3f"),
            f"{row['total_return']:+.2%}" if row["total_return"] is not None else "n/a",
            _interval(row["sharpe"], ".2f"),
            f"{row['max_drawdown']:.2%}" if row["max_drawdown"] is not None else "n/a",
            str(row["trades"]),
        )
        for row in summary["rows"]
    ]
    title = (
        f"{'SYNTHETIC MARKET: ' if summary['synthetic'] else ''}{summary['line']}: {summary['judged']} judged of "
        f"{summary['decisions']} decisions, {format_utc(summary['judged_from_ms'])[:10]} to "
        f"{format_utc(summary['end_ms'])[:10]}"
    )
    return output.table(title, _COLUMNS, rows, right=_COLUMNS[1:])


def _state(log: Any, line: str, evaluated: Mapping[str, Any] | None) -> dict[str, Any]:
    row: dict[str, Any] = {"line": line, "sizes by": "whole cap", "policy": "", "updates": "", "open": ""}
    try:
        if log.was_promoted(line):
            row["sizes by"] = "volatility target"
        state = log.state(line)
        if state is not None:
            row |= {"sizes by": "bandit", "policy": state.version[:12], "updates": state.updates}
            row["open"] = len(log.pending(line))
    except MlbotError as error:
        row["sizes by"] = f"CANNOT BE READ: {error}"
    return row | {
        "evaluated": "" if evaluated is None else format_utc(int(evaluated["created_at"])),
        "verdict": "" if evaluated is None else evaluated["outcome"],
    }


def _newest(settings: Settings, clock: Clock, source: str, market: Market, kind: str) -> list[dict[str, Any]]:
    from mlbot_core.backtest.dataset import BacktestRequest
    from mlbot_core.research.bandit_store import newest_evaluation
    from mlbot_core.warehouse import Warehouse

    request = BacktestRequest(source, market, kind, settings.intervals.settle_delay_ms(source), clock.now_ms(), "cli")
    found = newest_evaluation(Warehouse(settings.warehouse_path, clock), request)
    return [] if found is None else [found["summary"]]


def _request(settings: Settings, clock: Clock, source: str | None, symbol: str, interval: str, model: str) -> Any:
    from mlbot_core.backtest.dataset import BacktestRequest

    name = selection.source_name(settings, source)
    (market,) = selection.markets(settings, clock, name, symbol, [interval])
    ((_, kind),) = selection.models_of(settings, [market], [model])
    return BacktestRequest(name, market, kind, settings.intervals.settle_delay_ms(name), clock.now_ms(), "promotion")


def _reason(why: str) -> str:
    if not why.strip():
        raise UsageError("--why is empty; say in a few words why, for those who read it later")
    return why.strip()


def _interval(values: Any, form: str) -> str:
    if values is None or values[0] is None:
        return ""
    value, low, high = values
    if low is None or high is None:
        return format(value, form)
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"
