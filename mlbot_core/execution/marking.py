"""One look at the account for the risk machine: NAV, position and mark price that belong together.

NAV is the equity of the settle coin. It contains deposits and withdrawals, which must be counted exactly once: the log
of the wallet is read after the wallet until both agree, so that NAV contains the flows up to a known row of the log and
no other. Where they do not agree in time, what is in the wallet and not in the log is left out of NAV, so that a
deposit on its way does not look like a profit; what is missing counts as a loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from mlbot_core.clock import Clock
from mlbot_core.config.trading import RiskConfig
from mlbot_core.decision.risk import risk_check
from mlbot_core.decision.state import HALTING, KILL, Limits, Observation, RiskState, initial_state
from mlbot_core.execution.broker import Broker, Ticker
from mlbot_core.execution.ledger import ExecutionLedger
from mlbot_core.execution.ledger_book import COIN
from mlbot_core.execution.ledger_risk import StoredRiskState
from mlbot_core.execution.types import PositionSnapshot, WalletSnapshot
from mlbot_core.timeframe import MINUTE_MS, Timeframe

# How far back questions for rows reach behind the newest known one: late rows appear within it.
OVERLAP_MS: Final = 10 * MINUTE_MS
# The first mark within this time after 00:00 UTC is the day's start.
DAY_GRACE_MS: Final = 5 * MINUTE_MS
# Below this the wallet and its log are the same, USDT.
SAME: Final = Decimal("0.0001")
# Who raises the flag that book and exchange differ.
RECONCILER: Final = "reconcile"
_PAUSES_S: Final = (0.25, 0.5, 1.0, 2.0)
# Without any other change a mark is written this often.
_KEEP_EVERY_MS: Final = MINUTE_MS


def limits_from_risk(risk: RiskConfig, timeframe: Timeframe, max_position: Decimal | None = None) -> Limits:
    """Return the bounds of the risk machine that ``risk.yaml`` sets.

    Parameters
    ----------
    max_position
        A smaller cap, fraction of NAV (the first day on mainnet); None for that of the file.
    """
    cap = risk.max_position if max_position is None else min(risk.max_position, float(max_position))
    return Limits(
        max_position=cap,
        trim_above=risk.trim_above * cap,
        daily_loss=risk.daily_loss_limit,
        max_drawdown=risk.max_drawdown,
        max_forecast_age_ms=round(risk.max_forecast_age * timeframe.ms),
        rebalance_band=risk.rebalance_band * cap,
        day_grace_ms=DAY_GRACE_MS,
    )


@dataclass(frozen=True)
class Look:
    """What was seen.

    Parameters
    ----------
    seen
        For the risk machine; ``flow`` and ``flags`` are 0 and ``bar_ts`` is -1.
    nav
        USD, exact.
    upto
        Number of the newest row of the wallet's log that NAV contains; None where the book has not begun.
    explained
        What the log makes of the balance, USDT; None where the book has not begun.
    """

    seen: Observation
    nav: Decimal
    upto: int | None
    explained: Decimal | None
    wallet: WalletSnapshot
    position: PositionSnapshot
    ticker: Ticker

    @property
    def agrees(self) -> bool:
        """Whether the wallet is what its log makes of it."""
        return self.explained is None or abs(self.wallet.coin(COIN).wallet_balance - self.explained) <= SAME


def pull_wallet_log(
    ledger: ExecutionLedger, broker: Broker, symbol: str, since_ms: int | None = None, *, deep: bool = False
) -> None:
    """Write down the rows of the wallet's log since the newest known one, with an overlap.

    Parameters
    ----------
    since_ms
        It was read completely up to then, UTC ms.
    deep
        From ``since_ms`` on, however new the rows are that are known.
    """
    opening = ledger.opening(symbol)
    if opening is None:
        return
    newest = 0 if deep else ledger.newest_wallet_event_ms() or 0
    known = max(newest, opening.at_ms, since_ms or 0)
    ledger.record_wallet_events(broker.wallet_events_since(known - OVERLAP_MS))


def look(ledger: ExecutionLedger, broker: Broker, clock: Clock, symbol: str, since_ms: int | None = None) -> Look:
    """Read wallet, position and prices until the wallet agrees with its log, within a few seconds.

    Parameters
    ----------
    since_ms
        The log was read completely up to then, UTC ms; None where that is not known.

    Raises
    ------
    BrokerError
        If a question stayed without an answer.
    """
    # a difference that is known already is not waited for again
    pauses_s = () if ledger.flags(symbol, RECONCILER) else _PAUSES_S
    for pause_s in (*pauses_s, 0.0):
        wallet = broker.wallet()
        pull_wallet_log(ledger, broker, symbol, since_ms)
        log = ledger.balance(symbol)
        coin = wallet.coin(COIN)
        surplus = Decimal(0) if log is None else coin.wallet_balance - log[0]
        if abs(surplus) <= SAME or not pause_s:
            break
        clock.sleep(pause_s)
    position, ticker = broker.position(symbol), broker.ticker(symbol)
    nav = coin.equity - (surplus if surplus > SAME else Decimal(0))
    seen = Observation(clock.now_ms(), -1, float(ticker.mark), float(nav), float(position.size), 0.0, 0, 0)
    return Look(seen, nav, None if log is None else log[1], None if log is None else log[0], wallet, position, ticker)


def worth_keeping(before: RiskState, after: RiskState) -> bool:
    """Return whether a mark says more than that time has passed and NAV has moved within its bounds."""
    same = before._replace(ts=after.ts, last_nav=after.last_nav)
    # repr: a NaN equals itself
    return repr(same) != repr(after) or after.ts - before.ts >= _KEEP_EVERY_MS


def mark(
    ledger: ExecutionLedger, symbol: str, looked: Look, limits: Limits, *, actor: str, flags: int = 0
) -> StoredRiskState:
    """Take a look into the risk state by one ``risk_check``, written down when it changed anything.

    Parameters
    ----------
    flags
        Causes that the caller found, on top of those that the book holds.
    """

    def change(state: RiskState | None, flow: float) -> RiskState:
        before = initial_state() if state is None else state
        # the marker also stands for a halt that the limits found: it adds no cause to that
        found = flags & ~KILL if before.causes & HALTING else flags
        return risk_check(before, looked.seen._replace(flow=flow, flags=found), limits)

    return ledger.mark(symbol, (), change, actor=actor, upto=looked.upto, keep=worth_keeping)


def warm_up(limits: Limits) -> None:
    """Compile the risk machine now: inside a transaction of the book others would wait for it."""
    risk_check(initial_state(), Observation(0, -1, 1.0, 1.0, 0.0, 0.0, 0, 0), limits)
