"""Does the backtest reproduce what live trading did? A past day of an account, simulated again with the same code.

*As recorded*: every decision made again by the decision function from its recorded observation, forecast, limits and
costs, which must be those that the backtest takes from the configuration: identical to the bit.

*Free running*: the simulator trades the recorded forecasts from the last moment before the day at which the account
was flat, on the stored prices. Compared are, bar by bar, the position at the close, what was filled and at which price,
fees and funding. What is tolerated:

===========  ==========================================================================================================
position     one lot, or half a percent of it: live sizes by the mark price at the decision, the simulator by the close
fill price   the expected price of a Brownian bridge within the bar, plus or minus 99 % of its spread at that moment
             (2.576 sigma sqrt(x (1 - x)), x the share of the bar that has passed) and the configured slippage
fees         one cent, or what one lot (or half a percent, as above) of each fill costs
funding      one cent, or what one lot (or half a percent) of each position paid on costs; the rates are those that the
             exchange charged, elsewhere the stored ones
===========  ==========================================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from mlbot_core.backtest.run import DECISION_LATENCY_MS
from mlbot_core.backtest.setup import simulation_params
from mlbot_core.backtest.simulator import Simulation, SimulationParams
from mlbot_core.clock import format_utc
from mlbot_core.config import Settings
from mlbot_core.errors import MissingDataError
from mlbot_core.execution import evidence
from mlbot_core.execution.ledger import ExecutionLedger
from mlbot_core.execution.ledger_states import DecisionRecord
from mlbot_core.execution.types import ExecType, Execution
from mlbot_core.live.parity_free import MarketData, bar_decisions, first_flat, free_run, market_data
from mlbot_core.targets import trailing_sigma
from mlbot_core.timeframe import Market
from mlbot_core.warehouse import Warehouse

CENT: Final = 0.01
SHARE: Final = 0.005
BAND_99: Final = 2.576
_FILL_COLUMNS: Final = (
    "ts", "live_qty", "qty", "live_price", "price", "price_bp", "band_bp", "live_fee", "fee", "fee_difference",
    "live_funding", "funding", "funding_difference", "position_difference", "within",
)  # fmt: skip


@dataclass(frozen=True)
class Parity:
    """How live trading and the backtest compare over a period.

    Parameters
    ----------
    market
        Of the decision clock.
    start_ms, end_ms
        Bars that close in [start, end) are compared, UTC ms.
    simulated_from_ms
        Where the free run began: the account was flat.
    decisions
        ``ts``, ``identical`` (bool), ``why``: one row a recorded decision.
    bars
        ``ts``, ``live_position``, ``position`` (coins at the decision on that bar, before its order), ``position_ok``,
        ``live_qty``, ``qty`` (signed coins filled in the bar), ``live_price``, ``price`` (USD, average), ``band``
        (fraction of the price), ``price_ok``, ``live_fee``, ``fee``, ``live_funding``, ``funding`` (USD paid in the
        bar): one row a bar.
    totals
        ``fees``, ``funding``: USD of the period, as (live, simulated, how far apart they may be).
    undecided
        Bars of the period without a decision.
    notes
        What a reader must know.
    """

    market: Market
    start_ms: int
    end_ms: int
    simulated_from_ms: int
    decisions: pd.DataFrame
    bars: pd.DataFrame
    totals: Mapping[str, tuple[float, float, float]]
    undecided: tuple[int, ...]
    notes: tuple[str, ...]

    @property
    def findings(self) -> tuple[str, ...]:
        """What lies outside of the tolerances, in words; empty for a certificate."""
        found = [
            f"decision on {format_utc(row['ts'])} differs: {row['why']}"
            for row in self.decisions.to_dict("records")
            if not row["identical"]
        ]
        for row in self.bars.to_dict("records"):
            bar = format_utc(row["ts"])
            if not row["position_ok"]:
                found.append(f"{bar}: {row['live_position']:g} coins held, {row['position']:g} simulated")
            if not row["price_ok"]:
                mine = f"{row['live_qty']:g} at {row['live_price']:.2f}"
                found.append(f"{bar}: filled {mine}, simulated {row['qty']:g} at {row['price']:.2f}")
        for name, (live, simulated, tolerated) in self.totals.items():
            if abs(live - simulated) > tolerated:
                found.append(f"{name}: {live:.4f} USD paid, {simulated:.4f} simulated")
        if self.undecided:
            found.append(f"{len(self.undecided)} bars were not decided, the first {format_utc(self.undecided[0])}")
        return tuple(found)

    @property
    def fills(self) -> pd.DataFrame:
        """Return what was filled, or paid as funding, beside what was simulated: one row a bar in which either was.

        ``ts``, ``live_qty``, ``qty`` (signed coins), ``live_price``, ``price`` (USD), ``price_bp``, ``band_bp`` (live
        over simulated, and how much is tolerated, 1e-4), ``live_fee``, ``fee``, ``fee_difference``, ``live_funding``,
        ``funding``, ``funding_difference`` (USD; live less simulated), ``position_difference`` (coins held at the
        decision, live less simulated), ``within`` (whether position and price are within tolerance).
        """
        bars = self.bars
        moved = (bars[["live_qty", "qty", "live_funding", "funding"]] != 0.0).any(axis=1)
        shown = bars.loc[moved].assign(
            price_bp=(bars["live_price"] / bars["price"] - 1.0) * 1e4,
            band_bp=bars["band"] * 1e4,
            fee_difference=bars["live_fee"] - bars["fee"],
            funding_difference=bars["live_funding"] - bars["funding"],
            position_difference=bars["live_position"] - bars["position"],
            within=bars["position_ok"] & bars["price_ok"],
        )
        return shown[list(_FILL_COLUMNS)].reset_index(drop=True)

    @property
    def passed(self) -> bool:
        """Whether everything is within the tolerances."""
        return not self.findings

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "market": str(self.market),
            "start": format_utc(self.start_ms),
            "end": format_utc(self.end_ms),
            "simulated_from": format_utc(self.simulated_from_ms),
            "decisions": len(self.decisions),
            "identical_decisions": int(self.decisions["identical"].sum()) if len(self.decisions) else 0,
            "bars": len(self.bars),
            "bars_with_other_positions": int((~self.bars["position_ok"]).sum()) if len(self.bars) else 0,
            "fills_outside_the_band": int((~self.bars["price_ok"]).sum()) if len(self.bars) else 0,
            **{name: {"live": live, "simulated": simulated} for name, (live, simulated, _) in self.totals.items()},
            "passed": self.passed,
            "findings": list(self.findings),
            "notes": list(self.notes),
        }


def parity(
    store: Warehouse,
    settings: Settings,
    ledger: ExecutionLedger,
    source: str,
    market: Market,
    contract: str,
    start_ms: int,
    end_ms: int,
) -> Parity:
    """Simulate a past period of an account again and compare.

    Parameters
    ----------
    source
        Of the bars that were decided on.
    contract
        The symbol as the exchange names it.
    start_ms, end_ms
        Decisions on bars that close in [start, end) are compared, UTC ms; a day of the account in general.

    Raises
    ------
    MissingDataError
        If nothing was decided in the period, or its prices are not stored.
    QualityRefusedError
        If a month of the prices failed a check.
    """
    length = market.timeframe.ms
    delay = settings.intervals.settle_delay_ms(source)
    records = [one for one in bar_decisions(ledger, contract) if one.ts + length < end_ms]
    inside = [one for one in records if start_ms <= one.ts + length]
    if not inside:
        raise MissingDataError(
            f"{ledger.account} decided on no bar of {market} from {format_utc(start_ms)} to {format_utc(end_ms)}: "
            "there is nothing to compare; is live trading on? (mlbot status)"
        )
    first, notes = first_flat(records, inside[0])
    params = simulation_params(
        market,
        settings.fees,
        settings.risk,
        delay,
        DECISION_LATENCY_MS,
        unit=False,
        initial_nav=evidence.read(first.details).observation.nav,
    )
    used = [one for one in records if one.ts >= first.ts]
    data = market_data(store, source, market, delay, first.ts - 100 * length, end_ms + length)
    executions = ledger.executions(contract)
    done = free_run(ledger, data, used, executions, params, contract, end_ms)
    bars = _compare(done, inside, executions, data, params, contract)
    closes = np.arange(market.timeframe.ceil(start_ms), end_ms, length, dtype=np.int64)
    decided = {one.ts + length for one in inside}
    return Parity(
        market,
        start_ms,
        end_ms,
        first.ts,
        as_recorded(inside, params),
        bars,
        _totals(done, executions, start_ms, end_ms),
        tuple(int(close) - length for close in closes if int(close) not in decided),
        (*notes, data.note),
    )


def as_recorded(records: Sequence[DecisionRecord], params: SimulationParams) -> pd.DataFrame:
    """Make recorded decisions again from their recorded observations, by the limits and costs of the backtest.

    Returns
    -------
    pd.DataFrame
        ``ts``, ``identical``, ``why``.
    """
    rows = []
    for one in records:
        basis = evidence.read(one.details)
        other = []
        if basis.limits != params.limits():
            other.append(f"limits {basis.limits} then, {params.limits()} now")
        if basis.cost_round_trip != params.cost_round_trip:
            other.append(f"costs {basis.cost_round_trip} then, {params.cost_round_trip} now")
        again = basis._replace(limits=params.limits(), cost_round_trip=params.cost_round_trip)
        made = evidence.record(again, *again.decide())
        for part in ("after", "decision"):
            if made[part] != one.details[part]:
                other.append(f"{part} differs")
        rows.append({"ts": one.ts, "identical": not other, "why": "; ".join(other)})
    return pd.DataFrame(rows, columns=["ts", "identical", "why"])


def _compare(
    done: Simulation,
    records: Sequence[DecisionRecord],
    executions: Sequence[Execution],
    data: MarketData,
    params: SimulationParams,
    contract: str,
) -> pd.DataFrame:
    """Lay both side by side, one row a decided bar; what was filled counts for the bar in which it was filled."""
    length = params.timeframe_ms
    at = {int(bar): row for row, bar in enumerate(done.ts)}
    close = data.prices["close"].to_numpy(dtype=np.float64)
    sigma = dict(zip(data.prices["ts"].astype(np.int64), trailing_sigma(close, 48), strict=True))
    share = params.delay_ms / length
    rows = []
    for one in records:
        live = [
            e
            for e in executions
            if e.kind is ExecType.TRADE and e.symbol == contract and one.ts <= e.exec_ms < one.ts + length
        ]
        fills = done.fills[(done.fills["ts"] >= one.ts) & (done.fills["ts"] < one.ts + length)]
        live_qty = float(sum(e.side.sign * e.qty for e in live))
        qty = float((fills["side"] * fills["btc"].abs()).sum())
        live_price = _average([float(e.qty) for e in live], [float(e.price) for e in live])
        price = _average(fills["btc"].abs().tolist(), fills["price"].tolist())
        spread = sigma.get(one.ts - length, math.nan)
        band = params.slippage * 2 + BAND_99 * (0.0 if math.isnan(spread) else spread) * math.sqrt(share * (1 - share))
        live_position = evidence.read(one.details).observation.position
        position = float(done.position[at[one.ts]])
        live_fee, live_funding = _paid(executions, one.ts, one.ts + length)
        paid = done.payments[(done.payments["ts"] >= one.ts) & (done.payments["ts"] < one.ts + length)]
        both = bool(live) and len(fills) > 0
        rows.append(
            {
                "ts": one.ts,
                "live_position": live_position,
                "position": position,
                "position_ok": abs(live_position - position) <= _allowed(position, params.lot * 1.0001),
                "live_qty": live_qty,
                "qty": qty,
                "live_price": live_price,
                "price": price,
                "band": band,
                "price_ok": (bool(live) == (len(fills) > 0)) and (not both or abs(live_price / price - 1) <= band),
                "live_fee": live_fee,
                "fee": float(fills["fee"].sum()),
                "live_funding": live_funding,
                "funding": float(paid["payment"].sum()),
            }
        )
    return pd.DataFrame(rows)


def _totals(
    done: Simulation, executions: Sequence[Execution], start_ms: int, end_ms: int
) -> dict[str, tuple[float, float, float]]:
    """Return fees and funding of both and how far apart they may be, USD: positions may differ by a lot."""
    fees, funding = _paid(executions, start_ms, end_ms)
    fills = done.fills[(done.fills["ts"] >= start_ms) & (done.fills["ts"] < end_ms)]
    paid = done.payments[(done.payments["ts"] >= start_ms) & (done.payments["ts"] < end_ms)]
    lot = done.params.lot
    return {
        "fees": (fees, float(fills["fee"].sum()), _tolerated(fills["fee"], fills["btc"], lot)),
        "funding": (funding, float(paid["payment"].sum()), _tolerated(paid["payment"], paid["btc"], lot)),
    }


def _tolerated(charged: pd.Series, amounts: pd.Series, lot: float) -> float:
    """Return how much of what was charged on amounts of coins is one lot or half a percent of each, USD."""
    return max(CENT, float((_allowed(amounts, lot) / amounts.abs() * charged.abs()).sum()))


def _allowed(coins: Any, lot: float) -> Any:
    """Return how far apart positions or fills may be, coins: one lot, or half a percent."""
    return np.maximum(lot, SHARE * np.abs(coins))


def _paid(executions: Sequence[Execution], start_ms: int, end_ms: int) -> tuple[float, float]:
    """Return fees and funding that were charged in [start, end), USD."""
    mine = [one for one in executions if start_ms <= one.exec_ms < end_ms]
    fees = float(sum(one.fee for one in mine if one.kind is not ExecType.FUNDING))
    return fees, float(sum(one.fee for one in mine if one.kind is ExecType.FUNDING))


def _average(amounts: Sequence[float], prices: Sequence[float]) -> float:
    total = sum(abs(amount) for amount in amounts)
    return sum(abs(a) * p for a, p in zip(amounts, prices, strict=True)) / total if total else math.nan
