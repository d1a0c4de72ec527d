"""One self-contained HTML file a backtest: works offline, in light and dark, on screen and on paper."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any, Final

import pandas as pd

from mlbot_core import __version__
from mlbot_core.backtest import measures, plots, plots_spread, sections
from mlbot_core.backtest.metrics import Metrics, monthly_returns
from mlbot_core.backtest.regimes import by_regime, daily_regimes
from mlbot_core.backtest.roundtrips import round_trips
from mlbot_core.backtest.run import BacktestResult
from mlbot_core.backtest.sections import escape, figure_or_words, section
from mlbot_core.backtest.significance_block import significance_block
from mlbot_core.backtest.sizing_section import sizing

_PLACEHOLDER: Final = re.compile(r"\{\{(\w+)\}\}")


def render_report(
    result: BacktestResult,
    importance: pd.DataFrame | pd.Series | Mapping[str, float] | None = None,
    folds: pd.DataFrame | None = None,
    sizes: Mapping[str, Any] | None = None,
) -> str:
    """Return the report as one HTML text; the caller writes it atomically.

    Parameters
    ----------
    result
        From :func:`mlbot_core.backtest.run.run_backtest`.
    importance
        ``feature`` and ``gain_share`` as walk-forward training returns them, or feature name to importance in any unit
        (shown as shares); None where the model has none.
    folds
        One row a fold, any columns; whole numbers above 10^11 are shown as UTC dates.
    sizes
        Summary of the newest evaluation of learned position sizes on this market; None where there is none.
    """
    figures: dict[str, plots.Figure] = {}
    body = "\n".join(
        (
            sections.header(result),
            section("criteria", "Verdict and criteria", sections.criteria(result)),
            section("significance", "How sure can one be?", sections.significance(result)),
            section("equity", "Equity against buy and hold", _equity(result, figures)),
            section("rolling", "Rolling Sharpe ratio", _rolling(result, figures)),
            section("months", "Monthly returns", _months(result)),
            section("trades", "Trades on price", _trades(result, figures)),
            section("costs", "From gross to net", _costs(result, figures)),
            section("distribution", "Daily returns and holding times", _distribution(result, figures)),
            section("regimes", "By kind of market", _regimes(result, figures)),
            section("calibration", "Are the forecasts calibrated?", _calibration(result, figures)),
            section("importance", "Feature importance", _importance(importance, figures)),
            section("sizes", "Position sizes", sizing(sizes, result.input.model_version)),
            section("metrics", "All metrics", measures.metrics_table(result) + measures.vectorbt_table(result)),
            section("folds", "Folds", sections.folds_table(folds)),
            section("provenance", "Where the data come from", sections.provenance(result)),
            f"<footer>mlbot {__version__}. Definitions: daily UTC NAV returns, 365 days a year, flat days included; "
            "risk-free rate zero; 95 % intervals.</footer>",
        )
    )
    return _fill(
        _asset("report.html"),
        {
            "title": escape(f"{result.input.market} {result.input.model_type} {result.input.model_version}: backtest"),
            "css": _asset("report.css"),
            "body": body,
            # "</" would end the script element in the middle of a text.
            "figures": json.dumps(figures, allow_nan=False, separators=(",", ":")).replace("</", "<\\/"),
            "plotly": _plotly(),
            "script": _asset("report.js"),
        },
    )


def summary_row(result: BacktestResult) -> dict[str, Any]:
    """Return one row of the summary table: plain numbers (None where undefined) and texts.

    Keys: ``timeframe``, ``bars``, ``features``, ``folds``, ``days``, ``trades``, ``hit_rate``, ``hit_rate_low``,
    ``hit_rate_high`` (forecasts, fractions), ``ic``, ``ic_low``, ``ic_high`` (rank correlation with the realised
    score), ``mar``, ``turnover_per_year`` (x NAV), ``mar_traded``, ``hold`` (the same of buy and hold, a mapping),
    ``trade_hit_rate``, ``sharpe``, ``sharpe_low``, ``sharpe_high`` (net, at
    unit exposure), ``sharpe_traded``, ``max_drawdown`` (unit exposure, fraction), ``max_drawdown_traded``,
    ``psr``, ``dsr``, ``n_trials``, ``pbo`` (unit exposure; None where not evaluated), ``significance`` (the sentence),
    ``ledger_head``, ``synthetic``, ``verdict``.
    """
    unit, traded, hits = result.metrics["unit"], result.metrics["traded"], result.skill.hits
    block = significance_block(result)
    return {
        "timeframe": str(result.input.market.timeframe),
        "bars": int(result.equity["close"].notna().sum()),
        "features": result.input.n_features,
        "folds": int(result.input.forecasts["fold"].nunique()),
        "days": unit.days,
        "trades": traded.trades,
        "hit_rate": _finite(hits.value),
        "hit_rate_low": _finite(hits.low),
        "hit_rate_high": _finite(hits.high),
        "ic": _finite(result.skill.ic.value),
        "ic_low": _finite(result.skill.ic.low),
        "ic_high": _finite(result.skill.ic.high),
        "trade_hit_rate": _finite(traded.trade_hits.value),
        **_performance(unit),
        "sharpe_traded": _finite(traded.sharpe.value),
        "max_drawdown_traded": _finite(traded.drawdown.depth),
        "mar_traded": _finite(traded.mar),
        "hold": _performance(result.metrics["hold"]),
        "psr": _finite(block.psr),
        "dsr": _finite(block.dsr),
        "n_trials": block.n_trials or None,
        "pbo": _finite(block.pbo),
        "significance": block.sentence,
        "ledger_head": block.ledger_head or None,
        "synthetic": result.input.synthetic,
        "verdict": result.verdict.outcome,
    }


def _performance(metrics: Metrics) -> dict[str, Any]:
    return {
        "sharpe": _finite(metrics.sharpe.value),
        "sharpe_low": _finite(metrics.sharpe.low),
        "sharpe_high": _finite(metrics.sharpe.high),
        "max_drawdown": _finite(metrics.drawdown.depth),
        "mar": _finite(metrics.mar),
        "turnover_per_year": _finite(metrics.turnover_per_year),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _equity(result: BacktestResult, figures: dict[str, plots.Figure]) -> str:
    few = "Fewer than two days: nothing to draw."
    cap = result.input.risk.max_position
    return (
        "<p class='note'>Net of fees, slippage and funding, at the close of each UTC day; drawdown from the highest "
        "close so far. Buy and hold pays the same costs and funding.</p>"
        "<h3>Unit exposure (100 % of NAV, no cap)</h3>"
        + figure_or_words("plot-equity", plots.equity_figure(result, ("unit", "hold")), figures, few)
        + f"<h3>Traded size (at most {cap:.0%} of NAV)</h3>"
        + figure_or_words("plot-traded", plots.equity_figure(result, ("traded",)), figures, few)
    )


def _rolling(result: BacktestResult, figures: dict[str, plots.Figure]) -> str:
    window = plots.rolling_window(len(result.daily))
    words = f"<p class='note'>Of the last {window} days, annual; solid line at 0, dotted at the required 1.0.</p>"
    drawn = figure_or_words(
        "plot-rolling",
        plots.rolling_figure(result),
        figures,
        f"Not enough moving days for a window of {window} days: nothing to draw.",
    )
    return words + drawn if "plot-rolling" in figures else drawn


def _months(result: BacktestResult) -> str:
    return "".join(
        sections.month_table(monthly_returns(result.daily[["day", name]].rename(columns={name: "ret"})), caption)
        for name, caption in (("unit", "Unit exposure, %"), ("traded", "Traded size, %"), ("hold", "Buy and hold, %"))
    )


def _trades(result: BacktestResult, figures: dict[str, plots.Figure]) -> str:
    drawn = plots.trades_figure(result)
    if drawn is None:
        return figure_or_words("plot-trades", None, figures, "No price is recorded: nothing to draw.")
    figure, words = drawn
    nothing = "" if len(result.trades) else " The strategy never traded."
    whole = figure_or_words("plot-trades", figure, figures, "") + f"<p class='note'>{words}{nothing}</p>"
    close_up = plots.trades_figure(result, plots.CLOSE_UP_DAYS)
    if close_up is None or len(result.daily) <= plots.CLOSE_UP_DAYS:
        return whole
    return (
        f"{whole}<h3>The last {plots.CLOSE_UP_DAYS} days</h3>"
        + figure_or_words("plot-trades-end", close_up[0], figures, "")
        + f"<p class='note'>{close_up[1]}</p>"
    )


def _costs(result: BacktestResult, figures: dict[str, plots.Figure]) -> str:
    parts = []
    for name, title in (("unit", "Unit exposure"), ("traded", "Traded size")):
        drawn = figure_or_words(
            f"plot-costs-{name}",
            plots.waterfall_figure(result.metrics[name]),
            figures,
            "No trades: nothing was earned and nothing paid.",
        )
        parts.append(f"<div><h3>{title}</h3>{drawn}</div>")
    fees = result.input.fees
    unit = result.metrics["unit"]
    words = (
        f"<p class='note'>{sections.charged(fees)} "
        f"Break-even cost per side at unit exposure: {sections.number(unit.break_even_bp, '.2f')} bp "
        "(what gross less funding would just pay for).</p>"
    )
    return f"<div class='two'>{''.join(parts)}</div>{words}"


def _distribution(result: BacktestResult, figures: dict[str, plots.Figure]) -> str:
    parts = []
    for name, title, drawn, nothing in (
        (
            "plot-distribution",
            "Daily returns, unit exposure",
            plots_spread.distribution_figure(result.daily["unit"].to_numpy()),
            "Fewer than five days that moved: nothing to draw.",
        ),
        (
            "plot-holding",
            "Holding times, traded size",
            plots_spread.holding_figure(result.trades, result.input.market.timeframe.ms),
            "No round trip was closed: nothing to draw.",
        ),
    ):
        words = f"<p class='note'>{drawn[1]}</p>" if drawn else ""
        figure = figure_or_words(name, drawn[0] if drawn else None, figures, nothing)
        parts.append(f"<div><h3>{title}</h3>{figure}{words}</div>")
    return f"<div class='two'>{''.join(parts)}</div>"


def _regimes(result: BacktestResult, figures: dict[str, plots.Figure]) -> str:
    bars, unit = result.input.bars, result.simulations["unit"]
    days = result.daily["day"].to_numpy(dtype="int64")
    regimes = daily_regimes(bars["ts"].to_numpy(dtype="int64"), bars["close"].to_numpy(dtype="float64"), days)
    price = result.equity["close"].ffill()
    trips = round_trips(unit, float(price.iloc[-1]) if len(price) else math.nan)
    rows = by_regime(regimes, result.daily, trips)
    drawn = figure_or_words(
        "plot-regimes", plots_spread.regime_figure(rows), figures, "Too few days before and in the period to tell."
    )
    unknown = int(regimes["volatility"].isna().sum())
    return measures.regime_words(unknown, len(days)) + drawn + (measures.regime_table(rows) if rows else "")


def _calibration(result: BacktestResult, figures: dict[str, plots.Figure]) -> str:
    return sections.skill_words(result) + figure_or_words(
        "plot-calibration", plots.calibration_figure(result), figures, "No realised labels: nothing to compare."
    )


def _importance(
    importance: pd.DataFrame | pd.Series | Mapping[str, float] | None, figures: dict[str, plots.Figure]
) -> str:
    if isinstance(importance, pd.DataFrame):
        importance = dict(zip(importance["feature"], importance["gain_share"], strict=True))
    items = [] if importance is None else [(str(name), float(value)) for name, value in importance.items()]
    figure = plots.importance_figure(items)
    drawn = figure_or_words("plot-importance", figure, figures, "No feature importance was given for this model.")
    shown = min(len(items), 25)
    return drawn + (f"<p class='note'>The {shown} most important of {len(items)} features.</p>" if figure else "")


def _asset(name: str) -> str:
    return (resources.files("mlbot_core.backtest") / "templates" / name).read_text(encoding="utf-8")


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def _fill(template: str, values: Mapping[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda match: values[match[1]], template)
