"""From bars and forecasts to the bandit's decisions: when a size is chosen, what is known then, what each size earns.

A decision is made where the forecast calls for a side that it did not call for before (the no-trade band of
:func:`mlbot_core.decision.sizing.next_side`, followed by forecasts alone). The size chosen then stays until the
forecast leaves that side: the position's period. So periods follow one after the other, they are the same whatever
sizes are chosen, and no position is traded up and down only because another size looks better by a hair.

What a size earns in each period comes from simulations of the whole account at that size, with every cost. Each bar's
result and each fill's costs go to the period that held the position; a reversal's costs are split between the period
that is closed and the one that is opened. Nothing is left over: the periods sum to the account's result.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.backtest.simulator import Forecasts, Simulation, SimulationParams, simulate
from mlbot_core.config.bandit import BanditContextConfig, BanditRewardConfig
from mlbot_core.decision.bandit import ARMS
from mlbot_core.decision.bandit_context import Context
from mlbot_core.decision.bandit_inputs import known_at_close, reward_of
from mlbot_core.decision.sizing import target_positions

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class BanditMarket:
    """Bars and forecasts of one model, one row a bar.

    Parameters
    ----------
    frame
        ``ts`` (UTC ms, open time, without gaps), ``open``, ``high``, ``low``, ``close`` (USD), ``volume`` (coins),
        ``edge`` and ``edge_sd`` (log return), ``spread`` (of the models' edges, log return), ``p_down``, ``p_up``,
        ``label`` (-1, 0, +1) and ``t1`` (when it was known, UTC ms); NaN = missing.
    params
        Of the simulated account at the traded size.
    funding_ts, funding_rate
        Settlements.
    """

    frame: pd.DataFrame
    params: SimulationParams
    funding_ts: IntArray
    funding_rate: FloatArray

    def simulate(self, multiplier: FloatArray, params: SimulationParams | None = None) -> Simulation:
        """Trade the forecasts at these shares of the cap, float64[bars]."""
        f = {name: self.frame[name].to_numpy(dtype=np.float64) for name in ("open", "high", "low", "close", "volume")}
        return simulate(
            self.frame["ts"].to_numpy(dtype=np.int64),
            f["open"],
            f["high"],
            f["low"],
            f["close"],
            Forecasts(self.frame["edge"].to_numpy(dtype=np.float64), multiplier),
            params or self.params,
            self.funding_ts,
            self.funding_rate,
            volume=f["volume"],
        )


@dataclass(frozen=True, eq=False)
class Decisions:
    """Every period of a position, and what each size would have earned in it.

    Parameters
    ----------
    ts
        int64[n], open time of the bar on whose close the size was chosen, UTC ms.
    start, end
        int64[n], rows of that bar and of the bar whose decision ended the period.
    context
        One a decision, with a drawdown of NaN: that one is the account's and depends on what was chosen before.
    growth, fall
        float64[n, arms], log growth of NAV over the period net of costs, and the deepest fall of NAV from its peak
        within it, fraction.
    peak
        float64[n, arms], highest NAV within the period over NAV at its start.
    """

    ts: IntArray
    start: IntArray
    end: IntArray
    context: tuple[Context, ...]
    growth: FloatArray
    fall: FloatArray
    peak: FloatArray

    def __len__(self) -> int:
        return len(self.ts)

    def rewards(self, config: BanditRewardConfig) -> FloatArray:
        """Return the reward of every size, float64[n, arms]."""
        return reward_of(self.growth, self.fall, config)

    def take(self, rows: slice) -> Decisions:
        """Return some of them."""
        return Decisions(
            self.ts[rows],
            self.start[rows],
            self.end[rows],
            self.context[rows],
            self.growth[rows],
            self.fall[rows],
            self.peak[rows],
        )


def periods(edge: FloatArray, cost_round_trip: float) -> tuple[IntArray, IntArray]:
    """Return first row and ending row of every finished period, int64[n] each; one that is still open is left out."""
    begins, ends = _all_periods(edge, cost_round_trip)
    finished = ends < len(edge)
    return begins[finished], ends[finished]


def _all_periods(edge: FloatArray, cost_round_trip: float) -> tuple[IntArray, IntArray]:
    """Return the periods, the last one too if it is still open: it ends after the last row."""
    side = np.sign(target_positions(edge, cost_round_trip, 1.0))
    changed = np.flatnonzero(np.diff(side, prepend=0.0) != 0.0)
    begins = changed[side[changed] != 0.0]
    ends = np.append(changed, len(side))[np.searchsorted(changed, begins, side="right")]
    return begins.astype(np.int64), ends.astype(np.int64)


def build_decisions(market: BanditMarket, config: BanditContextConfig) -> Decisions:
    """Find the periods, what was known at their beginnings, and what each size earned in them."""
    frame = market.frame
    edge, cost = frame["edge"].to_numpy(dtype=np.float64), market.params.cost_round_trip
    start, end = periods(edge, cost)
    # what the last period costs, which may still be open, is not the one's before it
    every = _all_periods(edge, cost)
    known = known_at_close(frame, market.params.timeframe_ms, config).iloc[start].to_dict("list")
    context = tuple(
        Context(
            edge=float(known["edge"][e]),
            edge_sd=float(known["edge_sd"][e]),
            cost=market.params.cost_round_trip,
            spread=float(known["spread"][e]),
            volatility=float(known["volatility"][e]),
            liquidity=float(known["liquidity"][e]),
            drawdown=math.nan,
            calibration=float(known["calibration"][e]),
        )
        for e in range(len(start))
    )
    shape = (len(start), len(ARMS))
    growth, fall, peak = np.zeros(shape), np.zeros(shape), np.ones(shape)
    # what a size earns in a period is asked of an account that was not halted before it
    params = dataclasses.replace(market.params, max_drawdown=math.inf)
    for arm, share in enumerate(ARMS):
        if share > 0.0 and len(start):
            simulation = market.simulate(np.full(len(frame), share), params)
            path = attribute(simulation, frame["close"].to_numpy(dtype=np.float64), *every)
            for e, pnl in enumerate(path[: len(start)]):
                relative = 1.0 + np.cumsum(np.r_[0.0, pnl]) / simulation.nav[start[e]]
                top = np.maximum.accumulate(relative)
                growth[e, arm] = math.log(max(relative[-1], 1e-12))
                fall[e, arm] = float(np.max(1.0 - relative / top))
                peak[e, arm] = float(top[-1])
    ts = frame["ts"].to_numpy(dtype=np.int64)[start]
    return Decisions(ts, start, end, context, growth, fall, peak)


def attribute(simulation: Simulation, close: FloatArray, start: IntArray, end: IntArray) -> list[FloatArray]:
    """Return each period's result bar by bar, USD, in the order of the bars.

    Parameters
    ----------
    simulation
        Of the account.
    close
        float64[bars], USD, NaN = missing.
    start, end
        Of :func:`periods`; a last one that is still open ends after the last row.
    """
    n = len(close)
    decided = np.full(n, -1, dtype=np.int64)
    for e, (first, last) in enumerate(zip(start, end, strict=True)):
        decided[first:last] = e
    result: list[list[float]] = [[] for _ in start]
    fills = simulation.fills
    bar_of = fills["bar"].to_numpy(dtype=np.int64)
    amounts = fills["side"].to_numpy(dtype=np.float64) * fills["btc"].to_numpy(dtype=np.float64)
    mids, after = (fills[name].to_numpy(dtype=np.float64) for name in ("mid", "position"))
    costs = fills["fee"].to_numpy(dtype=np.float64) + fills["slippage"].to_numpy(dtype=np.float64)
    paid = simulation.payments[["ts", "btc", "payment"]].to_numpy(dtype=np.float64)
    # a settlement belongs to the bar with open < settlement <= close
    paid_bar = np.searchsorted(simulation.ts, paid[:, 0], side="left") - 1
    held, owner, reference, k, p = 0.0, -1, math.nan, 0, 0
    for i in range(n):
        now: dict[int, float] = {}
        wanted = int(decided[i - 1]) if i else -1
        sides = {held > 0.0: owner}
        while k < len(bar_of) and bar_of[k] == i:
            if held != 0.0 and owner >= 0:
                now[owner] = now.get(owner, 0.0) + held * (mids[k] - reference)
            reference = mids[k]
            closing = min(abs(held), abs(amounts[k])) if held * amounts[k] < 0.0 else 0.0
            share = closing / abs(amounts[k])
            taker = wanted if wanted >= 0 else owner
            for who, part in ((owner, share), (taker, 1.0 - share)):
                if who >= 0 and part > 0.0:
                    now[who] = now.get(who, 0.0) - costs[k] * part
            if held == 0.0 or held * after[k] < 0.0:
                owner = taker
                sides[amounts[k] > 0.0] = owner
            held = after[k]
            k += 1
        while p < len(paid) and paid_bar[p] <= i:
            # whoever held that side at the settlement paid for it
            who = sides.get(paid[p, 1] > 0.0, owner)
            if who >= 0:
                now[who] = now.get(who, 0.0) - paid[p, 2]
            p += 1
        if not math.isnan(close[i]):
            if held != 0.0 and owner >= 0:
                now[owner] = now.get(owner, 0.0) + held * (close[i] - reference)
            reference = close[i]
        for who, amount in now.items():
            result[who].append(amount)
        if held == 0.0:
            owner = -1
    return [np.array(values, dtype=np.float64) for values in result]
