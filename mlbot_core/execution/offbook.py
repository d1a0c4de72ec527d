"""A look at the account without the book: for the risk watch while the book is locked or broken."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from mlbot_core.clock import Clock
from mlbot_core.decision.state import Observation
from mlbot_core.execution.broker import Broker
from mlbot_core.execution.ledger_book import COIN
from mlbot_core.execution.ledger_folds import FLOW_KINDS
from mlbot_core.execution.marking import Look
from mlbot_core.execution.types import ZERO, PositionSnapshot

_FIRST_WINDOW_MS = 600_000


@dataclass(frozen=True)
class OffBook:
    """What was seen, and what was paid in or out since the book was last marked.

    Parameters
    ----------
    seen
        For the risk machine, without flow and flags.
    nav
        USD.
    flow
        Deposits less withdrawals since ``since_ms``, USD, contained in ``nav``.
    since_ms
        The exchange's time of the last look that the book took, UTC ms.
    """

    seen: Observation
    nav: Decimal
    position: PositionSnapshot
    flow: float
    since_ms: int

    @classmethod
    def after(cls, looked: Look) -> OffBook:
        """Return where to go on from once the book took a look: nothing was paid since."""
        return cls(looked.seen, looked.nav, looked.position, 0.0, looked.wallet.at_ms)

    @classmethod
    def read(cls, broker: Broker, clock: Clock, symbol: str, before: OffBook | None) -> OffBook:
        """Look; the wallet's log is read after the wallet, and again where it told of something new.

        Raises
        ------
        BrokerError
            If a question stayed without an answer.
        """
        flow = before.flow if before is not None else 0.0
        while True:
            wallet = broker.wallet()
            # without a look that the book took, nothing can be told of what was paid before this one
            since = wallet.at_ms if before is None else before.since_ms
            log = broker.wallet_events_since(since - _FIRST_WINDOW_MS)
            paid = sum(
                (
                    event.change
                    for event in log
                    if event.coin == COIN and event.kind in FLOW_KINDS and event.at_ms > since
                ),
                ZERO,
            )
            if float(paid) == flow:
                break
            flow = float(paid)
        position, ticker = broker.position(symbol), broker.ticker(symbol)
        nav = wallet.coin(COIN).equity
        seen = Observation(clock.now_ms(), -1, float(ticker.mark), float(nav), float(position.size), 0.0, 0, 0)
        return cls(seen, nav, position, flow, since)
