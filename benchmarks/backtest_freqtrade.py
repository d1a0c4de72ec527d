"""freqtrade's own command line on the bars and signals of ``benchmarks/backtest.py``, where it is installed.

It is neither a dependency nor installed by us: an environment that has it is measured, another is told so in a line. It
trades long and flat on a spot pair (its futures mode asks the exchange for leverage tiers); it knows no funding, margin
or slippage there, so it does less than the others. Even offline data it trades only after asking the exchange for its
markets, which takes internet.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

PAIR = "BTC/USDT"
STRATEGY = '''
from pathlib import Path

import pandas as pd
from freqtrade.strategy import IStrategy


class Replay(IStrategy):
    """Enter and leave where the signals say so."""

    INTERFACE_VERSION = 3
    timeframe = "5m"
    can_short = False
    minimal_roi = {"0": 1_000}
    stoploss = -0.99
    startup_candle_count = 0

    def populate_indicators(self, dataframe, metadata):
        signals = pd.read_feather(Path(__file__).with_name("signals.feather"))
        return dataframe.merge(signals, on="date", how="left")

    def populate_entry_trend(self, dataframe, metadata):
        dataframe["enter_long"] = (dataframe["edge"] > 0.0015).astype(int)
        return dataframe

    def populate_exit_trend(self, dataframe, metadata):
        dataframe["exit_long"] = (dataframe["edge"] < 0.0).astype(int)
        return dataframe
'''
CONFIG = {
    "dry_run": True,
    "dry_run_wallet": 1_000_000,
    "max_open_trades": 1,
    "stake_currency": "USDT",
    "stake_amount": 20_000,
    "timeframe": "5m",
    "trading_mode": "spot",
    "dataformat_ohlcv": "feather",
    "entry_pricing": {"price_side": "other", "use_order_book": False},
    "exit_pricing": {"price_side": "other", "use_order_book": False},
    "exchange": {"name": "bybit", "pair_whitelist": [PAIR]},
    "pairlists": [{"method": "StaticPairList"}],
    "bot_name": "benchmark",
}


def measure(data: dict[str, Any], timeout_s: float = 900.0) -> tuple[float, str]:
    """Return the seconds of one ``freqtrade backtesting``, start included, and what is to be said about it.

    NaN where it is not installed or did not succeed; the words then say why.

    Parameters
    ----------
    data
        Bars and edges as ``benchmarks/backtest.py`` makes them.
    timeout_s
        Longest time it may take.
    """
    program = shutil.which("freqtrade")
    if program is None:
        return math.nan, "freqtrade: not installed here, not measured (it is no dependency)"
    with tempfile.TemporaryDirectory(prefix="mlbot-freqtrade-") as name:
        folder = Path(name)
        _write(folder, data)
        command = [program, "backtesting", "--config", "config.json", "--userdir", ".", "--datadir", "data"]
        command += ["--strategy", "Replay", "--strategy-path", ".", "--fee", "0.00055", "--cache", "none"]
        command += ["--export", "none"]
        began = time.perf_counter()
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired:
            return math.nan, f"freqtrade: stopped after {timeout_s:.0f} s"
        spent = time.perf_counter() - began
        if done.returncode != 0:
            lines = (done.stderr or done.stdout).strip().splitlines()
            return math.nan, f"freqtrade: failed ({lines[-1] if lines else f'exit status {done.returncode}'})"
        return spent, f"freqtrade backtesting: {spent:.1f} s for one cold run of its command line"


def _write(folder: Path, data: dict[str, Any]) -> None:
    """Write bars, signals, strategy and configuration."""
    date = pd.to_datetime(np.asarray(data["ts"]), unit="ms", utc=True)
    (folder / "data").mkdir()
    bars = pd.DataFrame({"date": date} | {name: data[name] for name in ("open", "high", "low", "close", "volume")})
    bars.to_feather(folder / "data" / f"{PAIR.replace('/', '_')}-5m.feather")
    pd.DataFrame({"date": date, "edge": data["edge"]}).to_feather(folder / "signals.feather")
    (folder / "replay.py").write_text(STRATEGY, encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
