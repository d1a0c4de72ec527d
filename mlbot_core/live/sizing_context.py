"""What the bandit sees of a live decision: the same quantities as in its training, from what is stored."""

from __future__ import annotations

import math

import duckdb
import numpy as np
import pandas as pd

from mlbot_core.config import Settings
from mlbot_core.decision.bandit_context import Context
from mlbot_core.decision.bandit_inputs import known_at_close
from mlbot_core.decision.costs import costs_from_fees
from mlbot_core.errors import MissingDataError
from mlbot_core.execution.ledger import ExecutionLedger
from mlbot_core.live.observation import Said
from mlbot_core.live.signal_store import TABLE as SIGNALS
from mlbot_core.live.signal_store import Signal, read_signals
from mlbot_core.targets.dataset import TABLE as TARGETS
from mlbot_core.timeframe import DAY_MS
from mlbot_core.warehouse import Warehouse, read_window, settled
from mlbot_core.warehouse.windows import exists

# the newest forecasts with a known outcome lie within so many times as many bars
_SPARE = 3


def context_of(
    store: Warehouse, settings: Settings, ledger: ExecutionLedger, source: str, contract: str, said: Said
) -> Context:
    """Return the context of a decision; what is not known in it is NaN.

    Raises
    ------
    MissingDataError
        If there is no forecast, or no price of its bar is stored.
    """
    signal = said.signal
    if signal is None:
        raise MissingDataError(f"no forecast of {said.market} is stored; see: mlbot status")
    market, config = said.market, settings.bandit.context
    step = market.timeframe.ms
    bars = 1 + max(
        round(max(config.volatility_days, config.usual_volume_days) * DAY_MS / step),
        _SPARE * config.calibration_forecasts,
    )
    ts = said.ts - step * np.arange(bars - 1, -1, -1, dtype=np.int64)
    delay = settings.intervals.settle_delay_ms(source)
    with store.read() as con:
        prices = settled(
            con,
            "price",
            source=source,
            symbol=market.symbol,
            timeframe=market.timeframe,
            start_ms=int(ts[0]),
            end_ms=said.ts + step,
            settle_delay_ms=delay,
            known_by_ms=market.timeframe.close_of(said.ts) + delay,
        ).table.to_pandas()
        told = _told(con, source, signal, int(ts[0]), said.ts + step)
    if not (prices["ts"] == said.ts).any():
        raise MissingDataError(f"no price of {market} is stored for the decided bar; pull it: mlbot backfill")
    # where only the turnover is served, coins follow from it at the close
    prices["volume"] = prices["volume_coin"].fillna(prices["volume_usd"] / prices["close"])
    frame = pd.DataFrame({"ts": ts}).merge(prices[["ts", "close", "volume"]], on="ts", how="left")
    frame = frame.merge(told, on="ts", how="left").assign(edge=math.nan, edge_sd=math.nan, spread=math.nan)
    known = known_at_close(frame, step, config).iloc[-1]
    return Context(
        edge=said.forecast.edge,
        edge_sd=float(signal.forecast["score_sd"]) * signal.width,
        cost=costs_from_fees(settings.fees).round_trip,
        spread=_spread(store, settings, source, signal),
        volatility=float(known["volatility"]),
        liquidity=float(known["liquidity"]),
        drawdown=_drawdown(ledger, contract),
        calibration=float(known["calibration"]),
    )


def _told(con: duckdb.DuckDBPyConnection, source: str, signal: Signal, start_ms: int, end_ms: int) -> pd.DataFrame:
    """Return ``ts, p_down, p_up, label, t1`` of the model's own forecasts in [start, end) whose outcome is stored."""
    columns = ["ts", "p_down", "p_up", "label", "t1"]
    market = signal.key.market
    if not exists(con, SIGNALS) or not exists(con, TARGETS):
        return pd.DataFrame({name: pd.Series(dtype=np.int64 if name == "ts" else np.float64) for name in columns})
    said = con.execute(
        f"SELECT ts, p_down, p_up FROM {SIGNALS} WHERE source = ? AND symbol = ? AND timeframe = ? AND ts >= ? "
        "AND ts < ? AND model_version = ? AND usable AND NOT late ORDER BY ts",
        [source, market.symbol, str(market.timeframe), start_ms, end_ms, signal.key.model_version],
    ).df()
    scope = {"source": source, "symbol": market.symbol, "timeframe": str(market.timeframe)}
    labels = read_window(con, TARGETS, scope, start_ms=start_ms, end_ms=end_ms).to_pandas()
    labels = pd.DataFrame(
        {
            "ts": labels["ts"],
            "label": labels["tb_label"].astype(float),
            "t1": np.where(labels["tb_t1"] >= 0, labels["tb_t1"], np.nan),
        }
    )
    return said.merge(labels, on="ts", how="inner")[columns]


def _spread(store: Warehouse, settings: Settings, source: str, signal: Signal) -> float:
    """Return the standard deviation of all models' edges on the bar, log return; NaN where fewer than two spoke."""
    scores = {signal.key.model_type: signal.forecast["score"]}
    wanted = set(settings.models.meta.models)
    for one in read_signals(store, source, signal.key.market, signal.key.ts, signal.key.ts + 1):
        # of several versions of one type the one that would speak for it
        better = one.key.model_type not in scores or not one.shadow
        if one.key.model_type in wanted - {signal.key.model_type} and one.usable and not one.late and better:
            scores[one.key.model_type] = one.forecast["score"]
    values = np.array([value for value in scores.values() if math.isfinite(value)])
    return float(values.std()) * signal.width if len(values) >= 2 else math.nan


def _drawdown(ledger: ExecutionLedger, contract: str) -> float:
    """Return how far the account is below its peak, fraction; 0 before its first mark, NaN where NAV is unknown."""
    stored = ledger.load_risk_state(contract)
    if stored is None:
        return 0.0
    peak, last = stored.state.peak_nav, stored.state.last_nav
    return max(1.0 - last / peak, 0.0) if math.isfinite(peak + last) and peak > 0.0 else math.nan
