"""``mlbot compare``: two stored backtests side by side."""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer

from mlbot_core.cli import output, selection
from mlbot_core.clock import Clock, clock_from_env, format_utc
from mlbot_core.config import Settings, load_settings

Which = Annotated[str, typer.Argument(help="'BTC-2h|lightgbm' (its newest backtest), or a model version's beginning.")]
Source = Annotated[str | None, typer.Option("--source", "-s", help="Of a market; default: as configured.")]
Size = Annotated[str, typer.Option("--size", help="unit (100 % of NAV) or traded (as configured).")]
Json = Annotated[bool, typer.Option("--json", help="Write JSON to standard output.")]

_PERCENT = frozenset({"total return", "CAGR", "volatility", "max drawdown"})
# of the stored summaries, over each one's own period
_OWN = (
    "bars",
    "features",
    "folds",
    "days",
    "trades",
    "hit_rate",
    "sharpe",
    "sharpe_low",
    "sharpe_high",
    "max_drawdown",
    "dsr",
    "n_trials",
    "pbo",
    "verdict",
)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("compare")(compare)


def compare(first: Which, second: Which, source: Source = None, size: Size = "unit", as_json: Json = False) -> None:
    """Compare two stored backtests: metrics over their common days, which earned more, what differs in configuration.

    Daily returns are compared in pairs, with a 95 % interval by the block bootstrap.
    """
    from mlbot_core.backtest import comparison
    from mlbot_core.warehouse import Warehouse

    settings, clock = load_settings(), clock_from_env()
    name = selection.source_name(settings, source)
    with Warehouse(settings.warehouse_path, clock).read() as con:
        pair = [comparison.find_backtest(con, text, name) for text in (first, second)]
    found = comparison.compare(pair[0], pair[1], size)
    configurations = _configurations(settings, clock, [side.model_version for side in pair])
    changes = None
    if all(configuration is not None for configuration in configurations):
        changes = comparison.configuration_changes(configurations[0] or {}, configurations[1] or {})
    if as_json:
        output.emit_json(_document(pair, found, changes))
        return
    _draw(pair, found, changes)


def _configurations(settings: Settings, clock: Clock, versions: list[str]) -> list[dict[str, Any] | None]:
    """Return the newest counted configuration of each version; None where the ledger knows none."""
    from mlbot_core.validation.trials import NAMESPACES, open_ledger

    newest: dict[str, dict[str, Any]] = {}
    ledger = open_ledger(settings.home, clock)
    for namespace in NAMESPACES:
        for row in ledger.read(namespace).rows:
            if str(row.facts.get("model_version")) in versions:
                newest[str(row.facts["model_version"])] = row.settings
    return [newest.get(version) for version in versions]


def _document(pair: list[Any], found: Any, changes: dict[str, tuple[Any, Any]] | None) -> dict[str, Any]:
    return {
        "backtests": [
            {
                "source": side.source,
                "market": str(side.market),
                "model_type": side.model_type,
                "model_version": side.model_version,
                "summary": dict(side.summary),
            }
            for side in pair
        ],
        "size": found.size,
        "common": {
            "first_day": format_utc(found.first_day_ms),
            "last_day": format_utc(found.last_day_ms),
            "days": found.days,
        },
        "metrics": {name: list(values) for name, values in found.metrics.items()},
        "difference": {
            "annual": found.difference.value,
            "low": found.difference.low,
            "high": found.difference.high,
            "level": found.difference.level,
            "correlation": found.correlation,
            "says": found.sentence,
        },
        "configuration": None if changes is None else {name: list(values) for name, values in changes.items()},
    }


def _draw(pair: list[Any], found: Any, changes: dict[str, tuple[Any, Any]] | None) -> None:
    console = output.console()
    for letter, side in zip("AB", pair, strict=True):
        made_up = " (SYNTHETIC)" if side.summary.get("synthetic") else ""
        console.print(f"{letter}: {side.title}, source {side.source}{made_up}", soft_wrap=True)
    first, last = (format_utc(ms)[:10] for ms in (found.first_day_ms, found.last_day_ms))
    rows = [
        (name, _number(name, one), _number(name, other), _number(name, other - one))
        for name, (one, other) in found.metrics.items()
    ]
    title = f"The {found.days:,} common days, {first} to {last}, {found.size} exposure"
    console.print(output.table(title, ("metric", "A", "B", "B - A"), rows, right=("A", "B", "B - A")))
    gap = found.difference
    console.print(
        f"B - A, mean return a year: {gap.value:+.1%}, 95 %: {_signed(gap.low)} to {_signed(gap.high)} (paired daily "
        f"returns, block bootstrap; correlation {_plain(found.correlation)}): {found.sentence}",
        soft_wrap=True,
    )
    own = [(name.replace("_", " "), *(_cell(side.summary.get(name)) for side in pair)) for name in _OWN]
    console.print(output.table("As each was judged, over its own period", ("", "A", "B"), own))
    if changes is None:
        console.print("Configurations: not in the trial ledger of this home; nothing to compare.")
    elif not changes:
        console.print("Configurations: the same in everything that was chosen.")
    else:
        lines = [(name, *(_cell(value) for value in values)) for name, values in changes.items()]
        console.print(output.table("What differs in configuration", ("setting", "A", "B"), lines))


def _number(name: str, value: float) -> str:
    if not math.isfinite(value):
        return "n/a"
    return f"{value:.1%}" if name in _PERCENT else f"{value:,.0f}" if name.endswith("days") else f"{value:.2f}"


def _signed(value: float) -> str:
    return f"{value:+.1%}" if math.isfinite(value) else "n/a"


def _plain(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "n/a"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "n/a" if value is None else str(value)
