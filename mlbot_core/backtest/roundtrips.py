"""Round trips: from flat to flat again, with every cost that belongs to each."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import pandas as pd

from mlbot_core.backtest.simulator import Simulation

COLUMNS: Final = (
    "opened",
    "closed",
    "side",
    "btc",
    "entry",
    "exit",
    "gross",
    "fees",
    "slippage",
    "funding",
    "pnl",
    "ret",
)


class _Fill(NamedTuple):
    ts: int
    side: int
    btc: float
    mid: float
    fee: float
    slippage: float
    nav: float
    position: float


def round_trips(simulation: Simulation, last_price: float) -> pd.DataFrame:
    """Return one row a round trip, the one still open at the end included.

    A reversal ends one round trip and begins the next; its fee and slippage are shared by size. A settlement is paid
    by the round trip that holds the position at that instant.

    Parameters
    ----------
    simulation
        What happened.
    last_price
        USD; marks the round trip that is still open.

    Returns
    -------
    pandas.DataFrame
        ``opened``, ``closed`` (UTC ms; -1 = still open), ``side`` (+1, -1), ``btc`` (largest size), ``entry``, ``exit``
        (USD, average prices before slippage), ``gross``, ``fees``, ``slippage``, ``funding``, ``pnl`` (USD; costs
        positive, ``pnl = gross - fees - slippage - funding``) and ``ret`` (fraction of NAV at the entry's decision).
    """
    payment_ts = simulation.payments["ts"].to_numpy(dtype=np.int64)
    payment = simulation.payments["payment"].to_numpy(dtype=np.float64)
    rows: list[dict[str, float]] = []
    trade: dict[str, float] | None = None
    paid = 0
    for fill in _fills(simulation.fills):
        # A settlement at the very instant of a fill is paid by who held before it, as in the simulator.
        until = int(np.searchsorted(payment_ts, fill.ts, side="right"))
        if trade is not None:
            trade["funding"] += float(payment[paid:until].sum())
        paid = until
        signed = fill.side * fill.btc
        before = fill.position - signed if trade is not None else 0.0
        closing = min(fill.btc, abs(before)) if before * signed < 0 else 0.0
        if fill.position == 0.0 and trade is not None:
            closing = fill.btc
        if trade is not None and closing > 0:
            _add(trade, fill, closing, -trade["side"])
            if fill.position * trade["side"] <= 0:
                trade["closed"] = fill.ts
                rows.append(trade)
                trade = None
        rest = fill.btc - closing
        if fill.position != 0.0 and rest > 0:
            if trade is None:
                side = float(np.sign(fill.position))
                trade = {
                    **dict.fromkeys(
                        ("bought", "bought_usd", "sold", "sold_usd", "btc", "fees", "slippage", "funding"), 0.0
                    ),
                    **{"opened": fill.ts, "closed": -1, "side": side, "nav": fill.nav},
                }
            _add(trade, fill, rest, trade["side"])
            trade["btc"] = max(trade["btc"], abs(fill.position))
    if trade is not None:
        trade["funding"] += float(payment[paid:].sum())
        rows.append(trade)
    return pd.DataFrame([_finish(row, last_price) for row in rows], columns=list(COLUMNS)).astype(
        {"opened": "int64", "closed": "int64", "side": "int64"}
    )


def _fills(fills: pd.DataFrame) -> list[_Fill]:
    columns = [fills[name].tolist() for name in _Fill._fields]
    return [_Fill(*row) for row in zip(*columns, strict=True)]


def _add(trade: dict[str, float], fill: _Fill, btc: float, side: float) -> None:
    share = btc / fill.btc
    kind = "bought" if side > 0 else "sold"
    trade[kind] += btc
    trade[f"{kind}_usd"] += btc * fill.mid
    trade["fees"] += fill.fee * share
    trade["slippage"] += fill.slippage * share


def _finish(trade: dict[str, float], last_price: float) -> dict[str, float]:
    is_open = trade["closed"] < 0
    left = trade["bought"] - trade["sold"]
    gross = trade["sold_usd"] - trade["bought_usd"] + (left * last_price if is_open else 0.0)
    average = {k: trade[f"{k}_usd"] / trade[k] if trade[k] > 0 else np.nan for k in ("bought", "sold")}
    entry, leaving = ("bought", "sold") if trade["side"] > 0 else ("sold", "bought")
    pnl = gross - trade["fees"] - trade["slippage"] - trade["funding"]
    return {
        **{name: trade[name] for name in ("opened", "closed", "side", "btc", "fees", "slippage", "funding")},
        "entry": average[entry],
        "exit": np.nan if is_open else average[leaving],
        "gross": gross,
        "pnl": pnl,
        "ret": pnl / trade["nav"],
    }
