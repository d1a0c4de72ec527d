"""The report's words and tables as HTML; every text that comes from outside is escaped."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd

from mlbot_core.backtest.plots import Figure
from mlbot_core.backtest.run import BacktestResult
from mlbot_core.backtest.significance_block import SignificanceBlock, overfitting_words, significance_block
from mlbot_core.backtest.verdict import NOT_EVALUATED, Criterion
from mlbot_core.clock import format_utc
from mlbot_core.config import FeesConfig
from mlbot_core.validation.significance import Interval

DASH: Final = "–"
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_SECTIONS: Final = (
    "criteria",
    "significance",
    "equity",
    "months",
    "trades",
    "costs",
    "distribution",
    "regimes",
    "calibration",
    "importance",
    "metrics",
    "provenance",
)


def escape(text: object) -> str:
    """Return the text safe for HTML."""
    return html.escape(str(text))


def number(value: float, pattern: str) -> str:
    """Return a formatted number, a dash where it is undefined."""
    if math.isnan(value):
        return DASH
    return "∞" if value == math.inf else format(value, pattern)


def interval(value: Interval, pattern: str) -> str:
    """Return ``value [low, high]``."""
    if math.isnan(value.value):
        return DASH
    return f"{number(value.value, pattern)} [{number(value.low, pattern)}, {number(value.high, pattern)}]"


def section(name: str, title: str, content: str) -> str:
    """Return a headed section."""
    return f"<section id='{name}'><h2>{title}</h2>{content}</section>"


def figure_or_words(name: str, figure: Figure | None, figures: dict[str, Figure], words: str) -> str:
    """Return the place of a figure and register it, or a sentence where there is none."""
    if figure is None:
        return f"<p class='note'>{words}</p>"
    figures[name] = figure
    height = int(figure["layout"]["height"])
    return f"<div class='plot' id='{name}' style='height:{height}px'></div>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "", kind: str = "") -> str:
    """Return a table of ready HTML cells."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows)
    title = f"<caption>{caption}</caption>" if caption else ""
    names = f"<thead><tr>{top}</tr></thead>" if any(head) else ""
    inner = f"{title}{names}<tbody>{body}</tbody>"
    return f"<div class='scroll'><table class='{kind}'>{inner}</table></div>"


def _cell(cell: str) -> str:
    return cell if cell.startswith("<td") else f"<td>{cell}</td>"


def header(result: BacktestResult) -> str:
    """Return banner, title, verdict and the cards of the main numbers."""
    data = result.input
    banner = ""
    if data.synthetic:
        banner = (
            "<div class='banner' role='alert'>SYNTHETIC MARKET <span>The prices are made up by a seeded generator. "
            "Nothing here says anything about real trading.</span></div>"
        )
    unit, traded, hold = (result.metrics[name] for name in ("unit", "traded", "hold"))
    met = not result.verdict.refused and result.verdict.significant
    cards = "".join(
        f"<div class='card'><div class='name'>{name}</div><div class='value'>{value}</div>"
        f"<div class='more'>{more}</div></div>"
        for name, value, more in (
            (
                "Net return, unit exposure",
                number(unit.total_return, "+.1%"),
                f"traded size {number(traded.total_return, '+.2%')}; buy and hold {number(hold.total_return, '+.1%')}",
            ),
            (
                "Net Sharpe, unit exposure",
                number(unit.sharpe.value, ".2f"),
                f"95 %: {number(unit.sharpe.low, '.2f')} to {number(unit.sharpe.high, '.2f')}",
            ),
            (
                "Max drawdown, unit exposure",
                number(unit.drawdown.depth, ".1%"),
                f"traded size {number(traded.drawdown.depth, '.2%')}",
            ),
            ("MAR, unit exposure", number(unit.mar, ".2f"), f"CAGR {number(unit.cagr, '+.1%')}"),
            (
                "Forecast hit rate",
                number(result.skill.hits.value, ".1%"),
                f"95 %: {number(result.skill.hits.low, '.1%')} to {number(result.skill.hits.high, '.1%')}",
            ),
            (
                "Round trips",
                f"{traded.trades:,}",
                f"{number(traded.trade_hits.value, '.1%')} won, profit factor {number(traded.profit_factor, '.2f')}",
            ),
        )
    )
    links = "".join(f"<a href='#{name}'>{name}</a>" for name in _SECTIONS)
    return (
        f"{banner}<header><h1>{escape(data.market)} · {escape(data.model_type)}</h1>"
        f"<span class='soft'>source {escape(data.source)} · model {escape(data.model_version[:12])}</span>"
        "<button id='theme' type='button'>light / dark</button></header>"
        f"<p class='soft'>{_moment(result.start_ms)} to {_moment(result.end_ms)} UTC · {unit.days:,} days · "
        f"{len(result.equity):,} bars · {data.forecasts['fold'].nunique()} folds, all out of sample</p>"
        f"<div class='verdict{' met' if met else ''}'><b>{escape(result.verdict.outcome)}</b></div>"
        f"<div class='cards'>{cards}</div><nav>{links}</nav>"
    )


