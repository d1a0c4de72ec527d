"""The parity certificate of one UTC day, for every account whose book holds a decision of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from mlbot_core.clock import Clock, format_utc, parse_utc_ms
from mlbot_core.config import Settings
from mlbot_core.errors import UsageError
from mlbot_core.execution.ledger import open_ledger
from mlbot_core.execution.ledger_schema import DECISIONS
from mlbot_core.execution.ledger_states import BAR
from mlbot_core.execution.ledger_store import LedgerStore
from mlbot_core.live.parity import Parity, parity
from mlbot_core.live.parity_free import bar_decisions
from mlbot_core.timeframe import DAY_MS, Market
from mlbot_core.warehouse import Warehouse

NOTHING_TRADED = "nothing traded"


@dataclass(frozen=True)
class ParityDay:
    """What is certified of a day.

    Parameters
    ----------
    market
        Of the decision clock.
    day_ms
        When the day began, UTC ms.
    accounts
        By account that decided on a bar that closed in the day; none where there was no live trading.
    """

    market: Market
    day_ms: int
    accounts: Mapping[str, Parity]

    @property
    def outcome(self) -> str:
        """``parity``, ``no parity``, or that nothing was traded: nothing is certified of such a day."""
        if not self.accounts:
            return NOTHING_TRADED
        return "parity" if self.passed else "no parity"

    @property
    def findings(self) -> tuple[str, ...]:
        """What lies outside of the tolerances, in words, with its account."""
        return tuple(f"{name}: {one}" for name, found in self.accounts.items() for one in found.findings)

    @property
    def passed(self) -> bool:
        """Whether nothing lies outside of the tolerances; true of a day without trading as well."""
        return not self.findings

    def line(self) -> str:
        """Return the whole in one line for people."""
        day = f"{self.market} {format_utc(self.day_ms)[:10]}"
        if not self.accounts:
            return f"{day}: {NOTHING_TRADED}: no account decided on a bar, so nothing is compared"
        bars = sum(len(found.bars) for found in self.accounts.values())
        return f"{day}: {self.outcome}: {bars} decided bars of {', '.join(self.accounts)} compared" + (
            f"; {len(self.findings)} findings, the first: {self.findings[0]}" if self.findings else ""
        )

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "market": str(self.market),
            "day": format_utc(self.day_ms)[:10],
            "outcome": self.outcome,
            "accounts": {name: found.as_json() for name, found in self.accounts.items()},
        }


def last_day(clock: Clock) -> int:
    """Return when the last whole UTC day began, UTC ms."""
    return clock.now_ms() // DAY_MS * DAY_MS - DAY_MS


def day_of(text: str | None, clock: Clock) -> int:
    """Return when a day like ``2025-06-30`` began, UTC ms; by default the last whole one.

    Raises
    ------
    UsageError
        If the text is no date, or the day is not over yet.
    """
    if text is None:
        return last_day(clock)
    try:
        day = parse_utc_ms(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is no day; give one like 2025-06-30") from error
    if day % DAY_MS or day > last_day(clock):
        raise UsageError(
            f"{text} is no whole UTC day that is over (now {format_utc(clock.now_ms())}); the last one is "
            f"{format_utc(last_day(clock))[:10]}"
        )
    return day


def certify_day(
    store: Warehouse,
    settings: Settings,
    source: str,
    day_ms: int,
    environ: Mapping[str, str] | None = None,
) -> ParityDay:
    """Simulate a day of live trading of the decision market again.

    Bars that closed before an account's first decision were not to be decided by it.

    Parameters
    ----------
    source
        Of the bars that were decided on.
    day_ms
        When the day began, UTC ms.

    Raises
    ------
    MissingDataError, QualityRefusedError
        If something was decided and its prices are not stored, or failed a check.
    """
    market, contract = settings.decision_market, settings.execution.contract
    length = market.timeframe.ms
    found = {}
    for account in deciders(settings, store.clock, day_ms - length, day_ms + DAY_MS - length, environ):
        with open_ledger(settings.home, store.clock, account, environ) as ledger:
            first = bar_decisions(ledger, contract)[0].ts + length
            start = max(day_ms, first)
            found[account] = parity(store, settings, ledger, source, market, contract, start, day_ms + DAY_MS)
    return ParityDay(market, day_ms, without_handed_over(found))


def without_handed_over(accounts: Mapping[str, Parity]) -> dict[str, Parity]:
    """Return certificates in which a bar that another account decided is no longer undecided.

    Each start of an emulator trades a new account: what one left undecided, the next one may have decided.
    """
    decided = {bar for one in accounts.values() for bar in one.bars["ts"].tolist()}
    return {
        account: replace(one, undecided=tuple(bar for bar in one.undecided if bar not in decided))
        for account, one in accounts.items()
    }


def deciders(
    settings: Settings, clock: Clock, start_ms: int, end_ms: int, environ: Mapping[str, str] | None = None
) -> list[str]:
    """Return the accounts that decided on bars of the traded contract opened in [start, end), whether they live or not.

    An emulator begins a new account with each start; the one before it has its book still.
    """
    env = os.environ if environ is None else environ
    with _Books(settings.home, clock, "*", url=env.get("MLBOT_PG_URL") or None) as books:
        return books.deciders(settings.execution.contract, start_ms, end_ms)


class _Books(LedgerStore):
    """A question over the books of all accounts; it writes nothing."""

    def deciders(self, contract: str, start_ms: int, end_ms: int) -> list[str]:
        query = sa.select(DECISIONS.c.account).distinct().order_by(DECISIONS.c.account)
        query = query.where(DECISIONS.c.symbol == contract, DECISIONS.c.trigger == BAR)
        query = query.where(DECISIONS.c.ts >= start_ms, DECISIONS.c.ts < end_ms)
        nothing: list[str] = []
        return self._reading(DECISIONS, lambda connection: list(connection.scalars(query)), nothing)
