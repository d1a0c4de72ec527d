"""Challengers trade in shadow: each on paper, on the bars on which it forecast beside the champion.

Nothing is kept for it. The paper account of a challenger is its stored signals traded by the simulator, which calls the
same decision function as live trading, at the configured costs, on the stored prices and funding: the free run of a
parity certificate with other forecasts. So it can be made again at any time, no order is sent for it and no book
knows of it. Beside it the champion trades the very same bars in the same way, from the same NAV: what live trading
itself did (other sizes, faults, flows) is the matter of the parity certificate.

A bar on which a model said nothing is traded on as live trading would: the newest usable forecast before it stands in
with its age. Prices come as they are known at one moment; the same moment gives the same accounts, to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mlbot_core.backtest.metrics import max_drawdown
from mlbot_core.backtest.run import DECISION_LATENCY_MS
from mlbot_core.backtest.setup import simulation_params
from mlbot_core.backtest.simulator import Forecasts, Simulation
from mlbot_core.clock import format_utc
from mlbot_core.config import Settings
from mlbot_core.decision.state import Forecast
from mlbot_core.errors import MissingDataError
from mlbot_core.live.observation import as_forecast, said_of
from mlbot_core.live.parity_free import MarketData, market_data, trade
from mlbot_core.live.signal_store import Signal, read_signals
from mlbot_core.timeframe import DAY_MS, Market
from mlbot_core.warehouse import Warehouse

_SPEAKING = ("champion", "candidate")
_SHADOW = "challenger"


@dataclass(frozen=True, eq=False)
class PaperAccount:
    """What one model would have made of its forecasts.

    Parameters
    ----------
    versions
        Of the model, in the order in which they spoke; a challenger has one.
    role
        ``champion`` (whoever might speak then) or ``challenger``.
    forecasts
        Bars on which it had a usable forecast of its own.
    missed
        Bars on which it said nothing.
    simulation
        Bar by bar.
    """

    model_type: str
    versions: tuple[str, ...]
    role: str
    forecasts: int
    missed: int
    simulation: Simulation

    @property
    def nav(self) -> float:
        """At the end, USD."""
        return float(self.simulation.nav[-1])

    @property
    def total_return(self) -> float:
        """As a fraction of the NAV at the start."""
        return self.nav / self.simulation.params.initial_nav - 1.0

    @property
    def drawdown(self) -> float:
        """The deepest fall of NAV at bar closes from its peak so far, a fraction."""
        return max_drawdown(self.simulation.nav, self.simulation.params.initial_nav).depth

    @property
    def turnover(self) -> float:
        """Traded value over the NAV at the start."""
        fills = self.simulation.fills
        return float((fills["btc"].abs() * fills["mid"]).sum()) / self.simulation.params.initial_nav

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        done = self.simulation
        return {
            "role": self.role,
            "model_type": self.model_type,
            "versions": list(self.versions),
            "bars": len(done.ts),
            "forecasts": self.forecasts,
            "missed": self.missed,
            "nav": self.nav,
            "return": self.total_return,
            "max_drawdown": self.drawdown,
            "turnover": self.turnover,
            "fills": len(done.fills),
            "fees": float(done.fees.sum()),
            "slippage": float(done.slippage.sum()),
            "funding": float(done.funding.sum()),
            "position": float(done.position[-1]),
        }


@dataclass(frozen=True, eq=False)
class Contest:
    """A challenger and the champion on the same bars.

    Parameters
    ----------
    market, model_type
        Whose.
    start_ms, end_ms
        Bars opened in [start, end): from the first on which the challenger forecast in shadow to the last, UTC ms.
    """

    market: Market
    model_type: str
    start_ms: int
    end_ms: int
    champion: PaperAccount
    challenger: PaperAccount

    @property
    def lead(self) -> float:
        """Return of the challenger less that of the champion, fraction of NAV."""
        return self.challenger.total_return - self.champion.total_return

    @property
    def same_bars(self) -> bool:
        """Whether both were asked on every bar."""
        return not self.champion.missed and not self.challenger.missed

    def line(self) -> str:
        """Return the whole in one line for people."""
        return (
            f"{self.market} {self.model_type}: challenger {self.challenger.versions[0][:12]} "
            f"{self.challenger.total_return:+.2%}, champion {self.champion.versions[-1][:12]} "
            f"{self.champion.total_return:+.2%} on {len(self.challenger.simulation.ts)} bars from "
            f"{format_utc(self.start_ms)}"
        )

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "market": str(self.market),
            "model_type": self.model_type,
            "start": format_utc(self.start_ms),
            "end": format_utc(self.end_ms),
            "same_bars": self.same_bars,
            "lead": self.lead,
            "champion": self.champion.as_json(),
            "challenger": self.challenger.as_json(),
        }


def contests(
    store: Warehouse,
    settings: Settings,
    source: str,
    market: Market,
    start_ms: int,
    end_ms: int,
    *,
    initial_nav: float = 10_000.0,
    known_by_ms: int | None = None,
) -> tuple[Contest, ...]:
    """Trade every challenger of a market on paper beside its champion.

    Parameters
    ----------
    source
        Of the bars that were forecast.
    start_ms, end_ms
        Signals of bars opened in [start, end), UTC ms.
    initial_nav
        Of each paper account, USD.
    known_by_ms
        Prices and funding as they were known then, UTC ms; by default now.

    Returns
    -------
    tuple[Contest, ...]
        By model type, the newest challenger first; empty where none forecast in the period.

    Raises
    ------
    MissingDataError
        If prices of the period are not stored.
    QualityRefusedError
        If a month of them failed a check.
    """
    signals = read_signals(store, source, market, start_ms, end_ms)
    pairs = _pairs(signals)
    if not pairs:
        return ()
    delay, step = settings.intervals.settle_delay_ms(source), market.timeframe.ms
    known = store.clock.now_ms() if known_by_ms is None else known_by_ms
    first = min(one[0].key.ts for one in pairs)
    data = market_data(store, source, market, delay, first, end_ms + step, known)
    desk = _PaperDesk(store, settings, source, market, data, initial_nav)
    found = []
    for challenger in pairs:
        kind, since, until = challenger[0].key.model_type, challenger[0].key.ts, challenger[-1].key.ts + step
        speaking = [
            one
            for one in signals
            if one.role in _SPEAKING and one.key.model_type == kind and since <= one.key.ts < until
        ]
        if not speaking:
            raise MissingDataError(
                f"{kind} {challenger[0].key.model_version[:12]} challenged nobody on {market}: no signal of a champion "
                f"is stored from {format_utc(since)} to {format_utc(until)}"
            )
        ts = np.arange(since, until, step, dtype=np.int64)
        found.append(
            Contest(
                market,
                kind,
                since,
                until,
                desk.account("champion", speaking, ts),
                desk.account(_SHADOW, challenger, ts),
            )
        )
    return tuple(found)


def _pairs(signals: Sequence[Signal]) -> list[list[Signal]]:
    """Return the signals of each challenger, by bar."""
    mine: dict[tuple[str, str], list[Signal]] = {}
    for one in signals:
        if one.role == _SHADOW:
            mine.setdefault((one.key.model_type, one.key.model_version), []).append(one)
    return sorted(mine.values(), key=lambda own: (own[0].key.model_type, -own[0].key.ts))


@dataclass(frozen=True, eq=False)
class _PaperDesk:
    """What every paper account of a comparison has in common."""

    store: Warehouse
    settings: Settings
    source: str
    market: Market
    data: MarketData
    initial_nav: float

    def account(self, role: str, signals: Sequence[Signal], ts: npt.NDArray[np.int64]) -> PaperAccount:
        """Trade the signals of one model, at most one a bar."""
        own = {one.key.ts: one for one in signals}
        said = [self._said(own, signals, bar) for bar in ts.tolist()]
        forecasts = Forecasts(
            np.array([one.edge for one in said]),
            np.array([one.multiplier for one in said]),
            np.array([float(one.age_ms) for one in said]),
        )
        params = simulation_params(
            self.market,
            self.settings.fees,
            self.settings.risk,
            self.settings.intervals.settle_delay_ms(self.source),
            DECISION_LATENCY_MS,
            unit=False,
            initial_nav=self.initial_nav,
        )
        return PaperAccount(
            signals[0].key.model_type,
            tuple(dict.fromkeys(one.key.model_version for one in signals)),
            role,
            sum(math.isfinite(one.edge) and one.age_ms == 0 for one in said),
            sum(bar not in own for bar in ts.tolist()),
            trade(self.data, ts, forecasts, params),
        )

    def _said(self, own: Mapping[int, Signal], signals: Sequence[Signal], bar: int) -> Forecast:
        """Return a forecast as a decision on the bar takes it."""
        if bar in own:
            return as_forecast(own[bar], bar)
        before = [one for one in signals if one.key.ts < bar]
        last = (before or signals)[-1 if before else 0].key
        return said_of(self.store, self.source, self.market, bar, last.model_type, last.model_version).forecast


def newest_period(store: Warehouse, market: Market, days: int) -> tuple[int, int]:
    """Return the last ``days`` days up to now as bars of a market, [start, end), UTC ms."""
    end = market.timeframe.last_closed(store.clock.now_ms()) + market.timeframe.ms
    return end - days * DAY_MS, end