def criteria(result: BacktestResult) -> str:
    """Return the table of criteria at both sizes."""
    verdict = result.verdict
    rows = [
        (criterion.name, criterion.bound, *_outcome(criterion), *_outcome(unit))
        for criterion, unit in zip(verdict.criteria["traded"], verdict.criteria["unit"], strict=True)
    ]
    rows += [(c.name, c.bound, DASH, "", *_outcome(c)) for c in verdict.statistics]
    rows += [(name, bound, DASH, "", DASH, "not evaluated") for name, bound in verdict.not_evaluated]
    head = ("criterion", "bound", "traded size", "", "unit exposure", "")
    words = (
        "<p class='note'>The bounds are constants in code. A backtest can refuse a model; it can never promote one: "
        "that takes a signed gate record.</p>"
    )
    if result.significance is None:
        words += f"<p class='note'>DSR and PBO: {NOT_EVALUATED}.</p>"
    return table(head, rows) + words


def significance(result: BacktestResult) -> str:
    """Return the block that says how sure one may be."""
    block = significance_block(result)
    unit = "<td class='text'>"
    rows = [
        ("evidence", f"{block.days:,} days, {block.forecasts:,} forecasts, {block.trades:,} round trips"),
        ("period", f"{_moment(block.start_ms)} to {_moment(block.end_ms)} UTC"),
        ("Sharpe ratio [95 %]", interval(block.sharpe, ".2f")),
        ("PSR: probability that it is above zero", number(block.psr, ".1%")),
        ("DSR: the same, counting trials", _deflated(block)),
        ("PBO: probability of overfitting", overfitting_words(block) or DASH),
        ("forecast hit rate [95 %]", interval(block.hits, ".1%")),
        ("turnover a year", f"{number(block.turnover_per_year, ',.1f')} × NAV"),
        ("break-even cost per side", f"{number(block.break_even_bp, '.2f')} bp"),
        (
            "point-in-time share of the data",
            ", ".join(f"{name} {number(share, '.1%')}" for name, share in block.shares.items()),
        ),
    ]
    notes = "".join(f"<li>{escape(note)}</li>" for note in block.notes)
    head = (
        f"<p class='note' style='overflow-wrap:anywhere'>Trial ledger {escape(block.ledger_head)}</p>"
        if block.ledger_head
        else ""
    )
    return (
        f"<p class='{'pass' if block.significant else 'fail'}' id='sentence'>{escape(block.sentence)}</p>"
        + table(("", ""), [(name, f"{unit}{value}</td>") for name, value in rows], kind="named")
        + "<p class='note'>At unit exposure, net. The Sharpe interval and the PSR take days as independent.</p>"
        + (f"<ul>{notes}</ul>" if notes else "")
        + head
    )


def _deflated(block: SignificanceBlock) -> str:
    if block.n_trials == 0:
        return f"{DASH} (no ledger)"
    trials = f"N = {block.n_trials:,}"
    if math.isfinite(block.effective_trials):
        trials += f", about {block.effective_trials:,.0f} independent"
    if math.isnan(block.benchmark):
        return f"{DASH} ({trials})"
    return (
        f"{number(block.dsr, '.1%')} ({trials}; the best of so many without skill would show "
        f"{number(block.benchmark, '.2f')})"
    )


def _outcome(criterion: Criterion) -> tuple[str, str]:
    pattern = {"Sharpe": ".2f", "MAR": ".2f", "max drawdown": ".2%", "DSR": ".3f", "PBO": ".3f"}.get(
        criterion.name, ",.0f"
    )
    word = "<span class='pass'>pass</span>" if criterion.passed else "<span class='fail'>fail</span>"
    return number(criterion.value, pattern), word


def month_table(months: pd.DataFrame, caption: str) -> str:
    """Return a year-by-month table, cells tinted by gain and loss."""
    if months.empty:
        return "<p class='note'>No days: nothing to show.</p>"
    largest = float(np.nanmax(np.abs(months[list(range(1, 13))].to_numpy(dtype=np.float64))))
    rows = []
    for year, values in zip(months.index, months.to_numpy(dtype=np.float64), strict=True):
        *by_month, whole = (float(value) for value in values)
        cells = [_tinted(value, largest) for value in by_month]
        rows.append((str(year), *cells, f"<td><b>{_percent(whole)}</b></td>"))
    return table(("", *_MONTHS, "year"), rows, caption, "months")


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{value * 100:+.2f}" if abs(value) < 0.1 else f"{value * 100:+.1f}"


