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
fees         one cent, or half a percent
funding      one cent, or half a percent; the rates are those that the exchange charged, elsewhere the stored ones
===========  ==========================================================================================================
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.backtest.funding import funding_of
from mlbot_core.backtest.run import DECISION_LATENCY_MS
from mlbot_core.backtest.setup import simulation_params
from mlbot_core.backtest.simulator import Forecasts, Simulation, SimulationParams, simulate
from mlbot_core.clock import format_utc
from mlbot_core.config import Settings
from mlbot_core.decision.state import OBSERVED
from mlbot_core.errors import MissingDataError
from mlbot_core.execution import evidence
from mlbot_core.execution.ledger import ExecutionLedger
from mlbot_core.execution.ledger_folds import FLOW_KINDS
from mlbot_core.execution.ledger_states import BAR, DecisionRecord
from mlbot_core.execution.types import ExecType, Execution
from mlbot_core.live.observation import NO_AGE
from mlbot_core.targets import trailing_sigma
from mlbot_core.timeframe import DAY_MS, Market, Month
from mlbot_core.warehouse import Warehouse
from mlbot_core.warehouse.inputs import Window, read_inputs

CENT: Final = 0.01
SHARE: Final = 0.005
BAND_99: Final = 2.576
FARTHEST_MS: Final = 30 * DAY_MS
_SERIES: Final = ("price", "funding_rate", "funding_settled")


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
        (fraction of the price), ``price_ok``: one row a bar.
    totals
        ``fees``, ``funding``: USD of the period, as (live, simulated).
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
    totals: Mapping[str, tuple[float, float]]
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
        for name, (live, simulated) in self.totals.items():
            if not _close(live, simulated):
                found.append(f"{name}: {live:.4f} USD paid, {simulated:.4f} simulated")
        if self.undecided:
            found.append(f"{len(self.undecided)} bars were not decided, the first {format_utc(self.undecided[0])}")
        return tuple(found)

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
            **{name: {"live": live, "simulated": simulated} for name, (live, simulated) in self.totals.items()},
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
    records = [one for one in _decisions(ledger, contract) if one.ts + length < end_ms]
    inside = [one for one in records if start_ms <= one.ts + length]
    if not inside:
        raise MissingDataError(
            f"{ledger.account} decided on no bar of {market} from {format_utc(start_ms)} to {format_utc(end_ms)}: "
            "there is nothing to compare; is live trading on? (mlbot status)"
        )
    first, notes = _first_flat(records, inside[0])
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
    data = _market_data(store, source, market, delay, first.ts - 100 * length, end_ms + length)
    executions = ledger.executions(contract)
    done = _free_run(ledger, data, used, executions, params, contract, first.ts, end_ms)
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


@dataclass(frozen=True, eq=False)
class _Data:
    """Stored prices (``ts, open, high, low, close, volume``) and funding (``ts, rate``)."""

    prices: pd.DataFrame
    funding: pd.DataFrame
    note: str
    length: int


def _decisions(ledger: ExecutionLedger, contract: str) -> list[DecisionRecord]:
    found = []
    for row in ledger.rows("decisions", limit=1_000_000):
        if (row["symbol"], row["trigger"]) == (contract, BAR):
            record = ledger.decision(row["decision_id"])
            assert record is not None
            found.append(record)
    return sorted(found, key=lambda one: one.ts)


def _first_flat(records: Sequence[DecisionRecord], first: DecisionRecord) -> tuple[DecisionRecord, tuple[str, ...]]:
    """Return the newest decision up to ``first`` that saw no position, and what to say if there is none."""
    earlier = [one for one in records if first.ts - FARTHEST_MS <= one.ts <= first.ts]
    for one in reversed(earlier):
        if evidence.read(one.details).observation.position == 0.0:
            return one, ()
    return earlier[0], (
        f"The account was not flat since {format_utc(earlier[0].ts)}: the free run begins without its position there.",
    )


def _market_data(store: Warehouse, source: str, market: Market, delay: int, start_ms: int, end_ms: int) -> _Data:
    now = store.clock.now_ms()
    window = Window(source, market, tuple(Month.span(start_ms, min(end_ms, now))), delay, series=_SERIES)
    inputs = read_inputs(store, window, known_by_ms=now)
    prices = inputs.settled["price"].table.to_pandas()
    prices["volume"] = prices["volume_coin"].fillna(prices["volume_usd"] / prices["close"])
    funding, note = funding_of(inputs)
    return _Data(prices, funding, note, market.timeframe.ms)


