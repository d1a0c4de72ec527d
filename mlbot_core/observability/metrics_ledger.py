"""Money, risk and orders: what the book of execution says of every account of the configured venue."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from mlbot_core.config import Settings
from mlbot_core.decision.risk import level_of
from mlbot_core.decision.state import CAUSES, RiskState
from mlbot_core.execution.identifiers import Leg
from mlbot_core.execution.ledger_folds import AttemptEvent, Closing, PositionView
from mlbot_core.execution.ledger_risk import AlertLevel
from mlbot_core.execution.ledger_states import BAR
from mlbot_core.execution.types import ExecType, OrderStatus, Side
from mlbot_core.observability.metrics import Readings, Since
from mlbot_core.observability.metrics_book import BookReader, BookReplacedError, BookView, accounts_of, risk_states
from mlbot_core.timeframe import Timeframe

SETTLE_COIN: Final = "USDT"


class LedgerMetrics:
    """Reads the book.

    Parameters
    ----------
    settings, environ
        Where the book is, whose accounts are shown, and what the limits are.
    every_s
        Pause between readings, seconds.
    """

    name = "ledger"

    def __init__(self, settings: Settings, environ: Mapping[str, str], every_s: float = 2.0) -> None:
        self.every_s = every_s
        self._venue = settings.execution.venue
        self._contract = settings.execution.contract
        self._limits = {
            "max_position": settings.risk.max_position,
            "daily_loss": settings.risk.daily_loss_limit,
            "drawdown": settings.risk.max_drawdown,
        }
        self._reader = BookReader(settings.home, environ.get("MLBOT_PG_URL") or None)
        self._views: dict[str, BookView] = {}

    def read(self) -> Readings | None:
        """Return what the book says now; None where there is none, or no account of the venue in it."""
        with self._reader.connected() as connection:
            if connection is None:
                self._views.clear()
                return None
            states = {account: risk_states(connection, account) for account in accounts_of(connection, self._venue)}
            for account in states:
                view = self._views.setdefault(account, BookView(account))
                try:
                    view.advance(connection)
                except BookReplacedError:
                    self._views[account] = view = BookView(account)
                    view.advance(connection)
                except BaseException:
                    # half of it may be counted: read it again from its start
                    del self._views[account]
                    raise
        if not states:
            return None
        readings = Readings()
        for account, by_symbol in states.items():
            self._account(readings, self._views[account], by_symbol)
        return readings

    def _account(self, readings: Readings, view: BookView, states: Mapping[str, tuple[int, RiskState]]) -> None:
        account = view.account
        _counts(readings, view)
        balance = view.wallets.get(SETTLE_COIN)
        for symbol in sorted({*states, *view.positions, *view.newest_decision, self._contract}):
            position = view.positions.get(symbol, PositionView(symbol))
            version, state = states.get(symbol, (0, None))
            here = {"account": account, "symbol": symbol}
            nav = math.nan if state is None else state.last_nav
            # NAV = wallet + unrealised, so what the wallet does not explain is the open position's profit
            opening = view.openings.get(symbol)
            wallet = math.nan if opening is None else float(opening["balance"])
            wallet = wallet if balance is None else float(balance.balance)
            unrealised = nav - wallet if position.size else 0.0
            exposure = float(position.size * position.average_price) + unrealised
            for name, value in (
                ("realised", float(position.realised)),
                ("fees", -float(position.fees)),
                ("funding", -float(position.funding)),
                ("unrealised", unrealised),
            ):
                readings.put("mlbot_pnl_usd", value, component=name, **here)
            readings.put("mlbot_position", float(position.size), **here)
            readings.put("mlbot_position_average_price_usd", float(position.average_price), **here)
            readings.put("mlbot_exposure_usd", exposure, **here)
            decision = view.newest_decision.get(symbol)
            if decision is not None:
                readings.put("mlbot_target_position_ratio", float(decision["target"]), **here)
                interval_s = Timeframe.parse(decision["timeframe"]).ms / 1000
                readings.put("mlbot_decision_interval_seconds", interval_s, **here)
                readings.put("mlbot_decision_age_seconds", Since(int(decision["decided_ms"])), **here)
            if state is not None:
                self._risk(readings, here, version, state, exposure)

    def _risk(
        self, readings: Readings, here: dict[str, str], version: int, state: RiskState, exposure_usd: float
    ) -> None:
        readings.put("mlbot_risk_level", float(level_of(state.causes)), **here)
        readings.put("mlbot_risk_states_total", float(version), **here)
        if state.ts >= 0:
            readings.put("mlbot_risk_state_age_seconds", Since(state.ts), **here)
        for cause in CAUSES:
            active = float(bool(state.causes & cause.bit))
            readings.put("mlbot_risk_cause_active", active, cause=cause.name, **here)
        nav, peak, start = state.last_nav, state.peak_nav, state.day_start_nav
        readings.put("mlbot_nav_usd", nav, **here)
        readings.put("mlbot_nav_peak_usd", peak, **here)
        readings.put("mlbot_nav_day_start_usd", start, **here)
        used = {
            "max_position": abs(exposure_usd) / nav if nav > 0 else math.nan,
            "daily_loss": 1 - nav / start if start > 0 else math.nan,
            "drawdown": 1 - nav / peak if peak > 0 else math.nan,
        }
        readings.put("mlbot_exposure_ratio", exposure_usd / nav if nav > 0 else math.nan, **here)
        readings.put("mlbot_day_loss_ratio", used["daily_loss"], **here)
        readings.put("mlbot_drawdown_ratio", used["drawdown"], **here)
        for name, limit in self._limits.items():
            readings.put("mlbot_limit_ratio", limit, limit=name, **here)
            readings.put("mlbot_limit_headroom_ratio", limit - used[name], limit=name, **here)


def _counts(readings: Readings, view: BookView) -> None:
    """Every count of the book; what never happened is shown as zero, so that its first time is an increase."""
    account = view.account
    here = {"account": account}
    for coin, wallet in view.wallets.items():
        readings.put("mlbot_wallet_balance", float(wallet.balance), coin=coin, **here)
        readings.put("mlbot_wallet_flows", float(wallet.flows), coin=coin, **here)
        readings.put("mlbot_wallet_log_breaks", float(len(wallet.breaks)), coin=coin, **here)
    symbols = {symbol for symbol, _ in (*view.decisions, *view.intents)}
    for symbol in symbols:
        for trigger in {BAR, *(t for s, t in view.decisions if s == symbol)}:
            count = float(view.decisions[symbol, trigger])
            readings.put("mlbot_decisions_total", count, symbol=symbol, trigger=trigger, **here)
        for leg in Leg:
            count = float(view.intents[symbol, leg.value])
            readings.put("mlbot_intents_total", count, symbol=symbol, leg=leg.value, **here)
    for closing in Closing:
        readings.put("mlbot_intent_closings_total", float(view.closings[closing.value]), reason=closing.value, **here)
    readings.put("mlbot_intents_open", float(view.intents_open), **here)
    readings.put("mlbot_attempts_total", float(view.attempts), **here)
    readings.put("mlbot_order_sends_total", float(view.answers[AttemptEvent.SENT.value]), **here)
    for answer in AttemptEvent:
        if answer is not AttemptEvent.SENT:
            count = float(view.answers[answer.value])
            readings.put("mlbot_order_answers_total", count, answer=answer.value, **here)
    ended, still_open = view.outcomes()
    for status in OrderStatus:
        if status.terminal:
            readings.put("mlbot_orders_total", float(ended[status.value]), outcome=status.value, **here)
    readings.put("mlbot_orders_open", float(still_open), **here)
    kinds = {(kind.value, side.value) for kind in (ExecType.TRADE, ExecType.FUNDING) for side in Side}
    for kind, side in kinds | set(view.fills):
        readings.put("mlbot_fills_total", float(view.fills[kind, side]), kind=kind, side=side, **here)
    readings.put("mlbot_traded_value_usd_total", view.traded_usd, **here)
    readings.put("mlbot_decision_to_acknowledged_seconds", view.decision_to_ack.copy(), **here)
    readings.put("mlbot_send_to_acknowledged_seconds", view.send_to_ack.copy(), **here)
    readings.put("mlbot_bar_close_to_decision_seconds", view.close_to_decision.copy(), **here)
    # of kinds that were never raised there is a zero each, so that the first one is an increase
    unseen = {(AlertLevel.CRITICAL.value, "flatten"), (AlertLevel.WARNING.value, "api_degraded")}
    for level_name, code in unseen | set(view.alerts):
        readings.put("mlbot_alerts_total", float(view.alerts[level_name, code]), level=level_name, code=code, **here)
    readings.put("mlbot_reconcile_differences_total", float(view.differences), **here)
    pending = view.pending_ms
    readings.put("mlbot_alerts_pending", float(len(pending)), **here)
    oldest: Since | float = Since(min(pending)) if pending else 0.0
    readings.put("mlbot_alert_oldest_pending_age_seconds", oldest, **here)