def _tinted(value: float, largest: float) -> str:
    if math.isnan(value) or largest == 0 or value == 0:
        return f"<td>{_percent(value)}</td>"
    colour = "47,158,110" if value > 0 else "217,83,79"
    return f"<td style='background:rgba({colour},{0.08 + 0.5 * abs(value) / largest:.2f})'>{_percent(value)}</td>"


def skill_words(result: BacktestResult) -> str:
    """Return what the forecasts themselves were worth, in a paragraph."""
    skill = result.skill
    if skill.n == 0:
        return ""
    better = skill.base_log_loss - skill.log_loss
    return (
        f"<p>Where a barrier was touched, the forecast leaned the right way in {interval(skill.hits, '.1%')} of "
        f"cases (intervals count overlapping labels once: {skill.hits.n:,} independent); always saying the same would "
        f"have hit {number(skill.base_rate, '.1%')}. Log loss {number(skill.log_loss, '.4f')} against "
        f"{number(skill.base_log_loss, '.4f')} of the labels' own frequencies "
        f"({'better' if better > 0 else 'worse'} by {abs(better):.4f} nats), {skill.n:,} forecasts.</p>"
    )


def charged(fees: FeesConfig) -> str:
    """Return what is charged, in a sentence or two."""
    words = f"Charged per side: {fees.taker_bp:g} bp taker fee and {fees.slippage_bp:g} bp slippage"
    if fees.impact_bp:
        words += (
            f", and impact growing with the root of an order's share of the volume ({fees.impact_bp:g} bp at all of a "
            "two-hour bar's)"
        )
    words += "."
    if fees.maker_bars:
        bars = f"{fees.maker_bars} bar{'' if fees.maker_bars == 1 else 's'}"
        words += (
            f" Orders rest as limit orders for {bars} first, at {fees.maker_bp:g} bp and without slippage, filled only "
            "where the price went beyond them."
        )
    return words


def folds_table(folds: pd.DataFrame | None) -> str:
    """Return the folds as given; large whole numbers are shown as UTC dates."""
    if folds is None or folds.empty:
        return "<p class='note'>No table of folds was given.</p>"
    rows = [[_value(value) for value in row] for row in folds.itertuples(index=False)]
    return table([escape(str(name).replace("_", " ")) for name in folds.columns], rows)


def _value(value: Any) -> str:
    if isinstance(value, pd.Timestamp):
        return value.strftime("%Y-%m-%d %H:%M")
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return escape(value)
    as_float = float(value)
    if as_float.is_integer():
        return _moment(int(as_float)) if abs(as_float) > 1e11 else f"{int(as_float):,}"
    return number(as_float, ".4g")


def _share(participation: float | None) -> str:
    return "all" if participation is None else f"{participation:.0%}"


def _moment(ms: int) -> str:
    text = format_utc(ms).removesuffix("T00:00:00Z")
    return text.replace("T", " ").removesuffix("Z").removesuffix(":00")


def provenance(result: BacktestResult) -> str:
    """Return sources, delays, point-in-time shares and notes."""
    data = result.input
    rows = [
        ("market", escape(data.market)),
        ("source", escape(data.source) + (" (synthetic)" if data.synthetic else "")),
        ("model", f"{escape(data.model_type)} <span class='anywhere'>{escape(data.model_version)}</span>"),
        ("decision after the close", f"{(data.settle_delay_ms + data.latency_ms) / 1000:g} s"),
        ("costs", f"tier {escape(data.fees.tier)}. {charged(data.fees)}"),
        (
            "orders",
            f"at most {_share(data.fees.participation)} of a bar's volume; "
            + (f"limit first, for {data.fees.maker_bars} bars" if data.fees.maker_bars else "taken at once")
            + (f"; {data.fees.latency_bars} bars on their way" if data.fees.latency_bars else ""),
        ),
        (
            "cap at the traded size",
            f"{data.risk.max_position:.0%} of NAV, trimmed above {data.risk.max_position * data.risk.trim_above:.1%}",
        ),
        ("settlements paid", f"{len(result.payments):,}"),
    ]
    rows += [(f"share of data: {escape(name)}", number(float(share), ".1%")) for name, share in data.shares.items()]
    if not data.shares:
        rows.append(("share of data: live, modelled, restated", "not given"))
    notes = "".join(f"<li>{escape(note)}</li>" for note in result.notes)
    return (
        table(("", ""), [(name, f"<td class='text'>{value}</td>") for name, value in rows], kind="named")
        + "<p class='note'>live: recorded when it was new; modelled: seen only as history, its time of publication "
        "modelled; restated: changed by the source after it was first seen (used as known at the decision).</p>"
        + f"<ul>{notes}</ul>"
    )
