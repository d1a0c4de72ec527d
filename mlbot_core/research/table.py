"""The research table: every model and baseline on every timeframe side by side, from stored backtests. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from mlbot_core.clock import format_utc
from mlbot_core.config.models import MODEL_NAMES
from mlbot_core.timeframe import Timeframe

HOLD: Final = "buy and hold"
COLUMNS: Final = (
    "timeframe",
    "model",
    "period",
    "bars",
    "folds",
    "trades",
    "IC [95 %]",
    "hit rate [95 %]",
    "Sharpe [95 %]",
    "Sharpe, traded",
    "max DD",
    "MAR",
    "turnover a year",
    "DSR (N)",
    "PBO",
    "verdict",
)
MEANING: Final = (
    "Net of fees, slippage and settled funding, out of fold. IC: rank correlation of forecast and realised score; hit "
    "rate: of the touched barriers. Sharpe ratio, drawdown, MAR, turnover (x NAV), DSR and PBO at unit exposure, "
    "Sharpe 'traded' at the configured cap with all risk limits. Buy and hold pays the same costs and funding."
)
NO_VALUE: Final = "n/a"


def table_rows(summaries: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return the cells of the table, :data:`COLUMNS`: by timeframe, models in the order of training, then buy and hold.

    Parameters
    ----------
    summaries
        :func:`mlbot_core.backtest.report.summary_row` of each, with ``source``, ``symbol``, ``model_type``,
        ``start_ms`` and ``end_ms``.
    """
    found: list[tuple[str, ...]] = []
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in summaries:
        groups.setdefault((str(row["source"]), str(row["timeframe"])), []).append(row)
    for key in sorted(groups, key=lambda k: (k[0] != "archive", k[0], Timeframe.parse(k[1]))):
        rows = sorted(groups[key], key=lambda row: MODEL_NAMES.index(row["model_type"]))
        found += [_model_row(row) for row in rows]
        # the longest period, so that what is compared with it lies inside
        longest = min(rows, key=lambda row: int(row["start_ms"]))
        if longest.get("hold"):
            found.append(_hold_row(longest))
    return found


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return the table as markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def _model_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    dsr = NO_VALUE if row.get("dsr") is None else f"{row['dsr']:.1%} ({row['n_trials']})"
    return (
        _timeframe(row),
        str(row["model_type"]),
        _period(row),
        f"{row['bars']:,}",
        str(row["folds"]),
        str(row["trades"]),
        _interval(row, "ic", "{:.3f}"),
        _interval(row, "hit_rate", "{:.1%}"),
        _interval(row, "sharpe", "{:.2f}"),
        _number(row.get("sharpe_traded"), "{:.2f}"),
        _number(row.get("max_drawdown"), "{:.1%}"),
        _number(row.get("mar"), "{:.2f}"),
        _number(row.get("turnover_per_year"), "{:.0f}"),
        dsr,
        _number(row.get("pbo"), "{:.1%}"),
        str(row["verdict"]),
    )


def _hold_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    hold: Mapping[str, Any] = row["hold"]
    return (
        _timeframe(row),
        HOLD,
        _period(row),
        f"{row['bars']:,}",
        "",
        "",
        "",
        "",
        _interval(hold, "sharpe", "{:.2f}"),
        "",
        _number(hold.get("max_drawdown"), "{:.1%}"),
        _number(hold.get("mar"), "{:.2f}"),
        _number(hold.get("turnover_per_year"), "{:.0f}"),
        "",
        "",
        "for comparison",
    )


def _timeframe(row: Mapping[str, Any]) -> str:
    return str(row["timeframe"]) + ("" if row["source"] == "archive" else f" ({row['source']})")


def _period(row: Mapping[str, Any]) -> str:
    return f"{format_utc(int(row['start_ms']))[:10]} to {format_utc(int(row['end_ms']))[:10]}"


def _number(value: float | None, form: str) -> str:
    return NO_VALUE if value is None else form.format(value)


def _interval(row: Mapping[str, Any], name: str, form: str) -> str:
    value, low, high = (row.get(key) for key in (name, f"{name}_low", f"{name}_high"))
    if value is None:
        return NO_VALUE
    if low is None or high is None:
        return form.format(value)
    return f"{form.format(value)} [{form.format(low)}, {form.format(high)}]"