def _free_run(
    ledger: ExecutionLedger,
    data: _Data,
    records: Sequence[DecisionRecord],
    executions: Sequence[Execution],
    params: SimulationParams,
    contract: str,
    first_ts: int,
    end_ms: int,
) -> Simulation:
    """Trade the recorded forecasts on the stored prices."""
    length = params.timeframe_ms
    ts = np.arange(first_ts, end_ms, length, dtype=np.int64)
    grid = pd.DataFrame({"ts": ts}).merge(data.prices, on="ts", how="left")
    if grid["close"].isna().all():
        raise MissingDataError(
            f"no price is stored from {format_utc(first_ts)} on; pull the bars again (mlbot backfill)"
        )
    said = {one.ts: evidence.read(one.details) for one in records}
    edge, multiplier, age = (np.full(len(ts), value) for value in (math.nan, 1.0, float(NO_AGE)))
    flags = np.zeros(len(ts), dtype=np.int64)
    for at, bar in enumerate(ts.tolist()):
        if bar in said:
            basis = said[bar]
            edge[at], multiplier[at], age[at] = basis.forecast
            flags[at] = basis.observation.flags & OBSERVED
    funding = _charged(data.funding, executions)
    return simulate(
        ts,
        grid["open"].to_numpy(),
        grid["high"].to_numpy(),
        grid["low"].to_numpy(),
        grid["close"].to_numpy(),
        Forecasts(edge, multiplier, age),
        params,
        funding["ts"].to_numpy(),
        funding["rate"].to_numpy(),
        volume=grid["volume"].to_numpy(),
        flags=flags,
        flows=_flows(ledger, contract, ts, length),
        state=said[first_ts].state,
    )


def _flows(ledger: ExecutionLedger, contract: str, ts: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.float64]:
    """Return deposits less withdrawals, at the open of the bar after the one in which they came.

    What came before the book began is in the balance that it began with.
    """
    flows = np.zeros(len(ts))
    opening = ledger.opening(contract)
    for row in ledger.rows("wallet_events", after=0 if opening is None else opening.wallet_seq, limit=1_000_000):
        at = (int(row["at_ms"]) - int(ts[0])) // length + 1
        if row["kind"] in FLOW_KINDS and 1 <= at < len(ts):
            flows[at] += float(row["change"])
    return flows


def _charged(stored: pd.DataFrame, executions: Sequence[Execution]) -> pd.DataFrame:
    """Return the settlements with the rates that the exchange charged, where it charged any."""
    rates = dict(zip(stored["ts"].astype(np.int64), stored["rate"].astype(float), strict=True))
    for one in executions:
        if one.kind is ExecType.FUNDING and one.qty:
            at = round(one.exec_ms / 60_000) * 60_000
            rates[at] = float(one.fee / (one.side.sign * one.qty * one.price))
    return pd.DataFrame({"ts": sorted(rates), "rate": [rates[at] for at in sorted(rates)]}).dropna()


def _compare(
    done: Simulation,
    records: Sequence[DecisionRecord],
    executions: Sequence[Execution],
    data: _Data,
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
        both = bool(live) and len(fills) > 0
        rows.append(
            {
                "ts": one.ts,
                "live_position": live_position,
                "position": position,
                "position_ok": abs(live_position - position) <= max(params.lot * 1.0001, SHARE * abs(position)),
                "live_qty": live_qty,
                "qty": qty,
                "live_price": live_price,
                "price": price,
                "band": band,
                "price_ok": (bool(live) == (len(fills) > 0)) and (not both or abs(live_price / price - 1) <= band),
            }
        )
    return pd.DataFrame(rows)


def _totals(
    done: Simulation, executions: Sequence[Execution], start_ms: int, end_ms: int
) -> dict[str, tuple[float, float]]:
    """Return fees and funding of both, USD."""
    mine = [one for one in executions if start_ms <= one.exec_ms < end_ms]
    fees = float(sum(one.fee for one in mine if one.kind is not ExecType.FUNDING))
    funding = float(sum(one.fee for one in mine if one.kind is ExecType.FUNDING))
    fills = done.fills[(done.fills["ts"] >= start_ms) & (done.fills["ts"] < end_ms)]
    paid = done.payments[(done.payments["ts"] >= start_ms) & (done.payments["ts"] < end_ms)]
    return {"fees": (fees, float(fills["fee"].sum())), "funding": (funding, float(paid["payment"].sum()))}


def _average(amounts: Sequence[float], prices: Sequence[float]) -> float:
    total = sum(abs(amount) for amount in amounts)
    return sum(abs(a) * p for a, p in zip(amounts, prices, strict=True)) / total if total else math.nan


def _close(live: float, simulated: float) -> bool:
    return abs(live - simulated) <= max(CENT, SHARE * abs(simulated))


def parity_png(found: Parity) -> bytes:
    """Return a picture: positions of both above, price differences within their band below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.4), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    when = pd.to_datetime(found.bars["ts"], unit="ms", utc=True)
    above.step(when, found.bars["live_position"], where="post", label="live", linewidth=1.6)
    above.step(when, found.bars["position"], where="post", label="backtest", linewidth=0.9, linestyle="--")
    above.set_title(
        f"{found.market} {format_utc(found.start_ms)[:10]}: {'parity' if found.passed else 'NO PARITY'}, coins held",
        fontsize=8,
        loc="left",
    )
    above.legend(fontsize=6, frameon=False)
    band = found.bars["band"] * 1e4
    below.fill_between(when, -band, band, alpha=0.2, linewidth=0, label="99 % band")
    below.plot(when, (found.bars["live_price"] / found.bars["price"] - 1) * 1e4, "o", markersize=3, label="fills")
    below.set_title("fill price, live against backtest, bp", fontsize=8, loc="left")
    below.legend(fontsize=6, frameon=False)
    for axis in (above, below):
        axis.tick_params(labelsize=6)
        axis.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
