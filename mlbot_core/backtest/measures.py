"""The report's tables of measures: every metric at every size, regimes, and vectorbt's statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from mlbot_core.backtest.capacity import SHARES
from mlbot_core.backtest.metrics import Metrics
from mlbot_core.backtest.plots_spread import duration
from mlbot_core.backtest.regimes import MEMORY_DAYS, WINDOW_DAYS, RegimeRow
from mlbot_core.backtest.run import BacktestResult
from mlbot_core.backtest.sections import DASH, interval, number, table

_SIZES: Final = ("traded", "unit", "hold")


def metrics_table(result: BacktestResult) -> str:
    """Return every metric at the traded size, at unit exposure and for buy and hold."""
    lines = [
        ("NAV at the end, USD", lambda m: number(m.nav_end, ",.2f")),
        ("total return", lambda m: number(m.total_return, "+.2%")),
        ("CAGR", lambda m: number(m.cagr, "+.2%")),
        ("volatility, annual", lambda m: number(m.volatility, ".2%")),
        ("Sharpe [95 %]", lambda m: interval(m.sharpe, ".2f")),
        ("probability of Sharpe > 0", lambda m: number(m.psr, ".1%")),
        ("Sortino", lambda m: number(m.sortino, ".2f")),
        ("max drawdown, daily closes", lambda m: number(m.drawdown.depth, ".2%")),
        ("its length, days", lambda m: f"{m.drawdown.days:,}{'' if m.drawdown.recovered else ', not recovered'}"),
        ("longest drawdown, days", lambda m: f"{m.longest_drawdown_days:,}"),
        ("max drawdown at the bars' extremes", lambda m: number(m.drawdown_intrabar, ".2%")),
        ("MAR (all), Calmar (36 months)", lambda m: f"{number(m.mar, '.2f')}, {number(m.calmar, '.2f')}"),
        ("tail ratio (95th to 5th percentile)", lambda m: number(m.tail_ratio, ".2f")),
        ("mean exposure", lambda m: number(m.exposure, ".1%")),
        ("time in the market", lambda m: number(m.time_in_market, ".1%")),
        ("turnover a year, × NAV", lambda m: number(m.turnover_per_year, ",.1f")),
        ("round trips (open at the end)", lambda m: f"{m.trades:,} ({m.open_trades})"),
        ("round trips won [95 %]", lambda m: interval(m.trade_hits, ".1%")),
        ("profit factor", lambda m: number(m.profit_factor, ".2f")),
        ("mean round trip, bp of NAV", lambda m: number(m.mean_trade_return * 1e4, "+.2f")),
        ("median holding time", lambda m: DASH if math.isnan(m.median_holding_ms) else duration(m.median_holding_ms)),
        ("filled by limit orders, of the value", lambda m: number(m.maker_share, ".1%")),
        ("break-even cost per side, bp", lambda m: number(m.break_even_bp, ",.2f")),
        *_capacity_lines(),
        ("gross, USD", lambda m: number(m.waterfall.gross, "+,.2f")),
        ("fees, USD", lambda m: number(m.waterfall.fees, ",.2f")),
        ("slippage, USD", lambda m: number(m.waterfall.slippage, ",.2f")),
        ("funding paid, USD", lambda m: number(m.waterfall.funding, "+,.2f")),
        ("net, USD", lambda m: number(m.waterfall.net, "+,.2f")),
        ("bankrupt", lambda m: "yes" if m.bankrupt else "no"),
    ]
    sizes: list[Metrics] = [result.metrics[name] for name in _SIZES]
    rows = [(name, *(show(m) for m in sizes)) for name, show in lines]
    return table(("", "traded size", "unit exposure", "buy and hold"), rows, kind="named") + (
        "<p class='note'>Capacity: the NAV at which 95 % of the orders stay within that share of the volume of the bar "
        "in which they begin to be filled; recorded volume, no view on whether the edge survives its own impact.</p>"
    )


def _capacity_lines() -> list[tuple[str, Callable[[Metrics], str]]]:
    def show(at: int) -> Callable[[Metrics], str]:
        return lambda m: money(m.capacities[at].nav)

    return [(f"capacity at {share:.0%} of volume, NAV in USD", show(at)) for at, share in enumerate(SHARES)]


def money(value: float) -> str:
    """Return USD for people: three digits and a letter; a dash where it is undefined."""
    if math.isnan(value):
        return DASH
    for unit, letter in ((1e9, "bn"), (1e6, "m"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g} {letter}"
    return f"{value:.3g}"


def regime_words(unknown: int, days: int) -> str:
    """Return what a regime is, and how many days have none."""
    words = (
        f"A day's kind is told by the days before it alone. Volatility: of the last {WINDOW_DAYS} days, by its tercile "
        f"within the last {MEMORY_DAYS}. Trend: whether those {WINDOW_DAYS} days moved the price by more than half a "
        "standard deviation of such a move."
    )
    if unknown:
        words += f" {unknown:,} of {days:,} days have too little before them to have a volatility regime."
    return f"<p class='note'>{words}</p>"


def regime_table(rows: Sequence[RegimeRow]) -> str:
    """Return what each regime was worth."""
    head = ("", "days", "net return", "Sharpe [95 %]", "buy and hold's Sharpe", "round trips", "won")
    cells = [
        (
            f"{row.kind} {row.name}",
            f"{row.days:,}",
            number(row.total_return, "+.1%"),
            interval(row.sharpe, ".2f"),
            number(row.hold.value, ".2f"),
            f"{row.trades:,}",
            number(row.won, ".1%"),
        )
        for row in rows
    ]
    return table(head, cells) + (
        "<p class='note'>Unit exposure. Many rows are looked at here: an interval that excludes zero in one of them is "
        "weaker evidence than it looks.</p>"
    )


def vectorbt_table(result: BacktestResult) -> str:
    """Return vectorbt's statistics of the same fills."""
    stats = result.vectorbt.trades
    pattern = {"count": ",.0f", "win_rate": ".1%", "mean_bars": ".1f"}
    head = [name.replace("_", " ").replace("usd", "USD") for name in stats]
    row = [number(value, pattern.get(name, ".2f")) for name, value in stats.items()]
    return (
        "<h3>The same fills in vectorbt's books (traded size, before funding)</h3>"
        + table(head, [row])
        + f"<p class='note'>Funding taken off, vectorbt's equity and ours differ by at most "
        f"{result.vectorbt.disagreement:.1e} of NAV at any bar.</p>"
    )
