"""How results look: tables for people, JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from mlbot_core.cli.launcher import RunResult

_PIPE_WIDTH = 140


def emit_json(value: Any) -> None:
    """Write one JSON document to standard output; NaN becomes null."""
    print(json.dumps(_plain(value), indent=2, sort_keys=True, default=str))  # noqa: T201


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[str] = ()) -> Table:
    """Return a table; numbers of the columns in ``right`` are aligned."""
    drawn = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        drawn.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*("" if cell is None else str(cell) for cell in row))
    return drawn


def summary_table(rows: Sequence[Mapping[str, Any]], title: str) -> Group:
    """Return what ends a demo or backtest: one line a model, from ``summary_row``, and the verdicts beneath.

    Sharpe ratio (net, annual, with its 95 % interval) and drawdown are at unit exposure.
    """
    columns = (
        "interval",
        "model",
        "bars",
        "feat.",
        "folds",
        "days",
        "trades",
        "hit rate",
        "net Sharpe [95 %]",
        "max DD",
    )
    cells = [
        (
            row["timeframe"],
            row["model_type"],
            f"{row['bars']:,}",
            row["features"],
            row["folds"],
            row["days"],
            row["trades"],
            _percent(row["hit_rate"]),
            _interval(row["sharpe"], row["sharpe_low"], row["sharpe_high"]),
            _percent(row["max_drawdown"]),
        )
        for row in rows
    ]
    verdicts = [Text(f"{row['timeframe']:>4} {row['model_type']} verdict: {row['verdict']}") for row in rows]
    return Group(table(title, columns, cells, right=columns[2:]), *verdicts)


def draw_runs(drawn: Console, results: Sequence[RunResult], *, done: bool = False) -> None:
    """Say what went wrong in each run, and, where asked for, which are done and how long they took."""
    for result in results:
        if done and result.success:
            overhead = result.seconds - result.step_seconds
            spent = f"{result.seconds:.1f} s ({overhead:.1f} s of it Dagster's)"
            drawn.print(f"{result.title}: done in {spent}; run {result.run_id}")
        for text in result.errors:
            drawn.print(f"{result.title}: FAILED: {text}", style="red", markup=False)
        for text in result.failed_checks:
            drawn.print(f"{result.title}: check failed: {text}", style="yellow", markup=False)
        for text in result.advisories:
            drawn.print(f"{result.title}: advisory: {text}", markup=False)


def require_success(results: Sequence[RunResult]) -> None:
    """Leave with 1 if a run failed.

    Raises
    ------
    typer.Exit
    """
    if not all(result.success for result in results):
        raise typer.Exit(1)


def console(*, to_stderr: bool = False) -> Console:
    """Return a console; progress goes to standard error when standard output carries JSON."""
    drawn = Console(stderr=to_stderr, highlight=False)
    # a pipe or a log file has no width; 80 columns would break the tables
    return drawn if drawn.is_terminal else Console(stderr=to_stderr, highlight=False, width=_PIPE_WIDTH)


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.1%}"


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "n/a"
    if low is None or high is None:
        return f"{value:.2f}"
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
