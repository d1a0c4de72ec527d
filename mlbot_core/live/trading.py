"""A trader for the configured account, ready to decide; and what one decision needs of a forecast bar."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from mlbot_core.clock import Clock, format_utc
from mlbot_core.config import Settings
from mlbot_core.decision.costs import costs_from_fees
from mlbot_core.decision.state import ACTIONS, LEVELS
from mlbot_core.errors import MissingDataError, QualityRefusedError
from mlbot_core.execution.ledger import ExecutionLedger, open_ledger
from mlbot_core.execution.ledger_folds import AttemptState
from mlbot_core.execution.limits import effective_max_position
from mlbot_core.execution.preflight import require_mainnet
from mlbot_core.execution.record import open_record
from mlbot_core.execution.safety import Lease, Permit, SafetyFiles
from mlbot_core.execution.sending import ExecutionRules
from mlbot_core.execution.trader import ACTOR, CycleReport, Decided, Status, Trader
from mlbot_core.execution.venues import OpenedVenue, open_broker
from mlbot_core.live.chosen import load_cast
from mlbot_core.live.failures import note_good_run
from mlbot_core.live.observation import Said, forecast_to_decide, said_of
from mlbot_core.live.signals import Forecasted, forecast_newest
from mlbot_core.live.sizing import sized
from mlbot_core.timeframe import Market
from mlbot_core.warehouse import Warehouse

_BLIND_PAUSE_S: Final = 3.0


@dataclass(frozen=True)
class Desk:
    """A trader and what it works with."""

    trader: Trader
    ledger: ExecutionLedger
    venue: OpenedVenue
    files: SafetyFiles
    clock: Clock


@contextmanager
def open_desk(settings: Settings, clock: Clock, environ: Mapping[str, str] | None = None) -> Iterator[Desk]:
    """Open the configured account and its book for the length of a ``with`` block.

    The trader shows that it lives before it can send anything, and says goodbye at the end: the dead-man ends its
    process should the risk watch fall silent.

    Raises
    ------
    ConfigError
        If the venue cannot be opened as configured.
    BrokerError
        If it does not answer.
    PreflightError
        If it is mainnet and anything is missing that real money needs.
    """
    env = os.environ if environ is None else environ
    with (
        open_broker(settings, clock, env) as opened,
        open_ledger(settings.home, clock, opened.account, env) as ledger,
    ):
        # asked anew each time; other venues than mainnet need none of it
        require_mainnet(settings, clock, env)
        files = SafetyFiles.of(settings.live_dir, opened.account, clock)
        lease = Lease(settings.execution.watch.lease_s, clock)
        with open_record(settings.home, clock, opened.account, env) as record:
            first = record.first_trade_ms()
        rules = ExecutionRules(
            settings.execution.strategy,
            settings.execution.orders,
            settings.risk,
            effective_max_position(settings, first, clock.now_ms()),
        )
        trader = Trader(
            ledger,
            opened.broker,
            clock,
            Permit(files, lease),
            rules,
            settings.execution.timeframe,
            costs_from_fees(settings.fees),
            opened.contract,
            renew=lease.renew,
            halt=files,
        )
        try:
            yield Desk(trader, ledger, opened, files, clock)
        finally:
            files.farewell(ACTOR)


@dataclass(frozen=True)
class Traded:
    """What came of a bar: the decision, and the cycle in which its orders ended or were left to the next."""

    decided: Decided
    last: CycleReport | None
    orders: tuple[Mapping[str, str], ...]

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "status": self.decided.status.value,
            "reason": self.decided.reason,
            "decision_id": self.decided.decision_id,
            "orders": [dict(order) for order in self.orders],
            "level": None if self.last is None else self.last.level,
            "causes": [] if self.last is None else list(self.last.causes),
            "position": None if self.last is None else str(self.last.position),
            "clean": None if self.last is None else self.last.clean,
            "notes": [] if self.last is None else list(self.last.notes),
        }


@dataclass(frozen=True)
class BarDone:
    """What came of one bar on the decision clock, or why nothing did; ``traded`` is None where nobody was asked."""

    market: Market
    ts: int
    said: Said | None
    traded: Traded | None
    reason: str = ""

    @property
    def orders(self) -> tuple[Mapping[str, str], ...]:
        """Those that were sent for the decision."""
        return () if self.traded is None else self.traded.orders

    def line(self) -> str:
        """Return the whole in one line for people."""
        bar = f"{self.market} {format_utc(self.ts)}"
        if self.traded is None:
            return f"{bar}: 0 orders: {self.reason}"
        decided, last = self.traded.decided, self.traded.last
        if decided.decision is None:
            return f"{bar}: 0 orders: {decided.reason}"
        made = decided.decision
        wish = f"{ACTIONS[made.action]} {made.target:+.4f} of NAV at {LEVELS[made.level]}"
        held = "" if last is None or last.position is None else f", {last.position} coins held"
        return f"{bar}: {wish}: {len(self.orders)} orders{held}; decision {decided.decision_id}"

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "market": str(self.market),
            "bar": format_utc(self.ts),
            "said": None if self.said is None else self.said.as_json(),
            "traded": None if self.traded is None else self.traded.as_json(),
            "reason": self.reason,
        }


def decide_and_trade(
    store: Warehouse,
    settings: Settings,
    source: str,
    market: Market,
    ts: int | None = None,
    *,
    forecasted: Forecasted | None = None,
    run_id: str,
    environ: Mapping[str, str] | None = None,
) -> BarDone:
    """Decide on a bar of the decision clock with the forecasts that are stored, and trade the decision.

    Parameters
    ----------
    ts
        Open time of the bar, UTC ms; by default the newest closed one.
    forecasted
        What the models said of it, where that is at hand; else it is made or read.

    Raises
    ------
    ConfigError, BrokerError, PreflightError
        As :func:`open_desk`.
    """
    clock = store.clock
    bar = market.timeframe.last_closed(clock.now_ms()) if ts is None else ts
    if market != settings.decision_market:
        return BarDone(market, bar, None, None, f"{settings.decision_market} is the decision clock; {market} forecasts")
    said = _said(store, settings, source, market, bar, forecasted, run_id)
    with open_desk(settings, clock, environ) as desk:
        # the forecast is there: what an earlier run raised because it had none is over
        note_good_run(desk.ledger, desk.venue.contract)
        said = sized(store, settings, desk.ledger, source, desk.venue.contract, said)
        until = market.timeframe.close_of(bar) + round(settings.execution.orders.valid_share * market.timeframe.ms)
        traded = trade_bar(desk, said, until, bar_volume=bar_volume(store, source, market, bar))
    return BarDone(market, bar, said, traded, traded.decided.reason)


def _said(
    store: Warehouse,
    settings: Settings,
    source: str,
    market: Market,
    ts: int,
    forecasted: Forecasted | None,
    run_id: str,
) -> Said:
    if forecasted is None or (forecasted.market, forecasted.ts) != (market, ts):
        try:
            forecasted = forecast_newest(store, settings, source, market, ts, run_id=run_id)
        except (MissingDataError, QualityRefusedError):
            # the last forecast stands in, with its age; nothing new is entered on one that is too old
            chosen = settings.execution
            version = load_cast(settings, store.clock, source, market, chosen.venue).speaking().get(chosen.model)
            return said_of(store, source, market, ts, chosen.model, version)
    return forecast_to_decide(store, settings, forecasted)


def bar_volume(store: Warehouse, source: str, market: Market, ts: int) -> float | None:
    """Return how many coins traded in a bar, as it is known now; None where that is not known."""
    query = (
        "SELECT volume_usd / close FROM price WHERE source = ? AND symbol = ? AND timeframe = ? AND ts = ? "
        "AND known_at <= ? ORDER BY known_at DESC, observed_at DESC LIMIT 1"
    )
    with store.read() as con:
        row = con.execute(query, [source, market.symbol, str(market.timeframe), ts, store.clock.now_ms()]).fetchone()
    return None if row is None or row[0] is None or not row[0] > 0 else float(row[0])


def trade_bar(desk: Desk, said: Said, until_ms: int, *, bar_volume: float | None = None) -> Traded:
    """Decide on a bar with a forecast and carry the decision out; what may not be decided is a no-op that says why.

    Parameters
    ----------
    said
        Forecast of the bar, and which signal it came from: kept with the decision.
    until_ms
        How long to go on with orders that are not over, UTC ms; the next run or the risk watch goes on after it.
    bar_volume
        Coins that traded in the bar; None unknown.
    """
    trader, clock = desk.trader, desk.clock
    decided = trader.decide(said.ts, said.forecast, {"signal": said.as_json()}, bar_volume=bar_volume)
    while decided.status is Status.BLIND and clock.now_ms() + _BLIND_PAUSE_S * 1000 < until_ms:
        # the account could not be read: nothing was decided, and the bar is young enough to ask again
        clock.sleep(_BLIND_PAUSE_S)
        decided = trader.decide(said.ts, said.forecast, {"signal": said.as_json()}, bar_volume=bar_volume)
    last = decided.cycle
    if decided.status is Status.DECIDED and last is not None and last.open:
        last = trader.finish(until_ms)
    states = desk.ledger.intents_of(decided.decision_id) if decided.decision_id else []
    return Traded(decided, last, tuple(_order(attempt) for state in states for attempt in state.attempts))


def _order(attempt: AttemptState) -> Mapping[str, str]:
    sent, seen = attempt.request, attempt.order
    average = None if seen is None else seen.average_price
    return {
        "order_link_id": sent.order_link_id,
        "side": str(sent.side),
        "type": str(sent.order_type),
        "qty": str(sent.qty),
        "price": "market" if sent.price is None else str(sent.price),
        "reduce_only": str(sent.reduce_only),
        "stop_loss": str(sent.stop_loss or ""),
        "status": "unknown" if seen is None else str(seen.status),
        "filled": str(attempt.filled_qty),
        "average_price": "" if average is None else f"{average:.2f}",
    }
