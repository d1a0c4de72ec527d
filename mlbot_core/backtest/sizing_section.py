"""The report's section on position sizes: rules and the learned policy side by side, and the verdict. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlbot_core.backtest.sections import DASH, escape, table
from mlbot_core.clock import format_utc

_HEAD = (
    "sizes by",
    "mean size",
    "reward a decision",
    "bandit's advantage, simulated",
    "bandit's advantage, from the log",
    "effective n",
    "net return",
    "Sharpe",
    "max drawdown",
    "trades",
)


def sizing(summary: Mapping[str, Any] | None, model_version: str) -> str:
    """Return the section's content.

    Parameters
    ----------
    summary
        Of the newest stored evaluation of the bandit on this model's market; None where there is none.
    model_version
        Of the reported backtest; an evaluation of another version is named as that.
    """
    if summary is None:
        return "<p class='note'>No learned sizes were evaluated for this market; see: mlbot bandit evaluate</p>"
    of_other = ""
    if summary["model_version"] != model_version:
        of_other = f" <b>These are of another version of the model, {escape(summary['model_version'][:12])}.</b>"
    words = (
        f"<p><b>{escape(summary['verdict'])}</b></p><p class='note'>{summary['judged']:,} judged of "
        f"{summary['decisions']:,} decisions, {format_utc(int(summary['judged_from_ms']))[:10]} to "
        f"{format_utc(int(summary['end_ms']))[:10]} UTC, at the traded size, net of all costs; the learned policy was "
        f"fitted on the decisions before. Intervals {summary['level']:.0%}.{of_other}</p>"
    )
    return words + table(_HEAD, [_cells(row) for row in summary["rows"]])


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    effective = row["effective_n"]
    return (
        escape(row["name"]),
        f"{row['multiplier']:.2f}",
        _interval(row["reward"], ".3f"),
        _interval(row["advantage_simulated"], "+.3f"),
        _interval(row["advantage_log"], "+.3f"),
        DASH if effective is None else f"{effective:.0f}",
        _percent(row["total_return"], "+.2%"),
        _interval(row["sharpe"], ".2f"),
        _percent(row["max_drawdown"], ".2%"),
        f"{row['trades']:,}",
    )


def _percent(value: float | None, form: str) -> str:
    return DASH if value is None else format(value, form)


def _interval(values: Sequence[float | None] | None, form: str) -> str:
    if values is None or values[0] is None:
        return DASH
    value, low, high = values
    return format(value, form) if low is None or high is None else f"{value:{form}} [{low:{form}}, {high:{form}}]"
