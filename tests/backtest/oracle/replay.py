"""Send given orders through backtesting.py and write down what it makes of them; runs in an environment of its own.

python replay.py ORDERS.npz RESULT.json

ORDERS.npz: ``open``, ``high``, ``low``, ``close`` (USD a unit), ``size`` (whole units, signed, to be filled at the open
of their bar), ``cash`` (USD) and ``commission`` (fraction of the traded value).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from backtesting import Backtest, Strategy


class Given(Strategy):
    """One market order a bar, of the size that was asked for, filled at the next open."""

    sizes: np.ndarray

    def init(self) -> None:
        """Nothing is computed."""

    def next(self) -> None:
        """Send what the next bar's open is to fill."""
        coming = len(self.data)
        size = int(self.sizes[coming]) if coming < len(self.sizes) else 0
        if size > 0:
            self.buy(size=size)
        elif size < 0:
            self.sell(size=-size)


def main() -> None:
    orders = np.load(sys.argv[1])
    index = pd.date_range("2020-01-01", periods=len(orders["open"]), freq="h")
    columns = {name.capitalize(): orders[name] for name in ("open", "high", "low", "close")}
    bars = pd.DataFrame({**columns, "Volume": 0.0}, index=index)
    Given.sizes = orders["size"]
    cash = float(orders["cash"])
    test = Backtest(bars, Given, cash=cash, commission=float(orders["commission"]), margin=0.01, finalize_trades=False)
    found = test.run()
    trades = found["_trades"]
    equity = found["_equity_curve"]["Equity"].to_numpy()
    Path(sys.argv[2]).write_text(
        json.dumps(
            {
                "final_equity": float(equity[-1]),
                "equity": equity.tolist(),
                "trades": len(trades),
                "size": trades["Size"].tolist(),
                "entry_bar": trades["EntryBar"].tolist(),
                "exit_bar": trades["ExitBar"].tolist(),
                "entry_price": trades["EntryPrice"].tolist(),
                "exit_price": trades["ExitPrice"].tolist(),
                "pnl": trades["PnL"].tolist(),
                "commission": trades["Commission"].tolist(),
            }
        ),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
