"""Backtest speed: the simulator with every cost and limit, beside vectorbt on the same orders, in one run.

315,360 five-minute bars (three years, SYNTHETIC: a random walk with volatility clustering) and forecasts that make
about 8,700 orders. Each side runs in a process of its own: ``cold`` is its first run there, imports left out, compiled
code taken from the cache on disk; ``warm`` the best of the following ones. vectorbt replays the simulator's own fills
and knows neither funding nor risk; its time is that of ``Portfolio.from_orders`` alone, before it is asked for its
equity. freqtrade's command line is measured where it is installed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import backtest_freqtrade
import numpy as np

TF = 300_000
START = 1_577_836_800_000
HELD = 19  # bars


def market(bars: int) -> dict[str, Any]:
    """Return bars, forecasts and settlements."""
    rng = np.random.default_rng(20260101)
    variance = np.empty(bars)
    variance[0] = 1.0
    shocks = rng.normal(size=bars)
    for i in range(1, bars):
        variance[i] = 0.02 + 0.90 * variance[i - 1] + 0.08 * variance[i - 1] * shocks[i - 1] ** 2
    move = 0.0012 * np.sqrt(variance) * shocks
    close = 30_000 * np.exp(np.cumsum(move - move.mean()))
    open_ = np.r_[30_000.0, close[:-1]]
    spread = 1 + 0.0005 * rng.random(bars)
    # forecasts that stay for a while: on either side, or too weak to enter, which closes what is on the other
    side = rng.choice([-1.0, 1.0], bars // HELD + 1)
    strong = rng.random(bars // HELD + 1) < 0.6
    lean = np.repeat(side * np.where(strong, 1.0, 0.05), HELD)[:bars] * rng.uniform(0.6, 1.0, bars)
    settlements = np.arange(START, START + TF * bars, 8 * 3_600_000, dtype=np.int64)
    return {
        "ts": START + TF * np.arange(bars, dtype=np.int64),
        "open": open_,
        "high": np.maximum(open_, close) * spread,
        "low": np.minimum(open_, close) / spread,
        "close": close,
        "volume": rng.uniform(50, 500, bars),
        "edge": 0.005 * lean,
        "funding_ts": settlements,
        "funding_rate": rng.normal(1e-4, 1e-4, len(settlements)),
    }


def parameters() -> Any:
    from mlbot_core.backtest.simulator import SimulationParams

    return SimulationParams(
        timeframe_ms=TF,
        delay_ms=5_200,
        settle_ms=2_000,
        fee=0.00055,
        slippage=0.0002,
        # small enough that neither a day's loss nor the halt ends the trading: all orders are wanted
        cap=0.02,
        rebalance_band=0.02,
        daily_loss=0.03,
        max_drawdown=0.95,
        cost_round_trip=0.0015,
        impact=0.01,
        participation=0.1,
        lot=0.001,
        tick=0.1,
        min_notional=5.0,
        stop_distance=0.1,
        initial_nav=1_000_000.0,
        maintenance=((2e6, 0.005, 0.0), (2.6e6, 0.0056, 1_200.0)),
    )


def runner(data: dict[str, Any]) -> Callable[[Any], Any]:
    from mlbot_core.backtest.simulator import Forecasts, simulate

    said = Forecasts(data["edge"])

    def run(params: Any) -> Any:
        return simulate(
            *(data[name] for name in ("ts", "open", "high", "low", "close")),
            said,
            params,
            data["funding_ts"],
            data["funding_rate"],
            volume=data["volume"],
        )

    return run


def timed(work: Callable[[], Any], repeats: int) -> tuple[float, float, Any]:
    """Return (first, best of the others, last result)."""
    spent = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        result = work()
        spent.append(time.perf_counter() - began)
    return spent[0], min(spent[1:]), result


def child(side: str, bars: int, sets: int) -> dict[str, float]:
    """Measure one side in this process."""
    data = market(bars)
    run = runner(data)
    out: dict[str, float] = {}
    if side == "ours":
        cold, warm, result = timed(lambda: run(parameters()), 5)
        resting = dataclasses.replace(parameters(), maker_bars=3, maker_fee=0.0002, latency_bars=1)
        _, maker, rested = timed(lambda: run(resting), 3)
        out = {
            "cold_seconds": cold,
            "warm_seconds": warm,
            "orders": float(len(result.fills)),
            "maker_warm_seconds": maker,
            "maker_fills": float(rested.fills["maker"].sum()),
        }
    elif side == "vectorbt":
        import vectorbt  # noqa: F401 - imports are left out of every time

        from mlbot_core.backtest.portfolio import vectorbt_portfolio, vectorbt_view

        result = run(parameters())
        cold, warm, _ = timed(lambda: vectorbt_portfolio(result, data["close"]), 3)
        began = time.perf_counter()
        view = vectorbt_view(result, data["close"])
        out = {
            "vectorbt_cold_seconds": cold,
            "vectorbt_warm_seconds": warm,
            "vectorbt_check_seconds": time.perf_counter() - began,
            "vectorbt_disagreement": float(view.disagreement),
        }
    elif side == "sweep":
        from mlbot_core.backtest.sweep import sweep

        run(parameters())
        base = parameters()
        grid = [
            dataclasses.replace(base, cost_round_trip=0.0005 + 0.0001 * (i % 25), cap=0.005 * (1 + i // 25))
            for i in range(sets)
        ]
        began = time.perf_counter()
        table = sweep(run, grid, threads=2)
        out = {"sweep_seconds": time.perf_counter() - began, "sweep_sets": float(len(table))}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    out[f"{side}_peak_mib" if side != "ours" else "peak_mib"] = peak
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="write one JSON object on the last line")
    parser.add_argument("--quick", action="store_true", help="a tenth of the bars, ten sets")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    bars, sets = (31_536, 10) if options.quick else (315_360, 100)
    if options.child:
        print(json.dumps(child(options.child, bars, sets)))
        return
    result: dict[str, float] = {"bars": float(bars)}
    flags = ["--quick"] if options.quick else []
    for side in ("warm-up", "ours", "vectorbt", "sweep"):
        # the first process only fills the compiler's cache on disk
        done = subprocess.run(
            [sys.executable, str(Path(__file__).resolve()), "--child", "ours" if side == "warm-up" else side, *flags],
            check=True,
            capture_output=True,
            text=True,
        )
        if side != "warm-up":
            result |= json.loads(done.stdout.splitlines()[-1])
    result["vectorbt_over_ours_warm"] = result["vectorbt_warm_seconds"] / result["warm_seconds"]
    result["freqtrade_seconds"], said = backtest_freqtrade.measure(market(bars))
    print(f"{bars:,} bars, {result['orders']:.0f} orders (SYNTHETIC market)")
    print(f"{'':28}{'cold s':>10}{'warm s':>10}{'peak MiB':>10}")
    for title, side in (("mlbot, all costs and risk", ""), ("vectorbt from_orders", "vectorbt_")):
        cold, warm, peak = (result[f"{side}{name}"] for name in ("cold_seconds", "warm_seconds", "peak_mib"))
        print(f"{title:28}{cold:10.3f}{warm:10.3f}{peak:10.0f}")
    print(
        f"sweep of {result['sweep_sets']:.0f} sets on 2 threads: {result['sweep_seconds']:.2f} s, "
        f"{result['sweep_peak_mib']:.0f} MiB"
    )
    print(
        f"vectorbt takes {result['vectorbt_over_ours_warm']:.1f} times as long; equity differs by at most "
        f"{result['vectorbt_disagreement']:.1e} of NAV, funding taken off (from_orders, equity and statistics: "
        f"{result['vectorbt_check_seconds']:.1f} s)"
    )
    print(
        f"with limit orders and a bar of latency: {result['maker_warm_seconds']:.3f} s warm, "
        f"{result['maker_fills']:.0f} fills by limit"
    )
    print(said)
    if options.json:
        print(json.dumps({name: None if value != value else value for name, value in result.items()}))


if __name__ == "__main__":
    main()
