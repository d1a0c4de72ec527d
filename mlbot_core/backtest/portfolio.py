"""The same fills through vectorbt: a second, independent book-keeping and its trade statistics.

vectorbt 1.2 keeps the books of a spot account: a purchase needs cash. A perpetual needs margin only, so a credit is
added to vectorbt's cash where a purchase (a reversal, a fee at full exposure) would exceed it, and taken off its
equity again. vectorbt knows no funding and here no deposits; :func:`equity_with_funding` takes payments off and adds
flows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.backtest.simulator import BANKRUPT, REASONS, Simulation
from mlbot_core.errors import MlbotError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

AGREEMENT: Final = 1e-9


class BookkeepingError(MlbotError):
    """The simulator and vectorbt disagree on the same fills: one of them keeps its books wrongly."""


@dataclass(frozen=True)
class VectorbtView:
    """What vectorbt makes of the fills.

    Parameters
    ----------
    equity
        float64[n], USD at each bar's close, without funding and flows.
    disagreement
        Largest difference from the simulator's NAV, funding taken off and flows added, relative to NAV.
    trades
        Statistics of vectorbt's positions (round trips, open ones left out, without funding): ``count``, ``win_rate``
        (fraction), ``profit_factor``, ``expectancy_usd``, ``best_usd``, ``worst_usd``, ``mean_bars``.
    """

    equity: FloatArray
    disagreement: float
    trades: Mapping[str, float]


def vectorbt_view(simulation: Simulation, close: FloatArray) -> VectorbtView:
    """Replay the simulation's fills in vectorbt and compare the books.

    Parameters
    ----------
    simulation
        From :func:`mlbot_core.backtest.simulator.simulate`.
    close
        float64[n], the closes it ran on; NaN = missing.

    Notes
    -----
    From the bar of a bankruptcy on, where the exchange takes the position over, nothing is compared.
    """
    n = simulation.bankrupt_bar if simulation.bankrupt_bar is not None else len(simulation.ts)
    if n == 0 or not np.isfinite(close[:n]).any():
        return VectorbtView(simulation.nav[:n].copy(), 0.0, _no_trades())
    portfolio, credit, fills = vectorbt_portfolio(simulation, close)
    bar = _rows(fills, n)[1]
    # a bar's equity is that of its last row
    equity = np.asarray(portfolio.value(), dtype=np.float64)[np.append(bar[1:] != bar[:-1], True)] - credit
    # Before the first known price there is no position and vectorbt's value is undefined.
    equity = np.where(np.isnan(equity), simulation.params.initial_nav, equity)
    ours = simulation.nav[:n]
    scale = np.maximum(np.abs(ours), simulation.params.initial_nav)
    disagreement = float(np.max(np.abs(equity_with_funding(equity, simulation) - ours) / scale))
    return VectorbtView(equity, disagreement, _trade_statistics(portfolio, bar))


def equity_with_funding(equity: FloatArray, simulation: Simulation) -> FloatArray:
    """Return vectorbt's equity less the funding paid and with the flows received so far, USD."""
    n = len(equity)
    result: FloatArray = equity + np.cumsum(simulation.flows[:n] - simulation.funding[:n])
    return result


def require_agreement(view: VectorbtView) -> None:
    """Refuse a backtest whose two books differ.

    Raises
    ------
    BookkeepingError
        If they differ by more than 1e-9 of NAV at any bar.
    """
    if not view.disagreement <= AGREEMENT:
        raise BookkeepingError(
            f"the simulator's and vectorbt's equity differ by {view.disagreement:.3e} of NAV "
            f"(allowed: {AGREEMENT:.0e}); the backtest is not reported. Run the tests of tests/backtest: "
            "they name the first case that differs with this version of vectorbt"
        )


def vectorbt_portfolio(simulation: Simulation, close: FloatArray) -> tuple[Any, float, pd.DataFrame]:
    """Return the ``vectorbt.Portfolio`` of a simulation's fills, for vectorbt's own statistics and plots.

    Parameters
    ----------
    simulation
        With a bar before any bankruptcy.
    close
        float64[n], the closes it ran on; NaN = missing.

    Returns
    -------
    tuple
        The portfolio, the credit in its cash (USD; see this module's description), and the fills in it.
    """
    import vectorbt as vbt

    n = simulation.bankrupt_bar if simulation.bankrupt_bar is not None else len(simulation.ts)
    fills = simulation.fills
    fills = fills[(fills["reason"] != REASONS[BANKRUPT]) & (fills["bar"] < n)]
    close = np.asarray(close[:n], dtype=np.float64)
    rows, bar, within = _rows(fills, len(close))
    size = np.full(len(bar), np.nan)
    price = np.full(len(bar), np.nan)
    fees = np.zeros(len(bar))
    fees[rows] = np.where(fills["maker"], simulation.params.maker_fee, simulation.params.fee)
    signed = fills["side"].to_numpy() * fills["btc"].to_numpy()
    size[rows] = signed
    price[rows] = fills["price"].to_numpy()
    flow = -signed * price[rows] - fills["fee"].to_numpy()
    start = simulation.params.initial_nav
    lowest = start + float(np.min(np.cumsum(flow), initial=0.0))
    credit = 0.0 if lowest > 1e-3 * start else start - lowest
    # further fills of a bar have rows of their own, a millisecond apart
    index = pd.DatetimeIndex(pd.to_datetime(simulation.ts[bar] + within, unit="ms", utc=True))
    portfolio = vbt.Portfolio.from_orders(
        pd.Series(close[bar], index=index, name="coin"),
        size=size,
        size_type="amount",
        direction="both",
        price=price,
        fees=fees,
        fixed_fees=0.0,
        slippage=0.0,
        min_size=0.0,
        lock_cash=False,
        allow_partial=False,
        raise_reject=True,
        init_cash=start + credit,
        freq=pd.Timedelta(simulation.params.timeframe_ms, unit="ms"),
    )
    return portfolio, credit, fills


def _rows(fills: pd.DataFrame, n: int) -> tuple[IntArray, IntArray, IntArray]:
    """Return the row of each fill, and of each row its bar and its place in it.

    vectorbt takes one order a row: a bar has one row, and one more for every further fill.
    """
    of_fill = fills["bar"].to_numpy(dtype=np.int64)
    counts = np.maximum(np.bincount(of_fill, minlength=n), 1)
    first: IntArray = np.cumsum(counts) - counts
    bar: IntArray = np.repeat(np.arange(n), counts)
    return (
        first[of_fill] + np.arange(len(of_fill)) - np.searchsorted(of_fill, of_fill),
        bar,
        np.arange(len(bar)) - first[bar],
    )


def _trade_statistics(portfolio: Any, bar: IntArray) -> dict[str, float]:
    closed = portfolio.positions.closed
    count = int(closed.count())
    if count == 0:
        return _no_trades()
    pnl = np.asarray(closed.pnl.values, dtype=np.float64)
    return {
        "count": float(count),
        "win_rate": float(closed.win_rate()),
        "profit_factor": float(closed.profit_factor()),
        "expectancy_usd": float(closed.expectancy()),
        "best_usd": float(pnl.max()),
        "worst_usd": float(pnl.min()),
        "mean_bars": float(np.mean(bar[closed.values["exit_idx"]] - bar[closed.values["entry_idx"]])),
    }


def _no_trades() -> dict[str, float]:
    names = ("win_rate", "profit_factor", "expectancy_usd", "best_usd", "worst_usd", "mean_bars")
    return {"count": 0.0, **dict.fromkeys(names, math.nan)}
